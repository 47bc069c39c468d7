//! Ctrl-C: the step in progress is finished and saved; a second one ends the program at once.

use crate::error::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// The exit code of a run that was interrupted: 128 + SIGINT, as shells have it.
pub const EXIT_CODE: u8 = 130;

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on SIGINT and SIGTERM only ask for the end of the run.
///
/// # Errors
/// Where the system does not let signals be handled.
pub fn listen() -> Result<()> {
    let asked = ASKED.get_or_init(Arc::default);
    let register = |signal| -> std::io::Result<()> {
        // In this order the first signal finds the flag down, and the second finds it up.
        flag::register_conditional_shutdown(signal, EXIT_CODE.into(), asked.clone())?;
        flag::register(signal, asked.clone()).map(drop)
    };
    [SIGINT, SIGTERM]
        .into_iter()
        .try_for_each(register)
        .map_err(|e| Error::runtime(format!("cannot handle Ctrl-C: {e}")))
}

/// Whether the run shall end.
pub fn asked() -> bool {
    ASKED.get().is_some_and(|asked| asked.load(Ordering::Relaxed))
}
