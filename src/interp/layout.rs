//! Matrix products, layout and indexing.

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

/// Product of the last two axes; leading axes broadcast.
pub fn matmul(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (rx, ry) = (x.rank(), y.rank());
    if rx < 2 || ry < 2 {
        bail!("needs matrices");
    }
    let (m, k, n) = (x.dims()[rx - 2], x.dims()[rx - 1], y.dims()[ry - 1]);
    let leads =
        Shape::from(&x.dims()[..rx - 2]).broadcast_shape_binary_op(&Shape::from(&y.dims()[..ry - 2]), "matmul")?;
    let batch = leads.elem_count();
    let flat = |t: &Tensor, r: usize, c: usize| {
        t.broadcast_as(leads.clone().extend(&[r, c]))?.contiguous()?.reshape((batch, r, c))
    };
    flat(x, m, k)?.matmul(&flat(y, k, n)?)?.reshape(leads.clone().extend(&[m, n]))
}

/// The transpose of the last two axes, if asked for.
pub fn turned(x: &Tensor, transpose: i64) -> Result<Tensor> {
    if transpose == 0 { Ok(x.clone()) } else { x.t()?.contiguous() }
}

/// `0, 1, .., n - 1`.
pub fn iota(n: usize) -> Result<Tensor> {
    Tensor::from_vec((0..n).map(|k| k as f64).collect(), n, &Device::Cpu)
}

fn positions(of: impl Iterator<Item = usize>) -> Result<Tensor> {
    let list: Vec<i64> = of.map(|k| k as i64).collect();
    let n = list.len();
    Tensor::from_vec(list, n, &Device::Cpu)
}

/// Elements `start, start + step, ..` below `end`.
pub fn slice(x: &Tensor, axis: usize, start: usize, end: usize, step: usize) -> Result<Tensor> {
    if end > x.dim(axis)? || start > end || step == 0 {
        bail!("{start}..{end} in steps of {step} is not inside 0..{}", x.dim(axis)?);
    }
    if step == 1 {
        return x.narrow(axis, start, end - start)?.contiguous();
    }
    x.contiguous()?.index_select(&positions((start..end).step_by(step))?, axis)
}

/// Zeros of length `size` with `x` at `start, start + step, ..`.
pub fn unslice(x: &Tensor, axis: usize, start: usize, step: usize, size: usize) -> Result<Tensor> {
    let at = positions((0..x.dim(axis)?).map(|k| start + k * step))?;
    let mut dims = x.dims().to_vec();
    dims[axis] = size;
    zeros(&dims)?.index_add(&at, &x.contiguous()?, axis)
}

fn zeros(dims: &[usize]) -> Result<Tensor> {
    Tensor::zeros(dims, DType::F64, &Device::Cpu)
}

pub(super) fn index(idx: &Tensor) -> Result<Tensor> {
    idx.flatten_all()?.to_dtype(DType::I64)?.contiguous()
}

/// Slices of `x` along the axis, at `idx`.
pub fn gather(x: &Tensor, idx: &Tensor, axis: usize, shape: &[usize]) -> Result<Tensor> {
    x.contiguous()?.index_select(&index(idx)?, axis)?.reshape(shape)
}

/// Where a mask is true, counted through all its axes.
pub fn true_rows(mask: &Tensor) -> Result<Tensor> {
    let mask = mask.flatten_all()?.to_vec1::<f64>()?;
    let places: Vec<f64> = mask.iter().enumerate().filter(|(_, m)| **m != 0.0).map(|(k, _)| k as f64).collect();
    let n = places.len();
    Tensor::from_vec(places, n, &candle_core::Device::Cpu)
}

/// `x` at places that are counted through its first two axes.
pub fn take_rows(x: &Tensor, idx: &Tensor) -> Result<Tensor> {
    x.contiguous()?.flatten(0, 1)?.index_select(&index(idx)?, 0)
}

/// Rows of `dy` added up at their indices: the transpose of `gather` on axis 0.
pub fn gather_grad(dy: &Tensor, idx: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let at = index(idx)?;
    let row: usize = shape[1..].iter().product();
    let rows = dy.contiguous()?.reshape((at.elem_count(), row))?;
    zeros(&[shape[0], row])?.index_add(&at, &rows, 0)?.reshape(shape)
}

/// Where in the flattened `x` the elements lie that `idx` picks along the axis.
fn element_positions(dims: &[usize], idx: &Tensor, axis: usize) -> Result<Tensor> {
    let stride = |k: usize| dims[k + 1..].iter().product::<usize>();
    let strides: Vec<usize> = (0..dims.len()).map(stride).collect();
    let mut at = Vec::with_capacity(idx.elem_count());
    let mut place = vec![0; idx.rank()];
    for value in idx.flatten_all()?.to_vec1::<f64>()? {
        if value < 0.0 || value >= dims[axis] as f64 {
            bail!("index {value} is outside 0..{}", dims[axis]);
        }
        let offset = |k: usize| strides[k] * if k == axis { value as usize } else { place[k] };
        at.push((0..dims.len()).map(offset).sum());
        for k in (0..place.len()).rev() {
            place[k] += 1;
            if place[k] < idx.dims()[k] {
                break;
            }
            place[k] = 0;
        }
    }
    if idx.dims().iter().zip(dims).enumerate().any(|(k, (i, d))| k != axis && i > d) {
        bail!("indices of shape {:?} do not fit into {dims:?}", idx.dims());
    }
    positions(at.into_iter())
}

/// `y[i, j] = x[i, idx[i, j]]` along the axis.
pub fn gather_elements(x: &Tensor, idx: &Tensor, axis: usize) -> Result<Tensor> {
    let at = element_positions(x.dims(), idx, axis)?;
    x.flatten_all()?.contiguous()?.index_select(&at, 0)?.reshape(idx.dims())
}

/// `x` with `updates[i, j]` added at `[i, idx[i, j]]` along the axis.
pub fn scatter_add(x: &Tensor, idx: &Tensor, updates: &Tensor, axis: usize) -> Result<Tensor> {
    let at = element_positions(x.dims(), idx, axis)?;
    let updates = updates.flatten_all()?.contiguous()?;
    x.flatten_all()?.contiguous()?.index_add(&at, &updates, 0)?.reshape(x.dims())
}

/// Where the best `k` elements lie along the axis, best first; of equal ones the first comes first.
pub fn topk_indices(x: &Tensor, k: usize, axis: usize, largest: bool) -> Result<Tensor> {
    let last = x.rank() - 1;
    let rows = x.detach().transpose(axis, last)?.contiguous()?;
    let (n, mut dims) = (rows.dim(last)?, rows.dims().to_vec());
    if k > n {
        bail!("{k} elements cannot be picked out of {n}");
    }
    dims[last] = k;
    let mut best = Vec::with_capacity(dims.iter().product());
    for row in rows.flatten_all()?.to_vec1::<f64>()?.chunks(n.max(1)) {
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|i, j| if largest { row[*j].total_cmp(&row[*i]) } else { row[*i].total_cmp(&row[*j]) });
        best.extend(order.into_iter().take(k).map(|i| i as f64));
    }
    Tensor::from_vec(best, dims, &Device::Cpu)?.transpose(axis, last)?.contiguous()
}

/// The best `k` elements along the axis.
pub fn topk_values(x: &Tensor, k: usize, axis: usize, largest: bool) -> Result<Tensor> {
    gather_elements(x, &topk_indices(x, k, axis, largest)?, axis)
}

/// `(code - 2^(bits - 1)) scale`, codes in bytes [n, blocks, bytes] and scales [n, blocks].
pub fn decode(bytes: &Tensor, scales: &Tensor, bits: i64) -> Result<Tensor> {
    let codes = match bits {
        4 => {
            let high = bytes.affine(1.0 / 16.0, 0.0)?.floor()?;
            let low = (bytes - high.affine(16.0, 0.0)?)?;
            Tensor::stack(&[low, high], 3)?.flatten_from(2)?
        }
        _ => bytes.clone(),
    };
    let zero = 2f64.powi(i32::try_from(bits).unwrap_or(8) - 1);
    codes.affine(1.0, -zero)?.broadcast_mul(&scales.unsqueeze(2)?)?.flatten_from(1)
}

/// The same without what fills up the last block.
pub fn dequantize(bytes: &Tensor, scales: &Tensor, bits: i64, k: usize) -> Result<Tensor> {
    decode(bytes, scales, bits)?.narrow(1, 0, k)?.contiguous()
}
