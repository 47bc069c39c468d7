//! Convolutions along tokens: a product for each place of the kernel.

use crate::ir::{Dim, Op};
use crate::onnx::build::{Build, Value};
use crate::onnx::call::{Call, Read};

/// `Conv` of x [B, C, L] with w [O, C / groups, K]: y_l = sum_k w_k x_(l + k d), of the channels of each group.
pub fn conv(b: &mut Build, call: &Call) -> Read {
    let (x, w) = (call.node(b, 0)?, call.node(b, 1)?);
    let (of_x, of_w) = (b.shape(x), b.shape(w));
    let ([batch, channels, length], [outer, _, kernel]) = (of_x.as_slice(), of_w.as_slice()) else {
        return Err(format!("only convolutions along one axis are read, not of rank {}", of_x.len()).into());
    };
    let (Some(c), Some(o), Some(k)) = (channels.known(), outer.known(), kernel.known()) else {
        return Err("its channels and kernel must have known sizes".into());
    };
    let of = |name: &str, default: i64| call.ints(name).map_or(vec![default; 2], <[i64]>::to_vec);
    let (group, dilation) = (call.int_or("group", 1), of("dilations", 1)[0]);
    let each = group == c && o == c && group > 1;
    if group < 1 || c % group != 0 || o % group != 0 {
        return Err(format!("{c} channels to {o} are not {group} groups").into());
    }
    if of("strides", 1)[0] != 1 || call.word("auto_pad").is_some_and(|w| w != "NOTSET" && w != "VALID") {
        return Err("strides and auto_pad are not read: a language model has as many tokens behind it".into());
    }
    let [before, behind] = of("pads", 0)[..] else { return Err("`pads` needs two numbers".into()) };
    if k < 1 || dilation < 1 || before < 0 || behind < 0 || k > 64 || dilation > 4096 {
        return Err(format!("a kernel of {k} with dilation {dilation} and pads {before}, {behind}").into());
    }
    let dtype = b.ty(x)?.dtype;
    let mut tokens = b.transpose(x, &[0, 2, 1])?;
    let padding = |b: &mut Build, n: i64| b.full(0.0, dtype, &[batch.clone(), n.into(), channels.clone()]);
    let mut parts = Vec::new();
    if before > 0 {
        parts.push(padding(b, before)?);
    }
    parts.push(tokens);
    if behind > 0 {
        parts.push(padding(b, behind)?);
    }
    tokens = b.concat(&parts, 1)?;
    let result = length.clone() + Dim::from(before + behind - dilation * (k - 1));
    let mut sum = None;
    for place in 0..k {
        let start = Dim::from(place * dilation);
        let taken = b.slice(tokens, 1, start.clone(), start + result.clone(), 1)?;
        let part = b.slice(w, 2, place.into(), (place + 1).into(), 1)?;
        let term = if each {
            let part = b.reshape(part, std::slice::from_ref(channels))?;
            b.op(Op::Mul, &[taken, part], &[])?
        } else if group == 1 {
            let part = b.reshape(part, &[outer.clone(), channels.clone()])?;
            let part = b.transpose(part, &[1, 0])?;
            b.op(Op::MatMul, &[taken, part], &[])?
        } else {
            let [from, to] = [c, o].map(|n| Dim::from(n / group));
            let taken = b.reshape(taken, &[batch.clone(), result.clone(), group.into(), from.clone()])?;
            let taken = b.transpose(taken, &[0, 2, 1, 3])?;
            let part = b.reshape(part, &[group.into(), to, from])?;
            let part = b.transpose(part, &[0, 2, 1])?;
            let product = b.op(Op::MatMul, &[taken, part], &[])?;
            let product = b.transpose(product, &[0, 2, 1, 3])?;
            b.reshape(product, &[batch.clone(), result.clone(), outer.clone()])?
        };
        sum = Some(match sum {
            Some(sum) => b.op(Op::Add, &[sum, term], &[])?,
            None => term,
        });
    }
    let mut y = sum.ok_or("an empty kernel")?;
    if let Some(bias) = call.optional(b, 2)? {
        y = b.op(Op::Add, &[y, bias], &[])?;
    }
    Ok(vec![Value::Node(b.transpose(y, &[0, 2, 1])?)])
}
