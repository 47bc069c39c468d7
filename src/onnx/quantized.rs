//! Quantised weights in ONNX: blocked `DequantizeLinear`, and ONNX Runtime's `MatMulNBits`.
//!
//! Codes are unsigned with the zero point in the middle.  `MatMulNBits` assumes it; `DequantizeLinear`, whose
//! default is 0, is told.  Codes of 4 bits are UINT4 to the one and bytes to the other: ONNX has no node that
//! would turn one into the other, so where both are used the bytes stand in the file twice.

use super::emit::{CONTRIB, Scope, attribute};
use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, TensorProto, tensor_proto};
use crate::error::{Error, Result};
use crate::ir::{Builder, DType, Dim, Id};

/// Sizes of quantised codes: so many rows of blocks, so many bits each.
struct Sizes {
    rows: i64,
    blocks: i64,
    block: i64,
    bits: i64,
}

fn int(name: &str, value: i64) -> AttributeProto {
    attribute(name, AttributeType::Int, |a| a.i = Some(value))
}

impl Scope<'_> {
    fn sizes_of(&self, codes: Id, bits: i64) -> Result<Sizes> {
        let wrong = || Error::internal("write", "codes must be [rows, blocks, bytes] of known size");
        let ty = self.graph.tensor_type(codes).ok_or_else(wrong)?;
        match ty.shape.iter().map(Dim::known).collect::<Option<Vec<i64>>>().as_deref() {
            Some(&[rows, blocks, bytes]) if bits > 0 => Ok(Sizes { rows, blocks, block: bytes * 8 / bits, bits }),
            _ => Err(wrong()),
        }
    }

    /// The dense weight `[rows, k]`, values named `name`.
    pub(super) fn dequantize(&mut self, id: Id, operands: &[Id], bits: i64, name: &str) -> Result<()> {
        let Sizes { rows, blocks, block, bits } = self.sizes_of(operands[0], bits)?;
        let k = self.graph.type_of(id).shape()[1].clone();
        let codes = match bits {
            4 => self.halves(operands[0], &[rows, blocks, block])?,
            _ => self.operand(operands[0], DType::F32)?,
        };
        let scales = self.operand(operands[1], DType::F32)?;
        // One scale and one zero point a block.
        let per_block = self.ints(&[rows, blocks, 1].map(Dim::Known))?;
        let scale = self.fresh("scale");
        self.push("Reshape", "", vec![scales, per_block], &scale, vec![]);
        let zero = self.zero_points(rows, blocks, bits);
        let values = self.fresh("dense");
        let attributes = vec![int("axis", 2), int("block_size", block)];
        self.push("DequantizeLinear", "", vec![codes, scale, zero], &values, attributes);
        let filled = k != Dim::Known(blocks * block);
        let whole = if filled { self.fresh("dense") } else { name.to_string() };
        let shape = self.ints(&[rows, blocks * block].map(Dim::Known))?;
        self.push("Reshape", "", vec![values, shape], &whole, vec![]);
        if filled {
            let (start, end, axis) = (self.ints(&[Dim::Known(0)])?, self.ints(&[k])?, self.ints(&[Dim::Known(1)])?);
            self.push("Slice", "", vec![whole, start, end, axis], name, vec![]);
        }
        Ok(())
    }

    /// The middle code for every block.
    fn zero_points(&mut self, rows: i64, blocks: i64, bits: i64) -> String {
        let n = (rows * blocks) as usize;
        let (data_type, raw_data) = match bits {
            4 => (tensor_proto::DataType::Uint4, vec![0x88; n.div_ceil(2)]),
            _ => (tensor_proto::DataType::Uint8, vec![0x80; n]),
        };
        let tensor = TensorProto {
            dims: vec![rows, blocks, 1],
            data_type: data_type.into(),
            raw_data: raw_data.into(),
            ..Default::default()
        };
        self.constant(format!("zero_u{bits}_{rows}_{blocks}"), tensor)
    }

    /// `x w^T` from the codes of w, multiplied and added in the type of x (`accuracy_level` 0: no rounding of x).
    pub(super) fn matmul_nbits(&mut self, id: Id, operands: &[Id], bits: i64, name: &str) -> Result<()> {
        let Sizes { rows, block, bits, .. } = self.sizes_of(operands[1], bits)?;
        let operand = |scope: &mut Self, k: usize| scope.operand(operands[k], DType::F32);
        let (x, codes, scales) = (operand(self, 0)?, operand(self, 1)?, operand(self, 2)?);
        let k = self.graph.type_of(operands[0]).shape().last().and_then(Dim::known);
        let k = k.ok_or_else(|| Error::internal("write", format!("%{id}: the inner size is not known")))?;
        let attributes = [("K", k), ("N", rows), ("bits", bits), ("block_size", block), ("accuracy_level", 0)];
        self.uses_contrib = true;
        self.push("MatMulNBits", CONTRIB, vec![x, codes, scales], name, attributes.map(|(n, v)| int(n, v)).into());
        Ok(())
    }

    /// Bytes as the pairs of codes that they are.
    fn halves(&mut self, codes: Id, dims: &[i64]) -> Result<String> {
        let leaf = self.graph.as_leaf(codes);
        let leaf = leaf.ok_or_else(|| Error::internal("write", "codes of 4 bits must be a constant"))?;
        let name = format!("{}.halves", self.graph.leaf(leaf).name);
        self.halves.insert(name.clone(), (leaf, dims.to_vec()));
        Ok(name)
    }
}
