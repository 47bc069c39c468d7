//! What an arm sees of its node: operands, attributes and the result's type, with checked readers.

use crate::ir::infer::resolve_axis;
use crate::ir::{DType, Lit, Op, TensorType};
use candle_core::{Result, Tensor, bail};

/// The operands (f64), the attributes (sizes known) and the result's type of one node.
pub struct Args<'a> {
    op: Op,
    operands: &'a [Tensor],
    attrs: &'a [Lit],
    dtype: DType,
    shape: Vec<usize>,
}

impl<'a> Args<'a> {
    pub fn new(op: Op, operands: &'a [Tensor], attrs: &'a [Lit], out: &TensorType) -> Result<Self> {
        let mut shape = Vec::new();
        for d in &out.shape {
            match d.known().map(usize::try_from) {
                Some(Ok(n)) => shape.push(n),
                _ => bail!("the result's size {d} is not known"),
            }
        }
        Ok(Args { op, operands, attrs, dtype: out.dtype, shape })
    }

    pub fn op(&self) -> Op {
        self.op
    }

    /// The result's element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The result's shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn operands(&self) -> &'a [Tensor] {
        self.operands
    }

    /// Operand `k`.
    pub fn x(&self, k: usize) -> Result<&'a Tensor> {
        match self.operands.get(k) {
            Some(x) => Ok(x),
            None => bail!("operand {k} is missing"),
        }
    }

    fn attr(&self, name: &str) -> Result<&'a Lit> {
        let at = self.op.row().attrs.iter().position(|a| a.name == name);
        match at.and_then(|k| self.attrs.get(k)) {
            Some(lit) => Ok(lit),
            None => bail!("attribute {name} is missing"),
        }
    }

    pub fn int(&self, name: &str) -> Result<i64> {
        match self.attr(name)?.int().and_then(|d| d.known()) {
            Some(n) => Ok(n),
            None => bail!("attribute {name} is not a known integer"),
        }
    }

    /// An attribute that must not be negative.
    pub fn size(&self, name: &str) -> Result<usize> {
        match usize::try_from(self.int(name)?) {
            Ok(n) => Ok(n),
            Err(_) => bail!("attribute {name} is negative"),
        }
    }

    pub fn float(&self, name: &str) -> Result<f64> {
        match self.attr(name)?.number() {
            Some(x) => Ok(x),
            None => bail!("attribute {name} is not a number"),
        }
    }

    pub fn word(&self, name: &str) -> Result<&'a str> {
        match self.attr(name)? {
            Lit::Word(w) => Ok(w),
            _ => bail!("attribute {name} is not a word"),
        }
    }

    /// The attribute `axis`, counted from the front of a tensor of this rank.
    pub fn axis(&self, rank: usize) -> Result<usize> {
        resolve_axis(self.int("axis")?, rank).map_err(candle_core::Error::msg)
    }

    /// A list of axes, counted from the front.
    pub fn axes(&self, name: &str, rank: usize) -> Result<Vec<usize>> {
        let Some(list) = self.attr(name)?.ints() else { bail!("attribute {name} is not a list") };
        crate::ir::infer::resolve_axes(list, rank).map_err(candle_core::Error::msg)
    }
}
