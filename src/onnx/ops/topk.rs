//! TopK as two operators of one result each.

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
