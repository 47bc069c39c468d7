//! Generation against an independent reference: `tests/python/decoding.py`, which follows the loops that LLaDA and
//! Dream published, on the same fixed logits and random numbers.

mod program;

use onnx_protobuf::ModelProto;
use program::weftc;
use protobuf::Message;
use serde_json::Value;
use std::path::{Path, PathBuf};
use weftc::generate::{Decoding, Draw, Model, Remasking, Schedule, decode_watched};
use weftc::runtime::session;

const VOCAB: i64 = 12;
const MASK: i64 = 11;

/// The logits of the reference: multiples of 1/64 that depend on every token.
fn logits(tokens: &[i64]) -> Vec<f32> {
    let total: i64 = (1..).zip(tokens).map(|(k, t)| k * (t + 3)).sum();
    let z = |p: i64, v: i64| match v {
        MASK => -1e9,
        _ => ((p * 7919 + v * 10473 + total * 31 + (p + 1) * (v + 1) * 613) % 512) as f32 / 64.0,
    };
    (0..tokens.len() as i64).flat_map(|p| (0..VOCAB).map(move |v| z(p, v))).collect()
}

fn decoding(case: &Value) -> Decoding {
    let number = |name: &str| case[name].as_f64();
    let size = |name: &str| case[name].as_u64().map(|n| n as usize);
    let steps = size("steps").unwrap();
    let base = match case["family"].as_str().unwrap() {
        "llada" => Decoding { block_length: size("block"), ..Decoding::new(MASK, steps) },
        _ => Decoding::dream(MASK, steps),
    };
    let remasking = match case["remasking"].as_str().or(case["alg"].as_str()).unwrap() {
        "low-confidence" | "maskgit_plus" => Remasking::LowConfidence,
        "random" => Remasking::Random,
        "topk_margin" => Remasking::Margin,
        "entropy" => Remasking::Entropy,
        "origin" => Remasking::Origin,
        other => panic!("{other}"),
    };
    Decoding {
        remasking,
        temperature: number("temperature").unwrap_or(0.0),
        top_p: number("top_p"),
        top_k: size("top_k"),
        alg_temp: number("alg_temp"),
        seed: case["seed"].as_u64().unwrap(),
        ..base
    }
}

fn golden() -> Value {
    serde_json::from_str(include_str!("python/decoding.json")).unwrap()
}

#[test]
fn every_step_is_that_of_the_reference() {
    let golden = golden();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 150);
    for case in cases {
        let ids = |v: &Value| -> Vec<i64> { v.as_array().unwrap().iter().map(|t| t.as_i64().unwrap()).collect() };
        let row = ids(&case["row"]);
        let mut steps = case["history"].as_array().unwrap().iter();
        let last =
            decode_watched(&mut |tokens, _, _| Ok(logits(tokens)), &row, row.len(), &decoding(case), &mut |tokens| {
                let expected = ids(steps.next().expect("as many steps"));
                assert_eq!(
                    tokens,
                    expected,
                    "after a step of {}",
                    serde_json::json!({ "case": {
                "family": case["family"], "seed": case["seed"], "steps": case["steps"], "alg": case["alg"],
                "temperature": case["temperature"], "remasking": case["remasking"] } })
                );
                Ok(())
            })
            .unwrap();
        assert_eq!(steps.next(), None);
        assert!(!last.contains(&MASK));
    }
}

/// The times behind Dream's shares are PyTorch's linspace, up to the last bits, which PyTorch itself rounds by machine.
#[test]
fn shares_are_those_of_pytorch() {
    let schedule = Schedule::Timesteps { eps: 1e-3 };
    for entry in golden()["counts"].as_array().unwrap() {
        let steps = entry["steps"].as_u64().unwrap() as usize;
        let times: Vec<f64> = entry["times"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect();
        for step in 0..steps - 1 {
            let share = 1.0 - times[step + 1] / times[step];
            // Two roundings of a time in f32, over the time.
            let tolerance = 2.4e-7 / times[step];
            assert!((schedule.chance(step, steps) - share).abs() < tolerance, "step {step} of {steps}");
        }
    }
}

#[test]
fn a_batch_is_its_rows() {
    let rows: Vec<i64> = [[2, 5, MASK, MASK, MASK, MASK], [7, MASK, 1, MASK, MASK, MASK]].concat();
    let mut batched = |tokens: &[i64], _: usize, len: usize| Ok(tokens.chunks(len).flat_map(logits).collect());
    for draw in [Draw::Gumbel, Draw::Categorical] {
        let both = Decoding { temperature: 0.8, draw, seed: 3, ..Decoding::new(MASK, 2) };
        let filled = weftc::generate::decode(&mut batched, &rows, 6, &both).unwrap();
        for (first_row, row) in rows.chunks(6).enumerate() {
            let alone = Decoding { rows: vec![first_row], ..both.clone() };
            assert_eq!(weftc::generate::decode(&mut batched, row, 6, &alone).unwrap(), filled[first_row * 6..][..6]);
        }
    }
}

fn models(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(file)
}

fn one_thread() -> session::Options {
    session::Options { threads: 1, ..session::Options::default() }
}

/// A model with its batch and length fixed, as exporters without dynamic shapes leave it.
fn fixed(source: &Path, batch: i64, length: i64) -> Vec<u8> {
    let mut model = ModelProto::parse_from_bytes(&std::fs::read(source).unwrap()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    for port in graph.input.iter_mut().chain(&mut graph.output) {
        let shape = &mut port.type_.as_mut().unwrap().mut_tensor_type().shape.as_mut().unwrap().dim;
        shape[0].set_dim_value(batch);
        shape[1].set_dim_value(length);
    }
    model.write_to_bytes().unwrap()
}

#[test]
fn a_model_of_fixed_sizes_answers_as_the_free_one() {
    let source = models("llada_micro_dynamo18.onnx");
    let mut free = Model::open(&source, &one_thread()).unwrap();
    let mut fixed = Model::from_bytes(&fixed(&source, 2, 6), &source, &one_thread()).unwrap();
    assert_eq!((free.length(), fixed.length()), (None, Some(6)));
    let tokens: Vec<i64> = (0..18).map(|k| k * 5 % 31).collect();
    // Three rows through a batch of two.
    assert_eq!(fixed.logits(&tokens, 3, 6).unwrap(), free.logits(&tokens, 3, 6).unwrap());
    let short = fixed.logits(&tokens[..8], 2, 4).unwrap();
    assert_eq!(short.len(), 8 * 32);
    assert!(fixed.logits(&tokens[..7], 1, 7).unwrap_err().to_string().contains("exported for 6"));
}

#[test]
fn attention_masks_and_segments_are_fed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models/optimum_bert.onnx");
    if path.exists() {
        let mut model = Model::open(&path, &one_thread()).unwrap();
        let z = model.logits(&[1, 2, 3, 4, 5, 6], 2, 3).unwrap();
        assert!(z.len().is_multiple_of(6) && z.iter().all(|z| z.is_finite()));
        let other = model.logits(&[1, 2, 3, 4, 5, 7], 2, 3).unwrap();
        let half = z.len() / 2;
        assert!(z[..half] == other[..half] && z[half..] != other[half..]);
    }
}

#[test]
fn the_command_decodes_as_the_library() {
    let source = models("sudoku.onnx");
    let model = source.to_str().unwrap();
    let flags = ["--length", "6", "--steps", "3", "--block-length", "0", "--temperature", "0.7", "--seed", "5"];
    let more = ["--prompt-ids", "1,0,2", "--prompt", "3.1", "-n", "2", "--json", "--threads", "1"];
    let (code, out, notes) = weftc(&[&["generate", model], &flags[..], &more].concat());
    assert_eq!(code, Some(0), "{notes}");
    assert!(notes.contains("tokenizer.json (beside the model)"), "{notes}");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    let decoding = Decoding { temperature: 0.7, seed: 5, ..Decoding::new(15, 3) };
    let mut library = Model::open(&source, &one_thread()).unwrap();
    // `3.1` is tokens 3, 0, 1; each prompt has two samples.
    for (row, (line, prompt)) in lines.iter().zip([[3, 0, 1], [3, 0, 1], [1, 0, 2], [1, 0, 2]]).enumerate() {
        let tokens = [prompt.to_vec(), vec![15; 6]].concat();
        let filled = library.decode(&tokens, 9, &Decoding { rows: vec![row], ..decoding.clone() }).unwrap();
        assert_eq!(line["tokens"], serde_json::json!(filled[3..]), "row {row}");
        assert_eq!(line["calls"], 3);
    }
    let (code, _, errors) = weftc(&["generate", model]);
    assert!(code == Some(2) && errors.contains("--prompt TEXT, --prompt-file FILE"), "{errors}");
    let (code, _, errors) = weftc(&["generate", model, "-p", "1", "--watch", "--length", "3", "--quiet"]);
    assert_eq!((code, errors.lines().count()), (Some(0), 3), "{errors}");
    let (code, _, errors) = weftc(&["generate", model, "-p", "1", "--profile", "gpt"]);
    assert!(code == Some(2) && errors.contains("known are llada"), "{errors}");
}

#[test]
fn prompts_come_from_files_with_every_bad_row_told() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let model = models("sudoku.onnx").display().to_string();
    let rows = "{\"prompt\": \"12\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"3\"}]}\n{\"input_ids\": [1, 2, 4], \"prompt_len\": 2}\n";
    let (rows, text) = (file("rows.jsonl", rows), file("text.txt", "1234\n"));
    let run = |path: &str| weftc(&["generate", &model, "--prompt-file", path, "--json", "--length", "2", "-q"]);
    let (code, out, errors) = run(&rows);
    assert_eq!((code, out.lines().count()), (Some(0), 3), "{errors}");
    assert!(out.lines().nth(2).unwrap().contains("\"prompt\":\"1,2\""), "{out}");
    assert_eq!(run(&text).1.lines().count(), 1);
    let (code, _, errors) = run(&file("bad.jsonl", "{}\n{\"prompt\": 3}\n{\"prompt\": \"1\"}\n"));
    assert!(code == Some(4) && errors.contains("bad.jsonl:1") && errors.contains("bad.jsonl:2"), "{errors}");
}

#[test]
fn a_profile_names_the_mask_of_compile() {
    let model = models("llada_micro_dynamo18.onnx").display().to_string();
    // The micro model has no such token: the profile's mask was taken.
    let (code, _, errors) = weftc(&["compile", &model, "--profile", "dream", "-o", "/dev/null"]);
    assert!(code == Some(2) || code == Some(3), "{errors}");
    assert!(errors.contains("token 151666 is outside the vocabulary of 32"), "{errors}");
    let (_, _, errors) = weftc(&["compile", &model, "-o", "/dev/null"]);
    assert!(errors.contains("--profile"), "{errors}");
}
