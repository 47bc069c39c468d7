//! What a run leaves of its tokens: how often they were masked, and the last samples token by token.

use super::batch::Batch;
use super::data::Dataset;
use super::token_weight;
use super::trainer::StepResult;
use crate::atomic;
use crate::error::{Error, Result};
use crate::manifest::Method;
use crate::runtime::HostTensor;
use serde::Serialize;
use std::path::Path;
use tokenizers::Tokenizer;

/// The file in a run's folder.
pub const FILE: &str = "tokens.json";

/// How many samples are kept, and how many tokens of each.
const SAMPLES: usize = 3;
const LENGTH: usize = 1024;

/// Tokens whose masking probability t_i lies in one tenth of (0, 1].
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Bin {
    tokens: u64,
    /// The sum of their t_i: what masking should come to.
    rate: f64,
    masked: u64,
}

/// A token of an answer or of its prompt.
#[derive(Clone, Debug, Serialize)]
struct Token {
    text: String,
    answer: bool,
    /// H_i in nats, where the method measures it.
    entropy: Option<f64>,
    /// -log p of the token in the entropy pass, where the method measures that.
    #[serde(skip_serializing_if = "Option::is_none")]
    surprise: Option<f64>,
    /// What the method makes of it.
    beta: Option<f64>,
    /// t_i, where the token may be masked.
    rate: Option<f64>,
    masked: bool,
    /// The cross-entropy of a masked token.
    loss: Option<f64>,
    /// What that is multiplied by in the loss, or would be if the token were masked.
    weight: Option<f64>,
}

/// What is kept while a run goes on.
#[derive(Debug, Default, Serialize)]
pub struct Tokens {
    bins: [Bin; 10],
    /// Of the last step that had diagnostics.
    step: u64,
    samples: Vec<Vec<Token>>,
}

impl Tokens {
    /// Takes the diagnostics of a step, those of its last micro-batch.
    pub fn step(
        &mut self,
        step: u64,
        result: &StepResult,
        batch: &Batch,
        dataset: &Dataset,
        text: &Text,
        method: &Method,
    ) {
        let column = |name: &str| result.diagnostics.get(name).map(HostTensor::to_f64);
        let (Some(rate), Some(mask)) = (column("mask_rate"), column("mask")) else { return };
        let (entropy, surprise, loss) = (column("entropy"), column("nll"), column("token_loss"));
        let measured = entropy.as_ref().or(surprise.as_ref());
        let transformed = || measured?.iter().map(|h| token_weight::beta(method, *h)).collect::<Option<Vec<_>>>();
        let beta = column("beta").or_else(transformed);
        let length = batch.length();
        let answers = |rows: std::ops::Range<usize>| {
            let answers = batch.answer.to_f64();
            let of = |k: &usize| answers[*k] != 0.0;
            let all: Vec<f64> =
                (rows.start * length..rows.end * length).filter(of).filter_map(|k| Some(beta.as_ref()?[k])).collect();
            all.iter().sum::<f64>() / all.len().max(1) as f64
        };
        (self.step, self.samples) = (step, Vec::new());
        for (row, index) in batch.samples.iter().enumerate() {
            let sample = &dataset.samples[*index];
            let at = |p: usize| row * length + p;
            for p in sample.prompt..sample.total {
                let Some(bin) = self.bins.get_mut(((rate[at(p)] * 10.0) as usize).min(9)) else { continue };
                bin.tokens += 1;
                bin.rate += rate[at(p)];
                bin.masked += u64::from(mask[at(p)] != 0.0);
            }
            if row >= SAMPLES {
                continue;
            }
            let here = at(0)..at(length);
            let pooled = if token_weight::pools_batch(method) { 0..batch.samples.len() } else { row..row + 1 };
            let of_row = token_weight::Row {
                rate: &rate[here.clone()],
                mask: &mask[here.clone()],
                beta: beta.as_ref().map(|b| &b[here.clone()]),
                beta_ref: answers(pooled),
                loss: loss.as_ref().map(|l| &l[here.clone()]),
            };
            let token = |p: usize| {
                let answer = p >= sample.prompt;
                let masked = answer && mask[at(p)] != 0.0;
                Token {
                    text: text.of(sample.tokens[p]),
                    answer,
                    entropy: entropy.as_ref().filter(|_| answer).map(|e| e[at(p)]),
                    surprise: surprise.as_ref().filter(|_| answer).map(|s| s[at(p)]),
                    beta: beta.as_ref().filter(|_| answer).map(|b| b[at(p)]),
                    rate: answer.then(|| rate[at(p)]),
                    masked,
                    loss: loss.as_ref().filter(|_| masked).map(|l| l[at(p)]),
                    weight: token_weight::weight(method, &of_row, p).filter(|_| answer),
                }
            };
            self.samples.push((0..sample.total.min(LENGTH)).map(token).collect());
        }
    }

    /// Writes the file, unless no step had diagnostics.
    ///
    /// # Errors
    /// `Io`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        if self.step == 0 {
            return Ok(());
        }
        let json = serde_json::to_string(self).map_err(|e| Error::internal("run", e.to_string()))?;
        atomic::write(&folder.join(FILE), |file| writeln!(file, "{json}"))
    }
}

/// The text of single tokens; without a tokenizer their ids.
pub struct Text<'a>(pub Option<&'a Tokenizer>);

impl Text<'_> {
    fn of(&self, id: i64) -> String {
        let decoded = self.0.zip(u32::try_from(id).ok()).and_then(|(t, id)| t.decode(&[id], false).ok());
        decoded.filter(|text| !text.is_empty()).unwrap_or_else(|| format!("{id} "))
    }
}
