//! The flags that say how masked positions are filled.

use super::language::Language;
use super::{Decoding, Draw, EPS, Eos, Remasking, Schedule};
use crate::error::{Error, Problem, Result};
use crate::profile::Decoder;
use clap::Args;

/// The flags of decoding, of every command that generates.
#[derive(Args, Clone, Debug)]
pub struct DecodingArgs {
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub length: usize,
    /// Model calls in all [default: one a token; of eval: half of that]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Fill from the left in blocks of N tokens; 0: all at once [default: 32; of dream 0]
    #[arg(long, value_name = "N")]
    pub block_length: Option<usize>,
    /// llada: the same number of tokens a step, Gumbel noise. dream: timesteps, draws from the tempered softmax
    /// [default: the profile's, else llada]
    #[arg(long, value_enum)]
    pub decoder: Option<Decoder>,
    /// Which positions are filled first: low-confidence (maskgit_plus), random, margin (topk_margin), entropy, origin,
    /// or threshold:P, all above probability P [default: low-confidence; of dream: entropy]
    #[arg(long, value_name = "HOW", value_parser = str::parse::<Remasking>)]
    pub remasking: Option<Remasking>,
    /// 0 takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f64,
    /// Only the most likely tokens that together have probability P
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Only the K most likely tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draw positions, too, at this temperature
    #[arg(long, value_name = "T")]
    pub alg_temp: Option<f64>,
    /// The last of dream's timesteps
    #[arg(long, value_name = "EPS", default_value_t = EPS)]
    pub eps: f32,
    /// What becomes of end-of-text tokens: free; suppress, never written; late, only where nothing else is left
    #[arg(long, value_enum, default_value_t)]
    pub eos: Eos,
    /// End with the block that holds an end of text
    #[arg(long)]
    pub stop: bool,
    /// Seed of every draw
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl Default for DecodingArgs {
    /// What no flags mean.
    fn default() -> Self {
        DecodingArgs {
            length: 128,
            steps: None,
            block_length: None,
            decoder: None,
            remasking: None,
            temperature: 0.0,
            top_p: None,
            top_k: None,
            alg_temp: None,
            eps: EPS,
            eos: Eos::default(),
            stop: false,
            seed: 0,
        }
    }
}

impl std::str::FromStr for Remasking {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Ok(match text.replace('_', "-").as_str() {
            "low-confidence" | "maskgit-plus" => Remasking::LowConfidence,
            "random" => Remasking::Random,
            "margin" | "topk-margin" => Remasking::Margin,
            "entropy" => Remasking::Entropy,
            "origin" => Remasking::Origin,
            other => match other.strip_prefix("threshold:").map(str::parse) {
                Some(Ok(p)) => Remasking::Threshold(p),
                _ => return Err("one of low-confidence, random, margin, entropy, origin, threshold:P".into()),
            },
        })
    }
}

impl DecodingArgs {
    /// The decoding of these flags for a model that speaks `language`; `steps` are the calls where none are given.
    ///
    /// # Errors
    /// A length or a number of steps of 0.
    pub fn decoding(&self, language: &Language, steps: usize) -> Result<Decoding> {
        let total = self.steps.unwrap_or(steps);
        let zero = |n: usize, flag: &str| (n == 0).then(|| Problem::new(flag, "0 is too few"));
        let problems: Vec<Problem> =
            [zero(total, "--steps"), zero(self.length, "--length")].into_iter().flatten().collect();
        if !problems.is_empty() {
            return Err(Error::Usage { problems });
        }
        let decoder = self.decoder.unwrap_or(language.decoder);
        let block = match (self.block_length, decoder) {
            (Some(0), _) | (None, Decoder::Dream) => None,
            (Some(n), _) => Some(n),
            (None, Decoder::Llada) => Some(32),
        };
        let blocks = self.length.div_ceil(block.unwrap_or(self.length));
        let steps = total.div_ceil(blocks);
        let base = match decoder {
            Decoder::Llada => Decoding::new(language.mask_id, steps),
            Decoder::Dream => {
                Decoding { schedule: Schedule::Timesteps { eps: self.eps }, ..Decoding::dream(language.mask_id, steps) }
            }
        };
        Ok(Decoding {
            block_length: block,
            logits_shift: language.logits_shift,
            remasking: self.remasking.unwrap_or(base.remasking),
            temperature: self.temperature,
            draw: if decoder == Decoder::Dream { Draw::Categorical } else { Draw::Gumbel },
            top_p: self.top_p,
            top_k: self.top_k,
            alg_temp: self.alg_temp,
            eos_ids: language.eos_ids.clone(),
            eos: self.eos,
            stop: self.stop,
            seed: self.seed,
            ..base
        })
    }
}
