//! One model as other exporters and tools would write it: it trains alike, and its trained model is written whole.

use prost::Message;
use std::path::{Path, PathBuf};
use weftc::adapt::Spec;
use weftc::compile::{Options, compile};
use weftc::ir::Op;
use weftc::onnx::proto::attribute_proto::AttributeType;
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, type_proto,
};
use weftc::peft::merge::{MergeArgs, merge};
use weftc::precision::Compute;
use weftc::rules::Target;
use weftc::runtime::{self, HostTensor, Session};
use weftc::train::RunArgs;

/// The model, written otherwise by `change`.
fn respelled(folder: &Path, change: impl Fn(&mut GraphProto)) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/llada_micro_dynamo18.onnx");
    let mut model = ModelProto::decode(std::fs::read(source).unwrap().as_slice()).unwrap();
    change(model.graph.as_mut().unwrap());
    if model.graph.iter().flat_map(|g| &g.node).any(|n| n.op_type == "DequantizeLinear") {
        // The first that decodes in blocks.
        (model.opset_import[0].version, model.ir_version) = (21, 10);
    }
    model.opset_import.push(OperatorSetIdProto { domain: "com.microsoft".into(), version: 1 });
    let path = folder.join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

/// Trains every weight a few steps; the run's folder.
fn trained(model: &Path) -> PathBuf {
    run(&Options { mask_id: Some(31), ..Options::new(model) }, model)
}

fn run(options: &Options, model: &Path) -> PathBuf {
    let (train, data, out) =
        (model.with_file_name("train.onnx"), model.with_file_name("data.jsonl"), model.with_file_name("out"));
    compile(options).unwrap().write(&train).unwrap();
    std::fs::write(&data, "{\"input_ids\": [1,2,3,4,5,6,7,8], \"prompt_len\": 2}\n".repeat(4)).unwrap();
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }
    let paths = [&train, &data, &out].map(|p| p.display().to_string());
    let flags = ["--steps", "3", "--batch-size", "2", "--quiet", "--lr", "0.02"];
    let line = ["weftc", &paths[0], "--data", &paths[1], "--out", &paths[2]].into_iter().chain(flags);
    weftc::train::run(&<Cli as clap::Parser>::parse_from(line).run).unwrap();
    out
}

/// The logits of a model for tokens of a type.  ONNX Runtime's optimiser would round what is multiplied by codes to 8 bits.
fn logits(path: &Path, tokens: &HostTensor) -> Vec<f64> {
    let mut session = Session::open(path, &runtime::Options { optimize: false, ..Default::default() }).unwrap();
    session.run([("input_ids", tokens)]).unwrap()["logits"].to_f64()
}

fn attribute(name: &str, r#type: AttributeType, fill: impl FnOnce(&mut AttributeProto)) -> AttributeProto {
    let mut attribute = AttributeProto { name: name.into(), r#type: r#type.into(), ..Default::default() };
    fill(&mut attribute);
    attribute
}

fn node(op: &str, inputs: &[&str], output: &str, attribute: AttributeProto) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        input: inputs.iter().map(|n| n.to_string()).collect(),
        output: vec![output.into()],
        attribute: vec![attribute],
        ..Default::default()
    }
}

/// No initializers: every tensor is a Constant node.
fn hold_weights(graph: &mut GraphProto) {
    let constant = |t| node("Constant", &[], "", attribute("value", AttributeType::Tensor, |a| a.t = Some(t)));
    let mut nodes: Vec<NodeProto> = std::mem::take(&mut graph.initializer)
        .into_iter()
        .map(|mut t| {
            let output = vec![std::mem::take(&mut t.name)];
            NodeProto { output, ..constant(t) }
        })
        .collect();
    nodes.append(&mut graph.node);
    graph.node = nodes;
}

/// Tokens of int32, which the model casts.
fn narrow_tokens(graph: &mut GraphProto) {
    for node in &mut graph.node {
        node.input.iter_mut().filter(|n| *n == "input_ids").for_each(|n| *n = "wide".into());
    }
    let to = attribute("to", AttributeType::Int, |a| a.i = Some(DataType::Int64 as i64));
    graph.node.insert(0, node("Cast", &["input_ids"], "wide", to));
    let tokens = graph.input.iter_mut().find(|i| i.name == "input_ids").unwrap();
    let Some(type_proto::Value::TensorType(t)) = &mut tokens.r#type.as_mut().unwrap().value else { panic!() };
    t.elem_type = DataType::Int32 as i32;
}

#[test]
fn weights_in_nodes_and_tokens_of_32_bits() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let plain = trained(&respelled(folders[0].path(), |_| {}));
    let other = respelled(folders[1].path(), |graph| {
        hold_weights(graph);
        narrow_tokens(graph);
    });
    let other = trained(&other);
    let [a, b] = [&plain, &other].map(|folder| std::fs::read(folder.join("model.safetensors")).unwrap());
    assert!(a == b, "other weights");
    let wide = HostTensor::new(&[1, 4], &[3i64, 31, 2, 31]).unwrap();
    let narrow = HostTensor::new(&[1, 4], &[3i32, 31, 2, 31]).unwrap();
    let [a, b] =
        [(&plain, &wide), (&other, &narrow)].map(|(folder, tokens)| logits(&folder.join("model.onnx"), tokens));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "another model");
    // What is trained are initializers now; tables stay where they were.
    assert!(!graph_of(&other).initializer.is_empty());
}

/// The graph of the model that a run left.
fn graph_of(run: &Path) -> GraphProto {
    ModelProto::decode(std::fs::read(run.join("model.onnx")).unwrap().as_slice()).unwrap().graph.unwrap()
}

/// The values of an initializer.
fn values(graph: &GraphProto, name: &str) -> Vec<u8> {
    graph.initializer.iter().find(|t| t.name == name).unwrap().raw_data.to_vec()
}

/// TorchScript keeps norms of ones once and copies them; trained, each is its own, in both files that a run leaves.
#[test]
fn weights_that_are_equal_at_first_part() {
    let norms = ["blocks.0.attn_norm", "blocks.0.ff_norm", "blocks.1.attn_norm", "blocks.1.ff_norm", "ln_f"];
    let names = norms.map(|n| format!("transformer.{n}.weight"));
    let ones: Vec<u8> = std::iter::repeat_n(1f32.to_le_bytes(), 16).flatten().collect();
    let fill = |graph: &mut GraphProto| {
        for t in graph.initializer.iter_mut().filter(|t| names.contains(&t.name)) {
            t.raw_data = ones.clone().into();
        }
    };
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let plain = trained(&respelled(folders[0].path(), fill));
    let copied = trained(&respelled(folders[1].path(), |graph| {
        fill(graph);
        graph.initializer.retain(|t| !names[1..].contains(&t.name));
        for name in &names[1..] {
            let copy = NodeProto { attribute: vec![], ..node("Identity", &[&names[0]], name, Default::default()) };
            graph.node.insert(0, copy);
        }
    }));
    let [a, b] = [&plain, &copied].map(|folder| std::fs::read(folder.join("model.safetensors")).unwrap());
    assert!(a == b, "other weights");
    let (plain, copied) = (graph_of(&plain), graph_of(&copied));
    for name in &names {
        assert_eq!(values(&plain, name), values(&copied, name), "{name}");
        assert_ne!(values(&plain, name), ones, "{name}");
    }
}

/// An exporter that lays out a weight for each of its uses writes it twice: an adapter is merged into both.
#[test]
fn a_weight_that_is_written_twice_is_merged_twice() {
    let folder = tempfile::tempdir().unwrap();
    // Queries of the first and the second layer.
    let (first, second) = ("val_25", "val_95");
    let model = respelled(folder.path(), |graph| {
        let data = values(graph, first);
        graph.initializer.iter_mut().find(|t| t.name == second).unwrap().raw_data = data.into();
        // Both say of which parameter they are: a layer that is used twice.
        let noted = graph.value_info.iter().find(|v| v.name == first).unwrap().metadata_props.clone();
        graph.value_info.iter_mut().find(|v| v.name == second).unwrap().metadata_props = noted;
    });
    let before = values(&ModelProto::decode(std::fs::read(&model).unwrap().as_slice()).unwrap().graph.unwrap(), first);
    let options = Options { mask_id: Some(31), trainable: "lora".parse().unwrap(), ..Options::new(model.clone()) };
    let out = run(&options, &model);
    let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let names: Vec<String> =
        safetensors::SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(String::from).collect();
    assert!(
        names.contains(&"transformer.blocks.0.q_proj.weight".into()) && !names.iter().any(|n| n.starts_with("val_"))
    );
    let graph = graph_of(&out);
    assert_ne!(values(&graph, first), before);
    assert_eq!(values(&graph, first), values(&graph, second));
}

/// How matrices of linear layers are written.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Form {
    /// The numbers that codes stand for.
    Dense,
    MatMulNBits,
    /// `DequantizeLinear` before the product, of codes with a sign or without.
    Decoded {
        signed: bool,
    },
}

/// Matrices of linear layers in blocks of 16 with zero points, as codes of `bits` bits.
fn quantise(graph: &mut GraphProto, bits: u32, form: Form) {
    const BLOCK: usize = 16;
    let most = ((1u32 << bits) - 1) as f32;
    let tensor = |name: String, dims: &[usize], data_type: DataType, data: Vec<u8>| TensorProto {
        name,
        dims: dims.iter().map(|n| *n as i64).collect(),
        data_type: data_type as i32,
        raw_data: data.into(),
        ..Default::default()
    };
    let packed = |codes: &[u8]| match bits {
        4 => codes.chunks(2).map(|pair| pair[0] | pair.get(1).unwrap_or(&0) << 4).collect(),
        _ => codes.to_vec(),
    };
    let mut decoders = Vec::new();
    for node in graph.node.iter_mut().filter(|n| n.op_type == "MatMul") {
        let Some(place) = graph.initializer.iter().position(|t| t.name == node.input[1]) else { continue };
        let weight = &mut graph.initializer[place];
        let [inner, outer] = [0, 1].map(|k| weight.dims[k] as usize);
        let mut w: Vec<f32> = weight.raw_data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
        let (mut plain, mut of_block) = (vec![0u8; inner * outer], vec![(0f32, 0u8); inner / BLOCK * outer]);
        for column in 0..outer {
            let mut of_row = Vec::new();
            for first in (0..inner).step_by(BLOCK) {
                let at = |k: usize| (first + k) * outer + column;
                let low = (0..BLOCK).map(|k| w[at(k)]).fold(0.0, f32::min);
                let high = (0..BLOCK).map(|k| w[at(k)]).fold(0.0, f32::max);
                let scale = (high - low) / most;
                let zero = (-low / scale).round();
                let block: Vec<u8> =
                    (0..BLOCK).map(|k| ((w[at(k)] / scale).round() + zero).clamp(0.0, most) as u8).collect();
                (0..BLOCK).for_each(|k| w[at(k)] = (f32::from(block[k]) - zero) * scale);
                (0..BLOCK).for_each(|k| plain[at(k)] = block[k]);
                of_block[first / BLOCK * outer + column] = (scale, zero as u8);
                codes.extend(packed(&block));
                scales.extend(scale.to_le_bytes());
                of_row.push(zero as u8);
            }
            zeros.extend(packed(&of_row));
        }
        if form == Form::Dense {
            weight.raw_data = w.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into();
            continue;
        }
        let (name, blocks) = (format!("{}_Q{bits}", weight.name), inner / BLOCK);
        let shapes = [vec![outer, blocks, BLOCK * bits as usize / 8], vec![outer * blocks], vec![zeros.len()]];
        let (scale, zero) = (format!("{name}_scales"), format!("{name}_zero_points"));
        if let Form::Decoded { signed } = form {
            // As the source has them, `[in out]`.
            let middle = if signed { 1u8 << (bits - 1) } else { 0 };
            let turn = |codes: Vec<u8>| {
                let own: Vec<u8> = codes.iter().map(|c| c.wrapping_sub(middle) & (most as u32) as u8).collect();
                packed(&own)
            };
            let data_type = match (bits, signed) {
                (4, true) => DataType::Int4,
                (4, false) => DataType::Uint4,
                (_, true) => DataType::Int8,
                (_, false) => DataType::Uint8,
            };
            let numbers = of_block.iter().flat_map(|(scale, _)| scale.to_le_bytes()).collect();
            let sizes = [inner / BLOCK, outer];
            *weight = tensor(name.clone(), &[inner, outer], data_type, turn(plain));
            graph.initializer.push(tensor(scale.clone(), &sizes, DataType::Float, numbers));
            let zeros = turn(of_block.iter().map(|(_, zero)| *zero).collect());
            graph.initializer.push(tensor(zero.clone(), &sizes, data_type, zeros));
            let decoded = format!("{name}_decoded");
            let along = attribute("axis", AttributeType::Int, |a| a.i = Some(0));
            let mut decoder = self::node("DequantizeLinear", &[&name, &scale, &zero], &decoded, along);
            decoder.attribute.push(attribute("block_size", AttributeType::Int, |a| a.i = Some(BLOCK as i64)));
            node.input[1] = decoded;
            decoders.push(decoder);
            continue;
        }
        *weight = tensor(name.clone(), &shapes[0], DataType::Uint8, codes);
        graph.initializer.push(tensor(scale.clone(), &shapes[1], DataType::Float, scales));
        graph.initializer.push(tensor(zero.clone(), &shapes[2], DataType::Uint8, zeros));
        (node.op_type, node.domain) = ("MatMulNBits".into(), "com.microsoft".into());
        node.input = vec![node.input[0].clone(), name, scale, zero];
        let sizes = [("K", inner), ("N", outer), ("bits", bits as usize), ("block_size", BLOCK)];
        node.attribute.extend(sizes.map(|(n, v)| attribute(n, AttributeType::Int, |a| a.i = Some(v as i64))));
    }
    graph.node.splice(0..0, decoders);
}

fn far(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).fold(0f64, |m, (a, b)| m.max((a - b).abs()))
}

/// An adapter of a model in few bits is that of the dense model with the same numbers, and the trained model has it beside
/// the codes, which stay as they are.
#[test]
fn a_model_in_few_bits_is_adapted() {
    // On a GPU codes of 8 bits are decoded by other operators, which run here too.
    let decoded = |signed: bool| Form::Decoded { signed };
    for (bits, form, target) in [
        (4, Form::MatMulNBits, Target::Cpu),
        (8, Form::MatMulNBits, Target::Cpu),
        (4, Form::MatMulNBits, Target::Portable),
        (8, Form::MatMulNBits, Target::Cuda),
        (4, decoded(true), Target::Cpu),
        (4, decoded(false), Target::Portable),
        (8, decoded(true), Target::Cuda),
        (8, decoded(false), Target::Cpu),
    ] {
        let [dense, few] = [Form::Dense, form].map(|form| {
            let folder = tempfile::tempdir().unwrap();
            let model = respelled(folder.path(), |graph| quantise(graph, bits, form));
            let adapter = Spec { targets: vec!["all-linear".into()], ..Spec::default() };
            let trainable = "lora".parse().unwrap();
            let compute = Compute::F32;
            let source = Options::new(model.clone());
            let out = run(&Options { mask_id: Some(31), trainable, adapter, target, compute, ..source }, &model);
            let bytes = std::fs::read(out.join("adapter_model.safetensors")).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut factors: Vec<(String, Vec<f32>)> = tensors
                .iter()
                .map(|(name, t)| {
                    let numbers = t.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                    (name.to_string(), numbers.collect())
                })
                .collect();
            factors.sort_by(|a, b| a.0.cmp(&b.0));
            let tokens = HostTensor::new(&[1, 4], &[3i64, 31, 2, 31]).unwrap();
            let before = logits(&model, &tokens);
            let output = folder.path().join("merged.onnx");
            merge(&MergeArgs { model, adapter: out.clone(), output: output.clone(), quiet: true }).unwrap();
            assert!(far(&logits(&output, &tokens), &logits(&out.join("model.onnx"), &tokens)) < 1e-5, "{bits}: merged");
            (factors, before, logits(&out.join("model.onnx"), &tokens), graph_of(&out))
        });
        assert!(far(&few.1, &dense.1) < 1e-5, "{bits} {form:?}: another source");
        assert_eq!(few.0.len(), dense.0.len());
        for ((name, a), (other, b)) in few.0.iter().zip(&dense.0) {
            assert_eq!(name, other, "{bits}");
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4), "{bits} {form:?}: {name}");
        }
        let moved = far(&few.2, &few.1);
        assert!(moved > 0.1 && far(&few.2, &dense.2) < 1e-4, "{bits} {form:?}: {moved}, {}", far(&few.2, &dense.2));
        let reads_codes = if form == Form::MatMulNBits { "MatMulNBits" } else { "DequantizeLinear" };
        assert!(few.3.node.iter().any(|n| n.op_type == reads_codes), "{bits}");
    }
}

/// The first loss of a run.
fn loss(run: &Path) -> f64 {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    serde_json::from_str::<serde_json::Value>(log.lines().next().unwrap()).unwrap()["loss"].as_f64().unwrap()
}

/// A head in few bits leaves logits only where its product reads the codes; elsewhere it is dense in any case.
#[test]
fn a_head_in_few_bits() {
    let folder = tempfile::tempdir().unwrap();
    let model = respelled(folder.path(), |graph| {
        quantise(graph, 8, Form::MatMulNBits);
        graph.node.iter_mut().filter(|n| n.op_type == "MatMulNBits").for_each(|n| n.input.truncate(3));
    });
    let losses = [Target::Cpu, Target::Portable, Target::Cuda].map(|target| {
        let (trainable, compute) = ("lora".parse().unwrap(), Compute::F32);
        let options = Options { mask_id: Some(31), trainable, target, compute, ..Options::new(model.clone()) };
        let graph = compile(&options).unwrap().graph;
        let has = |op: Op| graph.live().iter().any(|id| graph.node(*id).op() == Some(op));
        assert_eq!((has(Op::TokenEntropy), has(Op::LogitSums)), (target == Target::Cpu, target != Target::Cpu));
        loss(&run(&options, &model))
    });
    assert!(losses.iter().all(|loss| (loss - losses[0]).abs() < 1e-5 * losses[0]), "{losses:?}");
}
