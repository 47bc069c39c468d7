//! Reads a model file.

use super::held;
use super::import::Importer;
use super::names::{self, Entry};
use super::proto::ModelProto;
use super::tensor::{Site, Tensor};
use super::train_file::has_manifest;
use super::weights;
use crate::error::{Error, Problem, Result};
use crate::ir::Graph;
use prost::Message;
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The opsets that are read.
pub const OPSETS: RangeInclusive<i64> = 7..=28;

/// A model as it was read.
#[derive(Clone, Debug)]
pub struct Source {
    /// Inputs, weights and tables as leaves; the model's outputs under their own names.
    pub graph: Graph,
    pub path: PathBuf,
    pub opset: i64,
    /// The exporter and its version.
    pub producer: String,
    /// SHA-256 of the model file (not of external data), in hexadecimal.
    pub sha256: String,
    /// What exporters broke and was mended, one line each.
    pub mended: Vec<String>,
    /// The file is a training graph that weftc wrote.
    pub is_training_graph: bool,
}

/// Reads a model file and the headers of its external data; weights stay on disk.
///
/// # Errors
/// `Io` where the file cannot be read; `Model` with everything that stands in the way otherwise.
pub fn read(path: &Path) -> Result<Source> {
    let refuse = |problems: Vec<Problem>| Error::Model { model: path.to_path_buf(), problems };
    if path.is_dir() {
        let problem = Problem::new("", "is a folder, not a file");
        return Err(refuse(vec![problem.help("name the .onnx file inside it")]));
    }
    // Raw data in the messages borrows the mapping: nothing is copied.
    let file = Bytes::from_owner(weights::map(path)?);
    let model = ModelProto::decode(file.clone()).map_err(|e| refuse(vec![undecodable(&file, &e.to_string())]))?;
    if file.is_empty() {
        return Err(refuse(vec![Problem::new("", "the file is empty").help(EXPORT)]));
    }
    let opset = opset(&model).map_err(|p| refuse(vec![p]))?;
    let site = Site::new(path, file).map_err(|e| Error::io("open", path, e))?;
    let imported = Importer::new(&model, &site, opset).run().map_err(refuse)?;
    Ok(Source {
        graph: imported.graph,
        path: path.to_path_buf(),
        opset,
        producer: format!("{} {}", model.producer_name, model.producer_version).trim().to_string(),
        sha256: weights::sha256(path)?,
        mended: imported.mended,
        is_training_graph: has_manifest(&model),
    })
}

/// A tensor of a model's file that holds the numbers of another.
pub struct Tie {
    pub to: String,
    pub transposed: bool,
}

/// The ties between a model's weights, by the name of the tensor that is no weight of its own.
///
/// # Errors
/// `Io` where the file cannot be read; `Model` where it is none.
pub fn ties(path: &Path) -> Result<BTreeMap<String, Tie>> {
    let file = Bytes::from_owner(weights::map(path)?);
    let undecoded = |e: prost::DecodeError| undecodable(&file, &e.to_string());
    let model = ModelProto::decode(file.clone())
        .map_err(|e| Error::Model { model: path.to_path_buf(), problems: vec![undecoded(e)] })?;
    let site = Site::new(path, file.clone()).map_err(|e| Error::io("open", path, e))?;
    let graph = model.graph.unwrap_or_default();
    let named = graph.initializer.iter().map(|t| (t.name.as_str(), t)).chain(held::weights(&graph));
    let tensors: Vec<(&str, Tensor)> = named.filter_map(|(name, t)| Some((name, site.tensor(t).ok()?))).collect();
    let tied = names::plan(&graph, &tensors).entries.into_iter().filter_map(|(name, entry)| match entry {
        Entry::Tied { to, transposed } => Some((name, Tie { to, transposed })),
        _ => None,
    });
    Ok(tied.collect())
}

const EXPORT: &str = "weftc reads .onnx files (protobuf), as torch.onnx.export writes them";

/// First bytes of files that are taken for models.
const OTHERS: &[(&[u8], &str)] = &[
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?)"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer: the model itself was not downloaded (git lfs pull)"),
    (b"<", "a web page or XML"),
];

/// Why a file cannot be decoded, as far as its bytes tell.
fn undecodable(file: &[u8], why: &str) -> Problem {
    let why = why.trim_start_matches("failed to decode Protobuf message: ");
    let is_safetensors = file.get(8) == Some(&b'{') && file.get(4..8) == Some(&[0; 4]);
    let other = OTHERS.iter().find(|(start, _)| file.starts_with(start)).map(|(_, kind)| *kind);
    let other = other.or(is_safetensors.then_some("a safetensors file: weights without a graph"));
    let is_text = file.iter().take(64).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    match other.or(is_text.then_some("a text file")) {
        Some(kind) => Problem::new("", format!("not an ONNX file, but {kind}")).help(EXPORT),
        None if why.contains("recursion limit") => Problem::new("", "messages are nested more than 100 deep")
            .help("export for fixed behaviour: branches inside branches are not followed that far"),
        None if why.contains("UTF-8") => Problem::new("", format!("a name or text is not UTF-8 ({why})"))
            .help("the file is damaged; export the model again"),
        None if why.contains("underflow") => Problem::new("", format!("the file is cut short or no ONNX file ({why})"))
            .help("copy or download it again and compare its size"),
        None => Problem::new("", format!("not an ONNX file, or damaged ({why})")).help(EXPORT),
    }
}

fn opset(model: &ModelProto) -> std::result::Result<i64, Problem> {
    let standard = model.opset_import.iter().filter(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
    let mut versions: Vec<i64> = standard.map(|o| o.version).collect();
    versions.dedup();
    let version = match versions.as_slice() {
        [version] => *version,
        [] => {
            let problem = Problem::new("", "the file declares no opset of ONNX's own operators");
            return Err(problem.help(EXPORT));
        }
        several => {
            let problem = Problem::new("", format!("the file declares several opsets: {several:?}"));
            return Err(problem.help("export the model again with opset_version=23"));
        }
    };
    if OPSETS.contains(&version) {
        return Ok(version);
    }
    let (least, most) = (OPSETS.start(), OPSETS.end());
    let side = if version < *least { "older" } else { "newer" };
    let problem = Problem::new("", format!("opset {version} is {side} than what is read ({least} to {most})"));
    Err(problem.help("export the model again with opset_version=23"))
}
