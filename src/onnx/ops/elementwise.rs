//! Elementwise operators: folded where all elements are known, weak scalars where one operand is.

use super::layout::shape_of;
use crate::ir::graph::{Id, Node};
use crate::ir::infer::broadcast_shapes;
use crate::ir::{Builder, DType, Dim, F64, LeafKind, Lit, Op};
use crate::onnx::build::{Build, Value};
use crate::onnx::call::{Call, Read};
use crate::onnx::known::{Items, Known};

pub fn unary(b: &mut Build, call: &Call, op: Op) -> Read {
    if let Some(folded) = call.known(0).and_then(|k| k.unary(op)) {
        return Ok(vec![Value::Known(folded)]);
    }
    let x = call.node(b, 0)?;
    Ok(vec![Value::Node(b.op(op, &[x], &[])?)])
}

pub fn binary(b: &mut Build, call: &Call, op: Op) -> Read {
    Ok(vec![combine(b, op, call.value(0)?, call.value(1)?)?])
}

/// `op` of two values, broadcasting.
pub fn combine(b: &mut Build, op: Op, x: &Value, y: &Value) -> Result<Value, String> {
    if let (Value::Known(x), Value::Known(y)) = (x, y)
        && let Some(folded) = Known::binary(op, x, y)
    {
        return Ok(Value::Known(folded));
    }
    if matches!(op, Op::And | Op::Or) {
        return logic(b, op, x, y).map(Value::Node);
    }
    let (xs, ys) = operands(b, x, y)?;
    let (xs, ys) = (row(b, xs, ys), row(b, ys, xs));
    if let Some(id) = decided(b, op, xs, ys)? {
        return Ok(Value::Node(b.pad_rank(id, rank(b, x).max(rank(b, y)))?));
    }
    let id = b.op(op, &[xs, ys], &[])?;
    Ok(Value::Node(b.pad_rank(id, rank(b, x).max(rank(b, y)))?))
}

/// A parameter as it is, where it is put behind axes of size 1 beside a tensor that has those axes too.
fn row(b: &Build, id: Id, beside: Id) -> Id {
    let Node::Op(Op::Reshape, children) = b.graph.node(id) else { return id };
    let (inner, shape) = (children[0], b.shape(id));
    let is_vector = b.shape(inner).len() == 1 && shape.last() == b.shape(inner).first();
    let is_param = matches!(b.graph.node(inner), Node::Leaf(leaf) if b.graph.leaf(*leaf).kind == LeafKind::Param);
    if is_vector && is_param && b.shape(beside).len() >= shape.len() { inner } else { id }
}

/// Results that need no computation.  Exporters write masks that mask nothing: `positions >= 0`, sums with
/// tensors of zeros.
fn decided(b: &mut Build, op: Op, x: Id, y: Id) -> Result<Option<Id>, String> {
    if op == Op::Add {
        for (zeros, other) in [(x, y), (y, x)] {
            let shape = b.shape(other);
            let inside = broadcast_shapes(&b.shape(zeros), &shape).is_ok_and(|joined| joined == shape);
            if inside && b.uniform(zeros).is_some_and(|(value, _)| value == 0.0) && b.graph.tensor_type(other).is_some()
            {
                return Ok(Some(other));
            }
        }
    }
    let number = |id| b.uniform(id).map(|(value, _)| value).or_else(|| b.graph.type_of(id).lit().and_then(Lit::number));
    if let (Op::Add | Op::Sub | Op::Mul, Some(p), Some(q)) = (op, number(x), number(y))
        && let Some(dtype) = [x, y].iter().find_map(|id| b.graph.tensor_type(*id)).map(|t| t.dtype)
        && let Some(value) = Known::binary(op, &Known::float(p), &Known::float(q)).and_then(|k| k.uniform())
        && dtype.is_float()
    {
        let shape = broadcast_shapes(&b.shape(x), &b.shape(y))?;
        return b.full(value, dtype, &shape).map(Some);
    }
    let least = b.graph.type_of(y).lit().and_then(Lit::number);
    if op == Op::GreaterEqual && least.is_some_and(|n| n <= 0.0) && is_position(b, x) {
        let shape = b.shape(x);
        return b.full(1.0, DType::Bool, &shape).map(Some);
    }
    Ok(None)
}

/// Whether a tensor is `0..n` in some shape.
fn is_position(b: &Build, mut id: Id) -> bool {
    while let Node::Op(Op::Reshape | Op::Expand, children) = b.graph.node(id) {
        match children.first() {
            Some(inner) => id = *inner,
            None => return false,
        }
    }
    matches!(b.graph.node(id), Node::Op(Op::Iota, _))
}

/// The remainder of integers.  It has the divisor's sign, or with `fmod` the dividend's, as that of IR's division, which
/// truncates, has anyway: adding the divisor and dividing once more leads from the one to the other.
pub fn modulo(b: &mut Build, call: &Call) -> Read {
    let (x, y) = (call.value(0)?, call.value(1)?);
    let is_float = match x {
        Value::Known(k) => k.dtype.is_float(),
        other => {
            let id = b.tensor(other)?;
            b.ty(id)?.dtype.is_float()
        }
    };
    if is_float {
        return Err("the remainder of numbers with a fraction is not supported".into());
    }
    let rest = |b: &mut Build, x: &Value| -> Result<Value, String> {
        let quotient = combine(b, Op::Div, x, y)?;
        let whole = combine(b, Op::Mul, &quotient, y)?;
        combine(b, Op::Sub, x, &whole)
    };
    let truncated = rest(b, x)?;
    if call.int_or("fmod", 0) != 0 {
        return Ok(vec![truncated]);
    }
    let shifted = combine(b, Op::Add, &truncated, y)?;
    Ok(vec![rest(b, &shifted)?])
}

pub fn rank(b: &Build, value: &Value) -> usize {
    match value {
        Value::Node(id) => b.shape(*id).len(),
        Value::Known(known) => known.shape.len(),
        _ => 0,
    }
}

/// Two operands, one of them a literal where it is a single known number and the other is a tensor.
///
/// A literal has no rank: the caller pads the result where the literal's was the higher one.
fn operands(b: &mut Build, x: &Value, y: &Value) -> Result<(Id, Id), String> {
    Ok(match (x, y) {
        (Value::Known(k), Value::Node(id)) => (scalar_beside(b, k, *id)?, *id),
        (Value::Node(id), Value::Known(k)) => (*id, scalar_beside(b, k, *id)?),
        _ => (b.tensor(x)?, b.tensor(y)?),
    })
}

/// A known value as an operand beside a tensor.
pub fn scalar_beside(b: &mut Build, known: &Known, other: Id) -> Result<Id, String> {
    let boolean = b.ty(other)?.dtype == DType::Bool;
    // A size among floats is a cast.
    let exact = !known.dtype.is_float() || known.numbers().is_some();
    let literal = match (&known.items, known.len()) {
        (Items::Ints(dims), 1) if exact && !boolean => dims.first().map(|d| Lit::Int(d.clone())),
        (Items::Floats(xs), 1) => xs.first().map(|x| Lit::Float(F64(*x))),
        _ => None,
    };
    match (literal, b.ty(other)?.dtype.is_float()) {
        // An integer exponent of a float, for instance.
        (Some(Lit::Int(Dim::Known(n))), true) => b.float(n as f64),
        (Some(literal), _) => b.graph.lit(literal),
        (None, _) => b.tensor(&Value::Known(known.clone())),
    }
}

/// `and`, `or`: a known operand decides the result or leaves the other as it is.
fn logic(b: &mut Build, op: Op, x: &Value, y: &Value) -> Result<Id, String> {
    let neutral = if op == Op::And { 1.0 } else { 0.0 };
    for (k, other) in [(x, y), (y, x)] {
        let value = match k {
            Value::Known(known) => known.uniform(),
            Value::Node(id) => b.uniform(*id).map(|(value, _)| value),
            _ => None,
        };
        if let Some(value) = value {
            let shape = broadcast_shapes(&shape_of(b, k)?, &shape_of(b, other)?)?;
            let other = b.tensor(other)?;
            return if value == neutral { b.expand(other, &shape) } else { b.full(value, DType::Bool, &shape) };
        }
    }
    let (x, y) = (b.tensor(x)?, b.tensor(y)?);
    b.op(op, &[x, y], &[])
}

pub fn join(b: &mut Build, call: &Call, op: Op) -> Read {
    let mut joined = call.value(0)?.clone();
    for k in 1..call.inputs.len() {
        joined = combine(b, op, &joined, call.value(k)?)?;
    }
    Ok(vec![joined])
}

pub fn mean(b: &mut Build, call: &Call) -> Read {
    let sum = join(b, call, Op::Add)?.pop().unwrap_or(Value::Absent);
    let count = Value::Known(Known::float(call.inputs.len() as f64));
    Ok(vec![combine(b, Op::Div, &sum, &count)?])
}

pub fn xor(b: &mut Build, call: &Call) -> Read {
    let (x, y) = (call.node(b, 0)?, call.node(b, 1)?);
    let same = b.op(Op::Equal, &[x, y], &[])?;
    Ok(vec![Value::Node(b.op(Op::Not, &[same], &[])?)])
}

pub fn identity(_: &mut Build, call: &Call) -> Read {
    Ok(vec![call.value(0)?.clone()])
}

/// Inference only: a model is exported in evaluation mode.
pub fn dropout(b: &mut Build, call: &Call) -> Read {
    if call.number(2, "training_mode")?.is_some_and(|x| x != 0.0) {
        return Err("dropout in training mode cannot be read; export the model after `model.eval()`".into());
    }
    let mut results = vec![call.value(0)?.clone()];
    if call.outputs > 1 {
        let x = call.node(b, 0)?;
        let shape = b.shape(x);
        results.push(Value::Node(b.full(1.0, DType::Bool, &shape)?));
    }
    Ok(results)
}

pub fn cast(b: &mut Build, call: &Call) -> Read {
    let to = call.dtype("to")?.ok_or("attribute to is missing")?;
    convert(b, call.value(0)?, to)
}

pub fn cast_like(b: &mut Build, call: &Call) -> Read {
    let to = match call.value(1)? {
        Value::Known(known) => known.dtype,
        other => {
            let id = b.tensor(other)?;
            b.ty(id)?.dtype
        }
    };
    convert(b, call.value(0)?, to)
}

fn convert(b: &mut Build, value: &Value, to: DType) -> Read {
    if let Value::Known(known) = value
        && let Some(folded) = known.cast(to)
    {
        return Ok(vec![Value::Known(folded)]);
    }
    let x = b.tensor(value)?;
    Ok(vec![Value::Node(b.cast(x, to)?)])
}

pub fn clip(b: &mut Build, call: &Call) -> Read {
    let mut value = call.value(0)?.clone();
    for (k, op) in [(1, Op::Max), (2, Op::Min)] {
        if let Some(bound) = call.get(k) {
            value = combine(b, op, &value, bound)?;
        }
    }
    Ok(vec![value])
}

pub fn select(b: &mut Build, call: &Call) -> Read {
    let (condition, x, y) = (call.value(0)?, call.value(1)?, call.value(2)?);
    if let (Value::Known(c), Value::Known(x), Value::Known(y)) = (condition, x, y)
        && let Some(folded) = Known::select(c, x, y)
    {
        return Ok(vec![Value::Known(folded)]);
    }
    let rank = [condition, x, y].map(|v| rank(b, v)).into_iter().max().unwrap_or(0);
    let c = b.tensor(condition)?;
    if let Some((holds, _)) = b.uniform(c) {
        let (chosen, other) = if holds != 0.0 { (x, y) } else { (y, x) };
        let shape = broadcast_shapes(&b.shape(c), &shape_of(b, other)?)?;
        let chosen = b.tensor(chosen)?;
        return Ok(vec![Value::Node(b.expand(chosen, &shape)?)]);
    }
    let (x, y) = match (x, y) {
        // One side must be a tensor, to give the element type.
        (Value::Known(kx), Value::Known(_)) => {
            let typed = match (kx.uniform(), kx.len()) {
                (Some(value), 1) => b.full(value, kx.dtype, &[])?,
                _ => b.tensor(x)?,
            };
            operands(b, &Value::Node(typed), y)?
        }
        _ => operands(b, x, y)?,
    };
    let id = b.op(Op::Where, &[c, x, y], &[])?;
    Ok(vec![Value::Node(b.pad_rank(id, rank)?)])
}
