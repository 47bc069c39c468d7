//! `weftc export`: what leaves a run is what the run learnt.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use weftc::adapt::Spec;
use weftc::compile::{Options, compile};
use weftc::export::{ExportArgs, export};
use weftc::quantize::Quantization;
use weftc::runtime::{self, HostTensor, Session};
use weftc::train::RunArgs;

const MODEL: &str = "llada_micro_dynamo18";

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(format!("{MODEL}.onnx"))
}

fn options(adapter: &str) -> Options {
    let targets = ["q", "v", "down"].map(String::from).to_vec();
    Options {
        mask_id: Some(31),
        trainable: adapter.parse().unwrap(),
        adapter: Spec { rank: 2, targets, ..Spec::default() },
        ..Options::new(model())
    }
}

/// A run of some steps in `folder`; its train.onnx and its folder.
fn run(folder: &Path, options: &Options, flags: &[&str]) -> (PathBuf, PathBuf) {
    let train = folder.join("train.onnx");
    compile(options).unwrap().write(&train).unwrap();
    weftc::train::run(&parsed(folder, &train, flags)).unwrap();
    (train, folder.join("out"))
}

/// The flags of a run of `train` in `folder`.
fn parsed(folder: &Path, train: &Path, flags: &[&str]) -> RunArgs {
    let data = folder.join("data.jsonl");
    std::fs::write(&data, "{\"input_ids\": [1,2,3,4,5,6,7,8], \"prompt_len\": 2}\n".repeat(8)).unwrap();
    let out = folder.join("out");
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }
    let paths = [("--data", &data), ("--out", &out)].map(|(f, p)| [f.to_string(), p.display().to_string()]);
    let fixed = ["--batch-size", "2", "--quiet", "--lr", "0.02"];
    let line = ["weftc".to_string(), train.display().to_string()].into_iter().chain(paths.concat());
    let line = line.chain(fixed.iter().chain(flags).map(|f| f.to_string()));
    <Cli as clap::Parser>::parse_from(line).run
}

fn args(train: &Path, from: &Path) -> ExportArgs {
    ExportArgs {
        train_onnx: train.into(),
        from: from.into(),
        adapter: None,
        merged: None,
        onnx_adapter: None,
        model: None,
        rules: None,
        quiet: true,
    }
}

/// What a run leaves by itself, `export` writes from its files or from its last checkpoint, byte for byte.
#[test]
fn an_export_is_what_the_run_left() {
    for (adapter, flags) in
        [("lora", &["--steps", "4"][..]), ("dora", &["--steps", "4", "--save-every", "2"]), ("full", &["--steps", "3"])]
    {
        let folder = tempfile::tempdir().unwrap();
        let (train, out) = run(folder.path(), &options(adapter), flags);
        let own = folder.path().join("export");
        std::fs::create_dir(&own).unwrap();
        let mut files = vec!["model.onnx", "model.safetensors"];
        export(&ExportArgs { merged: Some(own.join("model.onnx")), ..args(&train, &out) }).unwrap();
        let adapters = (adapter != "full").then(|| own.clone());
        export(&ExportArgs { merged: Some(own.join("model.safetensors")), adapter: adapters, ..args(&train, &out) })
            .unwrap();
        if adapter != "full" {
            files.extend(["adapter_model.safetensors", "adapter_config.json"]);
        }
        for file in files {
            let [a, b] = [&own, &out].map(|folder| std::fs::read(folder.join(file)).unwrap());
            assert!(a == b, "{adapter}: {file}");
        }
    }
}

/// A run that leaves its adapter alone leaves all that it learnt.
#[test]
fn one_result_is_enough_for_an_export() {
    let here = |folder: &Path| {
        let files = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<String> = files.filter(|f| f.contains("model")).collect();
        files.sort();
        files
    };
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let run =
        |k: usize, results: &[&str]| run(folders[k].path(), &options("lora"), &[&["--steps", "4"], results].concat());
    let (_, all) = run(0, &[]);
    let (train, adapter) = run(1, &["--results", "adapter"]);
    let (_, two) = run(2, &["--results", "safetensors,onnx"]);
    assert_eq!(here(&adapter), ["adapter_model.safetensors"]);
    assert_eq!(here(&two), ["model.onnx", "model.safetensors"]);
    export(&ExportArgs { merged: Some(adapter.join("model.onnx")), ..args(&train, &adapter) }).unwrap();
    let [a, b, c] = [&all, &adapter, &two].map(|folder| std::fs::read(folder.join("model.onnx")).unwrap());
    assert!(a == b && a == c);

    let folder = tempfile::tempdir().unwrap();
    let full = folder.path().join("full.onnx");
    compile(&options("full")).unwrap().write(&full).unwrap();
    let problem = weftc::train::run(&parsed(folder.path(), &full, &["--results", "adapter"])).unwrap_err().to_string();
    assert!(problem.contains("--results: train.onnx trains weights, not an adapter"), "{problem}");
}

/// What train.onnx holds in few bits is whole where the source is: the same weights as without, adapters merged into them.
#[test]
fn weights_in_few_bits_are_left_whole() {
    let weights = |bits: Option<Quantization>| {
        let folder = tempfile::tempdir().unwrap();
        let (_, out) = run(folder.path(), &Options { quantize: bits, ..options("lora") }, &["--steps", "4"]);
        let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let each = tensors.iter().map(|(name, view)| (name.to_string(), view.shape().to_vec(), view.data().to_vec()));
        let mut each: Vec<_> = each.collect();
        each.sort();
        // Values of the model that is left, by name.
        let left = weftc::onnx::read(&out.join("model.onnx")).unwrap().graph;
        for (name, shape, data) in &each {
            let leaf = left.leaf(left.find_leaf(name).unwrap_or_else(|| panic!("{name}")));
            let of = |n: usize| weftc::ir::Dim::Known(n as i64);
            let mut dims: Vec<_> = shape.iter().map(|n| of(*n)).collect();
            let mut bytes = data.clone();
            if leaf.transposed {
                dims.reverse();
                let tensor = HostTensor::from_bytes(leaf.ty.dtype, &[shape[0] as i64, shape[1] as i64], bytes).unwrap();
                bytes = tensor.transposed().unwrap().bytes().to_vec();
            }
            assert_eq!(leaf.ty.shape.to_vec(), dims, "{name}");
            assert!(*weftc::onnx::weights::bytes(leaf).unwrap() == bytes, "{name}");
        }
        each.into_iter().map(|(name, shape, _)| (name, shape)).collect::<Vec<_>>()
    };
    let plain = weights(None);
    assert_eq!(weights(Some(Quantization::Int8)), plain);
    assert!(plain.iter().any(|(name, _)| name.ends_with("q_proj.weight")), "{plain:?}");
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (train, out) = run(folder.path(), &options("full"), &["--steps", "1"]);
    let mut text = String::new();
    let mut show = |args: ExportArgs| {
        let error = export(&args).unwrap_err().to_string().replace(&folder.path().display().to_string(), "DIR");
        text += &format!("{}\n", error.replace(env!("CARGO_MANIFEST_DIR"), "."));
    };
    let all = ExportArgs {
        adapter: Some(folder.path().join("a")),
        onnx_adapter: Some(folder.path().join("a.onnx")),
        merged: Some(model()),
        ..args(&train, &out)
    };
    show(all.clone());
    show(ExportArgs { adapter: None, onnx_adapter: None, merged: Some(folder.path().join("model.pt")), ..all.clone() });
    let empty = tempfile::tempdir_in(folder.path()).unwrap();
    let nowhere =
        ExportArgs { from: empty.path().into(), merged: Some(folder.path().join("m.onnx")), ..args(&train, &out) };
    let error = export(&nowhere).unwrap_err().to_string();
    assert!(error.contains("there is no checkpoint of a run"), "{error}");
    // A run of another train.onnx.
    let other = tempfile::tempdir_in(folder.path()).unwrap();
    let (_, lora) = run(other.path(), &options("lora"), &["--steps", "2", "--save-every", "1"]);
    let error = export(&ExportArgs { merged: Some(folder.path().join("m.onnx")), ..args(&train, &lora) }).unwrap_err();
    assert!(error.to_string().contains("it is not of"), "{error}");
    assert!(!folder.path().join("m.onnx").exists());
    insta::assert_snapshot!(text);
}

fn logits(path: &Path, feeds: &BTreeMap<String, HostTensor>) -> Vec<f64> {
    let mut session = Session::open(path, &runtime::Options::default()).unwrap();
    session.run(feeds.iter().map(|(n, v)| (n.as_str(), v))).unwrap()["logits"].to_f64()
}

fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let scale = theirs.iter().fold(1e-12f64, |m, x| m.max(x.abs()));
    ours.iter().zip(theirs).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// ONNX Runtime's own loading: stock Python reads the file, and model with adapter computes what the merged model does;
/// without it, what the source does.
#[test]
fn onnx_runtime_loads_its_own_format() {
    let named = std::env::var("WEFTC_TEST_PYTHON").ok().filter(|name| !name.is_empty());
    let python = named.clone().unwrap_or_else(|| "python3".into());
    let there = Command::new(&python).args(["-c", "import onnxruntime; onnxruntime.AdapterFormat"]).output();
    let tokens: Vec<i64> = (0..12).map(|i| i * 5 % 31).collect();
    for (adapter, bits) in [("lora", None), ("rslora", None), ("dora", None), ("lora", Some(Quantization::Int8))] {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { quantize: bits, ..options(adapter) };
        let (train, out) = run(folder.path(), &options, &["--steps", "6"]);
        let file = folder.path().join("tuned.onnx_adapter");
        let written = export(&ExportArgs { onnx_adapter: Some(file.clone()), ..args(&train, &out) }).unwrap();
        assert_eq!(written, [folder.path().join("tuned.onnx"), file.clone()]);
        let ids = BTreeMap::from([("input_ids".to_string(), HostTensor::new(&[1, 12], &tokens).unwrap())]);
        let [source, merged, plain] = [&model(), &out.join("model.onnx"), &written[0]].map(|path| logits(path, &ids));
        let (near, far) = if bits.is_some() { (5e-2, 1e-1) } else { (1e-5, 1e-2) };
        assert!(distance(&plain, &source) < near, "{adapter}: {:.1e}", distance(&plain, &source));
        if !there.as_ref().is_ok_and(|done| done.status.success()) {
            assert!(named.is_none(), "WEFTC_TEST_PYTHON={python} cannot import onnxruntime");
            eprintln!("skipped: {python} has no onnxruntime");
            return;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/adapter.py");
        let done = Command::new(&python)
            .args([script.as_os_str(), written[0].as_os_str(), file.as_os_str()])
            .arg(format!("[{tokens:?}]"))
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let found: Value = serde_json::from_slice(&done.stdout).unwrap();
        let numbers =
            |name: &str| -> Vec<f64> { found[name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
        assert!(distance(&numbers("plain"), &plain) < 1e-5);
        let apart = distance(&numbers("adapted"), &merged);
        assert!(apart < near, "{adapter}: with the adapter {apart:.1e} from the merged model");
        assert!(distance(&numbers("adapted"), &source) > far, "{adapter}: the adapter changes nothing");
        assert_eq!(found["parameters"].as_object().unwrap().len(), if adapter == "dora" { 18 } else { 12 });
    }
}

/// `weftc generate --adapter` answers as the merged model does.
#[test]
fn an_adapter_answers() {
    let folder = tempfile::tempdir().unwrap();
    let (_, out) = run(folder.path(), &options("dora"), &["--steps", "6"]);
    let answer = |model: &Path, more: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_weftc"))
            .arg("generate")
            .arg(model)
            .args(["--prompt-ids", "1,2,3", "--mask-id", "31", "--length", "12", "--json", "--quiet"])
            .args(more)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let line: Value = serde_json::from_slice(&done.stdout).unwrap();
        line["tokens"].clone()
    };
    let adapter = out.display().to_string();
    let merged = answer(&out.join("model.onnx"), &[]);
    assert_eq!(answer(&model(), &["--adapter", &adapter]), merged);
    assert_ne!(answer(&model(), &[]), merged);
}
