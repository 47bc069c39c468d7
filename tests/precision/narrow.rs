//! The models of `models/` in 16 bits: every f32 number of the file rewritten.

use half::{bf16, f16};
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::{GraphProto, ModelProto, TensorProto, type_proto};
use protobuf::Message;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Narrow {
    F16,
    BF16,
}

impl Narrow {
    fn onnx(self) -> i32 {
        match self {
            Narrow::F16 => DataType::FLOAT16 as i32,
            Narrow::BF16 => DataType::BFLOAT16 as i32,
        }
    }

    fn bytes(self, x: f32) -> [u8; 2] {
        match self {
            Narrow::F16 => f16::from_f32(x).to_le_bytes(),
            Narrow::BF16 => bf16::from_f32(x).to_le_bytes(),
        }
    }

    fn rounded(self, x: f32) -> f32 {
        match self {
            Narrow::F16 => f16::from_f32(x).into(),
            Narrow::BF16 => bf16::from_f32(x).into(),
        }
    }
}

pub fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(format!("{name}.onnx"))
}

const FLOAT: i32 = DataType::FLOAT as i32;

fn tensor(t: &mut TensorProto, change: &dyn Fn(f32) -> Vec<u8>, to: i32) {
    if t.data_type != FLOAT {
        return;
    }
    let raw = t.raw_data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
    let values: Vec<f32> = t.float_data.iter().copied().chain(raw).collect();
    t.float_data.clear();
    t.raw_data = values.into_iter().flat_map(change).collect();
    t.data_type = to;
}

/// Rewrites every f32 tensor of a graph, and casts to f32, as a type of 16 bits or as f32 again.
fn rewrite(graph: &mut GraphProto, change: &dyn Fn(f32) -> Vec<u8>, to: i32) {
    graph.value_info.clear();
    graph.initializer.iter_mut().for_each(|t| tensor(t, change, to));
    for a in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        if let Some(t) = a.t.as_mut() {
            tensor(t, change, to);
        }
        if a.name == "to" && a.i == i64::from(FLOAT) {
            a.i = to.into();
        }
    }
    for info in &mut graph.output {
        if let Some(type_proto::Value::TensorType(t)) = info.type_.as_mut().and_then(|t| t.value.as_mut()) {
            t.elem_type = if t.elem_type == FLOAT { to } else { t.elem_type };
        }
    }
}

fn write(name: &str, suffix: &str, folder: &Path, change: &dyn Fn(f32) -> Vec<u8>, to: i32) -> PathBuf {
    let mut file = ModelProto::parse_from_bytes(&std::fs::read(model(name)).unwrap()).unwrap();
    if let Some(graph) = file.graph.as_mut() {
        rewrite(graph, change, to);
    }
    let path = folder.join(format!("{name}_{suffix}.onnx"));
    std::fs::write(&path, file.write_to_bytes().unwrap()).unwrap();
    path
}

/// The model in 16 bits.
pub fn narrowed(name: &str, narrow: Narrow, folder: &Path) -> PathBuf {
    write(name, "narrow", folder, &|x| narrow.bytes(x).to_vec(), narrow.onnx())
}

/// The model in f32 with the numbers that 16 bits hold.
pub fn rounded_file(name: &str, narrow: Narrow, folder: &Path) -> PathBuf {
    write(name, "rounded", folder, &|x| narrow.rounded(x).to_le_bytes().to_vec(), FLOAT)
}
