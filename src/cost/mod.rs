//! What a node does: the one table of floating-point operations and bytes.
//!
//! Extraction weighs graphs by it ([`cost`]), sinking counts by it what a rule saves ([`of`]), the compile report and
//! `weftc bench` tell operations and times from it ([`mod@predict`]) for a machine that was measured ([`machine`]).

pub mod machine;
pub mod predict;

use crate::ir::builder::ROWS;
use crate::ir::op::Cost;
use crate::ir::{Dim, Graph, Id, Node, Op, Sym, Type};

pub use machine::Machine;
pub use predict::{Part, Prediction, predict, product_shapes};

/// What computes the floating-point operations of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Nothing but the passes over its operands.
    Pass,
    /// ONNX Runtime's sums along axes.
    Sum,
    /// ONNX Runtime's matrix products.
    MatMul,
    /// Our own.
    Product,
    /// Attention without its scores in memory, forward and backward.
    Attention,
    AttentionGrad,
}

/// What one node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    pub unit: Unit,
    /// Floating-point operations of products: two for each multiply-add.
    pub products: u64,
    /// All others: one for each element that is computed.
    pub elements: u64,
    /// Exponentials, logarithms and the like.
    pub functions: u64,
    /// Bytes that are read and written.
    pub bytes: u64,
}

impl Work {
    /// A pass that moves so many bytes.
    const fn moving(bytes: u64) -> Self {
        Work { unit: Unit::Pass, products: 0, elements: 0, functions: 0, bytes }
    }

    pub fn flops(&self) -> u64 {
        self.products.saturating_add(self.elements)
    }
}

/// Sizes by symbol.
pub type Sizes<'a> = &'a dyn Fn(&Sym) -> i64;

/// What a node does at these sizes; `None` for what only a definition may use and no graph may keep.
pub fn work(op: Op, children: &[&Type], result: &Type, sizes: Sizes) -> Option<Work> {
    let at = At(sizes);
    let read = children.iter().map(|t| at.bytes(t)).fold(0, u64::saturating_add);
    let written = at.bytes(result);
    let all = Work::moving(read.saturating_add(written));
    Some(match op {
        Op::Objective | Op::Adapted => return None,
        Op::Tuple => Work::moving(0),
        // Only the selected elements are read.
        Op::Slice | Op::Gather | Op::TakeRows | Op::GatherElements => Work::moving(written.saturating_mul(2)),
        Op::MatMul
        | Op::Gemm
        | Op::FusedMatMul
        | Op::MatMulNBits
        | Op::Product
        | Op::ProductAdd
        | Op::ProductPair
        | Op::ProductPairAdd => {
            let inner = at.inner(op, children);
            let unit = if own_product(op) { Unit::Product } else { Unit::MatMul };
            Work { unit, products: multiply_adds(at.elements(result).saturating_mul(inner)), ..all }
        }
        // x has as many rows as the matrices have columns; every matrix is read, none is copied.
        Op::GatherMatMul => {
            let products = multiply_adds(at.elements(result).saturating_mul(at.axis(children.get(2)?, 2)));
            Work { unit: Unit::Product, products, ..all }
        }
        Op::GatherMatMulGrad => {
            let products = multiply_adds(at.elements(children.first()?).saturating_mul(at.axis(children.get(1)?, 2)));
            Work { unit: Unit::Product, products, ..all }
        }
        Op::Attention
        | Op::AttentionBias
        | Op::TokenAttention
        | Op::TokenAttentionBias
        | Op::RowAttention
        | Op::RowAttentionBias
        | Op::AttentionProbs
        | Op::AttentionProbsBias => {
            let (q, k) = (children.first()?, children.get(1)?);
            let probabilities = matches!(op, Op::AttentionProbs | Op::AttentionProbsBias);
            let heads_first = probabilities || matches!(op, Op::Attention | Op::AttentionBias);
            let scores = at.scores(q, k, heads_first);
            let values = if probabilities { 0 } else { at.axis(result, 1) };
            // The scores are written by the product and once more by the softmax.  A pass more where heads come by groups,
            // [B, K, G, L, d]: heads in one axis, which later rules know, are chosen of two equal forms.
            let passes = if q.shape().len() > 4 { 3 } else { 2 };
            let traffic = scores.saturating_mul(passes * element_size(q));
            let products = multiply_adds(scores.saturating_mul(at.axis(q, 1).saturating_add(values)));
            let result = if values > 0 { written } else { 0 };
            let bytes = read.saturating_add(result).saturating_add(traffic);
            Work { unit: Unit::Attention, products, elements: scores, functions: scores, bytes }
        }
        Op::OrtAttention => {
            let (q, k, v, heads) = (children.first()?, children.get(1)?, children.get(2)?, children.get(3)?);
            let pairs = at.elements(q).checked_div(at.axis(q, 1)).unwrap_or(0).saturating_mul(at.axis(k, 2));
            let scores = pairs.saturating_mul(heads.lit()?.int().map_or(1, |n| at.size(n)));
            let products = multiply_adds(pairs.saturating_mul(at.axis(q, 1).saturating_add(at.axis(v, 1))));
            Work { unit: Unit::Attention, products, elements: scores, functions: scores, ..all }
        }
        // Scores and their cotangents, and the cotangents of queries, keys and values: five products.
        Op::AttentionGrad
        | Op::AttentionBiasGrad
        | Op::TokenAttentionGrad
        | Op::TokenAttentionBiasGrad
        | Op::RowAttentionGrad
        | Op::RowAttentionBiasGrad => {
            let (q, k) = (children.get(1)?, children.get(2)?);
            let scores = at.scores(q, k, matches!(op, Op::AttentionGrad | Op::AttentionBiasGrad));
            let products = multiply_adds(scores.saturating_mul(at.axis(q, 1)).saturating_mul(5));
            Work { unit: Unit::AttentionGrad, products, elements: scores, functions: scores, ..all }
        }
        // Logits of a block of columns at a time: one product, and a second one with the weight's rows or the hidden ones.
        Op::HeadEntropy | Op::HeadLoss | Op::HeadLogits | Op::HeadSums | Op::HeadExpect => {
            let products = if matches!(op, Op::HeadLoss | Op::HeadExpect) { 2 } else { 1 };
            at.head(op, children, 0, products, all)?
        }
        Op::HeadGradZ | Op::HeadGradW | Op::HeadGradB => {
            at.head(op, children, 1, if op == Op::HeadGradW { 2 } else { 1 }, all)?
        }
        // w + a b is one product of the factors.
        Op::WeightNorm => {
            let (w, a) = (children.first()?, children.get(1)?);
            let elements = at.elements(w);
            Work {
                unit: Unit::MatMul,
                products: multiply_adds(elements.saturating_mul(at.axis(a, 1))),
                elements,
                ..all
            }
        }
        // Parameter and state are written too; the result is a tuple.
        Op::AdamW | Op::Sgd => {
            let changed = if op == Op::AdamW { 3 } else { 2 };
            let p = children.first()?;
            let bytes = read.saturating_add(at.bytes(p).saturating_mul(changed));
            Work { elements: at.elements(p), bytes, ..all }
        }
        _ => match op.row().cost {
            Cost::Free => Work::moving(0),
            Cost::Move | Cost::Fused | Cost::Matmul => {
                let widest = children.iter().map(|t| at.elements(t)).chain([at.elements(result)]).max().unwrap_or(0);
                let functions = widest * functions(op);
                let unit = if matches!(op, Op::Sum | Op::Mean | Op::ReduceMax) { Unit::Sum } else { Unit::Pass };
                Work { unit, elements: if moves(op) { 0 } else { widest }, functions, ..all }
            }
        },
    })
}

/// How many exponentials, logarithms and the like an element takes.
fn functions(op: Op) -> u64 {
    match op {
        Op::Exp | Op::Log | Op::Sigmoid | Op::Tanh | Op::Erf | Op::Pow | Op::Sin | Op::Cos | Op::Softplus => 1,
        Op::Softmax | Op::Silu | Op::SiluGrad | Op::Swiglu | Op::SwigluGrad | Op::SwigluGradU => 1,
        Op::TokenEntropy | Op::WeightedCrossEntropy | Op::WeightedCrossEntropyGrad => 1,
        Op::LogitSums | Op::LogitExp | Op::LogitGrad => 1,
        Op::Gelu | Op::GeluTanh => 1,
        Op::GeluGrad | Op::GeluTanhGrad => 2,
        _ => 0,
    }
}

/// Whether elements are only put elsewhere.
fn moves(op: Op) -> bool {
    use Op::*;
    let layout = matches!(op, Transpose | Expand | Concat | Pad | Unslice | Full | Iota | PutRows | TrueRows);
    layout || matches!(op, Cast | Where | ShiftLogits | ShiftLogitsGrad | HeadRows)
}

/// What a node of a graph does; `None` for leaves and literals.
pub fn of(graph: &Graph, id: Id, sizes: Sizes) -> Option<Work> {
    use crate::ir::Builder;
    let Node::Op(op, children) = graph.node(id) else { return None };
    let types: Vec<&Type> = children.iter().map(|c| graph.type_of(*c)).collect();
    work(*op, &types, graph.type_of(id), sizes)
}

/// Launching any kernel costs as much as this much traffic; it makes fewer nodes better among equals.
const LAUNCH: u64 = 4096;

/// A node that moves no data still has to be dispatched.
const DISPATCH: u64 = LAUNCH / 8;

/// Floating-point operations that a core does while it moves one byte: some 450 GFLOP/s beside 25 GB/s.
const FLOPS_PER_BYTE: u64 = 16;

/// A batch has some sequences, ...
const BATCH: i64 = 8;

/// ... some of their tokens are looked at by themselves: few enough that these are always fewer than all, ...
const TAKEN: i64 = 32;

/// ... and every other unknown size is a length in tokens.
const LENGTH: i64 = 512;

/// What extraction charges for a node: an integer estimate of its time, in bytes of memory traffic.  It takes no
/// measurement, so that a model compiles to the same bytes on every machine.
pub fn cost(op: Op, children: &[&Type], result: &Type) -> Option<u64> {
    let work = work(op, children, result, &assumed)?;
    match op {
        Op::Tuple => return Some(0),
        _ if op.row().cost == Cost::Free => return Some(DISPATCH),
        _ => {}
    }
    let products = work.products / FLOPS_PER_BYTE;
    // Measured: our own is faster by an eighth and more.
    // Codes are multiplied as they are: the dense weight need not live from the forward part to the backward one.
    let saved = match op {
        _ if own_product(op) => products / 8,
        Op::MatMulNBits => products / 4,
        _ => 0,
    };
    Some(work.bytes.saturating_add(products - saved).saturating_add(LAUNCH))
}

fn own_product(op: Op) -> bool {
    matches!(op, Op::Product | Op::ProductAdd | Op::ProductPair | Op::ProductPairAdd)
}

fn assumed(symbol: &Sym) -> i64 {
    match symbol.as_str() {
        rows if rows.starts_with(ROWS) => TAKEN,
        batch if batch.starts_with("batch") => BATCH,
        _ => LENGTH,
    }
}

fn multiply_adds(n: u64) -> u64 {
    n.saturating_mul(2)
}

fn is_one(t: &Type) -> bool {
    t.lit().and_then(|l| l.int()).is_some_and(|d| d.is(1))
}

fn element_size(t: &Type) -> u64 {
    t.tensor().map_or(0, |t| t.dtype.size() as u64)
}

/// Types at some sizes.
struct At<'a>(Sizes<'a>);

impl At<'_> {
    fn size(&self, dim: &Dim) -> u64 {
        dim.eval(&|s| Some((self.0)(s))).and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
    }

    /// The size of the `k`-th axis from the end, counted from 1.
    fn axis(&self, t: &Type, k: usize) -> u64 {
        t.shape().iter().rev().nth(k - 1).map_or(1, |d| self.size(d))
    }

    /// The size that a product is summed over.
    fn inner(&self, op: Op, children: &[&Type]) -> u64 {
        match (op, children) {
            (Op::Gemm | Op::FusedMatMul | Op::Product, [x, _, trans, ..]) if is_one(trans) => self.axis(x, 2),
            (Op::ProductAdd, [x, _, _, trans, ..]) if is_one(trans) => self.axis(x, 2),
            (Op::ProductPair | Op::ProductPairAdd, [x, _, u, ..]) => self.axis(x, 1).saturating_add(self.axis(u, 1)),
            (_, [x, ..]) => self.axis(x, 1),
            _ => 1,
        }
    }

    /// A head whose hidden rows are operand `first`, with so many products over its columns.
    fn head(&self, op: Op, children: &[&Type], first: usize, products: u64, all: Work) -> Option<Work> {
        let (h, b) = (children.get(first)?, children.get(first + 2)?);
        let bound = |t: &Type| t.lit().and_then(|l| l.int()).map(|d| self.size(d));
        let columns = match (op, children) {
            (Op::HeadLogits, _) => self.elements(children.get(3)?),
            (Op::HeadEntropy | Op::HeadLoss, _) => self.elements(b),
            (_, [.., from, to]) => bound(to)?.saturating_sub(bound(from)?),
            _ => return None,
        };
        let logits = self.axis(h, 2).saturating_mul(columns);
        let products = multiply_adds(self.elements(h).saturating_mul(columns).saturating_mul(products));
        Some(Work { unit: Unit::Product, products, elements: logits, functions: logits, ..all })
    }

    /// How many scores there are between queries and keys, [.. heads length width] or [.. length heads width].
    fn scores(&self, q: &Type, k: &Type, heads_first: bool) -> u64 {
        let keys = self.axis(k, if heads_first { 2 } else { 3 });
        self.elements(q).checked_div(self.axis(q, 1)).unwrap_or(0).saturating_mul(keys)
    }

    fn elements(&self, t: &Type) -> u64 {
        t.shape().iter().map(|d| self.size(d)).fold(1, u64::saturating_mul)
    }

    fn bytes(&self, t: &Type) -> u64 {
        self.elements(t).saturating_mul(element_size(t))
    }
}
