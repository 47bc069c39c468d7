//! `weftc bench`: a step taken apart, what the cost model tells of it, and the measured machine.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use weftc::bench::{Request, What, bench};
use weftc::compile::{Options, compile};
use weftc::cost::{Machine, Part};
use weftc::onnx::train_file::TrainFile;
use weftc::runtime::device::Choice;

fn model(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(file)
}

fn request(what: What) -> Request {
    let machine = Machine::reference();
    let (batch, length) = (Some(2), Some(24));
    Request { what, batch, length, threads: 1, device: Choice::Cpu, seconds: 0.0, machine }
}

fn weftc(args: &[&str]) -> (Option<i32>, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_weftc")).args(args).env("WEFTC_CACHE", cache()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}

/// The cache as it is found: ONNX Runtime lies there.
fn cache() -> PathBuf {
    weftc::runtime::locate::cache_folder().unwrap()
}

#[test]
fn the_parts_of_a_step_add_up() {
    let options = Options { mask_id: Some(15), ..Options::new(model("sudoku.onnx")) };
    let report = bench(&request(What::Model(Box::new(options)))).unwrap();
    let step = &report.profiled;
    println!("{report}");
    // Every part has nodes, every node a part that its name tells, and nodes are most of the step.
    let parts: f64 = step.parts.iter().sum();
    assert!(step.parts.iter().all(|s| *s > 0.0), "{step:?}");
    assert_eq!(step.guessed, 0.0, "{step:?}");
    assert!(step.between >= 0.0 && step.outside >= 0.0, "{step:?}");
    assert!((parts + step.between + step.outside - step.seconds).abs() < 1e-9 * step.seconds, "{step:?}");
    assert!(parts > 0.3 * step.seconds, "{step:?}");
    let operators: f64 = step.operators.iter().map(|o| o.seconds).sum();
    assert!((operators - parts).abs() < 1e-9 * parts, "{step:?}");
    for part in Part::ALL {
        assert!(step.operators.iter().any(|o| o.part == part), "{part:?}");
    }
    // The backward pass has two products for each one of the forward pass, less the tokens that are not read.
    let told = report.predicted.unwrap().parts;
    let unsunk = told.map(|p| p.flops_unsunk as f64);
    assert!((1.8..2.2).contains(&(unsunk[2] / unsunk[1])), "{unsunk:?}");
    assert!((0.95..1.05).contains(&(unsunk[0] / unsunk[1])), "{unsunk:?}");
    assert!(told.iter().take(3).all(|p| p.flops < p.flops_unsunk && p.seconds > 0.0), "{told:?}");
    assert!(report.share.unwrap() < report.share_unsunk.unwrap() && report.share_unsunk.unwrap() < 1.0);
    assert!(report.masked > 0.0 && report.masked < 36.0);
}

/// A train.onnx is measured as it lies there; an entropy pass of its own is none of the step.
#[test]
fn a_training_graph_is_measured_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.onnx");
    let source = folder.path().join("model.onnx");
    std::fs::copy(model("llada_micro_native23.onnx"), &source).unwrap();
    let options = Options { mask_id: Some(31), method: "sft".into(), ..Options::new(&source) };
    compile(&options).unwrap().write(&path).unwrap();
    let report = bench(&request(What::Train(path.clone()))).unwrap();
    assert!(report.predicted.is_some() && report.compile_s.is_none());
    assert_eq!((report.method.as_str(), report.trainable.as_str()), ("sft", "full"));
    let products =
        |part| report.profiled.operators.iter().filter(|o| o.operator == "Product" && o.part == part).count();
    assert_eq!([Part::Probe, Part::Forward, Part::Backward].map(products), [0, 1, 1]);
    std::fs::remove_file(&source).unwrap();
    let report = bench(&request(What::Train(path))).unwrap();
    assert!(report.predicted.is_none() && report.share.is_none() && report.step_s > 0.0);
    assert!(report.to_string().contains("not counted: the source model is not there"));
}

#[test]
fn the_object_has_the_figures() {
    let file = model("llada_micro_dynamo18.onnx");
    let args = ["bench", file.to_str().unwrap(), "--mask-id", "31", "--seconds", "0", "--threads", "1", "--json"];
    let (code, out, errors) = weftc(&args);
    assert_eq!(code, Some(0), "{errors}");
    let report: Value = serde_json::from_str(&out).unwrap();
    for name in ["step_s", "step_min_s", "tokens_per_s", "gflops", "gflops_unsunk", "share", "share_unsunk"] {
        assert!(report[name].as_f64().is_some_and(|x| x > 0.0), "{name}: {}", report[name]);
    }
    for part in ["probe", "forward", "backward", "optimizer"] {
        assert!(report["profiled"]["parts"][part].as_f64().is_some_and(|x| x > 0.0), "{part}");
        assert!(report["predicted"]["parts"][part]["seconds"].as_f64().is_some_and(|x| x > 0.0), "{part}");
    }
    assert_eq!((&report["batch"], &report["threads"], &report["trainable"]), (&4.into(), &1.into(), &"full".into()));
    assert!(report["profiled"]["operators"].as_array().is_some_and(|o| o.len() > 5));
}

/// A calibration changes what is told and not a byte of what is written.
#[test]
fn a_calibration_changes_predictions_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (code, out, errors) = weftc(&["bench", "--calibrate", "--threads", "1", "--calibration", &at("own.toml")]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(out.contains("GFLOP/s") && out.contains("wrote "), "{out}");
    let own = Machine::read(Path::new(&at("own.toml"))).unwrap();
    assert!(own.threads == 1 && own.product.best() > 1e8 && own.bytes.best() > 1e7, "{own:?}");
    Machine::reference().write(Path::new(&at("reference.toml"))).unwrap();
    let file = model("sudoku.onnx");
    let compiled = |calibration: &str, output: &str| -> Value {
        let (calibration, output) = (at(calibration), at(output));
        let args = ["compile", file.to_str().unwrap(), "--mask-id", "15", "--json", "-o", &output, "--calibration"];
        let (code, out, errors) = weftc(&[&args[..], &[&calibration]].concat());
        assert_eq!(code, Some(0), "{errors}");
        serde_json::from_str(&out).unwrap()
    };
    let (a, b) = (compiled("own.toml", "a.onnx"), compiled("reference.toml", "b.onnx"));
    assert_ne!(a["predicted"]["parts"], b["predicted"]["parts"]);
    assert_eq!(a["predicted"]["load"], b["predicted"]["load"]);
    assert!(std::fs::read(at("a.onnx")).unwrap() == std::fs::read(at("b.onnx")).unwrap());
}

/// A run takes one of its steps apart, and trains as it does without.
#[test]
fn a_run_takes_a_step_apart() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let row =
        |k: usize| format!("{{\"input_ids\":[{}],\"prompt_len\":3}}\n", vec![(k % 9).to_string(); 9 + k].join(","));
    std::fs::write(at("data.jsonl"), (0..8).map(row).collect::<String>()).unwrap();
    let source = model("sudoku.onnx");
    let compile = ["compile", source.to_str().unwrap(), "--mask-id", "15", "-q", "-o"];
    for (train, flags) in [("every.onnx", &[][..]), ("kept.onnx", &["--probe", "every:4"])] {
        let (train, data) = (at(train), at("data.jsonl"));
        assert_eq!(weftc(&[&compile[..], &[&train], flags].concat()).0, Some(0));
        let trained = TrainFile::read(Path::new(&train), None).unwrap().manifest.parameters.len() as u64;
        let out = |name: &str| format!("{train}.{name}");
        let run = |name: &str, flags: &[&str]| {
            let out = out(name);
            let own = ["run", &train, "--data", &data, "--steps", "5", "--batch-size", "2", "--out", &out];
            let source = ["--model", source.to_str().unwrap(), "--accumulate", "2"];
            let (code, _, errors) = weftc(&[&own[..], &source, flags].concat());
            assert_eq!(code, Some(0), "{errors}");
            errors
        };
        run("plain", &[]);
        let errors = run("apart", &["--profile-step", "1"]);
        let weights = |name: &str| std::fs::read(Path::new(&out(name)).join("model.safetensors")).unwrap();
        assert!(weights("plain") == weights("apart"));
        // The first two steps of a process say little.
        assert!(errors.contains("step 3 took"), "{errors}");
        let text = std::fs::read_to_string(Path::new(&out("apart")).join("parts.json")).unwrap();
        let parts: Value = serde_json::from_str(&text).unwrap();
        let (measured, predicted) = (&parts["measured"], &parts["predicted"]);
        let kept = !flags.is_empty();
        for part in ["forward", "backward", "optimizer"].iter().chain((!kept).then_some(&"probe")) {
            assert!(measured["parts"][part].as_f64().is_some_and(|x| x > 0.0), "{part}: {text}");
            assert!(predicted["parts"][part]["seconds"].as_f64().is_some_and(|x| x > 0.0), "{part}: {text}");
        }
        let each = |names: &[&str]| names.iter().map(|n| measured[n].as_f64().unwrap()).sum::<f64>();
        let nodes: f64 = measured["parts"].as_object().unwrap().values().filter_map(Value::as_f64).sum();
        assert!((nodes + each(&["between", "outside"]) - each(&["seconds"])).abs() < 1e-9, "{text}");
        // Both micro-batches: two forward passes, one update.
        assert_eq!(predicted["load"]["batch"], 4);
        let operators = measured["operators"].as_array().unwrap();
        let nodes = |name: &str| -> u64 {
            let own = operators.iter().filter(|o| o["operator"] == name);
            own.map(|o| o["nodes"].as_u64().unwrap()).sum()
        };
        assert_eq!((nodes("HeadExpect"), nodes("AdamW")), (2, trained), "{text}");
        let page = std::fs::read_to_string(Path::new(&out("apart")).join("report.html")).unwrap();
        assert!(page.contains("Where the time of a step goes") && page.contains("AdamW"));
        // Another run into the same folder shows nothing of it.
        run("apart", &[]);
        for name in ["plain", "apart"] {
            let page = std::fs::read_to_string(Path::new(&out(name)).join("report.html")).unwrap();
            assert!(!page.contains("Where the time of a step goes"));
        }
    }
    let (train, data) = (at("every.onnx"), at("data.jsonl"));
    let (code, _, errors) = weftc(&["run", &train, "--data", &data, "--profile-step", "2"]);
    assert!(code == Some(2) && errors.contains("--out DIR"), "{errors}");
}

#[test]
fn what_cannot_be_measured_is_told() {
    let file = model("sudoku.onnx");
    let file = file.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train.onnx");
    let train = train.to_str().unwrap();
    assert_eq!(weftc(&["compile", file, "--mask-id", "15", "-q", "-o", train]).0, Some(0));
    let cases: [(&[&str], i32, &str); 8] = [
        (&["bench"], 2, "<MODEL>"),
        (&["bench", file], 2, "--mask-id"),
        (&["bench", "missing.onnx", "--mask-id", "15"], 7, "missing.onnx"),
        (&["bench", concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")], 3, "README.md"),
        (&["bench", file, "--mask-id", "15", "--calibration", file], 7, "sudoku.onnx"),
        (&["bench", file, "--mask-id", "15", "--length", "100000", "--batch", "0"], 2, "the model takes at most"),
        (&["bench", file, "--mask-id", "15", "--seconds", "-1"], 2, "--seconds"),
        (&["bench", train, "--mask-id", "15", "--trainable", "lora"], 2, "--trainable: it is compiled already"),
    ];
    for (args, code, text) in cases {
        let (found, _, errors) = weftc(args);
        assert_eq!(found, Some(code), "{args:?}: {errors}");
        assert!(errors.contains(text), "{args:?}: {errors}");
    }
}
