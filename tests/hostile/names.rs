//! Names that are no text, that control terminals, or that are our own.

use crate::build::*;
use crate::{outcome, refused};
use onnx_protobuf::ModelProto as Written;
use prost::Message;
use protobuf::Message as _;
use std::collections::BTreeSet;
use weftc::onnx::proto::tensor_proto::DataType;

/// The small model with its head's weight under another name.
fn head(name: &str) -> Vec<u8> {
    with(|_, g| {
        g.initializer[1].name = name.into();
        g.node[1].input[1] = name.into();
    })
}

/// The small model with its tokens under another name.
fn tokens(name: &str) -> Vec<u8> {
    with(|_, g| {
        g.input[0].name = name.into();
        g.node[0].input[1] = name.into();
    })
}

/// The bytes of a name replaced by others of the same length.
fn raw(from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = small().encode_to_vec();
    let places: Vec<usize> = (0..bytes.len() - from.len()).filter(|k| bytes[*k..].starts_with(from)).collect();
    assert!(!places.is_empty() && from.len() == to.len());
    places.iter().for_each(|k| bytes[*k..*k + to.len()].copy_from_slice(to));
    bytes
}

refused! {
    not_utf8 => |_| raw(b"hidden", b"\xff\xfe\x80\xc0ab");
    controls => |_| through(vec![named("\x1b[31mred\r\n\x07\u{202e}", node("Foo\n\nerror: all is lost", &["hidden"], &["last"]))]);
    endless => |_| through(vec![named(&"n".repeat(1 << 20), node(&"Op".repeat(1 << 19), &["hidden"], &["last"]))]);
    empty => |_| tokens("");
    tokens_called_t => |_| tokens("t");
    tokens_called_u => |_| tokens("u");
    weight_called_answer_mask => |_| head("answer_mask");
    weight_called_loss => |_| head("loss");
    weight_called_token_loss => |_| head("token_loss");
    weight_called_as_a_gradient => |_| head("grad/embed.weight");
    input_called_as_a_gradient => |_| tokens("grad/head.weight");
}

/// Odd names that are nobody else's go through, and every name of the result is one value's.
#[test]
fn odd_names_stay_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let odd = ["a/b", "grad/x", "matmul_0", "gather_0", "ünï.cödé", "seq", "batch", "A B", "..", "weft.manifest", "0"];
    for name in odd {
        for bytes in [head(name), tokens(name)] {
            std::fs::write(&path, bytes).unwrap();
            let written = outcome(&path, |_| {}).unwrap_or_else(|e| panic!("{name}: {e}"));
            let graph = Written::parse_from_bytes(&written).unwrap().graph.unwrap();
            let mut values: BTreeSet<&str> = BTreeSet::new();
            let inputs = graph.input.iter().map(|i| i.name.as_str());
            let weights = graph.initializer.iter().map(|i| i.name.as_str());
            values.extend(inputs.chain(weights));
            assert!(values.contains(name), "{name} is gone");
            for output in graph.node.iter().flat_map(|n| &n.output) {
                assert!(values.insert(output), "{name}: {output} stands for two values");
            }
        }
    }
}

/// Sizes named like the step's own inputs or like other axes are still only sizes.
#[test]
fn odd_sizes_are_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    for (batch, seq) in [("t", "u"), ("seq", "batch"), ("", "?"), ("1x", "-"), ("batch size", "batch-size"), ("2", "7")]
    {
        let bytes = with(|_, g| {
            g.input[0] = value("input_ids", DataType::Int64, &[batch, seq]);
            g.output.iter_mut().for_each(|o| o.r#type = None);
        });
        std::fs::write(&path, bytes).unwrap();
        outcome(&path, |_| {}).unwrap_or_else(|e| panic!("{batch} {seq}: {e}"));
    }
}
