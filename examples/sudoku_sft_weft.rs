//! SFT against WeFT on 4x4 Sudoku, several seeds each, from one command.
//!
//! `cargo run --release --example sudoku_sft_weft` trains ten models, about a minute each on one core;
//! `-- STEPS SEEDS` (`-- 250 2`) is shorter.  Both methods see the same puzzles in the same order; the score is the share
//! of 500 puzzles of grids that training never saw which are solved whole.

use std::error::Error;
use std::path::Path;
use weftc::compile::{Options, compile};
use weftc::eval::interval::Estimate;
use weftc::eval::sudoku::{LEN, MASK, PROMPT_LEN, Puzzle, Score, Split, World};
use weftc::generate::{Decoding, Model};
use weftc::runtime::session;
use weftc::train::batch::{Batch, Shape};
use weftc::train::checkpoint;
use weftc::train::data::Sample;
use weftc::train::optimizer::Optimizer;
use weftc::train::sampler::Sampler;
use weftc::train::trainer::{Setup, Trainer};

const PUZZLES: usize = 20_000;
const UNSEEN: usize = 500;
const BATCH: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).map(|a| a.parse::<u64>());
    let steps = numbers.next().transpose()?.unwrap_or(1000) as usize;
    let seeds = numbers.next().transpose()?.unwrap_or(5);
    let world = World::new(0);
    let samples: Vec<Sample> = world.puzzles(Split::Train, PUZZLES, 1).iter().map(sample).collect();
    let unseen = world.puzzles(Split::HeldOut, UNSEEN, 2);
    println!("{steps} steps of {BATCH} puzzles, {seeds} seeds, {UNSEEN} unseen puzzles");
    let mut table = Vec::new();
    for method in ["sft", "weft"] {
        let mut shares = Vec::new();
        for seed in 0..seeds {
            let score = run(method, seed, steps, &samples, &unseen)?;
            shares.push(score.solved as f64 / UNSEEN as f64);
            println!("  {method:<5} seed {seed}: {score}");
        }
        table.push((method, shares));
    }
    println!("\nmethod  solved, mean over seeds   95 % interval of the mean   each seed");
    for (method, shares) in &table {
        let e = interval(shares);
        let each: Vec<String> = shares.iter().map(|s| format!("{s:.3}")).collect();
        println!("{method:<7} {:>22.3}    {:.3} to {:.3}            {}", e.value, e.low, e.high, each.join(" "));
    }
    // Seed by seed the puzzles are the same, so the differences say more than the means.
    let difference: Vec<f64> = table[1].1.iter().zip(&table[0].1).map(|(weft, sft)| weft - sft).collect();
    let e = interval(&difference);
    println!("weft - sft {:>+19.3}    {:+.3} to {:+.3}", e.value, e.low, e.high);
    Ok(())
}

/// The mean with Student's interval: so few seeds make the normal one too narrow.
fn interval(values: &[f64]) -> Estimate {
    // The 97.5 % points for 1 to 9 degrees of freedom.
    const T: [f64; 9] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];
    let e = Estimate::mean(values);
    let t = T.get(values.len().wrapping_sub(2)).copied().unwrap_or(2.262);
    let half = (e.high - e.value) * t / weftc::eval::interval::Z95;
    Estimate { value: e.value, low: e.value - half, high: e.value + half }
}

fn run(method: &str, seed: u64, steps: usize, samples: &[Sample], unseen: &[Puzzle]) -> Result<Score, Box<dyn Error>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sudoku.onnx");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/sudoku_sft_weft/{method}_{seed}"));
    std::fs::create_dir_all(&folder)?;
    let compiled = compile(&Options { mask_id: Some(MASK), method: method.into(), ..Options::new(&source) })?;
    let train_onnx = folder.join("train.onnx");
    compiled.write(&train_onnx)?;
    let optimizer = Optimizer { lr: 2e-3, weight_decay: 0.01, ..Optimizer::default() };
    let mut trainer = Trainer::load(&train_onnx, Setup { optimizer, session: one_thread(), ..Setup::default() })?;
    let sampler = Sampler::new(seed);
    let per_epoch = samples.len() / BATCH;
    let mut order = Vec::new();
    for step in 0..steps {
        let epoch = (step / per_epoch) as u32;
        if step % per_epoch == 0 {
            order = sampler.order(epoch, samples.len());
        }
        let chosen = &order[step % per_epoch * BATCH..][..BATCH];
        let rows: Vec<(usize, &Sample)> = chosen.iter().map(|&k| (k, &samples[k])).collect();
        trainer.step(&Batch::new(&rows, Shape::default(), sampler, epoch)?)?;
    }
    let trained = folder.join("model.onnx");
    checkpoint::save_model(&trainer, &source, &trained)?;
    let decoding = Decoding { candidates: Some(1..5), ..Decoding::new(MASK, 16) };
    let mut model = Model::open(&trained, &one_thread())?;
    let mut filled = Vec::new();
    for part in unseen.chunks(100) {
        let prompts: Vec<i64> = part.iter().flat_map(Puzzle::prompt).collect();
        filled.extend(model.decode(&prompts, LEN, &decoding)?);
    }
    Ok(Score::of(unseen, &filled))
}

fn sample(puzzle: &Puzzle) -> Sample {
    Sample { tokens: puzzle.tokens().to_vec(), prompt: PROMPT_LEN, total: LEN }
}

fn one_thread() -> session::Options {
    session::Options { threads: 1, ..session::Options::default() }
}
