//! Einsum of one or two operands as transposes, a matrix product or a broadcast product, and sums.

use crate::ir::dim::numel;
use crate::ir::graph::Id;
use crate::ir::{Dim, Op};
use crate::onnx::build::{Build, Value, ints};
use crate::onnx::call::{Call, Read};

/// A tensor whose axes have names.
struct Named {
    id: Id,
    labels: Vec<char>,
}

pub fn einsum(b: &mut Build, call: &Call) -> Read {
    let equation: String = call.word("equation").unwrap_or_default().chars().filter(|c| !c.is_whitespace()).collect();
    let (inputs, output) = match equation.split_once("->") {
        Some((inputs, output)) => (inputs.to_string(), output.chars().collect()),
        None => (equation.clone(), implicit(&equation)),
    };
    let refuse = || format!("equation `{equation}` is not supported: operands each with distinct letters");
    let terms: Vec<Vec<char>> = inputs.split(',').map(|t| t.chars().collect()).collect();
    let distinct = |t: &Vec<char>| t.iter().enumerate().all(|(k, c)| c.is_ascii_alphabetic() && !t[..k].contains(c));
    let bound = output.iter().all(|c| terms.iter().any(|t| t.contains(c)));
    if terms.len() != call.inputs.len() || !terms.iter().chain([&output]).all(distinct) || !bound {
        return Err(refuse().into());
    }
    let mut operands = Vec::new();
    for (k, labels) in terms.iter().enumerate() {
        let id = call.node(b, k)?;
        if b.shape(id).len() != labels.len() {
            return Err(format!("equation `{equation}` does not fit the rank of operand {k}").into());
        }
        // What only one operand has and nobody asks for is summed at once.
        let needed = |c: &char| output.contains(c) || terms.iter().enumerate().any(|(j, t)| j != k && t.contains(c));
        operands.push(summed(b, Named { id, labels: labels.clone() }, needed)?);
    }
    // From left to right; what a later operand has is kept until then.
    let mut operands = operands.into_iter();
    let mut result = operands.next().ok_or_else(refuse)?;
    for (k, next) in operands.enumerate() {
        let later = terms.iter().skip(k + 2).flatten().chain(&output);
        let kept: Vec<char> = later.copied().collect();
        result = product(b, result, next, &kept)?;
    }
    let id = arranged(b, &result, &output)?;
    Ok(vec![Value::Node(id)])
}

/// Letters that occur once, in order: the result where the equation names none.
fn implicit(inputs: &str) -> Vec<char> {
    let mut letters: Vec<char> = inputs.chars().filter(|c| *c != ',').collect();
    letters.sort();
    let once = |c: &char| letters.iter().filter(|d| *d == c).count() == 1;
    letters.iter().copied().filter(once).collect()
}

fn summed(b: &mut Build, x: Named, needed: impl Fn(&char) -> bool) -> Result<Named, String> {
    let rank = x.labels.len() as i64;
    let dropped: Vec<i64> = (0..rank).filter(|k| !needed(&x.labels[*k as usize])).map(|k| k - rank).collect();
    if dropped.is_empty() {
        return Ok(x);
    }
    let id = b.op(Op::Sum, &[x.id], &[ints(dropped)])?;
    let kept: Vec<usize> = (0..x.labels.len()).filter(|k| needed(&x.labels[*k])).collect();
    let shape: Vec<Dim> = kept.iter().map(|k| b.shape(id)[*k].clone()).collect();
    Ok(Named { id: b.reshape(id, &shape)?, labels: kept.iter().map(|k| x.labels[*k]).collect() })
}

/// The axes of `x` in the order of `labels`.
fn arranged(b: &mut Build, x: &Named, labels: &[char]) -> Result<Id, String> {
    let place = |c: &char| x.labels.iter().position(|l| l == c).ok_or_else(|| format!("axis `{c}` is missing"));
    let perm = labels.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    b.transpose(x.id, &perm)
}

/// Sums over the letters that both have and that are not `kept`.
fn product(b: &mut Build, x: Named, y: Named, kept: &[char]) -> Result<Named, String> {
    let of = |keep: &dyn Fn(&char) -> bool, from: &[char]| from.iter().copied().filter(|c| keep(c)).collect::<Vec<_>>();
    let batch = of(&|c| y.labels.contains(c) && kept.contains(c), &x.labels);
    let inner = of(&|c| y.labels.contains(c) && !kept.contains(c), &x.labels);
    let left = of(&|c| !y.labels.contains(c), &x.labels);
    let right = of(&|c| !x.labels.contains(c), &y.labels);
    let labels = [batch.clone(), left.clone(), right.clone()].concat();
    let x = arranged(b, &x, &[batch.clone(), left.clone(), inner.clone()].concat())?;
    let y = arranged(b, &y, &[batch.clone(), inner.clone(), right.clone()].concat())?;
    let (of_x, of_y) = (b.shape(x), b.shape(y));
    let (lead, rest) = of_x.split_at(batch.len());
    let (rows, sums) = rest.split_at(left.len());
    let columns = &of_y[batch.len() + inner.len()..];
    let whole = [lead, rows, columns].concat();
    if inner.is_empty() {
        let ones = vec![Dim::Known(1); columns.len()];
        let x = b.reshape(x, &[lead, rows, &ones].concat())?;
        let ones = vec![Dim::Known(1); rows.len()];
        let y = b.reshape(y, &[lead, &ones, columns].concat())?;
        return Ok(Named { id: b.op(Op::Mul, &[x, y], &[])?, labels });
    }
    let x = b.reshape(x, &[lead, &[numel(rows), numel(sums)]].concat())?;
    let y = b.reshape(y, &[lead, &[numel(sums), numel(columns)]].concat())?;
    let id = b.op(Op::MatMul, &[x, y], &[])?;
    Ok(Named { id: b.reshape(id, &whole)?, labels })
}
