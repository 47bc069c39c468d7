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
    let [stay, pass] = [m.max(n), m.min(n)].map(|lines| Packed::size(lines.min(AT_ONCE), most));
    let depths = (Packed::size(AT_ONCE, most) / pass.max(1)).clamp(1, groups.len());
    scratch([stay, depths * pass], |[staying, passing]| {
        for i in (0..m).step_by(AT_ONCE) {
            for j in (0..n).step_by(AT_ONCE) {
                for (k, groups) in groups.chunks(depths).enumerate() {
                    // SAFETY: the part begins within all matrices.
                    let part = unsafe {
                        let depths = groups.iter().enumerate().map(|(k, terms)| Depth {
                            terms: terms.iter().map(|term| term.from(i, j)).collect(),
                            packed: [staying, passing.add(k * pass)].map(|at| Packed { at, slabs: slabs(terms) }),
                        });
                        Part {
                            sizes: [AT_ONCE.min(m - i), AT_ONCE.min(n - j)],
                            depths: depths.collect(),
                            to: Target(to.at(i * width + j)),
                            width,
                            add: if k == 0 { add } else { Some(to) }.map(|all| Target(all.at(i * width + j))),
                        }
                    };
                    part.run(call)?;
                }
            }
        }
        Ok(())
    })
}

/// Part of a sum whose factors are packed at once.
struct Part {
    sizes: [usize; 2],
    depths: Vec<Depth>,
    to: Target,
    width: usize,
    /// Only read.
    add: Option<Target>,
}

/// Steps that are summed up before the result is written.
struct Depth {
    terms: Vec<Term>,
    /// All their steps, line by line: lines that stay, each depth's in the place of the one before, and lines that pass.
    packed: [Packed; 2],
}

impl Part {
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
        let columns_stay = m < n;
        let (stay, pass) = if columns_stay { (n, m) } else { (m, n) };
        let strip = |k: usize, all: usize, length: usize| k * length..all.min((k + 1) * length);
        let strips = pass.div_ceil(STRIP);
        split(self.depths.len() * strips, &|k| {
            self.depths[k / strips].pack(1, strip(k % strips, pass, STRIP), !columns_stay);
        })?;
        let enough = call.map_or(1, |call| BLOCKS * call.threads);
        let length = stay.div_ceil(enough).next_multiple_of(SIDE).min(STAY);
        split(stay.div_ceil(length), &|k| self.block(columns_stay, strip(k, stay, length), pass))
    }

    /// What is in these lines of the side that stays.
    fn block(&self, columns_stay: bool, lines: Range<usize>, pass: usize) {
        let (tiles, [m, n]) = (Tiles::lend(), self.sizes);
        let mut add = self.add;
        for depth in &self.depths {
            depth.pack(0, lines.clone(), columns_stay);
            let [staying, passing] = depth.packed;
            let slab = staying.slabs * SLAB;
            // SAFETY: the parts lie within the result, and no other task has them.
            unsafe {
                let add = add.map(|add| add.at(0).cast_const());
                let mut parts = Parts::new(tiles.as_ref(), (self.to.at(0), self.width), add);
                for by in (0..pass).step_by(SIDE) {
                    for (k, line) in lines.clone().step_by(SIDE).enumerate() {
                        let (stay, pass) = (staying.from(line), passing.from(by));
                        // An eighth of the lines that pass by next, and what is below or beside.
                        let ahead = pass.at.wrapping_add(slab + k * slab / 8);
                        let (factors, [i, j], next) = if columns_stay {
                            ([pass, stay], [by, line], [by, line + SIDE])
                        } else {
                            ([stay, pass], [line, by], [line + SIDE, by])
                        };
                        parts.sum(factors, [i, j], [SIDE.min(m - i), SIDE.min(n - j)], (ahead, next));
                    }
                }
                parts.finish();
            }
            add = Some(self.to);
        }
    }
}

impl Depth {
    /// Packs lines that stay (0) or pass (1): rows of the left factor or columns of the right one.
    fn pack(&self, role: usize, lines: Range<usize>, right: bool) {
        let mut first = 0;
        for term in &self.terms {
            let (from, scale) = if right { (term.y.transposed(), 1.0) } else { (term.x, term.scale) };
            // SAFETY: the lines lie within the factor, and no other task has their memory.
            unsafe {
                let to = self.packed[role].from(lines.start);
                to.pack(from.from(lines.start, 0), [lines.len(), term.steps], first, right, scale);
            }
            first += term.steps.div_ceil(STEPS);
        }
    }
}
