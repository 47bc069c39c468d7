//! A model of one operator: the graph that is read beside ONNX Runtime, which runs the model itself, and the
//! gradient beside finite differences.

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
use weftc::rules::library::library;
use weftc::runtime::{HostTensor, Options, Session};

/// ONNX Runtime computes in f32, the graph in f64; relative to the largest element.
const TOLERANCE: f64 = 1e-5;
/// Gradients against central differences, both in f64.
const GRADIENT_TOLERANCE: f64 = 1e-6;
const STEP: f64 = 1e-5;

/// An input that is fed: its sizes may have a name, `batch=2`.
#[derive(Clone)]
pub struct Fed {
    info: ValueInfoProto,
    tensor: HostTensor,
}

/// One operator, its inputs and tables; its results are the model's.
pub struct Case {
    pub node: NodeProto,
    fed: Vec<Fed>,
    pub tables: Vec<TensorProto>,
    opset: i64,
    /// Whether the gradient is compared too.
    smooth: bool,
}

pub fn fed(name: &str, dtype: DType, dims: &[&str], value: impl FnMut(usize) -> f64) -> Fed {
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
pub fn noise(name: &str, k: usize) -> f64 {
    let seed = name.bytes().fold(k as u64 + 1, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64 * 4.0 - 2.0
}

pub fn real(name: &str, dims: &[&str]) -> Fed {
    fed(name, DType::F32, dims, |k| noise(name, k))
}

pub fn positive(name: &str, dims: &[&str]) -> Fed {
    fed(name, DType::F32, dims, |k| noise(name, k).abs() + 0.1)
}

pub fn indices(name: &str, dims: &[&str], values: &[i64]) -> Fed {
    fed(name, DType::I64, dims, |k| values[k % values.len()] as f64)
}

pub fn flags(name: &str, dims: &[&str]) -> Fed {
    fed(name, DType::Bool, dims, |k| f64::from(noise(name, k) > -0.8 || k % 3 == 0))
}

pub fn case(op: &str, fed: &[Fed]) -> Case {
    let inputs: Vec<&str> = fed.iter().map(|f| f.info.name.as_str()).collect();
    Case { node: node(op, &inputs, &["y"]), fed: fed.to_vec(), tables: vec![], opset: 23, smooth: true }
}

pub fn contrib(op: &str, fed: &[Fed]) -> Case {
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
    pub fn word(self, name: &str, s: &str) -> Self {
        let r#type = attribute_proto::AttributeType::String as i32;
        self.with(AttributeProto {
            name: name.into(),
            s: Some(s.as_bytes().to_vec().into()),
            r#type,
            ..Default::default()
        })
    }

    /// A further operand that stands in the file.
    pub fn table(mut self, table: TensorProto) -> Self {
        self.node.input.push(table.name.clone());
        self.tables.push(table);
        self
    }

    pub fn numbers(self, name: &str, values: &[i64]) -> Self {
        self.table(ints(name, &[values.len() as i64], values))
    }

    /// A table that is no operand, but read from around a body.
    pub fn numbers_at(mut self, name: &str, values: &[i64]) -> Self {
        self.tables.extend(values.first().map(|n| ints(name, &[], &[*n])));
        self
    }

    pub fn truth(mut self, name: &str) -> Self {
        let data_type = DataType::Bool as i32;
        self.tables.push(TensorProto { name: name.into(), data_type, int32_data: vec![1], ..Default::default() });
        self
    }

    /// Why the model is refused.
    pub fn refusal(&self) -> String {
        let (_folder, path) = written(&self.model());
        let error = read(&path).unwrap_err().to_string();
        error.lines().skip(1).collect::<Vec<_>>().join("\n")
    }

    pub fn number(self, name: &str, x: f32) -> Self {
        self.table(floats(name, &[], &[x]))
    }

    /// Operands in this order; an empty name leaves one out.
    pub fn operands(mut self, names: &[&str]) -> Self {
        self.node.input = names.iter().map(|n| n.to_string()).collect();
        self
    }

    /// Names of the results.
    pub fn results(mut self, names: &[&str]) -> Self {
        self.node.output = names.iter().map(|n| n.to_string()).collect();
        self
    }

    pub fn opset(mut self, version: i64) -> Self {
        self.opset = version;
        self
    }

    /// The gradient is 0 or not defined.
    pub fn flat(mut self) -> Self {
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
            let apart = (ours - difference).abs();
            if apart.is_nan() || apart > GRADIENT_TOLERANCE * scale {
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
pub fn check(cases: Vec<Case>) {
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
