//! Lowering: composites become simpler operators by the `lower` rules.
//!
//! Two uses.  In the graph, operators that ONNX has no node for (`Emit::Expand`) are replaced.  For
//! each fused node of domain `ai.weft` its rule, expanded to the bottom, is the body of its function.

use crate::error::{Error, Result};
use crate::ir::op::Emit;
use crate::ir::{Builder, DType, Dim, Graph, Id, Leaf, LeafKind, Lit, Node, Op, TensorType, Type};
use crate::kernels::cuda;
use crate::rules::template::{Subst, bind_lets, holds, instantiate};
use crate::rules::{Rule, Target, Term};
use std::collections::BTreeMap;

/// Every `lower` rule unfolds into smaller operators, so few rounds reach the bottom.
const MAX_ROUNDS: usize = 16;

/// Replaces every operator that cannot be written, until none is left.  Counts rule uses in `fired`.
pub fn expand(graph: &Graph, rules: &[Rule], target: Target, fired: &mut BTreeMap<String, usize>) -> Result<Graph> {
    let whole = whole(graph);
    let single = |g: &Graph, id: Id| g.tensor_type(id).is_some_and(|t| t.dtype == DType::F32);
    expand_where(graph, rules, fired, |g, op, children| match (op.row().emit, op) {
        (Emit::Kernel(_), _) if target == Target::Portable => true,
        (Emit::Kernel(name), _) if target == Target::Cuda => !takes(g, name, children),
        // In 16 bits there is no kernel, and blocks are better seen than hidden in a function.
        (Emit::Kernel(_), Op::HeadEntropy | Op::HeadExpect) => !single(g, children[0]),
        (Emit::Kernel(_), Op::HeadGradW | Op::HeadGradB) => !single(g, children[1]),
        (Emit::Kernel(_), _) => !whole,
        // A function cannot be told how many rows there are where that is counted when it runs.
        (_, Op::GatherGrad) => g.type_of(children[2]).lit().and_then(|l| l.int()).is_some_and(|n| n.known().is_none()),
        // Many terms may meet in one element; no element type of 16 bits serves everywhere.
        (_, Op::ScatterAdd | Op::TopkValues | Op::TopkIndices) => {
            g.tensor_type(children[0]).is_some_and(|t| matches!(t.dtype, DType::F16 | DType::BF16))
        }
        (Emit::Expand, _) => true,
        // Products take codes as they are, where they can: the others are decoded when that is settled.
        (_, Op::Dequantize) => false,
        // The kernel would be taken, and take other operands.
        (Emit::Weft(name), _) if target == Target::Cuda && cuda::has(name) => {
            !takes(g, name, children) || has_better(g, rules, op, children)
        }
        _ => has_better(g, rules, op, children),
    })
}

/// Whether our kernel of that name for a GPU takes these operands.
fn takes(graph: &Graph, name: &str, children: &[Id]) -> bool {
    let types: Vec<&Type> = children.iter().map(|c| graph.type_of(*c)).collect();
    cuda::takes(name, &types)
}

/// Whether a rule is marked for the target that could do without it.
fn has_better(graph: &mut Graph, rules: &[Rule], op: Op, children: &[Id]) -> bool {
    rules.iter().any(|rule| rule.target.is_some() && unfolds(graph, rule, op, children).is_some())
}

/// What the variables of a rule are, where the rule fits.
fn unfolds(graph: &mut Graph, rule: &Rule, op: Op, children: &[Id]) -> Option<Subst> {
    let Term::Op(head, vars) = &rule.left else { return None };
    if *head != op || vars.len() != children.len() {
        return None;
    }
    let mut subst = Subst::default();
    for (var, id) in vars.iter().zip(children) {
        if let Term::Var(name) = var {
            subst.insert(name.clone(), *id);
        }
    }
    holds(&rule.guards, &subst, graph).then_some(subst)
}

/// Whether in every attention values have the leading axes of queries, as our kernels need it.
fn whole(graph: &Graph) -> bool {
    let leads = |id: &Id| graph.type_of(*id).shape().split_last_chunk::<2>().map(|(leads, _)| leads.to_vec());
    graph.live().iter().all(|id| match graph.node(*id) {
        Node::Op(Op::Attention | Op::AttentionBias, c) => leads(&c[0]) == leads(&c[2]),
        _ => true,
    })
}

/// The rules of bodies, which have the portable meaning, whatever the target has that is better.
fn portable(rules: &[Rule]) -> Vec<Rule> {
    rules.iter().filter(|r| r.target.is_none()).cloned().collect()
}

/// Replaces fused nodes too, as ONNX Runtime does when it loads the file.  Counts rule uses in `fired`.
pub fn inline(graph: &Graph, rules: &[Rule], fired: &mut BTreeMap<String, usize>) -> Result<Graph> {
    expand_where(graph, &portable(rules), fired, |_, op, _| {
        matches!(op.row().emit, Emit::Expand | Emit::Weft(_) | Emit::Kernel(_))
    })
}

/// Whether a node of this name is no function where it runs.
fn has_kernel(name: &str, target: Target) -> bool {
    match target {
        Target::Cpu => true,
        Target::Cuda => cuda::has(name),
        Target::Portable => false,
    }
}

/// Replaces what could be written and would not run well, or not at all, once nodes are fused.
///
/// - Fused nodes that are gradients and have no kernel.  ONNX Runtime puts a function's body behind all other nodes: a body
///   that nobody reads would be the first thing it computes (see `schedule`), and with it the whole backward part before any
///   other gradient.
/// - Weights in few bits that something else than a product needs dense, on a GPU.
/// - Operators without a kernel for bf16.
///
/// Counts rule uses in `fired`.
pub fn finish(graph: &Graph, rules: &[Rule], target: Target, fired: &mut BTreeMap<String, usize>) -> Result<Graph> {
    let gradients = graph.outputs.iter().filter(|(name, _)| name.starts_with("grad/"));
    let ops: Vec<Op> = gradients.filter_map(|(_, id)| graph.node(*id).op()).collect();
    expand_where(&joined(graph)?, rules, fired, |g, op, children| match (op.row().emit, op) {
        (Emit::Weft(name), _) => ops.contains(&op) && !has_kernel(name, target),
        (_, Op::Dequantize) => target == Target::Cuda,
        (emit, _) => emit == Emit::Expand || lacks_bf16(g, op, children),
    })
}

/// The graph with concatenations of concatenations along one axis as one.  The gradients of layers whose weights are stacked
/// are put side by side one by one, and each would be a copy of all before it.
fn joined(graph: &Graph) -> Result<Graph> {
    let mut next = Graph::with_leaves_of(graph);
    let copied = next.copy_outputs(graph, |g, _, node| match &node {
        Node::Op(Op::Concat, children) => {
            let Some((axis, parts)) = children.split_last() else { return g.insert(node) };
            let inner = |g: &Graph, id: Id| match g.node(id) {
                Node::Op(Op::Concat, c) if c.last() == Some(axis) => c[..c.len() - 1].to_vec(),
                _ => vec![id],
            };
            let parts = parts.iter().flat_map(|id| inner(g, *id)).chain([*axis]).collect();
            g.insert(Node::Op(Op::Concat, parts))
        }
        _ => g.insert(node),
    });
    copied.map_err(|m| Error::internal("lower", m))?;
    Ok(next)
}

/// Whether an operator must be computed in f32 between casts: values of bf16 are on a GPU alone.
fn lacks_bf16(graph: &Graph, op: Op, children: &[Id]) -> bool {
    cuda::NOT_IN_BF16.contains(&op)
        && children.iter().any(|c| graph.tensor_type(*c).is_some_and(|t| t.dtype == DType::BF16))
}

/// The same operator over operands in f32, its result in the type that it would have.
fn in_f32(g: &mut Graph, op: Op, children: &[Id]) -> std::result::Result<Id, String> {
    let cast = |g: &mut Graph, x: Id, to: DType| {
        let to = g.lit(Lit::DType(to))?;
        g.op(Op::Cast, &[x, to])
    };
    let mut wide = children.to_vec();
    for x in &mut wide {
        if g.tensor_type(*x).is_some_and(|t| t.dtype == DType::BF16) {
            *x = cast(g, *x, DType::F32)?;
        }
    }
    let y = g.op(op, &wide)?;
    let is_float = g.tensor_type(y).is_some_and(|t| t.dtype == DType::F32);
    if is_float { cast(g, y, DType::BF16) } else { Ok(y) }
}

/// A cast to the type that a value has: `lower` rules write casts for operands of any type.
fn converts_nothing(g: &Graph, op: Op, children: &[Id]) -> bool {
    match (op, children.first().and_then(|x| g.tensor_type(*x)), children.get(1).map(|to| g.type_of(*to))) {
        (Op::Cast, Some(x), Some(Type::Lit(Lit::DType(to)))) => x.dtype == *to,
        _ => false,
    }
}

fn expand_where(
    graph: &Graph,
    rules: &[Rule],
    fired: &mut BTreeMap<String, usize>,
    wanted: impl Fn(&mut Graph, Op, &[Id]) -> bool,
) -> Result<Graph> {
    let mut current = graph.clone();
    for _ in 0..MAX_ROUNDS {
        // Guards compute literals, which need a graph to stand in.
        let mut scratch = current.clone();
        let mut is_wanted = |id: &Id| match current.node(*id) {
            Node::Op(op, children) => wanted(&mut scratch, *op, children) || converts_nothing(&current, *op, children),
            _ => false,
        };
        if !current.live().iter().any(&mut is_wanted) {
            return Ok(current);
        }
        let mut next = Graph::with_leaves_of(&current);
        next.copy_outputs(&current, |g, _, node| match &node {
            Node::Op(op, children) if converts_nothing(g, *op, children) => Ok(children[0]),
            Node::Op(op, children) if wanted(g, *op, children) => lower_one(g, *op, children, rules, fired),
            _ => g.insert(node),
        })
        .map_err(|m| Error::internal("lower", m))?;
        current = next;
    }
    Err(Error::internal("lower", format!("rules still unfold after {MAX_ROUNDS} rounds")))
}

/// The meaning of one composite over operands that are already lowered.
fn lower_one(
    g: &mut Graph,
    op: Op,
    children: &[Id],
    rules: &[Rule],
    fired: &mut BTreeMap<String, usize>,
) -> std::result::Result<Id, String> {
    for rule in rules {
        let Some(mut subst) = unfolds(g, rule, op, children) else { continue };
        bind_lets(&rule.lets, &mut subst, g).map_err(|m| format!("{}: {m}", rule.name))?;
        let Some(Some(right)) = rule.right.first() else { continue };
        let id = instantiate(right, &subst, g).map_err(|m| format!("{}: {m}", rule.name))?;
        *fired.entry(rule.name.to_string()).or_default() += 1;
        return Ok(id);
    }
    if lacks_bf16(g, op, children) {
        return in_f32(g, op, children);
    }
    let types: Vec<String> = children.iter().map(|c| g.type_of(*c).to_string()).collect();
    Err(format!("no lower rule fits {}({})", op.name(), types.join(", ")))
}

/// The body of a fused node's function: a graph whose leaves are the node's operands, under `names`,
/// and whose outputs are its results (`y0`, `y1`, ..), those of a list its parts.
///
/// Calls whose types are the same when [`renamed`] share one body.
pub fn body(op: Op, types: &[&Type], names: &[String], rules: &[Rule]) -> Result<Graph> {
    let internal = |m: String| Error::internal("lower", m);
    let mut graph = Graph::new(op.name());
    let mut children = Vec::new();
    for (k, ty) in types.iter().enumerate() {
        children.push(match ty {
            Type::Tensor(t) => {
                let leaf = Leaf {
                    name: names.get(k).cloned().unwrap_or_else(|| format!("x{k}")),
                    ty: t.clone(),
                    kind: LeafKind::Input,
                    data: None,
                    transposed: false,
                    source_name: None,
                };
                graph.add_leaf(leaf)
            }
            Type::Lit(l) => graph.lit(l.clone()).map_err(internal)?,
            Type::Tuple => return Err(internal(format!("{} takes no tuple", op.name()))),
        });
    }
    let call = graph.op(op, &children).map_err(internal)?;
    graph.outputs = vec![("y0".into(), call)];
    let fused = |g: &mut Graph, op: Op, children: &[Id]| {
        matches!(op.row().emit, Emit::Expand | Emit::Weft(_) | Emit::Kernel(_)) || lacks_bf16(g, op, children)
    };
    let mut graph = expand_where(&graph, &portable(rules), &mut BTreeMap::new(), fused)?;
    let root = graph.outputs[0].1;
    let parts = match graph.node(root).clone() {
        Node::Op(Op::Tuple, parts) => Some(parts.to_vec()),
        Node::Op(Op::Concat, parts) if op.parts() > 1 => Some(parts[..op.parts()].to_vec()),
        _ => None,
    };
    if let Some(parts) = parts {
        graph.outputs = parts.iter().enumerate().map(|(k, id)| (format!("y{k}"), *id)).collect();
    }
    Ok(graph)
}

/// The types with unknown sizes renamed `d0`, `d1`, .. in order of appearance, so that those which differ only in the
/// names or products behind their sizes become the same.
pub fn renamed(types: &[Type]) -> Vec<Type> {
    let mut renamed: BTreeMap<Dim, Dim> = BTreeMap::new();
    let one = |ty: &Type| match ty {
        Type::Tensor(t) => {
            let shape: Vec<Dim> = t.shape.iter().map(|d| rename(d, &mut renamed)).collect();
            Type::Tensor(TensorType::new(t.dtype, shape))
        }
        Type::Lit(l) => Type::Lit(rename_lit(l, &mut renamed)),
        Type::Tuple => Type::Tuple,
    };
    types.iter().map(one).collect()
}

fn rename(dim: &Dim, renamed: &mut BTreeMap<Dim, Dim>) -> Dim {
    if dim.known().is_some() {
        return dim.clone();
    }
    let fresh = Dim::sym(&format!("d{}", renamed.len()));
    renamed.entry(dim.clone()).or_insert(fresh).clone()
}

fn rename_lit(lit: &Lit, renamed: &mut BTreeMap<Dim, Dim>) -> Lit {
    match lit {
        Lit::Int(d) => Lit::Int(rename(d, renamed)),
        Lit::Ints(ds) => Lit::Ints(ds.iter().map(|d| rename(d, renamed)).collect()),
        other => other.clone(),
    }
}
