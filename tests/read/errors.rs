//! What cannot be read is refused with every problem, its place and what to do.

use crate::build::*;
use prost::Message;
use weftc::onnx::proto::tensor_proto::{DataLocation, DataType::Float};
use weftc::onnx::proto::*;
use weftc::onnx::read::read;

/// The message for a model, without its path.
fn refusal(model: &ModelProto) -> String {
    let (folder, path) = written(model);
    let message = read(&path).unwrap_err().to_string();
    message.replace(&folder.path().display().to_string(), "FOLDER")
}

fn x() -> ValueInfoProto {
    input("x", Float, &["batch", "4"])
}

#[test]
fn all_problems_are_listed() {
    let mut early = node("Add", &["x", "late"], &["sum"]);
    early.name = "early".into();
    let mut bad = node("Add", &["x", "w"], &["bad"]);
    bad.name = "bad_add".into();
    let nodes = [
        node("Resize", &["x", "k"], &["small"]),
        node("Resize", &["x", "x"], &["large"]),
        node("Loop", &["x", "x"], &["looped"]),
        early,
        node("Neg", &["x"], &["late"]),
        bad,
        // Users of what was refused are not reported again.
        node("Neg", &["bad"], &["y"]),
    ];
    let weights = [floats("w", &[3], &[1.0, 2.0, 3.0]), floats("short", &[4], &[1.0])];
    insta::assert_snapshot!(refusal(&model(&[x()], &weights, &nodes)));
}

/// A scale may differ from head to head, but makes no more heads.
#[test]
fn scales_are_no_larger_than_what_they_scale() {
    for (op, opset) in [("RMSNormalization", 23), ("LayerNormalization", 17)] {
        let scale = floats("w", &[7, 1, 1, 1], &[1.0; 7]);
        let mut m = model(&[x()], &[scale], &[node(op, &["x", "w"], &["y"])]);
        m.opset_import[0].version = opset;
        let message = refusal(&m);
        assert!(message.contains("larger than what is normalised"), "{message}");
    }
}

#[test]
fn opsets_are_checked() {
    let with = |version: i64, op: &str| {
        let mut m = model(&[x()], &[floats("w", &[4], &[1.0; 4])], &[node(op, &["x", "w"], &["y"])]);
        m.opset_import[0].version = version;
        refusal(&m)
    };
    insta::assert_snapshot!([with(6, "Add"), with(29, "Add"), with(18, "RMSNormalization")].join("\n"));
}

#[test]
fn damaged_files_are_refused() {
    let m = model(&[x()], &[floats("w", &[4], &[1.0; 4])], &[node("Add", &["x", "w"], &["y"])]);
    let bytes = m.encode_to_vec();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    // Every cut of the file gives an error, never a panic.
    for end in 0..bytes.len() {
        std::fs::write(&path, &bytes[..end]).unwrap();
        assert!(read(&path).is_err(), "cut at {end}");
    }
    std::fs::write(&path, &bytes).unwrap();
    assert!(read(&path).is_ok());
    assert!(read(&folder.path().join("none.onnx")).unwrap_err().to_string().starts_with("cannot read"));
}

#[test]
fn external_data_stays_inside_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), [0u8; 16]).unwrap();
    let external = |location: &str, offset: &str| {
        let entry = |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into() };
        TensorProto {
            data_location: DataLocation::External as i32,
            raw_data: Default::default(),
            external_data: vec![entry("location", location), entry("offset", offset)],
            ..floats("w", &[4], &[])
        }
    };
    let attempt = |location: &str, offset: &str| {
        let (folder, path) =
            written(&model(&[x()], &[external(location, offset)], &[node("Add", &["x", "w"], &["y"])]));
        std::fs::write(folder.path().join("data"), [0u8; 20]).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), folder.path().join("link")).unwrap();
        read(&path).map(|s| s.graph.leaves.len()).map_err(|e| e.to_string())
    };
    assert_eq!(attempt("data", "4"), Ok(2));
    for (location, offset, why) in [
        ("data", "5", "beyond its end"),
        ("data", "18446744073709551615", "beyond its end"),
        ("data", "-1", "no number of bytes"),
        ("../secret", "0", "not a path inside"),
        ("/etc/hostname", "0", "not a path inside"),
        ("link", "0", "leaves the model's folder"),
        (".", "0", "not a file"),
        ("", "0", "not a path inside"),
        ("missing", "0", "No such file"),
    ] {
        let message = attempt(location, offset).unwrap_err();
        assert!(message.contains(why), "{location} {offset}: {message}");
    }
}

/// Functions that call themselves end in an error.
#[test]
fn endless_functions_are_refused() {
    let mut call = node("F", &["x"], &["y"]);
    call.domain = "d".into();
    let function = FunctionProto {
        domain: "d".into(),
        name: "F".into(),
        input: vec!["x".into()],
        output: vec!["y".into()],
        node: vec![call.clone()],
        ..Default::default()
    };
    let mut m = model(&[x()], &[], &[call]);
    m.functions.push(function);
    assert!(refusal(&m).contains("calls itself"));
}

/// Noise in a real file gives a graph or an error, never a panic.
#[test]
fn noise_never_panics() {
    let models = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let rounds = std::env::var("WEFTC_NOISE").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let mut seed = 1u64;
    let mut draw = move |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    let mut refused = 0;
    for file in ["llada_micro_dynamo18", "llada_micro_native23", "llada_micro_legacy17"] {
        let clean = std::fs::read(models.join(format!("{file}.onnx"))).unwrap();
        for _ in 0..rounds / 3 {
            let mut bytes = clean.clone();
            for _ in 0..1 + draw(3) {
                let at = draw(bytes.len());
                bytes[at] = draw(256) as u8;
            }
            std::fs::write(&path, &bytes).unwrap();
            refused += usize::from(read(&path).is_err());
        }
    }
    assert!((1..rounds).contains(&refused), "{refused} of {rounds}");
}
