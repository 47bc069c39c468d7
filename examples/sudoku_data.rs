//! Writes Sudoku puzzles as training data.
//!
//! `cargo run --release --example sudoku_data` writes the files of `models/`;
//! `cargo run --release --example sudoku_data -- 20000 train.jsonl` as many training puzzles as you like.

use std::error::Error;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use weftc::eval::sudoku::{Puzzle, Split, World, write_jsonl};

/// The seed of the split between training and held-out grids.
const WORLD: u64 = 0;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let world = World::new(WORLD);
    match arguments.as_slice() {
        [] => {
            let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
            write(&models.join("sudoku_train.jsonl"), &world.puzzles(Split::Train, 400, 1))?;
            write(&models.join("sudoku_test.jsonl"), &world.puzzles(Split::HeldOut, 200, 2))
        }
        [count, path] => write(Path::new(path), &world.puzzles(Split::Train, count.parse()?, 1)),
        _ => Err("usage: sudoku_data [COUNT FILE]".into()),
    }
}

fn write(path: &Path, puzzles: &[Puzzle]) -> Result<(), Box<dyn Error>> {
    write_jsonl(puzzles, &mut BufWriter::new(File::create(path)?))?;
    println!("{}: {} puzzles", path.display(), puzzles.len());
    Ok(())
}
