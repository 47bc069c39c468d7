//! ONNX files in and out: the only place that knows protobuf, operator names, opsets and exporters.

pub mod emit;
pub mod proto;
pub mod read;
pub mod replace;
pub mod train_file;
pub mod weights;
pub mod write;
