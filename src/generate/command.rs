//! `weftc generate`: text from a model.

use super::answers::{Request, answers};
use super::language::{Language, LanguageArgs};
use super::{DecodingArgs, DeviceArgs};
use crate::error::{Error, Problem, Result};
use crate::peft::merge::{MergeArgs, merge};
use crate::stdout::print;
use crate::train::data::{self, Columns, Example};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Generate text with a model.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// The model: an ONNX file with tokens [batch, length] in and logits [batch, length, vocabulary] out
    pub model: PathBuf,
    /// An adapter of PEFT or weftc, merged into the model in a temporary file before it answers
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// A question, or with --plain a text to go on with; several are answered in batches
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// Prompts from a file: of .jsonl each row's `prompt`, `question`, `messages` or `input_ids`, else the whole text
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Vec<PathBuf>,
    /// A prompt as token ids: 1,2,3
    #[arg(long, value_name = "IDS")]
    pub prompt_ids: Vec<String>,
    #[command(flatten)]
    pub language: LanguageArgs,
    #[command(flatten)]
    pub decoding: DecodingArgs,
    /// Answers to each prompt
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1)]
    pub samples: usize,
    /// Answers that are generated at once
    #[arg(long, value_name = "B", default_value_t = 8)]
    pub batch_size: usize,
    /// Show the denoising, one answer after the other
    #[arg(long)]
    pub watch: bool,
    /// Print an object a line: prompt, text, tokens, calls, seconds
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print the answers only, not what was chosen for you
    #[arg(short, long)]
    pub quiet: bool,
}

/// A prompt: as it was given, and its tokens.
struct Prompt {
    shown: String,
    tokens: Vec<i64>,
}

/// The merged model in its temporary folder.
const MERGED: &str = "merged.onnx";

/// A temporary folder with the model that an adapter was merged into.
fn merged(model: &Path, adapter: &Path) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("create", &std::env::temp_dir(), e))?;
    let (model, adapter, output) = (model.to_path_buf(), adapter.to_path_buf(), folder.path().join(MERGED));
    merge(&MergeArgs { model, adapter, output, quiet: true })?;
    Ok(folder)
}

/// Generates as `args` say, and prints.
///
/// # Errors
/// The command line, the model, the prompts; failures of the runtime.
pub fn generate(args: &GenerateArgs) -> Result<()> {
    let language = Language::find(&args.language, &args.model)?;
    let prompts = prompts(args, &language)?;
    let merged = args.adapter.as_deref().map(|adapter| merged(&args.model, adapter)).transpose()?;
    let path = merged.as_ref().map_or(args.model.clone(), |folder| folder.path().join(MERGED));
    let mut say = |line: &str| {
        if !args.quiet {
            eprintln!("{line}");
        }
    };
    let mut model = args.device.open(&path, &mut say)?;
    model.pad_id = language.pad_id;
    language.notes.iter().for_each(|note| say(note));
    let wanted: Vec<&Prompt> = prompts.iter().flat_map(|p| std::iter::repeat_n(p, args.samples)).collect();
    let rows: Vec<(usize, &[i64])> = wanted.iter().map(|p| p.tokens.as_slice()).enumerate().collect();
    let several = wanted.len() > 1;
    let request = Request {
        decoding: args.decoding.decoding(&language, args.decoding.length)?,
        length: args.decoding.length,
        batch: args.batch_size,
        watch: args.watch,
    };
    let mut logits = |tokens: &[i64], batch, len| model.logits(tokens, batch, len);
    answers(&mut logits, &language, &request, &rows, &mut |row, answer| {
        let text = language.decode(language.before_end(&answer.tokens), true)?;
        let out = if args.json {
            let object = json!({
                "prompt": wanted[row].shown, "text": text, "tokens": answer.tokens, "calls": answer.calls,
                "seconds": answer.seconds,
            });
            format!("{object}\n")
        } else if several {
            format!("--- {}\n{text}\n", wanted[row].shown.lines().next().unwrap_or_default())
        } else {
            format!("{text}\n")
        };
        print(&out)
    })
}

fn prompts(args: &GenerateArgs, language: &Language) -> Result<Vec<Prompt>> {
    let mut prompts = Vec::new();
    for text in &args.prompt {
        prompts.push(Prompt { shown: text.clone(), tokens: language.prompt(text)? });
    }
    for ids in &args.prompt_ids {
        let tokens: std::result::Result<Vec<i64>, _> =
            ids.split([',', ' ']).filter(|t| !t.is_empty()).map(str::parse).collect();
        let bad = || Error::usage(Problem::new("--prompt-ids", format!("`{ids}` are not numbers joined by commas")));
        prompts.push(Prompt { shown: ids.clone(), tokens: tokens.map_err(|_| bad())? });
    }
    for path in &args.prompt_file {
        if path.extension().is_some_and(|e| e == "jsonl") {
            read_rows(path, language, &mut prompts)?;
        } else {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
            prompts.push(Prompt { tokens: language.prompt(text.trim_end())?, shown: text });
        }
    }
    let mask = prompts.iter().find(|p| p.tokens.contains(&language.mask_id));
    if let Some(prompt) = mask {
        let message = format!("`{}` holds the mask token {}", prompt.shown, language.mask_id);
        return Err(Error::usage(Problem::new("--prompt", message)));
    }
    if prompts.is_empty() {
        let help = "--prompt TEXT, --prompt-file FILE or --prompt-ids 1,2,3";
        return Err(Error::usage(Problem::new("--prompt", "there is no prompt").help(help)));
    }
    Ok(prompts)
}

/// The prompts of a file of JSON lines.
fn read_rows(path: &Path, language: &Language, prompts: &mut Vec<Prompt>) -> Result<()> {
    let mut problems = Vec::new();
    data::read_rows(path, &mut |place, row| {
        let prompt = row.and_then(|row| match data::question(&row, &Columns::default())? {
            Example::Ids { ids, prompt, .. } => {
                let tokens = ids[..prompt.min(ids.len())].to_vec();
                Ok(Prompt { shown: tokens.iter().map(i64::to_string).collect::<Vec<_>>().join(","), tokens })
            }
            Example::Plain { prompt, .. } => {
                let tokens = language.prompt(&prompt).map_err(|e| Problem::new("", e.to_string()))?;
                Ok(Prompt { shown: prompt, tokens })
            }
            Example::Chat(messages) => {
                let shown = messages.last().map(|m| m.content.clone()).unwrap_or_default();
                let tokens = language.messages(messages).map_err(|e| Problem::new("", e.to_string()))?;
                Ok(Prompt { shown, tokens })
            }
        });
        match prompt {
            Ok(prompt) => prompts.push(prompt),
            Err(problem) => problems.push(Problem { place, ..problem }),
        }
    })?;
    if problems.is_empty() { Ok(()) } else { Err(Error::Data { data: path.into(), problems }) }
}
