//! Which part of the step the nodes of a profile belong to.

use super::profile::{Event, Run};
use crate::cost::Part;
use crate::cost::predict::by_part;
use crate::onnx::train_file::TrainFile;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Parts by the names that ONNX Runtime's profile has for nodes.
pub struct Parts {
    nodes: BTreeMap<String, Part>,
    /// Parts of the calls of each function: a body that ONNX Runtime puts in place of a call has the function's name only.
    functions: BTreeMap<String, BTreeSet<Part>>,
}

/// What ONNX Runtime puts in front of the nodes of a function's body.
const INLINED: &str = "_inlfunc_";

impl Parts {
    /// The parts of a train.onnx: a node belongs to the first that needs it.
    pub fn of(file: &TrainFile) -> Self {
        let mut parts = Parts { nodes: BTreeMap::new(), functions: BTreeMap::new() };
        let outputs = file.step_outputs();
        for part in Part::ALL {
            let names =
                outputs.iter().map(|p| p.name.clone()).filter(|n| Part::of_output(n) == part).collect::<Vec<_>>();
            for (name, operator) in file.nodes_for(&names) {
                if !parts.nodes.contains_key(name) {
                    parts.nodes.insert(name.into(), part);
                    parts.functions.entry(operator.into()).or_default().insert(part);
                }
            }
        }
        parts
    }

    /// The part of a node, as far as its name tells: ONNX Runtime's fusions add words behind a slash.
    fn named(&self, node: &str) -> Option<Part> {
        if let Some(inner) = node.strip_prefix(INLINED) {
            let called = self
                .functions
                .iter()
                .filter(|(f, _)| inner.strip_prefix(f.as_str()).is_some_and(|x| x.starts_with('_')));
            let (_, parts) = called.max_by_key(|(f, _)| f.len())?;
            return parts.first().filter(|_| parts.len() == 1).copied();
        }
        let ends = node.match_indices('/').map(|(k, _)| k).chain([node.len()]).rev();
        ends.into_iter().find_map(|end| self.nodes.get(&node[..end]).copied())
    }

    /// The part of every node of a run of the step; what has no known name belongs to what was computed before it.
    pub fn assign<'r>(&self, run: &'r Run) -> Vec<(&'r Event, Part, bool)> {
        let mut last = Part::Probe;
        let part = |event: &'r Event| {
            let named = self.named(&event.node);
            last = named.unwrap_or(last);
            (event, last, named.is_some())
        };
        run.events.iter().map(part).collect()
    }
}

/// The time of one operator in one part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operator {
    pub part: Part,
    pub operator: String,
    /// Nodes in one step.
    pub nodes: usize,
    pub seconds: f64,
}

/// A step, taken apart.  The four parts, `between` and `outside` add up to `seconds`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Step {
    pub seconds: f64,
    /// In the order of [`Part::ALL`]: the time of their nodes.
    #[serde(serialize_with = "by_part")]
    pub parts: [f64; 4],
    /// Inside ONNX Runtime, but in no node.
    pub between: f64,
    /// Outside: batches are made, fed, and results read.
    pub outside: f64,
    /// Of the parts, the time of nodes whose part follows from their place in the order alone.
    pub guessed: f64,
    /// The costliest first.
    pub operators: Vec<Operator>,
}

/// Takes a step of `seconds` apart, that ran these sessions: `step`, `probe`, `sum`, `norm`, `update`.
pub fn apart(parts: &Parts, seconds: f64, runs: &[(&str, &Run)]) -> Step {
    let mut step = Step { seconds, ..Step::default() };
    let mut operators: BTreeMap<(Part, &str), (usize, f64)> = BTreeMap::new();
    let mut inside = 0.0;
    for (session, run) in runs {
        inside += run.seconds;
        let whole = |part| run.events.iter().map(|e| (e, part, true)).collect();
        let assigned = match *session {
            "step" => parts.assign(run),
            "probe" => whole(Part::Probe),
            _ => whole(Part::Optimizer),
        };
        for (event, part, known) in assigned {
            step.parts[part as usize] += event.seconds;
            step.guessed += if known { 0.0 } else { event.seconds };
            // Further bodies of one function have a number behind its name.
            let operator = event.operator.trim_end_matches(|c: char| c.is_ascii_digit());
            let sum = operators.entry((part, operator)).or_default();
            *sum = (sum.0 + 1, sum.1 + event.seconds);
        }
    }
    step.between = inside - step.parts.iter().sum::<f64>();
    step.outside = seconds - inside;
    let row = |((part, operator), (nodes, seconds)): ((Part, &str), (usize, f64))| Operator {
        part,
        operator: operator.into(),
        nodes,
        seconds,
    };
    step.operators = operators.into_iter().map(row).collect();
    step.operators.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(node: &str, seconds: f64) -> Event {
        Event { node: node.into(), operator: "Op".into(), seconds }
    }

    #[test]
    fn names_tell_parts() {
        let nodes = [("rope_1", Part::Probe), ("matmul_2", Part::Forward), ("grad/w.x", Part::Backward)];
        let functions = [("MaskRate", vec![Part::Probe]), ("Rope", vec![Part::Probe, Part::Forward])];
        let parts = Parts {
            nodes: nodes.map(|(n, p)| (n.to_string(), p)).into(),
            functions: functions.map(|(n, p)| (n.to_string(), p.into_iter().collect())).into(),
        };
        let names = ["_inlfunc_MaskRate_sub_1", "matmul_2/MatMulScaleFusion/", "_inlfunc_Rope_x", "grad/w.x", "new"];
        let run = Run { seconds: 8.0, events: names.map(|n| event(n, 1.0)).into() };
        let found: Vec<(Part, bool)> = parts.assign(&run).into_iter().map(|(_, part, known)| (part, known)).collect();
        let wanted = [
            (Part::Probe, true),
            (Part::Forward, true),
            (Part::Forward, false),
            (Part::Backward, true),
            (Part::Backward, false),
        ];
        assert_eq!(found, wanted);
        let norm = Run { seconds: 3.0, events: vec![event("norm", 2.0)] };
        let step = apart(&parts, 12.0, &[("step", &run), ("norm", &norm)]);
        assert_eq!((step.parts, step.between, step.outside, step.guessed), ([1.0, 2.0, 2.0, 2.0], 4.0, 1.0, 2.0));
        assert_eq!(step.operators.iter().map(|o| o.nodes).sum::<usize>(), 6);
    }
}
