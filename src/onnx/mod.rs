//! ONNX files: the only place that knows protobuf, operator names, opsets and exporters.
//!
//! `read` turns a model file into a graph; every opset's and exporter's differences end there.

mod build;
mod call;
pub mod emit;
mod import;
mod known;
mod names;
mod ops;
pub mod proto;
pub mod read;
pub mod replace;
mod scope;
mod symbols;
mod tensor;
mod tie;
pub mod train_file;
pub mod weights;
pub mod write;

pub use read::{Source, read};
