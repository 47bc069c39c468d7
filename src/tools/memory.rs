//! What a training step needs in memory: an estimate from the schedule.

use crate::compile::Compiled;
use crate::cost::predict::Load;
use crate::cost::{Machine, predict};
use crate::error::{Error, Result};
use crate::ir::{Dim, Graph};
use crate::memory::{Fixed, Values};
use serde::Serialize;

/// Batch sizes that are shown.
const BATCHES: [i64; 3] = [1, 4, 8];

/// Lengths that are shown, doubling from the first; the last where the model has no greatest length.
const LENGTHS: (i64, i64) = (128, 4096);

/// Bytes of a training step with AdamW.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// All weights, frozen ones too, and constant tables.
    pub parameters: u64,
    /// One for each trainable number.
    pub gradients: u64,
    /// Two for each trainable number.
    pub moments: u64,
    /// What of gradients and moments belongs to embeddings that are looked up and read nowhere else: rows of words that do
    /// not occur take none of it.
    pub looked_up: u64,
    pub steps: Vec<Step>,
}

/// One micro-batch.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub batch: i64,
    pub length: i64,
    /// Bytes of the values that live at the worst moment, gradients left out.
    pub activations: u64,
    /// With parameters, gradients and moments.
    pub total: u64,
    /// Floating-point operations, for [`Load::typical`].
    pub flops: u64,
}

/// Estimates the memory of a compiled step, for batches and lengths that the model takes.
///
/// Fused nodes count with the values inside their bodies.  Activations are what ONNX Runtime's allocator counts as in use
/// at most (`tests/memory.rs` holds them together); ONNX Runtime itself, the program, and what the allocator holds in
/// reserve come on top.
pub fn estimate(compiled: &Compiled) -> Result<Memory> {
    let values = values(compiled)?;
    let Fixed { parameters, gradients, moments, looked_up } = values.fixed(&compiled.trainable);
    let [batch, length] = tokens(compiled, values.graph())?;
    let batches = batch.known().map_or(BATCHES.to_vec(), |b| vec![b]);
    let lengths = length.known().map_or_else(|| lengths(compiled.most_tokens), |l| vec![l]);
    let step = |b: i64, l: i64| {
        let activations = values.peak(&batch, b, l);
        let total = activations + parameters + gradients + moments;
        let (machine, load) = (Machine::reference(), Load::typical(b, l));
        let told = predict(&compiled.graph, &compiled.manifest.token_input, &compiled.trainable, &machine, load);
        Step { batch: b, length: l, activations, total, flops: told.total().flops }
    };
    let steps = lengths.iter().flat_map(|l| batches.iter().map(move |b| (*b, *l))).map(|(b, l)| step(b, l)).collect();
    Ok(Memory { parameters, gradients, moments, looked_up, steps })
}

/// Bytes of one step of `batch` sequences of `length` tokens: weights, gradients, moments and activations, by the same
/// estimate.
///
/// # Errors
/// Where a fused node has no body.
pub fn total(compiled: &Compiled, batch: i64, length: i64) -> Result<u64> {
    let values = values(compiled)?;
    let [rows, _] = tokens(compiled, values.graph())?;
    Ok(values.fixed(&compiled.trainable).total() + values.peak(&rows, batch, length))
}

fn values(compiled: &Compiled) -> Result<Values> {
    Values::new(&compiled.graph, &compiled.order, compiled.lower_rules(), compiled.kernels())
}

/// The sizes of the token input.
fn tokens(compiled: &Compiled, graph: &Graph) -> Result<[Dim; 2]> {
    let shape = graph.find_leaf(&compiled.manifest.token_input).map(|l| graph.leaf(l).ty.shape.clone());
    shape
        .and_then(|s| s.try_into().ok())
        .ok_or_else(|| Error::internal("inspect", "the tokens are not [batch, length]"))
}

/// Doubling lengths up to the longest.
fn lengths(longest: Option<i64>) -> Vec<i64> {
    let most = longest.unwrap_or(LENGTHS.1);
    let mut lengths: Vec<i64> =
        std::iter::successors(Some(LENGTHS.0), |l| Some(l * 2)).take_while(|l| *l < most).collect();
    lengths.push(most);
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_double_up_to_the_longest() {
        assert_eq!(lengths(Some(600)), [128, 256, 512, 600]);
        assert_eq!(lengths(Some(64)), [64]);
        assert_eq!(lengths(None), [128, 256, 512, 1024, 2048, 4096]);
    }
}
