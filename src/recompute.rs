//! Recomputation: layers whose values the backward part computes again instead of keeping them.
//!
//! A layer lies between two values of the forward part, its *cuts*: whatever the loss needs of the first goes through
//! the second.  In a transformer the cuts are the hidden states between blocks.  Cuts are found as immediate
//! post-dominators (Lengauer and Tarjan 1979 name the dual), layers as the longest repetition of operators among them.
//!
//! A recomputed layer is copied for its readers in the backward part.  The copy starts from `after(h, d)`: the hidden
//! state `h`, once a cotangent `d` that comes from behind the layer is there.  So the copy is computed when it is
//! needed, and nobody can merge it with the original: not hash-consing here, not ONNX Runtime's elimination of common
//! subexpressions.

use crate::error::{Error, Result};
use crate::ir::{Builder, Graph, Id, Node, Op};
use rustc_hash::FxHashMap;

/// Cuts that one repetition has at most.
const LONGEST: usize = 12;

/// The repeated layers of a training graph.
pub struct Layers {
    /// The graph's nodes in an order of execution.
    order: Vec<Id>,
    /// By node: whether only gradients need it.
    backward: Vec<bool>,
    /// By node: the last cut that it depends on, and itself where it is one.
    after: Vec<Option<usize>>,
    cuts: Vec<Id>,
    /// The first cut of the first layer, cuts a layer, layers.
    first: usize,
    period: usize,
    count: usize,
}

impl Layers {
    /// Finds the layers of `graph`, whose nodes are executed in `order`; none where nothing repeats.
    pub fn find(graph: &Graph, order: Vec<Id>) -> Self {
        let is_gradient = |name: &str| name.starts_with("grad/");
        let forward = graph.reachable(graph.outputs.iter().filter(|(n, _)| !is_gradient(n)).map(|(_, id)| *id));
        let mut backward = vec![true; graph.len()];
        forward.iter().for_each(|id| backward[usize::from(*id)] = false);
        let cuts = cuts(graph, &forward, &order, &backward);
        let mut after: Vec<Option<usize>> = vec![None; graph.len()];
        let number: FxHashMap<Id, usize> = cuts.iter().enumerate().map(|(k, id)| (*id, k)).collect();
        for id in &order {
            let inherited = graph.node(*id).children().iter().filter_map(|c| after[usize::from(*c)]).max();
            after[usize::from(*id)] = number.get(id).copied().or(inherited);
        }
        // What is computed between a cut and the next: what makes the first cut is not part of it.
        let mut kinds: Vec<Vec<Op>> = vec![vec![]; cuts.len()];
        for id in &forward {
            let own = after[usize::from(*id)].filter(|k| cuts[*k] != *id);
            if let (Some(k), Some(op)) = (own, graph.node(*id).op()) {
                kinds[k].push(op);
            }
        }
        kinds.iter_mut().for_each(|k| k.sort());
        let (first, period, count) = repetition(&kinds);
        Layers { order, backward, after, cuts, first, period, count }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// The layer that a cut begins or lies in.
    fn layer(&self, cut: usize) -> Option<usize> {
        let layer = cut.checked_sub(self.first)? / self.period;
        (layer < self.count).then_some(layer)
    }

    /// The first cut behind a layer.
    fn end(&self, layer: usize) -> usize {
        self.first + (layer + 1) * self.period
    }

    fn start(&self, layer: usize) -> Id {
        self.cuts[self.first + layer * self.period]
    }

    /// The layer inside which a value lies: between its cuts, not one of the outer two.
    fn inside(&self, id: Id) -> Option<usize> {
        let layer = self.layer(self.after[usize::from(id)]?)?;
        (id != self.start(layer)).then_some(layer)
    }

    /// `graph` with the first `n` layers recomputed in the backward part.
    ///
    /// The first, because the backward part reaches them last: their values would be kept longest.
    pub fn recomputed(&self, graph: &Graph, n: usize) -> Result<Graph> {
        let internal = |m: String| Error::internal("recompute", m);
        let mut new = graph.clone();
        let mut now: Vec<Id> = (0..graph.len()).map(Id::from).collect();
        let mut copies: Vec<Option<FxHashMap<Id, Id>>> = vec![None; n];
        let mut members: Vec<Vec<Id>> = vec![vec![]; n];
        for id in self.order.iter().filter(|id| graph.node(**id).op().is_some()) {
            if let Some(layer) = self.inside(*id).filter(|l| *l < n) {
                members[layer].push(*id);
            }
        }
        for &id in self.order.iter().filter(|id| self.backward[usize::from(**id)]) {
            let Node::Op(op, children) = graph.node(id) else { continue };
            let behind = |layer: usize, x: Id| self.after[usize::from(x)].is_some_and(|cut| cut >= self.end(layer));
            let mut changed = Vec::with_capacity(children.len());
            for child in children.iter() {
                let layer = self.inside(*child).filter(|l| *l < n && behind(*l, id));
                let Some(layer) = layer else {
                    changed.push(now[usize::from(*child)]);
                    continue;
                };
                if copies[layer].is_none() {
                    // What comes from behind the layer and is of the backward part: a cotangent.
                    let start = self.start(layer);
                    let cotangent = |x: &&Id| {
                        behind(layer, **x) && self.backward[usize::from(**x)] && graph.node(**x).op().is_some()
                    };
                    let alike = |x: &&Id| graph.type_of(**x).shape() == graph.type_of(start).shape();
                    let found = children.iter().filter(cotangent).find(alike).or(children.iter().find(cotangent));
                    if let Some(d) = found {
                        let barrier = new.op(Op::After, &[start, now[usize::from(*d)]]).map_err(internal)?;
                        copies[layer] = Some(copied(&mut new, graph, &members[layer], start, barrier)?);
                    }
                }
                let copy = copies[layer].as_ref().and_then(|c| c.get(child));
                changed.push(copy.copied().unwrap_or(now[usize::from(*child)]));
            }
            if changed != **children {
                now[usize::from(id)] = new.insert(Node::Op(*op, changed.into())).map_err(internal)?;
            }
        }
        for (_, id) in &mut new.outputs {
            *id = now[usize::from(*id)];
        }
        Ok(new)
    }
}

/// Copies `members`, operands before users, with `barrier` in the place of `start`.
fn copied(new: &mut Graph, graph: &Graph, members: &[Id], start: Id, barrier: Id) -> Result<FxHashMap<Id, Id>> {
    let mut copies = FxHashMap::from_iter([(start, barrier)]);
    for &id in members {
        let Node::Op(op, children) = graph.node(id) else { continue };
        let children: Box<[Id]> = children.iter().map(|c| copies.get(c).copied().unwrap_or(*c)).collect();
        let copy = new.insert(Node::Op(*op, children)).map_err(|m| Error::internal("recompute", m))?;
        if let Some(origin) = graph.origin.get(&id) {
            new.origin.insert(copy, origin.clone());
        }
        copies.insert(id, copy);
    }
    copies.remove(&start);
    Ok(copies)
}

/// The chain of cuts through the forward part, from the input of the first layer on.
///
/// The chain is that of the deepest value that the backward part reads.  Such a value lies inside the first layer; the
/// layer's input is the first operand on the way whose other readers meet it again there: a residual.
fn cuts(graph: &Graph, forward: &[Id], order: &[Id], backward: &[bool]) -> Vec<Id> {
    let is_forward = |id: Id| !backward[usize::from(id)] && graph.node(id).op().is_some();
    let mut readers: FxHashMap<Id, Vec<Id>> = FxHashMap::default();
    let mut kept: Vec<Id> = Vec::new();
    for &id in order {
        for &c in graph.node(id).children().iter().filter(|c| is_forward(**c)) {
            if is_forward(id) {
                readers.entry(c).or_default().push(id);
            } else if graph.tensor_type(c).is_some_and(|t| t.dtype.is_float()) {
                kept.push(c);
            }
        }
    }
    // Immediate post-dominators; `None` is the end.
    let mut next: FxHashMap<Id, Option<Id>> = FxHashMap::default();
    let mut depth: FxHashMap<Id, u32> = FxHashMap::default();
    let outputs: Vec<Id> = graph.outputs.iter().map(|(_, id)| *id).filter(|id| is_forward(*id)).collect();
    for &id in forward.iter().rev().filter(|id| is_forward(**id)) {
        let users = readers.get(&id).map(Vec::as_slice).unwrap_or_default();
        let mut meet = if outputs.contains(&id) { None } else { users.first().copied() };
        for &user in users {
            let mut other = Some(user);
            while meet != other {
                let (a, b) = (meet.map_or(0, |x| depth[&x]), other.map_or(0, |x| depth[&x]));
                if a >= b {
                    meet = meet.and_then(|x| next[&x]);
                } else {
                    other = other.and_then(|x| next[&x]);
                }
            }
        }
        next.insert(id, meet);
        depth.insert(id, 1 + meet.map_or(0, |x| depth[&x]));
    }
    let chain = |from: Id| std::iter::successors(Some(from), |id| next.get(id).copied().flatten());
    // Of equals the first.
    let Some(start) = kept.iter().copied().reduce(|a, b| if depth[&b] > depth[&a] { b } else { a }) else {
        return vec![];
    };
    let residual = |cut: &Id| {
        let operands = graph.node(*cut).children().iter().copied();
        let mut met = operands.filter(|x| next.get(x).copied().flatten() == Some(*cut));
        met.find(|x| readers.get(x).is_some_and(|r| r.iter().any(|user| user != cut)))
    };
    match chain(start).find_map(|cut| residual(&cut)) {
        Some(input) => chain(input).collect(),
        None => vec![],
    }
}

/// The run of equal groups that covers most operators: its start, the size of a group, and how many there are; of
/// equals the one with the smallest groups.
fn repetition(kinds: &[Vec<Op>]) -> (usize, usize, usize) {
    let (mut best, mut most) = ((0, 1, 0), 0);
    for period in 1..=LONGEST.min(kinds.len()) {
        let mut run = 0;
        for at in period..kinds.len() {
            run = if kinds[at] == kinds[at - period] { run + 1 } else { 0 };
            let count = run / period + 1;
            let first = at + 1 - count * period;
            let covered = kinds[first..=at].iter().map(Vec::len).sum();
            // The cut behind the last layer must be one, too.
            if run >= period && covered > most && at + 1 < kinds.len() {
                (best, most) = ((first, period, count), covered);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repetition_that_covers_most_is_found() {
        let [a, b, none] = [vec![Op::MatMul, Op::Softmax, Op::MatMul], vec![Op::MatMul, Op::Gelu], vec![]];
        let kinds = [&none, &a, &b, &a, &b, &a, &b, &none, &none, &none, &none, &none, &none, &none];
        let kinds: Vec<Vec<Op>> = kinds.into_iter().cloned().collect();
        assert_eq!(repetition(&kinds), (1, 2, 3));
        assert_eq!(repetition(&kinds[..7]), (1, 2, 2), "what ends the last layer must be there");
        assert_eq!(repetition(&kinds[..3]).2, 0);
    }
}
