//! Kernels that compute each row of the result from one row of each operand.

use super::broadcast::{Rows, Shape};
use super::operator::{CHUNK, Call, Compute, Known, Tensor, float};
use super::vector::{Loop, Map, dispatch, map};
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;
use std::marker::PhantomData;
use std::ops::Range;

/// A function of rows along the last axis; the operands broadcast as in NumPy.
pub trait RowFunction<const N: usize>: Send + Sync + 'static {
    const NAME: &'static str;
    const IN_PLACE: &'static [(u32, u32)];
    /// Whether the node has an attribute `epsilon`; without it the function is given 0.
    const EPSILON: bool = true;
    /// The operand whose rows are as long as the result's.
    const X: usize = 0;
    /// Whether rows have halves.
    const EVEN: bool = false;

    /// Writes a row of the result; must be `#[inline(always)]`.
    ///
    /// # Safety
    /// All addresses hold `n` > 0 elements; `to` may be one of those of `IN_PLACE`.
    unsafe fn row(from: [*const f32; N], to: *mut f32, n: usize, eps: f32);
}

/// The kernel of a row function.
pub struct ByRow<F, const N: usize> {
    eps: f32,
    function: PhantomData<F>,
}

/// A range of rows.
struct Part<'a, F, const N: usize> {
    rows: Range<usize>,
    from: &'a [Rows; N],
    to: *mut f32,
    n: usize,
    eps: f32,
    function: PhantomData<F>,
}

impl<F: RowFunction<N>, const N: usize> Loop for Part<'_, F, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // An operand's row is looked up where another one begins: that takes divisions.
        let mut from = [std::ptr::null(); N];
        let mut next = [self.rows.start; N];
        for r in self.rows {
            for k in 0..N {
                if r == next[k] {
                    let repeats = self.from[k].repeats();
                    next[k] = if repeats == 1 { r + 1 } else { r - r % repeats + repeats };
                    // SAFETY: r is a row of the result, which the operands broadcast to.
                    from[k] = unsafe { self.from[k].row(r) };
                }
            }
            // SAFETY: as above.
            unsafe { F::row(from, self.to.add(r * self.n), self.n, self.eps) };
        }
    }
}

/// All operands, and the shape that they broadcast to.
fn operands<const N: usize>(call: &Call<'_>) -> Result<([Tensor<f32>; N], Shape), String> {
    let operands: Vec<Tensor<f32>> = (0..N).map(|k| call.operand(k)).collect::<Result<_, _>>()?;
    let shape = operands.iter().skip(1).try_fold(operands[0].shape.clone(), |s, t| s.join(&t.shape))?;
    let operands = operands.try_into().map_err(|_| "operands are missing".to_string())?;
    Ok((operands, shape))
}

fn broadcast<const N: usize>(operands: &[Tensor<f32>; N], shape: &Shape) -> Result<[Rows; N], String> {
    let rows: Vec<Rows> = operands.iter().map(|t| Rows::new(t, shape)).collect::<Result<_, _>>()?;
    rows.try_into().map_err(|_| "operands are missing".to_string())
}

impl<F: RowFunction<N>, const N: usize> Compute for ByRow<F, N> {
    const NAME: &'static str = F::NAME;
    const OPERANDS: &'static [Type] = &[Type::Float32; N];
    const IN_PLACE: &'static [(u32, u32)] = F::IN_PLACE;

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        Ok(ByRow { eps: if F::EPSILON { float(node, "epsilon")? } else { 0.0 }, function: PhantomData })
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let (operands, shape) = operands::<N>(call)?;
        let (n, eps) = (shape.width(), self.eps);
        // Its rows are what the sums are taken over: they are not repeated.
        let x = &operands[F::X].shape;
        if x.width() != n {
            return Err(format!("x of shape {x} has rows of another length than the result, {shape}"));
        }
        if F::EVEN && n % 2 == 1 {
            return Err(format!("rows of shape {shape} have no halves"));
        }
        let from = broadcast(&operands, &shape)?;
        let to = call.result(&shape)?;
        if shape.numel() == 0 {
            return Ok(());
        }
        let (from, to) = (&from, &to);
        call.rows(shape.rows(), n, |rows| {
            dispatch(Part::<F, N> { rows, from, to: to.0, n, eps, function: PhantomData });
        })
    }
}

/// The kernel of an elementwise function.
pub struct Elementwise<M, const N: usize> {
    map: M,
}

/// A name for an elementwise function; all operands may be overwritten, each element being read before it is.
pub trait Named<const N: usize>: Map<N> + Default + 'static {
    const NAME: &'static str;
    const SHAPE: Known;
    const IN_PLACE: &'static [(u32, u32)] = [(0, 0), (1, 0), (2, 0)].split_at(N).0;
}

/// Elements of operands that all have the result's shape.
struct Flat<M, const N: usize> {
    map: M,
    from: [*const f32; N],
    to: *mut f32,
    n: usize,
}

impl<M: Map<N>, const N: usize> Loop for Flat<M, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // SAFETY: all addresses hold n elements.
        unsafe { map(self.map, self.from, self.to, self.n) }
    }
}

impl<M: Named<N>, const N: usize> Compute for Elementwise<M, N> {
    const NAME: &'static str = M::NAME;
    const OPERANDS: &'static [Type] = &[Type::Float32; N];
    const IN_PLACE: &'static [(u32, u32)] = M::IN_PLACE;
    const SHAPE: Known = M::SHAPE;

    fn new(_: &KernelContext<'_>) -> Result<Self, String> {
        Ok(Elementwise { map: M::default() })
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let (operands, shape) = operands::<N>(call)?;
        let map = self.map;
        if operands.iter().all(|t| t.shape == shape) {
            let to = &call.result(&shape)?;
            let operands = &operands;
            return call.split(shape.numel(), CHUNK, |part| {
                // SAFETY: the part lies within the result, whose shape the operands have.
                let from = std::array::from_fn(|k| unsafe { operands[k].at.add(part.start) });
                dispatch(Flat { map, from, to: unsafe { to.at(part.start) }, n: part.len() });
            });
        }
        let rows = &broadcast(&operands, &shape)?;
        let (to, n) = (&call.result(&shape)?, shape.width());
        if shape.numel() == 0 {
            return Ok(());
        }
        call.rows(shape.rows(), n, |part| {
            for r in part {
                // SAFETY: r is a row of the result, which the operands broadcast to.
                let from = std::array::from_fn(|k| unsafe { rows[k].row(r) });
                dispatch(Flat { map, from, to: unsafe { to.at(r * n) }, n });
            }
        })
    }
}
