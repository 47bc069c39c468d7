//! What the values of a training step need in memory: the lowered graph as ONNX Runtime will run it.

use crate::error::Result;
use crate::ir::builder::{PACKED, ROWS};
use crate::ir::op::Emit;
use crate::ir::selection::selections;
use crate::ir::{Builder, Dim, Graph, Id, LeafId, LeafKind, Op, Sym};
use crate::lower;
use crate::rules::Rule;
use crate::schedule::executed;
use crate::schedule::plan::{Plan, bytes};
use std::collections::{BTreeMap, BTreeSet};

/// The values of a step, planned into buffers.
///
/// ONNX Runtime puts the bodies of functions in the place of fused nodes, behind all other nodes, and merges what is
/// computed twice; so does this.  Gradients are left out: they lie in buffers of the runner.
pub struct Values {
    graph: Graph,
    plan: Plan,
    kernels: bool,
}

/// ONNX Runtime's arena does not split a free chunk of less than twice the size that is asked for.  The results of our
/// kernels have sizes that it does not know before they run, so that it places them by chunks: 1 to 10 % more was
/// measured on six models, and rarely 14 %.
const SLACK: u64 = 16;

impl Values {
    /// Plans the lowered `graph` that is written in the order `file`; `rules` are the `lower` rules.  With `kernels` a
    /// fused node is one computation, else its function's body takes its place.
    ///
    /// # Errors
    /// Where a fused node has no body.
    pub fn new(graph: &Graph, file: &[Id], rules: &[Rule], kernels: bool) -> Result<Self> {
        let mut marked = graph.clone();
        // Outputs of their own tell what became of each node.
        let plain =
            |id: &&Id| graph.node(**id).op().is_some_and(|op| kernels || !matches!(op.row().emit, Emit::Weft(_)));
        let written: Vec<&Id> = file.iter().filter(|id| graph.node(**id).op().is_some()).collect();
        marked.outputs = written.iter().map(|id| (String::new(), **id)).chain(graph.outputs.clone()).collect();
        let mut inlined = if kernels { marked } else { lower::inline(&marked, rules, &mut BTreeMap::new())? };
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
        Ok(Values { graph: inlined, plan, kernels })
    }

    /// Bytes at the worst moment in a batch of so many sequences, whose number `batches` stands for, of this length: all
    /// tokens where rows are counted, and of experts their share; as many packed rows as sequences.
    pub fn peak(&self, batches: &Dim, batch: i64, length: i64) -> u64 {
        let selections = selections(&self.graph);
        let token = |symbol: &Sym| match symbol.as_str() {
            rows if rows.starts_with(ROWS) => batch * length,
            packed if packed == PACKED[0] => batch,
            _ if batches.symbols().contains(symbol) => batch,
            _ => length,
        };
        let share = |s: &Sym| selections.get(s)?.share(&|s| Some(token(s)));
        let peak = self.plan.peak(&self.graph, &|s| Some(share(s).unwrap_or_else(|| token(s))));
        peak + if self.kernels { peak / SLACK } else { 0 }
    }

    /// What is held whatever the sizes are, where `trainable` are trained with AdamW.
    pub fn fixed(&self, trainable: &[LeafId]) -> Fixed {
        let size = |l: &LeafId| bytes(&self.graph.leaf(*l).ty, &|_| None);
        // Weights that are held as codes alone are still leaves, but nothing reads them.
        let used: BTreeSet<LeafId> = self.graph.live().iter().filter_map(|id| self.graph.as_leaf(*id)).collect();
        let weights = used.iter().filter(|l| self.graph.leaf(**l).kind != LeafKind::Input);
        let gradients = trainable.iter().map(size).sum();
        let is_looked_up = |id: Id| self.kernels && self.graph.node(id).op() == Some(Op::GatherGrad);
        let tables = self.graph.outputs.iter().filter(|(name, id)| name.starts_with("grad/") && is_looked_up(*id));
        let types = tables.filter_map(|(_, id)| self.graph.type_of(*id).tensor());
        let looked_up = types.map(|ty| 3 * bytes(ty, &|_| None)).sum();
        Fixed { parameters: weights.map(size).sum(), gradients, moments: 2 * gradients, looked_up }
    }

    pub fn graph(&self) -> &Graph {
        &self.graph
    }
}

/// Bytes that are held through a run.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// All weights, frozen ones too, and constant tables.
    pub parameters: u64,
    /// One for each trainable number.
    pub gradients: u64,
    /// Two for each trainable number.
    pub moments: u64,
    /// What of gradients and moments belongs to tables that are looked up and read nowhere else: rows that do not occur
    /// take none of it.
    pub looked_up: u64,
}

impl Fixed {
    pub fn total(&self) -> u64 {
        self.parameters + self.gradients + self.moments
    }
}
