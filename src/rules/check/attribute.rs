//! Literals that fit an operator's attribute, given its operands and the attributes before.

use super::instance::Instance;
use super::random::Random;
use crate::ir::infer::resolve_axis;
use crate::ir::op::{Attr, Kind};
use crate::ir::{Builder, DType, Dim, F64, Id, Lit, Op};

/// Draws an attribute; `children` are the operands and the attributes before it.
pub fn draw(instance: &Instance, op: Op, attr: &Attr, children: &[Id], random: &mut Random) -> Result<Lit, String> {
    let graph = &instance.graph;
    let shape: Vec<i64> = children
        .first()
        .map(|id| graph.type_of(*id).shape().iter().map(|d| d.known().unwrap_or(1)).collect())
        .unwrap_or_default();
    let before = |name: &str| {
        let at = op.row().attrs.iter().position(|a| a.name == name)?;
        let operands = children.len().checked_sub(op.row().attrs.iter().position(|a| a.name == attr.name)?)?;
        graph.type_of(*children.get(operands + at)?).lit()?.int()?.known()
    };
    let along = || Some(shape[resolve_axis(before("axis")?, shape.len()).ok()?]);
    if op == Op::TrueRows {
        return Ok(Lit::Int(Dim::sym("rows.0")));
    }
    match attr.kind {
        Kind::DType => Ok(Lit::DType(random.pick(&[instance.float, DType::F32, DType::F64, DType::I64, DType::Bool]))),
        Kind::Word => word(attr.name, random),
        Kind::Float => Ok(Lit::Float(F64(float(attr.name, random)))),
        Kind::Ints => Ok(ints(match attr.name {
            "axes" => axes(shape.len(), random),
            "perm" => permutation(shape.len(), random),
            _ if op == Op::Expand => expanded(&shape, random),
            _ => reshaped(&shape, random),
        })),
        Kind::Int => Ok(Lit::Int(Dim::Known(match (op, attr.name) {
            (Op::Gather, "axis") if random.chance(0.5) => 0,
            (_, "axis") if shape.is_empty() => return Err(format!("{} of a scalar", op.name())),
            (_, "axis") => random.int(-(shape.len() as i64), shape.len() as i64 - 1),
            (Op::Slice, "start") => random.int(0, along().unwrap_or(0)),
            (Op::Slice, "end") => random.int(before("start").unwrap_or(0), along().unwrap_or(0)),
            (_, "step") => random.int(1, 3),
            (Op::Unslice, "size") => {
                let (n, start, step) =
                    (along().unwrap_or(0), before("start").unwrap_or(0), before("step").unwrap_or(1));
                start + (n - 1).max(0) * step + i64::from(n > 0) + random.int(0, 3)
            }
            (_, "start" | "before" | "after") => random.int(0, 2),
            (Op::TopkValues | Op::TopkIndices, "k") => random.int(0, shape.iter().copied().min().unwrap_or(0)),
            (Op::PutRows, "batch") => random.int(1, 3),
            (Op::PutRows, "length") => {
                let b = before("batch").unwrap_or(1).max(1);
                shape.first().map_or(0, |n| (n + b - 1) / b) + random.int(0, 2)
            }
            // The weight is square: see `operand`.
            (_, "to") => {
                let w = children.get(if op.name().starts_with("head_grad") { 2 } else { 1 });
                w.and_then(|w| graph.type_of(*w).shape().first()?.known()).unwrap_or(0)
            }
            (_, "heads") => random.int(1, 2),
            (Op::MatMulNBits, "bits") => 8,
            (_, "bits") => {
                if random.chance(0.5) {
                    8
                } else {
                    4
                }
            }
            (Op::Dequantize, "k") => {
                let codes_a_byte = before("bits").map_or(1, |bits| 8 / bits.max(1));
                (shape[1] * shape[2] * codes_a_byte - random.int(0, 3)).max(0)
            }
            (Op::MatMulNBits, "k") => shape.last().copied().unwrap_or(0),
            (_, "rows") => random.int(1, 5),
            (_, "n") => random.int(0, 4),
            _ => random.int(0, 1),
        }))),
    }
}

fn ints(list: Vec<i64>) -> Lit {
    Lit::Ints(list.into_iter().map(Dim::Known).collect())
}

fn word(name: &str, random: &mut Random) -> Result<Lit, String> {
    let words: &[&str] = match name {
        "transform" => &["sqrt", "linear", "log1p", "pow"],
        "name" => &["loss", "mask"],
        "scope" => &["sequence", "batch"],
        "norm" => &["sequence", "token", "masked"],
        other => {
            return Err(format!("no words are known for attribute {other}: name them in src/rules/check/attribute.rs"));
        }
    };
    Ok(Lit::Word(random.pick(words).into()))
}

fn float(name: &str, random: &mut Random) -> f64 {
    match name {
        "eps" => random.pick(&[1e-6, 1e-5, 1e-3, 0.1]),
        "power" => random.pick(&[0.5, 1.0, 2.0, 0.3]),
        "p" => random.pick(&[0.1, 0.5, 1.0]),
        "weight_power" => random.pick(&[1.0, 0.5, 0.0]),
        "t_eps" => random.pick(&[1e-3, 0.1, 0.0]),
        "t_floor" => random.pick(&[1e-3, 0.3, 0.0]),
        _ => random.pick(&[1.0, 0.5, -0.7, 2.0]),
    }
}

/// Some axes, counted from the front or the end.
fn axes(rank: usize, random: &mut Random) -> Vec<i64> {
    let from_end = if random.chance(0.5) { rank as i64 } else { 0 };
    (0..rank as i64).filter(|_| random.chance(0.5)).map(|k| k - from_end).collect()
}

/// Often the swap of the last two axes, sometimes the identity.
fn permutation(rank: usize, random: &mut Random) -> Vec<i64> {
    let mut p: Vec<usize> = (0..rank).collect();
    match random.unit() {
        u if u < 0.5 && rank > 1 => p.swap(rank - 1, rank - 2),
        u if u < 0.65 => {}
        _ => p = random.permutation(rank),
    }
    p.into_iter().map(|k| k as i64).collect()
}

/// A shape that the operand's broadcasts to.
fn expanded(shape: &[i64], random: &mut Random) -> Vec<i64> {
    let mut leads: Vec<i64> =
        (0..random.below(5usize.saturating_sub(shape.len()).min(3))).map(|_| random.size()).collect();
    leads.extend(shape.iter().map(|n| if *n == 1 { random.size() } else { *n }));
    leads
}

/// A shape with as many elements.
fn reshaped(shape: &[i64], random: &mut Random) -> Vec<i64> {
    let mut s = shape.to_vec();
    for _ in 0..random.below(4) {
        match random.below(3) {
            0 if s.len() > 1 => {
                let k = random.below(s.len() - 1);
                let merged = s.remove(k + 1);
                s[k] *= merged;
            }
            1 if s.len() < 4 => s.insert(random.below(s.len() + 1), 1),
            2 if s.len() < 4 && !s.is_empty() => {
                let k = random.below(s.len());
                if s[k] == 4 || s[k] == 6 || s[k] == 12 {
                    s[k] /= 2;
                    s.insert(k + random.below(2), 2);
                }
            }
            _ => {}
        }
    }
    s
}
