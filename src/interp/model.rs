//! Composites of the model and their backward forms, each from its definition.

use super::elementwise::{mean, sigmoid};
use super::layout::{gather_grad, index, matmul, take_rows};
use candle_core::{D, DType, Result, Tensor};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

fn last(x: &Tensor) -> Result<usize> {
    x.rank().checked_sub(1).ok_or_else(|| candle_core::Error::msg("needs at least one axis"))
}

/// `sqrt(mean(x^2) + eps)` of each row, `[.., 1]`.
pub fn rms(x: &Tensor, eps: f64) -> Result<Tensor> {
    mean(&x.sqr()?, &[last(x)?])?.affine(1.0, eps)?.sqrt()
}

pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    x.broadcast_div(&rms(x, eps)?)?.broadcast_mul(w)
}

/// `dx_j = g_j / r - x_j sum_k(g_k x_k) / (n r^3)` with `g = dy w`.
pub fn rms_norm_grad(dy: &Tensor, x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let (g, r) = (dy.broadcast_mul(w)?, rms(x, eps)?);
    let along = mean(&g.broadcast_mul(x)?, &[last(x)?])?.div(&r.powf(3.0)?)?;
    g.broadcast_div(&r)?.broadcast_sub(&x.broadcast_mul(&along)?)
}

fn centred(x: &Tensor) -> Result<Tensor> {
    x.broadcast_sub(&mean(x, &[last(x)?])?)
}

/// `(x - mean) / sqrt(var + eps)` of each row.
pub fn normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    let c = centred(x)?;
    c.broadcast_div(&rms(&c, eps)?)
}

/// The transposed Jacobian of `normalize` on `g = dy w`: centring is a projection, so it is applied
/// before and after the scaling by the standard deviation.
pub fn layer_norm_grad(dy: &Tensor, x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let c = centred(x)?;
    let ones = Tensor::ones(x.shape(), DType::F64, x.device())?;
    let through = rms_norm_grad(dy, &c, &ones.broadcast_mul(w)?, eps)?;
    centred(&through)
}

/// `sign (-x2, x1)` of the halves of the last axis.
pub fn rotate_half(x: &Tensor, sign: f64) -> Result<Tensor> {
    let n = x.dim(D::Minus1)? / 2;
    let (x1, x2) = (x.narrow(D::Minus1, 0, n)?, x.narrow(D::Minus1, n, n)?);
    Tensor::cat(&[&x2.affine(-sign, 0.0)?, &x1.affine(sign, 0.0)?], last(x)?)
}

pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(cos)?.broadcast_add(&rotate_half(x, 1.0)?.broadcast_mul(sin)?)
}

/// The transpose of `rope` in `x`: the inverse rotation of `dy sin`.
pub fn rope_grad(dy: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    dy.broadcast_mul(cos)?.broadcast_add(&rotate_half(&dy.broadcast_mul(sin)?, -1.0)?)
}

pub fn silu(x: &Tensor) -> Result<Tensor> {
    x * sigmoid(x)?
}

/// `s + x s (1 - s)`.
pub fn silu_slope(x: &Tensor) -> Result<Tensor> {
    let s = sigmoid(x)?;
    &s + (x * (&s - s.sqr()?)?)?
}

/// `Phi(x)`, the normal distribution function.
fn normal_cdf(x: &Tensor) -> Result<Tensor> {
    x.affine(FRAC_1_SQRT_2, 0.0)?.erf()?.affine(0.5, 0.5)
}

pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x * normal_cdf(x)?
}

/// `Phi(x) + x phi(x)`.
pub fn gelu_slope(x: &Tensor) -> Result<Tensor> {
    let density = x.sqr()?.affine(-0.5, 0.0)?.exp()?.affine(1.0 / (2.0 * PI).sqrt(), 0.0)?;
    normal_cdf(x)? + (x * density)?
}

/// The cubic coefficient of the tanh approximation of gelu.
const GELU_CUBIC: f64 = 0.044715;

/// `tanh(sqrt(2 / pi) (x + 0.044715 x^3))`.
fn gelu_tanh_inner(x: &Tensor) -> Result<Tensor> {
    (x + x.powf(3.0)?.affine(GELU_CUBIC, 0.0)?)?.affine((2.0 / PI).sqrt(), 0.0)?.tanh()
}

pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    x * gelu_tanh_inner(x)?.affine(0.5, 0.5)?
}

pub fn gelu_tanh_slope(x: &Tensor) -> Result<Tensor> {
    let h = gelu_tanh_inner(x)?;
    let slope = x.sqr()?.affine(3.0 * GELU_CUBIC, 1.0)?.affine((2.0 / PI).sqrt(), 0.0)?;
    let bend = (h.sqr()?.affine(-0.5, 0.5)? * slope)?;
    h.affine(0.5, 0.5)? + (x * bend)?
}

/// `softmax(scale q k^T + bias)`; a row that the bias masks entirely (-inf) is 0.
pub fn attention_probs(q: &Tensor, k: &Tensor, bias: Option<&Tensor>, scale: f64) -> Result<Tensor> {
    let mut scores = matmul(q, &k.t()?)?.affine(scale, 0.0)?;
    if let Some(bias) = bias {
        scores = scores.broadcast_add(bias)?;
    }
    let top = scores.max_keepdim(D::Minus1)?.detach();
    let masked = top.eq(f64::NEG_INFINITY)?;
    let top = masked.where_cond(&top.zeros_like()?, &top)?;
    let e = scores.broadcast_sub(&top)?.exp()?;
    let sum = e.sum_keepdim(D::Minus1)?;
    e.broadcast_div(&masked.where_cond(&sum.ones_like()?, &sum)?)
}

pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, scale: f64) -> Result<Tensor> {
    matmul(&attention_probs(q, k, bias, scale)?, v)
}

/// dq, dk and dv, flat and one behind the other.
pub fn attention_grad(
    dy: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    scale: f64,
) -> Result<Tensor> {
    joined(&attention_cotangents(dy, q, k, v, bias, scale)?)
}

/// One behind the other.
fn joined(parts: &[Tensor; 3]) -> Result<Tensor> {
    let flat = parts.iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&flat, 0)
}

fn attention_cotangents(
    dy: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    scale: f64,
) -> Result<[Tensor; 3]> {
    let rows = |t: &Tensor| t.dims().split_last().map_or(0, |(_, rows)| rows.iter().product::<usize>());
    if rows(q) == 0 || rows(k) == 0 {
        return Ok([q.zeros_like()?, k.zeros_like()?, v.zeros_like()?]);
    }
    let p = attention_probs(q, k, bias, scale)?;
    let ds = softmax_grad(&p, &matmul(dy, &v.t()?)?, p.rank() - 1)?.affine(scale, 0.0)?;
    Ok([matmul(&ds, k)?, matmul(&ds.t()?, q)?, matmul(&p.t()?, dy)?])
}

/// `[B, L, H, d]` as `[B, H, L, d]`, or back.
fn swapped(x: &Tensor) -> Result<Tensor> {
    x.transpose(1, 2)?.contiguous()
}

/// `x` `[B, L, H', d]` with each head as often as makes `heads`.
fn repeated(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, l, h, d) = x.dims4()?;
    x.unsqueeze(3)?.broadcast_as((b, l, h, heads / h, d))?.contiguous()?.reshape((b, l, heads, d))
}

/// The transpose of `repeated`.
fn summed(dx: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (b, l, h, d) = x.dims4()?;
    dx.contiguous()?.reshape((b, l, h, dx.dim(2)? / h, d))?.sum(3)
}

/// Attention with heads behind tokens.
pub fn token_attention(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, scale: f64) -> Result<Tensor> {
    let [k, v] = [repeated(k, q.dim(2)?)?, repeated(v, q.dim(2)?)?];
    swapped(&attention(&swapped(q)?, &swapped(&k)?, &swapped(&v)?, bias, scale)?)
}

pub fn token_attention_grad(
    dy: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    scale: f64,
) -> Result<Tensor> {
    if q.elem_count() == 0 || k.elem_count() == 0 {
        return joined(&[q.zeros_like()?, k.zeros_like()?, v.zeros_like()?]);
    }
    let all = |x: &Tensor| swapped(&repeated(x, q.dim(2)?)?);
    let [dq, dk, dv] = attention_cotangents(&swapped(dy)?, &swapped(q)?, &all(k)?, &all(v)?, bias, scale)?;
    joined(&[swapped(&dq)?, summed(&swapped(&dk)?, k)?, summed(&swapped(&dv)?, v)?])
}

/// Attention over `heads` heads side by side, `[B, L, H d]`.
pub fn side_by_side(q: &Tensor, k: &Tensor, v: &Tensor, heads: i64, scale: f64) -> Result<Tensor> {
    let apart = |x: &Tensor| {
        let (b, l, n) = x.dims3()?;
        x.reshape((b, l, heads as usize, n / heads as usize))
    };
    token_attention(&apart(q)?, &apart(k)?, &apart(v)?, None, scale)?.flatten_from(2)
}

/// What each of some queries sees: itself `[n, H, 1, d]`, the keys and values `[n, H, L, d]` of its sequence, its bias, and
/// which sequence that is.
fn seen([q, k, v, places]: [&Tensor; 4], bias: Option<&Tensor>) -> Result<([Tensor; 3], Option<Tensor>, Tensor)> {
    let ((b, l, _, _), h) = (k.dims4()?, q.dim(1)?);
    let sequence: Vec<f64> = places.to_vec1::<f64>()?.iter().map(|p| (p / l as f64).floor()).collect();
    let sequence = Tensor::from_vec(sequence, places.dims(), places.device())?;
    let own = |x: &Tensor| swapped(&repeated(x, h)?.index_select(&index(&sequence)?, 0)?);
    let bias = bias.map(|bias| take_rows(&swapped(&bias.broadcast_as((b, h, l, l))?)?, places)?.unsqueeze(2));
    Ok(([q.unsqueeze(2)?, own(k)?, own(v)?], bias.transpose()?, sequence))
}

/// Token attention of queries `[n, H, d]` at places.
pub fn row_attention(operands: [&Tensor; 4], bias: Option<&Tensor>, scale: f64) -> Result<Tensor> {
    let ([q, k, v], bias, _) = seen(operands, bias)?;
    attention(&q, &k, &v, bias.as_ref(), scale)?.squeeze(2)
}

pub fn row_attention_grad(dy: &Tensor, operands: [&Tensor; 4], bias: Option<&Tensor>, scale: f64) -> Result<Tensor> {
    let [q, k, v, places] = operands;
    if places.elem_count() == 0 || k.elem_count() == 0 {
        return joined(&[q.zeros_like()?, k.zeros_like()?, v.zeros_like()?]);
    }
    let ([q, k_seen, v_seen], bias, sequence) = seen(operands, bias)?;
    let [dq, dk, dv] = attention_cotangents(&dy.unsqueeze(2)?, &q, &k_seen, &v_seen, bias.as_ref(), scale)?;
    let all = |d: &Tensor, x: &Tensor| {
        let (b, l, _, n) = x.dims4()?;
        summed(&gather_grad(&swapped(d)?, &sequence, &[b, l, q.dim(1)?, n])?, x)
    };
    joined(&[dq.squeeze(2)?, all(&dk, k)?, all(&dv, v)?])
}

/// The cotangent of scores from their probabilities, dy and v.
pub fn score_grad(p: &Tensor, dy: &Tensor, v: &Tensor) -> Result<Tensor> {
    softmax_grad(p, &matmul(dy, &v.t()?)?, p.rank() - 1)
}

/// `y (dy - sum(dy y))`.
pub fn softmax_grad(y: &Tensor, dy: &Tensor, axis: usize) -> Result<Tensor> {
    y.broadcast_mul(&dy.broadcast_sub(&dy.broadcast_mul(y)?.sum_keepdim(axis)?)?)
}
