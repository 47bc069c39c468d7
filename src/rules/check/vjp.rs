//! Gradient rows against finite differences, and against candle's own `backward`.

use super::instance::{Instance, Point};
use super::random::Random;
use super::{Outcome, evaluate, evaluate_with, flat};
use crate::interp;
use crate::ir::{Builder, Dim, Graph, Id, Lit};
use crate::rules::template::{Subst, bind_lets, instantiate};
use crate::rules::{Rule, Term};
use candle_core::{Result as Candle, Tensor, Var};

/// Largest relative difference to a difference quotient in f64 with step [`STEP`].
const FINITE_DIFFERENCE_TOLERANCE: f64 = 1e-6;

/// Balances truncation (step^4) and rounding (1e-16 / step).
const STEP: f64 = 1e-5;

/// Directions along which each operand is moved; a wrong cotangent agrees with none of them.
const DIRECTIONS: usize = 3;

/// Largest relative difference to candle's gradients, which are exact up to rounding.
const CANDLE_TOLERANCE: f64 = 1e-9;

/// Largest difference of a cotangent in f32 to the same in f64, relative to its largest element.
const SINGLE_TOLERANCE: f64 = 1e-4;

/// One instance of a row: `s = sum(y * dy)` for a random `dy`, moved in each operand.
pub fn one(rule: &Rule, random: &mut Random) -> Outcome {
    let mut instance = match Instance::draw(rule, random) {
        Ok(i) => i,
        Err(why) => return Outcome::Discard(why),
    };
    let y = instance.root;
    let Some(ty) = instance.graph.tensor_type(y).cloned() else { return Outcome::Discard("no tensor".into()) };
    if rule.right.iter().all(Option::is_none) {
        return no_gradient(&instance, random);
    }
    if !ty.dtype.is_float() {
        return Outcome::Discard("the result holds no floating-point numbers".into());
    }
    let dy = instance.graph.input("dy", ty.dtype, &ty.shape);
    let cotangents = match cotangents(&mut instance, y, dy) {
        Ok(c) => c,
        Err(message) => return instance.no_meaning(message),
    };
    let point = instance.point(random);
    let roots: Vec<(String, Id)> = cotangents.iter().enumerate().map(|(k, (_, d))| (format!("d{k}"), *d)).collect();
    let named: Vec<(&str, Id)> = roots.iter().map(|(n, id)| (n.as_str(), *id)).collect();
    let forward = match evaluate(&instance.graph, &[("y", y)], &point) {
        Ok(v) => v,
        Err(why) if point.is_empty() => return Outcome::Discard(why),
        Err(why) => return instance.no_meaning(format!("the operator has no value: {why}")),
    };
    if forward.iter().flat_map(flat).any(|x| !x.is_finite()) {
        return Outcome::Discard("the operator's value is not finite".into());
    }
    let values = match evaluate(&instance.graph, &named, &point) {
        Ok(v) => v,
        Err(why) => return instance.no_meaning(format!("a cotangent has no value: {why}")),
    };
    let (mut points, mut worst, mut confirmed) = (0, 0.0f64, 0);
    for ((x, d), value) in cotangents.iter().zip(&values) {
        let name = instance.graph.as_leaf(*x).map(|l| instance.graph.leaf(l).name.clone()).unwrap_or_default();
        let Some(at) = point.feeds.get(&name) else { continue };
        let gradient = match sum_to(value, at.dims()) {
            Ok(g) => g,
            Err(e) => return instance.no_meaning(format!("the cotangent of ?{name} does not fit it: {e}")),
        };
        match directional(&instance.graph, y, &point, &name, &gradient, random) {
            Err(why) => return instance.no_meaning(why),
            Ok(pairs) => {
                for (ours, difference) in pairs {
                    let scale = flat(&gradient).iter().fold(ours.abs().max(1.0), |m, g| m.max(g.abs()));
                    let apart = (ours - difference).abs() / scale;
                    if apart.is_nan() || apart > FINITE_DIFFERENCE_TOLERANCE {
                        return instance.differs(&point, &[*d], 0, (difference, ours));
                    }
                    worst = worst.max(apart);
                    points += at.elem_count();
                }
            }
        }
        // Operators that candle cannot differentiate have no second opinion.
        let Ok(Some(theirs)) = backward(&instance.graph, y, &point, &name) else { continue };
        let (ours, theirs) = (flat(&gradient), flat(&theirs));
        if let Err(k) = super::compare(&theirs, &ours, CANDLE_TOLERANCE) {
            return instance.differs(&point, &[*d], k, (theirs[k], ours[k]));
        }
        confirmed += 1;
    }
    let single = point.single();
    let exact = evaluate(&instance.graph, &named, &single);
    let rounded = evaluate_with(interp::run_single, &instance.graph, &named, &single);
    if let (Ok(exact), Ok(rounded)) = (exact, rounded) {
        for (((_, d), exact), rounded) in cotangents.iter().zip(&exact).zip(&rounded) {
            let (exact, rounded) = (flat(exact), flat(rounded));
            if let Err(k) = super::compare(&exact, &rounded, SINGLE_TOLERANCE) {
                return instance.differs(&single, &[*d], k, (exact[k], rounded[k]));
            }
        }
    }
    Outcome::Holds { points, worst, confirmed, coverage: instance.coverage() }
}

/// A row of nothing but `_` claims nothing that a difference could refute; the operator must exist.
fn no_gradient(instance: &Instance, random: &mut Random) -> Outcome {
    let point = instance.point(random);
    match evaluate(&instance.graph, &[("y", instance.root)], &point) {
        Ok(values) => {
            let points = values.iter().map(Tensor::elem_count).sum();
            Outcome::Holds { points, worst: 0.0, confirmed: 0, coverage: instance.coverage() }
        }
        Err(why) if point.is_empty() => Outcome::Discard(why),
        Err(why) => instance.no_meaning(format!("the operator has no value: {why}")),
    }
}

/// Operand and cotangent of each operand that has one.
fn cotangents(instance: &mut Instance, y: Id, dy: Id) -> Result<Vec<(Id, Id)>, String> {
    let rule = instance.rule;
    let Term::Op(_, args) = &rule.left else { return Err("the row has no operator".into()) };
    let mut base = instance.subst.clone();
    base.insert("y".into(), y);
    base.insert("dy".into(), dy);
    let build = |graph: &mut Graph, mut subst: Subst, right: &Term| {
        bind_lets(&rule.lets, &mut subst, graph)?;
        instantiate(right, &subst, graph)
    };
    let mut out = Vec::new();
    if rule.variadic {
        let Some(Some(right)) = rule.right.first() else { return Ok(out) };
        let axis = instance.graph.node(y).children().last().and_then(|a| super::literal(&instance.graph, *a));
        let axis = axis.and_then(|l| l.int().and_then(Dim::known)).ok_or("a variadic operator needs an axis")?;
        let mut start = 0;
        for x in instance.operands.clone() {
            let shape = instance.graph.type_of(x).shape();
            let at = crate::ir::infer::resolve_axis(axis, shape.len())?;
            let end = start + shape[at].known().unwrap_or(0);
            let mut subst = base.clone();
            subst.insert("x".into(), x);
            subst.insert("start".into(), instance.graph.lit(Lit::Int(Dim::Known(start)))?);
            subst.insert("end".into(), instance.graph.lit(Lit::Int(Dim::Known(end)))?);
            out.push((x, build(&mut instance.graph, subst, right)?));
            start = end;
        }
        return Ok(out);
    }
    for (arg, right) in args.iter().zip(&rule.right) {
        let (Term::Var(v), Some(right)) = (arg, right) else { continue };
        let x = base[v];
        // A number has no gradient.
        if instance.graph.tensor_type(x).is_some() {
            out.push((x, build(&mut instance.graph, base.clone(), right)?));
        }
    }
    Ok(out)
}

/// Sums over the axes on which an operand of shape `dims` was broadcast, or spreads: as the sweep does.
fn sum_to(d: &Tensor, dims: &[usize]) -> Candle<Tensor> {
    // Candle's sums do not take tensors without elements.
    if d.elem_count() == 0 {
        return Tensor::zeros(dims, d.dtype(), d.device());
    }
    let extra = d.rank().saturating_sub(dims.len());
    let d = d.sum((0..extra).collect::<Vec<_>>())?;
    let lead = dims.len() - d.rank().min(dims.len());
    let narrow: Vec<usize> = (0..d.rank()).filter(|k| dims[lead + k] == 1).collect();
    d.sum_keepdim(narrow)?.broadcast_as(dims)?.contiguous()
}

/// For random directions `v` of one input: `<gradient, v>` and the difference quotient of `<y, dy>`.
fn directional(
    graph: &Graph,
    y: Id,
    point: &Point,
    name: &str,
    gradient: &Tensor,
    random: &mut Random,
) -> Result<Vec<(f64, f64)>, String> {
    let text = |e: candle_core::Error| e.to_string();
    let x = &point.feeds[name];
    let dy = flat(&point.feeds["dy"]);
    let mut pairs = Vec::new();
    for _ in 0..DIRECTIONS {
        let v: Vec<f64> = (0..x.elem_count()).map(|_| random.between(-1.0, 1.0)).collect();
        let ours = flat(gradient).iter().zip(&v).map(|(g, v)| g * v).sum();
        let v = Tensor::from_vec(v, x.shape(), x.device()).map_err(text)?;
        let value = |step: f64| -> Result<f64, String> {
            let moved = (x + v.affine(step, 0.0).map_err(text)?).map_err(text)?;
            let mut feeds = point.feeds.clone();
            feeds.insert(name.to_string(), moved);
            let out = evaluate(graph, &[("y", y)], &Point { feeds })?;
            Ok(out.iter().flat_map(flat).zip(&dy).map(|(y, d)| y * d).sum())
        };
        let central = |step: f64| -> Result<f64, String> { Ok((value(step)? - value(-step)?) / (2.0 * step)) };
        // Richardson's extrapolation: what is left of the truncation is of fourth order.
        pairs.push((ours, (4.0 * central(STEP / 2.0)? - central(STEP)?) / 3.0));
    }
    Ok(pairs)
}

/// Candle's gradient of `<y, dy>` with respect to one input; `None` where candle lost its track.
fn backward(graph: &Graph, y: Id, point: &Point, name: &str) -> Candle<Option<Tensor>> {
    let var = Var::from_tensor(&point.feeds[name])?;
    let mut graph = graph.clone();
    graph.outputs = vec![("y".into(), y)];
    let mut feeds = point.feeds.clone();
    feeds.insert(name.to_string(), var.as_tensor().clone());
    let values = interp::run(&graph, &feeds).map_err(|e| candle_core::Error::msg(e.to_string()))?;
    let Some(y) = values.get("y").filter(|y| y.elem_count() > 0) else { return Ok(None) };
    let gradients = (y * &point.feeds["dy"])?.sum_all()?.backward()?;
    Ok(gradients.get(&var).cloned())
}
