//! Shapes and layout: most of it is resolved while reading and leaves no node.

use crate::ir::dim::numel;
use crate::ir::infer::{broadcast_shapes, resolve_axes, resolve_axis, slice_len};
use crate::ir::{DType, Dim, Lit, Op};
use crate::onnx::build::{Build, Value};
use crate::onnx::call::{Call, Read};
use crate::onnx::known::{Items, Known, MAX_KNOWN};
use crate::onnx::tensor;

fn one(value: Value) -> Read {
    Ok(vec![value])
}

/// The sizes of a value.
pub fn shape_of(b: &Build, value: &Value) -> Result<Vec<Dim>, String> {
    match value {
        Value::Node(id) => Ok(b.shape(*id)),
        Value::Known(known) => Ok(known.shape.iter().map(|n| Dim::Known(*n as i64)).collect()),
        _ => Err("an operand must be a tensor".into()),
    }
}

pub fn shape(b: &mut Build, call: &Call) -> Read {
    let dims = shape_of(b, call.value(0)?)?;
    let rank = dims.len() as i64;
    let bound = |n: i64| (if n < 0 { n + rank } else { n }).clamp(0, rank) as usize;
    let (start, end) = (bound(call.int_or("start", 0)), bound(call.int_or("end", rank)));
    one(Value::Known(Known::vector(dims[start..end.max(start)].to_vec())))
}

pub fn size(b: &mut Build, call: &Call) -> Read {
    one(Value::Known(Known::scalar(numel(&shape_of(b, call.value(0)?)?))))
}

/// A value in another shape, known or not.
pub fn reshaped(b: &mut Build, value: &Value, shape: &[Dim]) -> Result<Value, String> {
    if let Value::Known(known) = value
        && let Some(folded) = whole(shape).and_then(|sizes| known.reshaped(sizes))
    {
        return Ok(Value::Known(folded));
    }
    let id = b.tensor(value)?;
    b.reshape(id, shape).map(Value::Node)
}

pub fn reshape(b: &mut Build, call: &Call) -> Read {
    let x = call.value(0)?;
    let from = shape_of(b, x)?;
    let mut to = call.dims(1, "the shape")?.ok_or("the shape is missing")?;
    let copies = call.int_or("allowzero", 0) == 0;
    for (k, dim) in to.iter_mut().enumerate() {
        if copies && dim.is(0) {
            *dim = from.get(k).cloned().ok_or(format!("size 0 at axis {k} copies an axis that is not there"))?;
        }
    }
    let unknown: Vec<usize> = (0..to.len()).filter(|k| to[*k].is(-1)).collect();
    match unknown.as_slice() {
        [] => {}
        [k] => {
            let rest = to.iter().filter(|d| !d.is(-1)).cloned().fold(Dim::Known(1), |a, b| a * b);
            let all = numel(&from);
            to[*k] = all.div_exact(&rest).ok_or(format!("{all} elements do not divide into rows of {rest}"))?;
        }
        _ => return Err("the shape has more than one -1".into()),
    }
    one(reshaped(b, x, &to)?)
}

pub fn flatten(b: &mut Build, call: &Call) -> Read {
    let x = call.value(0)?;
    let dims = shape_of(b, x)?;
    let axis = call.int_or("axis", 1);
    let axis = if axis < 0 { axis + dims.len() as i64 } else { axis };
    let Some((rows, columns)) = usize::try_from(axis).ok().and_then(|a| dims.split_at_checked(a)) else {
        return Err(format!("axis {axis} is outside rank {}", dims.len()).into());
    };
    one(reshaped(b, x, &[numel(rows), numel(columns)])?)
}

pub fn unsqueeze(b: &mut Build, call: &Call) -> Read {
    let x = call.value(0)?;
    let mut dims = shape_of(b, x)?;
    let axes = call.integers("axes", 1)?.ok_or("axes are missing")?;
    let rank = dims.len() + axes.len();
    let mut places = axes.iter().map(|a| resolve_axis(*a, rank)).collect::<Result<Vec<_>, _>>()?;
    places.sort();
    if places.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("axes are given twice".into());
    }
    for place in places {
        dims.insert(place, Dim::Known(1));
    }
    one(reshaped(b, x, &dims)?)
}

pub fn squeeze(b: &mut Build, call: &Call) -> Read {
    let x = call.value(0)?;
    let dims = shape_of(b, x)?;
    let places = match call.integers("axes", 1)? {
        Some(axes) => axes.iter().map(|a| resolve_axis(*a, dims.len())).collect::<Result<Vec<_>, _>>()?,
        None => (0..dims.len()).filter(|k| dims[*k].is(1)).collect(),
    };
    let kept: Vec<Dim> = dims.into_iter().enumerate().filter(|(k, _)| !places.contains(k)).map(|(_, d)| d).collect();
    one(reshaped(b, x, &kept)?)
}

pub fn transpose(b: &mut Build, call: &Call) -> Read {
    let x = call.value(0)?;
    let rank = shape_of(b, x)?.len();
    let perm: Vec<usize> = match call.ints("perm") {
        Some(perm) => resolve_axes(&perm.iter().map(|p| Dim::Known(*p)).collect::<Vec<_>>(), rank)?,
        None => (0..rank).rev().collect(),
    };
    if let Some(folded) = call.known(0).and_then(|k| k.transposed(&perm)) {
        return one(Value::Known(folded));
    }
    let mut id = b.tensor(x)?;
    if perm == [0, 2, 3, 1] {
        // Exporters fold "heads to the front" and "keys transposed" into one; attention is seen in two.
        id = b.transpose(id, &[0, 2, 1, 3])?;
        return one(Value::Node(b.transpose(id, &[0, 1, 3, 2])?));
    }
    one(Value::Node(b.transpose(id, &perm)?))
}

pub fn expand(b: &mut Build, call: &Call) -> Read {
    let x = call.value(0)?;
    let to = call.dims(1, "the shape")?.ok_or("the shape is missing")?;
    // Sizes that a shape is made of stay known.
    let sizes = call.known(0).filter(|k| k.dims().is_some()).and_then(|known| {
        let own: Vec<Dim> = known.shape.iter().map(|n| Dim::Known(*n as i64)).collect();
        known.expanded(&whole(&broadcast_shapes(&own, &to).ok()?)?)
    });
    if let Some(sizes) = sizes {
        return one(Value::Known(sizes));
    }
    let id = b.tensor(x)?;
    one(Value::Node(b.expand(id, &to)?))
}

pub fn concat(b: &mut Build, call: &Call) -> Read {
    let rank = shape_of(b, call.value(0)?)?.len();
    let axis = resolve_axis(call.int("axis").ok_or("attribute axis is missing")?, rank)?;
    let known: Option<Vec<&Known>> = (0..call.inputs.len()).map(|k| call.known(k)).collect();
    if let Some(folded) = known.and_then(|parts| Known::concatenated(&parts, axis)) {
        return one(Value::Known(folded));
    }
    let mut parts = Vec::new();
    for k in 0..call.inputs.len() {
        let part = call.node(b, k)?;
        // PyTorch concatenates empty key-value caches.
        if !b.shape(part).get(axis).is_some_and(|d| d.is(0)) || call.inputs.len() == 1 {
            parts.push(part);
        }
    }
    if parts.is_empty() {
        return Err("every operand is empty".into());
    }
    one(Value::Node(b.concat(&parts, axis)?))
}

/// The pieces of `split`: bounds along an axis of size `whole`.
fn pieces(call: &Call, whole: &Dim, count: usize) -> Result<Vec<Dim>, String> {
    let sizes: Vec<Dim> = match call.dims(1, "split")? {
        Some(sizes) => sizes,
        None => {
            let n = call.int("num_outputs").unwrap_or(count as i64);
            if !(1..=MAX_KNOWN as i64).contains(&n) {
                return Err(format!("cannot split into {n} pieces"));
            }
            let n = Dim::Known(n);
            match (whole.div_exact(&n), whole.known(), n.known()) {
                (Some(size), _, Some(n)) => vec![size; usize::try_from(n).unwrap_or(0)],
                // The last piece is smaller.
                (None, Some(w), Some(n)) if n > 0 => {
                    let size = (w + n - 1) / n;
                    (0..n).map(|k| Dim::Known((w - k * size).clamp(0, size))).collect()
                }
                _ => return Err(format!("size {whole} does not split into {n} pieces")),
            }
        }
    };
    if let Some(bad) = sizes.iter().find(|d| d.known().is_some_and(|n| n < 0)) {
        return Err(format!("a piece cannot have {bad} rows"));
    }
    let total = sizes.iter().cloned().fold(Dim::Known(0), |a, b| a + b);
    if total != *whole {
        return Err(format!("pieces of {total} do not make up {whole}"));
    }
    Ok(sizes)
}

fn split_at(b: &mut Build, call: &Call, axis: usize, sizes: &[Dim]) -> Result<Vec<Value>, String> {
    let x = call.value(0)?;
    let mut start = Dim::Known(0);
    let mut parts = Vec::new();
    for size in sizes {
        let end = start.clone() + size.clone();
        parts.push(super::index::forward(b, x, axis, start, end.clone(), 1)?);
        start = end;
    }
    Ok(parts)
}

pub fn split(b: &mut Build, call: &Call) -> Read {
    let dims = shape_of(b, call.value(0)?)?;
    let axis = call.axis(0, dims.len())?;
    let sizes = pieces(call, &dims[axis], call.outputs)?;
    if sizes.len() < call.outputs {
        return Err(format!("{} pieces for {} results", sizes.len(), call.outputs).into());
    }
    Ok(split_at(b, call, axis, &sizes)?)
}

pub fn split_to_sequence(b: &mut Build, call: &Call) -> Read {
    let dims = shape_of(b, call.value(0)?)?;
    let axis = call.axis(0, dims.len())?;
    let whole = dims[axis].clone();
    let sizes = match call.known(1) {
        // A scalar is the size of each piece, the last one may be smaller.
        Some(k) if k.shape.is_empty() => {
            let size = k.dims().and_then(|d| d.first()).and_then(Dim::known).filter(|n| *n > 0);
            let (Some(size), Some(w)) = (size, whole.known()) else { return Err("the pieces must be known".into()) };
            if w / size > MAX_KNOWN as i64 {
                return Err(format!("more than {MAX_KNOWN} pieces are not supported").into());
            }
            (0..(w + size - 1) / size).map(|p| Dim::Known((w - p * size).min(size))).collect()
        }
        Some(_) => pieces(call, &whole, 0)?,
        None => {
            let n = whole.known().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= MAX_KNOWN);
            let n = n.ok_or("the pieces must be known and few")?;
            vec![Dim::Known(1); n]
        }
    };
    let mut parts = split_at(b, call, axis, &sizes)?;
    // The standard has `keepdims` for pieces without given sizes; ONNX Runtime, and so PyTorch, for a size of 1 as well.
    let by_list = call.known(1).is_some_and(|sizes| !sizes.shape.is_empty());
    if !by_list && call.int_or("keepdims", 1) == 0 && sizes.iter().all(|n| n.is(1)) {
        let kept: Vec<Dim> = dims.iter().enumerate().filter(|(k, _)| *k != axis).map(|(_, d)| d.clone()).collect();
        parts = parts.iter().map(|p| reshaped(b, p, &kept)).collect::<Result<_, _>>()?;
    }
    one(Value::Sequence(parts))
}

pub fn sequence_construct(_: &mut Build, call: &Call) -> Read {
    if call.inputs.iter().any(|v| matches!(v, Value::Sequence(_))) {
        return Err("a sequence of sequences is not supported".into());
    }
    one(Value::Sequence(call.inputs.clone()))
}

pub fn sequence_at(_: &mut Build, call: &Call) -> Read {
    let Value::Sequence(items) = call.value(0)? else { return Err("the operand must be a sequence".into()) };
    let at = call.number(1, "the position")?.ok_or("the position is missing")? as i64;
    let place = resolve_axis(at, items.len()).map_err(|_| format!("position {at} is outside the sequence"))?;
    one(items[place].clone())
}

/// Sizes that are all known.
fn whole(dims: &[Dim]) -> Option<Vec<usize>> {
    dims.iter().map(|d| d.known().and_then(|n| usize::try_from(n).ok())).collect()
}

pub fn constant_of_shape(b: &mut Build, call: &Call) -> Read {
    let dims = call.dims(0, "the shape")?.ok_or("the shape is missing")?;
    let (value, dtype) = match call.tensor_attr("value") {
        None => (0.0, DType::F32),
        Some(proto) => {
            let known = Known::load(&tensor::inline(proto)?).ok_or("the value must be one number")?;
            (known.uniform().ok_or("the value must be one number")?, known.dtype)
        }
    };
    if let Some(shape) = whole(&dims) {
        let items = match dtype.is_float() {
            true => Items::Floats(vec![value]),
            false => Items::Ints(vec![Dim::Known(value as i64)]),
        };
        let scalar = Known { dtype, shape: vec![], items, table: None };
        if let Some(known) = scalar.expanded(&shape) {
            return one(Value::Known(known));
        }
    }
    one(Value::Node(b.full(value, dtype, &dims)?))
}

/// `start, start + delta, ... < limit`.
pub fn range(b: &mut Build, call: &Call) -> Read {
    let (Some(start), Some(limit), Some(delta)) = (call.known(0), call.known(1), call.known(2)) else {
        return Err("bounds must not depend on the model's inputs, only on their shapes".into());
    };
    let numbers = [start, limit, delta].map(Known::uniform);
    if let ([Some(from), Some(to), Some(by)], true) = (numbers, start.dtype.is_float()) {
        let n = ((to - from) / by).ceil().max(0.0);
        if !n.is_finite() || n > MAX_KNOWN as f64 {
            return Err("the range of floats is too long".into());
        }
        let items = Items::Floats((0..n as usize).map(|k| from + k as f64 * by).collect());
        return one(Value::Known(Known { dtype: start.dtype, shape: vec![n as usize], items, table: None }));
    }
    let bound =
        |k: &Known| k.whole().and_then(|d| d.first().cloned()).ok_or("bounds must be whole numbers".to_string());
    let (from, to) = (bound(start)?, bound(limit)?);
    let by = bound(delta)?.known().filter(|n| *n != 0).ok_or("the step must be known and not 0")?;
    // A falling range counts the negated one.
    let n = if by > 0 { slice_len(&from, &to, by) } else { slice_len(&to, &from, -by) };
    let n = n.ok_or("the length of the range is unknown")?;
    if let (Some(count), Some(_)) = (n.known().filter(|n| *n <= MAX_KNOWN as i64), from.known()) {
        let item = |k: i64| from.clone() + Dim::Known(by) * Dim::Known(k);
        let known = Known { dtype: start.dtype, ..Known::vector((0..count).map(item).collect()) };
        return one(Value::Known(known));
    }
    let mut id = b.iota(n)?;
    if by != 1 {
        let by = b.lit_int(Dim::Known(by))?;
        id = b.op(Op::Mul, &[id, by], &[])?;
    }
    if !from.is(0) {
        let from = b.lit_int(from)?;
        id = b.op(Op::Add, &[id, from], &[])?;
    }
    one(Value::Node(b.cast(id, start.dtype)?))
}

pub fn tile(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let repeats = call.dims(1, "repeats")?.ok_or("repeats are missing")?;
    let dims = b.shape(x);
    if repeats.len() != dims.len() {
        return Err("repeats must have one number an axis".into());
    }
    let ones: Vec<Dim> = dims.iter().flat_map(|d| [Dim::Known(1), d.clone()]).collect();
    let wide: Vec<Dim> = dims.iter().zip(&repeats).flat_map(|(d, r)| [r.clone(), d.clone()]).collect();
    let to: Vec<Dim> = dims.iter().zip(&repeats).map(|(d, r)| d.clone() * r.clone()).collect();
    if to == dims {
        return one(Value::Node(x));
    }
    let spread = b.reshape(x, &ones)?;
    let spread = b.expand(spread, &wide)?;
    one(Value::Node(b.reshape(spread, &to)?))
}

/// Constant padding; negative pads crop.
pub fn pad(b: &mut Build, call: &Call) -> Read {
    if call.word("mode").is_some_and(|m| m != "constant") {
        return Err("only constant padding is supported".into());
    }
    let value = call.number(2, "the padding value")?.unwrap_or(0.0);
    let mut x = call.node(b, 0)?;
    let dims = b.shape(x);
    let pads = call.dims(1, "pads")?.ok_or("pads are missing")?;
    let axes = match call.integers("axes", 3)? {
        Some(axes) => axes.iter().map(|a| resolve_axis(*a, dims.len())).collect::<Result<Vec<_>, _>>()?,
        None => (0..dims.len()).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err("pads must have two numbers an axis".into());
    }
    for (k, axis) in axes.iter().enumerate() {
        let (before, after) = (pads[k].clone(), pads[k + axes.len()].clone());
        for (amount, at_start) in [(before, true), (after, false)] {
            if amount.is(0) {
                continue;
            }
            let mut shape = b.shape(x);
            let size = shape[*axis].clone();
            x = match amount.known() {
                Some(n) if n < 0 && at_start => b.slice(x, *axis, Dim::Known(-n), size, 1)?,
                Some(n) if n < 0 => b.slice(x, *axis, Dim::Known(0), size + amount, 1)?,
                _ if value == 0.0 => {
                    let zero = Dim::Known(0);
                    let (before, after) = if at_start { (amount, zero) } else { (zero, amount) };
                    b.op(Op::Pad, &[x], &[Dim::Known(*axis as i64), before, after].map(Lit::Int))?
                }
                _ => {
                    shape[*axis] = amount;
                    let dtype = b.ty(x)?.dtype;
                    let fill = b.full(value, dtype, &shape)?;
                    b.concat(&if at_start { [fill, x] } else { [x, fill] }, *axis)?
                }
            };
        }
    }
    one(Value::Node(x))
}
