//! The objective stage: the model's logits become the outputs of a training step.
//!
//! The stage only writes down `(objective logits ids answer t u ...)` and lets the method's `define`
//! rule unfold it; what entropy, mask rate and loss are stands in `rules/methods/` and METHOD.md.

use crate::error::{Error, Problem, Result};
use crate::ir::{Builder, DType, Dim, F64, Graph, Id, Lit, Node, Op};
use crate::manifest::{Method, Probe};
use crate::method;
use crate::ports::{OUTPUTS, Ports};
use crate::rewrite::{self, Options};
use crate::rules::Rule;
use std::collections::BTreeMap;

/// What is added to the logit of a token that cannot be predicted: about as low as 16 bits go, where e^z is 0.
const EXCLUDED: f64 = -6e4;

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
    if method.excludes_mask && method.mask_id < ports.predicted {
        logits = excluded(&mut graph, logits, method.mask_id, ports.predicted).map_err(internal)?;
    }
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

/// Logits `[B, L, V]` of which that of `token` is so low that its probability is 0: zero masking probabilities (MDLM,
/// arXiv 2406.07524, section 3.2.3).  A bias takes the row, so that the head stays a product and one row.
fn excluded(graph: &mut Graph, logits: Id, token: i64, vocabulary: i64) -> std::result::Result<Id, String> {
    let number = |n: i64| Lit::Int(Dim::Known(n));
    let dtype = graph.tensor_type(logits).ok_or("the logits are no tensor")?.dtype;
    let lits = [number(vocabulary), number(token), Lit::DType(dtype), Lit::Float(F64(EXCLUDED))];
    let [vocabulary, token, dtype, low] = lits.map(|lit| graph.lit(lit));
    let ids = graph.op(Op::Iota, &[vocabulary?])?;
    let own = graph.op(Op::Equal, &[ids, token?])?;
    let own = graph.op(Op::Cast, &[own, dtype?])?;
    let row = graph.op(Op::Mul, &[own, low?])?;
    let parts = if let Node::Op(Op::Add, c) = graph.node(logits).clone() { c.to_vec() } else { vec![] };
    let (bias, rest): (Vec<Id>, Vec<Id>) = parts.into_iter().partition(|c| graph.type_of(*c).shape().len() == 1);
    match (bias.as_slice(), rest.as_slice()) {
        ([bias], [product]) => {
            let bias = graph.op(Op::Add, &[*bias, row])?;
            graph.op(Op::Add, &[*product, bias])
        }
        _ => graph.op(Op::Add, &[logits, row]),
    }
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
