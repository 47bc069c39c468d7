//! The optimizer's algorithm and numbers: hyper-parameters, schedule, clipping.

use crate::error::{Error, Problem, Result};
use crate::onnx::train_file::Function;
use serde::{Deserialize, Serialize};

/// An algorithm and its own numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Algorithm {
    /// Decoupled weight decay, PyTorch's definition (Loshchilov and Hutter 2019, arXiv 1711.05101).
    AdamW { beta1: f64, beta2: f64, eps: f64 },
    /// Momentum without dampening, PyTorch's definition: weight decay is part of the gradient.
    Sgd { momentum: f64, nesterov: bool },
}

/// The algorithm as a flag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    #[value(name = "adamw")]
    AdamW,
    Sgd,
}

/// What turns gradients into updates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    pub algorithm: Algorithm,
    pub lr: f64,
    pub weight_decay: f64,
    /// The largest Euclidean norm of the gradient; none where `None`.
    pub clip: Option<f64>,
}

impl Default for Optimizer {
    fn default() -> Self {
        let algorithm = Algorithm::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
        Optimizer { algorithm, lr: 1e-5, weight_decay: 0.1, clip: Some(1.0) }
    }
}

impl Optimizer {
    /// The function of train.onnx that updates a parameter.
    pub fn function(&self) -> &'static Function {
        match self.algorithm {
            Algorithm::AdamW { .. } => &Function::ADAMW,
            Algorithm::Sgd { .. } => &Function::SGD,
        }
    }

    /// The function's scalars in their order, for the update `step`, from 1, of gradients that are to be multiplied
    /// by `grad_scale`.
    pub fn scalars(&self, step: u64, grad_scale: f64) -> Vec<f64> {
        let (lr, decay) = (self.lr, self.weight_decay);
        match self.algorithm {
            Algorithm::AdamW { beta1, beta2, eps } => vec![lr, decay, beta1, beta2, eps, step as f64, grad_scale],
            Algorithm::Sgd { momentum, nesterov } => {
                vec![lr, decay, momentum, f64::from(u8::from(nesterov)), grad_scale]
            }
        }
    }

    /// Refuses values outside their range, all in one error.
    pub fn check(&self) -> Result<()> {
        let not = |ok: bool, flag: &str, what: &str, value: f64| {
            (!ok).then(|| Problem::new(flag, format!("{value} is not {what}")))
        };
        let finite = |x: f64| x.is_finite() && x >= 0.0;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let clip = self.clip.unwrap_or(1.0);
        let own = match self.algorithm {
            Algorithm::AdamW { beta1, beta2, eps } => [
                not(unit(beta1), "--beta1", "in [0, 1)", beta1),
                not(unit(beta2), "--beta2", "in [0, 1)", beta2),
                not(finite(eps), "--adam-eps", "a number from 0", eps),
            ],
            Algorithm::Sgd { momentum, nesterov } => [
                not(unit(momentum), "--momentum", "in [0, 1)", momentum),
                (nesterov && momentum == 0.0)
                    .then(|| Problem::new("--nesterov", "there is no momentum to look ahead by")),
                None,
            ],
        };
        let common = [
            not(finite(self.lr), "--lr", "a number from 0", self.lr),
            not(finite(self.weight_decay), "--weight-decay", "a number from 0", self.weight_decay),
            not(finite(clip) && clip > 0.0, "--clip", "a number above 0", clip),
        ];
        let problems: Vec<Problem> = common.into_iter().chain(own).flatten().collect();
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
        let optimizer = Optimizer { clip: Some(1.0), ..Optimizer::default() };
        assert_eq!(optimizer.grad_scale(4.0, 2.0), 1.0 / (2.0 + 1e-6) / 2.0);
        assert_eq!(optimizer.grad_scale(0.5, 2.0), 0.5);
        assert_eq!(Optimizer { clip: None, ..optimizer }.grad_scale(4.0, 2.0), 0.5);
    }

    #[test]
    fn bad_values_are_all_reported() {
        let text = Optimizer {
            lr: f64::NAN,
            algorithm: Algorithm::AdamW { beta1: 0.9, beta2: 1.0, eps: 1e-8 },
            clip: Some(0.0),
            ..Optimizer::default()
        }
        .check()
        .unwrap_err()
        .to_string();
        assert!(["--lr", "--beta2", "--clip"].iter().all(|f| text.contains(f)) && !text.contains("--beta1"), "{text}");
    }

    #[test]
    fn nesterov_needs_momentum() {
        let algorithm = Algorithm::Sgd { momentum: 0.0, nesterov: true };
        let text = Optimizer { algorithm, ..Optimizer::default() }.check().unwrap_err().to_string();
        assert!(text.contains("--nesterov"), "{text}");
    }

    #[test]
    fn schedules() {
        let of = |s: Schedule| (0..6).map(|k| s.factor(k, 6, 2)).collect::<Vec<_>>();
        assert_eq!(of(Schedule::Constant), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(of(Schedule::Linear), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
        assert!((of(Schedule::Cosine)[4] - 0.5).abs() < 1e-12);
    }
}
