//! Tensors of ONNX Runtime that stay between runs.

use super::environment::failed;
use super::tensor::{HostTensor, count};
use crate::error::{Error, Result};
use crate::ir::ty::DType;
use ort::memory::{AllocationDevice, Allocator};
use ort::value::{DynTensor, TensorElementType, ValueType};

/// Where buffers lie: on the host, or on a device.
#[derive(Default)]
pub struct Memory(pub(super) Option<Allocator>);

/// A tensor in ONNX Runtime's own memory, which a session can read and write in place.
pub struct Buffer {
    pub(super) inner: DynTensor,
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
pub(super) fn read<T: ort::value::TensorValueTypeMarker + ?Sized>(value: &ort::value::Value<T>) -> Result<HostTensor> {
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

pub(super) fn dtype(ty: TensorElementType) -> Option<DType> {
    TYPES.iter().find(|r| r.1 == ty).map(|r| r.0)
}

fn element_type(dtype: DType) -> TensorElementType {
    TYPES.iter().find(|r| r.0 == dtype).map_or(TensorElementType::Undefined, |r| r.1)
}
