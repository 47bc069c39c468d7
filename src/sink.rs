//! Row sinking: the entropy is read at the answer and the loss at masked tokens, so whatever works token by token above
//! them is computed for these alone.
//!
//! What may be done is the text of `rules/sink.egg`; this file decides where.  A row is taken from an operator's
//! operands instead of its result wherever nothing else reads the result: a residual stream that the next attention
//! needs for all tokens stays whole, and the rows are cut out of it.  That is a question of demand, which runs from the
//! outputs down and has one answer, so it is not asked of an e-graph: every layer could be computed for some rows a
//! second time there, and no local choice sees that this pays only if it is done all the way up.

use crate::cost;
use crate::error::{Error, Result};
use crate::ir::{Builder, Graph, Id, Node, Op};
use crate::rewrite::variants;
use crate::rules::template::{Subst, bind_lets, holds, instantiate, matches};
use crate::rules::{Rule, Term};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// Rows sink by an operator or two in a round; no model is deeper than this from its last full value to its loss.
const ROUNDS: usize = 4096;

/// The graph with its rows sunk.
pub struct Sunk {
    pub graph: Graph,
    /// Rule name to how often it was applied.
    pub fired: BTreeMap<String, usize>,
    /// Rule name to the floating-point operations that it saves for each token that is not read.
    pub saved: BTreeMap<String, u64>,
}

/// Rows sink by `sink` as far as they are the only reader; what lies in their way is rewritten by `simplify`.  With
/// `keeps_codes` a head in few bits is multiplied as it is, and leaves logits: where a product decodes a few numbers at a
/// time, cutting it into blocks would make it dense.
///
/// # Errors
/// `Internal` where a right side has another type than its left.
pub fn sink(graph: &Graph, sink: &[&Rule], simplify: &[&Rule], keeps_codes: bool) -> Result<Sunk> {
    let internal = |why: String| Error::internal("sink", why);
    let sink: Vec<(&Rule, Vec<Term>)> = sink.iter().map(|r| (*r, variants(&r.left))).collect();
    let simplify: Vec<(&Rule, Vec<Term>)> = simplify.iter().map(|r| (*r, variants(&r.left))).collect();
    let mut sunk = Sunk { graph: graph.clone(), fired: BTreeMap::new(), saved: BTreeMap::new() };
    for _ in 0..ROUNDS {
        let graph = &mut sunk.graph;
        let live = graph.live();
        let readers = readers(graph, &live);
        let mut changed: FxHashMap<Id, Id> = FxHashMap::default();
        for &id in live.iter().rev() {
            let Node::Op(op, children) = graph.node(id).clone() else { continue };
            let found = match op {
                Op::TokenEntropy | Op::WeightedCrossEntropy if keeps_codes && reads_codes(graph, children[0]) => None,
                Op::TokenEntropy | Op::WeightedCrossEntropy | Op::HeadEntropy | Op::HeadLoss => {
                    apply(graph, id, &sink).map(|f| (id, f))
                }
                Op::TakeRows if only_rows(graph, children[0], children[1], &readers) => {
                    let found = apply(graph, id, &sink).map(|f| (id, f));
                    found.or_else(|| apply(graph, children[0], &simplify).map(|f| (children[0], f)))
                }
                _ => None,
            };
            let Some((place, (rule, new))) = found else { continue };
            if graph.type_of(new) != graph.type_of(place) {
                let (left, right) = (graph.type_of(place), graph.type_of(new));
                return Err(internal(format!("{}: the left side is {left}, the right side {right}", rule.name)));
            }
            changed.insert(place, new);
            *sunk.fired.entry(rule.name.to_string()).or_default() += 1;
            if place == id && op == Op::TakeRows {
                *sunk.saved.entry(rule.name.to_string()).or_default() += flops_a_token(graph, children[0]);
            }
        }
        if changed.is_empty() {
            sunk.saved.retain(|_, flops| *flops > 0);
            return Ok(sunk);
        }
        sunk.graph = replaced(graph, &changed).map_err(internal)?;
    }
    Err(internal("rows sink without end: two rules undo each other".into()))
}

/// Whether logits of rows are the product with a weight that lies in few bits.
fn reads_codes(graph: &Graph, logits: Id) -> bool {
    match graph.node(logits) {
        _ if graph.type_of(logits).shape().len() != 2 => false,
        Node::Op(Op::MatMulNBits, _) => true,
        Node::Op(Op::Add | Op::Mul | Op::Cast, c) => reads_codes(graph, c[0]) || reads_codes(graph, c[1]),
        Node::Op(Op::MatMul, c) => {
            let mut weight = c[1];
            while let Node::Op(Op::Transpose | Op::Cast, c) = graph.node(weight) {
                weight = c[0];
            }
            matches!(graph.node(weight), Node::Op(Op::Dequantize, _))
        }
        _ => false,
    }
}

/// By node, the live nodes that read it; outputs read too, as `None`.
fn readers(graph: &Graph, live: &[Id]) -> FxHashMap<Id, Vec<Option<Id>>> {
    let mut readers: FxHashMap<Id, Vec<Option<Id>>> = FxHashMap::default();
    for &id in live {
        for child in graph.node(id).children() {
            readers.entry(*child).or_default().push(Some(id));
        }
    }
    for (_, id) in &graph.outputs {
        readers.entry(*id).or_default().push(None);
    }
    readers
}

/// Whether every reader of `value` takes the rows `places` of it.
fn only_rows(graph: &Graph, value: Id, places: Id, readers: &FxHashMap<Id, Vec<Option<Id>>>) -> bool {
    let takes = |reader: &Option<Id>| {
        reader.is_some_and(|r| matches!(graph.node(r), Node::Op(Op::TakeRows, c) if c[0] == value && c[1] == places))
    };
    readers.get(&value).is_some_and(|all| all.iter().all(takes))
}

/// The first rule that fits at a node, and its right side there.
fn apply<'r>(graph: &mut Graph, at: Id, rules: &[(&'r Rule, Vec<Term>)]) -> Option<(&'r Rule, Id)> {
    for (rule, lefts) in rules {
        for left in lefts {
            let Some(mut subst): Option<Subst> = matches(graph, at, left) else { continue };
            if !holds(&rule.guards, &subst, graph) || bind_lets(&rule.lets, &mut subst, graph).is_err() {
                continue;
            }
            let Some(Some(right)) = rule.right.first() else { continue };
            // A right side without a type here is no equality here.
            let Ok(new) = instantiate(right, &subst, graph) else { continue };
            if new != at && graph.type_of(new) == graph.type_of(at) {
                return Some((rule, new));
            }
        }
    }
    None
}

/// The graph with nodes in place of others, wherever these are read.
fn replaced(graph: &Graph, changed: &FxHashMap<Id, Id>) -> std::result::Result<Graph, String> {
    let resolve = |mut id: Id| {
        while let Some(new) = changed.get(&id) {
            id = *new;
        }
        id
    };
    let mut out = Graph::with_leaves_of(graph);
    let mut built: FxHashMap<Id, Id> = FxHashMap::default();
    for (name, root) in &graph.outputs {
        let root = resolve(*root);
        let mut stack = vec![root];
        while let Some(&id) = stack.last() {
            let children: Vec<Id> = graph.node(id).children().iter().map(|c| resolve(*c)).collect();
            let missing = children.iter().filter(|c| !built.contains_key(c));
            let before = stack.len();
            stack.extend(missing);
            if stack.len() > before {
                continue;
            }
            stack.pop();
            let node = match graph.node(id) {
                Node::Op(op, _) => Node::Op(*op, children.iter().map(|c| built[c]).collect()),
                other => other.clone(),
            };
            let new = out.insert(node)?;
            if let Some(origin) = graph.origin.get(&id) {
                out.origin.entry(new).or_insert_with(|| origin.clone());
            }
            built.insert(id, new);
        }
        out.outputs.push((name.clone(), built[&root]));
    }
    Ok(out)
}

/// Floating-point operations that computing `value` `[B, L, ..]` takes for one token.
fn flops_a_token(graph: &Graph, value: Id) -> u64 {
    let tokens = graph.type_of(value).shape().iter().take(2).filter_map(|d| d.known()).product::<i64>();
    cost::of(graph, value, &|_| 1).map_or(0, |w| w.flops()) / tokens.max(1) as u64
}
