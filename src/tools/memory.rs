//! What a training step needs in memory: an estimate from the schedule.

use crate::compile::Compiled;
use crate::error::{Error, Result};
use crate::ir::infer::resolve_axis;
use crate::ir::{Builder, Dim, Graph, Id, LeafKind, Node, Op, Sym};
use crate::manifest::Role;
use crate::memory::Values;
use crate::rules::Rule;
use crate::schedule::plan::bytes;
use serde::Serialize;

/// Batch sizes that are shown.
const BATCHES: [i64; 3] = [1, 4, 8];

/// Lengths that are shown, doubling from the first; the last where the model has no greatest length.
const LENGTHS: (i64, i64) = (128, 4096);

/// Bytes of a training step with AdamW.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// All weights, frozen ones too, and constant tables.
    pub parameters: u64,
    /// One for each trainable number.
    pub gradients: u64,
    /// Two for each trainable number.
    pub moments: u64,
    pub steps: Vec<Step>,
}

/// One micro-batch.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub batch: i64,
    pub length: i64,
    /// Bytes of the values that live at the worst moment, gradients left out.
    pub activations: u64,
    /// With parameters, gradients and moments.
    pub total: u64,
}

/// Estimates the memory of a compiled step, for batches and lengths that the model takes.
///
/// Fused nodes count with the values inside their bodies.  ONNX Runtime may reuse more than is assumed here
/// (it computes some nodes in place) and its allocator may hold more.
pub fn estimate(compiled: &Compiled, read: &Graph, rules: &[Rule]) -> Result<Memory> {
    let values = Values::new(&compiled.graph, &compiled.order, rules)?;
    let graph = values.graph();
    let used = values.leaves();
    let weights = used.iter().map(|l| graph.leaf(*l)).filter(|l| l.kind != LeafKind::Input);
    let parameters = weights.map(|l| bytes(&l.ty, &|_| None)).sum();
    let trainable = |role| compiled.manifest.parameters.iter().filter(move |p| p.role == role).map(|p| &p.name);
    let gradients = trainable(Role::Trainable)
        .filter_map(|n| graph.find_leaf(n))
        .map(|l| bytes(&graph.leaf(l).ty, &|_| None))
        .sum();
    let moments = 2 * gradients;
    let tokens = graph.find_leaf(&compiled.manifest.token_input).map(|l| &graph.leaf(l).ty.shape);
    let Some([batch, length]) = tokens.map(Vec::as_slice) else {
        return Err(Error::internal("inspect", "the tokens are not [batch, length]"));
    };
    let batches = batch.known().map_or(BATCHES.to_vec(), |b| vec![b]);
    let lengths = length.known().map_or_else(|| lengths(longest(read, length)), |l| vec![l]);
    let step = |b: i64, l: i64| {
        let value = |s: &Sym| Some(if batch.symbols().contains(s) { b } else { l });
        let activations = values.peak(&value);
        Step { batch: b, length: l, activations, total: activations + parameters + gradients + moments }
    };
    let steps = lengths.iter().flat_map(|l| batches.iter().map(move |b| (*b, *l))).map(|(b, l)| step(b, l)).collect();
    Ok(Memory { parameters, gradients, moments, steps })
}

/// Doubling lengths up to the longest.
fn lengths(longest: Option<i64>) -> Vec<i64> {
    let most = longest.unwrap_or(LENGTHS.1);
    let mut lengths: Vec<i64> =
        std::iter::successors(Some(LENGTHS.0), |l| Some(l * 2)).take_while(|l| *l < most).collect();
    lengths.push(most);
    lengths
}

/// The rows of the smallest table of positions: a weight or constant that is cut to the length, or that is
/// looked up at counted indices.
fn longest(graph: &Graph, length: &Dim) -> Option<i64> {
    let mentions = |d: &Dim| length.symbols().iter().any(|s| d.symbols().contains(s));
    let is_table = |id: Id| graph.as_leaf(id).is_some_and(|l| graph.leaf(l).kind != LeafKind::Input);
    let rows = graph.live().into_iter().filter_map(|id| match graph.node(id) {
        Node::Op(Op::Slice, c) if is_table(c[0]) => {
            let shape = &graph.tensor_type(c[0])?.shape;
            let axis = resolve_axis(int(graph, c.get(1))?.known()?, shape.len()).ok()?;
            int(graph, c.get(3)).filter(mentions)?;
            shape[axis].known()
        }
        Node::Op(Op::Gather, c) if is_table(c[0]) => {
            let counted = graph.reachable([c[1]]).iter().any(|x| graph.node(*x).op() == Some(Op::Iota));
            let positions = counted && graph.tensor_type(c[1])?.shape.iter().any(mentions);
            graph.tensor_type(c[0]).filter(|_| positions)?.shape.first()?.known()
        }
        _ => None,
    });
    rows.min()
}

/// The integer behind a literal node.
fn int(graph: &Graph, id: Option<&Id>) -> Option<Dim> {
    graph.type_of(*id?).lit()?.int().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    /// The table of two token types is looked up at as many indices as there are positions.
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
    }

    #[test]
    fn lengths_double_up_to_the_longest() {
        assert_eq!(lengths(Some(600)), [128, 256, 512, 600]);
        assert_eq!(lengths(Some(64)), [64]);
        assert_eq!(lengths(None), [128, 256, 512, 1024, 2048, 4096]);
    }
}
