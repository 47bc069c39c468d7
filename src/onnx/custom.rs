//! Operators whose ONNX form does not follow from their row.

use super::emit::{Scope, attribute, data_type};
use super::proto::TensorProto;
use super::proto::attribute_proto::AttributeType;
use super::sizes::scalar_bytes;
use crate::error::{Error, Result};
use crate::ir::infer::resolve_axis;
use crate::ir::op::Kind;
use crate::ir::{Builder, DType, Dim, Id, Lit, Op};

impl Scope<'_> {
    /// Emits one of them.
    pub(super) fn custom(&mut self, id: Id, op: Op, operands: &[Id], attrs: &[Id], name: &str) -> Result<()> {
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
                let mut inputs = self.operands(operands, DType::F32)?;
                let terms = self.graph.type_of(operands[2]).shape().to_vec();
                let counted = terms.iter().flat_map(Dim::symbols).any(|sym| self.rows.contains_key(&sym));
                if counted && matches!(self.graph.node(operands[2]).op(), Some(Op::Sum | Op::Mean | Op::ReduceMax)) {
                    // ONNX Runtime before 1.32 reduces no rows to no rows of their old length.
                    let (shape, reduced) = (self.ints(&terms)?, self.fresh("reduced"));
                    self.push("Reshape", "", vec![inputs[2].clone(), shape], &reduced, vec![]);
                    inputs[2] = reduced;
                }
                self.push("ScatterElements", "", inputs, name, vec![axis, add]);
            }
            Op::TopkValues | Op::TopkIndices => {
                let k = int(0);
                let (axis, largest) =
                    (self.attribute("axis", Kind::Int, attrs[1])?, self.attribute("largest", Kind::Int, attrs[2])?);
                let x = self.operand(operands[0], DType::F32)?;
                if op == Op::TopkIndices && k.is(1) {
                    let best = if self.literal(attrs[2]).and_then(Lit::int).is_some_and(|n| n.is(0)) {
                        "ArgMin"
                    } else {
                        "ArgMax"
                    };
                    self.push(best, "", vec![x], name, vec![axis]);
                    return Ok(());
                }
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
                self.filled(value, t.dtype, &t.shape.clone(), name)?;
            }
            Op::Iota => {
                let n = self.size(&int(0))?;
                let limit = self.fresh("limit");
                self.push("Squeeze", "", vec![n], &limit, vec![]);
                let (zero, one) = (self.scalar(0.0, DType::I64), self.scalar(1.0, DType::I64));
                self.push("Range", "", vec![zero, limit, one], name, vec![]);
            }
            Op::TrueRows => self.true_rows(operands, name)?,
            Op::PutRows => self.put_rows(id, operands, &(int(0) * int(1)), name)?,
            Op::After => self.after(id, operands, name)?,
            Op::Dequantize => self.dequantize(id, operands, int(0).known().unwrap_or(0), name)?,
            Op::MatMulNBits => self.matmul_nbits(id, operands, int(0).known().unwrap_or(0), name)?,
            _ => return Err(Error::internal("write", format!("no ONNX form for {}", op.name()))),
        }
        Ok(())
    }

    /// A tensor of one value.
    pub(super) fn filled(&mut self, value: f64, dtype: DType, shape: &[Dim], name: &str) -> Result<()> {
        let shape = self.ints(shape)?;
        let tensor = TensorProto {
            dims: vec![1],
            data_type: data_type(dtype).into(),
            raw_data: scalar_bytes(value, dtype).into(),
            ..Default::default()
        };
        let value = attribute("value", AttributeType::Tensor, |a| a.t = Some(tensor));
        self.push("ConstantOfShape", "", vec![shape], name, vec![value]);
        Ok(())
    }
}
