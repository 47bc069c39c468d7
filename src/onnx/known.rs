//! Small tensors whose elements are known while reading: shapes, axes, and scalars computed from them.
//!
//! Exporters compute shapes with tensor operators; here that arithmetic is carried out on symbolic
//! dimensions, so that none of it reaches the graph.

mod arithmetic;

use super::tensor::Tensor;
use super::weights;
use crate::ir::{DType, Dim, Op};
pub use arithmetic::{HUGE, sign};
use arithmetic::{float_binary, float_unary, int_binary};
use half::{bf16, f16};
use std::cmp::Ordering;

/// The most elements that are kept as known; larger tables stay tensors.
pub const MAX_KNOWN: usize = 4096;

#[derive(Clone, Debug, PartialEq)]
pub enum Items {
    /// Integers, and booleans as 0 and 1.  Of a float type where one is an unknown size that was cast.
    Ints(Vec<Dim>),
    Floats(Vec<f64>),
}

/// A tensor of known elements, in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub items: Items,
    /// The table that this is, unchanged, so that a use as a tensor finds the file's data and name.
    pub table: Option<usize>,
}

impl Known {
    /// An int64 vector.
    pub fn vector(dims: Vec<Dim>) -> Known {
        Known { dtype: DType::I64, shape: vec![dims.len()], items: Items::Ints(dims), table: None }
    }

    /// An int64 scalar.
    pub fn scalar(dim: Dim) -> Known {
        Known { dtype: DType::I64, shape: vec![], items: Items::Ints(vec![dim]), table: None }
    }

    /// A float32 scalar.
    pub fn float(x: f64) -> Known {
        Known { dtype: DType::F32, shape: vec![], items: Items::Floats(vec![x]), table: None }
    }

    /// The elements of a small tensor; `None` where it is large or cannot be read.
    pub fn load(tensor: &Tensor) -> Option<Known> {
        elements(&tensor.dims)?;
        let bytes = weights::load(&tensor.data).ok()?;
        let ints = |size, read: &dyn Fn(&[u8]) -> Option<i64>| -> Option<Items> {
            let dims: Option<Vec<Dim>> = bytes.chunks_exact(size).map(|c| read(c).map(Dim::Known)).collect();
            dims.map(Items::Ints)
        };
        let items = match tensor.dtype {
            DType::F64 | DType::F32 | DType::F16 | DType::BF16 => {
                floats(tensor.dtype, &bytes).map(|all| Items::Floats(all.collect()))
            }
            DType::I64 => ints(8, &|c| c.try_into().ok().map(i64::from_le_bytes)),
            DType::I32 => ints(4, &|c| c.try_into().ok().map(|c| i32::from_le_bytes(c).into())),
            DType::I8 => ints(1, &|c| c.first().map(|b| i64::from(*b as i8))),
            DType::U4 | DType::I4 => {
                let codes = bytes.iter().flat_map(|b| [b & 15, b >> 4]).take(tensor.numel()).map(i64::from);
                let signed = |c: i64| if tensor.dtype == DType::I4 && c > 7 { c - 16 } else { c };
                Some(Items::Ints(codes.map(|c| Dim::Known(signed(c))).collect()))
            }
            DType::U8 => ints(1, &|c| c.first().map(|b| i64::from(*b))),
            DType::Bool => ints(1, &|c| c.first().map(|b| i64::from(*b != 0))),
        }?;
        Some(Known { dtype: tensor.dtype, shape: tensor.dims.clone(), items, table: None })
    }

    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn dims(&self) -> Option<&[Dim]> {
        if let Items::Ints(dims) = &self.items { Some(dims) } else { None }
    }

    /// Every element as a number, where all are.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        match &self.items {
            Items::Ints(dims) => dims.iter().map(|d| d.known().map(|n| n as f64)).collect(),
            Items::Floats(floats) => Some(floats.clone()),
        }
    }

    /// Every element as a size, where none has a fraction.
    pub fn whole(&self) -> Option<Vec<Dim>> {
        let exact = |x: &f64| (x.fract() == 0.0 && x.abs() < MAX_WHOLE).then_some(Dim::Known(*x as i64));
        match &self.items {
            Items::Ints(dims) => Some(dims.clone()),
            Items::Floats(xs) => xs.iter().map(exact).collect(),
        }
    }

    /// The one number that all elements are.
    pub fn uniform(&self) -> Option<f64> {
        let numbers = self.numbers()?;
        let first = *numbers.first()?;
        numbers.iter().all(|x| x.to_bits() == first.to_bits()).then_some(first)
    }

    /// The same elements in another shape.
    pub fn reshaped(&self, shape: Vec<usize>) -> Option<Known> {
        (elements(&shape)? == self.len()).then(|| Known { shape, table: None, ..self.clone() })
    }

    /// Element `from(k)` at place `k` of a tensor of `shape`.
    pub fn picked(&self, shape: Vec<usize>, from: impl Fn(usize) -> usize) -> Option<Known> {
        let n = elements(&shape)?;
        let items = match &self.items {
            Items::Ints(v) => Items::Ints((0..n).map(|k| v.get(from(k)).cloned()).collect::<Option<_>>()?),
            Items::Floats(v) => Items::Floats((0..n).map(|k| v.get(from(k)).copied()).collect::<Option<_>>()?),
        };
        Some(Known { dtype: self.dtype, shape, items, table: None })
    }

    /// The tensor under NumPy's broadcasting to `shape`.
    pub fn expanded(&self, shape: &[usize]) -> Option<Known> {
        let strides = broadcast_strides(&self.shape, shape)?;
        self.picked(shape.to_vec(), |k| offset(k, shape, &strides))
    }

    pub fn transposed(&self, perm: &[usize]) -> Option<Known> {
        let own = strides(&self.shape);
        let shape: Vec<usize> = perm.iter().map(|p| self.shape.get(*p).copied()).collect::<Option<_>>()?;
        let strides: Vec<usize> = perm.iter().map(|p| own.get(*p).copied()).collect::<Option<_>>()?;
        let to = shape.clone();
        self.picked(shape, |k| offset(k, &to, &strides))
    }

    /// Rows `indices` of `axis`; the axis keeps its place with their number as its size.
    pub fn selected(&self, axis: usize, indices: &[usize]) -> Option<Known> {
        let inner: usize = self.shape.get(axis + 1..)?.iter().product();
        let size = *self.shape.get(axis)?;
        let mut shape = self.shape.clone();
        shape[axis] = indices.len();
        let n = indices.len().max(1);
        self.picked(shape, |k| {
            let (outer, row, rest) = (k / (n * inner), (k / inner) % n, k % inner);
            (outer * size + indices[row]) * inner + rest
        })
    }

    pub fn concatenated(parts: &[&Known], axis: usize) -> Option<Known> {
        let first = parts.first()?;
        let mut shape = first.shape.clone();
        *shape.get_mut(axis)? = parts.iter().map(|p| p.shape.get(axis)).sum::<Option<usize>>()?;
        let beside = |(k, (a, b)): (usize, (&usize, &usize))| k == axis || a == b;
        let agrees = |p: &&Known| {
            let (rank, sizes) = (p.shape.len(), p.shape.iter().zip(&shape));
            p.dtype == first.dtype && rank == shape.len() && sizes.enumerate().all(beside)
        };
        elements(&shape).filter(|_| parts.iter().all(agrees))?;
        let outer: usize = shape[..axis].iter().product();
        let whole = |p: &Known| p.len() / outer.max(1);
        let ints: Option<Vec<&[Dim]>> = parts.iter().map(|p| p.dims()).collect();
        let items = match ints {
            Some(ints) => {
                let rows = (0..outer).flat_map(|o| ints.iter().zip(parts).map(move |(v, p)| (o, v, whole(p))));
                Items::Ints(rows.flat_map(|(o, v, w)| v[o * w..(o + 1) * w].to_vec()).collect())
            }
            None => {
                let floats: Vec<Vec<f64>> = parts.iter().map(|p| p.numbers()).collect::<Option<_>>()?;
                let rows = (0..outer).flat_map(|o| floats.iter().zip(parts).map(move |(v, p)| (o, v, whole(p))));
                Items::Floats(rows.flat_map(|(o, v, w)| v[o * w..(o + 1) * w].to_vec()).collect())
            }
        };
        Some(Known { dtype: first.dtype, shape, items, table: None })
    }

    pub fn cast(&self, to: DType) -> Option<Known> {
        let items = match (&self.items, to) {
            (Items::Ints(dims), DType::Bool) => {
                let truth = |d: &Dim| sign(d).map(|s| Dim::Known((s != Ordering::Equal).into()));
                Items::Ints(dims.iter().map(truth).collect::<Option<_>>()?)
            }
            (Items::Floats(xs), DType::Bool) => {
                Items::Ints(xs.iter().map(|x| Dim::Known((*x != 0.0).into())).collect())
            }
            (items, to) if to.is_float() => match self.numbers() {
                Some(numbers) => Items::Floats(numbers.iter().map(|x| round_to(*x, to)).collect()),
                // Sizes are exact in these.
                None if matches!(to, DType::F32 | DType::F64) => items.clone(),
                None => return None,
            },
            (Items::Ints(dims), _) => Items::Ints(dims.clone()),
            (Items::Floats(xs), _) => Items::Ints(xs.iter().map(|x| Dim::Known(x.trunc() as i64)).collect()),
        };
        Some(Known { dtype: to, items, shape: self.shape.clone(), table: None })
    }

    /// An elementwise operator of one operand; `None` where the result is not known.
    pub fn unary(&self, op: Op) -> Option<Known> {
        let items = match &self.items {
            Items::Ints(dims) => {
                let f = |d: &Dim| match op {
                    Op::Neg => Some(d.clone() * Dim::Known(-1)),
                    Op::Abs => {
                        sign(d).map(|s| if s == Ordering::Less { d.clone() * Dim::Known(-1) } else { d.clone() })
                    }
                    Op::Not => d.known().map(|n| Dim::Known((n == 0).into())),
                    _ => None,
                };
                Items::Ints(dims.iter().map(f).collect::<Option<_>>()?)
            }
            Items::Floats(xs) => Items::Floats(xs.iter().map(|x| float_unary(op, *x)).collect::<Option<_>>()?),
        };
        Some(Known { items, table: None, ..self.clone() })
    }

    /// An elementwise operator of two operands, broadcasting; `None` where the result is not known.
    pub fn binary(op: Op, a: &Known, b: &Known) -> Option<Known> {
        if a.dtype != b.dtype && op != Op::Pow {
            return None;
        }
        let shape = common_shape(&a.shape, &b.shape)?;
        let (a, b) = (a.expanded(&shape)?, b.expanded(&shape)?);
        let compares =
            matches!(op, Op::Equal | Op::Less | Op::LessEqual | Op::Greater | Op::GreaterEqual | Op::And | Op::Or);
        let numbers = if a.dtype.is_float() { a.numbers().zip(b.numbers()) } else { None };
        let items = match numbers {
            Some((x, y)) => {
                let results = x.into_iter().zip(y).map(|(x, y)| float_binary(op, x, y));
                let results: Vec<f64> = results.collect::<Option<_>>()?;
                match compares {
                    true => Items::Ints(results.iter().map(|x| Dim::Known(*x as i64)).collect()),
                    false => Items::Floats(results),
                }
            }
            // A quotient of floats has a fraction.
            None if a.dtype.is_float() && matches!(op, Op::Div | Op::Pow) => return None,
            None => {
                let pairs = a.whole()?.into_iter().zip(b.whole()?);
                Items::Ints(pairs.map(|(x, y)| int_binary(op, &x, &y)).collect::<Option<_>>()?)
            }
        };
        let dtype = if compares { DType::Bool } else { a.dtype };
        Some(Known { dtype, shape, items, table: None })
    }

    /// Elements of `a` where the condition holds, else of `b`.
    pub fn select(condition: &Known, a: &Known, b: &Known) -> Option<Known> {
        let shape = common_shape(&condition.shape, &common_shape(&a.shape, &b.shape)?)?;
        let condition = condition.expanded(&shape)?.numbers()?;
        let parts = [&a.expanded(&shape)?, &b.expanded(&shape)?];
        let both =
            Known::concatenated(&parts.map(|p| p.reshaped(vec![p.len()])).iter().flatten().collect::<Vec<_>>(), 0)?;
        let n = condition.len();
        both.picked(shape, |k| if condition[k] != 0.0 { k } else { n + k })
    }
}

/// The elements of a float tensor.
pub fn floats(dtype: DType, bytes: &[u8]) -> Option<Box<dyn Iterator<Item = f64> + '_>> {
    Some(match dtype {
        DType::F64 => Box::new(bytes.as_chunks().0.iter().map(|c| f64::from_le_bytes(*c))),
        DType::F32 => Box::new(bytes.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c).into())),
        DType::F16 => Box::new(bytes.as_chunks().0.iter().map(|c| f16::from_le_bytes(*c).into())),
        DType::BF16 => Box::new(bytes.as_chunks().0.iter().map(|c| bf16::from_le_bytes(*c).into())),
        _ => return None,
    })
}

/// Floats of 64 bits have every integer below.
const MAX_WHOLE: f64 = (1u64 << 53) as f64;

/// The number of elements, where that and every size is small enough to be kept.
fn elements(shape: &[usize]) -> Option<usize> {
    let n = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    (n <= MAX_KNOWN && shape.iter().all(|d| *d <= MAX_KNOWN)).then_some(n)
}

fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|k| shape[k + 1..].iter().fold(1usize, |n, d| n.saturating_mul(*d))).collect()
}

/// Strides over `from` for an index into `to`, 0 along broadcast axes.
fn broadcast_strides(from: &[usize], to: &[usize]) -> Option<Vec<usize>> {
    let lead = to.len().checked_sub(from.len())?;
    let own = strides(from);
    (0..to.len())
        .map(|k| match k.checked_sub(lead) {
            None => Some(0),
            Some(i) if from[i] == to[k] => Some(own[i]),
            Some(i) if from[i] == 1 => Some(0),
            Some(_) => None,
        })
        .collect()
}

/// Where element `k` of a tensor of `shape` lies under other strides.
fn offset(k: usize, shape: &[usize], by: &[usize]) -> usize {
    let (mut rest, mut at) = (k, 0);
    for (size, stride) in shape.iter().zip(by).rev() {
        at += rest % size * stride;
        rest /= size;
    }
    at
}

fn common_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], k: usize| (k + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    (0..rank)
        .map(|k| match (at(a, k), at(b, k)) {
            (x, y) if x == y || y == 1 => Some(x),
            (1, y) => Some(y),
            _ => None,
        })
        .collect()
}

/// The nearest number of an element type.
fn round_to(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(x as f32),
        DType::F16 => f16::from_f64(x).into(),
        DType::BF16 => bf16::from_f64(x).into(),
        _ => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Known {
        Known::vector(text.split(' ').map(|t| Dim::parse(t).unwrap()).collect())
    }

    #[test]
    fn shape_arithmetic_is_symbolic() {
        assert_eq!(Known::binary(Op::Mul, &v("batch seq"), &v("4 2")), Some(v("4*batch 2*seq")));
        assert_eq!(Known::binary(Op::Div, &v("4*seq 7"), &v("2 2")), Some(v("2*seq 3")));
        assert_eq!(Known::binary(Op::Div, &v("seq"), &v("2")), None);
        assert_eq!(Known::binary(Op::Equal, &v("seq 3"), &v("-1 3")).unwrap().dims(), v("0 1").dims());
        assert_eq!(Known::binary(Op::Equal, &v("seq"), &v("1")), None);
        assert_eq!(Known::binary(Op::Max, &v("1-seq seq"), &v("0 1")), Some(v("0 seq")));
        assert_eq!(Known::binary(Op::Min, &v("seq 3+seq"), &v("1 2*batch")), None);
        assert_eq!(Known::binary(Op::GreaterEqual, &v("seq 2"), &v("1 2+seq")).unwrap().dims(), v("1 0").dims());
        assert_eq!(Known::binary(Op::Greater, &v("seq"), &v("1")), None);
        assert_eq!(Known::binary(Op::Greater, &v("1+rows.0"), &v("0")).unwrap().dims(), v("1").dims());
        assert_eq!(Known::binary(Op::Greater, &v("rows.0"), &v("0")), None);
        let sizes = v("seq 0").cast(DType::F32).unwrap();
        let ends = Known { items: Items::Floats(vec![-1e9, 1e9]), ..sizes.clone() };
        let ends = Known::binary(Op::Max, &sizes, &ends).unwrap().cast(DType::I64).unwrap();
        assert_eq!(ends, v("seq 1000000000"));
        assert_eq!(Known::binary(Op::Equal, &ends, &v("1000000000")).unwrap().dims(), v("0 1").dims());
        assert_eq!(Known::binary(Op::Less, &v("2*batch*seq"), &v("1000000000")), None);
        let two = Known { items: Items::Floats(vec![2.0]), ..Known::float(2.0) };
        assert_eq!(Known::binary(Op::Div, &v("2*seq").cast(DType::F32).unwrap(), &two), None);
        assert_eq!(Known::select(&v("0 1"), &v("5 seq"), &v("6 7")), Some(v("6 seq")));
    }

    #[test]
    fn layout_follows_numpy() {
        let m = v("1 2 3 4 5 6").reshaped(vec![2, 3]).unwrap();
        assert_eq!(m.transposed(&[1, 0]).unwrap().dims(), v("1 4 2 5 3 6").dims());
        assert_eq!(m.selected(1, &[2, 0]).unwrap().dims(), v("3 1 6 4").dims());
        assert_eq!(Known::concatenated(&[&m, &m], 1).unwrap().dims(), v("1 2 3 1 2 3 4 5 6 4 5 6").dims());
        assert_eq!(v("1 2").expanded(&[2, 2]).unwrap().dims(), v("1 2 1 2").dims());
    }
}
