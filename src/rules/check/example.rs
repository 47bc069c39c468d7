//! Random instances of one operator, for comparisons with other implementations.

use super::instance::Instance;
use super::random::Random;
use crate::ir::op::Arity;
use crate::ir::{DType, Graph, Op};
use crate::rules::{Kind, Rule, Term};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// An operator over random operands and attributes.
pub struct Example {
    /// One node, whose result is output `y`; its operands are inputs of float type f32.
    pub graph: Graph,
    /// Values for the inputs, none of them empty.
    pub feeds: BTreeMap<String, Tensor>,
}

/// Attempts per example; most draws are not well-typed.
const ATTEMPTS: usize = 2_000;

/// Some examples of an operator; the same seed draws the same ones.
///
/// # Errors
/// Why the last draw was no instance, where too few are found.
pub fn examples(op: Op, count: usize, seed: u64) -> Result<Vec<Example>, String> {
    let operands = match op.row().arity {
        Arity::Fixed(n) | Arity::AtLeast(n) => n,
    };
    let names = (0..operands).map(|k| format!("x{k}")).chain(op.row().attrs.iter().map(|a| a.name.to_string()));
    let rule = Rule {
        kind: Kind::Lower,
        name: op.name().into(),
        left: Term::Op(op, names.map(|n| Term::Var(n.into())).collect()),
        variadic: matches!(op.row().arity, Arity::AtLeast(_)),
        doc: String::new(),
        right: Vec::new(),
        lets: Vec::new(),
        guards: Vec::new(),
        search: false,
        target: None,
        samples: Vec::new(),
        file: "".into(),
        span: 0..0,
    };
    let mut random = Random::new(seed, op.name());
    let (mut found, mut why) = (Vec::new(), String::new());
    for _ in 0..count * ATTEMPTS {
        if found.len() == count {
            return Ok(found);
        }
        match one(&rule, &mut random) {
            Ok(example) => found.push(example),
            Err(reason) => why = reason,
        }
    }
    Err(why)
}

fn one(rule: &Rule, random: &mut Random) -> Result<Example, String> {
    let mut instance = Instance::draw(rule, random)?;
    if instance.float != DType::F32 {
        return Err("the floating-point type is another".into());
    }
    let point = instance.point(random);
    if point.is_empty() {
        return Err("an operand is empty".into());
    }
    instance.graph.outputs = vec![("y".into(), instance.root)];
    Ok(Example { graph: instance.graph, feeds: point.feeds })
}
