//! Equality saturation: a graph and rules in, an equal and cheaper graph out.
//!
//! The outputs are joined under one tuple and the nodes go into an e-graph, where every class has one
//! type.  Definitions unfold first, once; then the equalities are applied until nothing new is found
//! or a limit is reached; then the cheapest graph is extracted.  The result depends on the input alone:
//! limits count nodes and rounds, never time.

mod extract;
mod lang;
mod pattern;
mod trace;

use crate::error::{Error, Result};
use crate::ir::{Graph, Id, Node, Op};
use crate::rules::{Kind, Rule};
use lang::{Classes, Types};
use pattern::{Applied, Compiled, Match};
use rustc_hash::FxHashSet;
use std::collections::BTreeMap;
use std::time::Instant;
use trace::Watch;

pub(crate) use pattern::variants;
pub use trace::{Miss, Trace, trace};

/// The directed rules reach their end within some ten rounds; more means that two rules feed each other.
const ITERATIONS: usize = 40;

/// An e-graph may grow to this many times the graph's nodes ...
const GROWTH: usize = 8;

/// ... but small graphs may always grow to this, where a search rule still has room.
const SMALL: usize = 20_000;

/// When to stop although rules still find new facts.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Rounds of searching all rules and applying what they found.
    pub iterations: usize,
    /// Nodes in the e-graph; `None` grows with the graph.
    pub nodes: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options { iterations: ITERATIONS, nodes: None }
    }
}

/// Why saturation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// No rule finds anything new.
    Saturated,
    Iterations,
    Nodes,
}

/// The size and the end of a saturation.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Nodes and classes of the e-graph at the end.
    pub nodes: usize,
    pub classes: usize,
    pub iterations: usize,
    pub stop: Stop,
    pub seconds: f64,
    /// Estimated cost of the input and of the result; `None` if the input cannot run as it is.
    pub cost_before: Option<u64>,
    pub cost_after: u64,
}

/// The cheaper graph and how it came about.
#[derive(Clone, Debug)]
pub struct Saturated {
    pub graph: Graph,
    /// Rule name to the number of applications that told the e-graph something new.
    pub fired: BTreeMap<String, usize>,
    /// Rule name to the first reason why a match of it was not applied.
    pub refused: BTreeMap<String, String>,
    pub stats: Stats,
}

/// Adds one stage's rule counts to the total.
pub fn count(into: &mut BTreeMap<String, usize>, from: &BTreeMap<String, usize>) {
    for (name, n) in from {
        *into.entry(name.clone()).or_default() += n;
    }
}

/// Rewrites a graph by `rules`: definitions first, once, then every equality to saturation.
///
/// The caller chooses the rules (target, search); gradient rows are refused.  The result has the same
/// outputs and leaves and never a higher estimated cost than `graph`.
pub fn saturate(graph: &Graph, rules: &[&Rule], options: &Options) -> Result<Saturated> {
    let start = Instant::now();
    let (definitions, equalities) = sorted(rules)?;
    let (mut classes, ids) = load(graph)?;
    let root = ids.root;
    let mut progress = Progress { fired: BTreeMap::new(), refused: BTreeMap::new(), watch: None };
    progress.define(&mut classes, &definitions)?;
    let (iterations, stop) = progress.rounds(&mut classes, &equalities, options.iterations, growth(graph, options));
    if let Some(why) = classes.analysis.conflict.take() {
        return Err(Error::internal("rewrite", why));
    }
    let extracted = extract::extract(&classes, root, graph, &ids.nodes)?;
    Ok(Saturated {
        graph: extracted.graph,
        fired: progress.fired,
        refused: progress.refused,
        stats: Stats {
            nodes: classes.total_number_of_nodes(),
            classes: classes.number_of_classes(),
            iterations,
            stop,
            seconds: start.elapsed().as_secs_f64(),
            cost_before: extracted.cost_before,
            cost_after: extracted.cost_after,
        },
    })
}

/// Definitions and equalities, ready to be searched.
fn sorted<'r>(rules: &[&'r Rule]) -> Result<(Vec<Compiled<'r>>, Vec<Compiled<'r>>)> {
    let (definitions, equalities): (Vec<&Rule>, Vec<&Rule>) =
        rules.iter().copied().partition(|r| r.kind == Kind::Define);
    let compile = |rules: Vec<&'r Rule>| rules.into_iter().map(Compiled::new).collect::<Result<Vec<_>>>();
    Ok((compile(definitions)?, compile(equalities)?))
}

/// How many nodes the e-graph may have.
fn growth(graph: &Graph, options: &Options) -> usize {
    options.nodes.unwrap_or((graph.len() * GROWTH).max(SMALL))
}

/// Where the graph's nodes went.
struct Loaded {
    root: Id,
    /// Live nodes of the graph and their classes.
    nodes: Vec<(Id, Id)>,
}

/// The e-graph of a graph's live nodes, outputs joined under one tuple.
fn load(graph: &Graph) -> Result<(Classes, Loaded)> {
    let mut classes = Classes::new(Types::of(graph));
    let mut to: Vec<Option<Id>> = vec![None; graph.len()];
    let mut nodes = Vec::new();
    let missing = || Error::internal("rewrite", "an operand comes after its user");
    for id in graph.live() {
        let node = match graph.node(id) {
            Node::Op(op, c) => {
                let children: Option<Box<[Id]>> = c.iter().map(|x| to[usize::from(*x)]).collect();
                Node::Op(*op, children.ok_or_else(missing)?)
            }
            other => other.clone(),
        };
        let class = classes.add(node);
        to[usize::from(id)] = Some(class);
        nodes.push((id, class));
    }
    let outputs: Option<Box<[Id]>> = graph.outputs.iter().map(|(_, id)| to[usize::from(*id)]).collect();
    let root = classes.add(Node::Op(Op::Tuple, outputs.ok_or_else(missing)?));
    classes.rebuild();
    Ok((classes, Loaded { root, nodes }))
}

struct Progress {
    fired: BTreeMap<String, usize>,
    refused: BTreeMap<String, String>,
    /// What `trace` wants to know.
    watch: Option<Watch>,
}

impl Progress {
    /// Applies a rule at a place.
    fn apply(&mut self, rule: &Compiled, place: &Match, classes: &mut Classes) -> Applied {
        let before = classes.nodes().len();
        let applied = rule.apply(place, classes);
        if let Some(watch) = &mut self.watch {
            watch.saw(rule.rule, place, &applied, before);
        }
        applied
    }

    /// Unfolds every definition wherever it stands, once.  A definition that has no meaning is an error:
    /// what it defines cannot run.
    fn define(&mut self, classes: &mut Classes, rules: &[Compiled]) -> Result<()> {
        for compiled in rules {
            for place in compiled.search(classes) {
                match self.apply(compiled, &place, classes) {
                    Applied::Changed => *self.fired.entry(compiled.rule.name.to_string()).or_default() += 1,
                    Applied::Unchanged => {}
                    Applied::Refused(why) => {
                        return Err(Error::internal("define", format!("{}: {why}", compiled.rule.name)));
                    }
                }
            }
            classes.rebuild();
        }
        Ok(())
    }

    /// Applies the rules until nothing changes or a limit is reached.
    fn rounds(&mut self, classes: &mut Classes, rules: &[Compiled], most: usize, limit: usize) -> (usize, Stop) {
        // Guards and right sides depend on types alone, and a class's type never changes: a match that
        // was tried once need not be tried again.
        let mut tried = FxHashSet::default();
        for round in 0..most {
            let mut found = Vec::new();
            for (k, rule) in rules.iter().enumerate() {
                found.extend(rule.search(classes).into_iter().map(|m| (k, m)).filter(|m| !tried.contains(m)));
            }
            let mut changed = false;
            for (k, place) in found {
                let name = &rules[k].rule.name;
                match self.apply(&rules[k], &place, classes) {
                    Applied::Changed => {
                        *self.fired.entry(name.to_string()).or_default() += 1;
                        changed = true;
                    }
                    Applied::Unchanged => {}
                    Applied::Refused(why) => drop(self.refused.entry(name.to_string()).or_insert(why)),
                }
                tried.insert((k, place));
                if classes.total_size() > limit {
                    classes.rebuild();
                    return (round + 1, Stop::Nodes);
                }
            }
            classes.rebuild();
            if !changed {
                return (round + 1, Stop::Saturated);
            }
        }
        (most, Stop::Iterations)
    }
}
