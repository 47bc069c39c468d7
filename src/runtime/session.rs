//! Sessions of ONNX Runtime: open a model, run it on host tensors, or bind it to buffers that stay.

use super::device::Device;
use super::locate::{self, Library};
use super::tensor::{HostTensor, count};
use crate::error::{Error, Result};
use crate::ir::ty::DType;
use indexmap::IndexMap;
use ort::AsPointer;
use ort::ep::{self, ArenaExtendStrategy};
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{IoBinding, SessionInputValue};
use ort::value::{DynTensor, Outlet, TensorElementType, ValueType};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The library of this process and ort's environment in it; both live until the process ends.
pub struct Environment {
    inner: ort::environment::Environment,
    pub library: Library,
}

static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();

/// Loads ONNX Runtime, once in a process; downloads it where there is none (`say` hears of it).
pub fn environment(say: &mut dyn FnMut(&str)) -> Result<&'static Environment> {
    environment_for(false, say)
}

/// The same; with `gpu` a library with a CUDA provider where there is one, or one can be had.
pub fn environment_for(gpu: bool, say: &mut dyn FnMut(&str)) -> Result<&'static Environment> {
    static LOADING: Mutex<()> = Mutex::new(());
    let _loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = ENVIRONMENT.get() {
        return Ok(environment);
    }
    let mut refused = Vec::new();
    for library in locate::find_or_install(gpu, say)? {
        match ort::init_from(&library.path) {
            Ok(builder) => {
                let inner = builder.with_name("weftc").with_telemetry(false).build().map_err(failed("start"))?;
                inner.set_log_level(LogLevel::Error);
                register_arena(&inner).map_err(failed("set its memory up"))?;
                return Ok(ENVIRONMENT.get_or_init(|| Environment { inner, library }));
            }
            Err(why) => refused.push(format!("{}: {why}", library.origin.name())),
        }
    }
    Err(locate::missing(&refused))
}

/// Memory that sessions may take in turns.
fn register_arena(environment: &ort::environment::Environment) -> ort::Result<()> {
    let info = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?;
    let defaults = std::ptr::null();
    // SAFETY: both live through the call, which copies what it keeps; without a configuration it takes its own.
    let status = unsafe { (ort::api().CreateAndRegisterAllocator)(environment.ptr().cast_mut(), info.ptr(), defaults) };
    // SAFETY: the status is that of the call just made.
    unsafe { ort::Error::result_from_status(status) }
}

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

/// ONNX Runtime lists the domains of operators for the process, and fails where two sessions put in one at a time: held
/// while the first session with operators of ours is opened.
fn first_with_operators(options: &Options) -> Option<MutexGuard<'static, bool>> {
    static IS_LISTED: Mutex<bool> = Mutex::new(false);
    if options.operators.is_empty() {
        return None;
    }
    let mut is_listed = IS_LISTED.lock().unwrap_or_else(PoisonError::into_inner);
    (!std::mem::replace(&mut *is_listed, true)).then_some(is_listed)
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
            let _first = first_with_operators(options);
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
        Ok(Bound { session: self, binding, fetches: IndexMap::new() })
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
        self.binding.bind_input(name, &buffer.inner).map_err(failed("bind an input"))
    }

    /// Writes output `name` into `buffer` in all runs to come.
    pub fn output(&mut self, name: &str, buffer: &mut Buffer) -> Result<()> {
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

/// Where buffers lie: on the host, or on a device.
#[derive(Default)]
pub struct Memory(Option<Allocator>);

/// A tensor in ONNX Runtime's own memory, which a session can read and write in place.
pub struct Buffer {
    inner: DynTensor,
    dtype: DType,
}

impl Buffer {
    /// A tensor of zeros on the host.
    pub fn zeros(dtype: DType, shape: &[i64]) -> Result<Self> {
        if count(shape).is_none() {
            return Err(Error::runtime(format!("a tensor cannot have shape {shape:?}")));
        }
        let inner =
            DynTensor::new(&Allocator::default(), element_type(dtype), shape).map_err(failed("make a tensor"))?;
        Ok(Buffer { inner, dtype })
    }

    /// A tensor of these values in `memory`.
    pub fn in_memory(memory: &Memory, tensor: &HostTensor) -> Result<Self> {
        let Some(allocator) = &memory.0 else { return Self::from_host(tensor) };
        let dtype = tensor.dtype();
        let inner = DynTensor::new(allocator, element_type(dtype), tensor.shape());
        let mut buffer = Buffer { inner: inner.map_err(failed("make a tensor on the device"))?, dtype };
        buffer.write(tensor)?;
        Ok(buffer)
    }

    pub fn from_host(tensor: &HostTensor) -> Result<Self> {
        let mut buffer = Self::zeros(tensor.dtype(), tensor.shape())?;
        buffer.write(tensor)?;
        Ok(buffer)
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[i64] {
        self.inner.shape()
    }

    /// Overwrites the values.  Errors where type or shape differ.
    pub fn write(&mut self, tensor: &HostTensor) -> Result<()> {
        if tensor.dtype() != self.dtype || tensor.shape() != self.shape() {
            let message = format!("{tensor:?} does not fit a buffer of {}{:?}", self.dtype.name(), self.shape());
            return Err(Error::runtime(message));
        }
        if !self.inner.memory_info().is_cpu_accessible() {
            let host = Self::from_host(tensor)?;
            return host.inner.copy_into(&mut self.inner).map_err(failed("copy a tensor to the device"));
        }
        if !tensor.is_empty() {
            // SAFETY: the buffer was allocated for this type and shape, so it has as many bytes as the
            // tensor, and the two cannot overlap: one is a Vec, the other ONNX Runtime's.
            unsafe {
                let to: *mut u8 = self.inner.data_ptr_mut().cast();
                to.copy_from_nonoverlapping(tensor.bytes().as_ptr(), tensor.bytes().len());
            }
        }
        Ok(())
    }

    /// Sets every value to zero.
    ///
    /// # Errors
    /// Where the values lie on a device and cannot be copied there.
    pub fn clear(&mut self) -> Result<()> {
        if !self.inner.memory_info().is_cpu_accessible() {
            return self.write(&HostTensor::zeros(self.dtype, self.shape())?);
        }
        let bytes = count(self.shape()).unwrap_or(0) * self.dtype.size();
        if bytes > 0 {
            // SAFETY: the buffer was allocated for this type and shape; zero bytes are a value of every type.
            unsafe { self.inner.data_ptr_mut().cast::<u8>().write_bytes(0, bytes) };
        }
        Ok(())
    }

    pub fn read(&self) -> Result<HostTensor> {
        if self.inner.memory_info().is_cpu_accessible() {
            return read(&self.inner);
        }
        let host = self.inner.to(AllocationDevice::CPU, 0).map_err(failed("copy a tensor from the device"))?;
        read(&host)
    }
}

/// Copies a tensor out of ONNX Runtime.
fn read<T: ort::value::TensorValueTypeMarker + ?Sized>(value: &ort::value::Value<T>) -> Result<HostTensor> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(Error::runtime("an output is no tensor"));
    };
    let dtype = dtype(*ty).ok_or_else(|| Error::runtime(format!("tensors of type {ty} are not supported")))?;
    let bytes = count(shape).and_then(|n| n.checked_mul(dtype.size())).unwrap_or(0);
    let mut host = vec![0u8; bytes];
    if bytes > 0 {
        let tensor = value.upcast_ref();
        if !tensor.memory_info().is_cpu_accessible() {
            return Err(Error::runtime("a tensor on an accelerator was read without copying it first"));
        }
        // SAFETY: the tensor is alive, in host memory, and holds `bytes` bytes for its type and shape.
        unsafe {
            let from: *const u8 = tensor.data_ptr().cast();
            from.copy_to_nonoverlapping(host.as_mut_ptr(), bytes);
        }
    }
    HostTensor::from_bytes(dtype, shape, host)
}

fn ports(outlets: &[Outlet]) -> Vec<Port> {
    let port = |o: &Outlet| Port {
        name: o.name().to_string(),
        dtype: o.dtype().tensor_type().and_then(dtype),
        shape: o.dtype().tensor_shape().map(|s| s.to_vec()).unwrap_or_default(),
    };
    outlets.iter().map(port).collect()
}

const TYPES: [(DType, TensorElementType); 9] = [
    (DType::F64, TensorElementType::Float64),
    (DType::F32, TensorElementType::Float32),
    (DType::F16, TensorElementType::Float16),
    (DType::BF16, TensorElementType::Bfloat16),
    (DType::I64, TensorElementType::Int64),
    (DType::I32, TensorElementType::Int32),
    (DType::I8, TensorElementType::Int8),
    (DType::U8, TensorElementType::Uint8),
    (DType::Bool, TensorElementType::Bool),
];

fn dtype(ty: TensorElementType) -> Option<DType> {
    TYPES.iter().find(|r| r.1 == ty).map(|r| r.0)
}

fn element_type(dtype: DType) -> TensorElementType {
    TYPES.iter().find(|r| r.0 == dtype).map_or(TensorElementType::Undefined, |r| r.1)
}

/// Names what ONNX Runtime was doing in front of its message.
fn failed(doing: &'static str) -> impl Fn(ort::Error) -> Error {
    move |e| Error::runtime(format!("ONNX Runtime cannot {doing}: {}", e.message()))
}

/// The execution providers that the loaded library was built with.
pub(super) fn providers() -> Result<Vec<String>> {
    let (mut names, mut length) = (std::ptr::null_mut(), 0);
    // SAFETY: both out-pointers are valid; the library is loaded, since ort loads it on first use.
    unsafe { ort::Error::result_from_status((ort::api().GetAvailableProviders)(&mut names, &mut length)) }
        .map_err(failed("list its providers"))?;
    let read = |index: usize| {
        // SAFETY: the library filled `names` with `length` zero-terminated strings, which live until released.
        let name = unsafe { std::ffi::CStr::from_ptr(*names.add(index)) };
        name.to_string_lossy().trim_end_matches("ExecutionProvider").to_string()
    };
    let found = (0..usize::try_from(length).unwrap_or(0)).map(read).collect();
    // SAFETY: `names` and `length` come from the call above and are released once.
    let released = unsafe { ort::Error::result_from_status((ort::api().ReleaseAvailableProviders)(names, length)) };
    released.map_err(failed("list its providers"))?;
    Ok(found)
}
