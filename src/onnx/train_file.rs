//! A train.onnx as its runner sees it: the manifest, the inputs, the first values of the parameters, and the
//! functions from which the optimizer's own graphs are built; [`parts`] has the parts that sessions compute.

pub mod parts;

use super::data_file::location;
use super::proto::{
    FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_proto, tensor_shape_proto, type_proto,
};
use super::tensor::{Site, Tensor, dtype};
use super::weights;
use crate::error::{Error, Problem, Result};
use crate::ir::ty::DType;
use crate::manifest::{self, Manifest};
use prost::Message;
use prost::bytes::Bytes;
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

    /// The graph of one update of every parameter by `own`: `p/N`, `g/N`, `STATE/N` (N the index in `parameters`) and
    /// the scalars to `p2/N`, `STATE2/N`.
    ///
    /// Parameters that do not decay read the scalar `NO_DECAY` instead of `weight_decay`.
    ///
    /// Each result may be bound to the buffer that it updates: this is checked against the function's body.
    pub fn update_model(&self, own: &Function, parameters: &[Port], decays: &dyn Fn(&Port) -> bool) -> Result<Vec<u8>> {
        let function = self.function(own.name)?;
        let arity = (function.input.len(), function.output.len());
        let expected = (2 + own.state.len() + own.scalars.len(), 1 + own.state.len());
        if arity != expected {
            let why = format!("its {DOMAIN}.{} has {arity:?} inputs and outputs, not {expected:?}", own.name);
            return Err(Error::Model { model: self.path.clone(), problems: vec![Problem::new("", why)] });
        }
        // Inputs p, g, the state; outputs p, the state.
        for output in 0..expected.1 {
            let input = &function.input[if output == 0 { 0 } else { output + 1 }];
            if !writes_after_reads(function, input, &function.output[output]) {
                return Err(Error::internal(own.name, format!("{input} is still read when it is written")));
            }
        }
        let mut graph = GraphProto { name: "update".into(), ..GraphProto::default() };
        let scalar = |name: &&str| value_info(name, DType::F64, &[]);
        graph.input.extend(own.scalars.iter().chain([&NO_DECAY]).map(scalar));
        let changed = || ["p"].iter().chain(own.state);
        let read = || ["p", "g"].iter().chain(own.state);
        for (n, parameter) in parameters.iter().enumerate() {
            let name = |prefix: &&str| format!("{prefix}/{n}");
            let name2 = |prefix: &&str| format!("{prefix}2/{n}");
            let same = |name: String| value_info(&name, parameter.dtype, &parameter.shape);
            graph.input.extend(read().map(name).map(same));
            graph.output.extend(changed().map(name2).map(same));
            let hyper = |h: &&'static str| if *h == "weight_decay" && !decays(parameter) { NO_DECAY } else { *h };
            graph.node.push(NodeProto {
                domain: DOMAIN.into(),
                op_type: own.name.into(),
                overload: function.overload.clone(),
                name: name(&"update"),
                input: read().map(name).chain(own.scalars.iter().map(|h| hyper(h).to_string())).collect(),
                output: changed().map(name2).collect(),
                ..NodeProto::default()
            });
        }
        Ok(self.model_of(graph, vec![function.clone()]))
    }

    /// The graph of the Euclidean norm over all gradients: `g/N` to `norm` (f64).
    ///
    /// Rows are summed in f32 and rows of rows in f64: as exact as needed, and in an order that depends
    /// neither on the number of threads nor on anything else.
    pub fn norm_model(&self, parameters: &[Port]) -> Vec<u8> {
        let mut b = Standard::new("grad_norm");
        let mut sums = Vec::new();
        for (n, parameter) in parameters.iter().enumerate() {
            let mut value = format!("g/{n}");
            b.graph.input.push(value_info(&value, parameter.dtype, &parameter.shape));
            if matches!(parameter.dtype, DType::F16 | DType::BF16) {
                value = b.cast(&value, DType::F32);
            }
            let squares = if parameter.shape.len() > 1 {
                value = b.node("ReduceSumSquare", &[&value, "last_axis"], &[("keepdims", 0)]);
                b.cast(&value, DType::F64)
            } else {
                value = b.cast(&value, DType::F64);
                b.node("Mul", &[&value, &value], &[])
            };
            sums.push(b.node("ReduceSum", &[&squares], &[("keepdims", 0)]));
        }
        b.graph.initializer.push(TensorProto {
            name: "last_axis".into(),
            dims: vec![1],
            data_type: onnx_type(DType::I64),
            int64_data: vec![-1],
            ..TensorProto::default()
        });
        let sums: Vec<&str> = sums.iter().map(String::as_str).collect();
        let total = b.node("Sum", &sums, &[]);
        b.graph.node.push(NodeProto {
            op_type: "Sqrt".into(),
            name: "norm".into(),
            input: vec![total],
            output: vec!["norm".into()],
            ..NodeProto::default()
        });
        b.graph.output.push(value_info("norm", DType::F64, &[]));
        self.model_of(b.graph, Vec::new())
    }

    /// The graph that adds gradients to sums: `s/N` + `g/N` to `s2/N`, which may be bound to `s/N`.
    pub fn sum_model(&self, parameters: &[Port]) -> Vec<u8> {
        let mut graph = GraphProto { name: "accumulate".into(), ..GraphProto::default() };
        for (n, parameter) in parameters.iter().enumerate() {
            let name = |prefix: &str| format!("{prefix}/{n}");
            let same = |prefix: &str| value_info(&name(prefix), parameter.dtype, &parameter.shape);
            graph.input.extend(["s", "g"].map(same));
            graph.output.push(same("s2"));
            graph.node.push(NodeProto {
                op_type: "Add".into(),
                name: name("add"),
                input: ["s", "g"].map(name).into(),
                output: vec![name("s2")],
                ..NodeProto::default()
            });
        }
        self.model_of(graph, Vec::new())
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

/// Builds nodes of standard operators with fresh names.
struct Standard {
    graph: GraphProto,
}

impl Standard {
    fn new(name: &str) -> Self {
        Standard { graph: GraphProto { name: name.into(), ..GraphProto::default() } }
    }

    fn node(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, i64)]) -> String {
        let name = format!("{op}_{}", self.graph.node.len());
        let attribute = |&(key, i): &(&str, i64)| super::proto::AttributeProto {
            name: key.into(),
            r#type: super::proto::attribute_proto::AttributeType::Int.into(),
            i: Some(i),
            ..Default::default()
        };
        self.graph.node.push(NodeProto {
            op_type: op.into(),
            name: name.clone(),
            input: inputs.iter().map(|i| i.to_string()).collect(),
            output: vec![name.clone()],
            attribute: attributes.iter().map(attribute).collect(),
            ..NodeProto::default()
        });
        name
    }

    fn cast(&mut self, value: &str, to: DType) -> String {
        self.node("Cast", &[value], &[("to", onnx_type(to).into())])
    }
}

/// Whether `output` may share the buffer of `input`: every node that reads `input` is needed for `output`,
/// so it has run when `output` is written, and the one that writes reads it elementwise if at all.
fn writes_after_reads(function: &FunctionProto, input: &str, output: &str) -> bool {
    let mut needed = vec![false; function.node.len()];
    let mut wanted = vec![output];
    while let Some(name) = wanted.pop() {
        let maker = function.node.iter().position(|n| n.output.iter().any(|o| o == name));
        if let Some(k) = maker.filter(|k| !needed[*k]) {
            needed[k] = true;
            wanted.extend(function.node[k].input.iter().map(String::as_str));
        }
    }
    function.node.iter().zip(needed).all(|(node, needed)| needed || !node.input.iter().any(|i| i == input))
}

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
        DType::Bool => Onnx::Bool,
    };
    onnx.into()
}
