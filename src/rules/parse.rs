//! Reads rule files and checks every rule when it is read.
//!
//! A file is read to its end: all its mistakes are reported together, each with its place.

mod term;

use super::{Guard, Kind, Rule, Sample, Target, Term, Var};
use crate::error::{Error, Result};
use crate::ir::op::{Arity, Cost};
use crate::ir::sexpr::{self, Sexpr, Span, SyntaxError};
use crate::ir::{DType, Lit, Op, text};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use term::{Scope, Side};

pub use term::suggest;

/// Reads files of rules, `(name, text)`: one list a file.  Names are unique across the files; the mistakes
/// of all files are reported together.
pub fn load_all(files: &[(&str, &str)]) -> Result<Vec<Vec<Rule>>> {
    let mut names = BTreeMap::new();
    let (mut lists, mut errors) = (Vec::new(), Vec::new());
    for (file, text) in files {
        match parse_with(file, text, &mut names) {
            Ok(rules) => lists.push(rules),
            Err(error) => errors.push(error),
        }
    }
    Error::all(errors).map(|()| lists)
}

/// Reads one file of rules; `Error::Syntax` lists everything that is wrong with it.
pub fn parse(file: &str, text: &str) -> Result<Vec<Rule>> {
    parse_with(file, text, &mut BTreeMap::new())
}

/// `names`: the rules so far and where they are.
fn parse_with(file: &str, text: &str, names: &mut BTreeMap<String, String>) -> Result<Vec<Rule>> {
    let fail = |errors| Error::Syntax { file: file.into(), text: text.into(), errors };
    let forms = sexpr::read(text).map_err(|e| fail(vec![e]))?;
    let mut reader = Reader { file: file.into(), text, names, errors: Vec::new() };
    let mut rules = Vec::new();
    for form in &forms {
        rules.extend(reader.rule(form));
    }
    let mut errors = reader.errors;
    errors.sort_by_key(|e| e.span.start);
    if errors.is_empty() { Ok(rules) } else { Err(fail(errors)) }
}

struct Reader<'a> {
    file: Arc<str>,
    text: &'a str,
    names: &'a mut BTreeMap<String, String>,
    errors: Vec<SyntaxError>,
}

/// What stands behind the left side: right sides, and options with their arguments.
struct Tail<'a> {
    rights: Vec<&'a Sexpr>,
    options: Vec<(&'a str, &'a Span, Vec<&'a Sexpr>)>,
    /// False only for a row without `=>`, which then is among the errors.
    complete: bool,
}

const SHAPES: &str = "a form is (rewrite NAME LEFT RIGHT ..), (define NAME LEFT RIGHT ..), (vjp LEFT => D ..) or (lower NAME LEFT RIGHT ..)";
const OPTIONS: [&str; 5] = [":when", ":let", ":target", ":sample", ":search"];

impl Reader<'_> {
    fn error(&mut self, span: &Span, message: impl Into<String>, help: impl Into<String>) {
        self.errors.push(SyntaxError::new(span, message).help(help));
    }

    fn rule(&mut self, form: &Sexpr) -> Option<Rule> {
        let before = self.errors.len();
        let Some([Sexpr::Atom(head, head_span), parts @ ..]) = form.list() else {
            self.error(form.span(), "expected a rule", SHAPES);
            return None;
        };
        let kind = match head.as_str() {
            "rewrite" => Kind::Rewrite,
            "define" => Kind::Define,
            "vjp" => Kind::Vjp,
            "lower" => Kind::Lower,
            other => {
                self.error(head_span, format!("unknown form `{other}`"), SHAPES);
                return None;
            }
        };
        let (name, left, rest) = match (kind, parts) {
            (Kind::Vjp, [left, rest @ ..]) => (None, left, rest),
            (Kind::Rewrite | Kind::Define | Kind::Lower, [Sexpr::Atom(n, s), left, rest @ ..]) => {
                (Some((n, s)), left, rest)
            }
            _ => {
                self.error(form.span(), format!("this `{head}` is incomplete"), SHAPES);
                return None;
            }
        };
        let mut scope = Scope::new(kind);
        let left_term = scope.term(left, Side::Left, &mut self.errors);
        if let Some(term) = &left_term {
            self.check_left(kind, term, left.span());
        }
        scope.end_of_left();
        let name = match name {
            Some((name, span)) => self.claim(name, span),
            None => self.row_name(left_term.as_ref(), form.span()),
        };
        let mut tail = self.tail(kind, rest, form.span());
        let mut rule = Rule {
            kind,
            name: name.as_str().into(),
            doc: doc(self.text, form.span().start),
            left: left_term.unwrap_or(Term::Lit(Lit::Ints(Box::default()))),
            right: Vec::new(),
            lets: Vec::new(),
            guards: Vec::new(),
            search: false,
            target: None,
            samples: Vec::new(),
            variadic: scope.variadic,
            file: self.file.clone(),
            span: form.span().clone(),
        };
        // Guards and samples see the left side only, not what `:let` names.
        tail.options.sort_by_key(|(option, ..)| *option == ":let");
        for (option, span, args) in &tail.options {
            self.option(option, span, args, &mut scope, &mut rule);
        }
        for right in &tail.rights {
            let none = kind == Kind::Vjp && right.atom() == Some("_");
            let term = if none { None } else { scope.term(right, Side::Right, &mut self.errors) };
            rule.right.push(term);
        }
        rule.lets = std::mem::take(&mut scope.lets);
        if tail.complete {
            self.check_rights(&rule, form.span());
        }
        (self.errors.len() == before).then_some(rule)
    }

    /// A rule's name: kebab-case, and its own.
    fn claim(&mut self, name: &str, span: &Span) -> String {
        let plain = |w: &str| !w.is_empty() && w.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if !name.split('-').all(plain) {
            self.error(
                span,
                format!("`{name}` is not a rule name"),
                "lower-case words joined by `-`, as in `scale-left`",
            );
        }
        match self.names.get(name).cloned() {
            Some(place) => {
                self.error(span, format!("a second rule is named `{name}`"), format!("the first is at {place}"))
            }
            None => drop(self.names.insert(name.into(), self.place(span))),
        }
        name.into()
    }

    /// `d-OPERATOR`; an operator's further rows, under other guards, are numbered.
    fn row_name(&mut self, left: Option<&Term>, span: &Span) -> String {
        let op = if let Some(Term::Op(op, _)) = left { op.name() } else { "" };
        let stem = format!("d-{}", op.replace('_', "-"));
        let numbered = (2..).map(|k| format!("{stem}-{k}"));
        let name = std::iter::once(stem.clone()).chain(numbered).find(|n| !self.names.contains_key(n));
        let name = name.unwrap_or(stem);
        self.names.insert(name.clone(), self.place(span));
        name
    }

    fn place(&self, span: &Span) -> String {
        format!("{}:{}", self.file, self.text[..span.start].matches('\n').count() + 1)
    }

    fn check_left(&mut self, kind: Kind, left: &Term, span: &Span) {
        let Term::Op(_, args) = left else {
            let message = "the left side must be an operator";
            return self.error(span, message, "a bare variable or literal would match everywhere");
        };
        if matches!(kind, Kind::Vjp | Kind::Lower) {
            let vars: BTreeSet<&Var> =
                args.iter().filter_map(|a| if let Term::Var(v) = a { Some(v) } else { None }).collect();
            if vars.len() != args.len() {
                let message = "the left side must be one operator over distinct variables";
                self.error(span, message, "write a condition on an attribute as `:when (eq ?attribute value)`");
            }
        }
    }

    fn tail<'a>(&mut self, kind: Kind, rest: &'a [Sexpr], span: &Span) -> Tail<'a> {
        let mut tail = Tail { rights: Vec::new(), options: Vec::new(), complete: true };
        let mut in_options = kind == Kind::Vjp;
        let mut arrow = kind != Kind::Vjp;
        for item in rest {
            match item.atom() {
                Some("=>") if !arrow => (arrow, in_options) = (true, false),
                Some(word) if word.starts_with(':') => {
                    tail.options.push((word, item.span(), Vec::new()));
                    in_options = true;
                }
                _ => match tail.options.last_mut().filter(|_| in_options) {
                    Some((_, _, args)) => args.push(item),
                    None if arrow => tail.rights.push(item),
                    // What stands before a missing `=>` is told once, below.
                    None => {}
                },
            }
        }
        if !arrow {
            let end = rest.last().map_or(span, Sexpr::span);
            self.error(end, "this row has no `=>`", "behind `=>` stands one cotangent an operand");
        }
        tail.complete = arrow;
        tail
    }

    fn option(&mut self, option: &str, span: &Span, args: &[&Sexpr], scope: &mut Scope, rule: &mut Rule) {
        match (option, args) {
            (":search", []) => rule.search = true,
            (":when", [_, ..]) => rule.guards.extend(args.iter().filter_map(|a| self.guard(a, scope))),
            (":target", [Sexpr::Atom(word, at)]) => match word.as_str() {
                "portable" => rule.target = Some(Target::Portable),
                "cpu" => rule.target = Some(Target::Cpu),
                "cuda" => rule.target = Some(Target::Cuda),
                other => self.error(at, format!("unknown target `{other}`"), "`portable`, `cpu` or `cuda`"),
            },
            (":sample", [Sexpr::List(items, _)]) => {
                rule.samples.extend(items.iter().filter_map(|i| self.sample(i, scope)));
            }
            (":let", [Sexpr::List(items, _)]) => {
                for item in items {
                    match item.list() {
                        Some([Sexpr::Atom(var, at), body]) => scope.bind(var, at, body, &mut self.errors),
                        _ => self.error(item.span(), "expected (?v TERM)", ":let ((?v TERM) ..)"),
                    }
                }
            }
            (known, _) if OPTIONS.contains(&known) => {
                let help = "`:when (GUARD ..) ..`, `:let ((?v TERM) ..)`, `:target NAME`, `:sample ((?x f32 [b s]) ..)`, `:search`";
                self.error(span, format!("`{known}` has the wrong arguments"), help);
            }
            (other, _) => {
                let help =
                    suggest(other, OPTIONS.iter().copied()).unwrap_or_else(|| format!("one of {}", OPTIONS.join(" ")));
                self.error(span, format!("unknown option `{other}`"), help);
            }
        }
    }

    fn guard(&mut self, e: &Sexpr, scope: &mut Scope) -> Option<Guard> {
        let Some([Sexpr::Atom(name, at), args @ ..]) = e.list() else {
            self.error(e.span(), "expected a guard", "`:when (GUARD ..) ..`");
            return None;
        };
        let args: Option<Vec<Term>> =
            args.iter().map(|a| scope.term(a, Side::Guard, &mut self.errors)).collect::<Vec<_>>().into_iter().collect();
        term::check_guard(name, at, e, &mut self.errors)?;
        Some(Guard { name: name.as_str().into(), args: args? })
    }

    fn sample(&mut self, e: &Sexpr, scope: &Scope) -> Option<(Var, Sample)> {
        let bad = "expected (?x DTYPE [SHAPE]) or (?attribute LITERAL)";
        let (var, at, sample) = match e.list() {
            Some([Sexpr::Atom(v, at), Sexpr::Atom(dtype, _), shape @ Sexpr::Bracket(..)]) => {
                let sample = match (DType::parse(dtype), text::literal(shape)) {
                    (Some(t), Some(Lit::Ints(dims))) => Some(Sample::Tensor(t, dims.to_vec())),
                    _ => None,
                };
                (v, at, sample)
            }
            Some([Sexpr::Atom(v, at), lit]) => (v, at, text::literal(lit).map(Sample::Lit)),
            _ => {
                self.error(e.span(), bad, "as in `:sample ((?x f32 [b s 4]) (?axis -1))`");
                return None;
            }
        };
        let var = scope.lookup(var, at, &mut self.errors)?;
        if sample.is_none() {
            self.error(e.span(), bad, "as in `:sample ((?x f32 [b s 4]) (?axis -1))`");
        }
        Some((var, sample?))
    }

    /// The number of right sides, and that a rewrite's is no larger than the left.
    fn check_rights(&mut self, rule: &Rule, span: &Span) {
        let Term::Op(op, args) = &rule.left else { return };
        let want = match rule.kind {
            Kind::Vjp if rule.variadic => 1,
            Kind::Vjp => op.operands(args.len()),
            _ => 1,
        };
        if rule.right.len() != want {
            let help = match rule.kind {
                Kind::Vjp => "one cotangent an operand, `_` where there is none; attributes have none",
                _ => SHAPES,
            };
            self.error(span, format!("expected {want} right sides, got {}", rule.right.len()), help);
        }
        if rule.kind == Kind::Vjp && rule.variadic != matches!(op.row().arity, Arity::AtLeast(_)) {
            let help = "an operator with any number of operands writes one operand `?x...`; others write each";
            self.error(span, format!("`{}` has another number of operands", op.name()), help);
        }
        let (left, right) =
            (weight([&rule.left]), weight(rule.lets.iter().map(|l| &l.1).chain(rule.right.iter().flatten())));
        // Sinking saves work on rows, not nodes.
        let sinks = self.file.rsplit('/').next().is_some_and(|name| name.starts_with("sink"));
        if rule.kind == Kind::Rewrite && !rule.search && !sinks && right > left {
            let message = format!("the right side has {right} operators, the left {left}");
            self.error(span, message, "turn the rule around, or mark it `:search`");
        }
    }
}

/// How many different operators that cost something the terms hold.
fn weight<'t>(terms: impl IntoIterator<Item = &'t Term>) -> usize {
    fn visit(term: &Term, seen: &mut BTreeSet<String>) {
        if let Term::Op(op, args) = term {
            if op.row().cost != Cost::Free {
                seen.insert(format!("{term:?}"));
            }
            args.iter().for_each(|a| visit(a, seen));
        }
    }
    let mut seen = BTreeSet::new();
    terms.into_iter().for_each(|t| visit(t, &mut seen));
    seen.len()
}

/// The block of comments right above byte `start`, without semicolons; section rules (`;; ----`) end it.
fn doc(text: &str, start: usize) -> String {
    let above = text[..start].rfind('\n').map_or("", |k| &text[..k]);
    let comment = |l: &&str| l.starts_with(';') && !l.trim_start_matches([';', ' ']).starts_with("---");
    let mut lines: Vec<&str> = above.lines().rev().map(str::trim).take_while(comment).collect();
    lines.reverse();
    let bare: Vec<&str> = lines.iter().map(|l| l.trim_start_matches(';').trim()).collect();
    bare.join("\n")
}

/// Whether `op` is a name for the reader; used by the suggestions.
pub(super) fn operator_names() -> impl Iterator<Item = &'static str> {
    crate::ir::op::ROWS.iter().map(|r| Op::name(r.op))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_rules_are_well_formed() {
        let library = crate::rules::library::library().unwrap_or_else(|e| panic!("{e}"));
        assert!(library.lift.iter().any(|r| &*r.name == "lift-rms-norm"));
        assert!(library.methods["weft"].iter().all(|r| r.kind == Kind::Define && !r.lets.is_empty()));
    }

    #[test]
    fn a_rule_has_its_parts() {
        let text = "
;; ---- a section
;; d (a b)
;; both ways
(vjp (concat ?x... ?axis) :let ((?n (dim ?dy ?axis))) => (slice ?dy ?axis ?start ?end 1) :when (gt ?n 0))";
        assert!(parse("r.egg", text).is_err_and(|e| e.to_string().contains("`?n` is not bound")));
        let text = text.replace("(gt ?n 0)", "(gt (rank ?dy) 0) :target cpu :sample ((?axis -1))");
        let rules = parse("r.egg", &text).unwrap_or_else(|e| panic!("{e}"));
        let [rule] = rules.as_slice() else { panic!("one rule") };
        assert_eq!((&*rule.name, rule.doc.as_str()), ("d-concat", "d (a b)\nboth ways"));
        assert_eq!((rule.variadic, rule.target, rule.search), (true, Some(Target::Cpu), false));
        assert_eq!((rule.lets.len(), rule.guards.len(), rule.samples.len(), rule.right.len()), (1, 1, 1, 1));
    }
}
