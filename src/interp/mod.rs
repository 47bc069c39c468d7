//! The oracle: runs a graph of the IR on candle tensors in f64, one arm an operator.
//!
//! It is written for being right, not for speed, and straight from the mathematics: a composite has an
//! arm of its own, not the one that `rules/lower.egg` would give it, because rules and gradients are
//! checked against these arms.  Every tensor is held as f64, integers and booleans too (exact below
//! 2^53), so a result is what the graph means, free of its element types' rounding.
//!
//! An operator is one arm in [`eval`]; most arms are candle's own differentiable operators, so that
//! candle's `backward` is a second opinion on our gradients.

mod args;
mod elementwise;
mod eval;
mod feed;
mod head;
mod layout;
mod model;
mod objective;

pub use eval::eval;
pub use feed::Symbols;
pub use objective::{adamw, sgd};

use crate::error::Error;
use crate::ir::{Builder, DType, Graph, Id, Lit, Node, Op, TensorType, Type, recipe};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// Runs `graph` and returns its outputs by name, as f64 tensors.
///
/// `feeds` holds a tensor for every leaf that the outputs need, by leaf name; a leaf that carries its
/// own data may be left out.  Unknown sizes are bound from the shapes fed.  An output that is a tuple
/// comes back as `name.0`, `name.1`, and so on.
///
/// # Errors
/// `Usage` lists every feed that is missing, unknown, or contradicts the leaf's type or another feed;
/// `Internal` names the node that has no value.
pub fn run(graph: &Graph, feeds: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, Error> {
    run_with(graph, feeds, &|value, _| Ok(value))
}

/// The same with every value of 16 bits rounded to its type, composites once: what a device with such
/// arithmetic computes, with sums in a wider type.
///
/// # Errors
/// As [`run`].
pub fn run_rounded(graph: &Graph, feeds: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, Error> {
    run_with(graph, feeds, &|value, ty| match ty.dtype {
        DType::F16 | DType::BF16 if value.elem_count() > 0 => {
            objective::map(&value, |x| recipe::rounded(x, ty.dtype)).map_err(|e| e.to_string())
        }
        _ => Ok(value),
    })
}

/// The same with every floating-point value rounded to f32, composites once: what a rule means where f32 is all
/// there is.
///
/// # Errors
/// As [`run`].
pub fn run_single(graph: &Graph, feeds: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, Error> {
    run_with(graph, feeds, &|value, ty| match ty.dtype {
        // A view without elements may lie behind the end of its storage.
        DType::F32 if value.elem_count() > 0 => {
            objective::map(&value, |x| f64::from(x as f32)).map_err(|e| e.to_string())
        }
        _ => Ok(value),
    })
}

fn run_with(graph: &Graph, feeds: &BTreeMap<String, Tensor>, keep: Keep) -> Result<BTreeMap<String, Tensor>, Error> {
    let live = graph.live_sizes_first();
    let (leaves, mut symbols) = feed::bind(graph, &live, feeds)?;
    let mut values: Vec<Vec<Tensor>> = vec![Vec::new(); graph.len()];
    let mut uses = count_uses(graph, &live);
    for &id in &live {
        values[usize::from(id)] = match graph.node(id) {
            Node::Leaf(leaf) => vec![leaves[leaf].clone()],
            Node::Lit(_) => continue,
            Node::Op(op, children) => {
                if *op == Op::TrueRows {
                    symbols.count(graph.type_of(id), &values[usize::from(children[0])]);
                }
                let made = node(graph, id, *op, children, &values, &symbols);
                let kept = made.and_then(|parts| match graph.tensor_type(id) {
                    Some(ty) => parts.into_iter().map(|value| keep(value, ty)).collect(),
                    None => Ok(parts),
                });
                kept.map_err(|m| at_node(graph, id, &m))?
            }
        };
        for child in graph.node(id).children() {
            let left = &mut uses[usize::from(*child)];
            *left -= 1;
            if *left == 0 {
                values[usize::from(*child)].clear();
            }
        }
    }
    let mut outputs = BTreeMap::new();
    for (name, id) in &graph.outputs {
        let parts = match graph.node(*id) {
            Node::Lit(l) => vec![scalar(l).map_err(|m| at_node(graph, *id, &m))?],
            _ => values[usize::from(*id)].clone(),
        };
        match graph.type_of(*id) {
            Type::Tuple => outputs.extend(parts.into_iter().enumerate().map(|(k, t)| (format!("{name}.{k}"), t))),
            _ => outputs.extend(parts.into_iter().map(|t| (name.clone(), t))),
        }
    }
    Ok(outputs)
}

/// What becomes of a value of a type before it is read.
type Keep<'a> = &'a dyn Fn(Tensor, &TensorType) -> Result<Tensor, String>;

/// The values of one node: several for a tuple.
fn node(
    graph: &Graph,
    id: Id,
    op: Op,
    children: &[Id],
    values: &[Vec<Tensor>],
    symbols: &Symbols,
) -> Result<Vec<Tensor>, String> {
    let first = op.operands(children.len());
    let mut operands = Vec::new();
    for child in &children[..first] {
        match graph.node(*child) {
            Node::Lit(l) => operands.push(scalar(&symbols.literal(l)?)?),
            _ => operands.extend(values[usize::from(*child)].iter().cloned()),
        }
    }
    match op {
        Op::Tuple => return Ok(operands),
        Op::AdamW => return adamw(&operands).map(Vec::from),
        Op::Sgd => return sgd(&operands).map(Vec::from),
        _ => {}
    }
    let attrs: Result<Vec<Lit>, String> = children[first..]
        .iter()
        .map(|c| match graph.node(*c) {
            Node::Lit(l) => symbols.literal(l),
            _ => Err(format!("an attribute of {} is not a literal", op.name())),
        })
        .collect();
    let ty = graph.tensor_type(id).ok_or_else(|| format!("{} has no tensor type", op.name()))?;
    let ty = TensorType::new(ty.dtype, symbols.shape(&ty.shape)?);
    Ok(vec![eval(op, &operands, &attrs?, &ty)?])
}

/// How often each value is read, outputs included, so that it can be dropped after its last use.
fn count_uses(graph: &Graph, live: &[Id]) -> Vec<usize> {
    let mut uses = vec![0; graph.len()];
    for id in live {
        for child in graph.node(*id).children() {
            uses[usize::from(*child)] += 1;
        }
    }
    for (_, id) in &graph.outputs {
        uses[usize::from(*id)] += 1;
    }
    uses
}

/// A weak scalar as a tensor of rank 0.
fn scalar(lit: &Lit) -> Result<Tensor, String> {
    let x = lit.number().ok_or_else(|| format!("`{lit}` is not a number"))?;
    Tensor::new(x, &Device::Cpu).map_err(|e| e.to_string())
}

fn at_node(graph: &Graph, id: Id, message: &str) -> Error {
    let origin = graph.origin.get(&id).map(|o| format!(" ({o})")).unwrap_or_default();
    Error::internal("the interpreter", format!("node %{id}{origin}: {message}"))
}

#[cfg(test)]
mod tests;
