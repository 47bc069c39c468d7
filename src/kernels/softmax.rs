//! The softmax between the products of attention.  Its denominators wait: they scale the rows of what is multiplied
//! with the exponentials, which are shorter.

use super::tile::COLUMNS;
use super::vector::{BLOCK, LANES, Loop, Map, Plus, Terms, Times, exp_below_one, halve, map, sums};
use std::ops::Range;

/// Elements of a sum that are added up in f32.
const STRETCH: usize = 512;

#[derive(Clone, Copy)]
struct Dot;
impl Terms<2, 1> for Dot {
    #[inline(always)]
    fn at(self, [x, y]: [f32; 2]) -> [f32; 1] {
        [x * y]
    }
}

/// p (d - delta) / sum
#[derive(Clone, Copy)]
struct Cotangent {
    delta: f32,
    inverse: f32,
}
impl Map<2> for Cotangent {
    #[inline(always)]
    fn at(self, [p, d]: [f32; 2]) -> f32 {
        p * self.inverse * (d - self.delta)
    }
}

/// 1 / sum; 0 where every key is masked.
#[inline(always)]
fn inverse(sum: f32) -> f32 {
    if sum == 0.0 { 0.0 } else { 1.0 / sum }
}

/// A key with a bias of at most this has a weight of 0 beside any that has more: exporters write -inf or the least number.
const SHUT: f32 = -1e30;

/// From the first to the last key that a query may see by its bias, in whole [`COLUMNS`].
pub struct Open {
    pub bias: *const f32,
    pub keys: usize,
}

impl Loop for Open {
    type Output = Range<usize>;

    #[inline(always)]
    fn run(self) -> Range<usize> {
        // SAFETY: the bias holds so many elements.
        unsafe {
            let (mut start, mut end) = (0, self.keys);
            while start < end && !any_above(self.bias.add(start), COLUMNS.min(end - start), SHUT) {
                start += COLUMNS;
            }
            if start >= end {
                // All are alike: each has a weight again, unless all are -inf.
                return 0..if any_above(self.bias, self.keys, f32::NEG_INFINITY) { self.keys } else { 0 };
            }
            while end > start {
                let last = (end - 1) / COLUMNS * COLUMNS;
                if any_above(self.bias.add(last), end - last, SHUT) {
                    break;
                }
                end = last;
            }
            start..end
        }
    }
}

/// A NaN is above everything, so that it is seen.
///
/// # Safety
/// `x` holds `n` elements.
#[inline(always)]
unsafe fn any_above(x: *const f32, n: usize, least: f32) -> bool {
    let mut any = false;
    for l in 0..n {
        // SAFETY: l < n.
        let x = unsafe { *x.add(l) };
        any |= (x > least) | x.is_nan();
    }
    any
}

/// Scores s become e^(s - top), row by row; `tops` and `sums` keep the largest score and the sum of each row.
pub struct Exponentials<B> {
    /// Address and width of the rows.
    pub scores: (*mut f32, usize),
    pub rows: usize,
    pub keys: usize,
    /// The address of a row's bias.
    pub bias: B,
    pub tops: *mut f32,
    pub sums: *mut f32,
    /// Where these are further keys of the same rows: what was multiplied with the exponentials before, its width and
    /// how many elements of a row it has.  It is put relative to the new top.
    pub before: Option<(*mut f32, usize, usize)>,
}

impl<B: Fn(usize) -> Option<*const f32>> Loop for Exponentials<B> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let n = self.keys;
        for r in 0..self.rows {
            // SAFETY: there are so many rows of scores, bias, tops and sums, and of what was before.
            unsafe {
                let row = self.scores.0.add(r * self.scores.1);
                if let Some(bias) = (self.bias)(r) {
                    map(Plus, [row.cast_const(), bias], row, n);
                }
                let (top_at, sum) = (self.tops.add(r), self.sums.add(r));
                let mut highest = top(row, n);
                if let Some((y, width, e)) = self.before {
                    highest = larger(*top_at, highest);
                    let factor = if *top_at == highest { 1.0 } else { exp_below_one(*top_at - highest) };
                    if factor != 1.0 {
                        let y = y.add(r * width);
                        map(Times(factor), [y.cast_const()], y, e);
                        *sum *= factor;
                    }
                } else {
                    *sum = 0.0;
                }
                *top_at = highest;
                if highest == f32::NEG_INFINITY {
                    row.write_bytes(0, n);
                } else {
                    *sum += exponentials(row, highest, n);
                }
            }
        }
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The largest of `n` elements.  A NaN may be passed over: it is in the sum all the same.
///
/// # Safety
/// `x` holds `n` elements.
#[inline(always)]
unsafe fn top(x: *const f32, n: usize) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for i in 0..n / LANES {
        for (l, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: i LANES + l < n.
            *lane = larger(*lane, unsafe { *x.add(i * LANES + l) });
        }
    }
    for (l, lane) in lanes.iter_mut().enumerate().take(n % LANES) {
        // SAFETY: the last n % LANES elements.
        *lane = larger(*lane, unsafe { *x.add(n - n % LANES + l) });
    }
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] = larger(lanes[l], lanes[l + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// x becomes e^(x - top); returns the sum.
///
/// # Safety
/// `x` holds `n` elements.
#[inline(always)]
unsafe fn exponentials(x: *mut f32, top: f32, n: usize) -> f32 {
    let mut total = 0f64;
    let mut start = 0;
    while start < n {
        let end = n.min(start + STRETCH);
        let mut lanes = [0f32; LANES];
        let mut i = start;
        while i + BLOCK <= end {
            let mut block = [0f32; BLOCK];
            // SAFETY: i + BLOCK <= n.
            unsafe {
                for (l, e) in block.iter_mut().enumerate() {
                    *e = exp_below_one(*x.add(i + l) - top);
                }
                x.add(i).copy_from_nonoverlapping(block.as_ptr(), BLOCK);
            }
            for part in block.as_chunks::<LANES>().0 {
                for (lane, e) in lanes.iter_mut().zip(part) {
                    *lane += e;
                }
            }
            i += BLOCK;
        }
        for l in 0..end - i {
            // SAFETY: i + l < n.
            unsafe {
                let e = exp_below_one(*x.add(i + l) - top);
                *x.add(i + l) = e;
                lanes[l % LANES] += e;
            }
        }
        total += f64::from(halve(lanes));
        start = end;
    }
    total as f32
}

/// Rows over their sums.
pub struct Scale {
    pub from: (*const f32, usize),
    pub to: (*mut f32, usize),
    pub rows: usize,
    pub n: usize,
    pub sums: *const f32,
}

impl Loop for Scale {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for r in 0..self.rows {
            // SAFETY: there are so many rows and sums.
            unsafe {
                let (from, to) = (self.from.0.add(r * self.from.1), self.to.0.add(r * self.to.1));
                map(Times(inverse(*self.sums.add(r))), [from], to, self.n);
            }
        }
    }
}

/// dP becomes P (dP - sum P dP), row by row, where P is the exponentials over their sums.
pub struct Backward {
    pub exponentials: *const f32,
    pub cotangents: *mut f32,
    pub width: usize,
    pub rows: usize,
    pub keys: usize,
    pub sums: *const f32,
}

impl Loop for Backward {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let n = self.keys;
        for r in 0..self.rows {
            // SAFETY: both have so many rows of n elements, and there is a sum for each.
            unsafe {
                let (p, d) = (self.exponentials.add(r * self.width), self.cotangents.add(r * self.width));
                let [along] = sums(Dot, [p, d.cast_const()], n);
                let inverse = inverse(*self.sums.add(r));
                let delta = (along * f64::from(inverse)) as f32;
                map(Cotangent { delta, inverse }, [p, d.cast_const()], d, n);
            }
        }
    }
}
