//! (see ARCHITECTURE)
pub mod sampler;
