//! The loss and the entropy over rows of logits, and the softmax's cotangent.

use super::broadcast::Shape;
use super::operator::{Call, Compute, Known, Target, Tensor, int};
use super::vector::{Itself, Loop, Map, Terms, Times, dispatch, exp, largest, map, sums};
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;
use std::ops::Range;

/// e^(z - top), and that times z - top; a logit of -inf counts 0, not NaN.
#[derive(Clone, Copy)]
pub struct EntropyTerms(pub f32);
impl Terms<1, 2> for EntropyTerms {
    #[inline(always)]
    fn at(self, [z]: [f32; 1]) -> [f32; 2] {
        let s = z - self.0;
        let s = if s < -10000.0 { -10000.0 } else { s };
        let e = exp(s);
        [e, e * s]
    }
}

/// e^(z - top)
#[derive(Clone, Copy)]
pub struct Exp(pub f32);
impl Terms<1, 1> for Exp {
    #[inline(always)]
    fn at(self, [z]: [f32; 1]) -> [f32; 1] {
        [exp(z - self.0)]
    }
}
impl Map<1> for Exp {
    #[inline(always)]
    fn at(self, [z]: [f32; 1]) -> f32 {
        exp(z - self.0)
    }
}

/// Logits: rows of one length.
#[derive(Clone, Copy)]
struct Logits {
    z: *const f32,
    n: usize,
}

// SAFETY: threads only read, or write rows of their own.
unsafe impl Send for Logits {}
unsafe impl Sync for Logits {}

impl Logits {
    /// Operand 0; the others, of shape `tokens`, have one element a row.
    fn new(call: &Call<'_>, tokens: &Shape) -> Result<(Self, Shape), String> {
        let z: Tensor<f32> = call.operand(0)?;
        match z.shape.0.split_last() {
            Some((n, leading)) if *leading == tokens.0 && *n > 0 => Ok((Logits { z: z.at, n: *n }, z.shape)),
            _ => Err(format!("logits {} do not have a row for each of tokens {tokens}", z.shape)),
        }
    }

    /// # Safety
    /// There are more than `r` rows.
    unsafe fn row(self, r: usize) -> *const f32 {
        // SAFETY: by the caller's promise.
        unsafe { self.z.add(r * self.n) }
    }
}

/// The entropy of softmax(z) where a token is an answer's, 0 elsewhere.  Other rows are not read.
pub struct TokenEntropy;

struct Entropies<'a> {
    rows: Range<usize>,
    logits: Logits,
    answer: &'a [bool],
    to: *mut f32,
}

impl Loop for Entropies<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for r in self.rows {
            // SAFETY: r is a row.
            unsafe {
                *self.to.add(r) = if self.answer[r] {
                    let (z, n) = (self.logits.row(r), self.logits.n);
                    let [sum, along] = sums(EntropyTerms(largest(z, n)), [z], n);
                    (sum.ln() - along / sum) as f32
                } else {
                    0.0
                };
            }
        }
    }
}

impl Compute for TokenEntropy {
    const NAME: &'static str = "TokenEntropy";
    const OPERANDS: &'static [Type] = &[Type::Float32, Type::Bool];
    const SHAPE: Known = Known::Nothing;

    fn new(_: &KernelContext<'_>) -> Result<Self, String> {
        Ok(TokenEntropy)
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let answer: Tensor<bool> = call.operand(1)?;
        let (logits, _) = Logits::new(call, &answer.shape)?;
        let to: Target = call.result(&answer.shape)?;
        // SAFETY: it is not overwritten.
        let answer = unsafe { answer.values() };
        let to = &to;
        call.rows(answer.len(), logits.n, |rows| dispatch(Entropies { rows, logits, answer, to: to.0 }))
    }
}

/// The tokens' columns.  Errors where one is beyond the row.
fn columns(ids: &Tensor<i64>, n: usize) -> Result<Vec<usize>, String> {
    // SAFETY: ids are not overwritten.
    let column = |id: &i64| match usize::try_from(if *id < 0 { id + n as i64 } else { *id }) {
        Ok(column) if column < n => Ok(column),
        _ => Err(format!("token {id} is beyond a vocabulary of {n}")),
    };
    unsafe { ids.values() }.iter().map(column).collect()
}

/// w (log sum e^z - z[x]), 0 where w = 0: such rows are not read.
pub struct WeightedCrossEntropy;

struct Losses<'a> {
    rows: Range<usize>,
    logits: Logits,
    columns: &'a [usize],
    weights: &'a [f32],
    to: *mut f32,
}

impl Loop for Losses<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for r in self.rows {
            let weight = self.weights[r];
            // SAFETY: r is a row, the column within it.
            unsafe {
                *self.to.add(r) = if weight == 0.0 {
                    0.0
                } else {
                    let (z, n) = (self.logits.row(r), self.logits.n);
                    let top = largest(z, n);
                    let [sum] = sums(Exp(top), [z], n);
                    weight * (sum.ln() - f64::from(*z.add(self.columns[r]) - top)) as f32
                };
            }
        }
    }
}

impl Compute for WeightedCrossEntropy {
    const NAME: &'static str = "WeightedCrossEntropy";
    const OPERANDS: &'static [Type] = &[Type::Float32, Type::Int64, Type::Float32];
    const SHAPE: Known = Known::Nothing;

    fn new(_: &KernelContext<'_>) -> Result<Self, String> {
        Ok(WeightedCrossEntropy)
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let (ids, weights): (Tensor<i64>, Tensor<f32>) = (call.operand(1)?, call.operand(2)?);
        let (logits, _) = Logits::new(call, &ids.shape)?;
        Logits::new(call, &weights.shape)?;
        let columns = &columns(&ids, logits.n)?;
        let to = &call.result(&ids.shape)?;
        // SAFETY: they are not overwritten.
        let weights = unsafe { weights.values() };
        call.rows(weights.len(), logits.n, |rows| dispatch(Losses { rows, logits, columns, weights, to: to.0 }))
    }
}

/// g (softmax(z) - onehot(x)), 0 where g = 0: such rows are not read.
pub struct WeightedCrossEntropyGrad;

struct LossGrads<'a> {
    rows: Range<usize>,
    logits: Logits,
    columns: &'a [usize],
    g: &'a [f32],
    to: *mut f32,
}

impl Loop for LossGrads<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        /// Short enough to stay in the first cache between writing and summing.
        const STRETCH: usize = 2048;
        for r in self.rows {
            let (g, n) = (self.g[r], self.logits.n);
            // SAFETY: r is a row, the column within it.
            unsafe {
                let (z, to) = (self.logits.row(r), self.to.add(r * n));
                if g == 0.0 {
                    to.write_bytes(0, n);
                    continue;
                }
                let top = largest(z, n);
                let (mut total, mut i) = (0f64, 0);
                while i < n {
                    let m = STRETCH.min(n - i);
                    map(Exp(top), [z.add(i)], to.add(i), m);
                    total += sums(Itself, [to.add(i).cast_const()], m)[0];
                    i += m;
                }
                let column = to.add(self.columns[r]);
                let own = (f64::from(*column) / total - 1.0) * f64::from(g);
                map(Times((f64::from(g) / total) as f32), [to.cast_const()], to, n);
                *column = own as f32;
            }
        }
    }
}

impl Compute for WeightedCrossEntropyGrad {
    const NAME: &'static str = "WeightedCrossEntropyGrad";
    const OPERANDS: &'static [Type] = &[Type::Float32, Type::Int64, Type::Float32];
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0)];

    fn new(_: &KernelContext<'_>) -> Result<Self, String> {
        Ok(WeightedCrossEntropyGrad)
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let (ids, g): (Tensor<i64>, Tensor<f32>) = (call.operand(1)?, call.operand(2)?);
        let (logits, shape) = Logits::new(call, &ids.shape)?;
        Logits::new(call, &g.shape)?;
        let columns = &columns(&ids, logits.n)?;
        let to = &call.result(&shape)?;
        // SAFETY: it is not overwritten.
        let g = unsafe { g.values() };
        call.rows(g.len(), logits.n, |rows| dispatch(LossGrads { rows, logits, columns, g, to: to.0 }))
    }
}

/// y (dy - sum(dy y)) along an axis.
pub struct SoftmaxGrad {
    axis: i64,
}

#[derive(Clone, Copy)]
struct Product;
impl Terms<2, 1> for Product {
    #[inline(always)]
    fn at(self, [y, dy]: [f32; 2]) -> [f32; 1] {
        [y * dy]
    }
}

#[derive(Clone, Copy)]
struct SoftmaxBack(f32);
impl Map<2> for SoftmaxBack {
    #[inline(always)]
    fn at(self, [y, dy]: [f32; 2]) -> f32 {
        y * (dy - self.0)
    }
}

/// Rows of `n` elements, one behind the other.
struct SoftmaxRows {
    y: *const f32,
    dy: *const f32,
    to: *mut f32,
    rows: Range<usize>,
    n: usize,
}

impl Loop for SoftmaxRows {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let n = self.n;
        for r in self.rows {
            // SAFETY: r is a row of all three.
            unsafe {
                let (y, dy) = (self.y.add(r * n), self.dy.add(r * n));
                let [along] = sums(Product, [y, dy], n);
                map(SoftmaxBack(along as f32), [y, dy], self.to.add(r * n), n);
            }
        }
    }
}

impl Compute for SoftmaxGrad {
    const NAME: &'static str = "SoftmaxGrad";
    const OPERANDS: &'static [Type] = &[Type::Float32, Type::Float32];
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0), (1, 0)];

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        Ok(SoftmaxGrad { axis: int(node, "axis")? })
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let (y, dy): (Tensor<f32>, Tensor<f32>) = (call.operand(0)?, call.operand(1)?);
        let (shape, rank) = (&y.shape, y.shape.0.len());
        if dy.shape != *shape {
            return Err(format!("y {shape} and dy {} have different shapes", dy.shape));
        }
        let axis = if self.axis < 0 { self.axis + rank as i64 } else { self.axis };
        let axis = usize::try_from(axis).ok().filter(|a| *a < rank);
        let axis = axis.ok_or_else(|| format!("shape {shape} has no axis {}", self.axis))?;
        let to = &call.result(shape)?;
        let (n, inner) = (shape.0[axis], shape.0[axis + 1..].iter().product::<usize>());
        if shape.numel() == 0 {
            return Ok(());
        }
        let (y, dy) = (&y, &dy);
        if inner == 1 {
            return call.rows(shape.numel() / n, n, |rows| {
                dispatch(SoftmaxRows { y: y.at, dy: dy.at, to: to.0, rows, n });
            });
        }
        // Along another axis the elements of a row lie apart: they are brought together.
        call.rows(shape.numel() / n, n, |rows| {
            let (mut a, mut b) = (vec![0f32; n], vec![0f32; n]);
            for r in rows {
                let start = r / inner * inner * n + r % inner;
                for k in 0..n {
                    // SAFETY: the outer index, k and the inner index are within their sizes.
                    (a[k], b[k]) = unsafe { (*y.at.add(start + k * inner), *dy.at.add(start + k * inner)) };
                }
                dispatch(SoftmaxRows { y: a.as_ptr(), dy: b.as_ptr(), to: a.as_mut_ptr(), rows: 0..1, n });
                for (k, x) in a.iter().enumerate() {
                    // SAFETY: as above; no other row has these elements.
                    unsafe { *to.at(start + k * inner) = *x };
                }
            }
        })
    }
}
