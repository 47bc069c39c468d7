//! ONNX files in and out: the only place that knows protobuf, operator names, opsets and exporters.

pub mod adapter_file;
mod build;
mod call;
mod custom;
pub mod data_file;
pub mod emit;
mod functions;
mod held;
mod hints;
mod import;
mod known;
mod names;
mod ops;
mod origin;
pub mod proto;
mod prune;
mod quantized;
pub mod read;
pub mod replace;
mod rows;
mod scope;
mod sizes;
mod symbols;
mod tensor;
mod tie;
pub mod train_file;
pub mod weights;
mod wire;
pub mod write;

pub use read::{Source, read};
