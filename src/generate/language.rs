//! What stands between text and tokens: tokenizer, chat template, and the ids that mean something.

use crate::error::{Error, Problem, Result};
use crate::profile::Decoder;
use crate::train::data::{self, Chat, Columns, Encoder, Limits, Message, Padding, Turns};
use clap::Args;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// The flags about text, of every command that runs a model.
#[derive(Args, Clone, Debug, Default)]
pub struct LanguageArgs {
    /// The model's family, for its mask and end-of-text tokens, template and way of decoding: llada, llada-1.5, llada-moe,
    /// dream, tiny-a2d, modernbert, smdm, mdlm [default: what the tokenizer tells]
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// A tokenizer.json [default: the one beside the model]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Id of the mask token [default: the profile's]
    #[arg(long, value_name = "ID")]
    pub mask_id: Option<i64>,
    /// 1 where row i of the logits predicts token i+1 [default: the profile's, else 0]
    #[arg(long, value_name = "0|1")]
    pub logits_shift: Option<i64>,
    /// The mask token has probability 0, whatever its logit; `generate` never writes it in any case [default: the profile's]
    #[arg(long)]
    pub exclude_mask: bool,
    /// The token that ends a text [default: the profile's, else the tokenizer's]
    #[arg(long, value_name = "ID")]
    pub eos_id: Option<i64>,
    /// `llada`, `chatml`, a template file or a tokenizer_config.json [default: what belongs to the tokenizer]
    #[arg(long, value_name = "TEMPLATE")]
    pub chat_template: Option<String>,
    /// Take prompts as they are, without a chat template
    #[arg(long, conflicts_with = "chat_template")]
    pub plain: bool,
    /// Put in front of the question, with a blank line between (d1's format)
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
}

/// The language of a model.
pub struct Language {
    pub tokenizer: Option<Tokenizer>,
    chat: Option<Chat>,
    system: Option<String>,
    /// Whether prompt and answer are taken as they are, for no template was asked for.
    plain: bool,
    pub mask_id: i64,
    /// The tokens that end a text; the first fills what lies behind one.
    pub eos_ids: Vec<i64>,
    pub pad_id: i64,
    pub logits_shift: usize,
    /// Whether the mask token's probability is 0, whatever its logit.
    pub excludes_mask: bool,
    pub decoder: Decoder,
    /// What was chosen for the user, a line each.
    pub notes: Vec<String>,
}

/// The tokenizer that is meant, and where it lies: `given`, or the one beside the model, if there is one.
///
/// # Errors
/// A tokenizer that cannot be read.
pub fn tokenizer(given: Option<&Path>, model: Option<&Path>) -> Result<Option<(PathBuf, Tokenizer)>> {
    let beside = || model.map(|m| m.with_file_name("tokenizer.json")).filter(|p| p.is_file());
    let path = given.map(Path::to_path_buf).or_else(beside);
    path.map(|path| data::tokenizer(&path).map(|tokenizer| (path, tokenizer))).transpose()
}

impl Language {
    /// The language of `model`, as far as it is known.
    ///
    /// # Errors
    /// A tokenizer or template that cannot be read; no mask token.
    pub fn find(args: &LanguageArgs, model: &Path) -> Result<Self> {
        Self::find_or(args, Some(model), None)
    }

    /// `find`, also without a model, with the mask token that is taken where none is known.
    ///
    /// # Errors
    /// As `find`.
    pub fn find_or(args: &LanguageArgs, model: Option<&Path>, mask: Option<i64>) -> Result<Self> {
        let mut notes = Vec::new();
        let found = tokenizer(args.tokenizer.as_deref(), model)?;
        if let (Some((path, _)), None) = (&found, &args.tokenizer) {
            notes.push(format!("tokenizer {} (beside the model)", path.display()));
        }
        let known = data::profile(args.profile.as_deref(), found.as_ref())?;
        notes.extend(known.as_ref().map(|(_, note)| note.clone()));
        let profile = known.map(|(profile, _)| profile);
        let text = |t: &str| found.as_ref().and_then(|(_, tokenizer)| tokenizer.token_to_id(t)).map(i64::from);
        let by_name = || ["[MASK]", "<|mask|>", "<|mdm_mask|>", "<mask>"].iter().find_map(|t| text(t));
        let Some(mask_id) = args.mask_id.or(profile.map(|p| p.mask.1)).or_else(by_name).or(mask) else {
            let help = "--mask-id ID, or --profile NAME where the model's family is known (llada, dream, ..)";
            return Err(Error::usage(Problem::new("--mask-id", "the mask token is not known").help(help)));
        };
        let logits_shift = args.logits_shift.or(profile.map(|p| p.logits_shift)).unwrap_or(0);
        let logits_shift = usize::try_from(logits_shift).ok().filter(|s| *s < 2).ok_or_else(|| {
            Error::usage(Problem::new("--logits-shift", format!("{logits_shift} is neither 0 nor 1")))
        })?;
        let own = found.as_ref().and_then(|(_, t)| data::eos_id(t));
        let eos_ids = match (args.eos_id, profile) {
            (Some(id), _) => vec![id],
            (None, Some(profile)) => profile.ends(),
            (None, None) => own.into_iter().collect(),
        };
        let pad = |tokenizer: Option<&Tokenizer>| data::pad_id(tokenizer);
        let pad_id = profile.map_or_else(|| pad(found.as_ref().map(|(_, t)| t)), |p| p.pad_id);
        let chat = match &args.chat_template {
            _ if args.plain => None,
            Some(name) => Some(Chat::find(name)?),
            None => match (&found, profile.and_then(|p| p.template)) {
                (Some((path, tokenizer)), built_in) => match data::chat_of(path, tokenizer)? {
                    Some((name, chat)) => {
                        notes.push(format!("prompts are rendered by the chat template {name} (--plain: as they are)"));
                        Some(chat)
                    }
                    None => built_in.map(Chat::find).transpose()?,
                },
                (None, _) => None,
            },
        };
        Ok(Language {
            tokenizer: found.map(|(_, tokenizer)| tokenizer),
            chat,
            system: args.system.clone(),
            plain: args.chat_template.is_none(),
            mask_id,
            eos_ids,
            pad_id,
            logits_shift,
            excludes_mask: args.exclude_mask || profile.is_some_and(|p| p.excludes_mask),
            decoder: profile.map_or(Decoder::Llada, |p| p.decoder),
            notes,
        })
    }

    /// How rows of training data become samples of this language.
    pub fn encoder(&self, vocab_size: i64, max_length: Option<usize>) -> Encoder<'_> {
        Encoder {
            tokenizer: self.tokenizer.as_ref(),
            chat: self.chat.as_ref(),
            plain: self.plain,
            columns: Columns::default(),
            system: self.system.clone(),
            padding: Padding::FirstEos,
            eos: self.eos_ids.first().copied(),
            turns: Turns::All,
            seed: 0,
            limits: Limits { vocab_size, mask_id: self.mask_id, max_length, fixed_length: None, longest: None },
        }
    }

    /// The tokens of a question, up to where the answer begins.
    ///
    /// # Errors
    /// Text without a tokenizer; a template that fails.
    pub fn prompt(&self, question: &str) -> Result<Vec<i64>> {
        self.messages(vec![Message { role: "user".into(), content: question.into() }])
    }

    /// The tokens of a conversation, up to where the answer begins; without a template that is the last turn's text.
    ///
    /// # Errors
    /// As `prompt`.
    pub fn messages(&self, messages: Vec<Message>) -> Result<Vec<i64>> {
        let messages = data::with_system(messages, self.system.as_deref());
        let text = match (&self.chat, messages.last()) {
            (Some(chat), _) => chat.render(&messages, true).map_err(Error::usage)?,
            (None, Some(last)) => last.content.clone(),
            (None, None) => String::new(),
        };
        self.encode(&text)
    }

    /// The tokens of a text as it is.
    ///
    /// # Errors
    /// No tokenizer, or one that fails.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let Some(tokenizer) = &self.tokenizer else {
            return Err(Error::usage(
                Problem::new("--tokenizer", "text needs a tokenizer").help("--tokenizer tokenizer.json"),
            ));
        };
        let encoded = tokenizer.encode(text, false);
        let encoded = encoded.map_err(|e| Error::usage(Problem::new("--tokenizer", format!("it fails: {e}"))))?;
        Ok(encoded.get_ids().iter().map(|id| i64::from(*id)).collect())
    }

    /// The tokens of an answer before the end of text.
    pub fn before_end<'t>(&self, answer: &'t [i64]) -> &'t [i64] {
        let end = answer.iter().position(|t| self.eos_ids.contains(t)).unwrap_or(answer.len());
        &answer[..end]
    }

    /// The text of tokens; without a tokenizer their ids.
    ///
    /// # Errors
    /// A tokenizer that fails.
    pub fn decode(&self, tokens: &[i64], skip_special: bool) -> Result<String> {
        let Some(tokenizer) = &self.tokenizer else {
            return Ok(tokens.iter().map(i64::to_string).collect::<Vec<_>>().join(" "));
        };
        let ids: Vec<u32> = tokens.iter().filter_map(|t| u32::try_from(*t).ok()).collect();
        tokenizer.decode(&ids, skip_special).map_err(|e| Error::runtime(format!("the tokenizer fails: {e}")))
    }
}
