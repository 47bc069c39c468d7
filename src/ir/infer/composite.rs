//! Composites of models, adapters and objectives.

use super::contract::{contract, matrix};
use super::{Args, Inferred, broadcast_shapes, same, tensor};
use crate::ir::dim::{Dim, numel};
use crate::ir::ty::{DType, TensorType, Type};

pub fn rotate_half(args: &Args) -> Inferred {
    match args.tensor(0)?.shape.last().and_then(Dim::known) {
        Some(n) if n % 2 == 0 => same(args),
        _ => Err("the last axis must have a known even size".into()),
    }
}

fn scores(q: &TensorType, k: &TensorType) -> Result<TensorType, String> {
    let ((bq, lq, dq), (bk, lk, dk)) = (matrix(q)?, matrix(k)?);
    if bq != bk || dq != dk || q.dtype != k.dtype {
        return Err("queries and keys must agree in leading axes and width".into());
    }
    Ok(TensorType::new(q.dtype, [bq, &[lq.clone(), lk.clone()]].concat()))
}

fn biased(mut scores: TensorType, bias: &TensorType) -> Result<TensorType, String> {
    let joined = broadcast_shapes(&scores.shape, &bias.shape)?;
    if joined != scores.shape || bias.dtype != scores.dtype {
        return Err("the bias must broadcast to the scores".into());
    }
    scores.shape = joined;
    Ok(scores)
}

/// `softmax(scale q k^T + bias)`: `[.., Lq, Lk]`.
pub fn attention_probs(args: &Args) -> Inferred {
    let s = scores(args.tensor(0)?, args.tensor(1)?)?;
    Ok(Type::Tensor(if args.operands() == 3 { biased(s, args.tensor(2)?)? } else { s }))
}

/// `softmax(scale q k^T + bias) v`: `[.., Lq, Dv]`.
pub fn attention(args: &Args) -> Inferred {
    let (q, k, v) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let s = scores(q, k)?;
    if args.operands() == 4 {
        biased(s.clone(), args.tensor(3)?)?;
    }
    contract(&s, v, false, false)
}

/// The cotangents of q, k and v in one list.
pub fn attention_grad(args: &Args) -> Inferred {
    let (dy, q, k, v) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?, args.tensor(3)?);
    if matrix(q)?.0 != matrix(v)?.0 {
        return Err("queries and values must agree in leading axes".into());
    }
    let s = scores(q, k)?;
    if args.operands() == 5 {
        biased(s.clone(), args.tensor(4)?)?;
    }
    if contract(&s, v, false, false)?.tensor() != Some(dy) {
        return Err("the cotangent must be as large as the result".into());
    }
    tensor(q.dtype, vec![numel(&q.shape) + numel(&k.shape) + numel(&v.shape)])
}

/// One number a token: logits `[.., V]` to `[..]`; the other operands must broadcast to that.
pub fn per_token(args: &Args) -> Inferred {
    let logits = args.tensor(0)?;
    let [tokens @ .., _] = logits.shape.as_slice() else { return Err("logits need a vocabulary axis".into()) };
    for k in 1..args.operands() {
        if args.tensor(k)?.shape != tokens {
            return Err(format!("operand {k} must have one element a token"));
        }
    }
    tensor(logits.dtype, tokens.to_vec())
}

/// `x` [.. n], of B L rows, thinned out at a rate [] by draws from rows [B L k] and columns [B k n].
pub fn dropout(args: &Args) -> Inferred {
    let (x, rate, rows, columns) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?, args.tensor(3)?);
    let ([b, l, k], [b2, k2, n], Some(last)) = (rows.shape.as_slice(), columns.shape.as_slice(), x.shape.last()) else {
        return Err("needs rows [B L k] and columns [B k n]".into());
    };
    let fits = b == b2 && k == k2 && n == last && numel(&x.shape) == numel(&[b.clone(), l.clone(), n.clone()]);
    if rate.rank() != 0 || !fits {
        return Err(format!("rows {rows} and columns {columns} do not give one draw for each element of {x}"));
    }
    same(args)
}

/// A sum over all axes but the last, of operands of one shape [.. n]: [n].
pub fn last_axis(args: &Args) -> Inferred {
    let (dy, x) = (args.tensor(0)?, args.tensor(1)?);
    match x.shape.last() {
        Some(n) if dy.shape == x.shape && dy.dtype == x.dtype => tensor(x.dtype, vec![n.clone()]),
        _ => Err(format!("{dy} and {x} must have one shape, of at least one axis")),
    }
}

/// The lengths [n] of the columns of w [k n] + a [k r] b [r n].
pub fn weight_norm(args: &Args) -> Inferred {
    let (w, a, b) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    match (w.shape.as_slice(), a.shape.as_slice(), b.shape.as_slice()) {
        ([k, n], [k2, r], [r2, n2]) if (k, n, r) == (k2, n2, r2) => tensor(w.dtype, vec![n.clone()]),
        _ => Err(format!("{w} is not as large as the product of {a} and {b}")),
    }
}

/// The reference of a sequence, `[B, L]` to `[B, 1]`.
pub fn beta_ref(args: &Args) -> Inferred {
    match args.tensor(0)?.shape.as_slice() {
        [b, _] => tensor(args.tensor(0)?.dtype, vec![b.clone(), Dim::Known(1)]),
        _ => Err("needs [batch, length]".into()),
    }
}

/// Weights `[B, L]` from the mask rate, the mask and the answer.
pub fn loss_weight(args: &Args) -> Inferred {
    let (rate, mask, answer) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    if mask.shape != rate.shape || answer.shape != rate.shape {
        return Err("rate, mask and answer must have one shape".into());
    }
    same(args)
}

/// The denominator of the loss: a scalar.
pub fn loss_count(args: &Args) -> Inferred {
    args.tensor(0)?;
    tensor(DType::F32, vec![])
}

pub fn tuple(_: &Args) -> Inferred {
    Ok(Type::Tuple)
}
