//! SGD: on ONNX Runtime, on the reference interpreter, and by hand; resumed as if it had never stopped.

use prost::Message;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weftc::compile::{Options, compile};
use weftc::onnx::proto::ModelProto;
use weftc::onnx::train_file::{Function, Port, TrainFile};
use weftc::runtime::{self, HostTensor, Session};
use weftc::train::optimizer::{Algorithm, Decay};
use weftc::train::{Optimizer, RunArgs, Setup, Trainer, run};

fn train_onnx(folder: &Path) -> PathBuf {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/llada_micro_dynamo18.onnx");
    let path = folder.join("train.onnx");
    let trainable = "*norm*,transformer.ff_out,*.0.*".parse().unwrap();
    compile(&Options { mask_id: Some(31), trainable, ..Options::new(model) }).unwrap().write(&path).unwrap();
    path
}

fn step(trainer: &mut Trainer, k: i64) -> (f64, f64) {
    let tokens: Vec<i64> = (0..24).map(|i| (i * 7 + k) % 31).collect();
    let u: Vec<f32> = (0..24).map(|i| ((i * 5 + k * 3) % 24) as f32 / 24.0).collect();
    let result = trainer
        .step_with(
            HostTensor::new(&[2, 12], &tokens).unwrap(),
            HostTensor::new(&[2, 12], &(0..24).map(|i| i % 12 > 3).collect::<Vec<bool>>()).unwrap(),
            HostTensor::new(&[2], &[0.7f32, 0.6]).unwrap(),
            HostTensor::new(&[2, 12], &u).unwrap(),
        )
        .unwrap();
    (result.loss_count, result.grad_norm)
}

fn values(trainer: &Trainer) -> BTreeMap<String, Vec<f64>> {
    trainer.parameters().map(|name| (name.to_string(), trainer.parameter(name).unwrap().to_f64())).collect()
}

/// `torch.optim.SGD` in plain loops, from the gradients that the trainer shows: clipping, decay as part of the gradient,
/// momentum without dampening, Nesterov's look ahead.
#[test]
fn sgd_is_pytorchs() {
    let folder = tempfile::tempdir().unwrap();
    let train = train_onnx(folder.path());
    for (momentum, nesterov, decay) in [(0.9, false, Decay::Weights), (0.9, true, Decay::All), (0.0, false, Decay::All)]
    {
        let optimizer = Optimizer {
            algorithm: Algorithm::Sgd { momentum, nesterov },
            lr: 0.05,
            weight_decay: 0.1,
            clip: Some(0.5),
        };
        let setup = || Setup { optimizer, decay, ..Setup::default() };
        let mut ours = Trainer::load(&train, setup()).unwrap();
        let mut interpreted = Trainer::load_interpreted(&train, setup()).unwrap();
        let mut hand = values(&ours);
        let shapes: BTreeMap<String, usize> =
            ours.parameters().map(|n| (n.to_string(), ours.parameter(n).unwrap().shape().len())).collect();
        let mut buffers: BTreeMap<String, Vec<f64>> =
            hand.iter().map(|(n, p)| (n.clone(), vec![0.0; p.len()])).collect();
        for k in 0..5 {
            let (count, norm) = step(&mut ours, k);
            step(&mut interpreted, k);
            let factor = (0.5 / (norm + 1e-6)).min(1.0) / count;
            for (name, p) in &mut hand {
                let gradient = ours.gradient(name).unwrap().to_f64();
                let decays = if decay == Decay::All || shapes[name] > 1 { 0.1 } else { 0.0 };
                for ((p, g), m) in p.iter_mut().zip(gradient).zip(buffers.get_mut(name).unwrap()) {
                    let g = g * factor + decays * *p;
                    *m = momentum * *m + g;
                    *p -= 0.05 * if nesterov { g + momentum * *m } else { *m };
                }
            }
        }
        for (engine, found) in [("ONNX Runtime", values(&ours)), ("the interpreter", values(&interpreted))] {
            for (name, p) in &hand {
                let apart = p.iter().zip(&found[name]).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
                assert!(apart < 2e-6, "{engine}: {name} is {apart:.1e} off with momentum {momentum}");
            }
        }
        assert!(hand.iter().any(|(name, p)| {
            p.iter().zip(&values(&Trainer::load(&train, setup()).unwrap())[name]).any(|(a, b)| (a - b).abs() > 1e-3)
        }));
    }
}

#[test]
fn a_run_by_sgd_resumes_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let train = train_onnx(folder.path());
    let data = folder.path().join("data.jsonl");
    let rows: String = (0..8)
        .map(|k| {
            format!(
                "{{\"input_ids\": {:?}, \"prompt_len\": 2}}\n",
                (0..8).map(|i| (i * 3 + k) % 31).collect::<Vec<_>>()
            )
        })
        .collect();
    std::fs::write(&data, rows).unwrap();
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }
    let line = |out: &str, more: &[&str]| {
        let paths =
            [train.display().to_string(), data.display().to_string(), folder.path().join(out).display().to_string()];
        let fixed = ["weftc", &paths[0], "--data", &paths[1], "--out", &paths[2], "--optimizer", "sgd", "--nesterov"];
        let fixed = fixed.into_iter().chain(["--lr", "0.05", "--batch-size", "2", "--quiet", "--save-every", "3"]);
        <Cli as clap::Parser>::parse_from(fixed.chain(more.iter().copied())).run
    };
    run(&line("whole", &["--steps", "7"])).unwrap();
    run(&line("parts", &["--steps", "3"])).unwrap();
    let parts = folder.path().join("parts").display().to_string();
    run(&line("parts", &["--steps", "7", "--resume", &parts])).unwrap();
    let weights = |out: &str| std::fs::read(folder.path().join(out).join("model.safetensors")).unwrap();
    assert!(weights("whole") == weights("parts"));
    let error =
        run(&line("parts", &["--steps", "9", "--momentum", "0.8", "--resume", &parts])).unwrap_err().to_string();
    assert!(error.contains("--momentum: the interrupted run had 0.9, this one 0.8"), "{error}");
}

/// On a GPU parameters of one shape are updated behind each other in one node: the same bits as each alone, and the same norm.
#[test]
fn parameters_of_one_shape_are_updated_together() {
    let folder = tempfile::tempdir().unwrap();
    let file = TrainFile::read(&train_onnx(folder.path()), None).unwrap();
    let names: Vec<&String> = file.manifest.parameters.iter().map(|p| &p.name).collect();
    let ports: Vec<Port> = file.inputs().into_iter().filter(|port| names.contains(&&port.name)).collect();
    let mut draws = weftc::rng::SplitMix64::new(5);
    let mut feeds = vec![("no_decay".to_string(), HostTensor::scalar(0.0))];
    for (name, value) in Function::ADAMW.scalars.iter().zip([1e-2, 0.1, 0.9, 0.999, 1e-8, 3.0, 0.5]) {
        feeds.push((name.to_string(), HostTensor::scalar(value)));
    }
    for (n, port) in ports.iter().enumerate() {
        let shape: Vec<i64> = port.shape.iter().map(|d| d.unwrap()).collect();
        let elements = shape.iter().product::<i64>();
        for prefix in ["p", "g", "m", "v"] {
            let values: Vec<f32> = (0..elements).map(|_| draws.below(1 << 20) as f32 / (1 << 20) as f32).collect();
            feeds.push((format!("{prefix}/{n}"), HostTensor::new(&shape, &values).unwrap()));
        }
    }
    let run = |bytes: &[u8]| {
        weftc::runtime::environment(&mut |line| eprintln!("{line}")).unwrap();
        let own = vec![weftc::kernels::optimizer().unwrap()];
        let has = |name: &str| bytes.windows(name.len()).any(|w| w == name.as_bytes());
        let operators = if has("SquareSums") { own } else { vec![] };
        let options = runtime::Options { operators, ..runtime::Options::default() };
        let mut session = Session::from_bytes(bytes, &options).unwrap();
        let taken: Vec<String> = session.inputs().iter().map(|port| port.name.clone()).collect();
        session.run(feeds.iter().filter(|(name, _)| taken.contains(name)).map(|(name, x)| (name.as_str(), x))).unwrap()
    };
    let decays = |port: &Port| port.shape.len() > 1;
    let [alone, together] =
        [0, 1 << 24].map(|most| file.update_model(&Function::ADAMW, &ports, &decays, most).unwrap());
    let calls = |bytes: &[u8]| {
        ModelProto::decode(bytes).unwrap().graph.unwrap().node.iter().filter(|n| n.op_type == "AdamW").count()
    };
    assert!(calls(&alone) == ports.len() && calls(&together) * 2 <= ports.len(), "{}", calls(&together));
    let (alone, together) = (run(&alone), run(&together));
    assert_eq!(alone.len(), 3 * ports.len());
    for (name, value) in &alone {
        assert_eq!(value.to_f64(), together[name].to_f64(), "{name}");
    }
    let norm = |most: usize, kernels: bool| run(&file.norm_model(&ports, most, kernels))["norm"].item().unwrap();
    let (alone, together, own) = (norm(0, false), norm(1 << 24, false), norm(0, true));
    assert!((alone - together).abs() < 1e-12 * alone, "{alone} and {together}");
    assert!((alone - own).abs() < 1e-7 * alone, "{alone} and {own}");
}
