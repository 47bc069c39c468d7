//! What a run starts from: the graph on an engine, the samples, the source model.

use super::args::{RunArgs, RuntimeKind};
use super::batch::Shape;
use super::checkpoint;
use super::data::{self, Chat, Columns, Dataset, Encoder, Limits, Padding, Shown};
use super::plan::Plan;
use super::sampler::Sampler;
use super::trainer::{Setup, Trainer};
use crate::error::{Error, Problem, Result};
use crate::manifest::Manifest;
use crate::profile::Profile;
use crate::runtime::device::Choice;
use crate::runtime::environment::environment_for;
use crate::runtime::{Options, cuda, locate};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// What a run feeds.
pub struct Prepared {
    pub dataset: Dataset,
    /// Of the texts that the samples were made of.
    pub tokenizer: Option<Tokenizer>,
    pub pad_id: i64,
    /// Sequences a micro-batch.
    pub batch: usize,
    /// The sizes that the graph fixes.
    pub shape: Shape,
    /// Those of --sample-prompts.
    pub prompts: Option<Vec<Shown>>,
}

impl Prepared {
    /// Which samples each step sees.
    pub fn plan(&self, args: &RunArgs) -> Plan<'_> {
        Plan {
            dataset: &self.dataset,
            batch: self.batch,
            accumulate: args.accumulate.max(1),
            sampler: Sampler::new(args.seed),
            // Rows are filled whatever is drawn together.
            by_length: !args.no_length_groups && self.shape.length.is_none() && !self.shape.packing,
            packing: self.shape.packing,
        }
    }
}

/// Reads the data for a graph of this manifest and shape; what was chosen for the user goes into the notes.
///
/// # Errors
/// Everything that is wrong with the data, and with the flags about it.
pub fn prepare(args: &RunArgs, manifest: &Manifest, shape: Shape, notes: &mut Vec<String>) -> Result<Prepared> {
    let batch = args.batch_size(shape.rows)?;
    let tokenizer = args.tokenizer.as_deref().map(|p| Ok((p.to_path_buf(), data::tokenizer(p)?))).transpose()?;
    let profile = data::profile(args.profile.as_deref(), tokenizer.as_ref())?;
    notes.extend(profile.as_ref().map(|(_, note)| note.clone()));
    let profile = profile.map(|(profile, _)| profile);
    let tokenizer = tokenizer.map(|(_, tokenizer)| tokenizer);
    let limits = Limits {
        vocab_size: manifest.vocab_size,
        mask_id: manifest.method.mask_id,
        max_length: args.max_length,
        fixed_length: shape.length,
        longest: manifest.longest.and_then(|n| usize::try_from(n).ok()),
    };
    let (dataset, prompts) = dataset(args, tokenizer.as_ref(), profile, limits, notes)?;
    let pad_id = args.pad_id.or(profile.map(|p| p.pad_id)).unwrap_or_else(|| data::pad_id(tokenizer.as_ref()));
    if !(0..limits.vocab_size).contains(&pad_id) {
        let problem =
            Problem::new("--pad-id", format!("{pad_id} is not in the vocabulary of {} tokens", limits.vocab_size));
        return Err(Error::usage(problem));
    }
    if dataset.cut > 0 {
        notes.push(format!("--max-length cut {} of {} rows", dataset.cut, dataset.samples.len()));
    }
    Ok(Prepared { dataset, tokenizer, pad_id, batch, shape, prompts })
}

/// The samples and the prompts; what the user did not say and was chosen for him goes into the notes.
fn dataset(
    args: &RunArgs,
    tokenizer: Option<&Tokenizer>,
    profile: Option<&Profile>,
    limits: Limits,
    notes: &mut Vec<String>,
) -> Result<(Dataset, Option<Vec<Shown>>)> {
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
    let prompts = args.sample_prompts.as_deref().map(|path| data::prompts(path, &encoder)).transpose()?;
    Ok((dataset, prompts))
}

/// The folder of the weights, where `--model` names it.
pub fn folder(args: &RunArgs) -> Option<PathBuf> {
    let folder = args.model.as_ref().and_then(|m| m.parent());
    folder.map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p }.to_path_buf())
}

/// Opens train.onnx on what `--runtime` names.
///
/// The sessions of ONNX Runtime leave their profiles in the folder `profile`.
pub fn open(args: &RunArgs, profile: Option<&Path>, notes: &mut Vec<String>) -> Result<Trainer> {
    let session = Options { threads: args.threads, profile: profile.map(Path::to_path_buf), ..Options::default() };
    let setup = Setup {
        folder: folder(args),
        optimizer: args.optimizer(),
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
        RuntimeKind::Auto => match environment_for(args.device != Choice::Cpu && cuda::devices().is_ok(), &mut say) {
            // A library that the user names must work; any other may be missing.
            Err(why) if locate::explicit().is_none() => Some(format!("{why}\nwithout it ")),
            _ => None,
        },
    };
    match missing {
        Some(_) if args.device == Choice::Cuda => {
            let problem = Problem::new("--device cuda", "the reference interpreter runs on the CPU alone");
            Err(Error::usage(problem.help("--runtime onnxruntime, where ONNX Runtime can be had")))
        }
        Some(why) => {
            notes.push(why + SLOW);
            Trainer::load_interpreted(&args.train_onnx, setup)
        }
        None => {
            let (device, note) = args.device.resolve(args.device_id, &mut say)?;
            notes.extend(note);
            let session = Options { device, ..setup.session.clone() };
            let trainer = Trainer::load(&args.train_onnx, Setup { session, ..setup })?;
            notes.extend(trainer.engine.notes());
            Ok(trainer)
        }
    }
}

/// The source model, which `--out` needs for model.onnx; a note where it is not there.
pub fn source(args: &RunArgs, trainer: &Trainer, notes: &mut Vec<String>) -> Result<Option<PathBuf>> {
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
