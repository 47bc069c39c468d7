//! What to do about an operator that is not read: the nearest form that is, and where support would go.

use super::ops;
use strsim::levenshtein;

/// Operators that models do have and how they are written in operators that are read.
const FORMS: &[(&str, &str)] = &[
    ("Bernoulli", "export in evaluation mode: randomness is an input of the training step"),
    ("ConvTranspose", "nothing that language models do; Conv along one axis is read"),
    ("DynamicQuantizeLinear", "export the model before quantization: quantized weights have no gradient"),
    ("Erfc", "ONNX has no such operator: tf2onnx leaves TensorFlow's in the file; its tanh form of GELU is read"),
    ("GroupNormalization", "LayerNormalization over a Reshape is read"),
    ("InstanceNormalization", "LayerNormalization over a Reshape is read"),
    ("MatMulInteger", "export the model before quantization: quantized weights have no gradient"),
    ("Multinomial", "choosing tokens belongs after the model: export up to the logits"),
    ("MatMulBnb4", "export the model before quantization: quantized weights have no gradient"),
    ("NonMaxSuppression", "choosing among results belongs after the model: export up to the logits"),
    ("QuantizeLinear", "export the model before quantization: quantized weights have no gradient"),
    ("RandomNormal", "export in evaluation mode: randomness is an input of the training step"),
    ("RandomNormalLike", "export in evaluation mode: randomness is an input of the training step"),
    ("RandomUniform", "export in evaluation mode: randomness is an input of the training step"),
    ("RandomUniformLike", "export in evaluation mode: randomness is an input of the training step"),
    ("Round", "Floor and Ceil are read"),
];

/// Help for operator `name` of `domain` (empty: ONNX's own).
pub fn help(domain: &str, name: &str) -> String {
    if name.is_empty() {
        return "the file is damaged; export the model again".into();
    }
    let own = matches!(domain, "" | "ai.onnx" | "com.microsoft");
    if let Some(slip) = nearest(name).filter(|_| own) {
        return format!("the nearest operator that is read is {slip}");
    }
    let known = FORMS.iter().find(|(n, _)| *n == name).map(|(_, form)| form.to_string());
    let form = known.unwrap_or_else(|| match own {
        true => "nothing that is read comes near; if the model can do without it, export in evaluation mode".into(),
        false => "a custom operator needs a function of its domain in the file (ONNX model-local function)".into(),
    });
    format!(
        "{form}; to support it: a row in src/onnx/ops/mod.rs, and for an operator that the IR lacks a row in \
         src/ir/op.rs and its gradient `(vjp ({} ..) => ..)` in rules/grad.egg",
        snake(name)
    )
}

/// The operator whose name is a slip of the pen away.
fn nearest(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    // A hostile file's name may be long.
    let near = ops::names().filter(|n| n.len().abs_diff(name.len()) <= 4);
    let (far, best) = near.map(|n| (levenshtein(&lower, &n.to_lowercase()), n)).min()?;
    (far <= name.len() / 4).then_some(best)
}

/// `NonZero` as the IR would call it: `non_zero`.
fn snake(name: &str) -> String {
    let mut out = String::new();
    for (k, c) in name.chars().take(60).enumerate() {
        if c.is_ascii_uppercase() && k > 0 && !out.ends_with('_') {
            out.push('_');
        }
        out.push(if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_operator() {
        assert_eq!(nearest("SoftMax"), Some("Softmax"));
        assert_eq!(nearest("LayerNormalisation"), Some("LayerNormalization"));
        assert_eq!(nearest("Mystery"), None);
        assert_eq!(snake("NonZero"), "non_zero");
    }

    /// A hint for an operator that is read by now would never be shown.
    #[test]
    fn hints_are_for_operators_that_are_not_read() {
        let stale: Vec<_> = FORMS.iter().filter(|(n, _)| ops::names().any(|read| read == *n)).collect();
        assert!(stale.is_empty(), "{stale:?}");
    }
}
