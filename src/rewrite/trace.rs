//! Where one rule fires in a saturation, and what keeps it from firing elsewhere.

use super::lang::Classes;
use super::pattern::{Applied, Compiled, Match, variants};
use super::{Loaded, Options, Progress, growth, load, sorted};
use crate::error::Result;
use crate::ir::{Builder, Graph, Id, LeafKind, Node, Type};
use crate::rules::template::{Subst, holds};
use crate::rules::{Rule, Term, Var};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};

/// Attempts of the matcher at one class; a class of many equal nodes has more ways than are worth a message.
const STEPS: usize = 10_000;

/// What became of one rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Nodes of the input graph, and how often the rule fired at each or at a term that others made of it.
    pub fired: BTreeMap<Id, usize>,
    /// Nodes with the left side's operator where at least half of the left side fits.
    pub misses: Vec<Miss>,
    /// Nodes with that operator where less fits.
    pub unlike: usize,
}

/// One place where a rule did not fire.
#[derive(Clone, Debug, PartialEq)]
pub struct Miss {
    pub place: Id,
    /// How many parts of the left side (operators, literals, repeated variables) fit, of how many.
    pub matched: usize,
    pub parts: usize,
    /// The first part that does not fit, the guard that does not hold, or the type that is wrong.
    pub why: String,
}

/// Saturates as `saturate` does and reports on one of the rules.
pub fn trace(graph: &Graph, rules: &[&Rule], options: &Options, name: &str) -> Result<Trace> {
    let (definitions, equalities) = sorted(rules)?;
    let (mut classes, loaded) = load(graph)?;
    let watch = Watch { name: name.into(), made: Vec::new(), seen: Vec::new() };
    let mut progress = Progress { fired: BTreeMap::new(), refused: BTreeMap::new(), watch: Some(watch) };
    progress.define(&mut classes, &definitions)?;
    progress.rounds(&mut classes, &equalities, options.iterations, growth(graph, options));
    let Some(watch) = progress.watch else { return Ok(Trace::default()) };
    let rule = definitions.iter().chain(&equalities).find(|c| *c.rule.name == *name);
    let places = Places::new(graph, &classes, &loaded);
    let mut out = Trace::default();
    let mut refused: FxHashMap<Id, String> = FxHashMap::default();
    let mut done: BTreeSet<Id> = BTreeSet::new();
    for (class, why) in &watch.seen {
        match why {
            Some(why) => drop(refused.entry(classes.find(*class)).or_insert_with(|| why.clone())),
            None => {
                done.insert(classes.find(*class));
                let place = watch.place(*class, &classes, &places);
                *out.fired.entry(place).or_default() += 1;
            }
        }
    }
    let Some(rule) = rule else { return Ok(out) };
    for (class, place) in places.in_order {
        if done.contains(&class) || !has_root(&classes, class, &rule.rule.left) {
            continue;
        }
        match nearest(rule, graph, &mut classes, (class, place), refused.get(&class)) {
            Some(miss) if miss.matched * 2 >= miss.parts => out.misses.push(miss),
            Some(_) => out.unlike += 1,
            None => {}
        }
    }
    Ok(out)
}

/// Records applications: what each made, and those of the watched rule.
pub(super) struct Watch {
    name: String,
    /// From this class on, until the next entry, classes were made at a place.
    made: Vec<(usize, Id)>,
    /// Classes where the watched rule fired, or was refused and why.
    seen: Vec<(Id, Option<String>)>,
}

impl Watch {
    /// `before`: how many classes there were before the application.
    pub fn saw(&mut self, rule: &Rule, place: &Match, applied: &Applied, before: usize) {
        self.made.push((before, place.class));
        match applied {
            _ if *rule.name != *self.name => {}
            Applied::Changed => self.seen.push((place.class, None)),
            Applied::Refused(why) => self.seen.push((place.class, Some(why.clone()))),
            Applied::Unchanged => {}
        }
    }

    /// The graph's node behind a class, or behind the class that it was made at.
    fn place(&self, class: Id, classes: &Classes, places: &Places) -> Id {
        let mut class = class;
        loop {
            if let Some(place) = places.of.get(&classes.find(class)) {
                return *place;
            }
            // Every class is made at an older one.
            let k = self.made.partition_point(|(before, _)| *before <= usize::from(class));
            match k.checked_sub(1).map(|k| self.made[k].1) {
                Some(older) if older < class => class = older,
                _ => return places.root,
            }
        }
    }
}

/// The graph's nodes by class.
struct Places {
    of: FxHashMap<Id, Id>,
    in_order: Vec<(Id, Id)>,
    root: Id,
}

impl Places {
    fn new(graph: &Graph, classes: &Classes, loaded: &Loaded) -> Self {
        let mut places = Places { of: FxHashMap::default(), in_order: Vec::new(), root: Id::from(0) };
        for (id, class) in loaded.nodes.iter().filter(|(id, _)| graph.node(*id).op().is_some()) {
            let class = classes.find(*class);
            places.of.entry(class).or_insert_with(|| {
                places.in_order.push((class, *id));
                *id
            });
            places.root = *id;
        }
        places
    }
}

fn has_root(classes: &Classes, class: Id, left: &Term) -> bool {
    let Term::Op(op, _) = left else { return false };
    classes[class].nodes.iter().any(|n| n.op() == Some(*op))
}

/// What comes closest to a match at a class; `None` where the rule matches and says nothing new.
fn nearest(
    rule: &Compiled,
    graph: &Graph,
    classes: &mut Classes,
    (class, place): (Id, Id),
    refused: Option<&String>,
) -> Option<Miss> {
    let parts = parts(&rule.rule.left, &mut Vec::new());
    let (mut best, mut full) = ((0, String::new()), Vec::new());
    for left in variants(&rule.rule.left) {
        let mut matcher = Matcher { classes, graph, best: (0, String::new()), full: Vec::new(), steps: STEPS };
        matcher.go(vec![(&left, class)], Subst::new(), 0);
        if matcher.best.0 > best.0 {
            best = matcher.best;
        }
        full.extend(matcher.full);
    }
    let miss = |matched: usize, why: String| Some(Miss { place, matched, parts, why });
    if full.is_empty() {
        return miss(best.0, best.1);
    }
    for subst in full {
        let failing = rule.rule.guards.iter().find(|g| !holds(std::slice::from_ref(*g), &subst, classes));
        let Some(guard) = failing else {
            return refused.and_then(|why| miss(parts, format!("the right side does not fit: {why}")));
        };
        let mut vars = Vec::new();
        guard.args.iter().for_each(|a| variables(a, &mut vars));
        let value = |v: &Var| Some(format!("?{v} is {}", classes.type_of(*subst.get(v)?)));
        let values: Vec<String> = vars.iter().filter_map(value).collect();
        best.1 = format!("{guard} does not hold: {}", values.join(", "));
    }
    miss(parts, best.1)
}

/// Operators, literals and repeated variables of a left side.
fn parts(term: &Term, seen: &mut Vec<Var>) -> usize {
    match term {
        Term::Var(v) if seen.contains(v) => 1,
        Term::Var(v) => {
            seen.push(v.clone());
            0
        }
        Term::Lit(_) => 1,
        Term::Op(_, args) | Term::Call(_, args) => 1 + args.iter().map(|a| parts(a, seen)).sum::<usize>(),
    }
}

fn variables(term: &Term, vars: &mut Vec<Var>) {
    match term {
        Term::Var(v) if !vars.contains(v) => vars.push(v.clone()),
        Term::Op(_, args) | Term::Call(_, args) => args.iter().for_each(|a| variables(a, vars)),
        _ => {}
    }
}

/// Matches one order of a left side and remembers how far it came.
struct Matcher<'a> {
    classes: &'a Classes,
    graph: &'a Graph,
    /// Parts that fit in the best attempt, and what stopped it.
    best: (usize, String),
    full: Vec<Subst>,
    steps: usize,
}

impl Matcher<'_> {
    /// `todo`: terms to match, the next one last.
    fn go(&mut self, mut todo: Vec<(&Term, Id)>, mut subst: Subst, matched: usize) {
        let Some((term, id)) = todo.pop() else {
            self.full.push(subst);
            return;
        };
        if self.steps == 0 {
            return;
        }
        self.steps -= 1;
        let id = self.classes.find(id);
        match term {
            Term::Var(v) => match subst.get(v).copied() {
                None => {
                    subst.insert(v.clone(), id);
                    self.go(todo, subst, matched);
                }
                Some(first) if first == id => self.go(todo, subst, matched + 1),
                Some(first) => {
                    let (first, here) = (self.found(first), self.found(id));
                    self.miss(matched, format!("?{v} is {first} in one place and another value, {here}, in the next"));
                }
            },
            Term::Lit(l) if self.classes[id].nodes.contains(&Node::Lit(l.clone())) => {
                self.go(todo, subst, matched + 1);
            }
            Term::Op(op, args) => {
                let mut any = false;
                for node in self.classes[id].nodes.iter().filter(|n| n.op() == Some(*op)) {
                    if node.children().len() == args.len() {
                        any = true;
                        let mut todo = todo.clone();
                        todo.extend(args.iter().zip(node.children().iter().copied()).rev());
                        self.go(todo, subst.clone(), matched + 1);
                    }
                }
                if !any {
                    self.miss(matched, format!("{term} expected, here is {}", self.found(id)));
                }
            }
            Term::Lit(_) | Term::Call(..) => self.miss(matched, format!("{term} expected, here is {}", self.found(id))),
        }
    }

    fn miss(&mut self, matched: usize, why: String) {
        if matched > self.best.0 {
            self.best = (matched, why);
        }
    }

    /// A class in one word: a name, a literal or its operators.
    fn found(&self, id: Id) -> String {
        let class = &self.classes[id];
        if let Type::Lit(l) = &class.data {
            return l.to_string();
        }
        let mut words: Vec<String> = Vec::new();
        for node in &class.nodes {
            let word = match node {
                Node::Op(op, _) => op.name().to_string(),
                // Which one it is would make every place a reason of its own.
                Node::Leaf(l) => match self.graph.leaf(*l).kind {
                    LeafKind::Input => return "an input".into(),
                    LeafKind::Param | LeafKind::Const => return "a weight".into(),
                },
                Node::Lit(l) => l.to_string(),
            };
            if !words.contains(&word) {
                words.push(word);
            }
        }
        words.truncate(3);
        format!("`{}`", words.join("` or `"))
    }
}
