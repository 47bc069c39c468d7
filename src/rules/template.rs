//! Right sides become nodes: in a graph, and in the e-graph.

use super::builtin;
use super::{Guard, Term, Var};
use crate::ir::op::Kind;
use crate::ir::{Builder, Dim, Graph, Id, Lit, Node};
use std::collections::BTreeMap;

/// What each variable stands for.
pub type Subst = BTreeMap<Var, Id>;

/// Builds a term over the substitution; `Err` says why it has no meaning here.
pub fn instantiate<B: Builder>(term: &Term, subst: &Subst, b: &mut B) -> Result<Id, String> {
    match term {
        Term::Var(v) => subst.get(v).copied().ok_or_else(|| format!("?{v} is not bound")),
        Term::Lit(l) => b.lit(l.clone()),
        Term::Op(op, args) => {
            let mut children = arguments(args, subst, b)?;
            // A bare symbol is a word to the reader; where the table wants an integer it is a size.
            let first = op.operands(children.len());
            for (k, attr) in op.row().attrs.iter().enumerate() {
                let Some(id) = children.get_mut(first + k) else { continue };
                let word = match b.type_of(*id).lit() {
                    Some(Lit::Word(w)) if attr.kind == Kind::Int => Dim::parse(w),
                    _ => None,
                };
                if let Some(dim) = word {
                    *id = b.lit(Lit::Int(dim))?;
                }
            }
            b.op(*op, &children)
        }
        Term::Call(name, args) => {
            let children = arguments(args, subst, b)?;
            builtin::compute(name, &children, b)
        }
    }
}

fn arguments<B: Builder>(args: &[Term], subst: &Subst, b: &mut B) -> Result<Vec<Id>, String> {
    args.iter().map(|a| instantiate(a, subst, b)).collect()
}

/// Adds the `:let` bindings to the substitution, in order.
pub fn bind_lets<B: Builder>(lets: &[(Var, Term)], subst: &mut Subst, b: &mut B) -> Result<(), String> {
    for (name, term) in lets {
        let id = instantiate(term, subst, b)?;
        subst.insert(name.clone(), id);
    }
    Ok(())
}

/// Whether every guard holds; a guard whose arguments have no meaning does not.
pub fn holds<B: Builder>(guards: &[Guard], subst: &Subst, b: &mut B) -> bool {
    guards.iter().all(|g| match arguments(&g.args, subst, b) {
        Ok(args) => builtin::test(&g.name, &args, b),
        Err(_) => false,
    })
}

/// Matches a left side at one node of a graph.
pub fn matches(graph: &Graph, id: Id, left: &Term) -> Option<Subst> {
    let mut subst = Subst::new();
    matches_into(graph, id, left, &mut subst).then_some(subst)
}

fn matches_into(graph: &Graph, id: Id, left: &Term, subst: &mut Subst) -> bool {
    match (left, graph.node(id)) {
        (Term::Var(v), _) => *subst.entry(v.clone()).or_insert(id) == id,
        (Term::Lit(l), Node::Lit(m)) => l == m,
        (Term::Op(op, args), Node::Op(head, children)) => {
            op == head
                && args.len() == children.len()
                && args.iter().zip(children).all(|(a, c)| matches_into(graph, *c, a, subst))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{DType, Op};
    use crate::rules::parse::parse;

    /// Deep enough to overflow the stack of a recursive walk, and doubling at every step without a memo.
    #[test]
    fn apply_copies_what_depends_on_the_leaf_once_and_shares_the_rest() {
        let mut graph = Graph::new("g");
        let (x, w) = (graph.input("x", DType::F32, &[4.into()]), graph.input("w", DType::F32, &[4.into()]));
        let shared = graph.op(Op::Exp, &[w]).unwrap();
        let mut y = x;
        for _ in 0..20_000 {
            let sum = graph.op(Op::Add, &[y, y]).unwrap();
            y = graph.op(Op::Mul, &[sum, shared]).unwrap();
        }
        let rules = parse("r.egg", "(define d (objective ?y ?x ?new ?t ?u ?a ?b ?c) (apply ?y ?x (neg ?new)))");
        let rules = rules.unwrap_or_else(|e| panic!("{e}"));
        let subst: Subst = [("y", y), ("x", x), ("new", x)].map(|(v, id)| (v.into(), id)).into();
        let before = graph.len();
        let right = rules[0].right[0].as_ref().unwrap();
        let applied = instantiate(right, &subst, &mut graph).unwrap();
        assert_eq!(graph.len() - before, 1 + 40_000);
        assert_eq!(graph.node(applied).children()[1], shared);
        assert_eq!(instantiate(right, &subst, &mut graph), Ok(applied));
    }
}
