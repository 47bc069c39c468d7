//! RotaryEmbedding as `rope`: `x cos + rotate_half(x) sin`.

use crate::ir::graph::{Id, Node};
use crate::ir::{DType, Dim, Lit, Op};
use crate::onnx::build::{Build, Value};
use crate::onnx::call::{Call, Read};

pub fn rotary_embedding(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let dims = b.shape(x);
    // [B, L, H D] becomes [B, H, L, D].
    let (x, heads_inside) = match dims.as_slice() {
        [_, _, _, _] => (x, false),
        [batch, length, hidden] => {
            let heads = Dim::Known(call.int("num_heads").ok_or("attribute num_heads is missing")?);
            let width = hidden.div_exact(&heads).ok_or(format!("width {hidden} does not divide into {heads} heads"))?;
            let split = b.reshape(x, &[batch.clone(), length.clone(), heads, width])?;
            (b.transpose(split, &[0, 2, 1, 3])?, true)
        }
        _ => return Err("needs rank 3 or 4".into()),
    };
    let width = b.shape(x)[3].clone();
    let rotated = match call.int_or("rotary_embedding_dim", 0) {
        0 => width.clone(),
        n => Dim::Known(n),
    };
    let half = rotated.known().filter(|n| n % 2 == 0).ok_or("the rotated width must be known and even")? / 2;
    let interleaved = call.int_or("interleaved", 0) != 0;
    let cos = table(b, call, 1, half)?;
    let sin = table(b, call, 2, half)?;
    let mut y = b.slice(x, 3, Dim::Known(0), rotated.clone(), 1)?;
    if interleaved {
        y = regroup(b, y, half, false)?;
    }
    y = b.op(Op::Rope, &[y, cos, sin], &[])?;
    if interleaved {
        y = regroup(b, y, half, true)?;
    }
    if rotated != width {
        let rest = b.slice(x, 3, rotated, width, 1)?;
        y = b.concat(&[y, rest], 3)?;
    }
    if heads_inside {
        y = b.transpose(y, &[0, 2, 1, 3])?;
        y = b.reshape(y, &dims)?;
    }
    Ok(vec![Value::Node(y)])
}

/// A cosine or sine table, `[L, D]` or `[B, 1, L, D]`, its halves equal.
fn table(b: &mut Build, call: &Call, k: usize, half: i64) -> Result<Id, String> {
    let mut t = call.node(b, k)?;
    if let Some(positions) = call.optional(b, 3)? {
        let positions = b.cast(positions, DType::I64)?;
        t = b.op(Op::Gather, &[t, positions], &[Lit::Int(Dim::Known(0))])?;
    }
    // ONNX Runtime wants the batch spelled out; broadcasting does without.
    if let Node::Op(Op::Expand, children) = b.graph.node(t)
        && let Some(&inner) = children.first()
        && b.shape(inner).len() == 3
        && b.shape(inner)[1..] == b.shape(t)[1..]
    {
        t = inner;
    }
    let dims = b.shape(t);
    let shape = match dims.as_slice() {
        [length, width] => [length.clone(), width.clone()].to_vec(),
        [batch, length, width] if batch.is(1) => [length.clone(), width.clone()].to_vec(),
        [batch, length, width] => [batch.clone(), Dim::Known(1), length.clone(), width.clone()].to_vec(),
        _ => return Err("the tables need rank 2 or 3".into()),
    };
    if shape.last() != Some(&Dim::Known(half)) {
        return Err(format!("tables of width {:?} do not fit a rotated width of {}", dims.last(), 2 * half));
    }
    let t = b.reshape(t, &shape)?;
    b.concat(&[t, t], shape.len() - 1)
}

/// Pairs (x1, x2), (x3, x4) .. to halves (x1, x3, .., x2, x4, ..), or back.
fn regroup(b: &mut Build, x: Id, half: i64, back: bool) -> Result<Id, String> {
    let dims = b.shape(x);
    let pair = if back { [2, half] } else { [half, 2] }.map(Dim::Known);
    let split = b.reshape(x, &[&dims[..dims.len() - 1], &pair].concat())?;
    let swapped = b.swap_last(split)?;
    b.reshape(swapped, &dims)
}
