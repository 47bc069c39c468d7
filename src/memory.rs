//! What the values of a training step need in memory: the lowered graph as ONNX Runtime will run it.

use crate::error::Result;
use crate::ir::op::Emit;
use crate::ir::{Graph, Id, LeafId, Node, Sym};
use crate::lower;
use crate::rules::Rule;
use crate::schedule::{executed, plan::Plan};
use std::collections::{BTreeMap, BTreeSet};

/// The values of a step, planned into buffers.
///
/// ONNX Runtime puts the bodies of functions in the place of fused nodes, behind all other nodes, and merges what is
/// computed twice; so does this.  Gradients are left out: they lie in buffers of the runner.
pub struct Values {
    graph: Graph,
    plan: Plan,
}

impl Values {
    /// Plans the lowered `graph` that is written in the order `file`; `rules` are the `lower` rules.
    ///
    /// # Errors
    /// Where a fused node has no body.
    pub fn new(graph: &Graph, file: &[Id], rules: &[Rule]) -> Result<Self> {
        let mut marked = graph.clone();
        // Outputs of their own tell what became of each node.
        let plain = |id: &&Id| graph.node(**id).op().is_some_and(|op| !matches!(op.row().emit, Emit::Weft(_)));
        let written: Vec<&Id> = file.iter().filter(|id| graph.node(**id).op().is_some()).collect();
        marked.outputs = written.iter().map(|id| (String::new(), **id)).chain(graph.outputs.clone()).collect();
        let mut inlined = lower::inline(&marked, rules, &mut BTreeMap::new())?;
        let outputs = inlined.outputs.split_off(written.len());
        let mut index: Vec<usize> = (0..inlined.len()).map(|k| written.len() + k).collect();
        for (k, ((_, now), before)) in inlined.outputs.iter().zip(&written).enumerate().rev() {
            if plain(before) {
                index[usize::from(*now)] = k;
            }
        }
        inlined.outputs = outputs;
        let order = executed(&inlined, &inlined.live(), &|id| index[usize::from(id)]);
        let plan = Plan::new(&inlined, &order, &|name| name.starts_with("grad/"));
        Ok(Values { graph: inlined, plan })
    }

    /// Bytes at the worst moment, for sizes of the graph's symbols.
    pub fn peak(&self, value: &dyn Fn(&Sym) -> Option<i64>) -> u64 {
        self.plan.peak(&self.graph, value)
    }

    /// Weights and tables that are read.  Weights that are held as codes alone are still leaves, but nothing reads them.
    pub fn leaves(&self) -> BTreeSet<LeafId> {
        let leaf = |id: &Id| if let Node::Leaf(l) = self.graph.node(*id) { Some(*l) } else { None };
        self.graph.live().iter().filter_map(leaf).collect()
    }

    pub fn graph(&self) -> &Graph {
        &self.graph
    }
}
