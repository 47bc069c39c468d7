//! Nodes whose operands or attributes contradict the operator.

use crate::build::*;
use crate::refused;
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::proto::*;

/// `op(hidden, k)` with the vector of integers k.
fn by_ints(op: &str, k: &[i64]) -> Vec<u8> {
    through_with(&[ints("k", k)], vec![binary(op)])
}

/// `op(hidden, k)`.
fn binary(op: &str) -> NodeProto {
    named("step", node(op, &["hidden", "k"], &["last"]))
}

/// A chain of shape arithmetic that doubles its degree at each step.
pub fn polynomial(doublings: usize) -> Vec<u8> {
    let mut nodes = vec![node("Size", &["input_ids"], &["n0"])];
    for k in 0..doublings {
        let (from, to) = (format!("n{k}"), format!("n{}", k + 1));
        nodes.push(node("Mul", &[&from, &from], &[&to]));
    }
    nodes.push(node("Cast", &[&format!("n{doublings}")], &["f"]).int("to", DataType::Float as i64));
    nodes.push(named("step", node("Mul", &["hidden", "f"], &["last"])));
    through(nodes)
}

/// Inputs whose sizes are sums, multiplied out by a Reshape.
pub fn sums(axes: usize) -> Vec<u8> {
    let dims: Vec<String> = (0..axes).map(|k| format!("a{k}+b{k}")).collect();
    let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
    let flat = node("Reshape", &["wide", "k"], &["flat"]);
    let model = through_with(&[ints("k", &[-1])], vec![named("flatten", flat), step("Identity")]);
    let mut model: ModelProto = prost::Message::decode(model.as_slice()).unwrap();
    model.graph.as_mut().unwrap().input.push(value("wide", DataType::Float, &dims));
    prost::Message::encode_to_vec(&model)
}

refused! {
    axis_as_a_string => |_| through(vec![step("Softmax").text("axis", "last")]);
    axis_as_a_list => |_| through(vec![step("Softmax").ints("axis", &[-1])]);
    perm_as_a_number => |_| through(vec![step("Transpose").int("perm", 1)]);
    axis_out_of_range => |_| through(vec![step("Softmax").int("axis", 3)]);
    axis_least => |_| through(vec![step("Softmax").int("axis", i64::MIN)]);
    perm_not_a_permutation => |_| through(vec![step("Transpose").ints("perm", &[0, 1, 1])]);
    perm_too_short => |_| through(vec![step("Transpose").ints("perm", &[1, 0])]);
    perm_of_a_constant => |_| through_with(&[ints("k", &[1, 2, 3, 4])], vec![
        node("Reshape", &["k", "two"], &["square"]),
        node("Constant", &[], &["two"]).ints("value_ints", &[2, 2]),
    ].into_iter().rev().chain([
        named("turn", node("Transpose", &["square"], &["turned"]).ints("perm", &[0, 0])),
        named("step", node("Reshape", &["hidden", "turned"], &["last"])),
    ]).collect());
    reshape_contradicts => |_| by_ints("Reshape", &[3, 5]);
    reshape_two_unknown => |_| by_ints("Reshape", &[-1, -1]);
    reshape_negative => |_| by_ints("Reshape", &[-2, 4]);
    reshape_copies_too_far => |_| by_ints("Reshape", &[0, 0, 0, 0]);
    reshape_by_data => |_| through(vec![named("step", node("Reshape", &["hidden", "input_ids"], &["last"]))]);
    concat_axis => |_| through(vec![named("step", node("Concat", &["hidden", "hidden"], &["last"])).int("axis", 7)]);
    concat_without_axis => |_| through(vec![named("step", node("Concat", &["hidden", "hidden"], &["last"]))]);
    concat_shapes => |_| through_with(&[floats("k", &[1, 2, 3])], vec![binary("Concat").int("axis", 2)]);
    concat_constants => |_| through(vec![
        node("Constant", &[], &["flat"]).ints("value_ints", &[1, 2, 3, 4]),
        node("Constant", &[], &["two"]).ints("value_ints", &[2, 2]),
        node("Reshape", &["flat", "two"], &["square"]),
        named("join", node("Concat", &["square", "flat"], &["joined"])).int("axis", 0),
        named("step", node("Reshape", &["hidden", "joined"], &["last"])),
    ]);
    matmul_inner_sizes => |_| through_with(&[floats("k", &[5, 4])], vec![binary("MatMul")]);
    matmul_with_integers => |_| by_ints("MatMul", &[1, 2, 3, 4]);
    add_of_two_types => |_| through_with(
        &[TensorProto { dims: vec![2], data_type: DataType::Double.into(), ..floats("k", &[4]) }],
        vec![named("step", node("Add", &["hidden", "k"], &["last"]))],
    );
    add_of_two_shapes => |_| through_with(&[floats("k", &[3])], vec![binary("Add")]);
    gather_by_floats => |_| through_with(&[floats("k", &[2])], vec![binary("Gather")]);
    gather_by_computed_floats => |_| through(vec![
        named("step", node("Gather", &["embed.weight", "hidden"], &["last"])),
    ]);
    gather_out_of_range => |_| through_with(&[int("k", 4)], vec![binary("Gather").int("axis", 2)]);
    operand_missing => |_| through(vec![step("Add")]);
    operand_left_out => |_| through(vec![named("step", node("Add", &["hidden", ""], &["last"]))]);
    operands_too_many => |_| through(vec![named("step", node("Neg", &["hidden", "hidden"], &["last"]))]);
    no_operands => |_| through(vec![named("step", node("Concat", &[], &["last"])).int("axis", 0)]);
    results_too_many => |_| through(vec![named("step", node("Neg", &["hidden"], &["last", "more"]))]);
    cast_to_nothing => |_| through(vec![step("Cast")]);
    cast_to_the_unknown => |_| through(vec![step("Cast").int("to", 1 << 32)]);
    slice_step_zero => |_| through_with(
        &[ints("zero", &[0]), ints("one", &[1])],
        vec![named("step", node("Slice", &["hidden", "zero", "one", "one", "zero"], &["last"]))],
    );
    slice_lists_differ => |_| through_with(
        &[ints("zero", &[0]), ints("two", &[1, 2])],
        vec![named("step", node("Slice", &["hidden", "zero", "two"], &["last"]))],
    );
    split_does_not_add_up => |_| by_ints("Split", &[1, 2]);
    split_negative => |_| through_with(
        &[ints("k", &[-1, 5])],
        vec![named("step", node("Split", &["hidden", "k"], &["last", "rest"])).int("axis", 2)],
    );
    split_into_billions => |_| through(vec![step("Split").int("axis", 2).int("num_outputs", i64::MAX)]);
    unsqueeze_twice => |_| by_ints("Unsqueeze", &[0, 0]);
    squeeze_of_four => |_| by_ints("Squeeze", &[2]);
    expand_contradicts => |_| by_ints("Expand", &[3, 3]);
    expand_huge => |_| by_ints("Expand", &[i64::MAX, i64::MAX, 1, 1, 4]);
    tile_huge => |_| by_ints("Tile", &[1, i64::MAX, i64::MAX]);
    tile_negative => |_| by_ints("Tile", &[1, 1, -1]);
    pad_huge => |_| by_ints("Pad", &[0, 0, i64::MAX, 0, 0, i64::MAX]);
    constant_of_huge_shape => |_| through_with(&[ints("k", &[i64::MAX, i64::MAX])], vec![
        node("ConstantOfShape", &["k"], &["zeros"]),
        named("step", node("Add", &["hidden", "zeros"], &["last"])),
    ]);
    constant_of_negative_shape => |_| through_with(&[ints("k", &[-4])], vec![
        named("fill", node("ConstantOfShape", &["k"], &["zeros"])),
        named("step", node("Add", &["hidden", "zeros"], &["last"])),
    ]);
    range_without_end => |_| through_with(&[int("from", 0), int("to", i64::MAX), int("by", 0)], vec![
        named("step", node("Range", &["from", "to", "by"], &["last"])),
    ]);
    einsum_nonsense => |_| through(vec![
        named("step", node("Einsum", &["hidden"], &["last"])).text("equation", "b(s)h->->"),
    ]);
    norm_of_another_width => |_| through_with(&[floats("k", &[5])], vec![binary("LayerNormalization")]);
    reduce_axes_out_of_range => |_| by_ints("ReduceSum", &[9]);
    reduce_twice => |_| by_ints("ReduceSum", &[0, 0]);
}
