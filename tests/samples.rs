//! What the model says while it is trained.

mod program;

use program::weftc;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A compiled model and data in a folder of its own.
fn compiled(folder: &Path, model: &str, more: &[&str]) -> PathBuf {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let model = models.join(model);
    let train = folder.join("train.onnx");
    let words = ["compile", model.to_str().unwrap(), "-q", "-o", train.to_str().unwrap()];
    let (code, _, errors) = weftc(&[&words, more].concat());
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    train
}

fn lines(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("samples.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs `train` into `out` beside it on the Sudoku rows; the log.
fn run(train: &Path, out: &str, more: &[&str]) -> String {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sudoku_train.jsonl");
    let out = train.with_file_name(out);
    let words = ["run", train.to_str().unwrap(), "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let same = ["--threads=1", "--lr=1e-3", "--batch-size=4"];
    let (code, _, errors) = weftc(&[&words[..], &same, more].concat());
    assert_eq!(code, Some(0), "{errors}");
    errors
}

/// The answers of a model, as `weftc generate` gives them, to prompts of token ids.
fn generated(model: &Path, prompts: &[Value]) -> Vec<Value> {
    let mut words = vec!["generate".to_string(), model.display().to_string()];
    words.extend(["--json", "-q", "--threads=1", "--length=16", "--steps=8"].map(String::from));
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tokenizer.json");
    words.extend(["--tokenizer".into(), tokenizer.display().to_string()]);
    words.extend(["--mask-id=15", "--eos-id=14", "--stop", "--plain"].map(String::from));
    words.extend(prompts.iter().map(|p| format!("--prompt-ids={}", p.as_str().unwrap().replace(' ', ","))));
    let (code, out, errors) = weftc(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, Some(0), "{errors}");
    out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["tokens"].clone()).collect()
}

/// With samples and without: the same weights to the bit.  What is said first is what the source model generates, what
/// is said last what the saved one does.
fn samples_change_nothing(more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let train = compiled(folder.path(), "sudoku.onnx", &[&["--mask-id=15"], more].concat());
    run(&train, "without", &["--steps=6", "--quiet"]);
    let log = run(&train, "with", &["--steps=6", "--sample-every=2", "--eos-id=14"]);
    let weights = |out: &str| std::fs::read(train.with_file_name(out).join("model.safetensors")).unwrap();
    assert!(weights("with") == weights("without"));
    assert!(log.contains("sample 1 after 0 steps: ") && log.contains("sample 3 after 6 steps: "), "{log}");
    let all = lines(&train.with_file_name("with"));
    let steps: Vec<u64> = all.iter().map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 0, 0, 2, 2, 2, 4, 4, 4, 6, 6, 6]);
    let prompts: Vec<Value> = all[..3].iter().map(|l| l["prompt"].clone()).collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sudoku.onnx");
    for (model, said) in [(source, &all[..3]), (train.with_file_name("with").join("model.onnx"), &all[9..])] {
        for (line, tokens) in said.iter().zip(generated(&model, &prompts)) {
            // Generation fills what lies behind an end of text; a sample stops there.
            let own = line["tokens"].as_array().unwrap();
            assert_eq!(own[..], tokens.as_array().unwrap()[..own.len()], "{line}");
            assert_eq!(line["reference"].as_str().unwrap().split(' ').count(), 16, "{line}");
        }
    }
    assert!(all[..3].iter().zip(&all[9..]).any(|(a, b)| a["tokens"] != b["tokens"]), "nothing was learnt");
}

#[test]
fn samples_change_nothing_of_full_weights() {
    samples_change_nothing(&[]);
}

#[test]
fn samples_change_nothing_of_adapters() {
    samples_change_nothing(&[
        "--trainable=lora",
        "--lora-targets=all-linear",
        "--lora-dropout=0.1",
        "--quantize-base=int8",
    ]);
}

#[test]
fn samples_change_nothing_of_single_weights_with_a_kept_probe() {
    samples_change_nothing(&["--trainable=*norm*,*ff_out*", "--probe=every:2"]);
}

/// A resumed run goes on with its file; what it had said beyond the checkpoint is said again.
#[test]
fn a_resumed_run_goes_on_saying() {
    let folder = tempfile::tempdir().unwrap();
    let train = compiled(folder.path(), "sudoku.onnx", &["--mask-id=15"]);
    let flags = ["--sample-every=2", "--save-every=3", "--keep=9", "--quiet", "--sample-length=4"];
    run(&train, "whole", &[&flags[..], &["--steps=6"]].concat());
    run(&train, "out", &[&flags[..], &["--steps=6"]].concat());
    let checkpoint = train.with_file_name("out").join("checkpoints/step-00000003");
    run(&train, "out", &[&flags[..], &["--steps=6", "--resume", checkpoint.to_str().unwrap()]].concat());
    let file = |out: &str| std::fs::read_to_string(train.with_file_name(out).join("samples.jsonl")).unwrap();
    assert_eq!(file("out"), file("whole"));
    assert_eq!(file("out").lines().count(), 12);
}

#[test]
fn prompts_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let train = compiled(folder.path(), "sudoku.onnx", &["--mask-id=15"]);
    let prompts = folder.path().join("prompts.txt");
    std::fs::write(&prompts, "1 2\n\n3 4 1\n").unwrap();
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tokenizer.json");
    let given = ["--sample-prompts", prompts.to_str().unwrap(), "--sample-length=3"];
    let text = ["--tokenizer", tokenizer.to_str().unwrap(), "--steps=3", "--quiet"];
    run(&train, "out", &[&given[..], &text].concat());
    let all = lines(&train.with_file_name("out"));
    let steps: Vec<u64> = all.iter().map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 0, 3, 3]);
    assert!(all[1]["prompt"] == "3 4 1" && all[1].get("reference").is_none(), "{}", all[1]);
    std::fs::write(&prompts, "\n").unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sudoku_train.jsonl");
    let words = ["run", train.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let (code, _, errors) = weftc(&[&words[..], &given, &text].concat());
    assert!(code == Some(2) && errors.contains("holds no prompt"), "{code:?}: {errors}");
}

/// The interpreter answers too.
#[test]
fn the_interpreter_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let train = compiled(folder.path(), "llada_micro_dynamo18.onnx", &["--mask-id=31"]);
    let data = folder.path().join("data.jsonl");
    std::fs::write(&data, "{\"input_ids\": [1, 2, 3, 4, 5, 6], \"prompt_len\": 2}\n").unwrap();
    let said = |runtime: &str| {
        let out = folder.path().join(runtime);
        let words = ["run", train.to_str().unwrap(), "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
        let more = ["--steps=2", "--sample-every=1", "-q", "--runtime", runtime];
        let (code, _, errors) = weftc(&[&words[..], &more].concat());
        assert_eq!((code, errors.as_str()), (Some(0), ""));
        lines(&out)
    };
    let all = said("interpreter");
    assert_eq!((all.len(), &all), (3, &said("onnxruntime")));
}
