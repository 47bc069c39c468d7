//! Countdown: reach a number from others with arithmetic.

use super::arithmetic::{Dialect, evaluate};
use crate::rng::SplitMix64;
use serde::Serialize;

/// Numbers, each to be used once, and what they must give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Puzzle {
    pub numbers: Vec<i64>,
    pub target: i64,
}

/// Numbers are drawn from 1 to this, and targets lie in `TARGETS`, as in TinyZero's puzzles.
const MOST: usize = 99;
const TARGETS: std::ops::RangeInclusive<i64> = 10..=100;

/// `count` puzzles of `size` numbers that can be solved; they depend on the seed alone.
pub fn puzzles(count: usize, size: usize, seed: u64) -> Vec<Puzzle> {
    let mut rng = SplitMix64::new(seed);
    let mut out = Vec::with_capacity(count);
    while out.len() < count {
        let numbers: Vec<i64> = (0..size).map(|_| 1 + rng.below(MOST) as i64).collect();
        // From left to right with drawn operators, so that a solution exists.
        let result = numbers.iter().skip(1).try_fold(numbers[0], |sum, n| match rng.below(4) {
            0 => Some(sum + n),
            1 => Some(sum - n),
            2 => sum.checked_mul(*n),
            _ => (sum % n == 0).then(|| sum / n),
        });
        if let Some(target) = result.filter(|t| TARGETS.contains(t)) {
            let mut numbers = numbers;
            rng.shuffle(&mut numbers);
            out.push(Puzzle { numbers, target });
        }
    }
    out
}

impl Puzzle {
    /// Whether an expression uses each number once and gives the target.
    pub fn solved_by(&self, expression: &str, dialect: Dialect) -> bool {
        let digits = expression.split(|c: char| !c.is_ascii_digit()).filter(|d| !d.is_empty());
        let Ok(mut used) = digits.map(str::parse).collect::<Result<Vec<i64>, _>>() else { return false };
        let mut given = self.numbers.clone();
        used.sort_unstable();
        given.sort_unstable();
        used == given && evaluate(expression, dialect).is_some_and(|v| (v - self.target as f64).abs() < 1e-5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puzzles_can_be_solved_and_depend_on_the_seed() {
        let some = puzzles(200, 3, 1);
        assert_eq!(some, puzzles(200, 3, 1));
        assert_ne!(some, puzzles(200, 3, 2));
        for puzzle in &some {
            assert!(TARGETS.contains(&puzzle.target) && puzzle.numbers.len() == 3);
            assert!(solvable(puzzle), "{puzzle:?}");
        }
    }

    /// Tries every order, every operator and both bracketings of three numbers.
    fn solvable(p: &Puzzle) -> bool {
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let signs = ["+", "-", "*", "/"];
        orders.iter().any(|[i, j, k]| {
            let (a, b, c) = (p.numbers[*i], p.numbers[*j], p.numbers[*k]);
            signs.iter().any(|s| signs.iter().any(|t| p.solved_by(&format!("({a}{s}{b}){t}{c}"), Dialect::Plain)))
        })
    }

    #[test]
    fn every_number_is_used_once() {
        let puzzle = Puzzle { numbers: vec![3, 5, 5], target: 25 };
        let solved = |text: &str| puzzle.solved_by(text, Dialect::Plain);
        assert!(!solved("5*5") && !solved("5*5*3/3") && !solved("25") && !solved("3+5+5"));
        let puzzle = Puzzle { numbers: vec![3, 5, 5], target: 20 };
        assert!(!puzzle.solved_by("5 * (5 - 3) * 2", Dialect::Plain));
        assert!(puzzle.solved_by("3*5+5", Dialect::Plain));
        assert!(!puzzle.solved_by("99999999999999999999", Dialect::Plain));
    }
}
