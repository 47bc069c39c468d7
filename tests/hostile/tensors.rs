//! Weights that are not what their headers say.

use crate::build::*;
use crate::refused;
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::proto::*;

/// The exported model with its first two-dimensional weight changed.
fn weight(change: impl FnOnce(&mut TensorProto)) -> Vec<u8> {
    changed(|g| change(g.initializer.iter_mut().find(|t| t.dims.len() == 2).unwrap()))
}

/// The small model with its embedding changed.
fn embedding(change: impl FnOnce(&mut TensorProto)) -> Vec<u8> {
    with(|_, g| change(&mut g.initializer[0]))
}

refused! {
    missing_initializers => |_| with(|_, g| g.initializer.clear());
    too_few_bytes => |_| weight(|t| t.raw_data.truncate(8));
    too_many_bytes => |_| weight(|t| t.raw_data = [&t.raw_data[..], &[0; 4]].concat().into());
    no_bytes => |_| embedding(|t| t.raw_data.clear());
    negative_size => |_| weight(|t| t.dims[0] = -1);
    huge_size => |_| weight(|t| t.dims[0] = i64::MAX);
    huge_product => |_| weight(|t| t.dims = vec![i64::MAX, i64::MAX]);
    huge_beside_zero => |_| embedding(|t| { t.dims = vec![0, i64::MAX]; t.raw_data.clear() });
    wraps_to_its_bytes => |_| embedding(|t| t.dims = vec![1 << 62, 32, 4]);
    thousand_axes => |_| embedding(|t| t.dims = [vec![1; 1000], t.dims.clone()].concat());
    undefined_type => |_| weight(|t| t.data_type = 0);
    unknown_type => |_| weight(|t| t.data_type = 99);
    string_data => |_| weight(|t| {
        t.data_type = DataType::String.into();
        t.raw_data.clear();
        t.string_data = vec!["x".into()];
    });
    float8_data => |_| weight(|t| t.data_type = DataType::Float8e4m3fn.into());
    other_typed_field => |_| embedding(|t| { t.raw_data.clear(); t.int64_data = vec![1; 128] });
    twice_the_same_name => |_| with(|_, g| g.initializer.push(floats("head.weight", &[4, 32])));
    no_name => |_| with(|_, g| g.initializer.push(floats("", &[4])));
    sparse => |_| with(|_, g| {
        g.initializer.remove(0);
        g.sparse_initializer.push(SparseTensorProto {
            values: Some(floats("embed.weight", &[2])),
            indices: Some(ints("", &[0, 5])),
            dims: vec![32, 4],
        });
    });
    wrong_constant => |_| through(vec![
        node("Constant", &[], &["c"]).with(
            "value",
            attribute_proto::AttributeType::Tensor,
            |a| a.t = Some(TensorProto { dims: vec![3], ..floats("", &[2]) }),
        ),
        named("step", node("Add", &["hidden", "c"], &["last"])),
    ]);
}
