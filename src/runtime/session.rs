//! Sessions of ONNX Runtime: open a model, run it on host tensors, or bind it to buffers that stay.

use super::buffer::{Buffer, Memory, dtype, read};
use super::device::Device;
use super::environment::{environment, failed, first_with_operators};
use super::tensor::HostTensor;
use crate::error::{Error, Result};
use crate::ir::ty::DType;
use indexmap::IndexMap;
use memmap2::MmapMut;
use ort::AsPointer;
use ort::ep::{self, ArenaExtendStrategy};
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{IoBinding, SessionInputValue};
use ort::value::Outlet;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a session is set up.
#[derive(Clone)]
pub struct Options {
    /// Threads within an operator; 0 leaves the choice to ONNX Runtime.
    pub threads: usize,
    /// Whether idle threads spin: faster for graphs of many tiny nodes only on an otherwise idle machine.
    pub spinning: bool,
    /// Whether weights are copied into a packed form; without it external data stays memory-mapped.
    pub prepack: bool,
    /// Whether ONNX Runtime rewrites the graph (fusions, constant folding).
    pub optimize: bool,
    /// The folder of external data; needed where the model is given as bytes.
    pub folder: Option<PathBuf>,
    /// Kernels, by domain and name; they replace the functions of the same name.
    pub operators: Vec<Arc<ort::operator::OperatorDomain>>,
    pub device: Device,
    /// Whether values on a CPU lie in memory that all such sessions take in turns, instead of the session's own.  What is
    /// counted as a session's is then that of all.
    pub shares_memory: bool,
    /// Whether [`Session::assignment`] is noted.
    pub assignment: bool,
    /// Where ONNX Runtime's profile goes: the start of the file's name.
    pub profile: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            threads: 0,
            spinning: false,
            prepack: true,
            optimize: true,
            folder: None,
            operators: Vec::new(),
            device: Device::Cpu,
            shares_memory: false,
            assignment: false,
            profile: None,
        }
    }
}

/// Name, element type and shape of an input or output; an unknown size is -1.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    pub name: String,
    /// `None` for what is no tensor, or of a type weftc does not use.
    pub dtype: Option<DType>,
    pub shape: Vec<i64>,
}

/// A loaded model.
pub struct Session {
    inner: ort::session::Session,
    device: Device,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Session {
    /// Opens a model file; external data is looked up in `options.folder`, else beside the file.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        match &options.folder {
            // ONNX Runtime heeds the folder only for models given as bytes.
            Some(_) => {
                let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
                Self::from_bytes(&bytes, options)
            }
            None => Self::new(options, |b| b.commit_from_file(path)),
        }
    }

    /// Opens a model given as bytes; external data is looked up in `options.folder`.
    pub fn from_bytes(bytes: &[u8], options: &Options) -> Result<Self> {
        Self::new(options, |b| b.commit_from_memory(bytes))
    }

    fn new(
        options: &Options,
        commit: impl FnOnce(&mut ort::session::builder::SessionBuilder) -> ort::Result<ort::session::Session>,
    ) -> Result<Self> {
        let environment = environment(&mut |line| eprintln!("{line}"))?;
        let session = (|| -> ort::Result<_> {
            let level = if options.optimize { GraphOptimizationLevel::All } else { GraphOptimizationLevel::Disable };
            let mut builder = ort::session::Session::builder(&environment.inner)?
                .with_log_level(LogLevel::Error)?
                .with_optimization_level(level)?
                // The pattern doubles the arena from the second run on.
                .with_memory_pattern(false)?
                .with_intra_op_spinning(options.spinning)?
                .with_prepacking(options.prepack)?
                .with_precise_qmm()?;
            if options.threads > 0 {
                builder = builder.with_intra_threads(options.threads)?;
            }
            if let Some(folder) = &options.folder {
                let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
                let key = "session.model_external_initializers_file_folder_path";
                builder = builder.with_config_entry(key, folder.to_string_lossy())?;
            }
            if options.shares_memory {
                builder = builder.with_env_allocators()?;
            }
            if let Device::Cuda(id) = options.device {
                let provider = ep::CUDA::default()
                    .with_device_id(id as i32)
                    .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                    // As PyTorch has it: products of f32 are not rounded to 11 bits.
                    .with_tf32(false);
                builder = builder
                    .with_execution_providers([provider.build().error_on_failure()])?
                    .with_config_entry("session.use_device_allocator_for_initializers", "1")?;
            }
            if options.assignment {
                builder = builder.with_config_entry("session.record_ep_graph_assignment_info", "1")?;
            }
            if let Some(profile) = &options.profile {
                builder = builder.with_profiling(profile)?;
            }
            for domain in &options.operators {
                builder = builder.with_operators(domain.clone())?;
            }
            let _first = first_with_operators(&options.operators);
            commit(&mut builder)
        })();
        let inner = session.map_err(failed("load the model"))?;
        let (inputs, outputs) = (ports(inner.inputs()), ports(inner.outputs()));
        Ok(Session { inner, device: options.device, inputs, outputs })
    }

    /// The inputs that have no default, in order.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// The memory of the session's device.
    ///
    /// # Errors
    /// Where the device has no allocator.
    pub fn memory(&self) -> Result<Memory> {
        let Device::Cuda(id) = self.device else { return Ok(Memory::default()) };
        let info = MemoryInfo::new(AllocationDevice::CUDA, id as i32, AllocatorType::Device, MemoryType::Default);
        let allocator = info.and_then(|info| Allocator::new(&self.inner, info));
        allocator.map(|a| Memory(Some(a))).map_err(failed("find the device's memory"))
    }

    /// The most bytes that values and the session's own weights have taken at once on the CPU so far.
    ///
    /// # Errors
    /// Where the allocator keeps no count.
    pub fn most_memory(&self) -> Result<u64> {
        let info = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default);
        let allocator =
            info.and_then(|info| Allocator::new(&self.inner, info)).map_err(failed("find its allocator"))?;
        let mut stats = std::ptr::null_mut();
        // SAFETY: the allocator is alive and the out-pointer valid.
        let status = unsafe { (ort::api().AllocatorGetStats)(allocator.ptr(), &mut stats) };
        // SAFETY: the status is that of the call just made.
        unsafe { ort::Error::result_from_status(status) }.map_err(failed("count its memory"))?;
        // SAFETY: `stats` was just filled; the key is zero-terminated; the value lives as long as `stats`.
        let most = unsafe {
            let value = (ort::api().GetKeyValue)(stats, c"MaxInUse".as_ptr());
            let text = (!value.is_null()).then(|| std::ffi::CStr::from_ptr(value).to_string_lossy().into_owned());
            (ort::api().ReleaseKeyValuePairs)(stats);
            text
        };
        most.and_then(|m| m.parse().ok()).ok_or_else(|| Error::runtime("ONNX Runtime does not count its memory"))
    }

    /// Ends the profile and returns its file.
    ///
    /// # Errors
    /// Where `Options::profile` asked for none.
    pub fn end_profile(&mut self) -> Result<PathBuf> {
        self.inner.end_profiling().map(PathBuf::from).map_err(failed("write its profile"))
    }

    /// How many nodes each execution provider computes, by operator.  Noted where `Options::assignment` asks for it.
    ///
    /// # Errors
    /// Where it was not noted.
    pub fn assignment(&self) -> Result<BTreeMap<String, BTreeMap<String, usize>>> {
        let api = ort::api();
        let check = |status| {
            // SAFETY: the status is that of a call just made.
            unsafe { ort::Error::result_from_status(status) }.map_err(failed("tell which nodes run where"))
        };
        let text = |name: *const std::ffi::c_char| {
            // SAFETY: names are zero-terminated and live as long as the session.
            unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned()
        };
        let mut found: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
        let (mut graphs, mut graph_count) = (std::ptr::null(), 0);
        // SAFETY: the session is alive, both out-pointers are valid.
        check(unsafe { (api.Session_GetEpGraphAssignmentInfo)(self.inner.ptr(), &mut graphs, &mut graph_count) })?;
        for g in 0..graph_count {
            let (mut name, mut nodes, mut node_count) = (std::ptr::null(), std::ptr::null(), 0);
            // SAFETY: ONNX Runtime filled `graphs` with `graph_count` pointers that live as long as the session.
            let graph = unsafe { *graphs.add(g) };
            // SAFETY: as above; the out-pointers are valid.
            check(unsafe { (api.EpAssignedSubgraph_GetEpName)(graph, &mut name) })?;
            // SAFETY: as above.
            check(unsafe { (api.EpAssignedSubgraph_GetNodes)(graph, &mut nodes, &mut node_count) })?;
            let own = found.entry(text(name).trim_end_matches("ExecutionProvider").to_string()).or_default();
            for n in 0..node_count {
                let mut operator = std::ptr::null();
                // SAFETY: `nodes` has `node_count` pointers that live as long as the session.
                check(unsafe { (api.EpAssignedNode_GetOperatorType)(*nodes.add(n), &mut operator) })?;
                *own.entry(text(operator)).or_default() += 1;
            }
        }
        Ok(found)
    }

    /// Runs the model once on `feeds` and returns every output, in the model's order.
    pub fn run<'a>(
        &mut self,
        feeds: impl IntoIterator<Item = (&'a str, &'a HostTensor)>,
    ) -> Result<IndexMap<String, HostTensor>> {
        let mut values: Vec<(String, SessionInputValue<'_>)> = Vec::new();
        for (name, tensor) in feeds {
            values.push((name.to_string(), Buffer::from_host(tensor)?.inner.into()));
        }
        let outputs = self.inner.run(values).map_err(failed("run the model"))?;
        outputs.iter().map(|(name, value)| Ok((name.to_string(), read(&value)?))).collect()
    }

    /// Turns the session into one whose inputs and outputs are bound to buffers.
    pub fn bind(self) -> Result<Bound> {
        let binding = self.inner.create_binding().map_err(failed("bind the model"))?;
        Ok(Bound { session: self, binding, fetches: IndexMap::new(), pages: Vec::new() })
    }
}

/// A session whose inputs and outputs are bound: nothing is copied between runs.
///
/// A buffer may be bound as an input and as an output at once.  ONNX Runtime does not check this: a node
/// that reads the input after the output has been written sees the new values.
pub struct Bound {
    session: Session,
    binding: IoBinding,
    /// Outputs that are not bound to buffers, and whether they are wanted; their shapes may change.
    fetches: IndexMap<String, bool>,
    /// What bound buffers lie in, which the binding does not hold.
    pages: Vec<Arc<MmapMut>>,
}

impl Bound {
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Ends the profile and returns its file.
    ///
    /// # Errors
    /// As [`Session::end_profile`].
    pub fn end_profile(&mut self) -> Result<PathBuf> {
        self.session.end_profile()
    }

    /// Feeds `name` from `buffer` in all runs to come.
    pub fn input(&mut self, name: &str, buffer: &Buffer) -> Result<()> {
        self.pages.extend(buffer.pages.clone());
        self.binding.bind_input(name, &buffer.inner).map_err(failed("bind an input"))
    }

    /// Writes output `name` into `buffer` in all runs to come.
    pub fn output(&mut self, name: &str, buffer: &mut Buffer) -> Result<()> {
        self.pages.extend(buffer.pages.clone());
        self.binding.bind_output(name, &mut buffer.inner).map_err(failed("bind an output"))
    }

    /// Has `run` return output `name`.
    pub fn fetch(&mut self, name: &str) {
        self.fetches.insert(name.to_string(), true);
    }

    /// Has `run` return these outputs and no others.
    pub fn fetch_only(&mut self, names: &[String]) {
        self.fetches.values_mut().for_each(|wanted| *wanted = false);
        self.fetches.extend(names.iter().map(|n| (n.clone(), true)));
    }

    /// Runs the session; returns the fetched outputs.
    pub fn run(&mut self) -> Result<IndexMap<String, HostTensor>> {
        for name in self.fetches.keys() {
            // Bound anew every time, also where it is no longer wanted, since nothing can be unbound:
            // otherwise ONNX Runtime insists on the shape of the run before.
            let host = MemoryInfo::default();
            self.binding.bind_output_to_device(name.as_str(), &host).map_err(failed("bind an output"))?;
        }
        let outputs = self.session.inner.run_binding(&self.binding).map_err(failed("run the model"))?;
        let value = |name: &String| match outputs.get(name) {
            Some(value) => Ok((name.clone(), read(value)?)),
            None => Err(Error::runtime(format!("the model has no output {name}"))),
        };
        self.fetches.iter().filter(|(_, wanted)| **wanted).map(|(name, _)| value(name)).collect()
    }
}

fn ports(outlets: &[Outlet]) -> Vec<Port> {
    let port = |o: &Outlet| Port {
        name: o.name().to_string(),
        dtype: o.dtype().tensor_type().and_then(dtype),
        shape: o.dtype().tensor_shape().map(|s| s.to_vec()).unwrap_or_default(),
    };
    outlets.iter().map(port).collect()
}
