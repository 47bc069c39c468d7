//! Exported models are read with every weight under its PyTorch name, whatever the exporter.

use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weftc::ir::{DType, Dim, Leaf, LeafKind};
use weftc::onnx::read::{Source, read};
use weftc::onnx::weights;

pub fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

/// The larger collection beside the checkout, or where `WEFTC_SHARED` says.
pub fn shared() -> Option<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = std::env::var_os("WEFTC_SHARED").map_or(beside, PathBuf::from);
    folder.join("models").is_dir().then_some(folder)
}

fn params(source: &Source) -> BTreeMap<&str, &Leaf> {
    let params = source.graph.leaves.iter().filter(|l| l.kind == LeafKind::Param);
    params.map(|l| (l.name.as_str(), l)).collect()
}

fn shape(leaf: &Leaf) -> Vec<usize> {
    let mut shape: Vec<usize> = leaf.ty.shape.iter().map(|d| d.known().unwrap() as usize).collect();
    if leaf.transposed {
        shape.reverse();
    }
    shape
}

/// A weight as PyTorch holds it.
fn values(leaf: &Leaf) -> Vec<f32> {
    let bytes = weights::bytes(leaf).unwrap();
    let stored: Vec<f32> = bytes.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
    match (leaf.transposed, shape(leaf).as_slice()) {
        (true, &[rows, columns]) => (0..rows * columns).map(|k| stored[k % columns * rows + k / columns]).collect(),
        _ => stored,
    }
}

/// The names of a model: those of its layers, under `block`, and the rest.
fn expected_names(rest: &[&str], block: &str, layers: usize, inner: &[&str]) -> Vec<String> {
    let in_blocks = (0..layers).flat_map(|k| inner.iter().map(move |n| format!("{block}.{k}.{n}")));
    let mut names: Vec<String> = rest.iter().map(|s| s.to_string()).chain(in_blocks).collect();
    names.sort();
    names
}

fn llada(layers: usize) -> Vec<String> {
    let inner = ["attn_norm", "ff_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"];
    let inner: Vec<String> = inner.iter().map(|m| format!("{m}.weight")).collect();
    let inner: Vec<&str> = inner.iter().map(String::as_str).collect();
    let rest = ["transformer.wte.weight", "transformer.ln_f.weight", "transformer.ff_out.weight"];
    expected_names(&rest, "transformer.blocks", layers, &inner)
}

/// The tied embedding has the name that the exporter kept, the head's.
fn dream(layers: usize) -> Vec<String> {
    let projections = ["q_proj", "k_proj", "v_proj"].map(|p| ["weight", "bias"].map(|w| format!("self_attn.{p}.{w}")));
    let mlp = ["gate_proj", "up_proj", "down_proj"].map(|p| format!("mlp.{p}.weight"));
    let mut inner: Vec<&str> = projections.iter().flatten().chain(&mlp).map(String::as_str).collect();
    inner.extend(["self_attn.o_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight"]);
    expected_names(&["lm_head.weight", "model.norm.weight"], "model.layers", layers, &inner)
}

#[test]
fn weights_have_their_pytorch_names() {
    for (file, expected) in [
        ("llada_micro_dynamo18", llada(2)),
        ("llada_micro_native23", llada(2)),
        ("llada_micro_legacy17", llada(2)),
        ("dream_micro_dynamo18", dream(2)),
        ("sudoku", llada(3)),
    ] {
        let source = read(&models().join(format!("{file}.onnx"))).unwrap_or_else(|e| panic!("{e}"));
        let names: Vec<&str> = params(&source).into_keys().collect();
        assert_eq!(names, expected, "{file}");
        let inputs: Vec<String> = source
            .graph
            .leaves
            .iter()
            .filter(|l| l.kind == LeafKind::Input)
            .map(|l| format!("{} {}", l.name, l.ty))
            .collect();
        assert_eq!(inputs, ["input_ids i64[batch seq]"], "{file}");
        assert_eq!(source.sha256.len(), 64);
    }
}

#[test]
fn exporters_agree_on_every_number() {
    let source = |file: &str| read(&models().join(file)).unwrap_or_else(|e| panic!("{e}"));
    let dynamo = source("llada_micro_dynamo18.onnx");
    for other in ["llada_micro_native23.onnx", "llada_micro_legacy17.onnx"] {
        let other = source(other);
        for ((name, a), b) in params(&dynamo).into_iter().zip(params(&other).into_values()) {
            assert_eq!((shape(a), values(a)), (shape(b), values(b)), "{name}");
        }
    }
}

/// The histograms show that shape arithmetic is gone and composites are there.
#[test]
fn what_is_read() {
    let mut text = String::new();
    for file in ["llada_micro_dynamo18", "llada_micro_native23", "llada_micro_legacy17", "dream_micro_dynamo18"] {
        let source = read(&models().join(format!("{file}.onnx"))).unwrap_or_else(|e| panic!("{e}"));
        text += &format!("{file}: opset {}, {}\n  {:?}\n", source.opset, source.producer, source.graph.histogram());
        text += &source.mended.iter().map(|m| format!("  {m}\n")).collect::<String>();
    }
    insta::assert_snapshot!(text);
}

/// Weights equal those that PyTorch trained on, number by number.
#[test]
fn shared_models_hold_the_goldens_weights() {
    let Some(folder) = shared() else { return println!("skipped: no shared folder beside the checkout") };
    for (model, golden) in [
        ("llada_nano_sdpa__dynamo18", "nano_weft_full"),
        ("llada_nano_sdpa__dynamo25", "nano_weft_full"),
        ("llada_nano_sdpa__legacy17", "nano_weft_full"),
        ("llada_nano_native__dynamo23", "nano_weft_full"),
        ("llada_tiny_sdpa__dynamo18", "tiny_weft_full"),
        ("llada_tiny_native__dynamo23", "tiny_weft_full"),
        ("dream_nano_sdpa__dynamo18", "dream_nano_weft_full"),
        ("dream_nano_native__dynamo23", "dream_nano_weft_full"),
    ] {
        let source = read(&folder.join(format!("models/{model}.onnx"))).unwrap_or_else(|e| panic!("{e}"));
        let bytes = std::fs::read(folder.join(format!("goldens/{golden}.safetensors"))).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let mut names: Vec<&str> = golden.names().into_iter().filter_map(|n| n.strip_prefix("init.")).collect();
        names.sort();
        let params = params(&source);
        assert_eq!(params.keys().copied().collect::<Vec<_>>(), names, "{model}");
        for (name, leaf) in params {
            let want = golden.tensor(&format!("init.{name}")).unwrap();
            let want_values: Vec<f32> =
                want.data().chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
            assert_eq!((shape(leaf).as_slice(), values(leaf)), (want.shape(), want_values), "{model}: {name}");
        }
    }
}

/// Hugging Face and optimum exports: read, and no exporter's name left on a weight.
#[test]
fn shared_hugging_face_models_are_read() {
    let Some(folder) = shared() else { return println!("skipped: no shared folder beside the checkout") };
    for (model, weights) in [
        ("hf_bert_eager__dynamo23", 42),
        ("hf_bert_sdpa__dynamo18", 42),
        ("hf_qwen2_bidir_sdpa__legacy17", 26),
        ("optimum_bert", 42),
    ] {
        let source = read(&folder.join(format!("models/{model}.onnx"))).unwrap_or_else(|e| panic!("{e}"));
        let params = params(&source);
        assert_eq!(params.len(), weights, "{model}");
        for name in params.keys() {
            assert!(name.ends_with(".weight") || name.ends_with(".bias"), "{model}: {name}");
        }
        let logits = source.graph.outputs.iter().find(|(n, _)| n == "logits").unwrap().1;
        let ty = source.graph.tensor_type(logits).unwrap();
        assert_eq!((ty.dtype, ty.rank(), &ty.shape[2]), (DType::F32, 3, &Dim::from(64)), "{model}");
    }
}
