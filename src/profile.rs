//! Model profiles: what must be known of a published model family to train it and to generate with it.

use crate::error::{Error, Problem, Result};

/// Whose generation a model was published with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Decoder {
    /// The same number of tokens a step, in blocks from the left.
    Llada,
    /// A falling number of tokens a step, anywhere.
    Dream,
}

/// A token by its text and its id.
pub type Token = (&'static str, i64);

/// The facts of a family of models.
#[derive(Debug, PartialEq)]
pub struct Profile {
    /// As `--profile` has it.
    pub name: &'static str,
    /// The checkpoints that it describes.
    pub models: &'static str,
    pub mask: Token,
    /// Ends a text.
    pub eos: Token,
    /// Ends a turn, where that is another token.
    pub turn_end: Option<Token>,
    pub pad_id: i64,
    /// 1 where row `i` of the logits predicts token `i + 1`.
    pub logits_shift: i64,
    /// Whether the mask token's probability is 0 whatever its logit.
    pub excludes_mask: bool,
    /// The chat template that is built in; `None`: the tokenizer's own, if it has one.
    pub template: Option<&'static str>,
    pub decoder: Decoder,
    /// Where the facts were read, and which of them were not.
    pub source: &'static str,
}

const LLADA: Profile = Profile {
    name: "llada",
    models: "GSAI-ML/LLaDA-8B-Base and -Instruct",
    mask: ("<|mdm_mask|>", 126336),
    eos: ("<|endoftext|>", 126081),
    turn_end: Some(("<|eot_id|>", 126348)),
    pad_id: 126081,
    logits_shift: 0,
    excludes_mask: false,
    template: Some("llada"),
    decoder: Decoder::Llada,
    source: "ids: github.com/ML-GSAI/LLaDA, generate.py and GUIDELINES.md; texts: its tokenizer, not checked here",
};

/// Every profile, in the order in which they are tried on a tokenizer.
pub const PROFILES: [Profile; 8] = [
    LLADA,
    Profile {
        name: "llada-1.5",
        models: "GSAI-ML/LLaDA-1.5",
        source: "as llada, whose tokenizer it is taken to have",
        ..LLADA
    },
    Profile {
        name: "llada-moe",
        models: "inclusionAI/LLaDA-MoE-7B-A1B and LLaDA2.0-mini",
        mask: ("<|mask|>", 156895),
        eos: ("<|endoftext|>", 156892),
        turn_end: None,
        pad_id: 156892,
        logits_shift: 0,
        excludes_mask: false,
        template: None,
        decoder: Decoder::Llada,
        source: "ids: github.com/inclusionAI/dInfer (mask_id, eos_id); their texts, padding and turns not checked here",
    },
    Profile {
        name: "dream",
        models: "Dream-org/Dream-v0-Base-7B and -Instruct-7B",
        mask: ("<|mask|>", 151666),
        eos: ("<|endoftext|>", 151643),
        turn_end: Some(("<|im_end|>", 151645)),
        pad_id: 151643,
        logits_shift: 1,
        excludes_mask: false,
        template: Some("chatml"),
        decoder: Decoder::Dream,
        source: "mask: github.com/DreamLM/Dream; end of text and of turn: Qwen2.5's tokenizer, not checked here",
    },
    Profile {
        name: "tiny-a2d",
        models: "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1 and its like",
        mask: ("<|mask|>", 151669),
        eos: ("<|im_end|>", 151645),
        turn_end: None,
        pad_id: 151643,
        logits_shift: 0,
        excludes_mask: false,
        template: Some("chatml"),
        decoder: Decoder::Llada,
        source: "github.com/ZHZisZZ/dllm: examples/a2d, MDLMSampler (right_shift_logits false)",
    },
    Profile {
        name: "modernbert",
        models: "dllm-hub/ModernBERT-base-chat-v0.1 and -large-chat-v0.1, answerdotai/ModernBERT",
        mask: ("[MASK]", 50284),
        eos: ("[SEP]", 50282),
        turn_end: None,
        pad_id: 50283,
        logits_shift: 0,
        excludes_mask: false,
        template: None,
        decoder: Decoder::Llada,
        source: "mask: github.com/ZHZisZZ/dllm, examples/bert; the rest: ModernBERT's tokenizer, not checked here",
    },
    Profile {
        name: "smdm",
        models: "nieshen/SMDM",
        // The row behind the vocabulary of TinyLlama: no tokenizer has a text for it.
        mask: ("", 32000),
        eos: ("</s>", 2),
        turn_end: None,
        pad_id: 2,
        logits_shift: 0,
        excludes_mask: false,
        template: None,
        decoder: Decoder::Llada,
        source: "mask: github.com/ML-GSAI/SMDM, evaluate_diff.py; the rest: TinyLlama's tokenizer, not checked here",
    },
    Profile {
        name: "mdlm",
        models: "kuleshov-group/mdlm-owt and bd3lm-owt",
        // Behind the vocabulary of GPT-2, whose tokenizer has no text for it either.
        mask: ("", 50257),
        eos: ("<|endoftext|>", 50256),
        turn_end: None,
        pad_id: 50256,
        logits_shift: 0,
        excludes_mask: true,
        template: None,
        decoder: Decoder::Llada,
        source: "mask: github.com/kuleshov-group/mdlm, diffusion.py; the rest: GPT-2's tokenizer, not checked here",
    },
];

impl Profile {
    /// The profile of that name.
    ///
    /// # Errors
    /// `Usage`, with the names that there are.
    pub fn named(name: &str) -> Result<&'static Profile> {
        PROFILES.iter().find(|p| p.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let known: Vec<&str> = PROFILES.iter().map(|p| p.name).collect();
            let problem = Problem::new("--profile", format!("there is no profile `{name}`"));
            Error::usage(problem.help(format!("known are {}; or name --mask-id and --logits-shift", known.join(", "))))
        })
    }

    /// The first profile whose mask and end of text have their ids in a tokenizer, which `id` looks up by text.
    pub fn guess(id: impl Fn(&str) -> Option<i64>) -> Option<&'static Profile> {
        let has = |(text, wanted): Token| !text.is_empty() && id(text) == Some(wanted);
        PROFILES.iter().find(|p| has(p.mask) && has(p.eos))
    }

    /// The tokens that end what a model writes.
    pub fn ends(&self) -> Vec<i64> {
        [Some(self.eos), self.turn_end].into_iter().flatten().map(|t| t.1).collect()
    }

    /// What was taken for granted, for people; `why` says how the profile was found.
    pub fn note(&self, why: &str) -> String {
        let shift = if self.logits_shift == 0 { "" } else { ", row i of the logits predicts token i + 1" };
        let excluded = if self.excludes_mask { " (never predicted)" } else { "" };
        format!("profile {} ({why}): mask {}{excluded}, end of text {}{shift}", self.name, self.mask.1, self.eos.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_strangers_refused() {
        for profile in &PROFILES {
            assert_eq!(Profile::named(&profile.name.to_uppercase()).unwrap(), profile);
            assert!(!profile.ends().contains(&profile.mask.1));
        }
        assert!(Profile::named("gpt").unwrap_err().to_string().contains("llada, llada-1.5, llada-moe, dream"));
    }

    #[test]
    fn a_tokenizer_tells_its_profile() {
        let tokenizer = |tokens: &'static [Token]| {
            let id = move |text: &str| tokens.iter().find(|t| t.0 == text).map(|t| t.1);
            Profile::guess(id).map(|p| p.name)
        };
        assert_eq!(tokenizer(&[("<|mdm_mask|>", 126336), ("<|endoftext|>", 126081)]), Some("llada"));
        assert_eq!(tokenizer(&[("<|mask|>", 151666), ("<|endoftext|>", 151643)]), Some("dream"));
        assert_eq!(tokenizer(&[("<|mask|>", 151669), ("<|im_end|>", 151645)]), Some("tiny-a2d"));
        assert_eq!(tokenizer(&[("[MASK]", 50284), ("[SEP]", 50282)]), Some("modernbert"));
        // The words of BERT have other ids.
        assert_eq!(tokenizer(&[("[MASK]", 103), ("[SEP]", 102)]), None);
        assert_eq!(tokenizer(&[]), None);
    }
}
