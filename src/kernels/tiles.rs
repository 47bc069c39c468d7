//! Products of large matrices on tiles of bf16: lines of one factor are packed by the thread that multiplies them and stay in
//! its second cache, while all of the other factor's pass by.
//!
//! An element is summed up in the same order whatever the number of threads.

use super::amx::{self, Tiles};
use super::bf16x3::{SIDE, SLAB, STEPS, Sum, pack};
use super::operator::{Call, Target};
use super::product::Matrix;
use super::tile::scratch;
use super::vector::{Plus, map, with_registers};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Steps that are summed up before the result is written ...
const DEPTH: usize = 512;
/// ... and lines whose packed form of so many steps stays in the cache.
const STAY: usize = 256;
/// Lines of the other factor that a thread packs at a time.
const STRIP: usize = 64;
/// Lines of a factor that are packed at once: there may be a vocabulary of them.
const AT_ONCE: usize = 2048;
/// Multiply-adds that are worth packing both factors.
const LEAST: usize = 1 << 18;
/// Blocks of the result for each thread, so that a slow one holds up none.
const BLOCKS: usize = 2;

/// Whether a product of these sizes is faster so: there are tiles, and few of them stay empty.
pub fn suit(sizes: [usize; 3]) -> bool {
    #[cfg(test)]
    if let Some(forced) = FORCED.get() {
        return forced && !sizes.contains(&0);
    }
    let [all, full] = [sizes, sizes.map(|n| n.next_multiple_of(SIDE))].map(|sizes| sizes.iter().product::<usize>());
    all >= LEAST && 4 * all >= 3 * full && sizes.iter().all(|n| *n >= SIDE) && amx::here()
}

#[cfg(test)]
thread_local! {
    /// What tests have [`suit`] say on this thread.
    pub static FORCED: std::cell::Cell<Option<bool>> = const { std::cell::Cell::new(None) };
}

/// What [`super::panels::multiply`] does.
///
/// # Errors
/// As there.
///
/// # Safety
/// As there.
pub unsafe fn multiply(
    call: Option<&Call<'_>>,
    [m, k, n]: [usize; 3],
    x: Matrix,
    y: Matrix,
    (to, width): (Target, usize),
    scale: f32,
    add: Option<Target>,
) -> Result<(), String> {
    scratch([m, n].map(|lines| words(lines.min(AT_ONCE), k.min(DEPTH))), |[left, right]| {
        for d in (0..k).step_by(DEPTH) {
            for i in (0..m).step_by(AT_ONCE) {
                for j in (0..n).step_by(AT_ONCE) {
                    // SAFETY: the group begins within all matrices.
                    let group = unsafe {
                        Group {
                            sizes: [AT_ONCE.min(m - i), DEPTH.min(k - d), AT_ONCE.min(n - j)],
                            factors: [x.from(i, d), y.from(d, j).transposed()],
                            packed: [Target(left), Target(right)],
                            to: Target(to.at(i * width + j)),
                            width,
                            scale,
                            add: if d == 0 { add } else { Some(to) }.map(|all| Target(all.at(i * width + j))),
                        }
                    };
                    group.run(call)?;
                }
            }
        }
        Ok(())
    })
}

/// Words that so many lines and steps take when they are packed.
const fn words(lines: usize, steps: usize) -> usize {
    lines.div_ceil(SIDE) * steps.div_ceil(STEPS) * SLAB
}

/// Part of a product whose factors are packed at once.
struct Group {
    sizes: [usize; 3],
    /// A row for each row or column of the result.
    factors: [Matrix; 2],
    /// Their lines, [`SIDE`] behind another.
    packed: [Target; 2],
    to: Target,
    width: usize,
    scale: f32,
    /// Only read.
    add: Option<Target>,
}

impl Group {
    fn run(&self, call: Option<&Call<'_>>) -> Result<(), String> {
        let [m, _, n] = self.sizes;
        let split = |n: usize, work: &(dyn Fn(usize) + Sync)| match call {
            Some(call) => call.split(n, 1, |part| part.for_each(work)),
            None => {
                (0..n).for_each(work);
                Ok(())
            }
        };
        // Lines of the longer side stay where they are packed; all pass by those of the other.
        let stays = usize::from(m < n);
        let (stay, pass) = if stays == 0 { (m, n) } else { (n, m) };
        let strip = |k: usize, all: usize, length: usize| k * length..all.min((k + 1) * length);
        split(pass.div_ceil(STRIP), &|k| self.pack(1 - stays, strip(k, pass, STRIP)))?;
        let enough = call.map_or(1, |call| BLOCKS * call.threads);
        let length = stay.div_ceil(enough).next_multiple_of(SIDE).min(STAY);
        split(stay.div_ceil(length), &|k| self.block(stays, strip(k, stay, length), pass))
    }

    /// Where lines from this one on, a multiple of [`SIDE`], are packed.
    ///
    /// # Safety
    /// There are such lines.
    unsafe fn packed(&self, factor: usize, line: usize) -> *mut f32 {
        // SAFETY: by the caller's promise.
        unsafe { self.packed[factor].at(words(line, self.sizes[1])) }
    }

    fn pack(&self, factor: usize, lines: Range<usize>) {
        let scale = if factor == 0 { self.scale } else { 1.0 };
        // SAFETY: the lines lie within the factor, and no other task has their memory.
        unsafe {
            let from = self.factors[factor].from(lines.start, 0);
            pack(from, [lines.len(), self.sizes[1]], factor == 1, scale, self.packed(factor, lines.start));
        }
    }

    /// What is in these lines of the side that stays.
    fn block(&self, stays: usize, lines: Range<usize>, pass: usize) {
        self.pack(stays, lines.clone());
        let tiles = Tiles::lend();
        // A part is put to its place behind the next one's sum: what tiles have just stored is slow to read.
        let (mut apart, mut turn, mut waiting) = ([const { Apart([0.0; SIDE * SIDE]) }; 2], 0, None);
        for passing in (0..pass).step_by(SIDE) {
            for (k, line) in lines.clone().step_by(SIDE).enumerate() {
                let at = if stays == 0 { [line, passing] } else { [passing, line] };
                let whole = self.add.is_none() && self.part(at) == [SIDE; 2];
                // SAFETY: the part lies within the result, and no other task has it.
                unsafe {
                    self.sum(tiles.as_ref(), stays, at, k, (!whole).then_some(&mut apart[turn]));
                    if let Some(before) = waiting.take() {
                        self.put(before, &apart[1 - turn]);
                    }
                }
                if !whole {
                    (turn, waiting) = (1 - turn, Some(at));
                }
            }
        }
        if let Some(before) = waiting {
            // SAFETY: as above.
            unsafe { self.put(before, &apart[1 - turn]) };
        }
    }

    /// How many rows and columns the part has that begins here.
    fn part(&self, [i, j]: [usize; 2]) -> [usize; 2] {
        let [m, _, n] = self.sizes;
        [SIDE.min(m - i), SIDE.min(n - j)]
    }

    /// Sums up the part of the result from row `i` and column `j` on, the `k`th that the same passing lines have: at its place
    /// or, where it is smaller than tiles are or added to something, `apart`.
    ///
    /// # Safety
    /// There is one, and nobody else reads or writes it meanwhile.
    #[inline(always)]
    unsafe fn sum(&self, tiles: Option<&Tiles>, stays: usize, [i, j]: [usize; 2], k: usize, apart: Option<&mut Apart>) {
        let (slabs, width) = (self.sizes[1].div_ceil(STEPS), self.width);
        // SAFETY: by the caller's promise.
        unsafe {
            let [x, y] = [(0, i), (1, j)].map(|(factor, line)| self.packed(factor, line).cast_const());
            let passing = (if stays == 0 { y } else { x }).wrapping_add(slabs * SLAB + k * slabs * SLAB / 8);
            let place = self.to.at(i * width + j);
            let (to, row, beside) = match apart {
                Some(apart) => (apart.0.as_mut_ptr(), SIDE, place),
                None => (place, width, place.wrapping_add(if stays == 0 { SIDE * width } else { SIDE })),
            };
            Sum { x, y, slabs, to, row, passing, beside: beside.cast_const(), beside_row: width }.run(tiles);
        }
    }

    /// Writes the part that begins here.
    ///
    /// # Safety
    /// As for [`Self::sum`].
    unsafe fn put(&self, [i, j]: [usize; 2], sum: &Apart) {
        let at = i * self.width + j;
        // SAFETY: by the caller's promise.
        unsafe {
            let add = self.add.map(|add| add.at(at).cast_const());
            with_registers(Put { sum, part: self.part([i, j]), add, to: self.to.at(at), width: self.width });
        }
    }
}

/// A part of the result, summed up apart from it, in whole lines of the cache.
#[repr(align(64))]
struct Apart([f32; SIDE * SIDE]);

/// Writes it to its place.
struct Put<'a> {
    sum: &'a Apart,
    part: [usize; 2],
    add: Option<*const f32>,
    to: *mut f32,
    width: usize,
}

impl WithSimd for Put<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let [rows, columns] = self.part;
        for (r, sum) in self.sum.0.chunks_exact(SIDE).enumerate().take(rows) {
            let to = self.to.wrapping_add(r * self.width);
            // SAFETY: there are so many rows and columns of all.
            unsafe {
                match self.add.map(|add| add.add(r * self.width)) {
                    Some(add) if columns == SIDE => {
                        for c in (0..SIDE).step_by(S::F32_LANES) {
                            let [sum, add] = [sum.as_ptr(), add].map(|at| at.add(c).cast::<S::f32s>().read_unaligned());
                            to.add(c).cast::<S::f32s>().write_unaligned(simd.add_f32s(sum, add));
                        }
                    }
                    Some(add) => map(Plus, [sum.as_ptr(), add], to, columns),
                    None => to.copy_from_nonoverlapping(sum.as_ptr(), columns),
                }
            }
        }
    }
}
