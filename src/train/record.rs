//! `run.json`: what a run is, how far it came, and what it came to.

use super::args::RunArgs;
use super::run::Summary;
use super::settings::Settings;
use crate::atomic;
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The file in a run's folder.
pub const FILE: &str = "run.json";

/// How far a run came.  A file that says `running` beside no such process is that of a run that was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    Finished,
    /// By Ctrl-C.
    Interrupted,
    /// Ended by steps that were not finite.
    Diverged,
}

/// What is the same from a run's first to its last moment.
#[derive(Clone, Copy, Serialize)]
pub struct Record<'a> {
    pub arguments: &'a RunArgs,
    /// What decides every step, with the hashes of train.onnx, the source model and the data.
    pub settings: &'a Settings,
    pub manifest: &'a Manifest,
}

impl Record<'_> {
    /// Writes the file into `folder`, whole or not at all; returns its path.
    ///
    /// # Errors
    /// `Io`.
    pub fn save(&self, folder: &Path, state: State, summary: Option<&Summary>) -> Result<PathBuf> {
        #[derive(Serialize)]
        struct File<'a> {
            weftc: &'a str,
            state: State,
            #[serde(flatten)]
            record: Record<'a>,
            #[serde(skip_serializing_if = "Option::is_none")]
            summary: Option<&'a Summary>,
        }
        let file = File { weftc: env!("CARGO_PKG_VERSION"), state, record: *self, summary };
        let json = serde_json::to_string_pretty(&file).map_err(|e| Error::internal("run", e.to_string()))?;
        let path = folder.join(FILE);
        atomic::write(&path, |file| writeln!(file, "{json}"))?;
        Ok(path)
    }
}
