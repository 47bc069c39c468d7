//! Adapters as a run leaves them: in PEFT's format, and merged into the weights that they belong to.

use super::checkpoint::{Read, Weights, write_tensors};
use super::trainer::Trainer;
use crate::atomic;
use crate::error::{Error, Problem, Result};
use crate::ir::DType;
use crate::manifest::{Adapter, Parameter, Part, Probe};
use crate::onnx;
use crate::onnx::replace::Beside;
use crate::peft::beside::coded;
use crate::peft::{self, Module};
use crate::runtime::HostTensor;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Writes `adapter_model.safetensors` and `adapter_config.json` into `folder`; returns their paths.
pub fn save(trainer: &dyn Weights, adapter: &Adapter, folder: &Path) -> Result<[PathBuf; 2]> {
    let (weights, config) = (folder.join(peft::WEIGHTS), folder.join(peft::CONFIG));
    let tensors = trainer.file().manifest.parameters.iter().filter(|p| p.part.is_some()).map(|p| {
        let mut shape = p.shape.clone();
        if p.transposed {
            shape.reverse();
        }
        let read = move || {
            let value = trainer.value(&p.name)?;
            if p.transposed { value.transposed() } else { Ok(value) }
        };
        (format!("{}{}", peft::PREFIX, p.name), DType::F32, shape, Box::new(read) as Read<'_>)
    });
    write_tensors(&weights, tensors.collect(), ("format", "pt".into()))?;
    let source = trainer.file().source();
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
pub fn is_merged(trainer: &dyn Weights, base: &Parameter) -> bool {
    firsts(trainer).any(|p| p.base == base.name && !p.shared)
}

/// The weights whose adapters cannot be merged, since the model uses them elsewhere too.
pub fn shared(trainer: &dyn Weights) -> Vec<&str> {
    firsts(trainer).filter(|p| p.shared).map(|p| p.base.as_str()).collect()
}

/// How many adapters are of weights that the source has in few bits.
pub fn in_few_bits(trainer: &dyn Weights) -> usize {
    firsts(trainer).filter(|p| p.in_few_bits).count()
}

/// The first factor of each adapter.
fn firsts(trainer: &dyn Weights) -> impl Iterator<Item = &Part> {
    let parts = trainer.file().manifest.parameters.iter().filter_map(|p| p.part.as_ref());
    parts.filter(|p| p.part == "lora_A.weight")
}

/// The adapters of weights that `source` has in few bits.
///
/// # Errors
/// `Io` or `Model` where the source cannot be read.
pub fn beside(trainer: &dyn Weights, source: &Path) -> Result<Vec<Beside>> {
    let firsts: Vec<&Part> = firsts(trainer).filter(|p| p.in_few_bits).collect();
    if firsts.is_empty() {
        return Ok(vec![]);
    }
    let coded = coded(&onnx::read(source)?.graph);
    let mut found = Vec::new();
    for part in firsts {
        let weight = coded.iter().find(|c| c.name == part.base);
        if let (Some(weight), Some(module)) = (weight, module(trainer, &part.base)?) {
            found.push(module.beside(weight)?);
        }
    }
    Ok(found)
}

/// The present adapter of the weight `base`.
fn module(trainer: &dyn Weights, base: &str) -> Result<Option<Module>> {
    let manifest = &trainer.file().manifest;
    let part = |part: &str| {
        let own = |p: &&Parameter| p.part.as_ref().is_some_and(|q| q.base == base && q.part == part);
        manifest.parameters.iter().find(own).map(|p| trainer.value(&p.name)).transpose()
    };
    let (Some(a), Some(b), Some(adapter)) = (part("lora_A.weight")?, part("lora_B.weight")?, &manifest.adapter) else {
        return Ok(None);
    };
    let magnitude = part("lora_magnitude_vector")?;
    Ok(Some(Module { a: a.transposed()?, b: b.transposed()?, magnitude, scale: adapter.scale }))
}

/// `w` merged with its adapter (`peft::Module::merge`), of the values `w` that are given in train.onnx's orientation.
/// `None` where the weight has no adapter that can be merged.
pub fn merged(trainer: &dyn Weights, base: &Parameter, w: &HostTensor) -> Result<Option<HostTensor>> {
    let Some(first) = firsts(trainer).find(|p| p.base == base.name && !p.shared) else { return Ok(None) };
    let turned = !first.turned;
    module(trainer, &base.name)?.map(|module| module.merge(w, turned)).transpose()
}

/// Sets the factors of `trainer` to those of a PEFT adapter.
///
/// # Errors
/// `Io`; `Usage` with everything in which the two differ.
pub fn load(trainer: &mut Trainer, folder: &Path) -> Result<()> {
    let read = peft::read(folder)?;
    let manifest = trainer.manifest().clone();
    let Some(own) = &manifest.adapter else {
        let problem = Problem::new("--init-adapter", "train.onnx trains no adapter");
        return Err(Error::usage(problem.help("compile it with --trainable lora, rslora or dora")));
    };
    let mut problems = Vec::new();
    if manifest.method.probe == Probe::Reference {
        problems.push(
            Problem::new(
                "--init-adapter",
                "train.onnx takes its entropies from the weights that are in it, not from these",
            )
            .help("compile with --probe every-step or every:K, or with the merged model (weftc merge)"),
        );
    }
    let mut differ = |what: &str, theirs: String, ours: String, flag: &str| {
        if theirs != ours {
            let message = format!("its {what} is {theirs}, that of train.onnx {ours}");
            problems.push(
                Problem::new(folder.display().to_string(), message).help(format!("compile with {flag} {theirs}")),
            );
        }
    };
    if ["lora", "rslora", "dora"].contains(&own.name.as_str()) {
        differ("kind", read.kind.into(), own.name.clone(), "--trainable");
    }
    differ("rank", read.rank.to_string(), own.rank.to_string(), "--lora-rank");
    differ("alpha", read.alpha.to_string(), own.alpha.to_string(), "--lora-alpha");
    let names = || read.modules.keys().map(String::as_str);
    let mut found: BTreeMap<&str, &Module> = BTreeMap::new();
    for module in &own.modules {
        match peft::find(module, names()).and_then(|name| read.modules.get_key_value(name)) {
            Some((name, theirs)) => drop(found.insert(name, theirs)),
            None => problems.push(Problem::new(module, "the adapter has nothing for this module")),
        }
    }
    for name in names().filter(|n| !found.contains_key(n)) {
        problems
            .push(Problem::new(name, "train.onnx has no adapter there").help("see --lora-targets of weftc compile"));
    }
    if !problems.is_empty() {
        return Err(Error::Usage { problems });
    }
    let mut values = Vec::new();
    for p in manifest.parameters.iter() {
        let Some(part) = &p.part else { continue };
        let module = part.base.strip_suffix(".weight").unwrap_or(&part.base);
        let Some(theirs) = peft::find(module, names()).and_then(|name| found.get(name)) else { continue };
        let value = match part.part.as_str() {
            "lora_A.weight" => theirs.a.clone(),
            "lora_B.weight" => theirs.b.clone(),
            _ => theirs.magnitude.clone().unwrap_or_else(|| theirs.b.clone()),
        };
        let value = if p.transposed { value.transposed()? } else { value };
        if value.shape() != p.shape {
            problems.push(Problem::new(&p.name, format!("the adapter's is {:?}, not {:?}", value.shape(), p.shape)));
            continue;
        }
        values.push((&p.name, value));
    }
    if !problems.is_empty() {
        return Err(Error::Usage { problems });
    }
    for (name, value) in values {
        let dtype = trainer.parameter(name)?.dtype();
        trainer.set_parameter(name, &HostTensor::from_f64(dtype, value.shape(), &value.to_f64())?)?;
    }
    Ok(())
}
