//! What commands print, and in which colours.

use crate::error::{Error, Result};
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;

/// Whether a stream is to be coloured: a terminal, unless `NO_COLOR` is set or the terminal is a dumb one.
pub fn coloured(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    stream.is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

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
