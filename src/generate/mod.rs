//! Confidence decoding: fills the masked positions of a batch, the most certain ones first.

mod model;

pub use model::Model;

use crate::error::{Error, Problem, Result};
use std::ops::Range;

/// How masked positions are filled.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoding {
    /// The token that stands for "not known yet".
    pub mask_id: i64,
    /// Model calls a block.  A step fixes the block's masked positions divided by the steps, the
    /// remainder in the first steps.
    pub steps: usize,
    /// Masked positions are taken in blocks of this many from the left; `None`: all at once.
    pub block_length: Option<usize>,
    /// Only these tokens are written; `None`: every token but the mask.
    pub candidates: Option<Range<i64>>,
    /// 1 where row `i` of the logits predicts token `i + 1` (Dream), else 0.
    pub logits_shift: usize,
}

impl Decoding {
    /// All positions at once, any token but the mask, logits as they stand.
    pub fn new(mask_id: i64, steps: usize) -> Self {
        Decoding { mask_id, steps, block_length: None, candidates: None, logits_shift: 0 }
    }
}

/// The model: tokens `[batch, len]` to logits `[batch, len, vocabulary]`, both row by row.
pub type Logits<'a> = dyn FnMut(&[i64], usize, usize) -> Result<Vec<f32>> + 'a;

/// Fills every masked position of `tokens` `[batch, len]` and returns the filled batch.
///
/// Each step keeps the positions whose best candidate has the highest probability and masks the rest
/// again (low-confidence remasking).  Ties go to the position, then the token, that comes first, so the
/// result depends on the logits alone.
///
/// Errors: a batch that is not `[batch, len]`, no step, a block of nothing, no candidate in the
/// vocabulary; logits of another size or with NaN; and whatever `logits` returns.
pub fn decode(logits: &mut Logits<'_>, tokens: &[i64], len: usize, decoding: &Decoding) -> Result<Vec<i64>> {
    let problems = check(tokens, len, decoding);
    if !problems.is_empty() {
        return Err(Error::Usage { problems });
    }
    let mut tokens = tokens.to_vec();
    let batch = tokens.len() / len.max(1);
    let masked: Vec<Vec<usize>> = (0..batch).map(|row| masked_in(&tokens, row * len, len, decoding.mask_id)).collect();
    let longest = masked.iter().map(Vec::len).max().unwrap_or(0);
    let block = decoding.block_length.unwrap_or(longest).max(1);
    for start in (0..longest).step_by(block) {
        let mut open: Vec<Vec<usize>> =
            masked.iter().map(|m| m.iter().skip(start).take(block).copied().collect()).collect();
        for left in (1..=decoding.steps).rev() {
            if open.iter().all(Vec::is_empty) {
                break;
            }
            let z = logits(&tokens, batch, len)?;
            let choose = Chooser::new(&z, tokens.len(), decoding)?;
            for (row, positions) in open.iter_mut().enumerate() {
                let mut best = positions
                    .iter()
                    .map(|&p| choose.at(p, row * len).map(|(token, confidence)| (p, token, confidence)))
                    .collect::<Result<Vec<_>>>()?;
                // A stable sort: equal confidence leaves the order of positions.
                best.sort_by(|a, b| b.2.total_cmp(&a.2));
                best.truncate(positions.len().div_ceil(left));
                for (position, token, _) in &best {
                    tokens[*position] = *token;
                }
                positions.retain(|p| best.iter().all(|(position, ..)| position != p));
            }
        }
    }
    Ok(tokens)
}

fn check(tokens: &[i64], len: usize, decoding: &Decoding) -> Vec<Problem> {
    let mut problems = Vec::new();
    if len == 0 && !tokens.is_empty() || len > 0 && !tokens.len().is_multiple_of(len) {
        problems.push(Problem::new("tokens", format!("{} tokens are not rows of {len}", tokens.len())));
    }
    if decoding.steps == 0 {
        problems.push(Problem::new("steps", "decoding needs at least one step"));
    }
    if decoding.block_length == Some(0) {
        problems.push(Problem::new("block length", "a block needs at least one position"));
    }
    problems
}

/// The flat indices of a row's masked positions.
fn masked_in(tokens: &[i64], start: usize, len: usize, mask_id: i64) -> Vec<usize> {
    (start..start + len).filter(|&k| tokens[k] == mask_id).collect()
}

/// Picks the token of a position from one batch of logits.
struct Chooser<'a> {
    logits: &'a [f32],
    vocab: usize,
    candidates: Range<usize>,
    mask: Option<usize>,
    shift: usize,
}

impl<'a> Chooser<'a> {
    fn new(logits: &'a [f32], positions: usize, decoding: &Decoding) -> Result<Self> {
        if logits.is_empty() || !logits.len().is_multiple_of(positions) {
            let message = format!("the model returned {} logits for {positions} positions", logits.len());
            return Err(Error::Runtime { message, help: None });
        }
        let vocab = logits.len() / positions;
        let mask = usize::try_from(decoding.mask_id).ok();
        let all = 0..i64::try_from(vocab).unwrap_or(i64::MAX);
        let wanted = decoding.candidates.clone().unwrap_or(all);
        let bound = |token: i64| usize::try_from(token.max(0)).unwrap_or(vocab).min(vocab);
        let candidates = bound(wanted.start)..bound(wanted.end);
        if candidates.clone().all(|token| Some(token) == mask) {
            let message = format!("no token of {wanted:?} can be written: the vocabulary has {vocab}");
            return Err(Error::usage(Problem::new("candidates", message)));
        }
        Ok(Chooser { logits, vocab, candidates, mask, shift: decoding.logits_shift })
    }

    /// The best candidate at a flat position of the row that starts at `row`, and its probability among
    /// the candidates.
    fn at(&self, position: usize, row: usize) -> Result<(i64, f64)> {
        // With a shift the first position has no logits of its own: it takes the first row's, as training does.
        let source = position.saturating_sub(self.shift).max(row);
        let z = &self.logits[source * self.vocab..][..self.vocab];
        let candidates = || self.candidates.clone().filter(|token| Some(*token) != self.mask);
        if let Some(token) = candidates().find(|token| z[*token].is_nan()) {
            return Err(Error::runtime(format!("the logit of token {token} at position {} is NaN", position - row)));
        }
        let best = candidates().fold(self.candidates.start, |best, token| {
            if Some(best) == self.mask || z[token] > z[best] { token } else { best }
        });
        let top = f64::from(z[best]);
        let sum: f64 = candidates().map(|token| (f64::from(z[token]) - top).exp()).sum();
        Ok((best as i64, 1.0 / sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: i64 = 3;

    /// Logits over four tokens: `score` gives the favoured token of each position and how strongly.
    fn model(score: impl Fn(usize) -> (usize, f32)) -> impl FnMut(&[i64], usize, usize) -> Result<Vec<f32>> {
        move |tokens, batch, len| {
            assert_eq!(tokens.len(), batch * len);
            let mut z = vec![0.0; tokens.len() * 4];
            (0..tokens.len()).for_each(|p| z[p * 4 + score(p).0] = score(p).1);
            Ok(z)
        }
    }

    /// The tokens that the model was shown at each call.
    fn trace(row: &[i64], decoding: &Decoding, score: impl Fn(usize) -> (usize, f32)) -> Vec<Vec<i64>> {
        let mut seen = Vec::new();
        let mut inner = model(score);
        let mut spy = |tokens: &[i64], b, l| {
            seen.push(tokens.to_vec());
            inner(tokens, b, l)
        };
        let last = decode(&mut spy, row, row.len(), decoding).unwrap();
        seen.push(last);
        seen
    }

    #[test]
    fn the_most_confident_positions_come_first_and_ties_go_left() {
        let confidence = [9.0, 1.0, 5.0, 5.0, 2.0, 5.0];
        let seen = trace(&[0, MASK, MASK, MASK, MASK, MASK], &Decoding::new(MASK, 3), |p| (p % 3, confidence[p]));
        // Five positions in three steps: two, two, one.
        let expected = [
            vec![0, MASK, MASK, MASK, MASK, MASK],
            vec![0, MASK, 2, 0, MASK, MASK],
            vec![0, MASK, 2, 0, 1, 2],
            vec![0, 1, 2, 0, 1, 2],
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn blocks_fill_from_the_left() {
        let decoding = Decoding { block_length: Some(2), ..Decoding::new(MASK, 1) };
        let seen = trace(&[MASK, MASK, MASK], &decoding, |p| (1, p as f32 + 1.0));
        assert_eq!(seen, [vec![MASK, MASK, MASK], vec![1, 1, MASK], vec![1, 1, 1]]);
    }

    #[test]
    fn the_mask_is_never_written_and_candidates_bind() {
        let row = [MASK, 0];
        let any = decode(&mut model(|_| (3, 9.0)), &row, 2, &Decoding::new(MASK, 1)).unwrap();
        assert_eq!(any, [0, 0]);
        let decoding = Decoding { candidates: Some(2..4), ..Decoding::new(MASK, 1) };
        assert_eq!(decode(&mut model(|_| (1, 9.0)), &row, 2, &decoding).unwrap(), [2, 0]);
        let nothing = Decoding { candidates: Some(3..9), ..Decoding::new(MASK, 1) };
        assert!(decode(&mut model(|_| (1, 9.0)), &row, 2, &nothing).is_err());
    }

    #[test]
    fn shifted_logits_stay_in_their_row() {
        let decoding = Decoding { logits_shift: 1, ..Decoding::new(MASK, 1) };
        let filled = decode(&mut model(|p| (p % 3, 5.0)), &[MASK, MASK, MASK, MASK], 2, &decoding).unwrap();
        assert_eq!(filled, [0, 0, 2, 2]);
    }

    #[test]
    fn rows_of_different_fill_and_more_steps_than_positions() {
        let filled = decode(&mut model(|_| (1, 5.0)), &[0, 2, MASK, MASK], 2, &Decoding::new(MASK, 8)).unwrap();
        assert_eq!(filled, [0, 2, 1, 1]);
    }

    #[test]
    fn bad_requests_are_errors() {
        let mut fine = model(|_| (1, 5.0));
        assert!(decode(&mut fine, &[MASK; 3], 2, &Decoding::new(MASK, 0)).is_err_and(|e| match e {
            Error::Usage { problems } => problems.len() == 2,
            _ => false,
        }));
        let mut nan = |_: &[i64], _, _| Ok(vec![f32::NAN; 8]);
        assert!(decode(&mut nan, &[MASK, MASK], 2, &Decoding::new(MASK, 1)).is_err());
        let mut short = |_: &[i64], _, _| Ok(vec![0.0; 3]);
        assert!(decode(&mut short, &[MASK, MASK], 2, &Decoding::new(MASK, 1)).is_err());
    }
}
