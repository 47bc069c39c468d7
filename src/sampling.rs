//! What runs need of the compiler.
//!
//! Samples: the model is asked while it is trained, the compiler's inference graph over the run's own parameters, decoded
//! as `weftc generate` decodes.  Plans: the memory of a step.  Profiles: its parts, beside what the cost model tells.
//!
//! The graph is compiled once; a session of it lives only while prompts are answered, so that training has the
//! machine's memory between.  It reads the parameters in place and draws from a seed of its own: a run's steps are
//! the same with and without it.

use crate::bench;
use crate::compile::{self, Options};
use crate::error::{Error, Problem, Result};
use crate::generate::DecodingArgs;
use crate::generate::answers::{Request, answers};
use crate::generate::language::{Language, LanguageArgs};
use crate::onnx::train_file::parts::Part;
use crate::tools::plan;
use crate::train::forward::Forward;
use crate::train::run::Compiler;
use crate::train::samples::{Answerer, Asked};
use crate::train::{self, RunArgs, Summary, checkpoint, interrupt};
use std::path::Path;

/// Trains as `args` say, with samples where they ask for them.
///
/// # Errors
/// As `train::run`; a source model that is missing or cannot be compiled for answers.
pub fn run(args: &RunArgs) -> Result<Summary> {
    let compiler = Compiler { open: &open, activations: &plan::activations, apart: &bench::run::take };
    train::run::run_with(args, Some(compiler))
}

/// A greedy decoder in blocks of 32 tokens (Dream's: all at once), with half as many model calls as tokens.
fn open(asked: &Asked) -> Result<Answerer> {
    let Asked { args, trainer, source, pad_id, length } = asked;
    if !source.is_file() {
        let message = format!("samples need the source model, and {} is not there", source.display());
        return Err(Error::usage(Problem::new("--sample-every", message).help("--model SOURCE.onnx")));
    }
    checkpoint::check_source(*trainer, source)?;
    let manifest = trainer.manifest();
    let (graph, bytes) = compile::forward(&Options::of(manifest, source.clone(), None))?;
    let folder = source.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
    let leaves = graph.live().into_iter().filter_map(|id| graph.as_leaf(id));
    let inputs = leaves.map(|leaf| graph.leaf(leaf).name.to_string()).collect();
    let outputs = graph.outputs.iter().map(|(name, _)| name.clone()).collect();
    let forward = Forward { part: Part { bytes, inputs, outputs }, graph, folder };
    let mut language = Language::find_or(
        &LanguageArgs {
            profile: args.profile.clone(),
            tokenizer: args.tokenizer.clone(),
            mask_id: Some(manifest.method.mask_id),
            logits_shift: Some(manifest.method.logits_shift),
            eos_id: args.eos_id,
            plain: true,
            ..LanguageArgs::default()
        },
        None,
        None,
    )?;
    language.pad_id = *pad_id;
    let flags = DecodingArgs { length: *length, stop: !language.eos_ids.is_empty(), ..DecodingArgs::default() };
    let request = Request {
        decoding: flags.decoding(&language, length.div_ceil(2))?,
        length: *length,
        batch: args.batch_size.unwrap_or(8),
        watch: false,
    };
    Ok(Box::new(move |trainer, prompts| {
        let mut model = trainer.logits(&forward, language.pad_id)?;
        let numbered: Vec<(usize, &[i64])> = prompts.iter().copied().enumerate().collect();
        let mut found = vec![Vec::new(); prompts.len()];
        let mut logits = |tokens: &[i64], batch: usize, len: usize| {
            if interrupt::asked() {
                return Err(Error::runtime("the run was interrupted"));
            }
            model(tokens, batch, len)
        };
        answers(&mut logits, &language, &request, &numbered, &mut |number, answer| {
            found[number] = language.before_end(&answer.tokens).to_vec();
            Ok(())
        })?;
        Ok(found)
    }))
}
