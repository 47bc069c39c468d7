//! weftc compiles the ONNX graph of a diffusion language model into a *training* graph and runs it on
//! stock ONNX Runtime.
pub mod autodiff;
pub mod cli;
pub mod compile;
pub mod error;
pub mod eval;
pub mod generate;
pub mod interp;
pub mod ir;
pub mod lower;
pub mod manifest;
pub mod objective;
pub mod onnx;
pub mod rewrite;
pub mod rules;
pub mod runtime;
pub mod schedule;
pub mod train;
