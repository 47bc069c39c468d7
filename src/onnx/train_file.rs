//! A train.onnx as its runner sees it: the manifest, the inputs, the first values of the parameters, and the
//! functions from which `updates` builds the optimizer's own graphs; [`parts`] has the parts that sessions compute.

pub mod parts;
mod updates;

use super::data_file::location;
use super::proto::{
    FunctionProto, GraphProto, ModelProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_proto, tensor_shape_proto, type_proto,
};
use super::tensor::{Site, Tensor, dtype};
use super::weights;
use crate::error::{Error, Problem, Result};
use crate::ir::ty::DType;
use crate::manifest::{self, Manifest};
use prost::Message;
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The domain of our functions.
pub const DOMAIN: &str = "ai.weft";

/// An input or output: sizes are known numbers or `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<Option<i64>>,
}

/// The value of a weight: dense little-endian bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    pub dtype: DType,
    pub shape: Vec<i64>,
    pub bytes: Vec<u8>,
}

/// A train.onnx that was read and whose manifest this version understands.
pub struct TrainFile {
    path: PathBuf,
    /// Where external data lies.
    folder: PathBuf,
    bytes: Bytes,
    site: Site,
    model: ModelProto,
    pub manifest: Manifest,
}

/// Whether `path` is an ONNX file that `weftc compile` wrote, of any version.
///
/// # Errors
/// `Io`.
pub fn is_training_graph(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    let model = ModelProto::decode(Bytes::from_owner(weights::map(path)?));
    Ok(model.is_ok_and(|m| has_manifest(&m)))
}

pub(super) fn has_manifest(model: &ModelProto) -> bool {
    model.metadata_props.iter().any(|p| p.key == manifest::KEY)
}

impl TrainFile {
    /// Reads `path`; external data is looked up in `folder`, else beside the source model that the manifest
    /// names.
    pub fn read(path: &Path, folder: Option<&Path>) -> Result<Self> {
        let bytes = Bytes::from_owner(weights::map(path)?);
        let refuse = |message: String, help: &str| Error::Model {
            model: path.to_path_buf(),
            problems: vec![Problem::new("", message).help(help)],
        };
        let model = ModelProto::decode(bytes.clone())
            .map_err(|e| refuse(format!("this is no ONNX file: {e}"), "weftc compile makes a train.onnx"))?;
        let json = model.metadata_props.iter().find(|p| p.key == manifest::KEY).ok_or_else(|| {
            refuse(
                format!("there is no {} in its metadata", manifest::KEY),
                "this is not a training graph; make one with weftc compile",
            )
        })?;
        #[derive(serde::Deserialize)]
        struct Versioned {
            version: u32,
        }
        let bad = |e: serde_json::Error| refuse(format!("its manifest cannot be read: {e}"), "compile the model again");
        let Versioned { version } = serde_json::from_str(&json.value).map_err(bad)?;
        if version > manifest::VERSION {
            let message = format!("its manifest has version {version}, this weftc knows {}", manifest::VERSION);
            return Err(refuse(message, "use a newer weftc, or compile the model again with this one"));
        }
        let manifest: Manifest = serde_json::from_str(&json.value).map_err(bad)?;
        let source = beside(path).join(&manifest.source.file);
        let folder = folder.unwrap_or(beside(&source)).to_path_buf();
        // A file that was written with data of its own refers to nothing else, but to what lies with it.
        let own = location(path);
        let initializers = || model.graph.iter().flat_map(|g| &g.initializer);
        let is_own = |t: &TensorProto| t.external_data.iter().any(|e| e.key == "location" && e.value == own);
        let folder = if folder.is_dir() && !initializers().any(is_own) { folder } else { beside(path).to_path_buf() };
        // External data is looked up as if this file lay in that folder; no bytes are given, since there
        // are none under that name, and inline data is then copied.
        let placed = folder.join(path.file_name().unwrap_or_default());
        let site = Site::new(&placed, Bytes::new()).map_err(|e| Error::io("find", &folder, e))?;
        Ok(TrainFile { path: path.to_path_buf(), folder, bytes, site, model, manifest })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The source model, as the manifest places it relative to this file.
    pub fn source(&self) -> PathBuf {
        beside(&self.path).join(&self.manifest.source.file)
    }

    /// The folder of the external data.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files that weights lie in, besides this one, in the order of their names.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        let entries = self.graph().initializer.iter().flat_map(|t| &t.external_data);
        let mut names: Vec<&str> = entries.filter(|e| e.key == "location").map(|e| e.value.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(|name| self.folder.join(name)).collect()
    }

    /// Everything that can be fed, parameters included; what weftc has no type for is left out.
    pub fn inputs(&self) -> Vec<Port> {
        self.graph().input.iter().filter_map(port).collect()
    }

    /// Whether the input `name` has a default value.
    pub fn has_default(&self, name: &str) -> bool {
        self.graph().initializer.iter().any(|t| t.name == name)
    }

    pub fn outputs(&self) -> Vec<Port> {
        self.graph().output.iter().filter_map(port).collect()
    }

    /// Whether the parameter `name` is a table that is looked up and read nowhere else.
    pub fn is_looked_up(&self, name: &str) -> bool {
        let gradient = format!("grad/{name}");
        let maker = self.graph().node.iter().find(|n| n.domain == DOMAIN && n.output.contains(&gradient));
        maker.is_some_and(|n| n.op_type.trim_end_matches(|c: char| c.is_ascii_digit()) == "GatherGrad")
    }

    /// The default value of the input `name`.
    pub fn initial(&self, name: &str) -> Result<Weight> {
        let found = self.graph().initializer.iter().find(|t| t.name == name);
        let read = found.ok_or_else(|| "it has no default value".to_string()).and_then(|t| weight(t, &self.site));
        read.map_err(|why| Error::Model {
            model: self.path.clone(),
            problems: vec![
                Problem::new(name, why).help("external data must lie beside train.onnx, or in the folder of --model"),
            ],
        })
    }

    fn graph(&self) -> &GraphProto {
        static NONE: std::sync::LazyLock<GraphProto> = std::sync::LazyLock::new(GraphProto::default);
        self.model.graph.as_ref().unwrap_or(&NONE)
    }

    /// How often each operator occurs, functions of our domain under their own names.
    pub fn operators(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for node in &self.graph().node {
            // Functions of one name and several forms are numbered.
            let own = |name: &str| name.trim_end_matches(|c: char| c.is_ascii_digit()).to_string();
            let name = if node.domain == DOMAIN { own(&node.op_type) } else { node.op_type.clone() };
            *counts.entry(name).or_default() += 1;
        }
        counts
    }

    /// The names of the functions of our domain, in the file's order.
    pub fn functions(&self) -> impl Iterator<Item = &str> {
        self.model.functions.iter().filter(|f| f.domain == DOMAIN).map(|f| f.name.as_str())
    }

    /// The function `name` of our domain.  Errors where the file has none.
    fn function(&self, name: &str) -> Result<&FunctionProto> {
        let mine = |f: &&FunctionProto| f.domain == DOMAIN && f.name == name;
        self.model.functions.iter().find(mine).ok_or_else(|| Error::Model {
            model: self.path.clone(),
            problems: vec![
                Problem::new("", format!("it has no function {DOMAIN}.{name}"))
                    .help("compile the model again with this weftc"),
            ],
        })
    }

    fn model_of(&self, graph: GraphProto, functions: Vec<FunctionProto>) -> Vec<u8> {
        let mut opset_import = self.model.opset_import.clone();
        if !opset_import.iter().any(|o| o.domain == DOMAIN) {
            opset_import.push(OperatorSetIdProto { domain: DOMAIN.into(), version: 1 });
        }
        let ir_version = self.model.ir_version;
        ModelProto { ir_version, opset_import, graph: Some(graph), functions, ..ModelProto::default() }.encode_to_vec()
    }
}

fn beside(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// An optimizer as train.onnx holds it: a function of our domain from `p`, `g`, the state and scalars to `p` and the
/// state.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    pub name: &'static str,
    /// What is kept for each parameter, of its shape; 0 at the start.
    pub state: &'static [&'static str],
    /// The scalar inputs, all f64, in order.
    pub scalars: &'static [&'static str],
}

impl Function {
    pub const ADAMW: Function = Function {
        name: "AdamW",
        state: &["m", "v"],
        scalars: &["lr", "weight_decay", "beta1", "beta2", "eps", "step", "grad_scale"],
    };
    pub const SGD: Function =
        Function { name: "Sgd", state: &["m"], scalars: &["lr", "weight_decay", "momentum", "nesterov", "grad_scale"] };
}

/// The weight decay of parameters that have none: an input, always 0.
pub const NO_DECAY: &str = "no_decay";

/// Reads the value of an initializer of the model at `site`.
pub(super) fn weight(tensor: &TensorProto, site: &Site) -> std::result::Result<Weight, String> {
    let Tensor { dtype, data, .. } = site.tensor(tensor)?;
    let bytes = weights::load(&data).map_err(|e| e.to_string())?.to_vec();
    Ok(Weight { dtype, shape: tensor.dims.clone(), bytes })
}

fn port(info: &ValueInfoProto) -> Option<Port> {
    let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_ref()?.value.as_ref() else { return None };
    let size = |d: &tensor_shape_proto::Dimension| match d.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(n)) => Some(n),
        _ => None,
    };
    let shape = tensor.shape.as_ref().map(|s| s.dim.iter().map(size).collect()).unwrap_or_default();
    Some(Port { name: info.name.clone(), dtype: dtype(tensor.elem_type).ok()?, shape })
}

fn value_info(name: &str, dtype: DType, shape: &[Option<i64>]) -> ValueInfoProto {
    let dim = |d: &Option<i64>| tensor_shape_proto::Dimension {
        value: d.map(tensor_shape_proto::dimension::Value::DimValue),
        ..Default::default()
    };
    let shape = Some(TensorShapeProto { dim: shape.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: onnx_type(dtype), shape };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() });
    ValueInfoProto { name: name.into(), r#type, ..Default::default() }
}

/// ONNX's number for our element type.
fn onnx_type(dtype: DType) -> i32 {
    use tensor_proto::DataType as Onnx;
    let onnx = match dtype {
        DType::F64 => Onnx::Double,
        DType::F32 => Onnx::Float,
        DType::F16 => Onnx::Float16,
        DType::BF16 => Onnx::Bfloat16,
        DType::I64 => Onnx::Int64,
        DType::I32 => Onnx::Int32,
        DType::I8 => Onnx::Int8,
        DType::U8 => Onnx::Uint8,
        DType::U4 => Onnx::Uint4,
        DType::I4 => Onnx::Int4,
        DType::Bool => Onnx::Bool,
    };
    onnx.into()
}
