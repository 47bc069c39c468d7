//! The flags of `weftc run`.

use super::data;
use super::optimizer::{Algorithm, Decay, Kind, Optimizer, Schedule};
use super::results::Form;
use crate::error::{Error, Problem, Result};
use crate::runtime::device::Choice;
use serde::Serialize;
use std::path::PathBuf;

/// What executes the graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// ONNX Runtime; found, or downloaded once.
    #[default]
    Auto,
    Onnxruntime,
    /// The built-in reference interpreter: exact in f64, and very slow.
    Interpreter,
}

/// Train: run a train.onnx on data.
#[derive(Clone, Debug, clap::Args, Serialize)]
pub struct RunArgs {
    /// The training graph that `weftc compile` made
    pub train_onnx: PathBuf,
    /// Training data: files or folders of JSON lines or parquet, `s1k`, `s1k-1.1`, OWNER/NAME in the cache of
    /// Hugging Face; joined by `+`, with slices: `s1k[train:500]+mine.jsonl[:100]`.  Rows are {"input_ids": [..],
    /// "prompt_len": N}, {"prompt": "..", "answer": ".."}, {"messages": [..]}, or those of s1K
    #[arg(long, value_name = "DATA")]
    pub data: String,
    /// Start from this adapter, in PEFT's format, of the kind, rank, alpha and modules that train.onnx was compiled with
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Option<PathBuf>,
    /// Held-out data, as --data: the loss on them, over fixed times and draws, is logged as eval_loss
    #[arg(long, value_name = "DATA")]
    pub eval_data: Option<String>,
    /// Steps between two evaluations [default: an epoch]; there is one at the end in any case
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub eval_every: Option<u64>,
    /// Fields of other names: prompt=question,answer=solution (also messages, input_ids, prompt_len, trajectory)
    #[arg(long, value_name = "FIELD=COLUMN,..")]
    pub columns: Option<String>,
    /// For conversations: `llada`, `chatml`, a template file or a tokenizer_config.json [default: what belongs to
    /// the tokenizer]
    #[arg(long, value_name = "TEMPLATE")]
    pub chat_template: Option<String>,
    /// Put in front of the first question, with a blank line between (d1's format)
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// What is supervised behind an answer that is text
    #[arg(long, value_enum, default_value_t)]
    pub supervise_padding: data::Padding,
    /// Which turns of a conversation are answers
    #[arg(long, value_enum, default_value_t)]
    pub turns: data::Turns,
    /// The model's family, for its end-of-text token, padding and chat template: llada, llada-1.5, llada-moe, dream,
    /// tiny-a2d, modernbert, smdm [default: what the tokenizer tells]
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// The end-of-text token [default: the profile's, else the tokenizer's]
    #[arg(long, value_name = "ID")]
    pub eos_id: Option<i64>,
    /// Stop after so many optimizer steps
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    pub steps: Option<u64>,
    /// Passes over the data [default: 1]
    #[arg(long, value_name = "N")]
    pub epochs: Option<u32>,
    /// Sequences a micro-batch [default: 8, or what the graph fixes]
    #[arg(long, value_name = "B")]
    pub batch_size: Option<usize>,
    /// Keep the drawn order as it is: else steps are made of samples of like length, so that little is padded.  A graph that
    /// was compiled with --packing keeps it in any case: its samples share rows
    #[arg(long)]
    pub no_length_groups: bool,
    /// Micro-batches a step; their losses are summed and divided once
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub accumulate: usize,
    /// What turns gradients into updates: adamw (decoupled weight decay), sgd (momentum; weight decay is part of the
    /// gradient); both as PyTorch has them
    #[arg(long, value_enum, default_value_t)]
    pub optimizer: Kind,
    /// Peak learning rate
    #[arg(long, default_value_t = 1e-5)]
    pub lr: f64,
    /// How the learning rate falls after the warm-up
    #[arg(long, value_enum, default_value_t = Schedule::Constant)]
    pub schedule: Schedule,
    /// Steps over which the learning rate rises
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup: u64,
    /// Weight decay
    #[arg(long, default_value_t = 0.1)]
    pub weight_decay: f64,
    /// Which parameters decay: weights (matrices: neither norms nor biases), all
    #[arg(long, value_enum, default_value_t)]
    pub decay: Decay,
    /// Of adamw: decay of the first moment
    #[arg(long, default_value_t = 0.9)]
    pub beta1: f64,
    /// Of adamw: decay of the second moment
    #[arg(long, default_value_t = 0.999)]
    pub beta2: f64,
    /// Of sgd
    #[arg(long, default_value_t = 0.9, value_name = "MU")]
    pub momentum: f64,
    /// Of sgd: look ahead by the momentum
    #[arg(long)]
    pub nesterov: bool,
    /// Of adamw: added to the root of the second moment
    #[arg(long, default_value_t = 1e-8)]
    pub adam_eps: f64,
    /// Clip the gradient to this Euclidean norm; 0 turns clipping off
    #[arg(long, default_value_t = 1.0)]
    pub clip: f64,
    /// Seed of the shuffle, the times and the masks
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads within an operator; 0 leaves the choice to the runtime
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Where to write model.safetensors, model.onnx, metrics.jsonl and run.json
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// What a finished run leaves of weights: adapter, safetensors (all weights), onnx (the model), joined by commas; weftc
    /// export makes the others later, of the adapter where there is one, else of safetensors [default: all there are]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<Form>,
    /// Also write a checkpoint to --out, every N steps and at the end.  Ctrl-C writes one in any case
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub save_every: Option<u64>,
    /// How many checkpoints stay; older ones are removed
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub keep: u64,
    /// Go on with the run whose --out this was, from its last checkpoint; or from the checkpoint that this is.
    /// Without --out the run goes on in its own folder
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
    /// The model that was compiled, if it does not lie beside the training graph
    #[arg(long, value_name = "SOURCE.onnx")]
    pub model: Option<PathBuf>,
    /// A tokenizer.json, for data that is text
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Token to pad with [default: the profile's, else the tokenizer's, else 0]
    #[arg(long, value_name = "ID")]
    pub pad_id: Option<i64>,
    /// Cut longer rows to so many tokens
    #[arg(long, value_name = "L")]
    pub max_length: Option<usize>,
    /// What executes the graph
    #[arg(long, value_enum, default_value_t = RuntimeKind::Auto)]
    pub runtime: RuntimeKind,
    /// What ONNX Runtime computes on: cuda keeps parameters, gradients and the optimizer's state on the GPU; auto is cuda
    /// where a GPU and everything for it is there, else cpu
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    pub device: Choice,
    /// The GPU's number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub device_id: u32,
    /// Have the model answer a few prompts every N steps, at the start and at the end: in the log, in
    /// --out/samples.jsonl and in report.html.  The steps are the same with and without
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub sample_every: Option<u64>,
    /// The prompts: one a line, or rows of .jsonl with prompt, messages or input_ids [default: the first rows of
    /// --eval-data, else of --data]; alone, they are answered at the start and at the end
    #[arg(long, value_name = "FILE")]
    pub sample_prompts: Option<PathBuf>,
    /// Tokens of these answers [default: of the data's longest, at most 128]
    #[arg(long, value_name = "L", value_parser = clap::value_parser!(u64).range(1..))]
    pub sample_length: Option<u64>,
    /// Take step N apart, once the first steps of this process are behind it: the time of the entropy pass, of forward,
    /// backward and optimizer, beside what the cost model predicts, in the log, in --out/parts.json and in report.html.
    /// Steps up to it are profiled by ONNX Runtime
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub profile_step: Option<u64>,
    /// Also write event files for TensorBoard, to --out/tensorboard
    #[arg(long)]
    pub tensorboard: bool,
    /// Settings from a TOML file: `lr = 2e-5`, named as the flags; flags win.  A run writes its own as run.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the plan and stop: steps, tokens, memory, what is trained
    #[arg(long)]
    pub dry_run: bool,
    /// Print the run's summary as an object on standard output, at its end
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(long, short)]
    pub quiet: bool,
}

impl RunArgs {
    pub(super) fn optimizer(&self) -> Optimizer {
        Optimizer {
            algorithm: match self.optimizer {
                Kind::AdamW => Algorithm::AdamW { beta1: self.beta1, beta2: self.beta2, eps: self.adam_eps },
                Kind::Sgd => Algorithm::Sgd { momentum: self.momentum, nesterov: self.nesterov },
            },
            lr: self.lr,
            weight_decay: self.weight_decay,
            clip: (self.clip != 0.0).then_some(self.clip),
        }
    }

    /// The batch size, of a graph that may fix it.
    pub(super) fn batch_size(&self, fixed: Option<usize>) -> Result<usize> {
        match (self.batch_size, fixed) {
            (Some(0), _) => Err(Error::usage(Problem::new("--batch-size", "0 sequences are no batch"))),
            (Some(asked), Some(fixed)) if asked > fixed => Err(Error::usage(
                Problem::new("--batch-size", format!("the graph was exported for batches of {fixed}, not {asked}"))
                    .help("use --accumulate for larger batches, or export the model with a dynamic batch"),
            )),
            (Some(asked), _) => Ok(asked),
            (None, fixed) => Ok(fixed.unwrap_or(8)),
        }
    }
}
