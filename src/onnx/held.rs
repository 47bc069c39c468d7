//! Weights that nodes hold: some exporters write no initializers.

use super::proto::{GraphProto, NodeProto, TensorProto};
use super::tensor;

/// The tensors of Constant nodes that are weights, by the names of their values.
///
/// Where an initializer is one, none is: exporters that have both write tables into nodes.
pub fn weights(graph: &GraphProto) -> Vec<(&str, &TensorProto)> {
    if graph.initializer.iter().any(may_be_learned) {
        return vec![];
    }
    graph.node.iter().filter_map(constant).filter(|(_, t)| may_be_learned(t)).collect()
}

/// The name and the tensor of a Constant node.
pub fn constant(node: &NodeProto) -> Option<(&str, &TensorProto)> {
    let is_constant = node.op_type == "Constant" && matches!(node.domain.as_str(), "" | "ai.onnx");
    let value = node.attribute.iter().find(|a| is_constant && a.name == "value")?;
    Some((node.output.first()?, value.t.as_ref()?))
}

fn may_be_learned(tensor: &TensorProto) -> bool {
    tensor::dtype(tensor.data_type).is_ok_and(|d| d.is_float()) && tensor.dims.iter().any(|n| *n > 1)
}
