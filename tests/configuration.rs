//! Runs from a file, and plans of runs.

mod program;
mod toy;

use program::weftc;
use std::path::{Path, PathBuf};

const DATA: &str = r#"{"input_ids": [0, 1, 2, 3], "prompt_len": 1}
{"input_ids": [4, 3], "prompt_len": 0}
{"input_ids": [2, 2, 1, 0, 4], "prompt_len": 2}
"#;

/// A toy with data and a run.toml, which says all but where to write.
fn toy(folder: &Path) -> (PathBuf, String) {
    let train = toy::write(folder, &toy::Options::default());
    let data = folder.join("data.jsonl");
    std::fs::write(&data, DATA).unwrap();
    let config = folder.join("mine.toml");
    let text = format!("train_onnx = {train:?}\ndata = {data:?}\nsteps = 6\nlr = 5e-2\nbatch-size = 2\nseed = 4\n");
    std::fs::write(&config, text).unwrap();
    (train, config.to_str().unwrap().into())
}

/// The settings that a run leaves behind are the run.
#[test]
fn a_run_is_repeated_from_its_own_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let (train, config) = toy(folder.path());
    let out = |name: &str| train.with_file_name(name).to_str().unwrap().to_string();
    let weights = |name: &str| std::fs::read(train.with_file_name(name).join("model.safetensors")).unwrap();
    let data = out("data.jsonl");
    let run = |words: &[&str]| assert_eq!(weftc(&[&["run", "--quiet"], words].concat()).0, Some(0));
    run(&["--config", &config, "--out", &out("first"), "--warmup=3", "--eval-data", &data, "--eval-every=2"]);
    run(&["--config", &(out("first") + "/run.toml"), "--out", &out("again")]);
    run(&["--config", &config, "--out", &out("other")]);
    assert!(weights("first") == weights("again") && weights("first") != weights("other"));
    let text = |name: &str| std::fs::read_to_string(train.with_file_name(name).join("run.toml")).unwrap();
    assert_eq!(text("first").replace("/first", "/again"), text("again"));
    assert!(text("first").contains("\nwarmup = 3\n") && text("first").contains("\nlr = 0.05\n"), "{}", text("first"));
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (train, config) = toy(folder.path());
    let out = train.with_file_name("out");
    let (code, text, errors) =
        weftc(&["run", "--config", &config, "--dry-run", "--out", out.to_str().unwrap(), "--save-every", "5"]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let at = format!("{}/", folder.path().display());
    insta::assert_snapshot!(text.replace(&at, ""));
    assert!(!out.exists());
}

#[test]
fn a_file_with_mistakes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("mine.toml");
    std::fs::write(&config, "stepz = 3\nlr = \"fast\"\n").unwrap();
    let (code, _, errors) = weftc(&["run", "--config", config.to_str().unwrap()]);
    assert!(code == Some(2) && errors.contains("mine.toml:1: there is no setting stepz"), "{code:?}: {errors}");
    assert!(errors.contains("did you mean steps?") && errors.contains("mine.toml:2: invalid value 'fast'"), "{errors}");
}

/// A compile from a file is the compile of its flags; flags win.  What it did and what a run came to can be read by
/// programs, and a plan counts the activations that `weftc inspect` estimates.
#[test]
fn a_compile_has_a_file_and_a_plan_counts_activations() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sudoku.onnx");
    let text =
        format!("model = {model:?}\nmask-id = 15\nmethod = \"sft\"\nset = [\"weight_power=0.5\"]\njson = true\n");
    std::fs::write(at("compile.toml"), text).unwrap();
    let (code, out, errors) = weftc(&["compile", "--config", &at("compile.toml"), "-o", &at("train.onnx")]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(object["bytes"].as_u64().unwrap() > 100_000 && object["operators"]["product"].is_u64(), "{out}");
    let model = model.to_str().unwrap();
    let words = ["compile", model, "--mask-id=15", "--method=sft", "--set=weight_power=0.5", "-q"];
    assert_eq!(weftc(&[&words[..], &["-o", &at("flags.onnx")]].concat()).0, Some(0));
    let same = |other: &str| std::fs::read(at("train.onnx")).unwrap() == std::fs::read(at(other)).unwrap();
    assert!(same("flags.onnx"));
    let words = ["compile", "--config", &at("compile.toml"), "--method", "weft", "-o", &at("weft.onnx")];
    assert_eq!(weftc(&words).0, Some(0));
    assert!(!same("weft.onnx"));

    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sudoku_train.jsonl");
    let run = ["run", &at("train.onnx"), "--data", data.to_str().unwrap(), "--steps=2", "--batch-size=4"];
    let (code, text, errors) = weftc(&[&run[..], &["--dry-run"]].concat());
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let memory = text.lines().find(|l| l.starts_with("memory")).unwrap();
    assert!(
        memory.contains("about ") && memory.contains("of activations in one micro-batch of 4 x 33 tokens"),
        "{text}"
    );
    let (code, out, errors) = weftc(&[&run[..], &["--json", "-q"]].concat());
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["steps"], 2);
}

/// What stands behind an error of the file system, and no colours where there is no terminal.
#[test]
fn errors_say_what_to_do() {
    let (code, _, errors) = weftc(&["inspect", "nowhere/model.onnx"]);
    assert_eq!(code, Some(7), "{errors}");
    assert!(errors.starts_with("error: ") && errors.contains("\n    help: is the path right"), "{errors}");
    let (_, help, _) = weftc(&["--help"]);
    assert!(help.contains("Exit codes:") && help.contains("130  interrupted"), "{help}");
}
