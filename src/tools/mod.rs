//! What is not a training step: looking at a model, at a rule, and plain gradients.

pub mod check;
pub mod explain;
pub mod grad;
pub mod inspect;
pub mod memory;
pub mod plan;
pub mod structure;
pub mod training;
