//! Composites of models, adapters and objectives.

use super::contract::{contract, matrix};
use super::{Args, Inferred, broadcast_shapes, indices, same, tensor};
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

/// The cotangent of the scores that have the probabilities p `[.., L, M]`, from dy `[.., L, Dv]` and v `[.., M, Dv]`.
pub fn score_grad(args: &Args) -> Inferred {
    let (p, dy, v) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    if contract(dy, v, false, true)?.tensor() != Some(p) {
        return Err("dy v^T must be as large as the probabilities".into());
    }
    same(args)
}

/// Attention with `heads` heads side by side: q `[B, L, H D]`, k `[B, M, H D]`, v `[B, M, H E]` to `[B, L, H E]`.
pub fn ort_attention(args: &Args) -> Inferred {
    let (q, k, v, heads) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?, args.known(0)?);
    let ([b, l, d], [bk, m, dk], [bv, mv, e]) = (&q.shape[..], &k.shape[..], &v.shape[..]) else {
        return Err("needs [B, L, H D]".into());
    };
    if (b, d) != (bk, dk) || (b, m) != (bv, mv) || [&k.dtype, &v.dtype] != [&q.dtype; 2] {
        return Err("queries, keys and values must agree".into());
    }
    if heads < 1 || [d, e].iter().any(|n| n.known().is_none_or(|n| n % heads != 0)) {
        return Err(format!("{heads} heads do not divide {d} and {e}"));
    }
    tensor(q.dtype, vec![b.clone(), l.clone(), e.clone()])
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

/// Whether so many heads of keys serve `heads` of queries: as many, or one for each group of neighbours where there is no
/// bias.
fn serve(heads: &Dim, keys: &Dim, is_biased: bool) -> bool {
    let divide = |h: i64, k: i64| k > 0 && h % k == 0 && !is_biased;
    heads == keys || heads.known().zip(keys.known()).is_some_and(|(h, k)| divide(h, k))
}

/// Attention of q `[B, Lq, H, D]`, k `[B, Lk, H', D]` and v `[B, Lk, H', Dv]`, operands from `first` on, of which the fourth
/// is a bias to `[B, H, Lq, Lk]` if there is one: `[B, Lq, H, Dv]`.
fn heads_inside(args: &Args, first: usize) -> Result<TensorType, String> {
    let [q, k, v] = [args.tensor(first)?, args.tensor(first + 1)?, args.tensor(first + 2)?];
    let ([b, lq, h, d], [b2, lk, h2, d2], [b3, lk2, h3, e]) =
        (q.shape.as_slice(), k.shape.as_slice(), v.shape.as_slice())
    else {
        return Err("needs [batch, length, heads, width]".into());
    };
    let is_biased = args.operands() == first + 4;
    let together = (b, d) == (b2, d2) && (b, lk, h2) == (b3, lk2, h3) && serve(h, h2, is_biased);
    if !together || q.dtype != k.dtype || q.dtype != v.dtype {
        return Err("queries, keys and values do not go together".into());
    }
    if is_biased {
        let scores = TensorType::new(q.dtype, vec![b.clone(), h.clone(), lq.clone(), lk.clone()]);
        biased(scores, args.tensor(first + 3)?)?;
    }
    Ok(TensorType::new(q.dtype, vec![b.clone(), lq.clone(), h.clone(), e.clone()]))
}

/// The same of queries `[n, H, D]` at places `[n]`, the fourth operand, of as many tokens as there are keys: `[n, H, Dv]`.
fn some_queries(args: &Args, first: usize) -> Result<TensorType, String> {
    let [q, k, v, places] =
        [args.tensor(first)?, args.tensor(first + 1)?, args.tensor(first + 2)?, args.tensor(first + 3)?];
    indices(places)?;
    let ([n, h, d], [b, l, h2, d2], [b2, l2, h3, e]) = (q.shape.as_slice(), k.shape.as_slice(), v.shape.as_slice())
    else {
        return Err("needs queries [n, heads, width], keys and values [batch, length, heads, width]".into());
    };
    let is_biased = args.operands() == first + 5;
    let together = d == d2 && (b, l, h2) == (b2, l2, h3) && serve(h, h2, is_biased) && places.shape == [n.clone()];
    if !together || q.dtype != k.dtype || q.dtype != v.dtype {
        return Err("queries, keys, values and places do not go together".into());
    }
    if is_biased {
        let scores = TensorType::new(q.dtype, vec![b.clone(), h.clone(), l.clone(), l.clone()]);
        biased(scores, args.tensor(first + 4)?)?;
    }
    Ok(TensorType::new(q.dtype, vec![n.clone(), h.clone(), e.clone()]))
}

pub fn token_attention(args: &Args) -> Inferred {
    heads_inside(args, 0).map(Type::Tensor)
}

pub fn row_attention(args: &Args) -> Inferred {
    some_queries(args, 0).map(Type::Tensor)
}

/// The cotangents of q, k and v in one list.
fn three_cotangents(args: &Args, result: TensorType) -> Inferred {
    if args.tensor(0)? != &result {
        return Err("the cotangent must be as large as the result".into());
    }
    let sizes = [numel(&args.tensor(1)?.shape), numel(&args.tensor(2)?.shape), numel(&args.tensor(3)?.shape)];
    tensor(result.dtype, vec![sizes.into_iter().fold(Dim::Known(0), |sum, n| sum + n)])
}

pub fn token_attention_grad(args: &Args) -> Inferred {
    three_cotangents(args, heads_inside(args, 1)?)
}

pub fn row_attention_grad(args: &Args) -> Inferred {
    three_cotangents(args, some_queries(args, 1)?)
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

/// A sum over all axes but the last, of operands of one shape `[.. n]`: `[n]`.
pub fn last_axis(args: &Args) -> Inferred {
    let (dy, x) = (args.tensor(0)?, args.tensor(1)?);
    match x.shape.last() {
        Some(n) if dy.shape == x.shape && dy.dtype == x.dtype => tensor(x.dtype, vec![n.clone()]),
        _ => Err(format!("{dy} and {x} must have one shape, of at least one axis")),
    }
}

/// The lengths `[n]` of the columns of w `[k n]` + a `[k r]` b `[r n]`.
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
