//! The trainer against training computed by hand.

mod toy;

use std::path::Path;
use weftc::runtime::{HostTensor, Options, Session};
use weftc::train::optimizer::Algorithm;
use weftc::train::optimizer::Decay;
use weftc::train::{Optimizer, Outcome, RunArgs, Setup, Trainer, run};

const ADAMW: Optimizer = Optimizer {
    algorithm: Algorithm::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8 },
    lr: 0.05,
    weight_decay: 0.1,
    clip: Some(1.0),
};

fn trainer(train: &Path, accumulate: usize) -> Trainer {
    let session = Options { threads: 1, ..Options::default() };
    Trainer::load(train, Setup { optimizer: ADAMW, decay: Decay::All, accumulate, session, ..Setup::default() })
        .unwrap()
}

/// Tokens, answers, times and draws of two sequences of four.
struct Draws {
    tokens: [i64; 8],
    answer: [bool; 8],
    t: [f32; 2],
    u: [f32; 8],
}

const DRAWS: Draws = Draws {
    tokens: [0, 1, 2, 3, 4, 3, 2, 1],
    answer: [false, true, true, true, false, false, true, true],
    t: [0.5, 0.875],
    u: [0.0, 0.25, 0.75, 0.125, 0.5, 0.0, 0.625, 0.8125],
};

impl Draws {
    fn tensors(&self) -> [HostTensor; 4] {
        let shape = [2, 4];
        [
            HostTensor::new(&shape, &self.tokens).unwrap(),
            HostTensor::new(&shape, &self.answer).unwrap(),
            HostTensor::new(&[2], &self.t).unwrap(),
            HostTensor::new(&shape, &self.u).unwrap(),
        ]
    }

    fn step(&self, trainer: &mut Trainer) -> weftc::error::Result<weftc::train::StepResult> {
        let [tokens, answer, t, u] = self.tensors();
        trainer.step_with(tokens, answer, t, u)
    }
}

/// The toy in f64: parameters, moments, step number.
struct ByHand {
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    k: i32,
}

impl ByHand {
    fn new() -> Self {
        let p: Vec<f64> = toy::E.iter().chain(&toy::M).map(|x| f64::from(*x)).collect();
        ByHand { m: vec![0.0; p.len()], v: vec![0.0; p.len()], p, k: 0 }
    }

    /// Returns loss and gradient norm.
    fn step(&mut self, d: &Draws) -> (f64, f64) {
        let masked: Vec<usize> = (0..8).filter(|&i| d.answer[i] && d.u[i] < d.t[i / 4]).collect();
        let (mut g, mut sum, n) = (vec![0.0; 18], 0.0, masked.len() as f64);
        for &i in &masked {
            for c in 0..2 {
                let at = 2 * d.tokens[i] as usize + c;
                let diff = self.p[at] - f64::from(d.u[i]);
                g[at] += diff;
                sum += diff * diff / 2.0;
            }
        }
        for (g, p) in g.iter_mut().zip(&self.p).skip(12) {
            *g = n * p;
            sum += n * p * p / 2.0;
        }
        let norm = g.iter().map(|x| x * x).sum::<f64>().sqrt() / n;
        let scale = (1.0f64).min(1.0 / (norm + 1e-6)) / n;
        self.k += 1;
        for i in 0..18 {
            let g = g[i] * scale;
            self.m[i] = 0.9 * self.m[i] + 0.1 * g;
            self.v[i] = 0.99 * self.v[i] + 0.01 * g * g;
            let (mhat, vhat) = (self.m[i] / (1.0 - 0.9f64.powi(self.k)), self.v[i] / (1.0 - 0.99f64.powi(self.k)));
            self.p[i] = self.p[i] * (1.0 - 0.05 * 0.1) - 0.05 * mhat / (vhat.sqrt() + 1e-8);
        }
        (sum / n, norm)
    }
}

fn all_parameters(trainer: &Trainer) -> Vec<f64> {
    trainer.parameters().flat_map(|n| trainer.parameter(n).unwrap().to_f64()).collect()
}

fn assert_close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= tolerance * y.abs().max(1.0), "at {i}: {x} is not {y}");
    }
}

#[test]
fn five_steps_are_those_computed_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(&toy::write(folder.path(), &toy::Options::default()), 1);
    let mut hand = ByHand::new();
    for step in 1..=5 {
        let result = DRAWS.step(&mut trainer).unwrap();
        let (loss, norm) = hand.step(&DRAWS);
        assert_eq!((result.outcome, result.masked, result.loss_count), (Outcome::Updated, 4, 4.0));
        assert_close(&[result.loss, result.grad_norm], &[loss, norm], 1e-6);
        assert!(norm > 1.0 || step > 1, "the first step must be clipped for this test to mean anything");
        assert_close(&all_parameters(&trainer), &hand.p, 1e-6);
        assert_eq!(result.diagnostics.keys().collect::<Vec<_>>(), ["mask", "token_loss"]);
    }
    let gradient = trainer.gradient("lin.weight").unwrap();
    assert_eq!(gradient.shape(), [2, 3]);
}

#[test]
fn micro_batches_are_one_batch() {
    use weftc::train::batch::Batch;
    let folder = tempfile::tempdir().unwrap();
    let train = toy::write(folder.path(), &toy::Options::default());
    let mut whole = trainer(&train, 1);
    let mut parts = trainer(&train, 2);
    let rows = |r: std::ops::Range<usize>| {
        let (shape, b) = ([r.len() as i64, 4], 4 * r.start..4 * r.end);
        Batch {
            tokens: HostTensor::new(&shape, &DRAWS.tokens[b.clone()]).unwrap(),
            answer: HostTensor::new(&shape, &DRAWS.answer[b.clone()]).unwrap(),
            t: HostTensor::new(&shape[..1], &DRAWS.t[r.clone()]).unwrap(),
            u: HostTensor::new(&shape, &DRAWS.u[b.clone()]).unwrap(),
            real: HostTensor::new(&shape, &DRAWS.answer[b]).unwrap(),
            samples: Vec::new(),
            epoch: 0,
            dropout: None,
            places: None,
        }
    };
    for _ in 0..3 {
        let a = whole.step_on(&[rows(0..2)], false).unwrap();
        let b = parts.step_on(&[rows(0..1), rows(1..2)], false).unwrap();
        assert_close(&[b.loss, b.grad_norm], &[a.loss, a.grad_norm], 1e-6);
        assert_eq!(a.masked, b.masked);
        assert_close(&all_parameters(&parts), &all_parameters(&whole), 1e-6);
    }
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(&toy::write(folder.path(), &toy::Options::default()), 1);
    let mut hand = ByHand::new();
    DRAWS.step(&mut trainer).unwrap();
    hand.step(&DRAWS);
    let good = trainer.parameter("emb.weight").unwrap();
    trainer.set_parameter("emb.weight", &HostTensor::new(&[6, 2], &[f32::INFINITY; 12]).unwrap()).unwrap();
    let m = trainer.parameter("lin.weight").unwrap();
    for _ in 0..9 {
        assert_eq!(DRAWS.step(&mut trainer).unwrap().outcome, Outcome::Skipped);
    }
    assert!(trainer.parameter("lin.weight").unwrap() == m && trainer.updates() == 1);
    trainer.set_parameter("emb.weight", &good).unwrap();
    // A good step ends the row of skipped ones, and the moments are as they were.
    assert_eq!(DRAWS.step(&mut trainer).unwrap().outcome, Outcome::Updated);
    hand.step(&DRAWS);
    assert_close(&all_parameters(&trainer), &hand.p, 1e-6);
    trainer.set_parameter("emb.weight", &HostTensor::new(&[6, 2], &[f32::NAN; 12]).unwrap()).unwrap();
    let last = (0..10).map(|_| DRAWS.step(&mut trainer)).last().unwrap();
    assert!(last.unwrap_err().to_string().contains("10 steps in a row"));
}

#[test]
fn a_step_without_masked_tokens_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(&toy::write(folder.path(), &toy::Options::default()), 1);
    let before = all_parameters(&trainer);
    let result = Draws { t: [0.0; 2], ..DRAWS }.step(&mut trainer).unwrap();
    assert_eq!((result.outcome, result.loss, result.grad_norm), (Outcome::Empty, 0.0, 0.0));
    assert_eq!(all_parameters(&trainer), before);
}

#[test]
fn a_graph_that_breaks_the_contract_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |options: toy::Options| {
        let train = toy::write(folder.path(), &options);
        Trainer::load(&train, Setup::default()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let text =
        refuse(toy::Options { extra: Some("pixels"), without_output: Some("grad/lin.weight"), ..Default::default() });
    assert!(text.contains("pixels: weftc does not know") && text.contains("no output grad/lin.weight"), "{text}");
    let text = refuse(toy::Options { manifest_version: Some(99), ..Default::default() });
    assert!(text.contains("version 99"), "{text}");
    assert_eq!(refuse(toy::Options { extra: Some("attention_mask"), ..Default::default() }), "");
}

const DATA: &str = r#"{"input_ids": [0, 1, 2, 3], "prompt_len": 1}
{"input_ids": [4, 3], "prompt_len": 0}
{"input_ids": [2, 2, 1, 0, 4], "prompt_len": 2, "total_len": 4}
"#;

fn args(train: &Path, more: &[&str]) -> RunArgs {
    use clap::Parser;
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }
    let data = train.with_file_name("data.jsonl");
    std::fs::write(&data, DATA).unwrap();
    let base = ["run", train.to_str().unwrap(), "--data", data.to_str().unwrap(), "--quiet", "--lr", "0.05"];
    Cli::parse_from(base.iter().chain(more)).run
}

/// Runs into the folder `out` beside `train`; returns it.
fn run_into(train: &Path, out: &str, more: &[&str]) -> std::path::PathBuf {
    let out = train.with_file_name(out);
    let more: Vec<&str> = more.iter().copied().chain(["--out", out.to_str().unwrap()]).collect();
    run(&args(train, &more)).unwrap();
    out
}

#[test]
fn a_run_learns_and_leaves_weights_model_metrics_and_record() {
    let folder = tempfile::tempdir().unwrap();
    let train = toy::write(folder.path(), &toy::Options::default());
    let out = train.with_file_name("out");
    let summary = run(&args(&train, &["--steps", "60", "--batch-size", "2", "--out", out.to_str().unwrap()])).unwrap();
    assert!(summary.last_loss < 0.5 * summary.first_loss && summary.notes.is_empty(), "{summary:?}");

    let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    assert_eq!([shape("emb.weight"), shape("lin.weight"), shape("norm.weight")], [vec![6, 2], vec![3, 2], vec![2]]);
    let floats = |name: &str| -> Vec<f32> {
        tensors.tensor(name).unwrap().data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    assert_eq!(floats("norm.weight"), toy::NORM);
    let (e, m) = (floats("emb.weight"), floats("lin.weight"));
    assert_ne!(e, toy::E);

    // The trained model computes with these weights, the tied copy included.
    let mut session = Session::open(&out.join("model.onnx"), &Options::default()).unwrap();
    let ids = HostTensor::new(&[1, 1], &[3i64]).unwrap();
    let outputs = session.run([("input_ids", &ids)]).unwrap();
    let h = [f64::from(e[6]), f64::from(e[7])];
    let aux: Vec<f64> = (0..3).map(|j| h[0] * f64::from(m[2 * j]) + h[1] * f64::from(m[2 * j + 1])).collect();
    assert_close(&outputs["aux"].to_f64(), &aux, 1e-6);
    let hn = [h[0] * f64::from(toy::NORM[0]), h[1] * f64::from(toy::NORM[1])];
    let logits: Vec<f64> = (0..6).map(|j| hn[0] * f64::from(e[2 * j]) + hn[1] * f64::from(e[2 * j + 1])).collect();
    assert_close(&outputs["logits"].to_f64(), &logits, 1e-6);

    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((lines.len(), lines[59]["step"].as_u64(), lines[59]["epoch"].as_u64()), (60, Some(60), Some(29)));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!((&record["arguments"]["lr"], &record["state"]), (&0.05.into(), &"finished".into()));
    assert!(record["settings"]["--data"].as_str().unwrap().contains("samples of SHA-256"));
    let mut names: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["metrics.jsonl", "model.onnx", "model.safetensors", "run.json", "run.toml"]);
    #[cfg(unix)]
    for name in names {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(out.join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o444, 0o444, "{name:?} can be read by others");
    }
}

#[test]
fn a_run_is_repeated_and_resumed_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let train = toy::write(folder.path(), &toy::Options::default());
    let steps = |n: &'static str| ["--steps", n, "--batch-size", "2", "--seed", "4", "--save-every", "3"];
    let weights = |out: &Path| std::fs::read(out.join("model.safetensors")).unwrap();
    let whole = run_into(&train, "whole", &steps("8"));
    let again = run_into(&train, "again", &[&steps("8")[..], &["--threads", "2"]].concat());
    assert!(weights(&whole) == weights(&again));
    let half = run_into(&train, "half", &steps("5"));
    assert!(weights(&half) != weights(&whole));
    // The interrupted run had gone on after its state was saved, and broke off within a line.
    let metrics = half.join("metrics.jsonl");
    let text = std::fs::read_to_string(&metrics).unwrap();
    std::fs::write(&metrics, format!("{text}{{\"step\": 6}}\n{{\"st")).unwrap();
    let rest = run_into(&train, "half", &[&steps("8")[..], &["--resume", half.to_str().unwrap()]].concat());
    assert!(weights(&rest) == weights(&whole));
    assert_eq!(std::fs::read_to_string(rest.join("metrics.jsonl")).unwrap().lines().count(), 8);

    let other = args(&train, &["--seed", "5", "--batch-size", "2", "--resume", half.to_str().unwrap()]);
    assert!(run(&other).unwrap_err().to_string().contains("--seed: the interrupted run had 4"));
}

/// Held-out losses come when they are due, fall, and leave training as it is, also where micro-batches are summed.
#[test]
fn held_out_data_are_evaluated_beside_training() {
    let folder = tempfile::tempdir().unwrap();
    let train = toy::write(folder.path(), &toy::Options::default());
    let data = folder.path().join("held_out.jsonl");
    std::fs::write(&data, "{\"input_ids\": [1, 0, 3, 4, 2], \"prompt_len\": 1}\n").unwrap();
    let more = ["--steps", "32", "--batch-size", "1", "--accumulate", "2"];
    let plain = run_into(&train, "plain", &more);
    let eval = ["--eval-data", data.to_str().unwrap(), "--eval-every", "10"];
    let out = run_into(&train, "out", &[&more[..], &eval].concat());
    let weights = |out: &Path| std::fs::read(out.join("model.safetensors")).unwrap();
    assert!(weights(&plain) == weights(&out));
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let losses: Vec<(u64, f64)> = metrics
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .filter_map(|l| Some((l["step"].as_u64()?, l.get("eval_loss")?.as_f64()?)))
        .collect();
    assert_eq!(losses.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [10, 20, 30, 32]);
    assert!(losses[2].1 < 0.8 * losses[0].1, "{losses:?}");
    // The same weights, the same number.
    let again = run_into(&train, "again", &[&more[..], &eval[..2]].concat());
    let text = std::fs::read_to_string(again.join("metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["eval_loss"].as_f64(), Some(losses[3].1));
}

/// What an entropy pass gave in an epoch that is over goes on after a restart, though the weights have moved.
#[test]
fn a_cached_probe_is_resumed_to_the_bit() {
    use weftc::compile::{Options, compile};
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/llada_micro_dynamo18.onnx");
    std::fs::copy(source, &model).unwrap();
    let weights = |out: &Path| std::fs::read(out.join("model.safetensors")).unwrap();
    let mut trained = Vec::new();
    for probe in ["every-step", "every:2", "reference"] {
        let train = folder.path().join(format!("{}.onnx", &probe[..5]));
        let options = Options { mask_id: Some(31), probe: probe.parse().unwrap(), ..Options::new(&model) };
        compile(&options).unwrap().write(&train).unwrap();
        // Two epochs of three steps; the state is saved after the first of them.
        let steps = |n: &'static str| ["--steps", n, "--batch-size", "1", "--save-every", "3"];
        let [whole, part] = ["whole", "part"].map(|name| format!("{name}-{}", trained.len()));
        let whole = run_into(&train, &whole, &steps("6"));
        let rest = run_into(&train, &part, &steps("3"));
        let rest = run_into(&train, &part, &[&steps("6")[..], &["--resume", rest.to_str().unwrap()]].concat());
        assert!(weights(&rest) == weights(&whole), "{probe}");
        trained.push(weights(&whole));
    }
    assert!(trained[0] != trained[1] && trained[1] != trained[2] && trained[0] != trained[2]);
}

/// The update's kernel and its function in standard operators round alike.
#[test]
fn the_kernel_is_its_function_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let train = toy::write(folder.path(), &toy::Options::default());
    let after = |portable: bool| {
        let session = Options { threads: 1, ..Options::default() };
        let setup = Setup { optimizer: ADAMW, decay: Decay::All, session, portable, ..Setup::default() };
        let mut trainer = Trainer::load(&train, setup).unwrap();
        for _ in 0..3 {
            assert_eq!(DRAWS.step(&mut trainer).unwrap().outcome, Outcome::Updated);
        }
        trainer.parameters().map(|n| trainer.parameter(n).unwrap()).collect::<Vec<_>>()
    };
    assert!(after(false) == after(true));
}

/// With all kernels of a step the loss and every gradient are those of the functions, within rounding.
#[test]
fn kernels_give_the_gradients_of_their_functions() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sudoku.onnx");
    let options = weftc::compile::Options { mask_id: Some(15), ..weftc::compile::Options::new(&model) };
    let train = folder.path().join("train.onnx");
    weftc::compile::compile(&options).unwrap().write(&train).unwrap();
    let after = |portable: bool| {
        let session = Options { threads: 1, ..Options::default() };
        let mut trainer = Trainer::load(&train, Setup { session, portable, ..Setup::default() }).unwrap();
        // The sudoku model was exported for 33 tokens.
        let shape = [2, 33];
        let tokens = HostTensor::new(&shape, &(0..66).map(|k| k % 7).collect::<Vec<i64>>()).unwrap();
        let answer = HostTensor::new(&shape, &[true; 66]).unwrap();
        let u = HostTensor::new(&shape, &(0..66).map(|k| k as f32 / 66.0).collect::<Vec<f32>>()).unwrap();
        let t = HostTensor::new(&[2], &[0.5f32, 0.75]).unwrap();
        let result = trainer.step_with(tokens, answer, t, u).unwrap();
        let gradients = trainer.parameters().map(|n| trainer.gradient(n).unwrap().to_f64()).collect::<Vec<_>>();
        (result.loss, gradients)
    };
    let ((loss, gradients), (loss_of_bodies, bodies)) = (after(false), after(true));
    assert!((loss - loss_of_bodies).abs() <= 1e-6 * loss_of_bodies, "{loss} and {loss_of_bodies}");
    assert_ne!(gradients, bodies, "no kernel was taken");
    for (gradient, body) in gradients.iter().zip(&bodies) {
        let scale = body.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for (a, b) in gradient.iter().zip(body) {
            assert!((a - b).abs() <= 1e-4 * scale, "{a} and {b}, of at most {scale}");
        }
    }
}

/// ONNX Runtime in f32 beside the interpreter in f64, over a compiled model.
#[test]
fn the_interpreter_trains_alike() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/llada_micro_dynamo18.onnx");
    let options = weftc::compile::Options { mask_id: Some(31), ..weftc::compile::Options::new(&model) };
    let train = folder.path().join("train.onnx");
    weftc::compile::compile(&options).unwrap().write(&train).unwrap();
    let setup = || Setup { optimizer: ADAMW, decay: Decay::All, ..Setup::default() };
    let mut fast = Trainer::load(&train, setup()).unwrap();
    let mut exact = Trainer::load_interpreted(&train, setup()).unwrap();
    for step in 0..3 {
        let (a, b) = (DRAWS.step(&mut fast).unwrap(), DRAWS.step(&mut exact).unwrap());
        assert_eq!((a.outcome, a.masked), (Outcome::Updated, b.masked), "step {step}");
        assert_close(&[a.loss, a.grad_norm], &[b.loss, b.grad_norm], 1e-4);
        let names: Vec<String> = fast.parameters().map(str::to_string).collect();
        for name in names {
            let (ours, theirs) = (fast.gradient(&name).unwrap().to_f64(), exact.gradient(&name).unwrap().to_f64());
            let scale = theirs.iter().fold(1.0f64, |m, x| m.max(x.abs()));
            let apart = ours.iter().zip(&theirs).fold(0.0f64, |m, (x, y)| m.max((x - y).abs()));
            assert!(apart < 1e-4 * scale, "step {step}, {name}: {apart:e} of {scale}");
        }
    }
}

#[test]
fn fixed_shapes_are_respected() {
    let folder = tempfile::tempdir().unwrap();
    let train = toy::write(folder.path(), &toy::Options { fixed: Some(["2", "5"]), ..Default::default() });
    // Three samples in batches of two: the last batch is filled up with a row of padding.
    let summary = run(&args(&train, &["--epochs", "2"])).unwrap();
    assert_eq!((summary.steps, summary.tokens), (4, 2 * (4 + 2 + 4)));
    let text = run(&args(&train, &["--batch-size", "3"])).unwrap_err().to_string();
    assert!(text.contains("batches of 2, not 3"), "{text}");
    let train = toy::write(folder.path(), &toy::Options { fixed: Some(["2", "4"]), ..Default::default() });
    let text = run(&args(&train, &[])).unwrap_err().to_string();
    assert!(text.contains("data.jsonl:3: 5 tokens do not fit") && text.contains("--max-length 4"), "{text}");
}

#[test]
fn nothing_is_written_for_another_source_or_over_a_broken_place() {
    let folder = tempfile::tempdir().unwrap();
    let train = toy::write(folder.path(), &toy::Options::default());
    let out = train.with_file_name("out");
    // model.safetensors is a folder: the last rename fails and leaves no scratch file.
    std::fs::create_dir_all(out.join("model.safetensors")).unwrap();
    assert!(run(&args(&train, &["--out", out.to_str().unwrap()])).is_err());
    let names: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| !n.to_string_lossy().starts_with(".weftc")), "{names:?}");

    let mut source = std::fs::read(folder.path().join("toy.onnx")).unwrap();
    source.extend_from_slice(&[0x42, 0]); // an empty protobuf field: the same model, other bytes
    std::fs::write(folder.path().join("toy.onnx"), source).unwrap();
    let text = run(&args(&train, &["--out", out.to_str().unwrap()])).unwrap_err().to_string();
    assert!(text.contains("was compiled from toy.onnx with SHA-256"), "{text}");
}

/// By default neither norms nor biases decay, on ONNX Runtime with our kernel and without it, and on the interpreter.
#[test]
fn only_matrices_decay_by_default() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train.onnx");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/dream_micro_dynamo18.onnx");
    let options = weftc::compile::Options { mask_id: Some(31), ..weftc::compile::Options::new(&model) };
    weftc::compile::compile(&options).unwrap().write(&train).unwrap();
    let draws = || {
        let tensor = |n: i64| HostTensor::new(&[1, n], &(0..n).collect::<Vec<i64>>()).unwrap();
        let answer = HostTensor::new(&[1, 8], &[true; 8]).unwrap();
        let u = HostTensor::new(&[1, 8], &[0.1f32; 8]).unwrap();
        (tensor(8), answer, HostTensor::new(&[1], &[0.9f32]).unwrap(), u)
    };
    let after = |decay: Decay, weight_decay: f64, engine: usize| {
        let optimizer = Optimizer { weight_decay, ..ADAMW };
        let setup = Setup { optimizer, decay, portable: engine == 1, ..Setup::default() };
        let open = if engine == 2 { Trainer::load_interpreted } else { Trainer::load };
        let mut trainer = open(&train, setup).unwrap();
        let (tokens, answer, t, u) = draws();
        trainer.step_with(tokens, answer, t, u).unwrap();
        let value = |n: &str| (n.to_string(), trainer.parameter(n).unwrap());
        trainer.parameters().map(value).collect::<Vec<_>>()
    };
    for engine in 0..3 {
        let (without, weights, all) =
            (after(Decay::All, 0.0, engine), after(Decay::Weights, 0.5, engine), after(Decay::All, 0.5, engine));
        let mut vectors = 0;
        for ((a, b), c) in without.iter().zip(&weights).zip(&all) {
            let is_vector = a.1.shape().len() == 1;
            vectors += usize::from(is_vector);
            assert_eq!(a.1.bytes() == b.1.bytes(), is_vector, "engine {engine}: {}", a.0);
            // A bias that is still 0 cannot decay.
            let zero = a.1.to_f64().iter().all(|x| x.abs() < 0.02);
            assert!(zero || a.1.bytes() != c.1.bytes(), "engine {engine}: {}", a.0);
        }
        assert!(vectors > 3 && vectors < without.len());
    }
}
