//! One node of the source as its reader sees it: operands, attributes, opset.

use super::build::{Build, Value};
use super::known::Known;
use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, GraphProto, TensorProto};
use crate::error::Problem;
use crate::ir::graph::Id;
use crate::ir::infer::resolve_axis;
use crate::ir::{DType, Dim};
use std::cell::RefCell;

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
    /// Attributes that were asked for and are of another type; one such refuses the node.
    pub mistyped: RefCell<Vec<String>>,
}

/// The type of an attribute: the declared one, else that of the field that is set.
fn kind(a: &AttributeProto) -> AttributeType {
    let declared = AttributeType::try_from(a.r#type).unwrap_or(AttributeType::Undefined);
    let set = [
        (a.i.is_some(), AttributeType::Int),
        (a.f.is_some(), AttributeType::Float),
        (a.s.is_some(), AttributeType::String),
        (a.t.is_some(), AttributeType::Tensor),
        (a.g.is_some(), AttributeType::Graph),
        (!a.ints.is_empty(), AttributeType::Ints),
        (!a.floats.is_empty(), AttributeType::Floats),
    ];
    match declared {
        AttributeType::Undefined => set.iter().find(|(is, _)| *is).map_or(declared, |(_, k)| *k),
        other => other,
    }
}

impl<'m> Call<'m> {
    pub fn attr(&self, name: &str) -> Option<&'m AttributeProto> {
        self.attrs.iter().find(|(n, _)| *n == name).map(|(_, a)| *a)
    }

    /// The attribute, where it has the wanted type.
    fn typed(&self, name: &str, wanted: AttributeType) -> Option<&'m AttributeProto> {
        let a = self.attr(name)?;
        let found = kind(a);
        if found == wanted {
            return Some(a);
        }
        let word = |k: AttributeType| k.as_str_name();
        self.mistyped.borrow_mut().push(format!("attribute {name} must be {}, not {}", word(wanted), word(found)));
        None
    }

    pub fn int(&self, name: &str) -> Option<i64> {
        self.typed(name, AttributeType::Int).map(|a| a.i())
    }

    pub fn int_or(&self, name: &str, default: i64) -> i64 {
        self.int(name).unwrap_or(default)
    }

    pub fn float(&self, name: &str) -> Option<f64> {
        self.typed(name, AttributeType::Float).map(|a| f64::from(a.f()))
    }

    pub fn float_or(&self, name: &str, default: f64) -> f64 {
        self.float(name).unwrap_or(default)
    }

    pub fn ints(&self, name: &str) -> Option<&'m [i64]> {
        self.typed(name, AttributeType::Ints).map(|a| a.ints.as_slice())
    }

    pub fn word(&self, name: &str) -> Option<&'m str> {
        self.typed(name, AttributeType::String)
            .and_then(|a| std::str::from_utf8(a.s.as_deref().unwrap_or_default()).ok())
    }

    pub fn tensor_attr(&self, name: &str) -> Option<&'m TensorProto> {
        self.typed(name, AttributeType::Tensor).and_then(|a| a.t.as_ref())
    }

    pub fn graph_attr(&self, name: &str) -> Option<&'m GraphProto> {
        self.typed(name, AttributeType::Graph).and_then(|a| a.g.as_ref())
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
                let dims = known.dims().ok_or_else(|| format!("{what} must be integers"))?;
                super::build::check_arithmetic(dims)?;
                Ok(Some(dims.to_vec()))
            }
            Some(_) => Err(format!("{what} must not depend on the model's inputs, only on their shapes")),
        }
    }

    /// Puts attributes that newer opsets have as operands into those places.
    pub fn promote(&mut self, attributes: &[(&str, usize)]) {
        for (name, place) in attributes {
            let Some(attribute) = self.attr(name).filter(|_| self.get(*place).is_none()) else { continue };
            let known = match kind(attribute) {
                AttributeType::Int => Known::scalar(Dim::Known(attribute.i())),
                AttributeType::Float => Known::float(attribute.f().into()),
                AttributeType::Ints => Known::vector(attribute.ints.iter().copied().map(Dim::Known).collect()),
                other => {
                    let wanted = format!("attribute {name} must be a number or a list of integers, not");
                    self.mistyped.borrow_mut().push(format!("{wanted} {}", other.as_str_name()));
                    continue;
                }
            };
            if self.inputs.len() <= *place {
                self.inputs.resize_with(place + 1, || Value::Absent);
            }
            self.inputs[*place] = Value::Known(known);
        }
    }

    /// The known integers of operand `k`, called `name`; `None` where it is not given.
    pub fn integers(&self, name: &str, k: usize) -> Result<Option<Vec<i64>>, String> {
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
        let number = |n| i32::try_from(n).map_err(|_| format!("unknown element type {n}"));
        self.int(name).map(|n| super::tensor::dtype(number(n)?)).transpose()
    }
}
