//! Where a rule fired in a model, and why it did not elsewhere.

use crate::autodiff::{self, row_op};
use crate::compile::{Options, Stage, compile_watched, sink, usable};
use crate::error::{Error, Problem, Result};
use crate::ir::{Builder, Graph, Id, LeafKind, Node};
use crate::lower;
use crate::rewrite::{self, Trace, trace};
use crate::rules::library::Library;
use crate::rules::parse::suggest;
use crate::rules::template::{Subst, holds};
use crate::rules::user::library_with;
use crate::rules::{Kind, Rule, Target, Term};
use indexmap::IndexMap;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

/// Which rule, in which model.
#[derive(Clone, Debug)]
pub struct Request {
    pub rule: String,
    pub model: PathBuf,
    pub target: Target,
    pub rules: Option<PathBuf>,
    pub trust_rules: bool,
}

impl Request {
    pub fn new(rule: &str, model: impl Into<PathBuf>) -> Self {
        Request { rule: rule.into(), model: model.into(), target: Target::Cpu, rules: None, trust_rules: false }
    }
}

/// What became of a rule, stage by stage.
pub struct Explanation {
    pub rule: Rule,
    pub stages: Vec<(Stage, Report)>,
    /// Why there is nothing to tell, or not everything.
    pub notes: Vec<String>,
}

/// One stage.
#[derive(Default)]
pub struct Report {
    /// Where it fired, and how often.
    pub fired: Vec<(String, usize)>,
    /// Why it did not, and where.
    pub misses: IndexMap<String, Vec<String>>,
    /// Places that share little with the left side.
    pub unlike: usize,
}

/// Runs the stages that the rule belongs to.
///
/// # Errors
/// `Usage` where there is no such rule; what keeps the model from being read.
pub fn explain(request: &Request) -> Result<Explanation> {
    let library = library_with(request.rules.as_deref(), request.trust_rules)?;
    let rule = find(&library, &request.rule)?.clone();
    let mut notes = Vec::new();
    if rule.search {
        notes.push("it is a search rule: it may grow the graph and is not used by default".into());
    }
    if let Some(target) = rule.target.filter(|t| !request.target.takes(Some(*t))) {
        let target = target.name();
        notes.push(format!("it is for the target {target} only: ask with --target {target}"));
    }
    let mut out = Explanation { rule, stages: vec![], notes };
    if !out.notes.is_empty() {
        return Ok(out);
    }
    let graphs = graphs(request, &mut out.notes)?;
    let is_in = |rules: &[Rule]| rules.iter().any(|r| r.name == out.rule.name);
    let families = |names: &[&[Rule]]| usable(names, request.target).into_iter().cloned().collect::<Vec<_>>();
    let (lift, simplify) = (is_in(&library.lift), is_in(&library.simplify));
    let lays_out = request.target != Target::Portable;
    let runs = [
        (lift || simplify, Stage::Read, Stage::Lift, families(&[&library.lift, &library.simplify])),
        (
            is_in(&library.layout) || lays_out && simplify,
            Stage::Lift,
            Stage::Precision,
            families(&[&library.layout, &library.simplify]),
        ),
        (is_in(&library.sink), Stage::Objective, Stage::Sink, families(&[&library.sink, &library.simplify])),
        (simplify, Stage::Objective, Stage::Sink, families(&[&library.simplify])),
        (simplify, Stage::Differentiate, Stage::Optimise, families(&[&library.simplify])),
        (
            is_in(&library.fuse) || simplify,
            Stage::Optimise,
            Stage::Lower,
            families(&[&library.fuse, &library.simplify]),
        ),
    ];
    for (belongs, before, stage, rules) in runs {
        let Some(graph) = graphs.get(&before).filter(|_| belongs) else { continue };
        let expanded = match stage {
            Stage::Lower => {
                lower::expand(graph, &library.lower_for(request.target), request.target, &mut BTreeMap::new())?
            }
            _ => graph.clone(),
        };
        let rules: Vec<&Rule> = rules.iter().collect();
        if stage == Stage::Sink {
            // Where rows sink is a question of who reads what, not of the left side alone.
            let fired = sink(graph, &library, request.target)?.fired;
            let mut report = Report::default();
            match fired.get(&*out.rule.name) {
                Some(n) => report.fired.push(("on the way of the rows that are read".into(), *n)),
                None => report.miss("no row sinks through it", "the entropy pass and the loss".into()),
            }
            out.stages.push((stage, report));
            continue;
        }
        let traced = trace(&expanded, &rules, &rewrite::Options::default(), &out.rule.name)?;
        out.stages.push((stage, Report::of(&traced, &expanded)));
    }
    let (stage, before) = match out.rule.kind {
        Kind::Rewrite => return Ok(out),
        Kind::Define => (Stage::Objective, Stage::Lift),
        Kind::Vjp => (Stage::Differentiate, Stage::Sink),
        Kind::Lower => (Stage::Lower, Stage::Optimise),
    };
    if let Some(graph) = graphs.get(&before) {
        let report = match out.rule.kind {
            Kind::Define => definition(&out.rule, graphs.contains_key(&Stage::Objective)),
            Kind::Vjp => gradient_row(&out.rule, &library.grad, &mut graph.clone())?,
            _ => lowering(&out.rule, &library.lower_for(request.target), graph)?,
        };
        out.stages.push((stage, report));
    }
    Ok(out)
}

fn find<'l>(library: &'l Library, name: &str) -> Result<&'l Rule> {
    let families = [
        &library.lift,
        &library.simplify,
        &library.layout,
        &library.sink,
        &library.fuse,
        &library.grad,
        &library.lower,
    ];
    let all = || families.into_iter().chain(library.methods.values()).flatten();
    all().find(|r| *r.name == *name).ok_or_else(|| {
        let help = suggest(name, all().map(|r| &*r.name));
        let help = help.unwrap_or_else(|| "the report of `weftc compile` lists the rules that fired".into());
        Error::usage(Problem::new(name, "is not a rule").help(help))
    })
}

/// The graph after each stage that the model reaches; the lift's input holds only what the lift sees.
fn graphs(request: &Request, notes: &mut Vec<String>) -> Result<BTreeMap<Stage, Graph>> {
    let mut graphs = BTreeMap::new();
    let options = Options {
        // The mask token is one literal in the graph: which one it is changes no rule.
        mask_id: Some(0),
        target: request.target,
        rules: request.rules.clone(),
        // They were proved when the library was read.
        trust_rules: true,
        ..Options::new(&request.model)
    };
    let outcome = compile_watched(&options, &mut |stage, graph| drop(graphs.insert(stage, graph.clone())));
    match outcome {
        Ok(compiled) => {
            let logits = &compiled.manifest.logits_output;
            graphs.entry(Stage::Read).and_modify(|g| g.outputs.retain(|(n, _)| n == logits));
        }
        Err(Error::Model { problems, .. } | Error::Usage { problems }) if graphs.contains_key(&Stage::Read) => {
            let reasons: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.place, p.message)).collect();
            notes.push(format!("the model does not compile, so later stages are not shown: {}", reasons.join("; ")));
        }
        Err(error) => return Err(error),
    }
    Ok(graphs)
}

/// The name of a node in the source; for one that the compiler made, its operator, what it reads and its type.
fn place(graph: &Graph, id: Id) -> String {
    if let Some(origin) = graph.origin.get(&id) {
        return origin.to_string();
    }
    let name = |id: &Id| match graph.node(*id) {
        Node::Op(op, _) => op.name().to_string(),
        Node::Leaf(l) => graph.leaf(*l).name.clone(),
        Node::Lit(l) => l.to_string(),
    };
    let reads: Vec<String> = graph.node(id).children().iter().map(name).collect();
    format!("{}({}): {}", name(&id), reads.join(", "), graph.type_of(id))
}

impl Report {
    fn of(traced: &Trace, graph: &Graph) -> Self {
        let mut report = Report { unlike: traced.unlike, ..Report::default() };
        report.fired = traced.fired.iter().map(|(id, n)| (place(graph, *id), *n)).collect();
        let mut misses: Vec<_> = traced.misses.iter().collect();
        misses.sort_by_key(|m| std::cmp::Reverse(m.matched));
        for m in misses {
            let why = format!("{} ({} of {} parts fit)", m.why, m.matched, m.parts);
            report.miss(why, place(graph, m.place));
        }
        report
    }

    fn miss(&mut self, why: impl Into<String>, place: String) {
        self.misses.entry(why.into()).or_default().push(place);
    }
}

/// A method's definition replaces the objective, once.
fn definition(rule: &Rule, unfolded: bool) -> Report {
    let mut report = Report::default();
    if unfolded && *rule.name == *Options::new("").method {
        report.fired.push(("the objective".into(), 1));
    } else {
        report
            .miss("another method is compiled; choose this one with `weftc compile --method`", "the objective".into());
    }
    report
}

/// Where the reverse sweep uses a row.
fn gradient_row(rule: &Rule, rows: &[Rule], graph: &mut Graph) -> Result<Report> {
    let loss = graph.outputs.iter().find(|(n, _)| n == "loss_sum").map(|(_, id)| *id);
    let loss = loss.ok_or_else(|| Error::internal("explain", "there is no loss_sum"))?;
    let order = graph.reachable([loss]);
    let trained = |id: &Id| {
        let leaf = graph.as_leaf(*id).map(|l| graph.leaf(l));
        leaf.is_some_and(|l| l.kind == LeafKind::Param && l.ty.dtype.is_float())
    };
    let wrt: Vec<Id> = order.iter().copied().filter(trained).collect();
    let active = autodiff::active_nodes(graph, &order, &wrt);
    let mut cotangents: BTreeSet<Id> = [loss].into();
    let mut report = Report::default();
    for y in order.into_iter().rev() {
        let Node::Op(op, children) = graph.node(y).clone() else { continue };
        let mine = row_op(rule) == Some(op);
        if !cotangents.contains(&y) {
            if mine {
                let why =
                    if active[usize::from(y)] { "no gradient comes back to it" } else { "no trained weight feeds it" };
                report.miss(why, place(graph, y));
            }
            continue;
        }
        let mut used = None;
        for row in rows.iter().filter(|r| row_op(r) == Some(op)) {
            // Guards see types only, and a cotangent has the type of its value.
            let subst = autodiff::bind(graph, row, op, &children, y, y)?;
            if holds(&row.guards, &subst, graph) {
                used = Some(row);
                break;
            }
            if row.name == rule.name {
                report.miss(failing(row, &subst, graph), place(graph, y));
            }
        }
        let Some(row) = used else { continue };
        match (row.name == rule.name, mine) {
            (true, _) => report.fired.push((place(graph, y), 1)),
            (false, true) => {
                if !report.misses.values().flatten().any(|p| *p == place(graph, y)) {
                    report.miss(format!("the row {} comes first", row.name), place(graph, y));
                }
            }
            (false, false) => {}
        }
        let operands = children.iter().take(op.operands(children.len())).enumerate();
        let d = |k: usize| row.right.get(if row.variadic { 0 } else { k }).is_some_and(Option::is_some);
        cotangents.extend(operands.filter(|(k, x)| active[usize::from(**x)] && d(*k)).map(|(_, x)| *x));
    }
    // The sweep runs backwards; the places are told in the order of the computation.
    report.fired.reverse();
    report.misses.values_mut().for_each(|places| places.reverse());
    Ok(report)
}

/// The first guard that does not hold.
fn failing(rule: &Rule, subst: &Subst, graph: &mut Graph) -> String {
    let guard = rule.guards.iter().find(|g| !holds(std::slice::from_ref(*g), subst, graph));
    guard.map_or_else(String::new, |g| format!("{g} does not hold"))
}

/// Where a composite is replaced by its meaning, in the graph or in the body of a fused node.
fn lowering(rule: &Rule, rules: &[Rule], graph: &Graph) -> Result<Report> {
    let mut report = Report::default();
    let mut counts = BTreeMap::new();
    lower::inline(graph, rules, &mut counts)?;
    let mut graph = graph.clone();
    for id in graph.live() {
        let Node::Op(op, children) = graph.node(id).clone() else { continue };
        if row_op(rule) != Some(op) {
            continue;
        }
        for other in rules.iter().filter(|r| row_op(r) == Some(op)) {
            let Term::Op(_, vars) = &other.left else { continue };
            let named = vars.iter().zip(&children).filter_map(|(v, c)| match v {
                Term::Var(v) => Some((v.clone(), *c)),
                _ => None,
            });
            let subst: Subst = named.collect();
            let fits = holds(&other.guards, &subst, &mut graph);
            match (fits, other.name == rule.name) {
                (true, true) => report.fired.push((place(&graph, id), 1)),
                (true, false) => report.miss(format!("the rule {} comes first", other.name), place(&graph, id)),
                (false, true) => report.miss(failing(rule, &subst, &mut graph), place(&graph, id)),
                (false, false) => {}
            }
            if fits || other.name == rule.name {
                break;
            }
        }
    }
    let total: usize = counts.get(&*rule.name).copied().unwrap_or(0);
    if total > report.fired.len() {
        report.fired.push(("the bodies of other composites".into(), total - report.fired.len()));
    }
    Ok(report)
}

/// Places of one line that are named unless all are wanted.
const PLACES: usize = 6;

/// Reasons that are shown unless all are wanted.
const REASONS: usize = 8;

impl Explanation {
    /// For people; `all` names every place.
    pub fn text(&self, all: bool) -> String {
        let mut out = format!("{} ({})\n", self.rule.name, self.rule.file);
        for line in self.rule.doc.lines() {
            let _ = writeln!(out, "    {line}");
        }
        let _ = writeln!(out, "    {}", self.rule.left);
        for (var, term) in &self.rule.lets {
            let _ = writeln!(out, "    let ?{var} = {term}");
        }
        for right in &self.rule.right {
            let _ = writeln!(out, "    => {}", right.as_ref().map_or_else(|| "_".into(), Term::to_string));
        }
        if !self.rule.guards.is_empty() {
            let guards: Vec<String> = self.rule.guards.iter().map(|g| g.to_string()).collect();
            let _ = writeln!(out, "    when {}", guards.join(" "));
        }
        for note in &self.notes {
            let _ = writeln!(out, "{note}");
        }
        for (stage, report) in &self.stages {
            report.show(&mut out, stage.name(), all);
        }
        out
    }
}

impl Report {
    fn show(&self, out: &mut String, stage: &str, all: bool) {
        let total: usize = self.fired.iter().map(|(_, n)| n).sum();
        let times = |n: usize| if n == 1 { "once".into() } else { format!("{n} times") };
        let _ = match total {
            0 => writeln!(out, "{stage}: did not fire"),
            n => writeln!(out, "{stage}: fired {}", times(n)),
        };
        // Nodes that the compiler made may look alike.
        let counted = |places: &mut dyn Iterator<Item = (&String, usize)>| {
            let mut counts: IndexMap<&String, usize> = IndexMap::new();
            places.for_each(|(place, n)| *counts.entry(place).or_default() += n);
            let line =
                |(place, n): (&String, usize)| if n == 1 { place.clone() } else { format!("{place} ({})", times(n)) };
            counts.into_iter().map(line).collect::<Vec<String>>()
        };
        let list = |out: &mut String, indent: &str, places: Vec<String>| {
            let shown = if all { places.len() } else { PLACES };
            for place in places.iter().take(shown) {
                let _ = writeln!(out, "{indent}{place}");
            }
            if places.len() > shown {
                let _ = writeln!(out, "{indent}and {} more", places.len() - shown);
            }
        };
        list(out, "    ", counted(&mut self.fired.iter().map(|(place, n)| (place, *n))));
        let shown = if all { self.misses.len() } else { REASONS };
        for (why, places) in self.misses.iter().take(shown) {
            let _ = writeln!(out, "  not: {why}");
            list(out, "    ", counted(&mut places.iter().map(|place| (place, 1))));
        }
        let hidden: usize = self.misses.values().skip(shown).map(Vec::len).sum();
        if hidden > 0 {
            let _ = writeln!(out, "  not at {hidden} more nodes, for other reasons; --all names them");
        }
        if self.unlike > 0 {
            let _ = writeln!(out, "  {} other nodes with its operator are unlike its left side", self.unlike);
        }
    }
}
