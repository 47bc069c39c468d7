//! Rows: some of the tokens of a batch.

use super::{Args, Inferred, indices, tensor};
use crate::ir::ty::DType;

/// The places of the true elements of a mask `[B, L]`, counted through both axes: `[n]`.
pub fn true_rows(args: &Args) -> Inferred {
    let mask = args.tensor(0)?;
    match (mask.dtype, mask.rank()) {
        (DType::Bool, 1..) => tensor(DType::I64, vec![args.int(0)?.clone()]),
        _ => Err("needs a mask".into()),
    }
}

/// `x` `[B, L, ..]` at places `[n]` counted through its first two axes: `[n, ..]`.
pub fn take_rows(args: &Args) -> Inferred {
    let (x, idx) = (args.tensor(0)?, args.tensor(1)?);
    indices(idx)?;
    match (x.shape.as_slice(), idx.shape.as_slice()) {
        ([_, _, rest @ ..], [n]) => tensor(x.dtype, [std::slice::from_ref(n), rest].concat()),
        _ => Err("needs [batch, length, ..] and a list of places".into()),
    }
}

/// Zeros `[B, L, ..]` with `y` `[n, ..]` at places `[n]`, which differ.
pub fn put_rows(args: &Args) -> Inferred {
    let (y, idx) = (args.tensor(0)?, args.tensor(1)?);
    indices(idx)?;
    match (y.shape.as_slice(), idx.shape.as_slice()) {
        ([n, rest @ ..], [m]) if n == m => {
            tensor(y.dtype, [&[args.int(0)?.clone(), args.int(1)?.clone()], rest].concat())
        }
        _ => Err("needs as many rows as places".into()),
    }
}
