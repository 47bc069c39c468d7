//! ONNX Runtime: find or install the library, open sessions, run them.
//!
//! Outside this module and `kernels` nothing names a type of the `ort` crate; nothing here knows about
//! training.
pub mod cuda;
pub mod device;
pub mod doctor;
pub mod install;
pub mod locate;
pub mod session;
pub mod tensor;

pub use doctor::doctor;
pub use locate::{Library, Origin};
pub use session::{Bound, Buffer, Options, Session, environment};
pub use tensor::{Element, HostTensor};
