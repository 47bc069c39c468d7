//! Rules as egg patterns.

use super::lang::Classes;
use crate::error::{Error, Result};
use crate::ir::Builder;
use crate::ir::{Id, Node};
use crate::rules::template::{Subst, bind_lets, holds, instantiate};
use crate::rules::{Kind, Rule, Term, Var};
use egg::{ENodeOrVar, Language, Pattern, PatternAst, Searcher};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

/// A rule, ready to be searched and applied.
pub(super) struct Compiled<'r> {
    pub rule: &'r Rule,
    right: &'r Term,
    /// The left side's variables, in the order of `Match::ids`.
    vars: Vec<Var>,
    /// The left side in every order of its commutative operators.
    patterns: Vec<Pattern<Node>>,
    /// The operators and literals of the left side: without one of them in the e-graph, nothing fits.
    needed: FxHashSet<Node>,
}

/// One place where a left side fits: the class, and what each variable stands for there.
#[derive(PartialEq, Eq, Hash, Clone, Debug)]
pub(super) struct Match {
    pub class: Id,
    ids: SmallVec<[Id; 6]>,
}

/// What became of a match.
pub(super) enum Applied {
    /// The e-graph knows something new.
    Changed,
    /// It knew already, or the guards do not hold.
    Unchanged,
    /// The right side has no meaning here, or another type than the left.
    Refused(String),
}

impl<'r> Compiled<'r> {
    pub fn new(rule: &'r Rule) -> Result<Self> {
        let bad = |why: &str| Error::internal("rewrite", format!("the rule {} {why}", rule.name));
        if rule.kind == Kind::Vjp {
            return Err(bad("is a gradient row, not an equality"));
        }
        let [Some(right)] = rule.right.as_slice() else { return Err(bad("has no right side")) };
        let (mut vars, mut patterns, mut needed) = (Vec::new(), Vec::new(), FxHashSet::default());
        for left in variants(&rule.left) {
            let mut ast = PatternAst::default();
            add(&left, &mut ast, &mut vars).ok_or_else(|| bad("calls a computed attribute on the left"))?;
            let nodes =
                ast.iter().filter_map(|n| if let ENodeOrVar::ENode(node) = n { Some(node.clone()) } else { None });
            needed.extend(nodes.map(|node| node.op().map_or(node, |op| Node::Op(op, Box::default()))));
            patterns.push(Pattern::new(ast));
        }
        Ok(Compiled { rule, right, vars, patterns, needed })
    }

    /// Every match, in an order that depends only on the e-graph's history.
    pub fn search(&self, classes: &Classes) -> Vec<Match> {
        let mut found = Vec::new();
        let is_there = |node: &Node| match node {
            Node::Op(..) => classes.classes_for_op(&node.discriminant()).is_some_and(|ids| ids.len() > 0),
            literal => classes.lookup(literal.clone()).is_some(),
        };
        if !self.needed.iter().all(is_there) {
            return found;
        }
        for pattern in &self.patterns {
            for place in pattern.search(classes) {
                for subst in &place.substs {
                    let id = |k: usize| subst.get(variable(k)).map(|id| classes.find(*id));
                    let ids: Option<SmallVec<_>> = (0..self.vars.len()).map(id).collect();
                    found.extend(ids.map(|ids| Match { class: place.eclass, ids }));
                }
            }
        }
        found
    }

    pub fn apply(&self, place: &Match, classes: &mut Classes) -> Applied {
        let mut subst: Subst = self.vars.iter().cloned().zip(place.ids.iter().copied()).collect();
        if !holds(&self.rule.guards, &subst, classes) {
            return Applied::Unchanged;
        }
        let built =
            bind_lets(&self.rule.lets, &mut subst, classes).and_then(|()| instantiate(self.right, &subst, classes));
        match built {
            Err(why) => Applied::Refused(why),
            Ok(new) if classes.type_of(new) != classes.type_of(place.class) => Applied::Refused(format!(
                "the left side is {}, the right side {}",
                classes.type_of(place.class),
                classes.type_of(new)
            )),
            Ok(new) if classes.union(place.class, new) => Applied::Changed,
            Ok(_) => Applied::Unchanged,
        }
    }
}

fn variable(k: usize) -> egg::Var {
    egg::Var::from_u32(k as u32)
}

fn add(term: &Term, ast: &mut PatternAst<Node>, vars: &mut Vec<Var>) -> Option<Id> {
    let node = match term {
        Term::Var(v) => {
            let k = vars.iter().position(|x| x == v).unwrap_or_else(|| {
                vars.push(v.clone());
                vars.len() - 1
            });
            ENodeOrVar::Var(variable(k))
        }
        Term::Lit(l) => ENodeOrVar::ENode(Node::Lit(l.clone())),
        Term::Op(op, args) => {
            let children: Option<Box<[Id]>> = args.iter().map(|a| add(a, ast, vars)).collect();
            ENodeOrVar::ENode(Node::Op(*op, children?))
        }
        Term::Call(..) => return None,
    };
    Some(ast.add(node))
}

/// A left side in every order of its commutative operators, without repetition.
pub(crate) fn variants(term: &Term) -> Vec<Term> {
    let Term::Op(op, args) = term else { return vec![term.clone()] };
    let mut lists: Vec<Vec<Term>> = vec![Vec::new()];
    for arg in args {
        let choices = variants(arg);
        lists = lists
            .iter()
            .flat_map(|l| choices.iter().map(move |c| [l.as_slice(), std::slice::from_ref(c)].concat()))
            .collect();
    }
    let mut all: Vec<Term> = Vec::new();
    for list in lists {
        let mut swapped = list.clone();
        if op.is_commutative() {
            swapped.reverse();
        }
        for order in [list, swapped] {
            let term = Term::Op(*op, order);
            if !all.contains(&term) {
                all.push(term);
            }
        }
    }
    all
}
