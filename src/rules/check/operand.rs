//! Shapes and values of operands that fit an operator and the siblings that are known.

use super::instance::{Fill, Instance};
use super::random::Random;
use crate::ir::{Builder, DType, Graph, Id, Lit, Op};

/// What a variable becomes.
pub enum Wanted {
    Literal(Lit),
    Tensor(DType, Vec<i64>),
}

/// Operators whose operands broadcast, so that one of them may be a number.
pub fn may_be_number(op: Op) -> bool {
    matches!(op, Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Pow | Op::Max | Op::Min | Op::Where)
}

fn shape_of(graph: &Graph, id: Id) -> Vec<i64> {
    graph.type_of(id).shape().iter().map(|d| d.known().unwrap_or(1)).collect()
}

/// Draws operand `k` of `op`; `siblings` are those that are known.
pub fn draw(
    instance: &Instance,
    op: Op,
    k: usize,
    siblings: &[Option<Id>],
    random: &mut Random,
) -> Result<Wanted, String> {
    let graph = &instance.graph;
    let shape = |j: usize| {
        siblings.get(j).copied().flatten().filter(|id| graph.tensor_type(*id).is_some()).map(|id| shape_of(graph, id))
    };
    // The first known tensor decides the type where the operator joins its operands.
    let known = siblings.iter().flatten().find_map(|id| graph.tensor_type(*id));
    let (known, dtype) =
        (known.map(|t| t.shape.iter().map(|d| d.known().unwrap_or(1)).collect::<Vec<_>>()), known.map(|t| t.dtype));
    let float = dtype.filter(|t| t.is_float()).unwrap_or(instance.float);
    let first = shape(0);
    let tensor = |dtype: DType, shape: Vec<i64>| Ok(Wanted::Tensor(dtype, shape));
    let last = |s: &[i64]| s.last().copied().unwrap_or(1);
    let free = |random: &mut Random, low: usize, high: usize| {
        let rank = low + random.below(high - low + 1);
        (0..rank).map(|_| random.size()).collect::<Vec<i64>>()
    };
    match (op, k, first) {
        (Op::Not | Op::And | Op::Or, ..) => tensor(DType::Bool, near(known, random)),
        (Op::Where, 0, _) => tensor(DType::Bool, near(known, random)),
        (Op::Where, _, _) => tensor(instance.float, near(known, random)),
        (Op::MatMul | Op::FusedMatMul | Op::Product, _, _) | (Op::ProductAdd, 0 | 1, _) => {
            let Some(other) = known else { return tensor(float, free(random, 2, 4)) };
            tensor(float, matrix_beside(&other, k, op != Op::MatMul, random)?)
        }
        // As large as the plain product, or the transpose of either gives no instance.
        (Op::ProductAdd, _, Some(x)) => {
            let y = shape(1).unwrap_or_default();
            let leads = |s: &[i64]| s[..s.len().saturating_sub(2)].to_vec();
            let longer = if y.len() > x.len() { leads(&y) } else { leads(&x) };
            let (m, n) = (random.pick(&x[x.len().saturating_sub(2)..]), random.pick(&y[y.len().saturating_sub(2)..]));
            tensor(float, [longer, vec![m, n]].concat())
        }
        (Op::Gemm, _, other) => {
            let other = other.or(known).unwrap_or_else(|| free(random, 2, 2));
            let mut mine = vec![random.pick(&other), random.size()];
            if random.chance(0.5) {
                mine.reverse();
            }
            tensor(float, mine)
        }
        // Matrices [n, a, b], a number for each of [i.., b, c].
        (Op::GatherMatMul, 0, _) => tensor(float, free(random, 3, 3)),
        (Op::GatherMatMul, 1, _) => tensor(DType::I64, free(random, 0, 2)),
        (Op::GatherMatMul, _, Some(w)) => {
            let inner = random.pick(&w[w.len().min(1)..]);
            tensor(float, [shape(1).unwrap_or_default(), vec![inner, random.size()]].concat())
        }
        (Op::GatherMatMulGrad, 0, _) => tensor(float, free(random, 2, 4)),
        (Op::GatherMatMulGrad, k, Some(mut dy)) if dy.len() > 1 => {
            let columns = dy.split_off(dy.len() - 2)[1];
            match k {
                1 => tensor(float, [dy, vec![random.size(), columns]].concat()),
                _ => tensor(DType::I64, dy),
            }
        }
        // Blocks as long as ONNX Runtime takes them.
        (Op::Dequantize | Op::Decode, 0, _) => tensor(DType::U8, vec![random.int(1, 3), random.int(1, 2), 32]),
        (Op::Dequantize | Op::Decode, _, Some(q)) => tensor(instance.float, q[..2].to_vec()),
        (Op::MatMulNBits, 0, _) => tensor(float, [free(random, 1, 2), vec![random.int(1, 40)]].concat()),
        (Op::MatMulNBits, 1, Some(x)) => {
            tensor(DType::U8, vec![random.int(1, 3), (last(&x) as u64).div_ceil(32) as i64, 32])
        }
        (Op::MatMulNBits, _, Some(_)) => tensor(float, shape(1).map(|q| q[..2].to_vec()).unwrap_or_default()),
        (Op::Concat, _, Some(mut s)) if !s.is_empty() => {
            let axis = random.below(s.len());
            s[axis] = random.size();
            tensor(float, s)
        }
        (Op::Gather, 1, _) => tensor(DType::I64, free(random, 0, 2)),
        (Op::GatherElements | Op::ScatterAdd, 1, Some(s)) => {
            tensor(DType::I64, s.iter().map(|n| random.int((*n).min(1), *n)).collect())
        }
        (Op::ScatterAdd, 2, _) => tensor(float, shape(1).unwrap_or_default()),
        (Op::GatherGrad, 1, Some(s)) => tensor(DType::I64, s[..random.below(s.len() + 1)].to_vec()),
        (Op::TrueRows, ..) => tensor(DType::Bool, free(random, 2, 2)),
        (Op::TakeRows, 0, _) => tensor(float, free(random, 2, 4)),
        (Op::TakeRows, 1, Some(s)) if s.len() > 1 => tensor(DType::I64, vec![random.int(0, s[0] * s[1])]),
        (Op::PutRows, 0, _) => tensor(float, free(random, 1, 3)),
        (Op::PutRows, 1, Some(s)) if !s.is_empty() => tensor(DType::I64, s[..1].to_vec()),
        (Op::HeadRows, 1, _) => tensor(DType::I64, vec![random.int(1, 4)]),
        (Op::HeadRows, _, _) => tensor(float, vec![random.int(2, 5); 2]),
        (Op::HeadGradZ | Op::HeadGradW | Op::HeadGradB, 0, _) => tensor(float, vec![random.int(1, 4)]),
        (Op::HeadGradZ | Op::HeadGradW | Op::HeadGradB, k, Some(g)) => {
            let h = shape(1).unwrap_or_else(|| vec![g[0], random.int(2, 5)]);
            tensor(if k == 4 { DType::I64 } else { float }, head_operand(k - 1, &h))
        }
        (Op::HeadEntropy | Op::HeadLoss | Op::HeadLogits | Op::HeadSums | Op::HeadExpect, k, h) => {
            let h = h.unwrap_or_else(|| vec![random.int(1, 4), random.int(2, 5)]);
            let dtype = match (op, k) {
                (Op::HeadEntropy, 3) => DType::Bool,
                (_, 3) => DType::I64,
                _ => float,
            };
            tensor(dtype, head_operand(k, &h))
        }
        (Op::LogitSums, _, _) => tensor(float, vec![random.int(1, 4), random.int(1, 5)]),
        (Op::MergeSums, _, _) => tensor(float, known.unwrap_or_else(|| vec![random.int(1, 4), 3])),
        (Op::MergeExpect, _, _) => tensor(float, known.unwrap_or_else(|| vec![random.int(1, 4), random.int(2, 5)])),
        (Op::LogitExp | Op::LogitGrad, 0, _) => tensor(float, vec![random.int(1, 4), random.int(1, 5)]),
        (Op::LogitExp, 1, Some(z)) => tensor(DType::F32, vec![z[0], 3]),
        (Op::LogitGrad, 2, Some(z)) => tensor(DType::I64, z[..1].to_vec()),
        (Op::LogitGrad, 4, Some(z)) => tensor(DType::I64, z[1..].to_vec()),
        (Op::LogitGrad, _, Some(z)) => tensor(DType::F32, z[..1].to_vec()),
        (Op::BlockExpect, 0, _) => tensor(DType::F32, vec![random.int(1, 4), 3]),
        (Op::BlockExpect, _, Some(s)) => tensor(float, vec![s[0], random.int(1, 5)]),
        (Op::RmsNorm, 1, Some(s)) | (Op::LayerNorm | Op::OrtLayerNorm, 1 | 2, Some(s)) => tensor(float, vec![last(&s)]),
        (Op::RmsNormGrad | Op::LayerNormGrad, 2, Some(s)) => tensor(float, vec![last(&s)]),
        (Op::Rope | Op::RopeGrad, 0, None) => {
            let mut s = free(random, 1, 4);
            if let Some(d) = s.last_mut() {
                *d = random.pick(&[2, 4]);
            }
            tensor(float, s)
        }
        (Op::Rope | Op::RopeGrad, _, Some(s)) => {
            let mut s = s[random.below(s.len())..].to_vec();
            let leads = s.len() - 1;
            s[..leads].iter_mut().for_each(|n| {
                if random.chance(0.3) {
                    *n = 1
                }
            });
            tensor(float, s)
        }
        (Op::RotateHalf, ..) => {
            let mut s = free(random, 1, 4);
            if let Some(d) = s.last_mut() {
                *d = random.pick(&[2, 4]);
            }
            tensor(float, s)
        }
        // dy is drawn first, like queries; then these, keys and values as it needs them.
        (Op::AttentionGrad | Op::AttentionBiasGrad, k, Some(dy)) if dy.len() > 1 => {
            let n = dy.len() - 2;
            let width = |j: usize, axis: usize| shape(j).and_then(|s| s.get(axis).copied());
            let tail = match k {
                1 => [dy[n], random.size()],
                2 => [random.int(1, 4), width(1, n + 1).unwrap_or(1)],
                3 => [width(2, n).unwrap_or(1), dy[n + 1]],
                _ => [dy[n], width(2, n).unwrap_or(1)],
            };
            tensor(float, [&dy[..n], &tail].concat())
        }
        (Op::AttentionGrad | Op::AttentionBiasGrad, ..) => tensor(float, free(random, 2, 4)),
        (Op::ScoreGrad, 1, Some(p)) if p.len() > 1 => tensor(float, [&p[..p.len() - 1], &[random.size()]].concat()),
        (Op::ScoreGrad, 2, Some(p)) if p.len() > 1 => {
            let (leads, width) = (&p[..p.len() - 2], shape(1).map_or(1, |dy| last(&dy)));
            tensor(float, [leads, &[last(&p), width]].concat())
        }
        (Op::ScoreGrad, ..) => tensor(float, free(random, 2, 4)),
        // As many columns as one or two heads divide.
        (Op::OrtAttention, 0, _) => tensor(float, vec![random.size(), random.size(), 4]),
        (Op::OrtAttention, 1, Some(q)) => tensor(float, vec![q[0], random.size(), q[2]]),
        (Op::OrtAttention, _, Some(q)) => tensor(float, vec![q[0], shape(1).map_or(1, |k| k[1]), random.pick(&[2, 4])]),
        // One or two heads.
        // Queries of one to four of six tokens.
        (Op::RowAttention | Op::RowAttentionBias | Op::RowAttentionGrad | Op::RowAttentionBiasGrad, ..) => {
            let q = usize::from(matches!(op, Op::RowAttentionGrad | Op::RowAttentionBiasGrad));
            let mut size =
                |j: usize, axis: usize| shape(j).and_then(|s| s.get(axis).copied()).unwrap_or_else(|| random.int(1, 4));
            match (k + 1).checked_sub(q) {
                Some(1) if q == 1 => tensor(float, vec![size(0, 0), size(0, 1), size(9, 0)]),
                Some(0 | 1) => tensor(float, vec![size(9, 0), size(9, 0), size(9, 0)]),
                Some(2) => tensor(float, vec![2, 3, size(q, 1), size(q, 2)]),
                Some(3) => tensor(float, vec![2, 3, size(q, 1), if q == 1 { size(0, 2) } else { size(9, 0) }]),
                Some(4) => tensor(DType::I64, vec![size(q, 0)]),
                _ => tensor(float, vec![3, 3]),
            }
        }
        (Op::Attention | Op::AttentionBias | Op::AttentionProbs | Op::AttentionProbsBias, k, first) => {
            tensor(float, attention_operand(op, k, first, shape(1), random))
        }
        (Op::Sum | Op::Mean | Op::ReduceMax | Op::CumSum | Op::Softmax | Op::TopkValues | Op::TopkIndices, ..) => {
            tensor(float, free(random, 1, 4))
        }
        (Op::Slice | Op::Pad | Op::Unslice | Op::Gather | Op::GatherElements | Op::ScatterAdd, 0, _) => {
            tensor(float, free(random, 1, 3))
        }
        (
            Op::TokenEntropy
            | Op::WeightedCrossEntropy
            | Op::WeightedCrossEntropyGrad
            | Op::ShiftLogits
            | Op::ShiftLogitsGrad,
            0,
            _,
        ) => tensor(float, vec![random.size(), random.int(1, 4), random.int(1, 5)]),
        (Op::TokenEntropy, _, Some(s)) => tensor(DType::Bool, s[..s.len() - 1].to_vec()),
        (Op::WeightedCrossEntropy | Op::WeightedCrossEntropyGrad, k, Some(s)) => {
            tensor(if k == 1 { DType::I64 } else { float }, s[..s.len() - 1].to_vec())
        }
        (Op::LossCount, 0, _) => tensor(DType::Bool, vec![random.int(1, 4), random.int(1, 5)]),
        (Op::BetaRef | Op::MaskRate | Op::SampleMask | Op::LossWeight | Op::ContextWeight, 0, _) => {
            tensor(float, vec![random.int(1, 4), random.int(1, 5)])
        }
        (Op::MaskRate, 2, Some(s)) => tensor(float, vec![s[0]]),
        (Op::SampleMask, 2, Some(s)) => tensor(float, s),
        (Op::BetaRef | Op::MaskRate | Op::SampleMask | Op::LossWeight | Op::LossCount, _, Some(s)) => {
            tensor(DType::Bool, s)
        }
        (Op::Sgd, 0, _) => tensor(float, free(random, 1, 2)),
        (Op::Sgd, 1..=2, Some(s)) => tensor(float, s),
        (Op::Sgd, ..) => tensor(DType::F64, vec![]),
        (Op::AdamW, 0, _) => tensor(float, free(random, 1, 2)),
        (Op::AdamW, 1..=3, Some(s)) => tensor(float, s),
        (Op::AdamW, ..) => tensor(DType::F64, vec![]),
        // Backward forms: the cotangent and the operands have one shape.
        (
            Op::RmsNormGrad
            | Op::RmsNormGradW
            | Op::RmsNormGradSum
            | Op::LayerNormGrad
            | Op::SiluGrad
            | Op::SwigluGrad
            | Op::SwigluGradU
            | Op::GeluGrad
            | Op::GeluTanhGrad
            | Op::SoftmaxGrad,
            _,
            Some(s),
        ) => tensor(float, s),
        (
            Op::RmsNorm
            | Op::OrtLayerNorm
            | Op::LayerNorm
            | Op::Normalize
            | Op::RmsNormGrad
            | Op::RmsNormGradW
            | Op::RmsNormGradSum
            | Op::LayerNormGrad
            | Op::SoftmaxGrad,
            ..,
        ) => tensor(float, free(random, 1, 4)),
        _ => match known {
            Some(s) => tensor(float, near(Some(s), random)),
            None => tensor(float, free(random, 0, 4)),
        },
    }
}

/// A shape that mostly broadcasts with the sibling's.
fn near(sibling: Option<Vec<i64>>, random: &mut Random) -> Vec<i64> {
    let Some(mut s) = sibling else { return (0..random.below(5)).map(|_| random.size()).collect() };
    if random.chance(0.5) {
        return s;
    }
    if random.chance(0.5) {
        s.drain(..random.below(s.len() + 1));
    }
    for n in &mut s {
        match random.unit() {
            u if u < 0.25 => *n = 1,
            u if u < 0.35 && *n == 1 => *n = random.size(),
            _ => {}
        }
    }
    s
}

/// The other factor of a matrix product; `either` allows its transpose.
fn matrix_beside(other: &[i64], k: usize, either: bool, random: &mut Random) -> Result<Vec<i64>, String> {
    let [leads @ .., rows, columns] = other else { return Err("a factor is no matrix".into()) };
    let inner = match k {
        _ if either => random.pick(&[*rows, *columns]),
        0 => *rows,
        _ => *columns,
    };
    let mut mine = match random.unit() {
        u if u < 0.5 => leads.to_vec(),
        u if u < 0.7 => vec![],
        u if u < 0.85 && leads.len() < 2 => [&[random.size()], leads].concat(),
        _ => near(Some(leads.to_vec()), random),
    };
    let free = random.size();
    mine.extend(if k == 0 { [free, inner] } else { [inner, free] });
    if either && random.chance(0.5) {
        let n = mine.len();
        mine.swap(n - 1, n - 2);
    }
    Ok(mine)
}

/// The shape of a head's operand beside rows `h`: as many columns as these are wide, so that the weight may lie either way.
fn head_operand(k: usize, h: &[i64]) -> Vec<i64> {
    match k {
        0 => h.to_vec(),
        1 => vec![h[1]; 2],
        2 => vec![h[1]],
        _ => vec![h[0]],
    }
}

/// q [.., Lq, D], k [.., Lk, D], v [.., Lk, Dv], bias to [.., Lq, Lk].
fn attention_operand(op: Op, k: usize, q: Option<Vec<i64>>, keys: Option<Vec<i64>>, random: &mut Random) -> Vec<i64> {
    let (Some(q), Some(n)) = (&q, q.as_ref().and_then(|q| q.len().checked_sub(2))) else {
        let rank = random.int(2, 4);
        return (0..rank).map(|_| random.size()).collect();
    };
    let length = |s: &Option<Vec<i64>>| s.as_ref().and_then(|s| s.get(n).copied()).unwrap_or(1);
    let is_bias = k == 3 || (k == 2 && op == Op::AttentionProbsBias);
    let tail = match k {
        1 => [random.int(1, 4), q[n + 1]],
        _ if is_bias => [q[n], length(&keys)],
        _ => [length(&keys), random.size()],
    };
    let shape = [&q[..n], &tail].concat();
    if !is_bias {
        return shape;
    }
    let kept = shape[random.below(n + 1)..].to_vec();
    kept.into_iter().map(|d| if random.chance(0.2) { 1 } else { d }).collect()
}

/// Pairs of operands of which the first must lie within the second: only answers are masked.
pub fn within(op: Op) -> Option<(usize, usize)> {
    match op {
        Op::LossWeight => Some((1, 2)),
        Op::LossCount => Some((0, 1)),
        _ => None,
    }
}

/// What the elements of operand `k` must be; `children` are the node's.
pub fn fill(graph: &Graph, op: Op, k: usize, children: &[Id]) -> Option<Fill> {
    let size = |id: Id, axis: usize| shape_of(graph, id).get(axis).copied();
    let axis = || {
        let attr = graph.type_of(*children.last()?).lit()?.int()?.known()?;
        crate::ir::infer::resolve_axis(attr, shape_of(graph, children[0]).len()).ok()
    };
    match (op, k) {
        (Op::GatherMatMul, 1) => Some(Fill::Index(size(children[0], 0)?)),
        (Op::GatherMatMulGrad, 2) => Some(Fill::Index(graph.type_of(*children.last()?).lit()?.int()?.known()?)),
        (Op::Gather | Op::GatherElements | Op::ScatterAdd, 1) => Some(Fill::Index(size(children[0], axis()?)?)),
        (Op::RowAttention | Op::RowAttentionBias, 3) => Some(Fill::Rows(size(children[1], 0)? * size(children[1], 1)?)),
        (Op::RowAttentionGrad | Op::RowAttentionBiasGrad, 4) => {
            Some(Fill::Rows(size(children[2], 0)? * size(children[2], 1)?))
        }
        (Op::TakeRows, 1) => Some(Fill::Rows(size(children[0], 0)? * size(children[0], 1)?)),
        (Op::PutRows, 1) => {
            let attr = |k: usize| graph.type_of(children[k]).lit()?.int()?.known();
            Some(Fill::Rows(attr(2)? * attr(3)?))
        }
        (Op::GatherGrad, 1) => Some(Fill::Index(graph.type_of(*children.last()?).lit()?.int()?.known()?)),
        (Op::WeightedCrossEntropy | Op::WeightedCrossEntropyGrad, 1) => {
            Some(Fill::Index(shape_of(graph, children[0]).last().copied()?))
        }
        // Columns of a head, whose bias has one number each.
        (Op::HeadLoss | Op::HeadLogits, 3) => Some(Fill::Index(size(children[2], 0)?)),
        (Op::HeadGradZ | Op::HeadGradW | Op::HeadGradB, 4) => Some(Fill::Index(size(children[3], 0)?)),
        (Op::HeadRows, 1) => {
            let trans = graph.type_of(children[2]).lit()?.int()?.known()?;
            Some(Fill::Index(size(children[0], usize::from(trans == 0))?))
        }
        (Op::LogitGrad, 2 | 4) => Some(Fill::Index(size(children[0], 1)?)),
        (Op::BlockExpect, 0) => Some(Fill::Positive),
        (Op::Log | Op::Sqrt | Op::Rsqrt, 0) | (Op::Pow, 0) => Some(Fill::Positive),
        (Op::Reciprocal, 0) | (Op::Div, 1) => Some(Fill::AwayFromZero),
        (Op::MaskRate | Op::Beta | Op::BetaRef, 0) => Some(Fill::Positive),
        (Op::MaskRate | Op::SampleMask, 2) | (Op::SampleMask | Op::LossWeight, 0) => Some(Fill::Unit),
        (Op::AdamW, 3) => Some(Fill::Positive),
        (Op::AdamW, 9) => Some(Fill::Step),
        (Op::Sgd, 3..=7) | (Op::AdamW, 4..=8) => Some(Fill::Unit),
        _ => None,
    }
}
