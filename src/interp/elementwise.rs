//! Elementwise operators, reductions and softmax.

use crate::ir::DType;
use candle_core::{DType as Candle, Device, Result, Tensor};

/// A truth value (candle's u8) as 0 or 1.
pub fn flag(x: Tensor) -> Result<Tensor> {
    x.to_dtype(Candle::F64)
}

/// `1 / (1 + e^-x)`; f64's range makes both tails right.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    x.neg()?.exp()?.affine(1.0, 1.0)?.recip()
}

/// `max(x, 0) + log(1 + e^-|x|)`.
pub fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + x.abs()?.neg()?.exp()?.affine(1.0, 1.0)?.log()?
}

/// Conversion towards integers truncates; floats keep their f64 value.
pub fn cast(x: &Tensor, to: DType) -> Result<Tensor> {
    match to {
        DType::Bool => flag(x.ne(0.0)?),
        t if t.is_int() => truncate(x),
        _ => Ok(x.clone()),
    }
}

fn truncate(x: &Tensor) -> Result<Tensor> {
    x.sign()? * x.abs()?.floor()?
}

/// Integers divide towards zero, as in ONNX.
pub fn div(x: &Tensor, y: &Tensor, dtype: DType) -> Result<Tensor> {
    let quotient = x.broadcast_div(y)?;
    if dtype.is_float() { Ok(quotient) } else { truncate(&quotient) }
}

/// `x^y`.  A uniform exponent and positive bases are differentiable for candle; the rest is exact only.
pub fn pow(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if y.rank() == 0 && !y.track_op() {
        return x.powf(y.to_scalar()?);
    }
    let bases = x.flatten_all()?.to_vec1::<f64>()?;
    if bases.iter().all(|b| *b > 0.0) {
        return x.broadcast_pow(y);
    }
    let shape = x.shape().broadcast_shape_binary_op(y.shape(), "pow")?;
    let flat = |t: &Tensor| t.broadcast_as(&shape)?.flatten_all()?.to_vec1::<f64>();
    let powers = flat(x)?.into_iter().zip(flat(y)?).map(|(a, b)| a.powf(b)).collect();
    Tensor::from_vec(powers, shape, &Device::Cpu)
}

/// `condition ? a : b` over the common shape.
pub fn select(condition: &Tensor, a: &Tensor, b: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let condition = condition.broadcast_as(shape)?.contiguous()?.ne(0.0)?;
    condition.where_cond(&a.broadcast_as(shape)?.contiguous()?, &b.broadcast_as(shape)?.contiguous()?)
}

pub fn mean(x: &Tensor, axes: &[usize]) -> Result<Tensor> {
    let count: usize = axes.iter().map(|a| x.dims()[*a]).product();
    x.sum_keepdim(axes.to_vec())? / count as f64
}

pub fn reduce_max(x: &Tensor, axes: &[usize]) -> Result<Tensor> {
    axes.iter().try_fold(x.clone(), |x, a| x.max_keepdim(*a))
}

/// Running sums along an axis, itself included; from the end if `reverse`.
pub fn cumsum(x: &Tensor, axis: usize, reverse: bool) -> Result<Tensor> {
    let (last, n) = (x.rank() - 1, x.dim(axis)?);
    let ones = Tensor::triu2(n, Candle::F64, &Device::Cpu)?;
    let ones = if reverse { ones.t()? } else { ones };
    let x = x.transpose(axis, last)?.contiguous()?;
    x.reshape(((), n.max(1)))
        .and_then(|rows| if n == 0 { Ok(x.clone()) } else { rows.matmul(&ones.contiguous()?)?.reshape(x.shape()) })?
        .transpose(axis, last)?
        .contiguous()
}

/// `e^x / sum e^x` along an axis.  A row of -inf is NaN, as in ONNX.
pub fn softmax(x: &Tensor, axis: usize) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(axis)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(axis)?)
}
