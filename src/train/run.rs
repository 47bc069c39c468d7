//! `weftc run`: train on a data file.

use super::adapter;
use super::args::RunArgs;
use super::batch::{Batch, Shape};
use super::configuration;
use super::dry_run;
use super::held_out::HeldOut;
use super::interrupt;
use super::log::{Log, Metrics};
use super::plan::Plan;
use super::prepare::{self, Prepared, open, prepare, source};
use super::profiled::{self, Apart, Made, Watch};
use super::record::{self, Record, State};
use super::results;
use super::samples::{self, Open, Samples};
use super::settings::{Chosen, Settings};
use super::state::{self, Position};
use super::store::{self, Store};
use super::tokens::{Text, Tokens};
use super::trainer::{Outcome, Trainer, shape_of};
use crate::error::{Error, Problem, Result};
use crate::ir::DType;
use crate::manifest::{Manifest, Parameter};
use crate::onnx::train_file::TrainFile;
use crate::onnx::weights;
use crate::runtime::cuda;
use crate::runtime::device::Choice;
use crate::stdout::print;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a run did.
#[derive(Clone, Debug, Default, Serialize)]
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
    /// The run's folder.
    #[serde(skip)]
    pub folder: Option<PathBuf>,
    /// Whether it was ended before its time, by Ctrl-C.
    pub interrupted: bool,
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
    run_with(args, None)
}

/// What a run needs of the compiler, which training does not know.
#[derive(Clone, Copy)]
pub struct Compiler<'a> {
    /// Makes what answers prompts.
    pub open: Open<'a>,
    /// Bytes of the activations of a micro-batch of so many sequences and tokens of a train.onnx with this manifest and
    /// source model; for plans.
    pub activations: &'a dyn Fn(&Manifest, &Path, usize, usize) -> Result<u64>,
    /// Takes a step apart that was profiled.
    pub apart: Apart<'a>,
}

/// The same, with samples and whole plans.
///
/// # Errors
/// As [`run`]; samples that are asked for without a compiler.
pub fn run_with(args: &RunArgs, compiler: Option<Compiler>) -> Result<Summary> {
    let found = args.resume.as_deref().map(store::find).transpose()?;
    let mut args = args.clone();
    if let (None, Some((_, folder))) = (&args.out, &found) {
        args.out = Some(folder.clone());
    }
    let args = &args;
    check_folder(args, found.as_ref().map(|(_, folder)| folder.as_path()))?;
    if args.dry_run {
        return dry_run(args, compiler);
    }
    let mut notes = Vec::new();
    // Profiles are written when sessions close: their folder must be there longer.
    let mut watch = Watch::new(args, compiler.map(|c| c.apart))?;
    let mut trainer = open(args, watch.as_ref().map(Watch::folder), &mut notes)?;
    results::check(&args.results, trainer.manifest())?;
    let prepared = prepare(args, trainer.manifest(), trainer.shape(), &mut notes)?;
    let Prepared { dataset, pad_id, shape, .. } = &prepared;
    let held_out = held_out(args, &trainer, &prepared, &mut notes)?;
    let source = source(args, &trainer, &mut notes)?;
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
        if found.is_none() {
            profiled::forget(out)?;
        }
    }

    if let (Some(folder), None) = (&args.init_adapter, &found) {
        adapter::load(&mut trainer, folder)?;
    }
    let plan = prepared.plan(args);
    let (per_epoch, steps) = (plan.steps_per_epoch(), steps(args, &plan));
    let chosen = Chosen {
        batch: plan.batch,
        accumulate: plan.accumulate,
        by_length: plan.by_length,
        pad_id: *pad_id,
        steps,
        interpreted: trainer.parameter_type() == Some(DType::F64),
        device: trainer.device,
    };
    let settings = Settings::new(args, &trainer.file, dataset, chosen)?;
    let store = args.out.as_deref().map(|out| Store::open(out, args.keep as usize)).transpose()?;
    let mut step = 0;
    if let Some((checkpoint, _)) = &found {
        step = state::load(&mut trainer, &checkpoint.join(state::STATE), &settings)?.step;
        store.iter().try_for_each(|store| store.rewind(checkpoint))?;
    }
    // What is saved where a run diverges: the state behind the last update.
    let mut good = Position::of(&trainer, step, settings.clone());
    if let Some(out) = &args.out {
        let epochs = args.epochs.or_else(|| args.steps.is_none().then_some(1));
        configuration::save(
            &RunArgs { epochs, batch_size: Some(plan.batch), pad_id: Some(*pad_id), ..args.clone() },
            out,
        )?;
    }
    let manifest = trainer.manifest().clone();
    let record = Record { arguments: args, settings: &settings, manifest: &manifest };
    let stands = |state: State, summary: Option<&Summary>| {
        args.out.as_deref().map(|out| record.save(out, state, summary)).transpose()
    };
    stands(State::Running, None)?;
    let mut speaker = None;
    if samples::wanted(args) {
        let open = compiler.ok_or_else(|| Error::internal("run", "samples are made by weftc::sampling::run"))?.open;
        let rows = held_out.as_ref().map_or(&dataset.samples, |h| &h.first);
        speaker = Some(Samples::new(args, &prepared, rows, &trainer, open, step)?);
    }
    watch.iter_mut().for_each(|watch| watch.warm(step, steps));
    let mut log = Log::new(step, steps, args.quiet, args.out.as_deref(), args.tensorboard)?;
    notes.iter().chain(&plan.padding()).for_each(|n| log.say(n));
    let mut summary = Summary { notes, folder: args.out.clone(), ..Summary::default() };
    let (mut seen, text) = (Tokens::default(), Text(prepared.tokenizer.as_ref()));
    if let Some(speaker) = &mut speaker {
        let lines = speaker.at(step, &trainer, false);
        // A model that cannot answer is told before anything is trained.
        tell(if interrupt::asked() { lines } else { Ok(lines?) }, step, &log)?;
    }
    let mut losses = Vec::new();
    let mut order = (u32::MAX, Vec::new());
    while step < steps {
        if interrupt::asked() {
            summary.interrupted = true;
            break;
        }
        let started = Instant::now();
        let epoch = u32::try_from(step / per_epoch).unwrap_or(u32::MAX - 1);
        if order.0 != epoch {
            order = (epoch, plan.order(epoch));
        }
        let batches = plan.batches(&order.1, epoch, step % per_epoch, Shape { pad_id: *pad_id, ..*shape })?;
        trainer.optimizer.lr = args.lr * args.schedule.factor(step, steps, args.warmup);
        let result = match trainer.step_on(&batches, args.out.is_some()) {
            Err(e) if trainer.diverged() => {
                let left = leave(e, &trainer, &good, store.as_ref());
                return Err(match stands(State::Diverged, None) {
                    Ok(_) => left,
                    Err(other) => Error::Several { errors: vec![left, other] },
                });
            }
            other => other?,
        };
        step += 1;
        if let Some(batch) = batches.last() {
            seen.step(step, &result, batch, dataset, &text, &manifest.method);
        }
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
        let seconds = started.elapsed().as_secs_f64();
        let due = step.is_multiple_of(args.eval_every.unwrap_or(per_epoch)) || step == steps;
        let eval_loss = held_out.as_ref().filter(|_| due).map(|h| h.loss(&mut trainer)).transpose()?;
        log.step(&Metrics {
            step,
            epoch,
            loss: result.loss,
            loss_sum: result.loss_sum,
            loss_count: result.loss_count,
            grad_norm: result.grad_norm,
            lr: trainer.optimizer.lr,
            tokens,
            masked: result.masked,
            eval_loss: eval_loss.filter(|loss| loss.is_finite()),
            seconds,
            outcome,
        })?;
        // A step without an update lacks its last part.
        let whole = result.outcome == Outcome::Updated;
        if let Some(watch) = watch.take_if(|watch| whole && watch.is_due(step)) {
            let made = Made { step, seconds, batches: &batches, masked: result.masked };
            watch.take(&mut trainer, source.as_deref(), made, &log)?;
        }
        let position = Position::of(&trainer, step, settings.clone());
        if let Some(store) = store.as_ref().filter(|_| args.save_every.is_some_and(|n| step.is_multiple_of(n))) {
            save_state(store, &trainer, &position)?;
        }
        if result.outcome != Outcome::Skipped {
            good = position;
        }
        if let Some(speaker) = &mut speaker {
            tell(speaker.at(step, &trainer, step == steps), step, &log)?;
        }
    }
    args.out.iter().try_for_each(|out| seen.save(out))?;
    summary.steps = step;
    summary.seconds = log.finish();
    let tenth = losses.len().div_ceil(10);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    summary.first_loss = mean(&losses[..tenth]);
    summary.last_loss = mean(&losses[losses.len() - tenth..]);
    let position = Position::of(&trainer, step, settings.clone());
    if let Some(store) = store.as_ref().filter(|_| summary.interrupted || args.save_every.is_some()) {
        summary.written.push(save_state(store, &trainer, &position)?);
    }
    if summary.interrupted {
        summary.notes.push(match &args.out {
            Some(out) => format!("stopped after step {step} of {steps}; --resume {} goes on", out.display()),
            None => format!("stopped after step {step} of {steps}; nothing was saved, for want of --out"),
        });
        log.say(summary.notes.last().map_or("", String::as_str));
        stands(State::Interrupted, Some(&summary))?;
    } else if let Some(out) = &args.out {
        let known = summary.notes.len();
        results::save(&args.results, &trainer, source.as_deref(), out, &mut summary)?;
        summary.written.push(out.join(record::FILE));
        stands(State::Finished, Some(&summary))?;
        summary.notes[known..].iter().for_each(|n| log.say(n));
    }
    summary.lines().iter().for_each(|line| log.say(line));
    Ok(summary)
}

/// Logs samples.  A model that cannot answer ends no run, a full disk does.
fn tell(lines: Result<Vec<String>>, step: u64, log: &Log) -> Result<()> {
    match lines {
        Ok(lines) => lines.iter().for_each(|line| log.say(line)),
        Err(e @ Error::Io { .. }) => return Err(e),
        Err(e) => log.say(&format!("no samples after {step} steps: {e}")),
    }
    Ok(())
}

/// The data of `--eval-data`, read as the training data are.
fn held_out(args: &RunArgs, trainer: &Trainer, own: &Prepared, notes: &mut Vec<String>) -> Result<Option<HeldOut>> {
    let Some(data) = args.eval_data.clone() else {
        let problem = Problem::new("--eval-every", "there is nothing to evaluate").help("--eval-data DATA");
        return if args.eval_every.is_some() { Err(Error::usage(problem)) } else { Ok(None) };
    };
    let known = notes.len();
    let found =
        prepare(&RunArgs { data, sample_prompts: None, ..args.clone() }, trainer.manifest(), trainer.shape(), notes)?;
    // What was chosen for the training data was told already.
    notes.truncate(known);
    notes.push(format!("{} samples of --eval-data are held out", found.dataset.samples.len()));
    HeldOut::new(&found.dataset, own.batch, Shape { pad_id: own.pad_id, ..own.shape }).map(Some)
}

fn steps(args: &RunArgs, plan: &Plan) -> u64 {
    args.steps.unwrap_or_else(|| plan.steps_per_epoch() * u64::from(args.epochs.unwrap_or(1)))
}

/// Prints what a run would do.
fn dry_run(args: &RunArgs, compiler: Option<Compiler>) -> Result<Summary> {
    args.optimizer().check()?;
    let file = TrainFile::read(&args.train_onnx, prepare::folder(args).as_deref())?;
    let mut notes = Vec::new();
    results::check(&args.results, &file.manifest)?;
    let prepared = prepare(args, &file.manifest, shape_of(&file), &mut notes)?;
    let plan = prepared.plan(args);
    let source = args.model.clone().unwrap_or_else(|| file.source());
    let known = weights::sha256(&source).is_ok_and(|sha256| sha256 == file.manifest.source.sha256);
    let activations = |batch, length| {
        let compiler = compiler.filter(|_| known)?;
        (compiler.activations)(&file.manifest, &source, batch, length).ok()
    };
    let on_cpu = args.device == Choice::Cpu || args.device == Choice::Auto && cuda::devices().is_err();
    let has_kernels = on_cpu && file.manifest.compute == "f32";
    let is_looked_up = |p: &Parameter| has_kernels && file.is_looked_up(&p.name);
    print(&dry_run::text(args, &file.manifest, &plan, steps(args, &plan), &is_looked_up, &activations))?;
    notes.extend(plan.padding());
    notes.iter().try_for_each(|note| print(&format!("note: {note}\n")))?;
    Ok(Summary { notes, ..Summary::default() })
}

/// Refuses a folder where the checkpoints of another run would be lost.
fn check_folder(args: &RunArgs, resumed: Option<&Path>) -> Result<()> {
    let Some(out) = &args.out else {
        let problem = Problem::new("--save-every", "there is no folder for checkpoints").help("--out DIR");
        return if args.save_every.is_some() { Err(Error::usage(problem)) } else { Ok(()) };
    };
    let own = resumed.is_some_and(|folder| out.canonicalize().is_ok_and(|out| out == folder));
    if own || Store::open(out, 1)?.latest()?.is_none() {
        return Ok(());
    }
    let folder = out.join(store::FOLDER);
    let problem = Problem::new("--out", format!("{} holds the checkpoints of another run", folder.display()));
    let help = format!("--resume {} goes on with it; or remove that folder, or choose another --out", out.display());
    Err(Error::usage(problem.help(help)))
}

fn save_state(store: &Store, trainer: &Trainer, position: &Position) -> Result<PathBuf> {
    store.save(position.step, |folder| state::save(trainer, position, &folder.join(state::STATE)))
}

/// Saves the state before the steps that were not finite: skipped steps have changed nothing.
fn leave(error: Error, trainer: &Trainer, good: &Position, store: Option<&Store>) -> Error {
    let (Error::Runtime { message, help }, Some(store)) = (&error, store) else { return error };
    match save_state(store, trainer, good) {
        Ok(path) => Error::Runtime {
            message: message.clone(),
            help: Some(format!(
                "{}; the last good state, of step {}, is {}",
                help.as_deref().unwrap_or_default(),
                good.step,
                path.display()
            )),
        },
        Err(other) => Error::Several { errors: vec![error, other] },
    }
}
