//! Frozen weights in 8 and 4 bits: the step on ONNX Runtime is that of the dense weights which they mean.

use crate::Draws;
use crate::narrow::{Narrow, model, narrowed};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use weftc::compile::{self, Options, Trainable, compile};
use weftc::ir::graph::Data;
use weftc::ir::{DType, Graph, LeafId, LeafKind, Op, text};
use weftc::onnx::read::read;
use weftc::onnx::{weights, write};
use weftc::precision::Compute;
use weftc::quantize::{self, BLOCK, Quantization};
use weftc::rules::Target;
use weftc::rules::library::library;
use weftc::runtime::{HostTensor, Options as Runtime, Session};
use weftc::train::{Optimizer, Setup, Trainer};
use weftc::{interp, objective, ports, precision};

const BOTH: [Quantization; 2] = [Quantization::Int8, Quantization::Int4];
const TARGETS: [Target; 2] = [Target::Cpu, Target::Portable];

/// A model after the precision stage, of which vectors alone are trained, and its ports.
struct Typed {
    graph: Graph,
    trained: Vec<LeafId>,
    ports: ports::Ports,
    method: weftc::manifest::Method,
}

fn typed(file: &Path, compute: DType) -> Typed {
    let library = library().unwrap();
    let source = read(file).unwrap();
    let ports = ports::find(&source.graph, None, None).unwrap();
    let mut model = source.graph.clone();
    model.outputs.retain(|(n, _)| *n == ports.logits_output);
    let lifted = compile::lift(&model, &library, Target::Cpu).unwrap().graph;
    let is_vector = |l: &LeafId| lifted.leaf(*l).kind == LeafKind::Param && lifted.leaf(*l).ty.rank() == 1;
    let trained: Vec<LeafId> = lifted.live().iter().filter_map(|id| lifted.as_leaf(*id)).filter(is_vector).collect();
    let graph = precision::apply(&lifted, &trained, compute).unwrap();
    let method = compile(&Options { mask_id: Some(3), ..Options::new(file) }).unwrap().manifest.method;
    Typed { graph, trained, ports, method }
}

impl Typed {
    /// The outputs of one step of `model`, a variant of the graph, on ONNX Runtime.
    fn step(&self, model: &Graph, target: Target) -> (BTreeMap<String, Vec<f64>>, Graph) {
        let library = library().unwrap();
        let mut fired = BTreeMap::new();
        let definition = &library.methods["weft"];
        let mut step = objective::build(model, &self.ports, &self.method, definition, &mut fired).unwrap();
        let loss = step.outputs.iter().find(|(n, _)| n == "loss_sum").unwrap().1;
        compile::add_gradients(&mut step, loss, &self.trained, &library.grad).unwrap();
        let optimised = compile::optimise(&step, &library, target).unwrap().graph;
        let mut lowered = compile::lower_for(&optimised, &library, target, &mut fired).unwrap();
        for data in lowered.leaves.iter_mut().filter_map(|l| l.data.as_mut()) {
            *data = Data::Inline(weights::load(data).unwrap().to_vec().into());
        }
        let bytes = write::plain(&lowered, &library.lower).unwrap();
        let mut session = Session::from_bytes(&bytes, &Runtime::default()).unwrap();
        let feeds = self.feeds();
        let outputs = session.run(feeds.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
        (outputs.iter().map(|(n, t)| (n.clone(), t.to_f64())).collect(), lowered)
    }

    /// Draws of one step.
    fn feeds(&self) -> [(String, HostTensor); 4] {
        let (b, l) = (2i64, 12i64);
        let n = b * l;
        let tokens: Vec<i64> = (0..n).map(|k| (k * 7 + 5) % self.ports.vocab_size()).collect();
        let answer: Vec<bool> = (0..n).map(|k| k % l >= 4 && k != n - 1).collect();
        let u: Vec<f32> = (0..n).map(|k| (k * 37 % 101) as f32 / 101.0).collect();
        [
            (self.ports.token_input.clone(), HostTensor::new(&[b, l], &tokens).unwrap()),
            ("answer_mask".into(), HostTensor::new(&[b, l], &answer).unwrap()),
            ("t".into(), HostTensor::new(&[b], &[0.7f32, 0.4]).unwrap()),
            ("u".into(), HostTensor::new(&[b, l], &u).unwrap()),
        ]
    }
}

/// The model with each quantised weight replaced by the dense one that its codes and scales mean.
fn dense(model: &Graph, quantised: &Graph, names: &[String]) -> Graph {
    let mut out = model.clone();
    let bytes = |name: String| {
        let leaf = quantised.leaf(quantised.find_leaf(&name).unwrap());
        (leaf.ty.clone(), weights::bytes(leaf).unwrap().to_vec())
    };
    for name in names {
        let (ty, codes) = bytes(format!("{name}.codes"));
        let (_, scales) = bytes(format!("{name}.scales"));
        let scales: Vec<f32> = scales.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let (codes, zero) = match ty.shape[2].known() {
            Some(bytes) if bytes < BLOCK as i64 => (codes.iter().flat_map(|c| [c & 15, c >> 4]).collect(), 8.0),
            _ => (codes, 128.0),
        };
        let leaf = out.find_leaf(name).unwrap();
        let leaf = &mut out.leaves[leaf.0 as usize];
        let [first, second] = [0, 1].map(|k| leaf.ty.shape[k].known().unwrap() as usize);
        let rows = ty.shape[0].known().unwrap() as usize;
        let width = codes.len() / rows;
        // As many rows as outputs; a square matrix lies as its product reads it.
        let plain = model_is_plain(quantised, name);
        assert!(if plain { second == rows } else { first == rows }, "{name}");
        let value = |r: usize, c: usize| (f32::from(codes[r * width + c]) - zero) * scales[(r * width + c) / BLOCK];
        let at = |i: usize, j: usize| if plain { value(j, i) } else { value(i, j) };
        let values = (0..first).flat_map(|i| (0..second).map(move |j| at(i, j))).flat_map(f32::to_le_bytes);
        leaf.data = Some(Data::Inline(values.collect::<Arc<[u8]>>()));
    }
    out
}

/// Whether a weight lies as inputs by outputs: then its dense value is a transpose.
fn model_is_plain(quantised: &Graph, name: &str) -> bool {
    let codes = quantised.find_leaf(&format!("{name}.codes")).unwrap();
    let reads = |id: &weftc::ir::Id, what: &dyn Fn(weftc::ir::Id) -> bool| {
        quantised.node(*id).children().iter().any(|c| what(*c))
    };
    let is_codes = |id: weftc::ir::Id| quantised.as_leaf(id) == Some(codes);
    let live = quantised.live();
    let dense = live.iter().find(|id| reads(id, &is_codes)).unwrap();
    live.iter().any(|id| quantised.node(*id).op() == Some(Op::Transpose) && reads(id, &|c| c == *dense))
        && !live.iter().any(|id| quantised.node(*id).op() == Some(Op::MatMul) && reads(id, &|c| c == *dense))
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    let scale = b.iter().fold(1e-12f64, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f64, |m, (x, y)| m.max((x - y).abs())) / scale
}

#[test]
fn a_step_is_that_of_the_dense_weights() {
    let names = ["llada_micro_dynamo18", "llada_micro_legacy17", "dream_micro_dynamo18", "sudoku"];
    for name in names {
        let typed = typed(&model(name), DType::F32);
        let (plain, _) = typed.step(&typed.graph, Target::Portable);
        let mut errors = Vec::new();
        for how in BOTH {
            let (quantised, report) = quantize::apply(&typed.graph, &typed.trained, how, DType::F32).unwrap();
            assert!(report.after < report.before && !report.names.is_empty(), "{report:?}");
            let exact = dense(&typed.graph, &quantised, &report.names);
            for target in TARGETS {
                let (ours, graph) = typed.step(&quantised, target);
                let (theirs, _) = typed.step(&exact, target);
                let fused = graph.histogram().get("matmul_nbits").copied().unwrap_or(0);
                assert_eq!(fused > 0, target == Target::Cpu, "{name}: {:?}", graph.histogram());
                assert_eq!(ours["mask"], theirs["mask"]);
                let mut worst = 0f64;
                for (output, value) in ours.iter().filter(|(n, _)| n.starts_with("grad/") || *n == "loss_sum") {
                    assert!(value.iter().all(|x| x.is_finite()) && value.iter().any(|x| *x != 0.0), "{name}: {output}");
                    let one = apart(value, &theirs[output]);
                    assert!(one < 1e-5, "{name} {how:?} {target:?}: {output} differs by {one:.1e}");
                    worst = worst.max(one);
                }
                let moved = (ours["loss"][0] / plain["loss"][0] - 1.0).abs();
                let gradients = ours.iter().filter(|(n, _)| n.starts_with("grad/"));
                let away = gradients.map(|(n, g)| apart(g, &plain[n])).fold(0.0, f64::max);
                println!(
                    "{name} {} {target:?}: step within {worst:.1e}, loss moved by {moved:.1e}, gradients by {away:.1e}",
                    how.name()
                );
                errors.push(away);
                assert!(moved > 0.0 && moved < if how == Quantization::Int8 { 5e-3 } else { 0.1 }, "{name}: {moved}");
            }
        }
        assert!(errors[..2].iter().all(|e| *e < errors[2]), "{name}: more bits are nearer: {errors:?}");
    }
}

/// Sources of 16 bits give the codes of their numbers.
#[test]
fn narrow_sources_are_quantised_from_their_own_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for narrow in [Narrow::F16, Narrow::BF16] {
        let typed = typed(&narrowed("sudoku", narrow, folder.path()), DType::F32);
        let (plain, _) = typed.step(&typed.graph, Target::Cpu);
        let (quantised, report) =
            quantize::apply(&typed.graph, &typed.trained, Quantization::Int8, DType::F32).unwrap();
        assert!(!report.names.is_empty());
        let (ours, _) = typed.step(&quantised, Target::Cpu);
        assert!((ours["loss"][0] / plain["loss"][0] - 1.0).abs() < 5e-3);
    }
}

/// What was written is read back and means the same to the interpreter.
#[test]
fn written_codes_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let typed = typed(&model("sudoku"), DType::F32);
    for (how, target) in BOTH.into_iter().flat_map(|how| TARGETS.map(|t| (how, t))) {
        let (quantised, _) = quantize::apply(&typed.graph, &typed.trained, how, DType::F32).unwrap();
        let (ours, lowered) = typed.step(&quantised, target);
        let path = folder.path().join("step.onnx");
        std::fs::write(&path, write::plain(&lowered, &library().unwrap().lower).unwrap()).unwrap();
        let back = read(&path).unwrap().graph;
        let feeds = typed.feeds().map(|(name, t)| {
            let shape: Vec<usize> = t.shape().iter().map(|n| *n as usize).collect();
            (name, Tensor::from_vec(t.to_f64(), shape, &Device::Cpu).unwrap())
        });
        let outputs = interp::run(&back, &feeds.into()).unwrap();
        for (name, value) in ours.iter().filter(|(n, _)| n.starts_with("grad/") || *n == "loss_sum") {
            let exact: Vec<f64> = outputs[name].flatten_all().unwrap().to_vec1().unwrap();
            let one = apart(value, &exact);
            assert!(one < 1e-4, "{how:?} {target:?}: {name} differs by {one:.1e}");
        }
    }
}

/// Adapters over codes, in either compute type, are what the interpreter makes of the file; they learn.
#[test]
fn adapters_train_over_a_quantised_base() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train.onnx");
    for (how, compute, tolerance) in BOTH.into_iter().flat_map(|h| [(h, Compute::F32, 1e-4), (h, Compute::F16, 2e-2)]) {
        let trainable = Trainable::Named("lora".into());
        let options =
            Options { mask_id: Some(15), trainable, quantize: Some(how), compute, ..Options::new(model("sudoku")) };
        compile(&options).unwrap().write(&train).unwrap();
        let optimizer = Optimizer { lr: 1e-2, ..Optimizer::default() };
        let mut ours = Trainer::load(&train, Setup { optimizer, ..Setup::default() }).unwrap();
        let mut exact = Trainer::load_interpreted(&train, Setup::default()).unwrap();
        assert!(ours.manifest().parameters.iter().any(|p| p.quantized == Some(how)));
        let draws = Draws::new(ours.manifest().vocab_size);
        let (first, want) = (draws.step(&mut ours), draws.step(&mut exact));
        assert!((first.loss / want.loss - 1.0).abs() < tolerance, "{how:?} {compute:?}: {} {}", first.loss, want.loss);
        assert!((first.grad_norm / want.grad_norm - 1.0).abs() < tolerance, "{how:?} {compute:?}");
        let last = (0..20).map(|_| draws.step(&mut ours).loss).last().unwrap();
        assert!(last < first.loss, "{how:?} {compute:?}: {} then {last}", first.loss);
    }
}

/// Codes are dequantised to the compute type.
#[test]
fn codes_serve_a_step_in_f16() {
    for name in ["sudoku", "llada_micro_dynamo18"] {
        let [wide, narrow] = [DType::F32, DType::F16].map(|t| typed(&model(name), t));
        for (how, target) in BOTH.into_iter().zip(TARGETS) {
            let steps = [(&wide, DType::F32), (&narrow, DType::F16)].map(|(model, compute)| {
                let (quantised, _) = quantize::apply(&model.graph, &model.trained, how, compute).unwrap();
                model.step(&quantised, target).0
            });
            assert!((steps[0]["loss"][0] / steps[1]["loss"][0] - 1.0).abs() < 1e-2, "{name}: {:?}", how);
            let gradients = steps[0].keys().filter(|n| n.starts_with("grad/"));
            let worst = gradients.map(|n| apart(&steps[1][n], &steps[0][n])).fold(0.0, f64::max);
            assert!(worst < 5e-2, "{name} {how:?}: {worst}");
        }
    }
}

const LAYERS: &str = "(graph m (input ids i64 [b s]) (param e f32 [64 32]) (param w f32 [32 32]) (param v f32 [48 32])
  (param small f32 [8 4]) (param trained f32 [32 32]) (param head f32 [48 64])
  (let h (gather e ids 0)) (let x (matmul h w)) (let y (matmul x (add trained w)))
  (let z (matmul y (transpose v [1 0]))) (let tied (matmul y (transpose e [1 0])))
  (output logits tied) (output z (mul (tanh (mul (matmul z head) 0.1)) 10.0)))";

/// Which matrices are quantised, as text.
#[test]
fn embeddings_heads_and_trained_weights_stay() {
    let mut graph = text::parse(LAYERS).unwrap_or_else(|e| panic!("{}", e.message));
    for leaf in graph.leaves.iter_mut().filter(|l| l.kind == LeafKind::Param) {
        let n: i64 = leaf.ty.shape.iter().map(|d| d.known().unwrap()).product();
        leaf.data = Some(Data::Inline(vec![0; n as usize * 4].into()));
    }
    let trained = [graph.find_leaf("trained").unwrap()];
    let (quantised, report) = quantize::apply(&graph, &trained, Quantization::Int4, DType::F32).unwrap();
    assert_eq!(report.names, ["w", "v"]);
    assert_eq!((report.before, report.after), ((32 + 48) * 32 * 4, (32 + 48) * (16 + 4)));
    insta::assert_snapshot!(text::print(&quantised));
}

#[test]
fn nothing_to_quantise_is_an_error() {
    let options =
        Options { mask_id: Some(3), quantize: Some(Quantization::Int4), ..Options::new(model("llada_micro_dynamo18")) };
    let error = compile(&options).err().expect("everything is trained");
    assert_eq!(error.exit_code(), 2);
    insta::assert_snapshot!(error);
}
