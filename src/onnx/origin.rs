//! Weights apart from tables: what exporters note of an initializer, what its name says and where it is used.
//!
//! PyTorch's dynamo exporter notes of each initializer whether it is a parameter or a buffer, and of each that it computed
//! from which values.  Others leave names alone: of modules (`blocks.0.norm.weight`), of the model itself (`mask_token`),
//! or made up (`onnx::Mul_388`).  What has no name of its own is learned where only learned tensors stand.

use super::known::floats;
use super::proto::{GraphProto, NodeProto, StringStringEntryProto};
use super::scope::quoted;
use super::tensor::Tensor;
use super::weights;
use std::collections::{BTreeMap, BTreeSet};

/// `PARAMETER`, `BUFFER` or `CONSTANT_TENSOR`.
const KIND: &str = "pkg.torch.export.graph_signature.InputSpec.kind";
/// The names of the values that an initializer was computed from, as a Python list.
const FOLDED: &str = "pkg.onnxscript.optimizer.folded_from";
/// The call that a node was made of, as PyTorch prints it.
const CALL: &str = "pkg.torch.onnx.fx_node";

/// Words in a name that mark a table (a buffer that is computed, not learned) ...
const TABLE_WORDS: &[&str] = &[
    "cos",
    "sin",
    "freq",
    "freqs",
    "rope",
    "rotary",
    "mask",
    "ids",
    "alibi",
    "slopes",
    "buffer",
    "cached",
    "cis",
    "embed_scale",
];

/// ... but for names that end in such a word: `mask_token`, `mask_embedding`, `rope_gain`.
const LEARNED_WORDS: &[&str] =
    &["token", "emb", "embed", "embedding", "embeddings", "weight", "bias", "gain", "gamma", "beta"];
/// What ends in `emb` and is a table all the same.
const ROTARY: &[&str] = &["rope", "rotary", "cos", "sin", "freq", "freqs"];

/// Names of values that PyTorch computes from nothing.
const CREATED: &[&str] = &[
    "arange",
    "zeros",
    "ones",
    "full",
    "eye",
    "linspace",
    "scalar_tensor",
    "tril",
    "triu",
    "lifted_tensor",
    "_tensor_constant",
    "empty",
    "one_hot",
];

/// No learned number is as large: what masks scores is.
const EXTREME: f64 = 1e4;

/// What the exporter notes.
#[derive(Debug)]
enum Origin {
    Parameter,
    Buffer,
    /// Computed from values of these names.
    Folded(Vec<String>),
}

/// Decides of each initializer whether it is learned.
pub struct Origins<'m> {
    noted: BTreeMap<&'m str, Origin>,
    /// TorchScript wrote the graph: names that are not made up are the model's.
    torchscript: bool,
    /// Values from which rotary angles are computed.
    angles: BTreeSet<&'m str>,
    /// Values that are x / sqrt(mean x^2 + eps) or alike.
    normalised: BTreeSet<&'m str>,
}

impl<'m> Origins<'m> {
    pub fn new(graph: &'m GraphProto) -> Self {
        let infos = graph.value_info.iter().chain(&graph.input);
        Origins {
            noted: infos.filter_map(|v| Some((v.name.as_str(), noted(&v.metadata_props)?))).collect(),
            torchscript: graph.initializer.iter().any(|t| t.name.starts_with("onnx::")),
            angles: angles(graph),
            normalised: normalised(graph),
        }
    }

    /// Whether the exporter made up the name of an initializer.
    pub fn is_made_up(&self, name: &str) -> bool {
        is_made_up(name) || matches!(self.noted.get(name), Some(Origin::Folded(_)))
    }

    /// The parameters, by name, that an initializer was computed from.
    pub fn parents(&self, name: &str) -> Vec<&str> {
        let Some(Origin::Folded(from)) = self.noted.get(name) else { return Vec::new() };
        let is_parameter = |n: &&str| match self.noted.get(n) {
            Some(Origin::Parameter) => true,
            Some(Origin::Buffer) => false,
            _ => is_module_path(n) && !is_written_down(n) && !has_table_word(n),
        };
        from.iter().map(String::as_str).filter(is_parameter).collect()
    }

    /// The parameter that an initializer holds in another layout, where it was computed from nothing else.
    pub fn original(&self, name: &str) -> Option<&str> {
        let Some(Origin::Folded(from)) = self.noted.get(name) else { return None };
        let [only] = self.parents(name)[..] else { return None };
        (from.len() == 1).then_some(only)
    }

    /// The parameter that a row of so many axes holds and how many of them are its own, where axes of size 1 are all that was
    /// added: each call in PyTorch that does more leaves its name among those that the row was computed from.
    pub fn vector(&self, name: &str, rank: usize) -> Option<(&str, usize)> {
        const UNSQUEEZE: &str = "unsqueeze";
        const ADD_AXES: &[&str] = &[UNSQUEEZE, "view", "reshape"];
        let adds = |n: &str| ADD_AXES.iter().any(|call| n.starts_with(call));
        let Some(Origin::Folded(from)) = self.noted.get(name) else { return None };
        let [only] = self.parents(name)[..] else { return None };
        // Axes and shapes have numbers for names.
        let calls = || from.iter().map(String::as_str).filter(|n| *n != only && !n.starts_with("val_")).chain([name]);
        let added = calls().filter(|n| n.starts_with(UNSQUEEZE)).count();
        let own = if added == calls().count() { rank.saturating_sub(added).max(1) } else { 1 };
        calls().all(adds).then_some((only, own))
    }

    /// Whether it is a factor of normalised activations.
    pub fn scales(&self, u: &Use) -> bool {
        u.node.op_type == "Mul" && u.node.input.iter().any(|x| self.normalised.contains(x.as_str()))
    }

    /// Whether a float tensor is learned, by its name, what is noted of it and where it is used.
    pub fn is_learned(&self, name: &str, tensor: &Tensor, users: &[Use]) -> bool {
        let is_matrix = || tensor.dims.len() > 1 && users.iter().any(Use::is_factor);
        if !users.is_empty() && users.iter().all(Use::is_of_codes) {
            return false;
        }
        match self.noted.get(name) {
            Some(Origin::Parameter) => return true,
            Some(Origin::Buffer) => return false,
            _ if self.angles.contains(name) => return false,
            Some(Origin::Folded(from)) => {
                let created = |n: &String| CREATED.iter().any(|c| n.starts_with(c)) || is_written_down(n);
                let by_use = || is_matrix() && !from.iter().any(created);
                return tensor.numel() > 1
                    && (!self.parents(name).is_empty() || by_use())
                    && (is_matrix() || !is_extreme(tensor));
            }
            None => {}
        }
        // An exporter that folds has left behind what only gave its shape.
        if !users.is_empty() && users.iter().all(|u| u.node.op_type == "Shape") {
            return false;
        }
        if is_made_up(name) {
            let is_vector = tensor.dims.len() == 1 || tensor.is_row();
            let scales = |u: &Use| is_vector && self.scales(u);
            return tensor.numel() > 1 && users.iter().any(|u| u.is_weight() || scales(u));
        }
        if has_table_word(name) || is_written_down(name) {
            return false;
        }
        let is_named = is_module_path(name) || self.torchscript;
        is_named || tensor.numel() > 1 && (is_matrix() || !is_extreme(tensor))
    }
}

fn noted(entries: &[StringStringEntryProto]) -> Option<Origin> {
    let value = |key: &str| entries.iter().find(|e| e.key == key).map(|e| e.value.as_str());
    match value(KIND) {
        Some("PARAMETER") => Some(Origin::Parameter),
        Some("BUFFER" | "CONSTANT_TENSOR") => Some(Origin::Buffer),
        _ => value(FOLDED).map(|list| Origin::Folded(quoted(list))),
    }
}

/// Whether a tensor holds a number that no learned one does.
fn is_extreme(tensor: &Tensor) -> bool {
    let Ok(bytes) = weights::load(&tensor.data) else { return false };
    let far = |x: f64| !x.is_finite() || x.abs() >= EXTREME;
    floats(tensor.dtype, &bytes).is_some_and(|mut all| all.any(far))
}

/// Where an initializer is used.
pub struct Use<'m> {
    pub node: &'m NodeProto,
    pub operand: usize,
}

impl Use<'_> {
    /// A factor of a matrix product.
    pub fn is_factor(&self) -> bool {
        match self.node.op_type.as_str() {
            "MatMul" | "Gemm" | "FusedMatMul" | "FusedGemm" | "TransposeMatMul" => true,
            // That of ONNX Runtime's domain projects by itself.
            "Attention" => self.node.domain == "com.microsoft" && self.operand == 1,
            _ => false,
        }
    }

    /// A term or factor of every row.
    pub fn broadcasts(&self) -> bool {
        matches!(self.node.op_type.as_str(), "Add" | "Sub" | "Mul")
    }

    /// The codes of a weight in few bits.
    pub fn is_codes(&self) -> bool {
        matches!((self.node.op_type.as_str(), self.operand), ("MatMulNBits", 1) | ("DequantizeLinear", 0))
    }

    /// Codes, their scales or their zero points: none of them is learned.
    fn is_of_codes(&self) -> bool {
        match self.node.op_type.as_str() {
            "MatMulNBits" => matches!(self.operand, 1..=4),
            "DequantizeLinear" => true,
            _ => false,
        }
    }

    /// Whether rows of the first axis are looked up in it, as in `w[experts]`: the exporter brings the axes that are
    /// indexed to the front, and there this one is already.
    pub fn takes_rows(&self) -> bool {
        let call = self.node.metadata_props.iter().find(|e| e.key == CALL).map_or("", |e| e.value.as_str());
        let rest = call.split_once("aten.index.Tensor](args = (").and_then(|(_, args)| args.split_once(", ["));
        let indices = rest.and_then(|(_, list)| list.split_once(']')).map_or("None", |(list, _)| list);
        self.node.op_type == "GatherND" && self.operand == 0 && !indices.contains("None")
    }

    /// A place where only learned tensors stand.
    fn is_weight(&self) -> bool {
        match self.node.op_type.as_str() {
            "Gather" | "GatherND" => self.operand == 0,
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" | "PRelu" => self.operand > 0,
            // What ONNX Runtime's optimisers fuse.
            "BiasGelu" | "FastGelu" => true,
            "Attention" => self.node.domain == "com.microsoft" && self.operand == 2,
            "MultiHeadAttention" => self.operand == 3,
            "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => self.operand > 1,
            "EmbedLayerNormalization" => matches!(self.operand, 2..=6),
            _ => self.is_factor(),
        }
    }
}

/// A name that an exporter made up: `val_25`, `onnx::MatMul_355`, `/blocks.0/Constant_1_output_0`.
pub fn is_made_up(name: &str) -> bool {
    let numbered = |prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    name.starts_with('/')
        // What weftc itself writes.
        || name.starts_with("const/")
        || name.contains("::")
        || ["", "val_", "_tensor_constant", "lifted_tensor_", "Constant_", "constant_", "_inlined_"]
            .iter()
            .any(|p| numbered(p))
}

/// `transformer.ln_f.weight`, as PyTorch names parameters and buffers.  TensorFlow's `encoder/layer_._0/attention/add/y:0` is
/// a number in the code.
pub fn is_module_path(name: &str) -> bool {
    name.contains('.') && !name.contains('/') && !is_made_up(name)
}

/// A number in a module's code, which is a tensor of the module for `torch.export`: `model.layers.0.lifted_tensor_1`.
fn is_written_down(name: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, own)| ["lifted_tensor", "_tensor_constant"].iter().any(|c| own.starts_with(c)))
}

pub fn has_table_word(name: &str) -> bool {
    let last = name.rsplit(['.', '/']).next().unwrap_or(name).to_lowercase();
    let words = || last.split('_');
    if words().next_back().is_some_and(|w| LEARNED_WORDS.contains(&w)) && last.contains('_') {
        let ends_in_emb = last.ends_with("emb") || last.ends_with("embed");
        return ends_in_emb && words().any(|w| ROTARY.contains(&w));
    }
    TABLE_WORDS.contains(&last.as_str()) || words().any(|w| TABLE_WORDS.contains(&w))
}

/// Names from which rotary angles or their cosines are computed: tables, whatever they are called.  The sine of what was
/// computed from tokens is an activation, and its factors are learned.
fn angles(graph: &GraphProto) -> BTreeSet<&str> {
    const THROUGH: &[&str] = &[
        "Slice",
        "Unsqueeze",
        "Squeeze",
        "Expand",
        "Concat",
        "Reshape",
        "Gather",
        "Cast",
        "Identity",
        "Transpose",
        "Mul",
        "Div",
        "MatMul",
        "Cos",
        "Sin",
    ];
    let content = embedded(graph);
    let mut found = BTreeSet::new();
    for node in graph.node.iter().rev() {
        let inputs = || node.input.iter().map(String::as_str);
        let reached =
            node.output.iter().any(|o| found.contains(o.as_str())) && THROUGH.contains(&node.op_type.as_str());
        match node.op_type.as_str() {
            "RotaryEmbedding" => found.extend(inputs().skip(1).take(2)),
            _ if inputs().any(|x| content.contains(x)) => {}
            "Cos" | "Sin" => found.extend(inputs()),
            _ if reached => found.extend(inputs()),
            _ => {}
        }
    }
    found
}

/// Values that are computed from rows of a float table, looked up for each token.
fn embedded(graph: &GraphProto) -> BTreeSet<&str> {
    let float = |t: &&super::proto::TensorProto| matches!(t.data_type, 1 | 10 | 11 | 16) && t.dims.len() == 2;
    let tables: BTreeSet<&str> = graph.initializer.iter().filter(float).map(|t| t.name.as_str()).collect();
    let mut fed: BTreeSet<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
    let mut content = BTreeSet::new();
    for node in graph.node.iter().filter(|n| !matches!(n.op_type.as_str(), "Shape" | "Size")) {
        let input = |k: usize| node.input.get(k).map(String::as_str);
        let looked_up = node.op_type == "Gather"
            && input(0).is_some_and(|x| tables.contains(x))
            && input(1).is_some_and(|x| fed.contains(x));
        if looked_up || node.input.iter().any(|x| content.contains(x.as_str())) {
            content.extend(node.output.iter().map(String::as_str));
        } else if node.input.iter().any(|x| fed.contains(x.as_str())) {
            fed.extend(node.output.iter().map(String::as_str));
        }
    }
    content
}

/// Norms, and products and quotients with the root of a mean: the scale of a norm stands beside one.
fn normalised(graph: &GraphProto) -> BTreeSet<&str> {
    // Behind a mean, and behind the root of one.
    let (mut means, mut roots, mut found) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for node in &graph.node {
        let among = |set: &BTreeSet<&str>| node.input.iter().any(|x| set.contains(x.as_str()));
        let outputs = || node.output.iter().map(String::as_str);
        match node.op_type.as_str() {
            "ReduceMean" => means.extend(outputs()),
            "Sqrt" | "Pow" if among(&means) => roots.extend(outputs()),
            "Add" | "Cast" | "Max" | "Clip" if among(&means) => means.extend(outputs()),
            "Reciprocal" if among(&roots) => roots.extend(outputs()),
            "Div" if among(&roots) => {
                // 1 / root, or x / root.
                found.extend(outputs());
                roots.extend(outputs());
            }
            "Mul" if among(&roots) => found.extend(outputs()),
            "Cast" if among(&found) => found.extend(outputs()),
            // One without weights of its own may have them behind it.
            "LayerNormalization" | "RMSNormalization" => found.extend(outputs().take(1)),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables_and_of_what_is_learned() {
        let tables = ["rotary_emb.inv_freq", "causal_mask", "cos", "h.0.attn.masked.mask", "rope_emb", "position_ids"];
        let learned = ["mask_token", "sub.mask_embedding", "rope_gain", "wte.weight", "cosine.weight", "mask_emb"];
        assert_eq!(tables.map(has_table_word), [true; 6]);
        assert_eq!(learned.map(has_table_word), [false; 6]);
    }
}
