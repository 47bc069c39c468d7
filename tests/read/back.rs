//! A train.onnx is itself read: its functions come back as what they stand for.

use crate::models::models;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use weftc::compile::{Options, compile};
use weftc::interp::run;
use weftc::onnx::read::read;
use weftc::rules::Target;

/// Both sides in f64; constants pass through f32 in the file.
const TOLERANCE: f64 = 1e-6;

#[test]
fn a_training_graph_computes_the_same_after_a_round_trip() {
    let tensor = |values: Vec<f64>, dims: &[usize]| Tensor::from_vec(values, dims, &Device::Cpu).unwrap();
    let (batch, len) = (2, 12);
    let spread = |k: usize, n: usize| ((k * 7 + 3) % n) as f64;
    let feeds = BTreeMap::from([
        ("input_ids".to_string(), tensor((0..batch * len).map(|k| spread(k, 31)).collect(), &[batch, len])),
        ("answer_mask".to_string(), tensor((0..batch * len).map(|k| f64::from(k % len > 4)).collect(), &[batch, len])),
        ("t".to_string(), tensor(vec![0.4, 0.8], &[batch])),
        ("u".to_string(), tensor((0..batch * len).map(|k| spread(k, 11) / 11.0).collect(), &[batch, len])),
    ]);
    for (file, target) in [
        ("llada_micro_dynamo18.onnx", Target::Portable),
        ("llada_micro_dynamo18.onnx", Target::Cpu),
        ("llada_micro_native23.onnx", Target::Portable),
        ("dream_micro_dynamo18.onnx", Target::Portable),
    ] {
        let options = Options { mask_id: Some(31), target, ..Options::new(models().join(file)) };
        let compiled = compile(&options).unwrap_or_else(|e| panic!("{file}: {e}"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.onnx");
        std::fs::write(&path, compiled.encode(&models()).unwrap()).unwrap();
        let source = read(&path).unwrap_or_else(|e| panic!("{file}: {e}"));
        let before = run(&compiled.graph, &feeds).unwrap_or_else(|e| panic!("{file}: {e}"));
        let after = run(&source.graph, &feeds).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{file}");
        for (name, value) in &before {
            let apart = (value.to_dtype(DType::F64).unwrap() - &after[name]).unwrap().abs().unwrap();
            let apart: f64 = apart.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
            assert!(apart < TOLERANCE, "{file} {target:?} {name}: {apart}");
        }
    }
}
