//! Models whose inputs and outputs are not those of a language model, and masks that do not fit.

use crate::build::*;
use crate::{refusal_under, refused};
use prost::Message;
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::proto::*;

/// The small model with another type of input, cast to indices.
fn tokens(input: ValueInfoProto) -> Vec<u8> {
    with(|_, g| {
        g.input[0] = input;
        g.node.insert(0, node("Cast", &["input_ids"], &["ids"]).int("to", DataType::Int64 as i64));
        g.node[1].input[1] = "ids".into();
    })
}

/// The small model with another input, and no word on its output's type.
fn undeclared(input: ValueInfoProto) -> Vec<u8> {
    with(|_, g| {
        g.input[0] = input;
        g.output[0].r#type = None;
    })
}

fn ids(dtype: DataType, dims: &[&str]) -> ValueInfoProto {
    value("input_ids", dtype, dims)
}

fn tensor(dtype: DataType) -> TypeProto {
    ids(dtype, &["batch", "seq"]).r#type.unwrap()
}

refused! {
    float_tokens => |_| tokens(ids(DataType::Float, &["batch", "seq"]));
    string_tokens => |_| tokens(ids(DataType::String, &["batch", "seq"]));
    tokens_of_rank_1 => |_| undeclared(ids(DataType::Int64, &["seq"]));
    tokens_of_rank_3 => |_| undeclared(ids(DataType::Int64, &["batch", "seq", "4"]));
    tokens_without_a_type => |_| with(|_, g| g.input[0].r#type = None);
    tokens_without_a_shape => |_| with(|_, g| {
        let t = type_proto::Tensor { elem_type: DataType::Int64.into(), shape: None };
        g.input[0] = typed("input_ids", type_proto::Value::TensorType(t));
    });
    tokens_of_huge_size => |_| with(|_, g| g.input[0] = ids(DataType::Int64, &["9223372036854775807", "9223372036854775807"]));
    sequence_input => |_| tokens(typed("input_ids", type_proto::Value::SequenceType(Box::new(type_proto::Sequence {
        elem_type: Some(Box::new(tensor(DataType::Int64))),
    }))));
    optional_input => |_| tokens(typed("input_ids", type_proto::Value::OptionalType(Box::new(type_proto::Optional {
        elem_type: Some(Box::new(tensor(DataType::Int64))),
    }))));
    no_inputs => |_| with(|_, g| g.input.clear());
    input_declared_twice => |_| with(|_, g| g.input.push(ids(DataType::Int64, &["batch", "seq"])));
    vocabulary_unknown => |_| with(|_, g| {
        g.input.push(value("heads", DataType::Float, &["4", "vocabulary"]));
        g.node[1].input[1] = "heads".into();
        g.output[0] = value("logits", DataType::Float, &["batch", "seq", "vocabulary"]);
    });
    logits_of_rank_2 => |_| with(|_, g| {
        g.initializer.push(ints("flat", &[-1, 32]));
        g.node.push(node("Reshape", &["logits", "flat"], &["rows"]));
        g.output[0] = value("rows", DataType::Float, &["rows", "32"]);
    });
    logits_of_integers => |_| with(|_, g| {
        g.node.push(node("Cast", &["logits"], &["rounded"]).int("to", DataType::Int64 as i64));
        g.output[0] = value("rounded", DataType::Int64, &["batch", "seq", "32"]);
    });
    logits_apart_from_the_tokens => |_| with(|_, g| {
        g.input.push(value("states", DataType::Float, &["batch", "seq", "4"]));
        g.node[1].input[0] = "states".into();
    });
    logits_are_an_input => |_| with(|_, g| {
        g.input.push(value("scores", DataType::Float, &["batch", "seq", "32"]));
        g.output[0].name = "scores".into();
    });
    output_declared_otherwise => |_| with(|_, g| g.output[0] = value("logits", DataType::Float, &["batch", "seq", "99"]));
    output_of_another_type => |_| with(|_, g| g.output[0] = value("logits", DataType::Double, &["batch", "seq", "32"]));
    output_of_another_rank => |_| with(|_, g| g.output[0] = value("logits", DataType::Float, &["batch", "32"]));
    one_size_for_both_axes => |_| with(|_, g| {
        g.input[0] = ids(DataType::Int64, &["n", "m"]);
        g.input.push(value("bias", DataType::Float, &["n", "n", "32"]));
        g.node[1].output[0] = "raw".into();
        g.node.push(named("bias", node("Add", &["raw", "bias"], &["logits"])));
    });
}

#[test]
fn no_mask_id() {
    insta::assert_snapshot!(refusal_under(|_| small().encode_to_vec(), |o| o.mask_id = None));
}

#[test]
fn mask_id_beyond_the_vocabulary() {
    insta::assert_snapshot!(refusal_under(|_| small().encode_to_vec(), |o| o.mask_id = Some(i64::MAX)));
}

#[test]
fn mask_id_negative() {
    insta::assert_snapshot!(refusal_under(|_| small().encode_to_vec(), |o| o.mask_id = Some(i64::MIN)));
}
