//! Loops that the compiler vectorises for the instruction set of the machine, and the functions they need.
//!
//! Everything is written in additions, multiplications, divisions and selections of f32 in a fixed order, fused nowhere but
//! where that is written: each element has the same bits on every machine and for every number of threads.  Functions
//! are branch-free; their constants were fitted for this file by iteratively reweighted least squares towards the
//! least maximal error (Lawson 1961) and rounded to f32.

use pulp::{Arch, Simd, WithSimd};
use std::sync::LazyLock;

/// How many elements a loop computes before it writes any: a result may overwrite its operands.
pub const BLOCK: usize = 64;
/// Partial sums and maxima of a row.
pub const LANES: usize = 16;
/// Elements whose f32 partial sums are added up in f64.
const STRETCH: usize = 512;

/// A loop; `run` must be `#[inline(always)]`, as must be all it calls.
pub trait Loop {
    type Output;
    fn run(self) -> Self::Output;
}

struct Dispatched<L>(L);

impl<L: Loop> WithSimd for Dispatched<L> {
    type Output = L::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> L::Output {
        self.0.run()
    }
}

/// Runs a loop with the best instructions of this machine.
pub fn dispatch<L: Loop>(work: L) -> L::Output {
    with_registers(Dispatched(work))
}

/// The same for what is written in vector registers, not left to the compiler.
pub fn with_registers<W: WithSimd>(work: W) -> W::Output {
    static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);
    #[cfg(test)]
    match REGISTERS.get() {
        Some(128) => return pulp::Scalar128b.vectorize(work),
        Some(256) => return pulp::Scalar256b.vectorize(work),
        Some(512) => return pulp::Scalar512b.vectorize(work),
        _ => {}
    }
    ARCH.dispatch(work)
}

#[cfg(test)]
thread_local! {
    /// Bits of registers that this thread has plain code stand in for: those of NEON, AVX2 and AVX-512.
    pub static REGISTERS: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) };
}

/// Asks for a line of the cache, which may be beyond the memory that there is.
#[inline(always)]
pub fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: whatever the address, nothing but the cache changes.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// One element from one element of each of N operands; `at` must be `#[inline(always)]`.
pub trait Map<const N: usize>: Copy + Send + Sync {
    fn at(self, x: [f32; N]) -> f32;
}

/// Element `l` of each operand.
///
/// # Safety
/// There is one.
#[inline(always)]
unsafe fn pick<const N: usize>(from: [*const f32; N], l: usize) -> [f32; N] {
    let mut x = [0f32; N];
    for (x, from) in x.iter_mut().zip(from) {
        // SAFETY: by the caller's promise.
        *x = unsafe { *from.add(l) };
    }
    x
}

// No closures here: each is one function for all instruction sets, which the compiler need not inline.

/// Writes `map` of `n` elements of each operand.
///
/// # Safety
/// All addresses hold `n` elements; `to` may be one of `from`, but must not overlap one otherwise.
#[inline(always)]
pub unsafe fn map<const N: usize>(map: impl Map<N>, mut from: [*const f32; N], to: *mut f32, n: usize) {
    let mut block = [0f32; BLOCK];
    let mut i = 0;
    while i + BLOCK <= n {
        // SAFETY: i + BLOCK <= n.
        unsafe {
            for (l, y) in block.iter_mut().enumerate() {
                *y = map.at(pick(from, l));
            }
            to.add(i).copy_from_nonoverlapping(block.as_ptr(), BLOCK);
            for from in &mut from {
                *from = from.add(BLOCK);
            }
        }
        i += BLOCK;
    }
    // SAFETY: n - i elements are left.
    unsafe {
        for (l, y) in block.iter_mut().enumerate().take(n - i) {
            *y = map.at(pick(from, l));
        }
        to.add(i).copy_from_nonoverlapping(block.as_ptr(), n - i);
    }
}

/// Sums over the elements of M terms each.
///
/// # Safety
/// All addresses hold `n` elements.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "an element is written in each of M blocks at once")]
pub unsafe fn sums<const N: usize, const M: usize>(
    terms: impl Terms<N, M>,
    from: [*const f32; N],
    n: usize,
) -> [f64; M] {
    let mut totals = [0f64; M];
    let mut start = 0;
    while start < n {
        let end = n.min(start + STRETCH);
        let mut lanes = [[0f32; BLOCK]; M];
        let mut i = start;
        while i < end {
            let m = BLOCK.min(end - i);
            // What lies beyond the end adds 0.
            let mut block = [[0f32; BLOCK]; M];
            // SAFETY: i + m <= n.
            unsafe {
                let mut from = from;
                for from in &mut from {
                    *from = from.add(i);
                }
                if m == BLOCK {
                    for l in 0..BLOCK {
                        let term = terms.at(pick(from, l));
                        for k in 0..M {
                            block[k][l] = term[k];
                        }
                    }
                } else {
                    for l in 0..m {
                        let term = terms.at(pick(from, l));
                        for k in 0..M {
                            block[k][l] = term[k];
                        }
                    }
                }
            }
            // As many partial sums as elements of a block: fewer would wait for one another.
            for (lane, x) in lanes.as_flattened_mut().iter_mut().zip(block.as_flattened()) {
                *lane += x;
            }
            i += m;
        }
        for (total, lanes) in totals.iter_mut().zip(lanes) {
            *total += f64::from(halve(lanes));
        }
        start = end;
    }
    totals
}

/// M terms of sums from one element of each of N operands; `at` must be `#[inline(always)]`.
pub trait Terms<const N: usize, const M: usize>: Copy {
    fn at(self, x: [f32; N]) -> [f32; M];
}

/// x times a number.
#[derive(Clone, Copy)]
pub struct Times(pub f32);
impl Map<1> for Times {
    #[inline(always)]
    fn at(self, [x]: [f32; 1]) -> f32 {
        x * self.0
    }
}

/// x + y
#[derive(Clone, Copy)]
pub struct Plus;
impl Map<2> for Plus {
    #[inline(always)]
    fn at(self, [x, y]: [f32; 2]) -> f32 {
        x + y
    }
}

/// x as it is.
#[derive(Clone, Copy)]
pub struct Itself;
impl Terms<1, 1> for Itself {
    #[inline(always)]
    fn at(self, x: [f32; 1]) -> [f32; 1] {
        x
    }
}

/// The sum of the lanes, halves onto halves.
#[inline(always)]
pub fn halve<const N: usize>(mut lanes: [f32; N]) -> f32 {
    let mut n = N / 2;
    while n > 0 {
        for l in 0..n {
            lanes[l] += lanes[l + n];
        }
        n /= 2;
    }
    lanes[0]
}

/// The largest of `n` elements; NaN where one is NaN, -inf where there is none.
///
/// # Safety
/// `x` holds `n` elements.
#[inline(always)]
pub unsafe fn largest(x: *const f32, n: usize) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut i = 0;
    while i + LANES <= n {
        for (l, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: i + LANES <= n.
            *lane = larger(*lane, unsafe { *x.add(i + l) });
        }
        i += LANES;
    }
    for (l, lane) in lanes.iter_mut().enumerate().take(n - i) {
        // SAFETY: i + l < n.
        *lane = larger(*lane, unsafe { *x.add(i + l) });
    }
    let mut top = f32::NEG_INFINITY;
    for lane in lanes {
        top = larger(top, lane);
    }
    top
}

/// NaN is kept once it is met: no comparison with it holds.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a >= b || a.is_nan() { a } else { b }
}

/// 2^k, k from -126 to 127.
#[inline(always)]
fn power(k: i32) -> f32 {
    f32::from_bits((k.wrapping_add(127) as u32) << 23)
}

/// x y + z, rounded once where it is fused: slow on a processor that has no instruction for it.
#[inline(always)]
fn multiply_add<const FUSED: bool>(x: f32, y: f32, z: f32) -> f32 {
    if FUSED { x.mul_add(y, z) } else { x * y + z }
}

/// e^x as 2^n and y: x = n log 2 + r, |r| <= log 2 / 2, with log 2 in two parts of which the first has 9 bits, so that n
/// times it is exact (Cody and Waite 1980); y = e^r = 1 + r + r^2 q(r), q of degree 4, within 3.1e-9.
#[inline(always)]
fn split_exp<const FUSED: bool>(x: f32) -> (i32, f32) {
    const HIGH: f32 = 355.0 / 512.0;
    const LOW: f32 = -2.121_944_4e-4;
    /// Adding it rounds to an integer, which is then in the last bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<FUSED>(n, -LOW, multiply_add::<FUSED>(n, -HIGH, x));
    let q = 1.381_454e-3;
    let q = multiply_add::<FUSED>(q, r, 8.368_745e-3);
    let q = multiply_add::<FUSED>(q, r, 4.166_839e-2);
    let q = multiply_add::<FUSED>(q, r, 1.666_652_1e-1);
    let q = multiply_add::<FUSED>(q, r, 4.999_999_4e-1);
    let y = multiply_add::<FUSED>(q, r * r, r) + 1.0;
    (shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32, y)
}

/// e^x within 1.5 units in the last place; 0 and inf beyond the range, NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let (n, y) = split_exp::<false>(x);
    // 2^n in two factors, so that denormal results and 2^128 are reached.
    let half = n >> 1;
    y * power(half) * power(n.wrapping_sub(half))
}

/// e^x of x <= 0 within 1.5 units in the last place, 0 where that is not a normal number; NaN for NaN.
#[inline(always)]
pub fn exp_below_one(x: f32) -> f32 {
    let (n, y) = split_exp::<true>(x);
    if x < -87.0 { 0.0 } else { y * power(n) }
}

/// 1 / (1 + e^-x) within 2.5 units in the last place where the result is normal.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function within 3 units in the last place.
///
/// Below 0.9 x p(x^2), p of degree 5, within 1.2e-8; above 1 - e^q(|x|), q of degree 6, within 1.7e-9.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let a = x.abs();
    let s = x * x;
    let p = -6.086_297e-4;
    let p = p * s + 5.011_214e-3;
    let p = p * s - 2.677_843_2e-2;
    let p = p * s + 1.128_212_9e-1;
    let p = p * s - 3.761_252_2e-1;
    let p = p * s + std::f32::consts::FRAC_2_SQRT_PI;
    let near = x * p;
    // From 4 on the result is 1.
    let a = if a > 4.0 { 4.0 } else { a };
    let q = 1.982_196_7e-4;
    let q = q * a - 3.065_490_4e-3;
    let q = q * a + 2.231_521_3e-2;
    let q = q * a - 1.041_136_8e-1;
    let q = q * a - 6.369_76e-1;
    let q = q * a - 1.127_797_2;
    let q = q * a - 1.664_476e-4;
    let far = (1.0 - exp(q)).copysign(x);
    if x.abs() < 0.9 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 1009th f32, both signs, with infinities and denormals: finite to be compared in units in the last place.
    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, within: impl Fn(f32) -> bool) -> f64 {
        let mut worst = 0f64;
        for bits in (0..=u32::MAX).step_by(1009) {
            let x = f32::from_bits(bits);
            if x.is_nan() || !within(x) {
                continue;
            }
            let (got, wanted) = (f(x), exact(f64::from(x)));
            let rounded = wanted as f32;
            if got == rounded {
                continue;
            }
            assert!(got.is_finite() && rounded.is_finite(), "{x:e}: {got:e}, not {wanted:e}");
            let magnitude = rounded.abs().max(f32::MIN_POSITIVE);
            let ulp = f64::from(f32::from_bits(magnitude.to_bits() + 1)) - f64::from(magnitude);
            worst = worst.max((f64::from(got) - wanted).abs() / ulp);
        }
        worst
    }

    #[test]
    fn exp_is_close_over_the_whole_range() {
        let found = worst(exp, f64::exp, |_| true);
        assert!(found < 1.5, "{found}");
        assert_eq!((exp(f32::INFINITY), exp(f32::NEG_INFINITY), exp(0.0)), (f32::INFINITY, 0.0, 1.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn exp_below_one_is_close_where_it_is_normal() {
        let found = worst(exp_below_one, f64::exp, |x| (-87.0..=0.0).contains(&x));
        assert!(found < 1.5, "{found}");
        assert_eq!([f32::NEG_INFINITY, -1e30, -88.0].map(exp_below_one), [0.0; 3]);
        assert!(exp_below_one(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_is_close_where_it_is_normal() {
        let found = worst(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), |x| x > -87.0);
        assert!(found < 2.5, "{found}");
        assert_eq!((sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY)), (1.0, 0.0));
        assert!(sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_close_over_the_whole_range() {
        let found = worst(erf, series, |_| true);
        assert!(found < 3.0, "{found}");
        assert_eq!((erf(f32::INFINITY), erf(f32::NEG_INFINITY), erf(-0.0).to_bits()), (1.0, -1.0, (-0f32).to_bits()));
        assert!(erf(f32::NAN).is_nan());
    }

    /// The series of Abramowitz and Stegun 7.1.6, 2 / sqrt(pi) e^-x^2 sum of 2^n x^(2n+1) / (2n+1)!!: all terms have
    /// one sign, so nothing is lost.
    fn series(x: f64) -> f64 {
        if x.abs() > 6.0 {
            return x.signum();
        }
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > sum.abs() * 1e-17 && n < 400.0 {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp()
    }
}
