//! The part of a graph that some outputs need.

use super::proto::{GraphProto, TensorProto, ValueInfoProto};
use super::wire::{INITIALIZER, fields, put};
use prost::Message;
use prost::bytes::Bytes;
use std::collections::{BTreeSet, HashMap};

/// The numbers of `GraphProto.node`, `.input`, `.output` and `.value_info`.
const NODE: u32 = 1;
const INPUT: u32 = 11;
const OUTPUT: u32 = 12;

/// What outputs need: nodes by their index, values by name.
pub struct Needed<'a> {
    pub nodes: BTreeSet<usize>,
    pub values: BTreeSet<&'a str>,
}

/// Walks from `outputs` back to inputs, initializers and the values `given`.  Graphs that weftc writes have no nested graphs.
pub fn needed<'a>(graph: &'a GraphProto, outputs: &'a [String], given: &[String]) -> Needed<'a> {
    let mut makers: HashMap<&str, usize> = HashMap::new();
    for (k, node) in graph.node.iter().enumerate() {
        makers.extend(node.output.iter().map(|o| (o.as_str(), k)));
    }
    let mut found = Needed { nodes: BTreeSet::new(), values: BTreeSet::new() };
    let mut stack: Vec<&str> = outputs.iter().map(String::as_str).collect();
    while let Some(value) = stack.pop() {
        if !found.values.insert(value) || given.iter().any(|g| g == value) {
            continue;
        }
        if let Some(&k) = makers.get(value).filter(|k| found.nodes.insert(**k)) {
            stack.extend(graph.node[k].input.iter().map(String::as_str));
        }
    }
    found
}

/// The fields of a graph that `needed` keeps, as they lie in the file.  Outputs that are `given` become inputs; the default
/// values of the inputs `fed` are left out.
pub fn keep(
    graph: &Bytes,
    needed: &Needed,
    outputs: &[String],
    fed: &[&str],
    given: &[String],
) -> Result<Vec<Bytes>, String> {
    let mut node = 0;
    let mut kept = Vec::new();
    for field in fields(graph)? {
        let named = || ValueInfoProto::decode(field.content.clone()).map(|v| v.name).map_err(|e| e.to_string());
        let wanted = match field.tag {
            NODE => {
                node += 1;
                needed.nodes.contains(&(node - 1))
            }
            INITIALIZER => {
                let name = TensorProto::decode(field.content.clone()).map_err(|e| e.to_string())?.name;
                needed.values.contains(name.as_str()) && !fed.contains(&name.as_str())
            }
            INPUT => needed.values.contains(named()?.as_str()),
            OUTPUT => {
                let name = named()?;
                if given.contains(&name) && needed.values.contains(name.as_str()) {
                    let mut input = Vec::new();
                    put(INPUT, &field.content, &mut input);
                    kept.push(input.into());
                }
                outputs.contains(&name)
            }
            _ => true,
        };
        if wanted {
            kept.push(field.whole);
        }
    }
    Ok(kept)
}
