//! How a kernel for a GPU is described, and how ONNX Runtime hears of it.

use super::super::broadcast::Shape;
use super::compile::{Function, Key, Modules};
use crate::ir;
use cudarc::driver::{result as driver, sys};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::operator::{ComputeContext, KernelContext, Operator, OperatorDomain};
use ort::operator::{OperatorInput, OperatorOutput};
use ort::value::{DynTensorValueType, TensorElementType, ValueType};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Arc;

/// The element type of an operand or a result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// The one that the kernel is compiled for: f32, f16 or bf16.
    T,
    F32,
    I64,
    U8,
    /// A scalar of type f64 that stays on the host, where the plan reads it.
    Host,
}

/// A kernel as a row of the table.
pub struct Kernel {
    /// Its function's, without the number that further bodies of one operator have behind it.
    pub name: &'static str,
    pub source: &'static str,
    pub operands: &'static [Element],
    pub results: &'static [Element],
    /// The node's attributes that the plan needs, all numbers.
    pub attributes: &'static [&'static str],
    /// Whether T is of 16 bits, always.
    pub narrow: bool,
    /// Whether a result may lie where an operand of its shape does: then each thread reads no element that another writes.
    pub in_place: bool,
    /// Whether it takes operands of these types, whose elements fit.
    pub fits: fn(&[&ir::Type]) -> bool,
    pub plan: fn(&Node) -> Result<Plan, String>,
}

/// What a plan is made for.
pub struct Node<'a> {
    pub shapes: &'a [Shape],
    /// The attributes, and behind them the operands on the host.
    pub numbers: &'a [f64],
    /// Bytes of an element of type T.
    pub bytes: usize,
}

/// What is launched, one after the other, and on what.
pub struct Plan {
    pub results: Vec<Shape>,
    /// Bytes of buffers that only these launches use.
    pub scratch: Vec<usize>,
    pub launches: Vec<Launch>,
}

pub struct Launch {
    pub function: &'static str,
    pub macros: Vec<String>,
    pub grid: [usize; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of shared memory whose size the kernel leaves open.
    pub shared: u32,
    pub arguments: Vec<Argument>,
}

/// What a kernel is called with, in its order.
pub enum Argument {
    Operand(usize),
    Result(usize),
    Scratch(usize),
    Size(usize),
    Flag(bool),
    Float(f32),
    /// A structure of such sizes.
    Sizes(Vec<i64>),
}

/// Adds a kernel under a function's name, for each element type.
pub fn add(
    domain: OperatorDomain,
    kernel: &'static Kernel,
    name: &str,
    modules: &Arc<Modules>,
) -> ort::Result<OperatorDomain> {
    let types: &[Type] = match kernel.operands.contains(&Element::T) {
        true if kernel.narrow => &[Type::F16, Type::Bf16],
        true => &[Type::F32, Type::F16, Type::Bf16],
        false => &[Type::F32],
    };
    types.iter().try_fold(domain, |domain, element| {
        let registered = Registered { kernel, name: name.into(), element: *element, modules: modules.clone() };
        if kernel.in_place { domain.add(InPlace(registered)) } else { domain.add(registered) }
    })
}

/// What T is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    F32,
    F16,
    Bf16,
}

impl Type {
    fn of(self, element: Element) -> TensorElementType {
        match (element, self) {
            (Element::T, Type::F16) => TensorElementType::Float16,
            (Element::T, Type::Bf16) => TensorElementType::Bfloat16,
            (Element::T, Type::F32) | (Element::F32, _) => TensorElementType::Float32,
            (Element::I64, _) => TensorElementType::Int64,
            (Element::U8, _) => TensorElementType::Uint8,
            (Element::Host, _) => TensorElementType::Float64,
        }
    }

    fn bytes(self) -> usize {
        if self == Type::F32 { 4 } else { 2 }
    }

    fn label(self) -> &'static str {
        match self {
            Type::F32 => "F32",
            Type::F16 => "F16",
            Type::Bf16 => "BF16",
        }
    }
}

struct Registered {
    kernel: &'static Kernel,
    name: String,
    element: Type,
    modules: Arc<Modules>,
}

/// One whose result may lie where an operand does.
struct InPlace(Registered);

/// The provider whose memory and stream a kernel uses.
const PROVIDER: &str = "CUDAExecutionProvider";

impl Registered {
    fn operands(&self) -> impl Iterator<Item = OperatorInput> {
        self.kernel.operands.iter().map(|e| {
            let memory = if *e == Element::Host { MemoryType::CPUInput } else { MemoryType::Default };
            OperatorInput::required(self.element.of(*e)).memory_type(memory)
        })
    }

    fn results(&self) -> impl Iterator<Item = OperatorOutput> {
        self.kernel.results.iter().map(|e| OperatorOutput::required(self.element.of(*e)))
    }

    fn running(&self, node: &KernelContext<'_>) -> ort::Result<Running> {
        let missing = |name: &str| ort::Error::new(format!("{}: it has no attribute {name}", self.kernel.name));
        let whole = |name: &str| node.get::<i64>(name).map(|n| n as f64);
        let read =
            |name: &&str| node.get::<f32>(*name).map(f64::from).or_else(|| whole(name)).ok_or_else(|| missing(name));
        Ok(Running {
            kernel: self.kernel,
            element: self.element,
            attributes: self.kernel.attributes.iter().map(read).collect::<ort::Result<_>>()?,
            modules: self.modules.clone(),
            functions: BTreeMap::new(),
        })
    }
}

macro_rules! operator {
    ($type:ty, $own:ident => $registered:expr, $in_place:expr) => {
        impl Operator for $type {
            type Kernel<'a> = Running;
            const INPLACES: &[(u32, u32)] = $in_place;

            fn name(&self) -> &str {
                let $own = self;
                &$registered.name
            }

            fn execution_provider_type(&self) -> Option<&str> {
                Some(PROVIDER)
            }

            fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
                let $own = self;
                $registered.operands()
            }

            fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
                let $own = self;
                $registered.results()
            }

            fn create_kernel<'a>(&self, node: &KernelContext<'a>) -> ort::Result<Running> {
                let $own = self;
                $registered.running(node)
            }
        }
    };
}
operator!(Registered, own => own, &[]);
operator!(InPlace, own => own.0, &[(0, 0), (1, 0), (2, 0)]);

struct Running {
    kernel: &'static Kernel,
    element: Type,
    attributes: Vec<f64>,
    modules: Arc<Modules>,
    functions: BTreeMap<(&'static str, Vec<String>), Function>,
}

impl ort::operator::Kernel for Running {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        self.launch(context).map_err(|e| ort::Error::new(format!("{}: {e}", self.kernel.name)))
    }
}

impl Running {
    fn launch(&mut self, context: &ComputeContext) -> Result<(), String> {
        let said = |e: ort::Error| e.to_string();
        let (mut operands, mut shapes, mut numbers) = (Vec::new(), Vec::new(), self.attributes.clone());
        for (k, element) in self.kernel.operands.iter().enumerate() {
            let value = context.input(k).map_err(said)?.ok_or_else(|| format!("operand {k} is missing"))?;
            if *element == Element::Host {
                numbers.push(value.try_extract_scalar::<f64>().map_err(said)?);
                continue;
            }
            let ValueType::Tensor { shape, .. } = value.dtype() else {
                return Err(format!("operand {k} is no tensor"));
            };
            shapes.push(Shape::new(shape));
            let value = value.downcast::<DynTensorValueType>().map_err(said)?;
            operands.push(value.data_ptr().cast_mut());
        }
        let plan = (self.kernel.plan)(&Node { shapes: &shapes, numbers: &numbers, bytes: self.element.bytes() })?;
        let mut results = Vec::new();
        for (k, shape) in plan.results.iter().enumerate() {
            let sizes: Vec<i64> = shape.0.iter().map(|n| *n as i64).collect();
            let value = context.output(k, sizes).map_err(said)?.ok_or_else(|| format!("result {k} is missing"))?;
            results.push(value.downcast::<DynTensorValueType>().map_err(said)?.data_ptr().cast_mut());
        }
        let device = self.modules.device();
        let info = MemoryInfo::new(AllocationDevice::CUDA, device, AllocatorType::Device, MemoryType::Default);
        let allocator = match plan.scratch.is_empty() {
            true => None,
            false => Some(context.allocator(&info.map_err(said)?).map_err(said)?),
        };
        // They go back to the arena when this call ends; what takes them next is behind these launches in the stream.
        let mut scratch = Vec::new();
        for bytes in &plan.scratch {
            scratch.extend(allocator.as_ref().map(|a| a.alloc::<u8>((*bytes).max(1))).transpose().map_err(said)?);
        }
        let scratch: Vec<*mut c_void> = scratch.iter_mut().map(|b| b.as_mut_ptr()).collect();
        let stream = context.stream().map_err(said)?.map_or(std::ptr::null_mut(), |s| s.as_ptr());
        for launch in plan.launches.into_iter().filter(|l| l.grid.iter().all(|n| *n > 0)) {
            self.start(launch, [&operands, &results, &scratch], stream.cast())?;
        }
        Ok(())
    }

    fn start(&mut self, launch: Launch, buffers: [&[*mut c_void]; 3], stream: sys::CUstream) -> Result<(), String> {
        let key = (launch.function, launch.macros);
        let function = match self.functions.get(&key) {
            Some(function) => *function,
            None => {
                let macros = std::iter::once(self.element.label().to_string()).chain(key.1.iter().cloned()).collect();
                let source: Key = (self.kernel.source, macros);
                let function = self.modules.function(&source, launch.function, launch.shared)?;
                self.functions.insert(key, function);
                function
            }
        };
        // Each argument in 8 bytes of its own, a structure in as many as it has sizes.
        let mut words: Vec<u64> = Vec::new();
        let mut starts = Vec::new();
        for argument in &launch.arguments {
            starts.push(words.len());
            match argument {
                Argument::Operand(k) => words.push(buffers[0][*k] as u64),
                Argument::Result(k) => words.push(buffers[1][*k] as u64),
                Argument::Scratch(k) => words.push(buffers[2][*k] as u64),
                Argument::Size(n) => words.push(*n as u64),
                Argument::Flag(is) => words.push(u64::from(*is)),
                Argument::Float(x) => words.push(u64::from(x.to_bits())),
                Argument::Sizes(sizes) => words.extend(sizes.iter().map(|n| *n as u64)),
            }
        }
        let mut parameters: Vec<*mut c_void> = starts.iter().map(|k| (&raw mut words[*k]).cast()).collect();
        let [x, y, z] = launch.grid.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        // SAFETY: the kernel takes these arguments in this order; buffers are as large as the plan says; the stream is
        // ONNX Runtime's, whose order keeps them alive.
        unsafe {
            driver::launch_kernel(function.0, (x, y, z), (launch.block, 1, 1), launch.shared, stream, &mut parameters)
        }
        .map_err(|e| format!("the NVIDIA driver cannot launch {}: {:?}", launch.function, e.0))
    }
}
