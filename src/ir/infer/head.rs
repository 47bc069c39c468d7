//! The head: rows h [n d], a weight w, [V d] where `trans` is 1 and else [d V], and a bias b [V].

use super::{Args, Inferred, indices, tensor};
use crate::ir::dim::Dim;
use crate::ir::ty::DType;

/// Rows, width, vocabulary, and the type of logits, of a head whose h is operand `first`.
fn sizes(args: &Args, first: usize) -> Result<(Dim, Dim, Dim, DType), String> {
    let (h, w, b) = (args.tensor(first)?, args.tensor(first + 1)?, args.tensor(first + 2)?);
    let (width, vocabulary) = table(args, first + 1)?;
    match (h.shape.as_slice(), b.shape.as_slice()) {
        ([n, d], [v]) if *d == width && *v == vocabulary && h.dtype == w.dtype => {
            Ok((n.clone(), width, vocabulary, b.dtype))
        }
        _ => Err(format!("rows {h} and the bias {b} do not fit the head {w}")),
    }
}

/// Width and vocabulary of the weight that is operand `k`.
fn table(args: &Args, k: usize) -> Result<(Dim, Dim), String> {
    let (w, trans) = (args.tensor(k)?, trans(args)?);
    match w.shape.as_slice() {
        [v, d] if trans => Ok((d.clone(), v.clone())),
        [d, v] => Ok((d.clone(), v.clone())),
        _ => Err(format!("{w} is no head's weight")),
    }
}

fn trans(args: &Args) -> Result<bool, String> {
    match args.int(0)?.known() {
        Some(t @ (0 | 1)) => Ok(t == 1),
        _ => Err("trans must be 0 or 1".into()),
    }
}

/// How many columns lie in `from..to`, which is part of the vocabulary.
fn columns(args: &Args, vocabulary: &Dim) -> Result<Dim, String> {
    let (from, to) = (args.int(1)?, args.int(2)?);
    match (from.known(), to.known(), vocabulary.known()) {
        (Some(a), Some(b), Some(v)) if 0 <= a && a <= b && b <= v => Ok(Dim::Known(b - a)),
        _ => Err(format!("columns {from}..{to} of a vocabulary of {vocabulary}")),
    }
}

/// Operand `k` has one element a row.
fn by_row(args: &Args, k: usize, n: &Dim) -> Result<(), String> {
    match args.tensor(k)?.shape.as_slice() {
        [m] if m == n => Ok(()),
        _ => Err(format!("operand {k} must have one element a row")),
    }
}

/// A number of each row, from one or more of each behind the head: `[n]`.
pub fn head_token(args: &Args) -> Inferred {
    let (n, _, _, dtype) = sizes(args, 0)?;
    (3..args.operands()).try_for_each(|k| by_row(args, k, &n))?;
    tensor(dtype, vec![n])
}

/// The weight's rows at columns `[m]`: `[m d]`.
pub fn head_rows(args: &Args) -> Inferred {
    let ((width, _), at) = (table(args, 0)?, args.tensor(1)?);
    indices(at)?;
    match at.shape.as_slice() {
        [m] => tensor(args.tensor(0)?.dtype, vec![m.clone(), width]),
        _ => Err("needs a list of columns".into()),
    }
}

/// Logits at columns `[m]`: `[n m]`.
pub fn head_logits(args: &Args) -> Inferred {
    let ((n, _, _, dtype), at) = (sizes(args, 0)?, args.tensor(3)?);
    indices(at)?;
    match at.shape.as_slice() {
        [m] => tensor(dtype, vec![n, m.clone()]),
        _ => Err("needs a list of columns".into()),
    }
}

/// Maximum and two sums of each row: `[n 3]`.
pub fn head_sums(args: &Args) -> Inferred {
    let (n, _, vocabulary, dtype) = sizes(args, 0)?;
    columns(args, &vocabulary)?;
    tensor(dtype, vec![n, Dim::Known(3)])
}

/// log sum e^z beside the expected row of the weight: `[n 1+d]`.
pub fn head_expect(args: &Args) -> Inferred {
    let (n, width, vocabulary, dtype) = sizes(args, 0)?;
    columns(args, &vocabulary)?;
    tensor(dtype, vec![n, width + Dim::Known(1)])
}

/// Rows, width, columns and the type of logits, of operands g, h, w, b, ids, log sum e^z.
fn gradient(args: &Args) -> Result<(Dim, Dim, Dim, DType), String> {
    let (n, width, vocabulary, dtype) = sizes(args, 1)?;
    [0, 4, 5].into_iter().try_for_each(|k| by_row(args, k, &n))?;
    Ok((n, width, columns(args, &vocabulary)?, dtype))
}

/// The cotangent of logits: `[n to-from]`.
pub fn head_grad_z(args: &Args) -> Inferred {
    let (n, _, columns, dtype) = gradient(args)?;
    tensor(dtype, vec![n, columns])
}

/// That of the weight's columns, which lie as in the weight.
pub fn head_grad_w(args: &Args) -> Inferred {
    let (_, width, columns, _) = gradient(args)?;
    let shape = if trans(args)? { vec![columns, width] } else { vec![width, columns] };
    tensor(args.tensor(2)?.dtype, shape)
}

/// That of the bias's columns.
pub fn head_grad_b(args: &Args) -> Inferred {
    let (_, _, columns, dtype) = gradient(args)?;
    tensor(dtype, vec![columns])
}
