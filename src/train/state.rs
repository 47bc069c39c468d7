//! The state of a run between two steps: parameters, the optimizer's state, what a probe gave, and where the run stands.

use super::checkpoint::{Read, write_tensors};
use super::loss_scale::LossScale;
use super::probe::{self, Cache};
use super::settings::Settings;
use super::trainer::Trainer;
use crate::error::{Error, Problem, Result};
use crate::ir::DType;
use crate::onnx::weights;
use crate::runtime::HostTensor;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file of a checkpoint.
pub const STATE: &str = "state.safetensors";

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Updates made: the optimizer's step number.
    pub updates: u64,
    /// Of a graph that computes in f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// How many of the last steps were not finite.
    pub skipped_in_a_row: u32,
    /// What decides the steps; a resumed run must agree.
    pub settings: Settings,
}

impl Position {
    /// Where `trainer` stands after `step` steps.
    pub fn of(trainer: &Trainer, step: u64, settings: Settings) -> Self {
        Position {
            step,
            updates: trainer.updates,
            loss_scale: trainer.loss_scale,
            skipped_in_a_row: trainer.skipped_in_a_row,
            settings,
        }
    }
}

/// Writes parameters, the optimizer's state and the position, from which `load` goes on exactly.
///
/// # Errors
/// `Io`, and `Runtime` where a number is not finite: such a state is never written.
pub fn save(trainer: &Trainer, position: &Position, path: &Path) -> Result<()> {
    let mut tensors: Vec<(String, DType, Vec<i64>, Read<'_>)> = Vec::new();
    for (k, name) in trainer.parameters().enumerate() {
        let value = trainer.engine.parameter(k)?;
        let (dtype, shape) = (value.dtype(), value.shape().to_vec());
        let mut reads: Vec<(&str, Read<'_>)> =
            vec![("p", Box::new(move || finite(name, trainer.engine.parameter(k)?)))];
        for (slot, prefix) in trainer.optimizer.function().state.iter().enumerate() {
            reads.push((prefix, Box::new(move || finite(name, trainer.engine.state(k)?.swap_remove(slot)))));
        }
        tensors
            .extend(reads.into_iter().map(|(prefix, read)| (format!("{prefix}/{name}"), dtype, shape.clone(), read)));
    }
    if let Some(cache) = &trainer.cache {
        for (name, tensor) in probe::NAMES.iter().zip(cache.tensors()?) {
            let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
            tensors.push((name.to_string(), dtype, shape, Box::new(move || Ok(tensor.clone()))));
        }
    }
    let position = serde_json::to_string(position).map_err(|e| Error::internal("checkpoint", e.to_string()))?;
    write_tensors(path, tensors, ("weftc.position", position))
}

/// Reads what `save` wrote into the trainer, where it is of a run with these settings.
///
/// # Errors
/// `Io`, or `Usage` with everything in which the runs differ.
pub fn load(trainer: &mut Trainer, path: &Path, settings: &Settings) -> Result<Position> {
    // Mapped: the file is three times as large as the parameters, which are in memory already.
    let bytes = weights::map(path)?;
    let refuse = |why: String| {
        let help = "resume with the train.onnx and the folder of the interrupted run";
        Error::usage(Problem::new(path.display().to_string(), why).help(help))
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| refuse(e.to_string()))?;
    let position = header.metadata().as_ref().and_then(|m| m.get("weftc.position"));
    let position = position.ok_or_else(|| refuse("this is no state of a run".into()))?;
    let position: Position = serde_json::from_str(position).map_err(|e| refuse(e.to_string()))?;
    settings.check(&position.settings)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| refuse(e.to_string()))?;
    let names: Vec<String> = trainer.parameters().map(str::to_string).collect();
    for (k, name) in names.iter().enumerate() {
        let like = trainer.engine.parameter(k)?;
        let read = |prefix: &str| {
            let view = tensors.tensor(&format!("{prefix}/{name}")).map_err(|e| refuse(e.to_string()))?;
            HostTensor::from_bytes(like.dtype(), like.shape(), view.data().to_vec())
                .map_err(|e| refuse(format!("{prefix}/{name}: {e}")))
        };
        let kept: Vec<HostTensor> =
            trainer.optimizer.function().state.iter().map(|p| read(p)).collect::<Result<_>>()?;
        let value = read("p")?;
        trainer.engine.set_parameter(k, &value)?;
        trainer.engine.set_state(k, &kept)?;
    }
    if let Some(cache) = &mut trainer.cache {
        let mut parts = Vec::new();
        for (name, dtype) in probe::NAMES.iter().zip(Cache::TYPES) {
            let view = tensors.tensor(name).map_err(|e| refuse(format!("{name}: {e}")))?;
            let shape: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
            parts.push(HostTensor::from_bytes(dtype, &shape, view.data().to_vec())?);
        }
        let parts = parts.try_into().map_err(|_| refuse("its probe is incomplete".into()))?;
        cache.restore(parts)?;
    }
    trainer.updates = position.updates;
    trainer.skipped_in_a_row = position.skipped_in_a_row;
    trainer.loss_scale = trainer.loss_scale.map(|now| position.loss_scale.unwrap_or(now));
    Ok(position)
}

/// Checks that every trained parameter is finite: an update may overflow though its gradient did not.
///
/// # Errors
/// `Runtime`, with the first that is not.
pub fn check_finite(trainer: &Trainer) -> Result<()> {
    trainer.parameters().enumerate().try_for_each(|(k, name)| finite(name, trainer.engine.parameter(k)?).map(drop))
}

/// `value` where all its numbers are finite.
fn finite(name: &str, value: HostTensor) -> Result<HostTensor> {
    let all = match value.dtype() {
        DType::F32 => value.bytes().as_chunks().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
        _ => value.to_f64().iter().all(|x| x.is_finite()),
    };
    if all {
        return Ok(value);
    }
    Err(Error::Runtime {
        message: format!("training diverged: {name} or its moments are not finite, and are not saved"),
        help: Some("lower --lr".into()),
    })
}
