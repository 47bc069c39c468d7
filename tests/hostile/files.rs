//! Files that are no model at all, or the torn remains of one.

use crate::build::*;
use crate::{outcome, refused, rendered};
use prost::Message;

/// What the mutations start from compiles: each refusal is the mutation's.
#[test]
fn the_models_compile_unbroken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    for bytes in [small().encode_to_vec(), exported(), through(vec![step("Identity")])] {
        std::fs::write(&path, bytes).unwrap();
        assert!(!outcome(&path, |_| {}).unwrap().is_empty());
    }
}

/// The first `part` of the exported file.
fn cut(part: f64) -> Vec<u8> {
    let mut bytes = exported();
    bytes.truncate((bytes.len() as f64 * part) as usize);
    bytes
}

/// A length-delimited field.
fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

/// `If` inside `If`, as deep as wanted: no writer would, so the bytes are laid by hand.
fn nested_branches(depth: usize) -> Vec<u8> {
    let mut graph = vec![];
    for _ in 0..depth {
        // GraphProto.node = 1, NodeProto.op_type = 4 and attribute = 5, AttributeProto.g = 6.
        let attribute = [field(1, b"then_branch"), field(6, &graph)].concat();
        graph = field(1, &[field(4, b"If"), field(5, &attribute)].concat());
    }
    [field(8, &[0x10, 23]), field(7, &graph)].concat()
}

refused! {
    empty_file => |_| vec![];
    text_file => |_| b"This is not the model you are looking for.\n".to_vec();
    web_page => |_| b"<!DOCTYPE html><html><body>404</body></html>".to_vec();
    zip_file => |_| b"PK\x03\x04\x14\x00\x00\x00\x08\x00archive/data.pkl".to_vec();
    git_lfs_pointer => |_| b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n".to_vec();
    safetensors_file => |_| [&16u64.to_le_bytes()[..], b"{\"a\":{}}        "].concat();
    gguf_file => |_| b"GGUF\x03\x00\x00\x00".to_vec();
    cut_after_ten_bytes => |_| exported()[..10].to_vec();
    cut_in_the_nodes => |_| cut(0.2);
    cut_in_the_weights => |_| cut(0.6);
    cut_before_the_last_byte => |_| { let mut bytes = exported(); bytes.pop(); bytes };
    other_protobuf => |_| floats("w", &[2, 2]).encode_to_vec();
    huge_length_prefix => |_| [&[0x3a][..], &[0xff; 9], &[0x01]].concat();
    groups_without_end => |_| [0xa3, 0x01].repeat(1 << 19);
    branches_nested_1000_deep => |_| nested_branches(1000);
    training_graph => |folder| {
        let path = folder.join("source.onnx");
        std::fs::write(&path, small().encode_to_vec()).unwrap();
        outcome(&path, |_| {}).unwrap()
    };
    no_graph => |_| { let mut m = small(); m.graph = None; m.encode_to_vec() };
    no_opset => |_| with(|m, _| m.opset_import.clear());
    opset_of_another_domain_only => |_| with(|m, _| m.opset_import = vec![opset("com.microsoft", 1)]);
    opset_5 => |_| with(|m, _| m.opset_import = vec![opset("", 5)]);
    opset_99 => |_| with(|m, _| m.opset_import = vec![opset("", 99)]);
    opset_least => |_| with(|m, _| m.opset_import = vec![opset("", i64::MIN)]);
    two_opsets => |_| with(|m, _| m.opset_import = vec![opset("", 18), opset("ai.onnx", 23)]);
}

#[test]
fn missing_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    insta::assert_snapshot!(rendered(&path, outcome(&path, |_| {})));
}

#[test]
fn a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::create_dir(&path).unwrap();
    insta::assert_snapshot!(rendered(&path, outcome(&path, |_| {})));
}

/// Every 500th cut of a real file.
#[test]
fn every_cut_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let bytes = exported();
    for end in (0..bytes.len()).step_by(500) {
        std::fs::write(&path, &bytes[..end]).unwrap();
        let error = outcome(&path, |_| {}).map(|b| b.len()).unwrap_err();
        assert_eq!(error.exit_code(), 3, "cut at {end}: {error}");
    }
}
