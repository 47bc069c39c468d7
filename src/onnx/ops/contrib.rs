//! Attention of ONNX Runtime's domain, as its optimisers fuse it, without a cache.

use super::attention::{Scores, attend, banded, heads, joined, masked, summed};
use super::rotary::{Tables, rotated};
use crate::error::Problem;
use crate::ir::graph::Id;
use crate::ir::{DType, Dim, F64, Lit, Op};
use crate::onnx::build::{Build, Value};
use crate::onnx::call::{Call, Read};

fn cached() -> Problem {
    let help = "export without a key-value cache (use_cache=False): training runs whole sequences";
    Problem::new("", "key-value caches are not supported").help(help)
}

fn count(call: &Call, name: &str) -> Result<i64, String> {
    call.int(name).ok_or_else(|| format!("attribute {name} is missing"))
}

/// A scale of 0 is the default, one over the root of the width.
fn scale(call: &Call) -> Option<f64> {
    call.float("scale").filter(|s| *s != 0.0)
}

/// The result `[B, L, H D]`, and the keys and values that a cache would hold.
fn results(b: &mut Build, [q, k, v]: [Id; 3], scores: Scores) -> Read {
    let y = attend(b, [q, k, v], scores)?;
    Ok(vec![Value::Node(joined(b, y)?), Value::Node(k), Value::Node(v)])
}

/// MultiHeadAttention of queries, keys and values that are not packed.
pub fn multi_head(b: &mut Build, call: &Call) -> Read {
    if (6..call.inputs.len()).any(|k| call.get(k).is_some()) {
        return Err(cached());
    }
    let n = count(call, "num_heads")?;
    let mut parts = [call.node(b, 0)?, call.node(b, 1)?, call.node(b, 2)?];
    if b.shape(parts[0]).len() != 3 {
        return Err("packed queries, keys and values are not supported".into());
    }
    if let Some(bias) = call.optional(b, 3)? {
        // One vector: of the queries, the keys, the values.
        let mut start = Dim::Known(0);
        for part in &mut parts {
            let width = b.shape(*part).last().cloned().unwrap_or(Dim::Known(0));
            let end = start + width.clone();
            let own = b.slice(bias, 0, end.clone() - width, end.clone(), 1)?;
            *part = b.op(Op::Add, &[*part, own], &[])?;
            start = end;
        }
    }
    attention_of(b, call, parts, n, [4, 5])
}

/// Attention with a projection of its own: `x w + bias` holds queries, keys and values side by side.
pub fn attention(b: &mut Build, call: &Call) -> Read {
    if (6..call.inputs.len()).chain([4]).any(|k| call.get(k).is_some())
        || call.int_or("past_present_share_buffer", 0) != 0
    {
        return Err(cached());
    }
    if call.int_or("do_rotary", 0) != 0 {
        return Err("rotary positions inside it are not supported".into());
    }
    let n = count(call, "num_heads")?;
    let (x, w) = (call.node(b, 0)?, call.node(b, 1)?);
    let mut y = b.op(Op::MatMul, &[x, w], &[])?;
    if let Some(bias) = call.optional(b, 2)? {
        y = b.op(Op::Add, &[y, bias], &[])?;
    }
    let shape = b.shape(y);
    let [_, _, all] = shape.as_slice() else { return Err("its input needs rank 3".into()) };
    let third = all.div_exact(&Dim::Known(3));
    let widths = match (call.ints("qkv_hidden_sizes"), third) {
        (Some(&[q, k, v]), _) => [q, k, v].map(Dim::Known),
        (None, Some(third)) => [third.clone(), third.clone(), third],
        _ => return Err(format!("width {all} does not divide into queries, keys and values").into()),
    };
    let mut start = Dim::Known(0);
    let parts = widths.map(|width| {
        let end = start.clone() + width;
        b.slice(y, 2, std::mem::replace(&mut start, end.clone()), end, 1)
    });
    let [q, k, v] = parts;
    let mut results = attention_of(b, call, [q?, k?, v?], n, [3, 5])?;
    // The cache that it would write is one tensor.
    results.truncate(1);
    Ok(results)
}

/// Attention of queries, keys and values `[B, L, n width]`; the operands that hide keys and that are added to scores.
fn attention_of(b: &mut Build, call: &Call, parts: [Id; 3], n: i64, [hides, adds]: [usize; 2]) -> Read {
    let [q, k, v] = parts.map(|x| heads(b, x, Ok(n)));
    let (q, k, v) = (q?, k?, v?);
    let (rows, columns) = (b.shape(q)[2].clone(), b.shape(k)[2].clone());
    let dtype = b.ty(q)?.dtype;
    let high = (call.int_or("unidirectional", 0) != 0).then_some(0);
    if high.is_some() && rows != columns {
        return Err("causal attention needs as many keys as queries".into());
    }
    let causal = banded(b, dtype, [&rows, &columns], [None, high], masked(dtype, 0.0))?;
    let batch = b.shape(q)[0].clone();
    let padding = padding(b, call, hides, dtype, [&batch, &columns])?;
    let bias = call.optional(b, adds)?;
    let bias = summed(b, bias, padding)?;
    let scores = Scores { scale: scale(call), bias: summed(b, bias, causal)?, softcap: 0.0 };
    results(b, [q, k, v], scores)
}

/// The bias of an operand that hides keys: those that count, `[B, Lk]` or `[B, Lq, Lk]`, or how many of each sequence do,
/// `[B]`.
fn padding(
    b: &mut Build,
    call: &Call,
    operand: usize,
    dtype: DType,
    [sequences, columns]: [&Dim; 2],
) -> Result<Option<Id>, String> {
    let Some(mask) = call.optional(b, operand)? else { return Ok(None) };
    let shape = b.shape(mask);
    let one = Dim::Known(1);
    let allowed = match shape.as_slice() {
        [batch] if batch != sequences => {
            return Err(format!("a padding mask of {batch} numbers for {sequences} sequences is not supported"));
        }
        [batch] => {
            let lengths = b.reshape(mask, &[batch.clone(), one.clone(), one.clone(), one])?;
            let lengths = b.cast(lengths, DType::I64)?;
            let place = b.iota(columns.clone())?;
            b.op(Op::Less, &[place, lengths], &[])?
        }
        [batch, columns] => {
            let mask = b.reshape(mask, &[batch.clone(), one.clone(), one, columns.clone()])?;
            b.cast(mask, DType::Bool)?
        }
        [batch, rows, columns] => {
            let mask = b.reshape(mask, &[batch.clone(), one, rows.clone(), columns.clone()])?;
            b.cast(mask, DType::Bool)?
        }
        _ => return Err("the padding mask needs rank 1 to 3".into()),
    };
    let zero = b.full(0.0, dtype, &[])?;
    let least = b.float(call.float_or("mask_filter_value", -10000.0))?;
    b.op(Op::Where, &[allowed, zero, least], &[]).map(Some)
}

/// GroupQueryAttention of a first prompt.
///
/// The lengths (operands 5 and 6) are not read: padding lies on the right, where no earlier token looks.
pub fn group_query(b: &mut Build, call: &Call) -> Read {
    let causal = call.int_or("causal", 1) != 0;
    for k in [3, 4] {
        if let Some(past) = call.optional(b, k)?
            && !b.shape(past).get(2).is_some_and(|d| d.is(0))
        {
            return Err(cached());
        }
    }
    if [11, 12, 13, 16].iter().any(|k| call.get(*k).is_some()) || call.int_or("smooth_softmax", 0) > 0 || !causal {
        return Err("head sinks, smooth softmax, quantised caches and padded chunks are not supported".into());
    }
    let (n, shared) = (count(call, "num_heads")?, count(call, "kv_num_heads")?);
    let [q, k, v] = unpacked(b, call, n, shared)?;
    let (mut q, mut k, v) = (heads(b, q, Ok(n))?, heads(b, k, Ok(shared))?, heads(b, v, Ok(shared))?);
    if let (Some(of_q), Some(of_k)) = (call.optional(b, 14)?, call.optional(b, 15)?) {
        let eps = call.float_or("qk_norm_epsilon", f64::from(1e-6f32));
        let eps = |name| Lit::Float(F64(call.float_or(name, eps)));
        q = b.op(Op::RmsNorm, &[q, of_q], &[eps("q_norm_epsilon")])?;
        k = b.op(Op::RmsNorm, &[k, of_k], &[eps("k_norm_epsilon")])?;
    }
    let length = b.shape(q)[2].clone();
    if call.int_or("do_rotary", 0) != 0 {
        let (mut cos, mut sin) = (call.node(b, 7)?, call.node(b, 8)?);
        let positions = call.optional(b, 9)?;
        if positions.is_none() {
            cos = b.slice(cos, 0, Dim::Known(0), length.clone(), 1)?;
            sin = b.slice(sin, 0, Dim::Known(0), length.clone(), 1)?;
        }
        let turned = b.shape(cos).last().and_then(Dim::known).ok_or("the rotated width must be known")? * 2;
        let tables = Tables { cos, sin, positions };
        let interleaved = call.int_or("rotary_interleaved", 0) != 0;
        q = rotated(b, q, &tables, turned, interleaved)?;
        k = rotated(b, k, &tables, turned, interleaved)?;
    }
    let dtype = b.ty(q)?.dtype;
    // A window of n tokens holds the token itself.
    let low = call.int("local_window_size").filter(|n| *n > 0).map(|n| 1 - n);
    let softcap = call.float_or("softcap", 0.0);
    let band = banded(b, dtype, [&length, &length], [low, Some(0)], masked(dtype, softcap))?;
    let bias = call.optional(b, 10)?;
    let scores = Scores { scale: scale(call), bias: summed(b, bias, band)?, softcap };
    results(b, [q, k, v], scores)
}

/// Queries, keys and values, apart or side by side in operand 0.
fn unpacked(b: &mut Build, call: &Call, n: i64, shared: i64) -> Result<[Id; 3], String> {
    let x = call.node(b, 0)?;
    if let (Some(k), Some(v)) = (call.optional(b, 1)?, call.optional(b, 2)?) {
        return Ok([x, k, v]);
    }
    let shape = b.shape(x);
    let [_, _, hidden] = shape.as_slice() else { return Err("packed operands need rank 3".into()) };
    let all = Dim::Known(n + 2 * shared);
    let width = hidden.div_exact(&all).ok_or(format!("width {hidden} does not divide into {all} heads"))?;
    let mut start = Dim::Known(0);
    let mut part = |b: &mut Build, heads: i64| {
        let end = start.clone() + Dim::Known(heads) * width.clone();
        let from = std::mem::replace(&mut start, end.clone());
        b.slice(x, 2, from, end, 1)
    };
    Ok([part(b, n)?, part(b, shared)?, part(b, shared)?])
}
