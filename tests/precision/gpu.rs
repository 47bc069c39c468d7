//! Whether ONNX Runtime has a kernel on a GPU for every node in bf16, which nothing else on a machine without one tells.

use std::collections::BTreeSet;
use std::path::PathBuf;
use weftc::adapt::Spec;
use weftc::compile::{Options, compile};
use weftc::ir::op::Emit;
use weftc::ir::{Builder, DType, Graph, Id, Node, Op, Type};
use weftc::lower::{body, renamed};
use weftc::precision::Compute;
use weftc::quantize::Quantization;
use weftc::rules::Target;
use weftc::rules::library::library;

/// Of operator set 21 and of ONNX Runtime's own, those whose CUDA kernel takes bf16: docs/OperatorKernels.md of ONNX Runtime
/// 1.31.
const IN_BF16: [&str; 36] = [
    "Abs",
    "Add",
    "Cast",
    "Concat",
    "ConstantOfShape",
    "Div",
    "Erf",
    "Exp",
    "Expand",
    "FusedMatMul",
    "Gather",
    "GatherElements",
    "Gemm",
    "IsNaN",
    "LayerNormalization",
    "MatMul",
    "MatMulNBits",
    "Max",
    "Min",
    "Mul",
    "MultiHeadAttention",
    "Neg",
    "Pow",
    "ReduceSum",
    "Reshape",
    "ScatterElements",
    "ScatterND",
    "Sigmoid",
    "Sign",
    "Slice",
    "Softmax",
    "Sqrt",
    "Sub",
    "Tanh",
    "Transpose",
    "Where",
];

/// The operators that a node becomes in the file.
fn written(op: Op) -> Vec<&'static str> {
    match (op.row().emit, op) {
        (Emit::Std(name) | Emit::Contrib(name), _) => vec![name],
        (_, Op::CumSum) => vec!["CumSum"],
        (_, Op::ScatterAdd) => vec!["ScatterElements", "Reshape"],
        (_, Op::TopkValues | Op::TopkIndices) => vec!["TopK"],
        (_, Op::Pad) => vec!["Pad"],
        (_, Op::After) => vec!["Reshape", "Slice", "Cast"],
        (_, Op::Full) => vec!["ConstantOfShape"],
        (_, Op::PutRows) => vec!["ScatterND", "Reshape"],
        (_, Op::MatMulNBits) => vec!["MatMulNBits"],
        (Emit::Custom, _) => panic!("{} stands for operators that this test does not know", op.name()),
        _ => vec![],
    }
}

fn is_bf16(graph: &Graph, id: Id) -> bool {
    graph.tensor_type(id).is_some_and(|t| t.dtype == DType::BF16)
}

/// Nodes of bf16 without a kernel, in a graph and in the bodies of its functions; `seen` are those that were looked at.
fn lacking(graph: &Graph, seen: &mut BTreeSet<String>, found: &mut BTreeSet<String>) {
    let rules = &library().unwrap().lower;
    for id in graph.live() {
        let Node::Op(op, children) = graph.node(id) else { continue };
        if !children.iter().chain([&id]).any(|x| is_bf16(graph, *x)) {
            continue;
        }
        let types: Vec<&Type> = children.iter().map(|c| graph.type_of(*c)).collect();
        let types = renamed(&types.into_iter().cloned().collect::<Vec<_>>());
        let node = format!("{}({})", op.name(), types.iter().map(Type::to_string).collect::<Vec<_>>().join(", "));
        if !seen.insert(node.clone()) {
            continue;
        }
        match op.row().emit {
            Emit::Weft(_) | Emit::Kernel(_) => {
                let body = body(*op, &types.iter().collect::<Vec<_>>(), &[], rules).unwrap();
                lacking(&body, seen, found);
            }
            _ if written(*op).iter().all(|name| IN_BF16.contains(name)) => {}
            _ => drop(found.insert(node)),
        }
    }
}

fn exports() -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let folders = [root.join("models"), root.join("../shared/models")];
    let files = folders.iter().filter_map(|f| f.read_dir().ok()).flatten().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "onnx")).collect()
}

#[test]
fn every_node_has_a_kernel_in_bf16() {
    let (mut seen, mut found, mut in_few_bits) = (BTreeSet::new(), BTreeSet::new(), 0);
    for file in exports() {
        for (trainable, quantize) in
            [("full", None), ("lora", None), ("lora", Some(Quantization::Int8)), ("lora", Some(Quantization::Int4))]
        {
            let options = Options {
                mask_id: Some(3),
                target: Target::Cuda,
                compute: Compute::Bf16,
                trainable: trainable.parse().unwrap(),
                adapter: Spec { targets: vec!["all-linear".into()], ..Spec::default() },
                quantize,
                ..Options::new(&file)
            };
            let compiled = match compile(&options) {
                Ok(compiled) => compiled,
                // Every layer is too narrow for blocks, or no matrix as it lies.
                Err(error) if quantize.is_some() && error.to_string().contains("--quantize-base") => continue,
                Err(error) => panic!("{}: {error}", file.display()),
            };
            in_few_bits += usize::from(quantize.is_some());
            lacking(&compiled.graph, &mut seen, &mut found);
        }
    }
    assert!(in_few_bits > 20, "{in_few_bits} were quantised");
    assert!(found.is_empty(), "{}", found.into_iter().collect::<Vec<_>>().join("\n"));
}
