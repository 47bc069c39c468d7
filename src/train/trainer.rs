//! The training step: forward, skip or clip, update.

use super::batch::{self, Batch, Shape};
use super::checkpoint::{self, Weights};
use super::engine::{Engine, OnnxRuntime, Update};
use super::interpreter::Interpreter;
use super::loss_scale::LossScale;
use super::optimizer::{Decay, Optimizer};
use super::probe::Cache;
use crate::error::{Error, Problem, Result};
use crate::ir::DType;
use crate::manifest::{BETA, DROPOUT, Manifest, NOT_FED, PLACES, Role};
use crate::onnx::train_file::parts::Evaluation;
use crate::onnx::train_file::{Port, TrainFile};
use crate::runtime::device::Device;
use crate::runtime::{HostTensor, Options};
use indexmap::IndexMap;
use std::path::{Path, PathBuf};

/// So many skipped steps in a row stop the run.
const MOST_SKIPPED: u32 = 10;

/// The outputs that describe every token, [B, L]; a method has those that it uses.
const DIAGNOSTICS: [&str; 5] = ["entropy", "nll", "mask_rate", "mask", "token_loss"];

/// The inputs that every train.onnx has, besides the token input.
const DRAWS: [&str; 3] = ["answer_mask", "t", "u"];

/// The input by which gradients come out multiplied, in graphs that compute in f16.
const LOSS_SCALE: &str = "loss_scale";

/// How a trainer is set up.
#[derive(Clone, Default)]
pub struct Setup {
    /// The folder of the source model's weights; beside train.onnx where `None`.
    pub folder: Option<PathBuf>,
    pub optimizer: Optimizer,
    pub decay: Decay,
    /// Micro-batches a step; 0 and 1 mean one.
    pub accumulate: usize,
    pub session: Options,
    /// Use the functions of train.onnx instead of our kernels.
    pub portable: bool,
}

/// What a step did to the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Updated,
    /// No token was masked: there is nothing to learn from.
    Empty,
    /// The loss or the gradient was not finite; nothing was changed.
    Skipped,
}

/// The numbers of one step.
#[derive(Clone, Debug)]
pub struct StepResult {
    /// `loss_sum / loss_count`; 0 where the count is 0.
    pub loss: f64,
    pub loss_sum: f64,
    pub loss_count: f64,
    /// The Euclidean norm of the gradient of `loss`, before clipping.
    pub grad_norm: f64,
    /// How many tokens were masked.
    pub masked: usize,
    pub outcome: Outcome,
    /// Those outputs of the last micro-batch that describe tokens, and a kept `beta`, where they were asked for.
    pub diagnostics: IndexMap<String, HostTensor>,
}

/// A train.onnx with its parameters and the optimizer's state.
pub struct Trainer {
    pub(super) file: TrainFile,
    pub(super) engine: Box<dyn Engine>,
    trainable: Vec<Port>,
    /// What is fed besides tokens and draws: name and type.
    extras: Vec<(String, DType)>,
    /// The draws that this method uses.
    draws: Vec<&'static str>,
    diagnostics: Vec<String>,
    /// What the probe gave, where it is not part of the step.
    pub(super) cache: Option<Cache>,
    pub optimizer: Optimizer,
    /// How many updates were made.
    pub(super) updates: u64,
    pub(super) skipped_in_a_row: u32,
    /// Where the graph computes in f16.
    pub(super) loss_scale: Option<LossScale>,
    /// What the kept gradients are multiplied by.
    applied_scale: f64,
    shape: Shape,
    /// What ONNX Runtime computes on.
    pub device: Device,
}

impl Trainer {
    /// Opens `train_onnx` on ONNX Runtime.
    pub fn load(train_onnx: &Path, setup: Setup) -> Result<Self> {
        let file = TrainFile::read(train_onnx, setup.folder.as_deref())?;
        // Packed copies of frozen weights would double the memory and save nothing measurable.
        let options = Options { prepack: false, ..setup.session };
        let device = options.device;
        let trainer = Self::with(file, setup.optimizer, |file, trainable| {
            Ok(Box::new(OnnxRuntime::new(
                file,
                trainable,
                &options,
                setup.accumulate > 1,
                setup.portable,
                setup.optimizer.function(),
                setup.decay,
            )?))
        })?;
        Ok(Trainer { device, ..trainer })
    }

    /// Opens `train_onnx` on the reference interpreter: in f64, and several times slower.
    pub fn load_interpreted(train_onnx: &Path, setup: Setup) -> Result<Self> {
        let file = TrainFile::read(train_onnx, setup.folder.as_deref())?;
        let interpreted = |file: &TrainFile, trainable: &[Port]| -> Result<Box<dyn Engine>> {
            Ok(Box::new(Interpreter::new(file, trainable, setup.optimizer.function(), setup.decay)?))
        };
        // In f64 nothing under- or overflows: the scale keeps its default, 1.
        Ok(Trainer { loss_scale: None, ..Self::with(file, setup.optimizer, interpreted)? })
    }

    /// Checks the contract of train.onnx and opens it on an engine.
    pub(super) fn with(
        file: TrainFile,
        optimizer: Optimizer,
        engine: impl FnOnce(&TrainFile, &[Port]) -> Result<Box<dyn Engine>>,
    ) -> Result<Self> {
        optimizer.check()?;
        let (inputs, outputs) = (file.inputs(), file.step_outputs());
        let cache = Cache::new(file.manifest.method.probe);
        let mut problems = Vec::new();
        let mut trainable = Vec::new();
        for p in file.manifest.parameters.iter().filter(|p| p.role == Role::Trainable) {
            let gradient = format!("grad/{}", p.name);
            if !outputs.iter().any(|o| o.name == gradient) {
                problems.push(Problem::new(&p.name, format!("it is trainable, but there is no output {gradient}")));
            }
            match inputs.iter().find(|i| i.name == p.name) {
                Some(port) => trainable.push(port.clone()),
                None => problems.push(Problem::new(&p.name, "it is trainable, but no input")),
            }
        }
        if trainable.is_empty() && problems.is_empty() {
            problems.push(Problem::new("", "nothing is trainable").help("compile with trainable parameters"));
        }
        for name in ["loss", "loss_sum", "loss_count"] {
            if !outputs.iter().any(|o| o.name == name) {
                problems.push(Problem::new("", format!("there is no output {name}")));
            }
        }
        let token_input = inputs.iter().find(|i| i.name == file.manifest.token_input);
        if token_input.is_none_or(|i| i.shape.len() != 2 || i.dtype != DType::I64) {
            problems.push(Problem::new(&file.manifest.token_input, "the token input must be [B, L] int64"));
        }
        let ours = |i: &Port| {
            i.name == file.manifest.token_input
                || DRAWS.contains(&i.name.as_str())
                || (i.name == BETA && cache.is_some())
                || file.has_default(&i.name)
                || DROPOUT.contains(&i.name.as_str())
                || (i.name == PLACES && file.manifest.packing)
        };
        let mut extras = Vec::new();
        for input in inputs.iter().filter(|i| !ours(i)) {
            if batch::is_known(&input.name) && input.shape.len() == 2 {
                extras.push((input.name.clone(), input.dtype));
            } else {
                problems
                    .push(Problem::new(&input.name, "weftc does not know what to feed to this input").help(NOT_FED));
            }
        }
        if !problems.is_empty() {
            return Err(Error::Model { model: file.path().to_path_buf(), problems });
        }
        let shape = shape_of(&file);
        let has = |n: &&str| inputs.iter().any(|i| i.name == *n);
        let draws = DRAWS.into_iter().filter(|n| has(n)).collect();
        let made = |n: &&str| outputs.iter().any(|o| o.name == *n);
        let diagnostics = DIAGNOSTICS.iter().filter(|n| made(n)).map(|n| n.to_string()).collect();
        let engine = engine(&file, &trainable)?;
        Ok(Trainer {
            engine,
            trainable,
            extras,
            draws,
            diagnostics,
            cache,
            optimizer,
            updates: 0,
            skipped_in_a_row: 0,
            loss_scale: inputs.iter().any(|i| i.name == LOSS_SCALE).then(LossScale::default),
            applied_scale: 1.0,
            shape,
            device: Device::Cpu,
            file,
        })
    }

    pub fn manifest(&self) -> &Manifest {
        &self.file.manifest
    }

    /// The sizes that the graph fixes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// How many updates were made.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Whether so many steps in a row were not finite that training has ended.
    pub fn diverged(&self) -> bool {
        self.skipped_in_a_row >= MOST_SKIPPED
    }

    /// One step on one batch.
    pub fn step(&mut self, batch: &Batch) -> Result<StepResult> {
        self.step_on(std::slice::from_ref(batch), false)
    }

    /// One step on explicit draws: `tokens` `[B, L]` int64, `answer_mask` `[B, L]` bool, `t` `[B]` f32,
    /// `u` `[B, L]` f32.  No token counts as padding; diagnostics are returned.
    pub fn step_with(
        &mut self,
        tokens: HostTensor,
        answer_mask: HostTensor,
        t: HostTensor,
        u: HostTensor,
    ) -> Result<StepResult> {
        let real = HostTensor::from_bytes(DType::Bool, tokens.shape(), vec![1; tokens.len()])?;
        let (samples, epoch) = (Vec::new(), 0);
        self.step_on(
            &[Batch { tokens, answer: answer_mask, t, u, real, samples, epoch, dropout: None, places: None }],
            true,
        )
    }

    /// One step on micro-batches, whose numerators and denominators are summed and divided once.
    ///
    /// # Errors
    /// Where ONNX Runtime fails, or after ten skipped steps in a row.
    pub fn step_on(&mut self, batches: &[Batch], diagnostics: bool) -> Result<StepResult> {
        let mut want: Vec<String> = ["loss_sum", "loss_count"].map(String::from).to_vec();
        let kept = |n: &&String| diagnostics || n.as_str() == "mask";
        want.extend(self.diagnostics.iter().filter(kept).cloned());
        let (mut loss_sum, mut loss_count, mut masked) = (0.0, 0.0, 0);
        let mut last = IndexMap::new();
        self.applied_scale = self.loss_scale.map_or(1.0, |s| s.scale());
        for (k, batch) in batches.iter().enumerate() {
            let mut feeds = self.feeds(batch)?;
            if let Some(cache) = &mut self.cache {
                let beta = cache.beta(batch, || self.engine.probe(&feeds))?;
                feeds.push((BETA.into(), beta));
            }
            last = self.engine.forward(&feeds, &want, k > 0)?;
            last.extend(feeds.pop().filter(|(name, _)| diagnostics && name == BETA));
            let number = |name: &str| last.get(name).map_or(Ok(0.0), HostTensor::item);
            loss_sum += number("loss_sum")?;
            loss_count += number("loss_count")?;
            masked += last.get("mask").map_or(0, |m| m.bytes().iter().filter(|b| **b != 0).count());
        }
        last.retain(|name, _| diagnostics && (name == BETA || DIAGNOSTICS.contains(&name.as_str())));
        let empty = loss_count == 0.0;
        let norm = if empty { 0.0 } else { self.engine.grad_norm()? / self.applied_scale };
        let per_count = |x: f64| if empty { 0.0 } else { x / loss_count };
        let (loss, grad_norm) = (per_count(loss_sum), per_count(norm));
        let loss_is_finite = loss.is_finite() && loss_sum.is_finite();
        let outcome = if !loss_is_finite || !grad_norm.is_finite() {
            // The scale acts on gradients alone; while it can fall, their overflow is no sign of divergence.
            let scale_falls = loss_is_finite && self.loss_scale.as_mut().is_some_and(LossScale::overflowed);
            self.skipped_in_a_row += u32::from(!scale_falls);
            Outcome::Skipped
        } else if empty {
            Outcome::Empty
        } else {
            let grad_scale = self.optimizer.grad_scale(norm, loss_count) / self.applied_scale;
            self.engine.update(&Update { optimizer: self.optimizer, step: self.updates + 1, grad_scale })?;
            self.updates += 1;
            self.skipped_in_a_row = 0;
            if let Some(scale) = &mut self.loss_scale {
                scale.updated();
            }
            Outcome::Updated
        };
        if self.diverged() {
            return Err(Error::Runtime {
                message: format!(
                    "training diverged: {MOST_SKIPPED} steps in a row had a loss or gradient that is not finite"
                ),
                help: Some("lower --lr or --clip, or look at the data of these steps".into()),
            });
        }
        Ok(StepResult { loss, loss_sum, loss_count, grad_norm, masked, outcome, diagnostics: last })
    }

    /// `loss_sum` and `loss_count` over batches, with the present parameters; updates nothing.  Batches of a group differ in
    /// their draws alone: what none of these changes, as the entropy pass, is computed once for a group.
    pub(super) fn losses(&mut self, groups: &[Vec<Batch>]) -> Result<[f64; 2]> {
        let mut sums = [0.0; 2];
        let mut add = |outputs: IndexMap<String, HostTensor>| -> Result<()> {
            for (sum, name) in sums.iter_mut().zip(["loss_sum", "loss_count"]) {
                *sum += outputs.get(name).map_or(Ok(0.0), HostTensor::item)?;
            }
            Ok(())
        };
        if self.engine.opens_parts() {
            let Evaluation { loss, before } = self.file.evaluation(&self.trainable)?;
            let mut loss = self.engine.open_part(&loss)?;
            let mut before = before.as_ref().map(|part| self.engine.open_part(part)).transpose()?;
            for group in groups {
                let mut steady = None;
                for batch in group {
                    let mut feeds = self.feeds(batch)?;
                    if let (None, Some(before)) = (&steady, &mut before) {
                        steady = Some(before(&feeds)?);
                    }
                    let steady = steady.iter().flatten();
                    feeds.extend(steady.map(|(name, value)| (Evaluation::input(name).to_string(), value.clone())));
                    add(loss(&feeds)?)?;
                }
            }
            return Ok(sums);
        }
        for batch in groups.iter().flatten() {
            let mut feeds = self.feeds(batch)?;
            if let Some(cache) = &mut self.cache {
                let beta = cache.beta(batch, || self.engine.probe(&feeds))?;
                feeds.push((BETA.into(), beta));
            }
            add(self.engine.forward(&feeds, &["loss_sum", "loss_count"].map(String::from), false)?)?;
        }
        Ok(sums)
    }

    /// Ends the profiles of the sessions; their files, as [`Engine::end_profiles`] names them.
    ///
    /// # Errors
    /// Where the setup asked for none.
    pub fn end_profiles(&mut self) -> Result<Vec<(&'static str, PathBuf)>> {
        self.engine.end_profiles()
    }

    /// The trainable parameters' names, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.trainable.iter().map(|p| p.name.as_str())
    }

    /// The type of the trained parameters: f32, and f64 on the reference interpreter.
    pub fn parameter_type(&self) -> Option<DType> {
        self.engine.parameter(0).ok().map(|value| value.dtype())
    }

    /// The present value of a parameter, in train.onnx's orientation (see `transposed` in the manifest).
    pub fn parameter(&self, name: &str) -> Result<HostTensor> {
        self.engine.parameter(self.index(name)?)
    }

    /// Overwrites a parameter, in train.onnx's orientation.
    pub fn set_parameter(&mut self, name: &str, value: &HostTensor) -> Result<()> {
        self.engine.set_parameter(self.index(name)?, value)
    }

    /// The gradient of the last step's `loss_sum` (divide by its `loss_count` for that of the loss).
    pub fn gradient(&self, name: &str) -> Result<HostTensor> {
        let gradient = self.engine.gradient(self.index(name)?)?;
        if self.applied_scale == 1.0 {
            return Ok(gradient);
        }
        let values: Vec<f64> = gradient.to_f64().iter().map(|g| g / self.applied_scale).collect();
        HostTensor::from_f64(gradient.dtype(), gradient.shape(), &values)
    }

    /// What gradients are multiplied by in the next step, where the graph computes in f16.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
    }

    /// Writes `model.safetensors` and `model.onnx` into `folder`, which must be there; returns the latter.
    ///
    /// # Errors
    /// Where the source model is not where the manifest places it, has changed, or a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<PathBuf> {
        let source = self.file.source();
        checkpoint::check_source(self, &source)?;
        checkpoint::save_weights(self, Some(&source), &folder.join(checkpoint::WEIGHTS))?;
        let path = folder.join(checkpoint::MODEL);
        checkpoint::save_model(self, &source, &path)?;
        Ok(path)
    }

    pub(super) fn index(&self, name: &str) -> Result<usize> {
        let found = self.trainable.iter().position(|p| p.name == name);
        found.ok_or_else(|| Error::usage(Problem::new(name, "no trainable parameter has this name")))
    }

    /// What is fed besides tokens and draws: name and type.
    pub(super) fn extras(&self) -> &[(String, DType)] {
        &self.extras
    }

    fn feeds(&self, batch: &Batch) -> Result<Vec<(String, HostTensor)>> {
        let mut feeds = vec![(self.file.manifest.token_input.clone(), batch.tokens.clone())];
        for name in &self.draws {
            let value = match *name {
                "answer_mask" => &batch.answer,
                "t" => &batch.t,
                _ => &batch.u,
            };
            feeds.push((name.to_string(), value.clone()));
        }
        if self.loss_scale.is_some() {
            feeds.push((LOSS_SCALE.into(), HostTensor::scalar(self.applied_scale as f32)));
        }
        if let Some([k, n]) = self.shape.dropout {
            let rate = self.file.manifest.adapter.as_ref().map_or(0.0, |a| a.dropout);
            let numbers = match &batch.dropout {
                Some(numbers) => numbers.clone(),
                None => {
                    let [rows, length] = [0, 1].map(|axis| batch.tokens.shape().get(axis).copied().unwrap_or(0));
                    let zeros =
                        |shape: [i64; 3]| HostTensor::new(&shape, &vec![0f32; shape.iter().product::<i64>() as usize]);
                    [zeros([rows, length, k as i64])?, zeros([rows, k as i64, n as i64])?]
                }
            };
            let rate = if batch.dropout.is_some() { rate } else { 0.0 };
            let values = [HostTensor::scalar(rate as f32)].into_iter().chain(numbers);
            feeds.extend(DROPOUT.map(String::from).into_iter().zip(values));
        }
        if self.shape.packing {
            let alone = || {
                let places: Vec<i64> = (0..batch.tokens.len() as i64).collect();
                HostTensor::new(batch.tokens.shape(), &places)
            };
            feeds.push((PLACES.into(), batch.places.clone().map_or_else(alone, Ok)?));
        }
        for (name, dtype) in &self.extras {
            if let Some(value) = batch.extra(name, *dtype) {
                feeds.push((name.clone(), value?));
            }
        }
        Ok(feeds)
    }
}

impl Weights for Trainer {
    fn file(&self) -> &TrainFile {
        &self.file
    }

    fn value(&self, name: &str) -> Result<HostTensor> {
        self.parameter(name)
    }
}

/// The sizes that a graph fixes.
pub(super) fn shape_of(file: &TrainFile) -> Shape {
    let inputs = file.inputs();
    let tokens = inputs.iter().find(|i| i.name == file.manifest.token_input);
    let size = |axis: usize| tokens.and_then(|i| i.shape.get(axis).copied().flatten()).and_then(|n| n.try_into().ok());
    let columns = inputs.iter().find(|i| i.name == DROPOUT[2]);
    let known = |axis: usize| columns?.shape.get(axis).copied().flatten()?.try_into().ok();
    let dropout = known(1).zip(known(2)).map(|(k, n)| [k, n]);
    Shape { rows: size(0), length: size(1), pad_id: 0, dropout, packing: file.manifest.packing }
}
