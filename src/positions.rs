//! How many tokens a model takes, by its tables of positions.

use crate::ir::infer::resolve_axis;
use crate::ir::{Builder, DType, Dim, Graph, Id, LeafKind, Node, Op};
use crate::manifest::POSITIONS;

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
