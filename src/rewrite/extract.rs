//! Extraction: the cheapest graph that the e-graph is known to hold.
//!
//! The cost of a graph counts a shared node once, so summing over trees is of no use: it doubles at every
//! residual connection.  `choose` compares whole cones of nodes instead, and then swaps single choices
//! while the graph as a whole gets cheaper.

mod choose;
mod components;

use super::lang::Classes;
use crate::cost::cost;
use crate::error::{Error, Result};
use crate::ir::{Builder, Graph, Id, Node, Op, Type};
use choose::Selection;
use rustc_hash::{FxHashMap, FxHashSet};

/// One way to compute a class.
struct Candidate {
    node: Node,
    children: Box<[u32]>,
    cost: u64,
}

/// The candidates of every class, by canonical id, in order of insertion.
struct Table {
    classes: Vec<Vec<Candidate>>,
}

pub(super) struct Extracted {
    pub graph: Graph,
    pub cost_before: Option<u64>,
    pub cost_after: u64,
}

/// The cheapest graph found for `root`, a tuple of the outputs of `graph`; `graph` itself where nothing
/// cheaper is found.  `loaded` says which class each node of `graph` is in.
pub(super) fn extract(classes: &Classes, root: Id, graph: &Graph, loaded: &[(Id, Id)]) -> Result<Extracted> {
    let root = usize::from(classes.find(root)) as u32;
    let table = Table::new(classes);
    let selection = Selection::new(&table, root).ok_or_else(|| {
        let undefined = graph.live().iter().any(|id| graph.node(*id).op() == Some(Op::Objective));
        let why =
            if undefined { "`objective` has no definition among the rules" } else { "nothing computes the outputs" };
        Error::internal("extract", why)
    })?;
    let (cost_before, cost_after) = (cost_of(graph), selection.cost());
    let mut out = Graph::with_leaves_of(graph);
    let internal = |why| Error::internal("extract", why);
    if cost_before.is_some_and(|before| before <= cost_after) {
        out.copy_outputs(graph, |g, _, node| g.insert(node)).map_err(internal)?;
        return Ok(Extracted { graph: out, cost_before, cost_after: cost_before.unwrap_or(cost_after) });
    }
    let mut origins: FxHashMap<u32, Id> = FxHashMap::default();
    for (id, class) in loaded {
        if graph.origin.contains_key(id) {
            origins.entry(usize::from(classes.find(*class)) as u32).or_insert(*id);
        }
    }
    let mut built: FxHashMap<u32, Id> = FxHashMap::default();
    let order = selection.order();
    for &class in order.iter().filter(|c| **c != root) {
        let candidate = selection.candidate(class);
        let node = match &candidate.node {
            Node::Op(op, _) => Node::Op(*op, candidate.children.iter().map(|c| built[c]).collect()),
            other => other.clone(),
        };
        let id = out.insert(node).map_err(internal)?;
        // A composite inherits the place of the last node it stands for.
        if let Some(origin) = origins.get(&class).and_then(|o| graph.origin.get(o)) {
            out.origin.entry(id).or_insert_with(|| origin.clone());
        }
        built.insert(class, id);
    }
    let outputs = selection.candidate(root).children.iter().map(|c| built[c]);
    out.outputs = graph.outputs.iter().map(|(n, _)| n.clone()).zip(outputs).collect();
    Ok(Extracted { graph: out, cost_before, cost_after })
}

/// The cost of a graph's live nodes; `None` if one of them cannot be computed.
fn cost_of(graph: &Graph) -> Option<u64> {
    graph.live().iter().try_fold(0u64, |sum, id| match graph.node(*id) {
        Node::Op(op, children) => {
            let types: Vec<&Type> = children.iter().map(|c| graph.type_of(*c)).collect();
            Some(sum.saturating_add(cost(*op, &types, graph.type_of(*id))?))
        }
        _ => Some(sum),
    })
}

impl Table {
    fn new(classes: &Classes) -> Self {
        let mut table: Vec<Vec<Candidate>> = Vec::new();
        table.resize_with(classes.nodes().len(), Vec::new);
        let mut seen: FxHashSet<Node> = FxHashSet::default();
        // egg keeps every node under the number it was added as.
        for (k, original) in classes.nodes().iter().enumerate() {
            let class = classes.find(Id::from(k));
            let mut node = original.clone();
            if let Node::Op(_, children) = &mut node {
                children.iter_mut().for_each(|c| *c = classes.find(*c));
            }
            if !seen.insert(node.clone()) {
                continue;
            }
            let cost = match &node {
                Node::Op(op, children) => {
                    let types: Vec<&Type> = children.iter().map(|c| &classes[*c].data).collect();
                    cost(*op, &types, &classes[class].data)
                }
                _ => Some(0),
            };
            let children = node.children().iter().map(|c| usize::from(*c) as u32).collect();
            table[usize::from(class)].extend(cost.map(|cost| Candidate { node, children, cost }));
        }
        Table { classes: table }
    }

    fn candidates(&self, class: u32) -> &[Candidate] {
        &self.classes[class as usize]
    }
}
