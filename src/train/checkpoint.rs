//! What a run leaves behind: weights under their original names, and the trained model.
//!
//! Every file is complete or absent: it is written under another name, synced, and renamed.

use super::adapter;
use crate::atomic;
use crate::error::{Error, Problem, Result};
use crate::ir::DType;
use crate::manifest::{Parameter, Role};
use crate::onnx::replace::{Replaced, replace};
use crate::onnx::train_file::{TrainFile, Weight};
use crate::onnx::weights;
use crate::onnx::{self, read};
use crate::runtime::{HostTensor, tensor};
use std::io::{BufWriter, Write};
use std::path::Path;

/// The files in `--out`.
pub const WEIGHTS: &str = "model.safetensors";
pub const MODEL: &str = "model.onnx";

/// A train.onnx and the present values of what it trains.
pub trait Weights {
    fn file(&self) -> &TrainFile;

    /// The value of a trained parameter, in train.onnx's orientation.
    ///
    /// # Errors
    /// Where there is no parameter of this name, or it cannot be read.
    fn value(&self, name: &str) -> Result<HostTensor>;
}

/// Writes every weight of the source model, trained or frozen, as the framework knows it.  Adapters are merged into their
/// weights; what train.onnx holds in few bits is taken from `source`, and left out where that is not there.
pub fn save_weights(trainer: &dyn Weights, source: Option<&Path>, path: &Path) -> Result<()> {
    let parameters = &trainer.file().manifest.parameters;
    let few = parameters.iter().any(|p| p.quantized.is_some());
    let dense = source.filter(|_| few).map(onnx::read).transpose()?.map(|source| source.graph);
    let leaf = |p: &Parameter| {
        let graph = dense.as_ref().filter(|_| p.quantized.is_some())?;
        Some(graph.leaf(graph.find_leaf(&p.name)?)).filter(|leaf| leaf.transposed == p.transposed)
    };
    let whole = parameters.iter().filter(|p| p.part.is_none() && (p.quantized.is_none() || leaf(p).is_some()));
    let tensors = whole.map(|p| {
        let mut shape = p.shape.clone();
        if p.transposed {
            shape.reverse();
        }
        let leaf = leaf(p);
        let read = move || {
            let value = match (p.role, leaf) {
                (Role::Trainable, _) => trainer.value(&p.name)?,
                (_, Some(leaf)) => {
                    let value = HostTensor::from_bytes(leaf.ty.dtype, &p.shape, weights::bytes(leaf)?.to_vec())?;
                    of_type(value, dtype(p))?
                }
                (_, None) => host(trainer.file().initial(&p.name)?)?,
            };
            let value = adapter::merged(trainer, p, &value)?.unwrap_or(value);
            if p.transposed { value.transposed() } else { Ok(value) }
        };
        (p.name.clone(), dtype(p), shape, Box::new(read) as Read<'_>)
    });
    // transformers refuses files without this entry.
    write_tensors(path, tensors.collect(), ("format", "pt".into()))
}

/// Writes the source model with the trained weights in place of its own, and adapters beside weights in few bits.
pub fn save_model(trainer: &dyn Weights, source: &Path, path: &Path) -> Result<Replaced> {
    let parameters = &trainer.file().manifest.parameters;
    let by_source = |name: &str| parameters.iter().find(|p| p.source_name.as_deref().unwrap_or(&p.name) == name);
    let by_name = |name: &str| parameters.iter().find(|p| p.name == name);
    let ties = read::ties(source)?;
    let beside = adapter::beside(trainer, source)?;
    replace(source, path, &beside, &mut |name, old| {
        if let Some(p) = by_source(name) {
            return new_bytes(trainer, p, false, old);
        }
        if let Some(p) = by_name(name) {
            return new_bytes(trainer, p, p.transposed, old);
        }
        // Exporters write tied weights twice, once transposed; only one of the two is a parameter.
        if let Some(tie) = ties.get(name)
            && let Some(p) = by_source(&tie.to)
        {
            return new_bytes(trainer, p, tie.transposed, old);
        }
        Ok(None)
    })
}

/// What replaces `old` of the source: the trained value, or itself with its adapter merged into it.
fn new_bytes(trainer: &dyn Weights, p: &Parameter, transpose: bool, old: &Weight) -> Result<Option<Vec<u8>>> {
    let value = if p.role == Role::Trainable {
        of_type(trainer.value(&p.name)?, old.dtype)?
    } else if adapter::is_merged(trainer, p) {
        let old = host(old.clone())?;
        let old = if transpose { old.transposed()? } else { old };
        let Some(merged) = adapter::merged(trainer, p, &old)? else { return Ok(None) };
        merged
    } else {
        return Ok(None);
    };
    let value = if transpose { value.transposed()? } else { value };
    Ok(Some(value.bytes().to_vec()))
}

/// Checks that `source` is the file that the manifest names.
pub fn check_source(trainer: &dyn Weights, source: &Path) -> Result<()> {
    let sha256 = weights::sha256(source)?;
    let expected = &trainer.file().manifest.source;
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

/// Reads a tensor when it is written.
pub(super) type Read<'a> = Box<dyn Fn() -> Result<HostTensor> + 'a>;

/// Writes a safetensors file, holding one tensor at a time.
pub(super) fn write_tensors(
    path: &Path,
    mut tensors: Vec<(String, DType, Vec<i64>, Read<'_>)>,
    entry: (&str, String),
) -> Result<()> {
    // Large elements first keeps every tensor aligned, as readers expect.
    tensors.sort_by(|a, b| b.1.size().cmp(&a.1.size()).then_with(|| a.0.cmp(&b.0)));
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({ entry.0: entry.1 }));
    let mut end = 0;
    for (name, dtype, shape, _) in &tensors {
        let start = end;
        end += tensor::count(shape).unwrap_or(0) * dtype.size();
        let info =
            serde_json::json!({ "dtype": safetensors_name(*dtype), "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), info);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

    let mut out = BufWriter::new(atomic::scratch(path)?);
    let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(|e| Error::io("write", path, e));
    write(&(header.len() as u64).to_le_bytes())?;
    write(header.as_bytes())?;
    for (name, dtype, shape, read) in &tensors {
        let value = read()?;
        if value.dtype() != *dtype || value.shape() != shape {
            return Err(Error::internal("checkpoint", format!("{name} is {value:?}, not {}{shape:?}", dtype.name())));
        }
        write(value.bytes())?;
    }
    let file = out.into_inner().map_err(|e| Error::io("write", path, e.into_error()))?;
    atomic::persist(file, path)
}

fn safetensors_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I8 => "I8",
        DType::U8 | DType::U4 | DType::I4 => "U8",
        DType::Bool => "BOOL",
    }
}

fn host(weight: Weight) -> Result<HostTensor> {
    HostTensor::from_bytes(weight.dtype, &weight.shape, weight.bytes)
}

/// A value in the type of the source's weight: what is trained is f32 also where that has 16 bits.
fn of_type(value: HostTensor, dtype: DType) -> Result<HostTensor> {
    if value.dtype() == dtype {
        return Ok(value);
    }
    HostTensor::from_f64(dtype, value.shape(), &value.to_f64())
}

fn dtype(p: &Parameter) -> DType {
    DType::parse(&p.dtype).unwrap_or(DType::F32)
}
