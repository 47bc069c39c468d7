//! Every operator that is read, alone in a model: the graph beside ONNX Runtime, which runs the model itself, and
//! the gradient beside finite differences.

use crate::build::*;
use candle_core::{Device, Tensor};
use prost::Message;
use std::collections::BTreeMap;
use weftc::autodiff::differentiate;
use weftc::interp::run;
use weftc::ir::{Builder, DType, Graph, Id, Lit, Op};
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::proto::*;
use weftc::onnx::read::read;
use weftc::rules::parse::library;
use weftc::runtime::{HostTensor, Options, Session};

/// ONNX Runtime computes in f32, the graph in f64; relative to the largest element.
const TOLERANCE: f64 = 1e-5;
/// Gradients against central differences, both in f64.
const GRADIENT_TOLERANCE: f64 = 1e-6;
const STEP: f64 = 1e-5;

/// An input that is fed: its sizes may have a name, `batch=2`.
#[derive(Clone)]
struct Fed {
    info: ValueInfoProto,
    tensor: HostTensor,
}

/// One operator, its inputs and tables; its results are the model's.
struct Case {
    node: NodeProto,
    fed: Vec<Fed>,
    tables: Vec<TensorProto>,
    opset: i64,
    /// Whether the gradient is compared too.
    smooth: bool,
}

fn fed(name: &str, dtype: DType, dims: &[&str], value: impl FnMut(usize) -> f64) -> Fed {
    let onnx = match dtype {
        DType::F32 => DataType::Float,
        DType::I64 => DataType::Int64,
        DType::I32 => DataType::Int32,
        _ => DataType::Bool,
    };
    let names: Vec<&str> = dims.iter().map(|d| d.split('=').next().unwrap()).collect();
    let sizes: Vec<i64> = dims.iter().map(|d| d.split('=').next_back().unwrap().parse().unwrap()).collect();
    let n = sizes.iter().product::<i64>() as usize;
    let values: Vec<f64> = (0..n).map(value).collect();
    Fed { info: input(name, onnx, &names), tensor: HostTensor::from_f64(dtype, &sizes, &values).unwrap() }
}

/// A number in [-2, 2) that depends on the name and the place.
fn noise(name: &str, k: usize) -> f64 {
    let seed = name.bytes().fold(k as u64 + 1, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64 * 4.0 - 2.0
}

fn real(name: &str, dims: &[&str]) -> Fed {
    fed(name, DType::F32, dims, |k| noise(name, k))
}

fn positive(name: &str, dims: &[&str]) -> Fed {
    fed(name, DType::F32, dims, |k| noise(name, k).abs() + 0.1)
}

fn indices(name: &str, dims: &[&str], values: &[i64]) -> Fed {
    fed(name, DType::I64, dims, |k| values[k % values.len()] as f64)
}

fn flags(name: &str, dims: &[&str]) -> Fed {
    fed(name, DType::Bool, dims, |k| f64::from(noise(name, k) > -0.8 || k % 3 == 0))
}

fn case(op: &str, fed: &[Fed]) -> Case {
    let inputs: Vec<&str> = fed.iter().map(|f| f.info.name.as_str()).collect();
    Case { node: node(op, &inputs, &["y"]), fed: fed.to_vec(), tables: vec![], opset: 23, smooth: true }
}

fn contrib(op: &str, fed: &[Fed]) -> Case {
    let mut case = case(op, fed);
    case.node.domain = "com.microsoft".into();
    case
}

impl With for Case {
    fn with(mut self, a: AttributeProto) -> Self {
        self.node.attribute.push(a);
        self
    }
}

impl Case {
    fn word(self, name: &str, s: &str) -> Self {
        let r#type = attribute_proto::AttributeType::String as i32;
        self.with(AttributeProto {
            name: name.into(),
            s: Some(s.as_bytes().to_vec().into()),
            r#type,
            ..Default::default()
        })
    }

    fn list(self, name: &str, ints: &[i64]) -> Self {
        let r#type = attribute_proto::AttributeType::Ints as i32;
        self.with(AttributeProto { name: name.into(), ints: ints.to_vec(), r#type, ..Default::default() })
    }

    /// A further operand that stands in the file.
    fn table(mut self, table: TensorProto) -> Self {
        self.node.input.push(table.name.clone());
        self.tables.push(table);
        self
    }

    fn numbers(self, name: &str, values: &[i64]) -> Self {
        self.table(ints(name, &[values.len() as i64], values))
    }

    fn number(self, name: &str, x: f32) -> Self {
        self.table(floats(name, &[], &[x]))
    }

    /// Operands in this order; an empty name leaves one out.
    fn operands(mut self, names: &[&str]) -> Self {
        self.node.input = names.iter().map(|n| n.to_string()).collect();
        self
    }

    /// Names of the results.
    fn results(mut self, names: &[&str]) -> Self {
        self.node.output = names.iter().map(|n| n.to_string()).collect();
        self
    }

    fn opset(mut self, version: i64) -> Self {
        self.opset = version;
        self
    }

    /// The gradient is 0 or not defined.
    fn flat(mut self) -> Self {
        self.smooth = false;
        self
    }

    fn model(&self) -> ModelProto {
        let infos: Vec<ValueInfoProto> = self.fed.iter().map(|f| f.info.clone()).collect();
        let mut model = model(&infos, &self.tables, std::slice::from_ref(&self.node));
        model.opset_import[0].version = self.opset;
        model.opset_import.push(OperatorSetIdProto { domain: "com.microsoft".into(), version: 1 });
        let named = self.node.output.iter().filter(|o| !o.is_empty());
        model.graph.as_mut().unwrap().output =
            named.map(|o| ValueInfoProto { name: o.clone(), ..Default::default() }).collect();
        model
    }

    fn feeds(&self) -> BTreeMap<String, Tensor> {
        let tensor = |t: &HostTensor| {
            let dims: Vec<usize> = t.shape().iter().map(|n| *n as usize).collect();
            Tensor::from_vec(t.to_f64(), dims, &Device::Cpu).unwrap()
        };
        self.fed.iter().map(|f| (f.info.name.clone(), tensor(&f.tensor))).collect()
    }

    /// What is wrong with the reading or the gradient.
    fn check(&self) -> Result<(), String> {
        let model = self.model();
        let (_folder, path) = written(&model);
        let graph = read(&path).map_err(|e| format!("reading: {e}"))?.graph;
        let ours = run(&graph, &self.feeds()).map_err(|e| format!("interpreting: {e}"))?;
        let mut session = Session::from_bytes(&model.encode_to_vec(), &Options::default())
            .map_err(|e| format!("ONNX Runtime: {e}"))?;
        let theirs = session
            .run(self.fed.iter().map(|f| (f.info.name.as_str(), &f.tensor)))
            .map_err(|e| format!("ONNX Runtime: {e}"))?;
        for (name, value) in &theirs {
            let dims: Vec<i64> = ours[name].dims().iter().map(|n| *n as i64).collect();
            if dims != value.shape() {
                return Err(format!("{name}: shape {dims:?}, ONNX Runtime {:?}", value.shape()));
            }
            let ours = numbers(&ours[name]);
            let scale = ours.iter().fold(1.0f64, |m, x| m.max(x.abs()));
            for (k, (a, b)) in ours.iter().zip(value.to_f64()).enumerate() {
                if (a - b).abs() > TOLERANCE * scale || a.is_nan() != b.is_nan() {
                    return Err(format!("{name}, element {k}: {a}, ONNX Runtime {b}"));
                }
            }
        }
        if self.smooth { self.gradient(graph) } else { Ok(()) }
    }

    /// The gradient of a random weighting of all results.
    fn gradient(&self, mut graph: Graph) -> Result<(), String> {
        let mut feeds = self.feeds();
        let outputs = std::mem::take(&mut graph.outputs);
        let mut loss: Option<Id> = None;
        for (name, y) in outputs {
            let ty = graph.tensor_type(y).cloned().ok_or("no tensor")?;
            if !ty.dtype.is_float() {
                continue;
            }
            let weight = format!("weight of {name}");
            let c = graph.input(&weight, ty.dtype, &ty.shape);
            let product = graph.op(Op::Mul, &[y, c])?;
            let axes = graph.lit(Lit::Ints((0..ty.rank() as i64).map(Into::into).collect()))?;
            let none = graph.lit(Lit::Ints(Box::default()))?;
            let sum = graph.op(Op::Sum, &[product, axes])?;
            let sum = graph.op(Op::Reshape, &[sum, none])?;
            loss = Some(match loss {
                Some(before) => graph.op(Op::Add, &[before, sum])?,
                None => sum,
            });
            graph.outputs.push(("y".into(), y));
            let dims = run(&graph, &feeds).map_err(|e| e.to_string())?["y"].dims().to_vec();
            graph.outputs.clear();
            let n = dims.iter().product();
            let values: Vec<f64> = (0..n).map(|k| noise(&weight, k)).collect();
            feeds.insert(weight, Tensor::from_vec(values, dims, &Device::Cpu).unwrap());
        }
        let loss = loss.ok_or("no result is smooth")?;
        graph.outputs = live_inputs(&graph, &self.fed);
        graph.outputs.push(("loss".into(), loss));
        let wrt: Vec<&Fed> = self.fed.iter().filter(|f| f.tensor.dtype().is_float()).collect();
        let leaves: Vec<Id> = wrt.iter().filter_map(|f| leaf(&graph, &f.info.name)).collect();
        let rows = library().unwrap().grad;
        let gradients = differentiate(&mut graph, loss, &leaves, &rows).map_err(|e| format!("gradient: {e}"))?;
        let value = |feeds: &BTreeMap<String, Tensor>| -> f64 { numbers(&run(&graph, feeds).unwrap()["loss"])[0] };
        let mut whole = graph.clone();
        // The inputs too, so that sizes are bound where the gradient needs no more than those.
        whole.outputs = live_inputs(&graph, &self.fed);
        whole.outputs.extend(wrt.iter().map(|f| format!("d {}", f.info.name)).zip(gradients));
        let gradients = run(&whole, &feeds).map_err(|e| format!("gradient: {e}"))?;
        for name in wrt.iter().map(|f| &f.info.name) {
            let direction: Vec<f64> = (0..feeds[name].elem_count()).map(|k| noise("direction", k)).collect();
            let ours: f64 = numbers(&gradients[&format!("d {name}")]).iter().zip(&direction).map(|(g, d)| g * d).sum();
            let direction = Tensor::from_vec(direction, feeds[name].shape(), &Device::Cpu).unwrap();
            let moved = |step: f64| {
                let mut feeds = feeds.clone();
                let x = (&feeds[name] + direction.affine(step, 0.0).unwrap()).unwrap();
                feeds.insert(name.clone(), x);
                value(&feeds)
            };
            let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let scale = ours.abs().max(1.0);
            let close = (ours - difference).abs() <= GRADIENT_TOLERANCE * scale;
            if !close {
                return Err(format!("gradient of {name}: {ours}, by differences {difference}"));
            }
        }
        Ok(())
    }
}

fn live_inputs(graph: &Graph, fed: &[Fed]) -> Vec<(String, Id)> {
    fed.iter().filter_map(|f| Some((f.info.name.clone(), leaf(graph, &f.info.name)?))).collect()
}

fn leaf(graph: &Graph, name: &str) -> Option<Id> {
    (0..graph.len()).map(Id::from).find(|id| graph.as_leaf(*id).is_some_and(|l| graph.leaf(l).name == name))
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// Checks all cases, then reports every failure.
fn check(cases: Vec<Case>) {
    let problems: Vec<String> = cases
        .iter()
        .filter_map(|c| {
            let attrs: Vec<&str> = c.node.attribute.iter().map(|a| a.name.as_str()).collect();
            let place = format!("{}({}) {attrs:?}", c.node.op_type, c.node.input.join(", "));
            c.check().err().map(|why| format!("{place}: {why}"))
        })
        .collect();
    assert!(problems.is_empty(), "{} of {}\n{}", problems.len(), cases.len(), problems.join("\n"));
}

#[test]
fn elementwise() {
    let x = || real("x", &["batch=2", "3"]);
    let p = || positive("p", &["batch=2", "3"]);
    let y = || real("other", &["3"]);
    let mut cases = Vec::new();
    for op in ["Abs", "Neg", "Exp", "Sigmoid", "Tanh", "Erf", "Sin", "Cos", "Softplus", "Relu", "HardSwish"] {
        cases.push(case(op, &[x()]));
    }
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
    cases.push(case("Swish", &[x()]).float("alpha", 1.5).opset(24));
    cases.push(case("Softmax", &[real("x", &["2", "3", "4"])]).int("axis", 1));
    cases.push(case("Div", &[x(), positive("d", &["3"])]));
    cases.push(case("Pow", &[p(), y()]));
    cases.push(case("Pow", &[x()]).number("three", 3.0));
    cases.push(case("Clip", &[x()]).number("low", -0.5).number("high", 0.75));
    cases.push(case("Clip", &[x(), real("low", &[])]));
    cases.push(case("Where", &[flags("c", &["batch=2", "3"]), x(), y()]));
    check(cases);
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
    for op in ["ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"] {
        cases.push(case(op, &[x()]).numbers("axes", &[1, -1]).int("keepdims", 0));
        cases.push(case(op, &[x()]));
    }
    cases.push(case("ReduceSumSquare", &[x()]).numbers("axes", &[0]));
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
        case("OneHot", &[at("i", &["2", "3"])])
            .table(ints("depth", &[], &[4]))
            .table(floats("values", &[2], &[0.0, 1.0]))
            .flat(),
    ];
    for (largest, axis) in [(1, -1), (0, -1), (1, 1), (0, 0)] {
        let top = case("TopK", &[x()]).numbers("k", &[2]).results(&["y", "at"]);
        cases.push(top.int("largest", largest).int("axis", axis));
    }
    // Of equal elements the first is taken.
    let even = fed("x", DType::F32, &["2", "6"], |k| (k % 2) as f64);
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
fn fused_attention_of_onnx_runtime() {
    let part = |name: &str, seq: &str, width: &str| real(name, &["batch=2", seq, width]);
    let many = |more: &[Fed]| {
        contrib(
            "MultiHeadAttention",
            &[&[part("q", "3", "8"), part("k", "5", "8"), part("v", "5", "8")], more].concat(),
        )
        .int("num_heads", 2)
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
        shared(&[]).operands(&plain),
        shared(&[]).operands(&plain).float("softcap", 1.5).float("scale", 0.3),
        shared(&[]).operands(&plain).int("local_window_size", 2),
        shared(&tables).operands(&turned).int("do_rotary", 1),
        shared(&tables).operands(&turned).int("do_rotary", 1).int("rotary_interleaved", 1),
    ]);
}
