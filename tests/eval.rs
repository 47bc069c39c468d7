//! `weftc eval` on small models: protocol, reports, and likelihoods against sums over every mask.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn models(file: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(file).display().to_string()
}

fn weftc(args: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_weftc")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn report(args: &[&str]) -> Value {
    let (code, out, errors) = weftc(&[args, &["--json", "--threads", "1"]].concat());
    assert_eq!(code, Some(0), "{errors}");
    serde_json::from_str(&out).unwrap()
}

fn write(folder: &TempDir, name: &str, lines: &[Value]) -> PathBuf {
    let path = folder.path().join(name);
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(&path, text.join("\n")).unwrap();
    path
}

/// The prompt of this test is the puzzle alone: the model has 40 positions.
#[test]
fn sudoku_is_asked_generated_and_scored_by_the_protocol() {
    let folder = TempDir::new().unwrap();
    let (prompt, out) = (folder.path().join("p.jinja"), folder.path().join("answers.jsonl"));
    std::fs::write(&prompt, "{{ puzzle }}|\n").unwrap();
    let (prompt, out) = (prompt.to_str().unwrap(), out.to_str().unwrap());
    let flags = ["eval", &models("sudoku.onnx"), "--task", "sudoku", "--count", "12", "--length", "16"];
    let more = ["--prompt-file", prompt, "--out", out];
    let report = report(&[&flags[..], &more].concat());
    assert_eq!(report["items"], 12);
    let decoding = &report["protocol"]["decoding"];
    // Half as many steps as tokens, blocks of 32, the most likely token.
    assert_eq!(
        (&decoding["steps"], &decoding["block_length"], &decoding["temperature"]),
        (&json!(8), &json!(32), &json!(0.0))
    );
    let scores: Vec<&str> = report["scores"].as_array().unwrap().iter().map(|s| s["score"].as_str().unwrap()).collect();
    assert_eq!(scores, ["empty cells right (d1)", "empty cells right", "puzzles solved", "tokens an answer"]);
    let lines = std::fs::read_to_string(out).unwrap();
    let rows: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.len(), 12);
    let mean: f64 = rows.iter().map(|r| r["d1"].as_f64().unwrap()).sum::<f64>() / 12.0;
    assert!((report["scores"][0]["value"].as_f64().unwrap() - mean).abs() < 1e-12);
    let (_, table, _) = weftc(&[&flags[..], &more, &["--threads", "1"]].concat());
    assert!(table.contains("puzzles solved") && table.contains("95 % interval"), "{table}");
}

/// With one part for each number of masks the draws are every mask of a target of one token: the likelihood is exact.
#[test]
fn likelihoods_are_those_of_the_logits() {
    use weftc::generate::Model;
    use weftc::runtime::session::Options;
    let folder = TempDir::new().unwrap();
    let sample = json!({ "input_ids": [1, 2, 3, 4], "prompt_len": 3 });
    let data = write(&folder, "data.jsonl", &[sample.clone(), sample]);
    let report =
        report(&["eval", &models("sudoku.onnx"), "-t", "nll", "--data", data.to_str().unwrap(), "--draws", "4000"]);
    let mut model =
        Model::open(Path::new(&models("sudoku.onnx")), &Options { threads: 1, ..Options::default() }).unwrap();
    let z = model.logits(&[1, 2, 3, 15], 1, 4).unwrap();
    let z = &z[3 * 16..];
    let sum: f64 = z.iter().map(|z| f64::from(*z).exp()).sum();
    let exact = sum.ln() - f64::from(z[4]);
    let nats = &report["scores"][0];
    // The token is masked with probability t and weighs 1/t: on average the exact value, up to the draws.
    assert!((nats["value"].as_f64().unwrap() / exact - 1.0).abs() < 0.1, "{nats} {exact}");
    assert!(nats["low"].as_f64().unwrap() <= nats["value"].as_f64().unwrap());
    assert_eq!(report["items"], 2);
}

#[test]
fn multiple_choice_takes_the_likeliest() {
    let folder = TempDir::new().unwrap();
    let row = |label: usize| json!({ "ctx": "12", "endings": ["1", "2", "34"], "label": label.to_string() });
    let data = write(&folder, "mc.jsonl", &[row(0), row(1), row(2)]);
    let report = report(&["eval", &models("sudoku.onnx"), "-t", "mc", "--data", data.to_str().unwrap(), "--seed", "1"]);
    // One question with each label; draws differ by question, so each is right or wrong on its own.
    let right = report["scores"][0]["value"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&right) && (right * 3.0).fract().abs() < 1e-9);
    let bad = write(&folder, "bad.jsonl", &[json!({ "ctx": "1" }), row(7)]);
    let (code, _, errors) = weftc(&["eval", &models("sudoku.onnx"), "-t", "mc", "--data", bad.to_str().unwrap()]);
    assert!(code == Some(4) && errors.contains("bad.jsonl:1") && errors.contains("bad.jsonl:2"), "{errors}");
    let (code, _, errors) = weftc(&["eval", &models("sudoku.onnx"), "-t", "gsm8k"]);
    assert!(code == Some(2) && errors.contains("--data FILE.jsonl"), "{errors}");
}
