//! Constants, shapes and sizes as ONNX values.

use super::emit::{Scope, attribute, data_type};
use super::proto::attribute_proto::AttributeType;
use super::proto::{TensorProto, tensor_proto};
use crate::error::{Error, Result};
use crate::ir::dim::Sym;
use crate::ir::{Builder, DType, Dim, Id};

/// The bytes of one number as ONNX stores it.
pub(super) fn scalar_bytes(value: f64, dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F64 => value.to_le_bytes().to_vec(),
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f64(value).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f64(value).to_le_bytes().to_vec(),
        DType::I64 => (value as i64).to_le_bytes().to_vec(),
        DType::I32 => (value as i32).to_le_bytes().to_vec(),
        DType::I8 | DType::I4 => (value as i8).to_le_bytes().to_vec(),
        DType::U8 | DType::U4 => vec![value as u8],
        DType::Bool => vec![u8::from(value != 0.0)],
    }
}

impl Scope<'_> {
    /// A scalar constant.
    pub(super) fn scalar(&mut self, value: f64, dtype: DType) -> String {
        let tensor = TensorProto {
            data_type: data_type(dtype).into(),
            raw_data: scalar_bytes(value, dtype).into(),
            ..Default::default()
        };
        self.constant(format!("{}_{value:?}", dtype.name()), tensor)
    }

    /// The first operand, but not before the second is computed: a reshape to its own shape, which is read off the
    /// second operand, or to which a zero made of a size of the second operand is added, or of an element.
    ///
    /// ONNX Runtime lets a reshape share the buffer of what it reads.
    pub(super) fn after(&mut self, id: Id, operands: &[Id], name: &str) -> Result<()> {
        let [shape, sizes] = [id, operands[1]].map(|id| self.graph.type_of(id).shape().to_vec());
        let (x, d) = (self.operand(operands[0], DType::F32)?, self.operand(operands[1], DType::F32)?);
        if shape.iter().chain(&sizes).any(|d| d.is(0)) {
            // There is nothing to wait for, nor to wait.
            self.push("Identity", "", vec![x], name, vec![]);
            return Ok(());
        }
        let size = self.fresh("size");
        // A shape that is known would be folded into a constant.
        let unknown = sizes.iter().position(|d| d.known().is_none());
        if unknown.is_some() && sizes == shape {
            self.push("Shape", "", vec![d], &size, vec![]);
        } else {
            let [whole, zero] = ["whole", "zero"].map(|stem| self.fresh(stem));
            if let Some(k) = unknown {
                let part = [("start", k as i64), ("end", k as i64 + 1)]
                    .map(|(name, at)| attribute(name, AttributeType::Int, |a| a.i = Some(at)));
                self.push("Shape", "", vec![d], &whole, part.into());
            } else {
                let [flat, first] = ["flat", "first"].map(|stem| self.fresh(stem));
                let [all, start, end] = [-1, 0, 1].map(|n| self.ints(&[Dim::Known(n)]));
                self.push("Reshape", "", vec![d, all?], &flat, vec![]);
                self.push("Slice", "", vec![flat, start?, end?], &first, vec![]);
                let to = attribute("to", AttributeType::Int, |a| a.i = Some(data_type(DType::I64) as i64));
                self.push("Cast", "", vec![first], &whole, vec![to]);
            }
            let nothing = self.scalar(0.0, DType::I64);
            self.push("Mul", "", vec![whole, nothing], &zero, vec![]);
            let known = self.ints(&shape)?;
            self.push("Add", "", vec![known, zero], &size, vec![]);
        }
        self.push("Reshape", "", vec![x, size], name, vec![]);
        Ok(())
    }

    /// A one-dimensional int64 value.
    pub(super) fn ints(&mut self, dims: &[Dim]) -> Result<String> {
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
    pub(super) fn size(&mut self, dim: &Dim) -> Result<String> {
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
        let place = match self.symbols.get(sym).cloned() {
            Some(place) => Some(place),
            None => self.counted(sym)?.map(|list| (list, 0)),
        };
        let (value, axis) =
            place.ok_or_else(|| Error::internal("write", format!("no input has an axis of size {}", sym.as_str())))?;
        let name = self.fresh("size");
        let start = attribute("start", AttributeType::Int, |a| a.i = Some(axis as i64));
        let end = attribute("end", AttributeType::Int, |a| a.i = Some(axis as i64 + 1));
        self.push("Shape", "", vec![value], &name, vec![start, end]);
        self.sizes.insert(key, name.clone());
        Ok(name)
    }

    /// A shared constant: an initializer of the main graph, a `Constant` node in a function.
    pub(super) fn constant(&mut self, key: String, mut tensor: TensorProto) -> String {
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
pub(super) fn relative_shape(from: &[Dim], to: &[Dim]) -> Vec<Dim> {
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
