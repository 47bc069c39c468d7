//! Generation against an independent reference: `tests/python/decoding.py`, which follows the loops that LLaDA and
//! Dream published, on the same fixed logits and random numbers.

use serde_json::Value;
use weftc::generate::{Decoding, Draw, Remasking, Schedule, decode_watched};

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
            let alone = Decoding { first_row, ..both.clone() };
            assert_eq!(weftc::generate::decode(&mut batched, row, 6, &alone).unwrap(), filled[first_row * 6..][..6]);
        }
    }
}
