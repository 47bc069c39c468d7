//! The optimizer's numbers: hyper-parameters, schedule, clipping.

use crate::error::{Error, Problem, Result};
use serde::{Deserialize, Serialize};

/// AdamW (decoupled weight decay, PyTorch's definition).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    pub lr: f64,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// The largest Euclidean norm of the gradient; none where `None`.
    pub clip: Option<f64>,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { lr: 1e-5, weight_decay: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, clip: Some(1.0) }
    }
}

impl AdamW {
    /// Refuses values outside their range, all in one error.
    pub fn check(&self) -> Result<()> {
        let not = |ok: bool, flag: &str, what: &str, value: f64| {
            (!ok).then(|| Problem::new(flag, format!("{value} is not {what}")))
        };
        let finite = |x: f64| x.is_finite() && x >= 0.0;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let clip = self.clip.unwrap_or(1.0);
        let problems: Vec<Problem> = [
            not(finite(self.lr), "--lr", "a number from 0", self.lr),
            not(finite(self.weight_decay), "--weight-decay", "a number from 0", self.weight_decay),
            not(unit(self.beta1), "--beta1", "in [0, 1)", self.beta1),
            not(unit(self.beta2), "--beta2", "in [0, 1)", self.beta2),
            not(finite(self.eps), "--adam-eps", "a number from 0", self.eps),
            not(finite(clip) && clip > 0.0, "--clip", "a number above 0", clip),
        ]
        .into_iter()
        .flatten()
        .collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::Usage { problems }) }
    }

    /// What the summed gradient is multiplied by: 1 / count, and less where its norm exceeds `clip`.
    /// `norm` is the norm of the gradient of `loss_sum`.
    pub fn grad_scale(&self, norm: f64, count: f64) -> f64 {
        let coefficient = self.clip.map_or(1.0, |clip| (clip / (norm / count + 1e-6)).min(1.0));
        coefficient / count
    }
}

/// Which parameters decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Matrices: weights, embeddings, factors of adapters; neither norms nor biases.
    #[default]
    Weights,
    All,
}

impl Decay {
    /// Whether a parameter of this shape decays.
    pub fn includes(self, shape: &[Option<i64>]) -> bool {
        self == Decay::All || shape.len() > 1
    }
}

/// How the learning rate changes over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    #[default]
    Constant,
    /// Down to 0 at the last step.
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
}

impl Schedule {
    /// The factor of the learning rate for step `step` (from 0) of `steps`, after `warmup` steps of linear rise.
    pub fn factor(self, step: u64, steps: u64, warmup: u64) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let done = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => (1.0 - done).max(0.0),
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_is_pytorchs() {
        let adamw = AdamW { clip: Some(1.0), ..AdamW::default() };
        assert_eq!(adamw.grad_scale(4.0, 2.0), 1.0 / (2.0 + 1e-6) / 2.0);
        assert_eq!(adamw.grad_scale(0.5, 2.0), 0.5);
        assert_eq!(AdamW { clip: None, ..adamw }.grad_scale(4.0, 2.0), 0.5);
    }

    #[test]
    fn bad_values_are_all_reported() {
        let text =
            AdamW { lr: f64::NAN, beta2: 1.0, clip: Some(0.0), ..AdamW::default() }.check().unwrap_err().to_string();
        assert!(["--lr", "--beta2", "--clip"].iter().all(|f| text.contains(f)) && !text.contains("--beta1"), "{text}");
    }

    #[test]
    fn schedules() {
        let of = |s: Schedule| (0..6).map(|k| s.factor(k, 6, 2)).collect::<Vec<_>>();
        assert_eq!(of(Schedule::Constant), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(of(Schedule::Linear), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
        assert!((of(Schedule::Cosine)[4] - 0.5).abs() < 1e-12);
    }
}
