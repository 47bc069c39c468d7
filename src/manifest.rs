//! The manifest of a train.onnx: what it was compiled from and for, as JSON in `weft.manifest`.

use crate::quantize::Quantization;
use crate::rules::Target;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The key of the manifest in the model's `metadata_props`.
pub const KEY: &str = "weft.manifest";

/// The output that computes the input `beta`, where the entropy pass is not part of the step.
pub const PROBE: &str = "probe/beta";
/// That input, [B, L] f32.
pub const BETA: &str = "beta";

/// The input of a packed step, [R, W] i64: which token of the batch, b L + l, lies at a place of a row; -1 for none.
pub const PLACES: &str = "places";

/// Further inputs of a model that weftc feeds, [B, L] each, and what the others need.
pub const FED: [&str; 3] = ["attention_mask", POSITIONS, "token_type_ids"];
/// Of these the one that counts from 0.
pub const POSITIONS: &str = "position_ids";
pub const NOT_FED: &str = "weftc feeds attention_mask, position_ids and token_type_ids, each [B, L]; compile --input \
                           NAME=NUMBER fixes any other, as --input sigma=0 does for a model that is to ignore time";

/// The inputs of dropout, where an adapter has one: the rate [] f32 (0 evaluates), and whole numbers below
/// [`DROPOUT_FIELD`] as f32: [`DROPOUT_NUMBERS`] for each token, [B, L, k], and for each input of an adapted layer,
/// [B, k, n], one layer behind the other.  See `adapt::dropout`.
pub const DROPOUT: [&str; 3] = ["lora_dropout", "lora_dropout_rows", "lora_dropout_columns"];

/// A prime: sums of [`DROPOUT_NUMBERS`] products are exact in f32, the factors even where products of f32 are
/// rounded to 11 bits (TF32).
pub const DROPOUT_FIELD: i64 = 2039;

/// How many numbers of the field a token and an input have.
pub const DROPOUT_NUMBERS: i64 = 3;

/// The version of this format; a reader refuses what is newer.
pub const VERSION: u32 = 4;

/// The first version whose calls of functions carry what kernels read (`rows`, `transA`, ..); files of before run
/// without kernels.
pub const KERNELS_SINCE: u32 = 3;

/// The first version whose functions for a GPU are called with what our kernels there take.
const GPU_KERNELS_SINCE: u32 = 4;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    /// The compiler that wrote the file.
    pub weftc: String,
    pub method: Method,
    pub target: Target,
    /// The type that values are computed in: `f32`, `f16` or `bf16`.  Trained parameters are f32 in any case.
    #[serde(default = "f32_name")]
    pub compute: String,
    pub opset: i64,
    pub source: Source,
    /// The name of the token input, `[B, L]` int64.
    pub token_input: String,
    /// The source model's other inputs, in order.
    pub extra_inputs: Vec<Input>,
    /// Those that were compiled as a number.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub fixed_inputs: BTreeMap<String, f64>,
    /// The source model's logits output.
    pub logits_output: String,
    /// Tokens below this may be in data: they can be fed and predicted.
    pub vocab_size: i64,
    /// The most tokens of a sequence, where the model has tables of positions.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub longest: Option<i64>,
    /// What was put beside frozen weights, where adapters are trained.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub adapter: Option<Adapter>,
    /// Whether sequences share rows: the step has the input [`PLACES`].
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub packing: bool,
    /// What is computed twice to save memory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub recompute: Option<Recompute>,
    /// Every weight of the source, trainable ones first, each in the order of the source.
    pub parameters: Vec<Parameter>,
    /// What the reader mended, one line each.
    pub mended: Vec<String>,
    /// How often each rule fired.
    pub rules_fired: BTreeMap<String, usize>,
}

fn f32_name() -> String {
    "f32".into()
}

/// Layers that the backward part computes again instead of keeping their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recompute {
    /// How many, from the first on.
    pub layers: usize,
    /// How many there are.
    pub of: usize,
    /// Bytes that a step of `batch` x `length` tokens may take, and is estimated to.
    pub budget: u64,
    pub batch: i64,
    pub length: i64,
    pub estimate: u64,
}

/// The method and its hyper-parameters.  METHOD.md gives the mathematics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Method {
    pub name: String,
    pub mask_id: i64,
    pub logits_shift: i64,
    /// Whether the mask token counts as one that cannot be predicted.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub excludes_mask: bool,
    /// When the entropy pass runs.
    #[serde(default)]
    pub probe: Probe,
    /// The options of the method's file with their values.
    pub options: BTreeMap<String, Setting>,
}

/// The value of a hyper-parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    Number(f64),
    Word(String),
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Setting::Number(x) => write!(f, "{x}"),
            Setting::Word(word) => f.write_str(word),
        }
    }
}

/// When the entropy pass runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Probe {
    /// In every step, as the paper does.
    #[default]
    EveryStep,
    /// Once for each sample in every K epochs, with the weights of that moment.
    Every(u32),
    /// Once for each sample, with the weights that training starts from.
    Reference,
}

impl Manifest {
    /// What is trained, in a word: `full`, an adapter's name, or how many of the weights.
    pub fn trained(&self) -> String {
        let frozen = self.parameters.iter().filter(|p| p.role == Role::Frozen).count();
        match &self.adapter {
            Some(adapter) => adapter.name.clone(),
            None if frozen == 0 => "full".into(),
            None => format!("{} of {}", self.parameters.len() - frozen, self.parameters.len()),
        }
    }

    /// Whether its functions may be taken by our kernels for a GPU.
    pub fn has_gpu_kernels(&self) -> bool {
        self.target == Target::Cuda && self.version >= GPU_KERNELS_SINCE
    }
}

impl Probe {
    /// Which epochs share what was computed; `None` where nothing is cached.
    pub fn generation(self, epoch: u32) -> Option<u32> {
        match self {
            Probe::EveryStep => None,
            Probe::Every(k) => Some(epoch / k.max(1)),
            Probe::Reference => Some(0),
        }
    }
}

impl std::str::FromStr for Probe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("every:").map(str::parse::<u32>)) {
            ("every-step", _) => Ok(Probe::EveryStep),
            ("reference", _) => Ok(Probe::Reference),
            (_, Some(Ok(k))) if k > 0 => Ok(Probe::Every(k)),
            _ => Err(format!("`{text}` is none of every-step, every:K (epochs, K >= 1) and reference")),
        }
    }
}

impl TryFrom<String> for Probe {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Probe> for String {
    fn from(probe: Probe) -> String {
        match probe {
            Probe::EveryStep => "every-step".into(),
            Probe::Every(k) => format!("every:{k}"),
            Probe::Reference => "reference".into(),
        }
    }
}

/// The adapters of a train.onnx; their tensors are the parameters with a `part`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    /// The adapter file's name: `lora`, `rslora`, `dora`, or the user's own.
    pub name: String,
    pub rank: i64,
    pub alpha: f64,
    /// What the product of the factors is multiplied by: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
    pub scale: f64,
    /// Probability with which an input of the adapters' path is dropped, in the training pass only.
    pub dropout: f64,
    /// Seed of the first values.
    pub seed: u64,
    /// The modules that carry an adapter (`transformer.blocks.0.q_proj`), in order.
    pub modules: Vec<String>,
}

/// A tensor of an adapter: which weight it belongs to, and as what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The name of the frozen weight.
    pub base: String,
    /// PEFT's name of the tensor in its module: `lora_A.weight`, `lora_B.weight`, `lora_magnitude_vector`.
    pub part: String,
    /// train.onnx stores the weight as [out in]; the adapter's product is [in out].
    #[serde(default)]
    pub turned: bool,
    /// The model uses the weight elsewhere too (a tied embedding), so the adapter cannot be merged into it.
    #[serde(default)]
    pub shared: bool,
    /// The source has the weight as codes: the adapter stands beside its product.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_few_bits: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The file's name, without its folder.
    pub file: String,
    /// SHA-256 of the file, in hexadecimal (external data not included: a run hashes that when it starts).
    pub sha256: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    pub name: String,
    /// As in the IR's text: `i64`, `f32`, ...
    pub dtype: String,
    /// Sizes or symbols.
    pub shape: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// An input with a default initializer and an output `grad/<name>`.
    Trainable,
    Frozen,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    /// The source framework's name, e.g. `transformer.blocks.0.q_proj.weight`.
    pub name: String,
    /// The shape in train.onnx.
    pub shape: Vec<i64>,
    pub dtype: String,
    pub role: Role,
    /// train.onnx (like the source ONNX) stores the transpose of the framework's tensor; checkpoints
    /// transpose it back.
    pub transposed: bool,
    /// The initializer's name in the source ONNX, where exporters changed it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source_name: Option<String>,
    /// Where the parameter is a tensor of an adapter and no weight of the source.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub part: Option<Part>,
    /// Where train.onnx holds the weight as codes and scales (`NAME.codes`, `NAME.scales`), not as itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub quantized: Option<Quantization>,
}
