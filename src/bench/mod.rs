//! Measures the training step: its time and that of its parts, its operations, the share of what the machine's products
//! can do, its memory; beside what the cost model predicts.
//!
//! A step is everything that training does with a batch: entropy pass, forward, backward, clipping, AdamW.  It is timed
//! as training runs it, and then once more with ONNX Runtime's profile, which takes it apart.

pub mod calibrate;
pub mod node;
pub mod parts;
pub mod profile;
pub mod run;
pub mod show;
pub mod system;

use crate::compile::{self, Compiled};
use crate::cost::predict::Load;
use crate::cost::{Machine, Prediction, predict, product_shapes};
use crate::error::{Error, Problem, Result};
use crate::lower;
use crate::manifest::Manifest;
use crate::onnx::train_file::TrainFile;
use crate::rng::SplitMix64;
use crate::rules::Target;
use crate::rules::library::library;
use crate::runtime::cuda;
use crate::runtime::device::{Choice, Device};
use crate::runtime::session;
use crate::tools::plan;
use crate::train::batch::{Batch, Shape};
use crate::train::checkpoint::Weights;
use crate::train::data::Sample;
use crate::train::optimizer::Optimizer;
use crate::train::sampler::Sampler;
use crate::train::trainer::{Setup, Trainer};
use node::median;
use parts::{Parts, Step, apart};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Steps that are not counted: the first grow the memory.
const WARM: usize = 2;

/// Steps that are.
const LEAST: usize = 3;
const MOST: usize = 15;

/// The same on a GPU: steps are short there, and some numbers of masked tokens take a product to a kernel that must be
/// loaded first, 2.5 ms each (H200, cuBLAS 13).  Long steps warm up for as many seconds as are counted.
const GPU_WARM: usize = 30;
const GPU_MOST: usize = 200;

/// Sequences and tokens where neither the model nor the user says how many.
const BATCH: usize = 4;
const LENGTH: usize = 256;

/// What is measured.
pub enum What {
    /// A model, compiled for this.
    Model(Box<compile::Options>),
    /// A train.onnx; weights that are not in it lie where its source model does.
    Train(PathBuf),
}

/// How it is measured.
pub struct Request {
    pub what: What,
    /// Sequences [the model's own, else 4].
    pub batch: Option<usize>,
    /// Tokens in each [the model's own, else 256 or as many as the model takes].
    pub length: Option<usize>,
    pub threads: usize,
    pub device: Choice,
    /// Steps are counted for so long.
    pub seconds: f64,
    /// What times are predicted for.
    pub machine: Machine,
}

/// What was measured.  Times are in seconds, rates in a second.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub model: PathBuf,
    pub method: String,
    pub trainable: String,
    pub compute: String,
    pub threads: usize,
    pub batch: usize,
    pub length: usize,
    /// `None` where train.onnx was there already.
    pub compile_s: Option<f64>,
    pub train_onnx_bytes: Option<usize>,
    pub load_s: f64,
    pub steps: usize,
    /// The median, and the least.
    pub step_s: f64,
    pub step_min_s: f64,
    /// Processor time, which other programs disturb less.
    pub cpu_s: Option<f64>,
    pub tokens_per_s: f64,
    /// Masked tokens of a step, on average.
    pub masked: f64,
    pub peak_rss_mb: Option<u64>,
    /// What of a GPU's memory is in use behind the steps, by all processes together.
    pub device_mb: Option<u64>,
    /// The machine's load average at the end.
    pub load: Option<f64>,
    /// A profiled step, taken apart.
    pub profiled: Step,
    /// What the cost model predicts; `None` for a train.onnx whose source is not there.
    pub predicted: Option<Prediction>,
    /// The most that products alone do on this machine.
    pub ceiling_gflops: Option<f64>,
    /// Of the step as it is executed, and as if every token were read.
    pub gflops: Option<f64>,
    pub gflops_unsunk: Option<f64>,
    /// The same as shares of the ceiling.
    pub share: Option<f64>,
    pub share_unsunk: Option<f64>,
}

/// Compiles, runs and measures.
///
/// # Errors
/// As a compile and a run; a batch or length that the model does not take.
pub fn bench(request: &Request) -> Result<Report> {
    let scratch = tempfile::tempdir().map_err(|e| Error::io("create", &std::env::temp_dir(), e))?;
    let (path, folder, compiled, compile_s, bytes) = match &request.what {
        What::Model(options) => {
            let path = scratch.path().join("train.onnx");
            let started = Instant::now();
            let compiled = compile::compile(options)?;
            let bytes = compiled.write(&path)?;
            let folder = options.model.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            (path, Some(folder.to_path_buf()), Some(compiled), Some(started.elapsed().as_secs_f64()), Some(bytes))
        }
        What::Train(path) => {
            let file = TrainFile::read(path, None)?;
            (path.clone(), None, plan::recompiled(&file.manifest, &file.source()), None, None)
        }
    };
    let (device, _) = request.device.resolve(0, &mut |line| eprintln!("{line}"))?;
    let threads = request.threads;
    let options = session::Options { threads, device, ..session::Options::default() };
    let open = |session| {
        let optimizer = Optimizer { lr: 1e-4, ..Optimizer::default() };
        Trainer::load(&path, Setup { folder: folder.clone(), optimizer, session, ..Setup::default() })
    };
    let started = Instant::now();
    let mut trainer = open(options.clone())?;
    let load_s = started.elapsed().as_secs_f64();
    let shape = sizes(request, &trainer, compiled.as_ref())?;
    let manifest = trainer.manifest().clone();
    let samples = samples(&manifest, shape);
    let mut run = Steps { samples: &samples, shape: trainer.shape(), epoch: 0, masked: 0 };
    let mut times = Vec::new();
    let (warm, most) = if device == Device::Cpu { (WARM, MOST) } else { (GPU_WARM, GPU_MOST) };
    let warming = Instant::now();
    for _ in (0..warm).take_while(|k| *k < WARM || warming.elapsed().as_secs_f64() < request.seconds) {
        run.step(&mut trainer)?;
    }
    let cpu = system::cpu_seconds();
    run.masked = 0;
    while times.len() < LEAST || times.len() < most && times.iter().sum::<f64>() < request.seconds {
        times.push(run.step(&mut trainer)?);
    }
    let steps = times.len();
    let cpu_s = system::cpu_seconds().zip(cpu).map(|(after, before)| (after - before) / steps as f64);
    let (masked, peak_rss_mb, load) = (run.masked as f64 / steps as f64, system::peak_mb(), system::load());
    // ONNX Runtime gives nothing back between steps.
    let device_mb = match device {
        Device::Cpu => None,
        Device::Cuda(id) => cuda::memory_in_use(id).ok().map(|bytes| bytes >> 20),
    };
    drop(trainer);

    let mut trainer = open(session::Options { profile: Some(scratch.path().to_path_buf()), ..options })?;
    let profiled = profiled(&mut trainer, &mut run, steps.min(MOST))?;
    drop(trainer);

    let step_s = median(&mut times);
    let (batch, length) = shape;
    let answers = samples.iter().map(|s| (s.total - s.prompt) as i64).sum();
    let own = Load { batch: batch as i64, length: length as i64, answers, masked: masked.round() as i64 };
    let predicted = compiled.as_ref().map(|c| told(c, &request.machine, own)).transpose()?;
    let shapes = compiled.as_ref().map(|c| product_shapes(&c.graph, &c.manifest.token_input, own)).unwrap_or_default();
    let ceiling = match device {
        Device::Cpu => calibrate::ceiling(&library()?.lower_for(Target::Cpu), system::threads(threads), &shapes),
        Device::Cuda(_) => calibrate::ceiling_on(device, &manifest.compute),
    };
    // The steps were measured: what they are compared with is worth less.
    let ceiling = ceiling.inspect_err(|why| eprintln!("products alone were not measured: {why}")).ok();
    let total = predicted.as_ref().map(Prediction::total);
    let model = match &request.what {
        What::Model(options) => options.model.clone(),
        What::Train(path) => path.clone(),
    };
    Ok(Report {
        model,
        method: manifest.method.name.clone(),
        trainable: manifest.trained(),
        compute: manifest.compute.clone(),
        threads: system::threads(threads),
        batch,
        length,
        compile_s,
        train_onnx_bytes: bytes,
        load_s,
        steps,
        step_s,
        step_min_s: times.first().copied().unwrap_or(step_s),
        cpu_s,
        tokens_per_s: (batch * length) as f64 / step_s,
        masked,
        peak_rss_mb,
        device_mb,
        load,
        profiled,
        predicted,
        ceiling_gflops: ceiling.map(|c| c / 1e9),
        gflops: total.map(|t| t.flops as f64 / step_s / 1e9),
        gflops_unsunk: total.map(|t| t.flops_unsunk as f64 / step_s / 1e9),
        share: total.zip(ceiling).map(|(t, c)| t.flops as f64 / step_s / c),
        share_unsunk: total.zip(ceiling).map(|(t, c)| t.flops_unsunk as f64 / step_s / c),
    })
}

/// Batch and length: those of the model, the user's, or the defaults.
fn sizes(request: &Request, trainer: &Trainer, compiled: Option<&Compiled>) -> Result<(usize, usize)> {
    let Shape { rows, length, .. } = trainer.shape();
    let mut problems = Vec::new();
    let mut choose = |flag: &str, own: Option<usize>, most: Option<usize>, given: Option<usize>, default: usize| {
        let wrong = |why: String| Problem::new(flag, why);
        match (own, given) {
            (_, Some(0)) => problems.push(wrong("must be at least 1".into())),
            (Some(own), Some(given)) if own != given => {
                problems.push(wrong(format!("the model fixes {own}, not {given}")));
            }
            (None, Some(given)) if most.is_some_and(|most| given > most) => {
                problems.push(wrong(format!("the model takes at most {}, not {given}", most.unwrap_or(0))));
            }
            _ => {}
        }
        own.or(given).unwrap_or(default.min(most.unwrap_or(default)))
    };
    let most = compiled.and_then(|c| usize::try_from(c.most_tokens?).ok());
    let batch = choose("--batch", rows, None, request.batch, BATCH);
    let length = choose("--length", length, most, request.length, LENGTH);
    if problems.is_empty() { Ok((batch, length)) } else { Err(Error::Usage { problems }) }
}

/// What the cost model tells of a compiled step: for `batch` [the model's own, else 8] sequences of `length` [the
/// model's own, else 256 or as many as it takes] tokens.
///
/// # Errors
/// Where a fused node has no body.
pub fn predicted(
    compiled: &Compiled,
    machine: &Machine,
    batch: Option<i64>,
    length: Option<i64>,
) -> Result<Prediction> {
    let graph = &compiled.graph;
    let tokens = graph.find_leaf(&compiled.manifest.token_input).map(|l| &graph.leaf(l).ty.shape);
    let own = |axis: usize| tokens.and_then(|shape| shape.get(axis)?.known());
    let longest = compiled.most_tokens.map_or(LENGTH as i64, |most| most.min(LENGTH as i64));
    let length = own(1).or(length).unwrap_or(longest);
    let load = Load::typical(own(0).or(batch).unwrap_or(8), length);
    told(compiled, machine, load)
}

/// The same for a load, of the nodes that ONNX Runtime will run: without kernels functions' bodies take their place.
fn told(compiled: &Compiled, machine: &Machine, load: Load) -> Result<Prediction> {
    let inlined = match compiled.kernels() {
        true => None,
        false => Some(lower::inline(&compiled.graph, compiled.lower_rules(), &mut BTreeMap::new())?),
    };
    let graph = inlined.as_ref().unwrap_or(&compiled.graph);
    Ok(predict(graph, &compiled.manifest.token_input, &compiled.trainable, machine, load))
}

/// Random tokens; the first quarter of each sequence is its prompt.
fn samples(manifest: &Manifest, (batch, length): (usize, usize)) -> Vec<Sample> {
    let vocabulary = usize::try_from(manifest.vocab_size).unwrap_or(1);
    let mask = usize::try_from(manifest.method.mask_id).unwrap_or(vocabulary);
    let mut rng = SplitMix64::new(1);
    let mut token = || {
        let drawn = rng.below(vocabulary.saturating_sub(1));
        (drawn + usize::from(drawn >= mask)) as i64
    };
    let row = |_| Sample { tokens: (0..length).map(|_| token()).collect(), prompt: length / 4, total: length };
    (0..batch).map(row).collect()
}

/// Steps over the same samples.
struct Steps<'a> {
    samples: &'a [Sample],
    shape: Shape,
    epoch: u32,
    /// Masked tokens so far.
    masked: usize,
}

impl Steps<'_> {
    /// One step, in seconds.  Every step is an epoch of its own: it draws anew for the same tokens.
    fn step(&mut self, trainer: &mut Trainer) -> Result<f64> {
        let rows: Vec<(usize, &Sample)> = self.samples.iter().enumerate().collect();
        let started = Instant::now();
        let result = trainer.step(&Batch::new(&rows, self.shape, Sampler::new(1), self.epoch)?)?;
        self.epoch += 1;
        self.masked += result.masked;
        Ok(started.elapsed().as_secs_f64())
    }
}

/// Of so many profiled steps the one in the middle.
fn profiled(trainer: &mut Trainer, run: &mut Steps, steps: usize) -> Result<Step> {
    let parts = Parts::of(trainer.file());
    (0..WARM).try_for_each(|_| run.step(trainer).map(drop))?;
    let times = (0..steps).map(|_| run.step(trainer)).collect::<Result<Vec<f64>>>()?;
    let mut sessions = Vec::new();
    for (name, path) in trainer.end_profiles()? {
        // What was not run in every step, as an entropy pass that is kept over epochs, belongs to none.
        let runs = profile::runs(&path)?;
        sessions.extend((runs.len() == WARM + steps).then_some((name, runs)));
    }
    let step = |(k, seconds): (usize, &f64)| {
        let own: Vec<(&str, &profile::Run)> = sessions.iter().map(|(name, runs)| (*name, &runs[WARM + k])).collect();
        apart(&parts, *seconds, &own)
    };
    let mut all: Vec<Step> = times.iter().enumerate().map(step).collect();
    all.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    Ok(all.swap_remove(steps / 2))
}
