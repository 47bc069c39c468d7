//! Models of LLaDA's shape in any size, as PyTorch's dynamo exporter writes them at opset 18: linear
//! weights transposed and without their names, norms, rotary embedding and attention decomposed,
//! shapes computed by operators, weights in one external file.

mod data;

use data::{Fill, Part};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use weftc::onnx::proto::attribute_proto::AttributeType;
use weftc::onnx::proto::tensor_proto::{DataLocation, DataType};
use weftc::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use weftc::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// The exporter aligns external tensors to pages.
const PAGE: u64 = 4096;
const NORM_EPS: f32 = 1e-5;

/// How large a model is.
#[derive(Clone, Debug, clap::Args)]
pub struct Shape {
    #[arg(long, default_value_t = 32)]
    pub layers: usize,
    #[arg(long, default_value_t = 4096)]
    pub width: usize,
    /// Attention heads; divides the width
    #[arg(long, default_value_t = 32)]
    pub heads: usize,
    /// Width of the feed-forward layers
    #[arg(long, default_value_t = 12288)]
    pub ffn: usize,
    #[arg(long, default_value_t = 126_464)]
    pub vocabulary: usize,
    /// Longest sequence: rows of the rotary tables
    #[arg(long, default_value_t = 4096)]
    pub length: usize,
    /// Weights and activations in bfloat16, norms and rotary embedding in float32
    #[arg(long)]
    pub bf16: bool,
    /// Fill the weights with random numbers from this seed; without it they are holes in a sparse file
    #[arg(long)]
    pub fill: Option<u64>,
}

/// What was written.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    pub parameters: u64,
    /// Length of the external file, most of it holes unless it was filled.
    pub data_bytes: u64,
}

/// Writes the model to `path` and its weights to `path` with `.data` added.
pub fn write(shape: &Shape, path: &Path) -> io::Result<Written> {
    let bad = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    if shape.heads == 0 || !shape.width.is_multiple_of(2 * shape.heads) {
        return bad("the width must be a multiple of twice the number of heads");
    }
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return bad("the path names no file") };
    let location = format!("{name}.data");
    let data = path.with_file_name(&location);
    let mut exporter = Exporter::new(shape, location);
    exporter.model();
    File::create(&data)?.set_len(exporter.end)?;
    data::write(&exporter.parts, shape, &data)?;
    let parameters = exporter.parts.iter().filter(|p| !p.is_table()).map(|p| p.numel as u64).sum();
    let data_bytes = exporter.end;
    std::fs::write(path, prost::Message::encode_to_vec(&exporter.finish()))?;
    Ok(Written { parameters, data_bytes })
}

/// Builds the graph.
struct Exporter<'s> {
    shape: &'s Shape,
    location: String,
    graph: GraphProto,
    parts: Vec<Part>,
    end: u64,
    /// The exporter numbers values and nameless weights together.
    values: usize,
    constants: BTreeMap<String, String>,
    /// The modules around the nodes that come next.
    modules: Vec<String>,
}

impl<'s> Exporter<'s> {
    fn new(shape: &'s Shape, location: String) -> Self {
        let graph = GraphProto { name: "main_graph".into(), ..GraphProto::default() };
        let modules = vec![String::new()];
        Exporter { shape, location, graph, parts: vec![], end: 0, values: 0, constants: BTreeMap::new(), modules }
    }

    /// The element type of weights and activations.
    fn dtype(&self) -> DataType {
        if self.shape.bf16 { DataType::Bfloat16 } else { DataType::Float }
    }

    fn finish(self) -> ModelProto {
        ModelProto {
            ir_version: 10,
            producer_name: "pytorch".into(),
            producer_version: "2.15.0".into(),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 18 }],
            graph: Some(self.graph),
            ..ModelProto::default()
        }
    }

    fn model(&mut self) {
        let Shape { layers, width, heads, vocabulary, length, .. } = *self.shape;
        let (dtype, half) = (self.dtype(), width / heads / 2);
        self.graph.input.push(value_info("input_ids", DataType::Int64, &[]));
        let embedding = self.weight("transformer.wte.weight", &[vocabulary, width], dtype, Fill::Random(1.0));
        let tables = [("cos", f64::cos as fn(f64) -> f64), ("sin", f64::sin)]
            .map(|(name, f)| self.weight(name, &[length, half], DataType::Float, Fill::Angles(f)));
        let [batch, seq] =
            [0, 1].map(|k| self.node("Shape", "sym_size_int", &["input_ids"], &[int("start", k), int("end", k + 1)]));
        let (zero, one) = (self.ints(&[0]), self.ints(&[1]));
        let rope = tables.map(|table| {
            let rows = self.node("Slice", "slice_1", &[&table, &zero, &seq, &zero, &one], &[]);
            self.node("Concat", "cat", &[&rows, &rows], &[int("axis", -1)])
        });
        let mut x = self.inside("transformer.wte", |e| {
            e.node("Gather", "embedding", &[&embedding, "input_ids"], &[int("axis", 0)])
        });
        for layer in 0..layers {
            let module = format!("transformer.blocks.{layer}");
            x = self.inside(&module, |e| {
                let x = e.attention(&module, &x, &rope, [&batch, &seq]);
                e.feed_forward(&module, &x)
            });
        }
        let x = self.norm("transformer.ln_f", &x);
        let logits = self.linear("transformer.ff_out", &x, width, vocabulary);
        self.rename(&logits, "logits");
        self.graph.output.push(value_info("logits", dtype, &[vocabulary]));
    }

    fn attention(&mut self, module: &str, x: &str, rope: &[String; 2], sizes: [&str; 2]) -> String {
        let Shape { width, heads, .. } = *self.shape;
        let normed = self.norm(&format!("{module}.attn_norm"), x);
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| {
            let y = self.linear(&format!("{module}.{name}"), &normed, width, width);
            let y = self.view(&y, sizes, &[heads as i64, (width / heads) as i64]);
            self.node("Transpose", "transpose", &[&y], &[ints("perm", &[0, 2, 1, 3])])
        });
        let (q, k) = (self.rotate(&q, rope), self.rotate(&k, rope));
        let y = self.attend(&q, &k, &v);
        let y = self.node("Transpose", "transpose_3", &[&y], &[ints("perm", &[0, 2, 1, 3])]);
        let y = self.view(&y, sizes, &[width as i64]);
        let y = self.linear(&format!("{module}.attn_out"), &y, width, width);
        self.node("Add", "add", &[x, &y], &[])
    }

    /// `x` reshaped to `[batch, seq, rest..]`.
    fn view(&mut self, x: &str, [batch, seq]: [&str; 2], rest: &[i64]) -> String {
        let rest: Vec<String> = rest.iter().map(|n| self.ints(&[*n])).collect();
        let parts: Vec<&str> = [batch, seq].into_iter().chain(rest.iter().map(String::as_str)).collect();
        let shape = self.node("Concat", "view", &parts, &[int("axis", 0)]);
        self.node("Reshape", "view", &[x, &shape], &[int("allowzero", 1)])
    }

    /// Rotary embedding: `x cos + (-x2, x1) sin`, in float32.
    fn rotate(&mut self, x: &str, [cos, sin]: &[String; 2]) -> String {
        let wide = self.widen(x);
        let plain = self.node("Mul", "mul", &[&wide, cos], &[]);
        let [low, high] = self.split(&wide);
        let minus = self.node("Neg", "neg", &[&high], &[]);
        let turned = self.node("Concat", "cat", &[&minus, &low], &[int("axis", -1)]);
        let turned = self.node("Mul", "mul", &[&turned, sin], &[]);
        let sum = self.node("Add", "add", &[&plain, &turned], &[]);
        self.narrow(sum)
    }

    /// Attention as the exporter decomposes it: the transpose of k flattened, half of the scale on each side.
    fn attend(&mut self, q: &str, k: &str, v: &str) -> String {
        let name = "scaled_dot_product_attention";
        let (first, last) = (self.ints(&[i64::MIN]), self.ints(&[i64::MAX]));
        let (minus_two, minus_one) = (self.ints(&[-2]), self.ints(&[-1]));
        let shape = self.node("Shape", name, &[k], &[int("start", 0)]);
        let width = self.node("Slice", name, &[&shape, &minus_one, &last], &[]);
        let rows = self.node("Slice", name, &[&shape, &minus_two, &minus_one], &[]);
        let lead = self.node("Slice", name, &[&shape, &first, &minus_two], &[]);
        let flat = self.node("Concat", name, &[&minus_one, &rows, &width], &[int("axis", 0)]);
        let k = self.node("Reshape", name, &[k, &flat], &[int("allowzero", 0)]);
        let k = self.node("Transpose", name, &[&k], &[ints("perm", &[0, 2, 1])]);
        let full = self.node("Concat", name, &[&lead, &width, &rows], &[int("axis", 0)]);
        let k = self.node("Reshape", name, &[&k, &full], &[int("allowzero", 0)]);
        let scale = ((self.shape.width / self.shape.heads) as f32).powf(-0.25);
        let scale = self.float(scale, self.dtype(), true);
        let q = self.node("Mul", name, &[q, &scale], &[]);
        let k = self.node("Mul", name, &[&k, &scale], &[]);
        let scores = self.node("MatMul", name, &[&q, &k], &[]);
        let weights = self.node("Softmax", name, &[&scores], &[int("axis", -1)]);
        self.node("MatMul", name, &[&weights, v], &[])
    }

    fn feed_forward(&mut self, module: &str, x: &str) -> String {
        let Shape { width, ffn, .. } = *self.shape;
        let normed = self.norm(&format!("{module}.ff_norm"), x);
        let gate = self.linear(&format!("{module}.ff_proj"), &normed, width, ffn);
        let sigmoid = self.node("Sigmoid", "silu", &[&gate], &[]);
        let gate = self.node("Mul", "silu", &[&gate, &sigmoid], &[]);
        let up = self.linear(&format!("{module}.up_proj"), &normed, width, ffn);
        let y = self.node("Mul", "mul", &[&gate, &up], &[]);
        let y = self.linear(&format!("{module}.ff_out"), &y, ffn, width);
        self.node("Add", "add", &[x, &y], &[])
    }

    /// Root mean square norm, its statistics in float32.
    fn norm(&mut self, module: &str, x: &str) -> String {
        let weight = self.weight(&format!("{module}.weight"), &[self.shape.width], self.dtype(), Fill::Ones);
        self.inside(module, |e| {
            let x = e.widen(x);
            let two = e.float(2.0, DataType::Float, false);
            let square = e.node("Pow", "pow_1", &[&x, &two], &[]);
            let last = e.ints(&[-1]);
            let mean =
                e.node("ReduceMean", "mean", &[&square, &last], &[int("noop_with_empty_axes", 0), int("keepdims", 1)]);
            let eps = e.float(NORM_EPS, DataType::Float, false);
            let sum = e.node("Add", "add", &[&mean, &eps], &[]);
            let root = e.node("Sqrt", "rsqrt", &[&sum], &[]);
            let scale = e.node("Reciprocal", "rsqrt", &[&root], &[]);
            let y = e.node("Mul", "mul", &[&x, &scale], &[]);
            let y = e.narrow(y);
            e.node("Mul", "mul_1", &[&weight, &y], &[])
        })
    }

    /// `x` times the transposed weight, which has lost its name.
    fn linear(&mut self, module: &str, x: &str, from: usize, to: usize) -> String {
        let name = self.fresh();
        let weight = self.weight(&name, &[from, to], self.dtype(), Fill::Random((from as f64).powf(-0.5)));
        self.inside(module, |e| e.node("MatMul", "linear", &[x, &weight], &[]))
    }

    fn widen(&mut self, x: &str) -> String {
        self.cast(x, DataType::Float)
    }

    fn narrow(&mut self, x: String) -> String {
        self.cast(&x, self.dtype())
    }

    /// A cast in a bfloat16 model; in a float32 one there is nothing to cast.
    fn cast(&mut self, x: &str, to: DataType) -> String {
        if self.shape.bf16 { self.node("Cast", "_to_copy", &[x], &[int("to", to as i64)]) } else { x.into() }
    }

    fn inside<T>(&mut self, module: &str, build: impl FnOnce(&mut Self) -> T) -> T {
        self.modules.push(module.into());
        let built = build(self);
        self.modules.pop();
        built
    }

    fn fresh(&mut self) -> String {
        self.values += 1;
        format!("val_{}", self.values)
    }

    /// One node with one result; `call` is the PyTorch operator it stands for.
    fn node(&mut self, op: &str, call: &str, inputs: &[&str], attribute: &[AttributeProto]) -> String {
        let output = self.fresh();
        self.push(op, call, inputs, attribute, vec![output.clone()]);
        output
    }

    fn split(&mut self, x: &str) -> [String; 2] {
        let outputs = [self.fresh(), self.fresh()];
        self.push("Split", "split", &[x], &[int("axis", 3), int("num_outputs", 2)], outputs.to_vec());
        outputs
    }

    fn push(&mut self, op: &str, call: &str, inputs: &[&str], attribute: &[AttributeProto], output: Vec<String>) {
        let scopes: Vec<String> =
            self.modules.iter().map(String::as_str).chain([call]).map(|s| format!("'{s}'")).collect();
        let scopes = format!("[{}]", scopes.join(", "));
        self.graph.node.push(NodeProto {
            name: format!("node_{op}_{}", self.values),
            op_type: op.into(),
            input: inputs.iter().map(|i| i.to_string()).collect(),
            output,
            attribute: attribute.to_vec(),
            metadata_props: vec![entry("pkg.torch.onnx.name_scopes", scopes)],
            ..NodeProto::default()
        });
    }

    /// Gives the last node's result another name.
    fn rename(&mut self, from: &str, to: &str) {
        let results = self.graph.node.iter_mut().rev().flat_map(|n| n.output.iter_mut());
        results.filter(|o| *o == from).for_each(|o| *o = to.into());
    }

    /// A tensor in the external file.
    fn weight(&mut self, name: &str, dims: &[usize], dtype: DataType, fill: Fill) -> String {
        let numel: usize = dims.iter().product();
        let bytes = numel as u64 * if dtype == DataType::Bfloat16 { 2 } else { 4 };
        let offset = self.end.next_multiple_of(PAGE);
        self.end = offset + bytes;
        self.parts.push(Part { offset, numel, dtype, fill });
        self.graph.initializer.push(TensorProto {
            name: name.into(),
            dims: dims.iter().map(|n| *n as i64).collect(),
            data_type: dtype.into(),
            data_location: DataLocation::External.into(),
            external_data: vec![
                entry("location", self.location.clone()),
                entry("offset", offset.to_string()),
                entry("length", bytes.to_string()),
            ],
            ..TensorProto::default()
        });
        name.into()
    }

    /// A constant of one dimension, shared by all its users.
    fn ints(&mut self, items: &[i64]) -> String {
        let raw: Vec<u8> = items.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.constant(format!("{items:?}"), vec![items.len() as i64], DataType::Int64, raw)
    }

    /// A constant number, of shape [1] or [].
    fn float(&mut self, x: f32, dtype: DataType, vector: bool) -> String {
        let raw = match dtype {
            DataType::Bfloat16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        };
        self.constant(format!("{x} {dtype:?}"), if vector { vec![1] } else { vec![] }, dtype, raw)
    }

    fn constant(&mut self, key: String, dims: Vec<i64>, dtype: DataType, raw: Vec<u8>) -> String {
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = self.fresh();
        self.graph.initializer.push(TensorProto {
            name: name.clone(),
            dims,
            data_type: dtype.into(),
            raw_data: raw.into(),
            ..TensorProto::default()
        });
        self.constants.insert(key, name.clone());
        name
    }
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: key.into(), value }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int.into(), i: Some(value), ..AttributeProto::default() }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let r#type = AttributeType::Ints.into();
    AttributeProto { name: name.into(), r#type, ints: values.to_vec(), ..AttributeProto::default() }
}

/// A value of shape `[batch, seq, rest..]`.
fn value_info(name: &str, dtype: DataType, rest: &[usize]) -> ValueInfoProto {
    let symbols = ["batch", "seq"].map(|s| dimension::Value::DimParam(s.into()));
    let sizes = rest.iter().map(|n| dimension::Value::DimValue(*n as i64));
    let dim = symbols.into_iter().chain(sizes).map(|v| Dimension { value: Some(v), ..Dimension::default() });
    let tensor = type_proto::Tensor { elem_type: dtype.into(), shape: Some(TensorShapeProto { dim: dim.collect() }) };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: name.into(), r#type, ..ValueInfoProto::default() }
}
