//! RotaryEmbedding as `rope`: `x cos + rotate_half(x) sin`.

use super::attention::{heads, joined};
use crate::ir::graph::{Id, Node};
use crate::ir::{DType, Dim, Lit, Op};
use crate::onnx::build::{Build, Value};
use crate::onnx::call::{Call, Read};

pub fn rotary_embedding(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let rank = b.shape(x).len();
    let x = heads(b, x, call.int("num_heads").ok_or_else(|| "attribute num_heads is missing".into()))?;
    let tables = Tables { cos: call.node(b, 1)?, sin: call.node(b, 2)?, positions: call.optional(b, 3)? };
    let mut y = rotated(b, x, &tables, call.int_or("rotary_embedding_dim", 0), call.int_or("interleaved", 0) != 0)?;
    if rank == 3 {
        y = joined(b, y)?;
    }
    Ok(vec![Value::Node(y)])
}

/// RotaryEmbedding of ONNX Runtime's domain: positions come second, and the number of heads may follow
/// from the tables.
pub fn contrib(b: &mut Build, call: &Call) -> Read {
    if call.int_or("is_packed_batching", 0) != 0 || call.float_or("scale", 1.0) != 1.0 {
        return Err("packed batches and scales are not supported".into());
    }
    let (x, positions, cos, sin) = (call.node(b, 0)?, call.node(b, 1)?, call.node(b, 2)?, call.node(b, 3)?);
    let dims = b.shape(x);
    let turned = call.int_or("rotary_embedding_dim", 0);
    let split = match (call.int_or("num_heads", 0), b.shape(cos).last().and_then(Dim::known), dims.last()) {
        (0, Some(half), Some(hidden)) if dims.len() == 3 => hidden.div_exact(&Dim::Known(2 * half)),
        (n, ..) => Some(Dim::Known(n)),
    };
    let count = split.as_ref().and_then(Dim::known).ok_or_else(|| "the number of heads is unknown".to_string());
    let inside = heads(b, x, count)?;
    let length = b.shape(inside)[2].clone();
    let shape = b.shape(positions);
    let positions = match shape.as_slice() {
        [_, _] => positions,
        // One number: where the sequence starts.
        [_] => {
            let (start, steps) = (b.cast(positions, DType::I64)?, b.iota(length.clone())?);
            let row = b.op(Op::Add, &[steps, start], &[])?;
            b.reshape(row, &[Dim::Known(1), length])?
        }
        _ => return Err("positions need rank 1 or 2".into()),
    };
    let tables = Tables { cos, sin, positions: Some(positions) };
    let y = rotated(b, inside, &tables, turned, call.int_or("interleaved", 0) != 0)?;
    Ok(vec![Value::Node(if dims.len() == 3 { joined(b, y)? } else { y })])
}

/// Cosines and sines: a row a position where `positions` `[B, L]` picks rows, else a row a token.
pub struct Tables {
    pub cos: Id,
    pub sin: Id,
    pub positions: Option<Id>,
}

/// The first `turned` elements (0: all) of each head of `x` `[B, H, L, D]` rotated.
pub fn rotated(b: &mut Build, x: Id, tables: &Tables, turned: i64, interleaved: bool) -> Result<Id, String> {
    let width = b.shape(x)[3].clone();
    let turned = if turned == 0 { width.clone() } else { Dim::Known(turned) };
    let half = turned.known().filter(|n| n % 2 == 0).ok_or("the rotated width must be known and even")? / 2;
    let mut y = b.slice(x, 3, Dim::Known(0), turned.clone(), 1)?;
    let dims = b.shape(y);
    // Neighbours are pairs, and a pair is a head of width two with an angle of its own.
    if interleaved {
        y = b.reshape(y, &[&dims[..3], &[Dim::Known(half), Dim::Known(2)]].concat())?;
    }
    let cos = table(b, tables.cos, tables.positions, half, interleaved)?;
    let sin = table(b, tables.sin, tables.positions, half, interleaved)?;
    y = b.op(Op::Rope, &[y, cos, sin], &[])?;
    if interleaved {
        y = b.reshape(y, &dims)?;
    }
    if turned != width {
        let rest = b.slice(x, 3, turned, width, 1)?;
        y = b.concat(&[y, rest], 3)?;
    }
    Ok(y)
}

/// A cosine or sine table, its halves equal: `[L, D]` or `[B, 1, L, D]`; of pairs `[L, D/2, 2]` or `[B, 1, L, D/2, 2]`.
fn table(b: &mut Build, mut t: Id, positions: Option<Id>, half: i64, pairs: bool) -> Result<Id, String> {
    if let Some(positions) = positions {
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
    let mut shape = match dims.as_slice() {
        [length, width] => [length.clone(), width.clone()].to_vec(),
        [batch, length, width] if batch.is(1) => [length.clone(), width.clone()].to_vec(),
        [batch, length, width] => [batch.clone(), Dim::Known(1), length.clone(), width.clone()].to_vec(),
        _ => return Err("the tables need rank 2 or 3".into()),
    };
    if shape.last() != Some(&Dim::Known(half)) {
        return Err(format!("tables of width {:?} do not fit a rotated width of {}", dims.last(), 2 * half));
    }
    if pairs {
        shape.push(Dim::Known(1));
    }
    let t = b.reshape(t, &shape)?;
    b.concat(&[t, t], shape.len() - 1)
}
