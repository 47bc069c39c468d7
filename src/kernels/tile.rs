//! Products of matrices that lie in the cache, on one thread: nothing is packed, so that small ones cost nothing beside
//! their multiply-adds.

use super::product::Matrix;
use super::vector::with_registers;
use pulp::{Simd, WithSimd};
use std::cell::RefCell;
use std::hint::black_box;

/// The right factor's rows are readable up to a multiple of this: two registers of sixteen.
pub const COLUMNS: usize = 32;

/// Multiply-adds between two writes of the result: so many rows of the right factor's columns stay in the first cache.
const DEPTH: usize = 256;

/// `to[m n] = scale x[m k] y[k n]`, added to what is there if `add`.
pub struct Multiply {
    pub sizes: [usize; 3],
    pub x: Matrix,
    /// Address and width of the rows.
    pub y: (*const f32, usize),
    pub to: (*mut f32, usize),
    pub scale: f32,
    pub add: bool,
}

/// Rows and columns of the result that stay in registers.
#[derive(Clone, Copy)]
pub struct Side {
    pub rows: usize,
    pub columns: usize,
}

impl Side {
    /// With `C` registers to a row.
    pub const fn of<S: Simd, const C: usize>() -> Self {
        Side { rows: height::<S>(), columns: C * S::F32_LANES }
    }

    /// Of this machine's registers: two to a row, or one where a result of `columns` fits.
    pub fn here(columns: usize) -> Self {
        struct Here(usize);
        impl WithSimd for Here {
            type Output = Side;

            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> Side {
                if self.0 <= S::F32_LANES { Side::of::<S, 1>() } else { Side::of::<S, 2>() }
            }
        }
        with_registers(Here(columns))
    }
}

impl Multiply {
    /// # Safety
    /// The matrices reach so far, rows of `y` to the next multiple of [`COLUMNS`]; `to` overlaps neither factor, and
    /// nothing else reads or writes it meanwhile.
    pub unsafe fn run(self) {
        with_registers(self);
    }
}

/// Rows of the result that are summed up at a time, two registers each: as many as there are registers for.
const fn height<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 12 } else { 6 }
}

impl WithSimd for Multiply {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let [m, k, n] = self.sizes;
        let width = 2 * S::F32_LANES;
        let mut depth = 0;
        loop {
            let steps = DEPTH.min(k - depth);
            let add = self.add || depth > 0;
            for j in (0..n).step_by(width) {
                for i in (0..m).step_by(height::<S>()) {
                    // SAFETY: by the promise of `run`; the tile begins within all three matrices.
                    unsafe {
                        let x = self.x.from(i, depth);
                        let y = self.y.0.add(depth * self.y.1 + j);
                        let to = self.to.0.add(i * self.to.1 + j);
                        let add = add.then_some(to.cast_const());
                        let tile = Tile { x, y, y_row: self.y.1, to, to_row: self.to.1, scale: self.scale, add };
                        tile.rows::<S, 2>(simd, height::<S>().min(m - i), steps, width.min(n - j));
                    }
                }
            }
            depth += DEPTH;
            if depth >= k {
                return;
            }
        }
    }
}

/// A part of the result that stays in registers while it is summed up.
#[derive(Clone, Copy)]
pub struct Tile {
    pub x: Matrix,
    pub y: *const f32,
    pub y_row: usize,
    pub to: *mut f32,
    pub to_row: usize,
    pub scale: f32,
    /// What the product is added to; its rows are as far apart as the result's, which it may be.
    pub add: Option<*const f32>,
}

impl Tile {
    /// `rows` and `columns` of the result, at most a [`Side`] of `C` registers, summed over `steps`.
    ///
    /// # Safety
    /// All addresses reach so far, `y`'s rows to the tile's width.
    #[inline(always)]
    pub unsafe fn rows<S: Simd, const C: usize>(self, simd: S, rows: usize, steps: usize, columns: usize) {
        macro_rules! among {
            ($($few:literal)*, $($many:literal)*) => {
                match rows {
                    // SAFETY: by the caller's promise.
                    $($few => unsafe { self.run::<S, $few, C>(simd, steps, columns) },)*
                    // SAFETY: by the caller's promise.
                    $($many if height::<S>() > 6 => unsafe { self.run::<S, $many, C>(simd, steps, columns) },)*
                    _ => {}
                }
            };
        }
        among!(1 2 3 4 5 6, 7 8 9 10 11 12);
    }

    #[inline(always)]
    unsafe fn run<S: Simd, const R: usize, const C: usize>(self, simd: S, steps: usize, columns: usize) {
        // One of the strides is 1, which the compiler is told.
        // SAFETY: by the caller's promise.
        unsafe {
            let sums = if self.x.column == 1 {
                self.sum::<S, R, C>(simd, Matrix { column: 1, ..self.x }, steps)
            } else {
                self.sum::<S, R, C>(simd, Matrix { row: 1, ..self.x }, steps)
            };
            self.write(simd, sums, columns);
        }
    }

    /// The sums of the products of all steps.
    ///
    /// Several steps to a turn, whose addresses are constants apart: on a core that is shared, instructions beside the
    /// multiply-adds take time that nothing hides.
    #[inline(always)]
    unsafe fn sum<S: Simd, const R: usize, const C: usize>(
        self,
        simd: S,
        x: Matrix,
        steps: usize,
    ) -> [[S::f32s; C]; R] {
        const TURN: usize = 4;
        let lanes = S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); C]; R];
        let mut y = self.y;
        // An address for every three rows that the compiler takes for unrelated: else it makes one of the other, and a chain
        // of additions that takes longer than the products.
        let mut rows = [x.at; 4];
        for (k, row) in rows.iter_mut().enumerate().take(R.div_ceil(3)) {
            *row = black_box(row.wrapping_add(3 * k * x.row));
        }
        macro_rules! turn {
            ($steps:expr) => {
                for u in 0..$steps {
                    // SAFETY: step after step through the rows of y and the columns of x.
                    unsafe {
                        let mut right = [simd.splat_f32s(0.0); C];
                        for (c, right) in right.iter_mut().enumerate() {
                            *right = y.add(u * self.y_row + c * lanes).cast::<S::f32s>().read_unaligned();
                        }
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let left = simd.splat_f32s(*rows[r / 3].add(r % 3 * x.row + u * x.column));
                            for (sum, right) in sums.iter_mut().zip(right) {
                                *sum = simd.mul_add_e_f32s(left, right, *sum);
                            }
                        }
                    }
                }
                y = y.wrapping_add($steps * self.y_row);
                for row in rows.iter_mut().take(R.div_ceil(3)) {
                    *row = row.wrapping_add($steps * x.column);
                }
            };
        }
        for _ in 0..steps / TURN {
            turn!(TURN);
        }
        for _ in 0..steps % TURN {
            turn!(1);
        }
        sums
    }

    /// Writes `columns` of the rows that were summed up, scaled and added to what is asked for.
    #[inline(always)]
    unsafe fn write<S: Simd, const R: usize, const C: usize>(self, simd: S, sums: [[S::f32s; C]; R], columns: usize) {
        let lanes = S::F32_LANES;
        let scale = simd.splat_f32s(self.scale);
        for (r, sums) in sums.iter().enumerate() {
            let to = self.to.wrapping_add(r * self.to_row);
            let before = self.add.map(|at| at.wrapping_add(r * self.to_row));
            if columns == C * lanes {
                for (c, sum) in sums.iter().enumerate() {
                    // SAFETY: the result has these columns.
                    unsafe {
                        let value = match before {
                            Some(at) => {
                                let before = at.add(c * lanes).cast::<S::f32s>().read_unaligned();
                                simd.mul_add_e_f32s(*sum, scale, before)
                            }
                            None => simd.mul_f32s(*sum, scale),
                        };
                        to.add(c * lanes).cast::<S::f32s>().write_unaligned(value);
                    }
                }
            } else {
                let mut row = [0f32; COLUMNS];
                for (c, sum) in sums.iter().enumerate() {
                    // SAFETY: two registers are at most as long as the row.
                    unsafe { row.as_mut_ptr().add(c * lanes).cast::<S::f32s>().write_unaligned(*sum) };
                }
                for (c, x) in row.iter().enumerate().take(columns) {
                    // SAFETY: the result has these columns.
                    unsafe { *to.add(c) = x * self.scale + before.map_or(0.0, |at| *at.add(c)) };
                }
            }
        }
    }
}

/// A line of the cache: registers and tiles that begin with one are read at once.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "it is memory")] [f32; 16]);

/// Lends memory of these sizes, each from a line of the cache on, kept from call to call by each thread; what it holds is
/// arbitrary.
pub fn scratch<const N: usize, R>(sizes: [usize; N], work: impl FnOnce([*mut f32; N]) -> R) -> R {
    thread_local! {
        static KEPT: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    }
    KEPT.with_borrow_mut(|kept| {
        let lines = sizes.map(|n| n.div_ceil(16));
        let total = lines.iter().sum();
        if kept.len() < total {
            *kept = vec![Line([0.0; 16]); total];
        }
        let mut rest = kept.as_mut_slice();
        work(lines.map(|n| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(n);
            rest = others;
            part.as_mut_ptr().cast()
        }))
    })
}

/// Copies `rows` of `n` elements, `from_row` apart, behind one another, each filled up with zeros to `width`.
///
/// # Safety
/// Both addresses reach so far and do not overlap.
pub unsafe fn pack(from: *const f32, from_row: usize, rows: usize, n: usize, to: *mut f32, width: usize) {
    for r in 0..rows {
        // SAFETY: by the caller's promise.
        unsafe {
            to.add(r * width).copy_from_nonoverlapping(from.add(r * from_row), n);
            to.add(r * width + n).write_bytes(0, width - n);
        }
    }
}

/// The transpose of `rows` of `n` elements, `from_row` apart: n rows of `width`, filled up with zeros to the next multiple
/// of [`COLUMNS`], or to the width where that is less.
///
/// # Safety
/// Both addresses reach so far and do not overlap.
#[inline(always)]
pub unsafe fn pack_transposed(from: *const f32, from_row: usize, rows: usize, n: usize, to: *mut f32, width: usize) {
    const SIDE: usize = 8;
    let end = rows.next_multiple_of(COLUMNS).min(width);
    for r in (0..end).step_by(SIDE) {
        for c in (0..n).step_by(SIDE) {
            let (height, columns) = (SIDE.min(rows.saturating_sub(r)), SIDE.min(n - c));
            let mut block = [[0f32; SIDE]; SIDE];
            // SAFETY: the block lies within both matrices.
            unsafe {
                if (height, columns) == (SIDE, SIDE) {
                    for (l, row) in block.iter_mut().enumerate() {
                        *row = from.add((r + l) * from_row + c).cast::<[f32; SIDE]>().read_unaligned();
                    }
                } else {
                    for (l, row) in block.iter_mut().enumerate().take(height) {
                        row.as_mut_ptr().copy_from_nonoverlapping(from.add((r + l) * from_row + c), columns);
                    }
                }
                let turned: [[f32; SIDE]; SIDE] = std::array::from_fn(|k| block.map(|row| row[k]));
                for (k, column) in turned.iter().enumerate().take(columns) {
                    to.add((c + k) * width + r).cast::<[f32; SIDE]>().write_unaligned(*column);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against three plain loops in f64, over sizes around those of tiles.
    #[test]
    fn products_and_transposes_are_those_of_plain_loops() {
        // Numbers without a pattern, from -1/2 to 1/2.
        let number = |k: usize| (k * 7919 % 4093) as f32 / 4093.0 - 0.5;
        for [m, k, n] in [[1usize, 1, 1], [5, 0, 3], [6, 7, 16], [13, 64, 33], [12, 300, 32], [25, 513, 70]] {
            let width = n.next_multiple_of(COLUMNS) + 16;
            let [x, y_transposed, before] = [(k * m, 1), (n * k, 2), (m * n, 3)]
                .map(|(n, seed)| (seed..seed + n).map(number).collect::<Vec<f32>>());
            let mut y = vec![f32::NAN; k * width];
            // SAFETY: y has k rows of width elements.
            unsafe { pack_transposed(y_transposed.as_ptr(), k, n, k, y.as_mut_ptr(), width) };
            for (transposed, add) in [(false, false), (true, true)] {
                let mut to = before.clone();
                let matrix = Matrix::new(x.as_ptr(), if transposed { m } else { k }, transposed);
                let (y, to_at) = ((y.as_ptr(), width), (to.as_mut_ptr(), n));
                // SAFETY: all have the sizes that are said.
                unsafe { Multiply { sizes: [m, k, n], x: matrix, y, to: to_at, scale: 0.5, add }.run() };
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let x = |p: usize| f64::from(if transposed { x[p * m + i] } else { x[i * k + p] });
                    let sum: f64 = (0..k).map(|p| x(p) * f64::from(y_transposed[j * k + p])).sum();
                    let want = 0.5 * sum + if add { f64::from(before[i * n + j]) } else { 0.0 };
                    assert!((f64::from(to[i * n + j]) - want).abs() < 1e-5, "{m} {k} {n}: {i} {j}");
                }
            }
        }
    }

    #[test]
    fn rows_are_filled_up() {
        let (from, mut to) = ([1f32, 2.0, 3.0, 4.0, 5.0, 6.0], [f32::NAN; 6]);
        // SAFETY: two rows of 2 elements, 3 apart; two rows of 3.
        unsafe { pack(from.as_ptr(), 3, 2, 2, to.as_mut_ptr(), 3) };
        assert_eq!(to, [1.0, 2.0, 0.0, 4.0, 5.0, 0.0]);
    }
}
