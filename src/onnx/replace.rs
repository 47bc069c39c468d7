//! Writes a model again with other weights: the trained ones.
//!
//! Everything but the initializers is copied as it stands in the file.  To decode and encode it would lose
//! what our messages do not say: whether an attribute is 0 or absent, and fields of newer versions.

use super::proto::{GraphProto, StringStringEntryProto, TensorProto, tensor_proto};
use super::tensor::Site;
use super::train_file::{Weight, weight};
use crate::error::{Error, Problem, Result};
use prost::Message;
use prost::bytes::Bytes;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};
use std::io::Write;
use std::path::Path;

/// From this size on weights are written beside the model: protobuf ends at 2 GiB.
const INLINE_LIMIT: usize = 1 << 30;

/// Smaller tensors stay in the model file: shapes and scalars are needed to load the graph at all.
const SMALLEST_EXTERNAL: usize = 1024;

/// Gives the new bytes of an initializer, or `None` to keep it.
pub type Change<'a> = &'a mut dyn FnMut(&str, &Weight) -> Result<Option<Vec<u8>>>;

/// Copies `source` to `out`, asking `new` for every initializer's bytes (`None` keeps them).  Weights that
/// were external, or are too large, go to a file beside it.  Returns how many were replaced.
///
/// Nothing is visible under `out` until it is complete.
///
/// # Errors
/// Where a file cannot be read or written, `source` is no model, or a replacement has another size.
pub fn replace(source: &Path, out: &Path, new: Change<'_>) -> Result<usize> {
    let file = Bytes::from(std::fs::read(source).map_err(|e| Error::io("read", source, e))?);
    let refuse =
        |place: &str, why: String| Error::Model { model: source.into(), problems: vec![Problem::new(place, why)] };
    let bad = |e: String| refuse("", format!("this is no ONNX file: {e}"));
    let parts = fields(&file).map_err(bad)?;
    let graph = parts.iter().find(|f| f.tag == GRAPH).ok_or_else(|| refuse("", "it has no graph".into()))?;
    let graph_parts = fields(&graph.content).map_err(bad)?;
    let tensors = graph_parts.iter().filter(|f| f.tag == INITIALIZER);
    let tensors: std::result::Result<Vec<_>, _> = tensors.map(|f| TensorProto::decode(f.content.clone())).collect();
    let mut tensors = tensors.map_err(|e| bad(e.to_string()))?;
    let site = Site::new(source, file.clone()).map_err(|e| Error::io("find", source, e))?;
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let external = |t: &TensorProto| t.data_location == i32::from(tensor_proto::DataLocation::External);
    let inline: usize = tensors.iter().map(|t| t.raw_data.len() + 4 * t.float_data.len()).sum();
    let split = inline > INLINE_LIMIT || tensors.iter().any(external);
    let mut data = if split { Some(DataFile::new(out)?) } else { None };

    let mut replaced = 0;
    for tensor in &mut tensors {
        let Ok(old) = weight(tensor, &site) else {
            // A type that weftc never trains, such as a string; it must at least be in the file itself.
            if external(tensor) {
                return Err(refuse(&tensor.name, "this external tensor cannot be read".into()));
            }
            continue;
        };
        let bytes = match new(&tensor.name, &old)? {
            Some(bytes) if bytes.len() != old.bytes.len() => {
                return Err(Error::internal(
                    "checkpoint",
                    format!("{}: {} bytes for {}", tensor.name, bytes.len(), old.bytes.len()),
                ));
            }
            Some(bytes) => {
                replaced += 1;
                bytes
            }
            None if !external(tensor) && data.is_none() => continue,
            None => old.bytes,
        };
        *tensor = TensorProto {
            name: std::mem::take(&mut tensor.name),
            doc_string: std::mem::take(&mut tensor.doc_string),
            metadata_props: std::mem::take(&mut tensor.metadata_props),
            dims: old.shape,
            data_type: tensor.data_type,
            ..TensorProto::default()
        };
        match &mut data {
            Some(file) if bytes.len() >= SMALLEST_EXTERNAL => file.append(tensor, &bytes)?,
            _ => tensor.raw_data = bytes.into(),
        }
    }
    let mut new_graph: Vec<u8> = others(&graph_parts, INITIALIZER);
    GraphProto { initializer: tensors, ..GraphProto::default() }.encode_raw(&mut new_graph);
    let mut model = others(&parts, GRAPH);
    encode_key(GRAPH, WireType::LengthDelimited, &mut model);
    encode_varint(new_graph.len() as u64, &mut model);

    let mut model_file = scratch(folder)?;
    let io = |e| Error::io("write", out, e);
    model_file.write_all(&model).and_then(|()| model_file.write_all(&new_graph)).map_err(io)?;
    model_file.as_file().sync_all().map_err(io)?;
    if let Some(data) = data {
        // An old model must never be seen beside new data.
        match std::fs::remove_file(out) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("replace", out, e)),
            _ => data.finish()?,
        }
    }
    model_file.persist(out).map_err(|e| Error::io("write", out, e.error))?;
    Ok(replaced)
}

/// The numbers of `ModelProto.graph` and `GraphProto.initializer`.
const GRAPH: u32 = 7;
const INITIALIZER: u32 = 5;

/// One field of a message as it lies in the file.
struct Field {
    tag: u32,
    /// Key and value.
    whole: Bytes,
    /// The value of a length-delimited field; empty for others.
    content: Bytes,
}

/// The fields of a message, in their order.
fn fields(message: &Bytes) -> std::result::Result<Vec<Field>, String> {
    let broken = |e: prost::DecodeError| e.to_string();
    let mut rest = message.clone();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let start = message.len() - rest.len();
        let (tag, wire) = decode_key(&mut rest).map_err(broken)?;
        let mut content = Bytes::new();
        if wire == WireType::LengthDelimited {
            let length = decode_varint(&mut rest).map_err(broken)?;
            let length = usize::try_from(length).ok().filter(|n| *n <= rest.len());
            let length = length.ok_or_else(|| format!("field {tag} is longer than the file"))?;
            content = rest.split_to(length);
        } else {
            skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(broken)?;
        }
        found.push(Field { tag, whole: message.slice(start..message.len() - rest.len()), content });
    }
    Ok(found)
}

/// The bytes of all fields but those of number `tag`.
fn others(fields: &[Field], tag: u32) -> Vec<u8> {
    fields.iter().filter(|f| f.tag != tag).flat_map(|f| f.whole.iter().copied()).collect()
}

/// The file of external data while it is written.
struct DataFile {
    file: std::io::BufWriter<tempfile::NamedTempFile>,
    path: std::path::PathBuf,
    location: String,
    end: u64,
}

impl DataFile {
    /// ONNX Runtime maps tensors that begin at a page.
    const PAGE: u64 = 4096;

    fn new(model: &Path) -> Result<Self> {
        let location = format!("{}.data", model.file_name().unwrap_or_default().to_string_lossy());
        let path = model.with_file_name(&location);
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(DataFile { file: std::io::BufWriter::new(scratch(folder)?), path, location, end: 0 })
    }

    fn append(&mut self, tensor: &mut TensorProto, bytes: &[u8]) -> Result<()> {
        let start = self.end.next_multiple_of(Self::PAGE);
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

    fn finish(self) -> Result<()> {
        let path = self.path;
        let file = self.file.into_inner().map_err(|e| Error::io("write", &path, e.into_error()))?;
        file.as_file().sync_all().map_err(|e| Error::io("write", &path, e))?;
        file.persist(&path).map(drop).map_err(|e| Error::io("write", &path, e.error))
    }
}

fn scratch(folder: &Path) -> Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(".weftc-").tempfile_in(folder).map_err(|e| Error::io("write in", folder, e))
}
