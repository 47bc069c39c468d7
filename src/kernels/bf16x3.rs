//! A number as the sum of three bf16, so that a machine that multiplies bf16 multiplies f32: of the nine products of two such
//! sums six are added up in f32 (Henry, Tang and Heinecke 2019, arXiv 1904.06376).  The other three are below 2^-24 of the
//! whole, so that a sum is as exact as one of f32 products: what is rounded is the sum.
//!
//! Numbers from 3.396e38 on count as infinite, and a product with an infinite factor is NaN.

use super::amx::{self, Tiles};
use super::product::Matrix;

/// Rows and columns of the result that are summed up at a time, two tiles each.
pub const SIDE: usize = 32;
/// Steps of the sum that a tile holds.
pub const STEPS: usize = 32;
/// Rows or columns of a tile, and pairs of steps.  A pair is a word of 32 bits: a step, and the one half a tile behind.
const LINES: usize = 16;
/// Words in a tile.
const TILE: usize = LINES * LINES;
/// Words for [`SIDE`] lines and [`STEPS`] steps: two tiles for each third of the numbers.
pub const SLAB: usize = 3 * 2 * TILE;

/// A part of the result, [`SIDE`] rows of as many columns.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code, reason = "only tiles ask beforehand")
)]
pub struct Sum {
    /// Packed rows of the left factor and columns of the right one, with so many times [`STEPS`] steps.
    pub x: *const f32,
    pub y: *const f32,
    pub slabs: usize,
    pub to: *mut f32,
    /// How far apart its rows are.
    pub row: usize,
    /// What is read next, an eighth of a factor's lines, and where a result is written next: addresses at best.
    pub passing: *const f32,
    pub beside: *const f32,
    /// How far apart the rows of that result are.
    pub beside_row: usize,
}

/// Sixteen lines of a factor and as many steps as a tile holds, of which `lines` and `steps` are there; the others are 0.
#[derive(Clone, Copy)]
pub struct Lines {
    /// A row for each line.
    pub from: Matrix,
    pub lines: usize,
    pub steps: usize,
    /// Whether they are columns of the right factor, whose tiles lie by pairs of steps, not by lines.
    pub right: bool,
    pub scale: f32,
}

/// Lines of a factor in thirds: rows of the left one, or columns of the right one.
#[derive(Clone, Copy)]
pub struct Packed {
    pub at: *mut f32,
    /// [`SLAB`]s behind one another, of the same [`SIDE`] lines; those of the next follow.
    pub slabs: usize,
}

// SAFETY: threads only read them once they are packed.
unsafe impl Send for Packed {}
unsafe impl Sync for Packed {}

impl Packed {
    /// Elements of memory that so many lines take.
    pub const fn size(lines: usize, slabs: usize) -> usize {
        lines.div_ceil(SIDE) * slabs * SLAB
    }

    /// From this line on, a multiple of [`SIDE`].
    pub fn from(self, line: usize) -> Self {
        Packed { at: self.at.wrapping_add(line / SIDE * self.slabs * SLAB), ..self }
    }

    /// Packs rows of the left factor, or columns of the `right` one, whose transpose is given, each times `scale`, into slabs
    /// from the `first` on; what is beyond the last line or step is 0.
    ///
    /// # Safety
    /// The factor reaches so far, and the memory takes [`Self::size`].
    pub unsafe fn pack(self, from: Matrix, [lines, steps]: [usize; 2], first: usize, right: bool, scale: f32) {
        let here = amx::here();
        for line in (0..lines).step_by(SIDE) {
            let mut to = self.from(line).at.cast::<u32>().wrapping_add(first * SLAB);
            for step in (0..steps).step_by(STEPS) {
                for half in 0..2 {
                    // SAFETY: by the caller's promise.
                    unsafe {
                        let first = line + half * LINES;
                        let from = from.from(first.min(lines - 1), step);
                        let (lines, steps) = (LINES.min(lines.saturating_sub(first)), STEPS.min(steps - step));
                        let part = Lines { from, lines, steps, right, scale };
                        let thirds = [0, 2, 4].map(|third| to.add((third + half) * TILE));
                        if here { amx::pack(part, thirds) } else { pack_plain(part, thirds) }
                    }
                }
                to = to.wrapping_add(SLAB);
            }
        }
    }
}

/// The bits of a word that are a bf16 ...
pub const UPPER: u32 = 0xffff_0000;
/// ... and what rounds to them.
pub const HALF: u32 = 0x8000;

/// a, b and c, each a bf16, with x = a + b + c but for what is below 2^-133.
///
/// Each is rounded to nearest, so that eight bits are left for the last; that of NaN is NaN, whatever rounding makes of it.
fn thirds(x: f32) -> [u32; 3] {
    let round = |x: f32| x.to_bits().wrapping_add(HALF) & UPPER;
    let a = round(x);
    let rest = x - f32::from_bits(a);
    let b = round(rest);
    [a, b, (rest - f32::from_bits(b)).to_bits() & UPPER]
}

/// What [`amx::pack`] does.
///
/// # Safety
/// The lines reach so far, and there is a tile at each of the addresses.
unsafe fn pack_plain(Lines { from, lines, steps, right, scale }: Lines, to: [*mut u32; 3]) {
    for (line, pair) in (0..LINES).flat_map(|line| (0..LINES).map(move |pair| (line, pair))) {
        let [x, y] = [pair, pair + STEPS / 2].map(|step| {
            let there = line < lines && step < steps;
            // SAFETY: by the caller's promise.
            thirds(if there { scale * unsafe { *from.from(line, step).at } } else { 0.0 })
        });
        let place = if right { pair * LINES + line } else { line * LINES + pair };
        for (k, to) in to.into_iter().enumerate() {
            // SAFETY: by the caller's promise.
            unsafe { *to.add(place) = x[k] >> 16 | y[k] };
        }
    }
}

impl Sum {
    /// On this thread's tiles, or in plain code.
    ///
    /// # Safety
    /// All addresses reach so far, and the result overlaps neither factor.
    #[inline(always)]
    pub unsafe fn run(self, tiles: Option<&Tiles>) {
        // SAFETY: by the caller's promise.
        unsafe {
            match tiles {
                Some(tiles) => tiles.multiply(self),
                None => plain(self),
            }
        }
    }
}

/// What tiles do, for machines without them.
///
/// # Safety
/// As for [`Sum::run`].
unsafe fn plain(Sum { x, y, slabs, to, row, .. }: Sum) {
    const PRODUCTS: [[usize; 2]; 6] = [[2, 0], [1, 0], [1, 1], [0, 1], [0, 0], [0, 2]];
    let factor = |word: u32| [word << 16, word & UPPER].map(f32::from_bits);
    for (r, c) in (0..SIDE).flat_map(|r| (0..SIDE).map(move |c| (r, c))) {
        // SAFETY: by the caller's promise.
        unsafe {
            let mut sum = 0.0;
            for slab in 0..slabs {
                let [x, y] = [x, y].map(|at| at.cast::<u32>().add(slab * SLAB));
                for [a, b] in PRODUCTS {
                    let x = x.add((2 * a + r / LINES) * TILE + r % LINES * LINES);
                    let y = y.add((2 * b + c / LINES) * TILE + c % LINES);
                    for pair in 0..LINES {
                        let (x, y) = (factor(*x.add(pair)), factor(*y.add(pair * LINES)));
                        sum += x[0] * y[0] + x[1] * y[1];
                    }
                }
            }
            *to.add(r * row + c) = sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::operator::Target;
    use super::super::panels::multiply;
    use super::super::tiles::FORCED;
    use super::*;

    /// Every 1009th f32.
    #[test]
    fn three_bf16_are_the_number() {
        for x in (0..=u32::MAX).step_by(1009).map(f32::from_bits) {
            let parts = thirds(x);
            assert!(parts.iter().all(|part| part & !UPPER == 0));
            let [a, b, c] = parts.map(|part| f64::from(f32::from_bits(part)));
            let sum = a + b + c;
            match x {
                x if x.is_nan() || x.abs() >= f32::from_bits(0x7f7f_8000) => {
                    assert!(sum.is_nan(), "{x:e}: {a:e} {b:e} {c:e}")
                }
                // The last bits of numbers near the least are those of a subnormal third.
                x => assert!((sum - f64::from(x)).abs() <= 2f64.powi(-133), "{x:e}: {a:e} {b:e} {c:e}"),
            }
        }
        let all_ones = thirds(f32::from_bits(u32::MAX)).map(f32::from_bits);
        assert!(all_ones.iter().any(|part| part.is_nan()), "{all_ones:?}");
    }

    /// `x[m k] y[k n]` with tiles, or without.
    fn product(tiles: bool, [m, k, n]: [usize; 3], x: &[f32], y: &[f32]) -> Vec<f32> {
        FORCED.set(Some(tiles));
        let mut to = vec![f32::NAN; m * n];
        let (left, right) = (Matrix::new(x.as_ptr(), k, false), Matrix::new(y.as_ptr(), n, false));
        // SAFETY: all have the sizes that are said.
        unsafe { multiply(None, [m, k, n], left, right, (Target(to.as_mut_ptr()), n), 1.0, None) }.unwrap();
        FORCED.set(None);
        to
    }

    /// Numbers of both signs over eight powers of two, without a pattern.
    fn numbers(n: usize, mut state: u64) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next() * (8.0 * next()).exp2()).collect()
    }

    /// By the root mean square of what they are off, beside the root of the sum of their squared terms.
    #[test]
    fn sums_are_as_exact_as_those_of_f32() {
        for sizes @ [m, k, n] in [[64, 32, 64], [40, 512, 70], [40, 700, 70], [64, 2048, 33]] {
            let (x, y) = (numbers(m * k, 1), numbers(k * n, 2));
            let got = product(true, sizes, &x, &y);
            let mut off = [0.0; 2];
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let factors = || (0..k).map(|p| (x[i * k + p], y[p * n + j]));
                let terms = || factors().map(|(x, y)| f64::from(x) * f64::from(y));
                let (want, size) = (terms().sum::<f64>(), terms().map(|t| t * t).sum::<f64>());
                let plain = factors().fold(0.0, |sum, (x, y)| x.mul_add(y, sum));
                for (off, got) in off.iter_mut().zip([got[i * n + j], plain]) {
                    *off += (f64::from(got) - want).powi(2) / size / (m * n) as f64;
                }
            }
            let [tiles, plain] = off.map(f64::sqrt);
            assert!(tiles < plain, "{sizes:?}: {tiles:e}, in order {plain:e}");
        }
    }

    /// They stay in their row or column.
    #[test]
    fn what_is_no_number_is_none_in_the_result() {
        let sizes @ [m, k, n] = [70, 45, 80];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(u32::MAX), f32::from_bits(0x7f80_0001)] {
            let (mut x, mut y) = (numbers(m * k, 3), numbers(k * n, 4));
            x[3 * k + 44] = bad;
            y[2 * n + 65] = bad;
            let got = product(true, sizes, &x, &y);
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                assert_eq!(got[i * n + j].is_finite(), i != 3 && j != 65, "{bad}: {i} {j}");
            }
        }
    }
}
