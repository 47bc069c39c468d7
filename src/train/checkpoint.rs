//! What a run leaves behind: weights under their original names, the trained model, and the state to go on from.
//!
//! Every file is complete or absent: it is written under another name, synced, and renamed.

use super::trainer::Trainer;
use crate::atomic;
use crate::error::{Error, Problem, Result};
use crate::ir::DType;
use crate::manifest::{Parameter, Role};
use crate::onnx::replace::replace;
use crate::onnx::train_file::Weight;
use crate::onnx::weights;
use crate::runtime::HostTensor;
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

/// The files in `--out`.
pub const WEIGHTS: &str = "model.safetensors";
pub const MODEL: &str = "model.onnx";
pub const STATE: &str = "state.safetensors";

/// Where a run stands; stored with the optimizer's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Updates made: AdamW's step number.
    pub updates: u64,
    /// What decides which samples a step sees; a resumed run must agree.
    pub seed: u64,
    pub batch: usize,
    pub samples: usize,
}

/// Writes every weight of the source model, trained or frozen, as the framework knows it.
pub fn save_weights(trainer: &Trainer, path: &Path) -> Result<()> {
    let tensors = trainer.manifest().parameters.iter().map(|p| {
        let mut shape = p.shape.clone();
        if p.transposed {
            shape.reverse();
        }
        let read = move || {
            let value = match p.role {
                Role::Trainable => trainer.parameter(&p.name)?,
                Role::Frozen => host(trainer.file.initial(&p.name)?)?,
            };
            if p.transposed { value.transposed() } else { Ok(value) }
        };
        (p.name.clone(), dtype(p), shape, Box::new(read) as Read<'_>)
    });
    // transformers refuses files without this entry.
    write_tensors(path, tensors.collect(), ("format", "pt".into()))
}

/// Writes the source model with the trained weights in place of its own; returns how many it replaced.
pub fn save_model(trainer: &Trainer, source: &Path, path: &Path) -> Result<usize> {
    let parameters = &trainer.manifest().parameters;
    let by_source = |name: &str| parameters.iter().find(|p| p.source_name.as_deref().unwrap_or(&p.name) == name);
    let by_name = |name: &str| parameters.iter().find(|p| p.name == name);
    replace(source, path, &mut |name, old| {
        if let Some(p) = by_source(name) {
            return new_bytes(trainer, p, false);
        }
        if let Some(p) = by_name(name) {
            return new_bytes(trainer, p, p.transposed);
        }
        // Exporters write tied weights twice, once transposed; only one of the two is a parameter.
        for p in parameters.iter().filter(|p| p.role == Role::Trainable && p.shape.len() == 2) {
            let same = old.shape == p.shape;
            let turned = old.shape.iter().rev().eq(&p.shape);
            if !(same || turned) || old.shape.len() != 2 {
                continue;
            }
            let initial = host(trainer.file.initial(&p.name)?)?;
            if same && initial.bytes() == old.bytes {
                return new_bytes(trainer, p, false);
            }
            if turned && initial.transposed()?.bytes() == old.bytes {
                return new_bytes(trainer, p, true);
            }
        }
        Ok(None)
    })
}

fn new_bytes(trainer: &Trainer, p: &Parameter, transpose: bool) -> Result<Option<Vec<u8>>> {
    if p.role == Role::Frozen {
        return Ok(None);
    }
    let value = trainer.parameter(&p.name)?;
    let value = if transpose { value.transposed()? } else { value };
    Ok(Some(value.bytes().to_vec()))
}

/// Checks that `source` is the file that the manifest names.
pub fn check_source(trainer: &Trainer, source: &Path) -> Result<()> {
    let sha256 = weights::sha256(source)?;
    let expected = &trainer.manifest().source;
    if sha256 == expected.sha256 {
        return Ok(());
    }
    let message = format!(
        "train.onnx was compiled from {} with SHA-256 {}, this file has {sha256}",
        expected.file, expected.sha256
    );
    let help = "--model names the file that train.onnx was compiled from; or compile again";
    Err(Error::usage(Problem::new(source.display().to_string(), message).help(help)))
}

/// Writes parameters, moments and the position, from which `load_state` goes on exactly.
pub fn save_state(trainer: &Trainer, position: &Position, path: &Path) -> Result<()> {
    let mut tensors: Vec<(String, DType, Vec<i64>, Read<'_>)> = Vec::new();
    for (k, name) in trainer.parameters().enumerate() {
        let value = trainer.engine.parameter(k)?;
        let (dtype, shape) = (value.dtype(), value.shape().to_vec());
        let reads: [(&str, Read<'_>); 3] = [
            ("p", Box::new(move || trainer.engine.parameter(k))),
            ("m", Box::new(move || Ok(trainer.engine.moments(k)?.0))),
            ("v", Box::new(move || Ok(trainer.engine.moments(k)?.1))),
        ];
        tensors.extend(reads.map(|(prefix, read)| (format!("{prefix}/{name}"), dtype, shape.clone(), read)));
    }
    let position = serde_json::to_string(position).map_err(|e| Error::internal("checkpoint", e.to_string()))?;
    write_tensors(path, tensors, ("weftc.position", position))
}

/// Reads what `save_state` wrote into the trainer.
pub fn load_state(trainer: &mut Trainer, path: &Path) -> Result<Position> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let refuse = |why: String| {
        let help = "resume with the train.onnx and the folder of the interrupted run";
        Error::usage(Problem::new(path.display().to_string(), why).help(help))
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| refuse(e.to_string()))?;
    let position = header.metadata().as_ref().and_then(|m| m.get("weftc.position"));
    let position = position.ok_or_else(|| refuse("this is no state of a run".into()))?;
    let position: Position = serde_json::from_str(position).map_err(|e| refuse(e.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| refuse(e.to_string()))?;
    let names: Vec<String> = trainer.parameters().map(str::to_string).collect();
    for (k, name) in names.iter().enumerate() {
        let like = trainer.engine.parameter(k)?;
        let read = |prefix: &str| {
            let view = tensors.tensor(&format!("{prefix}/{name}")).map_err(|e| refuse(e.to_string()))?;
            HostTensor::from_bytes(like.dtype(), like.shape(), view.data().to_vec())
                .map_err(|e| refuse(format!("{prefix}/{name}: {e}")))
        };
        let (p, m, v) = (read("p")?, read("m")?, read("v")?);
        trainer.engine.set_parameter(k, &p)?;
        trainer.engine.set_moments(k, &m, &v)?;
    }
    trainer.updates = position.updates;
    Ok(position)
}

type Read<'a> = Box<dyn Fn() -> Result<HostTensor> + 'a>;

/// Writes tensors one after the other, holding one at a time.
fn write_tensors(path: &Path, tensors: Vec<(String, DType, Vec<i64>, Read<'_>)>, entry: (&str, String)) -> Result<()> {
    let failure = RefCell::new(None);
    let lazy = tensors.into_iter().map(|(name, dtype, shape, read)| {
        let shape: Vec<usize> = shape.iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect();
        (name, Lazy { dtype, shape, read, failure: &failure })
    });
    // One entry only: the order of several would change from run to run.
    let entry = HashMap::from([(entry.0.to_string(), entry.1)]);
    let file = atomic::scratch(path)?;
    let written = safetensors::serialize_to_file(lazy, Some(entry), file.path());
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    written.map_err(|e| Error::io("write", path, std::io::Error::other(e)))?;
    atomic::persist(file, path)
}

/// A tensor that is read when it is written.
struct Lazy<'a> {
    dtype: DType,
    shape: Vec<usize>,
    read: Read<'a>,
    /// `View` has no place for an error; the first one is kept here and the file discarded.
    failure: &'a RefCell<Option<Error>>,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::F64 => Dtype::F64,
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::I8 => Dtype::I8,
            DType::U8 => Dtype::U8,
            DType::Bool => Dtype::BOOL,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let read = (self.read)().and_then(|t| match t.bytes().len() == self.data_len() {
            true => Ok(t.bytes().to_vec()),
            false => Err(Error::internal("checkpoint", format!("{t:?} is not of shape {:?}", self.shape))),
        });
        read.map(Cow::Owned).unwrap_or_else(|error| {
            self.failure.borrow_mut().get_or_insert(error);
            Cow::Owned(vec![0; self.data_len()])
        })
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

fn host(weight: Weight) -> Result<HostTensor> {
    HostTensor::from_bytes(weight.dtype, &weight.shape, weight.bytes)
}

fn dtype(p: &Parameter) -> DType {
    DType::parse(&p.dtype).unwrap_or(DType::F32)
}
