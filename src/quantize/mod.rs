//! Frozen weights in 8 or 4 bits (`--quantize-base`).
//!
//! The matrices of linear layers become codes and scales behind one `dequantize`; the rest of the pipeline
//! sees an ordinary weight in the compute type, so gradients flow to the layer's input as through any
//! other.  `rules/fuse.egg` then lets the forward product read the codes.
//!
//! What is quantised: frozen matrices that are an operand of a product, directly or through a transpose or
//! what an adapter adds to them.  What is not: what is trained, tables that tokens look up, layers with fewer inputs
//! than half a block, and the head, which transformers leaves too: its rounding goes into every probability,
//! and entropy and loss go through a dense one in blocks, without logits (`rules/sink_head.egg`).

use crate::error::{Error, Problem, Result};
use crate::ir::{
    Blocks, Builder, DType, Data, Dim, Graph, Id, Leaf, LeafId, LeafKind, Lit, Node, Op, Recipe, TensorType,
};
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Elements that share a scale: as fine as ONNX Runtime's kernels are fast with.
pub const BLOCK: usize = 32;

/// How many bits a frozen weight keeps, as a flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// A byte and an eighth with its scale in f32.
    Int8,
    /// Half a byte and an eighth.
    Int4,
}

impl Quantization {
    pub fn bits(self) -> u32 {
        match self {
            Quantization::Int8 => 8,
            Quantization::Int4 => 4,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Quantization::Int8 => "int8",
            Quantization::Int4 => "int4",
        }
    }
}

/// What was quantised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quantized {
    /// The weights' names, in the order of the source.
    pub names: Vec<String>,
    /// Their bytes in the source, and as codes and scales.
    pub before: u64,
    pub after: u64,
}

impl Quantized {
    /// One line for the compile report.
    pub fn line(&self, how: Quantization) -> String {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        format!(
            "{} of the frozen weights are {} in blocks of {BLOCK}: {:.1} MB became {:.1} MB",
            self.names.len(),
            how.name(),
            mb(self.before),
            mb(self.after)
        )
    }
}

/// How a matrix is used.
#[derive(Clone, Copy, Default)]
struct Use {
    /// The right operand of a product as it lies, `[inputs, outputs]`, or transposed.
    plain: bool,
    transposed: bool,
    /// In a way that needs the dense numbers anyway.
    other: bool,
}

/// The model, already in its compute type, with its frozen matrices quantised.
///
/// # Errors
/// `Usage` where there is none to quantise.
pub fn apply(model: &Graph, trained: &[LeafId], how: Quantization, compute: DType) -> Result<(Graph, Quantized)> {
    let internal = |m: String| Error::internal("quantize", m);
    let mut graph = Graph::with_leaves_of(model);
    let mut done = Quantized::default();
    let mut dense: BTreeMap<LeafId, Id> = BTreeMap::new();
    for (leaf, used) in uses(model) {
        if used.other || used.plain == used.transposed || trained.contains(&leaf) {
            continue;
        }
        let Some(blocks) = blocks(model.leaf(leaf), used.plain, how, compute) else { continue };
        done.names.push(model.leaf(leaf).name.clone());
        done.before += model.leaf(leaf).data.as_ref().map_or(0, Data::len);
        done.after += (blocks.code_bytes() + blocks.scale_bytes()) as u64;
        dense.insert(leaf, weight(&mut graph, leaf, &blocks).map_err(internal)?);
    }
    if dense.is_empty() {
        let help = "train adapters (--trainable lora) or fewer weights, so that linear layers stay frozen";
        let problem = Problem::new("--quantize-base", "there is no frozen matrix of a linear layer to quantise");
        return Err(Error::usage(problem.help(help)));
    }
    let quantised = |id: Id| model.as_leaf(id).and_then(|l| dense.get(&l).copied());
    let copied = graph.copy_outputs(model, |g, id, node| match (model.node(id), &node) {
        // The dense weight has the compute type: where the source's is another, its cast stands for it.
        (Node::Leaf(l), _) if dense.contains_key(l) && model.leaf(*l).ty.dtype == compute => Ok(dense[l]),
        (Node::Op(Op::Cast, old), Node::Op(_, new)) => match (quantised(old[0]), model.tensor_type(id)) {
            (Some(dense), Some(ty)) if ty.dtype == compute => Ok(dense),
            (Some(dense), _) => g.op(Op::Cast, &[dense, new[1]]),
            (None, _) => g.insert(node),
        },
        _ => g.insert(node),
    });
    copied.map_err(internal)?;
    Ok((graph, done))
}

/// How each matrix of floating-point numbers is used.
fn uses(model: &Graph) -> BTreeMap<LeafId, Use> {
    let mut found: BTreeMap<LeafId, Use> = BTreeMap::new();
    // Values that are a matrix but for layout and what is added to it: the leaf, and whether it is transposed.
    let mut views: FxHashMap<Id, (LeafId, bool)> = FxHashMap::default();
    for id in model.live() {
        let children = match model.node(id) {
            Node::Leaf(l) => {
                let leaf = model.leaf(*l);
                if leaf.kind == LeafKind::Param && leaf.ty.dtype.is_float() && leaf.ty.rank() == 2 {
                    views.insert(id, (*l, false));
                    found.insert(*l, Use::default());
                }
                continue;
            }
            Node::Op(_, children) => children.clone(),
            Node::Lit(_) => continue,
        };
        let op = model.node(id).op();
        let same_shape = |c: Id| model.type_of(c).shape() == model.type_of(id).shape();
        for (k, c) in children.iter().enumerate() {
            let Some(&(leaf, turned)) = views.get(c) else { continue };
            let entry = found.entry(leaf).or_default();
            match op {
                Some(Op::Cast) => drop(views.insert(id, (leaf, turned))),
                Some(Op::Transpose) => drop(views.insert(id, (leaf, !turned))),
                Some(Op::Add | Op::Sub | Op::Mul | Op::Div) if same_shape(*c) => {
                    views.entry(id).or_insert((leaf, turned));
                }
                Some(Op::MatMul) if k == 1 && turned => entry.transposed = true,
                Some(Op::MatMul) if k == 1 => entry.plain = true,
                // A norm of the weight, as DoRA takes it, reads the dense one as the reverse sweep does.
                Some(Op::WeightNorm) if k == 0 => {}
                _ => entry.other = true,
            }
        }
    }
    let of_outputs = model.outputs.iter().map(|(_, id)| *id);
    for (leaf, _) in of_outputs.chain(heads(model)).filter_map(|id| views.get(&id)) {
        found.entry(*leaf).or_default().other = true;
    }
    found
}

/// The right operands of the products whose result is an output but for offsets, scales and caps.
fn heads(model: &Graph) -> Vec<Id> {
    let mut found = Vec::new();
    let mut seen = FxHashSet::default();
    let mut under: Vec<Id> = model.outputs.iter().map(|(_, id)| *id).collect();
    while let Some(id) = under.pop() {
        match model.node(id) {
            _ if !seen.insert(id) => {}
            Node::Op(Op::MatMul, c) => found.push(c[1]),
            Node::Op(Op::Cast | Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Tanh | Op::Reshape, c) => {
                under.extend(c.iter().filter(|c| model.tensor_type(**c).is_some()));
            }
            _ => {}
        }
    }
    found
}

/// How a weight is cut; `plain`: it lies as `[inputs, outputs]`.
fn blocks(leaf: &Leaf, plain: bool, how: Quantization, compute: DType) -> Option<Blocks> {
    let sizes: Option<Vec<usize>> = leaf.ty.shape.iter().map(|d| d.known().and_then(|n| n.try_into().ok())).collect();
    let [first, second] = sizes?[..] else { return None };
    let (rows, columns) = if plain { (second, first) } else { (first, second) };
    leaf.data.as_ref()?;
    (columns >= BLOCK / 2 && rows > 0).then_some(Blocks {
        from: leaf.ty.dtype,
        rows,
        columns,
        transposed: plain,
        block: BLOCK,
        bits: how.bits(),
        scales: compute,
    })
}

/// The dense value of a quantised weight, in the layout of the source.
fn weight(graph: &mut Graph, leaf: LeafId, blocks: &Blocks) -> std::result::Result<Id, String> {
    let source = graph.leaf(leaf).clone();
    let data = Arc::new(source.data.clone().ok_or("it has no data")?);
    let dim = |n: usize| Dim::Known(n as i64);
    let (rows, per_row) = (dim(blocks.rows), dim(blocks.per_row()));
    let mut table = |part: &str, ty: TensorType, recipe: Recipe| {
        graph.add_leaf(Leaf {
            name: format!("{}.{part}", source.name),
            ty,
            kind: LeafKind::Const,
            data: Some(Data::Derived { from: data.clone(), recipe }),
            transposed: false,
            source_name: None,
        })
    };
    let shape = [rows.clone(), per_row.clone(), dim(blocks.block * blocks.bits as usize / 8)];
    let codes = table("codes", TensorType::new(DType::U8, shape), Recipe::Codes(blocks.clone()));
    let scales = table("scales", TensorType::new(blocks.scales, [rows, per_row]), Recipe::Scales(blocks.clone()));
    let bits = graph.lit(Lit::Int(Dim::Known(blocks.bits.into())))?;
    let k = graph.lit(Lit::Int(dim(blocks.columns)))?;
    let dense = graph.op(Op::Dequantize, &[codes, scales, bits, k])?;
    if !blocks.transposed {
        return Ok(dense);
    }
    let perm = graph.lit(Lit::Ints([1, 0].map(Dim::Known).into()))?;
    graph.op(Op::Transpose, &[dense, perm])
}
