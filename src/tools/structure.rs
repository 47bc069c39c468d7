//! What a lifted model consists of, block by block.

use crate::ir::op::Cost;
use crate::ir::{Graph, Id, LeafKind, Node, Op, TensorType};
use rustc_hash::{FxHashMap, FxHashSet};
use serde::Serialize;
use std::collections::BTreeMap;

/// Operators that a lift makes, or that stand for themselves in a transformer; in the order of display.
const COMPOSITES: [Op; 16] = [
    Op::Gather,
    Op::RmsNorm,
    Op::LayerNorm,
    Op::Normalize,
    Op::Rope,
    Op::Attention,
    Op::AttentionBias,
    Op::AttentionProbs,
    Op::AttentionProbsBias,
    Op::Swiglu,
    Op::Silu,
    Op::Gelu,
    Op::GeluTanh,
    Op::Softplus,
    Op::MatMul,
    Op::Add,
];

/// Operators that a lift should have eaten: where one is left, a composite was not recognised.
const LEFT_OVER: [Op; 10] = [
    Op::Softmax,
    Op::Sigmoid,
    Op::Rsqrt,
    Op::Sqrt,
    Op::Reciprocal,
    Op::Mean,
    Op::Erf,
    Op::Tanh,
    Op::Pow,
    Op::RotateHalf,
];

/// Places of a left-over operator that are named.
const PLACES: usize = 3;

/// Blocks of the same structure that follow each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Block {
    /// The names of its parameters begin with this; the first and the last where there are several.
    pub first: String,
    pub last: String,
    pub blocks: usize,
    /// Composites and how often each occurs in one block.
    pub composites: Vec<(String, usize)>,
    /// Other operators of one block.
    pub others: BTreeMap<String, usize>,
}

/// A primitive that is usually part of a composite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeftOver {
    pub operator: String,
    pub count: usize,
    /// The first nodes of the source.
    pub places: Vec<String>,
}

/// What stands before any weight: positions, masks, rotary tables.
const NO_PARAMETER: &str = "without parameters";

/// The blocks of a lifted graph, in the order of the computation.
///
/// A node belongs to the last block among those of its operands; a weight to the block that its name says.
pub fn blocks(graph: &Graph) -> Vec<Block> {
    let mut names: Vec<String> = vec![NO_PARAMETER.into()];
    let mut index: FxHashMap<String, usize> = FxHashMap::default();
    let mut of: FxHashMap<Id, usize> = FxHashMap::default();
    let mut counts: Vec<BTreeMap<Op, usize>> = vec![BTreeMap::new()];
    for id in graph.live() {
        let Node::Op(op, children) = graph.node(id) else { continue };
        let mut block = 0;
        for c in children {
            let own = match graph.as_leaf(*c).map(|l| graph.leaf(l)).filter(|l| l.kind == LeafKind::Param) {
                Some(leaf) => *index.entry(block_of(&leaf.name)).or_insert_with_key(|name| {
                    names.push(name.clone());
                    counts.push(BTreeMap::new());
                    names.len() - 1
                }),
                None => of.get(c).copied().unwrap_or(0),
            };
            block = block.max(own);
        }
        of.insert(id, block);
        *counts[block].entry(*op).or_default() += 1;
    }
    let mut blocks: Vec<Block> = Vec::new();
    for (name, ops) in names.into_iter().zip(counts).filter(|(_, ops)| !ops.is_empty()) {
        let composites: Vec<_> =
            COMPOSITES.iter().filter_map(|op| Some((op.name().to_string(), *ops.get(op)?))).collect();
        let other = ops.iter().filter(|(op, _)| !COMPOSITES.contains(op) && op.row().cost != Cost::Free);
        let others: BTreeMap<_, _> = other.map(|(op, n)| (op.name().to_string(), *n)).collect();
        match blocks.last_mut().filter(|b| b.composites == composites && b.others == others) {
            Some(same) => (same.last, same.blocks) = (name, same.blocks + 1),
            None => blocks.push(Block { first: name.clone(), last: name, blocks: 1, composites, others }),
        }
    }
    blocks
}

/// `model.layers.3.mlp.up.weight` is in `model.layers.3`; a name without a number is its module's.
fn block_of(parameter: &str) -> String {
    let parts: Vec<&str> = parameter.split('.').collect();
    let number = parts.iter().position(|p| !p.is_empty() && p.chars().all(|c| c.is_ascii_digit()));
    let end = number.map_or(parts.len().saturating_sub(1).max(1), |k| k + 1);
    parts[..end].join(".")
}

/// Primitives that a lift should have eaten, and what of attention and rotary positions is spelled with others.
pub fn left_over(graph: &Graph) -> Vec<LeftOver> {
    let live = graph.live();
    let origins = Origins::of(graph, &live);
    let found = |operator: &str, is_left: &dyn Fn(Id) -> bool| {
        let nodes: Vec<Id> = live.iter().copied().filter(|id| is_left(*id)).collect();
        let places = nodes.iter().filter_map(|id| graph.origin.get(id)).take(PLACES).map(|o| o.to_string());
        LeftOver { operator: operator.into(), count: nodes.len(), places: places.collect() }
    };
    let primitives = LEFT_OVER.iter().map(|op| found(op.name(), &|id| graph.node(id).op() == Some(*op)));
    let scores = found("matmul of tokens with tokens", &|id| origins.is_score(graph, id));
    let rotations = found("mul by cos or sin", &|id| origins.is_rotation(graph, id));
    primitives.chain([scores, rotations]).filter(|l| l.count > 0).collect()
}

/// What values are computed from.
struct Origins {
    /// The model's inputs; an index into a table that is computed makes no data of it.
    data: FxHashSet<Id>,
    /// A cosine or a sine of what is not data, arranged in any way.
    angles: FxHashSet<Id>,
}

impl Origins {
    fn of(graph: &Graph, live: &[Id]) -> Self {
        let mut origins = Origins { data: FxHashSet::default(), angles: FxHashSet::default() };
        for &id in live {
            match graph.node(id) {
                Node::Leaf(leaf) if graph.leaf(*leaf).kind == LeafKind::Input => drop(origins.data.insert(id)),
                Node::Op(Op::Gather, c) if graph.as_leaf(c[0]).is_none() && !origins.data.contains(&c[0]) => {}
                Node::Op(op, c) => {
                    let is_data = c.iter().any(|x| origins.data.contains(x));
                    let arranges =
                        op.row().cost == Cost::Free || matches!(op, Op::Concat | Op::Slice | Op::Expand | Op::Neg);
                    if is_data {
                        origins.data.insert(id);
                    } else if matches!(op, Op::Cos | Op::Sin)
                        || arranges && c.iter().any(|x| origins.angles.contains(x))
                    {
                        origins.angles.insert(id);
                    }
                }
                _ => {}
            }
        }
        origins
    }

    /// Scores that no attention has taken: as many for each token as there are tokens.
    fn is_score(&self, graph: &Graph, id: Id) -> bool {
        let Node::Op(Op::MatMul, c) = graph.node(id) else { return false };
        let grows = |t: &TensorType| t.shape.iter().rev().take(2).all(|n| n.known().is_none());
        c.iter().all(|x| self.data.contains(x)) && graph.tensor_type(id).is_some_and(grows)
    }

    /// A rotation that no `rope` has taken.
    fn is_rotation(&self, graph: &Graph, id: Id) -> bool {
        let Node::Op(Op::Mul, c) = graph.node(id) else { return false };
        c.iter().any(|x| self.angles.contains(x)) && c.iter().any(|x| self.data.contains(x))
    }
}

#[cfg(test)]
mod tests {
    use super::{block_of, left_over};
    use crate::ir::text;

    /// Scores through a sigmoid, and rotations of pairs that are no neighbours.
    #[test]
    fn what_is_spelled_with_common_operators_is_told() {
        let model = "(graph g (input ids i64 [b l]) (param e f32 [9 4]) (param t f32 [9 4])
            (let x (gather e ids 0)) (let turned (mul x (cos (slice t 0 0 l 1))))
            (let s (exp (matmul turned (transpose x [0 2 1])))) (output logits (matmul s x)))";
        let graph = text::parse(model).unwrap_or_else(|e| panic!("{}", e.message));
        let told: Vec<_> = left_over(&graph).into_iter().map(|l| (l.operator, l.count)).collect();
        assert_eq!(told, [("matmul of tokens with tokens".to_string(), 1), ("mul by cos or sin".to_string(), 1)]);
    }

    #[test]
    fn the_number_ends_the_block() {
        for (name, block) in [
            ("model.layers.3.mlp.up.weight", "model.layers.3"),
            ("h.0.ln.bias", "h.0"),
            ("transformer.wte.weight", "transformer.wte"),
            ("bias", "bias"),
            ("", ""),
        ] {
            assert_eq!(block_of(name), block);
        }
    }
}
