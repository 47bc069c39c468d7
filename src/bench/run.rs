//! A step of a run, taken apart.

use super::parts::{Parts, Step, apart};
use super::{calibrate, profile, show, told};
use crate::cost::predict::Load;
use crate::cost::{Part, Prediction};
use crate::error::{Error, Result};
use crate::tools::plan;
use crate::train::batch::Batch;
use crate::train::profiled::{Made, Profiled};
use serde::Serialize;
use serde_json::{Value, json};

/// What parts.json holds.
#[derive(Debug, Serialize)]
struct Taken {
    step: u64,
    measured: Step,
    /// What the cost model tells of the step's micro-batches together; `None` where the source model is not there, or was
    /// compiled with rules of its own.
    predicted: Option<Prediction>,
}

/// Takes a step apart: a line for the log, and what parts.json holds.
///
/// # Errors
/// Where there is no profile, or none can be read.
pub fn take(step: &Profiled) -> Result<(String, Value)> {
    let (mut runs, Made { step: number, seconds, .. }) = (Vec::new(), step.made);
    for (session, path) in &step.profiles {
        // The entropy pass that is kept over steps belongs to none.
        let made = match *session {
            "probe" => continue,
            "step" | "sum" => step.made.batches.len(),
            _ => 1,
        };
        let mut all = profile::runs(path)?;
        let missing = || Error::runtime(format!("ONNX Runtime's profile has no {made} runs of the session {session}"));
        let first = all.len().checked_sub(made).ok_or_else(missing)?;
        runs.extend(all.drain(first..).map(|run| (*session, run)));
    }
    if runs.is_empty() {
        return Err(Error::runtime("only ONNX Runtime profiles a step; this run is on the reference interpreter"));
    }
    let runs: Vec<(&str, &profile::Run)> = runs.iter().map(|(session, run)| (*session, run)).collect();
    let measured = apart(&Parts::of(step.file), seconds, &runs);
    let told = predicted(step)?;
    let parts = Part::ALL.map(|part| {
        let at = part as usize;
        let beside = told.as_ref().map(|p| format!(", predicted {}", show::time(p.parts[at].seconds)));
        format!("{} {}{}", part.name(), show::time(measured.parts[at]), beside.unwrap_or_default())
    });
    let line = format!("step {number} took {}: {}", show::time(seconds), parts.join("; "));
    Ok((line, json!(Taken { step: number, measured, predicted: told })))
}

/// What the cost model tells of the micro-batches and the update behind them.
fn predicted(step: &Profiled) -> Result<Option<Prediction>> {
    let Some(compiled) = plan::recompiled(&step.file.manifest, &step.source) else { return Ok(None) };
    let (machine, Made { batches, masked, .. }) = (calibrate::machine(None)?, step.made);
    let each = batches.iter().map(|batch| told(&compiled, &machine, load(batch, masked / batches.len())));
    let each = each.collect::<Result<Vec<Prediction>>>()?;
    Ok(each.into_iter().reduce(Prediction::and))
}

/// A batch as the cost model sees it.
fn load(batch: &Batch, masked: usize) -> Load {
    let size = |axis: usize| batch.tokens.shape().get(axis).copied().unwrap_or(1);
    let answers = batch.answer.bytes().iter().filter(|b| **b != 0).count() as i64;
    Load { batch: size(0), length: size(1), answers, masked: masked as i64 }
}
