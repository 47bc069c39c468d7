//! What the values of a training step need in memory: the lowered graph as ONNX Runtime will run it.

use crate::error::Result;
use crate::ir::builder::{PACKED, ROWS};
use crate::ir::infer::resolve_axis;
use crate::ir::op::Emit;
use crate::ir::selection::selections;
use crate::ir::{Builder, DType, Dim, Graph, Id, LeafId, LeafKind, Node, Op, Sym};
use crate::lower;
use crate::manifest::POSITIONS;
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

/// The most tokens that every table of positions has rows for: a weight or constant that is cut to the length, or that
/// is looked up at counted indices.
pub fn longest(graph: &Graph, length: &Dim) -> Option<i64> {
    let mentions = |d: &Dim| length.symbols().iter().any(|s| d.symbols().contains(s));
    let is_table = |id: Id| graph.as_leaf(id).is_some_and(|l| graph.leaf(l).kind != LeafKind::Input);
    let rows = graph.live().into_iter().filter_map(|id| match graph.node(id) {
        Node::Op(Op::Slice, c) if is_table(c[0]) => {
            let shape = &graph.tensor_type(c[0])?.shape;
            let axis = resolve_axis(int(graph, c.get(1))?.known()?, shape.len()).ok()?;
            let beyond = (int(graph, c.get(3))? - length.clone()).known()?;
            Some(shape[axis].known()? - beyond)
        }
        Node::Op(Op::Gather, c) if is_table(c[0]) => {
            let first = first_of_count(graph, c[1])?;
            graph.tensor_type(c[1])?.shape.iter().any(mentions).then_some(())?;
            Some(graph.tensor_type(c[0])?.shape.first()?.known()? - first)
        }
        _ => None,
    });
    rows.min()
}

/// The first of indices that count up by 1, or that count tokens of a kind up to as many; `None` for others, as buckets of
/// distances or chosen experts.
fn first_of_count(graph: &Graph, id: Id) -> Option<i64> {
    if graph.as_leaf(id).is_some_and(|l| graph.leaf(l).name == POSITIONS) {
        return Some(0);
    }
    let Node::Op(op, c) = graph.node(id) else { return None };
    match op {
        Op::Iota => Some(0),
        Op::Reshape | Op::Expand | Op::Transpose | Op::Cast | Op::Slice => first_of_count(graph, c[0]),
        Op::Add => [(0, 1), (1, 0)]
            .into_iter()
            .find_map(|(i, n)| Some(first_of_count(graph, c[i])? + int(graph, c.get(n))?.known()?)),
        Op::CumSum if is_truth(graph, c[0]) => Some(1),
        Op::Mul => [(0, 1), (1, 0)]
            .into_iter()
            .find_map(|(i, n)| first_of_count(graph, c[i]).filter(|_| is_truth(graph, c[n]))),
        // Indices below 0 would count from the end: there are none.
        Op::Where if matches!(graph.node(c[0]), Node::Op(Op::Less, of) if of[0] == c[2]) => first_of_count(graph, c[2]),
        _ => None,
    }
}

/// 1 where something holds, 0 elsewhere.
fn is_truth(graph: &Graph, id: Id) -> bool {
    match graph.node(id) {
        Node::Op(Op::Cast, c) => is_truth(graph, c[0]),
        _ => graph.tensor_type(id).is_some_and(|t| t.dtype == DType::Bool),
    }
}

/// The integer behind a literal node.
fn int(graph: &Graph, id: Option<&Id>) -> Option<Dim> {
    graph.type_of(*id?).lit()?.int().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    /// Two token types are looked up at as many indices as there are positions; buckets are no positions.
    #[test]
    fn the_longest_length_is_that_of_the_positions() {
        let graph = text::parse(
            "(graph g (input ids i64 [batch seq]) (param wpe f32 [96 4]) (param wtt f32 [2 4]) (const mask f32 [1 80])
              (let p (gather wpe (iota seq) 0)) (let t (gather wtt (mul ids 0) 0))
              (let m (slice mask 1 0 seq 1)) (output h (add p t)) (output m m))",
        );
        let mut graph = graph.unwrap_or_else(|e| panic!("{}", e.message));
        assert_eq!(longest(&graph, &Dim::sym("seq")), Some(80));
        graph.outputs.pop();
        assert_eq!(longest(&graph, &Dim::sym("seq")), Some(96));
        assert_eq!(longest(&graph, &Dim::sym("length")), None);
        // RoBERTa's positions: tokens that are no padding, counted from 1.
        let counted = text::parse(
            "(graph g (input ids i64 [batch seq]) (param wpe f32 [34 4])
              (let real (cast (not (equal ids 0)) i64))
              (output p (gather wpe (add (mul (cumsum real 1 0) real) 1) 0)))",
        );
        let counted = counted.unwrap_or_else(|e| panic!("{}", e.message));
        assert_eq!(longest(&counted, &Dim::sym("seq")), Some(32));
        let buckets = text::parse(
            "(graph g (input ids i64 [batch seq]) (param bias f32 [8 4]) (param wpe f32 [98 4])
              (let i (iota seq)) (let near (gather bias (min (abs (sub i (reshape i [seq 1]))) 7) 0))
              (let p (gather wpe (add (expand (reshape i [1 seq]) [batch seq]) 2) 0)) (output near near) (output p p))",
        );
        let buckets = buckets.unwrap_or_else(|e| panic!("{}", e.message));
        assert_eq!(longest(&buckets, &Dim::sym("seq")), Some(96));
    }
}
