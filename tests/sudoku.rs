//! The Sudoku files in `models/` are what the generator and the tokenizer say they are.

use std::error::Error;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;
use weftc::eval::sudoku::{MASK, SEPARATOR, Split, World, write_jsonl};

type Outcome = Result<(), Box<dyn Error>>;

fn models(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(file)
}

#[test]
fn the_data_files_are_what_the_generator_writes() -> Outcome {
    let world = World::new(0);
    for (file, split, count, seed) in
        [("sudoku_train.jsonl", Split::Train, 400, 1), ("sudoku_test.jsonl", Split::HeldOut, 200, 2)]
    {
        let mut lines = Vec::new();
        write_jsonl(&world.puzzles(split, count, seed), &mut lines)?;
        // One comparison of booleans: a difference would print 600 lines.
        assert!(lines == read_to_string(models(file))?.as_bytes(), "{file} differs: run the example sudoku_data");
    }
    Ok(())
}

#[test]
fn the_tokenizer_writes_puzzles() -> Outcome {
    let tokenizer = Tokenizer::from_file(models("tokenizer.json")).map_err(|e| e.to_string())?;
    let puzzle = World::new(0).puzzles(Split::HeldOut, 1, 2)[0];
    let digits =
        |cells: &[u8]| -> String { cells.iter().map(|c| if *c == 0 { ".".into() } else { c.to_string() }).collect() };
    let text = format!("{}|{}", digits(&puzzle.givens), digits(&puzzle.solution));
    let encoding = tokenizer.encode(text.as_str(), true).map_err(|e| e.to_string())?;
    let ids: Vec<i64> = encoding.get_ids().iter().map(|id| i64::from(*id)).collect();
    assert_eq!(ids, puzzle.tokens());
    assert_eq!(tokenizer.decode(encoding.get_ids(), true).map_err(|e| e.to_string())?, text);
    assert_eq!(tokenizer.token_to_id("[MASK]").map(i64::from), Some(MASK));
    assert_eq!(tokenizer.token_to_id("|").map(i64::from), Some(SEPARATOR));
    Ok(())
}
