//! The model itself with the parameters of a run, read where they lie: what it answers between two steps.

use super::batch::Batch;
use super::trainer::Trainer;
use crate::error::{Error, Problem, Result};
use crate::ir::{DType, Graph};
use crate::onnx::train_file::parts::Part;
use crate::runtime::HostTensor;
use std::path::PathBuf;

/// A model whose inputs are tokens and what a run trains, and whose only output are logits.
pub struct Forward {
    pub graph: Graph,
    /// The graph as an ONNX file.
    pub part: Part,
    /// Where its external data lies.
    pub folder: PathBuf,
}

/// Runs a [`Forward`] on feeds by name: logits `[batch, length, vocabulary]` in the model's type.
pub type Call<'a> = Box<dyn FnMut(&[(String, HostTensor)]) -> Result<HostTensor> + 'a>;

/// Tokens `[batch, len]` to logits `[batch, len, vocabulary]`, both row by row.
pub type Logits<'a> = Box<dyn FnMut(&[i64], usize, usize) -> Result<Vec<f32>> + 'a>;

impl Trainer {
    /// The logits of `forward` with the present parameters, which are neither copied nor changed.  A graph of one batch
    /// size or length is fed padding, as in training.
    ///
    /// # Errors
    /// Where the model cannot be opened or does not take the parameters.
    pub fn logits<'a>(&'a self, forward: &'a Forward, pad_id: i64) -> Result<Logits<'a>> {
        let mut call = self.engine.open(forward)?;
        let shape = self.shape();
        Ok(Box::new(move |tokens, batch, len| {
            let full = shape.length.unwrap_or(len);
            if full < len {
                let message = format!("{len} tokens do not fit a graph that was exported for {full}");
                return Err(Error::usage(Problem::new("length", message)));
            }
            let rows = shape.rows.unwrap_or(batch).max(1);
            let mut logits = Vec::new();
            for part in tokens.chunks(rows * len.max(1)) {
                let (mut padded, mut real) = (vec![pad_id; rows * full], vec![false; rows * full]);
                for (row, tokens) in part.chunks(len).enumerate() {
                    padded[row * full..][..len].copy_from_slice(tokens);
                    real[row * full..][..len].fill(true);
                }
                let z = call(&self.plain_feeds(forward, &padded, &real, [rows, full])?)?;
                let z: Vec<f32> = match z.dtype() {
                    DType::F32 => z.values()?,
                    _ => z.to_f64().into_iter().map(|z| z as f32).collect(),
                };
                let vocab = z.len() / (rows * full).max(1);
                for row in 0..part.len() / len {
                    logits.extend_from_slice(&z[row * full * vocab..][..len * vocab]);
                }
            }
            Ok(logits)
        }))
    }

    /// What `forward` is fed beside parameters.
    fn plain_feeds(
        &self,
        forward: &Forward,
        tokens: &[i64],
        real: &[bool],
        [rows, length]: [usize; 2],
    ) -> Result<Vec<(String, HostTensor)>> {
        let shape = [rows as i64, length as i64];
        let zeros = |n: usize| HostTensor::new(&shape[..n], &vec![0f32; shape[..n].iter().product::<i64>() as usize]);
        let batch = Batch {
            tokens: HostTensor::new(&shape, tokens)?,
            answer: HostTensor::new(&shape, &vec![false; tokens.len()])?,
            t: zeros(1)?,
            u: zeros(2)?,
            real: HostTensor::new(&shape, real)?,
            samples: Vec::new(),
            epoch: 0,
            dropout: None,
            places: None,
        };
        let mut feeds = vec![(self.manifest().token_input.clone(), batch.tokens.clone())];
        for (name, dtype) in self.extras().iter().filter(|(name, _)| forward.graph.find_leaf(name).is_some()) {
            if let Some(value) = batch.extra(name, *dtype) {
                feeds.push((name.clone(), value?));
            }
        }
        Ok(feeds)
    }
}
