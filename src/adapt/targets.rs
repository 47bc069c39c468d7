//! Which matrix products of a model are queries, keys, values, outputs, gates and so on: told by what surrounds
//! them, since exporters lose names.

use crate::ir::{Graph, Id, LeafId, LeafKind, Node, Op, blocks};
use std::collections::{BTreeMap, BTreeSet};

/// What a linear layer is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
    Head,
}

impl Kind {
    pub const ALL: [Kind; 8] = [Kind::Q, Kind::K, Kind::V, Kind::O, Kind::Gate, Kind::Up, Kind::Down, Kind::Head];

    pub fn name(self) -> &'static str {
        ["q", "k", "v", "o", "gate", "up", "down", "head"][self as usize]
    }

    pub fn parse(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.name() == name)
    }
}

/// A product `x w` with a weight of the model.
#[derive(Clone, Debug)]
pub struct Linear {
    pub node: Id,
    pub x: Id,
    /// `[in out]`: the weight, or its transpose.
    pub w: Id,
    /// The leaf of the weight, of its codes where it is in few bits.
    pub weight: LeafId,
    /// What the weight is called.
    pub name: String,
    pub in_few_bits: bool,
    pub kinds: BTreeSet<Kind>,
}

/// What layers of attention are called, in PyTorch's own modules and those of published models.
const NAMES: &[(&[Kind], &[&str])] = &[
    (&[Kind::Q], &["q_proj", "query", "q", "wq", "q_lin", "to_q", "query_proj"]),
    (&[Kind::K], &["k_proj", "key", "k", "wk", "k_lin", "to_k", "key_proj"]),
    (&[Kind::V], &["v_proj", "value", "v", "wv", "v_lin", "to_v", "value_proj"]),
    (&[Kind::Q, Kind::K, Kind::V], &["qkv", "qkv_proj", "query_key_value", "Wqkv", "c_attn"]),
    (&[Kind::O], &["o_proj", "out_proj", "wo", "o", "out_lin", "to_out"]),
];

/// Every linear layer of a lifted model, in the order of the computation.  `logits` is the model's result.
pub fn linears(graph: &Graph, logits: Id) -> Vec<Linear> {
    let order = graph.reachable([logits]);
    let mut found: BTreeMap<Id, Linear> = BTreeMap::new();
    let mut users: BTreeMap<Id, Vec<Id>> = BTreeMap::new();
    for &id in &order {
        for c in graph.node(id).children() {
            users.entry(*c).or_default().push(id);
        }
        if let Some(linear) = linear(graph, id) {
            found.insert(id, linear);
        }
    }
    let mut marks: Vec<(Id, Kind)> = Vec::new();
    let sources = sources(graph, &found, &order);
    let back = |from: Id, kind: Kind| -> Vec<(Id, Kind)> {
        sources.get(&from).into_iter().flatten().map(|layer| (*layer, kind)).collect()
    };
    let ahead = |from: Id| forward(graph, &found, &users, from);
    for &id in &order {
        let Node::Op(op, c) = graph.node(id) else { continue };
        match op {
            Op::Attention | Op::AttentionBias => {
                let operands = [(c[0], Kind::Q), (c[1], Kind::K), (c[2], Kind::V)];
                marks.extend(operands.into_iter().flat_map(|(x, kind)| back(x, kind)));
                marks.extend(ahead(id).map(|o| (o, Kind::O)));
            }
            Op::AttentionProbs | Op::AttentionProbsBias => {
                marks.extend([(c[0], Kind::Q), (c[1], Kind::K)].into_iter().flat_map(|(x, kind)| back(x, kind)));
            }
            Op::Softmax => {
                // Attention that no rule lifted: softmax(.. q k^T ..) v.
                let scores = product_below(graph, &found, c[0]);
                let operands = scores.map(|s| [(s[0], Kind::Q), (s[1], Kind::K)]).into_iter().flatten();
                marks.extend(operands.flat_map(|(x, kind)| back(x, kind)));
                if let (Some(_), Some(y)) = (scores, product_above(graph, &users, id)) {
                    marks.extend(back(graph.node(y).children()[1], Kind::V));
                    marks.extend(ahead(y).map(|o| (o, Kind::O)));
                }
            }
            Op::Swiglu => {
                marks.extend([(c[0], Kind::Gate), (c[1], Kind::Up)].into_iter().flat_map(|(x, kind)| back(x, kind)));
                marks.extend(ahead(id).map(|d| (d, Kind::Down)));
            }
            Op::Gelu | Op::GeluTanh | Op::Silu => {
                // gelu(gate) * up, or gelu(up) alone.
                let product = users.get(&id).into_iter().flatten().find(|u| graph.node(**u).op() == Some(Op::Mul));
                let other = product.and_then(|p| graph.node(*p).children().iter().find(|x| **x != id));
                let up = other.map(|x| back(*x, Kind::Up)).unwrap_or_default();
                let kind = if up.is_empty() { Kind::Up } else { Kind::Gate };
                marks.extend(up);
                let down = ahead(id);
                // A dense layer in front of the head is no block's: nothing leads on from it but the head.
                if down.is_some() {
                    marks.extend(back(c[0], kind));
                }
                marks.extend(down.map(|d| (d, Kind::Down)));
            }
            _ => {}
        }
    }
    marks.extend(back(uncapped(graph, logits), Kind::Head));
    // Attention in a form that is not known at all: what its layers are called.
    let told: BTreeSet<Kind> = marks.iter().map(|(_, kind)| *kind).collect();
    let by_name = NAMES.iter().flat_map(|(kinds, names)| kinds.iter().map(move |kind| (*kind, names)));
    let named: Vec<(Id, Kind)> = by_name
        .filter(|(kind, _)| !told.contains(kind))
        .flat_map(|(kind, names)| {
            let fits = |l: &&Linear| names.iter().any(|name| super::matches(name, &l.name));
            found.values().filter(fits).map(move |l| (l.node, kind))
        })
        .collect();
    marks.extend(named);
    for (id, kind) in marks {
        if let Some(linear) = found.get_mut(&id) {
            linear.kinds.insert(kind);
        }
    }
    order.into_iter().filter_map(|id| found.remove(&id)).collect()
}

/// What is under caps and scales of logits, `cap tanh(x / cap)`.
fn uncapped(graph: &Graph, mut id: Id) -> Id {
    let is_number = |id: Id| graph.tensor_type(id).is_none_or(|ty| ty.rank() == 0);
    loop {
        id = match graph.node(id) {
            Node::Op(Op::Tanh | Op::Cast, c) => c[0],
            Node::Op(Op::Mul | Op::Div, c) if is_number(c[1]) => c[0],
            Node::Op(Op::Mul, c) if is_number(c[0]) => c[1],
            _ => return id,
        }
    }
}

/// `x w` with `w` a matrix of the model's, its transpose, or the transpose of one in few bits.
fn linear(graph: &Graph, id: Id) -> Option<Linear> {
    let Node::Op(Op::MatMul, c) = graph.node(id) else { return None };
    let matrix = match graph.node(c[1]) {
        Node::Op(Op::Transpose, t) => t[0],
        _ => c[1],
    };
    let (weight, in_few_bits) = match graph.node(matrix) {
        Node::Op(Op::Dequantize, q) => (graph.as_leaf(q[0])?, true),
        _ => (graph.as_leaf(matrix)?, false),
    };
    let leaf = graph.leaf(weight);
    let is_weight = leaf.kind == LeafKind::Param && leaf.ty.dtype.is_float() && leaf.ty.rank() == 2;
    let name = if in_few_bits { blocks::weight_of(&leaf.name) } else { &leaf.name };
    let found =
        || Linear { node: id, x: c[0], w: c[1], weight, name: name.into(), in_few_bits, kinds: BTreeSet::new() };
    (is_weight || in_few_bits).then(found)
}

/// The linear layer that each value comes from, through what only reshapes, rotates, scales, normalises or repeats; several
/// where heads with layers of their own are put together.
fn sources(graph: &Graph, linears: &BTreeMap<Id, Linear>, order: &[Id]) -> BTreeMap<Id, BTreeSet<Id>> {
    let mut sources: BTreeMap<Id, BTreeSet<Id>> = BTreeMap::new();
    for &id in order {
        if linears.contains_key(&id) {
            sources.insert(id, BTreeSet::from([id]));
            continue;
        }
        let Node::Op(op, c) = graph.node(id) else { continue };
        let through = matches!(
            op,
            Op::Reshape
                | Op::Transpose
                | Op::Expand
                | Op::Slice
                | Op::Gather
                | Op::Concat
                | Op::Cast
                | Op::Rope
                | Op::RmsNorm
                | Op::LayerNorm
                | Op::Normalize
                | Op::Mul
                | Op::Div
                | Op::Add
                | Op::Sub
                | Op::Neg
                | Op::Where
        );
        let mut below = c.iter().filter_map(|x| sources.get(x)).filter(|_| through);
        let found: BTreeSet<Id> = match op {
            Op::Concat => below.flatten().copied().collect(),
            _ => below.next().cloned().unwrap_or_default(),
        };
        if !found.is_empty() {
            sources.insert(id, found);
        }
    }
    sources
}

/// The linear layer that a value goes into, through what only reshapes or scales.
fn forward(graph: &Graph, linears: &BTreeMap<Id, Linear>, users: &BTreeMap<Id, Vec<Id>>, from: Id) -> Option<Id> {
    let mut stack = vec![from];
    let mut seen = BTreeSet::new();
    while let Some(id) = stack.pop() {
        for &user in users.get(&id).into_iter().flatten().rev() {
            if linears.get(&user).is_some_and(|l| l.x == id) {
                return Some(user);
            }
            let through =
                matches!(graph.node(user).op(), Some(Op::Reshape | Op::Transpose | Op::Cast | Op::Mul | Op::Div));
            if through && seen.insert(user) {
                stack.push(user);
            }
        }
    }
    None
}

/// The operands of the product whose scores a softmax takes, through scales, masks and caps.
fn product_below(graph: &Graph, linears: &BTreeMap<Id, Linear>, from: Id) -> Option<[Id; 2]> {
    let mut stack = vec![from];
    let mut seen = BTreeSet::new();
    while let Some(id) = stack.pop() {
        let Node::Op(op, c) = graph.node(id) else { continue };
        match op {
            Op::MatMul if !linears.contains_key(&id) => return Some([c[0], c[1]]),
            Op::Mul | Op::Div | Op::Add | Op::Sub | Op::Where | Op::Tanh | Op::Min | Op::Max => {}
            Op::Cast | Op::Reshape | Op::Expand | Op::Transpose | Op::Slice => {}
            _ => continue,
        }
        if seen.insert(id) {
            stack.extend(c.iter().rev().filter(|x| graph.tensor_type(**x).is_some_and(|t| t.dtype.is_float())));
        }
    }
    None
}

/// The product of probabilities with values.
fn product_above(graph: &Graph, users: &BTreeMap<Id, Vec<Id>>, from: Id) -> Option<Id> {
    let mut stack = vec![from];
    let mut seen = BTreeSet::new();
    while let Some(id) = stack.pop() {
        for &user in users.get(&id).into_iter().flatten().rev() {
            match graph.node(user) {
                Node::Op(Op::MatMul, c) if c[0] == id => return Some(user),
                Node::Op(Op::Where | Op::Cast | Op::Reshape | Op::Mul | Op::Expand, _) if seen.insert(user) => {
                    stack.push(user);
                }
                _ => {}
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    /// The kinds of a model's layers by the names of their weights.
    fn kinds(model: &str) -> Vec<String> {
        let graph = text::parse(model).unwrap_or_else(|e| panic!("{}", e.message));
        let found = linears(&graph, graph.outputs[0].1);
        let told = |l: &Linear| {
            let kinds: Vec<&str> = l.kinds.iter().map(|k| k.name()).collect();
            format!("{}: {}", l.name, kinds.join(" "))
        };
        found.iter().map(told).collect()
    }

    /// Soft-capped scores are in no composite; each head has a layer of its own for queries.
    #[test]
    fn layers_around_a_softmax_are_told() {
        let model = "(graph g (input x f32 [b l 4]) (param a f32 [4 2]) (param b2 f32 [4 2]) (param c f32 [4 4])
            (param d f32 [4 4]) (param e f32 [4 4]) (param z f32 [4 8])
            (let q (concat (matmul x a) (matmul x b2) -1)) (let s (matmul q (transpose (matmul x c) [0 2 1])))
            (let p (softmax (mul (tanh (mul s 0.1)) 10.0) -1)) (let y (matmul (matmul p (matmul x d)) e))
            (output logits (mul (tanh (div (matmul y z) 30.0)) 30.0)))";
        assert_eq!(kinds(model), ["a: q", "b2: q", "c: k", "d: v", "e: o", "z: head"]);
    }

    /// Attention without a softmax: names are all there is.
    #[test]
    fn names_tell_where_nothing_else_does() {
        let model = "(graph g (input x f32 [b l 4]) (param h.0.query.weight f32 [4 4]) (param h.0.key.weight f32 [4 4])
            (param head.weight f32 [4 8])
            (let s (matmul (matmul x h.0.query.weight) (transpose (matmul x h.0.key.weight) [0 2 1])))
            (output logits (matmul (matmul s x) head.weight)))";
        assert_eq!(kinds(model), ["h.0.query.weight: q", "h.0.key.weight: k", "head.weight: head"]);
    }
}
