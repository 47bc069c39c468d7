//! What decides every step of a run, so that a resumed run can be held against the interrupted one.

use super::args::RunArgs;
use super::data::Dataset;
use super::optimizer::{Kind, Schedule};
use crate::error::{Error, Problem, Result};
use crate::onnx::train_file::TrainFile;
use crate::onnx::weights;
use crate::peft;
use crate::runtime::device::Device;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Names of settings and their values, as they are shown: flags, the model, the data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(BTreeMap<String, String>);

/// What flags leave open and a run has chosen.
#[derive(Clone, Copy, Debug)]
pub struct Chosen {
    pub batch: usize,
    pub accumulate: usize,
    pub by_length: bool,
    pub pad_id: i64,
    pub steps: u64,
    /// Whether the reference interpreter computes, in f64.
    pub interpreted: bool,
    /// What ONNX Runtime computes on.
    pub device: Device,
}

impl Settings {
    /// Whether they are of a run of the train.onnx with this SHA-256.
    pub fn is_of(&self, sha256: &str) -> bool {
        self.0.get("TRAIN_ONNX").is_some_and(|file| file.ends_with(sha256))
    }

    /// The settings of a run.
    ///
    /// # Errors
    /// Where train.onnx, or a file with weights of its model, cannot be read.
    pub fn new(args: &RunArgs, file: &TrainFile, dataset: &Dataset, chosen: Chosen) -> Result<Self> {
        let manifest = &file.manifest;
        let Chosen { batch, accumulate, by_length, pad_id, steps, interpreted, device } = chosen;
        let mut all = BTreeMap::new();
        let mut set = |name: &str, value: String| drop(all.insert(name.to_string(), value));
        set("TRAIN_ONNX", format!("the file of SHA-256 {}", weights::sha256(&args.train_onnx)?));
        set("the source model", format!("{} of SHA-256 {}", manifest.source.file, manifest.source.sha256));
        // Hashed here and not when compiling, which reads no weight: a run reads them all in any case, and frozen ones
        // that have changed since its checkpoint would go unnoticed.
        for path in file.weight_files() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let size = std::fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?.len();
            set(&format!("the weights in {name}"), format!("{size} bytes of hash {}", weights::fingerprint(&path)?));
        }
        let method = &manifest.method;
        set("the method", method.name.clone());
        set("the probe", String::from(method.probe));
        for (name, value) in &method.options {
            set(&format!("the method's {name}"), json(value)?);
        }
        set("the compute type", manifest.compute.clone());
        if let Some(a) = &manifest.adapter {
            set("the adapter", format!("{} of rank {}, alpha {}, seed {}", a.name, a.rank, a.alpha, a.seed));
        }
        if let Some(folder) = &args.init_adapter {
            set("--init-adapter", format!("factors of SHA-256 {}", weights::sha256(&folder.join(peft::WEIGHTS))?));
        }
        set("--data", format!("{} samples of SHA-256 {}", dataset.samples.len(), fingerprint(dataset)));
        set("--batch-size", batch.to_string());
        set("--accumulate", accumulate.to_string());
        set("--no-length-groups", if by_length { "steps of like length" } else { "the drawn order" }.into());
        set("--pad-id", pad_id.to_string());
        set("--seed", args.seed.to_string());
        set("--lr", args.lr.to_string());
        set("--schedule", json(&args.schedule)?);
        set("--warmup", args.warmup.to_string());
        set("--weight-decay", args.weight_decay.to_string());
        set("--decay", json(&args.decay)?);
        set("--optimizer", json(&args.optimizer)?);
        match args.optimizer {
            Kind::AdamW => {
                set("--beta1", args.beta1.to_string());
                set("--beta2", args.beta2.to_string());
                set("--adam-eps", args.adam_eps.to_string());
            }
            Kind::Sgd => {
                set("--momentum", args.momentum.to_string());
                set("--nesterov", args.nesterov.to_string());
            }
        }
        set("--clip", args.clip.to_string());
        let runtime = match device {
            _ if interpreted => "the interpreter",
            Device::Cpu => "ONNX Runtime",
            Device::Cuda(_) => "ONNX Runtime on a GPU",
        };
        set("--runtime", runtime.into());
        // Only a schedule that falls knows where the run ends.
        if args.schedule != Schedule::Constant {
            set("--steps or --epochs", format!("{steps} steps"));
        }
        Ok(Settings(all))
    }

    /// Agrees where the interrupted run had the same settings.
    ///
    /// # Errors
    /// `Usage`, with every difference.
    pub fn check(&self, interrupted: &Settings) -> Result<()> {
        let names: BTreeSet<&String> = self.0.keys().chain(interrupted.0.keys()).collect();
        let differs = |name: &&String| {
            let value = |of: &Settings| of.0.get(name.as_str()).map_or("none", String::as_str).to_string();
            let (then, now) = (value(interrupted), value(self));
            (then != now).then(|| Problem::new(*name, format!("the interrupted run had {then}, this one {now}")))
        };
        let mut problems: Vec<Problem> = names.iter().filter_map(differs).collect();
        match problems.pop() {
            None => Ok(()),
            Some(last) => {
                problems.push(last.help("resume with the same, or start a new run in another --out"));
                Err(Error::Usage { problems })
            }
        }
    }
}

/// A value as in JSON, words without quotes.
fn json(value: &impl Serialize) -> Result<String> {
    match serde_json::to_value(value).map_err(|e| Error::internal("settings", e.to_string()))? {
        serde_json::Value::String(word) => Ok(word),
        other => Ok(other.to_string()),
    }
}

/// SHA-256 over the samples' tokens and borders, in hexadecimal.
fn fingerprint(dataset: &Dataset) -> String {
    let mut hash = Sha256::new();
    for sample in &dataset.samples {
        for n in [sample.tokens.len(), sample.prompt, sample.total] {
            hash.update((n as u64).to_le_bytes());
        }
        sample.tokens.iter().for_each(|id| hash.update(id.to_le_bytes()));
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
