//! A model in a session, ready to decode.

use super::{Decoding, Watch, decode_watched};
use crate::error::{Error, Problem, Result};
use crate::ir::DType;
use crate::runtime::{HostTensor, Options, Session};
use std::path::Path;

/// An ONNX language model: tokens `[batch, len]` in, logits `[batch, len, vocabulary]` out.
pub struct Model {
    session: Session,
    token_input: String,
    logits_output: String,
    /// The batch and the length that the model was exported for, where it has but one.
    rows: Option<usize>,
    length: Option<usize>,
    /// Fills rows up to `length`.
    pub pad_id: i64,
}

impl Model {
    /// Opens a model whose only input is its tokens, besides an attention mask, positions or segments.
    ///
    /// The tokens are `input_ids` or else the first integer input of two dimensions, the logits `logits` or else the
    /// first output of three.
    ///
    /// # Errors
    /// All inputs that weftc cannot feed, and no such input or output, at once.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        Self::new(Session::open(path, options)?, path)
    }

    /// A model given as bytes; external data is looked up in `options.folder`.
    ///
    /// # Errors
    /// As `open`; `path` is what they name.
    pub fn from_bytes(bytes: &[u8], path: &Path, options: &Options) -> Result<Self> {
        Self::new(Session::from_bytes(bytes, options)?, path)
    }

    fn new(session: Session, path: &Path) -> Result<Self> {
        let integer = |d: Option<DType>| matches!(d, Some(DType::I64 | DType::I32));
        let tokens =
            session.inputs().iter().find(|p| p.name == "input_ids").or_else(|| {
                session.inputs().iter().find(|p| integer(p.dtype) && p.shape.len() == 2 && !is_known(&p.name))
            });
        let token_input = tokens.map(|p| p.name.clone()).unwrap_or_default();
        let float = |d: Option<DType>| d.is_some_and(|d| d.is_float());
        let of_three = || session.outputs().iter().filter(|p| p.shape.len() == 3 && float(p.dtype));
        let logits = of_three().find(|p| p.name == "logits").or_else(|| of_three().next());
        let mut problems: Vec<Problem> = session
            .inputs()
            .iter()
            .filter(|p| p.name != token_input && !is_known(&p.name))
            .map(|p| {
                Problem::new(p.name.clone(), "no value is known for this input")
                    .help("--input NAME=NUMBER fixes one that is a number, as when the model was trained")
            })
            .collect();
        if tokens.is_none_or(|p| !integer(p.dtype) || p.shape.len() != 2) {
            problems.push(
                Problem::new(token_input.clone(), "no input is tokens [batch, length] of int64 or int32")
                    .help("generate and eval want the model, not its training graph"),
            );
        }
        let size = |axis: usize| {
            let sizes = [tokens.and_then(|p| p.shape.get(axis)), logits.and_then(|p| p.shape.get(axis))];
            sizes.into_iter().flatten().find_map(|n| usize::try_from(*n).ok())
        };
        let (rows, length) = (size(0), size(1));
        match logits.map(|p| p.name.clone()) {
            Some(logits_output) if problems.is_empty() => {
                Ok(Model { session, token_input, logits_output, rows, length, pad_id: 0 })
            }
            found => {
                if found.is_none() {
                    problems.push(Problem::new("outputs", "none is logits [batch, length, vocabulary]"));
                }
                Err(Error::Model { model: path.to_path_buf(), problems })
            }
        }
    }

    /// The length that the model was exported for, where it has but one.
    pub fn length(&self) -> Option<usize> {
        self.length
    }

    /// The logits `[batch, len, vocabulary]` of `tokens` `[batch, len]`, all of which the model is to see.
    ///
    /// A model of one length or batch size is fed padding on the right, as in training.
    ///
    /// # Errors
    /// More tokens than the model's length; failures of the runtime.
    pub fn logits(&mut self, tokens: &[i64], batch: usize, len: usize) -> Result<Vec<f32>> {
        let full = self.length.unwrap_or(len);
        if full < len {
            let problem = Problem::new("length", format!("{len} tokens do not fit a model exported for {full}"));
            return Err(Error::usage(problem.help("shorten prompt or answer, or export with a dynamic length")));
        }
        let rows = self.rows.unwrap_or(batch).max(1);
        if full == len && rows == batch {
            return self.call(tokens, batch, len, len);
        }
        let mut logits = Vec::new();
        for part in tokens.chunks(rows * len.max(1)) {
            let mut padded = vec![self.pad_id; rows * full];
            for (row, tokens) in part.chunks(len).enumerate() {
                padded[row * full..][..len].copy_from_slice(tokens);
            }
            let z = self.call(&padded, rows, full, len)?;
            let vocab = z.len() / (rows * full).max(1);
            for row in 0..part.len() / len {
                logits.extend_from_slice(&z[row * full * vocab..][..len * vocab]);
            }
        }
        Ok(logits)
    }

    /// One call on `[batch, len]`, of which the first `real` tokens of a row are no padding.
    fn call(&mut self, tokens: &[i64], batch: usize, len: usize, real: usize) -> Result<Vec<f32>> {
        let shape = [batch as i64, len as i64];
        let mut feeds = Vec::new();
        for port in self.session.inputs() {
            let dtype = port.dtype.unwrap_or(DType::I64);
            let value = if port.name == self.token_input {
                match dtype {
                    DType::I64 => HostTensor::new(&shape, tokens)?,
                    _ => HostTensor::from_f64(dtype, &shape, &tokens.iter().map(|t| *t as f64).collect::<Vec<_>>())?,
                }
            } else {
                // An attention mask may have been exported with all its axes, [batch, 1, queries, keys].
                let square = port.shape.len() == 4;
                let shape = if square { vec![shape[0], 1, shape[1], shape[1]] } else { shape.to_vec() };
                let rows = if square { batch * len } else { batch };
                HostTensor::from_f64(dtype, &shape, &extra(&port.name, rows, len, real))?
            };
            feeds.push((port.name.clone(), value));
        }
        let outputs = self.session.run(feeds.iter().map(|(name, value)| (name.as_str(), value)));
        let mut outputs = outputs.map_err(|e| match e {
            Error::Runtime { message, help: None } => {
                let largest = tokens.iter().max().copied().unwrap_or_default();
                let help = format!(
                    "does the model take {len} tokens (prompt and answer; --length), and has its vocabulary token {largest}?"
                );
                Error::Runtime { message, help: Some(help) }
            }
            other => other,
        })?;
        let logits = outputs.swap_remove(&self.logits_output);
        let logits = logits.ok_or_else(|| Error::runtime(format!("the model has no output {}", self.logits_output)))?;
        match logits.dtype() {
            DType::F32 => logits.values(),
            _ => Ok(logits.to_f64().into_iter().map(|z| z as f32).collect()),
        }
    }

    /// Fills the masked positions of `tokens` `[batch, len]`.
    ///
    /// # Errors
    /// As `decode` and `logits`.
    pub fn decode(&mut self, tokens: &[i64], len: usize, decoding: &Decoding) -> Result<Vec<i64>> {
        self.decode_watched(tokens, len, decoding, &mut |_| Ok(()))
    }

    /// `decode`, telling `watch` after each step.
    ///
    /// # Errors
    /// As `decode`, and whatever `watch` returns.
    pub fn decode_watched(
        &mut self,
        tokens: &[i64],
        len: usize,
        decoding: &Decoding,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<i64>> {
        decode_watched(&mut |tokens, batch, len| self.logits(tokens, batch, len), tokens, len, decoding, watch)
    }
}

fn is_known(name: &str) -> bool {
    matches!(name, "attention_mask" | "position_ids" | "token_type_ids")
}

/// What is fed beside the tokens of `rows` rows, the first `real` of which are no padding.
fn extra(name: &str, rows: usize, len: usize, real: usize) -> Vec<f64> {
    let value = |k: usize| match name {
        "attention_mask" => f64::from(u8::from(k % len < real)),
        "position_ids" => (k % len) as f64,
        _ => 0.0,
    };
    (0..rows * len).map(value).collect()
}
