//! Scheduling: the order of nodes in the file, and what it makes ONNX Runtime do.
//!
//! ONNX Runtime ignores the file's order as an order of execution.  It derives its own ([`executed`]): a depth-first
//! search backwards from the nodes that nobody reads, the last one in the file first, and among a node's operands the
//! last one in the file first.  So the order that is meant is one that such a search can give, and the file is written
//! so that it does.
//!
//! What is meant:
//! - whatever nobody reads is computed as soon as it can be: the loss and its diagnostics before any gradient, the
//!   gradient of a weight right behind the cotangent that it needs, which ends the life of that cotangent and of an
//!   activation;
//! - of a node's operands the one whose computation needs the most memory beyond its own result comes first, as Sethi
//!   and Ullman have it: cotangents before the cheap factors that they are multiplied with, which would otherwise be
//!   kept from the forward part on.

pub mod plan;

use crate::ir::{Graph, Id, Node, Sym};
use std::cmp::Reverse;

/// What an unknown size counts when orders are weighed.
const ASSUMED: i64 = 256;

/// Nodes that the outputs need, operands before users, in file order.  Linear but for sorting operands.
pub fn order(graph: &Graph) -> Vec<Id> {
    let live = graph.live();
    let read = read(graph, &live);
    let weights = Weights::new(graph, &live);
    let ends = graph.outputs.iter().filter(|(_, id)| !read[usize::from(*id)]);
    let mut ends: Vec<(bool, Id)> = ends.map(|(name, id)| (name.starts_with("grad/"), *id)).collect();
    ends.sort_by_key(|(is_gradient, id)| (*is_gradient, weights.depth[usize::from(*id)]));
    let mut ends: Vec<Id> = ends.into_iter().map(|(_, id)| id).collect();
    let by_need = |id: Id, operands: &mut Vec<Id>| {
        let extra = |x: &Id| weights.need[usize::from(*x)].saturating_sub(weights.size[usize::from(*x)]);
        operands.extend(graph.node(id).children());
        // The sort is stable: of equals the first operand comes first.
        operands.sort_by_key(|x| Reverse(extra(x)));
    };
    let meant = search(graph, &ends, by_need);
    let mut at = vec![0usize; graph.len()];
    for (k, id) in meant.iter().enumerate() {
        at[usize::from(*id)] = k;
    }
    // Backwards: what is meant to come late stands early, as far as operands stand before users; nodes that nobody
    // reads stand last of all.
    let is_end = |id: Id| !read[usize::from(id)] && graph.node(id).op().is_some();
    ends.sort_by_key(|id| Reverse(at[usize::from(*id)]));
    let late_first = |id: Id, operands: &mut Vec<Id>| {
        operands.extend(graph.node(id).children());
        operands.sort_by_key(|x| Reverse(at[usize::from(*x)]));
    };
    let (last, mut file): (Vec<Id>, Vec<Id>) = search(graph, &ends, late_first).into_iter().partition(|id| is_end(*id));
    file.extend(last);
    file
}

/// The order in which ONNX Runtime computes nodes whose indices are as `index` tells; leaves and literals come where
/// they are first read.
///
/// Source: `ReverseDFSFrom` as `GraphViewer` calls it in microsoft/onnxruntime, core/graph.
pub fn executed(graph: &Graph, live: &[Id], index: &dyn Fn(Id) -> usize) -> Vec<Id> {
    let read = read(graph, live);
    let mut ends: Vec<Id> = live.iter().copied().filter(|id| !read[usize::from(*id)]).collect();
    ends.sort_by_key(|id| Reverse(index(*id)));
    search(graph, &ends, |id, operands| {
        operands.extend(graph.node(id).children());
        operands.sort_by_key(|x| Reverse(index(*x)));
    })
}

/// By node: whether another live node reads it.
fn read(graph: &Graph, live: &[Id]) -> Vec<bool> {
    let mut read = vec![false; graph.len()];
    for child in live.iter().flat_map(|id| graph.node(*id).children()) {
        read[usize::from(*child)] = true;
    }
    read
}

/// Depth-first from the roots in turn: every node behind its operands, which `operands` lists in the order in which
/// they are visited.
fn search(graph: &Graph, roots: &[Id], operands: impl Fn(Id, &mut Vec<Id>)) -> Vec<Id> {
    let mut seen = vec![false; graph.len()];
    let mut order = Vec::new();
    let mut stack: Vec<(Id, Vec<Id>)> = Vec::new();
    for root in roots {
        let mut next = Some(*root);
        loop {
            if let Some(id) = next.take().filter(|id| !std::mem::replace(&mut seen[usize::from(*id)], true)) {
                let mut list = Vec::new();
                operands(id, &mut list);
                // Taken from the end.
                list.reverse();
                stack.push((id, list));
            }
            let Some((id, list)) = stack.last_mut() else { break };
            match list.pop() {
                Some(operand) => next = Some(operand),
                None => {
                    order.push(*id);
                    stack.pop();
                }
            }
        }
    }
    order
}

/// What orders are weighed by, by node.
struct Weights {
    /// Bytes of the value at assumed sizes; 0 for what takes no memory of its own.
    size: Vec<u64>,
    /// Bytes that computing the value takes, its own included, as if nothing were shared.
    need: Vec<u64>,
    /// Nodes on the longest way to it.
    depth: Vec<u32>,
}

impl Weights {
    fn new(graph: &Graph, live: &[Id]) -> Self {
        let n = graph.len();
        let mut w = Weights { size: vec![0; n], need: vec![0; n], depth: vec![0; n] };
        let assumed = |_: &Sym| Some(ASSUMED);
        for &id in live {
            let Node::Op(_, children) = graph.node(id) else { continue };
            let at = usize::from(id);
            w.size[at] = graph.tensor_type(id).map_or(0, |t| plan::bytes(t, &assumed));
            let mut operands: Vec<usize> = children.iter().map(|c| usize::from(*c)).collect();
            w.depth[at] = 1 + operands.iter().map(|c| w.depth[*c]).max().unwrap_or(0);
            operands.sort_by_key(|c| Reverse(w.need[*c].saturating_sub(w.size[*c])));
            operands.dedup();
            let (mut held, mut need) = (0u64, 0u64);
            for c in operands {
                need = need.max(held.saturating_add(w.need[c]));
                held = held.saturating_add(w.size[c]);
            }
            w.need[at] = need.max(held.saturating_add(w.size[at]));
        }
        w
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    fn parse(source: &str) -> Graph {
        text::parse(source).unwrap_or_else(|e| panic!("{}", e.message))
    }

    /// The names of operators in the order in which ONNX Runtime computes them.
    fn computed(graph: &Graph) -> Vec<&'static str> {
        let file = order(graph);
        let mut at = vec![0; graph.len()];
        file.iter().enumerate().for_each(|(k, id)| at[usize::from(*id)] = k);
        let order = executed(graph, &file, &|id| at[usize::from(id)]);
        order.iter().filter_map(|id| Some(graph.node(*id).op()?.name())).collect()
    }

    #[test]
    fn operands_stand_before_users() {
        let graph = parse(
            "(graph g (input a f32 [batch 8]) (let x (exp a)) (let y (mul x (neg x)))
              (output loss (sum y [-2 -1])) (output grad/a (abs (mul y x))))",
        );
        let file = order(&graph);
        let at = |id: &Id| file.iter().position(|x| x == id);
        assert_eq!(file.len(), graph.live().len());
        for id in &file {
            assert!(graph.node(*id).children().iter().all(|c| at(c) < at(id)));
        }
    }

    /// y = exp(x), z = sin(y): the factor cos(y) comes behind the loss, and each weight's gradient behind its
    /// cotangent, not behind the last one.
    #[test]
    fn derivatives_and_weight_gradients_come_when_they_are_needed() {
        let graph = parse(
            "(graph g (input x f32 [batch 8]) (param v f32 [8]) (param w f32 [8])
              (let y (exp (mul x v))) (let z (sin (mul y w))) (let d (cos (mul y w)))
              (let dz (mul z d)) (let dy (mul (neg dz) w))
              (output loss (sum z [-2 -1])) (output grad/v (reduce_max (abs dy) [0]))
              (output grad/w (mean (mul dz y) [0])))",
        );
        let wanted =
            ["mul", "exp", "mul", "sin", "sum", "cos", "mul", "mul", "mean", "neg", "mul", "abs", "reduce_max"];
        assert_eq!(computed(&graph), wanted);
    }
}
