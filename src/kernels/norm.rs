//! RMS and layer normalisation over the last axis, forward and backward.  The rules in `rules/lower.egg` under the
//! operators' names say what is computed; sums of a row are f64 over f32 stretches.

use super::broadcast::{Rows, Shape};
use super::operator::{Call, Compute, Target, Tensor, float};
use super::vector::{Loop, Map, Terms, dispatch, map, sums};
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;

const F: Type = Type::Float32;

/// Operands that broadcast to the shape of `x`, row by row.
fn rows(call: &Call<'_>, k: usize, x: &Shape) -> Result<Rows, String> {
    Rows::new(&call.operand(k)?, x)
}

/// Calls `work` with a range of rows for each part of the result, which has the shape of `x`.
fn over(call: &Call<'_>, x: &Shape, work: impl Fn(usize, *mut f32) + Sync + Send) -> Result<(), String> {
    let (n, width) = (x.rows(), x.width());
    let to: Target = call.result(x)?;
    if x.numel() == 0 {
        return Ok(());
    }
    // SAFETY: row r of the result.
    call.rows(n, width, |part| part.for_each(|r| work(r, unsafe { to.at(r * width) })))
}

#[derive(Clone, Copy)]
struct Square;
impl Terms<1, 1> for Square {
    #[inline(always)]
    fn at(self, [x]: [f32; 1]) -> [f32; 1] {
        [x * x]
    }
}

/// 1 / rms of a row.
///
/// # Safety
/// `x` holds `n` elements.
#[inline(always)]
unsafe fn inverse_rms(x: *const f32, n: usize, eps: f32) -> f32 {
    // SAFETY: by the caller's promise.
    let [squares] = unsafe { sums(Square, [x], n) };
    (1.0 / (squares / n as f64 + f64::from(eps)).sqrt()) as f32
}

/// y = x / rms(x) w
pub struct RmsNorm {
    eps: f32,
}

struct RmsRow {
    x: *const f32,
    w: *const f32,
    y: *mut f32,
    n: usize,
    eps: f32,
}

#[derive(Clone, Copy)]
struct Scaled(f32);
impl Map<2> for Scaled {
    #[inline(always)]
    fn at(self, [x, w]: [f32; 2]) -> f32 {
        x * self.0 * w
    }
}

impl Loop for RmsRow {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        // SAFETY: all rows hold n elements.
        unsafe {
            let r = inverse_rms(self.x, self.n, self.eps);
            map(Scaled(r), [self.x, self.w], self.y, self.n);
        }
    }
}

impl Compute for RmsNorm {
    const NAME: &'static str = "RmsNorm";
    const OPERANDS: &'static [Type] = &[F, F];
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0)];

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        Ok(RmsNorm { eps: float(node, "epsilon")? })
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let x: Tensor<f32> = call.operand(0)?;
        let (from, w) = (Rows::new(&x, &x.shape)?, rows(call, 1, &x.shape)?);
        let (n, eps) = (x.shape.width(), self.eps);
        // SAFETY: r is a row of x.
        over(call, &x.shape, |r, y| unsafe { dispatch(RmsRow { x: from.row(r), w: w.row(r), y, n, eps }) })
    }
}
