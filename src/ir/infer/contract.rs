//! Products of matrices, dense and quantised.

use super::{Args, Inferred, broadcast_shapes, indices, tensor};
use crate::ir::dim::Dim;
use crate::ir::ty::{DType, TensorType, Type};

pub(super) fn matrix(t: &TensorType) -> Result<(&[Dim], &Dim, &Dim), String> {
    match t.shape.as_slice() {
        [batch @ .., r, c] => Ok((batch, r, c)),
        _ => Err("needs matrices (rank 2 or more)".into()),
    }
}

pub(super) fn contract(x: &TensorType, y: &TensorType, trans_x: bool, trans_y: bool) -> Inferred {
    if x.dtype != y.dtype {
        return Err(format!("element types {} and {} differ", x.dtype.name(), y.dtype.name()));
    }
    let ((bx, mut m, mut k), (by, mut k2, mut n)) = (matrix(x)?, matrix(y)?);
    if trans_x {
        std::mem::swap(&mut m, &mut k);
    }
    if trans_y {
        std::mem::swap(&mut k2, &mut n);
    }
    if k != k2 {
        return Err(format!("inner sizes {k} and {k2} differ"));
    }
    let mut shape = broadcast_shapes(bx, by)?;
    shape.extend([m.clone(), n.clone()]);
    tensor(x.dtype, shape)
}

pub fn matmul(args: &Args) -> Inferred {
    contract(args.tensor(0)?, args.tensor(1)?, false, false)
}

pub fn gemm(args: &Args) -> Inferred {
    let (x, y) = (args.tensor(0)?, args.tensor(1)?);
    if x.rank() != 2 || y.rank() != 2 {
        return Err("needs two matrices of rank 2".into());
    }
    contract(x, y, args.known(0)? != 0, args.known(1)? != 0)
}

pub fn fused_matmul(args: &Args) -> Inferred {
    contract(args.tensor(0)?, args.tensor(1)?, args.known(0)? != 0, args.known(1)? != 0)
}

/// `alpha x y + c`, `c` as large as the product.
pub fn product_add(args: &Args) -> Inferred {
    added(fused_matmul(args)?, args.tensor(2)?)
}

/// `alpha x y + beta u v`, both of one shape.
pub fn product_pair(args: &Args) -> Inferred {
    let product = |k, trans| contract(args.tensor(k)?, args.tensor(k + 1)?, false, args.known(trans)? != 0);
    let (first, second) = (product(0, 0)?, product(2, 2)?);
    if first == second { Ok(first) } else { Err("both products must be of one shape".into()) }
}

/// The same `+ c`, `c` as large.
pub fn product_pair_add(args: &Args) -> Inferred {
    added(product_pair(args)?, args.tensor(4)?)
}

fn added(product: Type, addend: &TensorType) -> Inferred {
    match product.tensor() {
        Some(t) if t == addend => Ok(product),
        _ => Err("what is added must be as large as the product".into()),
    }
}

/// Matrices of `w` `[n, a, b]` at `at` `[i..]`, transposed if asked for, times `x` `[i.., b, c]`: `[i.., a, c]`.
pub fn gather_matmul(args: &Args) -> Inferred {
    let (w, at, x) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    indices(at)?;
    let ([_, _, _], (leads, ..)) = (w.shape.as_slice(), matrix(x)?) else {
        return Err("needs a list of matrices".into());
    };
    if leads != at.shape {
        return Err("needs a matrix's number for each matrix".into());
    }
    let looked_up = TensorType::new(w.dtype, [leads, &w.shape[1..]].concat());
    contract(&looked_up, x, args.known(0)? != 0, false)
}

/// Products of `dy` `[i.., a, c]` and the transposed `x` `[i.., b, c]`, added up at `at` `[i..]`: `[rows, a, b]`.
pub fn gather_matmul_grad(args: &Args) -> Inferred {
    let (dy, x, at) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    indices(at)?;
    let (leads, ..) = matrix(x)?;
    if leads != at.shape || matrix(dy)?.0 != at.shape {
        return Err("needs a matrix's number for each matrix".into());
    }
    match contract(dy, x, false, true)?.shape() {
        [.., a, b] => tensor(dy.dtype, vec![args.int(0)?.clone(), a.clone(), b.clone()]),
        _ => Err("needs matrices".into()),
    }
}

/// Codes `[n, blocks, bytes]` and scales `[n, blocks]`, operands `at` and `at + 1`, as whole blocks of the weight.
fn whole_blocks(args: &Args, at: usize) -> Result<TensorType, String> {
    let (q, s, bits) = (args.tensor(at)?, args.tensor(at + 1)?, args.known(0)?);
    if !matches!(bits, 4 | 8) {
        return Err(format!("codes have 8 or 4 bits, not {bits}"));
    }
    let [n, blocks, bytes] = q.shape.as_slice() else { return Err("codes are [rows, blocks, bytes]".into()) };
    if q.dtype != DType::U8 || !s.dtype.is_float() || s.shape != [n.clone(), blocks.clone()] {
        return Err("needs codes in bytes and a scale for each block".into());
    }
    Ok(TensorType::new(s.dtype, [n.clone(), blocks.clone() * bytes.clone() * Dim::Known(8 / bits)]))
}

/// The same without what fills up the last block: the weight `[n, k]`.
fn quantised(args: &Args, at: usize) -> Result<TensorType, String> {
    let (whole, k) = (whole_blocks(args, at)?, args.int(1)?);
    let room = whole.shape[1].clone();
    if (room.clone() - k.clone()).known().is_none_or(|left| left < 0) {
        return Err(format!("{k} elements do not fit into {room}"));
    }
    Ok(TensorType::new(whole.dtype, [whole.shape[0].clone(), k.clone()]))
}

/// Whole blocks of the weight that codes and scales stand for.
pub fn decode(args: &Args) -> Inferred {
    whole_blocks(args, 0).map(Type::Tensor)
}

/// The weight `[n, k]` that codes and scales stand for.
pub fn dequantize(args: &Args) -> Inferred {
    quantised(args, 0).map(Type::Tensor)
}

/// `x w^T` with a quantised `w`.
pub fn matmul_nbits(args: &Args) -> Inferred {
    contract(args.tensor(0)?, &quantised(args, 1)?, false, true)
}
