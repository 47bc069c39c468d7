//! Rotary positions: x cos + rotate_half(x) sin, and its transpose.  Tables broadcast to x.

use super::rows::RowFunction;
use super::vector::BLOCK;

/// Both halves of a row at once, since each is computed from both; `BACK` gives the transpose.
///
/// # Safety
/// All addresses hold `n` elements, n even; `to` may be `x`.
#[inline(always)]
unsafe fn halves<const BACK: bool>([x, cos, sin]: [*const f32; 3], to: *mut f32, n: usize) {
    let h = n / 2;
    let (mut low, mut high) = ([0f32; BLOCK], [0f32; BLOCK]);
    let mut i = 0;
    while i < h {
        let m = BLOCK.min(h - i);
        // SAFETY: i + m <= h.
        unsafe {
            for l in 0..m {
                let (a, b) = (*x.add(i + l), *x.add(h + i + l));
                let (cos_a, cos_b) = (*cos.add(i + l), *cos.add(h + i + l));
                let (sin_a, sin_b) = (*sin.add(i + l), *sin.add(h + i + l));
                low[l] = if BACK { a * cos_a + b * sin_b } else { a * cos_a - b * sin_a };
                high[l] = if BACK { b * cos_b - a * sin_a } else { b * cos_b + a * sin_b };
            }
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
        unsafe { halves::<false>(from, to, n) }
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
        unsafe { halves::<true>(from, to, n) }
    }
}
