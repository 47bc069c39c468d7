//! Weights that nodes hold: in Constant nodes, and as copies of others that are equal to them.

use super::origin::{has_table_word, is_module_path};
use super::proto::{GraphProto, NodeProto, TensorProto};
use super::tensor::{self, Tensor};
use super::tie::is_uniform;

/// The tensors of Constant nodes that are weights, by the names of their values.
///
/// Where an initializer is one, none is: exporters that have both write tables into nodes.
pub fn weights(graph: &GraphProto) -> Vec<(&str, &TensorProto)> {
    if graph.initializer.iter().any(may_be_learned) {
        return vec![];
    }
    graph.node.iter().filter_map(constant).filter(|(_, t)| may_be_learned(t)).collect()
}

fn constant(node: &NodeProto) -> Option<(&str, &TensorProto)> {
    let is_constant = node.op_type == "Constant" && matches!(node.domain.as_str(), "" | "ai.onnx");
    let value = node.attribute.iter().find(|a| is_constant && a.name == "value")?;
    Some((node.output.first()?, value.t.as_ref()?))
}

fn may_be_learned(tensor: &TensorProto) -> bool {
    tensor::dtype(tensor.data_type).is_ok_and(|d| d.is_float()) && tensor.dims.iter().any(|n| *n > 1)
}

/// What an `Identity` copies, and under which name of a parameter.
///
/// TorchScript stores parameters of equal value once (all-zero biases, all-one norms) and copies them: where the value
/// [`is_own`], each is a parameter of its own.
pub fn copy(node: &NodeProto) -> Option<(&str, &str)> {
    let ([input], [output]) = (node.input.as_slice(), node.output.as_slice()) else { return None };
    let is_named = node.op_type == "Identity" && is_module_path(output) && !has_table_word(output);
    is_named.then_some((input, output))
}

/// Whether copies of a tensor are parameters of their own: equal numbers that differ among themselves are real ties.
pub fn is_own(tensor: &Tensor) -> bool {
    tensor.dtype.is_float() && tensor.numel() > 1 && is_uniform(tensor)
}
