//! `weftc eval`: how good a model is, with confidence intervals.

use super::interval::Estimate;
use super::likelihood::{Choices, Draws, Judge};
use super::task::{Item, Task};
use crate::atomic;
use crate::error::{Error, Problem, Result};
use crate::generate::answers::{Request, answers};
use crate::generate::language::{Language, LanguageArgs};
use crate::generate::{DecodingArgs, DeviceArgs, Model};
use crate::stdout::print;
use crate::train::data;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tempfile::NamedTempFile;

/// Evaluate a model, by d1's protocol: zero-shot, blocks of 32 tokens, half as many steps as tokens, temperature 0.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// The model: an ONNX file with tokens [batch, length] in and logits [batch, length, vocabulary] out
    pub model: PathBuf,
    #[arg(short, long, value_enum)]
    pub task: Task,
    /// Questions: a file of JSON lines, a JSON array, .csv or parquet, or OWNER/NAME in the cache of Hugging Face, with
    /// slices such as `[100]` [default: sudoku and countdown are generated]
    #[arg(long, value_name = "DATA")]
    pub data: Option<String>,
    /// At most so many questions [default: all; 256 where they are generated]
    #[arg(long, value_name = "N")]
    pub count: Option<usize>,
    /// A template in the language of Jinja for the question, in place of the built-in one; it may name question, or
    /// puzzle (sudoku), or numbers and target (countdown)
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
    /// Draws for each answer of nll (8 by default) and mc (32)
    #[arg(long, value_name = "N")]
    pub draws: Option<usize>,
    #[command(flatten)]
    pub language: LanguageArgs,
    #[command(flatten)]
    pub decoding: DecodingArgs,
    /// Rows a model call
    #[arg(long, value_name = "B", default_value_t = 8)]
    pub batch_size: usize,
    /// Write every question with its answer and scores, an object a line
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Print the result only
    #[arg(short, long)]
    pub quiet: bool,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    pub score: &'static str,
    #[serde(flatten)]
    pub estimate: Estimate,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub task: Task,
    pub model: String,
    /// Questions, or samples.
    pub items: usize,
    /// How it was measured.
    pub protocol: serde_json::Value,
    pub scores: Vec<Line>,
    pub seconds: f64,
}

/// Evaluates as `args` say, and prints.
///
/// # Errors
/// The command line, the model, the data; failures of the runtime.
pub fn eval(args: &EvalArgs) -> Result<()> {
    let report = report(args)?;
    let text = if args.json {
        let json = serde_json::to_string(&report).map_err(|e| Error::internal("eval", e.to_string()))?;
        format!("{json}\n")
    } else {
        report.to_string()
    };
    print(&text)
}

/// Evaluates as `args` say.
///
/// # Errors
/// As `eval`.
pub fn report(args: &EvalArgs) -> Result<Report> {
    let language = Language::find(&args.language, &args.model)?;
    let mut say = |line: &str| {
        if !args.quiet {
            eprintln!("{line}");
        }
    };
    language.notes.iter().for_each(|note| say(note));
    let mut model = args.device.open(&args.model, &mut say)?;
    model.pad_id = language.pad_id;
    let started = Instant::now();
    let mut out = Lines::new(args.out.as_deref())?;
    let (items, protocol, scores) = match args.task {
        Task::Nll => nll(args, &mut model, &language, &mut out)?,
        Task::Mc => choices(args, &mut model, &language, &mut out)?,
        _ => generated(args, &mut model, &language, &mut out)?,
    };
    out.finish()?;
    let (seconds, model) = (started.elapsed().as_secs_f64(), args.model.display().to_string());
    Ok(Report { task: args.task, model, items, protocol, scores, seconds })
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let task = json!(self.task);
        writeln!(
            f,
            "{} on {} items of {}, {:.1} s",
            self.model,
            self.items,
            task.as_str().unwrap_or_default(),
            self.seconds
        )?;
        writeln!(f, "{}", self.protocol)?;
        writeln!(f, "{:<28} {:>8}   95 % interval", "score", "value")?;
        self.scores.iter().try_for_each(|line| {
            let Estimate { value, low, high } = line.estimate;
            writeln!(f, "{:<28} {value:>8.4}   {low:.4} to {high:.4}", line.score)
        })
    }
}

type Measured = (usize, serde_json::Value, Vec<Line>);

/// A task whose answers are generated.
fn generated(args: &EvalArgs, model: &mut Model, language: &Language, out: &mut Lines) -> Result<Measured> {
    let items = args.task.items(args.data.as_deref(), args.count, args.decoding.seed)?;
    let prompts = prompts(args, language, &items)?;
    // By length, so that batches are full; results come back by number.
    let mut order: Vec<(usize, &[i64])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
    order.sort_by_key(|(_, prompt)| prompt.len());
    let length = args.decoding.length;
    let decoding = args.decoding.decoding(language, length.div_ceil(2))?;
    let request = Request { decoding, length, batch: args.batch_size, watch: false };
    let mut texts: Vec<(String, usize)> = vec![Default::default(); items.len()];
    let mut logits = |tokens: &[i64], batch, len| model.logits(tokens, batch, len);
    answers(&mut logits, language, &request, &order, &mut |number, answer| {
        let tokens = language.before_end(&answer.tokens);
        texts[number] = (language.decode(tokens, false)?, tokens.len());
        Ok(())
    })?;
    let (mut d1, mut corrected, mut tokens, mut solved) = (0.0, 0.0, Vec::new(), 0.0);
    for (item, (text, count)) in items.iter().zip(&texts) {
        let score = item.score(text);
        d1 += score.d1;
        corrected += score.corrected;
        solved += f64::from(u8::from(score.corrected == 1.0));
        tokens.push(*count as f64);
        out.put(json!({ "question": item.values, "answer": text, "d1": score.d1, "corrected": score.corrected }))?;
    }
    let n = items.len();
    let share = |score, sum: f64| Line { score, estimate: Estimate::share(sum / n as f64, n) };
    let mut lines = match args.task {
        Task::Sudoku => vec![
            share("empty cells right (d1)", d1),
            share("empty cells right", corrected),
            share("puzzles solved", solved),
        ],
        _ => vec![share("right (d1)", d1), share("right (corrected)", corrected)],
    };
    lines.push(Line { score: "tokens an answer", estimate: Estimate::mean(&tokens) });
    let protocol = json!({
        "prompt": args.prompt_file.as_ref().map_or("built in".into(), |p| p.display().to_string()),
        "length": length,
        "decoding": request.decoding,
    });
    Ok((n, protocol, lines))
}

fn prompts(args: &EvalArgs, language: &Language, items: &[Item]) -> Result<Vec<Vec<i64>>> {
    let text = match &args.prompt_file {
        Some(path) => std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?,
        None => args.task.template().to_string(),
    };
    questions(&text, items)?.iter().map(|question| language.prompt(question)).collect()
}

/// The questions of `items` in the words of a template.
///
/// # Errors
/// A template that is wrong, or names what an item does not have.
fn questions(text: &str, items: &[Item]) -> Result<Vec<String>> {
    let wrong = |e: minijinja::Error| Error::usage(Problem::new("--prompt-file", format!("{e:#}")));
    let mut environment = minijinja::Environment::new();
    // A name that does not exist would leave the question out without a word.
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    let template = environment.template_from_str(text.trim_end()).map_err(wrong)?;
    items.iter().map(|item| template.render(for_template(&item.values)).map_err(wrong)).collect()
}

/// The values of an item for its template: texts, whole numbers, lists and objects of them.
fn for_template(value: &serde_json::Value) -> minijinja::Value {
    match value {
        serde_json::Value::Object(map) => {
            minijinja::Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), for_template(v))))
        }
        serde_json::Value::Array(list) => list.iter().map(for_template).collect(),
        serde_json::Value::Number(n) => n.as_i64().map_or_else(|| n.as_f64().into(), minijinja::Value::from),
        serde_json::Value::String(text) => text.as_str().into(),
        serde_json::Value::Bool(b) => (*b).into(),
        serde_json::Value::Null => ().into(),
    }
}

fn nll(args: &EvalArgs, model: &mut Model, language: &Language, out: &mut Lines) -> Result<Measured> {
    let spec = needed(args)?;
    let dataset = data::load(spec, &language.encoder(i64::MAX, None))?;
    let draws = Draws { count: args.draws.unwrap_or(8).max(1), seed: args.decoding.seed, batch: args.batch_size };
    let mut judge = Judge { model, language, draws };
    let mut values = Vec::new();
    for (number, sample) in dataset.samples.iter().take(args.count.unwrap_or(usize::MAX)).enumerate() {
        let nll = judge.nll(number, sample)?;
        out.put(json!({ "sample": number, "answer_tokens": sample.total - sample.prompt, "nll": nll }))?;
        values.push(nll);
    }
    let estimate = Estimate::mean(&values);
    let perplexity = Estimate { value: estimate.value.exp(), low: estimate.low.exp(), high: estimate.high.exp() };
    let lines = vec![Line { score: "nats a token", estimate }, Line { score: "perplexity", estimate: perplexity }];
    Ok((values.len(), json!({ "draws": draws.count, "seed": draws.seed }), lines))
}

fn choices(args: &EvalArgs, model: &mut Model, language: &Language, out: &mut Lines) -> Result<Measured> {
    let rows = data::rows_of(needed(args)?, args.count, &mut Choices::of)?;
    let draws = Draws { count: args.draws.unwrap_or(32).max(1), seed: args.decoding.seed, batch: args.batch_size };
    let mut judge = Judge { model, language, draws };
    let (mut right, mut normed, n) = (0, 0, rows.len());
    for (number, row) in rows.iter().enumerate() {
        let prefix = language.prompt(&row.question)?;
        let mut scores = Vec::new();
        for choice in &row.choices {
            // A choice goes on with the question's text, as in lm-evaluation-harness.
            let target = language.encode(&format!(" {choice}"))?;
            if target.is_empty() {
                return Err(Error::usage(Problem::new("--data", format!("choice `{choice}` has no token"))));
            }
            scores.push((judge.log_likelihood(number, &prefix, &target)?, choice.len().max(1) as f64));
        }
        let best = |value: &dyn Fn(&(f64, f64)) -> f64| {
            let better = |a: usize, b: usize| if value(&scores[b]) > value(&scores[a]) { b } else { a };
            (0..scores.len()).reduce(better) == Some(row.right)
        };
        let (plain, by_length) = (best(&|s| s.0), best(&|s| s.0 / s.1));
        right += usize::from(plain);
        normed += usize::from(by_length);
        let likelihoods: Vec<f64> = scores.iter().map(|s| s.0).collect();
        out.put(json!({ "question": row.question, "log_likelihoods": likelihoods, "right": plain, "right_by_length": by_length }))?;
    }
    let line = |score, k: usize| Line { score, estimate: Estimate::share(k as f64 / n.max(1) as f64, n) };
    let lines = vec![line("right", right), line("right, likelihood by byte", normed)];
    Ok((n, json!({ "draws": draws.count, "seed": draws.seed }), lines))
}

fn needed(args: &EvalArgs) -> Result<&str> {
    args.data.as_deref().ok_or_else(|| {
        Error::usage(
            Problem::new("--data", "this task needs data").help("--data FILE.jsonl, or OWNER/NAME of Hugging Face"),
        )
    })
}

/// The file of `--out`; what stood there before stays until all is written.
struct Lines<'a>(Option<(&'a Path, BufWriter<NamedTempFile>)>);

impl<'a> Lines<'a> {
    fn new(path: Option<&'a Path>) -> Result<Self> {
        let open = |p: &'a Path| atomic::scratch(p).map(|file| (p, BufWriter::new(file)));
        path.map(open).transpose().map(Lines)
    }

    fn put(&mut self, value: serde_json::Value) -> Result<()> {
        match &mut self.0 {
            Some((path, file)) => writeln!(file, "{value}").map_err(|e| Error::io("write", path, e)),
            None => Ok(()),
        }
    }

    fn finish(self) -> Result<()> {
        let Some((path, file)) = self.0 else { return Ok(()) };
        atomic::persist(file.into_inner().map_err(|e| Error::io("write", path, e.into_error()))?, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_prompts_hold_their_questions() {
        let first = |task: Task| {
            let items = task.items(None, Some(1), 3).unwrap();
            (questions(task.template(), &items).unwrap().remove(0), items[0].values.clone())
        };
        let (text, values) = first(Task::Sudoku);
        assert!(text.contains(&format!("\nPuzzle: {}\n", values["puzzle"].as_str().unwrap())), "{text}");
        let (text, values) = first(Task::Countdown);
        let numbers: Vec<String> = values["numbers"].as_array().unwrap().iter().map(ToString::to_string).collect();
        assert!(text.contains(&format!("Numbers: [{}]\nTarget: {}\n", numbers.join(", "), values["target"])), "{text}");
        let asked =
            Item { values: json!({ "question": "Why {{ not }}?" }), truth: super::super::task::Truth::Number(1.0) };
        for task in [Task::Gsm8k, Task::Math500] {
            let text = questions(task.template(), std::slice::from_ref(&asked)).unwrap().remove(0);
            assert!(text.ends_with("Why {{ not }}?") && text.contains("\\boxed{"), "{text}");
        }
        assert!(questions("{{ puzzle }}", std::slice::from_ref(&asked)).is_err());
        assert!(questions("{% for %}", &[asked]).unwrap_err().to_string().contains("--prompt-file"));
    }
}
