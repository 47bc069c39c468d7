//! `weftc eval` on small models: protocol, reports, and likelihoods against sums over every mask.

mod program;

use program::weftc;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use weftc::generate::Model;
use weftc::rng::SplitMix64;
use weftc::runtime::session::Options;

const MASK: i64 = 15;

fn models(file: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(file).display().to_string()
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

/// The sum of cross-entropies of `masked` positions of `tokens` when they are masked, from the logits of `predicted`
/// tokens themselves.
fn cross_entropy(model: &mut Model, tokens: &[i64], masked: &[usize], predicted: usize) -> f64 {
    let mut noisy = tokens.to_vec();
    masked.iter().for_each(|p| noisy[*p] = MASK);
    let z = model.logits(&noisy, 1, tokens.len()).unwrap();
    let of = |p: &usize| {
        let row = &z[p * 16..][..predicted];
        row.iter().map(|z| f64::from(*z).exp()).sum::<f64>().ln() - f64::from(row[tokens[*p] as usize])
    };
    masked.iter().map(of).sum()
}

fn sudoku() -> Model {
    Model::open(Path::new(&models("sudoku.onnx")), &Options { threads: 1, ..Options::default() }).unwrap()
}

/// The same times and draws, one row a call: the bound is the mean of their cross-entropies over t; with the mask token,
/// which is the last of 16, among what can be predicted, and without it.
#[test]
fn the_bound_is_that_of_the_logits() {
    let all = bound_of(16, &[]);
    assert!(bound_of(15, &["--exclude-mask"]) < all);
}

fn bound_of(predicted: usize, more: &[&str]) -> f64 {
    const DRAWS: usize = 20;
    let folder = TempDir::new().unwrap();
    let (tokens, prompt) = ([1, 2, 3, 4, 5, 1], 3);
    let sample = json!({ "input_ids": tokens, "prompt_len": prompt, "total_len": 6 });
    let data = write(&folder, "data.jsonl", &[sample.clone(), sample]);
    let flags = ["eval", &models("sudoku.onnx"), "-t", "nll", "--data", data.to_str().unwrap(), "--seed", "3"];
    let report = report(&[&flags[..], &["--draws", &DRAWS.to_string()], more].concat());
    let mut model = sudoku();
    let mut sum = 0.0;
    for number in 0..2 {
        let mut rng = SplitMix64::stream(3, number);
        for k in 0..DRAWS {
            let t = (k as f64 + 0.5) / DRAWS as f64;
            let mut masked = Vec::new();
            for p in prompt..tokens.len() {
                if ((rng.next_u64() >> 11) as f64) / ((1u64 << 53) as f64) < t {
                    masked.push(p);
                }
            }
            sum += cross_entropy(&mut model, &tokens, &masked, predicted) / t;
        }
    }
    let exact = sum / (2 * DRAWS * (tokens.len() - prompt)) as f64;
    let nats = &report["scores"][0];
    assert!((nats["value"].as_f64().unwrap() / exact - 1.0).abs() < 1e-5, "{nats} {exact}");
    assert!(nats["low"].as_f64().unwrap() < nats["high"].as_f64().unwrap());
    assert_eq!(report["items"], 2);
    exact
}

#[test]
fn multiple_choice_takes_the_likeliest() {
    let folder = TempDir::new().unwrap();
    let row = |label: usize| json!({ "ctx": "12", "endings": ["1", "2", "3"], "label": label.to_string() });
    let data = write(&folder, "mc.jsonl", &[row(0), row(1), row(2)]);
    let out = folder.path().join("answers.jsonl");
    let flags = ["eval", &models("sudoku.onnx"), "-t", "mc", "--data", data.to_str().unwrap()];
    let report = report(&[&flags[..], &["--out", out.to_str().unwrap()]].concat());
    // A choice is two tokens, the space (unknown to this tokenizer) and the digit: each draw masks one, or both.
    let mut model = sudoku();
    let mut likelihood = |number: usize, token: i64| -> f64 {
        const DRAWS: usize = 32;
        let mut rng = SplitMix64::stream(0, number as u64);
        let first = rng.below(2);
        let draw = |k: usize| {
            let mut positions = [2, 3];
            rng.shuffle(&mut positions);
            let masked = &positions[..(first + k * 2 / DRAWS) % 2 + 1];
            -cross_entropy(&mut model, &[1, 2, 6, token], masked, 16) * 2.0 / masked.len() as f64
        };
        (0..DRAWS).map(draw).sum::<f64>() / DRAWS as f64
    };
    let answers = std::fs::read_to_string(out).unwrap();
    for (label, line) in answers.lines().enumerate() {
        let answer: Value = serde_json::from_str(line).unwrap();
        let exact: Vec<f64> = (1..4).map(|token| likelihood(label, token)).collect();
        let best = (0..3).max_by(|a, b| exact[*a].total_cmp(&exact[*b])).unwrap();
        assert_eq!(answer["right"], json!(label == best), "{line}");
        for (k, exact) in exact.iter().enumerate() {
            assert!((answer["log_likelihoods"][k].as_f64().unwrap() - exact).abs() < 1e-5, "{line} {exact}");
        }
    }
    // One question with each label: one of three is right.
    assert!((report["scores"][0]["value"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12);
    let bad = write(&folder, "bad.jsonl", &[json!({ "ctx": "1" }), row(7)]);
    let (code, _, errors) = weftc(&["eval", &models("sudoku.onnx"), "-t", "mc", "--data", bad.to_str().unwrap()]);
    assert!(code == Some(4) && errors.contains("bad.jsonl:1") && errors.contains("bad.jsonl:2"), "{errors}");
    let (code, _, errors) = weftc(&["eval", &models("sudoku.onnx"), "-t", "gsm8k"]);
    assert!(code == Some(2) && errors.contains("--data FILE.jsonl"), "{errors}");
}
