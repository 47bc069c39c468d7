//! Every operator that is read, alone in a model.

use crate::build::*;
use crate::case::*;
use weftc::ir::DType;
use weftc::onnx::proto::TensorProto;
use weftc::onnx::proto::tensor_proto::DataType;

#[test]
fn elementwise() {
    let x = || real("x", &["batch=2", "3"]);
    let p = || positive("p", &["batch=2", "3"]);
    let y = || real("other", &["3"]);
    let mut cases = Vec::new();
    for op in ["Abs", "Neg", "Exp", "Sigmoid", "Tanh", "Erf", "Sin", "Cos", "Softplus", "Relu", "HardSwish"] {
        cases.push(case(op, &[x()]));
    }
    cases.push(case("ReduceLogSum", &[p()]).numbers("axes", &[1]));
    for op in ["Elu", "Selu", "LeakyRelu", "HardSigmoid", "Mish", "Softsign", "Gelu", "Identity", "LogSoftmax"] {
        cases.push(case(op, &[x()]));
    }
    for op in ["Log", "Sqrt", "Reciprocal"] {
        cases.push(case(op, &[p()]));
    }
    for op in ["Ceil", "Floor", "Sign"] {
        cases.push(case(op, &[x()]).flat());
    }
    for op in ["Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum", "PRelu"] {
        cases.push(case(op, &[x(), y()]));
    }
    for op in ["Max", "Min", "Mean", "Sum"] {
        cases.push(case(op, &[x(), y(), real("third", &["batch=2", "1"])]));
    }
    for op in ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"] {
        cases.push(case(op, &[x(), y()]).flat());
    }
    for op in ["And", "Or", "Xor"] {
        cases.push(case(op, &[flags("a", &["2", "3"]), flags("b", &["3"])]).flat());
    }
    cases.push(case("Gelu", &[x()]).word("approximate", "tanh"));
    cases.push(case("Elu", &[x()]).float("alpha", 0.7));
    cases.push(case("Celu", &[x()]).float("alpha", 0.7));
    cases.push(case("Swish", &[x()]).float("alpha", 1.5).opset(24));
    cases.push(case("Softmax", &[real("x", &["2", "3", "4"])]).int("axis", 1));
    cases.push(case("Div", &[x(), positive("d", &["3"])]));
    let whole = |name: &str, values: &[i64]| indices(name, &["n=6"], values);
    for fmod in [0, 1] {
        let operands = [whole("i", &[7, -7, 7, -7, 6, 0]), whole("m", &[3, 3, -3, -3, 2, 5])];
        cases.push(case("Mod", &operands).int("fmod", fmod).flat());
    }
    cases.push(case("Pow", &[p(), y()]));
    cases.push(case("Pow", &[x()]).number("three", 3.0));
    cases.push(case("Clip", &[x()]).number("low", -0.5).number("high", 0.75));
    cases.push(case("Clip", &[x(), real("low", &[])]));
    cases.push(case("Where", &[flags("c", &["batch=2", "3"]), x(), y()]));
    check(cases);
}

#[test]
fn convolutions_along_tokens() {
    let x = || real("x", &["batch=2", "4", "seq=6"]);
    let (w, bias) = (|k: &str| real("w", &["3", "4", k]), || real("c", &["3"]));
    check(vec![
        case("Conv", &[x(), w("1"), bias()]),
        case("Conv", &[x(), w("3")]).list("pads", &[1, 1]),
        case("Conv", &[x(), w("2"), bias()]).list("pads", &[2, 0]).list("dilations", &[2]),
        case("Conv", &[x(), real("each", &["4", "1", "3"])]).int("group", 4),
        case("Conv", &[x(), real("pairs", &["6", "2", "3"]), real("b", &["6"])]).list("pads", &[1, 1]).int("group", 2),
        case("Conv", &[x(), real("twice", &["8", "1", "1"])]).int("group", 4),
    ]);
}

#[test]
fn products_and_reductions() {
    let x = || real("x", &["batch=2", "3", "4"]);
    let mut cases = vec![
        case("MatMul", &[x(), real("w", &["4", "5"])]),
        case("MatMul", &[x(), real("w", &["batch=2", "4", "5"])]),
        case("MatMul", &[x(), real("w", &["4"])]),
        case("MatMul", &[real("v", &["3"]), x()]),
        case("Gemm", &[real("a", &["batch=2", "3"]), real("w", &["3", "4"]), real("c", &["4"])]).float("beta", 0.5),
        case("Gemm", &[real("a", &["3", "2"]), real("w", &["4", "3"])])
            .int("transA", 1)
            .int("transB", 1)
            .float("alpha", 0.25),
        contrib("FusedMatMul", &[x(), real("w", &["batch=2", "5", "4"])]).int("transB", 1).float("alpha", 0.5),
        contrib("FusedMatMul", &[x(), real("w", &["batch=2", "3", "5"])]).int("transA", 1),
    ];
    for (equation, a, b) in [
        ("bij,bjk->bik", ["2", "3", "4"], ["2", "4", "5"]),
        ("bij,bkj->bik", ["2", "3", "4"], ["2", "5", "4"]),
        ("bij,kjb->k", ["2", "3", "4"], ["5", "4", "2"]),
        ("abc,dea", ["2", "3", "4"], ["2", "3", "2"]),
    ] {
        cases.push(case("Einsum", &[real("a", &a), real("b", &b)]).word("equation", equation));
    }
    cases.push(case("Einsum", &[x()]).word("equation", "abc->ca"));
    let experts =
        [real("h", &["batch=2", "3", "4", "5"]), real("w", &["4", "5", "6"]), real("r", &["batch=2", "3", "4"])];
    cases.push(case("Einsum", &experts).word("equation", "blef,efd,ble->bld"));
    for op in ["ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"] {
        cases.push(case(op, &[x()]).numbers("axes", &[1, -1]).int("keepdims", 0));
        cases.push(case(op, &[x()]));
    }
    cases.push(case("ReduceSumSquare", &[x()]).numbers("axes", &[0]));
    for op in ["GlobalAveragePool", "GlobalMaxPool"] {
        cases.push(case(op, &[x()]));
        cases.push(case(op, &[real("x", &["batch=2", "3", "4", "5"])]));
    }
    for (exclusive, reverse) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let sum = case("CumSum", &[x()]).table(ints("axis", &[], &[1]));
        cases.push(sum.int("exclusive", exclusive).int("reverse", reverse));
    }
    check(cases);
}

#[test]
fn layout() {
    let x = || real("x", &["batch=2", "3", "4"]);
    let mut cases = vec![
        case("Concat", &[x(), real("z", &["batch=2", "5", "4"])]).int("axis", 1),
        case("Expand", &[real("x", &["3", "1"])]).numbers("shape", &[2, 1, 4]),
        case("Flatten", &[x()]).int("axis", 2),
        case("Reshape", &[x()]).numbers("shape", &[0, -1]),
        case("Squeeze", &[real("x", &["2", "1", "3"])]).numbers("axes", &[1]),
        case("Unsqueeze", &[x()]).numbers("axes", &[0, -1]),
        case("Tile", &[x()]).numbers("repeats", &[1, 2, 3]),
        case("Transpose", &[x()]).list("perm", &[2, 0, 1]),
        case("Transpose", &[x()]),
        case("Split", &[x()]).numbers("split", &[1, 2]).int("axis", 1).results(&["y", "z"]),
        case("Split", &[x()]).int("num_outputs", 2).int("axis", 2).results(&["y", "z"]),
        case("Pad", &[x()]).numbers("pads", &[0, 1, 2, 0, 0, 1]),
        case("Pad", &[x()]).numbers("pads", &[0, 1, -1, 0, 2, 0]).number("value", 0.5),
        case("Slice", &[x()])
            .numbers("starts", &[0, -1])
            .numbers("ends", &[3, i64::MIN])
            .numbers("axes", &[1, 2])
            .numbers("steps", &[2, -2]),
    ];
    for upper in [0, 1] {
        for k in [-1, 0, 2] {
            cases.push(case("Trilu", &[x()]).table(ints("k", &[], &[k])).int("upper", upper));
        }
    }
    check(cases);
}

#[test]
fn indexing() {
    let x = || real("x", &["batch=2", "3", "4"]);
    let at = |name: &str, dims: &[&str]| indices(name, dims, &[2, 0, 1, 1]);
    let mut cases = vec![
        case("Gather", &[x(), indices("i", &["n=2", "3"], &[1, 0, 1, 1, 0])]),
        case("Gather", &[x(), at("i", &["n=2", "2"])]).int("axis", 1),
        case("Gather", &[x(), at("i", &["5"])]).int("axis", -1),
        case("Gather", &[x(), at("i", &[])]).int("axis", 1),
        case("Gather", &[x()]).numbers("i", &[-1, 0]).int("axis", 1),
        case("GatherElements", &[x(), at("i", &["batch=2", "2", "4"])]).int("axis", 1),
        case("GatherND", &[x(), indices("i", &["n=3", "2"], &[0, 2, 1, 1, -1, -2])]),
        case("GatherND", &[x(), indices("i", &["3", "2", "1"], &[1, 0, -1])]),
        case("GatherND", &[x(), indices("i", &["batch=2", "1"], &[2, -2])]).int("batch_dims", 1),
        case("GatherND", &[x(), indices("i", &["batch=2", "3", "2"], &[2, 3, 0, 1])]).int("batch_dims", 1),
        case("GatherND", &[x()]).table(ints("i", &[1, 2], &[0, -1])),
        case("GatherND", &[x()]).table(ints("i", &[1, 1, 3], &[1, -2, 0])),
        case("ScatterElements", &[x(), at("i", &["batch=2", "2", "4"]), real("u", &["batch=2", "2", "4"])])
            .int("axis", 1)
            .word("reduction", "add"),
        case(
            "ScatterElements",
            &[x(), indices("i", &["batch=2", "1", "4"], &[2, 0, 1]), real("u", &["batch=2", "1", "4"])],
        )
        .int("axis", 1),
        case("ScatterND", &[x(), indices("i", &["2", "1", "2"], &[1, 2, 0, -1]), real("u", &["2", "1", "4"])]),
        case("ScatterND", &[x(), indices("i", &["3", "1"], &[1, 0, 1]), real("u", &["3", "3", "4"])])
            .word("reduction", "add"),
        case("ScatterND", &[at("x", &["3", "4"]), indices("i", &["2", "1"], &[1, 0]), at("u", &["2", "4"])]).flat(),
        // The repeats of a traced repeat_interleave: 1 and 3.
        case("OneHot", &[])
            .table(ints("i", &[2], &[0, -1]))
            .table(ints("depth", &[], &[2]))
            .table(ints("values", &[2], &[1, 3]))
            .flat(),
        case("OneHot", &[at("i", &["2", "3"])])
            .table(ints("depth", &[], &[4]))
            .table(floats("values", &[2], &[0.0, 1.0]))
            .flat(),
    ];
    for (largest, axis) in [(1, -1), (0, -1), (1, 1), (0, 0)] {
        let top = case("TopK", &[x()]).numbers("k", &[2]).results(&["y", "at"]);
        cases.push(top.int("largest", largest).int("axis", axis));
    }
    // Known rows: the last, one in the middle, all, and some that do not follow one another.
    for rows in [&[1, 2][..], &[1], &[0, 1, 2], &[2, 0]] {
        let updates = real("u", &[&rows.len().to_string(), "4"]);
        let put = case("ScatterND", &[real("x", &["3", "4"]), updates]);
        cases.push(put.table(ints("i", &[rows.len() as i64, 1], rows)).operands(&["x", "i", "u"]));
    }
    for (op, axis) in [("ArgMax", -1), ("ArgMin", 1), ("ArgMax", 0)] {
        cases.push(case(op, &[x()]).int("axis", axis).flat());
        cases.push(case(op, &[x()]).int("axis", axis).int("keepdims", 0).flat());
    }
    // Of equal elements the first is taken.
    let even = fed("x", DType::F32, &["2", "6"], |k| (k % 2) as f64);
    cases.push(case("ArgMax", std::slice::from_ref(&even)).int("axis", 1).flat());
    cases.push(case("TopK", &[even]).numbers("k", &[4]).results(&["y", "at"]).flat());
    check(cases);
}

#[test]
fn normalisations() {
    let x = || real("x", &["batch=2", "3", "4"]);
    let [w, c] = [|| real("w", &["4"]), || real("c", &["4"])];
    let skip = || real("skip", &["batch=2", "3", "4"]);
    let bias = || real("bias", &["4"]);
    let all = ["y", "", "", "sum"];
    check(vec![
        case("LayerNormalization", &[x(), w(), c()]),
        case("LayerNormalization", &[x(), w()]).float("epsilon", 0.1),
        case("LayerNormalization", &[x(), w(), c()]).results(&["y", "mean", "deviation"]),
        case("LayerNormalization", &[x(), real("w", &["3", "4"]), real("c", &["3", "4"])]).int("axis", 1),
        case("RMSNormalization", &[x(), w()]).float("epsilon", 0.1),
        // One scale for each head.
        case("RMSNormalization", &[x(), real("w", &["3", "4"])]),
        case("RMSNormalization", &[x(), real("w", &["1", "4"])]),
        case("LayerNormalization", &[x(), real("w", &["3", "4"]), real("c", &["3", "4"])]).float("epsilon", 0.1),
        case("LayerNormalization", &[x(), real("w", &["3", "1"])]),
        case("SimplifiedLayerNormalization", &[x(), w()]),
        case("LpNormalization", &[x()]).int("axis", 1),
        case("LpNormalization", &[x()]).int("p", 1),
        contrib("SkipLayerNormalization", &[x(), skip(), w(), c(), bias()]).float("epsilon", 0.01).results(&all),
        contrib("SkipLayerNormalization", &[x(), real("skip", &["3", "4"]), w()]),
        contrib("SkipSimplifiedLayerNormalization", &[x(), skip(), w(), bias()]).float("epsilon", 0.01).results(&all),
        contrib("SkipSimplifiedLayerNormalization", &[x(), skip(), w()]).float("epsilon", 0.01),
    ]);
}

#[test]
fn activations_of_onnx_runtime() {
    let [x, bias] = [|| real("x", &["batch=2", "3", "4"]), || real("bias", &["4"])];
    check(vec![
        contrib("Gelu", &[x()]),
        contrib("BiasGelu", &[x(), bias()]),
        contrib("FastGelu", &[x()]),
        contrib("FastGelu", &[x(), bias()]),
        contrib("QuickGelu", &[x()]),
        contrib("QuickGelu", &[x()]).float("alpha", 1.0),
    ]);
}

#[test]
fn attention() {
    let q = || real("q", &["batch=2", "4", "3", "6"]);
    let kv = |name: &str| real(name, &["batch=2", "2", "5", "6"]);
    let flat = |name: &str, width: &str| real(name, &["batch=2", "seq=3", width]);
    let grouped = |more: &[Fed]| case("Attention", &[&[q(), kv("k"), kv("v")], more].concat());
    check(vec![
        grouped(&[]),
        grouped(&[]).float("scale", 0.3).opset(24),
        grouped(&[]).int("is_causal", 1),
        grouped(&[]).float("softcap", 1.5),
        grouped(&[real("mask", &["3", "5"])]),
        grouped(&[real("mask", &["batch=2", "1", "3", "5"])]).int("is_causal", 1),
        grouped(&[flags("mask", &["batch=2", "4", "3", "5"])]),
        // A row that allows nothing gives 0.
        grouped(&[fed("mask", DType::Bool, &["3", "5"], |k| f64::from(k >= 5))]),
        grouped(&[flags("mask", &["3", "5"])]).float("softcap", 1.5).opset(24),
        case("Attention", &[flat("q", "8"), flat("k", "4"), flat("v", "6")])
            .int("q_num_heads", 4)
            .int("kv_num_heads", 2)
            .int("is_causal", 1),
    ]);
}

#[test]
fn rotary_embeddings() {
    let x4 = || real("x", &["batch=2", "2", "3", "8"]);
    let x3 = || real("x", &["batch=2", "seq=3", "16"]);
    let table = |name: &str, rows: &str, half: &str| real(name, &[rows, half]);
    let at = || indices("at", &["batch=2", "3"], &[4, 0, 2, 1]);
    let at3 = || indices("at", &["batch=2", "seq=3"], &[4, 0, 2]);
    let wide = |name: &str, half: &str| real(name, &["batch=2", "3", half]);
    check(vec![
        case("RotaryEmbedding", &[x4(), table("cos", "6", "4"), table("sin", "6", "4"), at()]),
        case("RotaryEmbedding", &[x4(), wide("cos", "4"), wide("sin", "4")]).int("interleaved", 1),
        case("RotaryEmbedding", &[x4(), wide("cos", "2"), wide("sin", "2")]).int("rotary_embedding_dim", 4),
        case("RotaryEmbedding", &[real("x", &["batch=2", "3", "16"]), wide("cos", "4"), wide("sin", "4")])
            .int("num_heads", 2),
        contrib("RotaryEmbedding", &[x3(), at3(), table("cos", "6", "4"), table("sin", "6", "4")]),
        contrib(
            "RotaryEmbedding",
            &[x4(), indices("at", &["1"], &[2]), table("cos", "6", "4"), table("sin", "6", "4")],
        )
        .int("interleaved", 1),
        contrib("RotaryEmbedding", &[x3(), at3(), table("cos", "6", "2"), table("sin", "6", "2")])
            .int("num_heads", 2)
            .int("rotary_embedding_dim", 4),
    ]);
}

#[test]
fn fused_embeddings_and_products_of_onnx_runtime() {
    let tables = || [real("words", &["6", "8"]), real("places", &["4", "8"]), real("parts", &["2", "8"])];
    let norm = || [real("w", &["8"]), real("b", &["8"])];
    let index = |name: &str, dims: &[&str], most: usize| fed(name, DType::I32, dims, |k| (k % most) as f64);
    let (ids, kinds) = (index("ids", &["batch=2", "3"], 6), index("kinds", &["batch=2", "3"], 2));
    let mask = || fed("mask", DType::I32, &["batch=2", "3"], |k| f64::from(k < 3));
    let embedded = |more: &[Fed]| {
        let fed = [&[ids.clone(), kinds.clone()], &tables()[..], &norm()[..], more].concat();
        contrib("EmbedLayerNormalization", &fed).results(&["y", "lengths", "sum"])
    };
    let gemm = |activation: &str| {
        let fed = [real("x", &["batch=2", "3"]), real("w", &["3", "4"]), real("b", &["4"])];
        contrib("FusedGemm", &fed).word("activation", activation)
    };
    check(vec![
        embedded(&[mask()]),
        embedded(&[]),
        embedded(&[index("where", &["batch=2", "3"], 4)])
            .operands(&["ids", "kinds", "words", "places", "parts", "w", "b", "", "where"]),
        contrib("EmbedLayerNormalization", &[std::slice::from_ref(&ids), &tables()[..2], &norm()[..]].concat())
            .operands(&["ids", "", "words", "places", "", "w", "b"])
            .results(&["y", "lengths"])
            .float("epsilon", 0.1),
        gemm("Relu"),
        gemm("Tanh"),
        gemm("Sigmoid"),
        gemm("LeakyRelu").float("activation_alpha", 0.2),
        gemm("HardSigmoid").float("activation_alpha", 0.1).float("activation_beta", 0.4),
    ]);
}

/// Weights in 4 and 8 bits, with zero points of their own, a last block that is not full, and a bias.
#[test]
fn products_with_weights_in_few_bits() {
    let bytes = |name: &str, dims: &[i64]| TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::Uint8 as i32,
        raw_data: (0..dims.iter().product::<i64>()).map(|k| (37 * k + 11) as u8).collect::<Vec<u8>>().into(),
        ..Default::default()
    };
    let some =
        |name: &str, n: i64| floats(name, &[n], &(0..n).map(|k| 0.1 + (k % 5) as f32 * 0.05).collect::<Vec<f32>>());
    // 3 outputs, blocks of 16.
    let product = |width: i64, bits: i64, more: &[(usize, TensorProto)]| {
        let blocks = (width + 15) / 16;
        let mut case = contrib("MatMulNBits", &[real("x", &["batch=2", "3", &width.to_string()])])
            .table(bytes("codes", &[3, blocks, 2 * bits]))
            .table(some("scales", 3 * blocks))
            .int("K", width)
            .int("N", 3)
            .int("bits", bits)
            .int("block_size", 16);
        for (place, table) in more {
            case.node.input.resize(case.node.input.len().max(place + 1), String::new());
            case.node.input[*place] = table.name.clone();
            case.tables.push(table.clone());
        }
        case
    };
    check(vec![
        product(48, 4, &[]),
        product(48, 8, &[]),
        product(40, 4, &[]),
        product(48, 4, &[(3, bytes("zeros", &[3 * 2]))]),
        product(40, 4, &[(3, bytes("zeros", &[3 * 2])), (5, some("bias", 3))]),
        product(48, 8, &[(3, bytes("zeros", &[3 * 3]))]),
        product(32, 4, &[(3, floats("zeros", &[3, 2], &[7.0, 8.5, 3.0, 9.0, 15.0, 0.0]))]),
    ]);
}

#[test]
fn fused_attention_of_onnx_runtime() {
    let part = |name: &str, seq: &str, width: &str| real(name, &["batch=2", seq, width]);
    let many = |more: &[Fed]| {
        contrib(
            "MultiHeadAttention",
            &[&[part("q", "3", "8"), part("k", "5", "8"), part("v", "5", "8")], more].concat(),
        )
        .int("num_heads", 2)
    };
    let own = |more: &[Fed]| {
        let operands = [&[part("x", "3", "8"), real("w", &["8", "24"])], more].concat();
        contrib("Attention", &operands).int("num_heads", 2)
    };
    let padding =
        |dims: &[&str]| fed("pad", DType::I32, dims, |k| if dims.len() == 1 { 3.0 } else { f64::from(k % 4 != 3) });
    let lengths = || fed("lengths", DType::I32, &["batch=2"], |_| 2.0);
    let total = || TensorProto {
        name: "total".into(),
        data_type: DataType::Int32 as i32,
        raw_data: 3i32.to_le_bytes().to_vec().into(),
        ..Default::default()
    };
    let shared = |more: &[Fed]| {
        let operands =
            [&[part("q", "seq=3", "64"), part("k", "seq=3", "32"), part("v", "seq=3", "32"), lengths()], more].concat();
        let mut case = contrib("GroupQueryAttention", &operands).int("num_heads", 4).int("kv_num_heads", 2);
        case.tables.push(total());
        case.results(&["y", "present_key", "present_value"])
    };
    let tables = [real("cos", &["6", "8"]), real("sin", &["6", "8"])];
    let plain = ["q", "k", "v", "", "", "lengths", "total"];
    let turned = ["q", "k", "v", "", "", "lengths", "total", "cos", "sin"];
    check(vec![
        many(&[]),
        many(&[]).float("scale", 0.3),
        many(&[real("bias", &["24"])]),
        many(&[padding(&["batch=2", "5"])]).operands(&["q", "k", "v", "", "pad"]),
        many(&[padding(&["batch=2"])]).operands(&["q", "k", "v", "", "pad"]),
        many(&[padding(&["batch=2", "3", "5"])]).operands(&["q", "k", "v", "", "pad"]),
        many(&[real("more", &["1", "2", "3", "5"])]).operands(&["q", "k", "v", "", "", "more"]),
        contrib("MultiHeadAttention", &[part("q", "3", "8"), part("k", "3", "8"), part("v", "3", "8")])
            .int("num_heads", 2)
            .int("unidirectional", 1),
        own(&[]),
        own(&[real("own", &["24"])]).float("scale", 0.3),
        own(&[padding(&["batch=2", "3"])]).operands(&["x", "w", "", "pad"]),
        own(&[lengths()]).operands(&["x", "w", "", "lengths"]),
        own(&[real("more", &["1", "2", "3", "3"])]).operands(&["x", "w", "", "", "", "more"]).int("unidirectional", 1),
        contrib("Attention", &[part("x", "3", "8"), real("w", &["8", "20"]), real("own", &["20"])])
            .int("num_heads", 2)
            .list("qkv_hidden_sizes", &[8, 8, 4]),
        shared(&[]).operands(&plain),
        shared(&[]).operands(&plain).float("softcap", 1.5).float("scale", 0.3),
        shared(&[]).operands(&plain).int("local_window_size", 2),
        shared(&tables).operands(&turned).int("do_rotary", 1),
        shared(&tables).operands(&turned).int("do_rotary", 1).int("rotary_interleaved", 1),
    ]);
}
