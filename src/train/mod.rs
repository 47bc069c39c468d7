//! Trains: feeds a train.onnx, updates its parameters, logs, saves.
//!
//! Knows the contract of train.onnx (its inputs, outputs and manifest) and the runtime, not the compiler.
pub mod batch;
pub mod data;
pub mod optimizer;
pub mod sampler;
