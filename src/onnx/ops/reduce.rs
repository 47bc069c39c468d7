//! Reductions, softmax, cumulative sums.  Axes are written from the end, as the lift rules expect.

use super::layout::shape_of;
use crate::ir::dim::numel;
use crate::ir::graph::Id;
use crate::ir::infer::resolve_axis;
use crate::ir::{Builder, DType, Dim, Lit, Node, Op};
use crate::onnx::build::{Build, Value, ints};
use crate::onnx::call::{Call, Read};
use crate::onnx::known::Known;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    L1,
    L2,
    LogSum,
    LogSumExp,
    Max,
    Mean,
    Min,
    Prod,
    Sum,
    SumSquare,
}

pub fn reduce(b: &mut Build, call: &Call, kind: Kind) -> Read {
    let rank = shape_of(b, call.value(0)?)?.len();
    let mut axes = match call.integers("axes", 1)?.filter(|a| !a.is_empty()) {
        Some(axes) => axes.iter().map(|a| resolve_axis(*a, rank)).collect::<Result<Vec<_>, _>>()?,
        None if call.int_or("noop_with_empty_axes", 0) != 0 => return Ok(vec![call.value(0)?.clone()]),
        None => (0..rank).collect(),
    };
    axes.sort();
    axes.dedup();
    along(b, call, kind, &axes, call.int_or("keepdims", 1) != 0)
}

/// Over every axis behind the first two: how tf2onnx writes the mean of each row of `[batch, length, width]`.
pub fn global_pool(b: &mut Build, call: &Call, kind: Kind) -> Read {
    let rank = shape_of(b, call.value(0)?)?.len();
    along(b, call, kind, &(2..rank).collect::<Vec<_>>(), true)
}

fn along(b: &mut Build, call: &Call, kind: Kind, axes: &[usize], keeps: bool) -> Read {
    let dims = shape_of(b, call.value(0)?)?;
    let rank = dims.len();
    let kept: Vec<Dim> = match keeps {
        false => (0..rank).filter(|k| !axes.contains(k)).map(|k| dims[k].clone()).collect(),
        true => (0..rank).map(|k| if axes.contains(&k) { Dim::Known(1) } else { dims[k].clone() }).collect(),
    };
    if let Some(known) = call.known(0)
        && axes.len() == rank
        && let Some(folded) = fold(known, kind)
    {
        return Ok(vec![super::layout::reshaped(b, &Value::Known(folded), &kept)?]);
    }
    if axes.is_empty() {
        return Ok(vec![call.value(0)?.clone()]);
    }
    let x = call.node(b, 0)?;
    if kind == Kind::Sum
        && axes.len() == rank
        && let Some(count) = counted(b, x)
    {
        return Ok(vec![super::layout::reshaped(b, &Value::Known(count), &kept)?]);
    }
    let along = ints(axes.iter().map(|a| *a as i64 - rank as i64));
    let id = spelled(b, x, kind, &along)?;
    Ok(vec![Value::Node(b.reshape(id, &kept)?)])
}

/// The sum of a mask whose true places were listed: the length of that list, a size that shapes are made of.
fn counted(b: &Build, x: Id) -> Option<Known> {
    let Node::Op(Op::Cast, children) = b.graph.node(x) else { return None };
    let (from, to) = (b.ty(children[0]).ok()?.dtype, b.ty(x).ok()?.dtype);
    let n = b.graph.rows_of(children[0]).filter(|_| from == DType::Bool && to.is_int())?;
    Some(Known::scalar(n))
}

/// All elements of a known tensor, reduced to a scalar.
fn fold(known: &Known, kind: Kind) -> Option<Known> {
    let op = match kind {
        Kind::Sum => Op::Add,
        Kind::Prod => Op::Mul,
        Kind::Max => Op::Max,
        Kind::Min => Op::Min,
        _ => return None,
    };
    let mut items = (0..known.len()).map(|k| known.picked(vec![], |_| k));
    let first = items.next()??;
    items.try_fold(first, |a, b| Known::binary(op, &a, &b?))
}

fn spelled(b: &mut Build, x: Id, kind: Kind, axes: &Lit) -> Result<Id, String> {
    let axes = std::slice::from_ref(axes);
    match kind {
        Kind::Sum => b.op(Op::Sum, &[x], axes),
        Kind::Mean => b.op(Op::Mean, &[x], axes),
        Kind::Max => b.op(Op::ReduceMax, &[x], axes),
        Kind::Min => {
            let flipped = b.op(Op::Neg, &[x], &[])?;
            let most = b.op(Op::ReduceMax, &[flipped], axes)?;
            b.op(Op::Neg, &[most], &[])
        }
        Kind::L1 => {
            let size = b.op(Op::Abs, &[x], &[])?;
            b.op(Op::Sum, &[size], axes)
        }
        Kind::L2 => {
            let squares = spelled(b, x, Kind::SumSquare, &axes[0])?;
            b.op(Op::Sqrt, &[squares], &[])
        }
        Kind::SumSquare => {
            let square = b.op(Op::Mul, &[x, x], &[])?;
            b.op(Op::Sum, &[square], axes)
        }
        Kind::LogSum => {
            let sum = b.op(Op::Sum, &[x], axes)?;
            b.op(Op::Log, &[sum], &[])
        }
        Kind::LogSumExp => {
            let most = b.op(Op::ReduceMax, &[x], axes)?;
            let shifted = b.op(Op::Sub, &[x, most], &[])?;
            let powers = b.op(Op::Exp, &[shifted], &[])?;
            let sum = b.op(Op::Sum, &[powers], axes)?;
            let log = b.op(Op::Log, &[sum], &[])?;
            b.op(Op::Add, &[log, most], &[])
        }
        Kind::Prod => Err("products of tensors are not supported".into()),
    }
}

/// Along one axis, counted from the end; without an attribute the last.
pub fn along_axis(b: &mut Build, call: &Call, f: fn(&mut Build, Id, i64) -> Result<Id, String>) -> Read {
    let x = call.node(b, 0)?;
    let rank = b.shape(x).len();
    let axis = call.axis(-1, rank)? as i64 - rank as i64;
    Ok(vec![Value::Node(f(b, x, axis)?)])
}

/// Along the axis and all behind it together, as opsets before 13 have it; without an attribute all but the first.
pub fn of_rows(b: &mut Build, call: &Call, f: fn(&mut Build, Id, i64) -> Result<Id, String>) -> Read {
    let x = call.node(b, 0)?;
    let shape = b.shape(x);
    let axis = call.axis(1.min(shape.len() as i64 - 1), shape.len())?;
    let row = [&shape[..axis], &[numel(&shape[axis..])]].concat();
    let rows = b.reshape(x, &row)?;
    let result = f(b, rows, -1)?;
    Ok(vec![Value::Node(b.reshape(result, &shape)?)])
}

pub fn softmax(b: &mut Build, x: Id, axis: i64) -> Result<Id, String> {
    b.op(Op::Softmax, &[x], &[Lit::Int(Dim::Known(axis))])
}

pub fn log_softmax(b: &mut Build, x: Id, axis: i64) -> Result<Id, String> {
    let total = spelled(b, x, Kind::LogSumExp, &ints([axis]))?;
    b.op(Op::Sub, &[x, total], &[])
}

pub fn cumsum(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let axis =
        call.dims(1, "the axis")?.and_then(|d| d.first().and_then(Dim::known)).ok_or("the axis must be known")?;
    let axis = resolve_axis(axis, b.shape(x).len())? as i64;
    let reverse = i64::from(call.int_or("reverse", 0) != 0);
    let mut id = b.op(Op::CumSum, &[x], &[axis, reverse].map(|n| Lit::Int(Dim::Known(n))))?;
    if call.int_or("exclusive", 0) != 0 {
        id = b.op(Op::Sub, &[id, x], &[])?;
    }
    Ok(vec![Value::Node(id)])
}
