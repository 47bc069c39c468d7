//! Every stage as text, and what the compiler made of each model in `models/`.

use std::path::{Path, PathBuf};
use weftc::compile::{Options, Stage, compile, emit_ir};
use weftc::onnx::write::table;
use weftc::rules::Target;

fn model(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(file)
}

fn options(file: &str, mask_id: i64, target: Target) -> Options {
    Options { mask_id: Some(mask_id), target, ..Options::new(model(file)) }
}

fn stage(stage: Stage) -> String {
    emit_ir(&options("llada_micro_dynamo18.onnx", 31, Target::Cpu), stage).unwrap()
}

#[test]
fn read() {
    insta::assert_snapshot!(stage(Stage::Read));
}

#[test]
fn lift() {
    insta::assert_snapshot!(stage(Stage::Lift));
}

#[test]
fn objective() {
    insta::assert_snapshot!(stage(Stage::Objective));
}

#[test]
fn differentiate() {
    insta::assert_snapshot!(stage(Stage::Differentiate));
}

#[test]
fn optimise() {
    insta::assert_snapshot!(stage(Stage::Optimise));
}

#[test]
fn lower() {
    insta::assert_snapshot!(stage(Stage::Lower));
}

/// Exporters' spellings end at the lift: the three exports of one model are one graph from there on.
#[test]
fn spellings_meet() {
    let lifted = |file| emit_ir(&options(file, 31, Target::Cpu), Stage::Lift).unwrap();
    let first = lifted("llada_micro_dynamo18.onnx");
    for file in ["llada_micro_native23.onnx", "llada_micro_legacy17.onnx"] {
        let count = |text: &str, op: &str| text.matches(&format!("({op} ")).count();
        for op in ["rms_norm", "rope", "attention", "swiglu", "matmul", "gather", "add"] {
            assert_eq!(count(&lifted(file), op), count(&first, op), "{file}: {op}");
        }
        for op in ["softmax", "sigmoid", "rsqrt", "mean", "rotate_half", "concat"] {
            // The rotary tables are built by concatenation in some spellings; that is all that may be left.
            let allowed = if op == "concat" { 2 } else { 0 };
            assert!(count(&lifted(file), op) <= allowed, "{file}: {op} is left over");
        }
    }
}

#[test]
fn models() {
    let mut out = String::new();
    for (file, mask_id) in [
        ("llada_micro_dynamo18.onnx", 31),
        ("llada_micro_native23.onnx", 31),
        ("llada_micro_legacy17.onnx", 31),
        ("dream_micro_dynamo18.onnx", 31),
        ("sudoku.onnx", 15),
    ] {
        for target in [Target::Portable, Target::Cpu] {
            let compiled = compile(&options(file, mask_id, target)).unwrap();
            let fired = &compiled.manifest.rules_fired;
            let fired: Vec<String> = fired.iter().map(|(rule, n)| format!("        {rule:<30} {n:>6}")).collect();
            let mended = compiled.manifest.mended.join("\n        ");
            out += &format!(
                "# {file}, target {target:?}\n\n{}\nrules fired\n{}\n\n",
                table(&compiled.graph),
                fired.join("\n")
            );
            out += &format!("mended\n        {mended}\n\n");
        }
    }
    insta::assert_snapshot!(out);
}
