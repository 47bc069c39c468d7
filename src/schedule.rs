//! Scheduling: the order of nodes in the file.
//!
//! ONNX Runtime derives its own execution order from the file's: a depth-first search backwards from
//! the outputs.  What the file's order steers is which of several ready nodes comes first, and with it
//! how long activations live.  The order here is a plain depth-first one: what the loss and its
//! diagnostics need, then what each gradient needs, from the last parameter to the first.  It does not
//! weigh memory.

use crate::ir::{Graph, Id};

/// Operator and literal nodes that the outputs need, operands before users.
///
/// Outputs are visited in order: the loss and its diagnostics first (the forward pass), then the
/// gradients from the last parameter to the first, as the backward pass produces them.
pub fn order(graph: &Graph) -> Vec<Id> {
    let is_gradient = |name: &str| name.starts_with("grad/");
    let forward = graph.outputs.iter().filter(|(n, _)| !is_gradient(n));
    let backward = graph.outputs.iter().filter(|(n, _)| is_gradient(n)).rev();
    graph.reachable(forward.chain(backward).map(|(_, id)| *id))
}
