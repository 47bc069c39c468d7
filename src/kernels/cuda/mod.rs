//! Native kernels for functions of the domain `ai.weft`, on NVIDIA's GPUs, for f32, f16 and bf16.
//!
//! Their sources are CUDA C++ (`*.cu`), compiled by NVRTC for the GPU at hand when they are first needed; without NVRTC
//! the functions' bodies run in ONNX Runtime's operators.  A kernel computes what its function's body says,
//! its sums in f32.
//!
//! To add one: a function in a `.cu` file, a plan in `plans.rs`, and a line in `KERNELS`.

mod attention;
mod compile;
mod layout;
mod operator;
mod plans;

use crate::error::{Error, Result};
use crate::ir::{DType, Op, Type};
pub use compile::Gpu;
use compile::Modules;
use operator::Element::{F32, Host, I64, T, U8};
use operator::{Element, Kernel, Node, Plan};
use ort::operator::OperatorDomain;
use std::sync::Arc;

const ADAMW: &str = include_str!("adamw.cu");
const ACTIVATION: &str = include_str!("activation.cu");
const DECODE: &str = include_str!("decode.cu");
const LOGITS: &str = include_str!("logits.cu");
const NORM: &str = include_str!("norm.cu");
const ROPE: &str = include_str!("rope.cu");

const EPSILON: &[&str] = &["epsilon"];

/// What most kernels have in common.
const PLAIN: Kernel = Kernel {
    name: "",
    source: "",
    operands: &[],
    results: &[T],
    attributes: &[],
    narrow: false,
    in_place: false,
    fits: |_| true,
    plan: |_| Err("there is no plan".into()),
};

/// A function of single elements.
const fn element(name: &'static str, operands: &'static [Element], plan: fn(&Node) -> Outcome) -> Kernel {
    Kernel { name, source: ACTIVATION, operands, in_place: true, plan, ..PLAIN }
}

/// A function of rows.
const fn row(name: &'static str, operands: &'static [Element], plan: fn(&Node) -> Outcome) -> Kernel {
    Kernel { name, source: NORM, operands, attributes: EPSILON, in_place: true, plan, ..PLAIN }
}

/// A rotation.
const fn rotation(plan: fn(&Node) -> Outcome) -> Kernel {
    Kernel { source: ROPE, operands: &[T; 3], in_place: true, plan, ..PLAIN }
}

/// A function of rows of logits.
const fn logits(
    name: &'static str,
    operands: &'static [Element],
    results: &'static [Element],
    plan: fn(&Node) -> Outcome,
) -> Kernel {
    Kernel { name, source: LOGITS, operands, results, plan, ..PLAIN }
}

/// The cotangents of queries, keys and values.
const fn attention_grad(name: &'static str, operands: &'static [Element]) -> Kernel {
    Kernel {
        name,
        source: attention::GRAD,
        operands,
        results: &[T; 3],
        attributes: &["scale"],
        narrow: true,
        fits: |t| attention::fits(t, 1),
        plan: attention::gradient,
        ..PLAIN
    }
}

type Outcome = std::result::Result<Plan, String>;

/// The kernels of a training step.
static KERNELS: &[Kernel] = &[
    element("Silu", &[T], |n| plans::elementwise("silu", n)),
    element("SiluGrad", &[T; 2], |n| plans::elementwise("silu_grad", n)),
    element("Swiglu", &[T; 2], |n| plans::elementwise("swiglu", n)),
    element("SwigluGrad", &[T; 3], |n| plans::elementwise("swiglu_grad", n)),
    element("SwigluGradU", &[T; 2], |n| plans::elementwise("swiglu_grad_u", n)),
    element("Gelu", &[T], |n| plans::elementwise("gelu", n)),
    element("GeluGrad", &[T; 2], |n| plans::elementwise("gelu_grad", n)),
    element("GeluTanh", &[T], |n| plans::elementwise("gelu_tanh", n)),
    element("GeluTanhGrad", &[T; 2], |n| plans::elementwise("gelu_tanh_grad", n)),
    row("RmsNorm", &[T; 2], |n| plans::by_row("rms_norm", 0, n)),
    row("RmsNormGrad", &[T; 3], |n| plans::by_row("rms_norm_grad", 1, n)),
    row("RmsNormGradW", &[T; 2], |n| plans::by_row("rms_norm_grad_w", 1, n)),
    row("LayerNormGrad", &[T; 3], |n| plans::by_row("layer_norm_grad", 1, n)),
    row("Normalize", &[T], |n| plans::by_row("normalize", 0, n)),
    Kernel {
        name: "RmsNormGradSum",
        source: NORM,
        operands: &[T; 2],
        attributes: EPSILON,
        plan: plans::rms_norm_grad_sum,
        ..PLAIN
    },
    Kernel { name: "Rope", ..rotation(|n| plans::rope("rope", n)) },
    Kernel { name: "RopeGrad", ..rotation(|n| plans::rope("rope_grad", n)) },
    logits("LogitSums", &[T], &[F32], plans::logit_sums),
    logits("LogitExp", &[T, F32], &[T], plans::logit_exp),
    logits("LogitGrad", &[T, F32, I64, F32, I64], &[T], plans::logit_grad),
    logits("BlockExpect", &[F32, T], &[F32], plans::block_expect),
    logits("MergeSums", &[F32; 2], &[F32], plans::merge_sums),
    logits("MergeExpect", &[F32; 2], &[F32], plans::merge_expect),
    Kernel { name: "Decode", source: DECODE, operands: &[U8, T], attributes: &["bits"], plan: plans::decode, ..PLAIN },
    Kernel {
        name: "TokenAttentionBias",
        source: attention::BIAS,
        operands: &[T; 4],
        attributes: &["scale"],
        narrow: true,
        fits: |t| attention::fits(t, 0),
        plan: attention::forward,
        ..PLAIN
    },
    attention_grad("TokenAttentionGrad", &[T; 4]),
    attention_grad("TokenAttentionBiasGrad", &[T; 5]),
];

/// Updates of parameters.
static OPTIMIZERS: &[Kernel] = &[Kernel {
    name: "AdamW",
    source: ADAMW,
    operands: &[F32, F32, F32, F32, Host, Host, Host, Host, Host, Host, Host],
    results: &[F32; 3],
    plan: plans::adamw,
    ..PLAIN
}];

/// Operators that ONNX Runtime 1.31 computes on a GPU, but not in bf16 (its docs/OperatorKernels.md).
pub const NOT_IN_BF16: [Op; 16] = [
    Op::Floor,
    Op::Ceil,
    Op::Log,
    Op::Reciprocal,
    Op::Sin,
    Op::Cos,
    Op::Softplus,
    Op::Equal,
    Op::Less,
    Op::LessEqual,
    Op::Greater,
    Op::GreaterEqual,
    Op::Mean,
    Op::ReduceMax,
    Op::CumSum,
    Op::Pad,
];

/// Whether functions of this name have a kernel.
pub fn has(name: &str) -> bool {
    KERNELS.iter().any(|k| k.name == name)
}

/// Whether a kernel of that name takes operands of these types, attributes behind them.
pub fn takes(name: &str, types: &[&Type]) -> bool {
    KERNELS.iter().any(|kernel| {
        // A number among the operands has the type of the others.
        let given = types.iter().zip(kernel.operands).map(|(t, e)| (t.tensor().map(|t| t.dtype), *e));
        let of = |wanted: Element| given.clone().filter(move |(_, e)| *e == wanted).filter_map(|(t, _)| t);
        let own = of(T).next();
        let narrow = own.is_none_or(|t| matches!(t, DType::F16 | DType::BF16));
        kernel.name == name
            && (narrow || !kernel.narrow && own == Some(DType::F32))
            && of(T).all(|t| Some(t) == own)
            && of(F32).all(|t| t == DType::F32)
            && of(I64).all(|t| t == DType::I64)
            && of(U8).all(|t| t == DType::U8)
            && (kernel.fits)(types)
    })
}

/// Kernels for those of a file's functions that have one, to be given to a session on a GPU; `None` where
/// none has.
///
/// Further bodies of one operator have a number behind its name (`Rope2`): a kernel serves them all.  The driver, NVRTC and
/// ONNX Runtime must be loaded.
///
/// # Errors
/// Where the GPU is older than they are written for, or the driver, NVRTC or ONNX Runtime refuse.
pub fn step<'a>(functions: impl IntoIterator<Item = &'a str>, gpu: &Gpu) -> Result<Option<Arc<OperatorDomain>>> {
    domain(KERNELS, functions, gpu)
}

/// The kernel that updates parameters by the function of this name, likewise.
///
/// # Errors
/// As [`step`].
pub fn optimizer(function: &str, gpu: &Gpu) -> Result<Option<Arc<OperatorDomain>>> {
    domain(OPTIMIZERS, [function], gpu)
}

fn domain<'a>(
    table: &'static [Kernel],
    functions: impl IntoIterator<Item = &'a str>,
    gpu: &Gpu,
) -> Result<Option<Arc<OperatorDomain>>> {
    let modules = Arc::new(Modules::new(gpu).map_err(Error::runtime)?);
    let mut domain = None;
    for name in functions {
        let base = name.trim_end_matches(|c: char| c.is_ascii_digit());
        if let Some(kernel) = table.iter().find(|k| k.name == base) {
            let some = domain.map_or_else(|| OperatorDomain::new("ai.weft"), Ok);
            domain = Some(some.and_then(|d| operator::add(d, kernel, name, &modules)).map_err(super::refused)?);
        }
    }
    Ok(domain.map(Arc::new))
}

/// Compiles every kernel for GPUs of an architecture, `sm_90`; no GPU is needed.  NVRTC must be loaded.
///
/// # Errors
/// NVRTC's own words.
pub fn check(architecture: &str) -> Result<()> {
    for source in [ACTIVATION, ADAMW, DECODE, LOGITS, NORM, ROPE] {
        for element in ["F32", "F16", "BF16"] {
            compile::compile(source, &[element.into()], architecture).map_err(Error::runtime)?;
        }
    }
    for (source, biased) in [(attention::GRAD, false), (attention::GRAD, true), (attention::BIAS, true)] {
        for element in ["F16", "BF16"] {
            let macros = [vec![element.to_string()], attention::macros(64, 128, biased)].concat();
            compile::compile(source, &macros, architecture).map_err(Error::runtime)?;
        }
    }
    Ok(())
}
