//! Small graphs and what they are read as.

use crate::build::*;
use weftc::ir::text::print;
use weftc::onnx::proto::tensor_proto::DataType::{Bool, Float, Int64};
use weftc::onnx::proto::*;
use weftc::onnx::read::read;

/// What a model is read as.
pub fn text(model: &ModelProto) -> String {
    let (_folder, path) = written(model);
    match read(&path) {
        Ok(source) => {
            let mended: String = source.mended.iter().map(|m| format!("; {m}\n")).collect();
            print(&source.graph) + &mended
        }
        Err(e) => panic!("{e}"),
    }
}

/// TorchScript computes the shape of a reshape and the scale of attention from `Shape`.
#[test]
fn shape_arithmetic_disappears() {
    let x = input("x", Float, &["batch", "seq", "64"]);
    let weights = [
        ints("zero", &[], &[0]),
        ints("axis0", &[1], &[0]),
        ints("last", &[1], &[-1]),
        ints("end", &[1], &[i64::MAX]),
        ints("four", &[1], &[4]),
        floats("one", &[1], &[1.0]),
    ];
    let nodes = [
        node("Shape", &["x"], &["shape"]),
        node("Gather", &["shape", "zero"], &["batch"]).int("axis", 0),
        node("Unsqueeze", &["batch", "axis0"], &["batch1"]),
        node("Concat", &["batch1", "last", "four", "four"], &["to"]).int("axis", 0),
        node("Reshape", &["x", "to"], &["heads"]),
        node("Shape", &["heads"], &["shape2"]),
        node("Slice", &["shape2", "last", "end"], &["width"]),
        node("Cast", &["width"], &["widthf"]).int("to", 1),
        node("Sqrt", &["widthf"], &["root"]),
        node("Div", &["one", "root"], &["scale"]),
        node("Mul", &["heads", "scale"], &["y"]),
    ];
    insta::assert_snapshot!(text(&model(&[x], &weights, &nodes)), @"
    (graph g
      (input x f32 [batch seq 64])
      (let %0 (reshape x [batch 4*seq 4 4])) ; f32[batch 4*seq 4 4]
      (let %1 (mul %0 0.5)) ; f32[batch 4*seq 4 4]
      (output y %1))
    ");
}

/// Open ends are 1e9 for tf2onnx, positions are counted as floats, and a mask that masks nothing is 1 - 1.
#[test]
fn what_tensorflow_writes() {
    let x = input("x", Float, &["batch", "seq", "4"]);
    let weights = [
        ints("zero", &[], &[0]),
        ints("zeros", &[2], &[0, 0]),
        ints("ends", &[2], &[1_000_000_000, 1_000_000_000]),
        ints("one", &[1], &[1]),
        ints("two", &[1], &[2]),
        ints("axis0", &[1], &[0]),
        floats("from", &[], &[0.0]),
        floats("by", &[], &[1.0]),
        floats("far", &[], &[-1e4]),
    ];
    let nodes = [
        node("Slice", &["x", "zeros", "ends"], &["all"]),
        node("GlobalAveragePool", &["all"], &["mean"]),
        node("Shape", &["x"], &["shape"]),
        node("Slice", &["shape", "one", "two"], &["length1"]),
        node("Squeeze", &["length1", "axis0"], &["length"]),
        node("Cast", &["length"], &["lengthf"]).int("to", 1),
        node("Range", &["from", "lengthf", "by"], &["positions"]),
        node("Unsqueeze", &["positions", "one"], &["column"]),
        node("Expand", &["by", "length1"], &["shown"]),
        node("Sub", &["by", "shown"], &["hidden"]),
        node("Mul", &["hidden", "far"], &["low"]),
        node("Unsqueeze", &["low", "one"], &["bias"]),
        node("Add", &["mean", "column"], &["sum"]),
        node("Add", &["sum", "bias"], &["y"]),
    ];
    insta::assert_snapshot!(text(&model(&[x], &weights, &nodes)), @"
    (graph g
      (input x f32 [batch seq 4])
      (let %0 (mean x [-1])) ; f32[batch seq 1]
      (let %1 (iota seq)) ; i64[seq]
      (let %2 (cast %1 f32)) ; f32[seq]
      (let %3 (reshape %2 [seq 1])) ; f32[seq 1]
      (let %4 (add %0 %3)) ; f32[batch seq 1]
      (output y %4))
    ");
}

/// A size of 1 as a scalar cuts an axis away, where `keepdims` says so: ONNX Runtime does what the standard does not say.
/// `repeats` are as many ones as there are axes.
#[test]
fn what_older_exporters_leave_unoptimised() {
    let x = input("x", Float, &["batch", "seq", "4"]);
    let weights = [ints("size", &[], &[1]), ints("second", &[], &[1]), ints("repeats", &[2], &[1, 3])];
    let nodes = [
        node("SplitToSequence", &["x", "size"], &["parts"]).int("axis", 2).int("keepdims", 0),
        node("SequenceAt", &["parts", "second"], &["part"]),
        node("Shape", &["repeats"], &["rank"]),
        node("Expand", &["size", "rank"], &["ones"]),
        node("Expand", &["part", "ones"], &["same"]),
        node("Tile", &["same", "repeats"], &["y"]),
    ];
    insta::assert_snapshot!(text(&model(&[x], &weights, &nodes)), @"
    (graph g
      (input x f32 [batch seq 4])
      (let %0 (slice x 2 1 2 1)) ; f32[batch seq 1]
      (let %1 (reshape %0 [1 batch 1 seq])) ; f32[1 batch 1 seq]
      (let %2 (expand %1 [1 batch 3 seq])) ; f32[1 batch 3 seq]
      (let %3 (reshape %2 [batch 3*seq])) ; f32[batch 3*seq]
      (output y %3))
    ");
}

/// ONNX Runtime's optimiser splits a shape where the exporter gathered from it.
#[test]
fn sizes_are_split() {
    let x = input("x", Float, &["batch", "seq", "4"]);
    let weights = [ints("ones", &[3], &[1, 1, 1]), ints("axis0", &[1], &[0]), ints("two", &[1], &[2])];
    let nodes = [
        node("Shape", &["x"], &["shape"]),
        node("Split", &["shape", "ones"], &["a", "b", "c"]).int("axis", 0),
        node("Squeeze", &["a", "axis0"], &["batch"]),
        node("Unsqueeze", &["batch", "axis0"], &["batch1"]),
        node("Concat", &["batch1", "b", "two", "two"], &["to"]).int("axis", 0),
        node("Reshape", &["x", "to"], &["y"]),
    ];
    insta::assert_snapshot!(text(&model(&[x], &weights, &nodes)));
}

#[test]
fn slices_and_splits() {
    let x = input("x", Float, &["batch", "seq", "10"]);
    let weights = [
        ints("starts", &[3], &[-3, 1, 0]),
        ints("ends", &[3], &[i64::MAX, -1, i32::MAX as i64]),
        ints("axes", &[3], &[-1, 1, 0]),
        ints("steps", &[3], &[2, 1, 1]),
        ints("from", &[1], &[-1]),
        ints("to", &[1], &[i64::MIN]),
        ints("axis", &[1], &[2]),
        ints("back", &[1], &[-4]),
    ];
    let nodes = [
        node("Slice", &["x", "starts", "ends", "axes", "steps"], &["a"]),
        node("Slice", &["x", "from", "to", "axis", "back"], &["b"]),
        node("Split", &["x"], &["c", "d"]).int("axis", 2).int("num_outputs", 2),
        node("Concat", &["b", "c", "d"], &["y"]).int("axis", -1),
    ];
    let mut model = model(&[x], &weights, &nodes);
    let graph = model.graph.as_mut().unwrap();
    graph.output.push(ValueInfoProto { name: "a".into(), ..Default::default() });
    insta::assert_snapshot!(text(&model));
}

/// HF masks: `Where` over shapes with -1, and masks that allow everything.
#[test]
fn masks_that_mask_nothing_vanish() {
    let x = input("x", Float, &["batch", "1", "seq", "seq"]);
    let weights = [
        ints("zero", &[], &[0]),
        ints("one", &[], &[1]),
        ints("two", &[], &[2]),
        ints("axes", &[3], &[0, 1, 3]),
        ints("like", &[4], &[-1, 1, 1, 1]),
        ints("minus", &[1], &[-1]),
        floats("allowed", &[], &[0.0]),
        floats("masked", &[], &[f32::MIN]),
    ];
    let nodes = [
        node("Shape", &["x"], &["shape"]),
        node("Gather", &["shape", "two"], &["seq"]),
        node("Range", &["zero", "seq", "one"], &["positions"]),
        node("Unsqueeze", &["positions", "axes"], &["rows"]),
        node("GreaterOrEqual", &["rows", "zero"], &["mask"]),
        node("Equal", &["like", "minus"], &["unknown"]),
        node("Where", &["unknown", "shape", "like"], &["target"]),
        node("Expand", &["mask", "target"], &["wide"]),
        node("Where", &["wide", "allowed", "masked"], &["bias"]),
        node("Add", &["x", "bias"], &["y"]),
    ];
    insta::assert_snapshot!(text(&model(&[x], &weights, &nodes)), @"
    (graph g
      (input x f32 [batch 1 seq seq])
      (output y x))
    ");
}

/// Grouped queries, a boolean mask and a causal one, heads inside the width.
#[test]
fn attention_becomes_composites() {
    let q = input("q", Float, &["batch", "seq", "32"]);
    let kv = ["k", "v"].map(|n| input(n, Float, &["batch", "seq", "16"]));
    let mask = input("mask", Bool, &["batch", "1", "1", "seq"]);
    let attention = node("Attention", &["q", "k", "v", "mask"], &["y"]);
    let attention = attention.int("q_num_heads", 4).int("kv_num_heads", 2).int("is_causal", 1);
    let [k, v] = kv;
    insta::assert_snapshot!(text(&model(&[q, k, v, mask], &[], &[attention])));
}

/// Pairs beside one another, half of the width turned, a cache of batch 1 spelled out.
#[test]
fn rotary_embedding_becomes_rope() {
    let x = input("x", Float, &["batch", "2", "seq", "8"]);
    let table = |name: &str| floats(name, &[6, 2], &(0..12).map(|k| k as f32).collect::<Vec<_>>());
    let weights = [table("c"), table("s"), ints("axis", &[1], &[0]), ints("three", &[3], &[2, 6, 2])];
    let x6 = input("x", Float, &["2", "2", "6", "8"]);
    let nodes = [
        node("Unsqueeze", &["c", "axis"], &["c1"]),
        node("Expand", &["c1", "three"], &["cos"]),
        node("Unsqueeze", &["s", "axis"], &["s1"]),
        node("Expand", &["s1", "three"], &["sin"]),
        node("RotaryEmbedding", &["x", "cos", "sin"], &["y"]).int("rotary_embedding_dim", 4).int("interleaved", 1),
    ];
    insta::assert_snapshot!(text(&model(&[x6], &weights, &nodes)));
    // With positions the tables are gathered, and there is a row for each batch.
    let positions = input("positions", Int64, &["batch", "seq"]);
    let nodes = [node("RotaryEmbedding", &["x", "c", "s", "positions"], &["y"]).int("rotary_embedding_dim", 4)];
    insta::assert_snapshot!(text(&model(&[x, positions], &weights[..2], &nodes)));
}

/// Bodies come in place of calls; attributes of the call, or their defaults, in place of references.
#[test]
fn functions_are_inlined() {
    let x = input("x", Float, &["batch", "4"]);
    let scaled = FunctionProto {
        domain: "ai.weft".into(),
        name: "Scaled".into(),
        input: vec!["a".into(), "b".into()],
        output: vec!["out".into()],
        attribute: vec!["by".into()],
        attribute_proto: node("", &[], &[]).float("plus", 0.25).attribute,
        node: vec![
            node("Constant", &[], &["by"]).refer("value_float", "by"),
            node("Constant", &[], &["plus"]).refer("value_float", "plus"),
            node("Mul", &["a", "by"], &["product"]),
            node("Add", &["product", "plus"], &["out"]),
        ],
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
        ..Default::default()
    };
    let mut first = node("Scaled", &["x"], &["once"]).float("by", 2.0);
    first.domain = "ai.weft".into();
    let mut second = node("Scaled", &["once"], &["y"]).float("by", 3.0).float("plus", 0.5);
    second.domain = "ai.weft".into();
    let mut model = model(&[x], &[], &[first, second]);
    model.functions.push(scaled);
    insta::assert_snapshot!(text(&model), @"
    (graph g
      (input x f32 [batch 4])
      (let %0 (mul x 2.0)) ; f32[batch 4]
      (let %1 (add %0 0.25)) ; f32[batch 4]
      (let %2 (mul %1 3.0)) ; f32[batch 4]
      (let %3 (add %2 0.5)) ; f32[batch 4]
      (output y %3))
    ");
}

#[test]
fn branches_on_shapes_are_taken() {
    let x = input("x", Float, &["batch", "1", "4"]);
    let branch = |nodes: Vec<NodeProto>| GraphProto {
        node: nodes,
        output: vec![ValueInfoProto { name: "out".into(), ..Default::default() }],
        ..Default::default()
    };
    let squeeze = branch(vec![node("Squeeze", &["x", "axis"], &["out"])]);
    let keep = branch(vec![node("Identity", &["x"], &["out"])]);
    let weights = [ints("axis", &[1], &[1]), ints("one", &[], &[1])];
    let nodes = [
        node("Shape", &["x"], &["shape"]),
        node("Gather", &["shape", "one"], &["size"]),
        node("Equal", &["size", "one"], &["is_one"]),
        node("If", &["is_one"], &["y"]).graph("then_branch", squeeze).graph("else_branch", keep),
    ];
    insta::assert_snapshot!(text(&model(&[x], &weights, &nodes)), @"
    (graph g
      (input x f32 [batch 1 4])
      (let %0 (reshape x [batch 4])) ; f32[batch 4]
      (output y %0))
    ");
}

/// Equal matrices are one weight; vectors of one value that TorchScript merged are two.
#[test]
fn ties_are_found_and_undone() {
    let x = input("ids", Int64, &["batch", "seq"]);
    let matrix = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let turned = [1.0, 4.0, 2.0, 5.0, 3.0, 6.0];
    let weights = [
        floats("m.embed.weight", &[2, 3], &matrix),
        floats("onnx::MatMul_7", &[3, 2], &turned),
        floats("m.norm.weight", &[3], &[1.0, 1.0, 1.0]),
    ];
    let mut head = node("MatMul", &["normed", "onnx::MatMul_7"], &["y"]);
    head.name = "/m/head/MatMul".into();
    let nodes = [
        node("Identity", &["m.norm.weight"], &["m.norm2.weight"]),
        node("Gather", &["m.embed.weight", "ids"], &["e"]),
        node("Mul", &["e", "m.norm.weight"], &["e1"]),
        node("Mul", &["e1", "m.norm2.weight"], &["normed"]),
        head,
    ];
    insta::assert_snapshot!(text(&model(&[x], &weights, &nodes)), @"
    (graph g
      (input ids i64 [batch seq])
      (param m.embed.weight f32 [2 3])
      (param m.norm.weight f32 [3])
      (param m.norm2.weight f32 [3])
      (let %0 (gather m.embed.weight ids 0)) ; f32[batch seq 3]
      (let %1 (mul %0 m.norm.weight)) ; f32[batch seq 3]
      (let %2 (mul %1 m.norm2.weight)) ; f32[batch seq 3]
      (let %3 (transpose m.embed.weight [1 0])) ; f32[3 2]
      (let %4 (matmul %2 %3)) ; f32[batch seq 2]
      (output y %4))
    ; weight `onnx::MatMul_7` is tied to `m.embed.weight`, transposed
    ; weight `m.norm2.weight` is its own, not a copy of `m.norm.weight`
    ");
}
