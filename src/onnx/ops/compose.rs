//! Matrix products, and activations that the IR spells with other operators.

use super::quantized;
use crate::ir::graph::Id;
use crate::ir::{Dim, Op};
use crate::onnx::build::{Build, Value};
use crate::onnx::call::{Call, Read};

fn one(id: Id) -> Read {
    Ok(vec![Value::Node(id)])
}

/// `op(x, number)`.
fn with(b: &mut Build, op: Op, x: Id, number: f64) -> Result<Id, String> {
    let number = b.float(number)?;
    b.op(op, &[x, number], &[])
}

pub fn matmul(b: &mut Build, call: &Call) -> Read {
    let (mut x, mut y) = (call.node(b, 0)?, call.node(b, 1)?);
    let (of_x, of_y) = (b.shape(x), b.shape(y));
    // Vectors are matrices of one row or column, which the result does not show.
    if let [n] = of_x.as_slice() {
        x = b.reshape(x, &[Dim::Known(1), n.clone()])?;
    }
    if let [n] = of_y.as_slice() {
        y = b.reshape(y, &[n.clone(), Dim::Known(1)])?;
    }
    let id = quantized::product(b, x, y)?;
    let mut shape = b.shape(id);
    if of_y.len() == 1 {
        shape.pop();
    }
    if of_x.len() == 1 {
        shape.remove(shape.len() - if of_y.len() == 1 { 1 } else { 2 });
    }
    one(b.reshape(id, &shape)?)
}

/// `alpha op(A) op(B) + beta C`, all of rank 2.
pub fn gemm(b: &mut Build, call: &Call) -> Read {
    let (mut x, mut y) = (call.node(b, 0)?, call.node(b, 1)?);
    if call.int_or("transA", 0) != 0 {
        x = b.swap_last(x)?;
    }
    if call.int_or("transB", 0) != 0 {
        y = b.swap_last(y)?;
    }
    let mut id = quantized::product(b, x, y)?;
    let (alpha, beta) = (call.float_or("alpha", 1.0), call.float_or("beta", 1.0));
    if alpha != 1.0 {
        id = with(b, Op::Mul, id, alpha)?;
    }
    if let Some(mut c) = call.optional(b, 2)? {
        if beta != 1.0 {
            c = with(b, Op::Mul, c, beta)?;
        }
        id = b.op(Op::Add, &[id, c], &[])?;
    }
    one(id)
}

/// Gemm with an activation behind it, whose attributes are its own with a prefix.
pub fn fused_gemm(b: &mut Build, call: &Call) -> Read {
    let Some(name) = call.word("activation") else { return gemm(b, call) };
    let x = match gemm(b, call)?.as_slice() {
        [Value::Node(x)] => *x,
        _ => return Err("its product is no tensor".into()),
    };
    let alpha = |default: f32| call.float_or("activation_alpha", f64::from(default));
    one(match name {
        "Relu" => with(b, Op::Max, x, 0.0)?,
        "Sigmoid" => b.op(Op::Sigmoid, &[x], &[])?,
        "Softplus" => b.op(Op::Softplus, &[x], &[])?,
        "Tanh" => b.op(Op::Tanh, &[x], &[])?,
        "HardSigmoid" => hard(b, x, alpha(0.2), call.float_or("activation_beta", 0.5))?,
        "LeakyRelu" => {
            let slope = b.float(alpha(0.01))?;
            leaky(b, x, slope)?
        }
        other => return Err(format!("the activation {other} is not supported").into()),
    })
}

pub fn fused_matmul(b: &mut Build, call: &Call) -> Read {
    if call.int_or("transBatchA", 0) != 0 || call.int_or("transBatchB", 0) != 0 {
        return Err("transposed batch axes are not supported".into());
    }
    let (mut x, mut y) = (call.node(b, 0)?, call.node(b, 1)?);
    if call.int_or("transA", 0) != 0 {
        x = b.swap_last(x)?;
    }
    if call.int_or("transB", 0) != 0 {
        y = b.swap_last(y)?;
    }
    let id = b.op(Op::MatMul, &[x, y], &[])?;
    match call.float_or("alpha", 1.0) {
        1.0 => one(id),
        alpha => one(with(b, Op::Mul, id, alpha)?),
    }
}

pub fn relu(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    one(with(b, Op::Max, x, 0.0)?)
}

/// `max(x, 0) + slope min(x, 0)`.
fn leaky(b: &mut Build, x: Id, slope: Id) -> Result<Id, String> {
    let (up, down) = (with(b, Op::Max, x, 0.0)?, with(b, Op::Min, x, 0.0)?);
    let down = b.op(Op::Mul, &[down, slope], &[])?;
    b.op(Op::Add, &[up, down], &[])
}

pub fn leaky_relu(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let slope = b.float(call.float_or("alpha", f64::from(0.01f32)))?;
    one(leaky(b, x, slope)?)
}

pub fn prelu(b: &mut Build, call: &Call) -> Read {
    let (x, slope) = (call.node(b, 0)?, call.node(b, 1)?);
    one(leaky(b, x, slope)?)
}

/// `max(x, 0) + alpha (exp(min(x, 0)) - 1)`.
fn exponential(b: &mut Build, x: Id, alpha: f64) -> Result<Id, String> {
    let (up, down) = (with(b, Op::Max, x, 0.0)?, with(b, Op::Min, x, 0.0)?);
    let down = b.op(Op::Exp, &[down], &[])?;
    let down = with(b, Op::Sub, down, 1.0)?;
    let down = with(b, Op::Mul, down, alpha)?;
    b.op(Op::Add, &[up, down], &[])
}

pub fn elu(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    one(exponential(b, x, call.float_or("alpha", 1.0))?)
}

/// `a elu(x / a)`
pub fn celu(b: &mut Build, call: &Call) -> Read {
    let (x, alpha) = (call.node(b, 0)?, call.float_or("alpha", 1.0));
    let x = with(b, Op::Div, x, alpha)?;
    let y = exponential(b, x, 1.0)?;
    one(with(b, Op::Mul, y, alpha)?)
}

pub fn selu(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let y = exponential(b, x, call.float_or("alpha", f64::from(1.673_263_2_f32)))?;
    one(with(b, Op::Mul, y, call.float_or("gamma", f64::from(1.050_701_f32)))?)
}

/// `clip(slope x + offset, 0, 1)`.
fn hard(b: &mut Build, x: Id, slope: f64, offset: f64) -> Result<Id, String> {
    let x = with(b, Op::Mul, x, slope)?;
    let x = with(b, Op::Add, x, offset)?;
    let x = with(b, Op::Max, x, 0.0)?;
    with(b, Op::Min, x, 1.0)
}

pub fn hard_sigmoid(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    one(hard(b, x, call.float_or("alpha", f64::from(0.2f32)), call.float_or("beta", 0.5))?)
}

pub fn hard_swish(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let gate = hard(b, x, 1.0 / 6.0, 0.5)?;
    one(b.op(Op::Mul, &[x, gate], &[])?)
}

pub fn mish(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let soft = b.op(Op::Softplus, &[x], &[])?;
    let gate = b.op(Op::Tanh, &[soft], &[])?;
    one(b.op(Op::Mul, &[x, gate], &[])?)
}

pub fn softsign(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let size = b.op(Op::Abs, &[x], &[])?;
    let size = with(b, Op::Add, size, 1.0)?;
    one(b.op(Op::Div, &[x, size], &[])?)
}

/// `x sigmoid(alpha x)` of the first operand.
fn gated(b: &mut Build, call: &Call, default: f64) -> Result<Id, String> {
    let x = call.node(b, 0)?;
    match call.float_or("alpha", default) {
        1.0 => b.op(Op::Silu, &[x], &[]),
        alpha => {
            let gate = with(b, Op::Mul, x, alpha)?;
            let gate = b.op(Op::Sigmoid, &[gate], &[])?;
            b.op(Op::Mul, &[x, gate], &[])
        }
    }
}

/// `swish(gate) * x`, operands of one shape.
pub fn swiglu(b: &mut Build, call: &Call) -> Read {
    let (gate, x) = (gated(b, call, 1.0)?, call.node(b, 1)?);
    one(b.op(Op::Mul, &[gate, x], &[])?)
}

pub fn swish(b: &mut Build, call: &Call) -> Read {
    one(gated(b, call, 1.0)?)
}

pub fn quick_gelu(b: &mut Build, call: &Call) -> Read {
    one(gated(b, call, f64::from(1.702f32))?)
}

pub fn gelu(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    match call.word("approximate").unwrap_or("none") {
        "none" => one(b.op(Op::Gelu, &[x], &[])?),
        "tanh" => one(b.op(Op::GeluTanh, &[x], &[])?),
        other => Err(format!("unknown approximation `{other}`").into()),
    }
}

/// An activation of ONNX Runtime's with the bias of the layer before.
fn biased(b: &mut Build, call: &Call, op: Op) -> Read {
    let mut x = call.node(b, 0)?;
    if let Some(bias) = call.optional(b, 1)? {
        x = b.op(Op::Add, &[x, bias], &[])?;
    }
    one(b.op(op, &[x], &[])?)
}

pub fn bias_gelu(b: &mut Build, call: &Call) -> Read {
    biased(b, call, Op::Gelu)
}

pub fn fast_gelu(b: &mut Build, call: &Call) -> Read {
    biased(b, call, Op::GeluTanh)
}

pub fn is_inf(b: &mut Build, call: &Call) -> Read {
    let x = call.node(b, 0)?;
    let (up, down) = (call.int_or("detect_positive", 1) != 0, call.int_or("detect_negative", 1) != 0);
    match (up, down) {
        (true, true) => {
            let size = b.op(Op::Abs, &[x], &[])?;
            one(with(b, Op::Equal, size, f64::INFINITY)?)
        }
        (true, false) => one(with(b, Op::Equal, x, f64::INFINITY)?),
        (false, true) => one(with(b, Op::Equal, x, f64::NEG_INFINITY)?),
        (false, false) => Err("neither infinity is asked for".into()),
    }
}
