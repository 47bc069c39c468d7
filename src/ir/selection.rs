//! How many rows a mask selects, as far as the graph tells.

use super::dim::{Sym, numel};
use super::{Builder, Dim, Graph, Id, Node, Op};
use rustc_hash::FxHashMap;

/// What decides over the rows of a mask.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// The sample: its answer.
    Answer,
    /// The draws `u`, among answers.
    Draws,
    /// A choice among so many, such as experts, for each of these elements: an equal share of them, on average.
    Choice { elements: Dim, among: i64 },
}

impl Selection {
    /// The rows, where a choice gives them.
    pub fn share(&self, value: &dyn Fn(&Sym) -> Option<i64>) -> Option<i64> {
        let Selection::Choice { elements, among } = self else { return None };
        Some((elements.eval(value)? + among - 1) / among)
    }
}

/// What each number of rows in the graph depends on; linear in the graph.
pub fn selections(graph: &Graph) -> FxHashMap<Sym, Selection> {
    let order = graph.live();
    if !order.iter().any(|id| graph.node(*id).op() == Some(Op::TrueRows)) {
        return FxHashMap::default();
    }
    let mut drawn = vec![false; graph.len()];
    // Among how many, where a value is made of choices and of no other numbers.
    let mut among: FxHashMap<Id, i64> = FxHashMap::default();
    let mut found = FxHashMap::default();
    for id in order {
        let children = match graph.node(id) {
            Node::Leaf(leaf) => {
                drawn[usize::from(id)] = graph.leaf(*leaf).name == "u";
                continue;
            }
            Node::Lit(_) => continue,
            Node::Op(_, children) => children,
        };
        drawn[usize::from(id)] = children.iter().any(|c| drawn[usize::from(*c)]);
        let is_exact = graph.tensor_type(id).is_some_and(|t| !t.dtype.is_float());
        let chosen = match graph.node(id).op() {
            Some(Op::TopkIndices) => graph.type_of(children[0]).shape().last().and_then(Dim::known),
            _ if is_exact => children.iter().find_map(|c| among.get(c).copied()),
            _ => None,
        };
        among.extend(chosen.filter(|n| *n > 0).map(|n| (id, n)));
        if let (Some(Op::TrueRows), [Dim::Poly(_)]) = (graph.node(id).op(), graph.type_of(id).shape()) {
            let mask = children[0];
            let selection = match among.get(&mask) {
                Some(&among) => Selection::Choice { elements: numel(graph.type_of(mask).shape()), among },
                None if drawn[usize::from(mask)] => Selection::Draws,
                None => Selection::Answer,
            };
            found.extend(graph.type_of(id).shape()[0].symbols().into_iter().map(|s| (s, selection.clone())));
        }
    }
    found
}
