//! Types of a model's inputs; sizes that differ from run to run get names.

use super::proto::tensor_shape_proto::dimension;
use super::proto::{ValueInfoProto, type_proto};
use crate::ir::{Dim, TensorType};
use std::collections::BTreeMap;

/// The names given so far: equal names in the file are one size, different ones stay different.
#[derive(Default)]
pub struct Symbols {
    by_source: BTreeMap<String, String>,
}

impl Symbols {
    pub fn type_of(&mut self, input: &ValueInfoProto) -> Result<TensorType, String> {
        let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
            return Err("only tensors are supported as inputs".into());
        };
        let dtype = super::tensor::dtype(tensor.elem_type)?;
        let shape = tensor.shape.as_ref().ok_or("the input has no shape")?;
        let dims = shape.dim.iter().enumerate().map(|(axis, dim)| match &dim.value {
            Some(dimension::Value::DimValue(n)) if *n > 0 => Dim::Known(*n),
            Some(dimension::Value::DimParam(name)) if !name.trim().is_empty() => self.named(name.trim()),
            _ => self.named(&format!("{}_{axis}", input.name)),
        });
        Ok(TensorType::new(dtype, dims.collect::<Vec<_>>()))
    }

    /// `2*seq + 1` stays arithmetic; any other text becomes a word.
    fn named(&mut self, text: &str) -> Dim {
        let arithmetic = text.contains(['+', '-', '*']);
        let compact: String = text.chars().filter(|c| !arithmetic || !c.is_whitespace()).collect();
        if !compact.contains('.')
            && let Some(dim) = Dim::parse(&compact)
        {
            for symbol in dim.symbols() {
                self.by_source.entry(symbol.as_str().into()).or_insert_with(|| symbol.as_str().into());
            }
            return dim;
        }
        if let Some(word) = self.by_source.get(text) {
            return Dim::sym(word);
        }
        let mut word: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if !word.starts_with(|c: char| c.is_ascii_alphabetic()) {
            word.insert_str(0, "d_");
        }
        while self.by_source.values().any(|w| *w == word) {
            word.push('_');
        }
        self.by_source.insert(text.into(), word.clone());
        Dim::sym(&word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_words_and_stay_apart() {
        let mut symbols = Symbols::default();
        let mut name = |text: &str| symbols.named(text).to_string();
        assert_eq!(name("batch"), "batch");
        assert_eq!(name("seq + 1"), "seq+1");
        assert_eq!(name("a b"), "a_b");
        assert_eq!(name("a-.b"), "a__b");
        assert_eq!(name("a/b"), "a_b_");
        assert_eq!(name("a b"), "a_b");
        assert_eq!(name("::7"), "d___7");
    }
}
