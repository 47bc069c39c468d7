//! Picks the token of a position from its logits, and says how sure the model is of it.

use super::{Decoding, Draw, Eos, Remasking};
use crate::error::{Error, Problem, Result};
use crate::rng::SplitMix64;
use std::ops::Range;

/// A token for a position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Index of the position in the batch.
    pub position: usize,
    pub token: i64,
    /// Positions with more of it are filled first; its meaning is the remasking's.
    pub confidence: f64,
}

/// One batch of logits `[batch, len, vocabulary]`.
pub struct Chooser<'a> {
    logits: &'a [f32],
    vocab: usize,
    candidates: Range<usize>,
    /// Tokens that are never written: the mask, and the end of text where it is suppressed.
    barred: Vec<usize>,
    decoding: &'a Decoding,
}

/// A number in (0, 1) of 52 bits, so that its logarithm is finite and not 0.
pub fn uniform(rng: &mut SplitMix64) -> f64 {
    ((rng.next_u64() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

/// A draw from Gumbel's distribution: the largest of `ln p + gumbel` is a draw from `p`.
pub fn gumbel(rng: &mut SplitMix64) -> f64 {
    -(-uniform(rng).ln()).ln()
}

impl<'a> Chooser<'a> {
    /// # Errors
    /// Logits of another size; no token that may be written.
    pub fn new(logits: &'a [f32], positions: usize, decoding: &'a Decoding) -> Result<Self> {
        if logits.is_empty() || !logits.len().is_multiple_of(positions) {
            let message = format!("the model returned {} logits for {positions} positions", logits.len());
            return Err(Error::Runtime { message, help: None });
        }
        let vocab = logits.len() / positions;
        let mut barred: Vec<usize> = usize::try_from(decoding.mask_id).into_iter().collect();
        if decoding.eos == Eos::Suppress {
            barred.extend(decoding.eos_ids.iter().filter_map(|id| usize::try_from(*id).ok()));
        }
        let all = 0..i64::try_from(vocab).unwrap_or(i64::MAX);
        let wanted = decoding.candidates.clone().unwrap_or(all);
        let bound = |token: i64| usize::try_from(token.max(0)).unwrap_or(vocab).min(vocab);
        let candidates = bound(wanted.start)..bound(wanted.end);
        if candidates.clone().all(|token| barred.contains(&token)) {
            let message = format!("no token of {wanted:?} can be written: the vocabulary has {vocab}");
            return Err(Error::usage(Problem::new("candidates", message)));
        }
        Ok(Chooser { logits, vocab, candidates, barred, decoding })
    }

    /// The token for a flat position of the row that starts at `row`.
    ///
    /// # Errors
    /// Logits that are not a number.
    pub fn at(&self, position: usize, row: usize, rng: &mut SplitMix64) -> Result<Choice> {
        let decoding = self.decoding;
        // With a shift the first position has no logits of its own: it takes the first row's, as training does.
        let source = position.saturating_sub(decoding.logits_shift).max(row);
        let z = &self.logits[source * self.vocab..][..self.vocab];
        let mut scores = Vec::with_capacity(self.candidates.len());
        for token in self.candidates.clone().filter(|token| !self.barred.contains(token)) {
            if z[token].is_nan() {
                let message = format!("the logit of token {token} at position {} is NaN", position - row);
                return Err(Error::runtime(message));
            }
            scores.push((token, f64::from(z[token])));
        }
        let warm = decoding.temperature > 0.0;
        if warm && decoding.draw == Draw::Categorical {
            scores.iter_mut().for_each(|(_, score)| *score /= decoding.temperature);
        }
        if let Some(p) = decoding.top_p.filter(|p| *p < 1.0) {
            keep_mass(&mut scores, p);
        }
        if let Some(k) = decoding.top_k {
            keep_best(&mut scores, k);
        }
        let chances = softmax(&scores);
        let chosen = match decoding.draw {
            _ if !warm => largest(scores.iter().map(|s| s.1)),
            Draw::Gumbel => largest(scores.iter().map(|(_, score)| score + decoding.temperature * gumbel(rng))),
            Draw::Categorical => drawn(&chances, uniform(rng)),
        };
        let token = scores[chosen].0 as i64;
        let late = decoding.eos == Eos::Late && decoding.eos_ids.contains(&token);
        let confidence = match decoding.remasking {
            _ if late => f64::NEG_INFINITY,
            Remasking::Margin => margin(&chances),
            // Dream's small number under the logarithm.
            Remasking::Entropy => chances.iter().map(|p| p * (p + 1e-10).ln()).sum(),
            Remasking::LowConfidence | Remasking::Threshold(_) | Remasking::Random | Remasking::Origin => {
                chances[chosen]
            }
        };
        Ok(Choice { position, token, confidence })
    }
}

/// Of equals the first.
fn largest(values: impl Iterator<Item = f64>) -> usize {
    values.enumerate().fold((0, f64::NEG_INFINITY), |best, (k, v)| if v > best.1 { (k, v) } else { best }).0
}

fn softmax(scores: &[(usize, f64)]) -> Vec<f64> {
    let top = scores.iter().fold(f64::NEG_INFINITY, |top, s| top.max(s.1));
    let mut chances: Vec<f64> = scores.iter().map(|s| (s.1 - top).exp()).collect();
    let sum: f64 = chances.iter().sum();
    chances.iter_mut().for_each(|p| *p /= sum);
    chances
}

/// The first whose cumulative probability exceeds `u`.
fn drawn(chances: &[f64], u: f64) -> usize {
    let mut sum = 0.0;
    let passed = chances.iter().position(|p| {
        sum += p;
        sum > u
    });
    passed.unwrap_or(chances.len() - 1)
}

fn margin(chances: &[f64]) -> f64 {
    let best = chances.iter().fold((0.0, 0.0), |(first, second), p| match *p {
        p if p > first => (p, first),
        p if p > second => (first, p),
        _ => (first, second),
    });
    best.0 - best.1
}

/// Drops the tokens behind those that together have more than `mass`; the most likely one stays.
fn keep_mass(scores: &mut Vec<(usize, f64)>, mass: f64) {
    let chances = softmax(scores);
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| chances[*b].total_cmp(&chances[*a]));
    let mut sum = 0.0;
    let kept = order.iter().take_while(|k| {
        let before = sum;
        sum += chances[**k];
        before <= mass
    });
    let mut kept: Vec<usize> = kept.copied().collect();
    if kept.is_empty() {
        kept.extend(order.first());
    }
    kept.sort_unstable();
    *scores = kept.into_iter().map(|k| scores[k]).collect();
}

/// Drops the tokens below the `k`-th largest score; equals of it stay.
fn keep_best(scores: &mut Vec<(usize, f64)>, k: usize) {
    let mut sorted: Vec<f64> = scores.iter().map(|s| s.1).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let least = sorted[k.clamp(1, sorted.len()) - 1];
    scores.retain(|s| s.1 >= least);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_keep_the_likely_tokens() {
        let scores = |p: &[f64]| p.iter().map(|p| p.ln()).enumerate().collect::<Vec<_>>();
        let tokens = |s: &[(usize, f64)]| s.iter().map(|s| s.0).collect::<Vec<_>>();
        let mut s = scores(&[0.1, 0.4, 0.2, 0.3]);
        keep_mass(&mut s, 0.65);
        // 0.4 and 0.7 pass 0.65 with the second: it stays, as in Dream.
        assert_eq!(tokens(&s), [1, 3]);
        let mut s = scores(&[0.1, 0.4, 0.2, 0.3]);
        keep_mass(&mut s, -1.0);
        assert_eq!(tokens(&s), [1]);
        let mut s = scores(&[0.2, 0.4, 0.2, 0.2]);
        keep_best(&mut s, 2);
        assert_eq!(tokens(&s), [0, 1, 2, 3]);
        keep_best(&mut s, 1);
        assert_eq!(tokens(&s), [1]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let chances = [0.2, 0.5, 0.3];
        assert_eq!([0.0, 0.1, 0.3, 0.69, 0.71, 1.0].map(|u| drawn(&chances, u)), [0, 0, 1, 1, 2, 2]);
        assert!((margin(&chances) - 0.2).abs() < 1e-12);
        let mut rng = SplitMix64::new(1);
        let mut seen = [0; 3];
        for _ in 0..3000 {
            seen[largest(chances.iter().map(|p| p.ln() + gumbel(&mut rng)))] += 1;
        }
        // Five standard deviations of a count.
        seen.iter().zip(chances).for_each(|(n, p)| {
            let expected = 3000.0 * p;
            assert!((f64::from(*n) - expected).abs() < 5.0 * (expected * (1.0 - p)).sqrt(), "{seen:?}");
        });
    }
}
