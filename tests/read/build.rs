//! Small ONNX models, built by hand.

use prost::Message;
use std::path::PathBuf;
use weftc::onnx::proto::attribute_proto::AttributeType;
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use weftc::onnx::proto::*;

pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let words = |w: &[&str]| w.iter().map(|s| s.to_string()).collect();
    NodeProto { op_type: op.into(), input: words(inputs), output: words(outputs), ..NodeProto::default() }
}

/// Attributes, one call each.
pub trait With: Sized {
    fn with(self, a: AttributeProto) -> Self;

    fn int(self, name: &str, i: i64) -> Self {
        self.with(AttributeProto {
            name: name.into(),
            i: Some(i),
            r#type: AttributeType::Int as i32,
            ..Default::default()
        })
    }

    fn float(self, name: &str, f: f32) -> Self {
        self.with(AttributeProto {
            name: name.into(),
            f: Some(f),
            r#type: AttributeType::Float as i32,
            ..Default::default()
        })
    }

    fn list(self, name: &str, ints: &[i64]) -> Self {
        let r#type = AttributeType::Ints as i32;
        self.with(AttributeProto { name: name.into(), ints: ints.to_vec(), r#type, ..Default::default() })
    }

    fn tensor(self, name: &str, t: TensorProto) -> Self {
        let r#type = AttributeType::Tensor as i32;
        self.with(AttributeProto { name: name.into(), t: Some(t), r#type, ..Default::default() })
    }

    fn refer(self, name: &str, to: &str) -> Self {
        self.with(AttributeProto { name: name.into(), ref_attr_name: to.into(), ..Default::default() })
    }

    fn graph(self, name: &str, g: GraphProto) -> Self {
        let r#type = AttributeType::Graph as i32;
        self.with(AttributeProto { name: name.into(), g: Some(g), r#type, ..Default::default() })
    }
}

impl With for NodeProto {
    fn with(mut self, a: AttributeProto) -> Self {
        self.attribute.push(a);
        self
    }
}

pub fn input(name: &str, dtype: DataType, dims: &[&str]) -> ValueInfoProto {
    let dim = |d: &&str| Dimension {
        value: Some(match d.parse::<i64>() {
            Ok(n) => dimension::Value::DimValue(n),
            Err(_) => dimension::Value::DimParam(d.to_string()),
        }),
        ..Default::default()
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: dtype as i32, shape };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(ty), ..Default::default() }
}

pub fn ints(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::Int64 as i32,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

pub fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        raw_data: values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into(),
        ..Default::default()
    }
}

/// A model of one graph; its output is `y`.
pub fn model(inputs: &[ValueInfoProto], weights: &[TensorProto], nodes: &[NodeProto]) -> ModelProto {
    let graph = GraphProto {
        name: "g".into(),
        input: inputs.to_vec(),
        initializer: weights.to_vec(),
        node: nodes.to_vec(),
        output: vec![ValueInfoProto { name: "y".into(), ..Default::default() }],
        ..Default::default()
    };
    ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 23 }],
        graph: Some(graph),
        ..Default::default()
    }
}

/// A model file in a folder of its own.
pub fn written(model: &ModelProto) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    (folder, path)
}
