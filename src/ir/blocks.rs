//! Weights in 8 or 4 bits: every block of a row shares one scale.
//!
//! `w ~ (code - 2^(bits - 1)) scale`, without a zero point of its own, as ONNX Runtime's `MatMulNBits` has
//! it by default.  In 8 bits the scale is the largest magnitude over 127.  In 4 bits it is the element of
//! largest magnitude over -8, so that all sixteen codes are used.

use super::recipe::{decode_to, encode, rounded};
use super::ty::DType;
use std::ops::Range;
use std::panic::resume_unwind;
use std::thread::available_parallelism;

/// Rows that are held in f64 at once: where columns are the source's rows, as many as a few cache lines hold of each.
const TILE: usize = 64;
/// Matrices of fewer elements are done before a thread has started.
const ALONE: usize = 1 << 18;

/// What is behind the name of a weight in that of the leaf of its codes.
pub const CODES: &str = ".codes";

/// The weight whose codes a leaf of this name holds.
pub fn weight_of(codes: &str) -> &str {
    codes.strip_suffix(CODES).unwrap_or(codes)
}

/// A matrix of weights as it lies in the source, and how it is cut.
///
/// The quantised matrix has one row an output and its blocks lie along the inputs: `rows` x `columns`, each
/// row filled up to whole blocks with zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Element type of the source.
    pub from: DType,
    pub rows: usize,
    pub columns: usize,
    /// The source holds `columns` x `rows`.
    pub transposed: bool,
    /// Elements that share a scale; even.
    pub block: usize,
    /// 8 or 4.
    pub bits: u32,
    /// Element type of the scales.
    pub scales: DType,
}

impl Blocks {
    /// Blocks a row.
    pub fn per_row(&self) -> usize {
        self.columns.div_ceil(self.block)
    }

    /// Bytes of the codes: two codes of 4 bits share one, the first in its low half.
    pub fn code_bytes(&self) -> usize {
        self.rows * self.per_row() * self.block * self.bits as usize / 8
    }

    /// Bytes of the scales.
    pub fn scale_bytes(&self) -> usize {
        self.rows * self.per_row() * self.scales.size()
    }

    /// The code that means 0.
    fn zero(&self) -> f64 {
        f64::from(1 << (self.bits - 1))
    }

    /// The scale of one block, as its type holds it.
    fn scale(&self, block: &[f64]) -> f64 {
        let largest = block.iter().copied().fold(0.0, |m: f64, x| if x.abs() > m.abs() { x } else { m });
        let scale = if self.bits == 4 { largest / -self.zero() } else { largest.abs() / (self.zero() - 1.0) };
        match self.scales {
            DType::F32 => f64::from(scale as f32),
            narrow => rounded(scale, narrow),
        }
    }

    /// The rows in `range`, one behind the other.  The source is mapped: no more of it is held in f64.
    fn decoded(&self, source: &[u8], range: Range<usize>) -> Vec<f64> {
        let size = self.from.size();
        let part = |start: usize, n: usize| source.get(start * size..(start + n) * size).unwrap_or_default();
        let mut rows = vec![0.0; range.len() * self.columns];
        if !self.transposed {
            decode_to(&mut rows, 1, self.from, part(range.start * self.columns, range.len() * self.columns));
            return rows;
        }
        for c in 0..self.columns {
            decode_to(&mut rows[c..], self.columns, self.from, part(c * self.rows + range.start, range.len()));
        }
        rows
    }

    /// What `each` makes of every block, whose scale and elements it is told (the last of a row has fewer), in order; on as
    /// many threads as there are.
    fn map(&self, source: &[u8], each: impl Fn(f64, &[f64], &mut Vec<u8>) + Sync) -> Vec<u8> {
        let rows = |range: Range<usize>| {
            let mut made = Vec::new();
            for start in range.clone().step_by(TILE) {
                let decoded = self.decoded(source, start..range.end.min(start + TILE));
                for block in decoded.chunks(self.columns.max(1)).flat_map(|row| row.chunks(self.block)) {
                    each(self.scale(block), block, &mut made);
                }
            }
            made
        };
        let threads = if self.rows * self.columns < ALONE { 1 } else { available_parallelism().map_or(1, |n| n.get()) };
        let share = self.rows.div_ceil(threads).max(1);
        let rows = &rows;
        std::thread::scope(|scope| {
            let starts = (0..self.rows).step_by(share);
            let parts = starts.map(|start| scope.spawn(move || rows(start..self.rows.min(start + share))));
            let parts: Vec<_> = parts.collect();
            let joined = parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)));
            joined.collect::<Vec<_>>().concat()
        })
    }

    /// The codes, `rows` x `per_row` x `block`.
    pub fn codes(&self, source: &[u8]) -> Vec<u8> {
        let (zero, most) = (self.zero(), 2.0 * self.zero() - 1.0);
        self.map(source, |scale, block, out| {
            // To the nearest, halves away from 0; written so that it is vectorised.
            let code = |x: f64| {
                let q = if scale == 0.0 { 0.0 } else { x / scale };
                (f64::from((q + 0.5f64.copysign(q)) as i32) + zero).clamp(0.0, most) as u8
            };
            let start = out.len();
            out.extend(block.iter().map(|x| code(*x)));
            out.resize(start + self.block, zero as u8);
            if self.bits == 4 {
                (0..self.block / 2).for_each(|k| out[start + k] = out[start + 2 * k] | out[start + 2 * k + 1] << 4);
                out.truncate(start + self.block / 2);
            }
        })
    }

    /// The scales, `rows` x `per_row`.
    pub fn scales(&self, source: &[u8]) -> Vec<u8> {
        self.map(source, |scale, _, out| out.extend(encode(self.scales, std::iter::once(scale))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::recipe::decode;
    use super::*;

    fn blocks(bits: u32, transposed: bool) -> Blocks {
        Blocks { from: DType::F32, rows: 2, columns: 3, transposed, block: 2, bits, scales: DType::F32 }
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    /// The weights that codes and scales mean.
    fn meant(b: &Blocks, source: &[u8]) -> Vec<f64> {
        let scales: Vec<f64> = decode(b.scales, &b.scales(source)).collect();
        let codes = b.codes(source);
        assert_eq!((codes.len(), scales.len() * b.scales.size()), (b.code_bytes(), b.scale_bytes()));
        let codes: Vec<u8> = match b.bits {
            4 => codes.iter().flat_map(|c| [c & 15, c >> 4]).collect(),
            _ => codes,
        };
        let value = |k: usize| (f64::from(codes[k]) - b.zero()) * scales[k / b.block];
        let width = b.per_row() * b.block;
        (0..b.rows).flat_map(|r| (0..b.columns).map(move |c| r * width + c)).map(value).collect()
    }

    #[test]
    fn four_bits_hold_the_largest_element_and_multiples_of_an_eighth_of_it() {
        let w = [-8.0, 7.0, 0.5, 4.0, 1.0, 0.0];
        assert_eq!(meant(&blocks(4, false), &bytes(&w)), [-8.0, 7.0, 0.5, 4.0, 1.0, 0.0]);
    }

    #[test]
    fn eight_bits_are_within_half_a_step() {
        let w = [0.3f32, -1.0, 0.7, 1e-3, 2.0, -0.1];
        for (got, want) in meant(&blocks(8, false), &bytes(&w)).iter().zip(w) {
            assert!((got - f64::from(want)).abs() <= 2.0 / 127.0 / 2.0 + 1e-7, "{got} {want}");
        }
    }

    #[test]
    fn a_transposed_source_gives_the_same_codes() {
        let (w, t) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        for bits in [4, 8] {
            let (plain, turned) = (blocks(bits, false), blocks(bits, true));
            assert_eq!(plain.codes(&bytes(&w)), turned.codes(&bytes(&t)));
            assert_eq!(plain.scales(&bytes(&w)), turned.scales(&bytes(&t)));
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        assert_eq!(meant(&blocks(4, false), &bytes(&[0.0; 6])), [0.0; 6]);
    }
}
