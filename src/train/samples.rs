//! What the model says while it is trained: the same prompts before the first step, every N steps, and at the end.

use super::args::RunArgs;
use super::data::{Sample, Shown};
use super::log;
use super::prepare::Prepared;
use super::trainer::Trainer;
use crate::atomic;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// The file in a run's folder: one answer a line.
pub const FILE: &str = "samples.jsonl";

/// How many rows of the data are prompts where none are given, and the most tokens of an answer by default.
pub const PROMPTS: usize = 3;
const LENGTH: usize = 128;

/// The most characters of prompt and answer in the log.
const SHOWN: (usize, usize) = (60, 160);

/// Answers prompts with the present parameters: the tokens of each answer before its end of text.
pub type Answerer = Box<dyn FnMut(&Trainer, &[&[i64]]) -> Result<Vec<Vec<i64>>>>;

/// What an [`Answerer`] is made for.
pub struct Asked<'a> {
    pub args: &'a RunArgs,
    pub trainer: &'a Trainer,
    /// The source model.
    pub source: PathBuf,
    pub pad_id: i64,
    /// Tokens of an answer.
    pub length: usize,
}

/// Makes an [`Answerer`]; the compiler and the decoder, which this module does not know, are behind it.
pub type Open<'a> = &'a dyn Fn(&Asked) -> Result<Answerer>;

/// One line of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    /// Steps made before the answer.
    step: u64,
    /// Number of the prompt, from 1.
    sample: usize,
    prompt: String,
    answer: String,
    /// What the data have.
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    tokens: Vec<i64>,
}

/// The prompts of a run, and where the answers go.
pub struct Samples {
    prompts: Vec<Shown>,
    every: Option<u64>,
    answer: Answerer,
    file: Option<(File, PathBuf)>,
    /// The step of the last answers.
    last: Option<u64>,
    tokenizer: Option<Tokenizer>,
}

/// Whether a run shall show what its model says.
pub fn wanted(args: &RunArgs) -> bool {
    args.sample_every.is_some() || args.sample_prompts.is_some() || args.sample_length.is_some()
}

impl Samples {
    /// The prompts of --sample-prompts, else of the first of `rows`; `done` steps are made already, and what a resumed
    /// run has in `args.out` beyond them goes.
    ///
    /// # Errors
    /// `Io`; a model that cannot be opened.
    pub fn new(
        args: &RunArgs,
        prepared: &Prepared,
        rows: &[Sample],
        trainer: &Trainer,
        open: Open,
        done: u64,
    ) -> Result<Self> {
        let tokenizer = prepared.tokenizer.clone();
        let text = |ids: &[i64]| text(tokenizer.as_ref(), ids);
        let shown = |s: &Sample| Shown {
            text: text(&s.tokens[..s.prompt]),
            tokens: s.tokens[..s.prompt].to_vec(),
            reference: Some(text(&s.tokens[s.prompt..s.total])),
        };
        let first = &rows[..rows.len().min(PROMPTS)];
        let prompts = prepared.prompts.clone().unwrap_or_else(|| first.iter().map(shown).collect());
        let measured = if prepared.prompts.is_some() { &prepared.dataset.samples } else { first };
        let longest = measured.iter().map(|s| s.total - s.prompt).max().unwrap_or(LENGTH);
        let room = prepared
            .shape
            .length
            .map(|full| full.saturating_sub(prompts.iter().map(|p| p.tokens.len()).max().unwrap_or(0)));
        let length = args
            .sample_length
            .map(|n| n as usize)
            .unwrap_or(longest.min(LENGTH).min(room.unwrap_or(usize::MAX)).max(1));
        let source = args.model.clone().unwrap_or_else(|| trainer.file.source());
        let answer = open(&Asked { args, trainer, source, pad_id: prepared.pad_id, length })?;
        let (mut file, mut last) = (None, None);
        if let Some(out) = &args.out {
            let (opened, kept) = append_to(out, done)?;
            (file, last) = (Some(opened), kept);
        }
        Ok(Samples { prompts, every: args.sample_every, answer, file, last, tokenizer })
    }

    /// The lines for the log, where answers are due behind `step` steps: at the start, every N, and at the `end`.
    ///
    /// # Errors
    /// `Io`, and whatever the model fails with.
    pub fn at(&mut self, step: u64, trainer: &Trainer, end: bool) -> Result<Vec<String>> {
        let due = self.last.is_none() || end || self.every.is_some_and(|n| step.is_multiple_of(n));
        if !due || self.last == Some(step) {
            return Ok(Vec::new());
        }
        let prompts: Vec<&[i64]> = self.prompts.iter().map(|p| p.tokens.as_slice()).collect();
        let answers = (self.answer)(trainer, &prompts)?;
        self.last = Some(step);
        let (mut lines, mut shown) = (String::new(), Vec::new());
        for (k, (prompt, tokens)) in self.prompts.iter().zip(answers).enumerate() {
            let answer = text(self.tokenizer.as_ref(), &tokens);
            let (end, start) = (tail(&prompt.text, SHOWN.0), head(&answer, SHOWN.1));
            shown.push(format!("sample {} after {step} steps: {end} -> {start}", k + 1));
            let (prompt, reference) = (prompt.text.clone(), prompt.reference.clone());
            let line = Line { step, sample: k + 1, prompt, answer, reference, tokens };
            lines += &serde_json::to_string(&line).map_err(|e| Error::internal("samples", e.to_string()))?;
            lines.push('\n');
        }
        if let Some((file, path)) = &mut self.file {
            file.write_all(lines.as_bytes()).map_err(|e| Error::io("write", path, e))?;
        }
        Ok(shown)
    }
}

/// The file to append to, with the whole lines of an earlier run up to step `done`; and the last of their steps.
fn append_to(folder: &Path, done: u64) -> Result<((File, PathBuf), Option<u64>)> {
    let path = folder.join(FILE);
    let kept = if done == 0 { String::new() } else { log::lines_until(&path, done)? };
    let steps = kept.lines().filter_map(|l| serde_json::from_str::<Line>(l).ok()).map(|l| l.step);
    let last = steps.max();
    atomic::write(&path, |file| file.write_all(kept.as_bytes()))?;
    let file = File::options().append(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
    Ok(((file, path), last))
}

/// The text of tokens, special ones too; without a tokenizer their ids.
fn text(tokenizer: Option<&Tokenizer>, tokens: &[i64]) -> String {
    let ids: Option<Vec<u32>> = tokens.iter().map(|id| u32::try_from(*id).ok()).collect();
    let decoded = tokenizer.zip(ids).and_then(|(tokenizer, ids)| tokenizer.decode(&ids, false).ok());
    decoded.unwrap_or_else(|| tokens.iter().map(i64::to_string).collect::<Vec<_>>().join(" "))
}

/// The first `most` characters on one line, without what steers a terminal.
fn head(text: &str, most: usize) -> String {
    let one: String = one_line(text).take(most).collect();
    if text.chars().count() > most { one + " ..." } else { one }
}

fn tail(text: &str, most: usize) -> String {
    let count = text.chars().count();
    let one: String = one_line(text).skip(count.saturating_sub(most)).collect();
    if count > most { format!("... {one}") } else { one }
}

fn one_line(text: &str) -> impl Iterator<Item = char> {
    text.chars().map(|c| if c.is_control() { ' ' } else { c })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_lose_their_middle_and_lines() {
        assert_eq!(head("a\nb", 3), "a b");
        assert_eq!((head("abcd", 3), tail("abcd", 3)), ("abc ...".into(), "... bcd".into()));
        assert_eq!(text(None, &[3, -1]), "3 -1");
    }

    #[test]
    fn a_resumed_run_keeps_whole_lines_up_to_its_step() {
        let folder = tempfile::tempdir().unwrap();
        let line = |step: u64| {
            let (prompt, answer) = ("p".into(), "a".into());
            serde_json::to_string(&Line { step, sample: 1, prompt, answer, reference: None, tokens: vec![] }).unwrap()
        };
        let text = format!("{}\n{}\n{}\n{{\"step\":2,", line(0), line(2), line(4));
        std::fs::write(folder.path().join(FILE), &text).unwrap();
        assert_eq!(append_to(folder.path(), 3).unwrap().1, Some(2));
        let kept = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert_eq!(kept, format!("{}\n{}\n", line(0), line(2)));
        assert_eq!(append_to(folder.path(), 0).unwrap().1, None);
    }
}
