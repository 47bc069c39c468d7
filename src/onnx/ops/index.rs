//! Slices, gathers and masks by position.

use super::layout::shape_of;
use crate::ir::Builder;
use crate::ir::dim::numel;
use crate::ir::graph::Id;
use crate::ir::infer::resolve_axis;
use crate::ir::{DType, Dim, Lit, Node, Op};
use crate::onnx::build::{Build, RowMask, Value};
use crate::onnx::call::{Call, Read};
use crate::onnx::known::{HUGE, Known, MAX_KNOWN, sign};
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// A slice bound as a place in `0..=size`.
///
/// Of unknown sizes a bound such as `seq` is trusted to be inside; one such as `-1` counts from the end.
fn place(bound: &Dim, size: &Dim) -> Dim {
    match (bound.known(), size.known()) {
        (Some(k), _) if k <= -HUGE => Dim::Known(0),
        (Some(k), _) if k >= HUGE => size.clone(),
        (Some(k), Some(n)) => Dim::Known((if k < 0 { k + n } else { k }).clamp(0, n)),
        _ if sign(bound) == Some(Ordering::Less) => size.clone() + bound.clone(),
        _ => bound.clone(),
    }
}

pub fn slice(b: &mut Build, call: &Call) -> Read {
    let mut x = call.value(0)?.clone();
    let dims = shape_of(b, &x)?;
    let starts = call.dims(1, "starts")?.ok_or("starts are missing")?;
    let ends = call.dims(2, "ends")?.ok_or("ends are missing")?;
    let axes = call.integers("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = call.integers("steps", 4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err("starts, ends, axes and steps differ in length".into());
    }
    for (((start, end), axis), step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = resolve_axis(*axis, dims.len())?;
        x = match step {
            0 => return Err("the step must not be 0".into()),
            1.. => forward(b, &x, axis, place(start, &dims[axis]), place(end, &dims[axis]), *step)?,
            _ => backward(b, &x, axis, start, end, *step)?,
        };
    }
    Ok(vec![x])
}

/// Places where a mask is true, or a number not zero, in row-major order: `[rank, n]`, n a size of its own.
pub fn non_zero(b: &mut Build, call: &Call) -> Read {
    let mut mask = call.node(b, 0)?;
    let ty = b.ty(mask)?.clone();
    if ty.rank() == 0 {
        return Err("a scalar has no places".into());
    }
    if b.uniform(mask).is_some_and(|(value, _)| value != 0.0) {
        // How opsets without Range count.
        let all = b.iota(numel(&ty.shape))?;
        let indices = unravelled(b, all, &ty.shape)?;
        return Ok(vec![Value::Node(listed(b, indices)?)]);
    }
    if ty.dtype != DType::Bool {
        let zero = if ty.dtype.is_float() { b.float(0.0)? } else { b.lit_int(Dim::Known(0))? };
        let is_zero = b.op(Op::Equal, &[mask, zero], &[])?;
        mask = b.op(Op::Not, &[is_zero], &[])?;
    }
    // A mask that is expanded selects whole rows: their number is known from its own.
    let (narrow, width) = narrow(b, mask);
    let found = b.graph.true_rows(narrow)?;
    let n = b.shape(found).first().cloned().unwrap_or(Dim::Known(0));
    let all = n.clone() * width.clone();
    let places = if width.is(1) {
        found
    } else {
        let (size, columns) = (b.lit_int(width.clone())?, b.iota(width.clone())?);
        let starts = b.op(Op::Mul, &[found, size], &[])?;
        let starts = b.reshape(starts, &[n, Dim::Known(1)])?;
        let places = b.op(Op::Add, &[starts, columns], &[])?;
        b.reshape(places, &[all])?
    };
    let indices = unravelled(b, places, &ty.shape)?;
    let listed = listed(b, indices)?;
    b.row_masks.insert(listed, RowMask { mask: narrow, rows: found, width, shape: ty.shape });
    Ok(vec![Value::Node(listed)])
}

/// The indices of places `[n]` in row-major order, one vector an axis.
///
/// places = (i_0 d_1 + i_1) d_2 + ..: the last index is the rest of the last division.
fn unravelled(b: &mut Build, places: Id, shape: &[Dim]) -> Result<Vec<Id>, String> {
    let (mut rest, mut indices) = (places, Vec::new());
    for size in shape[1..].iter().rev() {
        let size = b.lit_int(size.clone())?;
        let whole = b.op(Op::Div, &[rest, size], &[])?;
        let below = b.op(Op::Mul, &[whole, size], &[])?;
        indices.push(b.op(Op::Sub, &[rest, below], &[])?);
        rest = whole;
    }
    indices.push(rest);
    indices.reverse();
    Ok(indices)
}

/// Vectors `[n]` as the rows of a matrix.
fn listed(b: &mut Build, vectors: Vec<Id>) -> Result<Id, String> {
    let row = [&[Dim::Known(1)], &b.shape(vectors[0])[..]].concat();
    let rows: Vec<Id> = vectors.into_iter().map(|i| b.reshape(i, &row)).collect::<Result<_, _>>()?;
    if let [only] = rows[..] { Ok(only) } else { b.op(Op::Concat, &rows, &[Lit::Int(Dim::Known(0))]) }
}

/// Whether indices are places that `NonZero` listed, and so never count from the end.
pub fn is_listed(b: &Build, index: Id) -> bool {
    let (mut stack, mut seen) = (vec![index], BTreeSet::new());
    while let Some(id) = stack.pop() {
        if b.row_masks.contains_key(&id) || !seen.insert(id) {
            continue;
        }
        match b.graph.node(id) {
            Node::Op(Op::Reshape | Op::Transpose | Op::Slice | Op::Cast, children) => stack.push(children[0]),
            Node::Op(Op::Concat, children) => stack.extend(children.iter().take(children.len().saturating_sub(1))),
            Node::Op(Op::TrueRows | Op::Iota, _) => {}
            _ => return false,
        }
    }
    true
}

/// The mask that `mask` repeats along its last axes, in whatever shape, and how often it does.
fn narrow(b: &Build, mask: Id) -> (Id, Dim) {
    let (mut narrow, mut width) = (mask, Dim::Known(1));
    while let Node::Op(op @ (Op::Expand | Op::Reshape), children) = b.graph.node(narrow) {
        let (from, to) = (b.shape(children[0]), b.shape(narrow));
        if *op == Op::Expand {
            let own = from.iter().rposition(|d| !d.is(1)).map_or(0, |last| last + 1);
            if from.len() != to.len() || from[..own] != to[..own] {
                break;
            }
            width = width * numel(&to[own..]);
        } else if b.ty(children[0]).is_ok_and(|ty| ty.rank() == 0) {
            break;
        }
        narrow = children[0];
    }
    (narrow, width)
}

/// `x[start:end:step]` along an axis; known numbers stay known.
pub fn forward(b: &mut Build, x: &Value, axis: usize, start: Dim, end: Dim, step: i64) -> Result<Value, String> {
    // An empty slice may be written with its bounds crossed.
    let end = match (start.known(), end.known()) {
        (Some(s), Some(e)) => Dim::Known(e.max(s)),
        _ => end,
    };
    if let (Value::Known(known), Some(s), Some(e)) = (x, start.known(), end.known()) {
        let rows: Vec<usize> = (s..e).step_by(step as usize).map(|k| k as usize).collect();
        if let Some(folded) = known.selected(axis, &rows) {
            return Ok(Value::Known(folded));
        }
    }
    let id = b.tensor(x)?;
    b.slice(id, axis, start, end, step).map(Value::Node)
}

/// A slice that runs backwards: its rows are gathered.
fn backward(b: &mut Build, x: &Value, axis: usize, start: &Dim, end: &Dim, step: i64) -> Result<Value, String> {
    let size = shape_of(b, x)?.get(axis).and_then(Dim::known).ok_or("a backward slice needs a known size")?;
    let bound = |d: &Dim, least: i64| {
        let k = d.known().ok_or("the bounds of a backward slice must be known".to_string())?;
        Ok::<i64, String>((if k < 0 { k.saturating_add(size) } else { k }).clamp(least, size - 1))
    };
    let (start, end) = (bound(start, 0)?, bound(end, -1)?);
    let rows = std::iter::successors(Some(start), |k| k.checked_add(step)).take_while(|k| *k > end);
    let rows: Vec<i64> = rows.take(MAX_KNOWN + 1).collect();
    if rows.len() > MAX_KNOWN {
        return Err(format!("a backward slice of more than {MAX_KNOWN} rows is not supported"));
    }
    if let Value::Known(known) = x
        && let Some(folded) = known.selected(axis, &rows.iter().map(|k| *k as usize).collect::<Vec<_>>())
    {
        return Ok(Value::Known(folded));
    }
    let id = b.tensor(x)?;
    let rows = b.tensor(&Value::Known(Known::vector(rows.into_iter().map(Dim::Known).collect())))?;
    b.op(Op::Gather, &[id, rows], &[Lit::Int(Dim::Known(axis as i64))]).map(Value::Node)
}

/// Operand 1 as i64 indices.
fn indices(b: &mut Build, call: &Call) -> Result<Id, String> {
    let index = call.node(b, 1)?;
    match b.ty(index)?.dtype {
        t if t.is_int() => b.cast(index, DType::I64),
        t => Err(format!("indices must be integers, not {}", t.name())),
    }
}

pub fn gather(b: &mut Build, call: &Call) -> Read {
    let data = call.value(0)?.clone();
    let dims = shape_of(b, &data)?;
    let axis = call.axis(0, dims.len())?;
    let at = |k: &Dim| if sign(k) == Some(Ordering::Less) { k.clone() + dims[axis].clone() } else { k.clone() };
    let Some(index) = call.known(1) else {
        let (x, index) = (b.tensor(&data)?, indices(b, call)?);
        return Ok(vec![Value::Node(b.op(Op::Gather, &[x, index], &[Lit::Int(Dim::Known(axis as i64))])?)]);
    };
    let rows: Vec<Dim> = index.dims().ok_or("indices must be integers")?.iter().map(at).collect();
    let size = dims[axis].known();
    if let (Some(n), Some(bad)) = (size, rows.iter().find(|r| r.known().is_some_and(|k| k < 0 || size <= Some(k)))) {
        return Err(format!("index {bad} is outside size {n}").into());
    }
    let shape: Vec<Dim> = index.shape.iter().map(|n| Dim::Known(*n as i64)).collect();
    let shape = [&dims[..axis], &shape, &dims[axis + 1..]].concat();
    let known_rows: Option<Vec<usize>> = rows.iter().map(|r| r.known().map(|k| k as usize)).collect();
    if let (Value::Known(known), Some(rows)) = (&data, known_rows)
        && let Some(picked) = known.selected(axis, &rows)
    {
        return Ok(vec![super::layout::reshaped(b, &Value::Known(picked), &shape)?]);
    }
    let x = b.tensor(&data)?;
    let id = match rows.as_slice() {
        // One row is a slice: it needs no index tensor.
        [row] => b.slice(x, axis, row.clone(), row.clone() + Dim::Known(1), 1)?,
        _ => {
            let rows = b.tensor(&Value::Known(Known::vector(rows)))?;
            b.op(Op::Gather, &[x, rows], &[Lit::Int(Dim::Known(axis as i64))])?
        }
    };
    Ok(vec![Value::Node(b.reshape(id, &shape)?)])
}

fn indexed(b: &mut Build, call: &Call) -> Result<(Id, Id, Lit), String> {
    let (x, index) = (call.node(b, 0)?, indices(b, call)?);
    let axis = call.axis(0, b.shape(x).len())?;
    Ok((x, index, Lit::Int(Dim::Known(axis as i64))))
}

pub fn gather_elements(b: &mut Build, call: &Call) -> Read {
    let (x, index, axis) = indexed(b, call)?;
    Ok(vec![Value::Node(b.op(Op::GatherElements, &[x, index], &[axis])?)])
}

pub fn scatter_elements(b: &mut Build, call: &Call) -> Read {
    let (x, index, axis) = indexed(b, call)?;
    let updates = call.node(b, 2)?;
    Ok(vec![Value::Node(scattered(b, call, [x, index, updates], axis)?)])
}

/// `x` with updates added at the indices, or put there (then no index may come twice), as attribute `reduction` says.
pub fn scattered(b: &mut Build, call: &Call, [x, index, updates]: [Id; 3], axis: Lit) -> Result<Id, String> {
    let axis = [axis];
    match call.word("reduction").unwrap_or("none") {
        "add" => b.op(Op::ScatterAdd, &[x, index, updates], &axis),
        "none" => {
            let (ty, shape) = (b.ty(x)?, b.shape(updates));
            if ty.dtype == DType::Bool {
                return Err("only numbers can be put into a tensor".into());
            }
            let (nothing, ones) = (b.full(0.0, ty.dtype, &ty.shape)?, b.full(1.0, ty.dtype, &shape)?);
            let hits = b.op(Op::ScatterAdd, &[nothing, index, ones], &axis)?;
            let zero = if ty.dtype.is_float() { b.float(0.0)? } else { b.lit_int(Dim::Known(0))? };
            let hit = b.op(Op::Greater, &[hits, zero], &[])?;
            let kept = b.op(Op::Where, &[hit, zero, x], &[])?;
            b.op(Op::ScatterAdd, &[kept, index, updates], &axis)
        }
        other => Err(format!("reduction `{other}` has no gradient here; `none` and `add` have")),
    }
}

/// Row and column numbers of the last two axes, `[rows, 1]` and `[1, columns]`.
pub fn positions(b: &mut Build, rows: &Dim, columns: &Dim) -> Result<(Id, Id), String> {
    let one = Dim::Known(1);
    let (r, c) = (b.iota(rows.clone())?, b.iota(columns.clone())?);
    Ok((b.reshape(r, &[rows.clone(), one.clone()])?, b.reshape(c, &[one, columns.clone()])?))
}

/// The upper or lower triangle, zero elsewhere.
pub fn trilu(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let k = call.dims(1, "the diagonal")?.and_then(|d| d.first().cloned()).unwrap_or(Dim::Known(0));
    let dims = b.shape(x);
    let [.., rows, columns] = dims.as_slice() else { return Err("needs matrices (rank 2 or more)".into()) };
    let (r, c) = positions(b, rows, columns)?;
    let k = b.lit_int(k)?;
    let diagonal = b.op(Op::Add, &[r, k], &[])?;
    let compare = if call.int_or("upper", 1) != 0 { Op::GreaterEqual } else { Op::LessEqual };
    let keep = b.op(compare, &[c, diagonal], &[])?;
    let dtype = b.ty(x)?.dtype;
    if dtype == DType::Bool {
        return Ok(vec![Value::Node(b.op(Op::And, &[x, keep], &[])?)]);
    }
    let zero = if dtype.is_float() { b.float(0.0)? } else { b.lit_int(Dim::Known(0))? };
    Ok(vec![Value::Node(b.op(Op::Where, &[keep, x, zero], &[])?)])
}

/// Indices, depth and values that are all known; as repeats of `Tile` they stand for a repeated axis.
fn known_one_hot(call: &Call) -> Option<Known> {
    let (indices, values) = (call.known(0)?, call.known(2).filter(|k| k.len() == 2)?);
    let depth = usize::try_from(call.known(1)?.dims()?.first()?.known()?).ok()?;
    let rows: Vec<i64> = indices.dims()?.iter().map(Dim::known).collect::<Option<_>>()?;
    let axis = resolve_axis(call.int_or("axis", -1), indices.shape.len() + 1).ok()?;
    let mut shape = indices.shape.clone();
    shape.insert(axis, depth);
    let inner: usize = shape[axis + 1..].iter().product();
    values.picked(shape, |k| {
        let (outer, class, rest) = (k / (depth * inner), (k / inner) % depth, k % inner);
        let row = rows[outer * inner + rest];
        usize::from(if row < 0 { row + depth as i64 } else { row } == class as i64)
    })
}

pub fn one_hot(b: &mut Build, call: &Call) -> Read {
    if let Some(folded) = known_one_hot(call) {
        return Ok(vec![Value::Known(folded)]);
    }
    let index = call.node(b, 0)?;
    let index = b.cast(index, DType::I64)?;
    let depth = match call.known(1).and_then(|k| k.dims()).and_then(|d| d.first()) {
        Some(depth) => depth.clone(),
        None => Dim::Known(call.number(1, "the depth")?.ok_or("the depth is missing")? as i64),
    };
    let (values, dtype) = match call.known(2) {
        Some(k) => (k.numbers().unwrap_or_default(), k.dtype),
        None => return Err("the values must be known".into()),
    };
    let [off, on] = values.as_slice() else { return Err("the values must be two numbers".into()) };
    let mut dims = b.shape(index);
    let axis = resolve_axis(call.int_or("axis", -1), dims.len() + 1)?;
    let mut along = vec![Dim::Known(1); dims.len() + 1];
    along[axis] = depth.clone();
    dims.insert(axis, Dim::Known(1));
    let (index, classes) = (b.reshape(index, &dims)?, b.iota(depth)?);
    let classes = b.reshape(classes, &along)?;
    let hit = b.op(Op::Equal, &[index, classes], &[])?;
    let on = b.full(*on, dtype, &[])?;
    let off = if dtype.is_float() { b.float(*off)? } else { b.lit_int(Dim::Known(*off as i64))? };
    Ok(vec![Value::Node(b.op(Op::Where, &[hit, on, off], &[])?)])
}
