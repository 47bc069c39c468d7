//! What to compile and for which method.

use super::Budget;
use crate::adapt;
use crate::manifest::{Manifest, Probe, Role};
use crate::precision::Compute;
use crate::quantize::Quantization;
use crate::rules::Target;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Which weights are trained.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Trainable {
    /// Every floating-point weight.
    #[default]
    Full,
    /// The adapter of this name; or, where there is none, the weights whose names fit these patterns, joined by
    /// commas.
    Named(String),
}

impl std::str::FromStr for Trainable {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(if text == "full" { Trainable::Full } else { Trainable::Named(text.into()) })
    }
}

impl std::fmt::Display for Trainable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if let Trainable::Named(name) = self { name } else { "full" })
    }
}

/// What to compile and for which method.
#[derive(Clone, Debug)]
pub struct Options {
    pub model: PathBuf,
    pub method: String,
    /// The token that stands for "masked"; there is no safe default.
    pub mask_id: Option<i64>,
    pub logits_shift: i64,
    /// The mask token's probability is 0, whatever its logit.
    pub excludes_mask: bool,
    /// Values of the method's options by name (`t_floor`, `loss_norm`), from flags that any method may ignore.
    pub settings: BTreeMap<String, String>,
    /// The same, where the method must have them.
    pub set: BTreeMap<String, String>,
    /// When the entropy pass runs.
    pub probe: Probe,
    pub trainable: Trainable,
    /// What adapters are like, where some are trained.
    pub adapter: adapt::Spec,
    /// Whether several sequences share a row.
    pub packing: bool,
    pub target: Target,
    /// The type that values are computed in.
    pub compute: Compute,
    /// How frozen matrices are stored, where not as in the source.
    pub quantize: Option<Quantization>,
    /// What a step may take in memory.
    pub memory: Option<Budget>,
    pub token_input: Option<String>,
    pub logits_output: Option<String>,
    /// Further inputs of the model that have one number everywhere, by name.
    pub inputs: BTreeMap<String, f64>,
    /// A folder of the user's own rules (`rules::user`).
    pub rules: Option<PathBuf>,
    /// Use the rules of that folder without proof.
    pub trust_rules: bool,
}

impl Options {
    /// WeFT with the paper's settings.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Options {
            model: model.into(),
            method: "weft".into(),
            mask_id: None,
            logits_shift: 0,
            excludes_mask: false,
            settings: BTreeMap::new(),
            set: BTreeMap::new(),
            probe: Probe::EveryStep,
            trainable: Trainable::Full,
            adapter: adapt::Spec::default(),
            packing: false,
            target: Target::Cpu,
            compute: Compute::Auto,
            quantize: None,
            memory: None,
            token_input: None,
            logits_output: None,
            inputs: BTreeMap::new(),
            rules: None,
            trust_rules: false,
        }
    }
}

impl Options {
    /// The options by which a train.onnx was compiled, as far as they make the model and choose what is trained.
    pub fn of(manifest: &Manifest, source: PathBuf, rules: Option<PathBuf>) -> Self {
        let adapter = manifest.adapter.as_ref();
        let trained = |p: &&crate::manifest::Parameter| p.role == Role::Trainable;
        let names = || manifest.parameters.iter().filter(trained).map(|p| p.name.as_str());
        let trainable = match adapter {
            Some(adapter) => Trainable::Named(adapter.name.clone()),
            None => Trainable::Named(names().collect::<Vec<_>>().join(",")),
        };
        Options {
            mask_id: Some(manifest.method.mask_id),
            trainable,
            adapter: adapter.map_or_else(adapt::Spec::default, |a| adapt::Spec {
                rank: a.rank,
                alpha: a.alpha,
                targets: a.modules.clone(),
                dropout: 0.0,
                seed: a.seed,
            }),
            packing: manifest.packing,
            target: manifest.target,
            compute: match manifest.compute.as_str() {
                "f16" => Compute::F16,
                "bf16" => Compute::Bf16,
                _ => Compute::F32,
            },
            quantize: manifest.parameters.iter().find_map(|p| p.quantized),
            token_input: Some(manifest.token_input.clone()),
            logits_output: Some(manifest.logits_output.clone()),
            inputs: manifest.fixed_inputs.clone(),
            rules,
            ..Options::new(source)
        }
    }

    /// The same with the option `name` of the method set.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.insert(name.into(), value.to_string());
        self
    }
}

/// The stages whose graph can be shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub enum Stage {
    Read,
    Lift,
    Adapt,
    Pack,
    Precision,
    Objective,
    Sink,
    Differentiate,
    Optimise,
    Lower,
    Schedule,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::Read => "read",
            Stage::Lift => "lift",
            Stage::Adapt => "adapt",
            Stage::Pack => "pack",
            Stage::Precision => "precision",
            Stage::Objective => "objective",
            Stage::Sink => "sink",
            Stage::Differentiate => "differentiate",
            Stage::Optimise => "optimise",
            Stage::Lower => "lower",
            Stage::Schedule => "schedule",
        }
    }
}
