//! Reads a model file.

use super::import::Importer;
use super::proto::ModelProto;
use super::tensor::Site;
use super::weights;
use crate::error::{Error, Problem, Result};
use crate::ir::Graph;
use prost::Message;
use prost::bytes::Bytes;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The opsets that are read.
pub const OPSETS: RangeInclusive<i64> = 13..=25;

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
}

/// Reads a model file and the headers of its external data; weights stay on disk.
///
/// # Errors
/// `Io` where the file cannot be read; `Model` with everything that stands in the way otherwise.
pub fn read(path: &Path) -> Result<Source> {
    let refuse = |problems: Vec<Problem>| Error::Model { model: path.to_path_buf(), problems };
    // Raw data in the messages borrows the mapping: nothing is copied.
    let file = Bytes::from_owner(weights::map(path)?);
    let model = ModelProto::decode(file.clone()).map_err(|e| {
        let problem = Problem::new("", format!("not an ONNX file, or cut short: {e}"));
        refuse(vec![problem.help("weftc reads .onnx files (protobuf), as torch.onnx.export writes them")])
    })?;
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
    })
}

fn opset(model: &ModelProto) -> std::result::Result<i64, Problem> {
    let declared = model.opset_import.iter().find(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
    let Some(version) = declared.map(|o| o.version) else {
        let problem = Problem::new("", "the file declares no opset: it is empty or not an ONNX model");
        return Err(problem.help("weftc reads .onnx files (protobuf), as torch.onnx.export writes them"));
    };
    if OPSETS.contains(&version) {
        return Ok(version);
    }
    let (least, most) = (OPSETS.start(), OPSETS.end());
    let side = if version < *least { "older" } else { "newer" };
    let problem = Problem::new("", format!("opset {version} is {side} than what is read ({least} to {most})"));
    Err(problem.help("export the model again with opset_version=23"))
}
