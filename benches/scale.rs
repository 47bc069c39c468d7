//! Times compilation and its memory over the number of layers; prints one JSON object a model.
//!
//! `cargo bench --bench scale -- [--depths 2,8,32,80] [--width 4096 ...] [--bf16]`
//!
//! The models have LLaDA-8B's shape by default (`examples/make_llada.rs`); their weights are holes in a
//! sparse file and are never read.  Each is compiled by a process of its own, so that its high-water mark
//! is that of this model (Linux; elsewhere null).

#[path = "../examples/llada/mod.rs"]
mod llada;

use clap::Parser;
use serde_json::{Map, Value, json};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use weftc::bench::system::{load, peak_mb};
use weftc::compile::{Options, compile};

#[derive(Parser)]
struct Arguments {
    /// Numbers of layers, one model each
    #[arg(long = "depths", value_delimiter = ',', default_values_t = [2, 8, 32, 80])]
    depths: Vec<usize>,
    #[command(flatten)]
    shape: llada::Shape,
    /// Compile this model in this process
    #[arg(long, hide = true)]
    model: Option<PathBuf>,
    /// cargo passes this to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if let Some(model) = &arguments.model {
        println!("{}", measure(model, arguments.shape.vocabulary)?);
        return Ok(());
    }
    for layers in &arguments.depths {
        let shape = llada::Shape { layers: *layers, ..arguments.shape.clone() };
        let folder = tempfile::tempdir()?;
        let model = folder.path().join("llada.onnx");
        let written = llada::write(&shape, &model)?;
        let mut child = Command::new(std::env::current_exe()?);
        child.arg("--model").arg(&model).arg("--vocabulary").arg(shape.vocabulary.to_string());
        let output = child.output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let mut line = json!({
            "layers": shape.layers, "width": shape.width, "heads": shape.heads, "ffn": shape.ffn,
            "vocabulary": shape.vocabulary, "dtype": if shape.bf16 { "bf16" } else { "f32" },
            "parameters": written.parameters, "data_bytes": written.data_bytes,
        });
        let measured: Map<String, Value> = serde_json::from_slice(&output.stdout)?;
        line.as_object_mut().into_iter().for_each(|l| l.extend(measured.clone()));
        println!("{line}");
    }
    Ok(())
}

/// Compiles a model; seconds and nodes of each stage, and the memory that it took.
fn measure(model: &Path, vocabulary: usize) -> Result<Value, Box<dyn Error>> {
    let started = Instant::now();
    let options = Options { mask_id: Some(vocabulary as i64 - 1), ..Options::new(model) };
    let compiled = compile(&options)?;
    let writing = Instant::now();
    let bytes = compiled.write(&model.with_file_name("train.onnx"))?;
    let write_s = writing.elapsed().as_secs_f64();
    let compile_s = started.elapsed().as_secs_f64();
    let stages = compiled.stages.iter().map(|s| (s.stage.name().into(), json!({ "s": s.seconds, "nodes": s.nodes })));
    Ok(json!({
        "compile_s": compile_s, "stages": stages.collect::<Map<_, _>>(), "write_s": write_s,
        "train_onnx_bytes": bytes, "peak_rss_mb": peak_mb(), "load": load(),
    }))
}
