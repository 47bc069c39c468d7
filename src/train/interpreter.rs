//! Training without ONNX Runtime: the reference interpreter in f64, and the optimizers in plain Rust.
//!
//! A second opinion on every number of a run, for small models; several times slower.

use super::engine::{Engine, Update};
use super::forward::{Call, Forward};
use super::optimizer::{Algorithm, Decay};
use crate::error::{Error, Result};
use crate::interp;
use crate::ir::{DType, Graph};
use crate::manifest::{PROBE, Probe};
use crate::onnx::read::read;
use crate::onnx::train_file::{Function, Port, TrainFile};
use crate::runtime::HostTensor;
use candle_core::{Device, Tensor};
use indexmap::IndexMap;
use std::collections::BTreeMap;

/// Everything of one parameter, in f64.
struct State {
    name: String,
    dtype: DType,
    shape: Vec<i64>,
    value: Vec<f64>,
    gradient: Vec<f64>,
    /// What the optimizer keeps.
    kept: Vec<Vec<f64>>,
    decays: bool,
}

/// The training graph as the reader gives it back, and the parameters.
pub struct Interpreter {
    graph: Graph,
    /// The types that outputs have in the file; the interpreter itself knows only f64.
    outputs: Vec<Port>,
    states: Vec<State>,
    /// The entropy pass, where it is not part of the step, and whether it sees the present parameters.
    probe: Option<(Graph, bool)>,
}

impl Interpreter {
    /// Reads the graph of `file` back; `trainable` are the parameters in order.
    pub fn new(file: &TrainFile, trainable: &[Port], function: &Function, decay: Decay) -> Result<Self> {
        let mut graph = read(file.path())?.graph;
        let mut probe = graph.clone();
        probe.outputs.retain(|(name, _)| name == PROBE);
        let live = matches!(file.manifest.method.probe, Probe::Every(_));
        let probe = (!probe.outputs.is_empty()).then_some((probe, live));
        let step = file.step_outputs();
        graph.outputs.retain(|(name, _)| step.iter().any(|p| p.name == *name));
        let state = |port: &Port| {
            let initial = file.initial(&port.name)?;
            let host = HostTensor::from_bytes(initial.dtype, &initial.shape, initial.bytes)?;
            let zeros = vec![0.0; host.len()];
            Ok(State {
                name: port.name.clone(),
                dtype: host.dtype(),
                shape: host.shape().to_vec(),
                value: host.to_f64(),
                gradient: zeros.clone(),
                kept: vec![zeros; function.state.len()],
                decays: decay.includes(&port.shape),
            })
        };
        let states = trainable.iter().map(state).collect::<Result<_>>()?;
        Ok(Interpreter { graph, outputs: file.outputs(), states, probe })
    }
}

impl Engine for Interpreter {
    fn forward(
        &mut self,
        feeds: &[(String, HostTensor)],
        want: &[String],
        accumulate: bool,
    ) -> Result<IndexMap<String, HostTensor>> {
        let mut tensors = BTreeMap::new();
        for (name, value) in feeds {
            tensors.insert(name.clone(), tensor(value.shape(), value.to_f64())?);
        }
        for s in &self.states {
            tensors.insert(s.name.clone(), tensor(&s.shape, s.value.clone())?);
        }
        let results = interp::run(&self.graph, &tensors)?;
        let result = |name: &str| {
            let found =
                results.get(name).ok_or_else(|| Error::internal("the interpreter", format!("no output {name}")))?;
            let shape: Vec<i64> = found.dims().iter().map(|d| *d as i64).collect();
            let values = found.flatten_all().and_then(|t| t.to_vec1::<f64>()).map_err(internal)?;
            Ok::<_, Error>((shape, values))
        };
        for s in &mut self.states {
            let (_, gradient) = result(&format!("grad/{}", s.name))?;
            if !accumulate {
                s.gradient.fill(0.0);
            }
            s.gradient.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
        let output = |name: &String| {
            let (shape, values) = result(name)?;
            let declared = self.outputs.iter().find(|p| p.name == *name).map(|p| p.dtype);
            let dtype = declared.filter(|d| !d.is_float()).unwrap_or(DType::F64);
            Ok((name.clone(), HostTensor::from_f64(dtype, &shape, &values)?))
        };
        want.iter().map(output).collect()
    }

    fn probe(&mut self, feeds: &[(String, HostTensor)]) -> Result<HostTensor> {
        let missing = || Error::internal("probe", "the entropy pass is part of the step");
        let (graph, live) = self.probe.as_ref().ok_or_else(missing)?;
        let mut tensors = BTreeMap::new();
        for (name, value) in feeds {
            tensors.insert(name.clone(), tensor(value.shape(), value.to_f64())?);
        }
        for s in self.states.iter().filter(|_| *live) {
            tensors.insert(s.name.clone(), tensor(&s.shape, s.value.clone())?);
        }
        let beta = interp::run(graph, &tensors)?.remove(PROBE).ok_or_else(missing)?;
        let shape: Vec<i64> = beta.dims().iter().map(|d| *d as i64).collect();
        let values = beta.flatten_all().and_then(|t| t.to_vec1::<f64>()).map_err(internal)?;
        HostTensor::from_f64(DType::F64, &shape, &values)
    }

    fn open<'a>(&'a self, forward: &'a Forward) -> Result<Call<'a>> {
        Ok(Box::new(move |feeds| {
            let mut tensors = BTreeMap::new();
            for (name, value) in feeds {
                tensors.insert(name.clone(), tensor(value.shape(), value.to_f64())?);
            }
            for s in &self.states {
                tensors.insert(s.name.clone(), tensor(&s.shape, s.value.clone())?);
            }
            let (_, logits) = interp::run(&forward.graph, &tensors)?
                .pop_first()
                .ok_or_else(|| Error::internal("samples", "the model has no logits"))?;
            let shape: Vec<i64> = logits.dims().iter().map(|d| *d as i64).collect();
            let values = logits.flatten_all().and_then(|t| t.to_vec1::<f64>()).map_err(internal)?;
            HostTensor::from_f64(DType::F64, &shape, &values)
        }))
    }

    fn grad_norm(&mut self) -> Result<f64> {
        Ok(self.states.iter().flat_map(|s| &s.gradient).map(|g| g * g).sum::<f64>().sqrt())
    }

    fn update(&mut self, update: &Update) -> Result<()> {
        let o = &update.optimizer;
        let corrected = |beta: f64| 1.0 - beta.powf(update.step as f64);
        for s in &mut self.states {
            let decay = if s.decays { o.weight_decay } else { 0.0 };
            let gradient = s.gradient.iter().map(|g| g * update.grad_scale);
            match (o.algorithm, s.kept.as_mut_slice()) {
                (Algorithm::AdamW { beta1, beta2, eps }, [m, v]) => {
                    let (c1, c2) = (corrected(beta1), corrected(beta2));
                    for ((p, g), (m, v)) in s.value.iter_mut().zip(gradient).zip(m.iter_mut().zip(v)) {
                        *m = beta1 * *m + (1.0 - beta1) * g;
                        *v = beta2 * *v + (1.0 - beta2) * g * g;
                        *p = (1.0 - o.lr * decay) * *p - o.lr * (*m / c1) / ((*v / c2).sqrt() + eps);
                    }
                }
                (Algorithm::Sgd { momentum, nesterov }, [m]) => {
                    for ((p, g), m) in s.value.iter_mut().zip(gradient).zip(m) {
                        let g = g + decay * *p;
                        *m = momentum * *m + g;
                        *p -= o.lr * if nesterov { g + momentum * *m } else { *m };
                    }
                }
                _ => return Err(Error::internal("the interpreter", "another optimizer's state")),
            }
        }
        Ok(())
    }

    fn parameter(&self, index: usize) -> Result<HostTensor> {
        let s = &self.states[index];
        HostTensor::from_f64(s.dtype, &s.shape, &s.value)
    }

    fn set_parameter(&mut self, index: usize, value: &HostTensor) -> Result<()> {
        let s = &mut self.states[index];
        s.value = fitting(value, &s.shape)?;
        Ok(())
    }

    fn gradient(&self, index: usize) -> Result<HostTensor> {
        let s = &self.states[index];
        HostTensor::from_f64(DType::F64, &s.shape, &s.gradient)
    }

    fn state(&self, index: usize) -> Result<Vec<HostTensor>> {
        let s = &self.states[index];
        s.kept.iter().map(|values| HostTensor::from_f64(s.dtype, &s.shape, values)).collect()
    }

    fn set_state(&mut self, index: usize, state: &[HostTensor]) -> Result<()> {
        let s = &mut self.states[index];
        s.kept = state.iter().map(|value| fitting(value, &s.shape)).collect::<Result<_>>()?;
        Ok(())
    }
}

fn fitting(value: &HostTensor, shape: &[i64]) -> Result<Vec<f64>> {
    if value.shape() != shape {
        return Err(Error::runtime(format!("{value:?} does not fit a parameter of shape {shape:?}")));
    }
    Ok(value.to_f64())
}

fn tensor(shape: &[i64], values: Vec<f64>) -> Result<Tensor> {
    let shape: Vec<usize> = shape.iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).map_err(internal)
}

fn internal(e: candle_core::Error) -> Error {
    Error::internal("the interpreter", e.to_string())
}
