//! Quantised weights: `DequantizeLinear`, and `MatMulNBits` of ONNX Runtime's domain.

use crate::ir::graph::Id;
use crate::ir::{DType, Dim, Lit, Op};
use crate::onnx::build::{Build, Value, ints};
use crate::onnx::call::{Call, Read};

/// `(x - zero_point) scale`, with one scale for all, for each index of an axis, or for each block along it.
pub fn dequantize_linear(b: &mut Build, call: &Call) -> Read {
    let (x, scale) = (call.node(b, 0)?, call.node(b, 1)?);
    let (shape, dtype) = (b.shape(x), b.ty(scale)?.dtype);
    let mut values = b.cast(x, dtype)?;
    if let Some(zero) = call.optional(b, 2)? {
        let zero = b.cast(zero, dtype)?;
        let zero = spread(b, call, zero, &shape)?;
        values = b.op(Op::Sub, &[values, zero], &[])?;
    }
    let scale = spread(b, call, scale, &shape)?;
    Ok(vec![Value::Node(b.op(Op::Mul, &[values, scale], &[])?)])
}

/// Scales or zero points so that they broadcast to `shape`.
fn spread(b: &mut Build, call: &Call, x: Id, shape: &[Dim]) -> Result<Id, String> {
    let own = b.shape(x);
    let block = call.int_or("block_size", 0);
    match own.as_slice() {
        [] => Ok(x),
        [n] if n.is(1) && block == 0 => b.reshape(x, &[]),
        [n] if block == 0 => {
            let mut along = vec![Dim::Known(1); shape.len()];
            along[call.axis(1, shape.len())?] = n.clone();
            b.reshape(x, &along)
        }
        _ if block > 0 && own.len() == shape.len() => {
            let axis = call.axis(1, shape.len())?;
            // Each scale `block` times, then no more than there are elements.
            let mut wide = own.clone();
            wide.insert(axis + 1, Dim::Known(1));
            let x = b.reshape(x, &wide)?;
            wide[axis + 1] = Dim::Known(block);
            let x = b.expand(x, &wide)?;
            let mut joined = own.clone();
            joined[axis] = own[axis].clone() * Dim::Known(block);
            let x = b.reshape(x, &joined)?;
            b.slice(x, axis, Dim::Known(0), shape[axis].clone(), 1)
        }
        _ => Err("scales of this shape are not supported".into()),
    }
}

/// `x w^T + bias`, where w lies as codes of 4 or 8 bits with the zero point in the middle.
pub fn matmul_nbits(b: &mut Build, call: &Call) -> Read {
    let count = |name: &str| call.int(name).ok_or_else(|| format!("attribute {name} is missing"));
    let (k, n, bits, block) = (count("K")?, count("N")?, call.int_or("bits", 4), count("block_size")?);
    if k < 1 || n < 1 || block < 1 {
        return Err("K, N and block_size must be positive".into());
    }
    if call.get(3).is_some() || call.get(4).is_some() {
        return Err("zero points and group indices are not supported".into());
    }
    let blocks = Dim::Known((k - 1) / block + 1);
    let (x, codes, scales) = (call.node(b, 0)?, call.node(b, 1)?, call.node(b, 2)?);
    let scales = b.reshape(scales, &[Dim::Known(n), blocks.clone()])?;
    let whole = [Dim::Known(n), blocks.clone(), Dim::Known(block)];
    let dense = match bits {
        8 => {
            let codes = b.reshape(codes, &whole)?;
            b.op(Op::Dequantize, &[codes, scales], &[Lit::Int(Dim::Known(8)), Lit::Int(Dim::Known(k))])?
        }
        4 => {
            let codes = halves(b, codes, &whole)?;
            let eight = b.float(8.0)?;
            let codes = b.op(Op::Sub, &[codes, eight], &[])?;
            let codes = {
                let dtype = b.ty(scales)?.dtype;
                b.cast(codes, dtype)?
            };
            let per_block = b.reshape(scales, &[Dim::Known(n), blocks.clone(), Dim::Known(1)])?;
            let dense = b.op(Op::Mul, &[codes, per_block], &[])?;
            let dense = b.reshape(dense, &[Dim::Known(n), blocks * Dim::Known(block)])?;
            b.slice(dense, 1, Dim::Known(0), Dim::Known(k), 1)?
        }
        other => return Err(format!("codes of {other} bits are not supported").into()),
    };
    let dense = b.op(Op::Transpose, &[dense], &[ints([1, 0])])?;
    let mut y = b.op(Op::MatMul, &[x, dense], &[])?;
    if let Some(bias) = call.optional(b, 5)? {
        y = b.op(Op::Add, &[y, bias], &[])?;
    }
    Ok(vec![Value::Node(y)])
}

/// Two codes a byte, the first in its low half, as numbers in f32.
fn halves(b: &mut Build, bytes: Id, shape: &[Dim]) -> Result<Id, String> {
    let bytes = b.cast(bytes, DType::F32)?;
    let (sixteenth, sixteen) = (b.float(1.0 / 16.0)?, b.float(16.0)?);
    let high = b.op(Op::Mul, &[bytes, sixteenth], &[])?;
    let high = b.op(Op::Floor, &[high], &[])?;
    let above = b.op(Op::Mul, &[high, sixteen], &[])?;
    let low = b.op(Op::Sub, &[bytes, above], &[])?;
    let column = [b.shape(bytes), vec![Dim::Known(1)]].concat();
    let last = column.len() - 1;
    let (low, high) = (b.reshape(low, &column)?, b.reshape(high, &column)?);
    let pairs = b.concat(&[low, high], last)?;
    b.reshape(pairs, shape)
}
