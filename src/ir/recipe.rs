//! Data that is computed from other data: the first values of trained weights in f32, quantised weights.
//!
//! A recipe is a function from bytes to bytes.  Whoever reads the data applies it; until then only the
//! source's bytes exist, on disk.

use super::blocks::Blocks;
use super::codes;
use super::ty::DType;
use half::{bf16, f16};

/// How bytes are made from those of another tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// Every element in another floating-point type.
    Cast { from: DType, to: DType },
    /// The codes of a quantised matrix.
    Codes(Blocks),
    /// Its scales.
    Scales(Blocks),
    /// Codes of the source in blocks.
    Blocks(codes::Codes),
    /// The length of each column of a matrix.
    ColumnNorms(Matrix),
}

/// A matrix of floating-point numbers as it lies in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    pub from: DType,
    pub rows: usize,
    pub columns: usize,
    /// The source holds `columns` x `rows`.
    pub transposed: bool,
}

impl Matrix {
    /// The Euclidean length of each column, summed in f64.
    fn column_norms(&self, source: &[u8]) -> Vec<f64> {
        let mut sums = vec![0.0; self.columns];
        let width = if self.transposed { self.rows } else { self.columns };
        for (k, x) in decode(self.from, source).enumerate() {
            sums[if self.transposed { k / width } else { k % width }] += x * x;
        }
        sums.iter().map(|sum| sum.sqrt()).collect()
    }
}

impl Recipe {
    /// The number of bytes that `source` bytes become.
    pub fn len(&self, source: u64) -> u64 {
        match self {
            Recipe::Cast { from, to } => source / from.size().max(1) as u64 * to.size() as u64,
            Recipe::Codes(blocks) => blocks.code_bytes() as u64,
            Recipe::Scales(blocks) => blocks.scale_bytes() as u64,
            Recipe::Blocks(codes) => codes.bytes() as u64,
            Recipe::ColumnNorms(matrix) => (matrix.columns * DType::F32.size()) as u64,
        }
    }

    /// The bytes made from `source`, both little-endian and dense.
    pub fn apply(&self, source: &[u8]) -> Vec<u8> {
        match self {
            Recipe::Cast { from, to } => encode(*to, decode(*from, source)),
            Recipe::Codes(blocks) => blocks.codes(source),
            Recipe::Scales(blocks) => blocks.scales(source),
            Recipe::Blocks(codes) => codes.blocks(source),
            Recipe::ColumnNorms(matrix) => encode(DType::F32, matrix.column_norms(source).into_iter()),
        }
    }
}

/// Floating-point elements; other types give none.
pub(super) fn decode(dtype: DType, bytes: &[u8]) -> Box<dyn Iterator<Item = f64> + '_> {
    fn each<const N: usize>(bytes: &[u8], read: fn([u8; N]) -> f64) -> impl Iterator<Item = f64> {
        bytes.as_chunks::<N>().0.iter().map(move |b| read(*b))
    }
    match dtype {
        DType::F64 => Box::new(each(bytes, f64::from_le_bytes)),
        DType::F32 => Box::new(each(bytes, |b| f32::from_le_bytes(b).into())),
        DType::F16 => Box::new(each(bytes, |b| f16::from_le_bytes(b).into())),
        DType::BF16 => Box::new(each(bytes, |b| bf16::from_le_bytes(b).into())),
        _ => Box::new(std::iter::empty()),
    }
}

/// The same, written to every `step`th element of `out`: a loop for each type, where many elements are decoded.
pub(super) fn decode_to(out: &mut [f64], step: usize, dtype: DType, bytes: &[u8]) {
    fn each<const N: usize>(out: &mut [f64], step: usize, bytes: &[u8], read: impl Fn([u8; N]) -> f64) {
        out.iter_mut().step_by(step).zip(bytes.as_chunks::<N>().0).for_each(|(x, b)| *x = read(*b));
    }
    match dtype {
        DType::F64 => each(out, step, bytes, f64::from_le_bytes),
        DType::F32 => each(out, step, bytes, |b| f32::from_le_bytes(b).into()),
        DType::F16 => each(out, step, bytes, |b| f16::from_le_bytes(b).into()),
        DType::BF16 => each(out, step, bytes, |b| bf16::from_le_bytes(b).into()),
        _ => {}
    }
}

pub(super) fn encode(dtype: DType, values: impl Iterator<Item = f64>) -> Vec<u8> {
    match dtype {
        DType::F64 => values.flat_map(f64::to_le_bytes).collect(),
        DType::F32 => values.flat_map(|x| (x as f32).to_le_bytes()).collect(),
        DType::F16 => values.flat_map(|x| f16::from_f64(x).to_le_bytes()).collect(),
        DType::BF16 => values.flat_map(|x| bf16::from_f64(x).to_le_bytes()).collect(),
        _ => vec![],
    }
}

/// `x` rounded to a type of 16 bits; other types keep it.
pub fn rounded(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(x).into(),
        DType::BF16 => bf16::from_f64(x).into(),
        _ => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_elements_become_wide_ones() {
        let recipe = Recipe::Cast { from: DType::BF16, to: DType::F32 };
        let source: Vec<u8> = [1.5, -2.0].iter().flat_map(|x| bf16::from_f64(*x).to_le_bytes()).collect();
        let made = recipe.apply(&source);
        assert_eq!(made, [1.5f32.to_le_bytes(), (-2f32).to_le_bytes()].concat());
        assert_eq!(recipe.len(source.len() as u64), made.len() as u64);
    }

    #[test]
    fn columns_are_measured_either_way_round() {
        // [[3, 1], [4, 0], [0, 0]]
        let (plain, turned) = ([3f32, 1.0, 4.0, 0.0, 0.0, 0.0], [3f32, 4.0, 0.0, 1.0, 0.0, 0.0]);
        for (values, transposed) in [(plain, false), (turned, true)] {
            let recipe = Recipe::ColumnNorms(Matrix { from: DType::F32, rows: 3, columns: 2, transposed });
            let source: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let norms: Vec<u8> = [5f32, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(recipe.apply(&source), norms);
            assert_eq!(recipe.len(24), 8);
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        assert_eq!(rounded(1.0 + 1.0 / 256.0, DType::BF16), 1.0);
        assert_eq!(rounded(1.0 + 3.0 / 256.0, DType::BF16), 1.0 + 4.0 / 256.0);
        assert_eq!(rounded(1e6, DType::F16), f64::INFINITY);
        assert_eq!(rounded(0.1, DType::F32), 0.1);
    }
}
