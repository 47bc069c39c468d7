//! Attention of opset 23 and later as the composites `attention` and `attention_bias`.

use super::index::positions;
use crate::error::Problem;
use crate::ir::graph::Id;
use crate::ir::{DType, Dim, F64, Lit, Op};
use crate::onnx::build::{Build, Value};
use crate::onnx::call::{Call, Read};

pub fn attention(b: &mut Build, call: &Call) -> Read {
    if (4..7).any(|k| call.get(k).is_some()) || call.outputs > 1 {
        let help = "export without a key-value cache (use_cache=False): training runs whole sequences";
        return Err(Problem::new("", "key-value caches and score results are not supported").help(help));
    }
    let x = call.node(b, 0)?;
    let rank = b.shape(x).len();
    let [q, k, v] = [(0, "q_num_heads"), (1, "kv_num_heads"), (2, "kv_num_heads")].map(|(at, count)| {
        let x = call.node(b, at)?;
        heads(b, x, call.int(count).ok_or_else(|| format!("attribute {count} is missing")))
    });
    let (q, k, v) = (q?, k?, v?);
    let (rows, columns) = (b.shape(q)[2].clone(), b.shape(k)[2].clone());
    let dtype = b.ty(q)?.dtype;
    let softcap = call.float_or("softcap", 0.0);
    let least = masked(dtype, softcap);
    let mask = match call.optional(b, 3)? {
        Some(mask) if b.ty(mask)?.dtype == DType::Bool => Some(additive(b, mask, dtype, least)?),
        other => other,
    };
    let window = |name| call.int(name).filter(|n| *n >= 0);
    let high = if call.int_or("is_causal", 0) != 0 { Some(0) } else { window("right_window_size") };
    let more = banded(b, dtype, [&rows, &columns], [window("left_window_size").map(|n| -n), high], least)?;
    let scores =
        Scores { scale: call.float("scale"), bias: summed(b, mask, more)?, softcap: call.float_or("softcap", 0.0) };
    let mut y = attend(b, [q, k, v], scores)?;
    if rank == 3 {
        y = joined(b, y)?;
    }
    Ok(vec![Value::Node(y)])
}

/// What happens to the scores before the softmax.
pub struct Scores {
    /// `None`: one over the root of the width.
    pub scale: Option<f64>,
    pub bias: Option<Id>,
    /// 0: none.
    pub softcap: f64,
}

/// Attention of q `[B, H, Lq, D]`, k and v `[B, H', Lk, D]`, where H' divides H.
pub fn attend(b: &mut Build, [q, k, v]: [Id; 3], scores: Scores) -> Result<Id, String> {
    let of_q = b.shape(q);
    let (k, v) = (repeated(b, k, &of_q[1])?, repeated(b, v, &of_q[1])?);
    let scale = match (scores.scale, of_q[3].known()) {
        (Some(scale), _) => scale,
        (None, Some(width)) => 1.0 / (width as f64).sqrt(),
        (None, None) => return Err("the width of a head must be known".into()),
    };
    match (scores.bias, scores.softcap != 0.0) {
        (None, false) => b.op(Op::Attention, &[q, k, v], &[Lit::Float(F64(scale))]),
        (Some(bias), false) => b.op(Op::AttentionBias, &[q, k, v, bias], &[Lit::Float(F64(scale))]),
        (bias, true) => capped(b, [q, k, v], bias, scale, scores.softcap),
    }
}

/// `[B, L, H D]` as `[B, H, L, D]`; what has four axes is so already.
pub fn heads(b: &mut Build, x: Id, count: Result<i64, String>) -> Result<Id, String> {
    let dims = b.shape(x);
    match dims.as_slice() {
        [_, _, _, _] => Ok(x),
        [batch, length, hidden] => {
            let heads = Dim::Known(count?);
            let width = hidden.div_exact(&heads).ok_or(format!("width {hidden} does not divide into {heads} heads"))?;
            let split = b.reshape(x, &[batch.clone(), length.clone(), heads, width])?;
            b.transpose(split, &[0, 2, 1, 3])
        }
        _ => Err("operands need rank 3 or 4".into()),
    }
}

/// `[B, H, L, D]` as `[B, L, H D]`.
pub fn joined(b: &mut Build, y: Id) -> Result<Id, String> {
    let [batch, heads, length, width] = <[Dim; 4]>::try_from(b.shape(y)).map_err(|_| "needs rank 4")?;
    let y = b.transpose(y, &[0, 2, 1, 3])?;
    b.reshape(y, &[batch, length, heads * width])
}

/// Grouped queries: every key head is repeated for the queries that share it.
fn repeated(b: &mut Build, x: Id, to: &Dim) -> Result<Id, String> {
    let [batch, heads, length, width] = <[Dim; 4]>::try_from(b.shape(x)).map_err(|_| "operands need rank 4")?;
    if heads == *to {
        return Ok(x);
    }
    let times = to.div_exact(&heads).ok_or(format!("{to} query heads do not share {heads} key heads"))?;
    let split = [batch.clone(), heads.clone(), Dim::Known(1), length.clone(), width.clone()];
    let wide = [batch.clone(), heads, times, length.clone(), width.clone()];
    let x = b.reshape(x, &split)?;
    let x = b.expand(x, &wide)?;
    b.reshape(x, &[batch, to.clone(), length, width])
}

/// The sum of two biases, if there are any.
pub fn summed(b: &mut Build, x: Option<Id>, y: Option<Id>) -> Result<Option<Id>, String> {
    match (x, y) {
        (Some(x), Some(y)) => b.op(Op::Add, &[x, y], &[]).map(Some),
        (x, y) => Ok(x.or(y)),
    }
}

/// The bias that allows columns from `row + low` to `row + high` only, where these are given.
pub fn banded(
    b: &mut Build,
    dtype: DType,
    [rows, columns]: [&Dim; 2],
    [low, high]: [Option<i64>; 2],
    least: f64,
) -> Result<Option<Id>, String> {
    let mut bias = None;
    for (limit, compare) in [(high, Op::LessEqual), (low, Op::GreaterEqual)] {
        let Some(limit) = limit else { continue };
        let (mut row, column) = positions(b, rows, columns)?;
        if limit != 0 {
            let limit = b.lit_int(Dim::Known(limit))?;
            row = b.op(Op::Add, &[row, limit], &[])?;
        }
        let allowed = b.op(compare, &[column, row], &[])?;
        let more = additive(b, allowed, dtype, least)?;
        bias = summed(b, bias, Some(more))?;
    }
    Ok(bias)
}

/// 0 where allowed, else `least`.
fn additive(b: &mut Build, allowed: Id, dtype: DType, least: f64) -> Result<Id, String> {
    let zero = b.full(0.0, dtype, &[])?;
    let least = b.float(least)?;
    b.op(Op::Where, &[allowed, zero, least], &[])
}

/// What a score that is not allowed becomes.
///
/// The composites give 0 for a row that allows nothing (all -inf), as ONNX wants; the softmax that is spelled out
/// under a cap would give NaN, so there it is the least finite number.
pub fn masked(dtype: DType, softcap: f64) -> f64 {
    match dtype {
        _ if softcap == 0.0 => f64::NEG_INFINITY,
        DType::F16 => f64::from(half::f16::MIN),
        DType::BF16 => f64::from(half::bf16::MIN),
        _ => f64::from(f32::MIN),
    }
}

/// `softmax(cap tanh(scale q k^T / cap) + bias) v`.
fn capped(b: &mut Build, [q, k, v]: [Id; 3], bias: Option<Id>, scale: f64, cap: f64) -> Result<Id, String> {
    let turned = b.swap_last(k)?;
    let scores = b.op(Op::MatMul, &[q, turned], &[])?;
    let (inner, outer) = (b.float(scale / cap)?, b.float(cap)?);
    let small = b.op(Op::Mul, &[scores, inner], &[])?;
    let bent = b.op(Op::Tanh, &[small], &[])?;
    let mut scores = b.op(Op::Mul, &[bent, outer], &[])?;
    if let Some(bias) = bias {
        scores = b.op(Op::Add, &[scores, bias], &[])?;
    }
    let probabilities = b.op(Op::Softmax, &[scores], &[Lit::Int(Dim::Known(-1))])?;
    b.op(Op::MatMul, &[probabilities, v], &[])
}
