//! The settings of a run as a file that `--config` takes: `run.toml` in `--out`.

use super::args::RunArgs;
use crate::atomic;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// The file's name.
pub const FILE: &str = "run.toml";

/// Writes the settings of a run, with what it chose itself; given back with `--config`, they are the same run.
///
/// # Errors
/// `Io`.
pub fn save(args: &RunArgs, folder: &Path) -> Result<()> {
    let text = text(args)?;
    atomic::write(&folder.join(FILE), |file| file.write_all(text.as_bytes()))
}

/// The lines of the file, in the order of `--help`.
pub fn text(args: &RunArgs) -> Result<String> {
    // From where it went on belongs to a run's history, not to what it computes.
    let args = RunArgs { resume: None, config: None, dry_run: false, json: false, ..args.clone() };
    let json = serde_json::to_value(args).map_err(|e| Error::internal("configuration", e.to_string()))?;
    let mut text = format!("# weftc {}: weftc run --config {FILE} is this run again\n", env!("CARGO_PKG_VERSION"));
    for (name, value) in json.as_object().into_iter().flatten() {
        let value = match value {
            Value::Null | Value::Bool(false) => continue,
            Value::String(text) => toml::Value::String(text.clone()).to_string(),
            other => other.to_string(),
        };
        text += &format!("{} = {value}\n", name.replace('_', "-"));
    }
    Ok(text)
}
