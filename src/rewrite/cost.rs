//! What a node costs: an integer estimate of the time it takes, in bytes of memory traffic.

use crate::ir::graph::ROWS;
use crate::ir::op::Cost;
use crate::ir::{Dim, Op, Type};

/// Launching any kernel costs as much as this much traffic; it makes fewer nodes better among equals.
const LAUNCH: u64 = 4096;

/// A node that moves no data still has to be dispatched.
const DISPATCH: u64 = LAUNCH / 8;

/// Multiply-adds that a core does while it moves one byte: some 450 GFLOP/s beside 25 GB/s.
const FLOPS_PER_BYTE: u64 = 16;

/// A batch has some sequences, ...
const BATCH: i64 = 8;

/// ... some of their tokens are looked at by themselves: few enough that these are always fewer than all, ...
const TAKEN: i64 = 32;

/// ... and every other unknown size is a length in tokens.
const LENGTH: i64 = 512;

/// The cost of one node; `None` for what only a definition may use and no graph may keep.
pub(super) fn cost(op: Op, children: &[&Type], result: &Type) -> Option<u64> {
    let read: u64 = children.iter().map(|t| bytes(t)).fold(0, u64::saturating_add);
    let written = bytes(result);
    let work = match op {
        Op::Objective | Op::Adapted => return None,
        Op::Tuple => return Some(0),
        // Only the selected elements are read.
        Op::Slice | Op::Gather | Op::TakeRows | Op::GatherElements => written.saturating_mul(2),
        Op::MatMul | Op::Gemm | Op::FusedMatMul | Op::MatMulNBits | Op::Product | Op::ProductAdd => {
            let inner = match (op, children) {
                (Op::Gemm | Op::FusedMatMul | Op::Product, [x, _, trans, ..]) if is_one(trans) => axis(x, 2),
                (Op::ProductAdd, [x, _, _, trans, ..]) if is_one(trans) => axis(x, 2),
                (_, [x, ..]) => axis(x, 1),
                _ => 1,
            };
            let flops = flops(elements(result).saturating_mul(inner));
            // Measured: our own is faster by an eighth and more.
            // Codes are multiplied as they are: the dense weight need not live from the forward part to the backward one.
            let own = match op {
                Op::Product | Op::ProductAdd => flops / 8,
                Op::MatMulNBits => flops / 4,
                _ => 0,
            };
            read.saturating_add(written).saturating_add(flops - own)
        }
        Op::Attention
        | Op::AttentionBias
        | Op::TokenAttention
        | Op::TokenAttentionBias
        | Op::RowAttention
        | Op::RowAttentionBias
        | Op::AttentionProbs
        | Op::AttentionProbsBias => {
            let (q, k) = (children.first()?, children.get(1)?);
            let heads_last =
                !matches!(op, Op::Attention | Op::AttentionBias | Op::AttentionProbs | Op::AttentionProbsBias);
            let keys = axis(k, if heads_last { 3 } else { 2 });
            let scores = elements(q).checked_div(axis(q, 1)).unwrap_or(0).saturating_mul(keys);
            let values = if matches!(op, Op::AttentionProbs | Op::AttentionProbsBias) { 0 } else { axis(result, 1) };
            // The scores are written by the product and once more by the softmax.
            let traffic = scores.saturating_mul(2 * element_size(q));
            let multiply = flops(scores.saturating_mul(axis(q, 1).saturating_add(values)));
            let result = if values > 0 { written } else { 0 };
            read.saturating_add(result).saturating_add(traffic).saturating_add(multiply)
        }
        _ => match op.row().cost {
            Cost::Free => return Some(DISPATCH),
            Cost::Move | Cost::Fused | Cost::Matmul => read.saturating_add(written),
        },
    };
    Some(work.saturating_add(LAUNCH))
}

fn flops(multiply_adds: u64) -> u64 {
    multiply_adds.saturating_mul(2) / FLOPS_PER_BYTE
}

fn is_one(t: &Type) -> bool {
    t.lit().and_then(|l| l.int()).is_some_and(|d| d.is(1))
}

fn size(dim: &Dim) -> u64 {
    let assumed = dim.eval(&|s| match s.as_str() {
        rows if rows.starts_with(ROWS) => Some(TAKEN),
        batch if batch.starts_with("batch") => Some(BATCH),
        _ => Some(LENGTH),
    });
    assumed.and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
}

/// The size of the `k`-th axis from the end, counted from 1.
fn axis(t: &Type, k: usize) -> u64 {
    t.shape().iter().rev().nth(k - 1).map_or(1, size)
}

fn elements(t: &Type) -> u64 {
    t.shape().iter().map(size).fold(1, u64::saturating_mul)
}

fn element_size(t: &Type) -> u64 {
    t.tensor().map_or(0, |t| t.dtype.size() as u64)
}

fn bytes(t: &Type) -> u64 {
    elements(t).saturating_mul(element_size(t))
}
