//! Writes a model of LLaDA's shape and any size, as PyTorch's dynamo exporter would.
//!
//! `cargo run --release --example make_llada -- llada8b.onnx` is LLaDA-8B; its weights are a sparse file
//! of 32 GB that takes no room on disk.  `-- small.onnx --layers 2 --width 64 --heads 4 --ffn 192
//! --vocabulary 64 --length 64 --fill 1` is a model of random weights that trains in seconds.

mod llada;

use clap::Parser;
use std::path::PathBuf;

#[derive(Parser)]
struct Arguments {
    /// The .onnx file to write; its weights lie beside it, with `.data` added to the name
    path: PathBuf,
    #[command(flatten)]
    shape: llada::Shape,
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    let written = llada::write(&arguments.shape, &arguments.path)?;
    println!(
        "{}: {} parameters, {} bytes of external data",
        arguments.path.display(),
        written.parameters,
        written.data_bytes
    );
    Ok(())
}
