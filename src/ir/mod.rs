//! The intermediate representation: a hash-consed graph of pure, typed nodes.
//!
//! Knows nothing of the rest of the crate: not ONNX, not rules, not ONNX Runtime.

pub mod blocks;
pub mod builder;
pub mod codes;
pub mod dim;
pub mod graph;
pub mod infer;
pub mod op;
pub mod recipe;
pub mod selection;
pub mod sexpr;
pub mod text;
pub mod ty;

pub use blocks::Blocks;
pub use builder::Builder;
pub use dim::{Dim, Sym};
pub use graph::{Data, Graph, Id, Leaf, LeafId, LeafKind, Node};
pub use op::Op;
pub use recipe::{Matrix, Recipe};
pub use ty::{DType, F64, Lit, TensorType, Type};
