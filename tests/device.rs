//! `--device`: what is used, what is missing, and where nodes are computed.

use std::path::{Path, PathBuf};
use std::process::Command;
use weftc::compile::{Options, compile};
use weftc::precision::Compute;
use weftc::rules::Target;
use weftc::runtime::device::{Choice, Device};
use weftc::runtime::{self, Session, cuda};
use weftc::train::batch::Batch;
use weftc::train::data::Sample;
use weftc::train::sampler::Sampler;
use weftc::train::{Setup, Trainer};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/llada_micro_dynamo18.onnx")
}

fn train(folder: &Path, target: Target, compute: Compute) -> PathBuf {
    let path = folder.join("train.onnx");
    compile(&Options { mask_id: Some(31), target, compute, ..Options::new(model()) }).unwrap().write(&path).unwrap();
    std::fs::write(folder.join("data.jsonl"), "{\"input_ids\": [1,2,3,4,5,6,7,8], \"prompt_len\": 2}\n".repeat(4))
        .unwrap();
    path
}

fn run(folder: &Path, flags: &[&str]) -> (bool, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_weftc"))
        .args(["run", "train.onnx", "--data", "data.jsonl", "--steps", "2", "--batch-size", "2", "--lr", "0.01"])
        .args(flags)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = [out.stdout, out.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
    (out.status.success(), text)
}

/// The first GPU, where it can be used.
fn gpu() -> Option<Device> {
    let device = cuda::devices().ok().and_then(|_| Choice::Cuda.resolve(0, &mut |line| println!("{line}")).ok());
    if device.is_none() {
        eprintln!("skipped: there is no GPU that can be used");
    }
    device.map(|(device, _)| device)
}

/// Without a GPU, `auto` is the CPU and says nothing of it; `cuda` lists everything that is missing, and downloads
/// nothing.
#[test]
fn without_a_gpu() {
    if cuda::devices().is_ok() {
        eprintln!("skipped: there is a GPU");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), Target::Cpu, Compute::Auto);
    let (done, text) = run(folder.path(), &["--device", "auto"]);
    assert!(done && !text.contains("GPU"), "{text}");
    let (done, text) = run(folder.path(), &["--device", "cuda"]);
    assert!(!done && text.contains("--device cuda: there is no NVIDIA driver"), "{text}");
    let library = &runtime::environment(&mut |_| {}).unwrap().library.path;
    let lists = text.contains("was built without CUDA") && text.contains("onnxruntime-gpu==");
    assert!(lists || cuda::has_provider(library), "{text}");
    assert!(!text.contains("downloading"), "{text}");
    let (done, text) = run(folder.path(), &["--device", "cuda", "--runtime", "interpreter"]);
    assert!(!done && text.contains("the reference interpreter runs on the CPU alone"), "{text}");
}

/// A session that is asked for a GPU where there is none is an error with a reason, whatever library is loaded.
#[test]
fn a_session_without_its_gpu() {
    if cuda::devices().is_ok() {
        eprintln!("skipped: there is a GPU");
        return;
    }
    let options = runtime::Options { device: Device::Cuda(0), ..runtime::Options::default() };
    let error = Session::open(&model(), &options).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.to_lowercase().contains("cuda"), "{error}");
}

/// With a GPU and everything for it, a run on it and one on the CPU learn the same.
#[test]
fn with_a_gpu() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), Target::Cuda, Compute::F32);
    let losses = [["--device", "cpu"], ["--device", "cuda"]].map(|flags| {
        let (done, text) = run(folder.path(), &[&flags[..], &["--out", flags[1]]].concat());
        assert!(done, "{text}");
        let log = std::fs::read_to_string(folder.path().join(flags[1]).join("metrics.jsonl")).unwrap();
        let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64();
        log.lines().filter_map(loss).collect::<Vec<f64>>()
    });
    assert!(
        losses[0].len() == 2 && losses[0].iter().zip(&losses[1]).all(|(a, b)| (a - b).abs() < 1e-4 * a),
        "{losses:?}"
    );
}

/// What a model answers to a prompt.
fn answer(flags: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_weftc"))
        .args(["generate", "--prompt-ids", "1,2,3,4", "--mask-id", "31", "--length", "12", "--json", "--quiet"])
        .args(flags)
        .arg(model())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let line: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    line["tokens"].to_string()
}

/// A model answers on a GPU as it does on the CPU.
#[test]
fn answers_on_a_gpu() {
    if gpu().is_some() {
        let [cpu, f32] = [&["--device", "cpu"][..], &["--device", "cuda", "--compute", "f32"]].map(answer);
        assert_eq!(cpu, f32);
        // Others in 16 bits, perhaps.
        assert_eq!(answer(&["--device", "cuda"]).matches(',').count(), 11);
    }
}

/// The gradients of a step, by parameter.
fn gradients(target: Target, compute: Compute, device: Device) -> Vec<(String, Vec<f64>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = train(folder.path(), target, compute);
    let session = runtime::Options { device, ..runtime::Options::default() };
    let mut trainer = Trainer::load(&path, Setup { session, ..Setup::default() }).unwrap();
    let sample = Sample { tokens: (0..12).map(|i| i * 5 % 31).collect(), prompt: 4, total: 12 };
    let batch = Batch::new(&[(0, &sample), (1, &sample)], trainer.shape(), Sampler::new(3), 0).unwrap();
    trainer.step(&batch).unwrap();
    let names: Vec<String> = trainer.parameters().map(String::from).collect();
    names.into_iter().map(|n| (n.clone(), trainer.gradient(&n).unwrap().to_f64())).collect()
}

/// Whether gradients point the same way as those of f32 on the CPU, to a cosine of 0.999 for each tensor.
fn same_way(ours: &[(String, Vec<f64>)]) {
    let theirs = gradients(Target::Cpu, Compute::F32, Device::Cpu);
    assert_eq!(ours.len(), theirs.len());
    for ((name, a), (own, b)) in theirs.iter().zip(ours) {
        assert_eq!((name, a.len()), (own, b.len()));
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        assert!(cosine > 0.999 || dot(a, a) < 1e-20, "{name}: {cosine}");
    }
}

#[test]
fn bf16_gradients_on_a_gpu() {
    if let Some(device) = gpu() {
        same_way(&gradients(Target::Cuda, Compute::Bf16, device));
    }
}

/// The operators for a GPU in 16 bits, where there is none: the CPU has them in f16.
#[test]
fn f16_gradients_of_a_file_for_cuda() {
    same_way(&gradients(Target::Cuda, Compute::F16, Device::Cpu));
}

/// A file for CUDA in f32 has operators of the CPU too: it runs here.  In bf16 it is compiled, and says what it is.
#[test]
fn a_file_for_cuda() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), Target::Cuda, Compute::F32);
    let (done, text) = run(folder.path(), &["--device", "cpu"]);
    assert!(done, "{text}");
    let options = Options { mask_id: Some(31), target: Target::Cuda, ..Options::new(model()) };
    assert_eq!(compile(&options).unwrap().manifest.compute, "bf16");
    train(folder.path(), Target::Cuda, Compute::Bf16);
    let (done, text) = run(folder.path(), &["--device", "cpu"]);
    assert!(!done && text.contains("computes in bf16, which ONNX Runtime does on a GPU alone"), "{text}");
    // Packed, so that attention has a bias; in f16, in which the bodies of what has kernels on a GPU run here.
    let flags = ["--target", "cuda", "--compute", "f16", "--packing", "--mask-id", "31"];
    let out = Command::new(env!("CARGO_BIN_EXE_weftc"))
        .arg("compile")
        .arg(model())
        .args(flags)
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let (done, text) = run(folder.path(), &["--device", "cpu"]);
    assert!(done, "{text}");
}

/// ONNX Runtime tells which provider computes which nodes.
#[test]
fn nodes_have_a_provider() {
    let options = runtime::Options { assignment: true, ..runtime::Options::default() };
    let assignment = Session::open(&model(), &options).unwrap().assignment().unwrap();
    let cpu = &assignment["CPU"];
    assert!(assignment.len() == 1 && cpu["MatMul"] > 10, "{assignment:?}");
    let plain = Session::open(&model(), &runtime::Options::default()).unwrap();
    assert!(plain.assignment().is_err());
}
