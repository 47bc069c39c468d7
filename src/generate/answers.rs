//! Answers to prompts, batch by batch.

use super::language::Language;
use super::watch::Screen;
use super::{Decoding, Logits, decode_watched};
use crate::error::Result;
use std::ops::Range;
use std::time::Instant;

/// What is to be done with every prompt.
pub struct Request {
    pub decoding: Decoding,
    /// Tokens of an answer.
    pub length: usize,
    /// Answers at once.
    pub batch: usize,
    /// Whether the denoising is shown; then there is one answer at once.
    pub watch: bool,
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// All its tokens, also behind the end of text.
    pub tokens: Vec<i64>,
    /// Model calls of its batch.
    pub calls: usize,
    /// Time of its batch, and how many answers that made.
    pub seconds: f64,
    pub together: usize,
}

/// Hears of an answer: the number of its prompt, and itself.
pub type Heard<'a> = &'a mut dyn FnMut(usize, Answer) -> Result<()>;

/// Generates an answer to each of the numbered prompts, in their order.
///
/// Neighbours of one length share a batch; draws depend on the seed and the number of a prompt alone.
///
/// # Errors
/// As `decode`, and whatever `heard` returns.
pub fn answers(
    logits: &mut Logits<'_>,
    language: &Language,
    request: &Request,
    prompts: &[(usize, &[i64])],
    heard: Heard,
) -> Result<()> {
    let size = if request.watch { 1 } else { request.batch.max(1) };
    for batch in batches(prompts, size) {
        let batch = &prompts[batch];
        let len = batch[0].1.len() + request.length;
        let mut tokens = Vec::with_capacity(batch.len() * len);
        for (_, prompt) in batch {
            tokens.extend_from_slice(prompt);
            tokens.extend(std::iter::repeat_n(language.mask_id, request.length));
        }
        let rows = batch.iter().map(|(number, _)| *number).collect();
        let decoding = Decoding { rows, ..request.decoding.clone() };
        let (started, mut calls) = (Instant::now(), 0);
        let mut screen = request.watch.then(|| Screen::new(language, &tokens[..len], batch[0].1.len()));
        let filled = decode_watched(logits, &tokens, len, &decoding, &mut |tokens| {
            calls += 1;
            screen.as_mut().map_or(Ok(()), |screen| screen.draw(tokens))
        })?;
        let seconds = started.elapsed().as_secs_f64();
        for ((number, prompt), row) in batch.iter().zip(filled.chunks(len)) {
            let tokens = row[prompt.len()..].to_vec();
            heard(*number, Answer { tokens, calls, seconds, together: batch.len() })?;
        }
    }
    Ok(())
}

/// Runs of at most `size` neighbours of one length: nothing needs padding, so an answer does not depend on its batch.
fn batches(prompts: &[(usize, &[i64])], size: usize) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    for (k, (_, prompt)) in prompts.iter().enumerate() {
        match out.last_mut() {
            Some(last) if last.len() < size && prompts[last.start].1.len() == prompt.len() => last.end = k + 1,
            _ => out.push(k..k + 1),
        }
    }
    out
}
