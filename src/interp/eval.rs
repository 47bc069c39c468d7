//! One arm an operator.

use super::args::Args;
use super::{elementwise as e, head as h, layout as l, model as m, objective as o};
use crate::ir::{Lit, Op, TensorType};
use candle_core::{D, Result, Tensor, bail};

/// The value of one node from its operands.
///
/// Operands are f64 tensors (a weak scalar has rank 0); attributes and `out` hold no symbols any more.
///
/// # Errors
/// What candle refuses (an index out of range, a size that does not fit), a result of another shape
/// than `out`, and operators without a value of one tensor: `adamw` has a function of its own,
/// `objective` and `tuple` none.
pub fn eval(op: Op, operands: &[Tensor], attrs: &[Lit], out: &TensorType) -> std::result::Result<Tensor, String> {
    let value = Args::new(op, operands, attrs, out).and_then(|a| {
        // Nothing is to be computed, and candle reduces no empty tensor.
        if a.shape().contains(&0) {
            return Tensor::zeros(a.shape(), candle_core::DType::F64, &candle_core::Device::Cpu);
        }
        let value = arm(&a)?;
        if value.dims() != a.shape() {
            bail!("the value has shape {:?}, the type says {out}", value.dims());
        }
        Ok(value)
    });
    value.map_err(|e| format!("{}: {e}", op.name()))
}

fn product(a: &Args) -> Result<Tensor> {
    let (x, y) = (l::turned(a.x(0)?, a.int("trans_x")?)?, l::turned(a.x(1)?, a.int("trans_y")?)?);
    l::matmul(&x, &y)?.affine(a.float("alpha")?, 0.0)
}

fn product_pair(a: &Args) -> Result<Tensor> {
    let product =
        |k, trans, scale| l::matmul(a.x(k)?, &l::turned(a.x(k + 1)?, a.int(trans)?)?)?.affine(a.float(scale)?, 0.0);
    product(0, "trans_y", "alpha")?.add(&product(2, "trans_v", "beta")?)
}

/// The matrices that a product reads, transposed if asked for.
fn looked_up(a: &Args) -> Result<Tensor> {
    let (w, at) = (a.x(0)?, a.x(1)?);
    let shape = [at.dims(), &w.dims()[1..]].concat();
    l::turned(&l::gather(w, at, 0, &shape)?, a.int("trans")?)
}

fn arm(a: &Args) -> Result<Tensor> {
    let x = || a.x(0);
    match a.op() {
        Op::After => Ok(x()?.clone()),
        Op::Neg => x()?.neg(),
        Op::Abs => x()?.abs(),
        Op::Sign => x()?.sign(),
        Op::Floor => x()?.floor(),
        Op::Ceil => x()?.ceil(),
        Op::Exp => x()?.exp(),
        Op::Log => x()?.log(),
        Op::Sqrt => x()?.sqrt(),
        Op::Rsqrt => x()?.sqrt()?.recip(),
        Op::Reciprocal => x()?.recip(),
        Op::Sigmoid => e::sigmoid(x()?),
        Op::Tanh => x()?.tanh(),
        Op::Erf => x()?.erf(),
        Op::Sin => x()?.sin(),
        Op::Cos => x()?.cos(),
        Op::Softplus => e::softplus(x()?),
        Op::Not => x()?.affine(-1.0, 1.0),
        Op::IsNan => e::flag(x()?.ne(x()?)?),
        Op::Cast => e::cast(x()?, a.dtype()),
        Op::Add => x()?.broadcast_add(a.x(1)?),
        Op::Sub => x()?.broadcast_sub(a.x(1)?),
        Op::Mul => x()?.broadcast_mul(a.x(1)?),
        Op::Div => e::div(x()?, a.x(1)?, a.dtype()),
        Op::Pow => e::pow(x()?, a.x(1)?),
        Op::Max => x()?.broadcast_maximum(a.x(1)?),
        Op::Min => x()?.broadcast_minimum(a.x(1)?),
        Op::Equal => e::flag(x()?.broadcast_eq(a.x(1)?)?),
        Op::Less => e::flag(x()?.broadcast_lt(a.x(1)?)?),
        Op::LessEqual => e::flag(x()?.broadcast_le(a.x(1)?)?),
        Op::Greater => e::flag(x()?.broadcast_gt(a.x(1)?)?),
        Op::GreaterEqual => e::flag(x()?.broadcast_ge(a.x(1)?)?),
        Op::And => x()?.broadcast_mul(a.x(1)?),
        Op::Or => x()?.broadcast_maximum(a.x(1)?),
        Op::Where => e::select(x()?, a.x(1)?, a.x(2)?, a.shape()),
        Op::Sum => x()?.sum_keepdim(a.axes("axes", x()?.rank())?),
        Op::Mean => e::mean(x()?, &a.axes("axes", x()?.rank())?),
        Op::ReduceMax => e::reduce_max(x()?, &a.axes("axes", x()?.rank())?),
        Op::CumSum => e::cumsum(x()?, a.axis(x()?.rank())?, a.int("reverse")? != 0),
        Op::Softmax => e::softmax(x()?, a.axis(x()?.rank())?),
        Op::MatMul => l::matmul(x()?, a.x(1)?),
        Op::Gemm => l::matmul(&l::turned(x()?, a.int("trans_x")?)?, &l::turned(a.x(1)?, a.int("trans_y")?)?),
        Op::FusedMatMul => product(a),
        Op::Product => product(a),
        Op::ProductAdd => product(a)?.broadcast_add(a.x(2)?),
        Op::ProductPair => product_pair(a),
        Op::ProductPairAdd => product_pair(a)?.broadcast_add(a.x(4)?),
        Op::GatherMatMul => l::matmul(&looked_up(a)?, a.x(2)?),
        Op::GatherMatMulGrad => {
            let each = l::matmul(x()?, &l::turned(a.x(1)?, 1)?)?;
            l::gather_grad(&each, a.x(2)?, a.shape())
        }
        Op::Decode => l::decode(x()?, a.x(1)?, a.int("bits")?),
        Op::Dequantize => l::dequantize(x()?, a.x(1)?, a.int("bits")?, a.size("k")?),
        Op::MatMulNBits => l::matmul(x()?, &l::dequantize(a.x(1)?, a.x(2)?, a.int("bits")?, a.size("k")?)?.t()?),
        Op::Transpose => x()?.permute(a.axes("perm", x()?.rank())?)?.contiguous(),
        Op::Reshape => x()?.reshape(a.shape()),
        Op::Expand => x()?.broadcast_as(a.shape())?.contiguous(),
        Op::Concat => Tensor::cat(a.operands(), a.axis(x()?.rank())?),
        Op::Slice => l::slice(x()?, a.axis(x()?.rank())?, a.size("start")?, a.size("end")?, a.size("step")?),
        Op::Pad => x()?.pad_with_zeros(a.axis(x()?.rank())?, a.size("before")?, a.size("after")?),
        Op::Unslice => l::unslice(x()?, a.axis(x()?.rank())?, a.size("start")?, a.size("step")?, a.size("size")?),
        Op::Full => e::cast(&Tensor::full(a.float("value")?, a.shape(), &candle_core::Device::Cpu)?, a.dtype()),
        Op::Iota => l::iota(a.size("n")?),
        Op::Gather => l::gather(x()?, a.x(1)?, a.axis(x()?.rank())?, a.shape()),
        Op::GatherElements => l::gather_elements(x()?, a.x(1)?, a.axis(x()?.rank())?),
        Op::ScatterAdd => l::scatter_add(x()?, a.x(1)?, a.x(2)?, a.axis(x()?.rank())?),
        Op::TopkValues => l::topk_values(x()?, a.size("k")?, a.axis(x()?.rank())?, a.int("largest")? != 0),
        Op::TopkIndices => l::topk_indices(x()?, a.size("k")?, a.axis(x()?.rank())?, a.int("largest")? != 0),
        Op::GatherGrad => l::gather_grad(x()?, a.x(1)?, a.shape()),
        Op::TrueRows => l::true_rows(x()?),
        Op::TakeRows => l::take_rows(x()?, a.x(1)?),
        Op::PutRows => {
            l::gather_grad(x()?, a.x(1)?, &[&[a.size("batch")? * a.size("length")?], &a.shape()[2..]].concat())?
                .reshape(a.shape())
        }
        Op::RmsNorm => m::rms_norm(x()?, a.x(1)?, a.float("eps")?),
        Op::RmsNormGrad => m::rms_norm_grad(x()?, a.x(1)?, a.x(2)?, a.float("eps")?),
        Op::RmsNormGradW => x()?.broadcast_mul(&a.x(1)?.broadcast_div(&m::rms(a.x(1)?, a.float("eps")?)?)?),
        Op::RmsNormGradSum => {
            let (dy, x) = (x()?, a.x(1)?);
            let all = dy.broadcast_mul(&x.broadcast_div(&m::rms(x, a.float("eps")?)?)?)?;
            all.reshape(((), x.dim(D::Minus1)?))?.sum(0)
        }
        Op::LayerNorm | Op::OrtLayerNorm => {
            m::normalize(x()?, a.float("eps")?)?.broadcast_mul(a.x(1)?)?.broadcast_add(a.x(2)?)
        }
        Op::LayerNormGrad => m::layer_norm_grad(x()?, a.x(1)?, a.x(2)?, a.float("eps")?),
        Op::Normalize => m::normalize(x()?, a.float("eps")?),
        Op::RotateHalf => m::rotate_half(x()?, 1.0),
        Op::Rope => m::rope(x()?, a.x(1)?, a.x(2)?),
        Op::RopeGrad => m::rope_grad(x()?, a.x(1)?, a.x(2)?),
        Op::Silu => m::silu(x()?),
        Op::SiluGrad => m::silu_slope(x()?)?.broadcast_mul(a.x(1)?),
        Op::Swiglu => m::silu(x()?)?.broadcast_mul(a.x(1)?),
        Op::SwigluGradU => x()?.broadcast_mul(&m::silu(a.x(1)?)?),
        Op::SwigluGrad => m::silu_slope(a.x(1)?)?.broadcast_mul(x()?)?.broadcast_mul(a.x(2)?),
        Op::Gelu => m::gelu(x()?),
        Op::GeluGrad => m::gelu_slope(x()?)?.broadcast_mul(a.x(1)?),
        Op::GeluTanh => m::gelu_tanh(x()?),
        Op::GeluTanhGrad => m::gelu_tanh_slope(x()?)?.broadcast_mul(a.x(1)?),
        Op::Attention => m::attention(x()?, a.x(1)?, a.x(2)?, None, a.float("scale")?),
        Op::AttentionBias => m::attention(x()?, a.x(1)?, a.x(2)?, Some(a.x(3)?), a.float("scale")?),
        Op::AttentionGrad => m::attention_grad(x()?, a.x(1)?, a.x(2)?, a.x(3)?, None, a.float("scale")?),
        Op::AttentionBiasGrad => m::attention_grad(x()?, a.x(1)?, a.x(2)?, a.x(3)?, Some(a.x(4)?), a.float("scale")?),
        Op::TokenAttention => m::token_attention(x()?, a.x(1)?, a.x(2)?, None, a.float("scale")?),
        Op::TokenAttentionBias => m::token_attention(x()?, a.x(1)?, a.x(2)?, Some(a.x(3)?), a.float("scale")?),
        Op::TokenAttentionGrad => m::token_attention_grad(x()?, a.x(1)?, a.x(2)?, a.x(3)?, None, a.float("scale")?),
        Op::TokenAttentionBiasGrad => {
            m::token_attention_grad(x()?, a.x(1)?, a.x(2)?, a.x(3)?, Some(a.x(4)?), a.float("scale")?)
        }
        Op::RowAttention | Op::RowAttentionBias => {
            m::row_attention([x()?, a.x(1)?, a.x(2)?, a.x(3)?], a.operands().get(4), a.float("scale")?)
        }
        Op::RowAttentionGrad | Op::RowAttentionBiasGrad => {
            let operands = [a.x(1)?, a.x(2)?, a.x(3)?, a.x(4)?];
            m::row_attention_grad(x()?, operands, a.operands().get(5), a.float("scale")?)
        }
        Op::AttentionProbs => m::attention_probs(x()?, a.x(1)?, None, a.float("scale")?),
        Op::AttentionProbsBias => m::attention_probs(x()?, a.x(1)?, Some(a.x(2)?), a.float("scale")?),
        Op::ScoreGrad => m::score_grad(x()?, a.x(1)?, a.x(2)?),
        Op::OrtAttention => m::side_by_side(x()?, a.x(1)?, a.x(2)?, a.int("heads")?, a.float("scale")?),
        Op::SoftmaxGrad => m::softmax_grad(x()?, a.x(1)?, a.axis(x()?.rank())?),
        Op::TokenEntropy => o::token_entropy(x()?, a.x(1)?),
        Op::Beta => o::map(x()?, o::transform(a)?),
        Op::BetaRef => o::beta_ref(x()?, a.x(1)?, a.word("scope")?),
        Op::MaskRate => o::mask_rate(a),
        Op::ContextWeight => o::context_weight(x()?, a.float("p")?),
        Op::Output => Ok(x()?.clone()),
        Op::SampleMask => o::sample_mask(x()?, a.x(1)?, a.x(2)?),
        Op::LossWeight => o::loss_weight(x()?, a.x(1)?, a.x(2)?, a.word("norm")?, a.float("weight_power")?),
        Op::LossCount => o::loss_count(x()?, a.x(1)?, a.word("norm")?),
        Op::WeightedCrossEntropy => o::weighted_cross_entropy(x()?, a.x(1)?, a.x(2)?),
        Op::WeightedCrossEntropyGrad => o::weighted_cross_entropy_grad(x()?, a.x(1)?, a.x(2)?),
        Op::HeadEntropy => h::entropy(a),
        Op::HeadLoss => h::loss(a),
        Op::HeadRows => h::rows(a),
        Op::HeadLogits => h::block(a),
        Op::HeadSums => h::sums(a),
        Op::HeadExpect => h::expect(a),
        Op::LogitSums => h::logit_sums(a.x(0)?),
        Op::LogitExp => a.x(0)?.broadcast_sub(&a.x(1)?.narrow(1, 0, 1)?)?.exp(),
        Op::LogitGrad => h::logit_grad(a),
        Op::BlockExpect => h::block_expect(a.x(0)?, a.x(1)?),
        Op::MergeSums => h::merge_sums(a.x(0)?, a.x(1)?),
        Op::MergeExpect => h::merge_expect(a.x(0)?, a.x(1)?),
        Op::HeadGradZ => h::grad_z(a),
        Op::HeadGradW => h::grad_w(a),
        Op::HeadGradB => h::grad_b(a),
        Op::ShiftLogits => o::shift_logits(x()?, a.int("by")?),
        Op::ShiftLogitsGrad => o::shift_logits_grad(x()?, a.int("by")?),
        Op::Dropout => o::dropout(x()?, a.x(1)?, &l::matmul(a.x(2)?, a.x(3)?)?, a.int("field")?),
        Op::WeightNorm => (x()? + l::matmul(a.x(1)?, a.x(2)?)?)?.sqr()?.sum(0)?.sqrt(),
        Op::AdamW | Op::Sgd | Op::Tuple => bail!("has several values, not one"),
        Op::Objective | Op::Adapted => bail!("has no value: a `define` must unfold it first"),
    }
}
