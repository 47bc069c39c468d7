//! Which initializers are learned, by what exporters note, by their names and by where they are used.

use crate::build::*;
use crate::graphs::text;
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::proto::*;

/// `name` is used as an operand of `op` beside x [b 4]; the exporter's note on it is `key: value`.
type Case<'a> = (&'a str, &'a [i64], f32, &'a str, &'a str);

/// What the model is read as.
fn told(cases: &[Case]) -> String {
    let (mut nodes, mut weights, mut infos) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = "x".to_string();
    for (k, (name, dims, value, op, note)) in cases.iter().enumerate() {
        let next = if k + 1 == cases.len() { "y".into() } else { format!("h{k}") };
        let n = dims.iter().product::<i64>() as usize;
        // Unlike one another, so that none ties, and the last as large as is said.
        let values: Vec<f32> = (0..n).map(|i| if i + 1 == n { *value } else { (i + 7 * k) as f32 * 0.01 }).collect();
        weights.push(floats(name, dims, &values));
        nodes.push(node(op, &[&last, name], &[&next]));
        if let Some((key, value)) = note.split_once(": ") {
            let entry = StringStringEntryProto { key: key.into(), value: value.into() };
            infos.push(ValueInfoProto { metadata_props: vec![entry], ..input(name, DataType::Float, &[]) });
        }
        last = next;
    }
    let mut model = model(&[input("x", DataType::Float, &["b", "4"])], &weights, &nodes);
    model.graph.as_mut().unwrap().value_info = infos;
    text(&model)
}

const KIND: &str = "pkg.torch.export.graph_signature.InputSpec.kind";
const FOLDED: &str = "pkg.onnxscript.optimizer.folded_from";

#[test]
fn what_the_exporter_notes_decides() {
    let kind = |word: &str| format!("{KIND}: {word}");
    let folded = |list: &str| format!("{FOLDED}: {list}");
    let (parameter, buffer, constant) = (kind("PARAMETER"), kind("BUFFER"), kind("CONSTANT_TENSOR"));
    let (mask, one, two, matrix) = (
        folded("['val_0', 'val_2']"),
        folded("['blocks.0.q.weight']"),
        folded("['blocks.0.norm.weight', 'val_11']"),
        folded("['eye', 'val_3']"),
    );
    let angle = folded("['arange', 'rotary_emb.inv_freq']");
    insta::assert_snapshot!(told(&[
        ("rope_mask", &[4], 0.5, "Mul", &parameter),
        ("temperature", &[], 0.5, "Mul", &parameter),
        ("blocks.0.weight", &[4], 0.5, "Mul", &buffer),
        ("c", &[4], 0.5, "Mul", &constant),
        ("zeros", &[4], 0.0, "Add", &mask),
        ("t", &[4, 4], 0.5, "MatMul", &one),
        ("add_2", &[4], 0.5, "Mul", &two),
        ("clone", &[4, 4], 0.5, "MatMul", &matrix),
        ("cat", &[4], 0.5, "Add", &angle),
    ]));
}

/// Keras lays the weights of norms out for broadcasting, tf2onnx leaves behind what it folded where a node asks for its shape,
/// and the layers of a loop are stacked.
#[test]
fn parameters_stand_behind_axes_and_loops() {
    let x = input("x", DataType::Float, &["b", "4"]);
    let mut body = GraphProto {
        name: "layer".into(),
        input: vec![input("k", DataType::Int64, &[]), input("on", DataType::Bool, &[]), x.clone(), x.clone()],
        output: ["on", "next", "all"].map(|name| input(name, DataType::Float, &[])).into(),
        node: vec![node("Gather", &["all", "k"], &["w"]), node("MatMul", &["state", "w"], &["next"])],
        ..Default::default()
    };
    (body.input[2].name, body.input[3].name) = ("state".into(), "all".into());
    let weights = [
        floats("norm/Reshape:0", &[1, 4], &[0.1, 0.2, 0.3, 0.4]),
        floats("const_fold_opt__7", &[1, 4, 1], &[0.5, 0.6, 0.7, 0.8]),
        floats("val_9", &[2, 4, 4], &[0.25; 32]),
        ints("steps", &[], &[2]),
    ];
    let nodes = [
        node("Mul", &["x", "norm/Reshape:0"], &["scaled"]),
        node("Loop", &["steps", "", "scaled", "val_9"], &["deep", "same"]).graph("body", body),
        node("Shape", &["const_fold_opt__7"], &["folded"]),
        node("ReduceSum", &["folded"], &["six"]).int("keepdims", 0),
        node("Cast", &["six"], &["number"]).int("to", 1),
        node("Add", &["deep", "number"], &["y"]),
    ];
    insta::assert_snapshot!(text(&model(&[x], &weights, &nodes)));
}

#[test]
fn names_and_uses_decide_where_nothing_is_noted() {
    insta::assert_snapshot!(told(&[
        ("mask_token", &[4], 0.5, "Add", ""),
        ("causal_mask", &[4], 0.5, "Add", ""),
        ("bias", &[4], 0.5, "Add", ""),
        ("where", &[4], f32::NEG_INFINITY, "Add", ""),
        ("filled", &[4], -1e9, "Add", ""),
        ("temperature", &[], 0.5, "Mul", ""),
        ("blocks.0.temperature", &[], 0.5, "Mul", ""),
        ("model.blocks.0.lifted_tensor_1", &[], 0.5, "Mul", ""),
        ("model/layer_._0/attention/add/y:0", &[], 0.5, "Add", ""),
        ("model/layer_._0/attention/BiasAdd/ReadVariableOp:0", &[4], 0.5, "Add", ""),
        ("val_7", &[4], 0.5, "Mul", ""),
        ("val_8", &[4, 4], 0.5, "MatMul", ""),
    ]));
}

/// TorchScript adds 1 to the scale of a norm; its parameters keep their names, also those of the model itself.
#[test]
fn the_scale_of_a_norm_is_learned_whatever_its_name() {
    let weights = [
        floats("onnx::Mul_3", &[4], &[1.0, 1.5, 0.5, 1.0]),
        floats("onnx::Mul_4", &[4], &[1.0, 1.5, 0.5, 2.0]),
        floats("temperature", &[], &[2.0]),
        floats("/eps", &[], &[1e-5]),
        floats("/two", &[], &[2.0]),
    ];
    let nodes = [
        node("Pow", &["x", "/two"], &["s"]),
        node("ReduceMean", &["s"], &["m"]).int("keepdims", 1),
        node("Add", &["m", "/eps"], &["e"]),
        node("Sqrt", &["e"], &["r"]),
        node("Div", &["x", "r"], &["n"]),
        node("Mul", &["n", "onnx::Mul_3"], &["scaled"]),
        node("Add", &["scaled", "x"], &["sum"]),
        node("Mul", &["sum", "onnx::Mul_4"], &["other"]),
        node("Mul", &["other", "temperature"], &["y"]),
    ];
    insta::assert_snapshot!(text(&model(&[input("x", DataType::Float, &["b", "4"])], &weights, &nodes)));
}

/// A table that is looked up by its first axis keeps its layout, so its name is known; one that the exporter turned for
/// that keeps the exporter's.
#[test]
fn tables_of_experts_keep_their_names() {
    let call = |indices: &str| StringStringEntryProto {
        key: "pkg.torch.onnx.fx_node".into(),
        value: format!(
            "%index : [num_users=1] = call_function[target=torch.ops.aten.index.Tensor](args = (%p_w, [{indices}]), kwargs = {{}})"
        ),
    };
    let (mut nodes, mut weights, mut infos) = (Vec::new(), Vec::new(), Vec::new());
    for (k, (name, indices)) in [("up", "%view_8"), ("down", "None, %view_8")].into_iter().enumerate() {
        let table = format!("val_{k}");
        let values: Vec<f32> = (0..12).map(|i| (i + 13 * k) as f32 * 0.01).collect();
        weights.push(floats(&table, &[3, 2, 2], &values));
        let mut lookup = node("GatherND", &[&table, "ids"], &[&format!("h{k}")]);
        lookup.metadata_props.push(call(indices));
        nodes.push(lookup);
        let entry = StringStringEntryProto { key: FOLDED.into(), value: format!("['moe.experts.{name}']") };
        infos.push(ValueInfoProto { metadata_props: vec![entry], ..input(&table, DataType::Float, &[]) });
    }
    nodes.push(node("Add", &["h0", "h1"], &["y"]));
    let mut model = model(&[input("ids", DataType::Int64, &["b", "1"])], &weights, &nodes);
    model.graph.as_mut().unwrap().value_info = infos;
    insta::assert_snapshot!(text(&model));
}
