//! Times each native kernel beside its function's body; prints a table, or JSON lines.
//!
//! `cargo bench --bench kernels -- [--threads 2] [--seconds 0.3] [--only rope] [--json]`
//!
//! Sizes are those of the model `small`: [4, 256, 512], feed-forward 1536, 8 heads of 64, vocabulary 4096.  Runs of
//! both take turns; the figures are medians.

use clap::Parser;
use serde_json::json;
use std::error::Error;
use std::time::Instant;
use weftc::bench::node::{Timed, median};
use weftc::rules::library::library;

#[derive(Parser)]
struct Arguments {
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// For each kernel and number of threads
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
    /// Only nodes whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    #[arg(long)]
    json: bool,
    /// cargo passes this to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// A node and its inputs.
const NODES: &[(&str, &str)] = &[
    ("rms_norm x w 0.00001", "x f32 [4 256 512]; w f32 [512]"),
    ("rms_norm_grad dy x w 0.00001", "dy f32 [4 256 512]; x f32 [4 256 512]; w f32 [512]"),
    ("rms_norm_grad_w dy x 0.00001", "dy f32 [4 256 512]; x f32 [4 256 512]"),
    ("rms_norm_grad_sum dy x 0.00001", "dy f32 [4 256 512]; x f32 [4 256 512]"),
    ("layer_norm x w b 0.00001", "x f32 [4 256 512]; w f32 [512]; b f32 [512]"),
    ("layer_norm_grad dy x w 0.00001", "dy f32 [4 256 512]; x f32 [4 256 512]; w f32 [512]"),
    ("normalize x 0.00001", "x f32 [4 256 512]"),
    ("rope x cos sin", "x f32 [4 8 256 64]; cos f32 [256 64]; sin f32 [256 64]"),
    ("rope x cos sin", "x f32 [4 256 8 64]; cos f32 [256 1 64]; sin f32 [256 1 64]"),
    ("rope_grad dy cos sin", "dy f32 [4 8 256 64]; cos f32 [256 64]; sin f32 [256 64]"),
    ("silu_grad x dy", "x f32 [4 256 1536]; dy f32 [4 256 1536]"),
    ("swiglu g u", "g f32 [4 256 1536]; u f32 [4 256 1536]"),
    ("swiglu_grad dy g u", "dy f32 [4 256 1536]; g f32 [4 256 1536]; u f32 [4 256 1536]"),
    ("swiglu_grad_u dy g", "dy f32 [4 256 1536]; g f32 [4 256 1536]"),
    ("gelu x", "x f32 [4 256 1536]"),
    ("gelu_grad x dy", "x f32 [4 256 1536]; dy f32 [4 256 1536]"),
    ("gelu_tanh x", "x f32 [4 256 1536]"),
    ("gelu_tanh_grad x dy", "x f32 [4 256 1536]; dy f32 [4 256 1536]"),
    ("softmax_grad y dy -1", "y f32 [4 8 256 256]; dy f32 [4 8 256 256]"),
    ("token_entropy z answer", "z f32 [4 256 4096]; answer bool [4 256]"),
    ("weighted_cross_entropy z ids w", "z f32 [4 256 4096]; ids i64 [4 256]; w f32 [4 256]"),
    ("weighted_cross_entropy_grad z ids w", "z f32 [4 256 4096]; ids i64 [4 256]; w f32 [4 256]"),
    ("gather_grad dy ids 4096", "dy f32 [4 256 512]; ids i64 [4 256]"),
    ("product x y 0 0 1.0", "x f32 [4 256 512]; y f32 [512 1536]"),
    ("product x y 0 1 1.0", "x f32 [4 256 512]; y f32 [1536 512]"),
    ("product x y 1 0 1.0", "x f32 [1024 512]; y f32 [1024 1536]"),
    ("product_add x y c 0 0 1.0", "x f32 [4 256 512]; y f32 [512 512]; c f32 [4 256 512]"),
    ("product x y 1 0 1.0", "x f32 [1024 8]; y f32 [1024 512]"),
    ("product_pair x y u v 0 1.0 0 1.0", "x f32 [4 256 512]; y f32 [512 512]; u f32 [4 256 8]; v f32 [8 512]"),
    ("attention q k v 0.125", "q f32 [4 8 256 64]; k f32 [4 8 256 64]; v f32 [4 8 256 64]"),
    (
        "attention_grad dy q k v 0.125",
        "dy f32 [4 8 256 64]; q f32 [4 8 256 64]; k f32 [4 8 256 64]; v f32 [4 8 256 64]",
    ),
    ("token_attention q k v 0.125", "q f32 [4 256 8 64]; k f32 [4 256 8 64]; v f32 [4 256 8 64]"),
    (
        "token_attention_grad dy q k v 0.125",
        "dy f32 [4 256 8 64]; q f32 [4 256 8 64]; k f32 [4 256 8 64]; v f32 [4 256 8 64]",
    ),
    ("dropout x rate rows columns 2039", "x f32 [4 256 512]; rate f32 []; rows f32 [4 256 3]; columns f32 [4 3 512]"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let rules = library()?.lower;
    for (node, inputs) in NODES.iter().filter(|(node, _)| node.contains(&arguments.only)) {
        let name = node.split(' ').next().unwrap_or_default();
        for &threads in &arguments.threads {
            let timed = |native| Timed::new(node, inputs, &rules, native, threads);
            let mut sessions = [timed(false)?, timed(true)?];
            let (started, mut times) = (Instant::now(), [Vec::new(), Vec::new()]);
            while times[0].len() < 5 || started.elapsed().as_secs_f64() < arguments.seconds {
                for (session, times) in sessions.iter_mut().zip(&mut times) {
                    times.push(session.run()? * 1e3);
                }
            }
            let [body, kernel] = times.map(|mut t| median(&mut t));
            if arguments.json {
                println!("{}", json!({ "node": name, "threads": threads, "body_ms": body, "kernel_ms": kernel }));
            } else {
                println!(
                    "{name:<28} {threads} threads  body {body:8.3} ms  kernel {kernel:8.3} ms  {:5.2}",
                    body / kernel
                );
            }
        }
    }
    Ok(())
}
