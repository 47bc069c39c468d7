//! Native kernels for functions of the domain `ai.weft`.
//!
//! ONNX Runtime prefers a kernel to the function of the same name, so a file stays portable and runs fast
//! here.  A kernel computes what its function's body says, to the bit where a test says so.
pub mod adamw;

use crate::error::{Error, Result};
use ort::operator::OperatorDomain;
use std::sync::Arc;

/// The kernels of the optimizer, to be given to a session.  ONNX Runtime must be loaded.
pub fn optimizer() -> Result<Arc<OperatorDomain>> {
    let domain = OperatorDomain::new("ai.weft").and_then(|d| d.add(adamw::AdamW));
    domain.map(Arc::new).map_err(|e| Error::runtime(format!("ONNX Runtime takes no kernels: {}", e.message())))
}
