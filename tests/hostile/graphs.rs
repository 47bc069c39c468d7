//! Graphs that do not hang together: order, names, operators, functions and branches.

use crate::build::*;
use crate::refused;
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::proto::*;

/// A function `d::F` whose node `inner` is this one.
fn body(inner: NodeProto) -> Vec<u8> {
    calling(vec![function("d", "F", &["x"], &["y"], vec![named("inner", inner)])])
}

fn call(name: &str, input: &str, output: &str) -> NodeProto {
    of_domain("d", node(name, &[input], &[output]))
}

/// Each function calls the one below twice: 2^depth nodes in a few lines.
pub fn laughs(depth: usize) -> Vec<u8> {
    let level = |k: usize| {
        let below = if k + 1 == depth { "Neg".to_string() } else { format!("F{}", k + 1) };
        let domain = if k + 1 == depth { "" } else { "d" };
        let nodes = [("x", "h"), ("h", "y")].map(|(i, o)| of_domain(domain, node(&below, &[i], &[o])));
        function("d", &if k == 0 { "F".into() } else { format!("F{k}") }, &["x"], &["y"], nodes.to_vec())
    };
    calling((0..depth).map(level).collect())
}

/// A chain of functions, each calling the next.
fn chain(depth: usize) -> Vec<u8> {
    let name = |k: usize| if k == 0 { "F".to_string() } else { format!("F{k}") };
    let level = |k: usize| function("d", &name(k), &["x"], &["y"], vec![call(&name(k + 1), "x", "y")]);
    let last = function("d", &name(depth), &["x"], &["y"], vec![node("Neg", &["x"], &["y"])]);
    calling((0..depth).map(level).chain([last]).collect())
}

fn branch(output: &str, nodes: Vec<NodeProto>) -> GraphProto {
    let output = vec![value(output, DataType::Float, &[])];
    GraphProto { node: nodes, output, ..Default::default() }
}

fn truth() -> TensorProto {
    TensorProto { data_type: DataType::Bool.into(), int64_data: vec![], int32_data: vec![1], ..int("truth", 1) }
}

/// A loop over `hidden` of so many `steps` that hands on what `nodes` make of it, `on` and `next`.
fn repeated(nodes: Vec<NodeProto>) -> NodeProto {
    let input = [("k", DataType::Int64), ("was", DataType::Bool), ("state", DataType::Float)];
    let results = [("on", DataType::Bool), ("next", DataType::Float)];
    let values = |all: &[(&str, DataType)]| all.iter().map(|(name, ty)| value(name, *ty, &[])).collect();
    let body = GraphProto { node: nodes, input: values(&input), output: values(&results), ..Default::default() };
    named("step", node("Loop", &["steps", "truth", "hidden"], &["last"])).graph("body", body)
}

fn on() -> NodeProto {
    node("Identity", &["was"], &["on"])
}

refused! {
    cycle => |_| through(vec![
        named("first", node("Add", &["hidden", "b"], &["a"])),
        named("second", node("Neg", &["a"], &["b"])),
        named("third", node("Neg", &["b"], &["last"])),
    ]);
    cycle_of_one => |_| through(vec![named("step", node("Add", &["hidden", "last"], &["last"]))]);
    out_of_order => |_| with(|_, g| g.node.reverse());
    out_of_order_exported => |_| changed(|g| g.node.reverse());
    produced_twice => |_| through(vec![step("Neg"), named("again", node("Exp", &["hidden"], &["last"]))]);
    produced_twice_by_identity => |_| through(vec![step("Neg"), named("again", node("Identity", &["hidden"], &["last"]))]);
    produces_a_weight => |_| through(vec![named("step", node("Neg", &["hidden"], &["head.weight"]))]);
    produces_an_input => |_| through(vec![named("step", node("Neg", &["hidden"], &["input_ids"]))]);
    output_without_producer => |_| with(|_, g| g.output[0].name = "scores".into());
    output_listed_twice => |_| with(|_, g| g.output.push(g.output[0].clone()));
    no_outputs => |_| with(|_, g| g.output.clear());
    no_nodes => |_| with(|_, g| g.node.clear());
    unknown_domain => |_| through(vec![of_domain("com.example", step("Mystery"))]);
    misspelled_operator => |_| through(vec![step("LayerNormalisation")]);
    empty_operator => |_| through(vec![step("")]);
    several_unsupported => |_| through(vec![
        named("conv_1", node("ConvTranspose", &["hidden"], &["c1"])),
        named("conv_2", node("ConvTranspose", &["hidden"], &["c2"])),
        named("conv_3", node("ConvTranspose", &["c2"], &["c3"])),
        named("recurrence", node("LSTM", &["hidden"], &["l"])),
        named("pick", node("NonMaxSuppression", &["hidden", "hidden"], &["n"])),
        named("soft", node("SoftMax", &["hidden"], &["s"])),
        of_domain("com.microsoft", named("four_bits", node("MatMulNBits", &["hidden"], &["q"]))),
        step("Neg"),
    ]);
    newer_than_its_opset => |_| changed(|g| {
        let (weight, last) = (floats("norm.weight", &[32]), g.node.len() - 1);
        g.initializer.push(weight);
        let at = g.node[last].input[0].clone();
        g.node.insert(last, named("norm", node("RMSNormalization", &[&at, "norm.weight"], &["normed"])));
        g.node[last + 1].input[0] = "normed".into();
    });
    function_that_calls_itself => |_| body(call("F", "x", "y"));
    functions_that_call_one_another => |_| calling(vec![
        function("d", "F", &["x"], &["y"], vec![call("G", "x", "y")]),
        function("d", "G", &["x"], &["y"], vec![call("F", "x", "y")]),
    ]);
    functions_1000_deep => |_| chain(1000);
    function_reads_what_it_is_not_given => |_| body(node("Add", &["x", "hidden"], &["y"]));
    function_never_computes_its_result => |_| body(node("Neg", &["x"], &["z"]));
    function_of_an_old_opset => |_| {
        let mut f = function("d", "F", &["x"], &["y"], vec![node("Neg", &["x"], &["y"])]);
        f.opset_import = vec![opset("", 5)];
        calling(vec![f])
    };
    function_given_too_much => |_| calling(vec![function("d", "F", &[], &["y"], vec![
        node("Constant", &[], &["y"]).int("value_int", 1),
    ])]);
    function_defined_twice => |_| {
        let f = |op| function("d", "F", &["x"], &["y"], vec![node(op, &["x"], &["y"])]);
        calling(vec![f("Neg"), f("Exp")])
    };
    branch_missing => |_| through_with(&[truth()], vec![named("step", node("If", &["truth"], &["last"]))]);
    branch_without_result => |_| through_with(&[truth()], vec![
        named("step", node("If", &["truth"], &["last"])).graph("then_branch", branch("gone", vec![])),
    ]);
    branch_on_the_input => |_| through(vec![
        node("Cast", &["hidden"], &["choice"]).int("to", DataType::Bool as i64),
        named("step", node("If", &["choice"], &["last"]))
            .graph("then_branch", branch("a", vec![node("Neg", &["hidden"], &["a"])]))
            .graph("else_branch", branch("b", vec![node("Exp", &["hidden"], &["b"])])),
    ]);
    loop_without_a_body => |_| through_with(&[truth(), int("steps", 2)], vec![
        named("step", node("Loop", &["steps", "truth", "hidden"], &["last"])),
    ]);
    loop_without_end => |_| through_with(&[truth(), int("steps", i64::MAX)], vec![
        repeated(vec![on(), node("Identity", &["state"], &["next"])]),
    ]);
    loop_of_the_unknown => |_| through_with(&[truth(), int("steps", 3)], vec![
        repeated(vec![on(), node("Mystery", &["state"], &["next"])]),
    ]);
    loop_that_hands_nothing_on => |_| through_with(&[truth(), int("steps", 3)], vec![repeated(vec![on()])]);
    scan_over_nothing => |_| through(vec![named("step", node("Scan", &["hidden"], &["last"]))
        .graph("body", branch("gone", vec![]))
        .int("num_scan_inputs", 7)]);
    branches_nested_30_deep_in_functions => |_| {
        let inner = node("If", &["truth"], &["y"]);
        let inner = named("inner", inner.graph("then_branch", branch("z", vec![call("F", "x", "z")])));
        let constant = node("Constant", &[], &["truth"]).int("value_int", 1);
        calling(vec![function("d", "F", &["x"], &["y"], vec![constant, inner])])
    };
}
