//! 4x4 Sudoku as a language: small enough to learn in a minute on one core, hard enough to need thought.
//!
//! A sequence has 33 tokens: 16 puzzle cells row by row, a separator, 16 solution cells.  Of the 288
//! grids 48 are held out; puzzles for evaluation come from those alone, so a solved one was not memorised.

use crate::rng::SplitMix64;
use serde::Serialize;
use std::fmt;
use std::io::{self, Write};
use std::ops::RangeInclusive;

/// Token of an empty cell; the digits 1 to 4 are their own tokens.
pub const BLANK: i64 = 0;
/// Token between puzzle and solution.
pub const SEPARATOR: i64 = 5;
/// The mask token of `models/sudoku.onnx`.
pub const MASK: i64 = 15;
pub const VOCAB: usize = 16;
pub const CELLS: usize = 16;
/// Puzzle and separator: what is given, never masked.
pub const PROMPT_LEN: usize = CELLS + 1;
/// Tokens of one sequence.
pub const LEN: usize = PROMPT_LEN + CELLS;
/// Number of grids that training never sees.
pub const HELD_OUT: usize = 48;
/// How many cells a puzzle gives away.
pub const GIVENS: RangeInclusive<usize> = 5..=9;

/// The cells row by row; 0 is empty.
pub type Grid = [u8; CELLS];

/// Which grids puzzles are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    HeldOut,
}

/// All grids, and which of them are held out.
#[derive(Clone, Debug)]
pub struct World {
    train: Vec<Grid>,
    held_out: Vec<Grid>,
    all: Vec<Grid>,
}

/// A puzzle with exactly one solution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Puzzle {
    pub givens: Grid,
    pub solution: Grid,
}

/// One line of a data file.
#[derive(Serialize)]
struct Row {
    input_ids: Vec<i64>,
    prompt_len: usize,
}

/// How well a set of puzzles was solved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    pub puzzles: usize,
    /// Puzzles whose 16 cells are all right.
    pub solved: usize,
    /// Cells that the puzzles left empty.
    pub blanks: usize,
    /// Of those, the ones that are right.
    pub right: usize,
}

impl World {
    /// The split depends on `seed` alone.
    pub fn new(seed: u64) -> Self {
        let all = grids();
        let mut shuffled = all.clone();
        SplitMix64::new(seed).shuffle(&mut shuffled);
        let train = shuffled.split_off(HELD_OUT);
        World { train, held_out: shuffled, all }
    }

    pub fn grids(&self, split: Split) -> &[Grid] {
        match split {
            Split::Train => &self.train,
            Split::HeldOut => &self.held_out,
        }
    }

    /// `count` puzzles with one solution each and a number of givens drawn from `GIVENS`.
    pub fn puzzles(&self, split: Split, count: usize, seed: u64) -> Vec<Puzzle> {
        let grids = self.grids(split);
        let mut rng = SplitMix64::new(seed);
        let mut order: [usize; CELLS] = std::array::from_fn(|k| k);
        let mut puzzles = Vec::with_capacity(count);
        while puzzles.len() < count {
            let solution = grids[rng.below(grids.len())];
            let shown = GIVENS.start() + rng.below(GIVENS.count());
            rng.shuffle(&mut order);
            let mut givens = [0; CELLS];
            order.iter().take(shown).for_each(|&cell| givens[cell] = solution[cell]);
            if self.solutions(&givens) == 1 {
                puzzles.push(Puzzle { givens, solution });
            }
        }
        puzzles
    }

    /// The number of grids that agree with the given cells.
    pub fn solutions(&self, givens: &Grid) -> usize {
        self.all.iter().filter(|grid| grid.iter().zip(givens).all(|(cell, given)| *given == 0 || given == cell)).count()
    }
}

impl Puzzle {
    /// `[33]`: puzzle, separator, solution.
    pub fn tokens(&self) -> [i64; LEN] {
        std::array::from_fn(|k| match k {
            _ if k < CELLS => i64::from(self.givens[k]),
            CELLS => SEPARATOR,
            _ => i64::from(self.solution[k - PROMPT_LEN]),
        })
    }

    /// `[33]`: puzzle, separator, and 16 masks to be filled.
    pub fn prompt(&self) -> [i64; LEN] {
        let mut tokens = self.tokens();
        tokens[PROMPT_LEN..].fill(MASK);
        tokens
    }
}

impl fmt::Display for Puzzle {
    /// Four lines, the puzzle left of its solution.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |cells: &[u8]| {
            cells.iter().map(|c| if *c == 0 { ".".into() } else { c.to_string() }).collect::<Vec<_>>().join(" ")
        };
        self.givens
            .chunks(4)
            .zip(self.solution.chunks(4))
            .try_for_each(|(a, b)| writeln!(f, "{}   {}", line(a), line(b)))
    }
}

impl Score {
    /// `filled` holds one row of `LEN` tokens for each puzzle, as `generate::decode` returns them; a row
    /// that is missing counts as wrong.
    pub fn of(puzzles: &[Puzzle], filled: &[i64]) -> Score {
        let mut score = Score { puzzles: puzzles.len(), ..Score::default() };
        let mut rows = filled.chunks(LEN);
        for puzzle in puzzles {
            let answer = rows.next().and_then(|row| row.get(PROMPT_LEN..)).unwrap_or_default();
            let right = |cell: usize| answer.get(cell) == Some(&i64::from(puzzle.solution[cell]));
            let blanks = || (0..CELLS).filter(|cell| puzzle.givens[*cell] == 0);
            score.solved += usize::from((0..CELLS).all(right));
            score.blanks += blanks().count();
            score.right += blanks().filter(|cell| right(*cell)).count();
        }
        score
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
        write!(
            f,
            "{} of {} puzzles solved ({:.1} %), {:.1} % of the empty cells right",
            self.solved,
            self.puzzles,
            percent(self.solved, self.puzzles),
            percent(self.right, self.blanks)
        )
    }
}

/// Writes JSON lines with `input_ids` and `prompt_len`.
pub fn write_jsonl(puzzles: &[Puzzle], out: &mut dyn Write) -> io::Result<()> {
    for puzzle in puzzles {
        let row = Row { input_ids: puzzle.tokens().to_vec(), prompt_len: PROMPT_LEN };
        serde_json::to_writer(&mut *out, &row)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// All 288 solved grids, in lexicographic order.
fn grids() -> Vec<Grid> {
    let mut found = Vec::new();
    extend(&mut [0; CELLS], 0, &mut found);
    found
}

fn extend(grid: &mut Grid, cell: usize, found: &mut Vec<Grid>) {
    if cell == CELLS {
        return found.push(*grid);
    }
    let peer = |other: usize| {
        let same_box = other / 8 == cell / 8 && other % 4 / 2 == cell % 4 / 2;
        other / 4 == cell / 4 || other % 4 == cell % 4 || same_box
    };
    for digit in 1..=4 {
        if (0..cell).all(|other| grid[other] != digit || !peer(other)) {
            grid[cell] = digit;
            extend(grid, cell + 1, found);
        }
    }
    grid[cell] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn there_are_288_grids_and_the_splits_part_them() {
        let world = World::new(1);
        let distinct: BTreeSet<Grid> = world.train.iter().chain(&world.held_out).copied().collect();
        assert_eq!((world.train.len(), world.held_out.len(), distinct.len()), (240, 48, 288));
        for grid in &distinct {
            let units = (0..4).flat_map(|k| {
                let row = [0, 1, 2, 3].map(|i| grid[4 * k + i]);
                let column = [0, 1, 2, 3].map(|i| grid[4 * i + k]);
                let square = [0, 1, 4, 5].map(|i| grid[8 * (k / 2) + 2 * (k % 2) + i]);
                [row, column, square]
            });
            units.for_each(|unit| assert_eq!(BTreeSet::from(unit), BTreeSet::from([1, 2, 3, 4])));
        }
    }

    #[test]
    fn puzzles_have_one_solution_and_stay_in_their_split() {
        let world = World::new(1);
        for split in [Split::Train, Split::HeldOut] {
            let puzzles = world.puzzles(split, 100, 9);
            for p in &puzzles {
                assert!(world.grids(split).contains(&p.solution));
                assert_eq!(world.solutions(&p.givens), 1);
                assert!(GIVENS.contains(&p.givens.iter().filter(|c| **c != 0).count()));
            }
            assert_eq!(puzzles, world.puzzles(split, 100, 9));
            assert_ne!(puzzles, world.puzzles(split, 100, 10));
        }
    }

    #[test]
    fn rows_read_back() {
        let puzzle = World::new(1).puzzles(Split::Train, 1, 3)[0];
        let mut line = Vec::new();
        write_jsonl(&[puzzle], &mut line).unwrap();
        let row: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(row["input_ids"], serde_json::json!(puzzle.tokens().to_vec()));
        assert_eq!(row["prompt_len"], 17);
        assert_eq!(puzzle.tokens()[16], SEPARATOR);
        assert_eq!(puzzle.prompt()[..PROMPT_LEN], puzzle.tokens()[..PROMPT_LEN]);
        assert!(puzzle.prompt()[PROMPT_LEN..].iter().all(|t| *t == MASK));
    }

    #[test]
    fn scores_count_grids_and_empty_cells() {
        let puzzles = World::new(1).puzzles(Split::HeldOut, 2, 3);
        let mut filled: Vec<i64> = puzzles.iter().flat_map(Puzzle::tokens).collect();
        let blanks = puzzles.iter().flat_map(|p| p.givens).filter(|c| *c == 0).count();
        assert_eq!(Score::of(&puzzles, &filled), Score { puzzles: 2, solved: 2, blanks, right: blanks });
        let empty = puzzles[1].givens.iter().position(|c| *c == 0).unwrap();
        filled[LEN + PROMPT_LEN + empty] = MASK;
        assert_eq!(Score::of(&puzzles, &filled), Score { puzzles: 2, solved: 1, blanks, right: blanks - 1 });
        assert_eq!(Score::of(&puzzles, &filled[..LEN]).solved, 1);
    }
}
