//! Products of which one factor has few lines, as an adapter's have: the other one is read once and where it lies, because
//! packing it takes as long as multiplying it.
//!
//! An element is summed up in the same order whatever the number of threads.

use super::operator::{Call, Target};
use super::product::Matrix;
use super::terms::Term;
use super::tile::{COLUMNS, pack, pack_transposed, scratch};
use super::vector::{prefetch, with_registers};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// How many lines are few.
const FEW: usize = 16;
/// The few are multiplied by groups of as many as there are registers for, at most.
const GROUP: usize = 8;
/// Lines of the other factor that a thread takes at a time: two registers of every size a whole number of times.
const LINES: usize = 96;
/// Steps between two writes of what is summed up: so many parts of lines stay in the first cache.
const STEPS: usize = 32;
/// How many elements of the other factor are worth other threads.
const LEAST: usize = 1 << 16;

/// Whether a product of this size is one, of which lines of the other factor are neighbours in memory.
pub fn suits([m, n]: [usize; 2], term: &Term) -> bool {
    let wide = if m < n { term.y.transposed() } else { term.x };
    m.min(n) <= FEW && wide.row == 1
}

/// What [`super::panels::add_up`] does, for one term.
///
/// # Errors
/// As there.
///
/// # Safety
/// As there.
pub unsafe fn multiply(
    call: Option<&Call<'_>>,
    [m, n]: [usize; 2],
    Term { x, y, steps: k, scale }: Term,
    (to, width): (Target, usize),
    add: Option<Target>,
) -> Result<(), String> {
    let y = y.transposed();
    let (many, few, wide, slim, apart) = if m < n { (n, m, y, x, [1, width]) } else { (m, n, x, y, [width, 1]) };
    // Lines a power of two apart would share their places in the cache.
    let row = k.next_multiple_of(COLUMNS) + COLUMNS / 2;
    let whole = few.next_multiple_of(GROUP);
    scratch([whole * row], |[packed]| {
        // SAFETY: the memory takes so many lines, and the factor has them.
        unsafe {
            packed.add(few * row).write_bytes(0, (whole - few) * row);
            if slim.column == 1 {
                pack(slim.at, slim.row, few, k, packed, row);
            } else {
                pack_transposed(slim.at, slim.column, k, few, packed, row);
            }
        }
        let product = Slim { few, steps: k, wide, packed: (Target(packed), row), to, apart, scale, add };
        let part = |k: usize| with_registers(Part { product: &product, lines: k * LINES..many.min((k + 1) * LINES) });
        let parts = many.div_ceil(LINES);
        match call.filter(|_| many * k >= LEAST) {
            Some(call) => call.split(parts, 1, |range| range.for_each(part)),
            None => {
                (0..parts).for_each(part);
                Ok(())
            }
        }
    })
}

struct Slim {
    few: usize,
    steps: usize,
    /// A row for each line; lines are neighbours.
    wide: Matrix,
    /// A row for each of the few, and further ones of zeros that fill up a group; how far they are apart.
    packed: (Target, usize),
    to: Target,
    /// How far results of two lines of `wide` are apart, and those of two of the few.
    apart: [usize; 2],
    scale: f32,
    /// As far apart; only read.
    add: Option<Target>,
}

/// The results of some lines of the wide factor.
struct Part<'a> {
    product: &'a Slim,
    lines: Range<usize>,
}

impl WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // SAFETY: by the promise of `multiply`, no other part has these results.
        unsafe { if S::REGISTER_COUNT >= 32 { self.run::<S, GROUP>(simd) } else { self.run::<S, { GROUP / 2 }>(simd) } }
    }
}

impl Part<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd, const G: usize>(&self, simd: S) {
        let Slim { few, steps, .. } = *self.product;
        let width = 2 * S::F32_LANES;
        let mut sums = [const { Sums([0.0; LINES]) }; FEW];
        for start in (0..steps).step_by(STEPS) {
            let steps = start..steps.min(start + STEPS);
            for first in (0..few).step_by(G) {
                for line in self.lines.clone().step_by(width) {
                    // SAFETY: by the caller's promise; there are sums of all lines, up to a multiple of the width.
                    unsafe {
                        let to = sums.as_mut_ptr().add(first).cast::<f32>().add(line - self.lines.start);
                        if line + width <= self.lines.end {
                            self.accumulate::<S, G, true>(simd, line, first, steps.clone(), to);
                        } else {
                            self.accumulate::<S, G, false>(simd, line, first, steps.clone(), to);
                        }
                    }
                }
            }
        }
        let Slim { to, apart, scale, add, .. } = *self.product;
        for (own, sums) in sums.iter().enumerate().take(few) {
            for (line, sum) in self.lines.clone().zip(sums.0) {
                let place = line * apart[0] + own * apart[1];
                // SAFETY: by the caller's promise.
                unsafe { *to.at(place) = sum * scale + add.map_or(0.0, |add| *add.at(place)) };
            }
        }
    }

    /// Adds these steps up for a group of the few and two registers of lines, `WHOLE` or what is left of them.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, const G: usize, const WHOLE: bool>(
        &self,
        simd: S,
        line: usize,
        first: usize,
        steps: Range<usize>,
        to: *mut f32,
    ) {
        let Slim { wide, packed: (packed, row), .. } = *self.product;
        let lanes = S::F32_LANES;
        let there = [0, lanes].map(|part| (self.lines.end - line).saturating_sub(part).min(lanes));
        // SAFETY: by the caller's promise.
        unsafe {
            let place = |own: usize, part: usize| to.add(own * LINES + part * lanes).cast::<S::f32s>();
            let mut sums: [[S::f32s; 2]; G] =
                std::array::from_fn(|own| [0, 1].map(|part| place(own, part).read_unaligned()));
            for step in steps {
                let at = wide.at.add(line + step * wide.column);
                for part in [0, lanes] {
                    prefetch(at.wrapping_add(part + STEPS * wide.column));
                }
                let x = [0, 1].map(|part| {
                    let at = at.wrapping_add(part * lanes);
                    if WHOLE {
                        at.cast::<S::f32s>().read_unaligned()
                    } else {
                        simd.partial_load_f32s(std::slice::from_raw_parts(at, there[part]))
                    }
                });
                for (own, sums) in sums.iter_mut().enumerate() {
                    let y = simd.splat_f32s(*packed.at((first + own) * row + step));
                    *sums = [0, 1].map(|part| simd.mul_add_e_f32s(x[part], y, sums[part]));
                }
            }
            for (own, sums) in sums.iter().enumerate() {
                for (part, sum) in sums.iter().enumerate() {
                    place(own, part).write_unaligned(*sum);
                }
            }
        }
    }
}

/// What is summed up for one of the few.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Sums([f32; LINES]);
