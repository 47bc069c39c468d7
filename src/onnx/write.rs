//! A lowered training graph as train.onnx (the contract: ARCHITECTURE.md, README).

use super::data_file::{DataFile, SMALLEST_EXTERNAL};
use super::emit::{CONTRIB, DOMAIN, OPSET, Scope, data_type, type_proto};
use super::functions::Functions;
use super::proto::{
    GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, ValueInfoProto, tensor_proto,
};
use super::train_file::Function;
use super::weights;
use crate::error::{Error, Result};
use crate::ir::{DType, Data, Dim, Graph, Id, Leaf, LeafId, LeafKind, Node, Op, TensorType, Type};
use crate::manifest::{KEY, Manifest};
use crate::rules::Rule;
use prost::Message;
use prost::bytes::Bytes;
use std::collections::BTreeSet;
use std::path::Path;

/// The IR version of every file that weftc writes.
pub const IR_VERSION: i64 = 10;

/// Protobuf messages end at 2 GiB; what is larger must reference its weights.
const MAX_BYTES: usize = (1 << 31) - 1;

/// What is written.
pub struct Parts<'a> {
    pub graph: &'a Graph,
    /// Nodes in file order.
    pub order: &'a [Id],
    /// Leaves that are inputs with a default initializer.
    pub trainable: &'a [LeafId],
    /// The `lower` rules, for function bodies.
    pub rules: &'a [Rule],
    /// Of a training graph, which then also holds the optimizer; any other graph has none.
    pub manifest: Option<&'a Manifest>,
    /// The source model's file: its own weights are copied, its external files are referenced.
    pub source: &'a Path,
}

/// Where weights go that would make the file itself too large.
pub struct Beside<'a> {
    pub file: &'a mut DataFile,
    /// The model is written into the source's folder: what is external there can be referenced.
    pub with_source: bool,
}

/// The encoded model, with its weights in it but for those that are external in the source.
pub fn encode(parts: &Parts) -> Result<Vec<u8>> {
    encode_with(parts, None)
}

/// The encoded model; weights go into a file beside it where one is given.
pub fn encode_with(parts: &Parts, mut beside: Option<Beside>) -> Result<Vec<u8>> {
    let graph = parts.graph;
    let mut functions = Functions::default();
    let mut scope = Scope::new(graph, parts.rules, &mut functions, None)?;
    scope.run(parts.order)?;
    let (node, constants, uses_contrib) =
        (std::mem::take(&mut scope.nodes), std::mem::take(&mut scope.constants), scope.uses_contrib);
    let halves = std::mem::take(&mut scope.halves);
    if parts.manifest.is_some() {
        add_optimizer(&mut functions, parts.rules)?;
    }

    // Of weights in few bits nothing may read the bytes, but only the codes that they are.
    let read: BTreeSet<&str> = node.iter().flat_map(|n| &n.input).map(String::as_str).collect();
    let trainable: BTreeSet<LeafId> = parts.trainable.iter().copied().collect();
    let leaves = || (0..graph.leaves.len() as u32).map(LeafId).map(|id| (id, graph.leaf(id)));
    let mut input: Vec<ValueInfoProto> = leaves()
        .filter(|(_, l)| l.kind == LeafKind::Input)
        .chain(leaves().filter(|(id, _)| trainable.contains(id)))
        .map(|(_, l)| value_info(&l.name, &l.ty))
        .collect();
    input.dedup_by(|a, b| a.name == b.name);
    let mut initializer: Vec<TensorProto> = constants.into_values().collect();
    for (id, leaf) in leaves().filter(|(_, l)| l.kind != LeafKind::Input || l.data.is_some()) {
        if read.contains(leaf.name.as_str()) || trainable.contains(&id) {
            initializer.push(tensor(leaf, parts.source, beside.as_mut())?);
        }
    }
    for (name, (leaf, dims)) in halves {
        let leaf = graph.leaf(leaf);
        let bytes = match initializer.iter().find(|t| t.name == leaf.name) {
            Some(bytes) => bytes.clone(),
            None => tensor(leaf, parts.source, beside.as_mut())?,
        };
        initializer.push(halves_of(name, dims, bytes));
    }
    let output =
        graph.outputs.iter().filter_map(|(name, id)| Some(value_info(name, graph.tensor_type(*id)?))).collect();
    let mut opset_import = vec![opset("", OPSET)];
    if !functions.protos.is_empty() {
        opset_import.push(opset(DOMAIN, 1));
    }
    let imports = |f: &super::proto::FunctionProto| f.opset_import.iter().any(|o| o.domain == CONTRIB);
    if uses_contrib || functions.protos.values().any(imports) {
        opset_import.push(opset(CONTRIB, 1));
    }
    let mut metadata_props = Vec::new();
    if let Some(manifest) = parts.manifest {
        let value = serde_json::to_string(manifest).map_err(|e| Error::internal("write", e.to_string()))?;
        metadata_props.push(StringStringEntryProto { key: KEY.into(), value });
    }
    let model = ModelProto {
        ir_version: IR_VERSION,
        opset_import,
        producer_name: "weftc".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(GraphProto { node, name: graph.name.clone(), initializer, input, output, ..Default::default() }),
        metadata_props,
        functions: functions.protos.into_values().collect(),
        ..Default::default()
    };
    if model.encoded_len() > MAX_BYTES {
        return Err(Error::internal("write", "the model is larger than a protobuf message may be"));
    }
    Ok(model.encode_to_vec())
}

/// An encoded model, and the functions of our domain that it has.
pub fn with_functions(model: Vec<u8>) -> Result<(Vec<u8>, Vec<String>)> {
    let bytes = Bytes::from(model);
    let decoded = ModelProto::decode(bytes.clone()).map_err(|e| Error::internal("write", e.to_string()))?;
    let names = decoded.functions.iter().filter(|f| f.domain == DOMAIN).map(|f| f.name.clone()).collect();
    drop(decoded);
    Ok((bytes.into(), names))
}

/// A lowered graph as an ONNX model of its own: no manifest, no optimizer.  Leaves without data are inputs.
pub fn plain(graph: &Graph, rules: &[Rule]) -> Result<Vec<u8>> {
    let mut functions = Functions::default();
    let mut scope = Scope::new(graph, rules, &mut functions, None)?;
    scope.run(&graph.live())?;
    let (node, constants) = (std::mem::take(&mut scope.nodes), std::mem::take(&mut scope.constants));
    let halves = std::mem::take(&mut scope.halves);
    let mut initializer: Vec<TensorProto> = constants.into_values().collect();
    for leaf in graph.leaves.iter().filter(|l| l.data.is_some()) {
        initializer.push(tensor(leaf, Path::new(""), None)?);
    }
    for (name, (leaf, dims)) in halves {
        initializer.push(halves_of(name, dims, tensor(graph.leaf(leaf), Path::new(""), None)?));
    }
    let input = graph.leaves.iter().filter(|l| l.data.is_none()).map(|l| value_info(&l.name, &l.ty)).collect();
    let output =
        graph.outputs.iter().filter_map(|(name, id)| Some(value_info(name, graph.tensor_type(*id)?))).collect();
    let model = ModelProto {
        ir_version: IR_VERSION,
        opset_import: vec![opset("", OPSET), opset(DOMAIN, 1), opset(CONTRIB, 1)],
        producer_name: "weftc".into(),
        graph: Some(GraphProto { node, name: graph.name.clone(), initializer, input, output, ..Default::default() }),
        functions: functions.protos.into_values().collect(),
        ..Default::default()
    };
    Ok(model.encode_to_vec())
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: domain.into(), version }
}

fn value_info(name: &str, ty: &TensorType) -> ValueInfoProto {
    ValueInfoProto { name: name.into(), r#type: Some(type_proto(ty)), ..Default::default() }
}

/// The optimizer's update stands in the file as a function; the runner instantiates it per parameter.
fn add_optimizer(functions: &mut Functions, rules: &[Rule]) -> Result<()> {
    let tensor = Type::Tensor(TensorType::new(DType::F32, vec![Dim::sym("n")]));
    let scalar = Type::Tensor(TensorType::new(DType::F64, vec![]));
    for (op, function) in [(Op::AdamW, Function::ADAMW), (Op::Sgd, Function::SGD)] {
        let tensors = std::iter::repeat_n(&tensor, 2 + function.state.len());
        let types: Vec<&Type> = tensors.chain(function.scalars.iter().map(|_| &scalar)).collect();
        functions.name(op, &types, rules)?;
    }
    Ok(())
}

/// How many bytes of weights [`encode`] would put into the file itself.
pub fn inline_bytes(graph: &Graph, source: &Path) -> u64 {
    let external = |l: &&Leaf| matches!(&l.data, Some(Data::File { path, .. }) if path != source);
    let live: BTreeSet<LeafId> = graph.live().iter().filter_map(|id| graph.as_leaf(*id)).collect();
    let inline = live.iter().map(|l| graph.leaf(*l)).filter(|l| !external(l));
    inline.filter_map(|l| l.data.as_ref()).map(Data::len).sum()
}

/// Bytes, each as two codes.
fn halves_of(name: String, dims: Vec<i64>, bytes: TensorProto) -> TensorProto {
    TensorProto { name, dims, data_type: tensor_proto::DataType::Uint4.into(), ..bytes }
}

/// A weight: copied from the source model's own file, referenced in its external files.
fn tensor(leaf: &Leaf, source: &Path, beside: Option<&mut Beside>) -> Result<TensorProto> {
    let dims: Option<Vec<i64>> = leaf.ty.shape.iter().map(Dim::known).collect();
    let mut proto = TensorProto {
        name: leaf.name.clone(),
        dims: dims.ok_or_else(|| Error::internal("write", format!("weight {} has an unknown size", leaf.name)))?,
        data_type: data_type(leaf.ty.dtype).into(),
        ..Default::default()
    };
    match &leaf.data {
        Some(Data::File { path, offset, len }) if path != source && beside.as_ref().is_none_or(|b| b.with_source) => {
            let folder = source.parent().unwrap_or(Path::new(""));
            let location = path.strip_prefix(folder).unwrap_or(path).to_string_lossy().to_string();
            let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
            proto.data_location = tensor_proto::DataLocation::External.into();
            proto.external_data = vec![
                entry("location", location),
                entry("offset", offset.to_string()),
                entry("length", len.to_string()),
            ];
        }
        _ => fill(&mut proto, leaf, beside)?,
    }
    Ok(proto)
}

/// The bytes of a leaf, in the tensor or in the file beside the model.
fn fill(proto: &mut TensorProto, leaf: &Leaf, beside: Option<&mut Beside>) -> Result<()> {
    let bytes = weights::bytes(leaf)?;
    match beside {
        Some(beside) if bytes.len() >= SMALLEST_EXTERNAL => beside.file.append(proto, &bytes),
        _ => {
            proto.raw_data = bytes.to_vec().into();
            Ok(())
        }
    }
}

/// A table of a graph for people: operator counts, fused nodes first.
pub fn table(graph: &Graph) -> String {
    use crate::ir::op::Emit;
    use std::fmt::Write;
    let mut out = String::new();
    let counts = graph.histogram();
    let fused = |name: &str| Op::parse(name).is_some_and(|op| matches!(op.row().emit, Emit::Weft(_) | Emit::Kernel(_)));
    for want in [true, false] {
        for (name, n) in counts.iter().filter(|(name, _)| fused(name) == want) {
            let _ = writeln!(out, "{} {name:<30} {n:>6}", if want { "ai.weft" } else { "       " });
        }
    }
    let nodes = graph.live().iter().filter(|id| matches!(graph.node(**id), Node::Op(..))).count();
    let _ = writeln!(out, "        {:<30} {nodes:>6}", "total");
    out
}
