//! Products of large matrices on tiles of bf16: lines of one factor are packed by the thread that multiplies them and stay in
//! its second cache, while all of the other factor's pass by.
//!
//! An element is summed up in the same order whatever the number of threads.

use super::amx::{self, Tiles};
use super::bf16x3::{Packed, SIDE, SLAB, STEPS};
use super::operator::{Call, Target};
use super::parts::Parts;
use super::terms::{Term, groups};
use super::tile::scratch;
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

/// What [`super::panels::add_up`] does.
///
/// # Errors
/// As there.
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
    // SAFETY: by the caller's promise.
    let groups = unsafe { groups(terms, DEPTH) };
    let slabs = |terms: &[Term]| terms.iter().map(|term| term.steps.div_ceil(STEPS)).sum();
    let most = groups.iter().map(|terms| slabs(terms)).max().unwrap_or(0);
    scratch([m, n].map(|lines| Packed::size(lines.min(AT_ONCE), most)), |packed| {
        for (k, terms) in groups.iter().enumerate() {
            for i in (0..m).step_by(AT_ONCE) {
                for j in (0..n).step_by(AT_ONCE) {
                    // SAFETY: the group begins within all matrices.
                    let group = unsafe {
                        Group {
                            sizes: [AT_ONCE.min(m - i), AT_ONCE.min(n - j)],
                            terms: terms.iter().map(|term| term.from(i, j)).collect(),
                            packed: packed.map(|at| Packed { at, slabs: slabs(terms) }),
                            to: Target(to.at(i * width + j)),
                            width,
                            add: if k == 0 { add } else { Some(to) }.map(|all| Target(all.at(i * width + j))),
                        }
                    };
                    group.run(call)?;
                }
            }
        }
        Ok(())
    })
}

/// Part of a sum whose factors are packed at once.
struct Group {
    sizes: [usize; 2],
    terms: Vec<Term>,
    /// The steps of all terms, line by line.
    packed: [Packed; 2],
    to: Target,
    width: usize,
    /// Only read.
    add: Option<Target>,
}

impl Group {
    fn run(&self, call: Option<&Call<'_>>) -> Result<(), String> {
        let [m, n] = self.sizes;
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

    fn pack(&self, factor: usize, lines: Range<usize>) {
        let mut first = 0;
        for term in &self.terms {
            let (from, scale) = if factor == 0 { (term.x, term.scale) } else { (term.y.transposed(), 1.0) };
            // SAFETY: the lines lie within the factor, and no other task has their memory.
            unsafe {
                let to = self.packed[factor].from(lines.start);
                to.pack(from.from(lines.start, 0), [lines.len(), term.steps], first, factor == 1, scale);
            }
            first += term.steps.div_ceil(STEPS);
        }
    }

    /// What is in these lines of the side that stays.
    fn block(&self, stays: usize, lines: Range<usize>, pass: usize) {
        self.pack(stays, lines.clone());
        let (tiles, [m, n]) = (Tiles::lend(), self.sizes);
        let slab = self.packed[0].slabs * SLAB;
        // SAFETY: the parts lie within the result, and no other task has them.
        unsafe {
            let mut parts =
                Parts::new(tiles.as_ref(), (self.to.at(0), self.width), self.add.map(|add| add.at(0).cast_const()));
            for passing in (0..pass).step_by(SIDE) {
                for (k, line) in lines.clone().step_by(SIDE).enumerate() {
                    let place @ [i, j] = if stays == 0 { [line, passing] } else { [passing, line] };
                    let [x, y] = [(0, i), (1, j)].map(|(factor, line)| self.packed[factor].from(line));
                    // An eighth of the lines that pass by next, and what is below or beside.
                    let ahead = (if stays == 0 { y } else { x }).at.wrapping_add(slab + k * slab / 8);
                    let next = if stays == 0 { [i + SIDE, j] } else { [i, j + SIDE] };
                    parts.sum([x, y], place, [SIDE.min(m - i), SIDE.min(n - j)], (ahead, next));
                }
            }
            parts.finish();
        }
    }
}
