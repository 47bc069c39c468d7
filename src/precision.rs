//! The precision stage: the element type in which each value of the model is computed.
//!
//! Weights that are trained are f32, whatever the source holds: an update of one part in 10^5 would be
//! lost in 16 bits.  Frozen ones keep the source's type.  Hidden states, contractions and what lies
//! between them take the compute type; so, through the gradient rows, do their cotangents, and `cast`'s
//! own row brings a weight's gradient back to f32.
//!
//! Types are decided here and nowhere else.  A source of 16 bits is read as one of f32 before it is lifted
//! ([`widened`]): its own casts, which differ between frameworks and stand in the middle of norms, say nothing
//! that the islands do not.
//!
//! Islands stay in f32:
//! - what depends on no weight: rotary angles and tables, masks, positions;
//! - operators that sum, divide or compare beyond what 16 bits hold (`WIDE`), and squares;
//! - inside composites (norms, attention's softmax): `rules/lower*.egg` have forms of their own for narrow
//!   operands;
//! - the objective, which takes logits in f32.
//!
//! An embedding is looked up before it is converted: rows of a batch are fewer than those of a table.

use crate::error::{Error, Result};
use crate::ir::{Builder, DType, Data, Graph, Id, Leaf, LeafId, LeafKind, Lit, Node, Op, Recipe};
use crate::rules::Target;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// The type that values are computed in, as a flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Compute {
    /// What the target is best at: f32 on a CPU.
    #[default]
    Auto,
    F32,
    /// With dynamic loss scaling.
    F16,
    Bf16,
}

impl Compute {
    /// The type for a target, and what the user should know where it is not the one asked for.
    pub fn resolve(self, target: Target) -> (DType, Option<String>) {
        match self {
            Compute::F32 => (DType::F32, None),
            Compute::F16 => (DType::F16, None),
            Compute::Auto | Compute::Bf16 if has_bf16(target) => (DType::BF16, None),
            Compute::Auto => (DType::F32, None),
            Compute::Bf16 => {
                let why = "ONNX Runtime has no bf16 kernels (MatMul among them) for the CPU";
                let target = target.name();
                (DType::F32, Some(format!("--compute bf16 with --target {target}: {why}; computing in f32")))
            }
        }
    }
}

/// Whether every device that runs files for this target multiplies in bf16.
fn has_bf16(target: Target) -> bool {
    target == Target::Cuda
}

/// Operators that are computed in f32 whatever the compute type: they sum many elements, or have values
/// or slopes beyond the range of 16 bits.
const WIDE: [Op; 15] = [
    Op::Softmax,
    Op::Sum,
    Op::Mean,
    Op::CumSum,
    Op::Exp,
    Op::Log,
    Op::Pow,
    Op::Sqrt,
    Op::Rsqrt,
    Op::Reciprocal,
    Op::Div,
    Op::Sin,
    Op::Cos,
    Op::Softplus,
    Op::WeightNorm,
];

/// Operators that pick elements: their result has the type of what they pick from.
const PICKS: [Op; 2] = [Op::Gather, Op::GatherElements];

/// The model with every value of 16 bits in f32: weights by a recipe, inputs by a cast, and no cast between them.
///
/// # Errors
/// `Internal` where a value cannot be converted, a mistake of this stage.
pub fn widened(model: &Graph) -> Result<Graph> {
    let internal = |m: String| Error::internal("precision", m);
    let live = model.live();
    if !live.iter().any(|id| model.tensor_type(*id).is_some_and(|t| is_narrow(t.dtype))) {
        return Ok(model.clone());
    }
    let mut graph = Graph::with_leaves_of(model);
    graph.leaves.iter_mut().filter(|l| l.kind != LeafKind::Input).for_each(widen);
    let copied = graph.copy_outputs(model, |g, _, node| match node {
        Node::Lit(Lit::DType(t)) if is_narrow(t) => g.lit(Lit::DType(DType::F32)),
        Node::Op(Op::Cast, c) if matches!(g.type_of(c[1]).lit(), Some(Lit::DType(to)) if Some(*to) == g.tensor_type(c[0]).map(|t| t.dtype)) => Ok(c[0]),
        Node::Leaf(_) => {
            let leaf = g.insert(node)?;
            if g.tensor_type(leaf).is_some_and(|t| is_narrow(t.dtype)) { cast(g, leaf, DType::F32) } else { Ok(leaf) }
        }
        node => g.insert(node),
    });
    copied.map_err(internal)?;
    Ok(graph)
}

/// The lifted model with every value in its type: `trained` weights in f32, others in that of the source again.
///
/// A model in f32 that is computed in f32 comes back as it is.
///
/// # Errors
/// `Internal` where a value cannot be converted, a mistake of this stage.
pub fn apply(model: &Graph, trained: &[LeafId], compute: DType) -> Result<Graph> {
    let internal = |m: String| Error::internal("precision", m);
    let live = model.live();
    let mut graph = Graph::with_leaves_of(model);
    for (k, leaf) in graph.leaves.iter_mut().enumerate().filter(|(_, l)| l.kind != LeafKind::Input) {
        if trained.contains(&LeafId(k as u32)) { widen(leaf) } else { narrow(leaf) }
    }
    if compute == DType::F32 && !graph.leaves.iter().chain(&model.leaves).any(|l| is_narrow(l.ty.dtype)) {
        return Ok(model.clone());
    }
    let policy = Policy::new(model, &live, compute);
    let mut new: FxHashMap<Id, Id> = FxHashMap::default();
    for &id in &live {
        let value = match model.node(id) {
            Node::Op(op, children) => {
                let children: Vec<Id> = children.iter().map(|c| new[c]).collect();
                policy.node(&mut graph, id, *op, children).map_err(internal)?
            }
            other => graph.insert(other.clone()).map_err(internal)?,
        };
        if let Some(origin) = model.origin.get(&id) {
            graph.origin.entry(value).or_insert_with(|| origin.clone());
        }
        new.insert(id, value);
    }
    graph.outputs = model.outputs.iter().map(|(name, id)| (name.clone(), new[id])).collect();
    Ok(graph)
}

/// Whether a type has 16 bits.
pub fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// The input that the reverse sweep's seed is multiplied by in f16, whose least number is 6e-8: f32 [], fed
/// by the runner, which divides the gradients by it again.
pub const LOSS_SCALE: &str = "loss_scale";

/// `loss` times the new input [`LOSS_SCALE`].
///
/// # Errors
/// `Internal` where `loss` is no scalar of f32.
pub fn scaled(graph: &mut Graph, loss: Id) -> Result<Id> {
    let scale = graph.input(LOSS_SCALE, DType::F32, &[]);
    let one: Arc<[u8]> = 1f32.to_le_bytes().into();
    if let Some(leaf) = graph.leaves.last_mut() {
        leaf.data = Some(Data::Inline(one));
    }
    graph.op(Op::Mul, &[loss, scale]).map_err(|m| Error::internal("precision", m))
}

/// Makes a weight of 16 bits one of f32, its first value converted.
fn widen(leaf: &mut Leaf) {
    let from = leaf.ty.dtype;
    if !is_narrow(from) {
        return;
    }
    leaf.ty.dtype = DType::F32;
    let recipe = Recipe::Cast { from, to: DType::F32 };
    leaf.data = leaf.data.take().map(|data| Data::Derived { from: Arc::new(data), recipe });
}

/// Takes [`widen`] back.
fn narrow(leaf: &mut Leaf) {
    if let Some(Data::Derived { from: data, recipe: Recipe::Cast { from, to: DType::F32 } }) = &leaf.data {
        (leaf.ty.dtype, leaf.data) = (*from, Some(Data::clone(data)));
    }
}

/// What decides a value's type.
struct Policy<'a> {
    model: &'a Graph,
    compute: DType,
    /// By node: whether a weight goes into it.
    weighted: Vec<bool>,
}

impl<'a> Policy<'a> {
    fn new(model: &'a Graph, live: &[Id], compute: DType) -> Self {
        let mut weighted = vec![false; model.len()];
        for &id in live {
            weighted[usize::from(id)] = match model.node(id) {
                Node::Leaf(l) => model.leaf(*l).kind == LeafKind::Param && model.leaf(*l).ty.dtype.is_float(),
                node => node.children().iter().any(|c| weighted[usize::from(*c)]),
            };
        }
        Policy { model, compute, weighted }
    }

    /// The node over new children, each brought to the type that the operator computes in.
    fn node(&self, graph: &mut Graph, id: Id, op: Op, mut children: Vec<Id>) -> std::result::Result<Id, String> {
        let Some(old) = self.model.tensor_type(id).map(|t| t.dtype) else { return graph.op(op, &children) };
        let operands = op.operands(children.len());
        let float = |g: &Graph, c: Id| g.tensor_type(c).map(|t| t.dtype).filter(|t| t.is_float());
        if !old.is_float() {
            // Comparisons and conversions to integers: in the widest type of their operands, at least f32.
            let types: Vec<DType> = children[..operands].iter().filter_map(|c| float(graph, *c)).collect();
            let to = if types.contains(&DType::F64) { DType::F64 } else { DType::F32 };
            for c in &mut children[..operands] {
                *c = convert(graph, *c, to)?;
            }
            return graph.op(op, &children);
        }
        let to = match op {
            _ if old == DType::F64 => DType::F64,
            _ if PICKS.contains(&op) => return graph.op(op, &children),
            _ if !self.weighted[usize::from(id)] => DType::F32,
            Op::Mul if children[0] == children[1] => DType::F32,
            _ if WIDE.contains(&op) => DType::F32,
            _ => self.compute,
        };
        match op {
            Op::Cast => return cast(graph, children[0], to),
            Op::Full => {
                children[1] = graph.lit(Lit::DType(to))?;
                return graph.op(op, &children);
            }
            _ => {}
        }
        // Draws are whole numbers, beyond what 16 bits hold.
        let operands = if op == Op::Dropout { 1 } else { operands };
        for c in &mut children[..operands] {
            *c = convert(graph, *c, to)?;
        }
        graph.op(op, &children)
    }
}

/// A floating-point value in type `to`; others are left alone.
fn convert(graph: &mut Graph, id: Id, to: DType) -> std::result::Result<Id, String> {
    match graph.tensor_type(id).map(|t| t.dtype) {
        Some(t) if t.is_float() && t != to => cast(graph, id, to),
        _ => Ok(id),
    }
}

fn cast(graph: &mut Graph, id: Id, to: DType) -> std::result::Result<Id, String> {
    if graph.tensor_type(id).is_some_and(|t| t.dtype == to) {
        return Ok(id);
    }
    let dtype = graph.lit(Lit::DType(to))?;
    match graph.node(id).clone() {
        Node::Op(Op::Full, children) => graph.op(Op::Full, &[children[0], dtype, children[2]]),
        _ => graph.op(Op::Cast, &[id, dtype]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_needs_kernels() {
        let (dtype, note) = Compute::Bf16.resolve(Target::Cpu);
        assert_eq!(dtype, DType::F32);
        assert!(note.is_some_and(|n| n.contains("no bf16 kernels")));
        assert_eq!(Compute::F16.resolve(Target::Portable), (DType::F16, None));
    }
}
