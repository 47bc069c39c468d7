//! The command line.

mod bench;
mod compile;
mod completions;
mod config;
mod data;
mod how;
mod tools;

use crate::error::{Error, Result};
use crate::eval::command::{EvalArgs, eval};
use crate::export::{ExportArgs, export};
use crate::generate::command::{GenerateArgs, generate};
use crate::peft;
use crate::report::{self, ReportArgs};
use crate::runtime::doctor;
use crate::sampling;
use crate::stdout::coloured;
use crate::train::{self, RunArgs};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Compile the ONNX graph of a diffusion language model into a training graph, and train it on stock
/// ONNX Runtime.
#[derive(Parser)]
#[command(name = "weftc", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    2  command line, or files that do not belong together
    3  model
    4  data
    5  ONNX Runtime, or training that diverged
    6  rule file
    7  file system: missing, not writable, full
   70  a mistake in weftc: please report it
  130  interrupted (Ctrl-C) and saved

Colours appear on terminals only, and nowhere with NO_COLOR set.";

#[derive(Subcommand)]
enum Command {
    /// Rewrite a model into a training graph, train.onnx
    Compile(Box<compile::CompileArgs>),
    /// Train: run train.onnx over a data file
    Run(Box<RunArgs>),
    /// Write what a run learnt in the formats that other tools read
    Export(ExportArgs),
    /// Merge an adapter into a model
    Merge(peft::merge::MergeArgs),
    /// Generate text with a model
    Generate(Box<GenerateArgs>),
    /// Evaluate a model: puzzles, mathematics, likelihood, multiple choice
    Eval(Box<EvalArgs>),
    /// Measure the training step of a model, part by part, or the machine (--calibrate)
    Bench(Box<bench::BenchArgs>),
    /// Show training data as the model sees it: prompt, answer, padding
    Data(Box<data::DataArgs>),
    /// Show runs: curves, figures and settings side by side, in one HTML file
    Report(ReportArgs),
    /// Print a script that completes commands and flags in a shell
    Completions {
        /// The shell; `weftc completions bash > ~/.local/share/bash-completion/completions/weftc`
        shell: completions::Shell,
    },
    /// Show which ONNX Runtime is used, and what to do where there is none
    Doctor {
        /// First download what training on a GPU needs beside the driver: ONNX Runtime for CUDA 13 and NVIDIA's
        /// libraries (740 MB), also where no GPU is, as when an image is built
        #[arg(long)]
        install_cuda: bool,
    },
    /// Show a model: weights, inputs, structure, what can be trained, memory of a step
    Inspect(Box<tools::InspectArgs>),
    /// Show where a rule fired in a model, and why it did not elsewhere
    Explain(tools::ExplainArgs),
    /// Write the gradient graph of any scalar output of any model
    Grad(tools::GradArgs),
    /// Prove the rules of rule files by machine
    CheckRules(tools::CheckRulesArgs),
}

/// Runs the program and returns its exit code.
pub fn main() -> ExitCode {
    let words = match config::expand(std::env::args_os().collect()) {
        Ok(words) => words,
        Err(error) => return failed(&error),
    };
    let outcome = match Cli::parse_from(words).command {
        Command::Compile(args) => compile::compile(&args),
        Command::Run(args) => match train::interrupt::listen().and_then(|()| sampling::run(&args)) {
            Ok(summary) => match finish(&summary, args.json) {
                Ok(()) if summary.interrupted => return ExitCode::from(train::interrupt::EXIT_CODE),
                other => other,
            },
            Err(error) => Err(error),
        },
        Command::Export(args) => export(&args).and_then(|files| {
            let lines: String = files.iter().map(|f| format!("wrote {}\n", f.display())).collect();
            if args.quiet { Ok(()) } else { crate::stdout::print(&lines) }
        }),
        Command::Merge(args) => merge(&args),
        Command::Generate(args) => generate(&args),
        Command::Eval(args) => eval(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Data(args) => data::data(&args),
        Command::Report(args) => report::report(&args),
        Command::Completions { shell } => completions::completions::<Cli>(shell),
        Command::Inspect(args) => tools::inspect(&args),
        Command::Explain(args) => tools::explain(&args),
        Command::Grad(args) => tools::grad(&args),
        Command::CheckRules(args) => tools::check_rules(&args),
        Command::Doctor { install_cuda } => {
            if install_cuda && let Err(error) = doctor::install_cuda(&mut |line| eprintln!("{line}")) {
                return failed(&error);
            }
            let report = doctor::doctor();
            println!("{report}");
            return if report.healthy() { ExitCode::SUCCESS } else { ExitCode::from(5) };
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// What stands at the end of a run: its page, and its summary where that was asked for.
fn finish(summary: &train::Summary, as_json: bool) -> Result<()> {
    summary.folder.as_deref().map_or(Ok(()), report::beside)?;
    if !as_json || summary.steps == 0 {
        return Ok(());
    }
    let json = serde_json::to_string(summary).map_err(|e| Error::internal("run", e.to_string()))?;
    crate::stdout::print(&format!("{json}\n"))
}

fn merge(args: &peft::merge::MergeArgs) -> Result<()> {
    let merged = peft::merge::merge(args)?;
    match args.quiet {
        true => Ok(()),
        false => crate::stdout::print(&format!("merged {merged} modules\nwrote {}\n", args.output.display())),
    }
}

fn failed(error: &Error) -> ExitCode {
    let (red, plain) = if coloured(&std::io::stderr()) { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let hint = error.hint().map(|hint| format!("\n    help: {hint}")).unwrap_or_default();
    eprintln!("{red}error{plain}: {error}{hint}");
    ExitCode::from(error.exit_code())
}
