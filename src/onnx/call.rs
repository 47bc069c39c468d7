//! One node of the source as its reader sees it: operands, attributes, opset.

use super::build::{Build, Value};
use super::known::Known;
use super::proto::{AttributeProto, GraphProto, TensorProto};
use crate::error::Problem;
use crate::ir::graph::Id;
use crate::ir::infer::resolve_axis;
use crate::ir::{DType, Dim};

/// What a reader of an operator returns: one value a result, or why it refuses.
pub type Read = Result<Vec<Value>, Problem>;

impl From<String> for Problem {
    fn from(message: String) -> Problem {
        Problem::new("", message)
    }
}

impl From<&str> for Problem {
    fn from(message: &str) -> Problem {
        Problem::new("", message)
    }
}

/// One call of an operator.
pub struct Call<'m> {
    pub op: &'m str,
    pub inputs: Vec<Value>,
    pub outputs: usize,
    /// Attributes by name, references to a function's attributes already resolved.
    pub attrs: Vec<(&'m str, &'m AttributeProto)>,
}

impl<'m> Call<'m> {
    pub fn attr(&self, name: &str) -> Option<&'m AttributeProto> {
        self.attrs.iter().find(|(n, _)| *n == name).map(|(_, a)| *a)
    }

    pub fn int(&self, name: &str) -> Option<i64> {
        self.attr(name).map(|a| a.i())
    }

    pub fn int_or(&self, name: &str, default: i64) -> i64 {
        self.int(name).unwrap_or(default)
    }

    pub fn float(&self, name: &str) -> Option<f64> {
        self.attr(name).map(|a| f64::from(a.f()))
    }

    pub fn float_or(&self, name: &str, default: f64) -> f64 {
        self.float(name).unwrap_or(default)
    }

    pub fn ints(&self, name: &str) -> Option<&'m [i64]> {
        self.attr(name).map(|a| a.ints.as_slice())
    }

    pub fn word(&self, name: &str) -> Option<&'m str> {
        self.attr(name).and_then(|a| std::str::from_utf8(a.s.as_deref().unwrap_or_default()).ok())
    }

    pub fn tensor_attr(&self, name: &str) -> Option<&'m TensorProto> {
        self.attr(name).and_then(|a| a.t.as_ref())
    }

    pub fn graph_attr(&self, name: &str) -> Option<&'m GraphProto> {
        self.attr(name).and_then(|a| a.g.as_ref())
    }

    /// Operand `k`, if it is given.
    pub fn get(&self, k: usize) -> Option<&Value> {
        self.inputs.get(k).filter(|v| !matches!(v, Value::Absent))
    }

    pub fn value(&self, k: usize) -> Result<&Value, String> {
        self.get(k).ok_or_else(|| format!("operand {k} is missing"))
    }

    /// Operand `k` as a tensor of the graph.
    pub fn node(&self, b: &mut Build, k: usize) -> Result<Id, String> {
        b.tensor(self.value(k)?)
    }

    /// Operand `k` as a tensor, if it is given.
    pub fn optional(&self, b: &mut Build, k: usize) -> Result<Option<Id>, String> {
        self.get(k).map(|v| b.tensor(v)).transpose()
    }

    /// Operand `k`, where its elements are known while reading.
    pub fn known(&self, k: usize) -> Option<&Known> {
        if let Some(Value::Known(known)) = self.get(k) { Some(known) } else { None }
    }

    /// The elements of integer operand `k`, which must be known; `None` where it is not given.
    pub fn dims(&self, k: usize, what: &str) -> Result<Option<Vec<Dim>>, String> {
        match self.get(k) {
            None => Ok(None),
            Some(Value::Known(known)) => {
                known.dims().map(|d| Some(d.to_vec())).ok_or_else(|| format!("{what} must be integers"))
            }
            Some(_) => Err(format!("{what} must not depend on the model's inputs, only on their shapes")),
        }
    }

    /// Integers from attribute `name` (older opsets) or operand `k`.
    pub fn integers(&self, name: &str, k: usize) -> Result<Option<Vec<i64>>, String> {
        if let Some(ints) = self.ints(name) {
            return Ok(Some(ints.to_vec()));
        }
        let Some(dims) = self.dims(k, name)? else { return Ok(None) };
        let known: Option<Vec<i64>> = dims.iter().map(Dim::known).collect();
        known.map(Some).ok_or_else(|| format!("{name} must be known numbers"))
    }

    /// Attribute `axis`, resolved to `0..rank`.
    pub fn axis(&self, default: i64, rank: usize) -> Result<usize, String> {
        resolve_axis(self.int_or("axis", default), rank)
    }

    /// The one number of operand `k`, if it is given.
    pub fn number(&self, k: usize, what: &str) -> Result<Option<f64>, String> {
        match self.get(k) {
            None => Ok(None),
            Some(Value::Known(known)) => {
                known.uniform().map(Some).ok_or_else(|| format!("{what} must be a known number"))
            }
            Some(_) => Err(format!("{what} must be a known number")),
        }
    }

    /// The element type that attribute `name` names.
    pub fn dtype(&self, name: &str) -> Result<Option<DType>, String> {
        self.int(name).map(|n| super::tensor::dtype(n as i32)).transpose()
    }
}
