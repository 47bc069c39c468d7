//! The time of a training step, part by part, before it has run.

use super::{At, Machine, Sizes, Unit, Work, of, work};
use crate::ir::builder::{PACKED, ROWS};
use crate::ir::selection::{Selection, selections};
use crate::ir::{Builder, DType, Graph, Id, LeafId, Node, Op, Sym, TensorType, Type};
use rustc_hash::FxHashMap;
use serde::{Serialize, Serializer};

/// A part of the training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// What the masks come from.
    Probe,
    /// The loss.
    Forward,
    /// The gradients.
    Backward,
    /// Their norm, and the update.
    Optimizer,
}

impl Part {
    pub const ALL: [Part; 4] = [Part::Probe, Part::Forward, Part::Backward, Part::Optimizer];

    pub fn name(self) -> &'static str {
        ["probe", "forward", "backward", "optimizer"][self as usize]
    }

    /// The part that an output of a training graph belongs to.  A node belongs to the first part that needs it.
    pub fn of_output(name: &str) -> Part {
        match name {
            "entropy" | "nll" | "mask_rate" | "mask" => Part::Probe,
            name if name.starts_with("grad/") => Part::Backward,
            _ => Part::Forward,
        }
    }
}

/// Serialises what there is for each part under its name.
pub fn by_part<T: Serialize, S: Serializer>(parts: &[T; 4], out: S) -> Result<S::Ok, S::Error> {
    out.collect_map(Part::ALL.iter().map(|part| (part.name(), &parts[*part as usize])))
}

/// The output of an entropy pass that is kept over steps.
const KEPT: &str = "probe/beta";

/// By node of the step, its part.  Where the entropy pass is kept over steps, outputs that need no draw are its own.
pub fn parts(graph: &Graph) -> FxHashMap<Id, Part> {
    let kept = graph.outputs.iter().any(|(name, _)| name == KEPT);
    let drawn = |id: Id| {
        let mut leaves = graph.reachable([id]).into_iter().filter_map(|x| graph.as_leaf(x));
        leaves.any(|l| ["t", "u", "beta"].contains(&graph.leaf(l).name.as_str()))
    };
    let outputs: Vec<(Part, Id)> = (graph.outputs.iter())
        .map(|(name, id)| (Part::of_output(name), *id))
        .filter(|(part, id)| !kept || *part == Part::Backward || drawn(*id))
        .collect();
    let mut found = FxHashMap::default();
    for part in Part::ALL {
        for id in graph.reachable(outputs.iter().filter(|(p, _)| *p == part).map(|(_, id)| *id)) {
            found.entry(id).or_insert(part);
        }
    }
    found
}

/// What a step is predicted for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Load {
    /// Sequences.
    pub batch: i64,
    /// Tokens in each.
    pub length: i64,
    /// Tokens of answers in the batch.
    pub answers: i64,
    /// How many of these are masked, ...
    pub masked: i64,
}

impl Load {
    /// Three quarters of each sequence are its answer; of these half are masked, as draws have it on average.
    pub fn typical(batch: i64, length: i64) -> Self {
        let answers = batch * (length - length / 4);
        Load { batch, length, answers, masked: answers / 2 }
    }

    /// Every token is read: the operations of the graph before its rows sank.
    pub fn whole(self) -> Self {
        let all = self.batch * self.length;
        Load { answers: all, masked: all, ..self }
    }
}

/// The sizes of a training graph under a load.  Rows are those of an answer, masked ones, or an expert's share; packed ones
/// are as many and as long as the sequences.
pub fn sizes(graph: &Graph, token_input: &str, load: Load) -> FxHashMap<Sym, i64> {
    let packed = PACKED.map(Sym::new).into_iter().zip([load.batch, load.length]);
    let mut sizes: FxHashMap<Sym, i64> = packed.collect();
    let tokens = graph.find_leaf(token_input).map(|l| graph.leaf(l).ty.shape.clone()).unwrap_or_default();
    for (dim, n) in tokens.iter().zip([load.batch, load.length]) {
        sizes.extend(dim.symbols().into_iter().filter(|s| !s.as_str().starts_with(ROWS)).map(|s| (s, n)));
    }
    for (symbol, selection) in selections(graph) {
        let rows = match selection {
            Selection::Answer => load.answers,
            Selection::Draws => load.masked,
            choice => choice.share(&|s| sizes.get(s).copied()).unwrap_or(load.answers),
        };
        sizes.insert(symbol, rows);
    }
    sizes
}

/// Operations and seconds of one part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Share {
    pub flops: u64,
    /// The same if every token were read.
    pub flops_unsunk: u64,
    pub seconds: f64,
}

impl Share {
    fn and(self, other: Share) -> Share {
        Share {
            flops: self.flops + other.flops,
            flops_unsunk: self.flops_unsunk + other.flops_unsunk,
            seconds: self.seconds + other.seconds,
        }
    }
}

/// What a step will take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    pub machine: String,
    pub threads: usize,
    pub load: Load,
    /// In the order of [`Part::ALL`].
    #[serde(serialize_with = "by_part")]
    pub parts: [Share; 4],
}

impl Prediction {
    pub fn total(&self) -> Share {
        self.parts.into_iter().fold(Share::default(), Share::and)
    }

    /// Two micro-batches before one update.
    pub fn and(self, other: Prediction) -> Prediction {
        let [a, b] = [self.load, other.load];
        let load = Load {
            batch: a.batch + b.batch,
            length: a.length.max(b.length),
            answers: a.answers + b.answers,
            masked: a.masked + b.masked,
        };
        let both = |part: Part| {
            let [a, b] = [&self, &other].map(|p| p.parts[part as usize]);
            if part == Part::Optimizer { a } else { a.and(b) }
        };
        Prediction { load, parts: Part::ALL.map(both), ..self }
    }
}

/// Tells a step of the lowered `graph`, whose parameters `trainable` AdamW updates.
pub fn predict(graph: &Graph, token_input: &str, trainable: &[LeafId], machine: &Machine, load: Load) -> Prediction {
    let [own, whole] = [load, load.whole()].map(|load| {
        let sizes = sizes(graph, token_input, load);
        // What is neither a batch nor rows counts as a length.
        move |s: &Sym| sizes.get(s).copied().unwrap_or(load.length)
    });
    let mut shares = [Share::default(); 4];
    let parts = parts(graph);
    for id in graph.live() {
        let (Some(part), Some(work), Some(unsunk)) = (parts.get(&id), of(graph, id, &own), of(graph, id, &whole))
        else {
            continue;
        };
        let share = &mut shares[*part as usize];
        share.flops += work.flops();
        share.flops_unsunk += unsunk.flops();
        share.seconds += machine.seconds(&work);
    }
    let optimizer = &mut shares[Part::Optimizer as usize];
    for leaf in trainable {
        for work in updates(&graph.leaf(*leaf).ty, &own) {
            optimizer.flops += work.flops();
            optimizer.flops_unsunk += work.flops();
            optimizer.seconds += machine.seconds(&work);
        }
    }
    Prediction { machine: machine.processor.clone(), threads: machine.threads, load, parts: shares }
}

/// Rows, contracted size and columns of the few products that a step spends most operations on.
pub fn product_shapes(graph: &Graph, token_input: &str, load: Load) -> Vec<[usize; 3]> {
    let sizes = sizes(graph, token_input, load);
    let size = |s: &Sym| sizes.get(s).copied().unwrap_or(load.length);
    let at = At(&size);
    let mut flops: FxHashMap<[usize; 3], u64> = FxHashMap::default();
    for id in graph.live() {
        let (Node::Op(op, children), Some(work)) = (graph.node(id), of(graph, id, &size)) else { continue };
        if matches!(work.unit, Unit::Product | Unit::MatMul) {
            let types: Vec<&Type> = children.iter().map(|c| graph.type_of(*c)).collect();
            let columns = at.axis(graph.type_of(id), 1);
            let rows = at.elements(graph.type_of(id)).checked_div(columns).unwrap_or(0);
            let shape = [rows, at.inner(*op, &types), columns].map(|n| n as usize);
            *flops.entry(shape).or_default() += work.products;
        }
    }
    let mut shapes: Vec<([usize; 3], u64)> = flops.into_iter().filter(|(s, _)| !s.contains(&0)).collect();
    shapes.sort_by_key(|(shape, flops)| (std::cmp::Reverse(*flops), *shape));
    shapes.into_iter().take(SHAPES).map(|(shape, _)| shape).collect()
}

/// How many of them.
const SHAPES: usize = 3;

/// The norm's nodes for one gradient, of which the first goes over it, and AdamW.
fn updates(parameter: &TensorType, sizes: Sizes) -> impl Iterator<Item = Work> {
    let p = Type::Tensor(TensorType::new(DType::F32, parameter.shape.clone()));
    let number = Type::Tensor(TensorType::new(DType::F32, vec![]));
    let norm = work(Op::Sum, &[&p], &number, sizes);
    let adamw = work(Op::AdamW, &[&p, &p, &p, &p], &Type::Tuple, sizes);
    [norm, Some(Work::moving(0)), Some(Work::moving(0)), adamw].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Dim;
    use crate::ir::text;

    /// The mask is drawn from an entropy; the gradient reads what the forward part computed.
    const STEP: &str =
        "(graph g (input ids f32 [batch seq]) (input answer_mask bool [batch seq]) (input u f32 [batch seq])
      (param w f32 [8 16])
      (let a (true_rows answer_mask rows.0)) (let m (true_rows (and answer_mask (less u 0.5)) rows.1))
      (let h (matmul (reshape (take_rows (expand (reshape ids [batch seq 1]) [batch seq 8]) a) [rows.0 8]) w))
      (let z (matmul (reshape (take_rows (expand (reshape ids [batch seq 1]) [batch seq 8]) m) [rows.1 8]) w))
      (output entropy (sum h [-2 -1])) (output loss (sum z [-2 -1])) (output grad/w (matmul (transpose z [1 0]) z)))";

    #[test]
    fn packed_rows_are_those_of_the_sequences() {
        let text =
            "(graph g (input ids i64 [batch seq]) (input places i64 [packed.rows packed.length]) (output p places))";
        let graph = text::parse(text).unwrap_or_else(|e| panic!("{}", e.message));
        let sizes = sizes(&graph, "ids", Load { batch: 2, length: 10, answers: 12, masked: 5 });
        let dims = graph.find_leaf("places").map(|l| graph.leaf(l).ty.shape.clone()).unwrap_or_default();
        let found: Vec<i64> = dims.iter().flat_map(Dim::symbols).map(|s| sizes[&s]).collect();
        assert_eq!(found, [2, 10]);
    }

    #[test]
    fn a_part_has_its_rows() {
        let graph = text::parse(STEP).unwrap_or_else(|e| panic!("{}", e.message));
        let load = Load { batch: 2, length: 10, answers: 12, masked: 5 };
        let products = |load: Load| {
            let sizes = sizes(&graph, "ids", load);
            let mut found = [0; 4];
            for (id, part) in parts(&graph) {
                found[part as usize] += of(&graph, id, &|s| sizes[s]).map_or(0, |w| w.products);
            }
            found
        };
        assert_eq!(products(load), [2 * 12 * 8 * 16, 2 * 5 * 8 * 16, 2 * 16 * 5 * 16, 0]);
        assert_eq!(products(load.whole()), [2 * 20 * 8 * 16, 2 * 20 * 8 * 16, 2 * 16 * 20 * 16, 0]);
        let told = predict(&graph, "ids", &[], &Machine::reference(), load);
        assert!(told.parts[..3].iter().all(|p| p.seconds > 0.0 && p.flops < p.flops_unsunk), "{told:?}");
        assert_eq!(told.parts[3], Share::default());
        // An entropy pass that is kept over steps is part of none.
        let kept = text::parse(&STEP.replace("(output entropy", "(output probe/beta"));
        let kept = kept.unwrap_or_else(|e| panic!("{}", e.message));
        let seconds = |g: &Graph| predict(g, "ids", &[], &Machine::reference(), load).parts.map(|p| p.seconds);
        assert!(seconds(&kept)[0] < seconds(&graph)[0] && seconds(&kept)[2] == seconds(&graph)[2]);
    }
}
