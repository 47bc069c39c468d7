//! Prompts without answers, read as the training data are.

use super::format::{self, Example};
use super::{Encoder, rows};
use crate::error::{Error, Problem, Result};
use std::path::Path;

/// A prompt: as it is shown, its tokens, and the answer that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub text: String,
    pub tokens: Vec<i64>,
    pub reference: Option<String>,
}

/// The prompts of a file: of `.jsonl`, `.json`, `.csv` and `.parquet` each row's `input_ids` up to `prompt_len`,
/// `messages`, `prompt` or `question`; of any other its lines.
///
/// # Errors
/// `Io`; `Data` with every bad row; `Usage` where there is none.
pub fn prompts(path: &Path, encoder: &Encoder) -> Result<Vec<Shown>> {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let mut take = |place: String, prompt: std::result::Result<Shown, Problem>| match prompt {
        Ok(prompt) => found.push(prompt),
        Err(problem) => problems.push(Problem { place, ..problem }),
    };
    if ["jsonl", "json", "csv", "parquet"].contains(&extension.as_str()) {
        rows::read(path, &(0..usize::MAX), &mut |place, row| {
            take(place, row.and_then(|row| encoder.prompt(format::question(&row, &encoder.columns)?)));
        })?;
    } else {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        for (k, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let plain = Example::Plain { prompt: line.into(), answer: String::new() };
            take(format!("{}:{}", path.display(), k + 1), encoder.prompt(plain));
        }
    }
    if !problems.is_empty() {
        return Err(Error::Data { data: path.into(), problems });
    }
    if found.is_empty() {
        let problem = Problem::new("--sample-prompts", format!("{} holds no prompt", path.display()));
        return Err(Error::usage(
            problem.help("one prompt a line, or rows of JSON with prompt, messages or input_ids"),
        ));
    }
    Ok(found)
}

impl Encoder<'_> {
    /// A question up to where its answer begins.
    fn prompt(&self, question: Example) -> std::result::Result<Shown, Problem> {
        let (text, tokens) = match question {
            Example::Ids { ids, prompt, .. } => {
                let ids = ids[..prompt].to_vec();
                (ids.iter().map(i64::to_string).collect::<Vec<_>>().join(" "), ids)
            }
            Example::Plain { prompt, .. } if self.plain || self.chat.is_none() => {
                let tokens = self.tokens(prompt.clone())?;
                (prompt, tokens)
            }
            other => {
                let mut messages = match other {
                    Example::Chat(messages) => messages,
                    Example::Plain { prompt, .. } => format::turn(prompt, String::new()),
                    Example::Ids { .. } => Vec::new(),
                };
                if messages.last().is_some_and(|m| m.role == "assistant") {
                    messages.pop();
                }
                let chat = self.chat.ok_or_else(|| {
                    let help = "--chat-template llada, chatml, or the model's tokenizer_config.json";
                    Problem::new("", "a conversation needs a chat template").help(help)
                })?;
                let text = chat.render(&format::with_system(messages, self.system.as_deref()), true)?;
                let tokens = self.tokens(text.clone())?;
                (text, tokens)
            }
        };
        let strange = |t: &&i64| **t == self.limits.mask_id || !(0..self.limits.vocab_size).contains(*t);
        match tokens.iter().find(strange) {
            Some(token) => {
                let message = format!("token {token} is the mask token or outside the vocabulary");
                Err(Problem::new("", message).help("use the tokenizer of this model"))
            }
            None => Ok(Shown { text, tokens, reference: None }),
        }
    }
}
