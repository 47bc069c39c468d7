//! The parts of a train.onnx that sessions of their own compute.

use super::{Port, TrainFile};
use crate::error::{Error, Result};
use crate::manifest::{BETA, PROBE, Probe};
use crate::onnx::prune;
use crate::onnx::wire::{GRAPH, fields, with_graph};

/// What differs between two draws of one batch; `beta` is not drawn, but what a kept entropy pass gave.
const DRAWS: [&str; 3] = ["t", "u", BETA];

/// A model of its own: what some outputs need.
pub struct Part {
    /// As an ONNX file; external data lie where those of train.onnx do.
    pub bytes: Vec<u8>,
    /// What is fed.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
}

/// How a loss is computed without gradients.
pub struct Evaluation {
    /// `loss_sum` and `loss_count`; what `before` gives is fed beside tokens and draws.
    pub loss: Part,
    /// What no draw changes, so that it is computed once for all draws of a batch: the entropy pass.
    pub before: Option<Part>,
}

impl Evaluation {
    /// The input of `loss` that an output of `before` is.
    pub fn input(output: &str) -> &str {
        if output == PROBE { BETA } else { output }
    }
}

impl TrainFile {
    /// The step, without an entropy pass that is not part of it.
    pub fn step(&self, trainable: &[Port]) -> Result<Part> {
        self.part(self.step_outputs().into_iter().map(|p| p.name).collect(), trainable, &[])
    }

    /// The entropy pass, where it is not part of the step.  The parameters `trainable` are fed, unless the pass sees those
    /// that training starts from.
    pub fn probe(&self, trainable: &[Port]) -> Result<Option<Part>> {
        let live = match self.manifest.method.probe {
            Probe::EveryStep => return Ok(None),
            Probe::Every(_) => trainable,
            Probe::Reference => &[],
        };
        self.part(vec![PROBE.into()], live, &[]).map(Some)
    }

    /// The loss without gradients.
    pub fn evaluation(&self, trainable: &[Port]) -> Result<Evaluation> {
        let loss = |given: &[String]| self.part(["loss_sum", "loss_count"].map(String::from).into(), trainable, given);
        if let Some(probe) = self.probe(trainable)? {
            return Ok(Evaluation { loss: loss(&[])?, before: Some(probe) });
        }
        let steady = |name: &String| !name.starts_with("loss") && !self.is_drawn(name);
        let steady: Vec<String> = self.outputs().into_iter().map(|p| p.name).filter(steady).collect();
        let loss = loss(&steady)?;
        let read: Vec<String> = steady.into_iter().filter(|name| loss.inputs.contains(name)).collect();
        let before = if read.is_empty() { None } else { Some(self.part(read, trainable, &[])?) };
        Ok(Evaluation { loss, before })
    }

    /// What `outputs` need, where `given` are fed instead of computed.  The default values of the parameters `live`, which
    /// ONNX Runtime would keep in memory for nothing, are left out; others have theirs.
    fn part(&self, outputs: Vec<String>, live: &[Port], given: &[String]) -> Result<Part> {
        let broken = |why| Error::internal("train.onnx", why);
        let live: Vec<&str> = live.iter().map(|p| p.name.as_str()).collect();
        let parts = fields(&self.bytes).map_err(broken)?;
        let needed = prune::needed(self.graph(), &outputs, given);
        let mut graph = Vec::new();
        for part in parts.iter().filter(|f| f.tag == GRAPH) {
            for field in prune::keep(&part.content, &needed, &outputs, &live, given).map_err(broken)? {
                graph.extend_from_slice(&field);
            }
        }
        let fixed = |name: &str| !live.contains(&name) && self.manifest.parameters.iter().any(|p| p.name == name);
        let inputs = self.graph().input.iter().map(|i| &i.name).chain(given);
        let inputs = inputs.filter(|i| needed.values.contains(i.as_str()) && !fixed(i)).cloned().collect();
        Ok(Part { bytes: with_graph(&parts, &graph), inputs, outputs })
    }

    /// The outputs of the step: without those of an entropy pass that is not part of it, which depend on no draw.
    pub fn step_outputs(&self) -> Vec<Port> {
        let mut outputs = self.outputs();
        if self.manifest.method.probe != Probe::EveryStep {
            outputs.retain(|p| p.name.starts_with("loss") || self.is_drawn(&p.name));
        }
        outputs
    }

    /// Whether a draw, or the entropy pass before it, changes an output.
    fn is_drawn(&self, output: &String) -> bool {
        let needed = prune::needed(self.graph(), std::slice::from_ref(output), &[]).values;
        DRAWS.iter().any(|draw| needed.contains(draw))
    }

    /// Name and operator of the nodes that some outputs need.
    pub fn nodes_for(&self, outputs: &[String]) -> Vec<(&str, &str)> {
        let nodes = prune::needed(self.graph(), outputs, &[]).nodes.into_iter().map(|k| &self.graph().node[k]);
        nodes.map(|node| (node.name.as_str(), node.op_type.as_str())).collect()
    }
}
