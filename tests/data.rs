//! Data as text: chat templates as Python's jinja2 renders them, files of several kinds, the preview.

mod program;

use program::weftc;
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;
use weftc::train::data::{Chat, Message};

/// `tests/python/templates.py` wrote the expectations.
#[test]
fn templates_render_byte_for_byte_as_in_python() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("python/templates.json")).unwrap();
    assert_eq!(cases.len(), 48);
    let mut wrong = Vec::new();
    for case in &cases {
        let text = |v: &Value| v.as_str().unwrap().to_string();
        let message = |m: &Value| Message { role: text(&m["role"]), content: text(&m["content"]) };
        let messages: Vec<Message> = case["messages"].as_array().unwrap().iter().map(message).collect();
        let chat = Chat::new(case["source"].as_str().unwrap(), "<s>", "</s>").unwrap();
        let rendered = chat.render(&messages, case["open"].as_bool().unwrap()).map_err(|p| p.message);
        if rendered != Ok(text(&case["text"])) {
            wrong.push(format!("{}: {rendered:?}, in Python {}", case["name"], case["text"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn models(file: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(file).display().to_string()
}

#[test]
fn the_preview_tells_prompt_answer_and_padding_apart() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("data.jsonl");
    let rows = [
        json!({ "prompt": "12|", "answer": "34" }),
        json!({ "input_ids": [1, 5, 2, 0], "prompt_len": 2, "total_len": 3 }),
    ];
    std::fs::write(&path, rows.map(|r| r.to_string()).join("\n")).unwrap();
    let data = path.to_str().unwrap();
    let (code, out, errors) = weftc(&["data", data, "--tokenizer", &models("tokenizer.json"), "--plain"]);
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(
        out,
        "--- 0: 3 tokens of prompt, 2 of answer, 0 of padding\n12|⟦34⟧\n\
         --- 1: 2 tokens of prompt, 1 of answer, 2 of padding\n1|⟦2⟧⟨.[PAD] x1⟩\n\
         2 samples, 9 tokens, 3 of them answer; 4 to 5 a sample, median 5\n\
         padding in batches of 8: 10.0 % as drawn, 10.0 % where lengths are alike, 0.0 % where samples share rows \
         (compile --packing)\n"
    );
    // Ids need no tokenizer; text does, and the row is named.
    let (code, _, errors) = weftc(&["data", data]);
    assert!(code == Some(4) && errors.contains("data.jsonl:1: text needs a tokenizer"), "{errors}");
}

#[test]
fn tables_hold_any_text() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("data.csv");
    std::fs::write(&path, "prompt,answer\n\"1,2\",3\n4\n").unwrap();
    let rows = |spec: &str| weftc::train::data::rows_of(spec, None, &mut |row| Ok(row.clone()));
    let spec = path.to_str().unwrap();
    let why = rows(spec).unwrap_err().to_string();
    assert!(why.contains("data.csv:3: 1 fields for 2 columns"), "{why}");
    assert_eq!(json!(rows(&format!("{spec}[1]")).unwrap()), json!([{ "prompt": "1,2", "answer": "3" }]));
}

#[test]
fn shells_get_their_completions() {
    for (shell, sign) in [("bash", "complete -F _weftc"), ("zsh", "#compdef weftc"), ("fish", "complete -c weftc")] {
        let (code, script, _) = weftc(&["completions", shell]);
        assert!(code == Some(0) && script.contains(sign) && script.contains("remasking"), "{shell}");
    }
}

/// Trains two steps on rows of s1K's schema, which `tests/python/s1k.py` made; the weights that came out.
fn trained_on(data: &str) -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(data).display().to_string();
    std::fs::write(path("chat.jinja"), "{% for m in messages %}{{ m.content }}{% endfor %}").unwrap();
    let (code, _, errors) =
        weftc(&["compile", &models("sudoku.onnx"), "--mask-id", "15", "-q", "-o", &path("train.onnx")]);
    assert_eq!(code, Some(0), "{errors}");
    let flags =
        ["--tokenizer", &models("tokenizer.json"), "--chat-template", &path("chat.jinja"), "--max-length", "40"];
    let more = [
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--threads",
        "1",
        "--out",
        &path("out"),
        "--model",
        &models("sudoku.onnx"),
    ];
    let train = path("train.onnx");
    let (code, _, errors) = weftc(&[&["run", &train, "--data", &data], &flags[..], &more].concat());
    assert_eq!(code, Some(0), "{errors}");
    std::fs::read(path("out/model.safetensors")).unwrap()
}

#[test]
fn rows_of_s1k_train() {
    assert!(!trained_on("s1k.jsonl").is_empty());
}

/// The same rows as parquet give the same batches, so the same weights.
#[cfg(feature = "parquet")]
#[test]
fn parquet_and_json_lines_are_the_same_data() {
    use weftc::train::data::{Row, rows_of};
    let rows = |name: &str| -> Vec<Row> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(name);
        rows_of(path.to_str().unwrap(), None, &mut |row| Ok(row.clone())).unwrap()
    };
    let (parquet, lines) = (rows("s1k.parquet"), rows("s1k.jsonl"));
    assert_eq!(parquet.len(), 12);
    assert_eq!(parquet, lines);
    assert!(lines[0]["cot"].is_null());
    assert!(trained_on("s1k.parquet") == trained_on("s1k.jsonl"));
}
