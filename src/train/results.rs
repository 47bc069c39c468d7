//! What a finished run leaves beside its record.

use super::adapter;
use super::checkpoint;
use super::run::Summary;
use super::state;
use super::trainer::Trainer;
use crate::error::{Error, Problem, Result};
use crate::manifest::Manifest;
use serde::Serialize;
use std::path::Path;

/// One of the forms in which weights are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// PEFT's adapter_model.safetensors and adapter_config.json.
    Adapter,
    /// Every weight under the source framework's names: model.safetensors.
    Safetensors,
    /// The trained model: model.onnx.
    Onnx,
}

/// Refuses forms that a run of this manifest does not have; `forms` are all where none is named.
///
/// # Errors
/// `Usage`.
pub fn check(forms: &[Form], manifest: &Manifest) -> Result<()> {
    if forms.contains(&Form::Adapter) && manifest.adapter.is_none() {
        let problem = Problem::new("--results", "train.onnx trains weights, not an adapter");
        return Err(Error::usage(problem.help("safetensors or onnx; or weftc compile --trainable lora")));
    }
    Ok(())
}

/// Writes the weights of a whole run to `out`; `source` is the model that was compiled, where it is there.
///
/// # Errors
/// `Io`; weights that are not finite.
pub fn save(forms: &[Form], trainer: &Trainer, source: Option<&Path>, out: &Path, summary: &mut Summary) -> Result<()> {
    let wanted = |form: Form| forms.is_empty() || forms.contains(&form);
    state::check_finite(trainer)?;
    if wanted(Form::Safetensors) {
        let path = out.join(checkpoint::WEIGHTS);
        checkpoint::save_weights(trainer, source, &path)?;
        summary.written.push(path);
    }
    if let Some(source) = source.filter(|_| wanted(Form::Onnx)) {
        let path = out.join(checkpoint::MODEL);
        let replaced = checkpoint::save_model(trainer, source, &path)?;
        let bases = trainer.manifest().parameters.iter().filter(|p| adapter::is_merged(trainer, p)).count();
        let n = if trainer.manifest().adapter.is_some() { bases } else { trainer.parameters().count() };
        let lost = adapter::in_few_bits(trainer).saturating_sub(replaced.beside);
        if lost > 0 {
            summary
                .notes
                .push(format!("{lost} adapters of weights in few bits found no product: model.onnx has them not"));
        }
        if replaced.weights < n {
            let found = replaced.weights;
            summary.notes.push(format!("only {found} of {n} trained weights were found in {}", source.display()));
        }
        summary.written.push(path);
    }
    let Some(adapter) = &trainer.manifest().adapter else { return Ok(()) };
    if wanted(Form::Adapter) {
        summary.written.extend(adapter::save(trainer, adapter, out)?);
    }
    if wanted(Form::Safetensors) || wanted(Form::Onnx) {
        summary.notes.extend(
            adapter::shared(trainer)
                .iter()
                .map(|name| format!("the adapter of {name} is not merged: the model uses this weight elsewhere too")),
        );
        let few = adapter::in_few_bits(trainer);
        if few > 0 {
            let place = "stand beside their products in model.onnx, and in no weight of model.safetensors";
            summary.notes.push(format!("adapters of {few} weights in few bits {place}"));
        }
    }
    Ok(())
}
