//! Reverse-mode differentiation: one sweep over a table of vjp rows.
//!
//! Cotangents travel from one scalar back to the chosen leaves.  What an operator's operands receive
//! is a row of `rules/grad.egg`; this file knows no operator, only the sweep: which nodes matter, how
//! cotangents of several uses add up, and how a broadcast cotangent is summed down to its operand.

use crate::error::{Error, Problem, Result};
use crate::ir::infer::resolve_axis;
use crate::ir::{Builder, DType, Dim, F64, Graph, Id, Lit, Node, Op, Type};
use crate::rules::template::{Subst, bind_lets, holds, instantiate};
use crate::rules::{Rule, Term};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// The gradient of the scalar node `loss` with respect to each of `wrt`, in order.
///
/// New nodes are added to the graph.  A leaf that the loss does not depend on has gradient zero.
/// Every operator without a row is reported at once.
pub fn differentiate(graph: &mut Graph, loss: Id, wrt: &[Id], rows: &[Rule]) -> Result<Vec<Id>> {
    let order = graph.reachable([loss]);
    let active = active_nodes(graph, &order, wrt);
    refuse_missing_rows(graph, &order, &active, rows)?;
    let mut cotangents: FxHashMap<Id, Id> = FxHashMap::default();
    let seed = full(graph, loss, 1.0)?;
    cotangents.insert(loss, seed);
    for &y in order.iter().rev() {
        let (Some(&dy), Node::Op(op, children)) = (cotangents.get(&y), graph.node(y).clone()) else { continue };
        let row = applicable(graph, rows, op, &children, y, dy)?;
        let operands = op.operands(children.len());
        let mut before = Dim::Known(0);
        for (k, &x) in children[..operands].iter().enumerate() {
            let start = before.clone();
            if row.variadic {
                before = before + extent(graph, &children, operands, x)?;
            }
            if !active.get(usize::from(x)).copied().unwrap_or(false) {
                continue;
            }
            let d = &row.right[if row.variadic { 0 } else { k }];
            let Some(d) = d else { continue };
            let mut subst = bind(graph, row, op, &children, y, dy)?;
            if row.variadic {
                subst.insert("x".into(), x);
                subst.insert("start".into(), graph.lit(Lit::Int(start)).map_err(internal)?);
                subst.insert("end".into(), graph.lit(Lit::Int(before.clone())).map_err(internal)?);
            }
            bind_lets(&row.lets, &mut subst, graph).map_err(internal)?;
            let dx = instantiate(d, &subst, graph).map_err(internal)?;
            let dx = unbroadcast(graph, dx, x)?;
            let total = match cotangents.get(&x) {
                Some(&sum) => graph.op(Op::Add, &[sum, dx]).map_err(internal)?,
                None => dx,
            };
            cotangents.insert(x, total);
        }
    }
    wrt.iter()
        .map(|w| match cotangents.get(w) {
            Some(&g) => Ok(g),
            None => full(graph, *w, 0.0),
        })
        .collect()
}

fn internal(message: String) -> Error {
    Error::internal("differentiate", message)
}

/// Which nodes lie between a leaf of `wrt` and the loss, along floating-point values.
pub(crate) fn active_nodes(graph: &Graph, order: &[Id], wrt: &[Id]) -> Vec<bool> {
    let mut active = vec![false; graph.len()];
    for id in wrt {
        active[usize::from(*id)] = true;
    }
    for &id in order {
        let float = graph.tensor_type(id).is_some_and(|t| t.dtype.is_float());
        if float && graph.node(id).children().iter().any(|c| active[usize::from(*c)]) {
            active[usize::from(id)] = true;
        }
    }
    active
}

/// By node: whether a cotangent of `loss` reaches it by the rows, whatever is trained.  An operator without rows is taken to
/// pass cotangents on: [`differentiate`] refuses it.
pub(crate) fn carrying(graph: &Graph, loss: Id, rows: &[Rule]) -> Vec<bool> {
    let mut carries = vec![false; graph.len()];
    carries[usize::from(loss)] = true;
    for &y in graph.reachable([loss]).iter().rev().filter(|y| graph.node(**y).op().is_some()) {
        let Node::Op(op, children) = graph.node(y) else { continue };
        if !carries[usize::from(y)] {
            continue;
        }
        let own: Vec<&Rule> = rows.iter().filter(|r| row_op(r) == Some(*op)).collect();
        for (k, x) in children[..op.operands(children.len())].iter().enumerate() {
            let passes = |row: &&Rule| row.right.get(if row.variadic { 0 } else { k }).is_some_and(Option::is_some);
            carries[usize::from(*x)] |= own.is_empty() || own.iter().any(passes);
        }
    }
    carries
}

/// Lists every active operator that has no row, with its count and the first source node.
fn refuse_missing_rows(graph: &Graph, order: &[Id], active: &[bool], rows: &[Rule]) -> Result<()> {
    let mut missing: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    for &id in order {
        let Some(op) = graph.node(id).op() else { continue };
        if active[usize::from(id)] && !rows.iter().any(|r| row_op(r) == Some(op)) {
            let origin = graph.origin.get(&id).map_or_else(|| format!("%{id}"), |o| o.to_string());
            missing.entry(op.name()).or_insert((0, origin)).0 += 1;
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let problems = missing.into_iter().map(|(name, (count, first))| {
        Problem::new(first, format!("`{name}` lies between a parameter and the loss {count} times and has no gradient"))
            .help(format!("add a row `(vjp ({name} ..) => ..)` to rules/grad.egg, or freeze what feeds it"))
    });
    Err(Error::Model { model: graph.name.clone().into(), problems: problems.collect() })
}

/// The operator of a row.
pub(crate) fn row_op(row: &Rule) -> Option<Op> {
    if let Term::Op(op, _) = &row.left { Some(*op) } else { None }
}

/// The first row of the operator whose guards hold.
fn applicable<'r>(graph: &mut Graph, rows: &'r [Rule], op: Op, children: &[Id], y: Id, dy: Id) -> Result<&'r Rule> {
    for row in rows.iter().filter(|r| row_op(r) == Some(op)) {
        let subst = bind(graph, row, op, children, y, dy)?;
        if holds(&row.guards, &subst, graph) {
            return Ok(row);
        }
    }
    let types: Vec<String> = children.iter().map(|c| graph.type_of(*c).to_string()).collect();
    let place = graph.origin.get(&y).map_or_else(|| op.name().to_string(), |o| o.to_string());
    let problem = Problem::new(place, format!("no gradient row for this form: {}({})", op.name(), types.join(", ")))
        .help(format!("rules/grad.egg has rows for `{}` under other conditions", op.name()));
    Err(Error::Model { model: graph.name.clone().into(), problems: vec![problem] })
}

/// The row's variables bound to a node's children, `?y` and `?dy`.
pub(crate) fn bind(graph: &Graph, row: &Rule, op: Op, children: &[Id], y: Id, dy: Id) -> Result<Subst> {
    let Term::Op(_, vars) = &row.left else { return Err(internal(format!("{} has no operator", row.name))) };
    let mut subst = Subst::default();
    subst.insert("y".into(), y);
    subst.insert("dy".into(), dy);
    // A variadic row names one operand, then the attributes.
    let bound = if row.variadic { &children[op.operands(children.len())..] } else { children };
    let vars = if row.variadic { &vars[1..] } else { vars.as_slice() };
    if vars.len() != bound.len() {
        return Err(internal(format!("{} binds {} of {} children", row.name, vars.len(), bound.len())));
    }
    for (var, id) in vars.iter().zip(bound) {
        if let Term::Var(name) = var {
            subst.insert(name.clone(), *id);
        }
    }
    debug_assert!(matches!(graph.type_of(dy), Type::Tensor(_)));
    Ok(subst)
}

/// The operand's size on the variadic operator's axis (its first attribute).
fn extent(graph: &Graph, children: &[Id], operands: usize, x: Id) -> Result<Dim> {
    let shape = graph.type_of(x).shape();
    let axis = children.get(operands).and_then(|a| graph.type_of(*a).lit()).and_then(Lit::int).and_then(Dim::known);
    let axis = axis.ok_or_else(|| internal("a variadic operator needs an axis".into()))?;
    Ok(shape[resolve_axis(axis, shape.len()).map_err(internal)?].clone())
}

/// Sums `d` over the axes on which `x` was broadcast, or spreads it where it is smaller.
fn unbroadcast(graph: &mut Graph, d: Id, x: Id) -> Result<Id> {
    let (have, want) = (graph.type_of(d).shape().to_vec(), graph.type_of(x).shape().to_vec());
    if have == want {
        return Ok(d);
    }
    let extra = have.len().saturating_sub(want.len());
    let rank = have.len() as i64;
    let axes: Box<[Dim]> = (0..have.len())
        .filter(|&k| k < extra || (want[k - extra].is(1) && !have[k].is(1)))
        .map(|k| Dim::Known(k as i64 - rank))
        .collect();
    let mut out = d;
    if !axes.is_empty() {
        let axes = graph.lit(Lit::Ints(axes)).map_err(internal)?;
        out = graph.op(Op::Sum, &[out, axes]).map_err(internal)?;
    }
    let summed = graph.type_of(out).shape();
    if summed != want.as_slice() {
        let shape = graph.lit(Lit::Ints(want.clone().into())).map_err(internal)?;
        let op = if have.len() > want.len() { Op::Reshape } else { Op::Expand };
        out = graph.op(op, &[out, shape]).map_err(internal)?;
    }
    Ok(out)
}

/// A tensor of one value with the type of `like`.
fn full(graph: &mut Graph, like: Id, value: f64) -> Result<Id> {
    let (dtype, shape) = match graph.type_of(like) {
        Type::Tensor(t) => (t.dtype, t.shape.clone()),
        _ => (DType::F32, vec![]),
    };
    let attrs = [Lit::Float(F64(value)), Lit::DType(dtype), Lit::Ints(shape.into())];
    let ids: std::result::Result<Vec<Id>, String> = attrs.into_iter().map(|l| graph.lit(l)).collect();
    graph.op(Op::Full, &ids.map_err(internal)?).map_err(internal)
}
