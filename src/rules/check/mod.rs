//! The machine proof of rules: random well-typed instances, interpreted in f64.
//!
//! An equality holds where both sides agree within [`TOLERANCE`]; a gradient row where its cotangents
//! agree with finite differences and, for operators that candle can differentiate, with candle's own
//! `backward`.  A rule that could not be exercised fails: silence is not a proof.

mod attribute;
mod coverage;
pub mod example;
mod instance;
mod operand;
mod random;
mod vjp;

use super::template::{bind_lets, holds, instantiate};
use super::{Kind, Rule, Term};
use crate::interp;
use crate::ir::{Builder, Graph, Id, Lit, Type, text};
use candle_core::Tensor;
pub use coverage::Coverage;
use instance::{Instance, Point};
use random::Random;
use std::collections::BTreeMap;
use std::fmt;

/// Largest difference between two sides, relative to the largest element of the left.
pub const TOLERANCE: f64 = 1e-10;

/// Instances on which both sides must agree.
const INSTANCES: usize = 80;

/// Attempts at a well-typed instance; patterns with guards on several shapes are hit once in hundreds.
const ATTEMPTS: usize = 40_000;

/// Further attempts at an instance with an empty axis, where none was among the first.
const HOLLOW_ATTEMPTS: usize = 400;

/// How a rule was exercised.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proof {
    /// Instances on which it holds.
    pub instances: usize,
    /// Instances that were drawn; most of the others were not well-typed or broke a guard.
    pub drawn: usize,
    /// Numbers compared.
    pub points: usize,
    /// The largest relative difference.
    pub worst: f64,
    /// Gradients that candle's `backward` confirmed.
    pub confirmed: usize,
    /// On what shapes, instances without elements among them.
    pub coverage: Coverage,
}

/// Why a rule is not proved.
#[derive(Clone, Debug)]
pub enum Failure {
    /// Too few instances: the reasons that ended the others, with how often each did.
    NotExercised { instances: usize, drawn: usize, reasons: BTreeMap<String, usize> },
    /// The right side has no meaning where the left side has one.
    NoMeaning { instance: String, message: String },
    /// The sides differ.
    Differs { instance: String, point: String, left: f64, right: f64 },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NotExercised { instances, drawn, reasons } => {
                write!(f, "only {instances} of {drawn} drawn instances could be compared")?;
                let mut often: Vec<_> = reasons.iter().collect();
                often.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
                often.iter().take(6).try_for_each(|(why, n)| write!(f, "\n  {n} times: {why}"))?;
                write!(f, "\n  help: say with :sample which shapes and literals the variables take")
            }
            Failure::NoMeaning { instance, message } => write!(f, "{message}\n{instance}"),
            Failure::Differs { instance, point, left, right } => {
                write!(f, "at {point}: left {left:?}, right {right:?}\n{instance}")
            }
        }
    }
}

/// What became of one drawn instance.
enum Outcome {
    /// It says nothing: why.
    Discard(String),
    Holds {
        points: usize,
        worst: f64,
        confirmed: usize,
        coverage: Coverage,
    },
    Fails(Box<Failure>),
}

/// Checks every rule of a list: its name and the verdict.
pub fn check_file(rules: &[Rule], seed: u64) -> Vec<(String, Result<Proof, Failure>)> {
    rules.iter().map(|r| (r.name.to_string(), check(r, seed))).collect()
}

/// Checks one rule on random instances; the same seed draws the same ones.
///
/// A `define` has no meaning but its own right side: for it the proof is only that it unfolds to a
/// well-typed term with finite values.
///
/// # Errors
/// A counterexample, or that too few instances could be compared.
pub fn check(rule: &Rule, seed: u64) -> Result<Proof, Failure> {
    let mut random = Random::new(seed, &rule.name);
    let mut proof = Proof::default();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut more = HOLLOW_ATTEMPTS;
    while proof.instances < INSTANCES && proof.drawn < ATTEMPTS || proof.coverage.empty == 0 && more > 0 {
        let hollow = proof.instances >= INSTANCES || proof.drawn >= ATTEMPTS;
        if hollow {
            random.only_hollow();
            more -= 1;
        }
        proof.drawn += 1;
        let outcome = match rule.kind {
            Kind::Vjp => vjp::one(rule, &mut random),
            Kind::Define => definition(rule, &mut random),
            Kind::Rewrite | Kind::Lower => equality(rule, &mut random),
        };
        match outcome {
            Outcome::Discard(why) => *reasons.entry(why).or_default() += 1,
            Outcome::Fails(failure) => return Err(*failure),
            Outcome::Holds { points, worst, confirmed, coverage } => {
                proof.coverage.add(coverage);
                // An instance without elements agrees with anything.
                proof.instances += usize::from(points > 0 && !hollow);
                proof.points += points;
                proof.worst = proof.worst.max(worst);
                proof.confirmed += confirmed;
            }
        }
    }
    if proof.instances < INSTANCES {
        return Err(Failure::NotExercised { instances: proof.instances, drawn: proof.drawn, reasons });
    }
    Ok(proof)
}

/// One instance of `left = right`.
fn equality(rule: &Rule, random: &mut Random) -> Outcome {
    let mut instance = match Instance::draw(rule, random) {
        Ok(i) => i,
        Err(why) => return Outcome::Discard(why),
    };
    let left = instance.root;
    let right = match right_side(rule, &mut instance) {
        Ok(id) => id,
        // The e-graph skips such a match; a composite, though, must have a meaning.
        Err(why) if rule.kind == Kind::Rewrite => {
            return Outcome::Discard(format!("the right side has no type: {why}"));
        }
        Err(message) => return instance.no_meaning(message),
    };
    let (left_type, right_type) = (instance.graph.type_of(left).clone(), instance.graph.type_of(right).clone());
    if left_type != right_type {
        let message = format!("the left side is {left_type}, the right side {right_type}");
        return if rule.kind == Kind::Rewrite { Outcome::Discard(message) } else { instance.no_meaning(message) };
    }
    let point = instance.point(random);
    let values = |root: Id| -> Result<Vec<Tensor>, String> { evaluate(&instance.graph, &[("side", root)], &point) };
    let left_values = match values(left) {
        Ok(v) => v,
        Err(why) if point.is_empty() => return Outcome::Discard(why),
        Err(why) => return instance.no_meaning(format!("the left side has no value: {why}")),
    };
    let right_values = match values(right) {
        Ok(v) => v,
        Err(why) if point.is_empty() => return Outcome::Discard(why),
        Err(why) => return instance.no_meaning(format!("the right side has no value: {why}")),
    };
    let mut total = (0, 0.0f64);
    for (l, r) in left_values.iter().zip(&right_values) {
        let l = flat(l);
        if l.iter().any(|x| !x.is_finite()) {
            return Outcome::Discard("the left side is not finite".into());
        }
        match compare(&l, &flat(r), TOLERANCE) {
            Ok(worst) => total = (total.0 + l.len(), total.1.max(worst)),
            Err(k) => return instance.differs(&point, &[left, right], k, (l[k], flat(r)[k])),
        }
    }
    // Lowered forms are held against ONNX Runtime's f32 by tests/lowered.rs: a composite is one rounding here.
    let lost = (rule.kind == Kind::Rewrite).then(|| loses_in_single(&instance.graph, left, right, &point));
    if let Some((k, values)) = lost.flatten() {
        return instance.differs(&point, &[left, right], k, values);
    }
    Outcome::Holds { points: total.0, worst: total.1, confirmed: 0, coverage: instance.coverage() }
}

/// In f32 a right side may lose so much more than its left side.
const SINGLE_FACTOR: f64 = 32.0;

/// What f32 loses in a few operations.
const SINGLE_TOLERANCE: f64 = 2e-5;

/// Both sides with every value rounded to f32, each against the left side in f64: the first element that the right
/// side gets wrong by more than `SINGLE_FACTOR` times the left side's error and `SINGLE_TOLERANCE` of the largest.
/// A left side that is ill-conditioned, or jumps, thus asks nothing that it does not hold itself.
fn loses_in_single(graph: &Graph, left: Id, right: Id, point: &Point) -> Option<(usize, (f64, f64))> {
    let single = point.single();
    let exact = evaluate(graph, &[("side", left)], &single).ok()?;
    let ours = evaluate_with(interp::run_single, graph, &[("side", left)], &single).ok()?;
    let theirs = evaluate_with(interp::run_single, graph, &[("side", right)], &single).ok()?;
    for ((exact, left), right) in exact.iter().zip(&ours).zip(&theirs) {
        let (exact, left, right) = (flat(exact), flat(left), flat(right));
        let scale = exact.iter().fold(SMALL, |m, x| m.max(x.abs()));
        let error = |values: &[f64]| exact.iter().zip(values).fold(0.0f64, |m, (e, v)| m.max((e - v).abs())) / scale;
        let allowed = (SINGLE_FACTOR * error(&left)).max(SINGLE_TOLERANCE);
        let apart = |k: &usize| {
            let apart = (exact[*k] - right[*k]).abs() / scale;
            apart.is_nan() || apart > allowed
        };
        if let Some(k) = (0..exact.len().min(right.len())).find(apart) {
            return Some((k, (exact[k], right[k])));
        }
    }
    None
}

/// The right side of an equality over the drawn variables.
fn right_side(rule: &Rule, instance: &mut Instance) -> Result<Id, String> {
    let Some(Some(right)) = rule.right.first() else { return Err("there is no right side".into()) };
    let mut subst = instance.subst.clone();
    bind_lets(&rule.lets, &mut subst, &mut instance.graph)?;
    instantiate(right, &subst, &mut instance.graph)
}

/// One unfolding of a definition over a small random model.
fn definition(rule: &Rule, random: &mut Random) -> Outcome {
    let mut instance = match Instance::draw(rule, random) {
        Ok(i) => i,
        Err(why) => return Outcome::Discard(why),
    };
    let right = match right_side(rule, &mut instance) {
        Ok(id) => id,
        Err(message) => return instance.no_meaning(message),
    };
    let point = instance.point(random);
    match evaluate(&instance.graph, &[("side", right)], &point) {
        Err(why) if point.is_empty() => Outcome::Discard(why),
        Err(why) => instance.no_meaning(why),
        Ok(values) => {
            let all: Vec<f64> = values.iter().flat_map(flat).collect();
            match all.iter().position(|x| !x.is_finite()) {
                Some(k) => instance.no_meaning(format!("the right side's number {k} is {}", all[k])),
                None => Outcome::Holds { points: all.len(), worst: 0.0, confirmed: 0, coverage: instance.coverage() },
            }
        }
    }
}

/// The values of named roots, in order; a tuple gives its parts.
fn evaluate(graph: &Graph, roots: &[(&str, Id)], point: &Point) -> Result<Vec<Tensor>, String> {
    evaluate_with(interp::run, graph, roots, point)
}

/// How a graph is run on feeds.
type Run = fn(&Graph, &Feeds) -> Result<Feeds, crate::error::Error>;
type Feeds = BTreeMap<String, Tensor>;

fn evaluate_with(run: Run, graph: &Graph, roots: &[(&str, Id)], point: &Point) -> Result<Vec<Tensor>, String> {
    let mut graph = graph.clone();
    graph.outputs = roots.iter().map(|(n, id)| (n.to_string(), *id)).collect();
    let values = run(&graph, &point.feeds).map_err(|e| e.to_string())?;
    let parts = |name: &str| (0..).map_while(|k| values.get(&format!("{name}.{k}"))).cloned().collect::<Vec<_>>();
    Ok(roots.iter().flat_map(|(name, _)| values.get(*name).map_or_else(|| parts(name), |v| vec![v.clone()])).collect())
}

/// The elements of a tensor in order.
fn flat(x: &Tensor) -> Vec<f64> {
    // Candle cannot list no elements of a view that starts behind its storage.
    if x.elem_count() == 0 {
        return vec![];
    }
    x.flatten_all().and_then(|x| x.to_vec1()).unwrap_or_default()
}

/// Values this small are compared absolutely: what is left of them is cancellation.
const SMALL: f64 = 1e-2;

/// The largest difference relative to the largest element of `left`, or where it is beyond `tolerance`.
fn compare(left: &[f64], right: &[f64], tolerance: f64) -> Result<f64, usize> {
    let scale = left.iter().fold(SMALL, |m, x| m.max(x.abs()));
    let mut worst = 0.0f64;
    for (k, l) in left.iter().enumerate() {
        let apart = right.get(k).map_or(f64::INFINITY, |r| (l - r).abs() / scale);
        if apart.is_nan() || apart > tolerance {
            return Err(k);
        }
        worst = worst.max(apart);
    }
    Ok(worst)
}

/// A graph and the values of its inputs, for a message.
fn describe(graph: &Graph, roots: &[Id], point: Option<&Point>) -> String {
    let mut graph = graph.clone();
    graph.outputs = roots.iter().zip(["left", "right"]).map(|(id, n)| (n.to_string(), *id)).collect();
    let mut out = text::print(&graph);
    for (name, value) in point.iter().flat_map(|p| &p.feeds) {
        let shown: Vec<String> = flat(value).iter().take(MOST_SHOWN).map(|x| format!("{x:?}")).collect();
        let more = if value.elem_count() > MOST_SHOWN { " .." } else { "" };
        out += &format!("{name} = {}{more}\n", shown.join(" "));
    }
    out
}

/// Elements of an input that a message shows.
const MOST_SHOWN: usize = 12;

/// Whether a term is this variable.
fn is_var(term: &Term, name: &str) -> bool {
    matches!(term, Term::Var(v) if &**v == name)
}

/// The literal behind a node.
fn literal(graph: &Graph, id: Id) -> Option<Lit> {
    if let Type::Lit(l) = graph.type_of(id) { Some(l.clone()) } else { None }
}

/// Whether the guards hold for the drawn variables.
fn admitted(rule: &Rule, instance: &mut Instance) -> bool {
    let subst = instance.subst.clone();
    holds(&rule.guards, &subst, &mut instance.graph)
}

#[cfg(test)]
mod tests;
