//! `weftc run`: train on a data file.

use super::adapter;
use super::args::{RunArgs, RuntimeKind};
use super::batch::Batch;
use super::checkpoint::{self, Position};
use super::data::{self, Chat, Columns, Dataset, Encoder, Limits, Padding};
use super::log::{Log, Metrics};
use super::sampler::Sampler;
use super::trainer::{Outcome, Setup, Trainer};
use crate::atomic;
use crate::error::{Error, Problem, Result};
use crate::profile::Profile;
use crate::runtime::{Options, environment, locate};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokenizers::Tokenizer;

/// What a run did.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub steps: u64,
    /// Steps whose loss or gradient was not finite.
    pub skipped: u64,
    /// Steps in which no token was masked.
    pub empty: u64,
    pub tokens: usize,
    pub seconds: f64,
    /// The mean loss of the first and of the last tenth of the steps.
    pub first_loss: f64,
    pub last_loss: f64,
    /// The files written, in order.
    pub written: Vec<PathBuf>,
    /// What the user should know, one line each.
    pub notes: Vec<String>,
}

impl Summary {
    /// The end of the run, for people.
    fn lines(&self) -> Vec<String> {
        let rate = self.tokens as f64 / self.seconds.max(1e-9);
        let mut lines = vec![format!(
            "{} steps in {:.1} s, {rate:.0} tokens/s; loss {:.4} -> {:.4} (means of the first and last tenth)",
            self.steps, self.seconds, self.first_loss, self.last_loss
        )];
        let count = |n: u64, what: &str| (n > 0).then(|| format!("{n} steps {what}"));
        lines.extend(count(self.skipped, "were skipped: the loss or the gradient was not finite"));
        lines.extend(count(self.empty, "were empty: no token was masked"));
        lines.extend(self.written.iter().map(|p| format!("wrote {}", p.display())));
        lines
    }
}

/// Trains as `args` say.
///
/// # Errors
/// Everything that is wrong with the command line, the graph or the data; failures of the runtime; ten
/// steps in a row that are not finite.
pub fn run(args: &RunArgs) -> Result<Summary> {
    let mut notes = Vec::new();
    let mut trainer = open(args, &mut notes)?;
    let shape = trainer.shape();
    let batch_size = args.batch_size(shape.rows)?;
    let tokenizer = args.tokenizer.as_deref().map(|p| Ok((p.to_path_buf(), data::tokenizer(p)?))).transpose()?;
    let profile = data::profile(args.profile.as_deref(), tokenizer.as_ref())?;
    notes.extend(profile.as_ref().map(|(_, note)| note.clone()));
    let profile = profile.map(|(profile, _)| profile);
    let tokenizer = tokenizer.map(|(_, tokenizer)| tokenizer);
    let method = &trainer.manifest().method;
    let limits = Limits {
        vocab_size: trainer.manifest().vocab_size,
        mask_id: method.mask_id,
        max_length: args.max_length,
        fixed_length: shape.length,
    };
    let dataset = dataset(args, tokenizer.as_ref(), profile, limits, &mut notes)?;
    let pad_id = args.pad_id.or(profile.map(|p| p.pad_id)).unwrap_or_else(|| data::pad_id(tokenizer.as_ref()));
    if !(0..limits.vocab_size).contains(&pad_id) {
        let problem =
            Problem::new("--pad-id", format!("{pad_id} is not in the vocabulary of {} tokens", limits.vocab_size));
        return Err(Error::usage(problem));
    }
    if dataset.cut > 0 {
        notes.push(format!("--max-length cut {} of {} rows", dataset.cut, dataset.samples.len()));
    }
    let source = source(args, &trainer, &mut notes)?;
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
    }

    let plan = Plan {
        dataset: &dataset,
        batch: batch_size,
        accumulate: args.accumulate.max(1),
        sampler: Sampler::new(args.seed),
        by_length: !args.no_length_groups && shape.length.is_none(),
    };
    let per_epoch = plan.steps_per_epoch();
    let steps = args.steps.unwrap_or_else(|| per_epoch * u64::from(args.epochs.unwrap_or(1)));
    let mut position = Position {
        step: 0,
        updates: 0,
        loss_scale: trainer.loss_scale(),
        seed: args.seed,
        batch: batch_size * plan.accumulate,
        samples: dataset.samples.len(),
        by_length: plan.by_length,
    };
    if let Some(folder) = &args.resume {
        position = resume(&mut trainer, folder, &position)?;
    }
    let mut log = Log::new(position.step, steps, args.quiet, args.out.as_deref())?;
    notes.iter().chain(&plan.padding()).for_each(|n| log.say(n));
    let mut summary = Summary {
        steps: 0,
        skipped: 0,
        empty: 0,
        tokens: 0,
        seconds: 0.0,
        first_loss: 0.0,
        last_loss: 0.0,
        written: Vec::new(),
        notes,
    };
    let mut losses = Vec::new();
    let mut order = (u32::MAX, Vec::new());
    for step in position.step..steps {
        let started = Instant::now();
        let epoch = u32::try_from(step / per_epoch).unwrap_or(u32::MAX - 1);
        if order.0 != epoch {
            order = (epoch, plan.order(epoch));
        }
        let batches = plan.batches(&order.1, epoch, step % per_epoch, super::batch::Shape { pad_id, ..shape })?;
        trainer.adamw.lr = args.lr * args.schedule.factor(step, steps, args.warmup);
        let result = trainer.step_on(&batches, false)?;
        let outcome = match result.outcome {
            Outcome::Updated => "updated",
            Outcome::Empty => "empty",
            Outcome::Skipped => "skipped",
        };
        summary.skipped += u64::from(result.outcome == Outcome::Skipped);
        summary.empty += u64::from(result.outcome == Outcome::Empty);
        if result.outcome == Outcome::Updated {
            losses.push(result.loss);
        }
        let tokens = batches.iter().map(Batch::real_tokens).sum();
        summary.tokens += tokens;
        log.step(&Metrics {
            step: step + 1,
            epoch,
            loss: result.loss,
            loss_sum: result.loss_sum,
            loss_count: result.loss_count,
            grad_norm: result.grad_norm,
            lr: trainer.adamw.lr,
            tokens,
            masked: result.masked,
            seconds: started.elapsed().as_secs_f64(),
            outcome,
        })?;
        position.step = step + 1;
        position.updates = trainer.updates();
        position.loss_scale = trainer.loss_scale();
        let due = args.save_every.is_some_and(|n| n > 0 && position.step.is_multiple_of(n)) && position.step < steps;
        if let Some(out) = args.out.as_ref().filter(|_| due) {
            checkpoint::save_state(&trainer, &position, &out.join(checkpoint::STATE))?;
        }
    }
    summary.steps = position.step;
    summary.seconds = log.finish();
    let tenth = losses.len().div_ceil(10);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    summary.first_loss = mean(&losses[..tenth]);
    summary.last_loss = mean(&losses[losses.len() - tenth..]);
    if let Some(out) = &args.out {
        let known = summary.notes.len();
        save(args, &trainer, &position, source.as_deref(), out, &mut summary)?;
        summary.notes[known..].iter().for_each(|n| log.say(n));
    }
    summary.lines().iter().for_each(|line| log.say(line));
    Ok(summary)
}

/// The samples; what the user did not say and was chosen for him goes into the notes.
fn dataset(
    args: &RunArgs,
    tokenizer: Option<&Tokenizer>,
    profile: Option<&Profile>,
    limits: Limits,
    notes: &mut Vec<String>,
) -> Result<Dataset> {
    let mut chat = args.chat_template.as_deref().map(Chat::find).transpose()?;
    let found = match (&args.tokenizer, tokenizer) {
        (Some(path), Some(tokenizer)) if chat.is_none() => data::chat_of(path, tokenizer)?,
        _ => None,
    };
    let found = match (found, profile.and_then(|p| p.template)) {
        (None, Some(name)) if chat.is_none() => Some((format!("{name} (the profile's)"), Chat::find(name)?)),
        (found, _) => found,
    };
    let eos = args.eos_id.or(profile.map(|p| p.eos.1)).or_else(|| tokenizer.and_then(data::eos_id));
    // A template that was only found is for conversations; one that was asked for is for every text.
    let plain = chat.is_none();
    if let Some((name, template)) = found {
        notes.push(format!("conversations are rendered by the chat template {name}"));
        chat = Some(template);
    }
    let encoder = Encoder {
        tokenizer,
        chat: chat.as_ref(),
        plain,
        columns: args.columns.as_deref().map(Columns::parse).transpose()?.unwrap_or_default(),
        system: args.system.clone(),
        padding: args.supervise_padding,
        eos,
        turns: args.turns,
        seed: args.seed,
        limits,
    };
    let dataset = data::load(&args.data, &encoder)?;
    if let (Some(eos), true) = (eos, dataset.text) {
        notes.push(match args.supervise_padding {
            Padding::None => "nothing is supervised behind the answers (--supervise-padding none)".into(),
            Padding::FirstEos => format!("one end-of-text token, {eos}, is supervised behind each answer"),
            Padding::All => format!("all padding, of token {eos}, is supervised (--supervise-padding all)"),
        });
    }
    Ok(dataset)
}

fn open(args: &RunArgs, notes: &mut Vec<String>) -> Result<Trainer> {
    let folder =
        args.model.as_ref().and_then(|m| m.parent()).map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    let session = Options { threads: args.threads, ..Options::default() };
    let folder = folder.map(Path::to_path_buf);
    let setup = Setup {
        folder,
        adamw: args.adamw(),
        decay: args.decay,
        accumulate: args.accumulate,
        session,
        ..Setup::default()
    };
    const SLOW: &str = "the reference interpreter runs the graph: in f64, and several times slower";
    let mut say = |line: &str| {
        if !args.quiet {
            eprintln!("{line}");
        }
    };
    let missing = match args.runtime {
        RuntimeKind::Interpreter => Some(String::new()),
        RuntimeKind::Onnxruntime => None,
        RuntimeKind::Auto => match environment(&mut say) {
            // A library that the user names must work; any other may be missing.
            Err(why) if locate::explicit().is_none() => Some(format!("{why}\nwithout it ")),
            _ => None,
        },
    };
    match missing {
        Some(why) => {
            notes.push(why + SLOW);
            Trainer::load_interpreted(&args.train_onnx, setup)
        }
        None => Trainer::load(&args.train_onnx, setup),
    }
}

/// The source model, which `--out` needs for model.onnx; a note where it is not there.
fn source(args: &RunArgs, trainer: &Trainer, notes: &mut Vec<String>) -> Result<Option<PathBuf>> {
    if args.out.is_none() {
        return Ok(None);
    }
    let path = args.model.clone().unwrap_or_else(|| trainer.file.source());
    if args.model.is_none() && !path.is_file() {
        notes.push(format!("no model.onnx will be written: {} is not there (see --model)", path.display()));
        return Ok(None);
    }
    checkpoint::check_source(trainer, &path)?;
    if let Some(out) = &args.out
        && let (Ok(a), Ok(b)) = (path.canonicalize(), out.join(checkpoint::MODEL).canonicalize())
        && a == b
    {
        let problem = Problem::new("--out", "its model.onnx is the source model and would be overwritten");
        return Err(Error::usage(problem.help("choose another folder")));
    }
    Ok(Some(path))
}

fn resume(trainer: &mut Trainer, folder: &Path, now: &Position) -> Result<Position> {
    let path = folder.join(checkpoint::STATE);
    let then = checkpoint::load_state(trainer, &path)?;
    let differ = |flag: &str, a: String, b: String| {
        (a != b).then(|| {
            Problem::new(flag, format!("the interrupted run had {a}, this one {b}")).help("resume with the same")
        })
    };
    let order = |by_length: bool| if by_length { "steps of like length" } else { "the drawn order" };
    let problems: Vec<Problem> = [
        differ("--seed", then.seed.to_string(), now.seed.to_string()),
        differ("--batch-size times --accumulate", then.batch.to_string(), now.batch.to_string()),
        differ("--no-length-groups", order(then.by_length).into(), order(now.by_length).into()),
        differ("--data", format!("{} samples", then.samples), format!("{} samples", now.samples)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if problems.is_empty() { Ok(then) } else { Err(Error::Usage { problems }) }
}

/// Which samples a step sees.
struct Plan<'a> {
    dataset: &'a Dataset,
    batch: usize,
    accumulate: usize,
    sampler: Sampler,
    /// Whether steps are made of samples of like length.
    by_length: bool,
}

impl Plan<'_> {
    fn steps_per_epoch(&self) -> u64 {
        self.dataset.samples.len().div_ceil(self.batch * self.accumulate).max(1) as u64
    }

    /// The samples of an epoch in the order in which steps take them.
    fn order(&self, epoch: u32) -> Vec<usize> {
        let drawn = self.sampler.order(epoch, self.dataset.samples.len());
        if !self.by_length {
            return drawn;
        }
        let length = |k: usize| self.dataset.samples[k].tokens.len();
        let grouped = data::grouped(&drawn, self.batch * self.accumulate, length);
        // Of a few samples the short last step may pad more than is saved.
        let saves = data::padding(&grouped, self.batch, length) < data::padding(&drawn, self.batch, length);
        if saves { grouped } else { drawn }
    }

    /// What the log says of padding; nothing where there is none.
    fn padding(&self) -> Option<String> {
        let length = |k: usize| self.dataset.samples[k].tokens.len();
        let drawn = data::padding(&self.sampler.order(0, self.dataset.samples.len()), self.batch, length);
        let share = data::padding(&self.order(0), self.batch, length);
        let percent = |x: f64| format!("{:.1} %", 100.0 * x);
        let instead =
            if self.by_length { format!(" ({} without length groups)", percent(drawn)) } else { String::new() };
        (drawn > 0.0).then(|| format!("{} of the tokens fed are padding{instead}", percent(share)))
    }

    fn batches(&self, order: &[usize], epoch: u32, step: u64, shape: super::batch::Shape) -> Result<Vec<Batch>> {
        let group = self.batch * self.accumulate;
        let start = usize::try_from(step).unwrap_or(0) * group;
        let indices = &order[start.min(order.len())..(start + group).min(order.len())];
        let batch = |part: &[usize]| {
            let samples: Vec<_> = part.iter().map(|&i| (i, &self.dataset.samples[i])).collect();
            Batch::new(&samples, shape, self.sampler, epoch)
        };
        indices.chunks(self.batch).map(batch).collect()
    }
}

fn save(
    args: &RunArgs,
    trainer: &Trainer,
    position: &Position,
    source: Option<&Path>,
    out: &Path,
    summary: &mut Summary,
) -> Result<()> {
    #[derive(Serialize)]
    struct Record<'a> {
        weftc: &'a str,
        arguments: &'a RunArgs,
        manifest: &'a crate::manifest::Manifest,
        summary: &'a Summary,
    }
    let path = out.join(checkpoint::WEIGHTS);
    checkpoint::save_weights(trainer, &path)?;
    summary.written.push(path);
    if let Some(source) = source {
        let path = out.join(checkpoint::MODEL);
        let replaced = checkpoint::save_model(trainer, source, &path)?;
        let bases = trainer.manifest().parameters.iter().filter(|p| adapter::is_merged(trainer, p)).count();
        let n = if trainer.manifest().adapter.is_some() { bases } else { trainer.parameters().count() };
        if replaced < n {
            summary.notes.push(format!("only {replaced} of {n} trained weights were found in {}", source.display()));
        }
        summary.written.push(path);
    }
    if let Some(adapter) = &trainer.manifest().adapter {
        summary.written.extend(adapter::save(trainer, adapter, out)?);
        summary.notes.extend(
            adapter::shared(trainer)
                .iter()
                .map(|name| format!("the adapter of {name} is not merged: the model uses this weight elsewhere too")),
        );
    }
    if args.save_every.is_some() {
        let path = out.join(checkpoint::STATE);
        checkpoint::save_state(trainer, position, &path)?;
        summary.written.push(path);
    }
    let path = out.join("run.json");
    summary.written.push(path.clone());
    let record = Record { weftc: env!("CARGO_PKG_VERSION"), arguments: args, manifest: trainer.manifest(), summary };
    let json = serde_json::to_string_pretty(&record).map_err(|e| Error::internal("run", e.to_string()))?;
    atomic::write(&path, |file| writeln!(file, "{json}"))
}
