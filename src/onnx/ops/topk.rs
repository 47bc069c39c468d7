//! TopK as two operators of one result each; ArgMax and ArgMin as the second for one element.

use crate::ir::{Dim, Lit, Op};
use crate::onnx::build::{Build, Value};
use crate::onnx::call::{Call, Read};

/// The results are always sorted: for `sorted = 0` the order is left open.
pub fn topk(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let axis = call.axis(-1, b.shape(x).len())? as i64;
    let k = call.dims(1, "k")?.and_then(|d| d.first().cloned()).ok_or("k is missing")?;
    let largest = i64::from(call.int_or("largest", 1) != 0);
    let attrs = [k, Dim::Known(axis), Dim::Known(largest)].map(Lit::Int);
    let values = b.op(Op::TopkValues, &[x], &attrs)?;
    let indices = b.op(Op::TopkIndices, &[x], &attrs)?;
    Ok(vec![Value::Node(values), Value::Node(indices)])
}

pub fn arg_max(b: &mut Build, call: &Call) -> Read {
    arg_best(b, call, 1)
}

pub fn arg_min(b: &mut Build, call: &Call) -> Read {
    arg_best(b, call, 0)
}

fn arg_best(b: &mut Build, call: &Call, largest: i64) -> Read {
    let x = call.node(b, 0)?;
    let mut shape = b.shape(x);
    let axis = call.axis(0, shape.len())?;
    if call.int_or("select_last_index", 0) != 0 {
        return Err("of equal elements the first is taken, not the last (select_last_index = 1)".into());
    }
    let attrs = [1, axis as i64, largest].map(|n| Lit::Int(Dim::Known(n)));
    let best = b.op(Op::TopkIndices, &[x], &attrs)?;
    if call.int_or("keepdims", 1) != 0 {
        return Ok(vec![Value::Node(best)]);
    }
    shape.remove(axis);
    Ok(vec![Value::Node(b.reshape(best, &shape)?)])
}
