//! The file of external data that is written beside a model.

use super::proto::{StringStringEntryProto, TensorProto, tensor_proto};
use crate::atomic;
use crate::error::{Error, Result};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Smaller tensors stay in the model file: shapes and scalars are needed to load the graph at all.
pub const SMALLEST_EXTERNAL: usize = 1024;

/// ONNX Runtime maps tensors that begin at a page.
const PAGE: u64 = 4096;

/// The file while it is written; nothing is visible under its name until `finish`.
pub struct DataFile {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
    location: String,
    end: u64,
}

impl DataFile {
    /// # Errors
    /// Where the model's folder cannot be written.
    pub fn new(model: &Path) -> Result<Self> {
        let location = location(model);
        let path = model.with_file_name(&location);
        Ok(DataFile { file: BufWriter::new(atomic::scratch(&path)?), path, location, end: 0 })
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.end
    }

    /// Appends a tensor's bytes and has it refer to them.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn append(&mut self, tensor: &mut TensorProto, bytes: &[u8]) -> Result<()> {
        let start = self.end.next_multiple_of(PAGE);
        let gap = vec![0; (start - self.end) as usize];
        let io = |e| Error::io("write", &self.path, e);
        self.file.write_all(&gap).and_then(|()| self.file.write_all(bytes)).map_err(io)?;
        self.end = start + bytes.len() as u64;
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
        tensor.data_location = tensor_proto::DataLocation::External.into();
        tensor.external_data = vec![
            entry("location", self.location.clone()),
            entry("offset", start.to_string()),
            entry("length", bytes.len().to_string()),
        ];
        Ok(())
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn finish(self) -> Result<()> {
        let file = self.file.into_inner().map_err(|e| Error::io("write", &self.path, e.into_error()))?;
        atomic::persist(file, &self.path)
    }
}

/// The name of a model's data file, in the same folder.
pub fn location(model: &Path) -> String {
    format!("{}.data", model.file_name().unwrap_or_default().to_string_lossy())
}
