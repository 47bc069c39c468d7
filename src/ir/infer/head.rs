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

/// Rows and columns of logits, and the type of their sums: not one of 16 bits.
fn logits(args: &Args) -> Result<(Dim, Dim, DType), String> {
    let z = args.tensor(0)?;
    match z.shape.as_slice() {
        [n, m] => {
            Ok((n.clone(), m.clone(), if matches!(z.dtype, DType::F16 | DType::BF16) { DType::F32 } else { z.dtype }))
        }
        _ => Err(format!("{z} are no rows of logits")),
    }
}

/// Operand `k` is a list of `size` rows' sums, of this type.
fn sums(args: &Args, k: usize, n: &Dim, dtype: DType) -> Result<(), String> {
    match (args.tensor(k)?.shape.as_slice(), args.tensor(k)?.dtype) {
        ([m, Dim::Known(3)], t) if m == n && t == dtype => Ok(()),
        _ => Err(format!("operand {k}, {}, must have three sums of each row", args.tensor(k)?)),
    }
}

/// Maximum and two sums of each row: `[n 3]`.
pub fn logit_sums(args: &Args) -> Inferred {
    let (n, _, dtype) = logits(args)?;
    tensor(dtype, vec![n, Dim::Known(3)])
}

/// Exponentials of logits, by their sums.
pub fn logit_exp(args: &Args) -> Inferred {
    let (n, m, dtype) = logits(args)?;
    sums(args, 1, &n, dtype)?;
    tensor(args.tensor(0)?.dtype, vec![n, m])
}

/// The cotangent of logits, from a factor, a token and log sum e^z of each row, and the columns.
pub fn logit_grad(args: &Args) -> Inferred {
    let (n, m, _) = logits(args)?;
    (1..4).try_for_each(|k| by_row(args, k, &n))?;
    by_row(args, 4, &m)?;
    tensor(args.tensor(0)?.dtype, vec![n, m])
}

/// log sum e^z beside an expected row: `[n 1+d]`.
pub fn block_expect(args: &Args) -> Inferred {
    let (own, rows) = (args.tensor(0)?, args.tensor(1)?);
    match rows.shape.as_slice() {
        [n, d] => {
            sums(args, 0, n, own.dtype)?;
            tensor(own.dtype, vec![n.clone(), d.clone() + Dim::Known(1)])
        }
        _ => Err(format!("{rows} are no rows")),
    }
}

/// What two blocks of one shape have together.
pub fn merged(args: &Args) -> Inferred {
    let (x, y) = (args.tensor(0)?, args.tensor(1)?);
    if x == y && x.rank() == 2 {
        tensor(x.dtype, x.shape.clone())
    } else {
        Err(format!("{x} and {y} are of different blocks"))
    }
}
