//! Nodes of the graph being read: layout helpers that leave nothing out of place, and known values
//! turned into tensors where an operator needs one.

use super::known::{Items, Known, floats};
use super::weights;
use crate::ir::Builder;
use crate::ir::codes::Codes;
use crate::ir::graph::{Data, Graph, Id, Leaf, LeafId, LeafKind, Node};
use crate::ir::infer::broadcast_shapes;
use crate::ir::{DType, Dim, F64, Lit, Op, TensorType};
use std::collections::BTreeMap;

/// What a name of the source graph stands for.
#[derive(Clone, Debug)]
pub enum Value {
    /// An optional operand or result that is not there.
    Absent,
    Node(Id),
    Known(Known),
    Sequence(Vec<Value>),
    /// The result of a node that was refused; its users are skipped without another message.
    Refused,
}

/// The graph, with the tables that known values may still become.
#[derive(Default)]
pub struct Build {
    pub graph: Graph,
    /// Leaves that exist once something uses them as a tensor.
    pub tables: Vec<Leaf>,
    placed: BTreeMap<usize, Id>,
    constants: BTreeMap<(&'static str, Vec<usize>, Vec<u8>), Id>,
    /// Codes in blocks, and how they lie, by the leaf of the source's codes.
    pub codes: BTreeMap<LeafId, (Id, Codes)>,
    /// What of a matrix lies in few bits, by the matrix.
    pub blocks: BTreeMap<Id, Blocks>,
    /// By the list of its places, a mask that is one and the same along the last axes.
    pub row_masks: BTreeMap<Id, RowMask>,
}

/// A matrix `[n, k]` in few bits, and what is added to all elements of a block.
#[derive(Clone)]
pub struct Blocks {
    pub dense: Id,
    /// `[n, blocks]`
    pub offsets: Id,
    pub block: i64,
}

/// A mask of whole rows.
#[derive(Clone)]
pub struct RowMask {
    pub mask: Id,
    /// The rows where it is true, `[n]`.
    pub rows: Id,
    /// Elements of a row.
    pub width: Dim,
    /// Of the mask as it was searched.
    pub shape: Vec<Dim>,
}

pub fn ints(items: impl IntoIterator<Item = i64>) -> Lit {
    Lit::Ints(items.into_iter().map(Dim::Known).collect())
}

/// The largest size of an axis, and the most elements of a tensor; nothing real comes near.
pub const MAX_SIZE: i64 = 1 << 40;
const MAX_ELEMENTS: i64 = 1 << 48;
const MAX_RANK: usize = 64;

/// The most monomials in the product of some sizes, and symbols in one of them.  Arithmetic on sizes could
/// otherwise take memory out of all proportion to the file.
const MAX_TERMS: usize = 256;
const MAX_DEGREE: usize = 32;

/// Refuses sizes whose product is no shape of a real model's.
pub fn check_arithmetic(dims: &[Dim]) -> Result<(), String> {
    let (mut terms, mut degree) = (1usize, 0usize);
    for dim in dims {
        let (t, d) = dim.extent();
        (terms, degree) = (terms.saturating_mul(t), degree.saturating_add(d));
    }
    if terms > MAX_TERMS || degree > MAX_DEGREE {
        return Err("its sizes are longer sums and products than any model's".into());
    }
    Ok(())
}

/// Refuses shapes that no tensor has.
pub fn check_shape(shape: &[Dim]) -> Result<(), String> {
    if shape.len() > MAX_RANK {
        return Err(format!("{} axes are more than the {MAX_RANK} that are read", shape.len()));
    }
    check_arithmetic(shape)?;
    let known = || shape.iter().filter_map(Dim::known);
    if let Some(bad) = known().find(|n| !(0..=MAX_SIZE).contains(n)) {
        return Err(format!("{bad} is not a size of a tensor"));
    }
    if known().fold(1i64, i64::saturating_mul) > MAX_ELEMENTS {
        return Err(format!("a tensor of shape [{}] is too large", crate::ir::ty::join(shape)));
    }
    Ok(())
}

impl Build {
    pub fn op(&mut self, op: Op, operands: &[Id], attrs: &[Lit]) -> Result<Id, String> {
        let mut children = operands.to_vec();
        for attr in attrs {
            children.push(self.graph.lit(attr.clone())?);
        }
        let id = self.graph.op(op, &children)?;
        check_shape(self.graph.type_of(id).shape())?;
        Ok(id)
    }

    pub fn float(&mut self, x: f64) -> Result<Id, String> {
        self.graph.lit(Lit::Float(F64(x)))
    }

    pub fn lit_int(&mut self, n: Dim) -> Result<Id, String> {
        self.graph.lit(Lit::Int(n))
    }

    pub fn ty(&self, id: Id) -> Result<TensorType, String> {
        self.graph.tensor_type(id).cloned().ok_or_else(|| "an operand must be a tensor".to_string())
    }

    pub fn shape(&self, id: Id) -> Vec<Dim> {
        self.graph.type_of(id).shape().to_vec()
    }

    pub fn reshape(&mut self, id: Id, shape: &[Dim]) -> Result<Id, String> {
        if self.shape(id) == shape {
            return Ok(id);
        }
        if let Some((value, dtype)) = self.uniform(id) {
            return self.full(value, dtype, shape);
        }
        // Only the last of several reshapes matters.
        if let Node::Op(Op::Reshape, children) = self.graph.node(id)
            && let Some(&inner) = children.first()
        {
            return self.reshape(inner, shape);
        }
        self.op(Op::Reshape, &[id], &[Lit::Ints(shape.into())])
    }

    pub fn transpose(&mut self, id: Id, perm: &[usize]) -> Result<Id, String> {
        if perm.iter().copied().eq(0..perm.len()) {
            return Ok(id);
        }
        self.op(Op::Transpose, &[id], &[ints(perm.iter().map(|p| *p as i64))])
    }

    /// Swaps the last two axes.
    pub fn swap_last(&mut self, id: Id) -> Result<Id, String> {
        let rank = self.shape(id).len();
        let mut perm: Vec<usize> = (0..rank).collect();
        match rank.checked_sub(2) {
            Some(k) => perm.swap(k, k + 1),
            None => return Err("needs matrices (rank 2 or more)".into()),
        }
        self.transpose(id, &perm)
    }

    /// Indices `start, start + step, ... < end` of an axis.
    pub fn slice(&mut self, id: Id, axis: usize, start: Dim, end: Dim, step: i64) -> Result<Id, String> {
        if start.is(0) && step == 1 && self.shape(id).get(axis) == Some(&end) {
            return Ok(id);
        }
        let attrs = [Dim::Known(axis as i64), start, end, Dim::Known(step)].map(Lit::Int);
        self.op(Op::Slice, &[id], &attrs)
    }

    pub fn expand(&mut self, id: Id, shape: &[Dim]) -> Result<Id, String> {
        let shape = broadcast_shapes(&self.shape(id), shape)?;
        if self.shape(id) == shape {
            return Ok(id);
        }
        if let Some((value, dtype)) = self.uniform(id) {
            return self.full(value, dtype, &shape);
        }
        self.op(Op::Expand, &[id], &[Lit::Ints(shape.into())])
    }

    pub fn concat(&mut self, ids: &[Id], axis: usize) -> Result<Id, String> {
        match ids {
            [one] => Ok(*one),
            many => self.op(Op::Concat, many, &[Lit::Int(Dim::Known(axis as i64))]),
        }
    }

    pub fn cast(&mut self, id: Id, to: DType) -> Result<Id, String> {
        let ty = self.ty(id)?;
        match self.uniform(id) {
            _ if ty.dtype == to => Ok(id),
            Some((value, _)) if to.is_float() => self.full(value, to, &ty.shape),
            Some((value, _)) if to == DType::Bool => self.full(f64::from(value != 0.0), to, &ty.shape),
            _ => self.op(Op::Cast, &[id], &[Lit::DType(to)]),
        }
    }

    /// The value of a tensor of one value.
    pub fn uniform(&self, id: Id) -> Option<(f64, DType)> {
        let Node::Op(Op::Full, children) = self.graph.node(id) else { return None };
        let value = children.first().and_then(|v| self.graph.type_of(*v).lit()).and_then(Lit::number)?;
        Some((value, self.ty(id).ok()?.dtype))
    }

    /// Whether a leaf that is not learned has this number everywhere.
    pub fn is_constant(&self, id: Id, number: f64) -> bool {
        let leaf = self.graph.as_leaf(id).map(|leaf| self.graph.leaf(leaf)).filter(|l| l.kind == LeafKind::Const);
        let Some((leaf, data)) = leaf.and_then(|l| Some((l, l.data.as_ref()?))) else { return false };
        let Ok(bytes) = weights::load(data) else { return false };
        floats(leaf.ty.dtype, &bytes).is_some_and(|mut all| all.all(|x| x == number))
    }

    pub fn full(&mut self, value: f64, dtype: DType, shape: &[Dim]) -> Result<Id, String> {
        self.op(Op::Full, &[], &[Lit::Float(F64(value)), Lit::DType(dtype), Lit::Ints(shape.into())])
    }

    /// `0..n` as int64.
    pub fn iota(&mut self, n: Dim) -> Result<Id, String> {
        self.op(Op::Iota, &[], &[Lit::Int(n)])
    }

    /// Ones in front of the shape, up to a rank.
    pub fn pad_rank(&mut self, id: Id, rank: usize) -> Result<Id, String> {
        let shape = self.shape(id);
        let ones = vec![Dim::Known(1); rank.saturating_sub(shape.len())];
        self.reshape(id, &[ones, shape].concat())
    }

    /// A value as a tensor.
    pub fn tensor(&mut self, value: &Value) -> Result<Id, String> {
        match value {
            Value::Node(id) => Ok(*id),
            Value::Known(known) => self.constant(known),
            Value::Absent => Err("an operand is missing".into()),
            Value::Sequence(_) => Err("an operand is a sequence, not a tensor".into()),
            Value::Refused => Err("an operand was refused".into()),
        }
    }

    fn constant(&mut self, known: &Known) -> Result<Id, String> {
        if let Some(k) = known.table {
            return self.table(k);
        }
        let shape: Vec<Dim> = known.shape.iter().map(|n| Dim::Known(*n as i64)).collect();
        if let Some(x) = known.uniform() {
            return self.full(x, known.dtype, &shape);
        }
        let Some(numbers) = known.numbers() else { return self.symbolic(known, &shape) };
        let is_iota = known.dtype == DType::I64 && numbers.iter().enumerate().all(|(k, x)| *x == k as f64);
        if is_iota && !numbers.is_empty() {
            let flat = self.iota(Dim::Known(numbers.len() as i64))?;
            return self.reshape(flat, &shape);
        }
        let bytes = encode(known, &numbers);
        let key = (known.dtype.name(), known.shape.clone(), bytes);
        if let Some(id) = self.constants.get(&key) {
            return Ok(*id);
        }
        let leaf = Leaf {
            name: format!("constant_{}", self.constants.len()),
            ty: TensorType::new(known.dtype, shape),
            kind: LeafKind::Const,
            data: Some(Data::Inline(key.2.clone().into())),
            transposed: false,
            source_name: None,
        };
        let id = self.graph.add_leaf(leaf);
        self.constants.insert(key, id);
        Ok(id)
    }

    /// Elements that mention unknown sizes: computed at run time, one by one.
    fn symbolic(&mut self, known: &Known, shape: &[Dim]) -> Result<Id, String> {
        let Items::Ints(dims) = &known.items else { return Err("a constant has no value".into()) };
        if known.dtype.is_float() {
            let sizes = self.symbolic(&Known { dtype: DType::I64, ..known.clone() }, shape)?;
            return self.cast(sizes, known.dtype);
        }
        let mut parts = Vec::new();
        for dim in dims {
            let zero = self.full(0.0, known.dtype, &[Dim::Known(1)])?;
            let dim = self.graph.lit(Lit::Int(dim.clone()))?;
            parts.push(self.op(Op::Add, &[zero, dim], &[])?);
        }
        let flat = self.concat(&parts, 0)?;
        self.reshape(flat, shape)
    }

    /// The leaf of a table, placed on first use.
    pub fn table(&mut self, k: usize) -> Result<Id, String> {
        if let Some(id) = self.placed.get(&k) {
            return Ok(*id);
        }
        let leaf = self.tables.get(k).cloned().ok_or("a table is missing")?;
        let id = self.graph.add_leaf(leaf);
        self.placed.insert(k, id);
        Ok(id)
    }
}

fn encode(known: &Known, numbers: &[f64]) -> Vec<u8> {
    let each = |f: &dyn Fn(f64) -> Vec<u8>| numbers.iter().flat_map(|x| f(*x)).collect();
    match known.dtype {
        DType::F64 => each(&|x| x.to_le_bytes().to_vec()),
        DType::F32 => each(&|x| (x as f32).to_le_bytes().to_vec()),
        DType::F16 => each(&|x| half::f16::from_f64(x).to_le_bytes().to_vec()),
        DType::BF16 => each(&|x| half::bf16::from_f64(x).to_le_bytes().to_vec()),
        DType::I64 => each(&|x| (x as i64).to_le_bytes().to_vec()),
        DType::I32 => each(&|x| (x as i32).to_le_bytes().to_vec()),
        DType::I8 | DType::I4 => each(&|x| vec![x as i8 as u8]),
        DType::U8 | DType::U4 | DType::Bool => each(&|x| vec![x as u8]),
    }
}
