//! Writes a model again with other weights: the trained ones.
//!
//! Everything but the weights is copied as it stands in the file.  To decode and encode it would lose
//! what our messages do not say: whether an attribute is 0 or absent, and fields of newer versions.

use super::data_file::{DataFile, SMALLEST_EXTERNAL};
use super::emit::data_type;
use super::held;
use super::proto::{GraphProto, NodeProto, TensorProto, tensor_proto};
use super::tensor::Site;
use super::train_file::{Weight, weight};
use super::weights;
use super::wire::{GRAPH, INITIALIZER, NODE, fields, put, with_graph};
use crate::atomic;
use crate::error::{Error, Problem, Result};
use prost::Message;
use prost::bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use std::path::Path;

/// From this size on weights are written beside the model: protobuf ends at 2 GiB.
const INLINE_LIMIT: usize = 1 << 30;

/// Gives the new bytes of an initializer, or `None` to keep it.
pub type Change<'a> = &'a mut dyn FnMut(&str, &Weight) -> Result<Option<Vec<u8>>>;

/// An adapter that stands beside a product with a weight in few bits, since it cannot be merged into the codes.
pub struct Beside {
    /// The initializer that holds the codes.
    pub codes: String,
    /// `[in r]` and `[r out]`, in the type of the product.
    pub factors: [Weight; 2],
}

/// What was written otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replaced {
    /// How many weights.
    pub weights: usize,
    /// How many adapters stand beside the product with their codes.
    pub beside: usize,
}

/// Copies `source` to `out`, asking `new` for every initializer's bytes (`None` keeps them).  Weights that
/// were external, or are too large, go to a file beside it.
///
/// Products with the codes of an adapter of `beside` get its own added.
///
/// Nothing is visible under `out` until it is complete.
///
/// # Errors
/// Where a file cannot be read or written, `source` is no model, or a replacement has another size.
pub fn replace(source: &Path, out: &Path, beside: &[Beside], new: Change<'_>) -> Result<Replaced> {
    let file = Bytes::from_owner(weights::map(source)?);
    let refuse =
        |place: &str, why: String| Error::Model { model: source.into(), problems: vec![Problem::new(place, why)] };
    let bad = |e: String| refuse("", format!("this is no ONNX file: {e}"));
    let parts = fields(&file).map_err(bad)?;
    let graph = parts.iter().find(|f| f.tag == GRAPH).ok_or_else(|| refuse("", "it has no graph".into()))?;
    let mut graph_parts = fields(&graph.content).map_err(bad)?;
    let old = GraphProto::decode(graph.content.clone()).map_err(|e| bad(e.to_string()))?;
    let site = Site::new(source, file.clone()).map_err(|e| Error::io("find", source, e))?;
    // Weights that nodes hold become initializers.
    let by_name: FxHashMap<&str, &TensorProto> = old.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    let is_own = |t: &TensorProto| site.tensor(t).is_ok_and(|t| held::is_own(&t));
    let copies = old.node.iter().filter_map(held::copy).filter_map(|(from, name)| Some((name, *by_name.get(from)?)));
    let held: Vec<(&str, &TensorProto)> =
        held::weights(&old).into_iter().chain(copies.filter(|(_, t)| is_own(t))).collect();
    let named = |(name, t): &(&str, &TensorProto)| TensorProto { name: name.to_string(), ..(*t).clone() };
    let mut tensors: Vec<TensorProto> = old.initializer.iter().cloned().chain(held.iter().map(named)).collect();
    let held: FxHashSet<&str> = held.iter().map(|(name, _)| *name).collect();
    let external = |t: &TensorProto| t.data_location == i32::from(tensor_proto::DataLocation::External);
    let inline: usize = tensors.iter().map(|t| t.raw_data.len() + 4 * t.float_data.len()).sum();
    let split = inline > INLINE_LIMIT || tensors.iter().any(external);
    let mut data = if split { Some(DataFile::new(out)?) } else { None };

    let mut replaced = 0;
    for tensor in &mut tensors {
        let Ok(old) = weight(tensor, &site) else {
            // A type that weftc never trains, such as a string; it must at least be in the file itself.
            if external(tensor) {
                return Err(refuse(&tensor.name, "this external tensor cannot be read".into()));
            }
            continue;
        };
        let bytes = match new(&tensor.name, &old)? {
            Some(bytes) if bytes.len() != old.bytes.len() => {
                return Err(Error::internal(
                    "checkpoint",
                    format!("{}: {} bytes for {}", tensor.name, bytes.len(), old.bytes.len()),
                ));
            }
            Some(bytes) => {
                replaced += 1;
                bytes
            }
            None if !external(tensor) && data.is_none() => continue,
            None => old.bytes,
        };
        *tensor = TensorProto {
            name: std::mem::take(&mut tensor.name),
            doc_string: std::mem::take(&mut tensor.doc_string),
            metadata_props: std::mem::take(&mut tensor.metadata_props),
            dims: old.shape,
            data_type: tensor.data_type,
            ..TensorProto::default()
        };
        match &mut data {
            Some(file) if bytes.len() >= SMALLEST_EXTERNAL => file.append(tensor, &bytes)?,
            _ => tensor.raw_data = bytes.into(),
        }
    }
    // Nodes are decoded in the order in which they lie.
    let mut stay = old.node.iter().map(|n| !n.output.first().is_some_and(|name| held.contains(name.as_str())));
    graph_parts.retain(|f| f.tag != NODE || stay.next().unwrap_or(true));
    let mut by_codes: FxHashMap<String, &Beside> = beside.iter().map(|b| (b.codes.clone(), b)).collect();
    let mut placed: FxHashSet<&str> = FxHashSet::default();
    let mut new_graph = Vec::new();
    for part in graph_parts.iter().filter(|f| f.tag != INITIALIZER) {
        let node = (part.tag == NODE && !beside.is_empty()).then(|| NodeProto::decode(part.content.clone()).ok());
        let adapted = node.flatten().and_then(|node| {
            let from = |k: usize| by_codes.get(node.input.get(k)?).copied();
            match node.op_type.as_str() {
                // The matrix that codes stand for, and its transpose, stand for the codes.
                "DequantizeLinear" | "Transpose" | "Identity" | "Cast" => {
                    let adapter = from(0)?;
                    by_codes.insert(node.output.first()?.clone(), adapter);
                    None
                }
                "MatMulNBits" | "MatMul" | "Gemm" if is_plain(&node) => {
                    let adapter = from(1)?;
                    placed.insert(&adapter.codes);
                    adapted(node.clone(), adapter)
                }
                _ => None,
            }
        });
        match adapted {
            Some(nodes) => nodes.iter().for_each(|n| put(NODE, &n.encode_to_vec(), &mut new_graph)),
            None => new_graph.extend_from_slice(&part.whole),
        }
    }
    for adapter in beside {
        for (part, factor) in PARTS.iter().zip(&adapter.factors) {
            tensors.push(TensorProto {
                name: format!("{}/{part}", adapter.codes),
                dims: factor.shape.clone(),
                data_type: data_type(factor.dtype) as i32,
                raw_data: factor.bytes.clone().into(),
                ..TensorProto::default()
            });
        }
    }
    GraphProto { initializer: tensors, ..GraphProto::default() }.encode_raw(&mut new_graph);
    let model = with_graph(&parts, &new_graph);

    if let Some(data) = data {
        // An old model must never be seen beside new data.
        match std::fs::remove_file(out) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("replace", out, e)),
            _ => data.finish()?,
        }
    }
    atomic::write(out, |file| file.write_all(&model))?;
    Ok(Replaced { weights: replaced, beside: placed.len() })
}

/// Whether a product is one with its first operand as it is, not its transpose or a multiple.
fn is_plain(product: &NodeProto) -> bool {
    let attribute = |name: &str| product.attribute.iter().find(|a| a.name == name);
    attribute("transA").is_none_or(|a| a.i() == 0) && attribute("alpha").is_none_or(|a| a.f() == 1.0)
}

/// The names of an adapter's factors and products.
const PARTS: [&str; 2] = ["lora_A", "lora_B"];

/// `y = product(x)` with an adapter beside it: y = product(x) + (x A) B.
fn adapted(mut product: NodeProto, adapter: &Beside) -> Option<Vec<NodeProto>> {
    let (x, y) = (product.input.first()?.clone(), product.output.first()?.clone());
    let alone = format!("{y}/base");
    let mut nodes = Vec::new();
    let mut last = x;
    for part in PARTS {
        let value = format!("{y}/{part}");
        let factor = format!("{}/{part}", adapter.codes);
        nodes.push(plain("MatMul", [last, factor], value.clone()));
        last = value;
    }
    product.output[0] = alone.clone();
    nodes.extend([product, plain("Add", [alone, last], y)]);
    Some(nodes)
}

fn plain(op: &str, inputs: [String; 2], output: String) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: output.clone(),
        input: inputs.into(),
        output: vec![output],
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::DType;
    use crate::onnx::proto::{AttributeProto, ModelProto, StringStringEntryProto};
    use prost::encoding::{WireType, encode_key, encode_varint};

    fn external(name: &str, values: usize, offset: usize) -> TensorProto {
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
        TensorProto {
            name: name.into(),
            dims: vec![values as i64],
            data_type: 1,
            data_location: 1,
            external_data: vec![
                entry("location", "old.data".into()),
                entry("offset", offset.to_string()),
                entry("length", (4 * values).to_string()),
            ],
            ..TensorProto::default()
        }
    }

    #[test]
    fn external_weights_move_along_and_the_rest_is_copied_verbatim() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let data: Vec<u8> = (0..4 * 514u32).map(|k| k as u8).collect();
        std::fs::write(from.path().join("old.data"), &data).unwrap();
        let zero = AttributeProto { name: "value_float".into(), r#type: 1, f: Some(0.0), ..Default::default() };
        let graph = GraphProto {
            initializer: vec![external("large", 512, 0), external("small", 2, 2048)],
            node: vec![NodeProto { op_type: "Constant".into(), attribute: vec![zero], ..Default::default() }],
            ..GraphProto::default()
        };
        let mut bytes = ModelProto { ir_version: 10, graph: Some(graph.clone()), ..Default::default() }.encode_to_vec();
        // A field that this version does not know.
        encode_key(900, WireType::Varint, &mut bytes);
        encode_varint(5, &mut bytes);
        let (source, out) = (from.path().join("old.onnx"), to.path().join("new.onnx"));
        std::fs::write(&source, &bytes).unwrap();

        let mut seen = Vec::new();
        let replaced = replace(&source, &out, &[], &mut |name, old| {
            seen.push((name.to_string(), old.bytes.len()));
            assert_eq!(old.dtype, DType::F32);
            Ok((name == "large").then(|| vec![7; 2048]))
        });
        assert_eq!((replaced.unwrap().weights, seen), (1, vec![("large".into(), 2048), ("small".into(), 8)]));
        assert!(std::fs::read(to.path().join("new.onnx.data")).unwrap() == vec![7; 2048]);
        let written = Bytes::from(std::fs::read(&out).unwrap());
        let model = ModelProto::decode(written.clone()).unwrap();
        let new = model.graph.unwrap();
        assert_eq!(new.node, graph.node);
        assert_eq!(new.initializer[1].raw_data, data[2048..]);
        let site = Site::new(&out, written.clone()).unwrap();
        assert_eq!(weight(&new.initializer[0], &site).unwrap().bytes, vec![7; 2048]);
        assert!(fields(&written).unwrap().iter().any(|f| f.tag == 900));
        assert_eq!(std::fs::read(&source).unwrap(), bytes);
    }

    #[test]
    fn a_replacement_of_another_size_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = TensorProto { dims: vec![1], data_type: 1, raw_data: vec![0; 4].into(), ..Default::default() };
        let graph = GraphProto { initializer: vec![tensor], ..GraphProto::default() };
        let source = folder.path().join("a.onnx");
        std::fs::write(&source, ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec()).unwrap();
        let out = folder.path().join("b.onnx");
        assert!(replace(&source, &out, &[], &mut |_, _| Ok(Some(vec![0; 8]))).is_err());
        assert!(!out.exists());
    }
}
