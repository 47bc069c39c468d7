//! Training data: rows of token ids, of text with a tokenizer, or of conversations with a chat template.
//!
//! `spec -> locate -> rows -> format -> chat -> tokens`: what `--data` names, where it lies, its rows as JSON
//! objects, what a row says, the text of a conversation, the samples.  `vocabulary` knows the special tokens.

mod chat;
mod format;
mod grouping;
#[cfg(feature = "hub")]
mod hub;
mod locate;
mod packing;
mod preview;
mod python_json;
mod question;
mod rows;
mod spec;
mod vocabulary;

use crate::error::{Error, Problem, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::path::Path;
use tokenizers::Tokenizer;

pub use chat::Chat;
pub use format::{Columns, Example, Message, question, with_system};
pub use grouping::{grouped, padding};
pub use packing::{Packing, left_over};
pub use preview::preview;
pub use question::{Shown, prompts};
pub use rows::{Row, Seen};
pub use vocabulary::{chat_of, eos_id, pad_id, profile, tokenizer};

/// At most so many bad lines are listed; the rest is counted.
const MOST_PROBLEMS: usize = 100;

/// One sequence; the answer is `tokens[prompt..total]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub tokens: Vec<i64>,
    pub prompt: usize,
    pub total: usize,
}

/// What a sample must respect.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Ids are in `0..vocab_size`.
    pub vocab_size: i64,
    /// Must not occur: the loss would not tell it from a masked token.
    pub mask_id: i64,
    /// Longer rows are cut.
    pub max_length: Option<usize>,
    /// The length of a graph that was exported for one length; longer rows are refused.
    pub fixed_length: Option<usize>,
    /// The rows of the model's tables of positions; longer rows are refused.
    pub longest: Option<usize>,
}

/// The samples of a file, in its order.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    pub samples: Vec<Sample>,
    /// How many rows `max_length` has cut.
    pub cut: usize,
    /// Whether there was text, not only token ids.
    pub text: bool,
}

/// What is supervised behind the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// Nothing: the model never learns to stop.
    None,
    /// One end-of-text token behind the answer.
    #[default]
    FirstEos,
    /// End-of-text tokens up to --max-length, or to the longest row (LLaDA's and d1's way).
    All,
}

/// Which turns of a conversation are answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Turns {
    /// Each of the assistant's, as a sample of its own.
    #[default]
    All,
    /// One, drawn from the seed.
    One,
    /// The last.
    Last,
}

/// How rows become samples.
pub struct Encoder<'a> {
    pub tokenizer: Option<&'a Tokenizer>,
    /// For conversations, and for `prompt` and `answer` unless these are `plain`.
    pub chat: Option<&'a Chat>,
    pub plain: bool,
    pub columns: Columns,
    /// Put in front of the first turn of the user.
    pub system: Option<String>,
    pub padding: Padding,
    /// The end-of-text token.
    pub eos: Option<i64>,
    pub turns: Turns,
    pub seed: u64,
    pub limits: Limits,
}

/// Reads every row of a file: JSON lines, one JSON array, parquet.
///
/// # Errors
/// `Io`, or `Data` where the file as a whole cannot be read.
pub fn read_rows(path: &Path, each: Seen) -> Result<()> {
    rows::read(path, &(0..usize::MAX), each).map(drop)
}

/// Reads the sources of `spec` (`spec::parse`), in order.
///
/// # Errors
/// `Usage` for a source that is not there; `Io`; `Data` with every bad row (`file:line`), up to a hundred.
pub fn load(spec: &str, encoder: &Encoder) -> Result<Dataset> {
    let mut data = Dataset::default();
    let samples = gather(spec, usize::MAX, &mut |place, row| {
        data.text |= row.as_ref().is_ok_and(|row| !encoder.columns.has_ids(row));
        row.map_err(|p| vec![p]).and_then(|row| encoder.samples(&row, place))
    })?;
    if samples.is_empty() {
        let problem =
            Problem::new(spec, "there is no sample").help("one JSON object a line, with input_ids and prompt_len");
        return Err(Error::Data { data: spec.into(), problems: vec![problem] });
    }
    data.cut = samples.iter().filter(|(_, cut)| *cut).count();
    data.samples = samples.into_iter().map(|(sample, _)| sample).collect();
    encoder.pad(&mut data);
    Ok(data)
}

/// What `read` makes of each row of the sources of `spec`, of the first `count` of them where that is given.
///
/// # Errors
/// As `load`; the places of bad rows are filled in.
pub fn rows_of<T>(
    spec: &str,
    count: Option<usize>,
    read: &mut dyn FnMut(&Row) -> std::result::Result<T, Problem>,
) -> Result<Vec<T>> {
    gather(spec, count.unwrap_or(usize::MAX), &mut |_, row| match row {
        Ok(row) => read(&row).map(|value| vec![value]).map_err(|p| vec![p]),
        Err(problem) => Err(vec![problem]),
    })
}

/// What `read` makes of the first `most` rows of a spec.
fn gather<T>(spec: &str, most: usize, read: Reader<T>) -> Result<Vec<T>> {
    let (mut out, mut problems, mut left) = (Vec::new(), Vec::new(), most);
    for part in spec::parse(spec)? {
        let mut wanted = part.rows.clone();
        for file in locate::files(&part)? {
            wanted.end = wanted.end.min(wanted.start.saturating_add(left));
            let seen = rows::read(&file, &wanted, &mut |place, row| {
                left -= 1;
                match read(&place, row) {
                    Ok(some) => out.extend(some),
                    Err(found) => problems.extend(found.into_iter().map(|p| Problem { place: place.clone(), ..p })),
                }
            })?;
            wanted = wanted.start.saturating_sub(seen)..wanted.end.saturating_sub(seen);
        }
    }
    if problems.is_empty() {
        return Ok(out);
    }
    let more = problems.len().saturating_sub(MOST_PROBLEMS);
    problems.truncate(MOST_PROBLEMS);
    if more > 0 {
        problems.push(Problem::new("", format!("and {more} more")));
    }
    Err(Error::Data { data: spec.into(), problems })
}

type Problems = Vec<Problem>;

/// What is made of a row, given its place and its fields or why it has none.
type Reader<'a, T> =
    &'a mut dyn FnMut(&str, std::result::Result<Row, Problem>) -> std::result::Result<Vec<T>, Problems>;

impl Encoder<'_> {
    /// The samples of a row, each with whether it was cut; else everything that is wrong with the row.
    fn samples(&self, row: &Row, place: &str) -> std::result::Result<Vec<(Sample, bool)>, Problems> {
        let one = |p: Problem| vec![p];
        let example = format::example(row, &self.columns).map_err(one)?;
        let messages = match example {
            Example::Ids { ids, prompt, total } => return Ok(vec![self.checked(ids, prompt, total)?]),
            Example::Plain { prompt, answer } if self.plain || self.chat.is_none() => {
                return Ok(vec![self.text(prompt, answer)?]);
            }
            Example::Plain { prompt, answer } => format::turn(prompt, answer),
            Example::Chat(messages) => messages,
        };
        let Some(chat) = self.chat else {
            let help = "--chat-template llada, chatml, or the model's tokenizer_config.json";
            return Err(one(Problem::new("", "a conversation needs a chat template").help(help)));
        };
        let messages = format::with_system(messages, self.system.as_deref());
        let mut answers: Vec<usize> = (0..messages.len()).filter(|k| messages[*k].role == "assistant").collect();
        match self.turns {
            Turns::All => {}
            Turns::Last => drop(answers.drain(..answers.len().saturating_sub(1))),
            Turns::One => {
                let mut hasher = Sha256::new();
                hasher.update(self.seed.to_le_bytes());
                hasher.update(place);
                let drawn = hasher.finalize().iter().take(8).fold(0u64, |n, b| n << 8 | u64::from(*b));
                let chosen = answers[(drawn % answers.len().max(1) as u64) as usize];
                answers.retain(|k| *k == chosen);
            }
        }
        let sample = |k: usize| {
            let turn = chat.turn(&messages, k).map_err(one)?;
            self.text(turn.prompt, turn.answer)
        };
        answers.into_iter().map(sample).collect()
    }

    /// A sample of text; prompt and answer are tokenised apart, so that no token spans both.
    fn text(&self, prompt: String, answer: String) -> std::result::Result<(Sample, bool), Problems> {
        let mut ids = self.tokens(prompt).map_err(|p| vec![p])?;
        let prompt = ids.len();
        ids.extend(self.tokens(answer).map_err(|p| vec![p])?);
        if let Some(eos) = self.eos.filter(|eos| self.padding != Padding::None && ids.last() != Some(eos)) {
            ids.push(eos);
        }
        let total = ids.len();
        self.checked(ids, prompt, total)
    }

    /// The tokens of a text as it is.
    fn tokens(&self, text: String) -> std::result::Result<Vec<i64>, Problem> {
        let Some(tokenizer) = self.tokenizer else {
            return Err(Problem::new("", "text needs a tokenizer").help("--tokenizer tokenizer.json"));
        };
        let encoded = tokenizer.encode(text, false);
        let encoded = encoded.map_err(|e| Problem::new("", format!("the tokenizer fails: {e}")))?;
        Ok(encoded.get_ids().iter().map(|id| i64::from(*id)).collect())
    }

    /// Fills every answer up with end-of-text tokens, where all of them are supervised.
    fn pad(&self, data: &mut Dataset) {
        let (Padding::All, Some(eos)) = (self.padding, self.eos) else { return };
        let longest = data.samples.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
        let length = self.limits.fixed_length.or(self.limits.max_length).unwrap_or(longest);
        let length = length.min(self.limits.longest.unwrap_or(length));
        for sample in data.samples.iter_mut().filter(|s| s.total == s.tokens.len()) {
            let full = length.max(sample.total);
            sample.tokens.resize(full, eos);
            sample.total = full;
        }
    }

    /// Cuts what is too long and checks the rest.
    fn checked(
        &self,
        mut tokens: Vec<i64>,
        prompt: usize,
        total: usize,
    ) -> std::result::Result<(Sample, bool), Problems> {
        let limits = self.limits;
        let bad = |message: String| Problem::new("", message);
        let full = tokens.len();
        tokens.truncate(limits.max_length.unwrap_or(full));
        let cut = tokens.len() < full;
        let total = if cut { total.min(tokens.len()) } else { total };

        let mut problems = Vec::new();
        let strange = |t: &i64| !(0..limits.vocab_size).contains(t);
        if let Some(at) = tokens.iter().position(strange) {
            let message =
                format!("token {} at {at} is not in the vocabulary of {} tokens", tokens[at], limits.vocab_size);
            problems.push(bad(message).help("use the tokenizer of this model"));
        }
        if let Some(at) = tokens.iter().position(|t| *t == limits.mask_id) {
            let message = format!("the token at {at} is the mask token {}", limits.mask_id);
            problems.push(bad(message).help("data holds clean tokens; weftc masks them"));
        }
        if total > tokens.len() {
            problems.push(bad(format!("total_len is {total}, but there are {} tokens", tokens.len())));
        }
        if prompt >= total {
            let message = format!("there is no answer: the prompt has {prompt} tokens of {total}");
            let help =
                if cut { "raise --max-length, or shorten the prompt" } else { "an answer has at least one token" };
            problems.push(bad(message).help(help));
        }
        if let Some(length) = limits.fixed_length.filter(|n| tokens.len() > *n) {
            let message = format!("{} tokens do not fit a graph that was exported for {length}", tokens.len());
            problems
                .push(bad(message).help(format!(
                    "--max-length {length} cuts longer rows; or export the model with a dynamic length"
                )));
        }
        if let Some(most) = limits.longest.filter(|n| tokens.len() > *n) {
            let message = format!("{} tokens do not fit a model that has positions for {most}", tokens.len());
            problems.push(bad(message).help(format!("--max-length {most} cuts longer rows")));
        }
        if problems.is_empty() { Ok((Sample { tokens, prompt, total }, cut)) } else { Err(problems) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LIMITS: Limits = Limits { vocab_size: 10, mask_id: 9, max_length: None, fixed_length: None, longest: None };

    fn read(text: &str, limits: Limits) -> Result<Dataset> {
        let mut file = tempfile::Builder::new().prefix("data").suffix(".jsonl").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        load(&file.path().display().to_string(), &encoder(limits))
    }

    fn encoder(limits: Limits) -> Encoder<'static> {
        Encoder {
            tokenizer: None,
            chat: None,
            plain: false,
            columns: Columns::default(),
            system: None,
            padding: Padding::FirstEos,
            eos: None,
            turns: Turns::All,
            seed: 0,
            limits,
        }
    }

    #[test]
    fn good_lines() {
        let text = "{\"input_ids\": [1,2,3,4], \"prompt_len\": 1, \"total_len\": 3}\n\n{\"input_ids\": [5,6], \"prompt_len\": 0, \"x\": 1}";
        let samples = read(text, LIMITS).unwrap().samples;
        assert_eq!(samples[0], Sample { tokens: vec![1, 2, 3, 4], prompt: 1, total: 3 });
        assert_eq!(samples[1], Sample { tokens: vec![5, 6], prompt: 0, total: 2 });
    }

    #[test]
    fn every_bad_line_is_listed_with_its_number() {
        let text = "{\"input_ids\": [1,10], \"prompt_len\": 0}\n{\"input_ids\": [1,9], \"prompt_len\": 2}\n[\n\
                    {\"input_ids\": [1]}\n{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"input_ids\": [1], \"prompt_len\": -1}\n\
                    {\"input_ids\": [1], \"prompt_len\": 0, \"total_len\": 5}\n{}";
        let text = read(text, LIMITS).unwrap_err().to_string();
        let expected = [
            ":1: token 10 at 1",
            ":2: the token at 1 is the mask token 9",
            ":2: there is no answer",
            ":3: column",
            ":4: prompt_len is missing",
            ":5: text needs a tokenizer",
            ":6: prompt_len: invalid value",
            ":7: total_len is 5",
            ":8: a row needs",
        ];
        for part in expected {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(!text.contains("at line"), "{text}");
    }

    #[test]
    fn text_is_tokenized_without_special_tokens() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tokenizer.json");
        let tokenizer = tokenizer(&path).unwrap();
        let ids = |text: &str| -> Vec<i64> {
            tokenizer.encode(text, false).unwrap().get_ids().iter().map(|id| i64::from(*id)).collect()
        };
        let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
        file.write_all(b"{\"prompt\": \"1 2\", \"answer\": \"3 4 1\"}").unwrap();
        let limits = Limits { vocab_size: 16, mask_id: 15, ..LIMITS };
        let encoder = Encoder { tokenizer: Some(&tokenizer), ..encoder(limits) };
        let sample = load(&file.path().display().to_string(), &encoder).unwrap().samples.remove(0);
        let (prompt, answer) = (ids("1 2"), ids("3 4 1"));
        assert!(!prompt.is_empty() && !answer.is_empty());
        assert_eq!(
            sample,
            Sample { prompt: prompt.len(), total: sample.tokens.len(), tokens: [prompt, answer].concat() }
        );
        assert!(super::tokenizer(file.path()).is_err());
    }

    #[test]
    fn long_rows_are_cut_or_refused() {
        let text = "{\"input_ids\": [1,2,3,4], \"prompt_len\": 1}";
        let cut = read(text, Limits { max_length: Some(3), ..LIMITS }).unwrap();
        assert_eq!((cut.samples[0].total, cut.samples[0].tokens.len(), cut.cut), (3, 3, 1));
        let refused = read(text, Limits { fixed_length: Some(3), ..LIMITS }).unwrap_err().to_string();
        assert!(refused.contains("--max-length 3"), "{refused}");
        let refused = read(text, Limits { longest: Some(3), ..LIMITS }).unwrap_err().to_string();
        assert!(refused.contains("4 tokens do not fit a model that has positions for 3"), "{refused}");
        let nothing_left = read(text, Limits { max_length: Some(1), ..LIMITS }).unwrap_err().to_string();
        assert!(nothing_left.contains("there is no answer"), "{nothing_left}");
    }
}
