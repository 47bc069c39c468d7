//! The operator table: one row an operator.
//!
//! A row gives the name in text, the operands and attributes, how the result type follows, what the
//! operator becomes in ONNX, and what it costs.  Children of a node are its operands in order, then
//! its attributes in order; attributes are literals.
//!
//! To add an operator: a row here, an arm in `interp`, a line in `rules/grad.egg` (a gradient, or `_`
//! for each operand that has none).  The checks loop over this table.

use super::infer as i;
use super::ty::Type;

/// What kind of literal an attribute is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Int,
    Ints,
    Float,
    DType,
    Word,
}

/// Where an attribute goes in the ONNX node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// An ONNX attribute of this name.
    Attribute(&'static str),
    /// An int64 tensor input at this position: a list as it is, an integer as a list of one.
    Input(usize),
    /// Used only before lowering, or by the writer's own arm for the operator.
    Internal,
}

#[derive(Clone, Copy, Debug)]
pub struct Attr {
    pub name: &'static str,
    pub kind: Kind,
    pub slot: Slot,
}

/// How many tensor operands an operator takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arity {
    Fixed(usize),
    AtLeast(usize),
}

/// What the operator becomes in an ONNX file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Emit {
    /// A standard ONNX operator.
    Std(&'static str),
    /// An operator of ONNX Runtime's own domain `com.microsoft` (target `cpu` only).
    Contrib(&'static str),
    /// A fused node of domain `ai.weft`; its function body is the operator's `lower` rule.
    Weft(&'static str),
    /// The same where the target has a kernel for it (`cpu`), elsewhere as `Expand`.
    Kernel(&'static str),
    /// Nothing: its `lower` rule replaces it before the file is written.
    Expand,
    /// The writer has an arm of its own.
    Custom,
}

/// What the extractor charges for a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cost {
    /// No data moves.
    Free,
    /// Every element is read and written once.
    Move,
    /// A fused pass over the operands.
    Fused,
    /// Multiply-adds over a contracted dimension.
    Matmul,
}

pub struct Row {
    pub op: Op,
    pub name: &'static str,
    pub arity: Arity,
    pub attrs: &'static [Attr],
    /// The result type, from the types of operands and attributes.
    pub infer: fn(&i::Args) -> Result<Type, String>,
    pub emit: Emit,
    pub cost: Cost,
}

impl Op {
    pub fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.row().name
    }

    pub fn parse(name: &str) -> Option<Op> {
        ROWS.iter().find(|r| r.name == name).map(|r| r.op)
    }

    /// How many results the node has in a file: the cotangents of its operands from the second on, which to the graph are
    /// one list.  The right side of its `lower` rule joins as many.
    pub fn parts(self) -> usize {
        match self {
            Op::TokenAttentionGrad | Op::TokenAttentionBiasGrad | Op::RowAttentionGrad | Op::RowAttentionBiasGrad => 3,
            _ => 1,
        }
    }

    /// How many of `n` children are operands.
    pub fn operands(self, n: usize) -> usize {
        n.saturating_sub(self.row().attrs.len())
    }

    /// Whether a node of this operator may have `n` children.
    pub fn accepts(self, n: usize) -> bool {
        let attrs = self.row().attrs.len();
        match self.row().arity {
            Arity::Fixed(k) => n == k + attrs,
            Arity::AtLeast(k) => n >= k + attrs,
        }
    }

    pub fn is_commutative(self) -> bool {
        matches!(self, Op::Add | Op::Mul | Op::Max | Op::Min | Op::Equal | Op::And | Op::Or)
    }
}

const fn attr(name: &'static str, kind: Kind, slot: Slot) -> Attr {
    Attr { name, kind, slot }
}
use Arity::{AtLeast, Fixed};
use Cost::{Free, Fused, Matmul, Move};
use Emit::{Contrib, Custom, Expand, Kernel, Std, Weft};
use Slot::{Attribute, Input, Internal};

const AXIS: Attr = attr("axis", Kind::Int, Attribute("axis"));
const AXES: Attr = attr("axes", Kind::Ints, Input(1));
const SHAPE: Attr = attr("shape", Kind::Ints, Input(1));
const LARGEST: Attr = attr("largest", Kind::Int, Attribute("largest"));
const EPS: Attr = attr("eps", Kind::Float, Attribute("epsilon"));
const SCALE: Attr = attr("scale", Kind::Float, Attribute("scale"));
const TRANS: Attr = attr("trans", Kind::Int, Attribute("trans"));
const FROM: Attr = attr("from", Kind::Int, Internal);
const TO: Attr = attr("to", Kind::Int, Internal);

macro_rules! ops {
    ($($variant:ident $name:literal $arity:expr, [$($attr:expr),*], $infer:path, $emit:expr, $cost:expr;)*) => {
        /// An operator of the IR.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[repr(u16)]
        pub enum Op { $($variant),* }

        /// Every operator, in the order of `Op`.
        pub static ROWS: &[Row] = &[$(Row {
            op: Op::$variant, name: $name, arity: $arity, attrs: &[$($attr),*],
            infer: $infer, emit: $emit, cost: $cost,
        }),*];
    };
}

#[rustfmt::skip]
ops! {
    // Elementwise, one operand.
    Neg          "neg"           Fixed(1), [], i::numeric, Std("Neg"), Move;
    Abs          "abs"           Fixed(1), [], i::numeric, Std("Abs"), Move;
    Sign         "sign"          Fixed(1), [], i::numeric, Std("Sign"), Move;
    Floor        "floor"         Fixed(1), [], i::float, Std("Floor"), Move;
    Ceil         "ceil"          Fixed(1), [], i::float, Std("Ceil"), Move;
    Exp          "exp"           Fixed(1), [], i::float, Std("Exp"), Move;
    Log          "log"           Fixed(1), [], i::float, Std("Log"), Move;
    Sqrt         "sqrt"          Fixed(1), [], i::float, Std("Sqrt"), Move;
    Rsqrt        "rsqrt"         Fixed(1), [], i::float, Expand, Move;
    Reciprocal   "reciprocal"    Fixed(1), [], i::float, Std("Reciprocal"), Move;
    Sigmoid      "sigmoid"       Fixed(1), [], i::float, Std("Sigmoid"), Move;
    Tanh         "tanh"          Fixed(1), [], i::float, Std("Tanh"), Move;
    Erf          "erf"           Fixed(1), [], i::float, Std("Erf"), Move;
    Sin          "sin"           Fixed(1), [], i::float, Std("Sin"), Move;
    Cos          "cos"           Fixed(1), [], i::float, Std("Cos"), Move;
    Softplus     "softplus"      Fixed(1), [], i::float, Std("Softplus"), Move;
    Not          "not"           Fixed(1), [], i::logic, Std("Not"), Move;
    IsNan        "is_nan"        Fixed(1), [], i::predicate, Std("IsNaN"), Move;
    Cast         "cast"          Fixed(1), [attr("dtype", Kind::DType, Attribute("to"))], i::cast, Std("Cast"), Move;
    // Elementwise, two operands, broadcasting as NumPy does.
    Add          "add"           Fixed(2), [], i::broadcast, Std("Add"), Move;
    Sub          "sub"           Fixed(2), [], i::broadcast, Std("Sub"), Move;
    Mul          "mul"           Fixed(2), [], i::broadcast, Std("Mul"), Move;
    Div          "div"           Fixed(2), [], i::broadcast, Std("Div"), Move;
    Pow          "pow"           Fixed(2), [], i::broadcast, Std("Pow"), Move;
    Max          "max"           Fixed(2), [], i::broadcast, Std("Max"), Move;
    Min          "min"           Fixed(2), [], i::broadcast, Std("Min"), Move;
    Equal        "equal"         Fixed(2), [], i::compare, Std("Equal"), Move;
    Less         "less"          Fixed(2), [], i::compare, Std("Less"), Move;
    LessEqual    "less_equal"    Fixed(2), [], i::compare, Std("LessOrEqual"), Move;
    Greater      "greater"       Fixed(2), [], i::compare, Std("Greater"), Move;
    GreaterEqual "greater_equal" Fixed(2), [], i::compare, Std("GreaterOrEqual"), Move;
    And          "and"           Fixed(2), [], i::logic, Std("And"), Move;
    Or           "or"            Fixed(2), [], i::logic, Std("Or"), Move;
    Where        "where"         Fixed(3), [], i::select, Std("Where"), Move;
    // Reductions keep the reduced axes with size 1.
    Sum          "sum"           Fixed(1), [AXES], i::reduce, Std("ReduceSum"), Move;
    Mean         "mean"          Fixed(1), [AXES], i::reduce, Std("ReduceMean"), Move;
    ReduceMax    "reduce_max"    Fixed(1), [AXES], i::reduce, Std("ReduceMax"), Move;
    CumSum       "cumsum"        Fixed(1), [attr("axis", Kind::Int, Internal), attr("reverse", Kind::Int, Attribute("reverse"))], i::same, Custom, Move;
    Softmax      "softmax"       Fixed(1), [AXIS], i::float, Std("Softmax"), Fused;
    // Contractions.  `matmul` broadcasts leading axes; `gemm` is two-dimensional with transposes.
    MatMul       "matmul"        Fixed(2), [], i::matmul, Std("MatMul"), Matmul;
    Gemm         "gemm"          Fixed(2), [attr("trans_x", Kind::Int, Attribute("transA")), attr("trans_y", Kind::Int, Attribute("transB"))], i::gemm, Std("Gemm"), Matmul;
    FusedMatMul  "fused_matmul"  Fixed(2), [attr("trans_x", Kind::Int, Attribute("transA")), attr("trans_y", Kind::Int, Attribute("transB")), attr("alpha", Kind::Float, Attribute("alpha"))], i::fused_matmul, Contrib("FusedMatMul"), Matmul;
    // Our own product, and one added to a third operand.
    Product      "product"       Fixed(2), [attr("trans_x", Kind::Int, Attribute("transA")), attr("trans_y", Kind::Int, Attribute("transB")), attr("alpha", Kind::Float, Attribute("alpha"))], i::fused_matmul, Weft("Product"), Matmul;
    ProductAdd   "product_add"   Fixed(3), [attr("trans_x", Kind::Int, Attribute("transA")), attr("trans_y", Kind::Int, Attribute("transB")), attr("alpha", Kind::Float, Attribute("alpha"))], i::product_add, Weft("ProductAdd"), Matmul;
    // x y + u v: what an adapter adds is summed up with the product that it is added to.
    ProductPair  "product_pair"  Fixed(4), [attr("trans_y", Kind::Int, Attribute("transB")), attr("alpha", Kind::Float, Attribute("alpha")), attr("trans_v", Kind::Int, Attribute("transD")), attr("beta", Kind::Float, Attribute("beta"))], i::product_pair, Weft("ProductPair"), Matmul;
    ProductPairAdd "product_pair_add" Fixed(5), [attr("trans_y", Kind::Int, Attribute("transB")), attr("alpha", Kind::Float, Attribute("alpha")), attr("trans_v", Kind::Int, Attribute("transD")), attr("beta", Kind::Float, Attribute("beta"))], i::product_pair_add, Weft("ProductPairAdd"), Matmul;
    // Each x[i] [b, n] times the matrix w[at[i]] [a, b], or its transpose: what mixtures of experts multiply row by row; and
    // the cotangent of w, the products dy[i] x[i]^T added up at their matrices.
    GatherMatMul "gather_matmul" Fixed(3), [attr("trans", Kind::Int, Attribute("trans"))], i::gather_matmul, Weft("GatherMatMul"), Matmul;
    GatherMatMulGrad "gather_matmul_grad" Fixed(3), [attr("rows", Kind::Int, Attribute("rows"))], i::gather_matmul_grad, Weft("GatherMatMulGrad"), Matmul;
    // Weights in `bits` (8 or 4) bits: codes in bytes [n, blocks, block bits / 8], of 4 bits the first in the low half;
    // scales [n, blocks]; `k` elements a row.  `decode` gives whole blocks.
    Dequantize   "dequantize"    Fixed(2), [attr("bits", Kind::Int, Internal), attr("k", Kind::Int, Internal)], i::dequantize, Custom, Move;
    Decode       "decode"        Fixed(2), [attr("bits", Kind::Int, Attribute("bits"))], i::decode, Weft("Decode"), Move;
    MatMulNBits  "matmul_nbits"  Fixed(3), [attr("bits", Kind::Int, Internal), attr("k", Kind::Int, Internal)], i::matmul_nbits, Custom, Matmul;
    // Layout.
    Transpose    "transpose"     Fixed(1), [attr("perm", Kind::Ints, Attribute("perm"))], i::transpose, Std("Transpose"), Move;
    Reshape      "reshape"       Fixed(1), [SHAPE], i::reshape, Std("Reshape"), Free;
    Expand       "expand"        Fixed(1), [SHAPE], i::expand, Std("Expand"), Move;
    Concat       "concat"        AtLeast(1), [AXIS], i::concat, Std("Concat"), Move;
    Slice        "slice"         Fixed(1), [attr("axis", Kind::Int, Input(3)), attr("start", Kind::Int, Input(1)), attr("end", Kind::Int, Input(2)), attr("step", Kind::Int, Input(4))], i::slice, Std("Slice"), Move;
    Pad          "pad"           Fixed(1), [attr("axis", Kind::Int, Internal), attr("before", Kind::Int, Internal), attr("after", Kind::Int, Internal)], i::pad, Custom, Move;
    Unslice      "unslice"       Fixed(1), [attr("axis", Kind::Int, Internal), attr("start", Kind::Int, Internal), attr("step", Kind::Int, Internal), attr("size", Kind::Int, Internal)], i::unslice, Expand, Move;
    Full         "full"          Fixed(0), [attr("value", Kind::Float, Internal), attr("dtype", Kind::DType, Internal), attr("shape", Kind::Ints, Internal)], i::full, Custom, Move;
    Iota         "iota"          Fixed(0), [attr("n", Kind::Int, Internal)], i::iota, Custom, Move;
    // Indexing.  Indices are i64 and in range.
    Gather       "gather"        Fixed(2), [AXIS], i::gather, Std("Gather"), Move;
    GatherElements "gather_elements" Fixed(2), [AXIS], i::gather_elements, Std("GatherElements"), Move;
    ScatterAdd   "scatter_add"   Fixed(3), [AXIS], i::scatter_add, Custom, Move;
    // The `k` largest (or smallest) along an axis, best first; of equal elements the one with the lower index.
    TopkValues   "topk_values"   Fixed(1), [attr("k", Kind::Int, Internal), AXIS, LARGEST], i::topk_values, Custom, Move;
    TopkIndices  "topk_indices"  Fixed(1), [attr("k", Kind::Int, Internal), AXIS, LARGEST], i::topk_indices, Custom, Move;
    GatherGrad   "gather_grad"   Fixed(2), [attr("rows", Kind::Int, Attribute("rows"))], i::gather_grad, Weft("GatherGrad"), Fused;
    // Rows: some of the tokens of a batch, by their places b L + l.  `n` is how many there are, a size of its own.
    TrueRows     "true_rows"     Fixed(1), [attr("n", Kind::Int, Internal)], i::true_rows, Custom, Move;
    TakeRows     "take_rows"     Fixed(2), [], i::take_rows, Expand, Move;
    PutRows      "put_rows"      Fixed(2), [attr("batch", Kind::Int, Internal), attr("length", Kind::Int, Internal)], i::put_rows, Custom, Move;
    // Composites of the model, and their backward forms.
    RmsNorm      "rms_norm"      Fixed(2), [EPS], i::same, Weft("RmsNorm"), Fused;
    RmsNormGrad  "rms_norm_grad" Fixed(3), [EPS], i::same, Weft("RmsNormGrad"), Fused;
    RmsNormGradW "rms_norm_grad_w" Fixed(2), [EPS], i::same, Weft("RmsNormGradW"), Fused;
    RmsNormGradSum "rms_norm_grad_sum" Fixed(2), [EPS], i::last_axis, Weft("RmsNormGradSum"), Fused;
    LayerNorm    "layer_norm"    Fixed(3), [EPS], i::same, Weft("LayerNorm"), Fused;
    LayerNormGrad "layer_norm_grad" Fixed(3), [EPS], i::same, Weft("LayerNormGrad"), Fused;
    Normalize    "normalize"     Fixed(1), [EPS], i::same, Weft("Normalize"), Fused;
    RotateHalf   "rotate_half"   Fixed(1), [], i::rotate_half, Expand, Fused;
    Rope         "rope"          Fixed(3), [], i::same, Weft("Rope"), Fused;
    RopeGrad     "rope_grad"     Fixed(3), [], i::same, Weft("RopeGrad"), Fused;
    Silu         "silu"          Fixed(1), [], i::float, Weft("Silu"), Fused;
    SiluGrad     "silu_grad"     Fixed(2), [], i::same, Weft("SiluGrad"), Fused;
    Swiglu       "swiglu"        Fixed(2), [], i::broadcast, Weft("Swiglu"), Fused;
    SwigluGrad   "swiglu_grad"   Fixed(3), [], i::same, Weft("SwigluGrad"), Fused;
    SwigluGradU  "swiglu_grad_u" Fixed(2), [], i::broadcast, Weft("SwigluGradU"), Fused;
    Gelu         "gelu"          Fixed(1), [], i::float, Weft("Gelu"), Fused;
    GeluGrad     "gelu_grad"     Fixed(2), [], i::same, Weft("GeluGrad"), Fused;
    GeluTanh     "gelu_tanh"     Fixed(1), [], i::float, Weft("GeluTanh"), Fused;
    GeluTanhGrad "gelu_tanh_grad" Fixed(2), [], i::same, Weft("GeluTanhGrad"), Fused;
    Attention    "attention"     Fixed(3), [SCALE], i::attention, Kernel("Attention"), Matmul;
    AttentionBias "attention_bias" Fixed(4), [SCALE], i::attention, Kernel("AttentionBias"), Matmul;
    // The cotangents of q, k and v, flat and one behind the other, from dy, q, k, v.
    AttentionGrad "attention_grad" Fixed(4), [SCALE], i::attention_grad, Kernel("AttentionGrad"), Matmul;
    AttentionBiasGrad "attention_bias_grad" Fixed(5), [SCALE], i::attention_grad, Kernel("AttentionBiasGrad"), Matmul;
    // The same with heads behind tokens, as projections leave them: q, k, v [B L H d].
    TokenAttention "token_attention" Fixed(3), [SCALE], i::token_attention, Kernel("TokenAttention"), Matmul;
    TokenAttentionBias "token_attention_bias" Fixed(4), [SCALE], i::token_attention, Kernel("TokenAttentionBias"), Matmul;
    TokenAttentionGrad "token_attention_grad" Fixed(4), [SCALE], i::token_attention_grad, Kernel("TokenAttentionGrad"), Matmul;
    TokenAttentionBiasGrad "token_attention_bias_grad" Fixed(5), [SCALE], i::token_attention_grad, Kernel("TokenAttentionBiasGrad"), Matmul;
    // ... and with queries [n H d] of some tokens alone, whose places come behind q, k, v.
    RowAttention "row_attention" Fixed(4), [SCALE], i::row_attention, Kernel("RowAttention"), Matmul;
    RowAttentionBias "row_attention_bias" Fixed(5), [SCALE], i::row_attention, Kernel("RowAttentionBias"), Matmul;
    RowAttentionGrad "row_attention_grad" Fixed(5), [SCALE], i::row_attention_grad, Kernel("RowAttentionGrad"), Matmul;
    RowAttentionBiasGrad "row_attention_bias_grad" Fixed(6), [SCALE], i::row_attention_grad, Kernel("RowAttentionBiasGrad"), Matmul;
    AttentionProbs "attention_probs" Fixed(2), [SCALE], i::attention_probs, Expand, Matmul;
    AttentionProbsBias "attention_probs_bias" Fixed(3), [SCALE], i::attention_probs, Expand, Matmul;
    SoftmaxGrad  "softmax_grad"  Fixed(2), [AXIS], i::same, Weft("SoftmaxGrad"), Fused;
    // The cotangent of scores from their probabilities p, dy and v: p (dp - sum(dp p)), dp = dy v^T.
    ScoreGrad    "score_grad"    Fixed(3), [], i::score_grad, Expand, Matmul;
    // ONNX Runtime's own kernels, where ours are not: layer norm, and attention over all heads side by side.
    OrtLayerNorm "ort_layer_norm" Fixed(3), [EPS], i::same, Std("LayerNormalization"), Fused;
    OrtAttention "ort_attention" Fixed(3), [attr("heads", Kind::Int, Attribute("num_heads")), SCALE], i::ort_attention, Contrib("MultiHeadAttention"), Matmul;
    // The objective (METHOD.md): probe, per-token time, mask, weighted loss.
    Objective    "objective"     Fixed(6), [attr("mask_id", Kind::Int, Internal), attr("logits_shift", Kind::Int, Internal)], i::tuple, Expand, Fused;
    // A matrix product whose weight an adapter changes: x, w, the adapter's own input (x, thinned out by `dropout`), its
    // factors, and a magnitude where its definition has one.
    Adapted      "adapted"       AtLeast(5), [attr("alpha", Kind::Float, Internal), attr("rank", Kind::Int, Internal)], i::matmul, Expand, Matmul;
    // x without the elements whose draw, rows times columns modulo the prime `field`, falls below the rate.
    Dropout      "dropout"       Fixed(4), [attr("field", Kind::Int, Attribute("field"))], i::dropout, Weft("Dropout"), Fused;
    // The length of each column of w + a b.
    WeightNorm   "weight_norm"   Fixed(3), [], i::weight_norm, Weft("WeightNorm"), Fused;
    // A named result of the training step.
    Output       "output"        Fixed(1), [attr("name", Kind::Word, Internal)], i::same, Expand, Free;
    TokenEntropy "token_entropy" Fixed(2), [], i::per_token, Weft("TokenEntropy"), Fused;
    Beta         "beta"          Fixed(1), [attr("transform", Kind::Word, Internal), attr("power", Kind::Float, Internal)], i::float, Expand, Fused;
    BetaRef      "beta_ref"      Fixed(2), [attr("scope", Kind::Word, Internal)], i::beta_ref, Expand, Fused;
    MaskRate     "mask_rate"     Fixed(3), [attr("scope", Kind::Word, Internal), attr("t_eps", Kind::Float, Attribute("t_eps")), attr("t_floor", Kind::Float, Attribute("t_floor"))], i::same, Weft("MaskRate"), Fused;
    SampleMask   "sample_mask"   Fixed(3), [], i::predicate, Weft("MaskSampler"), Fused;
    LossWeight   "loss_weight"   Fixed(3), [attr("norm", Kind::Word, Internal), attr("weight_power", Kind::Float, Attribute("weight_power"))], i::loss_weight, Weft("LossWeight"), Fused;
    ContextWeight "context_weight" Fixed(1), [attr("p", Kind::Float, Internal)], i::same, Weft("ContextWeight"), Fused;
    LossCount    "loss_count"    Fixed(2), [attr("norm", Kind::Word, Internal)], i::loss_count, Weft("LossCount"), Fused;
    WeightedCrossEntropy "weighted_cross_entropy" Fixed(3), [], i::per_token, Weft("WeightedCrossEntropy"), Fused;
    WeightedCrossEntropyGrad "weighted_cross_entropy_grad" Fixed(3), [], i::same, Weft("WeightedCrossEntropyGrad"), Fused;
    // The head h w + b of rows h [n d], logits nowhere in memory.  `trans` 0: w is [d V], 1: it is [V d].  Of the columns
    // from..to: their logits, whose columns are listed; the sums that entropies need, [n 3]: the largest logit m, of all
    // z - m the sum of e^(z-m) and of (z-m) e^(z-m); log sum e^z beside the expected row of w, [n 1+d]; cotangents.
    HeadEntropy  "head_entropy"  Fixed(4), [TRANS], i::head_token, Kernel("HeadEntropy"), Matmul;
    HeadLoss     "head_loss"     Fixed(5), [TRANS], i::head_token, Expand, Matmul;
    HeadRows     "head_rows"     Fixed(2), [TRANS], i::head_rows, Expand, Move;
    HeadLogits   "head_logits"   Fixed(4), [TRANS], i::head_logits, Expand, Matmul;
    HeadSums     "head_sums"     Fixed(3), [TRANS, FROM, TO], i::head_sums, Expand, Matmul;
    HeadExpect   "head_expect"   Fixed(3), [TRANS, FROM, TO], i::head_expect, Kernel("HeadExpect"), Matmul;
    HeadGradZ    "head_grad_z"   Fixed(6), [TRANS, FROM, TO], i::head_grad_z, Expand, Matmul;
    HeadGradW    "head_grad_w"   Fixed(6), [TRANS, FROM, TO], i::head_grad_w, Kernel("HeadGradW"), Matmul;
    HeadGradB    "head_grad_b"   Fixed(6), [TRANS, FROM, TO], i::head_grad_b, Kernel("HeadGradB"), Matmul;
    // Of logits z [n m] of a block of columns, as above: the three sums, e^(z-m) by the sums, and cotangents by a factor, a
    // token and log sum e^z of each row, and the columns; log sum e^z beside rows [n d] over the sum of e^(z-m); and what two
    // blocks have together.
    LogitSums    "logit_sums"    Fixed(1), [], i::logit_sums, Weft("LogitSums"), Fused;
    LogitExp     "logit_exp"     Fixed(2), [], i::logit_exp, Weft("LogitExp"), Fused;
    LogitGrad    "logit_grad"    Fixed(5), [], i::logit_grad, Weft("LogitGrad"), Fused;
    BlockExpect  "block_expect"  Fixed(2), [], i::block_expect, Weft("BlockExpect"), Fused;
    MergeSums    "merge_sums"    Fixed(2), [], i::merged, Weft("MergeSums"), Fused;
    MergeExpect  "merge_expect"  Fixed(2), [], i::merged, Weft("MergeExpect"), Fused;
    ShiftLogits  "shift_logits"  Fixed(1), [attr("by", Kind::Int, Internal)], i::same, Expand, Move;
    ShiftLogitsGrad "shift_logits_grad" Fixed(1), [attr("by", Kind::Int, Internal)], i::same, Expand, Move;
    // The optimizer.  Scalars (learning rate and so on) are f64, so that 1 - beta is exact.
    AdamW        "adamw"         Fixed(11), [], i::tuple, Weft("AdamW"), Fused;
    Sgd          "sgd"           Fixed(8), [], i::tuple, Weft("Sgd"), Fused;
    // x, but not before the second operand is computed: what comes after it is merged with nothing that does not.
    After        "after"         Fixed(2), [], i::same, Custom, Free;
    // Several results under one root.
    Tuple        "tuple"         AtLeast(0), [], i::tuple, Custom, Free;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for row in ROWS {
            assert_eq!(Op::parse(row.name), Some(row.op), "{}", row.name);
            assert_eq!(row.op.row().name, row.name);
        }
    }
}
