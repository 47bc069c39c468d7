//! train.onnx keeps its contract: inputs, outputs, functions, manifest; read back by an independent decoder.

use onnx_protobuf::ModelProto;
use protobuf::Message;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use weftc::compile::{Compiled, Options, compile};
use weftc::manifest::{KEY, Manifest, Role};
use weftc::rules::Target;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn options(file: &str, mask_id: i64, target: Target) -> Options {
    Options { mask_id: Some(mask_id), target, ..Options::new(models().join(file)) }
}

fn compiled(file: &str, mask_id: i64, target: Target) -> (Compiled, ModelProto) {
    let compiled = compile(&options(file, mask_id, target)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let model = ModelProto::parse_from_bytes(&compiled.encode(&models()).unwrap()).unwrap();
    (compiled, model)
}

const MODELS: [(&str, i64); 5] = [
    ("llada_micro_dynamo18.onnx", 31),
    ("llada_micro_native23.onnx", 31),
    ("llada_micro_legacy17.onnx", 31),
    ("dream_micro_dynamo18.onnx", 31),
    ("sudoku.onnx", 15),
];

#[test]
fn inputs_outputs_functions_and_manifest() {
    for (file, mask_id) in MODELS {
        for target in [Target::Portable, Target::Cpu] {
            let (_, model) = compiled(file, mask_id, target);
            let manifest = model.metadata_props.iter().find(|p| p.key == KEY).unwrap();
            let manifest: Manifest = serde_json::from_str(&manifest.value).unwrap();
            let trainable: Vec<&str> =
                manifest.parameters.iter().filter(|p| p.role == Role::Trainable).map(|p| p.name.as_str()).collect();
            assert!(!trainable.is_empty(), "{file}");
            let graph = &model.graph;

            let inputs: Vec<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
            let expected = ["input_ids", "answer_mask", "t", "u"];
            assert_eq!(inputs, [&expected[..], &trainable].concat(), "{file}");
            let defaults: BTreeSet<&str> = graph.initializer.iter().map(|i| i.name.as_str()).collect();
            assert!(trainable.iter().all(|t| defaults.contains(t)), "{file}: every trainable input has a default");

            let outputs: Vec<String> = graph.output.iter().map(|o| o.name.clone()).collect();
            let fixed = ["loss", "loss_sum", "loss_count", "entropy", "mask_rate", "mask", "token_loss"];
            let gradients = trainable.iter().map(|t| format!("grad/{t}"));
            let expected: Vec<String> = fixed.iter().map(|s| s.to_string()).chain(gradients).collect();
            assert_eq!(outputs, expected, "{file}");

            let functions: BTreeSet<&str> = model.functions.iter().map(|f| f.name.as_str()).collect();
            // Where there are kernels the head is a function, elsewhere blocks of the graph.
            let head: &[&str] = if target == Target::Cpu { &["HeadEntropy", "HeadExpect", "HeadGradW"] } else { &[] };
            for name in ["MaskRate", "MaskSampler", "RmsNorm", "RmsNormGrad", "AdamW"].iter().chain(head) {
                assert!(functions.contains(name), "{file} lacks ai.weft.{name}");
            }
            assert!(model.functions.iter().all(|f| f.domain == "ai.weft"));
            let domains: BTreeSet<&str> = graph.node.iter().map(|n| n.domain.as_str()).collect();
            assert!(target == Target::Cpu || !domains.contains("com.microsoft"), "{file}: portable means standard");
            let versions: Vec<_> = model.opset_import.iter().map(|o| (o.domain.as_str(), o.version)).collect();
            assert!(versions.contains(&("", 21)) && versions.contains(&("ai.weft", 1)), "{file}: {versions:?}");
            assert_eq!(model.ir_version, 10);
        }
    }
}

#[test]
fn every_fused_node_has_its_function_and_every_value_a_producer() {
    for (file, mask_id) in MODELS {
        let (_, model) = compiled(file, mask_id, Target::Cpu);
        let graph = &model.graph;
        let functions: BTreeSet<&str> = model.functions.iter().map(|f| f.name.as_str()).collect();
        let mut known: BTreeSet<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
        known.extend(graph.initializer.iter().map(|i| i.name.as_str()));
        for node in &graph.node {
            assert!(node.domain != "ai.weft" || functions.contains(node.op_type.as_str()), "{file}: {}", node.op_type);
            for input in node.input.iter().filter(|i| !i.is_empty()) {
                assert!(known.contains(input.as_str()), "{file}: {} reads {input} before it exists", node.name);
            }
            for output in &node.output {
                assert!(known.insert(output), "{file}: {output} is produced twice");
            }
        }
        assert!(graph.output.iter().all(|o| known.contains(o.name.as_str())), "{file}: an output has no producer");
    }
}

#[test]
fn one_entropy_pass_one_sampler_one_loss() {
    for (file, mask_id) in MODELS {
        let (_, model) = compiled(file, mask_id, Target::Cpu);
        for name in ["HeadEntropy", "MaskRate", "MaskSampler", "HeadExpect", "HeadGradW"] {
            let count = model.graph.node.iter().filter(|n| n.op_type == name).count();
            assert_eq!(count, 1, "{file}: {name}");
        }
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    for (file, mask_id) in MODELS {
        let bytes = |_| compile(&options(file, mask_id, Target::Cpu)).unwrap().encode(&models()).unwrap();
        assert!(bytes(0) == bytes(1), "{file}");
    }
}

#[test]
fn the_source_is_named_relative_to_the_output() {
    let folder = tempfile::tempdir_in(models().parent().unwrap().join("target")).unwrap();
    let compiled = compile(&options("sudoku.onnx", 15, Target::Cpu)).unwrap();
    let bytes = compiled.encode(folder.path()).unwrap();
    let model = ModelProto::parse_from_bytes(&bytes).unwrap();
    let manifest = model.metadata_props.iter().find(|p| p.key == KEY).unwrap();
    let manifest: Manifest = serde_json::from_str(&manifest.value).unwrap();
    assert!(folder.path().join(&manifest.source.file).exists(), "{}", manifest.source.file);
    assert!(!Path::new(&manifest.source.file).is_absolute());
}

/// What is refused, and in which words.
fn refusal(change: impl FnOnce(&mut Options)) -> (u8, String) {
    let mut options = options("llada_micro_dynamo18.onnx", 31, Target::Cpu);
    change(&mut options);
    let error = match compile(&options) {
        Ok(_) => panic!("was accepted"),
        Err(e) => e,
    };
    let text = error.to_string().replace(&models().display().to_string(), "models");
    (error.exit_code(), text)
}

#[test]
fn refusals() {
    let mut out = String::new();
    let mut show =
        |name: &str, (code, text): (u8, String)| out.push_str(&format!("# {name}: exit code {code}\n{text}\n\n"));
    show("no mask id", refusal(|o| o.mask_id = None));
    show("mask id outside the vocabulary", refusal(|o| o.mask_id = Some(32)));
    show(
        "everything wrong at once",
        refusal(|o| {
            o.method = "wft".into();
            o.mask_id = Some(-1);
            o.logits_shift = 2;
            for (name, value) in
                [("t_eps", "1.5"), ("entropy_transform", "cube"), ("beta_scope", "row"), ("loss_norm", "mean")]
            {
                o.settings.insert(name.into(), value.into());
            }
        }),
    );
    show("unknown token input", refusal(|o| o.token_input = Some("tokens".into())));
    show("unknown logits output", refusal(|o| o.logits_output = Some("scores".into())));
    show("missing file", refusal(|o| o.model = "no_such_model.onnx".into()));
    insta::assert_snapshot!(out);
}
