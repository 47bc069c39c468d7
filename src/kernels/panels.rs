//! Products of large matrices: factors are packed into panels, which tiles of registers read one line after another, and
//! threads take blocks of the result, whichever is free the next: cores are seldom equally fast.
//!
//! An element is summed up in the same order whatever the number of threads.  Where a processor has tiles of its own that fit,
//! [`tiles`] take the whole product.

use super::operator::{Call, Target};
use super::product::Matrix;
use super::slim;
use super::terms::{Term, groups, steps};
use super::tile::{Side, Tile, pack_transposed, scratch};
use super::tiles;
use super::vector::with_registers;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Rows of the left factor that a thread takes at a time: those of a panel's steps stay in its second cache.
const ROWS: usize = 120;
/// Columns of the right one, and what they are cut to where there would be too few blocks to share.
const COLUMNS: [usize; 2] = [256, 64];
/// Blocks of the result that a thread finds, so that a slow one holds up none.
const BLOCKS: usize = 4;
/// Elements of a panel of the right factor: it stays in the first cache, with the rows it meets.
const PANEL: usize = 1 << 12;
/// Elements of a factor that are packed at once, and steps of them: whole panels.
const PACKED: usize = 1 << 20;
const STEPS: usize = 1 << 12;
/// Rows or columns that are packed at a time.
const STRIP: usize = 192;
/// How many multiply-adds are worth other threads.
pub const LEAST: usize = 1 << 19;

/// `to[m n] = scale x[m k] y[k n]`, beside what it is added to; `to` has rows of `width`, and so has `add`, which it may
/// be. On the threads of a call, or on this one.
///
/// # Errors
/// Where ONNX Runtime's threads fail.
///
/// # Safety
/// The matrices reach so far; `to` overlaps neither factor, and nothing else reads or writes it meanwhile.
pub unsafe fn multiply(
    call: Option<&Call<'_>>,
    [m, k, n]: [usize; 3],
    x: Matrix,
    y: Matrix,
    to: (Target, usize),
    scale: f32,
    add: Option<Target>,
) -> Result<(), String> {
    // SAFETY: by the caller's promise.
    unsafe { add_up(call, [m, n], &[Term { x, y, steps: k, scale }], to, add) }
}

/// The sum of several products of this size.
///
/// # Errors
/// As for [`multiply`].
///
/// # Safety
/// As there.
pub unsafe fn add_up(
    call: Option<&Call<'_>>,
    [m, n]: [usize; 2],
    terms: &[Term],
    (to, width): (Target, usize),
    add: Option<Target>,
) -> Result<(), String> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    if terms.iter().all(|term| slim::suits([m, n], term)) {
        let mut add = add;
        for term in terms {
            // SAFETY: by the caller's promise.
            unsafe { slim::multiply(call, [m, n], *term, (to, width), add) }?;
            add = Some(to);
        }
        return Ok(());
    }
    let sizes = [m, steps(terms), n];
    let call = call.filter(|_| sizes.iter().product::<usize>() >= LEAST);
    if tiles::suit(sizes) {
        // SAFETY: by the caller's promise.
        return unsafe { tiles::add_up(call, [m, n], terms, (to, width), add) };
    }
    let side = Side::here(n);
    // SAFETY: by the caller's promise.
    let groups = unsafe { groups(terms, STEPS) };
    let most = groups.iter().map(|terms| steps(terms)).max().unwrap_or(0);
    let at_once = |unit: usize| (PACKED / most.max(1)).next_multiple_of(unit);
    let any_left = terms.iter().any(packs_left);
    let high = if any_left { at_once(side.rows).min(m.next_multiple_of(side.rows)) } else { m };
    let wide = at_once(side.columns).min(n.next_multiple_of(side.columns));
    scratch([if any_left { most * high } else { 0 }, most * wide], |packed| {
        for (k, terms) in groups.iter().enumerate() {
            for i in (0..m).step_by(high) {
                for j in (0..n).step_by(wide) {
                    // SAFETY: the group begins within all matrices.
                    let group = unsafe {
                        let mut done = 0;
                        let factors = terms.iter().map(|term| {
                            let [left, right] = [high, wide].map(|lines| done * lines);
                            done += term.steps;
                            Factors {
                                term: term.from(i, j),
                                left: packs_left(term).then(|| Target(packed[0].add(left))),
                                right: Target(packed[1].add(right)),
                            }
                        });
                        Group {
                            side,
                            sizes: [high.min(m - i), wide.min(n - j)],
                            factors: factors.collect(),
                            to: Target(to.at(i * width + j)),
                            width,
                            add: if k == 0 { add } else { Some(to) }.map(|all| Target(all.at(i * width + j))),
                        }
                    };
                    group.run(call, j == 0)?;
                }
            }
        }
        Ok(())
    })
}

/// A row of the left factor is read as it lies if its elements are neighbours.
fn packs_left(term: &Term) -> bool {
    term.x.column != 1
}

/// Steps between two writes of the result, and those of a panel.
const fn panel_steps(side: Side) -> usize {
    PANEL / side.columns
}

/// Part of a sum whose factors are packed at once.
struct Group {
    side: Side,
    sizes: [usize; 2],
    factors: Vec<Factors>,
    to: Target,
    width: usize,
    /// Only read.
    add: Option<Target>,
}

struct Factors {
    term: Term,
    /// For each [`panel_steps`] of the sum, panels of as many rows as a tile has, step after step; none where the factor is
    /// read itself.
    left: Option<Target>,
    /// The same of columns; what is beyond the last is 0.
    right: Target,
}

impl Group {
    fn run(&self, call: Option<&Call<'_>>, fresh: bool) -> Result<(), String> {
        let [m, n] = self.sizes;
        let split = |n: usize, work: &(dyn Fn(usize) + Sync)| match call {
            Some(call) => call.split(n, 1, |part| part.for_each(work)),
            None => {
                (0..n).for_each(work);
                Ok(())
            }
        };
        let mut packs = vec![];
        for factors in &self.factors {
            for start in (0..factors.term.steps).step_by(panel_steps(self.side)) {
                let left = if fresh && factors.left.is_some() { m } else { 0 };
                for (of_left, all) in [(true, left), (false, n)] {
                    let lines = |first| first..all.min(first + STRIP);
                    packs.extend((0..all).step_by(STRIP).map(|first| (factors, of_left, start, lines(first))));
                }
            }
        }
        split(packs.len(), &|k| {
            let (factors, of_left, start, lines) = packs[k].clone();
            with_registers(Pack { group: self, factors, of_left, start, lines });
        })?;
        let high = m.div_ceil(m.div_ceil(ROWS)).next_multiple_of(self.side.rows);
        let enough = call.map_or(1, |call| BLOCKS * call.threads);
        let rows = m.div_ceil(high);
        let [large, small] = COLUMNS;
        let wide = if rows * n.div_ceil(large) < enough { small } else { large };
        split(rows * n.div_ceil(wide), &|task| {
            let (i, j) = (task % rows * high, task / rows * wide);
            with_registers(Block { group: self, rows: i..m.min(i + high), columns: j..n.min(j + wide) });
        })
    }
}

impl Factors {
    /// The steps from `start` on that are packed together, and where panels of `lines` rows or columns lie, side by
    /// side, of `all` that there are.
    fn panel(&self, side: Side, start: usize, all: usize, lines: usize, first: usize) -> (usize, usize) {
        let steps = panel_steps(side).min(self.term.steps - start);
        (steps, start * all.next_multiple_of(lines) + first * steps)
    }
}

/// Packs rows of the left factor or columns of the right one, from a panel's first on.
struct Pack<'a> {
    group: &'a Group,
    factors: &'a Factors,
    of_left: bool,
    start: usize,
    lines: Range<usize>,
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        if self.group.side.columns == S::F32_LANES {
            self.run(Side::of::<S, 1>())
        } else {
            self.run(Side::of::<S, 2>())
        }
    }
}

impl Pack<'_> {
    /// With the sizes of the group's tiles, which the compiler is told.
    #[inline(always)]
    fn run(self, side: Side) {
        let (factors, term, [m, n]) = (self.factors, self.factors.term, self.group.sizes);
        let first = self.lines.start;
        // SAFETY: the panels lie within the memory that is lent, and no other task has these.
        unsafe {
            if self.of_left {
                let Some(to) = factors.left else { return };
                let (steps, at) = factors.panel(side, self.start, m, side.rows, first);
                let from = term.x.from(first, self.start).transposed();
                panels(from, steps, self.lines.len(), to.at(at), side.rows);
            } else {
                let (steps, at) = factors.panel(side, self.start, n, side.columns, first);
                let from = term.y.from(self.start, first);
                panels(from, steps, self.lines.len(), factors.right.at(at), side.columns);
            }
        }
    }
}

/// Cuts `n` columns into panels of `width`, one behind another; what is beyond the last column is 0.
///
/// # Safety
/// Both addresses reach so far and do not overlap.
#[inline(always)]
unsafe fn panels(from: Matrix, rows: usize, n: usize, to: *mut f32, width: usize) {
    let whole = n / width * width;
    // SAFETY: by the caller's promise.
    unsafe {
        if from.column == 1 {
            // Row by row, as it lies.
            for r in 0..rows {
                let (from, to) = (from.at.add(r * from.row), to.add(r * width));
                for c in (0..whole).step_by(width) {
                    to.add(c * rows).copy_from_nonoverlapping(from.add(c), width);
                }
                if whole < n {
                    let to = to.add(whole * rows);
                    to.copy_from_nonoverlapping(from.add(whole), n - whole);
                    to.add(n - whole).write_bytes(0, width - (n - whole));
                }
            }
        } else {
            for c in (0..n).step_by(width) {
                pack_transposed(
                    from.at.add(c * from.column),
                    from.column,
                    width.min(n - c),
                    rows,
                    to.add(c * rows),
                    width,
                );
            }
        }
    }
}

/// A block of the result.
struct Block<'a> {
    group: &'a Group,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.group.side.columns == S::F32_LANES { self.run::<S, 1>(simd) } else { self.run::<S, 2>(simd) }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn run<S: Simd, const C: usize>(self, simd: S) {
        let (group, side) = (self.group, const { Side::of::<S, C>() });
        let [m, n] = group.sizes;
        let mut add = group.add;
        for factors in &group.factors {
            let Term { x, scale, steps, .. } = factors.term;
            // At least once, as groups are made.
            for start in (0..steps.max(1)).step_by(const { panel_steps(Side::of::<S, C>()) }) {
                for j in self.columns.clone().step_by(side.columns) {
                    let (steps, right) = factors.panel(side, start, n, side.columns, j);
                    for i in self.rows.clone().step_by(side.rows) {
                        let at = i * group.width + j;
                        // SAFETY: the tile begins within the block, which nobody else has, and panels reach so far.
                        unsafe {
                            let add = add.map(|add| add.at(at).cast_const());
                            let y = factors.right.at(right).cast_const();
                            let (y_row, to, to_row) = (side.columns, group.to.at(at), group.width);
                            let tile = |x| Tile { x, y, y_row, to, to_row, scale, add };
                            let rows = side.rows.min(self.rows.end - i);
                            let columns = side.columns.min(self.columns.end - j);
                            // Strides are constants in each.
                            if let Some(left) = factors.left {
                                let (_, at) = factors.panel(side, start, m, side.rows, i);
                                let x = Matrix { at: left.at(at), row: 1, column: side.rows };
                                tile(x).rows::<S, C>(simd, rows, steps, columns);
                            } else {
                                let x = Matrix { column: 1, ..x.from(i, start) };
                                tile(x).rows::<S, C>(simd, rows, steps, columns);
                            }
                        }
                    }
                }
                add = Some(group.to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::amx;
    use super::super::tiles::FORCED;
    use super::super::vector::REGISTERS;
    use super::*;

    /// Against plain sums in f64, over sizes that fill tiles, blocks, panels and what is packed at once in part, with the
    /// registers of this machine and of others.
    #[test]
    fn products_are_those_of_plain_loops() {
        FORCED.set(Some(false));
        for width in [Some(128), Some(256), Some(512), None] {
            REGISTERS.set(width);
            products_with_these_registers(width.is_some());
        }
        FORCED.set(Some(true));
        products_with_these_registers(!amx::here());
    }

    fn products_with_these_registers(plain: bool) {
        // From -1/2 to 1/2.
        let number = |k: usize| (k * 7919 % 4093) as f32 / 4093.0 - 0.5;
        let numbers = |n: usize, seed: usize| (seed..seed + n).map(number).collect::<Vec<f32>>();
        let sizes = [
            [1, 1, 1],
            [7, 0, 5],
            [1, 300, 33],
            [130, 1, 17],
            [125, 257, 300],
            [5, STEPS + 300, 70],
            [260, STEPS + 1, 265],
            [33, 530, 2090],
        ];
        // Plain code is slow.
        let most = if plain { 1 << 24 } else { usize::MAX };
        for [m, k, n] in sizes.into_iter().filter(|[m, k, n]| m * k * n <= most) {
            let (x, y, before) = (numbers(m * k, 1), numbers(k * n, 2), numbers(m * n, 3));
            for [tx, ty] in [[false, false], [false, true], [true, false], [true, true]] {
                let x_matrix = Matrix::new(x.as_ptr(), if tx { m } else { k }, tx);
                let y_matrix = Matrix::new(y.as_ptr(), if ty { k } else { n }, ty);
                let (mut plain, mut added, mut apart) = (vec![f32::NAN; m * n], before.clone(), vec![f32::NAN; m * n]);
                let [plain_at, added_at, apart_at] =
                    [&mut plain, &mut added, &mut apart].map(|to| Target(to.as_mut_ptr()));
                let before_at = Target(before.as_ptr().cast_mut());
                // SAFETY: all have the sizes that are said.
                unsafe {
                    multiply(None, [m, k, n], x_matrix, y_matrix, (plain_at, n), -0.5, None).unwrap();
                    multiply(None, [m, k, n], x_matrix, y_matrix, (added_at, n), -0.5, Some(added_at)).unwrap();
                    multiply(None, [m, k, n], x_matrix, y_matrix, (apart_at, n), -0.5, Some(before_at)).unwrap();
                }
                assert_eq!(apart, added, "{m} {k} {n} {tx} {ty}: added to another matrix, not in place");
                // Some rows of many.
                for (i, j) in (0..m).step_by(1 + m * k * n / 2_000_000).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let x = |p: usize| f64::from(if tx { x[p * m + i] } else { x[i * k + p] });
                    let y = |p: usize| f64::from(if ty { y[j * k + p] } else { y[p * n + j] });
                    let terms = || (0..k).map(|p| -0.5 * x(p) * y(p));
                    let (want, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                    let near = |got: f32, want: f64| (f64::from(got) - want).abs() < 1e-6 * size + 1e-7;
                    let at = i * n + j;
                    assert!(near(plain[at], want), "{m} {k} {n} {tx} {ty}: {i} {j}: {} {want}", plain[at]);
                    assert!(near(added[at], want + f64::from(before[at])), "{m} {k} {n} {tx} {ty}: {i} {j}, added");
                }
            }
        }
    }
}
