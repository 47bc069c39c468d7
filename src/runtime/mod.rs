//! ONNX Runtime: find or install the library, open sessions, run them.
//!
//! Outside this module and `kernels` nothing names a type of the `ort` crate; nothing here knows about
//! training.

pub mod buffer;
pub mod cuda;
pub mod device;
pub mod doctor;
pub mod environment;
pub mod install;
pub mod locate;
pub mod session;
pub mod share;
pub mod tensor;

pub use buffer::Buffer;
pub use doctor::doctor;
pub use environment::environment;
pub use locate::{Library, Origin};
pub use session::{Bound, Options, Session};
pub use tensor::{Element, HostTensor};
