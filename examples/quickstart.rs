//! Teaches a model of random weights to solve 4x4 Sudoku, in about a minute on one core.
//!
//! `cargo run --release --example quickstart` (with `-- --short` a quarter of the steps)
//!
//! The steps of the program are the steps of any training: compile the ONNX graph of the model into a
//! training graph, run that on ONNX Runtime, save the weights back into the model.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;
use weftc::compile::{Options, compile};
use weftc::eval::sudoku::{LEN, MASK, PROMPT_LEN, Puzzle, Score, Split, World};
use weftc::generate::{Decoding, Model};
use weftc::runtime::session;
use weftc::train::batch::{Batch, Shape};
use weftc::train::checkpoint;
use weftc::train::data::Sample;
use weftc::train::optimizer::Optimizer;
use weftc::train::sampler::Sampler;
use weftc::train::trainer::{Setup, Trainer};

const SEED: u64 = 0;
const PUZZLES: usize = 20_000;
const BATCH: usize = 64;
const STEPS: usize = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    let steps = if std::env::args().any(|a| a == "--short") { STEPS / 4 } else { STEPS };
    let out = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/quickstart");
    std::fs::create_dir_all(&out)?;
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sudoku.onnx");

    let world = World::new(SEED);
    let unseen = world.puzzles(Split::HeldOut, 200, 2);
    println!("Before training");
    solve(&model, &unseen)?;

    // The model's graph becomes one graph for the whole training step.
    let compiled = compile(&Options { mask_id: Some(MASK), ..Options::new(&model) })?;
    let train_onnx = out.join("train.onnx");
    compiled.write(&train_onnx)?;
    println!("\nThe training step, stage by stage");
    for s in &compiled.stages {
        println!("  {:<14} {:>5} nodes {:>8.1} ms", s.stage.name(), s.nodes, s.seconds * 1e3);
    }

    let samples: Vec<Sample> = world.puzzles(Split::Train, PUZZLES, 1).iter().map(sample).collect();
    let optimizer = Optimizer { lr: 2e-3, weight_decay: 0.01, ..Optimizer::default() };
    let mut trainer = Trainer::load(&train_onnx, Setup { optimizer, session: one_thread(), ..Setup::default() })?;
    println!("\nTraining: {steps} steps of {BATCH} puzzles");
    train(&mut trainer, &samples, steps)?;
    let trained = out.join("model.onnx");
    checkpoint::save_model(&trainer, &model, &trained)?;

    println!("\nAfter training, on puzzles made of grids it has never seen");
    let score = solve(&trained, &unseen)?;
    println!("\nThe training graph and the trained model are in {}", out.display());
    // A quarter of the steps solves a few puzzles, all of them more than a third.
    let least = if steps == STEPS { unseen.len() / 3 } else { 1 };
    if score.solved < least { Err("the model has not learned: please report this".into()) } else { Ok(()) }
}

fn train(trainer: &mut Trainer, samples: &[Sample], steps: usize) -> Result<(), Box<dyn Error>> {
    // Every draw comes from the seed, the epoch and the sample: the same run gives the same weights.
    let sampler = Sampler::new(SEED);
    let per_epoch = samples.len() / BATCH;
    let (started, mut loss, mut order) = (Instant::now(), 0.0, Vec::new());
    for step in 0..steps {
        let epoch = (step / per_epoch) as u32;
        if step % per_epoch == 0 {
            order = sampler.order(epoch, samples.len());
        }
        let chosen = &order[step % per_epoch * BATCH..][..BATCH];
        let rows: Vec<(usize, &Sample)> = chosen.iter().map(|&k| (k, &samples[k])).collect();
        loss += trainer.step(&Batch::new(&rows, Shape::default(), sampler, epoch)?)?.loss;
        if (step + 1) % (STEPS / 10) == 0 {
            let seconds = started.elapsed().as_secs_f64();
            println!("  step {:>4}  loss {:.3}  {seconds:>5.1} s", step + 1, loss / (STEPS / 10) as f64);
            loss = 0.0;
        }
    }
    Ok(())
}

/// Decodes the puzzles in 16 steps, prints the first two answers and the score.
fn solve(model: &Path, puzzles: &[Puzzle]) -> Result<Score, Box<dyn Error>> {
    let decoding = Decoding { candidates: Some(1..5), ..Decoding::new(MASK, 16) };
    let prompts: Vec<i64> = puzzles.iter().flat_map(Puzzle::prompt).collect();
    let filled = Model::open(model, &one_thread())?.decode(&prompts, LEN, &decoding)?;
    for (puzzle, row) in puzzles.iter().zip(filled.chunks(LEN)).take(2) {
        let answer = std::array::from_fn(|cell| row[PROMPT_LEN + cell] as u8);
        let verdict = if answer == puzzle.solution { "solved" } else { "wrong" };
        println!("{}({verdict})", Puzzle { solution: answer, ..*puzzle });
    }
    let score = Score::of(puzzles, &filled);
    println!("  {score}");
    Ok(score)
}

fn sample(puzzle: &Puzzle) -> Sample {
    Sample { tokens: puzzle.tokens().to_vec(), prompt: PROMPT_LEN, total: LEN }
}

fn one_thread() -> session::Options {
    session::Options { threads: 1, ..session::Options::default() }
}
