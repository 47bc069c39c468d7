//! `weftc bench`: the training step and the machine, measured.

use super::how::How;
use crate::bench::{self, Request, What, calibrate};
use crate::error::{Error, Problem, Result};
use crate::onnx::train_file::is_training_graph;
use crate::rules::Target;
use crate::rules::library::library;
use crate::runtime::device::Choice;
use crate::stdout::print;
use clap::Args;
use std::path::PathBuf;

/// The flags of `weftc bench`: those of `weftc compile` too, where a model is measured.
#[derive(Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct BenchArgs {
    /// A model, which is compiled first, or a train.onnx that `weftc compile` made
    #[arg(required_unless_present = "calibrate")]
    model: Option<PathBuf>,
    /// Sequences in a step [default: the model's own, else 4]
    #[arg(long, value_name = "B")]
    batch: Option<usize>,
    /// Tokens in each, random ones; the first quarter is the prompt [default: the model's own, else 256 or as many as
    /// the model takes]
    #[arg(long, value_name = "L")]
    length: Option<usize>,
    /// Threads within an operator; 0 takes all
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Where to run
    #[arg(long, value_enum, default_value_t = Choice::Cpu)]
    device: Choice,
    /// Stop counting steps after so many seconds: 3 to 15 are counted
    #[arg(long, value_name = "S", default_value_t = 15.0, allow_negative_numbers = true)]
    seconds: f64,
    /// Measure the machine instead: products, attention, memory traffic, functions; written to --calibration, else
    /// where `compile` and `bench` look for it
    #[arg(long, conflicts_with = "model")]
    calibrate: bool,
    /// The machine that times are predicted for, or the file to write [default: calibration.toml in the cache folder, else
    /// built-in figures]
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    how: How,
    /// Print an object
    #[arg(long)]
    json: bool,
}

/// Measures a step, or the machine.
///
/// # Errors
/// As a compile and a run.
pub fn bench(args: &BenchArgs) -> Result<()> {
    let json = |value: serde_json::Result<String>| {
        print(&format!("{}\n", value.map_err(|e| Error::internal("bench", e.to_string()))?))
    };
    let Some(model) = args.model.as_ref().filter(|_| !args.calibrate) else {
        let path = args.calibration.clone().map_or_else(calibrate::default_path, Ok)?;
        let machine = calibrate::calibrate(&library()?.lower_for(Target::Cpu), args.threads)?;
        machine.write(&path)?;
        if args.json {
            return json(serde_json::to_string(&machine));
        }
        return print(&format!("{machine}wrote {}\n", path.display()));
    };
    if !(args.seconds.is_finite() && args.seconds >= 0.0) {
        return Err(Error::usage(Problem::new("--seconds", "must be a number from 0")));
    }
    let machine = calibrate::machine(args.calibration.as_deref())?;
    let what = if is_training_graph(model)? {
        args.how.refuse("it is compiled already")?;
        What::Train(model.clone())
    } else {
        What::Model(Box::new(args.how.options(model)?.0))
    };
    let report = bench::bench(&Request {
        what,
        batch: args.batch,
        length: args.length,
        threads: args.threads,
        device: args.device,
        seconds: args.seconds,
        machine,
    })?;
    if args.json { json(serde_json::to_string(&report)) } else { print(&report.to_string()) }
}
