//! Large models: what compilation costs over depth, and weights that stay in their external file.

#[path = "../examples/llada/mod.rs"]
mod llada;

use llada::{Shape, Written};
use prost::Message;
use std::path::Path;
use std::time::{Duration, Instant};
use weftc::compile::{Compiled, Options, compile};
use weftc::manifest::Role;
use weftc::onnx::proto::{ModelProto, tensor_proto::DataLocation};
use weftc::train::batch::{self, Batch};
use weftc::train::data::Sample;
use weftc::train::sampler::Sampler;
use weftc::train::{Setup, StepResult, Trainer};

const NARROW: Shape =
    Shape { layers: 2, width: 32, heads: 2, ffn: 48, vocabulary: 50, length: 16, bf16: false, fill: None };

/// Writes the model and compiles it.
fn compiled(shape: &Shape, model: &Path) -> (Compiled, Written) {
    let written = llada::write(shape, model).unwrap();
    let mask_id = Some(shape.vocabulary as i64 - 1);
    (compile(&Options { mask_id, ..Options::new(model) }).unwrap(), written)
}

#[test]
fn every_stage_grows_by_the_same_nodes_a_layer() {
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let nodes = |layers: usize| -> Vec<(&str, usize)> {
        let shape = Shape { layers, ..NARROW };
        let (compiled, _) = compiled(&shape, &folder.path().join(format!("{layers}.onnx")));
        compiled.stages.iter().map(|s| (s.stage.name(), s.nodes)).collect()
    };
    let [few, some, many] = [20, 40, 80].map(nodes);
    for ((few, some), many) in few.iter().zip(&some).zip(&many) {
        assert_eq!(many.1 - some.1, 2 * (some.1 - few.1), "{}: {few:?} {some:?} {many:?}", few.0);
    }
    // A second on a quiet machine.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[cfg(target_os = "linux")]
#[test]
fn weights_are_never_read() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("wide.onnx");
    // LLaDA-8B's width and vocabulary: 11 GB of weights, all of them holes.
    let shape = Shape { layers: 8, width: 4096, heads: 32, ffn: 12288, vocabulary: 126_464, length: 4096, ..NARROW };
    let (compiled, written) = compiled(&shape, &model);
    assert!(written.data_bytes > 11_000_000_000, "{written:?}");
    let trained = compiled.manifest.parameters.iter().filter(|p| p.role == Role::Trainable);
    assert_eq!(trained.map(|p| p.shape.iter().product::<i64>() as u64).sum::<u64>(), written.parameters);
    let bytes = compiled.write(&folder.path().join("train.onnx")).unwrap();
    assert!(bytes < 1 << 20, "train.onnx has {bytes} bytes");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    let peak_kb: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak_kb < 1 << 20, "{peak}");
}

/// The model with all its weights in its own file.
fn inlined(from: &Path, to: &Path) {
    let mut model = ModelProto::decode(std::fs::read(from).unwrap().as_slice()).unwrap();
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        if tensor.data_location != DataLocation::External as i32 {
            continue;
        }
        let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).unwrap().value.clone();
        let data = std::fs::read(from.with_file_name(entry("location"))).unwrap();
        let (offset, length): (usize, usize) = (entry("offset").parse().unwrap(), entry("length").parse().unwrap());
        tensor.raw_data = data[offset..offset + length].to_vec().into();
        tensor.external_data.clear();
        tensor.data_location = DataLocation::Default.into();
    }
    std::fs::write(to, model.encode_to_vec()).unwrap();
}

fn step(train_onnx: &Path) -> StepResult {
    let row = |seed: i64| Sample { tokens: (0..12).map(|k| (k * 7 + seed) % 49).collect(), prompt: 3, total: 12 };
    let samples = [row(1), row(5)];
    let rows: Vec<(usize, &Sample)> = samples.iter().enumerate().collect();
    let batch = Batch::new(&rows, batch::Shape::default(), Sampler::new(3), 0).unwrap();
    Trainer::load(train_onnx, Setup::default()).unwrap().step(&batch).unwrap()
}

#[test]
fn external_weights_are_referenced_and_found() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    let (external, _) = compiled(&Shape { fill: Some(7), ..NARROW }, &model);
    let (beside, below) = (folder.path().join("train.onnx"), folder.path().join("runs").join("train.onnx"));
    std::fs::create_dir(folder.path().join("runs")).unwrap();
    external.write(&beside).unwrap();
    external.write(&below).unwrap();
    let written = ModelProto::decode(std::fs::read(&beside).unwrap().as_slice()).unwrap().graph.unwrap();
    let referenced: Vec<_> = written.initializer.iter().filter(|t| !t.external_data.is_empty()).collect();
    // Both rotary tables as well.
    assert_eq!(referenced.len(), external.manifest.parameters.len() + 2);
    assert!(referenced.iter().all(|t| t.raw_data.is_empty() && t.external_data[0].value == "model.onnx.data"));

    let single = folder.path().join("single.onnx");
    inlined(&model, &single);
    let options = Options { mask_id: Some(49), ..Options::new(&single) };
    compile(&options).unwrap().write(&folder.path().join("whole.onnx")).unwrap();
    let whole = step(&folder.path().join("whole.onnx"));
    assert!(whole.loss > 1.0 && whole.loss.is_finite(), "{whole:?}");
    for train_onnx in [beside, below] {
        let found = step(&train_onnx);
        assert_eq!((found.loss, found.grad_norm), (whole.loss, whole.grad_norm), "{}", train_onnx.display());
    }
}
