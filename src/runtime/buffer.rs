//! Tensors of ONNX Runtime that stay between runs.

use super::environment::failed;
use super::tensor::{HostTensor, count};
use crate::error::{Error, Result};
use crate::ir::ty::DType;
use memmap2::MmapMut;
use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, MemoryInfo};
use ort::value::{DynTensor, TensorElementType, ValueType};
use std::ptr::NonNull;
use std::sync::Arc;

/// Where buffers lie: on the host, or on a device.
#[derive(Default)]
pub struct Memory(pub(super) Option<Allocator>);

/// A tensor that a session can read and write in place.
pub struct Buffer {
    pub(super) inner: DynTensor,
    dtype: DType,
    /// What it lies in, if that is not ONNX Runtime's: whatever holds `inner` must hold these.
    pub(super) pages: Option<Arc<MmapMut>>,
}

/// Bytes that are compared, and left alone where they are equal, at a time: a page of memory on most machines.
pub const PAGE: usize = 4096;

impl Buffer {
    /// A tensor of zeros on the host.
    pub fn zeros(dtype: DType, shape: &[i64]) -> Result<Self> {
        if count(shape).is_none() {
            return Err(Error::runtime(format!("a tensor cannot have shape {shape:?}")));
        }
        let inner =
            DynTensor::new(&Allocator::default(), element_type(dtype), shape).map_err(failed("make a tensor"))?;
        Ok(Buffer { inner, dtype, pages: None })
    }

    /// A tensor of zeros in `memory`.  On the host it takes memory page by page, when a page is first written with
    /// something else than zeros.
    ///
    /// # Errors
    /// Where the memory does not suffice.
    pub fn zeros_in(memory: &Memory, dtype: DType, shape: &[i64]) -> Result<Self> {
        let bytes = count(shape).and_then(|n| n.checked_mul(dtype.size()));
        let Some(bytes) = bytes.filter(|n| *n > 0 && memory.0.is_none()) else {
            return Self::in_memory(memory, &HostTensor::zeros(dtype, shape)?);
        };
        let unmapped = |e: std::io::Error| Error::runtime(format!("{bytes} bytes of memory cannot be had: {e}"));
        let mut pages = MmapMut::map_anon(bytes).map_err(unmapped)?;
        // A large page is taken whole when one row in it is written.  A kernel without them has nothing to be told.
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::NoHugePage);
        let (at, host) = (pages.as_mut_ptr().cast(), MemoryInfo::default());
        let mut value = std::ptr::null_mut();
        // SAFETY: `at` begins `bytes` bytes, as many as the type and shape have; `shape` has as many sizes as are told; the
        // out-pointer is valid.  Zero bytes are a value of every type.
        let status = unsafe {
            let (api, element) = (ort::api(), element_type(dtype).into());
            (api.CreateTensorWithDataAsOrtValue)(
                host.ptr(),
                at,
                bytes,
                shape.as_ptr(),
                shape.len(),
                element,
                &mut value,
            )
        };
        // SAFETY: the status is that of the call just made.
        unsafe { ort::Error::result_from_status(status) }.map_err(failed("make a tensor"))?;
        let value = NonNull::new(value).ok_or_else(|| Error::runtime("ONNX Runtime made no tensor"))?;
        // SAFETY: the value was just made, is owned by nothing else, and its memory is held beside it.
        let inner = unsafe { DynTensor::from_ptr(value, Some(&Allocator::default())) };
        Ok(Buffer { inner, dtype, pages: Some(Arc::new(pages)) })
    }

    /// A tensor of these values in `memory`.
    pub fn in_memory(memory: &Memory, tensor: &HostTensor) -> Result<Self> {
        let Some(allocator) = &memory.0 else { return Self::from_host(tensor) };
        let dtype = tensor.dtype();
        let inner = DynTensor::new(allocator, element_type(dtype), tensor.shape());
        let mut buffer = Buffer { inner: inner.map_err(failed("make a tensor on the device"))?, dtype, pages: None };
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

    /// Overwrites the values; pages that hold them already are not touched.  Errors where type or shape differ.
    pub fn write(&mut self, tensor: &HostTensor) -> Result<()> {
        if tensor.dtype() != self.dtype || tensor.shape() != self.shape() {
            let message = format!("{tensor:?} does not fit a buffer of {}{:?}", self.dtype.name(), self.shape());
            return Err(Error::runtime(message));
        }
        if !self.inner.memory_info().is_cpu_accessible() {
            let host = Self::from_host(tensor)?;
            return host.inner.copy_into(&mut self.inner).map_err(failed("copy a tensor to the device"));
        }
        for (to, from) in self.host_bytes().chunks_mut(PAGE).zip(tensor.bytes().chunks(PAGE)) {
            if to != from {
                to.copy_from_slice(from);
            }
        }
        Ok(())
    }

    /// The values of a buffer that lies on the host.
    fn host_bytes(&mut self) -> &mut [u8] {
        match count(self.shape()).unwrap_or(0) * self.dtype.size() {
            0 => &mut [],
            // SAFETY: the buffer was allocated, and set, for this type and shape; `&mut self` keeps others away.
            bytes => unsafe { std::slice::from_raw_parts_mut(self.inner.data_ptr_mut().cast(), bytes) },
        }
    }

    /// Sets every value to zero; pages of zeros are not touched.
    ///
    /// # Errors
    /// Where the values lie on a device and cannot be copied there.
    pub fn clear(&mut self) -> Result<()> {
        if !self.inner.memory_info().is_cpu_accessible() {
            return self.write(&HostTensor::zeros(self.dtype, self.shape())?);
        }
        let pages = self.host_bytes().chunks_mut(PAGE);
        pages.filter(|page| page.iter().fold(0, |any, byte| any | byte) != 0).for_each(|page| page.fill(0));
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
