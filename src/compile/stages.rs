//! The stages that any graph can go through, whatever it is compiled for.

use crate::error::{Error, Result};
use crate::ir::{Builder, Graph, Id, LeafId, Node};
use crate::rewrite::{self, Saturated};
use crate::rules::library::Library;
use crate::rules::{Rule, Target};
use crate::sink::{self, Sunk};
use crate::{autodiff, lower};
use std::collections::BTreeMap;

/// The rules of `families` that are used for `target`: no search rules.
pub fn usable<'r>(families: &[&'r [Rule]], target: Target) -> Vec<&'r Rule> {
    let all = families.iter().flat_map(|f| f.iter());
    all.filter(|r| !r.search && target.takes(r.target)).collect()
}

/// The gradient rows for `target`.
pub fn rows(library: &Library, target: Target) -> Vec<Rule> {
    library.grad.iter().filter(|r| r.target.is_none_or(|t| t == target)).cloned().collect()
}

/// Composites for exporters' idioms; only what the outputs need is kept.
pub fn lift(model: &Graph, library: &Library, target: Target) -> Result<Saturated> {
    rewrite::saturate(model, &usable(&[&library.lift, &library.simplify], target), &rewrite::Options::default())
}

/// Heads where projections leave them, for our kernels.
pub fn lay_out(model: &Graph, library: &Library, target: Target) -> Result<Saturated> {
    rewrite::saturate(model, &usable(&[&library.layout, &library.simplify], target), &rewrite::Options::default())
}

/// Work on single tokens is done for those alone that an entropy or a loss is read at.
pub fn sink(step: &Graph, library: &Library, target: Target) -> Result<Sunk> {
    // Elsewhere ONNX Runtime makes the weight dense to multiply with it.
    let keeps_codes = target == Target::Cpu;
    sink::sink(step, &usable(&[&library.sink], target), &usable(&[&library.simplify], target), keeps_codes)
}

/// Adds the outputs `grad/<leaf>`: the gradients of the scalar `of`, one for each leaf of `wrt`.
pub fn add_gradients(graph: &mut Graph, of: Id, wrt: &[LeafId], rows: &[Rule]) -> Result<()> {
    let leaves: std::result::Result<Vec<Id>, String> = wrt.iter().map(|l| graph.insert(Node::Leaf(*l))).collect();
    let leaves = leaves.map_err(|m| Error::internal("differentiate", m))?;
    let gradients = autodiff::differentiate(graph, of, &leaves, rows)?;
    for (leaf, gradient) in wrt.iter().zip(gradients) {
        let name = format!("grad/{}", graph.leaf(*leaf).name);
        graph.outputs.push((name, gradient));
    }
    Ok(())
}

/// Directed algebra over forward and backward together.
pub fn optimise(graph: &Graph, library: &Library, target: Target) -> Result<Saturated> {
    rewrite::saturate(graph, &usable(&[&library.simplify], target), &rewrite::Options::default())
}

/// Operators that can be written.  Counts rule uses in `fired`.
pub fn lower_for(
    graph: &Graph,
    library: &Library,
    target: Target,
    fired: &mut BTreeMap<String, usize>,
) -> Result<Graph> {
    let expanded = lower::expand(graph, &library.lower_for(target), target, fired)?;
    let saturated = rewrite::saturate(
        &expanded,
        &usable(&[&library.fuse, &library.simplify], target),
        &rewrite::Options::default(),
    )?;
    rewrite::count(fired, &saturated.fired);
    Ok(saturated.graph)
}
