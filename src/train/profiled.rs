//! One step of a run that ONNX Runtime profiles: where its time goes, in parts.json and in the report.

use super::RunArgs;
use super::batch::Batch;
use super::checkpoint::Weights;
use super::log::Log;
use super::trainer::Trainer;
use crate::atomic;
use crate::error::{Error, Problem, Result};
use crate::onnx::train_file::TrainFile;
use serde_json::Value;
use std::path::{Path, PathBuf};

pub const FILE: &str = "parts.json";

/// Steps of a process whose time says little: the first grow the memory.
const WARM: u64 = 2;

/// A step as the run made it.
#[derive(Clone, Copy)]
pub struct Made<'a> {
    /// From 1.
    pub step: u64,
    pub seconds: f64,
    pub batches: &'a [Batch],
    /// Masked tokens of all of them.
    pub masked: usize,
}

/// A step that was profiled.
pub struct Profiled<'a> {
    pub made: Made<'a>,
    pub file: &'a TrainFile,
    /// The source model, which may not be there.
    pub source: PathBuf,
    /// Profiles by session, as `Engine::end_profiles` names them; the step's runs are their last.
    pub profiles: Vec<(&'static str, PathBuf)>,
}

/// Takes a step apart, which needs the compiler: a line for the log and what parts.json holds.
pub type Apart<'a> = &'a dyn Fn(&Profiled) -> Result<(String, Value)>;

/// Removes what another run left in the folder of this one.
///
/// # Errors
/// `Io` where it cannot be removed.
pub fn forget(out: &Path) -> Result<()> {
    let path = out.join(FILE);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
        _ => Ok(()),
    }
}

/// Waits for the step of --profile-step.
pub struct Watch<'a> {
    step: u64,
    apart: Apart<'a>,
    out: &'a Path,
    profiles: tempfile::TempDir,
}

impl<'a> Watch<'a> {
    /// `None` where no step is asked for.
    ///
    /// # Errors
    /// `Usage` without a folder for the result; `Io`.
    pub fn new(args: &'a RunArgs, apart: Option<Apart<'a>>) -> Result<Option<Self>> {
        let Some(step) = args.profile_step else { return Ok(None) };
        let out = args.out.as_deref().ok_or_else(|| {
            Error::usage(Problem::new("--profile-step", format!("there is no folder for {FILE}")).help("--out DIR"))
        })?;
        let apart = apart.ok_or_else(|| Error::internal("run", "steps are taken apart by weftc::sampling::run"))?;
        let profiles = tempfile::tempdir().map_err(|e| Error::io("create", &std::env::temp_dir(), e))?;
        Ok(Some(Watch { step, apart, out, profiles }))
    }

    /// Where the sessions leave their profiles.
    pub fn folder(&self) -> &Path {
        self.profiles.path()
    }

    /// Puts the step off that is too early for a process whose first one is behind `done`, of `steps`.
    pub fn warm(&mut self, done: u64, steps: u64) {
        self.step = self.step.max(done + WARM + 1).min(steps);
    }

    pub fn is_due(&self, step: u64) -> bool {
        step >= self.step
    }

    /// Takes apart the step that `trainer` made last.  What cannot be is logged: it ends no run.
    ///
    /// # Errors
    /// `Io` where the result cannot be written.
    pub fn take(self, trainer: &mut Trainer, source: Option<&Path>, made: Made, log: &Log) -> Result<()> {
        let profiles = trainer.end_profiles();
        let file = trainer.file();
        let source = source.map_or_else(|| file.source(), Path::to_path_buf);
        match profiles.and_then(|profiles| (self.apart)(&Profiled { made, file, source, profiles })) {
            Ok((line, parts)) => {
                log.say(&line);
                atomic::write(&self.out.join(FILE), |to| to.write_all(format!("{parts:#}\n").as_bytes()))
            }
            Err(e) => {
                log.say(&format!("step {} was not taken apart: {e}", made.step));
                Ok(())
            }
        }
    }
}
