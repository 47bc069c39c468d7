//! The PyTorch module that a node came from, as exporters note it.

use super::proto::{GraphProto, NodeProto};
use std::collections::{BTreeMap, BTreeSet};

/// Where the dynamo exporter notes the modules around a node: `['', 'blocks.0', 'blocks.0.q_proj', 'linear']`.
const NAME_SCOPES: &str = "pkg.torch.onnx.name_scopes";

/// Reads modules off nodes.
pub struct Scopes {
    /// The module that a path of calls leads to, of every such path in front of a weight that kept its name, and of the
    /// paths that it begins with.
    modules: BTreeMap<String, String>,
}

impl Scopes {
    /// Learns from nodes whose weights kept their names.
    ///
    /// TorchScript names nodes by the calls it saw.  Containers and modules whose `forward` is called by name are missing:
    /// `/blocks.0/attn_norm/Mul` uses `transformer.blocks.0.attn_norm.weight`, `/lm/blocks.0/attn_norm/Mul` uses
    /// `lm.model.transformer.blocks.0.attn_norm.weight`.
    pub fn new(graph: &GraphProto, names: &BTreeSet<&str>) -> Scopes {
        let mut votes: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        let paths: Vec<Option<String>> = graph.node.iter().map(call_path).collect();
        for (node, path) in graph.node.iter().zip(&paths) {
            let Some(path) = path else { continue };
            for name in node.input.iter().filter(|n| names.contains(n.as_str())) {
                let Some((module, _)) = name.rsplit_once('.') else { continue };
                // Both are followed upwards as long as they agree, and where they part.
                let mut pair = (path.as_str(), module);
                let mut agree = !path.is_empty() && last_word(path) == last_word(module);
                while agree {
                    *votes.entry(pair.0).or_default().entry(pair.1).or_default() += 1;
                    agree = !pair.0.is_empty() && last_word(pair.0) == last_word(pair.1);
                    pair = (parent(pair.0), parent(pair.1));
                }
            }
        }
        // Of equally frequent ones the first in order, so that the result does not depend on anything else.
        let most = |of: BTreeMap<&str, usize>| of.into_iter().rev().max_by_key(|(_, n)| *n).map(|(m, _)| m.to_string());
        Scopes { modules: votes.into_iter().filter_map(|(path, of)| Some((path.to_string(), most(of)?))).collect() }
    }

    /// The full path of the module that a node belongs to; `None` for the model itself.
    pub fn module(&self, node: &NodeProto) -> Option<String> {
        if let Some(entry) = node.metadata_props.iter().find(|p| p.key == NAME_SCOPES) {
            let scopes = quoted(&entry.value);
            let module = scopes.len().checked_sub(2).and_then(|k| scopes.get(k))?;
            return Some(module.clone()).filter(|m| !m.is_empty());
        }
        let path = call_path(node)?;
        // What Hugging Face calls a head stands beside the modules that are missing, not in them.
        if last_word(&path) == "lm_head" {
            return Some(path);
        }
        let mut known = path.as_str();
        while !known.is_empty() && !self.modules.contains_key(known) {
            known = parent(known);
        }
        let module = self.modules.get(known).map_or(known, String::as_str);
        let rest = path.strip_prefix(known).unwrap_or_default().trim_start_matches('.');
        let dot = if module.is_empty() || rest.is_empty() { "" } else { "." };
        Some(format!("{module}{dot}{rest}"))
    }
}

/// `/blocks.0/q_proj/MatMul` to `blocks.0.q_proj`.
fn call_path(node: &NodeProto) -> Option<String> {
    let (path, _) = node.name.strip_prefix('/')?.rsplit_once('/')?;
    Some(path.replace('/', "."))
}

/// `blocks.0.q_proj` to `blocks.0`, `blocks` to nothing.
fn parent(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(parent, _)| parent)
}

fn last_word(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or_default()
}

/// The strings of a Python list of strings.
pub fn quoted(list: &str) -> Vec<String> {
    list.split('\'').skip(1).step_by(2).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, weight: &str) -> NodeProto {
        NodeProto { name: name.into(), input: vec!["x".into(), weight.into()], ..NodeProto::default() }
    }

    fn scopes(nodes: &[(&str, &str)]) -> Scopes {
        let node = nodes.iter().map(|(name, weight)| node(name, weight)).collect();
        let graph = GraphProto { node, ..GraphProto::default() };
        Scopes::new(&graph, &nodes.iter().map(|(_, weight)| *weight).collect())
    }

    #[test]
    fn torchscript_paths_get_the_modules_that_are_missing_inside() {
        let scopes = scopes(&[
            ("/lm/wte/Gather", "lm.model.transformer.wte.weight"),
            ("/lm/blocks.0/norm/Mul", "lm.model.transformer.blocks.0.norm.weight"),
            ("/lm/blocks.0/Mul", "lm.model.transformer.blocks.0.gain"),
            ("/tower/norm/Mul", "tower.norm.weight"),
        ]);
        let module = |name: &str| scopes.module(&node(name, "w")).unwrap();
        assert_eq!(module("/lm/blocks.1/q_proj/MatMul"), "lm.model.transformer.blocks.1.q_proj");
        assert_eq!(module("/lm/ff_out/MatMul"), "lm.model.transformer.ff_out");
        assert_eq!(module("/lm/lm_head/MatMul"), "lm.lm_head");
        assert_eq!(module("/tower/proj/MatMul"), "tower.proj");
    }

    #[test]
    fn torchscript_paths_get_their_missing_prefix() {
        let scopes = scopes(&[
            ("/blocks.0/norm/Mul", "transformer.blocks.0.norm.weight"),
            ("/wte/Gather", "transformer.wte.weight"),
            ("/score/Mul", "score.weight"),
        ]);
        let module = |name: &str| scopes.module(&node(name, "w")).unwrap();
        assert_eq!(module("/blocks.7/q_proj/MatMul"), "transformer.blocks.7.q_proj");
        assert_eq!(module("/score/MatMul"), "score");
        assert_eq!(module("/head/MatMul"), "transformer.head");
        assert_eq!(scopes.module(&node("/MatMul", "w")), None);
    }
}
