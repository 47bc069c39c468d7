//! Whole training graphs in f64: every stage of the compiler keeps the meaning of the one before, and the
//! gradients are candle's.

use candle_core::{Device, Tensor, Var};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weftc::compile::{Options, Stage, compile, emit_ir};
use weftc::interp;
use weftc::ir::{Graph, LeafKind, text};
use weftc::rules::Target;

/// Largest difference between two stages, relative to the largest element; both run in f64.
const TOLERANCE: f64 = 1e-12;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

/// The graph after a stage, with the weights of the compiled one.
fn stage(options: &Options, stage: Stage, weights: &Graph) -> Graph {
    let mut graph = text::parse(&emit_ir(options, stage).unwrap()).unwrap();
    for leaf in &mut graph.leaves {
        leaf.data = weights.leaves.iter().find(|l| l.name == leaf.name).and_then(|l| l.data.clone());
    }
    graph
}

/// A batch of two sequences with a prompt, an answer and padding; draws between 0 and 1.
fn batch(vocab: i64) -> BTreeMap<String, Tensor> {
    let (b, l) = (2, 10);
    let tensor = |f: &dyn Fn(usize) -> f64, shape: &[usize]| {
        let n = shape.iter().product();
        Tensor::from_vec((0..n).map(f).collect::<Vec<f64>>(), shape, &Device::Cpu).unwrap()
    };
    let draw = |k: usize| (k as f64 * 0.618_033_988_749_894_9 + 0.05).fract();
    BTreeMap::from([
        ("input_ids".to_string(), tensor(&|k| ((k * k + 3 * k + 1) as i64 % (vocab - 1)) as f64, &[b, l])),
        ("answer_mask".to_string(), tensor(&|k| f64::from((3..9).contains(&(k % l))), &[b, l])),
        ("t".to_string(), tensor(&|k| draw(k + 7), &[b])),
        ("u".to_string(), tensor(&draw, &[b, l])),
    ])
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let scale = theirs.iter().fold(1e-12f64, |m, x| m.max(x.abs()));
    ours.iter().zip(theirs).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// Asserts that two runs agree on every output that both have; returns how many, and the worst.
fn agree(place: &str, ours: &BTreeMap<String, Tensor>, theirs: &BTreeMap<String, Tensor>) -> (usize, f64) {
    let mut worst = (0, 0.0f64);
    for (name, value) in theirs {
        let Some(our) = ours.get(name) else { continue };
        let apart = distance(&flat(our), &flat(value));
        assert!(apart < TOLERANCE, "{place}: {name} differs by {apart:.1e}");
        worst = (worst.0 + 1, worst.1.max(apart));
    }
    worst
}

/// Candle's gradients of `loss_sum`, by the names of the training graph.
fn candle_gradients(graph: &Graph, feeds: &BTreeMap<String, Tensor>, wanted: &[&str]) -> BTreeMap<String, Tensor> {
    let mut values = Graph::with_leaves_of(graph);
    let mut vars = BTreeMap::new();
    for name in wanted {
        let id = values.find_leaf(name).unwrap();
        let node = weftc::ir::Builder::insert(&mut values, weftc::ir::Node::Leaf(id)).unwrap();
        values.outputs.push((name.to_string(), node));
    }
    let mut feeds = feeds.clone();
    for (name, value) in interp::run(&values, &BTreeMap::new()).unwrap() {
        let var = Var::from_tensor(&value).unwrap();
        feeds.insert(name.clone(), var.as_tensor().clone());
        vars.insert(name, var);
    }
    let loss = interp::run(graph, &feeds).unwrap().remove("loss_sum").unwrap();
    let store = loss.backward().unwrap();
    vars.iter()
        .map(|(n, v)| (format!("grad/{n}"), store.get(v).unwrap_or_else(|| panic!("candle lost {n}")).clone()))
        .collect()
}

fn check(file: &str, vocab: i64, logits_shift: i64) {
    for target in [Target::Portable, Target::Cpu] {
        let options = Options { mask_id: Some(vocab - 1), target, logits_shift, ..Options::new(folder().join(file)) };
        let compiled = compile(&options).unwrap().graph;
        let feeds = batch(vocab);
        let place = |s: &str| format!("{file} for {target:?}, {s}");

        let objective = stage(&options, Stage::Objective, &compiled);
        let training = stage(&options, Stage::Differentiate, &compiled);
        let forward = interp::run(&objective, &feeds).unwrap();
        assert!(flat(&forward["loss_sum"])[0] > 0.1, "something is masked");
        let stepped = interp::run(&training, &feeds).unwrap();
        agree(&place("differentiate"), &stepped, &forward);

        let trainable: Vec<&str> = stepped.keys().filter_map(|n| n.strip_prefix("grad/")).collect();
        let params = training.leaves.iter().filter(|l| l.kind == LeafKind::Param).count();
        assert!(!trainable.is_empty() && trainable.len() <= params);
        let theirs = candle_gradients(&objective, &feeds, &trainable);
        let (gradients, worst) = agree(&place("gradients against candle"), &stepped, &theirs);
        assert_eq!(gradients, trainable.len());
        println!("{}: {gradients} gradients, {worst:.1e}", place("against candle"));

        for later in [Stage::Optimise, Stage::Lower] {
            let graph = stage(&options, later, &compiled);
            let (outputs, worst) = agree(&place(later.name()), &interp::run(&graph, &feeds).unwrap(), &stepped);
            assert_eq!(outputs, stepped.len(), "{} lost an output", place(later.name()));
            println!("{}: {outputs} outputs, {worst:.1e}", place(later.name()));
        }
    }
}

#[test]
fn llada_in_three_spellings() {
    for file in ["llada_micro_dynamo18.onnx", "llada_micro_native23.onnx", "llada_micro_legacy17.onnx"] {
        check(file, 32, 0);
    }
}

#[test]
fn dream() {
    check("dream_micro_dynamo18.onnx", 32, 1);
}

#[test]
fn sudoku() {
    check("sudoku.onnx", 16, 0);
}

/// What was read is what PyTorch computed, up to PyTorch's f32.
#[test]
fn logits_are_pytorchs() {
    let bytes = std::fs::read(folder().join("samples.safetensors")).unwrap();
    let samples = SafeTensors::deserialize(&bytes).unwrap();
    for (file, vocab) in [
        ("llada_micro_dynamo18", 32),
        ("llada_micro_native23", 32),
        ("llada_micro_legacy17", 32),
        ("dream_micro_dynamo18", 32),
        ("sudoku", 16),
    ] {
        let options = Options { mask_id: Some(vocab - 1), ..Options::new(folder().join(format!("{file}.onnx"))) };
        let compiled = compile(&options).unwrap().graph;
        let sample = |name: &str| samples.tensor(&format!("{file}.{name}")).unwrap();
        let ids: Vec<f64> =
            sample("input_ids").data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect();
        let logits: Vec<f64> =
            sample("logits").data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect();
        let ids = Tensor::from_vec(ids, sample("input_ids").shape(), &Device::Cpu).unwrap();
        let feeds = BTreeMap::from([("input_ids".to_string(), ids)]);
        for at in [Stage::Read, Stage::Lift] {
            let outputs = interp::run(&stage(&options, at, &compiled), &feeds).unwrap();
            let apart = distance(&flat(&outputs["logits"]), &logits);
            assert!(apart < 1e-5, "{file}, {}: logits differ by {apart:.1e}", at.name());
        }
    }
}
