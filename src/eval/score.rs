//! Scores of generated answers: as d1's evaluation has them, and with the mistakes of its parser corrected.
//!
//! d1 (github.com/dllm-reasoning/d1, `eval/parse_and_get_acc.py`) is what published numbers were made with; what it
//! gets wrong is said at each task.

use super::arithmetic::Dialect;
use super::countdown::Puzzle;
use super::{extract, math};

/// How right an answer is, from 0 to 1, by both rules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    pub d1: f64,
    pub corrected: f64,
}

impl Score {
    fn new(d1: bool, corrected: bool) -> Self {
        Score { d1: f64::from(u8::from(d1)), corrected: f64::from(u8::from(corrected)) }
    }
}

/// A word problem with one number.
///
/// d1 takes the first box, not the last, and it up to the first closing brace; of `1,000` it reads 1.
pub fn gsm8k(text: &str, truth: f64) -> Score {
    let boxed = extract::boxed_to_first_brace(text).into_iter().map(str::trim).filter(|b| b.bytes().any(|c| c != b'.'));
    let first = |t: &str| extract::numbers(t).first().and_then(|n| n.parse().ok());
    let last = |t: &str| extract::numbers(t).last().and_then(|n| n.parse().ok());
    let of = |t: &str, pick: &dyn Fn(&str) -> Option<f64>| t.parse().ok().or_else(|| pick(t));
    let mut boxed = boxed.filter_map(|b| of(b, &first));
    let answer = || extract::first_answer(text).filter(|a| !a.is_empty()).and_then(|a| of(a, &last));
    let d1: Option<f64> = boxed.next().or_else(answer);

    let boxed = extract::last_boxed(text).filter(|b| b.bytes().any(|c| c.is_ascii_digit()));
    let found = boxed.or_else(|| extract::last_answer(text));
    let clean = found.map(|t| t.replace([',', '$'], "").replace("{}", "").replace("\\!", ""));
    let corrected = clean.and_then(|t| last(&t));
    Score::new(d1 == Some(truth), corrected.is_some_and(|v| (v - truth).abs() < 1e-6))
}

/// An answer in LaTeX.
///
/// d1 compares spellings, so that `1,000` is not 1000 and `\text{Evelyn}` not Evelyn.
pub fn math500(text: &str, truth: &str) -> Score {
    let boxed = extract::hendrycks_boxed(text).filter(|b| !b.is_empty());
    let d1 = boxed.or_else(|| extract::first_answer(text));
    let last = extract::last_boxed(text).or_else(|| extract::last_answer(text)).filter(|b| !b.is_empty());
    Score::new(d1.is_some_and(|a| math::same_spelling(a, truth)), last.is_some_and(|a| math::same(a, truth)))
}

/// An expression that uses each number once.
///
/// d1 evaluates with Python, so that powers and floor divisions count, takes any text as the expression where there is
/// neither box nor answer, and does not know `\left(`, `\frac` or an equals sign behind LaTeX.
pub fn countdown(text: &str, puzzle: &Puzzle) -> Score {
    let latex = |t: &str| t.replace("\\div", "/").replace("\\times", "*").replace("\\cdot", "*");
    let found = extract::hendrycks_boxed(text).or_else(|| extract::first_answer(text)).unwrap_or(text);
    let found = latex(found);
    let d1 = before_result(&found).unwrap_or(&found);

    let last = extract::last_boxed(text).or_else(|| extract::last_answer(text)).map(|t| {
        let mut t = latex(t).replace("\\left", "").replace("\\right", "").replace(['$', '\\'], "");
        for (sign, ascii) in [('×', "*"), ('÷', "/"), ('−', "-"), ('·', "*")] {
            t = t.replace(sign, ascii);
        }
        t.split('=').next().unwrap_or_default().trim().to_string()
    });
    Score::new(
        puzzle.solved_by(d1, Dialect::Python),
        last.is_some_and(|expression| puzzle.solved_by(&expression, Dialect::Plain)),
    )
}

/// The expression of the first `expression=number`.
fn before_result(text: &str) -> Option<&str> {
    let inside = |b: u8| b.is_ascii_digit() || b"+-*/() ".contains(&b);
    text.match_indices('=').find_map(|(at, _)| {
        let result = text.as_bytes().get(at + 1).is_some_and(|b| b.is_ascii_digit() || b". ".contains(b));
        let start = text[..at].bytes().rposition(|b| !inside(b)).map_or(0, |k| k + 1);
        (result && start < at).then(|| text[start..at].trim())
    })
}

/// A 4x4 Sudoku of 16 digits, 0 for empty cells; both rules count the share of the empty cells that are right.
///
/// d1 takes the first 16 characters of the answer, whatever they are, so that a word in front of the grid shifts it;
/// it does not look whether given cells were kept. Corrected: the digits of the last answer, where they are 16 and
/// agree with the given cells, else nothing is right.
pub fn sudoku(text: &str, givens: &str, solution: &str) -> Score {
    let empty: Vec<usize> = givens.bytes().enumerate().filter(|(_, c)| *c == b'0').map(|(k, _)| k).collect();
    let share = |cell: &dyn Fn(usize) -> Option<char>| {
        let right = empty.iter().filter(|k| cell(**k) == solution.chars().nth(**k)).count();
        right as f64 / empty.len().max(1) as f64
    };
    let d1: Vec<char> = d1_grid(text).unwrap_or_default().chars().filter(|c| !c.is_whitespace()).collect();
    let digits: Vec<char> = last_grid(text);
    let kept = digits.len() == 16 && givens.chars().zip(&digits).all(|(given, cell)| given == '0' || given == *cell);
    Score { d1: share(&|k| d1.get(k).copied()), corrected: if kept { share(&|k| digits.get(k).copied()) } else { 0.0 } }
}

/// The digits of the last answer, or else of the last line of 16.
fn last_grid(text: &str) -> Vec<char> {
    let digits = |t: &str| t.chars().filter(char::is_ascii_digit).collect::<Vec<_>>();
    match extract::last_answer(text).map(digits) {
        Some(found) => found,
        None => text.lines().rev().map(digits).find(|d| d.len() == 16).unwrap_or_default(),
    }
}

/// The five places where d1 looks for the grid, in its order.
fn d1_grid<'t>(text: &'t str) -> Option<&'t str> {
    let ends = ["<|eot_id|>", "<|endoftext|>"];
    let answer = text.split_once("<answer>").map(|(_, rest)| rest);
    let behind = text.split_once("</answer>").map(|(_, rest)| rest);
    let earliest = |t: &str, ends: &[&str]| ends.iter().filter_map(|e| t.find(e)).min();
    let blank = |b: u8| b.is_ascii_digit() || b.is_ascii_whitespace();
    let fenced = || {
        let rest = answer?;
        rest.match_indices("```").find_map(|(at, fence)| {
            let inner = &rest[at + fence.len()..];
            let end = inner.bytes().position(|b| !blank(b)).unwrap_or(inner.len());
            (end > 0 && inner[end..].starts_with("```")).then(|| &inner[..end])
        })
    };
    let closed = || answer.and_then(|t| Some(&t[..earliest(t, &[ends[0], ends[1], "</answer>"])?]));
    let after = || behind.map(|t| &t[..earliest(t, &ends).unwrap_or(t.len())]);
    let digits = |t: &str| t.len() == 16 && t.bytes().all(|b| b.is_ascii_digit());
    let before = || {
        text.match_indices("</answer>").find_map(|(at, _)| {
            let head = text[..at].trim_end();
            head.get(head.len().checked_sub(16)?..).filter(|t| digits(t))
        })
    };
    let word = || text.split(|c: char| !(c.is_alphanumeric() || c == '_')).find(|t| digits(t));
    let places: [&dyn Fn() -> Option<&'t str>; 5] = [&fenced, &closed, &after, &before, &word];
    places.iter().find_map(|place| place().map(str::trim).filter(|found| !found.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(d1: f64, corrected: f64) -> Score {
        Score { d1, corrected }
    }

    #[test]
    fn word_problems() {
        assert_eq!(gsm8k("<answer>\n\\boxed{18}\n</answer>", 18.0), both(1.0, 1.0));
        assert_eq!(gsm8k("\\boxed{...} so <answer>it is 18 </answer>", 18.0), both(1.0, 1.0));
        assert_eq!(gsm8k("first \\boxed{3}, no: \\boxed{18}", 18.0), both(0.0, 1.0));
        assert_eq!(gsm8k("\\boxed{1,800}", 1800.0), both(0.0, 1.0));
        assert_eq!(gsm8k("\\boxed{\\$18.00}", 18.0), both(1.0, 1.0));
        assert_eq!(gsm8k("<answer>18 dollars", 18.0), both(0.0, 1.0));
        assert_eq!(gsm8k("it is 18", 18.0), both(0.0, 0.0));
        assert_eq!(gsm8k("\\boxed{\\text{about } 18}", 18.0), both(0.0, 1.0));
    }

    #[test]
    fn latex() {
        assert_eq!(math500("so \\boxed{\\frac{1}{2}}.", "\\dfrac12"), both(1.0, 1.0));
        assert_eq!(math500("so \\boxed{1,000}.", "1000"), both(0.0, 1.0));
        assert_eq!(math500("<answer>7</answer>", "7"), both(1.0, 1.0));
        assert_eq!(math500("7", "7"), both(0.0, 0.0));
    }

    #[test]
    fn expressions() {
        let puzzle = Puzzle { numbers: vec![3, 5, 5], target: 20 };
        assert_eq!(countdown("<answer>\\boxed{3 \\times 5 + 5}</answer>", &puzzle), both(1.0, 1.0));
        assert_eq!(countdown("<answer>3*5+5 = 20</answer>", &puzzle), both(1.0, 1.0));
        assert_eq!(countdown("3*5+5=20", &puzzle), both(1.0, 0.0));
        assert_eq!(countdown("\\boxed{\\left(3*5\\right)+5}", &puzzle), both(0.0, 1.0));
        assert_eq!(countdown("<answer>3*5</answer> no <answer>3*5+5</answer>", &puzzle), both(0.0, 1.0));
        let powers = Puzzle { numbers: vec![2, 3, 5], target: 13 };
        assert_eq!(countdown("<answer>2**3+5</answer>", &powers), both(1.0, 0.0));
    }

    #[test]
    fn grids() {
        let (givens, solution) = ("1030340043122040", "1234341243122143");
        let score = |text: &str| sudoku(text, givens, solution);
        assert_eq!(score("<answer>\n1234341243122143\n</answer>"), both(1.0, 1.0));
        assert_eq!(score("<answer>\n```\n1234\n3412\n4312\n2143\n```</answer>"), both(1.0, 1.0));
        assert_eq!(score("<answer>the grid: 1234341243122143</answer>").corrected, 1.0);
        assert!(score("<answer>the grid: 1234341243122143</answer>").d1 < 0.5);
        // A given cell was changed: d1 does not look.
        assert_eq!(score("<answer>4234341243122143</answer>"), both(1.0, 0.0));
        assert_eq!(score("so 1234341243122143 it is"), both(1.0, 1.0));
        assert_eq!(score("</answer>1234341243122143<|eot_id|>"), both(1.0, 1.0));
        assert_eq!(score("nothing"), both(0.0, 0.0));
    }
}
