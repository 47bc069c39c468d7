//! Element types: f32 islands, f32 masters of 16-bit weights, gradients in f16 and bf16 beside those in f32.

mod gpu;
mod narrow;
mod quantize;

use candle_core::{Device, Tensor};
use narrow::{Narrow, model, narrowed, rounded_file};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use weftc::compile::{self, Options, compile};
use weftc::ir::{DType, Graph, LeafId, LeafKind, text};
use weftc::manifest::Role;
use weftc::onnx::read::read;
use weftc::precision::{Compute, apply};
use weftc::rules::Target;
use weftc::rules::library::library;
use weftc::runtime::HostTensor;
use weftc::train::{Optimizer, Outcome, Setup, Trainer};
use weftc::{interp, objective, ports};

const MODELS: [&str; 5] =
    ["dream_micro_dynamo18", "llada_micro_dynamo18", "llada_micro_legacy17", "llada_micro_native23", "sudoku"];

/// A block with everything that the stage treats differently.
const BLOCK: &str = "(graph m (input ids i64 [b s]) (const angles f32 [1 8])
  (param e f32 [16 8]) (param n f32 [8]) (param w f32 [8 16])
  (let h (gather e ids 0)) (let r (rms_norm h n 1e-06))
  (let cos (cos angles)) (let x (mul r cos)) (let p (softmax x -1))
  (output logits (matmul p w)))";

fn typed(source: &str, trained: &[&str], compute: DType) -> String {
    let graph = text::parse(source).unwrap_or_else(|e| panic!("{}", e.message));
    let trained: Vec<LeafId> = trained.iter().filter_map(|n| graph.find_leaf(n)).collect();
    text::print(&apply(&graph, &trained, compute).unwrap())
}

#[test]
fn hidden_states_are_narrow_and_islands_wide() {
    insta::assert_snapshot!(typed(BLOCK, &["e", "n", "w"], DType::F16));
}

#[test]
fn a_narrow_source_is_trained_from_f32_masters() {
    let narrow = BLOCK.replace("f32", "bf16");
    insta::assert_snapshot!("narrow_in_f32", typed(&narrow, &["n"], DType::F32));
    insta::assert_snapshot!("narrow_in_f16", typed(&narrow, &["n"], DType::F16));
}

#[test]
fn f32_in_f32_is_left_alone() {
    let graph = text::parse(BLOCK).unwrap_or_else(|e| panic!("{}", e.message));
    assert_eq!(typed(BLOCK, &["e"], DType::F32), text::print(&graph));
}

#[test]
fn bf16_on_a_cpu_is_f32_with_a_note() {
    let options = |compute| Options { mask_id: Some(3), compute, ..Options::new(model("llada_micro_dynamo18")) };
    let asked = compile(&options(Compute::Bf16)).unwrap();
    insta::assert_snapshot!(asked.notes.join("\n"));
    assert_eq!(asked.manifest.compute, "f32");
    let folder = Path::new(".");
    assert!(asked.encode(folder).unwrap() == compile(&options(Compute::F32)).unwrap().encode(folder).unwrap());
}

/// Draws of one step: a fixed sequence without structure; token 3 is the mask and does not occur.
struct Draws {
    tokens: Vec<i64>,
    answer: Vec<bool>,
    u: Vec<f32>,
}

const BATCH: i64 = 2;
const LENGTH: i64 = 12;
const TIMES: [f32; 2] = [0.7, 0.4];

impl Draws {
    fn new(vocab: i64) -> Self {
        let n = BATCH * LENGTH;
        Draws {
            tokens: (0..n).map(|k| (k * 7 + 5) % vocab).map(|t| if t == 3 { 4 } else { t }).collect(),
            answer: (0..n).map(|k| k % LENGTH >= 4 && k != n - 1).collect(),
            u: (0..n).map(|k| (k * 37 % 101) as f32 / 101.0).collect(),
        }
    }

    fn step(&self, trainer: &mut Trainer) -> weftc::train::StepResult {
        trainer
            .step_with(
                HostTensor::new(&[BATCH, LENGTH], &self.tokens).unwrap(),
                HostTensor::new(&[BATCH, LENGTH], &self.answer).unwrap(),
                HostTensor::new(&[BATCH], &TIMES).unwrap(),
                HostTensor::new(&[BATCH, LENGTH], &self.u).unwrap(),
            )
            .unwrap()
    }
}

/// The loss, the masks and the gradients of one step.
struct Step {
    loss: f64,
    mask: Vec<f64>,
    gradients: BTreeMap<String, Vec<f64>>,
}

fn step(file: &Path, compute: Compute, target: Target) -> Step {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train.onnx");
    let options = Options { mask_id: Some(3), compute, target, ..Options::new(file) };
    compile(&options).unwrap_or_else(|e| panic!("{}: {e}", file.display())).write(&train).unwrap();
    let mut trainer = Trainer::load(&train, Setup::default()).unwrap();
    let draws = Draws::new(trainer.manifest().vocab_size);
    let mut result = draws.step(&mut trainer);
    while result.outcome == Outcome::Skipped {
        let scale = trainer.loss_scale().unwrap_or_else(|| panic!("{}: {}", file.display(), result.grad_norm));
        println!("{} halves its loss scale to {}", file.file_stem().unwrap().display(), scale.scale());
        result = draws.step(&mut trainer);
    }
    let gradients = trainer.parameters().map(|p| (p.to_string(), trainer.gradient(p).unwrap().to_f64()));
    Step { loss: result.loss, mask: result.diagnostics["mask"].to_f64(), gradients: gradients.collect() }
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn norm(a: &[f64]) -> f64 {
    a.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The least cosine between gradients of one parameter.  A gradient that vanishes but for rounding (a bias
/// that softmax cancels) has no direction and is left out.
fn worst_cosine(exact: &Step, narrow: &Step) -> (f64, String) {
    let largest = exact.gradients.values().map(|g| norm(g)).fold(0.0, f64::max);
    let of = |(name, g): (&String, &Vec<f64>)| (cosine(g, &narrow.gradients[name]), name.clone());
    let all = exact.gradients.iter().filter(|(_, g)| norm(g) > 1e-4 * largest).map(of);
    all.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

#[test]
fn sources_of_16_bits_train_on_a_cpu_as_the_same_numbers_in_f32() {
    for name in MODELS {
        for narrow in [Narrow::F16, Narrow::BF16] {
            let folder = tempfile::tempdir().unwrap();
            let file = narrowed(name, narrow, folder.path());
            let same = rounded_file(name, narrow, folder.path());
            for target in [Target::Cpu, Target::Portable] {
                let ours = step(&file, Compute::Auto, target);
                let exact = step(&same, Compute::Auto, target);
                assert!((ours.loss - exact.loss).abs() < 1e-5 * exact.loss, "{name}: {} {}", ours.loss, exact.loss);
                assert_eq!(ours.mask, exact.mask, "{name}");
                let (worst, of) = worst_cosine(&exact, &ours);
                assert!(worst > 1.0 - 1e-6, "{name} {narrow:?} {target:?}: {of} {worst}");
            }
        }
    }
}

/// ONNX Runtime does not run bf16 on a CPU: there the model answers as weftc compiles it.
#[test]
fn a_source_in_bf16_answers_on_a_cpu_as_the_same_numbers_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    for name in MODELS {
        let [narrow, wide] = [narrowed, rounded_file].map(|file| file(name, Narrow::BF16, folder.path()));
        let [narrow, wide] = [narrow, wide].map(|file| {
            let out = Command::new(env!("CARGO_BIN_EXE_weftc"))
                .args(["generate", "--prompt-ids", "1,2,4", "--mask-id", "3", "--length", "4"])
                .args(["--json", "--quiet", "--device", "cpu"])
                .arg(file)
                .output()
                .unwrap();
            assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
            serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()["tokens"].clone()
        });
        assert_eq!(narrow, wide, "{name}");
    }
}

fn shared_models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models");
    let names = [
        "llada_nano_sdpa__dynamo18",
        "dream_nano_sdpa__dynamo18",
        "llada_tiny_sdpa__dynamo18",
        "hf_bert_sdpa__dynamo18",
    ];
    names.iter().map(|n| folder.join(format!("{n}.onnx"))).filter(|f| f.is_file()).collect()
}

/// Gradients in f16 on ONNX Runtime point where those in f32 do.
#[test]
fn gradients_in_f16_are_those_in_f32() {
    for file in MODELS.iter().map(|m| model(m)).chain(shared_models()) {
        for target in [Target::Cpu, Target::Portable] {
            let exact = step(&file, Compute::F32, target);
            let narrow = step(&file, Compute::F16, target);
            assert_eq!(exact.mask, narrow.mask, "{}", file.display());
            let (worst, of) = worst_cosine(&exact, &narrow);
            println!(
                "f16 {} {target:?}: least cosine 1 - {:.1e} ({of})",
                file.file_stem().unwrap().display(),
                1.0 - worst
            );
            assert!(worst > 0.999, "{} {target:?}: {of} has cosine {worst}", file.display());
        }
    }
}

/// The step's graph of a model in a compute type, by the stages alone.
fn graph(file: &Path, compute: DType) -> (Graph, i64) {
    let library = library().unwrap();
    let source = read(file).unwrap();
    let ports = ports::find(&source.graph, None, None).unwrap();
    let mut model = source.graph.clone();
    model.outputs.retain(|(n, _)| *n == ports.logits_output);
    let lifted = compile::lift(&model, &library, Target::Cpu).unwrap().graph;
    let is_weight = |l: &LeafId| lifted.leaf(*l).kind == LeafKind::Param;
    let trained: Vec<LeafId> = lifted.live().iter().filter_map(|id| lifted.as_leaf(*id)).filter(is_weight).collect();
    let typed = apply(&lifted, &trained, compute).unwrap();
    let options = Options { mask_id: Some(3), ..Options::new(file) };
    let method = compile(&options).unwrap().manifest.method;
    let mut step = objective::build(&typed, &ports, &method, &library.methods["weft"], &mut BTreeMap::new()).unwrap();
    let loss = step.outputs.iter().find(|(n, _)| n == "loss_sum").unwrap().1;
    compile::add_gradients(&mut step, loss, &trained, &library.grad).unwrap();
    (compile::optimise(&step, &library, Target::Cpu).unwrap().graph, ports.vocab_size())
}

/// There is no bf16 on a CPU: the oracle stands in, with every value rounded to its type.
#[test]
fn gradients_in_bf16_are_those_in_f32() {
    for file in MODELS.map(model) {
        let run = |compute: DType| {
            let (graph, vocab) = graph(&file, compute);
            let draws = Draws::new(vocab);
            let tensor = |values: Vec<f64>, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            let (b, l) = (BATCH as usize, LENGTH as usize);
            let token_input = graph.leaves.iter().find(|l| l.ty.dtype == DType::I64 && l.kind == LeafKind::Input);
            let feeds = BTreeMap::from([
                (token_input.unwrap().name.clone(), tensor(draws.tokens.iter().map(|t| *t as f64).collect(), &[b, l])),
                ("answer_mask".into(), tensor(draws.answer.iter().map(|a| f64::from(*a)).collect(), &[b, l])),
                ("t".into(), tensor(TIMES.map(f64::from).into(), &[b])),
                ("u".into(), tensor(draws.u.iter().map(|u| f64::from(*u)).collect(), &[b, l])),
            ]);
            let outputs = interp::run_rounded(&graph, &feeds).unwrap();
            let values = |n: &str| outputs[n].flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let gradients = outputs.keys().filter(|n| n.starts_with("grad/")).map(|n| (n.clone(), values(n)));
            Step { loss: values("loss")[0], mask: values("mask"), gradients: gradients.collect() }
        };
        let (exact, narrow) = (run(DType::F32), run(DType::BF16));
        let (worst, of) = worst_cosine(&exact, &narrow);
        println!("bf16 {}: least cosine 1 - {:.1e} ({of})", file.file_stem().unwrap().display(), 1.0 - worst);
        assert!(worst > 0.999, "{}: {of} has cosine {worst}", file.display());
    }
}

/// Converted weights that are too many for one message lie beside train.onnx, and mean the same.
#[test]
fn many_weights_lie_beside_the_graph() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = narrowed("sudoku", Narrow::BF16, from.path());
    let train = to.path().join("train.onnx");
    let mut compiled = compile(&Options { mask_id: Some(3), ..Options::new(&file) }).unwrap();
    compiled.inline_limit = 1000;
    let written = compiled.write(&train).unwrap() as u64;
    let sizes = ["train.onnx", "train.onnx.data"].map(|n| std::fs::metadata(to.path().join(n)).unwrap().len());
    assert_eq!(sizes.iter().sum::<u64>(), written);
    assert!(sizes[1] > sizes[0], "{sizes:?}");
    let mut trainer = Trainer::load(&train, Setup::default()).unwrap();
    let ours = Draws::new(trainer.manifest().vocab_size).step(&mut trainer);
    assert_eq!(ours.loss, step(&file, Compute::Auto, Target::Cpu).loss);
}

/// A run in f16 goes on with the loss scale that it had: the first step overflows at 2^16.
#[test]
fn a_resumed_run_keeps_its_loss_scale() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        run: weftc::train::RunArgs,
    }
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train.onnx");
    let options = Options { mask_id: Some(15), compute: Compute::F16, ..Options::new(model("sudoku")) };
    compile(&options).unwrap().write(&train).unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sudoku_train.jsonl");
    let run = |out: &str, more: &[&str]| {
        let out = folder.path().join(out);
        let path = |p: &Path| p.display().to_string();
        let base = ["run", &path(&train), "--data", &path(&data), "--quiet", "--batch-size", "8", "--lr", "1e-3"]
            .map(String::from);
        let more = more.iter().map(|m| m.to_string());
        let state = ["--save-every", "100", "--out", &path(&out)].map(String::from);
        let args = base.into_iter().chain(more).chain(state);
        let summary = weftc::train::run(&<Cli as clap::Parser>::parse_from(args).run).unwrap();
        (summary.skipped, std::fs::read(out.join("model.safetensors")).unwrap())
    };
    let (skipped, whole) = run("whole", &["--steps", "6"]);
    let (first, _) = run("half", &["--steps", "3"]);
    assert!(first > 0 && first == skipped);
    let half = folder.path().join("half").display().to_string();
    let (again, rest) = run("half", &["--steps", "6", "--resume", &half]);
    assert_eq!(again, 0);
    assert!(rest == whole);
}

/// The interpreter reads the file back and needs no scale.
#[test]
fn the_interpreter_agrees_with_a_step_in_f16() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train.onnx");
    let options = Options { mask_id: Some(3), compute: Compute::F16, ..Options::new(model("sudoku")) };
    compile(&options).unwrap().write(&train).unwrap();
    let mut exact = Trainer::load_interpreted(&train, Setup::default()).unwrap();
    let mut ours = Trainer::load(&train, Setup::default()).unwrap();
    let draws = Draws::new(exact.manifest().vocab_size);
    let (exact, ours) = (draws.step(&mut exact), draws.step(&mut ours));
    assert!((exact.loss - ours.loss).abs() < 1e-2 * exact.loss, "{} {}", exact.loss, ours.loss);
    assert!((exact.grad_norm - ours.grad_norm).abs() < 1e-2 * exact.grad_norm);
}

/// An overflow halves the scale and leaves everything else as it was; it is no divergence.
#[test]
fn an_overflow_halves_the_loss_scale() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train.onnx");
    let options = Options { mask_id: Some(3), compute: Compute::F16, ..Options::new(model("llada_micro_dynamo18")) };
    compile(&options).unwrap().write(&train).unwrap();
    let optimizer = Optimizer { lr: 0.0, weight_decay: 0.0, ..Optimizer::default() };
    let mut trainer = Trainer::load(&train, Setup { optimizer, ..Setup::default() }).unwrap();
    let draws = Draws::new(trainer.manifest().vocab_size);
    let names: Vec<String> = trainer.parameters().map(str::to_string).collect();
    let first = draws.step(&mut trainer);
    assert_eq!((first.outcome, trainer.loss_scale().unwrap().scale()), (Outcome::Updated, 65536.0));
    // Large weights behind the last norm make cotangents overflow at the first scales.
    let norm = names.iter().find(|n| n.contains("ln_f")).unwrap();
    let before = trainer.parameter(norm).unwrap();
    let large: Vec<f64> = before.to_f64().iter().map(|_| 200.0).collect();
    trainer.set_parameter(norm, &HostTensor::from_f64(DType::F32, before.shape(), &large).unwrap()).unwrap();
    let mut skipped = 0;
    loop {
        let step = draws.step(&mut trainer);
        if step.outcome == Outcome::Updated {
            break;
        }
        assert!(step.loss.is_finite() && !step.grad_norm.is_finite());
        skipped += 1;
        assert_eq!(trainer.loss_scale().unwrap().scale(), 65536.0 / f64::from(skipped).exp2());
    }
    assert!(skipped > 0);
    assert_eq!(trainer.updates(), 2);
}

/// A model of 16 bits leaves as it came: in its own type, with the trained numbers.
#[test]
fn a_narrow_source_is_saved_in_its_own_type() {
    let folder = tempfile::tempdir().unwrap();
    let file = narrowed("llada_micro_dynamo18", Narrow::F16, folder.path());
    let train = folder.path().join("train.onnx");
    compile(&Options { mask_id: Some(3), ..Options::new(&file) }).unwrap().write(&train).unwrap();
    let optimizer = Optimizer { lr: 1e-2, ..Optimizer::default() };
    let mut trainer = Trainer::load(&train, Setup { optimizer, ..Setup::default() }).unwrap();
    assert!(trainer.manifest().parameters.iter().all(|p| p.role == Role::Trainable && p.dtype == "f32"));
    Draws::new(trainer.manifest().vocab_size).step(&mut trainer);
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let saved = read(&trainer.save(&out).unwrap()).unwrap();
    let before = read(&file).unwrap();
    for (a, b) in saved.graph.leaves.iter().zip(&before.graph.leaves) {
        assert_eq!((&a.name, &a.ty), (&b.name, &b.ty));
    }
    let weight = |g: &Graph| {
        let leaf = g.leaves.iter().find(|l| l.name.contains("ln_f")).unwrap();
        weftc::onnx::weights::bytes(leaf).unwrap().to_vec()
    };
    assert_ne!(weight(&saved.graph), weight(&before.graph));
}
