//! Quantised weights: `DequantizeLinear`, and `MatMulNBits` of ONNX Runtime's domain.

use crate::ir::graph::{Id, LeafKind};
use crate::ir::{DType, Dim, Lit, Op, TensorType};
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

/// `x w^T + bias`, where w lies as codes of 4 or 8 bits in blocks along its rows.
///
/// With zero points z of their own, w = (code - middle) scale + (middle - z) scale: the second part is the same all over a
/// block and is multiplied by the sums of x over blocks, a small factor beside the product that kernels know.
pub fn matmul_nbits(b: &mut Build, call: &Call) -> Read {
    let count = |name: &str| call.int(name).ok_or_else(|| format!("attribute {name} is missing"));
    let (k, n, bits, block) = (count("K")?, count("N")?, call.int_or("bits", 4), count("block_size")?);
    if k < 1 || n < 1 || block < 2 || block % 2 != 0 {
        return Err("K and N must be positive, and block_size even".into());
    }
    if !matches!(bits, 4 | 8) {
        return Err(format!("codes of {bits} bits are not supported").into());
    }
    if call.get(4).is_some() {
        return Err("the order of groups (g_idx) is not supported".into());
    }
    let blocks = (k - 1) / block + 1;
    let sizes = Sizes { n, blocks, block, bits };
    let (x, scales) = (call.node(b, 0)?, call.node(b, 2)?);
    let bytes = call.node(b, 1)?;
    let codes = codes(b, bytes, &sizes)?;
    let scales = b.reshape(scales, &[n, blocks].map(Dim::Known))?;
    let dense = b.op(Op::Dequantize, &[codes, scales], &[bits, k].map(|n| Lit::Int(Dim::Known(n))))?;
    let mut y = times_transposed(b, x, dense)?;
    if let Some(zeros) = call.optional(b, 3)? {
        let offsets = offsets(b, zeros, scales, &sizes)?;
        let sums = block_sums(b, x, &sizes)?;
        let beside = times_transposed(b, sums, offsets)?;
        y = b.op(Op::Add, &[y, beside], &[])?;
    }
    if let Some(bias) = call.optional(b, 5)? {
        y = b.op(Op::Add, &[y, bias], &[])?;
    }
    Ok(vec![Value::Node(y)])
}

/// Codes `[n, blocks, block]` of so many bits.
struct Sizes {
    n: i64,
    blocks: i64,
    block: i64,
    bits: i64,
}

fn times_transposed(b: &mut Build, x: Id, w: Id) -> Result<Id, String> {
    let w = b.op(Op::Transpose, &[w], &[ints([1, 0])])?;
    b.op(Op::MatMul, &[x, w], &[])
}

/// The codes, which must stand in the file.
fn codes(b: &Build, bytes: Id, sizes: &Sizes) -> Result<Id, String> {
    let leaf = b.graph.as_leaf(bytes).ok_or("the codes must stand in the file")?;
    let Sizes { n, blocks, block, bits } = sizes;
    let held = &b.graph.leaf(leaf).ty;
    let wanted = TensorType::new(DType::U8, [*n, *blocks, block * bits / 8].map(Dim::Known));
    if b.graph.leaf(leaf).kind == LeafKind::Input || *held != wanted {
        return Err(format!("codes of {n} rows of {blocks} blocks of {block} in {bits} bits are {wanted}, not {held}"));
    }
    Ok(bytes)
}

/// `(middle - z) scale` of each block, `[n, blocks]`; zero points are packed like codes, a whole byte at the end of a row, or
/// numbers of the type of the scales.
fn offsets(b: &mut Build, zeros: Id, scales: Id, sizes: &Sizes) -> Result<Id, String> {
    let dtype = b.ty(scales)?.dtype;
    let (n, blocks) = (Dim::Known(sizes.n), Dim::Known(sizes.blocks));
    let zeros = match (b.ty(zeros)?.dtype.is_float(), sizes.bits) {
        (false, 4) => {
            let padded = Dim::Known((sizes.blocks + 1) / 2 * 2);
            let all = halves(b, zeros, &[n, padded])?;
            b.slice(all, 1, Dim::Known(0), blocks, 1)?
        }
        _ => b.reshape(zeros, &[n, blocks])?,
    };
    let zeros = b.cast(zeros, dtype)?;
    let middle = b.float((1i64 << (sizes.bits - 1)) as f64)?;
    let below = b.op(Op::Sub, &[middle, zeros], &[])?;
    b.op(Op::Mul, &[below, scales], &[])
}

/// The sums of x over blocks of its last axis, `[.., blocks]`.
fn block_sums(b: &mut Build, x: Id, sizes: &Sizes) -> Result<Id, String> {
    let (shape, dtype) = (b.shape(x), b.ty(x)?.dtype);
    let (width, rows) = shape.split_last().ok_or("its operand needs an axis")?;
    let missing = Dim::Known(sizes.blocks * sizes.block) - width.clone();
    let mut x = x;
    if !missing.is(0) {
        let zeros = b.full(0.0, dtype, &[rows, &[missing]].concat())?;
        x = b.concat(&[x, zeros], rows.len())?;
    }
    let (blocks, block) = (Dim::Known(sizes.blocks), Dim::Known(sizes.block));
    let x = b.reshape(x, &[rows, &[blocks.clone(), block]].concat())?;
    let sums = b.op(Op::Sum, &[x], &[ints([-1])])?;
    b.reshape(sums, &[rows, &[blocks]].concat())
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
