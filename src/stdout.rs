//! What commands print.

use crate::error::{Error, Result};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Prints; that nobody reads to the end, as in `weftc inspect .. | head`, is no error.
///
/// # Errors
/// `Io`: standard output cannot be written.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("write", Path::new("standard output"), e)),
        _ => Ok(()),
    }
}
