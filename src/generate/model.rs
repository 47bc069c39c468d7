//! A model in a session, ready to decode.

use super::{Decoding, decode};
use crate::error::{Error, Problem, Result};
use crate::ir::DType;
use crate::runtime::{HostTensor, Options, Session};
use std::path::Path;

/// An ONNX language model: tokens `[batch, len]` int64 in, logits `[batch, len, vocabulary]` f32 out.
pub struct Model {
    session: Session,
    token_input: String,
    logits_output: String,
}

impl Model {
    /// Opens a model whose only input is its tokens, besides an attention mask or positions.
    ///
    /// The logits are the first output of three dimensions, the tokens `input_ids` or else the first input.
    /// Errors: all inputs that weftc cannot feed, and no such output, at once.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let session = Session::open(path, options)?;
        let tokens = session.inputs().iter().find(|p| p.name == "input_ids").or(session.inputs().first());
        let token_input = tokens.map(|p| p.name.clone()).unwrap_or_default();
        let logits = session.outputs().iter().find(|p| p.shape.len() == 3 && p.dtype == Some(DType::F32));
        let mut problems: Vec<Problem> = session
            .inputs()
            .iter()
            .filter(|p| p.name != token_input && extra(&p.name, 1, 1).is_none())
            .map(|p| Problem::new(p.name.clone(), "no value is known for this input"))
            .collect();
        if tokens.is_none_or(|p| p.dtype != Some(DType::I64)) {
            problems.push(Problem::new(token_input.clone(), "the token input is not int64"));
        }
        match logits.map(|p| p.name.clone()) {
            Some(logits_output) if problems.is_empty() => Ok(Model { session, token_input, logits_output }),
            found => {
                if found.is_none() {
                    problems.push(Problem::new("outputs", "none is f32 logits [batch, length, vocabulary]"));
                }
                Err(Error::Model { model: path.to_path_buf(), problems })
            }
        }
    }

    /// The logits `[batch, len, vocabulary]` of `tokens` `[batch, len]`.
    pub fn logits(&mut self, tokens: &[i64], batch: usize, len: usize) -> Result<Vec<f32>> {
        let shape = [batch as i64, len as i64];
        let mut feeds = vec![(self.token_input.clone(), HostTensor::new(&shape, tokens)?)];
        for port in self.session.inputs() {
            if let (Some(values), Some(dtype)) = (extra(&port.name, batch, len), port.dtype) {
                feeds.push((port.name.clone(), HostTensor::from_f64(dtype, &shape, &values)?));
            }
        }
        let mut outputs = self.session.run(feeds.iter().map(|(name, value)| (name.as_str(), value)))?;
        let logits = outputs.swap_remove(&self.logits_output);
        logits.ok_or_else(|| Error::runtime(format!("the model has no output {}", self.logits_output)))?.values()
    }

    /// Fills the masked positions of `tokens` `[batch, len]`.
    pub fn decode(&mut self, tokens: &[i64], len: usize, decoding: &Decoding) -> Result<Vec<i64>> {
        decode(&mut |tokens, batch, len| self.logits(tokens, batch, len), tokens, len, decoding)
    }
}

/// What is fed beside the tokens, none of which are padding; `None` where the name says nothing.
fn extra(name: &str, batch: usize, len: usize) -> Option<Vec<f64>> {
    match name {
        "attention_mask" => Some(vec![1.0; batch * len]),
        "position_ids" => Some((0..batch * len).map(|k| (k % len.max(1)) as f64).collect()),
        "token_type_ids" => Some(vec![0.0; batch * len]),
        _ => None,
    }
}
