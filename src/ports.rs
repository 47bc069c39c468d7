//! The ports of a model, which are its tokens and its logits, and those of its training step.

use crate::error::{Error, Problem, Result};
use crate::ir::{Builder, DType, Dim, F64, Graph, Id, Leaf, LeafKind, Lit, Node, Op};
use crate::manifest;
use std::collections::BTreeMap;

/// The outputs that every training step has; a method adds its own.
pub const OUTPUTS: [&str; 3] = ["loss", "loss_sum", "loss_count"];

/// Outputs that the built-in methods add, numbers of every token.
pub const DIAGNOSTICS: [&str; 4] = ["entropy", "mask_rate", "mask", "token_loss"];

/// The step's inputs beside the model's own; `beta` only where the probe is cached.
pub const INPUTS: [&str; 4] = ["answer_mask", "t", "u", "beta"];

/// The model's token input, `[B, L]` of integers, and its logits, `[B, L, V]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Ports {
    pub token_input: String,
    pub logits_output: String,
    /// V, the number of tokens that can be predicted.
    pub predicted: i64,
    /// The number of tokens that can be looked up, where the model looks them up as they are.  It may be larger (SMDM has a
    /// row for its mask token, which is never predicted) or smaller (a head that was padded).
    pub embedded: Option<i64>,
}

impl Ports {
    /// Tokens below this can be fed.
    pub fn fed(&self) -> i64 {
        self.embedded.unwrap_or(self.predicted)
    }

    /// Tokens below this can be fed and predicted: what data may hold.
    pub fn vocab_size(&self) -> i64 {
        self.fed().min(self.predicted)
    }
}

/// What tokens may be in a model; training steps take them in the first of these.
const TOKENS: [DType; 2] = [DType::I64, DType::I32];

/// The model with its input `tokens` in int64, where it is narrower.
///
/// # Errors
/// A model that no longer types, which would be a mistake here.
pub fn widened(model: Graph, tokens: &str) -> Result<Graph> {
    let internal = |m: String| Error::internal("read", m);
    let narrow = model.leaves.iter().position(|l| l.name == tokens && l.ty.dtype != TOKENS[0]);
    let Some(narrow) = narrow else { return Ok(model) };
    let own = model.leaves[narrow].ty.dtype;
    let mut wide = Graph::with_leaves_of(&model);
    wide.leaves[narrow].ty.dtype = TOKENS[0];
    let copied = wide.copy_outputs(&model, |g, old, node| {
        let id = g.insert(node)?;
        if model.as_leaf(old).is_none_or(|l| l.0 as usize != narrow) {
            return Ok(id);
        }
        let to = g.lit(Lit::DType(own))?;
        g.op(Op::Cast, &[id, to])
    });
    copied.map_err(internal)?;
    Ok(wide)
}

/// The model with a number in the place of each of these inputs, everywhere the same.
///
/// # Errors
/// `Model`: each name that is no such input, or whose size follows from nothing else.
pub fn fixed(model: Graph, inputs: &BTreeMap<String, f64>, tokens: &str) -> Result<Graph> {
    if inputs.is_empty() {
        return Ok(model);
    }
    let others = || model.leaves.iter().filter(|l| l.kind == LeafKind::Input && l.name != tokens);
    let fed = model.leaves.iter().find(|l| l.name == tokens).map(|l| l.ty.shape.clone()).unwrap_or_default();
    let list = || others().map(|l| format!("{}: {}", l.name, l.ty)).collect::<Vec<_>>().join(", ");
    let problems: Vec<Problem> = inputs
        .keys()
        .filter_map(|name| match others().find(|l| l.name == *name) {
            None => Some(
                Problem::new(name, "is no input that --input can fix")
                    .help(format!("the model's inputs beside its tokens: {}", list())),
            ),
            Some(leaf) if leaf.ty.shape.iter().all(|d| d.known().is_some() || fed.contains(d)) => None,
            Some(leaf) => Some(
                Problem::new(name, format!("the sizes of {} are not those of the tokens", leaf.ty))
                    .help("export the model with one name for the batch of both"),
            ),
        })
        .collect();
    if !problems.is_empty() {
        return Err(Error::Model { model: model.name.clone().into(), problems });
    }
    let internal = |m: String| Error::internal("read", m);
    let mut graph = Graph::with_leaves_of(&model);
    graph.leaves.retain(|l| !inputs.contains_key(&l.name));
    let copied = graph.copy_outputs(&model, |g, old, node| {
        let Some(leaf) = model.as_leaf(old).map(|l| model.leaf(l)) else { return g.insert(node) };
        let Some(number) = inputs.get(&leaf.name) else {
            let kept = g.find_leaf(&leaf.name).ok_or("a leaf is gone")?;
            return g.insert(Node::Leaf(kept));
        };
        let value = [Lit::Float(F64(*number)), Lit::DType(leaf.ty.dtype), Lit::Ints(leaf.ty.shape.as_slice().into())];
        let value = value.map(|lit| g.lit(lit)).into_iter().collect::<std::result::Result<Vec<Id>, String>>()?;
        g.op(Op::Full, &value)
    });
    copied.map_err(internal)?;
    Ok(graph)
}

/// Finds the token input and the logits; the names, where given, must exist.
pub fn find(graph: &Graph, token_input: Option<&str>, logits_output: Option<&str>) -> Result<Ports> {
    let mut problems = Vec::new();
    let logits = find_logits(graph, logits_output, &mut problems);
    let vocab = logits.as_ref().map(|(_, v)| *v);
    let rows = tables(graph);
    let tokens = find_tokens(graph, token_input, vocab, &rows, &mut problems);
    check_names(graph, &mut problems);
    if let (Some((logits, _)), Some(tokens)) = (&logits, &tokens) {
        check_positions(graph, logits, tokens, &mut problems);
    }
    match (logits, tokens) {
        (Some((logits_output, predicted)), Some(token_input)) if problems.is_empty() => {
            let embedded = rows.get(token_input.as_str()).and_then(|rows| rows.iter().min().copied());
            Ok(Ports { token_input, logits_output, predicted, embedded })
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

/// How many rows the tables have that each input indexes as it is.
fn tables(graph: &Graph) -> BTreeMap<&str, Vec<i64>> {
    let mut rows: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for id in graph.live() {
        let Node::Op(Op::Gather, c) = graph.node(id) else { continue };
        if !graph.type_of(c[2]).lit().and_then(Lit::int).is_some_and(|axis| axis.is(0)) {
            continue;
        }
        let index = match graph.node(c[1]) {
            Node::Op(Op::Cast, cast) => cast[0],
            _ => c[1],
        };
        let (Some(table), Some(index)) = (graph.tensor_type(c[0]), graph.as_leaf(index)) else { continue };
        if let Some(n) = table.shape.first().and_then(Dim::known) {
            rows.entry(graph.leaf(index).name.as_str()).or_default().push(n);
        }
    }
    rows
}

/// Integer inputs `[B, L]` that index rows of a table; with the vocabulary's number of rows if one has it.
fn find_tokens(
    graph: &Graph,
    name: Option<&str>,
    vocab: Option<i64>,
    rows: &BTreeMap<&str, Vec<i64>>,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    let is_tokens = |n: &str| {
        graph
            .leaves
            .iter()
            .any(|l| l.name == n && l.kind == LeafKind::Input && TOKENS.contains(&l.ty.dtype) && l.ty.rank() == 2)
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
            Problem::new(name, "is no input of int64 or int32 and shape [batch, length]")
                .help(format!("the inputs are {}", list())),
        );
        return None;
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
            Problem::new("inputs", format!("none is token ids, int64 or int32 of shape [batch, length]: {}", list()))
                .help("export the model with token ids as input, not embeddings"),
        ),
        several => problems.push(
            Problem::new("inputs", format!("several could be the token ids: {}", several.join(", ")))
                .help("name one with --token-input"),
        ),
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    fn ports(text: &str, token_input: Option<&str>) -> std::result::Result<Ports, String> {
        find(&text::parse(text).unwrap(), token_input, None).map_err(|e| e.to_string())
    }

    const TWO_TABLES: &str = "(graph m
      (input input_ids i64 [batch seq]) (input other_ids i64 [batch seq]) (input padding f32 [batch seq])
      (param a f32 [32 8]) (param b f32 [ROWS 8]) (param head f32 [8 32])
      (output logits (matmul (add (gather a input_ids 0) (gather b other_ids 0)) head)))";

    #[test]
    fn the_vocabulary_tells_tokens_from_segments() {
        let ports = ports(&TWO_TABLES.replace("ROWS", "2"), None).unwrap();
        assert_eq!((ports.token_input.as_str(), ports.logits_output.as_str()), ("input_ids", "logits"));
        assert_eq!((ports.predicted, ports.embedded), (32, Some(32)));
    }

    #[test]
    fn tokens_that_are_fed_are_not_those_that_are_predicted() {
        let of = |rows: &str| {
            let text = "(graph m (input input_ids i64 [batch seq]) (param a f32 [ROWS 8]) (param head f32 [8 32])
              (output logits (matmul (gather a input_ids 0) head)))";
            let ports = ports(&text.replace("ROWS", rows), None).unwrap();
            (ports.fed(), ports.vocab_size())
        };
        // A mask token that is never predicted; a head that was padded.
        assert_eq!([of("33"), of("30")], [(33, 32), (30, 30)]);
    }

    #[test]
    fn inputs_are_fixed_by_name() {
        let text = "(graph m (input input_ids i64 [batch seq]) (input sigma f32 [batch]) (input other f32 [n])
          (param a f32 [32 8]) (param head f32 [8 32])
          (output logits (matmul (mul (gather a input_ids 0) (reshape sigma [batch 1 1])) head)))";
        let fix = |names: &[&str]| {
            let inputs = names.iter().map(|n| (n.to_string(), 0.5)).collect();
            fixed(text::parse(text).unwrap(), &inputs, "input_ids").map(|g| text::print(&g)).map_err(|e| e.to_string())
        };
        assert!(fix(&["sigma"]).unwrap().contains("(full 0.5 f32 [batch])"));
        assert_eq!(
            fix(&["input_ids", "other", "time"]).unwrap_err(),
            "m: cannot use this model\n  input_ids: is no input that --input can fix\n    help: the model's inputs beside its \
             tokens: sigma: f32[batch], other: f32[n]\n  other: the sizes of f32[n] are not those of the tokens\n    help: \
             export the model with one name for the batch of both\n  time: is no input that --input can fix\n    help: the \
             model's inputs beside its tokens: sigma: f32[batch], other: f32[n]"
        );
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
             inputs: none is token ids, int64 or int32 of shape [batch, length]: x: f32[batch 8]\n    \
             help: export the model with token ids as input, not embeddings"
        );
    }
}
