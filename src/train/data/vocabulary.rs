//! What a tokenizer tells: its special tokens, the chat template that belongs to it, the model's family.

use super::chat::Chat;
use crate::error::{Error, Problem, Result};
use crate::profile::Profile;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// Opens a `tokenizer.json`.
pub fn tokenizer(path: &Path) -> Result<Tokenizer> {
    Tokenizer::from_file(path).map_err(|e| Error::Data {
        data: path.to_path_buf(),
        problems: vec![
            Problem::new("", format!("no tokenizer: {e}")).help("--tokenizer wants a tokenizer.json of Hugging Face"),
        ],
    })
}

/// The id to pad with: what the tokenizer pads with, else its end of text, else 0.
pub fn pad_id(tokenizer: Option<&Tokenizer>) -> i64 {
    const NAMES: [&str; 6] = ["<|endoftext|>", "<pad>", "[PAD]", "<|pad|>", "</s>", "<eos>"];
    let Some(tokenizer) = tokenizer else { return 0 };
    let padding = tokenizer.get_padding().map(|p| p.pad_id);
    padding.or_else(|| NAMES.iter().find_map(|n| tokenizer.token_to_id(n))).map_or(0, i64::from)
}

/// The end-of-text token, by the names that tokenizers give it.
pub fn eos_id(tokenizer: &Tokenizer) -> Option<i64> {
    const NAMES: [&str; 4] = ["<|endoftext|>", "</s>", "<eos>", "[SEP]"];
    NAMES.iter().find_map(|n| tokenizer.token_to_id(n)).map(i64::from)
}

/// The chat template that belongs to a tokenizer: a built-in one that its special tokens tell, else that of the
/// `tokenizer_config.json` beside it.  LLaDA's own appends an assistant's header to every text, so the built-in
/// one comes first.
///
/// # Errors
/// A template that is there and wrong.
pub fn chat_of(path: &Path, tokenizer: &Tokenizer) -> Result<Option<(String, Chat)>> {
    if tokenizer.token_to_id("<|start_header_id|>").and(tokenizer.token_to_id("<|mdm_mask|>")).is_some() {
        return Ok(Some(("llada (built in)".into(), Chat::find("llada")?)));
    }
    let config = path.with_file_name("tokenizer_config.json");
    let has = std::fs::read_to_string(&config).is_ok_and(|t| t.contains("\"chat_template\""));
    if has {
        let name = config.display().to_string();
        let chat = Chat::find(&name)?;
        return Ok(Some((name, chat)));
    }
    let chatml = tokenizer.token_to_id("<|im_start|>").and(tokenizer.token_to_id("<|im_end|>"));
    chatml.map(|_| Ok(("chatml (built in)".into(), Chat::find("chatml")?))).transpose()
}

/// The profile that is named, or else that a tokenizer (and where it lies) tells, with a note for people.
///
/// # Errors
/// A name that is no profile's.
pub fn profile(
    name: Option<&str>,
    tokenizer: Option<&(PathBuf, Tokenizer)>,
) -> Result<Option<(&'static Profile, String)>> {
    if let Some(name) = name {
        return Profile::named(name).map(|p| Some((p, p.note("--profile"))));
    }
    let found = tokenizer.and_then(|(path, t)| {
        let profile = Profile::guess(|text| t.token_to_id(text).map(i64::from))?;
        Some((profile, profile.note(&format!("guessed from {}", path.display()))))
    });
    Ok(found)
}
