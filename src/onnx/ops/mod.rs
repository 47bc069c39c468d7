//! How each ONNX operator is read: one row an operator.
//!
//! To read another operator, add a row here and, unless it is elementwise, a function in the file of its
//! family.  An operator the IR lacks is spelled in operators that it has.  One whose meaning changed has a row for
//! each; one whose attributes became operands has one row that names them.

mod attention;
mod compose;
mod contrib;
mod conv;
mod einsum;
mod elementwise;
mod index;
mod layout;
mod nd;
mod norm;
mod quantized;
mod reduce;
mod rotary;
mod topk;

pub use index::forward;
pub use layout::{reshaped, shape_of};

use super::build::Build;
use super::call::{Call, Read};
use crate::ir::Op;

/// How an operator is read.
pub enum Reader {
    Unary(Op),
    Binary(Op),
    /// Any number of operands, joined from the left.
    Join(Op),
    Reduce(reduce::Kind),
    Fn(fn(&mut Build, &Call) -> Read),
}

pub struct Row {
    pub name: &'static str,
    /// The first opset that has the operator in the form that is read.
    pub since: i64,
    pub reader: Reader,
    /// Attributes of older opsets that are operands of newer ones, by the place they have there.
    pub was: &'static [(&'static str, usize)],
}

impl Row {
    const fn was(self, attributes: &'static [(&'static str, usize)]) -> Row {
        Row { was: attributes, ..self }
    }

    pub fn read(&self, b: &mut Build, call: &Call) -> Read {
        match self.reader {
            Reader::Unary(_) if call.inputs.len() > 1 => Err("takes one operand".into()),
            Reader::Binary(_) if call.inputs.len() > 2 => Err("takes two operands".into()),
            Reader::Unary(op) => elementwise::unary(b, call, op),
            Reader::Binary(op) => elementwise::binary(b, call, op),
            Reader::Join(op) => elementwise::join(b, call, op),
            Reader::Reduce(kind) => reduce::reduce(b, call, kind),
            Reader::Fn(f) => f(b, call),
        }
    }
}

/// The row of an operator of the standard domain, or of ONNX Runtime's: its newest form in an opset.  Where that has
/// none yet, the first.
pub fn find(domain: &str, name: &str, opset: i64) -> Option<&'static Row> {
    let rows = match domain {
        "" | "ai.onnx" => STANDARD,
        "com.microsoft" => CONTRIB,
        _ => return None,
    };
    let rank = |since: i64| if since <= opset { (true, since) } else { (false, -since) };
    rows.iter().filter(|r| r.name == name).max_by_key(|r| rank(r.since))
}

/// The names of all operators that are read, of ONNX and of ONNX Runtime.
pub fn names() -> impl Iterator<Item = &'static str> {
    STANDARD.iter().chain(CONTRIB).map(|r| r.name).chain(["Constant", "If", "Loop", "Scan"])
}

const fn row(name: &'static str, since: i64, reader: Reader) -> Row {
    Row { name, since, reader, was: &[] }
}

const fn reduces(name: &'static str, kind: reduce::Kind) -> Row {
    row(name, 1, Reduce(kind)).was(AXES)
}

const AXES: &[(&str, usize)] = &[("axes", 1)];

use Reader::{Binary, Fn, Join, Reduce, Unary};

#[rustfmt::skip]
static STANDARD: &[Row] = &[
    row("Abs", 1, Unary(Op::Abs)),
    row("Add", 1, Binary(Op::Add)),
    row("And", 1, Binary(Op::And)),
    row("ArgMax", 1, Fn(topk::arg_max)),
    row("ArgMin", 1, Fn(topk::arg_min)),
    row("Attention", 23, Fn(attention::attention)),
    row("Cast", 1, Fn(elementwise::cast)),
    row("CastLike", 15, Fn(elementwise::cast_like)),
    row("Ceil", 1, Unary(Op::Ceil)),
    row("Celu", 12, Fn(compose::celu)),
    row("Clip", 6, Fn(elementwise::clip)).was(&[("min", 1), ("max", 2)]),
    row("Concat", 1, Fn(layout::concat)),
    row("ConstantOfShape", 9, Fn(layout::constant_of_shape)),
    row("Conv", 1, Fn(conv::conv)),
    row("Cos", 7, Unary(Op::Cos)),
    row("CumSum", 11, Fn(reduce::cumsum)),
    row("DequantizeLinear", 10, Fn(quantized::dequantize_linear)),
    row("Div", 1, Binary(Op::Div)),
    row("Dropout", 7, Fn(elementwise::dropout)),
    row("Einsum", 12, Fn(einsum::einsum)),
    row("Elu", 1, Fn(compose::elu)),
    row("Equal", 1, Binary(Op::Equal)),
    row("Erf", 9, Unary(Op::Erf)),
    row("Exp", 1, Unary(Op::Exp)),
    row("Expand", 8, Fn(layout::expand)),
    row("Flatten", 1, Fn(layout::flatten)),
    row("Floor", 1, Unary(Op::Floor)),
    row("Gather", 1, Fn(index::gather)),
    row("GatherElements", 11, Fn(index::gather_elements)),
    row("GatherND", 11, Fn(nd::gather_nd)),
    row("Gelu", 20, Fn(compose::gelu)),
    row("Gemm", 7, Fn(compose::gemm)),
    row("GlobalAveragePool", 1, Fn(|b, call| reduce::global_pool(b, call, reduce::Kind::Mean))),
    row("GlobalMaxPool", 1, Fn(|b, call| reduce::global_pool(b, call, reduce::Kind::Max))),
    row("Greater", 1, Binary(Op::Greater)),
    row("GreaterOrEqual", 12, Binary(Op::GreaterEqual)),
    row("HardSigmoid", 1, Fn(compose::hard_sigmoid)),
    row("HardSwish", 14, Fn(compose::hard_swish)),
    row("Identity", 1, Fn(elementwise::identity)),
    row("IsInf", 10, Fn(compose::is_inf)),
    row("IsNaN", 9, Unary(Op::IsNan)),
    row("LayerNormalization", 1, Fn(norm::layer)),
    row("LeakyRelu", 1, Fn(compose::leaky_relu)),
    row("Less", 1, Binary(Op::Less)),
    row("LessOrEqual", 12, Binary(Op::LessEqual)),
    row("Log", 1, Unary(Op::Log)),
    row("LogSoftmax", 1, Fn(|b, call| reduce::of_rows(b, call, reduce::log_softmax))),
    row("LogSoftmax", 13, Fn(|b, call| reduce::along_axis(b, call, reduce::log_softmax))),
    row("LpNormalization", 1, Fn(norm::lp)),
    row("MatMul", 1, Fn(compose::matmul)),
    row("Max", 8, Join(Op::Max)),
    row("Mean", 8, Fn(elementwise::mean)),
    row("Min", 8, Join(Op::Min)),
    row("Mish", 18, Fn(compose::mish)),
    row("Mod", 10, Fn(elementwise::modulo)),
    row("Mul", 1, Binary(Op::Mul)),
    row("Neg", 1, Unary(Op::Neg)),
    row("Not", 1, Unary(Op::Not)),
    row("OneHot", 9, Fn(index::one_hot)),
    row("Or", 1, Binary(Op::Or)),
    row("Pad", 2, Fn(layout::pad)).was(&[("pads", 1), ("value", 2)]),
    row("Pow", 1, Binary(Op::Pow)),
    row("PRelu", 7, Fn(compose::prelu)),
    row("RMSNormalization", 23, Fn(norm::rms)),
    row("Range", 11, Fn(layout::range)),
    row("Reciprocal", 1, Unary(Op::Reciprocal)),
    reduces("ReduceL1", reduce::Kind::L1),
    reduces("ReduceL2", reduce::Kind::L2),
    reduces("ReduceLogSum", reduce::Kind::LogSum),
    reduces("ReduceLogSumExp", reduce::Kind::LogSumExp),
    reduces("ReduceMax", reduce::Kind::Max),
    reduces("ReduceMean", reduce::Kind::Mean),
    reduces("ReduceMin", reduce::Kind::Min),
    reduces("ReduceProd", reduce::Kind::Prod),
    reduces("ReduceSum", reduce::Kind::Sum),
    reduces("ReduceSumSquare", reduce::Kind::SumSquare),
    row("Relu", 1, Fn(compose::relu)),
    row("Reshape", 5, Fn(layout::reshape)),
    row("RotaryEmbedding", 23, Fn(rotary::rotary_embedding)),
    // The former name of ScatterElements.
    row("Scatter", 9, Fn(index::scatter_elements)),
    row("ScatterElements", 11, Fn(index::scatter_elements)),
    row("ScatterND", 11, Fn(nd::scatter_nd)),
    row("Selu", 6, Fn(compose::selu)),
    row("SequenceAt", 11, Fn(layout::sequence_at)),
    row("SequenceConstruct", 11, Fn(layout::sequence_construct)),
    row("Shape", 1, Fn(layout::shape)),
    row("Sigmoid", 1, Unary(Op::Sigmoid)),
    row("Sign", 9, Unary(Op::Sign)),
    // ONNX Runtime puts this one into the standard domain.
    row("SimplifiedLayerNormalization", 1, Fn(norm::rms)),
    row("Sin", 7, Unary(Op::Sin)),
    row("Size", 1, Fn(layout::size)),
    row("Slice", 1, Fn(index::slice)).was(&[("starts", 1), ("ends", 2), ("axes", 3)]),
    row("Softmax", 1, Fn(|b, call| reduce::of_rows(b, call, reduce::softmax))),
    row("Softmax", 13, Fn(|b, call| reduce::along_axis(b, call, reduce::softmax))),
    row("Softplus", 1, Unary(Op::Softplus)),
    row("Softsign", 1, Fn(compose::softsign)),
    row("Split", 2, Fn(layout::split)).was(&[("split", 1)]),
    row("SplitToSequence", 11, Fn(layout::split_to_sequence)),
    row("Sqrt", 1, Unary(Op::Sqrt)),
    row("NonZero", 9, Fn(index::non_zero)),
    row("Squeeze", 1, Fn(layout::squeeze)).was(AXES),
    row("Sub", 1, Binary(Op::Sub)),
    row("Sum", 8, Join(Op::Add)),
    row("SwiGLU", 28, Fn(compose::swiglu)),
    row("Swish", 24, Fn(compose::swish)),
    row("Tanh", 1, Unary(Op::Tanh)),
    row("Tile", 6, Fn(layout::tile)),
    row("TopK", 1, Fn(topk::topk)).was(&[("k", 1)]),
    row("Transpose", 1, Fn(layout::transpose)),
    row("Trilu", 14, Fn(index::trilu)),
    row("Unsqueeze", 1, Fn(layout::unsqueeze)).was(AXES),
    row("Where", 9, Fn(elementwise::select)),
    row("Xor", 1, Fn(elementwise::xor)),
];

/// Operators of ONNX Runtime's domain that its graph optimisers put into saved models.
#[rustfmt::skip]
static CONTRIB: &[Row] = &[
    row("Attention", 1, Fn(contrib::attention)),
    row("BiasGelu", 1, Fn(compose::bias_gelu)),
    row("EmbedLayerNormalization", 1, Fn(norm::embed_layer)),
    row("FastGelu", 1, Fn(compose::fast_gelu)),
    row("FusedGemm", 1, Fn(compose::fused_gemm)),
    row("FusedMatMul", 1, Fn(compose::fused_matmul)),
    row("Gelu", 1, Fn(compose::gelu)),
    row("GroupQueryAttention", 1, Fn(contrib::group_query)),
    row("MatMulNBits", 1, Fn(quantized::matmul_nbits)),
    row("MultiHeadAttention", 1, Fn(contrib::multi_head)),
    row("QuickGelu", 1, Fn(compose::quick_gelu)),
    row("RotaryEmbedding", 1, Fn(rotary::contrib)),
    row("SimplifiedLayerNormalization", 1, Fn(norm::rms)),
    row("SkipLayerNormalization", 1, Fn(norm::skip_layer)),
    row("SkipSimplifiedLayerNormalization", 1, Fn(norm::skip_rms)),
    // FusedMatMul's former name.
    row("TransposeMatMul", 1, Fn(compose::fused_matmul)),
];
