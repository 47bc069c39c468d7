//! Which passes of a step dropout takes part in.

use crate::autodiff;
use crate::error::{Error, Result};
use crate::ir::{Builder, Graph, Node, Op};
use crate::rules::Rule;

/// The step without dropout where no gradient passes: the entropy pass and the diagnostics see the whole adapter.
///
/// # Errors
/// `Internal` where the graph has no `loss_sum`.
pub(super) fn training_pass_only(step: Graph, rows: &[Rule]) -> Result<Graph> {
    let internal = |m: String| Error::internal("objective", m);
    if !step.live().iter().any(|id| step.node(*id).op() == Some(Op::Dropout)) {
        return Ok(step);
    }
    let loss = step.outputs.iter().find(|(name, _)| name == "loss_sum").map(|(_, id)| *id);
    let carries = autodiff::carrying(&step, loss.ok_or_else(|| internal("there is no loss_sum".into()))?, rows);
    let mut next = Graph::with_leaves_of(&step);
    let copied = next.copy_outputs(&step, |g, old, node| match node {
        Node::Op(Op::Dropout, children) if !carries[usize::from(old)] => Ok(children[0]),
        node => g.insert(node),
    });
    copied.map_err(internal)?;
    Ok(next)
}
