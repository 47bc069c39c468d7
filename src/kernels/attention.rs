//! Attention without its scores in memory: a stretch of queries at a time, whose scores against all keys stay in the
//! cache; the backward form computes them again.

use super::broadcast::{Rows, Shape};
use super::operator::{Call, Compute, Known, Target, Tensor, float};
use super::product::{Matrix, multiply};
use super::vector::{Itself, Loop, Map, Terms, Times, dispatch, exp, largest, map, sums};
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;
use std::ops::Range;

/// Queries whose scores are held at a time.
const STRETCH: usize = 128;

#[derive(Clone, Copy)]
struct Exp(f32);
impl Map<1> for Exp {
    #[inline(always)]
    fn at(self, [s]: [f32; 1]) -> f32 {
        exp(s - self.0)
    }
}

#[derive(Clone, Copy)]
struct Plus;
impl Map<2> for Plus {
    #[inline(always)]
    fn at(self, [x, y]: [f32; 2]) -> f32 {
        x + y
    }
}

#[derive(Clone, Copy)]
struct Dot;
impl Terms<2, 1> for Dot {
    #[inline(always)]
    fn at(self, [x, y]: [f32; 2]) -> [f32; 1] {
        [x * y]
    }
}

/// p (d - delta)
#[derive(Clone, Copy)]
struct Cotangent(f32);
impl Map<2> for Cotangent {
    #[inline(always)]
    fn at(self, [p, d]: [f32; 2]) -> f32 {
        p * (d - self.0)
    }
}

/// Scores become probabilities, row by row; 0 where every key of a query is masked.
struct Softmax<'a> {
    scores: *mut f32,
    rows: usize,
    keys: usize,
    /// The bias, and its row that belongs to the first row of the scores.
    bias: Option<(&'a Rows, usize)>,
}
impl Loop for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let n = self.keys;
        for r in 0..self.rows {
            // SAFETY: the scores have so many rows of n elements, the bias one for each.
            unsafe {
                let row = self.scores.add(r * n);
                if let Some((bias, first)) = self.bias {
                    map(Plus, [row.cast_const(), bias.row(first + r)], row, n);
                }
                let top = largest(row, n);
                if top == f32::NEG_INFINITY {
                    row.write_bytes(0, n);
                    continue;
                }
                map(Exp(top), [row.cast_const()], row, n);
                let [sum] = sums(Itself, [row.cast_const()], n);
                map(Times((1.0 / sum) as f32), [row.cast_const()], row, n);
            }
        }
    }
}

/// dP becomes P (dP - sum P dP), row by row.
struct SoftmaxGrad {
    probabilities: *const f32,
    cotangents: *mut f32,
    rows: usize,
    keys: usize,
}
impl Loop for SoftmaxGrad {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let n = self.keys;
        for r in 0..self.rows {
            // SAFETY: both have so many rows of n elements.
            unsafe {
                let (p, d) = (self.probabilities.add(r * n), self.cotangents.add(r * n));
                let [delta] = sums(Dot, [p, d.cast_const()], n);
                map(Cotangent(delta as f32), [p, d.cast_const()], d, n);
            }
        }
    }
}

/// The operands of attention and their sizes: q [.., lq, d], k [.., lk, d], v [.., lk, e].
struct Heads {
    q: Tensor<f32>,
    k: Tensor<f32>,
    v: Tensor<f32>,
    bias: Option<Rows>,
    scale: f32,
    /// Leading places: sequences times heads.
    heads: usize,
    lq: usize,
    lk: usize,
    d: usize,
    e: usize,
}

impl Heads {
    /// Operands `first..`, of which the fourth is a bias if there is one.
    fn new(call: &Call<'_>, first: usize, biased: bool, scale: f32) -> Result<Self, String> {
        let [q, k, v]: [Tensor<f32>; 3] = [call.operand(first)?, call.operand(first + 1)?, call.operand(first + 2)?];
        let sizes = |t: &Tensor<f32>| match t.shape.0.as_slice() {
            [leads @ .., l, d] => Ok((leads.to_vec(), *l, *d)),
            _ => Err(format!("{} has no heads", t.shape)),
        };
        let ((leads, lq, d), (k_leads, lk, k_d), (v_leads, v_l, e)) = (sizes(&q)?, sizes(&k)?, sizes(&v)?);
        if leads != k_leads || leads != v_leads || d != k_d || lk != v_l {
            return Err(format!("queries {}, keys {} and values {} do not go together", q.shape, k.shape, v.shape));
        }
        let bias = if biased {
            let scores = Shape([leads.as_slice(), &[lq, lk]].concat());
            Some(Rows::new(&call.operand(first + 3)?, &scores)?)
        } else {
            None
        };
        Ok(Heads { q, k, v, bias, scale, heads: leads.iter().product(), lq, lk, d, e })
    }

    /// The probabilities of queries `rows` of a head, [rows, lk].
    ///
    /// # Safety
    /// There are such a head and rows, and `to` holds so many elements.
    unsafe fn probabilities(&self, head: usize, rows: Range<usize>, to: *mut f32) {
        let Heads { lq, lk, d, .. } = *self;
        // SAFETY: by the caller's promise.
        unsafe {
            let q = Matrix::new(self.q.at.add((head * lq + rows.start) * d), d, false);
            let k = Matrix::new(self.k.at.add(head * lk * d), d, true);
            multiply([rows.len(), d, lk], q, k, (to, lk), self.scale, false);
        }
        let bias = self.bias.as_ref().map(|b| (b, head * lq + rows.start));
        dispatch(Softmax { scores: to, rows: rows.len(), keys: lk, bias });
    }

    fn stretches(&self) -> impl Iterator<Item = Range<usize>> {
        let lq = self.lq;
        (0..lq).step_by(STRETCH).map(move |start| start..lq.min(start + STRETCH))
    }

    fn forward(&self, call: &Call<'_>) -> Result<(), String> {
        let Heads { lq, lk, e, .. } = *self;
        let leads = &self.q.shape.0[..self.q.shape.0.len() - 2];
        let to = call.result(&Shape([leads, &[lq, e]].concat()))?;
        call.split(self.heads, 1, |heads| {
            let mut scores = vec![0f32; STRETCH.min(lq) * lk];
            for head in heads {
                for rows in self.stretches() {
                    // SAFETY: head and rows are there; the result's rows are this part's alone.
                    unsafe {
                        self.probabilities(head, rows.clone(), scores.as_mut_ptr());
                        let p = Matrix::new(scores.as_ptr(), lk, false);
                        let v = Matrix::new(self.v.at.add(head * lk * e), e, false);
                        multiply([rows.len(), lk, e], p, v, (to.at((head * lq + rows.start) * e), e), 1.0, false);
                    }
                }
            }
        })
    }

    /// dq, dk and dv, one behind the other.
    fn backward(&self, call: &Call<'_>) -> Result<(), String> {
        let dy: Tensor<f32> = call.operand(0)?;
        let Heads { lq, lk, d, e, heads, scale, .. } = *self;
        if dy.len() != heads * lq * e {
            return Err(format!("the cotangent {} is not as large as the result", dy.shape));
        }
        let (dk, dv) = (heads * lq * d, heads * (lq + lk) * d);
        let dy = Matrix::new(dy.at, e, false);
        let to: Target = call.result(&Shape(vec![dv + heads * lk * e]))?;
        call.split(heads, 1, |part| {
            let size = STRETCH.min(lq) * lk;
            let mut scratch = vec![0f32; 2 * size];
            let (p_at, s_at) = scratch.split_at_mut(size);
            for head in part {
                for rows in self.stretches() {
                    let (m, first) = (rows.len(), rows.start == 0);
                    // SAFETY: head and rows are there; the results of a head are this part's alone.
                    unsafe {
                        self.probabilities(head, rows.clone(), p_at.as_mut_ptr());
                        let dy = dy.from(head * lq + rows.start, 0);
                        let v = Matrix::new(self.v.at.add(head * lk * e), e, true);
                        multiply([m, e, lk], dy, v, (s_at.as_mut_ptr(), lk), 1.0, false);
                        let p = Matrix::new(p_at.as_ptr(), lk, false);
                        let dv = to.at(dv + head * lk * e);
                        multiply([lk, m, e], p.transposed(), dy, (dv, e), 1.0, !first);
                        let (probabilities, cotangents) = (p_at.as_ptr(), s_at.as_mut_ptr());
                        dispatch(SoftmaxGrad { probabilities, cotangents, rows: m, keys: lk });
                        let ds = Matrix::new(s_at.as_ptr(), lk, false);
                        let k = Matrix::new(self.k.at.add(head * lk * d), d, false);
                        multiply([m, lk, d], ds, k, (to.at((head * lq + rows.start) * d), d), scale, false);
                        let q = Matrix::new(self.q.at.add((head * lq + rows.start) * d), d, false);
                        let dk = to.at(dk + head * lk * d);
                        multiply([lk, m, d], ds.transposed(), q, (dk, d), scale, !first);
                    }
                }
                if lq == 0 {
                    // SAFETY: as above.
                    unsafe {
                        to.at(dk + head * lk * d).write_bytes(0, lk * d);
                        to.at(dv + head * lk * e).write_bytes(0, lk * e);
                    }
                }
            }
        })
    }
}

macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $operands:literal, $first:literal, $biased:literal, $run:ident) => {
        $(#[$doc])*
        pub struct $name(f32);

        impl Compute for $name {
            const NAME: &'static str = stringify!($name);
            const OPERANDS: &'static [Type] = &[Type::Float32; $operands];
            const SHAPE: Known = Known::Nothing;

            fn new(node: &KernelContext<'_>) -> Result<Self, String> {
                Ok($name(float(node, "scale")?))
            }

            fn compute(&self, call: &Call<'_>) -> Result<(), String> {
                Heads::new(call, $first, $biased, self.0)?.$run(call)
            }
        }
    };
}

kernel!(
    /// softmax(scale q k^T) v
    Attention, 3, 0, false, forward
);
kernel!(
    /// softmax(scale q k^T + bias) v
    AttentionBias, 4, 0, true, forward
);
kernel!(
    /// Its cotangents of q, k and v from dy, q, k, v.
    AttentionGrad, 4, 1, false, backward
);
kernel!(
    /// The same with a bias behind them.
    AttentionBiasGrad, 5, 1, true, backward
);
