//! Attention without its scores in memory: some queries at a time, whose scores stay in the cache; the backward form
//! computes them again.
//!
//! Heads stand before tokens, [.., L, d], or behind them as projections leave them, [B, L, H, d].  The first is the second
//! with one head a sequence.

use super::broadcast::{Rows, Shape};
use super::operator::{Call, Compute, Known, Target, Tensor, float};
use super::product::Matrix;
use super::softmax::{Backward, Exponentials, Open, Scale};
use super::tile::{COLUMNS, Multiply, pack, pack_transposed, scratch};
use super::vector::dispatch;
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;
use std::ops::Range;

/// Queries whose scores are held at a time: a multiple of what a product sums up at a time ...
const STRETCH: usize = 96;
const UNIT: usize = 12;
/// ... and the keys that the forward form takes at a time.
const KEYS: usize = 512;

/// Where the heads are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Before tokens: [.., L, d].
    Outside,
    /// Behind tokens: [B, L, H, d].
    Inside,
    /// The same, with queries [n, H, d] of some tokens alone, whose places b L + l are the fourth operand.
    Rows,
}

/// The operands of attention and their sizes.
struct Heads {
    layout: Layout,
    q: Tensor<f32>,
    k: Tensor<f32>,
    v: Tensor<f32>,
    bias: Option<Rows>,
    scale: f32,
    result: Shape,
    /// Queries by sequence: ranges of rows of q.
    queries: Vec<Vec<Range<usize>>>,
    places: Option<Tensor<i64>>,
    /// Queries of one sequence.
    lq: usize,
    /// Heads of queries, and of keys, each of which serves as many neighbours of those.
    heads: usize,
    shared: usize,
    lk: usize,
    d: usize,
    e: usize,
}

/// Sizes [sequences, tokens, heads, width].
fn sizes(t: &Tensor<f32>, layout: Layout) -> Result<[usize; 4], String> {
    match (t.shape.0.as_slice(), layout) {
        ([leads @ .., l, d], Layout::Outside) => Ok([leads.iter().product(), *l, 1, *d]),
        ([b, l, h, d], _) => Ok([*b, *l, *h, *d]),
        _ => Err(format!("{} has no heads", t.shape)),
    }
}

impl Heads {
    /// Operands `first..`: queries, keys, values, the queries' places where these are some, a bias where there is one.
    fn new(call: &Call<'_>, first: usize, layout: Layout, biased: bool, scale: f32) -> Result<Self, String> {
        let [q, k, v]: [Tensor<f32>; 3] = [call.operand(first)?, call.operand(first + 1)?, call.operand(first + 2)?];
        let ([batch, lk, shared, d], [v_batch, v_l, v_heads, e]) = (sizes(&k, layout)?, sizes(&v, layout)?);
        let apart = || format!("queries {}, keys {} and values {} do not go together", q.shape, k.shape, v.shape);
        let places = if layout == Layout::Rows { Some(call.operand::<i64>(first + 3)?) } else { None };
        let (lq, heads, queries) = match (&places, q.shape.0.as_slice()) {
            (Some(places), &[n, heads, q_d]) if [n, q_d] == [places.len(), d] => {
                (lk, heads, by_sequence(places, batch, lk)?)
            }
            (Some(_), _) => return Err(apart()),
            (None, _) => {
                let [q_batch, lq, heads, q_d] = sizes(&q, layout)?;
                if [q_batch, q_d] != [batch, d] {
                    return Err(apart());
                }
                (lq, heads, (0..batch).map(|b| std::iter::once(b * lq..(b + 1) * lq).collect()).collect())
            }
        };
        let leads = |t: &Tensor<f32>| t.shape.0.split_last_chunk::<2>().map(|(leads, _)| leads.to_vec());
        let outside = layout != Layout::Outside || leads(&q) == leads(&k) && leads(&q) == leads(&v);
        let serve = heads.checked_rem(shared).map_or(heads == 0, |rest| rest == 0);
        if [v_batch, v_l, v_heads] != [batch, lk, shared] || !outside || !serve {
            return Err(apart());
        }
        let mut result = q.shape.clone();
        result.0.pop();
        result.0.push(e);
        let bias = if biased {
            let leads = if layout == Layout::Outside { leads(&q).unwrap_or_default() } else { vec![batch, heads] };
            let bias = call.operand(first + 3 + usize::from(places.is_some()))?;
            Some(Rows::new(&bias, &Shape([leads.as_slice(), &[lq, lk]].concat()))?)
        } else {
            None
        };
        Ok(Heads { layout, q, k, v, bias, scale, result, queries, places, lq, heads, shared, lk, d, e })
    }

    /// Stretches of the queries of sequence `b`, of at most [`STRETCH`].
    fn stretches(&self, b: usize) -> impl Iterator<Item = Range<usize>> {
        self.queries[b].iter().flat_map(move |all| {
            let part = all.len().div_ceil(all.len().div_ceil(STRETCH).max(1)).next_multiple_of(UNIT);
            let all = all.clone();
            all.clone().step_by(part).map(move |start| start..all.end.min(start + part))
        })
    }

    /// Rows of a head in q, or in what has its layout: those from `row` on, of `width` elements.
    ///
    /// # Safety
    /// There are such rows.
    unsafe fn query(&self, of: *const f32, head: usize, row: usize, width: usize) -> Matrix {
        // SAFETY: by the caller's promise.
        let at = unsafe { of.add((row * self.heads + head) * width) };
        Matrix::new(at, self.heads * width, false)
    }

    /// The bias of query `row` against all keys.
    fn bias(&self, b: usize, head: usize, row: usize) -> Option<*const f32> {
        let place = self.places.as_ref().map_or(row, |places| {
            // SAFETY: there is a place for each row, and nothing writes them.
            unsafe { *places.at.add(row) as usize }
        });
        // SAFETY: `by_sequence` has seen that there is such a place.
        self.bias.as_ref().map(|bias| unsafe { bias.row((b * self.heads + head) * self.lq + place % self.lq) })
    }

    /// From the first to the last key that any of these queries sees, in whole [`COLUMNS`]: between a row's other samples,
    /// beyond a window or behind the last token nothing is computed.
    fn seen(&self, b: usize, head: usize, rows: &Range<usize>) -> Range<usize> {
        let mut seen = self.lk..0;
        for row in rows.clone() {
            let Some(bias) = self.bias(b, head, row) else { return 0..self.lk };
            let open = dispatch(Open { bias, keys: self.lk });
            seen = seen.start.min(open.start)..seen.end.max(open.end);
        }
        seen.start.min(seen.end)..seen.end
    }

    fn forward(&self, call: &Call<'_>) -> Result<(), String> {
        let to = call.result(&self.result)?;
        call.split(self.queries.len() * self.heads, 1, |part| {
            // SAFETY: the result's rows of a head are this part's alone.
            part.for_each(|k| unsafe { self.forward_head(k / self.heads, k % self.heads, to) });
        })
    }

    /// # Safety
    /// There are such a sequence and head, whose rows of the result nobody else writes.
    unsafe fn forward_head(&self, b: usize, head: usize, to: Target) {
        let Heads { lk, d, e, heads, shared, .. } = *self;
        let served_by = head / (heads / shared);
        let (wide, block, ew) = (wide(lk), wide(lk.min(KEYS)), e.next_multiple_of(COLUMNS));
        scratch([d * wide, lk * ew, STRETCH * block, STRETCH, STRETCH], |[kt, v, scores, tops, sums]| {
            // SAFETY: by the caller's promise; scratch has the sizes that are read and written.
            unsafe {
                pack_transposed(self.key(b, served_by), shared * d, lk, d, kt, wide);
                pack(self.value(b, served_by), shared * e, lk, e, v, ew);
                for rows in self.stretches(b) {
                    let m = rows.len();
                    let q = self.query(self.q.at, head, rows.start, d);
                    let to = (to.at((rows.start * heads + head) * e), heads * e);
                    let seen = self.seen(b, head, &rows);
                    for start in seen.clone().step_by(KEYS) {
                        let (n, further) = (KEYS.min(seen.end - start), start > seen.start);
                        let (y, at) = ((kt.add(start).cast_const(), wide), (scores, block));
                        Multiply { sizes: [m, d, n], x: q, y, to: at, scale: self.scale, add: false }.run();
                        let bias = |r: usize| self.bias(b, head, rows.start + r).map(|at| at.add(start));
                        let before = further.then_some((to.0, to.1, e));
                        dispatch(Exponentials { scores: at, rows: m, keys: n, bias, tops, sums, before });
                        let (x, y) = (Matrix::new(scores, block, false), (v.add(start * ew).cast_const(), ew));
                        Multiply { sizes: [m, n, e], x, y, to, scale: 1.0, add: further }.run();
                    }
                    if seen.is_empty() {
                        (0..m).for_each(|r| to.0.add(r * to.1).write_bytes(0, e));
                    } else {
                        dispatch(Scale { from: (to.0, to.1), to, rows: m, n: e, sums });
                    }
                }
            }
        });
    }

    /// The first key of a head, and below its first value.
    ///
    /// # Safety
    /// There are such a sequence and head.
    unsafe fn key(&self, b: usize, head: usize) -> *const f32 {
        // SAFETY: by the caller's promise.
        unsafe { self.k.at.add((b * self.lk * self.shared + head) * self.d) }
    }

    /// # Safety
    /// There are such a sequence and head.
    unsafe fn value(&self, b: usize, head: usize) -> *const f32 {
        // SAFETY: by the caller's promise.
        unsafe { self.v.at.add((b * self.lk * self.shared + head) * self.e) }
    }

    /// dq, dk and dv, flat: three results, or one behind the other.
    fn backward(&self, call: &Call<'_>) -> Result<(), String> {
        let dy: Tensor<f32> = call.operand(0)?;
        if dy.shape != self.result {
            return Err(format!("the cotangent {} is not as large as the result {}", dy.shape, self.result));
        }
        let sizes = [&self.q, &self.k, &self.v].map(Tensor::len);
        let to = if self.layout == Layout::Outside {
            let to = call.result(&Shape(vec![sizes.iter().sum()]))?;
            // SAFETY: the result has as many elements.
            [0, sizes[0], sizes[0] + sizes[1]].map(|start| Target(unsafe { to.at(start) }))
        } else {
            let part = |k: usize| call.result_of(k, &Shape(vec![sizes[k]]));
            [part(0)?, part(1)?, part(2)?]
        };
        let dy = &dy;
        call.split(self.queries.len() * self.shared, 1, |part| {
            // SAFETY: the results of a head of keys, and of the heads it serves, are this part's alone.
            part.for_each(|k| unsafe { self.backward_head(k / self.shared, k % self.shared, dy, to) });
        })
    }

    /// Of a head of keys, with all heads of queries that it serves.
    ///
    /// # Safety
    /// There are such a sequence and head, whose rows of the results nobody else writes.
    unsafe fn backward_head(&self, b: usize, serving: usize, cotangent: &Tensor<f32>, [dq, dk, dv]: [Target; 3]) {
        let Heads { lk, d, e, heads, shared, scale, .. } = *self;
        let (wide, [dw, ew]) = (wide(lk), [d, e].map(|n| n.next_multiple_of(COLUMNS)));
        // What a product reads or adds to again and again is packed: rows of many heads share places of the cache.
        let (scores, [kt, vt, k, dk_sum, dv_sum]) = (STRETCH * wide, [d * wide, e * wide, lk * dw, lk * d, lk * e]);
        let sizes = [kt, vt, k, dk_sum, dv_sum, scores, scores, STRETCH * dw, STRETCH * ew, STRETCH, STRETCH];
        let group = heads / shared;
        let served =
            (serving * group..(serving + 1) * group).flat_map(|head| self.stretches(b).map(move |rows| (head, rows)));
        scratch(sizes, |[kt, vt, k, dk_sum, dv_sum, p, ds, q, dy, tops, sums]| {
            // SAFETY: by the caller's promise; scratch has the sizes that are read and written.
            unsafe {
                pack_transposed(self.key(b, serving), shared * d, lk, d, kt, wide);
                pack_transposed(self.value(b, serving), shared * e, lk, e, vt, wide);
                pack(self.key(b, serving), shared * d, lk, d, k, dw);
                let multiply = |sizes, x, y: (*mut f32, usize), to, scale, add| {
                    Multiply { sizes, x, y: (y.0.cast_const(), y.1), to, scale, add }.run();
                };
                dk_sum.write_bytes(0, lk * d);
                dv_sum.write_bytes(0, lk * e);
                for (head, rows) in served {
                    let m = rows.len();
                    let seen = self.seen(b, head, &rows);
                    let (n, start) = (seen.len(), seen.start);
                    let [kt, vt] = [kt, vt].map(|at| (at.add(start), wide));
                    let q_rows = self.query(self.q.at, head, rows.start, d);
                    let dy_rows = self.query(cotangent.at, head, rows.start, e);
                    pack(q_rows.at, q_rows.row, m, d, q, dw);
                    pack(dy_rows.at, dy_rows.row, m, e, dy, ew);
                    multiply([m, d, n], Matrix::new(q, dw, false), kt, (p, wide), scale, false);
                    let bias = |r: usize| self.bias(b, head, rows.start + r).map(|at| at.add(start));
                    let before = None;
                    dispatch(Exponentials { scores: (p, wide), rows: m, keys: n, bias, tops, sums, before });
                    multiply([m, e, n], Matrix::new(dy, ew, false), vt, (ds, wide), 1.0, false);
                    dispatch(Backward { exponentials: p, cotangents: ds, width: wide, rows: m, keys: n, sums });
                    dispatch(Scale { from: (dy, ew), to: (dy, ew), rows: m, n: e, sums });
                    let [p, ds] = [p, ds].map(|at| Matrix::new(at, wide, false));
                    let dq = (dq.at((rows.start * heads + head) * d), heads * d);
                    multiply([m, n, d], ds, (k.add(start * dw), dw), dq, scale, false);
                    multiply([n, m, d], ds.transposed(), (q, dw), (dk_sum.add(start * d), d), scale, true);
                    multiply([n, m, e], p.transposed(), (dy, ew), (dv_sum.add(start * e), e), 1.0, true);
                }
                for (sum, to, n) in [(dk_sum, dk, d), (dv_sum, dv, e)] {
                    for r in 0..lk {
                        let to = to.at(((b * lk + r) * shared + serving) * n);
                        to.copy_from_nonoverlapping(sum.add(r * n), n);
                    }
                }
            }
        });
    }
}

/// The width of a row of scores: readable as a factor, and not a power of 2, whose multiples share places of the cache.
fn wide(keys: usize) -> usize {
    keys.next_multiple_of(COLUMNS) + 16
}

/// Ranges of rows by the sequence that their places lie in.
fn by_sequence(places: &Tensor<i64>, batch: usize, length: usize) -> Result<Vec<Vec<Range<usize>>>, String> {
    // SAFETY: nothing writes an operand here.
    let places = unsafe { places.values() };
    let mut queries: Vec<Vec<Range<usize>>> = vec![vec![]; batch];
    for (row, &place) in places.iter().enumerate() {
        let beyond = || format!("place {place} is beyond {batch} sequences of {length} tokens");
        let b = usize::try_from(place).ok().and_then(|p| p.checked_div(length)).ok_or_else(beyond)?;
        let ranges = queries.get_mut(b).ok_or_else(beyond)?;
        match ranges.last_mut() {
            Some(last) if last.end == row => last.end += 1,
            _ => ranges.push(row..row + 1),
        }
    }
    Ok(queries)
}

macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, [$($operand:ident),*], $first:literal, $layout:ident, $biased:literal, $run:ident
     $(, $results:literal)?) => {
        $(#[$doc])*
        pub struct $name(f32);

        impl Compute for $name {
            const NAME: &'static str = stringify!($name);
            const OPERANDS: &'static [Type] = &[$(Type::$operand),*];
            $(const RESULTS: usize = $results;)?
            const SHAPE: Known = Known::Nothing;

            fn new(node: &KernelContext<'_>) -> Result<Self, String> {
                Ok($name(float(node, "scale")?))
            }

            fn compute(&self, call: &Call<'_>) -> Result<(), String> {
                Heads::new(call, $first, Layout::$layout, $biased, self.0)?.$run(call)
            }
        }
    };
}

kernel!(
    /// softmax(scale q k^T) v
    Attention, [Float32, Float32, Float32], 0, Outside, false, forward
);
kernel!(
    /// softmax(scale q k^T + bias) v
    AttentionBias, [Float32, Float32, Float32, Float32], 0, Outside, true, forward
);
kernel!(
    /// Its cotangents of q, k and v from dy, q, k, v.
    AttentionGrad, [Float32, Float32, Float32, Float32], 1, Outside, false, backward
);
kernel!(
    /// The same with a bias behind them.
    AttentionBiasGrad, [Float32, Float32, Float32, Float32, Float32], 1, Outside, true, backward
);
kernel!(
    /// softmax(scale q k^T) v with heads behind tokens
    TokenAttention, [Float32, Float32, Float32], 0, Inside, false, forward
);
kernel!(
    /// softmax(scale q k^T + bias) v
    TokenAttentionBias, [Float32, Float32, Float32, Float32], 0, Inside, true, forward
);
kernel!(
    /// Its cotangents of q, k and v from dy, q, k, v.
    TokenAttentionGrad, [Float32, Float32, Float32, Float32], 1, Inside, false, backward, 3
);
kernel!(
    /// The same with a bias behind them.
    TokenAttentionBiasGrad, [Float32, Float32, Float32, Float32, Float32], 1, Inside, true, backward, 3
);
kernel!(
    /// softmax(scale q k^T) v for queries of some tokens, whose places are the fourth operand
    RowAttention, [Float32, Float32, Float32, Int64], 0, Rows, false, forward
);
kernel!(
    /// softmax(scale q k^T + bias) v
    RowAttentionBias, [Float32, Float32, Float32, Int64, Float32], 0, Rows, true, forward
);
kernel!(
    /// Its cotangents of q, k and v from dy, q, k, v and places.
    RowAttentionGrad, [Float32, Float32, Float32, Float32, Int64], 1, Rows, false, backward, 3
);
kernel!(
    /// The same with a bias behind them.
    RowAttentionBiasGrad, [Float32, Float32, Float32, Float32, Int64, Float32], 1, Rows, true, backward, 3
);
