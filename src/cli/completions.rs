//! `weftc completions`: scripts for shells.

use crate::error::{Error, Result};
use crate::stdout::print;
use clap::{CommandFactory, ValueEnum};
use clap_complete::generate;

/// Shells whose completion scripts can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script for `shell`, made from the commands and flags of `C`.
///
/// # Errors
/// Standard output that cannot be written.
pub fn completions<C: CommandFactory>(shell: Shell) -> Result<()> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut C::command(), "weftc", &mut script);
    print(&String::from_utf8(script).map_err(|e| Error::internal("completions", e.to_string()))?)
}
