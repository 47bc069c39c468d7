//! The objective stage: the model's logits become the outputs of a training step.
//!
//! The stage only writes down `(objective logits ids answer t u ...)` and lets the method's `define`
//! rule unfold it; what entropy, mask rate and loss are stands in `rules/methods/` and METHOD.md.

use crate::error::{Error, Problem, Result};
use crate::ir::{Builder, DType, Dim, Graph, Id, Leaf, LeafKind, Lit, Node, Op};
use crate::manifest::{self, Method, Probe};
use crate::method;
use crate::rewrite::{self, Options};
use crate::rules::Rule;
use std::collections::BTreeMap;

/// The outputs that every training step has; a method adds its own.
pub const OUTPUTS: [&str; 3] = ["loss", "loss_sum", "loss_count"];

/// Outputs that the built-in methods add, numbers of every token.
pub const DIAGNOSTICS: [&str; 4] = ["entropy", "mask_rate", "mask", "token_loss"];

/// The step's inputs beside the model's own; `beta` only where the probe is cached.
pub const INPUTS: [&str; 4] = ["answer_mask", "t", "u", "beta"];

/// The model's token input, `[B, L]` i64, its logits, `[B, L, V]`, and the vocabulary size V.
#[derive(Clone, Debug, PartialEq)]
pub struct Ports {
    pub token_input: String,
    pub logits_output: String,
    pub vocab_size: i64,
}

/// Finds the token input and the logits; the names, where given, must exist.
pub fn find_ports(graph: &Graph, token_input: Option<&str>, logits_output: Option<&str>) -> Result<Ports> {
    let mut problems = Vec::new();
    let logits = find_logits(graph, logits_output, &mut problems);
    let vocab = logits.as_ref().map(|(_, v)| *v);
    let tokens = find_tokens(graph, token_input, vocab, &mut problems);
    check_names(graph, &mut problems);
    if let (Some((logits, _)), Some(tokens)) = (&logits, &tokens) {
        check_positions(graph, logits, tokens, &mut problems);
    }
    match (logits, tokens) {
        (Some((logits_output, vocab_size)), Some(token_input)) if problems.is_empty() => {
            Ok(Ports { token_input, logits_output, vocab_size })
        }
        _ => Err(Error::Model { model: graph.name.clone().into(), problems }),
    }
}

/// Names of leaves that the training step gives to values of its own.
fn check_names(graph: &Graph, problems: &mut Vec<Problem>) {
    let mut own: BTreeMap<String, &str> = BTreeMap::new();
    own.extend(
        INPUTS.into_iter().chain(manifest::DROPOUT).map(|n| (n.to_string(), "one of the training step's own inputs")),
    );
    own.extend(OUTPUTS.iter().chain(&DIAGNOSTICS).map(|n| (n.to_string(), "one of the training step's own outputs")));
    for leaf in graph.leaves.iter().filter(|l| l.kind == LeafKind::Param) {
        own.insert(format!("grad/{}", leaf.name), "the gradient of another weight");
    }
    for leaf in &graph.leaves {
        if let Some(what) = own.get(&leaf.name) {
            problems.push(
                Problem::new(&leaf.name, format!("is the name of {what}"))
                    .help("rename this input or weight in the source model"),
            );
        }
    }
}

/// Logits must have a row for every token and come from the tokens through weights.
fn check_positions(graph: &Graph, logits: &str, tokens: &str, problems: &mut Vec<Problem>) {
    let Some((_, root)) = graph.outputs.iter().find(|(n, _)| n == logits) else { return };
    let Some(leaf) = graph.leaves.iter().find(|l| l.name == tokens) else { return };
    let rows = graph.type_of(*root);
    if !rows.shape().starts_with(&leaf.ty.shape) {
        let message = format!("logits {rows} do not have one row for each of the tokens `{tokens}` {}", leaf.ty);
        problems.push(
            Problem::new(logits, message)
                .help("export the model with logits at every position; shifted logits keep all rows (--logits-shift)"),
        );
    }
    let needed = graph.reachable([*root]);
    let needed: Vec<&Leaf> = needed.into_iter().filter_map(|id| graph.as_leaf(id)).map(|l| graph.leaf(l)).collect();
    if !needed.iter().any(|l| l.name == tokens) {
        problems.push(
            Problem::new(logits, format!("the logits do not depend on the tokens `{tokens}`"))
                .help("name the model's own with --token-input and --logits-output"),
        );
    }
    if !needed.iter().any(|l| l.kind == LeafKind::Param && l.ty.dtype.is_float()) {
        problems.push(
            Problem::new(logits, "the logits depend on no weight that could be trained")
                .help("export the model with its weights as initializers, in floating point"),
        );
    }
}

/// Outputs of floating-point type and shape `[B, L, V]` with a known V.
fn find_logits(graph: &Graph, name: Option<&str>, problems: &mut Vec<Problem>) -> Option<(String, i64)> {
    let vocab = |id: &Id| {
        let t = graph.tensor_type(*id)?;
        (t.dtype.is_float() && t.rank() == 3).then(|| t.shape[2].known())?
    };
    let shaped: Vec<(&String, i64)> = graph.outputs.iter().filter_map(|(n, id)| Some((n, vocab(id)?))).collect();
    let list = || {
        let all = graph.outputs.iter().map(|(n, id)| format!("{n}: {}", graph.type_of(*id)));
        all.collect::<Vec<_>>().join(", ")
    };
    let help = "a diffusion language model has an output of shape [batch, length, vocabulary] and known vocabulary; export it with its head";
    match (name, shaped.as_slice()) {
        (Some(name), _) => match shaped.iter().find(|(n, _)| *n == name) {
            Some((n, v)) => return Some((n.to_string(), *v)),
            None => problems.push(
                Problem::new(name, "is not an output with the shape of logits")
                    .help(format!("the outputs are {}", list())),
            ),
        },
        (None, [(n, v)]) => return Some((n.to_string(), *v)),
        (None, []) if graph.outputs.is_empty() => {
            problems.push(Problem::new("outputs", "the model has none").help(help));
        }
        (None, []) => {
            problems.push(Problem::new("outputs", format!("none has the shape of logits: {}", list())).help(help))
        }
        (None, several) => match several.iter().find(|(n, _)| *n == "logits") {
            Some((n, v)) => return Some((n.to_string(), *v)),
            None => {
                let names: Vec<&str> = several.iter().map(|(n, _)| n.as_str()).collect();
                problems.push(
                    Problem::new("outputs", format!("several could be the logits: {}", names.join(", ")))
                        .help("name one with --logits-output"),
                );
            }
        },
    }
    None
}

/// Integer inputs `[B, L]` that index rows of a table; with the vocabulary's number of rows if one has it.
fn find_tokens(graph: &Graph, name: Option<&str>, vocab: Option<i64>, problems: &mut Vec<Problem>) -> Option<String> {
    let is_tokens = |n: &str| {
        graph
            .leaves
            .iter()
            .any(|l| l.name == n && l.kind == LeafKind::Input && l.ty.dtype == DType::I64 && l.ty.rank() == 2)
    };
    let inputs: Vec<&str> = graph.leaves.iter().filter(|l| is_tokens(&l.name)).map(|l| l.name.as_str()).collect();
    let list = || {
        let all = graph.leaves.iter().filter(|l| l.kind == LeafKind::Input);
        all.map(|l| format!("{}: {}", l.name, l.ty)).collect::<Vec<_>>().join(", ")
    };
    if let Some(name) = name {
        if is_tokens(name) {
            return Some(name.into());
        }
        problems.push(
            Problem::new(name, "is not an i64 input of shape [batch, length]")
                .help(format!("the inputs are {}", list())),
        );
        return None;
    }
    // Which tables does each input index, and how many rows do they have?
    let mut rows: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for id in graph.live() {
        let Node::Op(Op::Gather, c) = graph.node(id) else { continue };
        let (Some(table), Some(index)) = (graph.tensor_type(c[0]), graph.as_leaf(c[1])) else { continue };
        if let Some(n) = table.shape.first().and_then(Dim::known) {
            rows.entry(graph.leaf(index).name.as_str()).or_default().push(n);
        }
    }
    let mut candidates: Vec<&str> = inputs.iter().copied().filter(|n| rows.contains_key(n)).collect();
    if candidates.is_empty() {
        candidates = inputs.clone();
    }
    let of_vocab = |n: &&str| rows.get(n).is_some_and(|r| r.iter().any(|r| vocab.is_some_and(|v| *r >= v)));
    if candidates.len() > 1 && candidates.iter().filter(|n| of_vocab(n)).count() == 1 {
        candidates.retain(|n| of_vocab(n));
    }
    match candidates.as_slice() {
        [one] => return Some(one.to_string()),
        [] => problems.push(
            Problem::new("inputs", format!("none is an i64 token input of shape [batch, length]: {}", list()))
                .help("export the model with token ids as input, not embeddings"),
        ),
        several => problems.push(
            Problem::new("inputs", format!("several could be the token ids: {}", several.join(", ")))
                .help("name one with --token-input"),
        ),
    }
    None
}

/// The training step's forward part: a graph with the outputs of `OUTPUTS` and those that the method adds.
pub fn build(
    model: &Graph,
    ports: &Ports,
    method: &Method,
    definition: &[Rule],
    fired: &mut BTreeMap<String, usize>,
) -> Result<Graph> {
    let internal = |m: String| Error::internal("objective", m);
    let mut graph = model.clone();
    let logits = graph.outputs.iter().find(|(n, _)| *n == ports.logits_output).map(|(_, id)| *id);
    let mut logits = logits.ok_or_else(|| internal("the logits are gone".into()))?;
    // Entropy, rates and loss are f32 whatever the model computes in.
    if graph.tensor_type(logits).is_some_and(|t| t.dtype != DType::F32) {
        let to = graph.lit(Lit::DType(DType::F32)).map_err(internal)?;
        logits = graph.op(Op::Cast, &[logits, to]).map_err(internal)?;
    }
    let leaf = graph.find_leaf(&ports.token_input).ok_or_else(|| internal("the tokens are gone".into()))?;
    let shape = graph.leaf(leaf).ty.shape.clone();
    let [batch, _] = shape.as_slice() else { return Err(internal("tokens must be [batch, length]".into())) };
    let batch = batch.clone();
    let ids = graph.insert(Node::Leaf(leaf)).map_err(internal)?;
    let answer = graph.input("answer_mask", DType::Bool, &shape);
    let t = graph.input("t", DType::F32, &[batch]);
    let u = graph.input("u", DType::F32, &shape);
    let beta = if method.probe == Probe::EveryStep { u } else { graph.input("beta", DType::F32, &shape) };
    let mut children = vec![logits, ids, answer, t, u, beta];
    for n in [method.mask_id, method.logits_shift] {
        children.push(graph.lit(Lit::Int(Dim::Known(n))).map_err(internal)?);
    }
    let objective = graph.op(Op::Objective, &children).map_err(internal)?;
    graph.outputs = vec![("objective".into(), objective)];
    let settled = method::settle(definition, &method.options, method.probe);
    let rules: Vec<&Rule> = settled.iter().collect();
    let mut unfolded = rewrite::saturate(&graph, &rules, &Options::default())?;
    rewrite::count(fired, &unfolded.fired);
    let graph = &mut unfolded.graph;
    graph.outputs = outputs(graph, &method.name)?;
    Ok(unfolded.graph)
}

/// The named results of the unfolded method.
fn outputs(graph: &Graph, method: &str) -> Result<Vec<(String, Id)>> {
    let refuse = |problems: Vec<Problem>| Err(Error::Usage { problems });
    let problem = |why: String| {
        Problem::new(format!("rules/methods/{method}.egg"), why)
            .help("a method ends in (tuple (output ?x loss) (output ?y loss_sum) (output ?z loss_count) ..)")
    };
    let Node::Op(Op::Tuple, parts) = graph.node(graph.outputs[0].1) else {
        return refuse(vec![problem("it does not define a tuple".into())]);
    };
    let (mut outputs, mut problems) = (Vec::new(), Vec::new());
    for part in parts {
        let named = match graph.node(*part) {
            Node::Op(Op::Output, c) => graph.type_of(c[1]).lit().map(|name| (name.to_string(), c[0])),
            _ => None,
        };
        match named {
            Some((name, _)) if outputs.iter().any(|(n, _): &(String, Id)| *n == name) => {
                problems.push(problem(format!("two outputs are named `{name}`")));
            }
            Some(output) => outputs.push(output),
            None => problems.push(problem("a part of its tuple is no (output VALUE NAME)".into())),
        }
    }
    for name in OUTPUTS.iter().filter(|n| !outputs.iter().any(|(o, _)| o == *n)) {
        problems.push(problem(format!("it has no output `{name}`")));
    }
    if problems.is_empty() { Ok(outputs) } else { refuse(problems) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    fn ports(text: &str, token_input: Option<&str>) -> std::result::Result<Ports, String> {
        find_ports(&text::parse(text).unwrap(), token_input, None).map_err(|e| e.to_string())
    }

    const TWO_TABLES: &str = "(graph m
      (input input_ids i64 [batch seq]) (input other_ids i64 [batch seq]) (input padding f32 [batch seq])
      (param a f32 [32 8]) (param b f32 [ROWS 8]) (param head f32 [8 32])
      (output logits (matmul (add (gather a input_ids 0) (gather b other_ids 0)) head)))";

    #[test]
    fn the_vocabulary_tells_tokens_from_segments() {
        let ports = ports(&TWO_TABLES.replace("ROWS", "2"), None).unwrap();
        assert_eq!(ports, Ports { token_input: "input_ids".into(), logits_output: "logits".into(), vocab_size: 32 });
    }

    #[test]
    fn several_candidates_are_named() {
        let text = TWO_TABLES.replace("ROWS", "32");
        assert_eq!(
            ports(&text, None).unwrap_err(),
            "m: cannot use this model\n  inputs: several could be the token ids: input_ids, other_ids\n    \
             help: name one with --token-input"
        );
        assert_eq!(ports(&text, Some("other_ids")).unwrap().token_input, "other_ids");
    }

    #[test]
    fn a_model_without_logits_or_tokens_is_refused_for_both() {
        let text = "(graph m (input x f32 [batch 8]) (param w f32 [8 4]) (output y (matmul x w)))";
        assert_eq!(
            ports(text, None).unwrap_err(),
            "m: cannot use this model\n  outputs: none has the shape of logits: y: f32[batch 4]\n    \
             help: a diffusion language model has an output of shape [batch, length, vocabulary] and known vocabulary; export it with its head\n  \
             inputs: none is an i64 token input of shape [batch, length]: x: f32[batch 8]\n    \
             help: export the model with token ids as input, not embeddings"
        );
    }
}
