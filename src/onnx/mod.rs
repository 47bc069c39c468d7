//! ONNX files in and out.  Only this folder names a protobuf type.

pub mod emit;
#[rustfmt::skip]
pub mod proto;
pub mod read;
pub mod weights;
pub mod write;
