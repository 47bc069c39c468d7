//! Normalisation operators as composites over the last axis.

use crate::ir::dim::numel;
use crate::ir::graph::Id;
use crate::ir::{DType, Dim, F64, Lit, Op};
use crate::onnx::build::{Build, Value, ints};
use crate::onnx::call::{Call, Read};

/// `x + skip + bias` normalised over the last axis, as ONNX Runtime fuses it.
///
/// Results: the normalised sum, then the statistics (only where they have no name), then the sum.
fn skipped(
    b: &mut Build,
    call: &Call,
    bias: usize,
    normal: impl FnOnce(&mut Build, Id, Lit) -> Result<Id, String>,
) -> Read {
    let (x, skip) = (call.node(b, 0)?, call.node(b, 1)?);
    let mut sum = b.op(Op::Add, &[x, skip], &[])?;
    if let Some(bias) = call.optional(b, bias)? {
        sum = b.op(Op::Add, &[sum, bias], &[])?;
    }
    let eps = Lit::Float(F64(call.float_or("epsilon", f64::from(1e-12f32))));
    let y = normal(b, sum, eps)?;
    Ok(vec![Value::Node(y), Value::Refused, Value::Refused, Value::Node(sum)])
}

pub fn skip_rms(b: &mut Build, call: &Call) -> Read {
    let w = call.node(b, 2)?;
    skipped(b, call, 3, |b, x, eps| b.op(Op::RmsNorm, &[x, w], &[eps]))
}

pub fn skip_layer(b: &mut Build, call: &Call) -> Read {
    let (w, shift) = (call.node(b, 2)?, call.optional(b, 3)?);
    skipped(b, call, 4, |b, x, eps| scaled(b, x, w, shift, eps))
}

/// The sum of a token's, its place's and its segment's rows of their tables, normalised; the lengths that the mask tells; and
/// the sum itself.
pub fn embed_layer(b: &mut Build, call: &Call) -> Read {
    let (ids, words, places) = (call.node(b, 0)?, call.node(b, 2)?, call.node(b, 3)?);
    let (w, shift) = (call.node(b, 5)?, call.optional(b, 6)?);
    let row = |b: &mut Build, table: Id, index: Id| {
        let index = b.cast(index, DType::I64)?;
        b.op(Op::Gather, &[table, index], &[Lit::Int(Dim::Known(0))])
    };
    let shape = b.shape(ids);
    let [batch, length] = shape.as_slice() else { return Err("tokens need rank 2".into()) };
    let mut sum = row(b, words, ids)?;
    let of_place = match call.optional(b, 8)? {
        Some(positions) => row(b, places, positions)?,
        None => b.slice(places, 0, Dim::Known(0), length.clone(), 1)?,
    };
    sum = b.op(Op::Add, &[sum, of_place], &[])?;
    if let (Some(segments), Some(table)) = (call.optional(b, 1)?, call.optional(b, 4)?) {
        let of_segment = row(b, table, segments)?;
        sum = b.op(Op::Add, &[sum, of_segment], &[])?;
    }
    let eps = Lit::Float(F64(call.float_or("epsilon", f64::from(1e-12f32))));
    let y = scaled(b, sum, w, shift, eps)?;
    let lengths = match call.optional(b, 7)? {
        Some(mask) => {
            let mask = b.cast(mask, DType::I64)?;
            let count = b.op(Op::Sum, &[mask], &[ints([-1])])?;
            let count = b.reshape(count, std::slice::from_ref(batch))?;
            b.cast(count, DType::I32)?
        }
        None => b.full(0.0, DType::I32, std::slice::from_ref(batch))?,
    };
    Ok([y, lengths, sum].map(Value::Node).into())
}

/// Layer normalisation with or without a bias.  Where a module has neither weight, exporters write ones and zeros.
fn scaled(b: &mut Build, x: Id, w: Id, bias: Option<Id>, eps: Lit) -> Result<Id, String> {
    let w = Some(w).filter(|w| !b.is_constant(*w, 1.0));
    let bias = bias.filter(|bias| !b.is_constant(*bias, 0.0));
    if let (Some(w), Some(bias)) = (w, bias) {
        return b.op(Op::LayerNorm, &[x, w, bias], &[eps]);
    }
    let normal = b.op(Op::Normalize, &[x], &[eps])?;
    match (w, bias) {
        (Some(w), _) => b.op(Op::Mul, &[normal, w], &[]),
        (None, Some(bias)) => b.op(Op::Add, &[normal, bias], &[]),
        (None, None) => Ok(normal),
    }
}

/// What is normalised, with the axes joined into one.
struct Joined {
    rows: Id,
    /// The scale and the shift, of the joined axis; of the whole operand where one `is_outer`.
    weights: Vec<Id>,
    /// Whether a scale or shift differs along axes before the normalised ones, as that of a norm with numbers of its own
    /// for each head: more than ONNX says, and what exporters write and ONNX Runtime takes.
    is_outer: bool,
    /// The shape to go back to.
    dims: Vec<Dim>,
}

fn joined(b: &mut Build, call: &Call) -> Result<Joined, String> {
    let x = call.node(b, 0)?;
    let dims = b.shape(x);
    let axis = call.axis(-1, dims.len())?;
    let width = numel(&dims[axis..]);
    let rows = b.reshape(x, &[&dims[..axis], std::slice::from_ref(&width)].concat())?;
    let mut weights = Vec::new();
    for k in 1..call.inputs.len() {
        weights.extend(call.optional(b, k)?);
    }
    let leads = |shape: &[Dim]| shape.len().saturating_sub(dims.len() - axis);
    let is_outer = weights.iter().map(|w| b.shape(*w)).any(|s| s[..leads(&s)].iter().any(|d| !d.is(1)));
    for w in &mut weights {
        if !is_outer {
            let own = b.shape(*w);
            let whole = if numel(&own) == width { *w } else { b.expand(*w, &dims[axis..])? };
            *w = b.reshape(whole, std::slice::from_ref(&width))?;
        }
    }
    Ok(Joined { rows, weights, is_outer, dims })
}

/// What is normalised, as `dims`, times a scale and plus a shift that broadcast to it.
fn weighted(b: &mut Build, normal: Id, w: Id, bias: Option<Id>, dims: &[Dim]) -> Result<Id, String> {
    let normal = b.reshape(normal, dims)?;
    let mut id = b.op(Op::Mul, &[normal, w], &[])?;
    if let Some(bias) = bias {
        id = b.op(Op::Add, &[id, bias], &[])?;
    }
    if b.shape(id) == dims { Ok(id) } else { Err("the scale or shift is larger than what is normalised".into()) }
}

/// RMSNormalization, and ONNX Runtime's SimplifiedLayerNormalization.
pub fn rms(b: &mut Build, call: &Call) -> Read {
    let Joined { rows, weights, is_outer, dims } = joined(b, call)?;
    let [w] = weights.as_slice() else { return Err("the scale is missing".into()) };
    let eps = Lit::Float(F64(call.float_or("epsilon", f64::from(1e-5f32))));
    if call.outputs > 1 {
        return Err("the statistics (results after the first) are not supported".into());
    }
    if !is_outer {
        let id = b.op(Op::RmsNorm, &[rows, *w], &[eps])?;
        return Ok(vec![Value::Node(b.reshape(id, &dims)?)]);
    }
    let width = b.shape(rows).last().cloned().unwrap_or(Dim::Known(1));
    let one = b.full(1.0, b.ty(rows)?.dtype, &[width])?;
    let normal = b.op(Op::RmsNorm, &[rows, one], &[eps])?;
    Ok(vec![Value::Node(weighted(b, normal, *w, None, &dims)?)])
}

pub fn layer(b: &mut Build, call: &Call) -> Read {
    let Joined { rows, weights, is_outer, dims } = joined(b, call)?;
    let eps = Lit::Float(F64(call.float_or("epsilon", f64::from(1e-5f32))));
    let (Some(w), bias) = (weights.first(), weights.get(1)) else { return Err("the scale is missing".into()) };
    let mut results = Vec::new();
    if is_outer {
        let normal = b.op(Op::Normalize, &[rows], &[eps])?;
        results.push(weighted(b, normal, *w, bias.copied(), &dims)?);
    } else {
        let id = scaled(b, rows, *w, bias.copied(), eps)?;
        results.push(b.reshape(id, &dims)?);
    }
    if call.outputs > 1 {
        results.extend(statistics(b, call, rows, &dims)?);
    }
    Ok(results.into_iter().map(Value::Node).collect())
}

/// Mean and inverse deviation, which some exporters name though nothing uses them.
fn statistics(b: &mut Build, call: &Call, x: Id, dims: &[Dim]) -> Result<[Id; 2], String> {
    let axis = call.axis(-1, dims.len())?;
    let kept = [&dims[..axis], &vec![Dim::Known(1); dims.len() - axis]].concat();
    let eps = b.float(call.float_or("epsilon", f64::from(1e-5f32)))?;
    let mean = b.op(Op::Mean, &[x], &[ints([-1])])?;
    let centred = b.op(Op::Sub, &[x, mean], &[])?;
    let squares = b.op(Op::Mul, &[centred, centred], &[])?;
    let variance = b.op(Op::Mean, &[squares], &[ints([-1])])?;
    let variance = b.op(Op::Add, &[variance, eps], &[])?;
    let inverse = b.op(Op::Rsqrt, &[variance], &[])?;
    Ok([b.reshape(mean, &kept)?, b.reshape(inverse, &kept)?])
}

/// `x / |x|_p` along an axis, 0 where the norm is 0.
pub fn lp(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let rank = b.shape(x).len();
    let axis = call.axis(-1, rank)? as i64 - rank as i64;
    let size = match call.int_or("p", 2) {
        1 => b.op(Op::Abs, &[x], &[])?,
        2 => b.op(Op::Mul, &[x, x], &[])?,
        p => return Err(format!("norm {p} is not defined").into()),
    };
    let mut size = b.op(Op::Sum, &[size], &[ints([axis])])?;
    if call.int_or("p", 2) == 2 {
        size = b.op(Op::Sqrt, &[size], &[])?;
    }
    // Where the norm is 0 so is x: any other divisor gives 0.
    let zero = b.float(0.0)?;
    let nothing = b.op(Op::Equal, &[size, zero], &[])?;
    let one = b.float(1.0)?;
    let size = b.op(Op::Where, &[nothing, one, size], &[])?;
    Ok(vec![Value::Node(b.op(Op::Div, &[x, size], &[])?)])
}
