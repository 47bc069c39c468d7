//! IR nodes as ONNX nodes: one scope is the main graph or the body of one function.

use super::functions::{Functions, is_known, node_attributes};
use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, NodeProto, TensorProto, tensor_proto};
use super::sizes::relative_shape;
use crate::error::{Error, Result};
use crate::ir::dim::Sym;
use crate::ir::infer::resolve_axis;
use crate::ir::op::{Attr, Emit, Kind, Slot};
use crate::ir::{Builder, DType, Dim, Graph, Id, LeafId, LeafKind, Lit, Node, Op, TensorType, Type};
use crate::rules::Rule;
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
        DType::U4 => T::Uint4,
        DType::I4 => T::Int4,
        DType::Bool => T::Bool,
    }
}

pub(super) fn attribute(name: &str, kind: AttributeType, fill: impl FnOnce(&mut AttributeProto)) -> AttributeProto {
    let mut a = AttributeProto { name: name.into(), r#type: kind.into(), ..Default::default() };
    fill(&mut a);
    a
}

/// One namespace of values: emits nodes in order.
pub struct Scope<'a> {
    pub(super) graph: &'a Graph,
    rules: &'a [Rule],
    functions: &'a mut Functions,
    /// In a function: the values of its attributes and their names.
    pub(super) attributes: Option<Vec<(Lit, &'static str)>>,
    pub nodes: Vec<NodeProto>,
    /// Small constants, main graph only.
    pub constants: BTreeMap<String, TensorProto>,
    /// Codes of 4 bits that a node wants as such, not as bytes: by name, the leaf and the shape.
    pub halves: BTreeMap<String, (LeafId, Vec<i64>)>,
    pub(super) names: FxHashMap<Id, String>,
    /// The results of nodes whose value is a list of parts.
    parts: FxHashMap<Id, Vec<String>>,
    /// Nodes that are outputs take the name of the first that they are.
    own: FxHashMap<Id, String>,
    taken: BTreeSet<String>,
    counters: BTreeMap<String, usize>,
    /// Where a symbol can be read: a value and its axis.
    pub(super) symbols: BTreeMap<Sym, (String, usize)>,
    /// Where rows are found whose number a symbol is.
    pub(super) rows: BTreeMap<Sym, Id>,
    pub(super) sizes: BTreeMap<String, String>,
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
        let finds = graph.live().into_iter().filter(|id| graph.node(*id).op() == Some(Op::TrueRows));
        let rows = finds.filter_map(|id| Some((graph.type_of(id).shape().first()?.symbols().pop()?, id))).collect();
        let taken =
            graph.leaves.iter().map(|l| l.name.clone()).chain(graph.outputs.iter().map(|(n, _)| n.clone())).collect();
        Ok(Scope {
            graph,
            rules,
            functions,
            attributes,
            nodes: vec![],
            constants: BTreeMap::new(),
            halves: BTreeMap::new(),
            names: FxHashMap::default(),
            parts: FxHashMap::default(),
            own: FxHashMap::default(),
            taken,
            counters: BTreeMap::new(),
            symbols,
            rows,
            sizes: BTreeMap::new(),
            uses_contrib: false,
        })
    }

    /// Emits every node of `order`, then an identity for each output that has no value of its own.
    pub fn run(&mut self, order: &[Id]) -> Result<()> {
        for (name, id) in &self.graph.outputs {
            if self.graph.node(*id).op().is_some() {
                self.own.entry(*id).or_insert_with(|| name.clone());
            }
        }
        self.emit(order)?;
        for (name, id) in &self.graph.outputs {
            let value = self.operand(*id, DType::F32)?;
            if value != *name {
                self.push("Identity", "", vec![value], name, vec![]);
            }
        }
        Ok(())
    }

    /// Emits those of `order` that have not been emitted.
    pub(super) fn emit(&mut self, order: &[Id]) -> Result<()> {
        for &id in order {
            match self.graph.node(id) {
                _ if self.names.contains_key(&id) => {}
                Node::Leaf(l) => drop(self.names.insert(id, self.graph.leaf(*l).name.clone())),
                Node::Lit(_) => {}
                Node::Op(op, children) => {
                    let part = self.graph.part(id).and_then(|(list, k)| self.parts.get(&list)?.get(k));
                    if let Some(part) = part.cloned() {
                        self.names.insert(id, part);
                        continue;
                    }
                    let name = self.own.get(&id).cloned().unwrap_or_else(|| self.fresh(op.name()));
                    self.node(id, *op, children, &name)?;
                    self.names.insert(id, name);
                }
            }
        }
        Ok(())
    }

    pub(super) fn fresh(&mut self, stem: &str) -> String {
        loop {
            let n = self.counters.entry(stem.into()).or_default();
            let name = format!("{stem}_{n}");
            *n += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }

    pub(super) fn push(
        &mut self,
        op_type: &str,
        domain: &str,
        input: Vec<String>,
        output: &str,
        attribute: Vec<AttributeProto>,
    ) {
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

    pub(super) fn literal(&self, id: Id) -> Option<&'a Lit> {
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
            Emit::Weft(_) | Emit::Kernel(_) => {
                let types: Vec<&Type> = children.iter().map(|c| self.graph.type_of(*c)).collect();
                let function = self.functions.name(op, &types, self.rules)?;
                let inputs = self.operands(operands, weak)?;
                let known = |k: usize| self.literal(attrs[k]).is_none_or(is_known);
                let carried = node_attributes(op).filter(|(k, ..)| known(*k));
                let attributes: Result<Vec<_>> =
                    carried.map(|(k, a, onnx_name)| self.attribute(onnx_name, a.kind, attrs[k])).collect();
                self.push(&function, DOMAIN, inputs, name, attributes?);
                if op.parts() > 1 {
                    self.split(id, op.parts(), name);
                }
            }
            Emit::Custom => self.custom(id, op, operands, attrs, name)?,
            Emit::Expand => return Err(Error::internal("write", format!("{} was not lowered", op.name()))),
        }
        Ok(())
    }

    /// Gives the last node a result for each part of its list, which is joined only for who reads it whole.
    fn split(&mut self, id: Id, parts: usize, name: &str) {
        let parts: Vec<String> = (0..parts).map(|_| self.fresh("part")).collect();
        if let Some(node) = self.nodes.last_mut() {
            node.output.clone_from(&parts);
        }
        let graph = self.graph;
        let is_whole = |x: &Id| graph.node(*x).children().contains(&id) && graph.part(*x).is_none();
        if graph.outputs.iter().any(|(_, x)| *x == id) || graph.live().iter().any(is_whole) {
            let axis = attribute("axis", AttributeType::Int, |a| a.i = Some(0));
            self.push("Concat", "", parts.clone(), name, vec![axis]);
            let joined = self.fresh("joined");
            if let Some(node) = self.nodes.last_mut() {
                node.name = joined;
            }
        }
        self.parts.insert(id, parts);
    }

    /// The element type that weak scalars of a node take.
    fn weak_type(&self, op: Op, operands: &[Id]) -> DType {
        // The condition of `where` is boolean; the branches decide.
        let from = if op == Op::Where { 1 } else { 0 };
        let tensor = operands.iter().skip(from).find_map(|id| self.graph.tensor_type(*id));
        tensor.map_or(DType::F32, |t| t.dtype)
    }

    pub(super) fn operands(&mut self, ids: &[Id], weak: DType) -> Result<Vec<String>> {
        ids.iter().map(|id| self.operand(*id, weak)).collect()
    }

    /// The name of a value; literals become constants of type `weak`.
    pub(super) fn operand(&mut self, id: Id, weak: DType) -> Result<String> {
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
    pub(super) fn attribute_scalar(&mut self, attr: &str, dtype: DType) -> String {
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

    pub(super) fn attribute(&self, name: &str, kind: Kind, id: Id) -> Result<AttributeProto> {
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
                match self.attribute_name(l) {
                    Some(own) => attribute(name, AttributeType::Float, |a| a.ref_attr_name = own.into()),
                    None => attribute(name, AttributeType::Float, |a| a.f = Some(f)),
                }
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
