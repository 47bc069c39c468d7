//! What a training step runs on.

use super::forward::{Call, Forward};
use super::optimizer::{Decay, Optimizer};
use crate::error::{Error, Result};
use crate::ir::DType;
use crate::kernels;
use crate::kernels::cuda::Gpu;
use crate::manifest::{KERNELS_SINCE, PROBE};
use crate::onnx::train_file::parts::Part;
use crate::onnx::train_file::{Function, NO_DECAY, Port, TrainFile};
use crate::runtime::device::Device;
use crate::runtime::{Bound, Buffer, HostTensor, Options, Session, cuda, environment, locate};
use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Runs a part of a file on feeds by name, of which it takes those that it needs; returns its outputs.
pub type Run<'a> = Box<dyn FnMut(&[(String, HostTensor)]) -> Result<IndexMap<String, HostTensor>> + 'a>;

/// As many elements of equal parameters a GPU updates together: a node of fewer takes as long as its launch, and a dozen
/// copies of them are in memory.
const TOGETHER: usize = 1 << 20;

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    pub optimizer: Optimizer,
    /// From 1.
    pub step: u64,
    /// What gradients are multiplied by.
    pub grad_scale: f64,
}

/// Holds the parameters, their gradients and the optimizer's state; parameters are numbered in the
/// manifest's order of trainable ones.
pub trait Engine {
    /// Runs the training graph on the feeds by name; returns the outputs `want` and keeps the gradients,
    /// added to those before if `accumulate`.
    fn forward(
        &mut self,
        feeds: &[(String, HostTensor)],
        want: &[String],
        accumulate: bool,
    ) -> Result<IndexMap<String, HostTensor>>;

    /// Runs the entropy pass alone, where it is not part of the step: `beta` `[B, L]`, with the present parameters
    /// or with those that training started from, as the manifest says.
    fn probe(&mut self, feeds: &[(String, HostTensor)]) -> Result<HostTensor>;

    /// Opens the model with the present parameters, which it reads in place; a session lives as long as the result.
    fn open<'a>(&'a self, forward: &'a Forward) -> Result<Call<'a>>;

    /// Whether parts of the file can be opened beside the step.
    fn opens_parts(&self) -> bool {
        false
    }

    /// Opens a part of the file as `open` does.
    fn open_part<'a>(&'a self, _part: &'a Part) -> Result<Run<'a>> {
        Err(Error::internal("evaluation", "the engine opens no parts"))
    }

    /// Ends the profiles that `Options::profile` asked for; returns their files by session: `step`, `probe`, `sum`,
    /// `norm`, `update`.
    fn end_profiles(&mut self) -> Result<Vec<(&'static str, PathBuf)>> {
        Ok(Vec::new())
    }

    /// What the user should know of where the step is computed.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// The Euclidean norm over the kept gradients of `loss_sum`.
    fn grad_norm(&mut self) -> Result<f64>;

    /// Updates every parameter and the state from the kept gradients.
    fn update(&mut self, update: &Update) -> Result<()>;

    fn parameter(&self, index: usize) -> Result<HostTensor>;
    fn set_parameter(&mut self, index: usize, value: &HostTensor) -> Result<()>;
    fn gradient(&self, index: usize) -> Result<HostTensor>;
    /// What the optimizer keeps of a parameter, in the order of its function's state.
    fn state(&self, index: usize) -> Result<Vec<HostTensor>>;
    fn set_state(&mut self, index: usize, state: &[HostTensor]) -> Result<()>;
}

/// ONNX Runtime: parameters, gradients and state stay in buffers that the sessions read and write in place.
///
/// The norm has a session of its own because the host decides between it and the update: a step whose
/// norm is not finite must leave every parameter as it was.
pub struct OnnxRuntime {
    step: Opened,
    /// The entropy pass, where it is not part of the step.
    probe: Option<Opened>,
    norm: Bound,
    update: Bound,
    /// Adds gradients to sums; only where micro-batches are accumulated.
    sum: Option<Bound>,
    /// Of the parameters, in order.
    names: Vec<String>,
    parameters: Vec<Buffer>,
    gradients: Vec<Buffer>,
    sums: Vec<Buffer>,
    /// By parameter, what the optimizer keeps.
    states: Vec<Vec<Buffer>>,
    function: &'static Function,
    /// What the user should know.
    notes: Vec<String>,
    /// By operator, the step's nodes that a GPU leaves to the CPU.
    on_cpu: BTreeMap<String, usize>,
    /// How sessions are opened.
    options: Options,
}

/// The GPU that a device is.
fn gpu(device: Device) -> Option<Gpu> {
    match device {
        Device::Cpu => None,
        Device::Cuda(device) => Some(Gpu { device, cache: locate::cache_folder().ok() }),
    }
}

/// A session and what it is fed.
struct Opened {
    session: Bound,
    inputs: Vec<String>,
}

impl Opened {
    fn new(part: &Part, options: &Options) -> Result<Self> {
        Ok(Opened { session: Session::from_bytes(&part.bytes, options)?.bind()?, inputs: part.inputs.clone() })
    }

    /// Feeds what it takes, in all runs to come.
    fn input(&mut self, name: &String, buffer: &Buffer) -> Result<()> {
        if self.inputs.contains(name) { self.session.input(name, buffer) } else { Ok(()) }
    }

    fn feed(&mut self, feeds: &[(String, HostTensor)]) -> Result<()> {
        let mut taken = feeds.iter().filter(|(name, _)| self.inputs.contains(name));
        taken.try_for_each(|(name, value)| self.session.input(name, &Buffer::from_host(value)?))
    }
}

impl OnnxRuntime {
    /// Opens the sessions; `trainable` are the parameters in order.  `accumulate` keeps sums of gradients;
    /// `portable` runs functions instead of our kernels, where there are some; `decay` says which parameters
    /// decay.  `options.profile` is a folder, for a profile of each session.
    pub fn new(
        file: &TrainFile,
        trainable: &[Port],
        options: &Options,
        accumulate: bool,
        portable: bool,
        function: &'static Function,
        decay: Decay,
    ) -> Result<Self> {
        if options.device == Device::Cpu && file.manifest.compute == "bf16" {
            let message = "this train.onnx computes in bf16, which ONNX Runtime does on a GPU alone".into();
            let help = "run it where a GPU is (--device cuda), or compile the model with --target cpu".into();
            return Err(Error::Runtime { message, help: Some(help) });
        }
        let assignment = options.device != Device::Cpu;
        let profiles = options.profile.clone();
        let profiled = |name: &str, options: &Options| Options {
            profile: profiles.as_ref().map(|folder| folder.join(name)),
            ..options.clone()
        };
        let folder = Some(file.folder().to_path_buf());
        // The step, an entropy pass before it and an evaluation between steps run in turns.
        let mut options = Options { folder, assignment, shares_memory: true, profile: None, ..options.clone() };
        let has_kernels = options.device == Device::Cpu && !portable;
        if has_kernels && file.manifest.version >= KERNELS_SINCE && file.manifest.compute == "f32" {
            // Kernels are ONNX Runtime's objects: it must be loaded.
            environment(&mut |line| eprintln!("{line}"))?;
            options.operators.extend(kernels::step(file.functions(), options.threads)?);
        }
        let mut notes = Vec::new();
        // The GPU whose kernels are ours.
        let mut gpu = gpu(options.device).filter(|_| !portable);
        if gpu.is_some() && !cuda::has_compiler() {
            notes.push(cuda::without_compiler());
            gpu = None;
        }
        if let Some(own) = &gpu {
            environment(&mut |line| eprintln!("{line}"))?;
            let functions = file.manifest.has_gpu_kernels().then(|| file.functions()).into_iter().flatten();
            match kernels::cuda::step(functions, own) {
                Ok(kernels) => options.operators.extend(kernels),
                Err(why) => {
                    notes.push(format!("weftc's own kernels are not used on this GPU: {why}"));
                    gpu = None;
                }
            }
        }
        let mut step = Opened::new(&file.step(trainable)?, &profiled("step", &options))?;
        let session = step.session.session();
        let memory = session.memory()?;
        let on_cpu = if assignment { session.assignment()?.remove("CPU").unwrap_or_default() } else { BTreeMap::new() };
        let probe = file.probe(trainable)?;
        let mut probe = probe.map(|part| Opened::new(&part, &profiled("probe", &options))).transpose()?;
        let mut parameters = Vec::new();
        let (mut gradients, mut sums, mut states) = (Vec::new(), Vec::new(), Vec::new());
        for port in trainable {
            let initial = file.initial(&port.name)?;
            let value = HostTensor::from_bytes(initial.dtype, &initial.shape, initial.bytes)?;
            let zeros = || Buffer::zeros_in(&memory, value.dtype(), value.shape());
            let (buffer, mut gradient) = (Buffer::in_memory(&memory, &value)?, zeros()?);
            step.input(&port.name, &buffer)?;
            step.session.output(&format!("grad/{}", port.name), &mut gradient)?;
            probe.iter_mut().try_for_each(|probe| probe.input(&port.name, &buffer))?;
            parameters.push(buffer);
            gradients.push(gradient);
            states.push(function.state.iter().map(|_| zeros()).collect::<Result<Vec<Buffer>>>()?);
            if accumulate {
                sums.push(zeros()?);
            }
        }
        // Small graphs without weights: nothing to look up beside a file.
        let plain = Options { folder: None, assignment: false, operators: Vec::new(), ..options.clone() };
        let mut with_kernels = plain.clone();
        let single = trainable.iter().all(|p| p.dtype == DType::F32);
        let has_kernels = has_kernels && single;
        if has_kernels {
            with_kernels.operators.push(kernels::optimizer()?);
        }
        let mut for_update = with_kernels.clone();
        if let Some(gpu) = gpu.filter(|_| single) {
            for_update.operators.extend(kernels::cuda::optimizer(function.name, &gpu)?);
        }
        let open = |name, bytes: &[u8], options| Session::from_bytes(bytes, &profiled(name, options))?.bind();
        let together = if options.device == Device::Cpu { 0 } else { TOGETHER };
        let sum = accumulate.then(|| open("sum", &file.sum_model(trainable, has_kernels), &with_kernels));
        let mut sum = sum.transpose()?;
        let mut norm = open("norm", &file.norm_model(trainable, together, has_kernels), &with_kernels)?;
        let at_once = if for_update.operators.is_empty() { together } else { 0 };
        let update = file.update_model(function, trainable, &|p| decay.includes(&p.shape), at_once)?;
        let mut update = open("update", &update, &for_update)?;
        norm.fetch("norm");
        for k in 0..trainable.len() {
            let name = |prefix: &str| format!("{prefix}/{k}");
            if let Some(sum) = &mut sum {
                sum.input(&name("s"), &sums[k])?;
                sum.input(&name("g"), &gradients[k])?;
                sum.output(&name("s2"), &mut sums[k])?;
            }
            let gradient = if accumulate { &sums[k] } else { &gradients[k] };
            norm.input(&name("g"), gradient)?;
            update.input(&name("g"), gradient)?;
            let buffers = std::iter::once(&mut parameters[k]).chain(&mut states[k]);
            for (prefix, buffer) in ["p"].iter().chain(function.state).zip(buffers) {
                update.input(&name(prefix), buffer)?;
                update.output(&name(&format!("{prefix}2")), buffer)?;
            }
        }
        probe.iter_mut().for_each(|probe| probe.session.fetch(PROBE));
        let names = trainable.iter().map(|p| p.name.clone()).collect();
        Ok(OnnxRuntime {
            step,
            probe,
            norm,
            update,
            sum,
            names,
            parameters,
            gradients,
            sums,
            states,
            function,
            notes,
            on_cpu,
            options,
        })
    }

    /// A session of a part, which reads the parameters in place; its data are in `folder`, or where those of the step are.
    fn call(&self, part: &Part, folder: Option<&Path>) -> Result<Run<'_>> {
        let folder = folder.map(PathBuf::from).or_else(|| self.options.folder.clone());
        let options = Options { folder, assignment: false, ..self.options.clone() };
        let mut opened = Opened::new(part, &options)?;
        for (name, buffer) in self.names.iter().zip(&self.parameters) {
            opened.input(name, buffer)?;
        }
        part.outputs.iter().for_each(|output| opened.session.fetch(output));
        Ok(Box::new(move |feeds| {
            opened.feed(feeds)?;
            opened.session.run()
        }))
    }
}

impl Engine for OnnxRuntime {
    fn forward(
        &mut self,
        feeds: &[(String, HostTensor)],
        want: &[String],
        accumulate: bool,
    ) -> Result<IndexMap<String, HostTensor>> {
        self.step.feed(feeds)?;
        self.step.session.fetch_only(want);
        let outputs = self.step.session.run()?;
        if let Some(sum) = &mut self.sum {
            if !accumulate {
                self.sums.iter_mut().try_for_each(Buffer::clear)?;
            }
            sum.run()?;
        }
        Ok(outputs)
    }

    fn probe(&mut self, feeds: &[(String, HostTensor)]) -> Result<HostTensor> {
        let missing = || Error::internal("probe", "the entropy pass is part of the step");
        let probe = self.probe.as_mut().ok_or_else(missing)?;
        probe.feed(feeds)?;
        probe.session.run()?.swap_remove(PROBE).ok_or_else(missing)
    }

    fn open<'a>(&'a self, forward: &'a Forward) -> Result<Call<'a>> {
        let mut call = self.call(&forward.part, Some(&forward.folder))?;
        let missing = || Error::internal("samples", "the model has no logits");
        Ok(Box::new(move |feeds| call(feeds)?.pop().map(|(_, logits)| logits).ok_or_else(missing)))
    }

    /// Not on a GPU, whose memory would hold frozen weights twice.
    fn opens_parts(&self) -> bool {
        self.options.device == Device::Cpu
    }

    fn open_part<'a>(&'a self, part: &'a Part) -> Result<Run<'a>> {
        self.call(part, None)
    }

    fn end_profiles(&mut self) -> Result<Vec<(&'static str, PathBuf)>> {
        let own = [("step", &mut self.step.session), ("norm", &mut self.norm), ("update", &mut self.update)];
        let some = self.probe.iter_mut().map(|probe| ("probe", &mut probe.session));
        let all = own.into_iter().chain(some).chain(self.sum.iter_mut().map(|sum| ("sum", sum)));
        all.map(|(name, session)| Ok((name, session.end_profile()?))).collect()
    }

    fn notes(&self) -> Vec<String> {
        let nodes: usize = self.on_cpu.values().sum();
        let list: Vec<String> = self.on_cpu.iter().map(|(operator, n)| format!("{operator} {n}")).collect();
        let on_cpu = (nodes > 0).then(|| format!("{nodes} nodes of the step are left to the CPU: {}", list.join(", ")));
        self.notes.iter().cloned().chain(on_cpu).collect()
    }

    fn grad_norm(&mut self) -> Result<f64> {
        self.norm.run()?.get("norm").map_or(Ok(0.0), HostTensor::item)
    }

    fn update(&mut self, update: &Update) -> Result<()> {
        let scalars = update.optimizer.scalars(update.step, update.grad_scale);
        for (name, value) in self.function.scalars.iter().zip(scalars).chain([(&NO_DECAY, 0.0)]) {
            self.update.input(name, &Buffer::from_host(&HostTensor::scalar(value))?)?;
        }
        self.update.run().map(drop)
    }

    fn parameter(&self, index: usize) -> Result<HostTensor> {
        self.parameters[index].read()
    }

    fn set_parameter(&mut self, index: usize, value: &HostTensor) -> Result<()> {
        self.parameters[index].write(value)
    }

    fn gradient(&self, index: usize) -> Result<HostTensor> {
        if self.sum.is_some() { self.sums[index].read() } else { self.gradients[index].read() }
    }

    fn state(&self, index: usize) -> Result<Vec<HostTensor>> {
        self.states[index].iter().map(Buffer::read).collect()
    }

    fn set_state(&mut self, index: usize, state: &[HostTensor]) -> Result<()> {
        self.states[index].iter_mut().zip(state).try_for_each(|(buffer, value)| buffer.write(value))
    }
}
