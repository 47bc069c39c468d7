//! GatherND and ScatterND: the indexed axes are joined into one, tuples of indices become places on it.

use super::index::{is_listed, scattered};
use crate::ir::dim::numel;
use crate::ir::graph::Id;
use crate::ir::{DType, Dim, Lit, Node, Op};
use crate::onnx::build::{Build, RowMask, Value};
use crate::onnx::call::{Call, Read};
use crate::onnx::known::sign;
use std::cmp::Ordering;

/// How tuples of indices address a tensor of shape `dims`.
struct Places {
    /// Flat places on the first `indexed` axes joined, in the indices' shape without the last axis.
    places: Id,
    /// How many axes of the tensor the batch and the tuples use up.
    indexed: usize,
}

fn places(b: &mut Build, call: &Call, dims: &[Dim], batch: usize) -> Result<Places, String> {
    let index = call.node(b, 1)?;
    let index = b.cast(index, DType::I64)?;
    let shape = b.shape(index);
    let Some((width, outer)) = shape.split_last() else { return Err("the indices need an axis of tuples".into()) };
    let width = width.known().and_then(|n| usize::try_from(n).ok()).ok_or("the tuples need a known length")?;
    if width == 0 || batch + width > dims.len() || outer.len() < batch || outer[..batch] != dims[..batch] {
        return Err(format!("tuples of {width} indices behind {batch} batch axes do not fit rank {}", dims.len()));
    }
    let is_place = |n: &Dim| matches!(sign(n), Some(Ordering::Equal | Ordering::Greater));
    let from_end = match call.known(1) {
        Some(k) => k.dims().is_none_or(|d| !d.iter().all(is_place)),
        None => !is_listed(b, index),
    };
    let mut places: Option<Id> = None;
    for k in 0..width {
        let size = &dims[batch + k];
        let part = b.slice(index, outer.len(), Dim::Known(k as i64), Dim::Known(k as i64 + 1), 1)?;
        let mut part = b.reshape(part, outer)?;
        let size_lit = b.lit_int(size.clone())?;
        if from_end {
            let zero = b.lit_int(Dim::Known(0))?;
            let (negative, wrapped) = (b.op(Op::Less, &[part, zero], &[])?, b.op(Op::Add, &[part, size_lit], &[])?);
            part = b.op(Op::Where, &[negative, wrapped, part], &[])?;
        }
        places = Some(match places {
            None => part,
            Some(before) => {
                let rows = b.op(Op::Mul, &[before, size_lit], &[])?;
                b.op(Op::Add, &[rows, part], &[])?
            }
        });
    }
    let mut places = places.ok_or("the tuples are empty")?;
    if batch > 0 {
        // Each batch has a stretch of the joined axis to itself.
        let (count, stretch) = (numel(&dims[..batch]), numel(&dims[batch..batch + width]));
        let start = b.iota(count)?;
        let stretch = b.lit_int(stretch)?;
        let start = b.op(Op::Mul, &[start, stretch], &[])?;
        let ones = vec![Dim::Known(1); outer.len() - batch];
        let start = b.reshape(start, &[&dims[..batch], &ones].concat())?;
        places = b.op(Op::Add, &[places, start], &[])?;
    }
    Ok(Places { places, indexed: batch + width })
}

/// What one known tuple addresses, as a slice: it needs no index tensor.
fn part(b: &mut Build, call: &Call, x: Id, batch: usize) -> Result<Option<Id>, String> {
    let dims = b.shape(x);
    let Some((index, tuple)) = call.known(1).and_then(|k| Some((k, k.dims()?))) else { return Ok(None) };
    let is_one =
        batch == 0 && index.shape.last() == Some(&tuple.len()) && !tuple.is_empty() && tuple.len() <= dims.len();
    if !is_one || tuple.iter().any(|n| sign(n).is_none()) {
        return Ok(None);
    }
    let outer = index.shape[..index.shape.len() - 1].iter().map(|n| Dim::Known(*n as i64));
    let shape: Vec<Dim> = outer.chain(dims[tuple.len()..].iter().cloned()).collect();
    let mut x = x;
    for (axis, n) in tuple.iter().enumerate() {
        let at = if sign(n) == Some(Ordering::Less) { n.clone() + dims[axis].clone() } else { n.clone() };
        if let (Some(size), Some(at)) = (dims[axis].known(), at.known())
            && !(0..size).contains(&at)
        {
            return Err(format!("index {n} is outside size {size}"));
        }
        x = b.slice(x, axis, at.clone(), at + Dim::Known(1), 1)?;
    }
    b.reshape(x, &shape).map(Some)
}

pub fn gather_nd(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let dims = b.shape(x);
    let batch = usize::try_from(call.int_or("batch_dims", 0)).map_err(|_| "batch_dims must not be negative")?;
    if let Some(part) = part(b, call, x, batch)? {
        return Ok(vec![Value::Node(part)]);
    }
    let Places { places, indexed } = places(b, call, &dims, batch)?;
    let joined = b.reshape(x, &[&[numel(&dims[..indexed])], &dims[indexed..]].concat())?;
    Ok(vec![Value::Node(b.op(Op::Gather, &[joined, places], &[Lit::Int(Dim::Known(0))])?)])
}

/// `x[mask] = updates`, where the mask is of whole rows of x.
fn put_rows(b: &mut Build, call: &Call, x: Id, updates: Id) -> Result<Option<Id>, String> {
    let index = call.node(b, 1)?;
    let Node::Op(Op::Transpose, listed) = b.graph.node(index) else { return Ok(None) };
    let Some(RowMask { mask, rows, width, shape }) = b.row_masks.get(&listed[0]).cloned() else { return Ok(None) };
    let dims = b.shape(x);
    // Tuples address elements, by each axis of x one index, and the mask was searched in x's shape.
    let [n, tuple] = &b.shape(index)[..] else { return Ok(None) };
    let is_whole = tuple.is(dims.len() as i64) && call.word("reduction").is_none_or(|r| r == "none");
    let count = numel(&b.shape(mask));
    if !is_whole || shape != dims || numel(&b.shape(updates)) != *n {
        return Ok(None);
    }
    let one = Dim::Known(1);
    let found = b.shape(rows).first().cloned().unwrap_or(Dim::Known(0));
    let updates = b.reshape(updates, &[found, width.clone()])?;
    let put = b.op(Op::PutRows, &[updates, rows], &[Lit::Int(one.clone()), Lit::Int(count.clone())])?;
    let put = b.reshape(put, &[count.clone(), width.clone()])?;
    let mask = b.reshape(mask, &[count.clone(), one])?;
    let x = b.reshape(x, &[count, width])?;
    let y = b.op(Op::Where, &[mask, put, x], &[])?;
    b.reshape(y, &dims).map(Some)
}

/// `x[from:to] = updates`, where the rows are known: the others, and these between them.
fn put_range(b: &mut Build, call: &Call, x: Id, updates: Id) -> Result<Option<Id>, String> {
    let Some((index, rows)) = call.known(1).and_then(|k| Some((k, k.dims()?))) else { return Ok(None) };
    let rows: Option<Vec<i64>> = rows.iter().map(Dim::known).collect();
    let (Some(rows), Some(size)) = (rows, b.shape(x).first().and_then(Dim::known)) else { return Ok(None) };
    let ([from, ..], Some(to)) = (&rows[..], rows.last().map(|last| last + 1)) else { return Ok(None) };
    let in_line = rows.windows(2).all(|pair| pair[0] + 1 == pair[1]) && *from >= 0 && to <= size;
    if !in_line || index.shape != [rows.len(), 1] || call.word("reduction").is_some_and(|r| r != "none") {
        return Ok(None);
    }
    let mut parts = Vec::new();
    for (start, end) in [(0, *from), (*from, to), (to, size)].into_iter().filter(|(start, end)| start < end) {
        let own = (start, end) == (*from, to);
        parts.push(if own { updates } else { b.slice(x, 0, Dim::Known(start), Dim::Known(end), 1)? });
    }
    b.concat(&parts, 0).map(Some)
}

pub fn scatter_nd(b: &mut Build, call: &Call) -> Read {
    let (x, updates) = (call.node(b, 0)?, call.node(b, 2)?);
    if let Some(put) = put_range(b, call, x, updates)? {
        return Ok(vec![Value::Node(put)]);
    }
    let dims = b.shape(x);
    if let Some(put) = put_rows(b, call, x, updates)? {
        return Ok(vec![Value::Node(put)]);
    }
    let Places { places, indexed } = places(b, call, &dims, 0)?;
    // Rows of what one tuple addresses, [tuples, row], into [places, row].
    let (tuples, row) = (numel(&b.shape(places)), numel(&dims[indexed..]));
    let joined = b.reshape(x, &[numel(&dims[..indexed]), row.clone()])?;
    let updates = b.reshape(updates, &[tuples.clone(), row.clone()])?;
    let places = b.reshape(places, &[tuples.clone(), Dim::Known(1)])?;
    let places = b.expand(places, &[tuples, row])?;
    let y = scattered(b, call, [joined, places, updates], Lit::Int(Dim::Known(0)))?;
    Ok(vec![Value::Node(b.reshape(y, &dims)?)])
}
