//! Trains: feeds a train.onnx, updates its parameters, logs, saves.
//!
//! Knows the contract of train.onnx (its inputs, outputs and manifest) and the runtime, not the compiler.
pub mod adapter;
pub mod args;
pub mod batch;
pub mod checkpoint;
pub mod configuration;
pub mod data;
pub mod dry_run;
pub mod engine;
pub mod forward;
pub mod held_out;
pub mod interpreter;
pub mod interrupt;
pub mod log;
pub mod loss_scale;
pub mod optimizer;
pub mod plan;
pub mod prepare;
pub mod probe;
pub mod profiled;
pub mod record;
pub mod results;
pub mod run;
pub mod sampler;
pub mod samples;
pub mod saved;
pub mod settings;
pub mod state;
pub mod store;
pub mod tensorboard;
pub mod token_weight;
pub mod tokens;
pub mod trainer;

pub use args::{RunArgs, RuntimeKind};
pub use optimizer::Optimizer;
pub use run::{Summary, run};
pub use trainer::{Outcome, Setup, StepResult, Trainer};
