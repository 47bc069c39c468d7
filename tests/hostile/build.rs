//! The models that are broken: one built from nothing, and an exported one.

use prost::Message;
use std::path::{Path, PathBuf};
use weftc::onnx::proto::attribute_proto::AttributeType;
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use weftc::onnx::proto::*;

pub const EXPORTED: &str = "llada_micro_dynamo18.onnx";

pub fn exported_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(EXPORTED)
}

/// The bytes of an exported model.
pub fn exported() -> Vec<u8> {
    std::fs::read(exported_path()).unwrap()
}

/// An exported model, changed.
pub fn changed(change: impl FnOnce(&mut GraphProto)) -> Vec<u8> {
    let mut model = ModelProto::decode(exported().as_slice()).unwrap();
    change(model.graph.as_mut().unwrap());
    model.encode_to_vec()
}

/// Embedding and head over a vocabulary of 32: the smallest model that compiles.
pub fn small() -> ModelProto {
    let graph = GraphProto {
        name: "small".into(),
        input: vec![value("input_ids", DataType::Int64, &["batch", "seq"])],
        initializer: vec![floats("embed.weight", &[32, 4]), floats("head.weight", &[4, 32])],
        node: vec![
            named("embed", node("Gather", &["embed.weight", "input_ids"], &["hidden"])),
            named("head", node("MatMul", &["hidden", "head.weight"], &["logits"])),
        ],
        output: vec![value("logits", DataType::Float, &["batch", "seq", "32"])],
        ..Default::default()
    };
    ModelProto { ir_version: 10, opset_import: vec![opset("", 23)], graph: Some(graph), ..Default::default() }
}

/// The small model, changed.
pub fn with(change: impl FnOnce(&mut ModelProto, &mut GraphProto)) -> Vec<u8> {
    let mut model = small();
    let mut graph = model.graph.take().unwrap();
    change(&mut model, &mut graph);
    model.graph.get_or_insert(graph);
    model.encode_to_vec()
}

/// The small model with nodes between embedding and head, from `hidden` `[batch, seq, 4]` to `last`.
pub fn through(nodes: Vec<NodeProto>) -> Vec<u8> {
    through_with(&[], nodes)
}

/// The same, with further initializers.
pub fn through_with(tensors: &[TensorProto], nodes: Vec<NodeProto>) -> Vec<u8> {
    with(|_, g| {
        g.initializer.extend_from_slice(tensors);
        g.node.splice(1..1, nodes);
        g.node.last_mut().unwrap().input[0] = "last".into();
    })
}

pub fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: domain.into(), version }
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let words = |w: &[&str]| w.iter().map(|s| s.to_string()).collect();
    NodeProto { op_type: op.into(), input: words(inputs), output: words(outputs), ..Default::default() }
}

pub fn named(name: &str, node: NodeProto) -> NodeProto {
    NodeProto { name: name.into(), ..node }
}

pub fn of_domain(domain: &str, node: NodeProto) -> NodeProto {
    NodeProto { domain: domain.into(), ..node }
}

/// A node from `hidden` to `last`.
pub fn step(op: &str) -> NodeProto {
    named("step", node(op, &["hidden"], &["last"]))
}

/// Attributes, one call each.
pub trait Attributes: Sized {
    fn with(self, name: &str, kind: AttributeType, fill: impl FnOnce(&mut AttributeProto)) -> Self;

    fn int(self, name: &str, i: i64) -> Self {
        self.with(name, AttributeType::Int, |a| a.i = Some(i))
    }

    fn ints(self, name: &str, ints: &[i64]) -> Self {
        self.with(name, AttributeType::Ints, |a| a.ints = ints.to_vec())
    }

    fn text(self, name: &str, text: &str) -> Self {
        self.with(name, AttributeType::String, |a| a.s = Some(text.to_string().into()))
    }

    fn graph(self, name: &str, graph: GraphProto) -> Self {
        self.with(name, AttributeType::Graph, |a| a.g = Some(graph))
    }
}

impl Attributes for NodeProto {
    fn with(mut self, name: &str, kind: AttributeType, fill: impl FnOnce(&mut AttributeProto)) -> Self {
        let mut a = AttributeProto { name: name.into(), r#type: kind.into(), ..Default::default() };
        fill(&mut a);
        self.attribute.push(a);
        self
    }
}

/// An input or output; sizes are numbers or names.
pub fn value(name: &str, dtype: DataType, dims: &[&str]) -> ValueInfoProto {
    let dim = |d: &&str| Dimension {
        value: Some(match d.parse::<i64>() {
            Ok(n) => dimension::Value::DimValue(n),
            Err(_) => dimension::Value::DimParam(d.to_string()),
        }),
        ..Default::default()
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    typed(name, type_proto::Value::TensorType(type_proto::Tensor { elem_type: dtype.into(), shape }))
}

pub fn typed(name: &str, value: type_proto::Value) -> ValueInfoProto {
    let ty = TypeProto { value: Some(value), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(ty), ..Default::default() }
}

/// Floats that count up in eighths.
pub fn floats(name: &str, dims: &[i64]) -> TensorProto {
    let bytes: Vec<u8> = (0..dims.iter().product()).flat_map(|k: i64| (k as f32 / 8.0).to_le_bytes()).collect();
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::Float.into(),
        raw_data: bytes.into(),
        ..Default::default()
    }
}

/// A vector of integers.
pub fn ints(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: DataType::Int64.into(),
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

/// A scalar integer.
pub fn int(name: &str, n: i64) -> TensorProto {
    TensorProto { dims: vec![], ..ints(name, &[n]) }
}

pub fn function(domain: &str, name: &str, inputs: &[&str], outputs: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
    let words = |w: &[&str]| w.iter().map(|s| s.to_string()).collect();
    FunctionProto {
        domain: domain.into(),
        name: name.into(),
        input: words(inputs),
        output: words(outputs),
        node: nodes,
        opset_import: vec![opset("", 23)],
        ..Default::default()
    }
}

/// The small model with a call of `d::F` between embedding and head.
pub fn calling(functions: Vec<FunctionProto>) -> Vec<u8> {
    let model = through(vec![of_domain("d", step("F"))]);
    let mut model = ModelProto::decode(model.as_slice()).unwrap();
    model.functions = functions;
    model.encode_to_vec()
}
