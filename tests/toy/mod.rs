//! A train.onnx so small that its training is computed by hand: the contract without the compiler.
//!
//! With E = `emb.weight` [6, 2], M = `lin.weight` [2, 3] and n masked tokens,
//! `loss_sum = sum over masked i of |E[x_i] - u_i|^2 / 2  +  n |M|^2 / 2`, `loss_count = n`,
//! and token i is masked where `answer_i and u_i < t`.

use prost::Message;
use std::path::{Path, PathBuf};
use weftc::onnx::proto::*;

pub const E: [f32; 12] = [0.5, -0.25, 1.5, 2.0, -1.0, 0.75, 0.125, 3.0, -2.0, 1.0, 0.0, 0.25];
pub const M: [f32; 6] = [0.1, 0.2, -0.3, 0.4, 0.5, -0.6];
pub const NORM: [f32; 2] = [1.25, 0.75];

const FLOAT: i32 = 1;
const INT64: i32 = 7;
const BOOL: i32 = 9;
const DOUBLE: i32 = 11;

fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64)]) -> NodeProto {
    let attribute = |(name, i): &(&str, i64)| AttributeProto {
        name: name.to_string(),
        r#type: 2,
        i: Some(*i),
        ..Default::default()
    };
    NodeProto {
        op_type: op.into(),
        domain: if op == "AdamW" { "ai.weft".into() } else { String::new() },
        name: output.into(),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: output.split_whitespace().map(str::to_string).collect(),
        attribute: attributes.iter().map(attribute).collect(),
        ..Default::default()
    }
}

/// A size, or a symbol.
fn value(name: &str, elem_type: i32, dims: &[&str]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |d: &&str| Dimension {
        value: Some(d.parse().map_or_else(|_| Value::DimParam(d.to_string()), Value::DimValue)),
        ..Default::default()
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Value::TensorType(type_proto::Tensor { elem_type, shape });
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto { value: Some(tensor), ..Default::default() }),
        ..Default::default()
    }
}

fn tensor(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorProto { name: name.into(), dims: dims.to_vec(), data_type: FLOAT, raw_data: raw.into(), ..Default::default() }
}

fn ints(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: INT64,
        int64_data: values.into(),
        ..Default::default()
    }
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: key.into(), value }
}

fn model(graph: GraphProto, functions: Vec<FunctionProto>, metadata_props: Vec<StringStringEntryProto>) -> ModelProto {
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
    ModelProto {
        ir_version: 10,
        opset_import: vec![opset("", 21), opset("ai.weft", 1)],
        graph: Some(graph),
        functions,
        metadata_props,
        ..Default::default()
    }
}

/// AdamW as PyTorch computes it, over f32 tensors and f64 scalars.
fn adamw() -> FunctionProto {
    let cast = |from: &str, to: &str| node("Cast", &[from], to, &[("to", FLOAT.into())]);
    let one = NodeProto {
        attribute: vec![AttributeProto {
            name: "value".into(),
            r#type: 4,
            t: Some(TensorProto { data_type: DOUBLE, double_data: vec![1.0], ..Default::default() }),
            ..Default::default()
        }],
        ..node("Constant", &[], "one", &[])
    };
    let n = |op: &str, inputs: &[&str], output: &str| node(op, inputs, output, &[]);
    let nodes = vec![
        one,
        cast("scale", "scale_"),
        n("Mul", &["g", "scale_"], "gs"),
        cast("b1", "b1_"),
        n("Sub", &["one", "b1"], "c1"),
        cast("c1", "c1_"),
        n("Mul", &["m", "b1_"], "m_"),
        n("Mul", &["gs", "c1_"], "gc"),
        n("Add", &["m_", "gc"], "m2"),
        cast("b2", "b2_"),
        n("Sub", &["one", "b2"], "c2"),
        cast("c2", "c2_"),
        n("Mul", &["v", "b2_"], "v_"),
        n("Mul", &["gs", "gs"], "gg"),
        n("Mul", &["gg", "c2_"], "ggc"),
        n("Add", &["v_", "ggc"], "v2"),
        n("Pow", &["b1", "k"], "b1k"),
        n("Sub", &["one", "b1k"], "d1"),
        cast("d1", "d1_"),
        n("Pow", &["b2", "k"], "b2k"),
        n("Sub", &["one", "b2k"], "d2"),
        cast("d2", "d2_"),
        n("Div", &["m2", "d1_"], "mhat"),
        n("Div", &["v2", "d2_"], "vhat"),
        n("Sqrt", &["vhat"], "root"),
        cast("eps", "eps_"),
        n("Add", &["root", "eps_"], "under"),
        n("Div", &["mhat", "under"], "ratio"),
        cast("lr", "lr_"),
        n("Mul", &["ratio", "lr_"], "move"),
        n("Mul", &["lr", "wd"], "lrwd"),
        n("Sub", &["one", "lrwd"], "keep"),
        cast("keep", "keep_"),
        n("Mul", &["p", "keep_"], "kept"),
        n("Sub", &["kept", "move"], "p2"),
    ];
    FunctionProto {
        name: "AdamW".into(),
        domain: "ai.weft".into(),
        input: ["p", "g", "m", "v", "lr", "wd", "b1", "b2", "eps", "k", "scale"].map(String::from).into(),
        output: ["p2", "m2", "v2"].map(String::from).into(),
        node: nodes,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
        ..Default::default()
    }
}

fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| values[i * columns + j])).collect()
}

/// The source model: E twice, the second time transposed, as exporters write tied weights.
fn source() -> ModelProto {
    let graph = GraphProto {
        name: "toy".into(),
        node: vec![
            node("Gather", &["emb.weight", "input_ids"], "h", &[]),
            node("Mul", &["h", "norm.weight"], "hn", &[]),
            node("MatMul", &["hn", "val_9"], "logits", &[]),
            node("MatMul", &["h", "val_1"], "aux", &[]),
        ],
        input: vec![value("input_ids", INT64, &["B", "L"])],
        output: vec![value("logits", FLOAT, &["B", "L", "6"]), value("aux", FLOAT, &["B", "L", "3"])],
        initializer: vec![
            tensor("emb.weight", &[6, 2], &E),
            tensor("val_1", &[2, 3], &M),
            tensor("norm.weight", &[2], &NORM),
            tensor("val_9", &[2, 6], &transposed(&E, 6, 2)),
        ],
        ..Default::default()
    };
    model(graph, Vec::new(), Vec::new())
}

/// How a toy differs from the usual one.
#[derive(Default)]
pub struct Options {
    /// A further input, [B, L] int64, that nothing reads but an Identity.
    pub extra: Option<&'static str>,
    pub without_output: Option<&'static str>,
    pub manifest_version: Option<u32>,
    pub fixed: Option<[&'static str; 2]>,
}

/// Writes toy.onnx and train.onnx into `folder`; returns train.onnx.
pub fn write(folder: &Path, options: &Options) -> PathBuf {
    use sha2::Digest;
    let bytes = source().encode_to_vec();
    std::fs::write(folder.join("toy.onnx"), &bytes).unwrap();
    let sha256: String = sha2::Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();

    // Weights of the source are referenced where they lie in it.
    let referenced = |name: &str, dims: &[i64], values: &[f32]| {
        let TensorProto { raw_data, .. } = tensor(name, dims, values);
        let offset = bytes.windows(raw_data.len()).position(|w| w == raw_data).unwrap();
        TensorProto {
            name: name.into(),
            dims: dims.into(),
            data_type: FLOAT,
            data_location: 1,
            external_data: vec![
                entry("location", "toy.onnx".into()),
                entry("offset", offset.to_string()),
                entry("length", raw_data.len().to_string()),
            ],
            ..Default::default()
        }
    };
    let n = |op: &str, inputs: &[&str], output: &str| node(op, inputs, output, &[]);
    let mut nodes = vec![
        n("Unsqueeze", &["t", "one_axis"], "t_"),
        n("Less", &["u", "t_"], "below"),
        n("And", &["below", "answer_mask"], "mask"),
        node("Cast", &["mask"], "weight", &[("to", FLOAT.into())]),
        n("ReduceSum", &["weight"], "count_"),
        n("Reshape", &["count_", "scalar"], "loss_count"),
        n("Gather", &["emb.weight", "input_ids"], "h"),
        n("Unsqueeze", &["u", "last"], "u_"),
        n("Sub", &["h", "u_"], "diff"),
        n("Unsqueeze", &["weight", "last"], "weight_"),
        n("Mul", &["diff", "weight_"], "masked"),
        n("ReduceSumSquare", &["masked", "last"], "squares"),
        n("Squeeze", &["squares", "last"], "squares_"),
        n("Mul", &["squares_", "half"], "token_loss"),
        n("ReduceSum", &["token_loss"], "first_"),
        n("Reshape", &["first_", "scalar"], "first"),
        n("ReduceSumSquare", &["lin.weight"], "m2_"),
        n("Reshape", &["m2_", "scalar"], "m2"),
        n("Mul", &["m2", "half"], "m2h"),
        n("Mul", &["m2h", "loss_count"], "second"),
        n("Add", &["first", "second"], "loss_sum"),
        n("Div", &["loss_sum", "loss_count"], "loss"),
        n("OneHot", &["input_ids", "depth", "off_on"], "hot"),
        n("Reshape", &["hot", "rows6"], "hot2"),
        n("Reshape", &["masked", "rows2"], "masked2"),
        n("Transpose", &["hot2"], "hot2t"),
        n("MatMul", &["hot2t", "masked2"], "grad/emb.weight"),
        n("Mul", &["lin.weight", "loss_count"], "grad/lin.weight"),
        n("Mul", &["norm.weight", "norm.weight"], "unused"),
    ];
    let [b, l] = options.fixed.unwrap_or(["B", "L"]);
    let mut inputs = vec![
        value("input_ids", INT64, &[b, l]),
        value("answer_mask", BOOL, &[b, l]),
        value("t", FLOAT, &[b]),
        value("u", FLOAT, &[b, l]),
        value("emb.weight", FLOAT, &["6", "2"]),
        value("lin.weight", FLOAT, &["2", "3"]),
    ];
    let mut outputs = vec![
        value("loss", FLOAT, &[]),
        value("loss_sum", FLOAT, &[]),
        value("loss_count", FLOAT, &[]),
        value("mask", BOOL, &[b, l]),
        value("token_loss", FLOAT, &[b, l]),
        value("grad/emb.weight", FLOAT, &["6", "2"]),
        value("grad/lin.weight", FLOAT, &["2", "3"]),
        value("unused", FLOAT, &["2"]),
    ];
    if let Some(name) = options.extra {
        inputs.push(value(name, INT64, &[b, l]));
        nodes.push(n("Identity", &[name], "extra_out"));
        outputs.push(value("extra_out", INT64, &[b, l]));
    }
    outputs.retain(|o| Some(o.name.as_str()) != options.without_output);
    let graph = GraphProto {
        name: "train".into(),
        node: nodes,
        input: inputs,
        output: outputs,
        initializer: vec![
            referenced("emb.weight", &[6, 2], &E),
            referenced("lin.weight", &[2, 3], &M),
            referenced("norm.weight", &[2], &NORM),
            ints("one_axis", &[1], &[1]),
            ints("last", &[1], &[-1]),
            ints("scalar", &[0], &[]),
            ints("rows6", &[2], &[-1, 6]),
            ints("rows2", &[2], &[-1, 2]),
            ints("depth", &[1], &[6]),
            tensor("half", &[], &[0.5]),
            tensor("off_on", &[2], &[0.0, 1.0]),
        ],
        ..Default::default()
    };
    let parameter = |name: &str, shape: &str, role: &str, more: &str| {
        format!(r#"{{"name": "{name}", "shape": {shape}, "dtype": "f32", "role": "{role}"{more}}}"#)
    };
    let parameters = [
        parameter("emb.weight", "[6, 2]", "trainable", r#", "transposed": false"#),
        parameter("lin.weight", "[2, 3]", "trainable", r#", "transposed": true, "source_name": "val_1""#),
        parameter("norm.weight", "[2]", "frozen", r#", "transposed": false"#),
    ];
    let manifest = format!(
        r#"{{"version": {}, "weftc": "0", "target": "portable", "opset": 21, "token_input": "input_ids", "extra_inputs": [],
            "source": {{"file": "toy.onnx", "sha256": "{sha256}"}}, "logits_output": "logits", "vocab_size": 6,
            "method": {{"name": "sft", "mask_id": 5, "logits_shift": 0, "options": {{}}}},
            "parameters": [{}], "mended": [], "rules_fired": {{}}}}"#,
        options.manifest_version.unwrap_or(weftc::manifest::VERSION),
        parameters.join(", ")
    );
    let train = model(graph, vec![adamw()], vec![entry(weftc::manifest::KEY, manifest)]);
    let path = folder.join("train.onnx");
    std::fs::write(&path, train.encode_to_vec()).unwrap();
    path
}

/// The model `from` with all weights of more than 64 bytes in `TO.data`, beside the file.
#[allow(dead_code, reason = "not every test that shares this file moves weights")]
pub fn with_external_weights(from: &Path, to: &Path) {
    let mut model = ModelProto::decode(std::fs::read(from).unwrap().as_slice()).unwrap();
    let data = PathBuf::from(format!("{}.data", to.display()));
    let mut bytes: Vec<u8> = Vec::new();
    for tensor in model.graph.as_mut().unwrap().initializer.iter_mut().filter(|t| t.raw_data.len() > 64) {
        let value = std::mem::take(&mut tensor.raw_data);
        tensor.data_location = tensor_proto::DataLocation::External.into();
        tensor.external_data = vec![
            entry("location", data.file_name().unwrap().to_string_lossy().into_owned()),
            entry("offset", bytes.len().to_string()),
            entry("length", value.len().to_string()),
        ];
        bytes.extend_from_slice(&value);
    }
    std::fs::write(&data, bytes).unwrap();
    std::fs::write(to, model.encode_to_vec()).unwrap();
}
