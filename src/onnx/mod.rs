//! ONNX files: the only place that knows protobuf, operator names, opsets and exporters.

pub mod proto;
pub mod replace;
pub mod train_file;
pub mod write;
