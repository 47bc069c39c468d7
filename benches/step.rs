//! Times compilation and the training step; prints one JSON object.
//!
//! `cargo bench --bench step -- --model FILE --mask-id ID [--batch 4] [--length 256] [--threads 1]
//! [--trainable lora] [--method sft] [--device cuda --target cuda --compute bf16] [--seconds 15]`
//!
//! A step is everything that training does with a batch: entropy pass, forward, backward, clipping, AdamW.
//! Peak memory is the process's own high-water mark, compiler included; `cpu_s` is its processor time a step,
//! which other programs on the machine disturb less than `step_s` (both: Linux; elsewhere null).

use clap::Parser;
use serde_json::json;
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;
use weftc::compile::{Options, Trainable, compile};
use weftc::precision::Compute;
use weftc::rng::SplitMix64;
use weftc::rules::Target;
use weftc::runtime::device::Choice;
use weftc::runtime::session;
use weftc::train::batch::{Batch, Shape};
use weftc::train::data::Sample;
use weftc::train::optimizer::Optimizer;
use weftc::train::sampler::Sampler;
use weftc::train::trainer::{Setup, Trainer};

/// Steps that are not counted: the first grow the memory.
const WARM: usize = 2;
const LEAST: usize = 3;
const MOST: usize = 15;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/models/sudoku.onnx"))]
    model: PathBuf,
    #[arg(long, default_value_t = weftc::eval::sudoku::MASK)]
    mask_id: i64,
    #[arg(long, default_value_t = 4)]
    batch: usize,
    #[arg(long, default_value_t = 32)]
    length: usize,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// What is trained: full, lora (rank 8 on q, k, v), ..
    #[arg(long, default_value = "full")]
    trainable: Trainable,
    #[arg(long, default_value = "weft")]
    method: String,
    /// portable, cpu, cuda
    #[arg(long, value_enum, default_value_t = Target::Cpu)]
    target: Target,
    /// f32, f16, bf16
    #[arg(long, value_enum, default_value_t = Compute::Auto)]
    compute: Compute,
    /// auto, cpu, cuda
    #[arg(long, value_enum, default_value_t = Choice::Cpu)]
    device: Choice,
    /// Stop counting after this many seconds
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// cargo passes this to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir_in(arguments.model.parent().ok_or("the model has no folder")?)?;
    let started = Instant::now();
    let (mask_id, method, trainable) = (Some(arguments.mask_id), arguments.method.clone(), arguments.trainable.clone());
    let (target, compute) = (arguments.target, arguments.compute);
    let options = Options { mask_id, method, trainable, target, compute, ..Options::new(&arguments.model) };
    let compiled = compile(&options)?;
    let train_onnx = folder.path().join("train.onnx");
    let bytes = compiled.write(&train_onnx)?;
    let compile_s = started.elapsed().as_secs_f64();
    let stages: serde_json::Map<String, _> =
        compiled.stages.iter().map(|s| (s.stage.name().into(), json!({ "s": s.seconds, "nodes": s.nodes }))).collect();
    let vocabulary = usize::try_from(compiled.manifest.vocab_size)?;
    let compute = compiled.manifest.compute.clone();
    drop(compiled);

    let started = Instant::now();
    let (device, _) = arguments.device.resolve(0, &mut |line| eprintln!("{line}"))?;
    let session = session::Options { threads: arguments.threads, device, ..session::Options::default() };
    let source = arguments.model.parent().map(PathBuf::from);
    let optimizer = Optimizer { lr: 1e-4, ..Optimizer::default() };
    let mut trainer = Trainer::load(&train_onnx, Setup { folder: source, optimizer, session, ..Setup::default() })?;
    let load_s = started.elapsed().as_secs_f64();

    let samples = samples(&arguments, vocabulary);
    let rows: Vec<(usize, &Sample)> = samples.iter().enumerate().collect();
    let (mut times, mut epoch, mut cpu_before) = (Vec::new(), 0, None);
    while times.len() < WARM + LEAST
        || times.len() < WARM + MOST && times.iter().skip(WARM).sum::<f64>() < arguments.seconds
    {
        if times.len() == WARM {
            cpu_before = cpu_seconds();
        }
        let started = Instant::now();
        // A new epoch draws anew for the same tokens.
        trainer.step(&Batch::new(&rows, Shape::default(), Sampler::new(1), epoch)?)?;
        times.push(started.elapsed().as_secs_f64());
        epoch += 1;
    }
    let mut counted = times.split_off(WARM);
    let cpu_s = cpu_seconds().zip(cpu_before).map(|(after, before)| (after - before) / counted.len() as f64);
    counted.sort_by(f64::total_cmp);
    let step_s = counted[counted.len() / 2];
    let line = json!({
        "method": arguments.method, "compute": compute, "trainable": arguments.trainable.to_string(),
        "threads": arguments.threads, "batch": arguments.batch, "length": arguments.length,
        "compile_s": compile_s, "stages": stages, "train_onnx_bytes": bytes, "load_s": load_s,
        "step_s": step_s, "step_min_s": counted[0], "cpu_s": cpu_s, "steps": counted.len(),
        "tokens_per_s": (arguments.batch * arguments.length) as f64 / step_s,
        "peak_rss_mb": peak_mb(), "load": load(),
    });
    println!("{line}");
    Ok(())
}

/// Random tokens; the first quarter of each sequence is its prompt.
fn samples(arguments: &Arguments, vocabulary: usize) -> Vec<Sample> {
    let mut rng = SplitMix64::new(1);
    let mask = usize::try_from(arguments.mask_id).unwrap_or(vocabulary);
    let mut token = || {
        let drawn = rng.below(vocabulary.saturating_sub(1));
        (drawn + usize::from(drawn >= mask)) as i64
    };
    let length = arguments.length;
    let row = |_| Sample { tokens: (0..length).map(|_| token()).collect(), prompt: length / 4, total: length };
    (0..arguments.batch).map(row).collect()
}

/// The most memory this process has had resident, in MB of 2^20 bytes.
fn peak_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

/// Processor time of this process so far, all threads, in seconds.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may hold spaces; user and system time are the 12th and 13th field behind it.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: f64 = fields.get(11..13)?.iter().filter_map(|t| t.parse::<f64>().ok()).sum();
    // Linux counts in hundredths of a second for every program, whatever the kernel's own tick.
    Some(ticks / 100.0)
}

/// The machine's load average over a minute.
fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}
