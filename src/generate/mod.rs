//! Decoding: fills the masked positions of a batch step by step.
//!
//! One loop serves LLaDA's generation ([`Schedule::Even`], [`Draw::Gumbel`], blocks from the left) and Dream's
//! ([`Schedule::Timesteps`], [`Draw::Categorical`], all positions at once).

pub mod answers;
mod args;
mod choose;
pub mod command;
mod device;
pub mod language;
mod model;
mod schedule;
mod watch;

pub use args::DecodingArgs;
pub use device::{DeviceArgs, input};
pub use model::Model;
pub use schedule::{EPS, Schedule};

use crate::error::{Error, Problem, Result};
use crate::rng::SplitMix64;
use choose::{Choice, Chooser, gumbel, uniform};
use serde::Serialize;
use std::ops::Range;

/// How masked positions are filled.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decoding {
    /// The token that stands for "not known yet"; it is never written.
    pub mask_id: i64,
    /// Model calls a block.
    pub steps: usize,
    /// Masked positions are taken in blocks of this many from the left; `None`: all at once.
    pub block_length: Option<usize>,
    /// Only these tokens are written; `None`: every token but the mask.
    pub candidates: Option<Range<i64>>,
    /// 1 where row `i` of the logits predicts token `i + 1` (Dream), else 0.
    pub logits_shift: usize,
    pub schedule: Schedule,
    pub remasking: Remasking,
    /// 0 takes the most likely token.
    pub temperature: f64,
    pub draw: Draw,
    /// Only the most likely tokens that together have this probability.
    pub top_p: Option<f64>,
    /// Only this many of the most likely tokens.
    pub top_k: Option<usize>,
    /// Positions are drawn with probabilities `softmax(confidence / alg_temp)` instead of taken in order.
    pub alg_temp: Option<f64>,
    /// The tokens that end a text; the first of them fills what lies behind it.
    pub eos_ids: Vec<i64>,
    pub eos: Eos,
    /// Whether a row ends with the block in which it has written an end of text.
    pub stop: bool,
    pub seed: u64,
    /// The numbers of the batch's rows, which draws depend on beside the seed; `[0, 1, ..]` where there are none.
    pub rows: Vec<usize>,
}

/// Which positions are filled first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remasking {
    /// Those whose token has the highest probability (LLaDA; Dream's `maskgit_plus`).
    #[default]
    LowConfidence,
    /// Any.
    Random,
    /// Those whose best token is furthest ahead of the second (Dream's `topk_margin`).
    Margin,
    /// Those whose distribution has the lowest entropy.
    Entropy,
    /// All whose token has more than this probability, and at least one a step, until the block is full:
    /// the number of steps is not heeded.
    Threshold(f64),
    /// Each is drawn, with the probability of the schedule (Dream's `origin`).
    Origin,
}

/// How a token is drawn at a temperature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Draw {
    /// Gumbel noise times the temperature on the logits, in f64; confidence is the probability without temperature
    /// (LLaDA).
    #[default]
    Gumbel,
    /// From the softmax of the logits over the temperature, which confidence is taken from as well (Dream).
    Categorical,
}

/// What becomes of tokens that end a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Eos {
    /// Written like any other.
    #[default]
    Free,
    /// Never written.
    Suppress,
    /// Written only where nothing else is left to write.
    Late,
}

impl Decoding {
    /// LLaDA's at temperature 0: all positions at once, any token but the mask, logits as they stand.
    pub fn new(mask_id: i64, steps: usize) -> Self {
        Decoding {
            mask_id,
            steps,
            block_length: None,
            candidates: None,
            logits_shift: 0,
            schedule: Schedule::Even,
            remasking: Remasking::LowConfidence,
            temperature: 0.0,
            draw: Draw::Gumbel,
            top_p: None,
            top_k: None,
            alg_temp: None,
            eos_ids: Vec::new(),
            eos: Eos::Free,
            stop: false,
            seed: 0,
            rows: Vec::new(),
        }
    }

    /// Dream's at temperature 0, the most certain positions by entropy first.
    pub fn dream(mask_id: i64, steps: usize) -> Self {
        Decoding {
            logits_shift: 1,
            schedule: Schedule::Timesteps { eps: EPS },
            remasking: Remasking::Entropy,
            draw: Draw::Categorical,
            ..Decoding::new(mask_id, steps)
        }
    }
}

/// The model: tokens `[batch, len]` to logits `[batch, len, vocabulary]`, both row by row.
pub type Logits<'a> = dyn FnMut(&[i64], usize, usize) -> Result<Vec<f32>> + 'a;

/// What is told after each step: the tokens `[batch, len]`.
pub type Watch<'a> = dyn FnMut(&[i64]) -> Result<()> + 'a;

/// Fills every masked position of `tokens` `[batch, len]` and returns the filled batch.
///
/// Each step keeps the positions that `decoding.remasking` puts first and masks the rest again.  Ties go to the
/// position, then the token, that comes first, so the result depends on logits and seed alone.
///
/// # Errors
/// A batch that is not `[batch, len]`, settings out of range, no candidate in the vocabulary; logits of another
/// size or with NaN; and whatever `logits` returns.
pub fn decode(logits: &mut Logits<'_>, tokens: &[i64], len: usize, decoding: &Decoding) -> Result<Vec<i64>> {
    decode_watched(logits, tokens, len, decoding, &mut |_| Ok(()))
}

/// `decode`, telling `watch` after each step.
///
/// # Errors
/// As `decode`, and whatever `watch` returns.
pub fn decode_watched(
    logits: &mut Logits<'_>,
    tokens: &[i64],
    len: usize,
    decoding: &Decoding,
    watch: &mut Watch<'_>,
) -> Result<Vec<i64>> {
    let problems = check(tokens, len, decoding);
    if !problems.is_empty() {
        return Err(Error::Usage { problems });
    }
    let mut tokens = tokens.to_vec();
    let batch = tokens.len() / len.max(1);
    let number = |row: usize| decoding.rows.get(row).copied().unwrap_or(row) as u64;
    let mut rngs: Vec<SplitMix64> = (0..batch).map(|row| SplitMix64::stream(decoding.seed, number(row))).collect();
    let mut masked: Vec<Vec<usize>> =
        (0..batch).map(|row| masked_in(&tokens, row * len, len, decoding.mask_id)).collect();
    let longest = masked.iter().map(Vec::len).max().unwrap_or(0);
    let block = decoding.block_length.unwrap_or(longest).max(1);
    for start in (0..longest).step_by(block) {
        let mut open: Vec<Vec<usize>> =
            masked.iter().map(|m| m.iter().skip(start).take(block).copied().collect()).collect();
        for step in 0.. {
            if open.iter().all(Vec::is_empty) {
                break;
            }
            let z = logits(&tokens, batch, len)?;
            let choose = Chooser::new(&z, tokens.len(), decoding)?;
            for (row, positions) in open.iter_mut().enumerate() {
                let rng = &mut rngs[row];
                let choices = positions.iter().map(|&p| choose.at(p, row * len, rng)).collect::<Result<Vec<_>>>()?;
                let kept = kept(choices, step, decoding, rng);
                for choice in &kept {
                    tokens[choice.position] = choice.token;
                }
                positions.retain(|p| kept.iter().all(|choice| choice.position != *p));
            }
            watch(&tokens)?;
        }
        if decoding.stop && end(&mut tokens, len, &mut masked, start + block, decoding) {
            watch(&tokens)?;
        }
    }
    Ok(tokens)
}

/// The choices that step `step` keeps.
fn kept(mut choices: Vec<Choice>, step: usize, decoding: &Decoding, rng: &mut SplitMix64) -> Vec<Choice> {
    let (open, steps) = (choices.len(), decoding.steps);
    let mut count = decoding.schedule.count(open, step, steps);
    let late = |choice: &Choice| choice.confidence == f64::NEG_INFINITY;
    match decoding.remasking {
        Remasking::Origin => {
            let chance = decoding.schedule.chance(step, steps);
            choices.retain(|_| uniform(rng) < chance);
            return choices;
        }
        Remasking::Random => choices.iter_mut().for_each(|choice| {
            let drawn = uniform(rng);
            choice.confidence = if late(choice) { f64::NEG_INFINITY } else { drawn };
        }),
        Remasking::Threshold(least) => {
            count = choices.iter().filter(|choice| choice.confidence > least).count().max(1);
        }
        Remasking::LowConfidence | Remasking::Margin | Remasking::Entropy => {}
    }
    if let Some(temperature) = decoding.alg_temp.filter(|t| *t > 0.0) {
        // The largest of these keys are a draw without replacement from the softmax.
        choices.iter_mut().for_each(|choice| choice.confidence = choice.confidence / temperature + gumbel(rng));
    }
    // A stable sort: equal confidence leaves the order of positions.
    choices.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    choices.truncate(count);
    choices
}

/// Ends the rows that have written an end of text among their first `done` masked positions.
fn end(tokens: &mut [i64], len: usize, masked: &mut [Vec<usize>], done: usize, decoding: &Decoding) -> bool {
    let Some(eos) = decoding.eos_ids.first() else { return false };
    let mut any = false;
    for (row, positions) in masked.iter_mut().enumerate() {
        let written = &positions[..done.min(positions.len())];
        let ended = written.iter().any(|p| decoding.eos_ids.contains(&tokens[*p]));
        if ended && positions.len() > done {
            debug_assert!(positions.iter().all(|p| p / len == row));
            positions[done..].iter().for_each(|p| tokens[*p] = *eos);
            positions.truncate(done);
            any = true;
        }
    }
    any
}

fn check(tokens: &[i64], len: usize, decoding: &Decoding) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |wrong: bool, place: &str, message: String| {
        if wrong {
            problems.push(Problem::new(place, message));
        }
    };
    let rows = if len == 0 { tokens.is_empty() } else { tokens.len().is_multiple_of(len) };
    refuse(!rows, "tokens", format!("{} tokens are not rows of {len}", tokens.len()));
    refuse(decoding.steps == 0, "steps", "decoding needs at least one step".into());
    refuse(decoding.block_length == Some(0), "block length", "a block needs at least one position".into());
    let temperature = decoding.temperature;
    refuse(!(temperature >= 0.0 && temperature.is_finite()), "temperature", format!("{temperature} is not 0 or more"));
    if let Some(p) = decoding.top_p {
        refuse(!(p > 0.0 && p <= 1.0), "top-p", format!("{p} is not in (0, 1]"));
    }
    refuse(decoding.top_k == Some(0), "top-k", "of no token none can be drawn".into());
    if let Some(t) = decoding.alg_temp {
        refuse(!(t >= 0.0 && t.is_finite()), "alg-temp", format!("{t} is not 0 or more"));
    }
    if let Remasking::Threshold(p) = decoding.remasking {
        refuse(!(0.0..=1.0).contains(&p), "threshold", format!("{p} is no probability"));
    }
    if let Schedule::Timesteps { eps } = decoding.schedule {
        refuse(!(eps > 0.0 && eps < 1.0), "eps", format!("{eps} is not between 0 and 1"));
    }
    let needs = decoding.eos != Eos::Free || decoding.stop;
    refuse(needs && decoding.eos_ids.is_empty(), "eos", "no token is known to end a text".into());
    problems
}

/// The flat indices of a row's masked positions.
fn masked_in(tokens: &[i64], start: usize, len: usize, mask_id: i64) -> Vec<usize> {
    (start..start + len).filter(|&k| tokens[k] == mask_id).collect()
}

#[cfg(test)]
mod tests;
