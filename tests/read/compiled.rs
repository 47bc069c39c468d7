//! Operators between an embedding and a head, through the whole compiler: the gradients of train.onnx, in the
//! interpreter and in ONNX Runtime, beside finite differences of its loss.

use crate::build::*;
use crate::case::noise;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use weftc::compile::{Compiled, Options, compile};
use weftc::interp::run;
use weftc::onnx::proto::tensor_proto::DataType::Int64;
use weftc::onnx::proto::*;
use weftc::onnx::weights;
use weftc::runtime::session::Options as SessionOptions;
use weftc::runtime::{HostTensor, Session};

/// Gradients against central differences, both in f64.
const TOLERANCE: f64 = 1e-6;
/// ONNX Runtime computes in f32.
const F32_TOLERANCE: f64 = 1e-4;
const STEP: f64 = 1e-5;
/// The least that the largest element of a gradient must be for a comparison to mean anything.
const SMALLEST: f64 = 1e-4;

const VOCABULARY: usize = 7;
const WIDTH: usize = 16;
const BATCH: usize = 2;
const LENGTH: usize = 4;

fn weight(name: &str, dims: &[i64]) -> TensorProto {
    let n = dims.iter().product::<i64>() as usize;
    floats(name, dims, &(0..n).map(|k| (noise(name, k) / 2.0) as f32).collect::<Vec<_>>())
}

/// Nodes from `h`, `[batch, seq, WIDTH]`, to `y` of the same shape, and their weights.
struct Case {
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
}

fn case(nodes: &[NodeProto], weights: &[TensorProto]) -> Case {
    Case { nodes: nodes.to_vec(), weights: weights.to_vec() }
}

fn contrib(mut node: NodeProto) -> NodeProto {
    node.domain = "com.microsoft".into();
    node
}

fn cases() -> Vec<Case> {
    let w = WIDTH as i64;
    let turned: Vec<i64> = (0..w).map(|k| (k * 5 + 3) % 11).collect();
    let project = |name: &str, matrix: &str| node("MatMul", &["h", matrix], &[name]);
    let square = |name: &str| weight(name, &[w, w]);
    let qkv = [project("q", "m.q.weight"), project("k", "m.k.weight"), project("v", "m.v.weight")];
    let matrices = [square("m.q.weight"), square("m.k.weight"), square("m.v.weight")];
    let tables = [weight("cos_table", &[8, w / 4]), weight("sin_table", &[8, w / 4])];
    let attended =
        |last: NodeProto, more: &[TensorProto]| case(&[&qkv[..], &[last]].concat(), &[&matrices[..], more].concat());
    let total = || TensorProto {
        name: "total".into(),
        data_type: weftc::onnx::proto::tensor_proto::DataType::Int32 as i32,
        raw_data: (LENGTH as i32).to_le_bytes().to_vec().into(),
        ..Default::default()
    };
    vec![
        case(&[node("TopK", &["h", "k"], &["y", "at"])], &[ints("k", &[1], &[w])]),
        case(&[node("Gather", &["h", "at"], &["y"]).int("axis", 2)], &[ints("at", &[w], &turned)]),
        case(&[node("CumSum", &["h", "axis"], &["y"])], &[ints("axis", &[], &[1])]),
        case(&[contrib(node("BiasGelu", &["h", "m.bias"], &["y"]))], &[weight("m.bias", &[w])]),
        case(
            &[
                project("x", "m.x.weight"),
                contrib(node("SkipSimplifiedLayerNormalization", &["h", "x", "m.norm.weight"], &["z", "", "", "sum"])),
                node("Add", &["z", "sum"], &["y"]),
            ],
            &[square("m.x.weight"), weight("m.norm.weight", &[w])],
        ),
        case(
            &[
                project("x", "m.x.weight"),
                contrib(node("SkipLayerNormalization", &["h", "x", "m.norm.weight", "m.norm.bias"], &["y"])),
            ],
            &[square("m.x.weight"), weight("m.norm.weight", &[w]), weight("m.norm.bias", &[w])],
        ),
        case(
            &[
                node("Unsqueeze", &["input_ids", "last"], &["tuples"]),
                node("GatherND", &["m.more.weight", "tuples"], &["x"]),
                node("Mul", &["x", "h"], &["y"]),
            ],
            &[ints("last", &[1], &[-1]), weight("m.more.weight", &[VOCABULARY as i64, w])],
        ),
        attended(
            node("Attention", &["q", "k", "v"], &["y"])
                .int("q_num_heads", 4)
                .int("kv_num_heads", 4)
                .float("softcap", 2.0),
            &[],
        ),
        attended(contrib(node("MultiHeadAttention", &["q", "k", "v"], &["y"])).int("num_heads", 2), &[]),
        attended(
            contrib(node(
                "GroupQueryAttention",
                &["q", "k", "v", "", "", "lengths", "total", "cos_table", "sin_table"],
                &["y", "", ""],
            ))
            .int("num_heads", 2)
            .int("kv_num_heads", 2)
            .int("do_rotary", 1),
            &[&[ints("lengths", &[BATCH as i64], &[3, 3]), total()], &tables[..]].concat(),
        ),
    ]
}

/// The compiled model, and the folder that holds its source.
fn compiled(case: &Case) -> Result<(Compiled, tempfile::TempDir), String> {
    let mut nodes = vec![node("Gather", &["m.embed.weight", "input_ids"], &["h"])];
    nodes.extend(case.nodes.clone());
    nodes.push(node("MatMul", &["y", "m.head.weight"], &["logits"]));
    let (w, v) = (WIDTH as i64, VOCABULARY as i64);
    let mut tensors = vec![weight("m.embed.weight", &[v, w]), weight("m.head.weight", &[w, v])];
    tensors.extend(case.weights.clone());
    let mut model = model(&[input("input_ids", Int64, &["batch", "seq"])], &tensors, &nodes);
    model.graph.as_mut().unwrap().output[0].name = "logits".into();
    model.opset_import.push(OperatorSetIdProto { domain: "com.microsoft".into(), version: 1 });
    let (folder, path) = written(&model);
    let compiled = compile(&Options { mask_id: Some(VOCABULARY as i64 - 1), ..Options::new(&path) });
    compiled.map(|c| (c, folder)).map_err(|e| e.to_string())
}

/// One answer token a sequence: then its mask rate is `t` whatever the entropy, and the loss is smooth in the weights.
fn feeds() -> BTreeMap<String, HostTensor> {
    let (b, l) = (BATCH as i64, LENGTH as i64);
    let ids: Vec<i64> = (0..b * l).map(|k| (k * 3 + 1) % 6).collect();
    let answer: Vec<bool> = (0..b * l).map(|k| k == 2 || k == 5).collect();
    BTreeMap::from([
        ("input_ids".to_string(), HostTensor::new(&[b, l], &ids).unwrap()),
        ("answer_mask".to_string(), HostTensor::new(&[b, l], &answer).unwrap()),
        ("t".to_string(), HostTensor::new(&[b], &[0.7f32, 0.5]).unwrap()),
        ("u".to_string(), HostTensor::new(&[b, l], &[0.1f32; BATCH * LENGTH]).unwrap()),
    ])
}

fn tensor(host: &HostTensor) -> Tensor {
    let dims: Vec<usize> = host.shape().iter().map(|n| *n as usize).collect();
    Tensor::from_vec(host.to_f64(), dims, &Device::Cpu).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn check(case: &Case) -> Result<(), String> {
    let (compiled, folder) = compiled(case)?;
    let hosts = feeds();
    let mut all: BTreeMap<String, Tensor> = hosts.iter().map(|(n, h)| (n.clone(), tensor(h))).collect();
    let mut names = Vec::new();
    for id in &compiled.trainable {
        let leaf = compiled.graph.leaf(*id);
        let bytes = weights::bytes(leaf).map_err(|e| e.to_string())?;
        let shape: Vec<i64> = leaf.ty.shape.iter().map(|d| d.known().unwrap()).collect();
        all.insert(leaf.name.clone(), tensor(&HostTensor::from_bytes(leaf.ty.dtype, &shape, bytes.to_vec()).unwrap()));
        names.push(leaf.name.clone());
    }
    if names.len() < 2 {
        return Err(format!("only {names:?} are trained"));
    }
    let evaluate = |feeds: &BTreeMap<String, Tensor>| run(&compiled.graph, feeds).map_err(|e| e.to_string());
    let exact = evaluate(&all)?;
    let bytes = compiled.encode(folder.path()).map_err(|e| e.to_string())?;
    let mut session = Session::from_bytes(&bytes, &SessionOptions::default()).map_err(|e| e.to_string())?;
    let fast = session.run(hosts.iter().map(|(n, h)| (n.as_str(), h))).map_err(|e| e.to_string())?;
    for name in names {
        let output = format!("grad/{name}");
        let ours = numbers(&exact[&output]);
        let largest = ours.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        if largest < SMALLEST {
            return Err(format!("{output}: nothing but zeros proves nothing"));
        }
        let theirs = fast[&output].to_f64();
        let apart = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
        let apart = apart.fold(0.0f64, |m, d| if d > m || d.is_nan() { d } else { m });
        if apart.is_nan() || apart > F32_TOLERANCE * largest.max(1.0) {
            return Err(format!("{output}: ONNX Runtime is {apart:e} apart, the largest element is {largest}"));
        }
        let x = all[&name].clone();
        let direction: Vec<f64> = (0..x.elem_count()).map(|k| noise("direction", k)).collect();
        let slope: f64 = ours.iter().zip(&direction).map(|(g, d)| g * d).sum();
        let direction = Tensor::from_vec(direction, x.shape(), &Device::Cpu).unwrap();
        let mut loss = |step: f64| {
            all.insert(name.clone(), (&x + direction.affine(step, 0.0).unwrap()).unwrap());
            evaluate(&all).map(|o| numbers(&o["loss_sum"])[0])
        };
        let difference = (loss(STEP)? - loss(-STEP)?) / (2.0 * STEP);
        all.insert(name, x);
        let apart = (slope - difference).abs();
        if apart.is_nan() || apart > TOLERANCE * slope.abs().max(1.0) {
            return Err(format!("{output}: {slope}, by differences {difference}"));
        }
    }
    Ok(())
}

#[test]
fn gradients_of_compiled_models() {
    let failed = cases().into_iter().filter_map(|case| {
        let ops: Vec<&str> = case.nodes.iter().map(|n| n.op_type.as_str()).collect();
        check(&case).err().map(|why| format!("{ops:?}: {why}"))
    });
    let failed: Vec<String> = failed.collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
