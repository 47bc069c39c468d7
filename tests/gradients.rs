//! Random graphs: our reverse sweep against finite differences and against candle's `backward`.
//!
//! The rows of `rules/grad.egg` are proved one by one in `tests/rules.rs`; here it is the sweep itself:
//! values used several times, broadcasts summed down, leaves that the loss does not reach.

use candle_core::{Device, Tensor, Var};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::Cell;
use std::collections::BTreeMap;
use weftc::autodiff::differentiate;
use weftc::interp;
use weftc::ir::{Builder, DType, Dim, F64, Graph, Id, LeafKind, Lit, Op, text};
use weftc::rules::library::library;

const CASES: u32 = 150;
/// Against candle, which is exact up to rounding; relative to the largest element.
const CANDLE: f64 = 1e-9;
/// Against central differences in f64 with step 1e-5.
const DIFFERENCE: f64 = 1e-6;
const STEP: f64 = 1e-5;
/// Beyond this size of the loss, rounding spoils the differences.
const LARGEST: f64 = 1e4;

const PARAMS: [(&str, &[i64]); 5] = [("a", &[2, 3]), ("b", &[3, 4]), ("c", &[2, 1, 4]), ("d", &[4]), ("e", &[2, 4, 4])];

/// One node to add: an operator and where its operands and attributes come from.
type Choice = (u8, u16, u16, u16);

struct Random {
    graph: Graph,
    params: Vec<Id>,
    loss: Id,
    nodes: usize,
}

fn known(dims: &[i64]) -> Vec<Dim> {
    dims.iter().copied().map(Dim::Known).collect()
}

impl Random {
    fn build(choices: &[Choice]) -> Random {
        let mut graph = Graph::new("random");
        let params: Vec<Id> = PARAMS.iter().map(|(name, dims)| graph.input(name, DType::F64, &known(dims))).collect();
        for leaf in &mut graph.leaves {
            leaf.kind = LeafKind::Param;
        }
        let mut values = params.clone();
        for choice in choices {
            // A choice without a type adds nothing; enough of them have one.
            if let Ok(id) = node(&mut graph, &values, choice) {
                values.push(id);
            }
        }
        // Every value is part of the loss, so that all have several uses.
        let mut terms = Vec::new();
        for (k, id) in values.iter().enumerate().skip(params.len()) {
            let weight = float(&mut graph, 1.0 / (1.0 + k as f64));
            let scaled = graph.op(Op::Mul, &[*id, weight]).unwrap();
            let rank = graph.type_of(*id).shape().len() as i64;
            let axes = graph.lit(Lit::Ints((0..rank).map(Dim::Known).collect())).unwrap();
            let sum = graph.op(Op::Sum, &[scaled, axes]).unwrap();
            let scalar = graph.lit(Lit::Ints([].into())).unwrap();
            terms.push(graph.op(Op::Reshape, &[sum, scalar]).unwrap());
        }
        let loss = terms.into_iter().reduce(|x, y| graph.op(Op::Add, &[x, y]).unwrap());
        let nodes = values.len() - params.len();
        Random { loss: loss.unwrap_or(params[0]), params, nodes, graph }
    }
}

fn float(g: &mut Graph, x: f64) -> Id {
    g.lit(Lit::Float(F64(x))).unwrap()
}

/// Adds one node over the values so far.
fn node(g: &mut Graph, values: &[Id], &(op, x, y, z): &Choice) -> Result<Id, String> {
    let at = |k: u16| values[k as usize % values.len()];
    let (x, shape) = (at(x), g.type_of(at(x)).shape().iter().map(|d| d.known().unwrap_or(1)).collect::<Vec<_>>());
    let rank = shape.len() as i64;
    let pick = |n: i64| i64::from(z) % n.max(1);
    let int = |g: &mut Graph, n: i64| g.lit(Lit::Int(Dim::Known(n)));
    let ints = |g: &mut Graph, list: &[i64]| g.lit(Lit::Ints(known(list).into()));
    let unary =
        [Op::Neg, Op::Tanh, Op::Sigmoid, Op::Sin, Op::Cos, Op::Erf, Op::Softplus, Op::Silu, Op::Gelu, Op::GeluTanh];
    let binary = [Op::Add, Op::Sub, Op::Mul, Op::Max, Op::Min, Op::Swiglu];
    match op % 20 {
        0..=2 => g.op(unary[z as usize % unary.len()], &[x]),
        3..=6 => g.op(binary[z as usize % binary.len()], &[x, at(y)]),
        7 => {
            // A divisor away from 0.
            let square = g.op(Op::Mul, &[at(y), at(y)])?;
            let one = float(g, 1.0);
            let positive = g.op(Op::Add, &[square, one])?;
            g.op([Op::Div, Op::Pow][z as usize % 2], &[positive, positive]).and_then(|p| g.op(Op::Div, &[x, p]))
        }
        8 | 9 => g.op(Op::MatMul, &[x, at(y)]),
        10 => {
            let mut perm: Vec<i64> = (0..rank).collect();
            perm.rotate_left(pick(rank) as usize);
            let perm = ints(g, &perm)?;
            g.op(Op::Transpose, &[x, perm])
        }
        11 => {
            let shape = if z % 2 == 0 { vec![shape.iter().product()] } else { [&shape[..], &[1]].concat() };
            let shape = ints(g, &shape)?;
            g.op(Op::Reshape, &[x, shape])
        }
        12 if rank < 4 => {
            let shape = ints(g, &[&[2], &shape[..]].concat())?;
            g.op(Op::Expand, &[x, shape])
        }
        13 if rank > 0 => {
            let axes = ints(g, &[pick(rank)])?;
            g.op([Op::Sum, Op::Mean][z as usize / 7 % 2], &[x, axes])
        }
        14 if rank > 0 => {
            let axis = int(g, pick(rank) - rank)?;
            g.op(Op::Softmax, &[x, axis])
        }
        15 if rank > 0 => {
            let axis = int(g, pick(rank))?;
            g.op(Op::Concat, &[x, at(y), axis])
        }
        16 if rank > 0 => {
            let axis = pick(rank);
            let n = shape[axis as usize];
            let attrs = [axis, n / 3, n, 1 + i64::from(z) / 11 % 2];
            let attrs: Result<Vec<Id>, String> = attrs.iter().map(|a| int(g, *a)).collect();
            g.op(Op::Slice, &[&[x], &attrs?[..]].concat())
        }
        17 if rank > 0 => {
            let attrs = [pick(rank), 1, i64::from(z) / 5 % 2];
            let attrs: Result<Vec<Id>, String> = attrs.iter().map(|a| int(g, *a)).collect();
            g.op(Op::Pad, &[&[x], &attrs?[..]].concat())
        }
        18 if rank > 0 => {
            // The same rows more than once.
            let rows = int(g, 3)?;
            let iota = g.op(Op::Iota, &[rows])?;
            let two = int(g, 2)?;
            let index = g.op(Op::Div, &[iota, two])?;
            let last = int(g, shape[0] - 1)?;
            let index = g.op(Op::Min, &[index, last])?;
            let axis = int(g, 0)?;
            g.op(Op::Gather, &[x, index, axis])
        }
        // Weights of the last axis: parameter d has 4.
        19 if shape.last() == Some(&4) => {
            let eps = float(g, 1e-2);
            match z % 3 {
                0 => g.op(Op::RmsNorm, &[x, values[3], eps]),
                1 => g.op(Op::LayerNorm, &[x, values[3], values[3], eps]),
                _ => g.op(Op::Attention, &[x, x, at(y), eps]),
            }
        }
        _ => Err("needs an axis, or a last axis of 4".into()),
    }
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn tensor(values: Vec<f64>, dims: &[i64]) -> Tensor {
    Tensor::from_vec(values, dims.iter().map(|d| *d as usize).collect::<Vec<_>>(), &Device::Cpu).unwrap()
}

/// Numbers between -1.5 and 1.5 that differ for every parameter.
fn point() -> BTreeMap<String, Tensor> {
    let mut k = 0.0;
    let mut next = || {
        k += 1.0;
        (k * 0.754_877_666_246_692_7f64).fract() * 3.0 - 1.5
    };
    let value = |(name, dims): &(&str, &[i64])| {
        let n: i64 = dims.iter().product();
        (name.to_string(), tensor((0..n).map(|_| next()).collect(), dims))
    };
    PARAMS.iter().map(value).collect()
}

fn loss(graph: &Graph, feeds: &BTreeMap<String, Tensor>) -> Tensor {
    interp::run(graph, feeds).unwrap().remove("loss").unwrap()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(1.0, |m, x| m.max(x.abs()))
}

/// Compares one random graph's gradients; `None` where its numbers are too large to compare.
fn check(choices: &[Choice]) -> Result<Option<usize>, TestCaseError> {
    let Random { mut graph, params, loss: root, nodes } = Random::build(choices);
    if nodes == 0 {
        return Ok(None);
    }
    graph.outputs = vec![("loss".into(), root)];
    let forward = graph.clone();
    let feeds = point();
    let value = flat(&loss(&forward, &feeds))[0];
    if !value.is_finite() || value.abs() > LARGEST {
        return Ok(None);
    }

    let rows = library().unwrap().grad;
    let gradients = differentiate(&mut graph, root, &params, &rows).unwrap();
    graph.outputs = PARAMS.iter().zip(&gradients).map(|((n, _), id)| (n.to_string(), *id)).collect();
    let ours = interp::run(&graph, &feeds).unwrap();

    let vars: BTreeMap<String, Var> = feeds.iter().map(|(n, t)| (n.clone(), Var::from_tensor(t).unwrap())).collect();
    let tracked = vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
    let theirs = loss(&forward, &tracked).backward().unwrap();
    for (name, dims) in &PARAMS {
        let gradient = flat(&ours[*name]);
        let scale = largest(&gradient);
        let by_candle = theirs.get(&vars[*name]).map_or_else(|| vec![0.0; gradient.len()], flat);
        for (k, (g, c)) in gradient.iter().zip(&by_candle).enumerate() {
            let apart = (g - c).abs() / scale;
            prop_assert!(apart < CANDLE, "d loss / d {name}[{k}]: {g:?}, candle {c:?}\n{}", text::print(&forward));
        }
        let direction: Vec<f64> = (0..gradient.len()).map(|k| ((k * 5 + 1) % 7) as f64 / 3.5 - 1.0).collect();
        let along: f64 = gradient.iter().zip(&direction).map(|(g, v)| g * v).sum();
        let moved = |step: f64| {
            let at = flat(&feeds[*name]).iter().zip(&direction).map(|(x, v)| x + step * v).collect();
            let mut feeds = feeds.clone();
            feeds.insert(name.to_string(), tensor(at, dims));
            flat(&loss(&forward, &feeds))[0]
        };
        let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        // Rounding of the loss, divided by the step, comes on top.
        let allowed = DIFFERENCE * scale.max(along.abs()) + value.abs() * 1e-14 / STEP;
        prop_assert!(
            (along - difference).abs() < allowed,
            "d loss / d {name} along {direction:?}: {along:?}, difference {difference:?}\n{}",
            text::print(&forward)
        );
    }
    Ok(Some(nodes))
}

#[test]
fn the_sweep_agrees_with_differences_and_candle() {
    let mut runner = TestRunner::new_with_rng(
        Config { cases: CASES, failure_persistence: None, ..Config::default() },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let (compared, nodes) = (Cell::new(0), Cell::new(0));
    let choices = prop::collection::vec(any::<Choice>(), 12..40);
    let verdict = runner.run(&choices, |choices| {
        if let Some(n) = check(&choices)? {
            compared.set(compared.get() + 1);
            nodes.set(nodes.get() + n);
        }
        Ok(())
    });
    if let Err(why) = verdict {
        panic!("{why}");
    }
    println!("{} graphs compared, {} nodes in all", compared.get(), nodes.get());
    assert!(compared.get() > CASES as usize * 3 / 4, "only {} graphs were compared", compared.get());
    assert!(nodes.get() > 10 * compared.get(), "the graphs have {} nodes in all", nodes.get());
}
