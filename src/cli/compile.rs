//! `weftc compile`: a model into a training graph, and what was done.

use super::how::How;
use crate::bench::{calibrate, predicted, show};
use crate::compile::{self, Compiled, Stage};
use crate::cost::Prediction;
use crate::error::Result;
use crate::onnx::write;
use crate::stdout::print;
use crate::tools::inspect::MENDED;
use crate::tools::memory;
use crate::units;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The flags of `weftc compile`.
#[derive(Args)]
pub struct CompileArgs {
    /// The model: an ONNX file of any exporter, opsets 7 to 28
    model: PathBuf,
    /// Where to write the training graph
    #[arg(short, long, default_value = "train.onnx")]
    output: PathBuf,
    #[command(flatten)]
    how: How,
    /// The machine that the step's time is predicted for, as `weftc bench --calibrate` measured it; no byte of the file depends on it
    /// [default: the calibration that is kept, else built-in figures]
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Settings from a TOML file: `mask-id = 126336`, named as the flags; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the graph after this stage as text and write no file
    #[arg(long, value_enum, value_name = "STAGE")]
    emit_ir: Option<Stage>,
    /// Print an object: stages, notes, how often each rule fired, the operators, the predicted time and memory of a step,
    /// the file and its size
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print nothing on success
    #[arg(short, long)]
    quiet: bool,
}

/// Compiles and writes.
///
/// # Errors
/// As [`compile::compile`] and a write.
pub fn compile(args: &CompileArgs) -> Result<()> {
    let (options, note) = args.how.options(&args.model)?;
    if let Some(stage) = args.emit_ir {
        return print(&compile::emit_ir(&options, stage)?);
    }
    let machine = calibrate::machine(args.calibration.as_deref())?;
    let compiled = compile::compile(&options)?;
    let bytes = compiled.write(&args.output)?;
    if args.quiet {
        return Ok(());
    }
    let told = predicted(&compiled, &machine, args.how.budget_batch, args.how.budget_length)?;
    let memory = memory::total(&compiled, told.load.batch, told.load.length)?;
    if args.json {
        print(&format!("{}\n", object(&compiled, &told, memory, note.as_deref(), &args.output, bytes)))?;
    } else {
        let (report, told, path) = (summary(&compiled), show::line(&told), args.output.display());
        let note = note.map(|n| format!("note: {n}\n")).unwrap_or_default();
        print(&format!(
            "{note}{report}predicted: {told}\nmemory: {} (estimate); weftc inspect {path} has other sizes\nwrote {path} ({:.1} MB)\n",
            units::bytes(memory),
            bytes as f64 / 1e6
        ))?;
    }
    Ok(())
}

/// What the compiler did, for programs.
fn object(
    compiled: &Compiled,
    told: &Prediction,
    memory: u64,
    note: Option<&str>,
    path: &Path,
    bytes: usize,
) -> serde_json::Value {
    let stage = |s: &compile::StageReport| json!({ "name": s.stage.name(), "nodes": s.nodes, "seconds": s.seconds });
    json!({
        "stages": compiled.stages.iter().map(stage).collect::<Vec<_>>(),
        "mended": compiled.manifest.mended,
        "notes": note.into_iter().chain(compiled.notes.iter().map(String::as_str)).collect::<Vec<_>>(),
        "rules_fired": compiled.manifest.rules_fired,
        "operators": compiled.graph.histogram(),
        "predicted": told,
        "memory": memory,
        "file": path,
        "bytes": bytes,
    })
}

/// What the compiler did, for people.
fn summary(compiled: &Compiled) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for s in &compiled.stages {
        let _ = writeln!(out, "{:<14} {:>6} nodes {:>9.1} ms", s.stage.name(), s.nodes, s.seconds * 1e3);
    }
    let mended = &compiled.manifest.mended;
    for line in mended.iter().take(MENDED) {
        let _ = writeln!(out, "mended: {line}");
    }
    if mended.len() > MENDED {
        let _ = writeln!(out, "mended: {} more; --json lists all", mended.len() - MENDED);
    }
    for line in &compiled.notes {
        let _ = writeln!(out, "note: {line}");
    }
    let fired: Vec<String> = compiled.manifest.rules_fired.iter().map(|(r, n)| format!("{r} {n}")).collect();
    let _ = writeln!(out, "rules fired: {}", fired.join(", "));
    if !compiled.saved.is_empty() {
        let list: Vec<String> = compiled.saved.iter().map(|(rule, flops)| format!("{rule} {flops}")).collect();
        let _ = writeln!(out, "FLOPs saved for each token that a forward pass leaves out: {}", list.join(", "));
    }
    let _ = write!(out, "{}", write::table(&compiled.graph));
    out
}
