//! The sum of a step's gradients over its micro-batches.

use super::adamw::{BLOCK, is_zero};
use super::operator::{CHUNK, Call, Compute, Known, Tensor};
use super::vector::{Loop, Plus, dispatch, map};
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;

/// s and g of one shape to s + g.  Where s is overwritten, blocks of zeros in g leave it untouched, so that pages of rows
/// that no micro-batch looked up take no memory.
pub struct Accumulate;

struct AddBlocks {
    s: *const f32,
    g: *const f32,
    to: *mut f32,
    n: usize,
}

impl Loop for AddBlocks {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for start in (0..self.n).step_by(BLOCK) {
            let n = BLOCK.min(self.n - start);
            // SAFETY: all addresses hold n elements from start on; g is not the result's buffer.
            unsafe {
                let (s, g, to) = (self.s.add(start), self.g.add(start), self.to.add(start));
                if s != to.cast_const() || !is_zero(std::slice::from_raw_parts(g, n)) {
                    map(Plus, [s, g], to, n);
                }
            }
        }
    }
}

impl Compute for Accumulate {
    const NAME: &'static str = "Accumulate";
    const OPERANDS: &'static [Type] = &[Type::Float32; 2];
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0)];
    const SHAPE: Known = Known::First;

    fn new(_: &KernelContext<'_>) -> Result<Self, String> {
        Ok(Accumulate)
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let (s, g): (Tensor<f32>, Tensor<f32>) = (call.operand(0)?, call.operand(1)?);
        if s.shape != g.shape {
            return Err(format!("shapes {} and {} differ", s.shape, g.shape));
        }
        let to = &call.result(&s.shape)?;
        let (s, g) = (&s, &g);
        call.split(s.len(), CHUNK, |part| {
            // SAFETY: the part lies within all three; no other part has it.
            let (s, g, to) = unsafe { (s.at.add(part.start), g.at.add(part.start), to.at(part.start)) };
            dispatch(AddBlocks { s, g, to, n: part.len() });
        })
    }
}
