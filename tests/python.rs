//! train.onnx needs nothing of ours: stock Python onnxruntime computes the same numbers, and the program in
//! the README trains with it.
//!
//! `WEFTC_TEST_PYTHON` names the Python to use; then a missing package is a failure.  Without it the tests
//! are skipped, with the reason printed, where `python3` has no onnxruntime.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use weftc::compile::{Options, compile};
use weftc::eval::sudoku::{LEN, MASK, PROMPT_LEN, Split, World};
use weftc::rules::Target;
use weftc::runtime::{HostTensor, Session, session};

type Outcome = Result<(), Box<dyn Error>>;

/// Two builds of ONNX Runtime may differ in the last bits of a sum; relative to an output's largest value.
const TOLERANCE: f64 = 2e-5;

const BATCH: usize = 4;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Python with the packages, or `None` with the reason printed.
fn python(packages: &str) -> Result<Option<String>, Box<dyn Error>> {
    let named = std::env::var("WEFTC_TEST_PYTHON").ok().filter(|name| !name.is_empty());
    let python = named.clone().unwrap_or_else(|| "python3".into());
    let why = match Command::new(&python).args(["-c", &format!("import {packages}")]).output() {
        Ok(done) if done.status.success() => return Ok(Some(python)),
        Ok(done) => String::from_utf8_lossy(&done.stderr).lines().last().unwrap_or_default().to_string(),
        Err(why) => why.to_string(),
    };
    if named.is_some() {
        return Err(format!("WEFTC_TEST_PYTHON={python} cannot import {packages}: {why}").into());
    }
    eprintln!("skipped: {python} cannot import {packages}: {why}");
    Ok(None)
}

fn run(command: &mut Command) -> Result<String, Box<dyn Error>> {
    let done = command.output()?;
    if !done.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&done.stderr)).into());
    }
    Ok(String::from_utf8(done.stdout)?)
}

/// Compiles the Sudoku model into `folder`.
fn train_onnx(folder: &Path, target: Target) -> Result<PathBuf, Box<dyn Error>> {
    let model = folder.join("sudoku.onnx");
    std::fs::copy(root().join("models/sudoku.onnx"), &model)?;
    let path = folder.join("train.onnx");
    compile(&Options { mask_id: Some(MASK), target, ..Options::new(model) })?.write(&path)?;
    Ok(path)
}

/// Four puzzles with draws that mask about half of the answers.
fn feeds() -> Result<BTreeMap<&'static str, HostTensor>, Box<dyn Error>> {
    let puzzles = World::new(0).puzzles(Split::Train, BATCH, 5);
    let tokens: Vec<i64> = puzzles.iter().flat_map(|p| p.tokens()).collect();
    let answer: Vec<bool> = (0..BATCH * LEN).map(|k| k % LEN >= PROMPT_LEN).collect();
    let draws: Vec<f32> = (0..BATCH * LEN).map(|k| (k * 37 % 101) as f32 / 101.0).collect();
    let shape = [BATCH as i64, LEN as i64];
    Ok(BTreeMap::from([
        ("input_ids", HostTensor::new(&shape, &tokens)?),
        ("answer_mask", HostTensor::new(&shape, &answer)?),
        ("t", HostTensor::new(&shape[..1], &[0.3f32, 0.5, 0.7, 0.9])?),
        ("u", HostTensor::new(&shape, &draws)?),
    ]))
}

fn as_json(feeds: &BTreeMap<&'static str, HostTensor>) -> Value {
    let one = |(name, tensor): (&&str, &HostTensor)| {
        let dtype = match *name {
            "input_ids" => "int64",
            "answer_mask" => "bool",
            _ => "float32",
        };
        (name.to_string(), json!({ "dtype": dtype, "shape": tensor.shape(), "values": tensor.to_f64() }))
    };
    Value::Object(feeds.iter().map(one).collect())
}

fn same_numbers(target: Target) -> Outcome {
    let Some(python) = python("onnxruntime, numpy")? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let train = train_onnx(folder.path(), target)?;
    let feeds = feeds()?;
    let feeds_file = folder.path().join("feeds.json");
    std::fs::write(&feeds_file, as_json(&feeds).to_string())?;

    let options = session::Options { threads: 1, ..session::Options::default() };
    let ours = Session::open(&train, &options)?.run(feeds.iter().map(|(name, value)| (*name, value)))?;
    let printed = run(Command::new(python).arg(root().join("tests/python/parity.py")).arg(&train).arg(&feeds_file))?;
    let theirs: BTreeMap<String, Vec<f64>> = serde_json::from_str(&printed)?;

    assert_eq!(ours.keys().collect::<std::collections::BTreeSet<_>>(), theirs.keys().collect());
    assert!(ours.keys().any(|name| name.starts_with("grad/")));
    for (name, tensor) in &ours {
        let (ours, theirs) = (tensor.to_f64(), &theirs[name]);
        assert_eq!(ours.len(), theirs.len(), "{name}");
        assert!(ours.iter().all(|x| x.is_finite()), "{name} is not finite");
        let scale = ours.iter().fold(1e-6, |m: f64, x| m.max(x.abs()));
        // What is not a number is not close to anything.
        let close = |a: f64, b: f64| (a - b).abs() <= TOLERANCE * scale;
        let far = ours.iter().zip(theirs).find(|(a, b)| !close(**a, **b));
        assert!(far.is_none(), "{name}: {far:?} of at most {scale}");
    }
    assert!(ours["mask"].to_f64().contains(&1.0), "nothing was masked");
    Ok(())
}

#[test]
fn python_computes_the_same_step() -> Outcome {
    same_numbers(Target::Cpu)
}

#[test]
fn python_computes_the_same_portable_step() -> Outcome {
    same_numbers(Target::Portable)
}

/// The first `python` block of the README, as it stands there.
#[test]
fn the_program_in_the_readme_trains() -> Outcome {
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    let block = readme.split("```python\n").nth(1).and_then(|rest| rest.split("```").next());
    let program = block.ok_or("the README has no python block")?;
    let Some(python) = python("onnxruntime, onnx, numpy")? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    train_onnx(folder.path(), Target::Cpu)?;
    std::fs::create_dir(folder.path().join("models"))?;
    std::fs::copy(root().join("models/sudoku_train.jsonl"), folder.path().join("models/sudoku_train.jsonl"))?;
    let printed = run(Command::new(python).arg("-c").arg(program).current_dir(folder.path()))?;
    let losses: Result<Vec<f64>, _> = printed.lines().map(str::parse).collect();
    let losses = losses?;
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert_eq!(losses.len(), 40, "{printed}");
    assert!(mean(&losses[30..]) < 0.8 * mean(&losses[..10]), "the loss does not fall: {losses:?}");
    Ok(())
}
