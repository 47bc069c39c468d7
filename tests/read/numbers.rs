//! What is read computes what PyTorch computed: the graph in f64 against the logits saved at export.

use crate::models::{models, shared};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use weftc::interp::run;
use weftc::ir::LeafKind;
use weftc::onnx::read::read;

/// f32 in PyTorch, f64 here; the largest logit is about 10.
const TOLERANCE: f64 = 2e-5;

/// The largest difference between the graph's logits and the saved ones.
fn distance(model: &Path, inputs: &BTreeMap<String, Tensor>, logits: &Tensor) -> f64 {
    let source = read(model).unwrap_or_else(|e| panic!("{e}"));
    let names = source.graph.leaves.iter().filter(|l| l.kind == LeafKind::Input).map(|l| l.name.clone());
    let feed = |name: String| {
        let x = inputs.get(&name).unwrap_or_else(|| panic!("{name} is not saved"));
        (name, x.to_dtype(DType::F64).unwrap())
    };
    let results = run(&source.graph, &names.map(feed).collect()).unwrap_or_else(|e| panic!("{e}"));
    let apart = (&results["logits"] - logits.to_dtype(DType::F64).unwrap()).unwrap();
    apart.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn models_of_the_repository() {
    let samples =
        candle_core::safetensors::load(models().join("samples.safetensors"), &candle_core::Device::Cpu).unwrap();
    let names: Vec<&str> = samples.keys().filter_map(|n| n.strip_suffix(".logits")).collect();
    assert_eq!(names.len(), 5);
    for name in names {
        let inputs = BTreeMap::from([("input_ids".to_string(), samples[&format!("{name}.input_ids")].clone())]);
        let apart = distance(&models().join(format!("{name}.onnx")), &inputs, &samples[&format!("{name}.logits")]);
        assert!(apart < TOLERANCE, "{name}: {apart}");
    }
}

/// Every exporter, opset and architecture of the shared collection, at two shapes each.
#[test]
fn models_of_the_shared_collection() {
    let Some(folder) = shared() else { return println!("skipped: no shared folder beside the checkout") };
    let mut checked = 0;
    for entry in std::fs::read_dir(folder.join("models")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "onnx") {
            continue;
        }
        let stem = path.file_stem().unwrap().to_string_lossy().to_string();
        let saved = stem.split("__").next().unwrap();
        let saved = Tensor::read_npz(path.with_file_name(format!("{saved}.io.npz"))).unwrap();
        let all: BTreeMap<String, Tensor> = saved.into_iter().collect();
        for suffix in ["", "2"] {
            let Some(logits) = all.get(&format!("logits{suffix}")) else { continue };
            let inputs =
                all.iter().filter_map(|(n, t)| Some((n.strip_suffix(suffix)?.to_string(), t.clone()))).collect();
            let apart = distance(&path, &inputs, logits);
            assert!(apart < TOLERANCE, "{stem}{suffix}: {apart}");
            checked += 1;
        }
    }
    assert!(checked >= 23, "{checked}");
}
