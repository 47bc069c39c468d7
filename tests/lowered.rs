//! What is written computes what is meant: every operator, lowered and emitted alone, in ONNX Runtime beside
//! the interpreter.

use candle_core::{DType as Candle, Tensor};
use std::collections::BTreeMap;
use weftc::interp;
use weftc::ir::op::{Emit, ROWS};
use weftc::ir::text::{parse, print};
use weftc::ir::{Builder, DType, Data, Graph, LeafKind, Op};
use weftc::lower::{expand, finish};
use weftc::onnx::write::plain;
use weftc::rules::Target;
use weftc::rules::check::example::{Example, examples};
use weftc::rules::library::library;
use weftc::runtime::{HostTensor, Options, Session};

/// ONNX Runtime computes in f32, the interpreter in f64.
const TOLERANCE: f64 = 2e-5;
/// Examples of each operator.
const EXAMPLES: usize = 6;
/// Any number.
const SEED: u64 = 7;

/// Operators that are not compared here, and why.
const EXCEPTIONS: &[(Op, &str)] = &[
    (Op::Objective, "a method's `define` unfolds it before lowering; tests/rules.rs runs that"),
    (Op::Adapted, "an adapter's `define` unfolds it before lowering; tests/adapters.rs runs that"),
    (Op::Tuple, "joins roots, is no node"),
    (Op::Sgd, "has two results: tests/optimizers.rs compares its updates with those computed by hand"),
    (Op::AdamW, "has three results: tests/run.rs compares its updates with those computed by hand"),
];

fn shape(t: &Tensor) -> Vec<i64> {
    t.dims().iter().map(|n| *n as i64).collect()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(Candle::F64).unwrap().to_vec1().unwrap()
}

/// The values of the inputs as both sides can hold them.
fn rounded(graph: &Graph, feeds: &BTreeMap<String, Tensor>) -> BTreeMap<String, HostTensor> {
    let host = |l: &weftc::ir::Leaf| {
        let fed = &feeds[&l.name];
        (l.name.clone(), HostTensor::from_f64(l.ty.dtype, &shape(fed), &values(fed)).unwrap())
    };
    graph.leaves.iter().map(host).collect()
}

fn graph_has(graph: &Graph, op: Op) -> bool {
    graph.live().iter().any(|id| graph.node(*id).op() == Some(op))
}

/// Where ONNX Runtime and the interpreter differ on an example.
fn difference(example: &Example, target: Target) -> Result<(), String> {
    let rules = library().unwrap().lower_for(target);
    let hosts = rounded(&example.graph, &example.feeds);
    let back = |h: &HostTensor| {
        let dims: Vec<usize> = h.shape().iter().map(|n| *n as usize).collect();
        Tensor::from_vec(h.to_f64(), dims, &candle_core::Device::Cpu).unwrap()
    };
    let feeds = hosts.iter().map(|(n, h)| (n.clone(), back(h))).collect();
    let want = values(&interp::run(&example.graph, &feeds).map_err(|e| e.to_string())?["y"]);
    // Codes of 4 bits are constants of a file: nothing in ONNX makes them of bytes.
    let mut graph = example.graph.clone();
    let is_codes = |name: &str, h: &HostTensor| {
        h.dtype() == DType::U8 && name == "x0" && graph_has(&example.graph, Op::Dequantize)
    };
    for leaf in &mut graph.leaves {
        let held = &hosts[&leaf.name];
        if is_codes(&leaf.name, held) {
            (leaf.kind, leaf.data) = (LeafKind::Const, Some(Data::Inline(held.bytes().into())));
        }
    }
    let lowered = expand(&graph, &rules, target, &mut BTreeMap::new()).map_err(|e| e.to_string())?;
    let bytes = plain(&lowered, &rules).map_err(|e| e.to_string())?;
    let mut session = Session::from_bytes(&bytes, &Options::default()).map_err(|e| e.to_string())?;
    let fed = hosts.iter().filter(|(name, h)| !is_codes(name, h));
    let outputs = session.run(fed.map(|(n, h)| (n.as_str(), h))).map_err(|e| e.to_string())?;
    let y = &outputs["y"];
    let ty = example.graph.type_of(example.graph.outputs[0].1).tensor().unwrap();
    // How many rows are true follows from the values.
    let fits = |(n, d): (&i64, &weftc::ir::Dim)| d.known().is_none_or(|d| d == *n);
    if y.dtype() != ty.dtype || y.shape().len() != ty.shape.len() || !y.shape().iter().zip(&ty.shape).all(fits) {
        return Err(format!("ONNX Runtime says {y:?}, the type is {ty}"));
    }
    let scale = want.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
    for (k, (got, want)) in y.to_f64().iter().zip(&want).enumerate() {
        let alike = got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= TOLERANCE * scale;
        if !alike {
            return Err(format!("element {k} of {ty}: ONNX Runtime {got}, interpreter {want}"));
        }
    }
    Ok(())
}

#[test]
fn every_operator_means_the_same_in_onnx_runtime() {
    let mut wrong = Vec::new();
    let mut compared = 0;
    for row in ROWS {
        if EXCEPTIONS.iter().any(|(op, _)| *op == row.op) {
            continue;
        }
        match examples(row.op, EXAMPLES, SEED) {
            Err(why) => wrong.push(format!("{}: no examples: {why}", row.name)),
            Ok(examples) => {
                // What is written for a GPU, the CPU has too.
                for (example, target) in examples.iter().flat_map(|e| [(e, Target::Cpu), (e, Target::Cuda)]) {
                    compared += 1;
                    if let Err(why) = difference(example, target) {
                        let shown = weftc::ir::text::print(&example.graph);
                        wrong.push(format!("{} ({:?}, {target:?}): {why}\n{shown}", row.name, row.emit));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {compared}\n{}", wrong.len(), wrong.join("\n"));
}

/// Fused nodes are shared functions: two calls that differ in sizes and in numbers still mean their own.
#[test]
fn calls_share_a_function() {
    let shared = weftc::ir::text::parse(
        "(graph g (input x f32 [b 4]) (input w f32 [4]) (let y (rms_norm x w 0.1)) (output z (rms_norm y w 0.001)))",
    );
    let graph = shared.unwrap();
    let rules = library().unwrap().lower_for(Target::Cpu);
    assert!(ROWS.iter().any(|r| matches!(r.emit, Emit::Weft(_)) && r.op == Op::RmsNorm));
    let bytes = plain(&graph, &rules).unwrap();
    let mut session = Session::from_bytes(&bytes, &Options::default()).unwrap();
    let x = HostTensor::from_f64(DType::F32, &[2, 4], &[1.0, -2.0, 0.5, 3.0, 0.0, 0.25, -0.5, 1.0]).unwrap();
    let w = HostTensor::from_f64(DType::F32, &[4], &[1.0, 0.5, 2.0, -1.0]).unwrap();
    let got = session.run([("x", &x), ("w", &w)]).unwrap()["z"].to_f64();
    let norm = |row: &[f64], eps: f64| {
        let rms = (row.iter().map(|v| v * v).sum::<f64>() / 4.0 + eps).sqrt();
        row.iter().zip(w.to_f64()).map(|(v, w)| v / rms * w).collect::<Vec<f64>>()
    };
    let want: Vec<f64> = x.to_f64().chunks(4).flat_map(|row| norm(&norm(row, 0.1), 0.001)).collect();
    for (g, w) in got.iter().zip(&want) {
        assert!((g - w).abs() < 1e-5, "{got:?} is not {want:?}");
    }
}

/// Gradients of stacked layers are put side by side one by one; each step would copy all before it.
#[test]
fn nested_concatenations_become_one() {
    let inputs = "(input a f32 [2 3]) (input b f32 [1 3]) (input c f32 [4 3]) (input d f32 [2 1])";
    let body = "(let %0 (concat b c 0)) (let %1 (concat a %0 0)) (let %2 (concat %1 b 0)) (let %3 (concat a d 1))
        (let %4 (concat %3 d %3 1)) (output rows %2) (output columns %4)";
    let graph = parse(&format!("(graph g {inputs} {body})")).unwrap();
    let flat = finish(&graph, &library().unwrap().lower, Target::Cpu, &mut BTreeMap::new()).unwrap();
    insta::assert_snapshot!(print(&flat));
}
