//! How large gradients get where a token's rate grows with its raw entropy, and where it grows with the root of it.
//!
//! `cargo bench --bench variance -- [--steps 2000] [--seeds 0,1,2] [--t-floor 1e-6] ...`
//!
//! A Sudoku model of random weights is trained first; every variant then goes on from these weights over the same
//! puzzles with the same draws: `known`, as it was trained, and `new`, where answers are written by columns, so that
//! the model is sure of tokens that are wrong, as one that is fine-tuned for another task.  Prints one JSON object a
//! kind of data, variant and seed: the largest Euclidean norm of the loss's gradient before clipping over all steps,
//! its median, the 99th of 100 parts and the root of its mean square.  The paper (arXiv 2509.20863) reports a largest
//! norm of 646.1 for `linear` and 46.2 for `sqrt`.

use clap::Parser;
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use weftc::compile::{Options, compile};
use weftc::eval::sudoku::{LEN, MASK, PROMPT_LEN, Split, World};
use weftc::runtime::{HostTensor, session};
use weftc::train::batch::{Batch, Shape};
use weftc::train::data::Sample;
use weftc::train::optimizer::Optimizer;
use weftc::train::sampler::Sampler;
use weftc::train::trainer::{Outcome, Setup, Trainer};

#[derive(Parser)]
struct Arguments {
    /// Steps of each variant
    #[arg(long, default_value_t = 2000)]
    steps: usize,
    /// Steps that train the model before, of 64 puzzles
    #[arg(long, default_value_t = 1000)]
    before: usize,
    /// Puzzles a step
    #[arg(long, default_value_t = 8)]
    batch: usize,
    #[arg(long, default_value_t = 1e-4)]
    lr: f64,
    /// Least masking probability: the smaller, the larger the weights 1/t_i may get
    #[arg(long, default_value_t = 1e-6)]
    t_floor: f64,
    #[arg(long, default_value = "sequence")]
    loss_norm: String,
    /// Entropy transforms
    #[arg(long, value_delimiter = ',', default_values_t = ["sqrt".to_string(), "linear".to_string()])]
    transforms: Vec<String>,
    /// Answers: `known`, by rows as in the training before, and `new`, by columns
    #[arg(long, value_delimiter = ',', default_values_t = ["known".to_string(), "new".to_string()])]
    data: Vec<String>,
    /// Seeds of order and draws, a run each
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 2])]
    seeds: Vec<u64>,
    /// Threads of ONNX Runtime
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// cargo passes this to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

const PUZZLES: usize = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let puzzles = World::new(0).puzzles(Split::Train, PUZZLES, 1);
    let samples: Vec<Sample> =
        puzzles.iter().map(|p| Sample { tokens: p.tokens().to_vec(), prompt: PROMPT_LEN, total: LEN }).collect();
    let mut first = trainer(&arguments, "sqrt", 2e-3)?;
    train(&mut first, &samples, 64, arguments.before, 0)?;
    let names: Vec<String> = first.parameters().map(str::to_string).collect();
    let weights: Vec<HostTensor> = names.iter().map(|n| first.parameter(n)).collect::<Result<_, _>>()?;
    for data in &arguments.data {
        let samples: Vec<Sample> = match data.as_str() {
            "known" => samples.clone(),
            "new" => samples.iter().map(by_columns).collect(),
            other => return Err(format!("--data: `{other}` is neither known nor new").into()),
        };
        for seed in &arguments.seeds {
            for transform in &arguments.transforms {
                let mut trainer = trainer(&arguments, transform, arguments.lr)?;
                for (name, value) in names.iter().zip(&weights) {
                    trainer.set_parameter(name, value)?;
                }
                // Other draws than those of the training before.
                let run = train(&mut trainer, &samples, arguments.batch, arguments.steps, seed + 1)?;
                println!("{}", line(&arguments, data, *seed, transform, run));
            }
        }
    }
    Ok(())
}

/// The same puzzle with its answer by columns.
fn by_columns(sample: &Sample) -> Sample {
    let mut tokens = sample.tokens.clone();
    for cell in 0..LEN - PROMPT_LEN {
        tokens[PROMPT_LEN + cell] = sample.tokens[PROMPT_LEN + cell % 4 * 4 + cell / 4];
    }
    Sample { tokens, ..sample.clone() }
}

/// One run as an object.
fn line(arguments: &Arguments, data: &str, seed: u64, transform: &str, mut run: Run) -> Value {
    run.norms.sort_by(f64::total_cmp);
    let part = |q: f64| run.norms[(run.norms.len().saturating_sub(1) as f64 * q) as usize];
    let square = run.norms.iter().map(|x| x * x).sum::<f64>() / run.norms.len() as f64;
    json!({
        "model": "models/sudoku.onnx", "steps_before": arguments.before, "steps": arguments.steps,
        "batch": arguments.batch, "lr": arguments.lr, "t_floor": arguments.t_floor, "t_eps": 1e-3,
        "loss_norm": arguments.loss_norm, "data": data, "seed": seed, "entropy_transform": transform,
        "grad_norm_max": part(1.0), "grad_norm_p99": part(0.99), "grad_norm_median": part(0.5),
        "grad_norm_rms": square.sqrt(), "skipped": run.skipped, "first_loss": run.first, "last_loss": run.last,
    })
}

fn trainer(arguments: &Arguments, transform: &str, lr: f64) -> Result<Trainer, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("train.onnx");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sudoku.onnx");
    let options = Options { mask_id: Some(MASK), ..Options::new(model) }
        .with("entropy_transform", transform)
        .with("t_floor", arguments.t_floor)
        .with("loss_norm", &arguments.loss_norm);
    compile(&options)?.write(&path)?;
    let optimizer = Optimizer { lr, weight_decay: 0.01, ..Optimizer::default() };
    let session = session::Options { threads: arguments.threads, ..session::Options::default() };
    Ok(Trainer::load(&path, Setup { optimizer, session, ..Setup::default() })?)
}

/// What a run of steps showed.
struct Run {
    /// Of every step's gradient, before clipping; those of skipped steps are not finite.
    norms: Vec<f64>,
    skipped: usize,
    /// Mean losses of the first and the last tenth.
    first: f64,
    last: f64,
}

fn train(
    trainer: &mut Trainer,
    samples: &[Sample],
    batch: usize,
    steps: usize,
    seed: u64,
) -> Result<Run, Box<dyn Error>> {
    let sampler = Sampler::new(seed);
    let per_epoch = samples.len() / batch;
    let (mut norms, mut losses, mut skipped, mut order) = (Vec::new(), Vec::new(), 0, Vec::new());
    for step in 0..steps {
        let epoch = (step / per_epoch) as u32;
        if step % per_epoch == 0 {
            order = sampler.order(epoch, samples.len());
        }
        let chosen = &order[step % per_epoch * batch..][..batch];
        let rows: Vec<(usize, &Sample)> = chosen.iter().map(|&k| (k, &samples[k])).collect();
        let result = trainer.step(&Batch::new(&rows, Shape::default(), sampler, epoch)?)?;
        norms.push(result.grad_norm);
        losses.push(result.loss);
        skipped += usize::from(result.outcome == Outcome::Skipped);
    }
    let tenth = (steps / 10).max(1);
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len().max(1) as f64;
    let (first, last) = (mean(&losses[..tenth.min(steps)]), mean(&losses[steps - tenth.min(steps)..]));
    Ok(Run { norms, skipped, first, last })
}
