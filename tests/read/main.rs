//! Reading ONNX: exported models, small graphs of each kind, and what is refused.

mod back;
mod build;
mod case;
mod compiled;
mod errors;
mod graphs;
mod loops;
mod models;
mod numbers;
mod operators;
mod opsets;
mod weights;
