//! The arrows between modules: who may know whom.  See the code map in src/lib.rs.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules and the crate modules they may name.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("ir", &["ir"]),
    ("error.rs", &["ir"]),
    ("atomic.rs", &["error"]),
    ("rules", &["rules", "ir", "error", "interp"]),
    ("manifest.rs", &["rules", "quantize"]),
    ("interp", &["interp", "ir", "error"]),
    ("cost", &["cost", "ir", "error", "atomic"]),
    ("rewrite", &["rewrite", "cost", "rules", "ir", "error"]),
    ("autodiff.rs", &["ir", "rules", "error"]),
    ("lower.rs", &["ir", "rules", "kernels", "error"]),
    ("schedule", &["ir", "schedule"]),
    ("recompute.rs", &["ir", "error"]),
    ("memory.rs", &["ir", "rules", "lower", "schedule", "error"]),
    ("positions.rs", &["ir", "manifest"]),
    ("adapt", &["adapt", "ir", "rules", "rewrite", "manifest", "rng", "error"]),
    ("method.rs", &["ir", "rules", "manifest", "error"]),
    ("objective.rs", &["ir", "rules", "rewrite", "manifest", "method", "ports", "error"]),
    ("ports.rs", &["ir", "manifest", "error"]),
    ("packing", &["packing", "ir", "manifest", "error"]),
    ("precision.rs", &["ir", "rules", "error"]),
    ("quantize", &["ir", "error"]),
    ("onnx", &["onnx", "ir", "rules", "lower", "manifest", "atomic", "error"]),
    (
        "tools",
        &[
            "tools",
            "compile",
            "cost",
            "precision",
            "autodiff",
            "lower",
            "memory",
            "rewrite",
            "schedule",
            "onnx",
            "rules",
            "manifest",
            "ir",
            "error",
            "atomic",
            "units",
        ],
    ),
    ("runtime", &["runtime", "ir", "error", "atomic"]),
    ("kernels", &["kernels", "ir", "error", "atomic"]),
    (
        "bench",
        &[
            "bench", "compile", "cost", "lower", "tools", "train", "kernels", "runtime", "memory", "manifest", "onnx",
            "rules", "ir", "rng", "error",
        ],
    ),
    ("peft", &["peft", "onnx", "runtime", "ir", "error"]),
    ("profile.rs", &["error"]),
    ("report", &["report", "error", "atomic", "stdout"]),
    (
        "train",
        &[
            "train", "peft", "profile", "rng", "runtime", "kernels", "manifest", "onnx", "ir", "interp", "error",
            "atomic", "stdout", "units",
        ],
    ),
    ("units.rs", &[]),
];

fn sources(path: &Path, out: &mut Vec<PathBuf>) {
    if path.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        entries.iter().for_each(|e| sources(e, out));
    } else if path.extension().is_some_and(|e| e == "rs") {
        out.push(path.to_path_buf());
    }
}

/// The crate modules that a text names: the words after `crate::`.
fn named(text: &str) -> Vec<String> {
    let code = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    code.split("crate::").skip(1).map(word).filter(|w| !w.is_empty()).collect()
}

#[test]
fn modules_name_only_what_lies_below_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for (module, allowed) in MAY_NAME {
        let (file, folder) = (src.join(format!("{module}.rs")), src.join(module));
        let mut files = Vec::new();
        for path in [file, folder] {
            if path.exists() {
                sources(&path, &mut files);
            }
        }
        assert!(!files.is_empty(), "{module} is gone: update the table");
        for file in files {
            for name in named(&fs::read_to_string(&file).unwrap()) {
                if !allowed.contains(&name.as_str()) {
                    wrong.push(format!("{} names crate::{name}", file.strip_prefix(&src).unwrap().display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_onnx_folder_names_protobuf() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for file in files.iter().filter(|f| !f.starts_with(src.join("onnx"))) {
        let text = fs::read_to_string(file).unwrap();
        assert!(!text.contains("prost"), "{} names prost", file.display());
        assert!(!text.contains("onnx::proto"), "{} names a protobuf type", file.display());
    }
}
