//! Adapters of weights in few bits: nothing can be merged into codes, so that factors stand beside their products.

use super::Module;
use crate::error::{Error, Problem, Result};
use crate::ir::blocks::weight_of;
use crate::ir::{DType, Graph, Node, Op};
use crate::onnx::replace::Beside;
use crate::onnx::train_file::Weight;
use crate::runtime::HostTensor;

/// A weight `[out in]` that a model has as codes.
#[derive(Debug)]
pub struct Coded {
    pub name: String,
    /// The initializer of the codes.
    pub codes: String,
    pub shape: Vec<Option<i64>>,
    /// Of the numbers that the codes stand for.
    pub dtype: DType,
}

/// The weights that a model has as codes.
pub fn coded(graph: &Graph) -> Vec<Coded> {
    let each = graph.live().into_iter().filter_map(|id| {
        let Node::Op(Op::Dequantize, c) = graph.node(id) else { return None };
        let (leaf, ty) = (graph.leaf(graph.as_leaf(c[0])?), graph.tensor_type(id)?);
        Some(Coded {
            name: weight_of(&leaf.name).into(),
            codes: leaf.source_name.clone().unwrap_or_else(|| leaf.name.clone()),
            shape: ty.shape.iter().map(|d| d.known()).collect(),
            dtype: ty.dtype,
        })
    });
    each.collect()
}

impl Module {
    /// `A` `[in r]` and `s B` `[r out]` for the product with `weight`.
    ///
    /// # Errors
    /// `Usage` with a magnitude, which divides by the lengths of what is merged.
    pub fn beside(&self, weight: &Coded) -> Result<Beside> {
        if self.magnitude.is_some() {
            let problem = Problem::new(&weight.name, "is in few bits, and DoRA needs the lengths of its columns");
            return Err(Error::usage(problem.help("merge it into the model that is not quantised")));
        }
        let factor = |factor: &HostTensor, scale: f64| -> Result<Weight> {
            let turned = factor.transposed()?;
            let values: Vec<f64> = turned.to_f64().iter().map(|x| x * scale).collect();
            let made = HostTensor::from_f64(weight.dtype, turned.shape(), &values)?;
            Ok(Weight { dtype: made.dtype(), shape: made.shape().to_vec(), bytes: made.bytes().to_vec() })
        };
        Ok(Beside { codes: weight.codes.clone(), factors: [factor(&self.a, 1.0)?, factor(&self.b, self.scale)?] })
    }
}
