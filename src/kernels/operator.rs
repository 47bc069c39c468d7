//! What a kernel is given and how ONNX Runtime hears of it.

use super::broadcast::Shape;
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain};
use ort::operator::{OperatorInput, OperatorOutput, ShapeInferenceContext};
use ort::value::PrimitiveTensorElementType;
use ort::value::{TensorElementType as Type, ValueType};
use std::marker::PhantomData;

/// A kernel: f32 results, mostly one, from operands of fixed types.
pub trait Compute: Sized + Send + Sync + 'static {
    /// The function's name, without the number that further bodies of one operator have behind it.
    const NAME: &'static str;
    const OPERANDS: &'static [Type];
    const RESULTS: usize = 1;
    /// Operands whose buffer ONNX Runtime may reuse for the result: they are read where, and before, it is written.
    const IN_PLACE: &'static [(u32, u32)] = &[];
    /// The result's shape, where it follows from those of the operands.
    const SHAPE: Known = Known::First;

    /// Reads the node's attributes.
    fn new(node: &KernelContext<'_>) -> Result<Self, String>;

    /// Errors say what is wrong with which shapes; the operator's name is put before them.
    fn compute(&self, call: &Call<'_>) -> Result<(), String>;
}

/// What is known of a result's shape before the operands' sizes are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is that of the first operand.
    First,
    /// It is that of the operands, if they have one shape.
    Common,
    Nothing,
}

/// A row of the table of kernels.
pub struct Entry {
    pub name: &'static str,
    pub add: fn(OperatorDomain, &str, usize) -> ort::Result<OperatorDomain>,
}

/// The row of `K`.
pub const fn entry<K: Compute>() -> Entry {
    Entry {
        name: K::NAME,
        add: |domain, name, threads| domain.add(Registered::<K> { name: name.into(), threads, kernel: PhantomData }),
    }
}

struct Registered<K> {
    name: String,
    threads: usize,
    kernel: PhantomData<K>,
}

impl<K: Compute> Operator for Registered<K> {
    type Kernel<'a> = Running<K>;
    const INPLACES: &[(u32, u32)] = K::IN_PLACE;

    fn name(&self) -> &str {
        &self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        K::OPERANDS.iter().map(|t| OperatorInput::required(*t))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        (0..K::RESULTS).map(|_| OperatorOutput::required(Type::Float32))
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        let inputs = context.inputs();
        // An unknown shape looks like that of a scalar, a size without a name like -1.
        let known = |t: &ValueType| match t {
            ValueType::Tensor { shape, dimension_symbols, .. } => {
                let mut sizes = shape.iter().zip(dimension_symbols.iter());
                !shape.is_empty() && sizes.all(|(n, name)| *n >= 0 || !name.is_empty())
            }
            _ => false,
        };
        let follows = match K::SHAPE {
            Known::First => true,
            Known::Common => inputs.windows(2).all(|w| w[0] == w[1]),
            Known::Nothing => false,
        };
        match inputs.first() {
            Some(first) if follows && known(first) => context.set_output(0, first),
            _ => Ok(()),
        }
    }

    fn create_kernel<'a>(&self, context: &KernelContext<'a>) -> ort::Result<Running<K>> {
        K::new(context)
            .map(|kernel| Running { kernel, threads: self.threads })
            .map_err(|e| ort::Error::new(format!("{}: {e}", K::NAME)))
    }
}

struct Running<K> {
    kernel: K,
    threads: usize,
}

impl<K: Compute> Kernel for Running<K> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        self.kernel
            .compute(&Call { context, threads: self.threads })
            .map_err(|e| ort::Error::new(format!("{}: {e}", K::NAME)))
    }
}

/// A float attribute of the node.
pub fn float(node: &KernelContext<'_>, name: &str) -> Result<f32, String> {
    node.get(name).ok_or_else(|| format!("it has no attribute {name}"))
}

/// An integer attribute of the node.
pub fn int(node: &KernelContext<'_>, name: &str) -> Result<i64, String> {
    node.get(name).ok_or_else(|| format!("it has no attribute {name}"))
}

/// An operand's elements in row-major order; they live as long as the call.
///
/// An address, not a slice: the result may be written to the same buffer.
#[derive(Clone)]
pub struct Tensor<T> {
    pub shape: Shape,
    pub at: *const T,
}

// SAFETY: threads read operands, and write the buffers they share with a result only where no other reads.
unsafe impl<T: Sync> Send for Tensor<T> {}
unsafe impl<T: Sync> Sync for Tensor<T> {}

impl<T> Tensor<T> {
    pub fn len(&self) -> usize {
        self.shape.numel()
    }

    /// The elements of an operand that is never the result's buffer.
    ///
    /// # Safety
    /// Nothing writes the buffer while the slice lives: the operand is not among the kernel's `IN_PLACE`.
    pub unsafe fn values(&self) -> &[T] {
        if self.len() == 0 {
            return &[];
        }
        // SAFETY: ONNX Runtime gave `len` elements at this address.
        unsafe { std::slice::from_raw_parts(self.at, self.len()) }
    }
}

/// The result's buffer.
#[derive(Clone, Copy)]
pub struct Target(pub *mut f32);

// SAFETY: threads are given disjoint parts.
unsafe impl Send for Target {}
unsafe impl Sync for Target {}

impl Target {
    /// The address of element `k`.
    ///
    /// # Safety
    /// There are at least `k` elements.
    pub unsafe fn at(self, k: usize) -> *mut f32 {
        // SAFETY: by the caller's promise.
        unsafe { self.0.add(k) }
    }
}

/// One evaluation of a node.
pub struct Call<'a> {
    /// How many threads the session has.
    pub threads: usize,
    context: &'a ComputeContext,
}

impl Call<'_> {
    /// Operand `k`.
    pub fn operand<T: PrimitiveTensorElementType + std::fmt::Debug>(&self, k: usize) -> Result<Tensor<T>, String> {
        let value =
            self.context.input(k).map_err(|e| e.to_string())?.ok_or_else(|| format!("operand {k} is missing"))?;
        let (shape, values) = value.try_extract_tensor::<T>().map_err(|e| e.to_string())?;
        Ok(Tensor { shape: Shape::new(shape), at: values.as_ptr() })
    }

    /// The result, to be written altogether.
    pub fn result(&self, shape: &Shape) -> Result<Target, String> {
        self.result_of(0, shape)
    }

    /// The same of result `k`.
    pub fn result_of(&self, k: usize, shape: &Shape) -> Result<Target, String> {
        let sizes: Vec<i64> = shape.0.iter().map(|n| *n as i64).collect();
        let value = self.context.output(k, sizes).map_err(|e| e.to_string())?;
        let mut value = value.ok_or_else(|| "the result is missing".to_string())?;
        let (_, values) = value.try_extract_tensor_mut::<f32>().map_err(|e| e.to_string())?;
        Ok(Target(values.as_mut_ptr()))
    }

    /// Calls `work` with ranges that make up `0..n`, each but the last of length `chunk`, on the session's threads.
    ///
    /// `work` must not panic.
    pub fn split(
        &self,
        n: usize,
        chunk: usize,
        work: impl Fn(std::ops::Range<usize>) + Sync + Send,
    ) -> Result<(), String> {
        let chunk = chunk.max(1);
        match n.div_ceil(chunk) {
            0 => Ok(()),
            1 => {
                work(0..n);
                Ok(())
            }
            parts => {
                let part = |k: usize| work(k * chunk..n.min((k + 1) * chunk));
                // With as many batches as parts, threads take one after another; else each gets its share beforehand, and
                // all wait for the slowest core.
                self.context.par_for(parts, parts, part).map_err(|e| e.to_string())
            }
        }
    }

    /// The same over rows of `width` elements, in chunks of at least [`CHUNK`] elements.
    pub fn rows(
        &self,
        rows: usize,
        width: usize,
        work: impl Fn(std::ops::Range<usize>) + Sync + Send,
    ) -> Result<(), String> {
        self.split(rows, CHUNK.div_ceil(width.max(1)), work)
    }
}

/// How many elements a thread takes at a time: enough to be worth waking for, few enough to share evenly.
pub const CHUNK: usize = 1 << 14;
