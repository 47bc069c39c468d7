//! Terms of rules, checked against the operator table and the tables of computed attributes and guards.

use super::operator_names;
use crate::ir::op::{Arity, Attr, Kind as AttrKind};
use crate::ir::sexpr::{Sexpr, Span, SyntaxError};
use crate::ir::{Dim, F64, Lit, Op, text};
use crate::rules::builtin::{COMPUTED, GUARDS};
use crate::rules::{Kind, Term, Var};
use std::sync::Arc;
use strsim::levenshtein;

/// What a table says of a call: its name, how many arguments (`None`: any), its meaning.
type Entry = (&'static str, Option<usize>, &'static str);

/// The calls that give a node.
const APPLY: Entry = ("apply", Some(3), "(apply ?logits ?ids ?new): the logits with ?ids replaced by ?new");
const FIND: Entry =
    ("true_rows_of", Some(1), "(true_rows_of ?mask): the places where a mask is true, in a size of their own");
const CACHED: Entry = ("cached", Some(2), "(cached ?cache VALUE): VALUE, or what was kept of it");

/// Where a term stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Binds its variables; calls nothing.
    Left,
    Right,
    /// The arguments of a guard or a call: variables, literals and calls.
    Guard,
}

/// The variables of one rule.
pub(super) struct Scope {
    kind: Kind,
    bound: Vec<Var>,
    pub lets: Vec<(Var, Term)>,
    pub variadic: bool,
}

type Errors = Vec<SyntaxError>;

impl Scope {
    pub fn new(kind: Kind) -> Self {
        Scope { kind, bound: Vec::new(), lets: Vec::new(), variadic: false }
    }

    /// Binds what a gradient row may use beside its operands.
    pub fn end_of_left(&mut self) {
        if self.kind == Kind::Vjp {
            let also: &[&str] = if self.variadic { &["y", "dy", "start", "end"] } else { &["y", "dy"] };
            self.bound.extend(also.iter().map(|v| Var::from(*v)));
        }
    }

    /// A variable that is bound; otherwise an error.
    pub fn lookup(&self, atom: &str, span: &Span, errors: &mut Errors) -> Option<Var> {
        let name = variable(atom, span, errors)?;
        if self.bound.contains(&name) {
            return Some(name);
        }
        let all: Vec<String> = self.bound.iter().map(|v| format!("?{v}")).collect();
        errors.push(
            SyntaxError::new(span, format!("`?{name}` is not bound")).help(format!("bound here: {}", all.join(" "))),
        );
        None
    }

    /// `(let ?v TERM ..)`: names a term for what follows.
    pub fn bind(&mut self, atom: &str, span: &Span, body: &Sexpr, errors: &mut Errors) {
        let term = self.term(body, Side::Right, errors);
        let Some(name) = variable(atom, span, errors) else { return };
        if self.bound.contains(&name) {
            errors.push(SyntaxError::new(span, format!("`?{name}` is already bound")).help("choose another name"));
            return;
        }
        self.bound.push(name.clone());
        self.lets.extend(term.map(|t| (name, t)));
    }

    /// Reads a term; `None` if something was wrong with it, which is then among the errors.
    pub fn term(&mut self, e: &Sexpr, side: Side, errors: &mut Errors) -> Option<Term> {
        match e {
            Sexpr::Atom(a, span) if a.starts_with('?') && side == Side::Left => self.bind_left(a, span, errors),
            Sexpr::Atom(a, span) if a.starts_with('?') => self.lookup(a, span, errors).map(Term::Var),
            Sexpr::Atom(a, span) if a == "_" => {
                errors.push(
                    SyntaxError::new(span, "`_` is not a term")
                        .help("`_` is a whole right side of a `vjp` row; elsewhere name a variable"),
                );
                None
            }
            Sexpr::Atom(..) | Sexpr::Bracket(..) => {
                let lit = text::literal(e);
                if lit.is_none() {
                    errors.push(
                        SyntaxError::new(e.span(), "not a list of integers")
                            .help("build a list from variables with (list ..)"),
                    );
                }
                lit.map(Term::Lit)
            }
            Sexpr::List(items, span) => match items.as_slice() {
                [Sexpr::Atom(head, at), args @ ..] => self.list(head, at, args, span, side, errors),
                _ => {
                    errors.push(
                        SyntaxError::new(span, "expected (operator ..)")
                            .help("a list starts with the name of an operator"),
                    );
                    None
                }
            },
        }
    }

    fn bind_left(&mut self, atom: &str, span: &Span, errors: &mut Errors) -> Option<Term> {
        let (stem, dots) = atom.strip_suffix("...").map_or((atom, false), |s| (s, true));
        let name = variable(stem, span, errors)?;
        if self.kind == Kind::Vjp && ["y", "dy"].contains(&&*name) {
            errors.push(
                SyntaxError::new(span, format!("`?{name}` is the row's own name for the result or its cotangent"))
                    .help("call the operand something else"),
            );
        }
        if dots && self.kind != Kind::Vjp {
            errors.push(
                SyntaxError::new(span, format!("`{atom}` stands for any number of operands"))
                    .help("only the left side of a `vjp` row may hold one"),
            );
        }
        self.variadic |= dots;
        if !self.bound.contains(&name) {
            self.bound.push(name.clone());
        }
        Some(Term::Var(name))
    }

    fn list(
        &mut self,
        head: &str,
        at: &Span,
        args: &[Sexpr],
        span: &Span,
        side: Side,
        errors: &mut Errors,
    ) -> Option<Term> {
        if let Some(op) = Op::parse(head) {
            if side == Side::Guard {
                let help = "name it first: (let ?v (operator ..) ..); guards see the left side only";
                errors.push(
                    SyntaxError::new(at, format!("`{head}` is an operator; here stand variables, literals and calls"))
                        .help(help),
                );
                return None;
            }
            return self.operator(op, args, span, side, errors);
        }
        let mut calls = COMPUTED.iter().map(|r| (r.name, r.arity, r.doc)).chain([APPLY, CACHED, FIND]);
        let call = calls.find(|(name, ..)| *name == head);
        match (head, call) {
            ("let", _) if side == Side::Right => match args {
                [Sexpr::Atom(var, at), term, body] => {
                    self.bind(var, at, term, errors);
                    self.term(body, side, errors)
                }
                _ => {
                    errors.push(SyntaxError::new(span, "this `let` is incomplete").help("(let ?v TERM BODY)"));
                    None
                }
            },
            ("let", _) => {
                errors.push(SyntaxError::new(at, "`let` stands on right sides only").help("(let ?v TERM BODY)"));
                None
            }
            (_, Some(_)) if side == Side::Left => {
                let help = "bind a variable there and compare it: `:when (eq ?v (..))`";
                errors.push(
                    SyntaxError::new(at, format!("`{head}` is computed, so it cannot stand on the left")).help(help),
                );
                None
            }
            (_, Some(entry)) => {
                let inner = if entry == APPLY || entry == CACHED { Side::Right } else { Side::Guard };
                let args = self.all(args, inner, errors);
                check_arity(entry, args.len(), span, errors)?;
                Some(Term::Call(head.into(), args.into_iter().collect::<Option<_>>()?))
            }
            (_, None) => {
                let computed = COMPUTED.iter().map(|r| r.name).filter(|_| side != Side::Left);
                let help = suggest(head, operator_names().chain(computed)).unwrap_or_else(|| {
                    "operators are in src/ir/op.rs, computed attributes in src/rules/builtin.rs".into()
                });
                errors.push(SyntaxError::new(at, format!("unknown operator `{head}`")).help(help));
                self.all(args, side, errors);
                None
            }
        }
    }

    fn all(&mut self, args: &[Sexpr], side: Side, errors: &mut Errors) -> Vec<Option<Term>> {
        args.iter().map(|a| self.term(a, side, errors)).collect()
    }

    fn operator(&mut self, op: Op, args: &[Sexpr], span: &Span, side: Side, errors: &mut Errors) -> Option<Term> {
        let terms = self.all(args, side, errors);
        let row = op.row();
        if !op.accepts(terms.len()) {
            let operands = match row.arity {
                Arity::Fixed(n) => format!("{n}"),
                Arity::AtLeast(n) => format!("at least {n}"),
            };
            let attrs: Vec<&str> = row.attrs.iter().map(|a| a.name).collect();
            let message = format!(
                "`{}` takes {operands} operands and {} attributes, got {} in all",
                op.name(),
                attrs.len(),
                terms.len()
            );
            let help = if attrs.is_empty() {
                "it has no attributes".into()
            } else {
                format!("attributes stand last: {}", attrs.join(", "))
            };
            errors.push(SyntaxError::new(span, message).help(help));
            return None;
        }
        let first = op.operands(terms.len());
        let checked: Vec<Option<Term>> = terms
            .into_iter()
            .zip(args)
            .enumerate()
            .map(|(k, (term, e))| match k.checked_sub(first) {
                Some(a) => attribute(op, &row.attrs[a], term?, e, errors),
                None => operand(op, k, term?, e, errors),
            })
            .collect();
        Some(Term::Op(op, checked.into_iter().collect::<Option<_>>()?))
    }
}

/// An operand: a tensor, or a number as a weak scalar.
fn operand(op: Op, k: usize, term: Term, e: &Sexpr, errors: &mut Errors) -> Option<Term> {
    if let Term::Lit(Lit::Ints(_) | Lit::DType(_) | Lit::Word(_)) = &term {
        let message = format!("operand {k} of `{}` must be a tensor or a number", op.name());
        errors.push(SyntaxError::new(e.span(), message).help("variables start with `?`"));
        return None;
    }
    Some(term)
}

/// An attribute: a variable, a call, or a literal of the kind that the table wants.
fn attribute(op: Op, attr: &Attr, term: Term, e: &Sexpr, errors: &mut Errors) -> Option<Term> {
    let lit = match term {
        Term::Lit(lit) => lit,
        Term::Op(..) => {
            let message = format!("attribute {} of `{}` must be a literal, not an operator", attr.name, op.name());
            errors.push(SyntaxError::new(e.span(), message).help("attributes are literals, variables or calls"));
            return None;
        }
        other => return Some(other),
    };
    let (fits, kind) = match (attr.kind, &lit) {
        (AttrKind::Int, Lit::Int(_)) => (Some(lit), "an integer"),
        // A bare symbol is a word to the reader; where the table wants an integer it is a size.
        (AttrKind::Int, Lit::Word(w)) => (Dim::parse(w).map(Lit::Int), "an integer"),
        (AttrKind::Int, _) => (None, "an integer"),
        (AttrKind::Ints, Lit::Ints(_)) => (Some(lit), "a list of integers"),
        (AttrKind::Ints, _) => (None, "a list of integers"),
        (AttrKind::Float, Lit::Float(_) | Lit::Int(_)) => (lit.number().map(|x| Lit::Float(F64(x))), "a number"),
        (AttrKind::Float, _) => (None, "a number"),
        (AttrKind::DType, Lit::DType(_)) => (Some(lit), "an element type"),
        (AttrKind::DType, _) => (None, "an element type"),
        (AttrKind::Word, Lit::Word(_)) => (Some(lit), "a word"),
        (AttrKind::Word, _) => (None, "a word"),
    };
    if fits.is_none() {
        let message = format!("attribute {} of `{}` must be {kind}", attr.name, op.name());
        errors.push(SyntaxError::new(e.span(), message).help("variables start with `?`"));
    }
    fits.map(Term::Lit)
}

/// That a guard exists and has its arguments.
pub(super) fn check_guard(name: &str, at: &Span, e: &Sexpr, errors: &mut Errors) -> Option<()> {
    let Some(row) = GUARDS.iter().find(|r| r.name == name) else {
        let help =
            suggest(name, GUARDS.iter().map(|r| r.name)).unwrap_or_else(|| "guards are in src/rules/builtin.rs".into());
        errors.push(SyntaxError::new(at, format!("unknown guard `{name}`")).help(help));
        return None;
    };
    check_arity((row.name, row.arity, row.doc), e.list().map_or(0, |l| l.len() - 1), e.span(), errors)
}

/// That a call has its arguments.
fn check_arity((name, arity, doc): Entry, got: usize, span: &Span, errors: &mut Errors) -> Option<()> {
    let Some(want) = arity.filter(|want| *want != got) else { return Some(()) };
    let plural = if want == 1 { "" } else { "s" };
    errors.push(SyntaxError::new(span, format!("`{name}` takes {want} argument{plural}, got {got}")).help(doc));
    None
}

fn variable(atom: &str, span: &Span, errors: &mut Errors) -> Option<Arc<str>> {
    let name = atom.strip_prefix('?').filter(|n| {
        n.starts_with(|c: char| c.is_ascii_lowercase()) && n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    });
    if name.is_none() {
        errors.push(SyntaxError::new(span, format!("`{atom}` is not a variable")).help("a variable is `?name`"));
    }
    name.map(Arc::from)
}

/// `did you mean ..?`, if one of the names is a slip of the finger away.
pub fn suggest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<String> {
    let near = names.map(|n| (levenshtein(word, n), n)).min_by_key(|(d, _)| *d)?;
    (near.0 <= word.len().div_ceil(3)).then(|| format!("did you mean `{}`?", near.1))
}
