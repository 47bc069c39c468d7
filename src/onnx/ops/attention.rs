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
    let dims = b.shape(x);
    let q = heads(b, call, 0, "q_num_heads")?;
    let k = heads(b, call, 1, "kv_num_heads")?;
    let v = heads(b, call, 2, "kv_num_heads")?;
    let (of_q, of_k) = (b.shape(q), b.shape(k));
    let (k, v) = (repeated(b, k, &of_q[1])?, repeated(b, v, &of_q[1])?);
    let scale = match (call.float("scale"), of_q[3].known()) {
        (Some(scale), _) => scale,
        (None, Some(width)) => 1.0 / (width as f64).sqrt(),
        (None, None) => return Err("the width of a head must be known".into()),
    };
    let bias = bias(b, call, q, &of_q[2], &of_k[2])?;
    let softcap = call.float_or("softcap", 0.0);
    let mut y = match (bias, softcap != 0.0) {
        (None, false) => b.op(Op::Attention, &[q, k, v], &[Lit::Float(F64(scale))])?,
        (Some(bias), false) => b.op(Op::AttentionBias, &[q, k, v, bias], &[Lit::Float(F64(scale))])?,
        (bias, true) => capped(b, [q, k, v], bias, scale, softcap)?,
    };
    if dims.len() == 3 {
        let width = b.shape(y)[3].clone() * of_q[1].clone();
        y = b.transpose(y, &[0, 2, 1, 3])?;
        y = b.reshape(y, &[dims[0].clone(), dims[1].clone(), width])?;
    }
    Ok(vec![Value::Node(y)])
}

/// Operand `k` as [B, H, L, D].
fn heads(b: &mut Build, call: &Call, k: usize, count: &str) -> Result<Id, String> {
    let x = call.node(b, k)?;
    let dims = b.shape(x);
    match dims.as_slice() {
        [_, _, _, _] => Ok(x),
        [batch, length, hidden] => {
            let heads = Dim::Known(call.int(count).ok_or_else(|| format!("attribute {count} is missing"))?);
            let width = hidden.div_exact(&heads).ok_or(format!("width {hidden} does not divide into {heads} heads"))?;
            let split = b.reshape(x, &[batch.clone(), length.clone(), heads, width])?;
            b.transpose(split, &[0, 2, 1, 3])
        }
        _ => Err("operands need rank 3 or 4".into()),
    }
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

/// The sum of the mask operand, the causal mask and the window, if there are any.
fn bias(b: &mut Build, call: &Call, q: Id, rows: &Dim, columns: &Dim) -> Result<Option<Id>, String> {
    let dtype = b.ty(q)?.dtype;
    let mut bias = match call.optional(b, 3)? {
        Some(mask) if b.ty(mask)?.dtype == DType::Bool => Some(additive(b, mask, dtype)?),
        other => other,
    };
    let window = |name| call.int(name).filter(|n| *n >= 0);
    // Allowed where column <= row + high and column >= row - low.
    let high = if call.int_or("is_causal", 0) != 0 { Some(0) } else { window("right_window_size") };
    let low = window("left_window_size").map(|n| -n);
    for (limit, compare) in [(high, Op::LessEqual), (low, Op::GreaterEqual)] {
        let Some(limit) = limit else { continue };
        let (mut row, column) = positions(b, rows, columns)?;
        if limit != 0 {
            let limit = b.lit_int(Dim::Known(limit))?;
            row = b.op(Op::Add, &[row, limit], &[])?;
        }
        let allowed = b.op(compare, &[column, row], &[])?;
        let more = additive(b, allowed, dtype)?;
        bias = Some(match bias {
            Some(bias) => b.op(Op::Add, &[bias, more], &[])?,
            None => more,
        });
    }
    Ok(bias)
}

/// 0 where allowed, else the least finite number: with an infinity a row that allows nothing would be NaN.
fn additive(b: &mut Build, allowed: Id, dtype: DType) -> Result<Id, String> {
    let least = match dtype {
        DType::F16 => f64::from(half::f16::MIN),
        DType::BF16 => f64::from(half::bf16::MIN),
        _ => f64::from(f32::MIN),
    };
    let zero = b.full(0.0, dtype, &[])?;
    let least = b.float(least)?;
    b.op(Op::Where, &[allowed, zero, least], &[])
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
