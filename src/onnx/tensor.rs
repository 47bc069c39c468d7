//! Tensors of a model file: element types, and where the bytes are.

use super::proto::TensorProto;
use super::proto::tensor_proto::{DataLocation, DataType};
use super::weights;
use crate::ir::graph::Data;
use crate::ir::{DType, Dim};
use prost::bytes::Bytes;
use std::path::{Component, Path, PathBuf};

/// A dense tensor whose bytes are in a file or in memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub dtype: DType,
    pub dims: Vec<usize>,
    pub data: Data,
}

impl Tensor {
    pub fn numel(&self) -> usize {
        self.dims.iter().product()
    }

    /// A vector behind axes of size 1, `w[None, None, :]`.
    pub fn is_row(&self) -> bool {
        self.dims.len() > 1 && self.dims.last().is_some_and(|n| *n > 1 && *n == self.numel())
    }

    /// Whether both hold the same elements; whole tensors are read only where their first pages agree.
    pub fn is_copy_of(&self, other: &Tensor) -> bool {
        let bytes = |t: &Tensor| weights::load(&t.data).ok();
        (self.dtype, &self.dims) == (other.dtype, &other.dims)
            && bytes(self).zip(bytes(other)).is_some_and(|(a, b)| *a == *b)
    }
}

/// Our element type for ONNX's number.
pub fn dtype(number: i32) -> Result<DType, String> {
    match DataType::try_from(number) {
        Ok(DataType::Double) => Ok(DType::F64),
        Ok(DataType::Float) => Ok(DType::F32),
        Ok(DataType::Float16) => Ok(DType::F16),
        Ok(DataType::Bfloat16) => Ok(DType::BF16),
        Ok(DataType::Int64) => Ok(DType::I64),
        Ok(DataType::Int32) => Ok(DType::I32),
        Ok(DataType::Int8) => Ok(DType::I8),
        Ok(DataType::Uint8) => Ok(DType::U8),
        Ok(DataType::Uint4) => Ok(DType::U4),
        Ok(DataType::Int4) => Ok(DType::I4),
        Ok(DataType::Bool) => Ok(DType::Bool),
        Ok(other) => Err(format!("element type {} is not supported", other.as_str_name().to_lowercase())),
        Err(_) => Err(format!("unknown element type {number}")),
    }
}

/// Where a model lies: its bytes, and the folder that its external data may come from.
pub struct Site {
    pub model: PathBuf,
    /// The folder of the model, without links.
    folder: PathBuf,
    /// The model file as mapped; raw data points into it.
    pub file: Bytes,
}

impl Site {
    /// # Errors
    /// Where the model's folder cannot be resolved.
    pub fn new(model: &Path, file: Bytes) -> std::io::Result<Site> {
        let parent = model.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Site { model: model.to_path_buf(), folder: parent.canonicalize()?, file })
    }

    /// A tensor with its bytes checked to be there, in full.
    pub fn tensor(&self, proto: &TensorProto) -> Result<Tensor, String> {
        if proto.data_location == DataLocation::External as i32 {
            let (dtype, dims, bytes) = header(proto)?;
            return finish(proto, dtype, dims, bytes, self.external(proto, bytes as u64)?);
        }
        if proto.raw_data.is_empty() {
            return inline(proto);
        }
        let (dtype, dims, bytes) = header(proto)?;
        finish(proto, dtype, dims, bytes, self.raw(&proto.raw_data))
    }

    /// Raw data stays in the model file where it was decoded from it without a copy.
    fn raw(&self, raw: &Bytes) -> Data {
        let (start, at) = (self.file.as_ptr() as usize, raw.as_ptr() as usize);
        if at >= start && at + raw.len() <= start + self.file.len() {
            Data::File { path: self.model.clone(), offset: (at - start) as u64, len: raw.len() as u64 }
        } else {
            Data::Inline(raw.as_ref().into())
        }
    }

    /// A range of a file beside the model.  Nothing outside the model's folder is ever opened.
    fn external(&self, proto: &TensorProto, bytes: u64) -> Result<Data, String> {
        let entry = |key: &str| proto.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let location = entry("location").ok_or("external data without a location")?;
        let number = |key: &str, default: u64| match entry(key) {
            Some(text) => {
                text.parse::<u64>().map_err(|_| format!("external data: {key} `{text}` is no number of bytes"))
            }
            None => Ok(default),
        };
        let (offset, len) = (number("offset", 0)?, number("length", bytes)?);
        let relative = Path::new(location);
        if location.is_empty() || !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
        {
            return Err(format!("external data `{location}` is not a path inside the model's folder"));
        }
        let path = self.folder.join(relative);
        let real = path.canonicalize().map_err(|e| format!("external data `{location}`: {e}"))?;
        if !real.starts_with(&self.folder) {
            return Err(format!("external data `{location}` is a link that leaves the model's folder"));
        }
        let meta = std::fs::metadata(&real).map_err(|e| format!("external data `{location}`: {e}"))?;
        if !meta.is_file() {
            return Err(format!("external data `{location}` is not a file"));
        }
        if offset.checked_add(len).is_none_or(|end| end > meta.len()) {
            return Err(format!(
                "external data `{location}`: {len} bytes at {offset} are beyond its end ({} bytes); is the file complete?",
                meta.len()
            ));
        }
        // As the model names it, so that what is written later can refer to it relative to the model.
        let beside = self.model.parent().unwrap_or(Path::new(""));
        let named = relative.components().filter(|c| matches!(c, Component::Normal(_)));
        Ok(Data::File { path: named.fold(beside.to_path_buf(), |p, c| p.join(c)), offset, len })
    }
}

/// Element type, shape, and the number of bytes that they need.
fn header(proto: &TensorProto) -> Result<(DType, Vec<usize>, usize), String> {
    let dtype = dtype(proto.data_type)?;
    let dims: Option<Vec<usize>> = proto.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let dims = dims.ok_or_else(|| format!("shape {:?} has a negative size", proto.dims))?;
    let elements =
        dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| n.checked_mul(dtype.size()).is_some());
    let bytes = elements.and_then(|n| usize::try_from(dtype.bytes(n as u64)).ok());
    let bytes = bytes.filter(|n| *n <= isize::MAX as usize).ok_or("its shape is too large")?;
    let sizes: Vec<Dim> = proto.dims.iter().copied().map(Dim::Known).collect();
    super::build::check_shape(&sizes)?;
    Ok((dtype, dims, bytes))
}

fn finish(proto: &TensorProto, dtype: DType, dims: Vec<usize>, bytes: usize, data: Data) -> Result<Tensor, String> {
    let have = data.len();
    if have != bytes as u64 {
        return Err(format!("holds {have} bytes, its shape {:?} needs {bytes}", proto.dims));
    }
    Ok(Tensor { dtype, dims, data })
}

/// A tensor whose data is in the message itself.
pub fn inline(proto: &TensorProto) -> Result<Tensor, String> {
    let (dtype, dims, bytes) = header(proto)?;
    let data = match proto.raw_data.is_empty() {
        true => typed(proto, dtype)?,
        false => proto.raw_data.to_vec(),
    };
    finish(proto, dtype, dims, bytes, Data::Inline(data.into()))
}

/// Data in a typed field as little-endian bytes.
fn typed(proto: &TensorProto, dtype: DType) -> Result<Vec<u8>, String> {
    fn bytes<T: Copy, const N: usize>(items: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        items.iter().flat_map(|x| to(*x)).collect()
    }
    Ok(match dtype {
        DType::F64 => bytes(&proto.double_data, f64::to_le_bytes),
        DType::F32 => bytes(&proto.float_data, f32::to_le_bytes),
        DType::I64 => bytes(&proto.int64_data, i64::to_le_bytes),
        DType::I32 => bytes(&proto.int32_data, i32::to_le_bytes),
        // Narrow types lie in the low bits of an int32.
        DType::F16 | DType::BF16 => bytes(&proto.int32_data, |x| (x as u16).to_le_bytes()),
        // Two to an int32.
        DType::U4 | DType::I4 | DType::I8 | DType::U8 => bytes(&proto.int32_data, |x| [x as u8]),
        DType::Bool => bytes(&proto.int32_data, |x| [u8::from(x != 0)]),
    })
}
