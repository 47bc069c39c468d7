//! Native kernels for functions of the domain `ai.weft`, on the CPU, for f32.
//!
//! ONNX Runtime prefers a kernel to the function of the same name, so a file stays portable and runs fast
//! here.  A kernel computes what its function's body says: to the bit where a test says so, else within rounding.
//!
//! To add one: a type that implements `operator::Compute` in a file of its family, and a line in `KERNELS`.
mod accumulate;
mod activation;
pub mod adamw;
mod amx;
mod attention;
mod bf16x3;
mod broadcast;
pub mod cuda;
mod dropout;
mod gather;
mod head;
mod looked_up;
mod loss;
mod norm;
mod operator;
mod panels;
mod parts;
mod product;
mod rope;
mod rows;
mod slim;
mod softmax;
mod squares;
mod terms;
mod tile;
mod tiles;
mod vector;

use crate::error::{Error, Result};
use operator::{Entry, entry};
use ort::operator::OperatorDomain;
use rows::{ByRow, Elementwise};
use std::sync::Arc;

/// The kernels of a training step.
const KERNELS: &[Entry] = &[
    entry::<ByRow<norm::RmsNorm, 2>>(),
    entry::<ByRow<norm::RmsNormGrad, 3>>(),
    entry::<ByRow<norm::RmsNormGradW, 2>>(),
    entry::<norm::RmsNormGradSum>(),
    entry::<ByRow<norm::LayerNorm, 3>>(),
    entry::<ByRow<norm::LayerNormGrad, 3>>(),
    entry::<ByRow<norm::Normalize, 1>>(),
    entry::<ByRow<rope::Rope, 3>>(),
    entry::<ByRow<rope::RopeGrad, 3>>(),
    entry::<Elementwise<activation::SiluGrad, 2>>(),
    entry::<Elementwise<activation::Swiglu, 2>>(),
    entry::<Elementwise<activation::SwigluGrad, 3>>(),
    entry::<Elementwise<activation::SwigluGradU, 2>>(),
    entry::<Elementwise<activation::Gelu, 1>>(),
    entry::<Elementwise<activation::GeluGrad, 2>>(),
    entry::<Elementwise<activation::GeluTanh, 1>>(),
    entry::<Elementwise<activation::GeluTanhGrad, 2>>(),
    entry::<loss::SoftmaxGrad>(),
    entry::<loss::TokenEntropy>(),
    entry::<loss::WeightedCrossEntropy>(),
    entry::<loss::WeightedCrossEntropyGrad>(),
    entry::<gather::GatherGrad>(),
    entry::<head::HeadEntropy>(),
    entry::<head::HeadExpect>(),
    entry::<head::HeadGrad<true>>(),
    entry::<head::HeadGrad<false>>(),
    entry::<dropout::Dropout>(),
    entry::<product::Products<1, false>>(),
    entry::<product::Products<1, true>>(),
    entry::<product::Products<2, false>>(),
    entry::<product::Products<2, true>>(),
    entry::<looked_up::GatherMatMul>(),
    entry::<looked_up::GatherMatMulGrad>(),
    entry::<attention::Attention>(),
    entry::<attention::AttentionBias>(),
    entry::<attention::AttentionGrad>(),
    entry::<attention::AttentionBiasGrad>(),
    entry::<attention::TokenAttention>(),
    entry::<attention::TokenAttentionBias>(),
    entry::<attention::TokenAttentionGrad>(),
    entry::<attention::TokenAttentionBiasGrad>(),
    entry::<attention::RowAttention>(),
    entry::<attention::RowAttentionBias>(),
    entry::<attention::RowAttentionGrad>(),
    entry::<attention::RowAttentionBiasGrad>(),
];

fn refused(e: ort::Error) -> Error {
    Error::runtime(format!("ONNX Runtime takes no kernels: {}", e.message()))
}

/// The kernels that take gradients, AdamW's update, `Accumulate` and `SquareSums`, to be given to a session.  ONNX Runtime must be loaded.
pub fn optimizer() -> Result<Arc<OperatorDomain>> {
    let mut domain = OperatorDomain::new("ai.weft").and_then(|d| d.add(adamw::AdamW));
    for own in [entry::<accumulate::Accumulate>(), entry::<squares::SquareSums>()] {
        domain = domain.and_then(|d| (own.add)(d, own.name, 0));
    }
    domain.map(Arc::new).map_err(refused)
}

/// Kernels for those of a file's functions that have one, to be given to a session; `None` where none has.
///
/// Every function must be one over f32.  Further bodies of one operator have a number behind its name (`Rope2`): a
/// kernel serves them all.  They share their work out to `threads`, those of the session; 0 are all of the machine.
/// ONNX Runtime must be loaded.
pub fn step<'a>(functions: impl IntoIterator<Item = &'a str>, threads: usize) -> Result<Option<Arc<OperatorDomain>>> {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if threads > 0 { threads } else { all() };
    let mut domain = None;
    for name in functions {
        let base = name.trim_end_matches(|c: char| c.is_ascii_digit());
        if let Some(entry) = KERNELS.iter().find(|e| e.name == base) {
            let some = domain.map_or_else(|| OperatorDomain::new("ai.weft"), Ok);
            domain = Some(some.and_then(|d| (entry.add)(d, name, threads)).map_err(refused)?);
        }
    }
    Ok(domain.map(Arc::new))
}
