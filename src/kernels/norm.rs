//! RMS and layer normalisation over the last axis, forward and backward.
//!
//! The rules of `rules/lower.egg` under the operators' names say what is computed.  A row's sums are f64 over
//! stretches of f32.

use super::broadcast::Shape;
use super::operator::{Call, Compute, Known, Target, Tensor, float};
use super::rows::RowFunction;
use super::vector::{Loop, Map, Terms, dispatch, map, sums};
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;
use std::ops::Range;

/// Declares what is computed for each element.
macro_rules! map {
    ($(#[$doc:meta])* $name:ident($($field:ident),*), [$($x:ident),*] => $y:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        struct $name { $($field: f32),* }
        impl Map<{ [$(stringify!($x)),*].len() }> for $name {
            #[inline(always)]
            fn at(self, [$($x),*]: [f32; [$(stringify!($x)),*].len()]) -> f32 {
                let $name { $($field),* } = self;
                $y
            }
        }
    };
}

/// Declares the terms of a row's sums.
macro_rules! terms {
    ($name:ident($($field:ident),*), [$($x:ident),*] => [$($y:expr),*]) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name { $($field: f32),* }
        impl Terms<{ [$(stringify!($x)),*].len() }, { [$(stringify!($y)),*].len() }> for $name {
            #[inline(always)]
            fn at(self, [$($x),*]: [f32; [$(stringify!($x)),*].len()]) -> [f32; [$(stringify!($y)),*].len()] {
                let $name { $($field),* } = self;
                [$($y),*]
            }
        }
    };
}

/// 1 / sqrt(total / n + eps)
#[inline(always)]
fn inverse(total: f64, n: usize, eps: f32) -> f32 {
    (1.0 / (total / n as f64 + f64::from(eps)).sqrt()) as f32
}

terms!(Squares(), [x] => [x * x]);
map!(Scaled(r), [x, w] => x * r * w);

/// y = x / rms(x) w
pub struct RmsNorm;

impl RowFunction<2> for RmsNorm {
    const NAME: &'static str = "RmsNorm";
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0)];

    #[inline(always)]
    unsafe fn row([x, w]: [*const f32; 2], y: *mut f32, n: usize, eps: f32) {
        // SAFETY: by the caller's promise.
        unsafe {
            let [squares] = sums(Squares {}, [x], n);
            map(Scaled { r: inverse(squares, n, eps) }, [x, w], y, n);
        }
    }
}

terms!(RmsSums(), [dy, x, w] => [x * x, dy * w * x]);
map!(RmsBack(r, m), [dy, x, w] => (dy * w - x * r * m) * r);

/// The cotangent of x.
pub struct RmsNormGrad;

impl RowFunction<3> for RmsNormGrad {
    const NAME: &'static str = "RmsNormGrad";
    const X: usize = 1;
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0), (1, 0)];

    #[inline(always)]
    unsafe fn row([dy, x, w]: [*const f32; 3], dx: *mut f32, n: usize, eps: f32) {
        // SAFETY: by the caller's promise.
        unsafe {
            let [squares, along] = sums(RmsSums {}, [dy, x, w], n);
            let r = inverse(squares, n, eps);
            let m = (along * f64::from(r) / n as f64) as f32;
            map(RmsBack { r, m }, [dy, x, w], dx, n);
        }
    }
}

map!(TimesScaled(r), [dy, x] => dy * (x * r));

/// dy x / rms(x), which summed over rows is the cotangent of w.
pub struct RmsNormGradW;

impl RowFunction<2> for RmsNormGradW {
    const NAME: &'static str = "RmsNormGradW";
    const X: usize = 1;
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0), (1, 0)];

    #[inline(always)]
    unsafe fn row([dy, x]: [*const f32; 2], to: *mut f32, n: usize, eps: f32) {
        // SAFETY: by the caller's promise.
        unsafe {
            let [squares] = sums(Squares {}, [x], n);
            map(TimesScaled { r: inverse(squares, n, eps) }, [dy, x], to, n);
        }
    }
}

map!(AddScaled(r), [to, dy, x] => to + dy * (x * r));

/// The sum of dy x / rms(x) over all rows: the cotangent of w [d].
///
/// Rows are summed in at most [`PARTS`] parts, whatever the number of threads, and the parts in order.
pub struct RmsNormGradSum {
    eps: f32,
}

const PARTS: usize = 16;

struct SumRows {
    rows: Range<usize>,
    dy: *const f32,
    x: *const f32,
    to: *mut f32,
    n: usize,
    eps: f32,
}

impl Loop for SumRows {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for k in self.rows {
            // SAFETY: k is a row.
            unsafe {
                let (dy, x) = (self.dy.add(k * self.n), self.x.add(k * self.n));
                let [squares] = sums(Squares {}, [x], self.n);
                let add = AddScaled { r: inverse(squares, self.n, self.eps) };
                map(add, [self.to.cast_const(), dy, x], self.to, self.n);
            }
        }
    }
}

impl Compute for RmsNormGradSum {
    const NAME: &'static str = "RmsNormGradSum";
    const OPERANDS: &'static [Type] = &[Type::Float32, Type::Float32];
    const SHAPE: Known = Known::Nothing;

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        Ok(RmsNormGradSum { eps: float(node, "epsilon")? })
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let (dy, x): (Tensor<f32>, Tensor<f32>) = (call.operand(0)?, call.operand(1)?);
        if dy.shape != x.shape {
            return Err(format!("dy {} and x {} have different shapes", dy.shape, x.shape));
        }
        let (n, rows, eps) = (x.shape.width(), x.shape.rows(), self.eps);
        let part = rows.div_ceil(PARTS).max(1);
        let mut partial = vec![0f32; rows.div_ceil(part) * n];
        let (sums, dy, x) = (&Target(partial.as_mut_ptr()), &dy, &x);
        call.split(if n == 0 { 0 } else { rows }, part, |rows| {
            // SAFETY: each part has its own row of sums.
            let to = unsafe { sums.at(rows.start / part * n) };
            dispatch(SumRows { rows, dy: dy.at, x: x.at, to, n, eps });
        })?;
        let to = call.result(&Shape(vec![n]))?;
        for k in 0..n {
            let column = partial.iter().skip(k).step_by(n);
            // SAFETY: k is below n.
            unsafe { *to.at(k) = column.map(|x| f64::from(*x)).sum::<f64>() as f32 };
        }
        Ok(())
    }
}

terms!(Sum(), [x] => [x]);
terms!(CentredSquares(mean), [x] => [(x - mean) * (x - mean)]);

/// Mean and 1 / deviation of a row; the mean goes first, so that nothing cancels.
///
/// # Safety
/// `x` holds `n` elements.
#[inline(always)]
unsafe fn moments(x: *const f32, n: usize, eps: f32) -> (f32, f32) {
    // SAFETY: by the caller's promise.
    unsafe {
        let [total] = sums(Sum {}, [x], n);
        let mean = (total / n as f64) as f32;
        let [squares] = sums(CentredSquares { mean }, [x], n);
        (mean, inverse(squares, n, eps))
    }
}

map!(Normalized(mean, r), [x] => (x - mean) * r);

/// (x - mean) / deviation
pub struct Normalize;

impl RowFunction<1> for Normalize {
    const NAME: &'static str = "Normalize";
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0)];

    #[inline(always)]
    unsafe fn row([x]: [*const f32; 1], y: *mut f32, n: usize, eps: f32) {
        // SAFETY: by the caller's promise.
        unsafe {
            let (mean, r) = moments(x, n, eps);
            map(Normalized { mean, r }, [x], y, n);
        }
    }
}

map!(Affine(mean, r), [x, w, b] => (x - mean) * r * w + b);

/// y = (x - mean) / deviation w + b
pub struct LayerNorm;

impl RowFunction<3> for LayerNorm {
    const NAME: &'static str = "LayerNorm";
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0)];

    #[inline(always)]
    unsafe fn row([x, w, b]: [*const f32; 3], y: *mut f32, n: usize, eps: f32) {
        // SAFETY: by the caller's promise.
        unsafe {
            let (mean, r) = moments(x, n, eps);
            map(Affine { mean, r }, [x, w, b], y, n);
        }
    }
}

terms!(LayerSums(mean, r), [dy, x, w] => [dy * w, dy * w * ((x - mean) * r)]);
map!(LayerBack(mean, r, g, m), [dy, x, w] => (dy * w - g - (x - mean) * r * m) * r);

/// The cotangent of x.
pub struct LayerNormGrad;

impl RowFunction<3> for LayerNormGrad {
    const NAME: &'static str = "LayerNormGrad";
    const X: usize = 1;
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0), (1, 0)];

    #[inline(always)]
    unsafe fn row([dy, x, w]: [*const f32; 3], dx: *mut f32, n: usize, eps: f32) {
        // SAFETY: by the caller's promise.
        unsafe {
            let (mean, r) = moments(x, n, eps);
            let [g, along] = sums(LayerSums { mean, r }, [dy, x, w], n);
            let (g, m) = ((g / n as f64) as f32, (along / n as f64) as f32);
            map(LayerBack { mean, r, g, m }, [dy, x, w], dx, n);
        }
    }
}
