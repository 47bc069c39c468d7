//! `Loop` and `Scan`, unrolled, beside ONNX Runtime.

use crate::build::*;
use crate::case::*;
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::proto::{GraphProto, NodeProto, ValueInfoProto};

fn body(inputs: &[&ValueInfoProto], outputs: &[&str], nodes: Vec<NodeProto>) -> GraphProto {
    let typed = |name: &&str| {
        let boolean = *name == "on";
        input(name, if boolean { DataType::Bool } else { DataType::Float }, &[])
    };
    let mut graph = GraphProto { name: "body".into(), node: nodes, ..Default::default() };
    graph.input = inputs.iter().map(|i| (*i).clone()).collect();
    graph.output = outputs.iter().map(typed).collect();
    for output in graph.output.iter_mut().filter(|o| o.name != "on") {
        output.r#type.as_mut().unwrap().value = untyped_shape();
    }
    graph
}

/// A float tensor of whatever shape.
fn untyped_shape() -> Option<weftc::onnx::proto::type_proto::Value> {
    let tensor = weftc::onnx::proto::type_proto::Tensor { elem_type: DataType::Float as i32, shape: None };
    Some(weftc::onnx::proto::type_proto::Value::TensorType(tensor))
}

fn counter() -> [ValueInfoProto; 2] {
    [input("k", DataType::Int64, &[]), input("was", DataType::Bool, &[])]
}

/// x <- x + tanh(x w_k), with all x on the way as a second result; w is stacked and read from around the loop, as JAX's scan
/// over layers is exported.
fn layers(steps: &[i64], stop: Option<i64>) -> Case {
    let x = input("state", DataType::Float, &["batch", "3"]);
    let [k, was] = counter();
    let mut nodes = vec![
        node("Gather", &["w", "k"], &["w_k"]),
        node("MatMul", &["state", "w_k"], &["z"]),
        node("Tanh", &["z"], &["t"]),
        node("Add", &["state", "t"], &["next"]),
        node("Identity", &["next"], &["each"]),
    ];
    nodes.push(match stop {
        Some(_) => node("Less", &["k", "stop"], &["on"]),
        None => node("Identity", &["was"], &["on"]),
    });
    let mut case = case("Loop", &[real("x", &["batch=2", "3"]), real("w", &["4", "3", "3"])]);
    case = case.numbers_at("steps", steps).truth("first");
    if let Some(stop) = stop {
        case = case.numbers_at("stop", &[stop]);
    }
    let operands = if steps.is_empty() { ["", "first", "x"] } else { ["steps", "first", "x"] };
    let outputs = ["on", "next", "each"];
    case.operands(&operands).results(&["y", "all"]).graph("body", body(&[&k, &was, &x], &outputs, nodes))
}

#[test]
fn loops_are_unrolled() {
    check(vec![layers(&[4], None), layers(&[3], Some(1)), layers(&[], Some(2))]);
}

/// s <- s w_k + x_k, along an axis, forwards or backwards.
#[test]
fn scans_are_unrolled() {
    let scan = |axis: i64, back: i64, out: i64| {
        let [s, x, w] = [("s", "3"), ("x_k", "3"), ("w_k", "1")].map(|(n, d)| input(n, DataType::Float, &["batch", d]));
        let nodes = vec![
            node("Mul", &["s", "w_k"], &["kept"]),
            node("Add", &["kept", "x_k"], &["next"]),
            node("Sin", &["next"], &["each"]),
        ];
        let dims: Vec<&str> = if axis == 0 { vec!["4", "batch=2", "3"] } else { vec!["batch=2", "4", "3"] };
        let fed = [real("first", &["batch=2", "3"]), real("x", &dims), real("w", &["4", "batch=2", "1"])];
        case("Scan", &fed)
            .results(&["y", "all"])
            .int("num_scan_inputs", 2)
            .list("scan_input_axes", &[axis, 0])
            .list("scan_input_directions", &[back, 0])
            .list("scan_output_axes", &[out])
            .list("scan_output_directions", &[back])
            .graph("body", body(&[&s, &x, &w], &["next", "each"], nodes))
    };
    check(vec![scan(0, 0, 0), scan(1, 0, 1), scan(1, 1, 2)]);
}

#[test]
fn steps_must_be_known() {
    let endless = {
        let [k, was] = counter();
        let x = input("state", DataType::Float, &["batch"]);
        let nodes = vec![node("Neg", &["state"], &["next"]), node("Cast", &["next"], &["on"]).int("to", 9)];
        case("Loop", &[real("x", &["1"])])
            .truth("first")
            .operands(&["", "first", "x"])
            .graph("body", body(&[&k, &was, &x], &["on", "next"], nodes))
    };
    let tokens = {
        let [s, x] = [("s", "3"), ("x_k", "3")].map(|(n, d)| input(n, DataType::Float, &["batch", d]));
        let nodes = vec![node("Add", &["s", "x_k"], &["next"])];
        case("Scan", &[real("first", &["batch=2", "3"]), real("x", &["seq=4", "batch=2", "3"])])
            .int("num_scan_inputs", 1)
            .graph("body", body(&[&s, &x], &["next"], nodes))
    };
    let old = case("Scan", &[real("x", &["4"])]).int("num_scan_inputs", 1).opset(8);
    let narrow = {
        let [k, was] = counter();
        let nodes = vec![node("Identity", &["was"], &["on"])];
        case("Loop", &[real("x", &["2"])])
            .numbers_at("steps", &[2])
            .truth("first")
            .operands(&["steps", "first", "x"])
            .graph("body", body(&[&k, &was], &["on"], nodes))
    };
    insta::assert_snapshot!([endless, tokens, narrow, old].map(|case| case.refusal()).join("\n"));
}
