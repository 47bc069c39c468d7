//! What a method made of a token: its beta, and the weight of its cross-entropy, recomputed for people from the outputs
//! of a step (METHOD.md's formulas, without the loss's denominator).

use crate::manifest::{Method, Setting};

/// One sequence of a micro-batch, padding included.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// t_i, 0 off the answer.
    pub rate: &'a [f64],
    /// Whether the token was masked.
    pub mask: &'a [f64],
    /// beta_i, where the method has one.
    pub beta: Option<&'a [f64]>,
    /// What the method holds beta against: its mean over the answer of the sequence or of the batch.
    pub beta_ref: f64,
    /// The cross-entropy of masked tokens.
    pub loss: Option<&'a [f64]>,
}

/// beta of an entropy, or of what a method has in its place.
pub fn beta(method: &Method, entropy: f64) -> Option<f64> {
    let h = entropy.max(0.0);
    match method.options.get("entropy_transform")? {
        Setting::Word(word) => match word.as_str() {
            "sqrt" => Some(h.sqrt()),
            "linear" => Some(h),
            "log1p" => Some(h.ln_1p()),
            "pow" => Some(h.powf(number(method, "entropy_power", 1.0))),
            _ => None,
        },
        Setting::Number(_) => None,
    }
}

/// Whether beta_ref is a mean over the batch.
pub fn pools_batch(method: &Method) -> bool {
    matches!(method.options.get("beta_scope"), Some(Setting::Word(scope)) if scope == "batch")
}

/// The weight of the token at `at` of a row, where it is masked; nothing for a method that is not ours, or where the
/// weight exists for masked tokens alone.
pub fn weight(method: &Method, row: &Row, at: usize) -> Option<f64> {
    let power = row.rate.get(at)?.powf(-number(method, "weight_power", 1.0));
    match method.name.as_str() {
        "weft" | "weft-nll" | "sft" => Some(power),
        "sw" if row.beta_ref > 0.0 => Some(power * row.beta?.get(at)? / row.beta_ref),
        "sw" => Some(power),
        "cart" => {
            let p = number(method, "cart_p", 0.1);
            let near = |j: usize| 0.5 * p * (1.0 - p).powf(j.abs_diff(at) as f64 - 1.0);
            let others = (0..row.mask.len()).filter(|j| *j != at && row.mask[*j] == 0.0);
            Some(others.map(near).sum())
        }
        "papl" if row.mask[at] != 0.0 => {
            let (alpha, tau) = (number(method, "papl_alpha", 1.0), number(method, "papl_tau", 1.0));
            let score = |k: usize| -row.loss.map_or(0.0, |l| l[k]) / tau;
            let masked = || (0..row.mask.len()).filter(|k| row.mask[*k] != 0.0);
            let top = masked().map(score).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = masked().map(|k| (score(k) - top).exp()).sum();
            Some(1.0 + alpha * (score(at) - top).exp() / sum)
        }
        _ => None,
    }
}

fn number(method: &Method, name: &str, default: f64) -> f64 {
    match method.options.get(name) {
        Some(Setting::Number(x)) => *x,
        _ => default,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Probe;

    fn method(name: &str, options: &[(&str, Setting)]) -> Method {
        let options = options.iter().map(|(n, v)| (n.to_string(), v.clone())).collect();
        Method {
            name: name.into(),
            mask_id: 0,
            logits_shift: 0,
            excludes_mask: false,
            probe: Probe::EveryStep,
            options,
        }
    }

    fn of(method: &Method, at: usize) -> Option<f64> {
        let row = Row {
            rate: &[0.0, 0.5, 0.25, 0.2],
            mask: &[0.0, 1.0, 0.0, 1.0],
            beta: Some(&[0.0, 1.0, 3.0, 2.0]),
            beta_ref: 2.0,
            loss: Some(&[0.0, 1.0, 0.0, 3.0]),
        };
        weight(method, &row, at)
    }

    #[test]
    fn weights_are_those_of_the_formulas() {
        assert_eq!(of(&method("weft", &[]), 2), Some(4.0));
        assert_eq!(of(&method("sft", &[("weight_power", Setting::Number(0.5))]), 2), Some(2.0));
        assert_eq!(of(&method("sw", &[]), 1), Some(1.0));
        // Unmasked at distances 1 and 1: 0.5 p twice.
        assert_eq!(of(&method("cart", &[("cart_p", Setting::Number(0.2))]), 1), Some(0.2));
        let papl = of(&method("papl", &[("papl_alpha", Setting::Number(2.0))]), 1).unwrap();
        assert!((papl - (1.0 + 2.0 / (1.0 + (-2f64).exp()))).abs() < 1e-12, "{papl}");
        assert_eq!((of(&method("papl", &[]), 2), of(&method("mine", &[]), 1)), (None, None));
    }

    #[test]
    fn beta_is_the_transform_of_the_entropy() {
        let of = |word: &str| {
            let power = ("entropy_power", Setting::Number(2.0));
            beta(&method("weft", &[("entropy_transform", Setting::Word(word.into())), power]), 4.0)
        };
        assert_eq!((of("sqrt"), of("linear"), of("pow")), (Some(2.0), Some(4.0), Some(16.0)));
        assert_eq!(beta(&method("sft", &[]), 4.0), None);
    }
}
