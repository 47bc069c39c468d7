//! The flags that say what a model is compiled for: those of `compile`, `bench` and `inspect`.

use super::tools::RulesArgs;
use crate::adapt;
use crate::compile::{self, Budget, Options, Trainable};
use crate::error::{Error, Problem, Result};
use crate::generate::{input, language};
use crate::manifest::Probe;
use crate::precision::Compute;
use crate::quantize::Quantization;
use crate::rules::Target;
use crate::train;
use clap::Args;
use std::collections::BTreeMap;
use std::path::Path;

/// What a model is compiled for.
#[derive(Args)]
pub struct How {
    /// Training method.  weft: every token is masked with a probability t_i from its predictive entropy and
    /// weighted by 1/t_i (arXiv 2509.20863); sft: LLaDA's, one t for a sequence; weft-nll: the token's own
    /// surprise instead of entropy; sw: sft with losses weighted by beta (the paper gives no formula for it);
    /// cart: Dream's context-adaptive weights; papl: arXiv 2509.23405; or a method of --rules
    #[arg(long, default_value = "weft")]
    method: String,
    /// The model's family, for its mask token and logits shift: llada, llada-1.5, llada-moe, dream, tiny-a2d, modernbert,
    /// smdm, mdlm [default: what a tokenizer.json beside the model tells]
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Id of the mask token [default: the profile's]
    #[arg(long, allow_negative_numbers = true)]
    mask_id: Option<i64>,
    /// 1 where row i of the logits predicts token i+1 (Dream's checkpoints), 0 where it predicts token i;
    /// applied in the entropy pass and in the loss [default: the profile's, else 0]
    #[arg(long, allow_negative_numbers = true)]
    logits_shift: Option<i64>,
    /// The mask token cannot be predicted: its probability is 0 in entropies and losses, whatever its logit, as MDLM and
    /// what came of it have it outside of the module that is exported (arXiv 2406.07524) [default: the profile's]
    #[arg(long)]
    exclude_mask: bool,
    #[command(flatten)]
    settings: Settings,
    /// An option of the method's file
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// When the entropy pass runs: every-step, every:K (once a sample in K epochs), reference (once a sample, with
    /// the weights that training starts from)
    #[arg(long, default_value = "every-step", value_parser = str::parse::<Probe>)]
    probe: Probe,
    /// Which weights are trained: full, an adapter (lora, rslora, dora), or patterns over the weights' names, joined by
    /// commas (`*.norm*,transformer.blocks.1.*`)
    #[arg(long, default_value = "full", value_name = "WHAT", value_parser = str::parse::<Trainable>)]
    trainable: Trainable,
    /// Rank of an adapter (the paper's runs: 128)
    #[arg(long, default_value_t = 8, value_name = "R")]
    lora_rank: i64,
    /// Scale of an adapter: alpha / rank, for rslora alpha / sqrt(rank) [default: twice the rank]
    #[arg(long, value_name = "ALPHA")]
    lora_alpha: Option<f64>,
    /// Linear layers with an adapter, found by structure: q, k, v, o, gate, up, down, head, all-linear (all but the
    /// head); or names (`q_proj`) and patterns (`*.0.*`)
    #[arg(long, default_value = "q,k,v", value_delimiter = ',')]
    lora_targets: Vec<String>,
    /// Probability with which an element of an adapter's input is dropped, in the training pass only
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    lora_dropout: f64,
    /// Seed of an adapter's first values
    #[arg(long, default_value_t = 0)]
    adapter_seed: u64,
    /// Let several sequences share a row, each with positions of its own and attention to itself alone: the losses and
    /// gradients are those of single rows, and no row is padded to the longest
    #[arg(long)]
    packing: bool,
    /// portable: standard ONNX operators only; cpu: also ONNX Runtime's own fused operators; cuda: the same, and bf16
    /// unless --compute says otherwise
    #[arg(long, value_enum, default_value_t = Target::Cpu)]
    target: Target,
    /// Type that values are computed in; trained weights stay f32. auto: f32, for cuda bf16. bf16 needs a target with
    /// kernels for it; f16 trains with dynamic loss scaling
    #[arg(long, value_enum, default_value_t = Compute::Auto)]
    compute: Compute,
    /// Store the frozen matrices of linear layers in 8 or 4 bits (blocks of 32 share a scale); the compile
    /// report says what it saves
    #[arg(long, value_enum)]
    quantize_base: Option<Quantization>,
    /// What a training step may take in memory, as 12GB or 800MB: weights, gradients, AdamW's moments and the values of
    /// one micro-batch. As few layers as that takes are computed again in the backward part instead of being kept; the
    /// numbers are the same. ONNX Runtime itself takes some 50 MB more
    #[arg(long, value_name = "BYTES", value_parser = compile::bytes)]
    memory_budget: Option<u64>,
    /// Sequences in a micro-batch, for --memory-budget and the predicted time [default: the model's own, else 8]
    #[arg(long, value_name = "B")]
    pub budget_batch: Option<i64>,
    /// Tokens in a sequence, for the same [default: the model's own, else the longest that it takes]
    #[arg(long, value_name = "L")]
    pub budget_length: Option<i64>,
    /// Name of the token input, where the model has several integer inputs
    #[arg(long)]
    token_input: Option<String>,
    /// Name of the logits output, where the model has several of that shape
    #[arg(long)]
    logits_output: Option<String>,
    /// A further input of the model that is this number everywhere: sigma=0, where a model is to ignore time
    #[arg(long = "input", value_name = "NAME=NUMBER", value_parser = input)]
    inputs: Vec<(String, f64)>,
    #[command(flatten)]
    rules: RulesArgs,
}

/// Options that the built-in methods have in common; a method's file has the defaults.
#[derive(Args)]
struct Settings {
    /// Least masking time: t is drawn from U(0,1), then t <- (1 - eps) t + eps [default: 1e-3]
    #[arg(long, allow_negative_numbers = true)]
    t_eps: Option<f64>,
    /// Least masking probability of a token; bounds the weight 1/t_i [default: 1e-3]
    #[arg(long, allow_negative_numbers = true)]
    t_floor: Option<f64>,
    /// beta from the entropy H: sqrt (the paper's), linear (raw H, the unstable ablation), log1p, or pow:P
    /// [default: sqrt]
    #[arg(long)]
    entropy_transform: Option<String>,
    /// beta_ref is the mean of beta over one answer (sequence) or over the micro-batch (batch) [default: sequence]
    #[arg(long)]
    beta_scope: Option<String>,
    /// Denominator of the loss: sequence (mean over each answer, then over sequences; unbiased), token (all answer
    /// tokens), masked (masked tokens only, as in the paper's listing; biased) [default: sequence; cart and papl:
    /// masked]
    #[arg(long)]
    loss_norm: Option<String>,
    /// Power a of the weight t_i^-a; 1 keeps the loss unbiased [default: 1]
    #[arg(long, allow_negative_numbers = true)]
    weight_power: Option<f64>,
    /// cart: p of the geometric weights [default: 0.1]
    #[arg(long, allow_negative_numbers = true)]
    cart_p: Option<f64>,
    /// papl: strength of the planner's weights [default: 1]
    #[arg(long, allow_negative_numbers = true)]
    papl_alpha: Option<f64>,
    /// papl: temperature of the planner [default: 1]
    #[arg(long, allow_negative_numbers = true)]
    papl_tau: Option<f64>,
}

impl Settings {
    /// What was given, by the option's name.
    fn given(&self) -> BTreeMap<String, String> {
        let number = |x: Option<f64>| x.map(|x| x.to_string());
        let all = [
            ("t_eps", number(self.t_eps)),
            ("t_floor", number(self.t_floor)),
            ("entropy_transform", self.entropy_transform.clone()),
            ("beta_scope", self.beta_scope.clone()),
            ("loss_norm", self.loss_norm.clone()),
            ("weight_power", number(self.weight_power)),
            ("cart_p", number(self.cart_p)),
            ("papl_alpha", number(self.papl_alpha)),
            ("papl_tau", number(self.papl_tau)),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))).collect()
    }
}

fn pair(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("an option is set as NAME=VALUE")?;
    Ok((name.trim().into(), value.trim().into()))
}

impl How {
    /// Refuses those flags that say what a model is compiled for.
    pub fn refuse(&self, why: &str) -> Result<()> {
        let given = [
            ("--mask-id", self.mask_id.is_some()),
            ("--profile", self.profile.is_some()),
            ("--logits-shift", self.logits_shift.is_some()),
            ("--exclude-mask", self.exclude_mask),
            ("--method", self.method != "weft"),
            ("--set", !self.set.is_empty() || !self.settings.given().is_empty()),
            ("--probe", self.probe != Probe::EveryStep),
            ("--trainable", self.trainable != Trainable::Full),
            ("--target", self.target != Target::Cpu),
            ("--compute", self.compute != Compute::Auto),
            ("--quantize-base", self.quantize_base.is_some()),
            ("--packing", self.packing),
            ("--memory-budget", self.memory_budget.is_some()),
        ];
        let problems: Vec<Problem> =
            given.into_iter().filter(|(_, given)| *given).map(|(flag, _)| Problem::new(flag, why)).collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::Usage { problems }) }
    }

    /// The options for a model, and what to tell of the profile.
    pub fn options(&self, model: &Path) -> Result<(Options, Option<String>)> {
        // A mask that is given says that the model is the user's own.
        let tokenizer = if self.mask_id.is_some() { None } else { language::tokenizer(None, Some(model))? };
        let (profile, note) = train::data::profile(self.profile.as_deref(), tokenizer.as_ref())?.unzip();
        let options = Options {
            model: model.to_path_buf(),
            method: self.method.clone(),
            mask_id: self.mask_id.or(profile.map(|p| p.mask.1)),
            logits_shift: self.logits_shift.or(profile.map(|p| p.logits_shift)).unwrap_or(0),
            excludes_mask: self.exclude_mask || profile.is_some_and(|p| p.excludes_mask),
            settings: self.settings.given(),
            set: self.set.iter().cloned().collect(),
            probe: self.probe,
            trainable: self.trainable.clone(),
            adapter: adapt::Spec {
                rank: self.lora_rank,
                alpha: self.lora_alpha.unwrap_or(2.0 * self.lora_rank as f64),
                targets: self.lora_targets.clone(),
                dropout: self.lora_dropout,
                seed: self.adapter_seed,
            },
            packing: self.packing,
            target: self.target,
            compute: self.compute,
            quantize: self.quantize_base,
            memory: self.memory_budget.map(|bytes| Budget {
                bytes,
                batch: self.budget_batch,
                length: self.budget_length,
            }),
            token_input: self.token_input.clone(),
            logits_output: self.logits_output.clone(),
            inputs: self.inputs.iter().cloned().collect(),
            rules: self.rules.rules.clone(),
            trust_rules: self.rules.trust_rules,
        };
        Ok((options, note))
    }
}
