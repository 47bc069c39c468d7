//! Nodes that read what a later node produces: out of order, or in a cycle.

use super::place;
use crate::error::Problem;
use crate::onnx::proto::NodeProto;
use rustc_hash::FxHashMap;

/// The nodes of a cycle that a message names.
const SHOWN: usize = 8;

/// Reads of values that do not exist yet.
#[derive(Default)]
pub struct Early {
    pub count: usize,
    /// The first such node and the value that it reads.
    pub first: Option<(String, String)>,
}

impl Early {
    pub fn add(&mut self, place: &str, value: &str) {
        self.count += 1;
        self.first.get_or_insert_with(|| (place.into(), value.into()));
    }

    /// One problem for all of them; a cycle is named as such.
    pub fn problem(self, nodes: &[NodeProto], inside: &str) -> Option<Problem> {
        let (first, value) = self.first?;
        if let Some(cycle) = cycle(nodes) {
            let name = |k: &usize| place(&nodes[*k], "");
            let start = cycle.first().map(|k| place(&nodes[*k], inside)).unwrap_or_default();
            let mut names: Vec<String> = cycle.iter().take(SHOWN).map(name).collect();
            if cycle.len() > SHOWN {
                names.push(format!("... ({} nodes)", cycle.len()));
            }
            names.extend(cycle.first().map(name));
            let message = format!("the nodes form a cycle: {}", names.join(" -> "));
            return Some(Problem::new(start, message).help("no model can run this; export the model again"));
        }
        let others = match self.count - 1 {
            0 => String::new(),
            1 => " (and 1 more such read)".into(),
            n => format!(" (and {n} more such reads)"),
        };
        let problem = Problem::new(first, format!("`{value}` is produced only by a later node{others}"));
        Some(problem.help("ONNX wants nodes in the order of their execution: sort them, or export the model again"))
    }
}

/// The nodes of a cycle, each feeding the next, where there is one.
fn cycle(nodes: &[NodeProto]) -> Option<Vec<usize>> {
    let mut producer: FxHashMap<&str, usize> = FxHashMap::default();
    for (k, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            producer.entry(output).or_insert(k);
        }
    }
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; nodes.len()];
    for root in 0..nodes.len() {
        if marks[root] != Mark::New {
            continue;
        }
        marks[root] = Mark::Open;
        // The path from the root against the flow of data, with the next operand of each node.
        let mut path = vec![(root, 0)];
        while let Some((k, operand)) = path.pop() {
            let Some(name) = nodes[k].input.get(operand) else {
                marks[k] = Mark::Done;
                continue;
            };
            path.push((k, operand + 1));
            let Some(&from) = producer.get(name.as_str()) else { continue };
            match marks[from] {
                Mark::Done => {}
                Mark::New => {
                    marks[from] = Mark::Open;
                    path.push((from, 0));
                }
                Mark::Open => {
                    let start = path.iter().position(|(n, _)| *n == from)?;
                    let mut found: Vec<usize> = path[start..].iter().map(|(n, _)| *n).collect();
                    found.reverse();
                    // From the node that comes first in the file.
                    let least = found.iter().enumerate().min_by_key(|(_, n)| **n).map_or(0, |(at, _)| at);
                    found.rotate_left(least);
                    return Some(found);
                }
            }
        }
    }
    None
}
