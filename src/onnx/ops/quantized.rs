//! Quantised weights: `DequantizeLinear`, and `MatMulNBits` of ONNX Runtime's domain.

use crate::ir::codes::Codes;
use crate::ir::graph::{Data, Id, Leaf, LeafKind};
use crate::ir::recipe::Recipe;
use crate::ir::{DType, Dim, Lit, Node, Op, TensorType};
use crate::onnx::build::{Blocks, Build, Value, ints};
use crate::onnx::call::{Call, Read};
use crate::onnx::weights;
use std::sync::Arc;

/// `(x - zero_point) scale`, with one scale for all, for each index of an axis, or for each block along it.
pub fn dequantize_linear(b: &mut Build, call: &Call) -> Read {
    if let Some(weight) = coded(b, call)? {
        return Ok(vec![Value::Node(weight)]);
    }
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

/// Codes of a matrix that stand in the file, as blocks along its rows; `None` for anything else.
///
/// Rows are what scales do not run along, so that the product with an `[in out]` matrix is one with its transpose, `[out in]`.
/// With zero points z, the codes' middle less z, times the scale, is the same all over a block and is added.
fn coded(b: &mut Build, call: &Call) -> Result<Option<Id>, String> {
    let (x, scale) = (call.node(b, 0)?, call.node(b, 1)?);
    let Some(leaf) = b.graph.as_leaf(x) else { return Ok(None) };
    let held = b.graph.leaf(leaf).clone();
    let (bits, signed) = match held.ty.dtype {
        DType::U4 => (4, false),
        DType::I4 => (4, true),
        DType::U8 => (8, false),
        DType::I8 => (8, true),
        _ => return Ok(None),
    };
    let sizes: Option<Vec<usize>> = held.ty.shape.iter().map(|d| usize::try_from(d.known()?).ok()).collect();
    let (Some(data), Some([first, second])) = (&held.data, sizes.as_deref()) else { return Ok(None) };
    // Codes along this axis share scales.
    let (block, own) = (call.int_or("block_size", 0), b.shape(scale));
    let along = match own.len() {
        2 if block > 1 => call.axis(1, 2)?,
        1 if block == 0 && !own[0].is(1) => 1 - call.axis(1, 2)?,
        _ => 0,
    };
    let (columns, rows) = if along == 0 { (*first, *second) } else { (*second, *first) };
    let block = match own.len() {
        2 => block,
        // A power of two, as ONNX Runtime's products want it, of which rows are made where that can be.
        _ => 1 << columns.trailing_zeros().clamp(4, 7),
    };
    let whole = held.ty.dtype.bytes((rows as u64).saturating_mul(columns as u64)) == data.len();
    if rows == 0 || columns < 2 || block < 2 || block % 2 != 0 || block > columns.max(16) as i64 || !whole {
        return Ok(None);
    }
    let form = Codes { bits, signed, rows, columns, transposed: along == 0, block: block as usize };
    let dim = |n: usize| Dim::Known(n as i64);
    let (n, blocks) = (dim(rows), dim(form.per_row()));
    let middle = (1i64 << (bits - 1)) as f64;
    let zeros = match call.optional(b, 2)? {
        Some(zeros) if is_middle(b, zeros, signed, bits) => None,
        given => Some(given).filter(|given| given.is_some() || !signed),
    };
    let per_block = |b: &mut Build, x: Id| -> Result<Id, String> {
        let shape = b.shape(x);
        match shape.len() {
            2 if along == 0 => b.op(Op::Transpose, &[x], &[ints([1, 0])]),
            2 => Ok(x),
            rank => {
                let column =
                    if rank == 1 && !shape[0].is(1) { [n.clone(), Dim::Known(1)] } else { [1, 1].map(Dim::Known) };
                let x = b.reshape(x, &column)?;
                b.expand(x, &[n.clone(), blocks.clone()])
            }
        }
    };
    let scales = per_block(b, scale)?;
    let codes = match b.codes.get(&leaf) {
        Some((found, same)) if *same == form => *found,
        Some(_) => return Ok(None),
        None => {
            let shape = [n.clone(), blocks.clone(), dim(form.block * bits as usize / 8)];
            let source_name = held.source_name.clone().or_else(|| Some(held.name.clone()));
            let from = Arc::new(data.clone());
            let data = Some(Data::Derived { from, recipe: Recipe::Blocks(form.clone()) });
            // Blocks have the name; nothing reads the codes as such.
            b.graph.leaves[leaf.0 as usize].name += ".source";
            let ty = TensorType::new(DType::U8, shape);
            let id = b.graph.add_leaf(Leaf { ty, kind: LeafKind::Const, data, source_name, ..held });
            b.codes.insert(leaf, (id, form.clone()));
            id
        }
    };
    let attributes = [i64::from(bits), columns as i64].map(|n| Lit::Int(Dim::Known(n)));
    let mut dense = b.op(Op::Dequantize, &[codes, scales], &attributes)?;
    if let Some(zeros) = zeros {
        let dtype = b.ty(scales)?.dtype;
        let zeros = match zeros {
            Some(zeros) => {
                let zeros = b.cast(zeros, dtype)?;
                per_block(b, zeros)?
            }
            None => b.full(0.0, dtype, &[n.clone(), blocks.clone()])?,
        };
        // The code that means 0 where codes begin at 0.
        let middle = b.float(if signed { 0.0 } else { middle })?;
        let below = b.op(Op::Sub, &[middle, zeros], &[])?;
        let offsets = b.op(Op::Mul, &[below, scales], &[])?;
        let coded = Blocks { dense, offsets, block };
        let each = b.reshape(offsets, &[n.clone(), blocks.clone(), Dim::Known(1)])?;
        let each = b.expand(each, &[n.clone(), blocks.clone(), Dim::Known(block)])?;
        let each = b.reshape(each, &[n.clone(), blocks.clone() * Dim::Known(block)])?;
        let each = b.slice(each, 1, Dim::Known(0), dim(columns), 1)?;
        dense = b.op(Op::Add, &[dense, each], &[])?;
        b.blocks.insert(dense, coded);
    }
    Ok(Some(if along == 0 { b.op(Op::Transpose, &[dense], &[ints([1, 0])])? } else { dense }))
}

/// Whether zero points are all the code in the middle, which stands for 0 anyway.
fn is_middle(b: &Build, zeros: Id, signed: bool, bits: u32) -> bool {
    let Some(leaf) = b.graph.as_leaf(zeros).map(|leaf| b.graph.leaf(leaf)).filter(|l| l.ty.dtype.is_int()) else {
        return false;
    };
    let count = leaf.ty.shape.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(d.known()?).ok()?));
    count.is_some_and(|count| weights::bytes(leaf).is_ok_and(|bytes| all_middle(&bytes, count, signed, bits)))
}

/// The same of `count` codes; of 4 bits what fills up the last byte is none of them.
fn all_middle(bytes: &[u8], count: usize, signed: bool, bits: u32) -> bool {
    let middle = if signed { 0 } else { 1u8 << (bits - 1) };
    match bits {
        4 => bytes.iter().flat_map(|b| [b & 15, b >> 4]).take(count).all(|code| code == middle),
        _ => bytes.iter().all(|code| *code == middle),
    }
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
        y = with_offsets(b, y, x, offsets, block)?;
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

/// `x w`, where w may be the transpose of a matrix in few bits with zero points: what is the same all over a block is
/// multiplied by the sums of x over blocks.
pub fn product(b: &mut Build, x: Id, w: Id) -> Result<Id, String> {
    let turned = match b.graph.node(w) {
        Node::Op(Op::Transpose, c) => b.blocks.get(&c[0]).cloned(),
        _ => None,
    };
    match turned {
        Some(Blocks { dense, offsets, block }) => {
            let y = times_transposed(b, x, dense)?;
            with_offsets(b, y, x, offsets, block)
        }
        None => b.op(Op::MatMul, &[x, w], &[]),
    }
}

/// y and the sums of x over blocks times the offsets `[n, blocks]`.
fn with_offsets(b: &mut Build, y: Id, x: Id, offsets: Id, block: i64) -> Result<Id, String> {
    let sums = block_sums(b, x, &b.shape(offsets)[1].clone(), block)?;
    let beside = times_transposed(b, sums, offsets)?;
    b.op(Op::Add, &[y, beside], &[])
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
fn block_sums(b: &mut Build, x: Id, blocks: &Dim, block: i64) -> Result<Id, String> {
    let (shape, dtype) = (b.shape(x), b.ty(x)?.dtype);
    let (width, rows) = shape.split_last().ok_or("its operand needs an axis")?;
    let block = Dim::Known(block);
    let missing = blocks.clone() * block.clone() - width.clone();
    let mut x = x;
    if !missing.is(0) {
        let zeros = b.full(0.0, dtype, &[rows, &[missing]].concat())?;
        x = b.concat(&[x, zeros], rows.len())?;
    }
    let x = b.reshape(x, &[rows, &[blocks.clone(), block]].concat())?;
    let sums = b.op(Op::Sum, &[x], &[ints([-1])])?;
    b.reshape(sums, &[rows, std::slice::from_ref(blocks)].concat())
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

#[cfg(test)]
mod tests {
    use super::all_middle;

    #[test]
    fn only_the_last_byte_is_filled_up() {
        assert!(all_middle(&[0x88, 0x08], 3, false, 4));
        // 8, 0, 8, 8: the second is no middle.
        assert!(!all_middle(&[0x08, 0x88], 4, false, 4));
        assert!(all_middle(&[0, 0], 4, true, 4) && !all_middle(&[0x10], 2, true, 4));
        assert!(all_middle(&[128, 128], 2, false, 8) && !all_middle(&[128, 0], 2, false, 8));
    }
}
