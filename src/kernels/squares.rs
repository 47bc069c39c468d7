//! The squares of a gradient, summed up for its norm.

use super::operator::{Call, Compute, Known, Tensor};
use super::vector::{Loop, dispatch, sums};
use super::{broadcast::Shape, norm::Squares};
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;

/// Elements whose squares are one sum, whatever the number of threads: the same bits for any.
pub const STRETCH: usize = 1 << 15;

/// x to the sums of its squares over stretches of [`STRETCH`] elements, f32 [stretches]: each is added up in f64 and rounded.
pub struct SquareSums;

struct Sum {
    x: *const f32,
    n: usize,
}

impl Loop for Sum {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        // SAFETY: the address holds n elements.
        let [sum] = unsafe { sums(Squares {}, [self.x], self.n) };
        sum
    }
}

impl Compute for SquareSums {
    const NAME: &'static str = "SquareSums";
    const OPERANDS: &'static [Type] = &[Type::Float32];
    const SHAPE: Known = Known::Nothing;

    fn new(_: &KernelContext<'_>) -> Result<Self, String> {
        Ok(SquareSums)
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let x: Tensor<f32> = call.operand(0)?;
        let to = &call.result(&Shape(vec![x.len().div_ceil(STRETCH)]))?;
        let x = &x;
        call.split(x.len(), STRETCH, |part| {
            // SAFETY: the part lies within x; it has a sum of its own.
            unsafe {
                let sum = dispatch(Sum { x: x.at.add(part.start), n: part.len() });
                to.at(part.start / STRETCH).write(sum as f32);
            }
        })
    }
}
