//! One element with another: sizes that are not known are compared where the outcome is the same for all.

use crate::ir::Op;
use crate::ir::builder::ROWS;
use crate::ir::dim::{Dim, Sym};
use std::cmp::Ordering;

/// No size of a model is this large: exporters write it, or more, for "to the end".  This is tf2onnx's, PyTorch's are larger.
pub const HUGE: i64 = 1_000_000_000;

/// The least and the greatest value of a dimension for all sizes from 1 up, and below `HUGE`, where there are such.
fn bounds(d: &Dim) -> (Option<i64>, Option<i64>) {
    if let Some(n) = d.known() {
        return (Some(n), Some(n));
    }
    let terms = d.monomials();
    // With every symbol at its least a polynomial whose symbols have coefficients of one sign is nearest to its constant.
    // Numbers of rows that are found may be 0.
    let at_least = |symbols: &[Sym], c: i64| if symbols.iter().any(|s| s.as_str().starts_with(ROWS)) { 0 } else { c };
    let nearest = terms.iter().fold(0i64, |sum, (symbols, c)| sum.saturating_add(at_least(symbols, *c)));
    let symbolic = |positive: bool| terms.iter().filter(|(s, _)| !s.is_empty()).all(|(_, c)| (*c > 0) == positive);
    // One size and a number that no size reaches.
    let beyond = if d.extent().1 == 1 {
        nearest.checked_abs().filter(|n| *n >= HUGE - 1).map(|_| nearest.signum())
    } else {
        None
    };
    match (symbolic(true), symbolic(false)) {
        (true, _) => (Some(nearest), beyond.filter(|s| *s < 0)),
        (_, true) => (beyond.filter(|s| *s > 0), Some(nearest)),
        _ => (None, None),
    }
}

/// The sign of a dimension, where it is the same for all sizes from 1 up.
pub fn sign(d: &Dim) -> Option<Ordering> {
    match bounds(d) {
        (Some(least), _) if least > 0 => Some(Ordering::Greater),
        (_, Some(most)) if most < 0 => Some(Ordering::Less),
        (Some(0), Some(0)) => Some(Ordering::Equal),
        _ => None,
    }
}

/// The most terms that a product of dimensions may have, and symbols in one; shapes of models have a handful.
const MAX_TERMS: usize = 64;
const MAX_DEGREE: usize = 16;

pub(super) fn int_binary(op: Op, x: &Dim, y: &Dim) -> Option<Dim> {
    let ((terms_x, degree_x), (terms_y, degree_y)) = (x.extent(), y.extent());
    if terms_x * terms_y > MAX_TERMS || degree_x + degree_y > MAX_DEGREE {
        return None;
    }
    let truth = |holds: bool| Some(Dim::Known(holds.into()));
    // Whether `a` is below `b` for all sizes, or, where `or_equal`, never above.
    let below =
        |a: &Dim, b: &Dim, or_equal: bool| bounds(&(a.clone() - b.clone())).1.is_some_and(|n| n < i64::from(or_equal));
    // `a < b`, or `a <= b`, where that holds for all sizes or for none.
    let ordered = |a: &Dim, b: &Dim, or_equal: bool| {
        let (holds, fails) = (below(a, b, or_equal), below(b, a, !or_equal));
        (holds || fails).then_some(Dim::Known(holds.into()))
    };
    match op {
        Op::Add => Some(x.clone() + y.clone()),
        Op::Sub => Some(x.clone() - y.clone()),
        Op::Mul => Some(x.clone() * y.clone()),
        Op::Div => match (x.known(), y.known()) {
            (Some(a), Some(b)) => a.checked_div(b).map(Dim::Known),
            _ => x.div_exact(y),
        },
        Op::Pow => {
            let (base, power) = (x.known()?, u32::try_from(y.known()?).ok()?);
            base.checked_pow(power).map(Dim::Known)
        }
        Op::Max if below(x, y, true) => Some(y.clone()),
        Op::Max if below(y, x, true) => Some(x.clone()),
        Op::Min if below(x, y, true) => Some(x.clone()),
        Op::Min if below(y, x, true) => Some(y.clone()),
        Op::Equal => truth(sign(&(x.clone() - y.clone()))? == Ordering::Equal),
        Op::Less => ordered(x, y, false),
        Op::LessEqual => ordered(x, y, true),
        Op::Greater => ordered(y, x, false),
        Op::GreaterEqual => ordered(y, x, true),
        Op::And => truth(x.known()? != 0 && y.known()? != 0),
        Op::Or => truth(x.known()? != 0 || y.known()? != 0),
        _ => None,
    }
}

pub(super) fn float_unary(op: Op, x: f64) -> Option<f64> {
    Some(match op {
        Op::Neg => -x,
        Op::Abs => x.abs(),
        Op::Floor => x.floor(),
        Op::Ceil => x.ceil(),
        Op::Exp => x.exp(),
        Op::Log => x.ln(),
        Op::Sqrt => x.sqrt(),
        Op::Reciprocal => 1.0 / x,
        Op::Sin => x.sin(),
        Op::Cos => x.cos(),
        Op::Tanh => x.tanh(),
        _ => return None,
    })
}

pub(super) fn float_binary(op: Op, x: f64, y: f64) -> Option<f64> {
    Some(match op {
        Op::Add => x + y,
        Op::Sub => x - y,
        Op::Mul => x * y,
        Op::Div => x / y,
        Op::Pow => x.powf(y),
        Op::Max => x.max(y),
        Op::Min => x.min(y),
        Op::Equal => f64::from(x == y),
        Op::Less => f64::from(x < y),
        Op::LessEqual => f64::from(x <= y),
        Op::Greater => f64::from(x > y),
        Op::GreaterEqual => f64::from(x >= y),
        _ => return None,
    })
}
