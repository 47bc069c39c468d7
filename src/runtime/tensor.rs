//! A tensor in host memory: what is fed to a session and what comes out.

use super::share;
use crate::error::{Error, Result};
use crate::ir::ty::DType;
use half::{bf16, f16};

/// Element type, shape and dense little-endian bytes.
#[derive(Clone, PartialEq)]
pub struct HostTensor {
    dtype: DType,
    shape: Vec<i64>,
    bytes: Vec<u8>,
}

/// A Rust type that a tensor can hold.
pub trait Element: Copy {
    const DTYPE: DType;
    fn put(self, to: &mut Vec<u8>);
    /// `bytes` has the size of one element.
    fn get(bytes: &[u8]) -> Option<Self>;
}

macro_rules! elements {
    ($($t:ty => $d:ident),* $(,)?) => { $(
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn put(self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(<$t>::from_le_bytes)
            }
        }
    )* };
}
elements!(f64 => F64, f32 => F32, f16 => F16, bf16 => BF16, i64 => I64, i32 => I32, i8 => I8, u8 => U8);

impl Element for bool {
    const DTYPE: DType = DType::Bool;
    fn put(self, to: &mut Vec<u8>) {
        to.push(u8::from(self));
    }
    fn get(bytes: &[u8]) -> Option<Self> {
        bytes.first().map(|b| *b != 0)
    }
}

/// How many elements a shape has; `None` where a size is negative or the product overflows.
pub fn count(shape: &[i64]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))
}

impl HostTensor {
    /// A tensor of `values` in row-major order.  Errors where their number does not fit `shape`.
    pub fn new<T: Element>(shape: &[i64], values: &[T]) -> Result<Self> {
        let mut bytes = Vec::with_capacity(values.len() * T::DTYPE.size());
        values.iter().for_each(|v| v.put(&mut bytes));
        Self::from_bytes(T::DTYPE, shape, bytes)
    }

    /// A tensor of no dimensions.
    pub fn scalar<T: Element>(value: T) -> Self {
        let mut bytes = Vec::new();
        value.put(&mut bytes);
        HostTensor { dtype: T::DTYPE, shape: Vec::new(), bytes }
    }

    pub fn zeros(dtype: DType, shape: &[i64]) -> Result<Self> {
        let n = count(shape).unwrap_or(usize::MAX).saturating_mul(dtype.size());
        if n > isize::MAX as usize {
            return Err(Error::runtime(format!("a tensor of shape {shape:?} does not fit into memory")));
        }
        Ok(HostTensor { dtype, shape: shape.to_vec(), bytes: vec![0; n] })
    }

    /// A tensor over dense little-endian bytes.  Errors where their number does not fit.
    pub fn from_bytes(dtype: DType, shape: &[i64], bytes: Vec<u8>) -> Result<Self> {
        if count(shape).and_then(|n| n.checked_mul(dtype.size())) != Some(bytes.len()) {
            let message = format!("{} bytes are no {} tensor of shape {shape:?}", bytes.len(), dtype.name());
            return Err(Error::runtime(message));
        }
        Ok(HostTensor { dtype, shape: shape.to_vec(), bytes })
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements in row-major order.  Errors where the tensor holds another type.
    pub fn values<T: Element>(&self) -> Result<Vec<T>> {
        if self.dtype != T::DTYPE {
            let message = format!("a tensor of {} was read as {}", self.dtype.name(), T::DTYPE.name());
            return Err(Error::runtime(message));
        }
        Ok(self.bytes.chunks_exact(T::DTYPE.size()).filter_map(T::get).collect())
    }

    /// The elements as f64, whatever their type.  i64 beyond 2^53 is rounded.
    pub fn to_f64(&self) -> Vec<f64> {
        fn all<T: Element>(bytes: &[u8], f: impl Fn(T) -> f64) -> Vec<f64> {
            bytes.chunks_exact(T::DTYPE.size()).filter_map(T::get).map(f).collect()
        }
        let b = &self.bytes;
        match self.dtype {
            DType::F64 => all(b, |x: f64| x),
            DType::F32 => all(b, |x: f32| x.into()),
            DType::F16 => all(b, |x: f16| x.to_f64()),
            DType::BF16 => all(b, |x: bf16| x.to_f64()),
            DType::I64 => all(b, |x: i64| x as f64),
            DType::I32 => all(b, |x: i32| x.into()),
            DType::I8 | DType::I4 => all(b, |x: i8| x.into()),
            DType::U8 | DType::U4 => all(b, |x: u8| x.into()),
            DType::Bool => all(b, |x: bool| f64::from(u8::from(x))),
        }
    }

    /// A tensor of `dtype` from f64 values, rounded to nearest.
    pub fn from_f64(dtype: DType, shape: &[i64], values: &[f64]) -> Result<Self> {
        fn all<T: Element>(shape: &[i64], values: &[f64], f: impl Fn(f64) -> T) -> Result<HostTensor> {
            HostTensor::new(shape, &values.iter().map(|x| f(*x)).collect::<Vec<T>>())
        }
        match dtype {
            DType::F64 => all(shape, values, |x| x),
            DType::F32 => all(shape, values, |x| x as f32),
            DType::F16 => all(shape, values, f16::from_f64),
            DType::BF16 => all(shape, values, bf16::from_f64),
            DType::I64 => all(shape, values, |x| x as i64),
            DType::I32 => all(shape, values, |x| x as i32),
            DType::I8 | DType::I4 => all(shape, values, |x| x as i8),
            DType::U8 | DType::U4 => all(shape, values, |x| x as u8),
            DType::Bool => all(shape, values, |x| x != 0.0),
        }
    }

    /// The only element.  Errors where there are more, or none.
    pub fn item(&self) -> Result<f64> {
        match self.to_f64()[..] {
            [x] => Ok(x),
            _ => Err(Error::runtime(format!("a tensor of shape {:?} was read as one number", self.shape))),
        }
    }

    /// The transpose of a matrix.  Errors for any other rank.
    pub fn transposed(&self) -> Result<Self> {
        let [rows, columns] = self.shape[..] else {
            return Err(Error::runtime(format!("only a matrix can be transposed, not shape {:?}", self.shape)));
        };
        let (r, c) = (rows as usize, columns as usize);
        let bytes = match self.dtype.size() {
            1 => turned::<1>(&self.bytes, r, c),
            2 => turned::<2>(&self.bytes, r, c),
            4 => turned::<4>(&self.bytes, r, c),
            _ => turned::<8>(&self.bytes, r, c),
        }?;
        Ok(HostTensor { dtype: self.dtype, shape: vec![columns, rows], bytes })
    }
}

/// The transpose of `rows` x `columns` elements of N bytes, tile by tile: columns lie far apart in memory.
fn turned<const N: usize>(bytes: &[u8], rows: usize, columns: usize) -> Result<Vec<u8>> {
    const TILE: usize = 32;
    let from = bytes.as_chunks::<N>().0;
    let mut out = vec![0; bytes.len()];
    share::fill(&mut out, rows * N, |first, part| {
        let part = part.as_chunks_mut::<N>().0;
        let count = part.len() / rows.max(1);
        for (i, j) in (0..rows).step_by(TILE).flat_map(|i| (0..count).step_by(TILE).map(move |j| (i, j))) {
            for j in j..count.min(j + TILE) {
                for i in i..rows.min(i + TILE) {
                    part[j * rows + i] = from[i * columns + first + j];
                }
            }
        }
        Ok(())
    })?;
    Ok(out)
}

impl std::fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype.name(), self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_fit_the_shape() {
        assert!(HostTensor::new(&[2, 2], &[1f32, 2.0, 3.0]).is_err());
        assert!(HostTensor::new(&[-1], &[1f32]).is_err());
        assert!(HostTensor::zeros(DType::F32, &[i64::MAX, 4]).is_err());
    }

    #[test]
    fn transpose_moves_elements() {
        let t = HostTensor::new(&[2, 3], &[1i64, 2, 3, 4, 5, 6]).unwrap().transposed().unwrap();
        assert_eq!((t.shape(), t.values::<i64>().unwrap()), (&[3, 2][..], vec![1, 4, 2, 5, 3, 6]));
    }

    #[test]
    fn numbers_survive_f64() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::I8] {
            let t = HostTensor::from_f64(dtype, &[3], &[-1.0, 0.0, 96.0]).unwrap();
            assert_eq!(t.to_f64(), [-1.0, 0.0, 96.0], "{}", dtype.name());
        }
    }
}
