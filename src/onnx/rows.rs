//! Rows as ONNX nodes: finding them, putting them back, and reading how many there are.

use super::emit::Scope;
use crate::error::{Error, Result};
use crate::ir::dim::Sym;
use crate::ir::{DType, Dim, Id};

impl Scope<'_> {
    /// Emits the node that counts the rows of which `sym` is the number; returns its list.
    pub(super) fn counted(&mut self, sym: &Sym) -> Result<Option<String>> {
        let Some(&id) = self.rows.get(sym) else { return Ok(None) };
        if !self.names.contains_key(&id) {
            self.emit(&self.graph.reachable_but([id], &|x| self.names.contains_key(&x)))?;
        }
        Ok(self.names.get(&id).cloned())
    }

    /// The places where a mask is true.
    pub(super) fn true_rows(&mut self, operands: &[Id], name: &str) -> Result<()> {
        let mask = self.operand(operands[0], DType::Bool)?;
        let (all, zero) = (self.ints(&[Dim::Known(-1)])?, self.ints(&[Dim::Known(0)])?);
        let (flat, places) = (self.fresh("mask"), self.fresh("places"));
        self.push("Reshape", "", vec![mask, all], &flat, vec![]);
        self.push("NonZero", "", vec![flat], &places, vec![]);
        self.push("Squeeze", "", vec![places, zero], name, vec![]);
        Ok(())
    }

    /// Rows at their places among `tokens`, zeros elsewhere.
    pub(super) fn put_rows(&mut self, id: Id, operands: &[Id], tokens: &Dim, name: &str) -> Result<()> {
        let internal = || Error::internal("write", "rows have no type");
        let t = self.graph.tensor_type(id).cloned().ok_or_else(internal)?;
        let inputs = self.operands(operands, DType::F32)?;
        let (zeros, places, joined) = (self.fresh("zeros"), self.fresh("places"), self.fresh("joined"));
        self.filled(0.0, t.dtype, &[std::slice::from_ref(tokens), &t.shape[2..]].concat(), &zeros)?;
        let column = self.ints(&[Dim::Known(-1), Dim::Known(1)])?;
        self.push("Reshape", "", vec![inputs[1].clone(), column], &places, vec![]);
        self.push("ScatterND", "", vec![zeros, places, inputs[0].clone()], &joined, vec![]);
        let shape = self.ints(&t.shape)?;
        self.push("Reshape", "", vec![joined, shape], name, vec![]);
        Ok(())
    }
}
