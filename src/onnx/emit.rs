//! IR nodes as ONNX nodes: one scope is the main graph or the body of one function.

use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto, TensorProto, tensor_proto};
use crate::error::{Error, Result};
use crate::ir::dim::Sym;
use crate::ir::infer::resolve_axis;
use crate::ir::op::{Attr, Emit, Kind, Slot};
use crate::ir::{Builder, DType, Dim, F64, Graph, Id, LeafKind, Lit, Node, Op, TensorType, Type};
use crate::lower;
use crate::rules::{Rule, Term};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};

/// The operator set of every file that weftc writes.
pub const OPSET: i64 = 21;
/// The domain of the fused nodes.
pub const DOMAIN: &str = "ai.weft";
/// The domain of ONNX Runtime's own operators.
pub const CONTRIB: &str = "com.microsoft";

pub fn data_type(dtype: DType) -> tensor_proto::DataType {
    use tensor_proto::DataType as T;
    match dtype {
        DType::F64 => T::Double,
        DType::F32 => T::Float,
        DType::F16 => T::Float16,
        DType::BF16 => T::Bfloat16,
        DType::I64 => T::Int64,
        DType::I32 => T::Int32,
        DType::I8 => T::Int8,
        DType::U8 => T::Uint8,
        DType::Bool => T::Bool,
    }
}

/// The bytes of one number as ONNX stores it.
fn scalar_bytes(value: f64, dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F64 => value.to_le_bytes().to_vec(),
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f64(value).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f64(value).to_le_bytes().to_vec(),
        DType::I64 => (value as i64).to_le_bytes().to_vec(),
        DType::I32 => (value as i32).to_le_bytes().to_vec(),
        DType::I8 => (value as i8).to_le_bytes().to_vec(),
        DType::U8 => vec![value as u8],
        DType::Bool => vec![u8::from(value != 0.0)],
    }
}

fn attribute(name: &str, kind: AttributeType, fill: impl FnOnce(&mut AttributeProto)) -> AttributeProto {
    let mut a = AttributeProto { name: name.into(), r#type: kind.into(), ..Default::default() };
    fill(&mut a);
    a
}

/// The functions of a file, shared by equal bodies.
#[derive(Default)]
pub struct Functions {
    pub protos: BTreeMap<String, FunctionProto>,
    by_signature: BTreeMap<String, String>,
}

impl Functions {
    /// The name of the function for a fused node over operands of these types.
    pub fn name(&mut self, op: Op, types: &[&Type], rules: &[Rule]) -> Result<String> {
        let Emit::Weft(base) = op.row().emit else {
            return Err(Error::internal("write", format!("{} is not a fused node", op.name())));
        };
        let types = with_placeholders(op, types);
        let signature = types.iter().map(|t| format!("{t} ")).collect::<String>();
        let signature = format!("{base} {signature}");
        if let Some(name) = self.by_signature.get(&signature) {
            return Ok(name.clone());
        }
        let mut proto = function(op, &types.iter().collect::<Vec<_>>(), rules)?;
        // Equal bodies are one function; another body of the same operator gets a number.
        let mut name = base.to_string();
        for k in 2.. {
            proto.name = name.clone();
            match self.protos.get(&name) {
                Some(other) if *other != proto => name = format!("{base}{k}"),
                _ => break,
            }
        }
        self.protos.insert(name.clone(), proto);
        self.by_signature.insert(signature, name.clone());
        Ok(name)
    }
}

/// The attributes that a fused node carries, by ONNX name.
fn node_attributes(op: Op) -> impl Iterator<Item = (usize, &'static Attr, &'static str)> {
    op.row().attrs.iter().enumerate().filter_map(|(k, a)| match a.slot {
        Slot::Attribute(name) => Some((k, a, name)),
        _ => None,
    })
}

/// The names that the operator's `lower` rule gives its operands.
fn operand_names(op: Op, rules: &[Rule]) -> Vec<String> {
    let vars = rules.iter().find_map(|r| match &r.left {
        Term::Op(head, vars) if *head == op => Some(vars),
        _ => None,
    });
    vars.into_iter().flatten().map(|v| if let Term::Var(n) = v { n.to_string() } else { String::new() }).collect()
}

/// The types with a placeholder for each float that the node carries as an attribute.
///
/// Placeholders are distinct NaNs, so that in the body each is told from the others and from constants
/// of the same value, whatever the call's own numbers are.
fn with_placeholders(op: Op, types: &[&Type]) -> Vec<Type> {
    let mut types: Vec<Type> = types.iter().map(|t| (*t).clone()).collect();
    let first = op.operands(types.len());
    for (k, attr, _) in node_attributes(op) {
        if attr.kind == Kind::Float {
            types[first + k] = Type::Lit(Lit::Float(F64(f64::from_bits(0x7ff8_0000_0000_0000 | (k as u64 + 1)))));
        }
    }
    types
}

fn function(op: Op, types: &[&Type], rules: &[Rule]) -> Result<FunctionProto> {
    let body = lower::body(op, types, &operand_names(op, rules), rules)?;
    let first = op.operands(types.len());
    let attributes = node_attributes(op).filter_map(|(k, _, name)| Some((types[first + k].lit()?.clone(), name)));
    let mut functions = Functions::default();
    let mut scope = Scope::new(&body, rules, &mut functions, Some(attributes.collect()))?;
    let order = body.live();
    scope.run(&order)?;
    let output: Vec<String> = body.outputs.iter().map(|(name, _)| name.clone()).collect();
    let node = std::mem::take(&mut scope.nodes);
    let doc: Vec<&str> =
        rules.iter().filter(|r| matches!(&r.left, Term::Op(h, _) if *h == op)).map(|r| r.doc.as_str()).collect();
    Ok(FunctionProto {
        domain: DOMAIN.into(),
        input: body.leaves.iter().map(|l| l.name.clone()).collect(),
        output,
        attribute: node_attributes(op).map(|(_, _, name)| name.to_string()).collect(),
        node,
        doc_string: doc.first().unwrap_or(&"").to_string(),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        ..Default::default()
    })
}

/// One namespace of values: emits nodes in order.
pub struct Scope<'a> {
    graph: &'a Graph,
    rules: &'a [Rule],
    functions: &'a mut Functions,
    /// In a function: the values of its attributes and their names.
    attributes: Option<Vec<(Lit, &'static str)>>,
    pub nodes: Vec<NodeProto>,
    /// Small constants, main graph only.
    pub constants: BTreeMap<String, TensorProto>,
    names: FxHashMap<Id, String>,
    taken: BTreeSet<String>,
    counters: BTreeMap<String, usize>,
    /// Where a symbol can be read: a value and its axis.
    symbols: BTreeMap<Sym, (String, usize)>,
    sizes: BTreeMap<String, String>,
    pub uses_contrib: bool,
}

impl<'a> Scope<'a> {
    pub fn new(
        graph: &'a Graph,
        rules: &'a [Rule],
        functions: &'a mut Functions,
        attributes: Option<Vec<(Lit, &'static str)>>,
    ) -> Result<Self> {
        let mut symbols = BTreeMap::new();
        for leaf in graph.leaves.iter().filter(|l| l.kind == LeafKind::Input) {
            for (axis, dim) in leaf.ty.shape.iter().enumerate() {
                if let [(syms, 1)] = dim.monomials().as_slice()
                    && let [sym] = syms.as_slice()
                {
                    symbols.entry(sym.clone()).or_insert((leaf.name.clone(), axis));
                }
            }
        }
        let taken =
            graph.leaves.iter().map(|l| l.name.clone()).chain(graph.outputs.iter().map(|(n, _)| n.clone())).collect();
        Ok(Scope {
            graph,
            rules,
            functions,
            attributes,
            nodes: vec![],
            constants: BTreeMap::new(),
            names: FxHashMap::default(),
            taken,
            counters: BTreeMap::new(),
            symbols,
            sizes: BTreeMap::new(),
            uses_contrib: false,
        })
    }

    /// Emits every node of `order`, then an identity for each output that has no value of its own.
    pub fn run(&mut self, order: &[Id]) -> Result<()> {
        // A node takes the name of the first output that it is.
        let mut own: FxHashMap<Id, String> = FxHashMap::default();
        for (name, id) in &self.graph.outputs {
            if self.graph.node(*id).op().is_some() {
                own.entry(*id).or_insert_with(|| name.clone());
            }
        }
        for &id in order {
            match self.graph.node(id) {
                Node::Leaf(l) => drop(self.names.insert(id, self.graph.leaf(*l).name.clone())),
                Node::Lit(_) => {}
                Node::Op(op, children) => {
                    let name = own.get(&id).cloned().unwrap_or_else(|| self.fresh(op.name()));
                    self.node(id, *op, children, &name)?;
                    self.names.insert(id, name);
                }
            }
        }
        for (name, id) in &self.graph.outputs {
            let value = self.operand(*id, DType::F32)?;
            if value != *name {
                self.push("Identity", "", vec![value], name, vec![]);
            }
        }
        Ok(())
    }

    fn fresh(&mut self, stem: &str) -> String {
        loop {
            let n = self.counters.entry(stem.into()).or_default();
            let name = format!("{stem}_{n}");
            *n += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }

    fn push(&mut self, op_type: &str, domain: &str, input: Vec<String>, output: &str, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            op_type: op_type.into(),
            domain: domain.into(),
            name: output.into(),
            input,
            output: vec![output.into()],
            attribute,
            ..Default::default()
        });
    }

    fn literal(&self, id: Id) -> Option<&'a Lit> {
        if let Node::Lit(l) = self.graph.node(id) { Some(l) } else { None }
    }

    fn node(&mut self, id: Id, op: Op, children: &[Id], name: &str) -> Result<()> {
        let row = op.row();
        let (operands, attrs) = children.split_at(op.operands(children.len()));
        let weak = self.weak_type(op, operands);
        let is_empty_list = |lit: &Id| self.literal(*lit).and_then(Lit::ints).is_some_and(<[Dim]>::is_empty);
        match row.emit {
            // To ONNX a reduction over no axes is one over all.
            Emit::Std(_) if row.attrs.first().is_some_and(|a| a.name == "axes") && attrs.iter().any(is_empty_list) => {
                let x = self.operands(operands, weak)?;
                self.push("Identity", "", x, name, vec![]);
            }
            Emit::Std(onnx) | Emit::Contrib(onnx) => {
                let mut inputs = self.operands(operands, weak)?;
                let mut attributes = Vec::new();
                for (attr, &lit) in row.attrs.iter().zip(attrs) {
                    match attr.slot {
                        Slot::Attribute(onnx_name) => attributes.push(self.attribute(onnx_name, attr.kind, lit)?),
                        Slot::Input(at) => {
                            let value = self.int_input(op, attr, operands, attrs, lit)?;
                            inputs.resize(inputs.len().max(at + 1), String::new());
                            inputs[at] = value;
                        }
                        Slot::Internal => {}
                    }
                }
                let contrib = matches!(row.emit, Emit::Contrib(_));
                self.uses_contrib |= contrib;
                self.push(onnx, if contrib { CONTRIB } else { "" }, inputs, name, attributes);
            }
            Emit::Weft(_) => {
                let types: Vec<&Type> = children.iter().map(|c| self.graph.type_of(*c)).collect();
                let function = self.functions.name(op, &types, self.rules)?;
                let inputs = self.operands(operands, weak)?;
                let attributes: Result<Vec<_>> =
                    node_attributes(op).map(|(k, a, onnx_name)| self.attribute(onnx_name, a.kind, attrs[k])).collect();
                self.push(&function, DOMAIN, inputs, name, attributes?);
            }
            Emit::Custom => self.custom(id, op, operands, attrs, name)?,
            Emit::Expand => return Err(Error::internal("write", format!("{} was not lowered", op.name()))),
        }
        Ok(())
    }

    /// Operators whose ONNX form does not follow from their row.
    fn custom(&mut self, id: Id, op: Op, operands: &[Id], attrs: &[Id], name: &str) -> Result<()> {
        let int = |k: usize| self.literal(attrs[k]).and_then(Lit::int).cloned().unwrap_or(Dim::Known(0));
        match op {
            Op::CumSum => {
                let rank = self.graph.type_of(operands[0]).shape().len();
                let axis = resolve_axis(int(0).known().unwrap_or(0), rank).map_err(|m| Error::internal("write", m))?;
                let reverse = self.attribute("reverse", Kind::Int, attrs[1])?;
                let x = self.operand(operands[0], DType::F32)?;
                let axis = self.scalar(axis as f64, DType::I64);
                self.push("CumSum", "", vec![x, axis], name, vec![reverse]);
            }
            Op::ScatterAdd => {
                let axis = self.attribute("axis", Kind::Int, attrs[0])?;
                let add = attribute("reduction", AttributeType::String, |a| a.s = Some("add".into()));
                let inputs = self.operands(operands, DType::F32)?;
                self.push("ScatterElements", "", inputs, name, vec![axis, add]);
            }
            Op::TopkValues | Op::TopkIndices => {
                let k = int(0);
                let (axis, largest) =
                    (self.attribute("axis", Kind::Int, attrs[1])?, self.attribute("largest", Kind::Int, attrs[2])?);
                let x = self.operand(operands[0], DType::F32)?;
                let k = self.ints(&[k])?;
                self.push("TopK", "", vec![x, k], name, vec![axis, largest]);
                let other = self.fresh("unused");
                let at = usize::from(op == Op::TopkValues);
                if let Some(node) = self.nodes.last_mut() {
                    node.output.insert(at, other);
                }
            }
            Op::Pad => {
                let (axis, before, after) = (int(0), int(1), int(2));
                let x = self.operand(operands[0], DType::F32)?;
                let pads = self.ints(&[before, after])?;
                let axes = self.ints(&[axis])?;
                self.push("Pad", "", vec![x, pads, String::new(), axes], name, vec![]);
            }
            Op::Full => {
                let Some(t) = self.graph.tensor_type(id) else {
                    return Err(Error::internal("write", "full has no type"));
                };
                let value = self.literal(attrs[0]).and_then(Lit::number).unwrap_or(0.0);
                let shape = self.ints(&t.shape.clone())?;
                let tensor = TensorProto {
                    dims: vec![1],
                    data_type: data_type(t.dtype).into(),
                    raw_data: scalar_bytes(value, t.dtype).into(),
                    ..Default::default()
                };
                let value = attribute("value", AttributeType::Tensor, |a| a.t = Some(tensor));
                self.push("ConstantOfShape", "", vec![shape], name, vec![value]);
            }
            Op::Iota => {
                let n = self.size(&int(0))?;
                let limit = self.fresh("limit");
                self.push("Squeeze", "", vec![n], &limit, vec![]);
                let (zero, one) = (self.scalar(0.0, DType::I64), self.scalar(1.0, DType::I64));
                self.push("Range", "", vec![zero, limit, one], name, vec![]);
            }
            _ => return Err(Error::internal("write", format!("no ONNX form for {}", op.name()))),
        }
        Ok(())
    }

    /// The element type that weak scalars of a node take.
    fn weak_type(&self, op: Op, operands: &[Id]) -> DType {
        // The condition of `where` is boolean; the branches decide.
        let from = if op == Op::Where { 1 } else { 0 };
        let tensor = operands.iter().skip(from).find_map(|id| self.graph.tensor_type(*id));
        tensor.map_or(DType::F32, |t| t.dtype)
    }

    fn operands(&mut self, ids: &[Id], weak: DType) -> Result<Vec<String>> {
        ids.iter().map(|id| self.operand(*id, weak)).collect()
    }

    /// The name of a value; literals become constants of type `weak`.
    fn operand(&mut self, id: Id, weak: DType) -> Result<String> {
        if let Some(name) = self.names.get(&id) {
            return Ok(name.clone());
        }
        let lit =
            self.literal(id).ok_or_else(|| Error::internal("write", format!("%{id} is used before it is emitted")))?;
        if let Some(name) = self.attribute_name(lit) {
            return Ok(self.attribute_scalar(name, weak));
        }
        match (lit, lit.number()) {
            (_, Some(x)) => Ok(self.scalar(x, weak)),
            (Lit::Int(d), None) => {
                let size = self.size(d)?;
                let scalar = self.fresh("size");
                self.push("Squeeze", "", vec![size], &scalar, vec![]);
                let cast = self.fresh("size");
                let to = attribute("to", AttributeType::Int, |a| a.i = Some(data_type(weak) as i64));
                self.push("Cast", "", vec![scalar], &cast, vec![to]);
                Ok(cast)
            }
            _ => Err(Error::internal("write", format!("literal {lit} in operand position"))),
        }
    }

    /// In a function: the attribute that holds this value.
    fn attribute_name(&self, lit: &Lit) -> Option<&'static str> {
        let attributes = self.attributes.as_ref()?;
        attributes.iter().find(|(value, _)| value == lit && matches!(value, Lit::Float(_))).map(|(_, name)| *name)
    }

    /// A scalar that reads a function's attribute.
    fn attribute_scalar(&mut self, attr: &str, dtype: DType) -> String {
        let key = format!("{attr} {}", dtype.name());
        if let Some(name) = self.sizes.get(&key) {
            return name.clone();
        }
        let mut name = self.fresh(attr);
        let value = attribute("value_float", AttributeType::Float, |a| a.ref_attr_name = attr.into());
        self.push("Constant", "", vec![], &name, vec![value]);
        if dtype != DType::F32 {
            let cast = self.fresh(attr);
            let to = attribute("to", AttributeType::Int, |a| a.i = Some(data_type(dtype) as i64));
            self.push("Cast", "", vec![name], &cast, vec![to]);
            name = cast;
        }
        self.sizes.insert(key, name.clone());
        name
    }

    fn attribute(&self, name: &str, kind: Kind, id: Id) -> Result<AttributeProto> {
        let wrong = || Error::internal("write", format!("attribute {name} has the wrong kind"));
        let lit = self.literal(id).ok_or_else(wrong)?;
        let known = |d: &Dim| d.known().ok_or_else(wrong);
        Ok(match (kind, lit) {
            (Kind::Int, Lit::Int(d)) => {
                let i = known(d)?;
                attribute(name, AttributeType::Int, |a| a.i = Some(i))
            }
            (Kind::Ints, Lit::Ints(ds)) => {
                let ints: Result<Vec<i64>> = ds.iter().map(known).collect();
                let ints = ints?;
                attribute(name, AttributeType::Ints, |a| a.ints = ints)
            }
            (Kind::Float, l) => {
                let f = l.number().ok_or_else(wrong)? as f32;
                attribute(name, AttributeType::Float, |a| a.f = Some(f))
            }
            (Kind::DType, Lit::DType(t)) => attribute(name, AttributeType::Int, |a| a.i = Some(data_type(*t) as i64)),
            (Kind::Word, Lit::Word(w)) => attribute(name, AttributeType::String, |a| a.s = Some(w.to_string().into())),
            _ => return Err(wrong()),
        })
    }

    /// An attribute that ONNX takes as an int64 input.
    fn int_input(&mut self, op: Op, attr: &Attr, operands: &[Id], attrs: &[Id], lit: Id) -> Result<String> {
        let x: &[Dim] = operands.first().map_or(&[], |id| self.graph.type_of(*id).shape());
        match self.literal(lit) {
            Some(Lit::Ints(dims)) if op == Op::Reshape => {
                let dims = relative_shape(x, dims);
                self.ints(&dims)
            }
            Some(Lit::Ints(dims)) => self.ints(dims),
            Some(Lit::Int(d)) if op == Op::Slice && matches!(attr.name, "start" | "end") => {
                let axis = self.literal(attrs[0]).and_then(Lit::int).and_then(Dim::known);
                self.slice_bound(x, axis.and_then(|a| resolve_axis(a, x.len()).ok()), d)
            }
            Some(Lit::Int(d)) => self.ints(std::slice::from_ref(d)),
            _ => Err(Error::internal("write", format!("attribute {} of {} has the wrong kind", attr.name, op.name()))),
        }
    }

    /// A bound of a slice: unknown bounds are counted from the end of the axis where that makes them known.
    fn slice_bound(&mut self, x: &[Dim], axis: Option<usize>, d: &Dim) -> Result<String> {
        let from_end = axis.and_then(|a| (d.clone() - x[a].clone()).known());
        match (d.known(), from_end) {
            (None, Some(0)) => self.ints(&[Dim::Known(i64::MAX)]),
            (None, Some(k)) if k < 0 => self.ints(&[Dim::Known(k)]),
            _ => self.ints(std::slice::from_ref(d)),
        }
    }

    /// A scalar constant.
    fn scalar(&mut self, value: f64, dtype: DType) -> String {
        let tensor = TensorProto {
            data_type: data_type(dtype).into(),
            raw_data: scalar_bytes(value, dtype).into(),
            ..Default::default()
        };
        self.constant(format!("{}_{value:?}", dtype.name()), tensor)
    }

    /// A one-dimensional int64 value.
    fn ints(&mut self, dims: &[Dim]) -> Result<String> {
        let known: Option<Vec<i64>> = dims.iter().map(Dim::known).collect();
        if let Some(known) = known {
            let text: Vec<String> = known.iter().map(i64::to_string).collect();
            let tensor = TensorProto {
                dims: vec![known.len() as i64],
                data_type: tensor_proto::DataType::Int64.into(),
                raw_data: known.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>().into(),
                ..Default::default()
            };
            return Ok(self.constant(format!("ints_{}", text.join("_")), tensor));
        }
        if let [d] = dims {
            return self.size(d);
        }
        let key = crate::ir::ty::join(dims);
        if let Some(name) = self.sizes.get(&key) {
            return Ok(name.clone());
        }
        let parts: Result<Vec<String>> = dims.iter().map(|d| self.ints(std::slice::from_ref(d))).collect();
        let name = self.fresh("shape");
        let axis = attribute("axis", AttributeType::Int, |a| a.i = Some(0));
        self.push("Concat", "", parts?, &name, vec![axis]);
        self.sizes.insert(key, name.clone());
        Ok(name)
    }

    /// A size as an int64 value of shape [1], computed from the shapes of the scope's inputs.
    fn size(&mut self, dim: &Dim) -> Result<String> {
        if dim.known().is_some() {
            return self.ints(std::slice::from_ref(dim));
        }
        let key = dim.to_string();
        if let Some(name) = self.sizes.get(&key) {
            return Ok(name.clone());
        }
        let mut sum: Option<String> = None;
        for (syms, c) in dim.monomials() {
            let mut product = if c == 1 && !syms.is_empty() { None } else { Some(self.ints(&[Dim::Known(c)])?) };
            for sym in &syms {
                let factor = self.symbol(sym)?;
                product = Some(match product {
                    None => factor,
                    Some(p) => self.binary("Mul", p, factor),
                });
            }
            let Some(term) = product else { continue };
            sum = Some(match sum {
                None => term,
                Some(s) => self.binary("Add", s, term),
            });
        }
        let name = sum.ok_or_else(|| Error::internal("write", format!("size {dim} is empty")))?;
        self.sizes.insert(key, name.clone());
        Ok(name)
    }

    fn binary(&mut self, op_type: &str, a: String, b: String) -> String {
        let name = self.fresh("size");
        self.push(op_type, "", vec![a, b], &name, vec![]);
        name
    }

    fn symbol(&mut self, sym: &Sym) -> Result<String> {
        let key = sym.as_str().to_string();
        if let Some(name) = self.sizes.get(&key) {
            return Ok(name.clone());
        }
        let (value, axis) = self
            .symbols
            .get(sym)
            .cloned()
            .ok_or_else(|| Error::internal("write", format!("no input has an axis of size {}", sym.as_str())))?;
        let name = self.fresh("size");
        let start = attribute("start", AttributeType::Int, |a| a.i = Some(axis as i64));
        let end = attribute("end", AttributeType::Int, |a| a.i = Some(axis as i64 + 1));
        self.push("Shape", "", vec![value], &name, vec![start, end]);
        self.sizes.insert(key, name.clone());
        Ok(name)
    }

    /// A shared constant: an initializer of the main graph, a `Constant` node in a function.
    fn constant(&mut self, key: String, mut tensor: TensorProto) -> String {
        let key = format!("const/{key}");
        if let Some(name) = self.sizes.get(&key) {
            return name.clone();
        }
        let name = if self.attributes.is_some() {
            let name = self.fresh("const");
            let value = attribute("value", AttributeType::Tensor, |a| a.t = Some(tensor));
            self.push("Constant", "", vec![], &name, vec![value]);
            name
        } else {
            tensor.name = key.clone();
            self.constants.insert(key.clone(), tensor);
            key.clone()
        };
        self.sizes.insert(key, name.clone());
        name
    }
}

/// A target shape with `0` for sizes that stay in place and `-1` for one unknown size, where that
/// leaves nothing to compute; otherwise the shape itself.
fn relative_shape(from: &[Dim], to: &[Dim]) -> Vec<Dim> {
    let mut unknown = 0;
    let relative: Vec<Dim> = to
        .iter()
        .enumerate()
        .map(|(k, d)| match (d.known(), from.get(k)) {
            (Some(_), _) => d.clone(),
            (None, Some(same)) if same == d => Dim::Known(0),
            _ => {
                unknown += 1;
                Dim::Known(-1)
            }
        })
        .collect();
    if unknown <= 1 && !to.iter().any(|d| d.is(0)) { relative } else { to.to_vec() }
}

/// A tensor's type as ONNX writes it.
pub fn type_proto(t: &TensorType) -> super::proto::TypeProto {
    use super::proto::{TensorShapeProto, TypeProto, tensor_shape_proto, type_proto};
    let dim = |d: &Dim| tensor_shape_proto::Dimension {
        value: Some(match d.known() {
            Some(n) => tensor_shape_proto::dimension::Value::DimValue(n),
            None => tensor_shape_proto::dimension::Value::DimParam(d.to_string()),
        }),
        ..Default::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: data_type(t.dtype).into(),
        shape: Some(TensorShapeProto { dim: t.shape.iter().map(dim).collect() }),
    };
    TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }
}
