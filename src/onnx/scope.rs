//! The PyTorch module that a node came from, as exporters note it.

use super::proto::{GraphProto, NodeProto};
use std::collections::{BTreeMap, BTreeSet};

/// Where the dynamo exporter notes the modules around a node: `['', 'blocks.0', 'blocks.0.q_proj', 'linear']`.
const NAME_SCOPES: &str = "pkg.torch.onnx.name_scopes";

/// Reads modules off nodes.
pub struct Scopes {
    /// What TorchScript left out in front of a path, by the path's first word.
    prefixes: BTreeMap<String, String>,
    /// The same for paths whose first word tells nothing.
    common: String,
}

impl Scopes {
    /// Learns from nodes whose weights kept their names.
    ///
    /// TorchScript names nodes by the calls it saw, so containers that are never called themselves are
    /// missing: `/blocks.0/attn_norm/Mul` uses `transformer.blocks.0.attn_norm.weight`.
    pub fn new(graph: &GraphProto, names: &BTreeSet<&str>) -> Scopes {
        let mut votes: BTreeMap<(String, String), usize> = BTreeMap::new();
        let mut total: BTreeMap<String, usize> = BTreeMap::new();
        for node in &graph.node {
            let Some(path) = call_path(node) else { continue };
            for name in node.input.iter().filter(|n| names.contains(n.as_str())) {
                let Some((module, _)) = name.rsplit_once('.') else { continue };
                let Some(prefix) = module.strip_suffix(path.as_str()) else { continue };
                if prefix.is_empty() || prefix.ends_with('.') {
                    *votes.entry((first_word(&path), prefix.to_string())).or_default() += 1;
                    *total.entry(prefix.to_string()).or_default() += 1;
                }
            }
        }
        let mut prefixes: BTreeMap<String, (usize, String)> = BTreeMap::new();
        for ((word, prefix), count) in votes {
            let best = prefixes.entry(word).or_default();
            if count > best.0 {
                *best = (count, prefix);
            }
        }
        // Of equally frequent ones the first in order, so that the result does not depend on anything else.
        let common = total.iter().rev().max_by_key(|(_, n)| **n).map(|(p, _)| p.clone()).unwrap_or_default();
        Scopes { prefixes: prefixes.into_iter().map(|(w, (_, p))| (w, p)).collect(), common }
    }

    /// The full path of the module that a node belongs to; `None` for the model itself.
    pub fn module(&self, node: &NodeProto) -> Option<String> {
        if let Some(entry) = node.metadata_props.iter().find(|p| p.key == NAME_SCOPES) {
            let scopes = quoted(&entry.value);
            let module = scopes.len().checked_sub(2).and_then(|k| scopes.get(k))?;
            return Some(module.clone()).filter(|m| !m.is_empty());
        }
        let path = call_path(node)?;
        let prefix = self.prefixes.get(&first_word(&path)).unwrap_or(&self.common);
        Some(format!("{prefix}{path}"))
    }
}

/// `/blocks.0/q_proj/MatMul` to `blocks.0.q_proj`.
fn call_path(node: &NodeProto) -> Option<String> {
    let (path, _) = node.name.strip_prefix('/')?.rsplit_once('/')?;
    Some(path.replace('/', "."))
}

fn first_word(path: &str) -> String {
    path.split('.').next().unwrap_or_default().to_string()
}

/// The strings of a Python list of strings.
pub fn quoted(list: &str) -> Vec<String> {
    list.split('\'').skip(1).step_by(2).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torchscript_paths_get_their_missing_prefix() {
        let node = |name: &str, weight: &str| NodeProto {
            name: name.into(),
            input: vec!["x".into(), weight.into()],
            ..NodeProto::default()
        };
        let graph = GraphProto {
            node: vec![
                node("/blocks.0/norm/Mul", "transformer.blocks.0.norm.weight"),
                node("/wte/Gather", "transformer.wte.weight"),
                node("/score/Mul", "score.weight"),
            ],
            ..GraphProto::default()
        };
        let names = graph.node.iter().map(|n| n.input[1].as_str()).collect();
        let scopes = Scopes::new(&graph, &names);
        let module = |name: &str| scopes.module(&node(name, "w")).unwrap();
        assert_eq!(module("/blocks.7/q_proj/MatMul"), "transformer.blocks.7.q_proj");
        assert_eq!(module("/score/MatMul"), "score");
        assert_eq!(module("/head/MatMul"), "transformer.head");
        assert_eq!(scopes.module(&node("/MatMul", "w")), None);
    }
}
