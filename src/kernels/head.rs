//! The head without logits: a block of the vocabulary at a time, whose logits, [rows, `BLOCK`], are all that is held.
//!
//! Entropy needs one product.  The loss takes two, as attention does: the expected row of the weight, which is the
//! cotangent of the hidden rows but for the token's own row, is summed up beside the exponentials and scaled whenever a
//! larger logit appears.  The weight's cotangent needs the finished sum, so its logits are computed again.

use super::broadcast::Shape;
use super::loss::{EntropyTerms, Exp};
use super::operator::{Call, Compute, Known, Target, Tensor, int};
use super::panels::multiply;
use super::product::Matrix;
use super::vector::{Itself, Loop, Plus, Times, dispatch, largest, map, sums};
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;
use std::ops::Range;

/// Columns whose logits are held at a time: enough that a thread's share of a product is large.
const BLOCK: usize = 1024;

/// Columns that a thread takes at a time.
const PART: usize = 64;

/// What is known of a row so far: the largest logit, and sums over all logits relative to it.
#[derive(Clone, Copy)]
struct Row {
    top: f32,
    /// sum e^(z - top)
    sum: f64,
    /// sum (z - top) e^(z - top)
    along: f64,
}

const NOTHING: Row = Row { top: f32::NEG_INFINITY, sum: 0.0, along: 0.0 };

impl Row {
    /// The same relative to a logit that is at least as large; what its sums are scaled by.
    fn raise(&mut self, top: f32) -> f64 {
        if self.top == f32::NEG_INFINITY {
            *self = Row { top, ..NOTHING };
            return 0.0;
        }
        let lower = f64::from(self.top) - f64::from(top);
        let scale = lower.exp();
        *self = Row { top, sum: scale * self.sum, along: scale * (self.along + lower * self.sum) };
        scale
    }
}

/// What rows do with the logits of a block; all addresses are of rows that no other part has.
struct Rows<'a, S> {
    logits: *mut f32,
    columns: usize,
    bias: *const f32,
    rows: Range<usize>,
    state: &'a S,
}

/// What is done with a row's logits once the bias is on them.
trait Step {
    /// # Safety
    /// `z` holds `n` logits of row `r`, from column `from` on, that no other part has; the same goes for the row's state.
    unsafe fn step(&self, r: usize, z: *mut f32, n: usize);
}

impl<S: Step> Loop for Rows<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for r in self.rows {
            // SAFETY: by the promise of who made this.
            unsafe {
                let z = self.logits.add(r * self.columns);
                map(Plus, [z.cast_const(), self.bias], z, self.columns);
                self.state.step(r, z, self.columns);
            }
        }
    }
}

/// A place that threads write disjoint elements of.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);
// SAFETY: as it says.
unsafe impl<T> Send for Shared<T> {}
unsafe impl<T> Sync for Shared<T> {}

/// Sums of exponentials and their products with logits.
struct Entropies(Shared<Row>);
impl Step for Entropies {
    #[inline(always)]
    unsafe fn step(&self, r: usize, z: *mut f32, n: usize) {
        // SAFETY: by the caller's promise.
        unsafe {
            let (row, z) = (&mut *self.0.0.add(r), z.cast_const());
            let top = largest(z, n).max(row.top);
            if top == f32::NEG_INFINITY {
                return;
            }
            row.raise(top);
            let [sum, along] = sums(EntropyTerms(top), [z], n);
            row.sum += sum;
            row.along += along;
        }
    }
}

/// Logits become exponentials; what was summed up before is scaled to them.
struct Expectations {
    rows: Shared<Row>,
    /// [rows, width]
    sums: Shared<f32>,
    width: usize,
}
impl Step for Expectations {
    #[inline(always)]
    unsafe fn step(&self, r: usize, z: *mut f32, n: usize) {
        // SAFETY: by the caller's promise.
        unsafe {
            let row = &mut *self.rows.0.add(r);
            let top = largest(z, n).max(row.top);
            if top == f32::NEG_INFINITY {
                z.write_bytes(0, n);
                return;
            }
            let scale = row.raise(top) as f32;
            if scale != 1.0 {
                let own = self.sums.0.add(r * self.width);
                map(Times(scale), [own.cast_const()], own, self.width);
            }
            map(Exp(top), [z.cast_const()], z, n);
            row.sum += sums(Itself, [z.cast_const()], n)[0];
        }
    }
}

/// Logits become their cotangents, g (e^(z - log sum e^z) - onehot).
struct Cotangents<'a> {
    g: &'a [f32],
    lse: &'a [f32],
    tokens: &'a [i64],
    from: usize,
}
impl Step for Cotangents<'_> {
    #[inline(always)]
    unsafe fn step(&self, r: usize, z: *mut f32, n: usize) {
        // SAFETY: by the caller's promise.
        unsafe {
            let g = self.g[r];
            if g == 0.0 {
                z.write_bytes(0, n);
                return;
            }
            map(Exp(self.lse[r]), [z.cast_const()], z, n);
            if let Some(own) = usize::try_from(self.tokens[r]).ok().and_then(|x| x.checked_sub(self.from))
                && own < n
            {
                *z.add(own) -= 1.0;
            }
            map(Times(g), [z.cast_const()], z, n);
        }
    }
}

/// Rows h [n d], weight and bias.
struct Head {
    n: usize,
    d: usize,
    vocabulary: usize,
    h: Matrix,
    /// [d V], however it lies.
    w: Matrix,
    bias: Tensor<f32>,
}

impl Head {
    /// Operands `first`, `first + 1` and `first + 2`.
    fn new(call: &Call<'_>, first: usize, trans: bool) -> Result<Self, String> {
        let [h, w, bias]: [Tensor<f32>; 3] = [call.operand(first)?, call.operand(first + 1)?, call.operand(first + 2)?];
        let ([n, d], [rows, width], [v]) = (&h.shape.0[..], &w.shape.0[..], &bias.shape.0[..]) else {
            return Err(format!("rows {}, a head {} and a bias {}", h.shape, w.shape, bias.shape));
        };
        if (if trans { [*v, *d] } else { [*d, *v] }) != [*rows, *width] {
            return Err(format!("rows {} and the bias {} do not fit the head {}", h.shape, bias.shape, w.shape));
        }
        let (n, d, vocabulary) = (*n, *d, *v);
        let (h, w) = (Matrix::new(h.at, d, false), Matrix::new(w.at, *width, trans));
        Ok(Head { n, d, vocabulary, h, w, bias })
    }

    /// Calls `then` behind every block, with its columns and what `step` made of its logits.
    fn blocks<S: Step + Sync>(
        &self,
        call: &Call<'_>,
        step: impl Fn(usize) -> S,
        mut then: impl FnMut(Range<usize>, Matrix) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut scratch = vec![0f32; self.n * BLOCK.min(self.vocabulary)];
        let logits = Target(scratch.as_mut_ptr());
        for from in (0..self.vocabulary).step_by(BLOCK) {
            let columns = BLOCK.min(self.vocabulary - from);
            // SAFETY: the block lies within the weight, its logits within the scratch.
            unsafe {
                let sizes = [self.n, self.d, columns];
                multiply(Some(call), sizes, self.h, self.w.from(0, from), (logits, columns), 1.0, None)?;
            }
            let state = &step(from);
            call.rows(self.n, columns, |rows| {
                // SAFETY: the bias reaches to the block's end.
                let (logits, bias) = unsafe { (logits.at(0), self.bias.at.add(from)) };
                dispatch(Rows { logits, columns, bias, rows, state });
            })?;
            then(from..from + columns, Matrix::new(logits.0, columns, false))?;
        }
        Ok(())
    }
}

/// The entropy of softmax(h w + b) where a row is an answer's, 0 elsewhere.
pub struct HeadEntropy {
    trans: bool,
}

impl Compute for HeadEntropy {
    const NAME: &'static str = "HeadEntropy";
    const OPERANDS: &'static [Type] = &[Type::Float32, Type::Float32, Type::Float32, Type::Bool];
    const SHAPE: Known = Known::Nothing;

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        Ok(HeadEntropy { trans: int(node, "trans")? != 0 })
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let (head, answer): (Head, Tensor<bool>) = (Head::new(call, 0, self.trans)?, call.operand(3)?);
        let to = call.result(&Shape(vec![head.n]))?;
        if answer.len() != head.n {
            return Err(format!("{} answers for {} rows", answer.len(), head.n));
        }
        let mut rows = vec![NOTHING; head.n];
        let at = Shared(rows.as_mut_ptr());
        head.blocks(call, |_| Entropies(at), |_, _| Ok(()))?;
        // SAFETY: it is not overwritten.
        let answer = unsafe { answer.values() };
        for (r, row) in rows.iter().enumerate() {
            let entropy = if answer[r] { row.sum.ln() - row.along / row.sum } else { 0.0 };
            // SAFETY: r is a row.
            unsafe { *to.at(r) = entropy as f32 };
        }
        Ok(())
    }
}

/// log sum e^z beside the expected row of the weight, [n, 1 + d].
pub struct HeadExpect {
    trans: bool,
}

impl Compute for HeadExpect {
    const NAME: &'static str = "HeadExpect";
    const OPERANDS: &'static [Type] = &[Type::Float32; 3];
    const SHAPE: Known = Known::Nothing;

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        Ok(HeadExpect { trans: int(node, "trans")? != 0 })
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let head = Head::new(call, 0, self.trans)?;
        let (n, d) = (head.n, head.d);
        let to = call.result(&Shape(vec![n, 1 + d]))?;
        let (mut rows, mut expected) = (vec![NOTHING; n], vec![0f32; n * d]);
        let at = Shared(rows.as_mut_ptr());
        let sums = Target(expected.as_mut_ptr());
        let step = |_| Expectations { rows: at, sums: Shared(sums.0), width: d };
        head.blocks(call, step, |columns, exponentials| {
            // SAFETY: the columns lie within the weight.
            unsafe {
                let w = head.w.transposed().from(columns.start, 0);
                multiply(Some(call), [n, columns.len(), d], exponentials, w, (sums, d), 1.0, Some(sums))
            }
        })?;
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: r is a row of both.
            unsafe {
                let (own, to) = (sums.at(r * d).cast_const(), to.at(r * (1 + d)));
                *to = (f64::from(row.top) + row.sum.ln()) as f32;
                map(Times((1.0 / row.sum) as f32), [own], to.add(1), d);
            }
        }
        Ok(())
    }
}

/// The cotangents of the head's weight (`W`), which lies as the weight does, or of its bias, from g, h, w, b, the tokens
/// and log sum e^z.
pub struct HeadGrad<const W: bool> {
    trans: bool,
}

impl<const W: bool> Compute for HeadGrad<W> {
    const NAME: &'static str = if W { "HeadGradW" } else { "HeadGradB" };
    const OPERANDS: &'static [Type] =
        &[Type::Float32, Type::Float32, Type::Float32, Type::Float32, Type::Int64, Type::Float32];
    const SHAPE: Known = Known::Nothing;

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        Ok(HeadGrad { trans: int(node, "trans")? != 0 })
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let (g, tokens, lse): (Tensor<f32>, Tensor<i64>, Tensor<f32>) =
            (call.operand(0)?, call.operand(4)?, call.operand(5)?);
        let head = Head::new(call, 1, self.trans)?;
        let (n, d, v) = (head.n, head.d, head.vocabulary);
        if [g.len(), tokens.len(), lse.len()] != [n; 3] {
            return Err(format!("{} cotangents, {} tokens and {} sums for {n} rows", g.len(), tokens.len(), lse.len()));
        }
        // SAFETY: they are not overwritten.
        let (g, tokens, lse) = unsafe { (g.values(), tokens.values(), lse.values()) };
        if let Some(token) = tokens.iter().find(|x| !(0..v as i64).contains(*x)) {
            return Err(format!("token {token} is beyond a vocabulary of {v}"));
        }
        let shape = match (W, self.trans) {
            (false, _) => vec![v],
            (true, true) => vec![v, d],
            (true, false) => vec![d, v],
        };
        let to = &call.result(&Shape(shape))?;
        let step = |from| Cotangents { g, lse, tokens, from };
        head.blocks(call, step, |columns, dz| {
            let (from, m) = (columns.start, columns.len());
            // SAFETY: the columns lie within the block and the result.
            unsafe {
                match (W, self.trans) {
                    (true, true) => {
                        let to = Target(to.at(from * d));
                        multiply(Some(call), [m, n, d], dz.transposed(), head.h, (to, d), 1.0, None)
                    }
                    (true, false) => {
                        let to = Target(to.at(from));
                        multiply(Some(call), [d, n, m], head.h.transposed(), dz, (to, v), 1.0, None)
                    }
                    (false, _) => call.split(m, PART, |part| {
                        sum_rows(dz.from(0, part.start), [n, part.len()], to.at(from + part.start));
                    }),
                }
            }
        })
    }
}

/// The sums of the columns of a matrix.
///
/// # Safety
/// The matrix reaches so far, and `to` too.
unsafe fn sum_rows(x: Matrix, [rows, columns]: [usize; 2], to: *mut f32) {
    // SAFETY: by the caller's promise.
    unsafe {
        to.write_bytes(0, columns);
        for r in 0..rows {
            map(Plus, [to.cast_const(), x.from(r, 0).at], to, columns);
        }
    }
}
