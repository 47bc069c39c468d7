//! Adapters as a run leaves them: in PEFT's format, and merged into the weights that they belong to.

use super::checkpoint::{Read, write_tensors};
use super::trainer::Trainer;
use crate::atomic;
use crate::error::{Error, Result};
use crate::ir::DType;
use crate::manifest::{Adapter, Parameter, Part};
use crate::runtime::HostTensor;
use serde_json::json;
use std::path::{Path, PathBuf};

/// PEFT's names of its two files.
pub const WEIGHTS: &str = "adapter_model.safetensors";
pub const CONFIG: &str = "adapter_config.json";

/// Writes `adapter_model.safetensors` and `adapter_config.json` into `folder`; returns their paths.
pub fn save(trainer: &Trainer, adapter: &Adapter, folder: &Path) -> Result<[PathBuf; 2]> {
    let (weights, config) = (folder.join(WEIGHTS), folder.join(CONFIG));
    let tensors = trainer.manifest().parameters.iter().filter(|p| p.part.is_some()).map(|p| {
        let mut shape = p.shape.clone();
        if p.transposed {
            shape.reverse();
        }
        let read = move || {
            let value = trainer.parameter(&p.name)?;
            if p.transposed { value.transposed() } else { Ok(value) }
        };
        (format!("base_model.model.{}", p.name), DType::F32, shape, Box::new(read) as Read<'_>)
    });
    write_tensors(&weights, tensors.collect(), ("format", "pt".into()))?;
    let source = trainer.file.source();
    let source = source.file_stem().map(|s| s.to_string_lossy().into_owned());
    let json = serde_json::to_string_pretty(&configuration(adapter, source.as_deref()));
    let json = json.map_err(|e| Error::internal("adapter", e.to_string()))?;
    atomic::write(&config, |file| writeln!(file, "{json}"))?;
    Ok([weights, config])
}

/// What PEFT wants to know.  Modules are named in full: names of parts could fit others.
fn configuration(adapter: &Adapter, base: Option<&str>) -> serde_json::Value {
    json!({
        "peft_type": "LORA",
        "task_type": null,
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": adapter.modules,
        "use_rslora": adapter.name == "rslora",
        "use_dora": adapter.name == "dora",
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "inference_mode": true,
        "modules_to_save": null,
        "layers_to_transform": null,
        "layers_pattern": null,
        "rank_pattern": {},
        "alpha_pattern": {},
    })
}

/// Whether a weight is the base of an adapter that can be merged into it.
pub fn is_merged(trainer: &Trainer, base: &Parameter) -> bool {
    factor(trainer, base, "lora_A.weight").is_some_and(|(_, part)| !part.shared)
}

/// The weights whose adapters cannot be merged, since the model uses them elsewhere too.
pub fn shared(trainer: &Trainer) -> Vec<&str> {
    let parts = trainer.manifest().parameters.iter().filter_map(|p| p.part.as_ref());
    parts.filter(|p| p.shared && p.part == "lora_A.weight").map(|p| p.base.as_str()).collect()
}

fn factor<'t>(trainer: &'t Trainer, base: &Parameter, part: &str) -> Option<(&'t Parameter, &'t Part)> {
    let own = |p: &&Parameter| p.part.as_ref().is_some_and(|q| q.base == base.name && q.part == part);
    let found = trainer.manifest().parameters.iter().find(own)?;
    Some((found, found.part.as_ref()?))
}

/// `w + s A B` of a weight with an adapter, of the values `w` that are given in train.onnx's orientation, each output's
/// column brought to the length of its magnitude where the adapter has one; summed in f64 and rounded once.  `None`
/// where the weight has no adapter that can be merged.
pub fn merged(trainer: &Trainer, base: &Parameter, w: &HostTensor) -> Result<Option<HostTensor>> {
    let (Some((a, part)), Some((b, _)), Some(adapter)) =
        (factor(trainer, base, "lora_A.weight"), factor(trainer, base, "lora_B.weight"), &trainer.manifest().adapter)
    else {
        return Ok(None);
    };
    if part.shared {
        return Ok(None);
    }
    let (a, b) = (trainer.parameter(&a.name)?, trainer.parameter(&b.name)?);
    let size = |t: &HostTensor, axis: usize| t.shape().get(axis).map_or(0, |n| *n as usize);
    let (inner, rank, outer) = (size(&a, 0), size(&a, 1), size(&b, 1));
    let (a, b, mut values) = (a.to_f64(), b.to_f64(), w.to_f64());
    if values.len() != inner * outer {
        return Err(Error::internal("adapter", format!("{w:?} does not fit an adapter of [{inner}, {outer}]")));
    }
    let mut row = vec![0.0; outer];
    for i in 0..inner {
        row.fill(0.0);
        for (k, a) in a[i * rank..(i + 1) * rank].iter().enumerate() {
            row.iter_mut().zip(&b[k * outer..(k + 1) * outer]).for_each(|(sum, b)| *sum += a * b);
        }
        for (j, sum) in row.iter().enumerate() {
            values[if part.turned { j * inner + i } else { i * outer + j }] += adapter.scale * sum;
        }
    }
    if let Some((magnitude, _)) = factor(trainer, base, "lora_magnitude_vector") {
        let column = |k: usize| if part.turned { k / inner } else { k % outer };
        let mut lengths = vec![0.0; outer];
        values.iter().enumerate().for_each(|(k, w)| lengths[column(k)] += w * w);
        let magnitudes = trainer.parameter(&magnitude.name)?.to_f64();
        let scales: Vec<f64> = magnitudes.iter().zip(&lengths).map(|(m, squared)| m / squared.sqrt()).collect();
        values.iter_mut().enumerate().for_each(|(k, w)| *w *= scales[column(k)]);
    }
    HostTensor::from_f64(w.dtype(), w.shape(), &values).map(Some)
}
