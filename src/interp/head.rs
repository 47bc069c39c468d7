//! The head, by way of its logits.

use super::args::Args;
use super::layout::{gather, matmul, scatter_add, turned};
use super::objective::{token_entropy, weighted_cross_entropy};
use candle_core::{D, Result, Tensor};

/// h w + b of operands `first..`: `[n V]`.
fn logits(a: &Args, first: usize) -> Result<Tensor> {
    let w = turned(a.x(first + 1)?, a.int("trans")?)?;
    matmul(a.x(first)?, &w)?.broadcast_add(a.x(first + 2)?)
}

/// The columns of `x` that the node is about.
fn columns(a: &Args, x: &Tensor, axis: usize) -> Result<Tensor> {
    let from = a.size("from")?;
    x.narrow(axis, from, a.size("to")? - from)?.contiguous()
}

/// The rows of the weight that belong to tokens: `[m d]`.
pub fn rows(a: &Args) -> Result<Tensor> {
    let (w, at) = (a.x(0)?, a.x(1)?);
    gather(&turned(w, 1 - a.int("trans")?)?.contiguous()?, at, 0, a.shape())
}

pub fn block(a: &Args) -> Result<Tensor> {
    let z = logits(a, 0)?;
    gather(&z.t()?.contiguous()?, a.x(3)?, 0, &[a.shape()[1], a.shape()[0]])?.t()?.contiguous()
}

pub fn entropy(a: &Args) -> Result<Tensor> {
    token_entropy(&logits(a, 0)?, a.x(3)?)
}

pub fn loss(a: &Args) -> Result<Tensor> {
    weighted_cross_entropy(&logits(a, 0)?, a.x(3)?, a.x(4)?)
}

pub fn sums(a: &Args) -> Result<Tensor> {
    logit_sums(&columns(a, &logits(a, 0)?, 1)?)
}

pub fn logit_sums(z: &Tensor) -> Result<Tensor> {
    let top = z.max_keepdim(1)?;
    let s = z.broadcast_sub(&top)?;
    let e = s.exp()?;
    Tensor::cat(&[&top, &e.sum_keepdim(1)?, &(e * s)?.sum_keepdim(1)?], 1)
}

pub fn logit_grad(a: &Args) -> Result<Tensor> {
    let (z, g, lse) = (a.x(0)?, a.x(1)?.unsqueeze(1)?, a.x(3)?.unsqueeze(1)?);
    let own = a.x(2)?.unsqueeze(1)?.broadcast_eq(&a.x(4)?.unsqueeze(0)?)?.to_dtype(z.dtype())?;
    (z.broadcast_sub(&lse)?.exp()? - own)?.broadcast_mul(&g)
}

/// Column `k` of sums.
fn sum(x: &Tensor, k: usize) -> Result<Tensor> {
    x.narrow(1, k, 1)
}

pub fn block_expect(sums: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let n = sum(sums, 1)?;
    Tensor::cat(&[&(sum(sums, 0)? + n.log()?)?, &rows.broadcast_div(&n)?], 1)
}

pub fn merge_sums(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let top = sum(x, 0)?.maximum(&sum(y, 0)?)?;
    // n and a of one block below the common maximum.
    let below = |x: &Tensor| -> Result<(Tensor, Tensor)> {
        let s = (sum(x, 0)? - &top)?;
        let (e, n) = (s.exp()?, sum(x, 1)?);
        Ok(((&e * &n)?, (e * (sum(x, 2)? + (s * n)?)?)?))
    };
    let ((n, a), (m, b)) = (below(x)?, below(y)?);
    Tensor::cat(&[&top, &(n + m)?, &(a + b)?], 1)
}

pub fn merge_expect(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (lx, ly) = (sum(x, 0)?, sum(y, 0)?);
    let top = lx.maximum(&ly)?;
    let l = ((((&lx - &top)?.exp()? + (&ly - &top)?.exp()?)?.log())? + &top)?;
    let part = |x: &Tensor, own: &Tensor| x.narrow(1, 1, x.dim(1)? - 1)?.broadcast_mul(&(own - &l)?.exp()?);
    Tensor::cat(&[&l, &(part(x, &lx)? + part(y, &ly)?)?], 1)
}

pub fn expect(a: &Args) -> Result<Tensor> {
    let z = columns(a, &logits(a, 0)?, 1)?;
    let top = z.max_keepdim(1)?.detach();
    let e = z.broadcast_sub(&top)?.exp()?;
    let n = e.sum_keepdim(D::Minus1)?;
    let w = columns(a, &turned(a.x(1)?, 1 - a.int("trans")?)?, 0)?;
    Tensor::cat(&[&(n.log()? + top)?, &matmul(&e, &w)?.broadcast_div(&n)?], 1)
}

/// The cotangent of the node's logits, with the sum of exponentials that it is given.
pub fn grad_z(a: &Args) -> Result<Tensor> {
    let (g, ids, lse) = (a.x(0)?, a.x(4)?, a.x(5)?.unsqueeze(1)?);
    let z = logits(a, 1)?;
    let column = ids.unsqueeze(1)?;
    let slope = scatter_add(&z.broadcast_sub(&lse)?.exp()?, &column, &column.ones_like()?.neg()?, 1)?;
    columns(a, &slope.broadcast_mul(&g.unsqueeze(1)?)?, 1)
}

/// The sum over no rows.
fn nothing(a: &Args) -> Result<Tensor> {
    Tensor::zeros(a.shape(), candle_core::DType::F64, &candle_core::Device::Cpu)
}

pub fn grad_w(a: &Args) -> Result<Tensor> {
    if a.x(0)?.elem_count() == 0 {
        return nothing(a);
    }
    turned(&matmul(&a.x(1)?.t()?.contiguous()?, &grad_z(a)?)?, a.int("trans")?)?.contiguous()
}

pub fn grad_b(a: &Args) -> Result<Tensor> {
    if a.x(0)?.elem_count() == 0 {
        return nothing(a);
    }
    grad_z(a)?.sum(0)
}
