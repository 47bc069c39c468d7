//! Training data: JSON lines of token ids, or of text with a tokenizer.

use crate::error::{Error, Problem, Result};
use serde::Deserialize;
use std::io::BufRead;
use std::path::Path;
use tokenizers::Tokenizer;

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
}

/// The samples of a file, in its order.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    pub samples: Vec<Sample>,
    /// How many rows `max_length` has cut.
    pub cut: usize,
}

/// A line: ids, or text.  Further fields are ignored.
#[derive(Deserialize)]
struct Line {
    input_ids: Option<Vec<i64>>,
    prompt_len: Option<usize>,
    total_len: Option<usize>,
    prompt: Option<String>,
    answer: Option<String>,
}

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

/// Reads every line of `path`.
///
/// # Errors
/// `Io`, or `Data` with every bad line (`file:line`), up to a hundred.
pub fn load(path: &Path, tokenizer: Option<&Tokenizer>, limits: Limits) -> Result<Dataset> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut data = Dataset::default();
    let mut problems = Vec::new();
    for (number, line) in std::io::BufReader::new(file).split(b'\n').enumerate() {
        let line = line.map_err(|e| Error::io("read", path, e))?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        match sample(&line, tokenizer, limits) {
            Ok((sample, cut)) => {
                data.samples.push(sample);
                data.cut += usize::from(cut);
            }
            Err(found) => problems.extend(found.into_iter().map(|mut p| {
                p.place = format!("{name}:{}", number + 1);
                p
            })),
        }
    }
    if problems.is_empty() && data.samples.is_empty() {
        problems.push(
            Problem::new(name, "there is no sample").help("one JSON object a line, with input_ids and prompt_len"),
        );
    }
    if problems.is_empty() {
        return Ok(data);
    }
    let more = problems.len().saturating_sub(MOST_PROBLEMS);
    problems.truncate(MOST_PROBLEMS);
    if more > 0 {
        problems.push(Problem::new("", format!("and {more} more")));
    }
    Err(Error::Data { data: path.to_path_buf(), problems })
}

/// One line, and whether it was cut; else everything that is wrong with it.
fn sample(
    line: &[u8],
    tokenizer: Option<&Tokenizer>,
    limits: Limits,
) -> std::result::Result<(Sample, bool), Vec<Problem>> {
    let bad = |message: String| Problem::new("", message);
    let line: Line = serde_json::from_slice(line).map_err(|e| {
        // serde counts lines within the one line it was given.
        let why = e.to_string().replace(&format!(" at line {} column {}", e.line(), e.column()), "");
        vec![bad(format!("column {}: {why}", e.column()))]
    })?;
    let (mut tokens, prompt, total) = tokens(line, tokenizer).map_err(|p| vec![p])?;
    let full = tokens.len();
    tokens.truncate(limits.max_length.unwrap_or(full));
    let cut = tokens.len() < full;
    let total = if cut { total.min(tokens.len()) } else { total };

    let mut problems = Vec::new();
    let strange = |t: &i64| !(0..limits.vocab_size).contains(t);
    if let Some(at) = tokens.iter().position(strange) {
        let message = format!("token {} at {at} is not in the vocabulary of {} tokens", tokens[at], limits.vocab_size);
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
        let help = if cut { "raise --max-length, or shorten the prompt" } else { "an answer has at least one token" };
        problems.push(bad(message).help(help));
    }
    if let Some(length) = limits.fixed_length.filter(|n| tokens.len() > *n) {
        let message = format!("{} tokens do not fit a graph that was exported for {length}", tokens.len());
        problems.push(
            bad(message)
                .help(format!("--max-length {length} cuts longer rows; or export the model with a dynamic length")),
        );
    }
    if problems.is_empty() { Ok((Sample { tokens, prompt, total }, cut)) } else { Err(problems) }
}

/// Tokens, prompt length and total length.
fn tokens(line: Line, tokenizer: Option<&Tokenizer>) -> std::result::Result<(Vec<i64>, usize, usize), Problem> {
    match (line.input_ids, line.prompt, line.answer, tokenizer) {
        (Some(ids), ..) => {
            let prompt = line.prompt_len.ok_or_else(|| {
                Problem::new("", "prompt_len is missing")
                    .help("how many of input_ids are the prompt, which is never masked")
            })?;
            let total = line.total_len.unwrap_or(ids.len());
            Ok((ids, prompt, total))
        }
        (None, Some(prompt), Some(answer), Some(tokenizer)) => {
            let encode = |text: String| -> std::result::Result<Vec<i64>, Problem> {
                let encoded =
                    tokenizer.encode(text, false).map_err(|e| Problem::new("", format!("the tokenizer fails: {e}")))?;
                Ok(encoded.get_ids().iter().map(|id| i64::from(*id)).collect())
            };
            let mut ids = encode(prompt)?;
            let prompt = ids.len();
            ids.extend(encode(answer)?);
            let total = ids.len();
            Ok((ids, prompt, total))
        }
        (None, Some(_), Some(_), None) => {
            Err(Problem::new("", "text needs a tokenizer").help("--tokenizer tokenizer.json"))
        }
        _ => Err(Problem::new("", "a line needs input_ids and prompt_len, or prompt and answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LIMITS: Limits = Limits { vocab_size: 10, mask_id: 9, max_length: None, fixed_length: None };

    fn read(text: &str, limits: Limits) -> Result<Dataset> {
        let mut file = tempfile::Builder::new().prefix("data").suffix(".jsonl").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        load(file.path(), None, limits)
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
            ":6: column",
            ":7: total_len is 5",
            ":8: a line needs",
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
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"{\"prompt\": \"1 2\", \"answer\": \"3 4 1\"}").unwrap();
        let limits = Limits { vocab_size: 16, mask_id: 15, ..LIMITS };
        let sample = load(file.path(), Some(&tokenizer), limits).unwrap().samples.remove(0);
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
        let nothing_left = read(text, Limits { max_length: Some(1), ..LIMITS }).unwrap_err().to_string();
        assert!(nothing_left.contains("there is no answer"), "{nothing_left}");
    }
}
