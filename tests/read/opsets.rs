//! Forms that operators have in older and newer opsets.

use crate::build::*;
use crate::case::*;
use weftc::ir::text::print;
use weftc::onnx::proto::NodeProto;
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::read::read;

/// Attributes that are operands now, and softmax over all axes behind one.
#[test]
fn forms_of_older_opsets() {
    let x = || real("x", &["batch=2", "3", "seq=4"]);
    let at = |values: &[i64]| indices("i", &["batch=2", "2", "4"], values);
    let mut cases = vec![
        case("Softmax", &[x()]).opset(12),
        case("Softmax", &[x()]).int("axis", -1).opset(11),
        case("Softmax", &[x()]).int("axis", 0).opset(7),
        case("Softmax", &[real("x", &["seq=4"])]).int("axis", 0).opset(9),
        case("LogSoftmax", &[x()]).opset(12),
        case("LogSoftmax", &[x()]).int("axis", 2).opset(9),
        case("Dropout", &[x()]).float("ratio", 0.3).opset(10),
        case("Dropout", &[x()]).float("ratio", 0.3).opset(7),
        case("Clip", &[x()]).float("min", -0.5).float("max", 0.75).opset(10),
        case("Clip", &[x()]).float("max", 0.5).opset(7),
        case("Pad", &[x()]).list("pads", &[0, 1, -1, 0, 2, 0]).float("value", 0.5).opset(10),
        case("Pad", &[x()]).list("pads", &[0, 1, 2, 0, 0, 1]).opset(7),
        case("Slice", &[x()]).list("starts", &[1, -3]).list("ends", &[3, 1 << 40]).list("axes", &[1, 2]).opset(9),
        case("Slice", &[x()]).list("starts", &[0, 1]).list("ends", &[1, 3]).opset(7),
        case("Split", &[x()]).list("split", &[1, 2]).int("axis", 1).results(&["y", "z"]).opset(11),
        case("Squeeze", &[real("x", &["batch=2", "1", "4"])]).list("axes", &[1]).opset(11),
        case("Unsqueeze", &[x()]).list("axes", &[0, 2]).opset(9),
        case("Scatter", &[x(), at(&[0, 1, 0, 1, 2, 2, 2, 0]), real("u", &["batch=2", "2", "4"])])
            .int("axis", 1)
            .opset(10),
        case("OneHot", &[indices("i", &["2", "3"], &[0, 3, 2])])
            .number("depth", 4.0)
            .table(floats("values", &[2], &[-0.5, 2.0]))
            .opset(9)
            .flat(),
        case("Sum", &[x(), real("other", &["3", "1"])]).opset(8),
    ];
    for op in ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"] {
        cases.push(case(op, &[x()]).list("axes", &[1, -1]).int("keepdims", 0).opset(11));
    }
    for opset in [7, 9] {
        cases.push(case("TopK", &[x()]).int("k", 2).int("axis", 1).results(&["y", "at"]).opset(opset));
    }
    check(cases);
}

/// Opset 28's gated activation, which ONNX Runtime does not have yet, beside its definition.
#[test]
fn swiglu_is_a_gate_and_a_product() {
    for alpha in [1.0, 1.5] {
        let operands = ["a", "b"].map(|name| input(name, DataType::Float, &["2", "3"]));
        let text = |opset: i64, nodes: &[NodeProto]| {
            let mut m = model(&operands, &[], nodes);
            m.opset_import[0].version = opset;
            let (_folder, path) = written(&m);
            print(&read(&path).unwrap().graph)
        };
        let spelled = [node("Swish", &["a"], &["s"]).float("alpha", alpha), node("Mul", &["s", "b"], &["y"])];
        let fused = [node("SwiGLU", &["a", "b"], &["y"]).float("alpha", alpha)];
        assert_eq!(text(28, &fused), text(24, &spelled));
    }
}

/// Opsets without `Range` count the places of a tensor of ones; TensorFlow's ends of slices go through floats, with 1e9 where
/// an end is open.
#[test]
fn sizes_take_detours() {
    let x = input("x", DataType::Float, &["batch", "seq", "4"]);
    let sizes = || {
        vec![
            node("Shape", &["x"], &["shape"]),
            node("Gather", &["shape", "one"], &["seq"]),
            node("Unsqueeze", &["seq"], &["n"]).list("axes", &[0]),
        ]
    };
    let tables = [
        ints("one", &[], &[1]),
        ints("starts", &[2], &[0, 0]),
        ints("open", &[1], &[7]),
        ints("axes", &[2], &[1, 2]),
        floats("bounds", &[2], &[-1e9, 1e9]),
    ];
    let count = [
        node("ConstantOfShape", &["n"], &["ones"]).tensor("value", ints("", &[1], &[1])),
        node("NonZero", &["ones"], &["places"]),
        node("Cast", &["places"], &["p"]).int("to", 1),
        node("Unsqueeze", &["p"], &["p3"]).list("axes", &[2]),
        node("Add", &["x", "p3"], &["y"]),
    ];
    let slice = [
        node("Concat", &["n", "open"], &["ends"]).int("axis", 0),
        node("Cast", &["ends"], &["f"]).int("to", 1),
        node("Max", &["f", "bounds"], &["capped"]),
        node("Cast", &["capped"], &["i"]).int("to", 7),
        node("Slice", &["x", "starts", "i", "axes"], &["whole"]),
        node("Neg", &["whole"], &["y"]),
    ];
    let read_as = |rest: &[NodeProto]| {
        let nodes = [&sizes(), rest].concat();
        let mut m = model(std::slice::from_ref(&x), &tables, &nodes);
        m.opset_import[0].version = 10;
        let (_folder, path) = written(&m);
        print(&read(&path).unwrap().graph)
    };
    insta::assert_snapshot!([read_as(&count), read_as(&slice)].join("\n"));
}
