//! Types of values: element type and symbolic shape, or a literal attribute.

use super::dim::{Dim, Sym};
use std::fmt;
use std::sync::Arc;

/// Element type of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I8,
    U8,
    /// Two of them share a byte, the first in its low half.
    U4,
    /// The same in two's complement.
    I4,
    Bool,
}

impl DType {
    const NAMES: [(DType, &'static str, usize); 11] = [
        (DType::F64, "f64", 8),
        (DType::F32, "f32", 4),
        (DType::F16, "f16", 2),
        (DType::BF16, "bf16", 2),
        (DType::I64, "i64", 8),
        (DType::I32, "i32", 4),
        (DType::I8, "i8", 1),
        (DType::U8, "u8", 1),
        (DType::U4, "u4", 1),
        (DType::I4, "i4", 1),
        (DType::Bool, "bool", 1),
    ];

    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|r| r.0 == self).map_or("?", |r| r.1)
    }

    /// Bytes of one element, at least 1.
    pub fn size(self) -> usize {
        Self::NAMES.iter().find(|r| r.0 == self).map_or(0, |r| r.2)
    }

    /// Bytes of `n` dense elements.
    pub fn bytes(self, n: u64) -> u64 {
        if matches!(self, DType::U4 | DType::I4) { n.div_ceil(2) } else { n.saturating_mul(self.size() as u64) }
    }

    pub fn parse(name: &str) -> Option<DType> {
        Self::NAMES.iter().find(|r| r.1 == name).map(|r| r.0)
    }

    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    pub fn is_int(self) -> bool {
        matches!(self, DType::I64 | DType::I32 | DType::I8 | DType::U8 | DType::U4 | DType::I4)
    }
}

/// A float with the total order of its bits, so that literals can be hashed and compared.
#[derive(Clone, Copy)]
pub struct F64(pub f64);

impl F64 {
    fn key(self) -> u64 {
        let bits = self.0.to_bits();
        if bits >> 63 == 1 { !bits } else { bits | (1 << 63) }
    }
}

impl PartialEq for F64 {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for F64 {}
impl std::hash::Hash for F64 {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state)
    }
}
impl PartialOrd for F64 {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for F64 {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// A literal: an attribute of an operator, or a scalar operand.
///
/// A number in operand position is a *weak* scalar: it takes the element type of the operand beside it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lit {
    /// An integer, possibly symbolic: an axis, a slice bound, a token id.
    Int(Dim),
    /// A list of integers: axes, a permutation, a shape.
    Ints(Box<[Dim]>),
    Float(F64),
    DType(DType),
    /// A bare word that selects a variant, e.g. the loss norm `sequence`.
    Word(Arc<str>),
}

impl Lit {
    /// The literal with other sizes in place of symbols.
    pub fn replaced(&self, with: &dyn Fn(&Sym) -> Option<Dim>) -> Lit {
        match self {
            Lit::Int(d) => Lit::Int(d.replaced(with)),
            Lit::Ints(dims) => Lit::Ints(dims.iter().map(|d| d.replaced(with)).collect()),
            other => other.clone(),
        }
    }

    pub fn int(&self) -> Option<&Dim> {
        if let Lit::Int(d) = self { Some(d) } else { None }
    }

    pub fn ints(&self) -> Option<&[Dim]> {
        if let Lit::Ints(d) = self { Some(d) } else { None }
    }

    /// The numeric value of a known `Int` or a `Float`.
    pub fn number(&self) -> Option<f64> {
        match self {
            Lit::Int(d) => d.known().map(|n| n as f64),
            Lit::Float(x) => Some(x.0),
            _ => None,
        }
    }
}

impl fmt::Display for Lit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lit::Int(d) => write!(f, "{d}"),
            Lit::Ints(ds) => write!(f, "[{}]", join(ds)),
            Lit::Float(x) => write!(f, "{:?}", x.0),
            Lit::DType(t) => write!(f, "{}", t.name()),
            Lit::Word(w) => write!(f, "{w}"),
        }
    }
}

impl fmt::Debug for Lit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Element type and shape of a tensor.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Vec<Dim>,
}

impl TensorType {
    pub fn new(dtype: DType, shape: impl Into<Vec<Dim>>) -> Self {
        TensorType { dtype, shape: shape.into() }
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.dtype.name(), join(&self.shape))
    }
}

/// What a node is: a tensor, a literal, or the tuple that joins the roots.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Type {
    Tensor(TensorType),
    Lit(Lit),
    Tuple,
}

impl Type {
    pub fn tensor(&self) -> Option<&TensorType> {
        if let Type::Tensor(t) = self { Some(t) } else { None }
    }

    pub fn lit(&self) -> Option<&Lit> {
        if let Type::Lit(l) = self { Some(l) } else { None }
    }

    /// The shape of a tensor; a literal number is a scalar.
    pub fn shape(&self) -> &[Dim] {
        self.tensor().map_or(&[], |t| &t.shape)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Tensor(t) => t.fmt(f),
            Type::Lit(l) => l.fmt(f),
            Type::Tuple => f.write_str("tuple"),
        }
    }
}

/// `a b c`, as shapes are printed inside brackets.
pub fn join(dims: &[Dim]) -> String {
    dims.iter().map(Dim::to_string).collect::<Vec<_>>().join(" ")
}
