//! Which matrix products of a model are queries, keys, values, outputs, gates and so on: told by what surrounds
//! them, since exporters lose names.

use crate::ir::{Graph, Id, LeafId, LeafKind, Node, Op};
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
    pub weight: LeafId,
    pub kinds: BTreeSet<Kind>,
}

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
    let back = |from: Id| backward(graph, &found, from);
    let ahead = |from: Id| forward(graph, &found, &users, from);
    for &id in &order {
        let Node::Op(op, c) = graph.node(id) else { continue };
        match op {
            Op::Attention | Op::AttentionBias => {
                let operands = [(c[0], Kind::Q), (c[1], Kind::K), (c[2], Kind::V)];
                marks.extend(operands.into_iter().filter_map(|(x, kind)| Some((back(x)?, kind))));
                marks.extend(ahead(id).map(|o| (o, Kind::O)));
            }
            Op::AttentionProbs | Op::AttentionProbsBias => {
                marks.extend([(c[0], Kind::Q), (c[1], Kind::K)].into_iter().filter_map(|(x, k)| Some((back(x)?, k))));
            }
            Op::Swiglu => {
                marks.extend(
                    [(c[0], Kind::Gate), (c[1], Kind::Up)].into_iter().filter_map(|(x, k)| Some((back(x)?, k))),
                );
                marks.extend(ahead(id).map(|d| (d, Kind::Down)));
            }
            Op::Gelu | Op::GeluTanh | Op::Silu => {
                // gelu(gate) * up, or gelu(up) alone.
                let product = users.get(&id).into_iter().flatten().find(|u| graph.node(**u).op() == Some(Op::Mul));
                let other = product.and_then(|p| graph.node(*p).children().iter().find(|x| **x != id));
                let up = other.and_then(|x| back(*x));
                let kind = if up.is_some() { Kind::Gate } else { Kind::Up };
                marks.extend(up.map(|u| (u, Kind::Up)));
                let down = ahead(id);
                // A dense layer in front of the head is no block's: nothing leads on from it but the head.
                if down.is_some() {
                    marks.extend(back(c[0]).map(|x| (x, kind)));
                }
                marks.extend(down.map(|d| (d, Kind::Down)));
            }
            _ => {}
        }
    }
    marks.extend(back(logits).map(|h| (h, Kind::Head)));
    for (id, kind) in marks {
        if let Some(linear) = found.get_mut(&id) {
            linear.kinds.insert(kind);
        }
    }
    order.into_iter().filter_map(|id| found.remove(&id)).collect()
}

/// `x w` with `w` a matrix of the model's, or its transpose.
fn linear(graph: &Graph, id: Id) -> Option<Linear> {
    let Node::Op(Op::MatMul, c) = graph.node(id) else { return None };
    let weight = match graph.node(c[1]) {
        Node::Op(Op::Transpose, t) => graph.as_leaf(t[0]),
        _ => graph.as_leaf(c[1]),
    }?;
    let leaf = graph.leaf(weight);
    let is_weight = leaf.kind == LeafKind::Param && leaf.ty.dtype.is_float() && leaf.ty.rank() == 2;
    is_weight.then(|| Linear { node: id, x: c[0], w: c[1], weight, kinds: BTreeSet::new() })
}

/// The linear layer that a value comes from, through what only reshapes, rotates, scales, normalises or repeats.
fn backward(graph: &Graph, linears: &BTreeMap<Id, Linear>, from: Id) -> Option<Id> {
    let mut stack = vec![from];
    let mut seen = BTreeSet::new();
    while let Some(id) = stack.pop() {
        if linears.contains_key(&id) {
            return Some(id);
        }
        let Node::Op(op, c) = graph.node(id) else { continue };
        let through = matches!(
            op,
            Op::Reshape
                | Op::Transpose
                | Op::Expand
                | Op::Slice
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
        if through && seen.insert(id) {
            stack.extend(c.iter().rev().filter(|x| graph.tensor_type(**x).is_some_and(|t| t.dtype.is_float())));
        }
    }
    None
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
