//! Rotary positions: x cos + rotate_half(x) sin, and its transpose.  Tables broadcast to x.

use super::rows::RowFunction;
use super::vector::BLOCK;

/// Both halves of a row at once, since each is computed from both.
///
/// # Safety
/// All addresses hold `n` elements, n even; `to` may be `x`.
#[inline(always)]
unsafe fn halves(
    [x, cos, sin]: [*const f32; 3],
    to: *mut f32,
    n: usize,
    f: impl Fn([f32; 2], [f32; 2], [f32; 2]) -> [f32; 2],
) {
    let h = n / 2;
    let (mut low, mut high) = ([0f32; BLOCK], [0f32; BLOCK]);
    let mut i = 0;
    while i < h {
        let m = BLOCK.min(h - i);
        for l in 0..m {
            // SAFETY: i + l < h.
            let pair = |p: *const f32| unsafe { [*p.add(i + l), *p.add(h + i + l)] };
            [low[l], high[l]] = f(pair(x), pair(cos), pair(sin));
        }
        // SAFETY: i + m <= h.
        unsafe {
            to.add(i).copy_from_nonoverlapping(low.as_ptr(), m);
            to.add(h + i).copy_from_nonoverlapping(high.as_ptr(), m);
        }
        i += m;
    }
}

/// x cos + rotate_half(x) sin
pub struct Rope;

impl RowFunction<3> for Rope {
    const NAME: &'static str = "Rope";
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0)];
    const EPSILON: bool = false;
    const EVEN: bool = true;

    #[inline(always)]
    unsafe fn row(from: [*const f32; 3], to: *mut f32, n: usize, _: f32) {
        // SAFETY: by the caller's promise.
        unsafe { halves(from, to, n, |[a, b], c, s| [a * c[0] - b * s[0], b * c[1] + a * s[1]]) }
    }
}

/// dy cos - rotate_half(dy sin)
pub struct RopeGrad;

impl RowFunction<3> for RopeGrad {
    const NAME: &'static str = "RopeGrad";
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0)];
    const EPSILON: bool = false;
    const EVEN: bool = true;

    #[inline(always)]
    unsafe fn row(from: [*const f32; 3], to: *mut f32, n: usize, _: f32) {
        // SAFETY: by the caller's promise.
        unsafe { halves(from, to, n, |[a, b], c, s| [a * c[0] + b * s[1], b * c[1] - a * s[0]]) }
    }
}
