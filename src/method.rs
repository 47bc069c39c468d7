//! A training method with its hyper-parameters: what its file says, and what the user says instead.
//!
//! A method file names its own hyper-parameters, `(option NAME DEFAULT)`, and what may be cached between steps,
//! `(cached ?cache VALUE)`.  Both are settled in its text before it unfolds.

use crate::error::Problem;
use crate::ir::{Dim, F64, Lit, Op};
use crate::manifest::{PROBE, Probe, Setting};
use crate::rules::{Rule, Term};
use std::collections::BTreeMap;

/// The values that an option with a name of ours may take.
enum Range {
    Words(&'static [&'static str]),
    Numbers(&'static str, fn(f64) -> bool),
}

const RANGES: [(&str, Range); 10] = [
    ("entropy_transform", Range::Words(&["sqrt", "linear", "log1p", "pow"])),
    ("entropy_power", Range::Numbers("a number from 0", |x| x >= 0.0)),
    ("beta_scope", Range::Words(&["sequence", "batch"])),
    ("loss_norm", Range::Words(&["sequence", "token", "masked"])),
    ("t_eps", Range::Numbers("in [0, 1)", |x| (0.0..1.0).contains(&x))),
    ("t_floor", Range::Numbers("in [0, 1)", |x| (0.0..1.0).contains(&x))),
    ("weight_power", Range::Numbers("a finite number", f64::is_finite)),
    ("cart_p", Range::Numbers("in (0, 1]", |x| x > 0.0 && x <= 1.0)),
    ("papl_alpha", Range::Numbers("a number from 0", |x| x >= 0.0)),
    ("papl_tau", Range::Numbers("a number above 0", |x| x > 0.0)),
];

/// The hyper-parameters of a definition and their defaults.
pub fn options(definition: &[Rule]) -> BTreeMap<String, Lit> {
    let mut found = BTreeMap::new();
    for rule in definition {
        for term in terms(rule) {
            visit(term, &mut |t| {
                if let Term::Call(name, args) = t
                    && let ("option", [Term::Lit(Lit::Word(option)), Term::Lit(default)]) = (&**name, args.as_slice())
                {
                    found.entry(option.to_string()).or_insert_with(|| default.clone());
                }
            });
        }
    }
    found
}

/// Whether a definition says what can be cached between steps.
pub fn has_probe(definition: &[Rule]) -> bool {
    let mut found = false;
    for term in definition.iter().flat_map(terms) {
        visit(term, &mut |t| found |= matches!(t, Term::Call(name, _) if &**name == "cached"));
    }
    found
}

fn terms(rule: &Rule) -> impl Iterator<Item = &Term> {
    rule.lets.iter().map(|(_, t)| t).chain(rule.right.iter().flatten())
}

fn visit(term: &Term, each: &mut dyn FnMut(&Term)) {
    each(term);
    if let Term::Op(_, args) | Term::Call(_, args) = term {
        args.iter().for_each(|a| visit(a, each));
    }
}

/// The options of a definition with the user's values, `set`: name and text.
///
/// Every value that does not fit is among the problems; names that the method does not have come back as the
/// second part.
pub fn resolve(
    definition: &[Rule],
    set: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> (BTreeMap<String, Setting>, Vec<String>) {
    let defaults = options(definition);
    let mut values: BTreeMap<String, Setting> =
        defaults.iter().map(|(name, default)| (name.clone(), setting(default))).collect();
    let mut unknown = Vec::new();
    for (name, text) in set {
        let flag = format!("--{}", name.replace('_', "-"));
        // `pow:P` sets the transform and its power.
        let (text, power) = match text.split_once(':') {
            Some(("pow", p)) if name == "entropy_transform" => ("pow", Some(p)),
            _ => (text.as_str(), None),
        };
        let range = RANGES.iter().find(|(n, _)| n == name).map(|(_, range)| range);
        let word = match (defaults.get(name), range) {
            (Some(Lit::Word(_)), _) | (None, Some(Range::Words(_))) => true,
            (Some(_), _) | (None, Some(Range::Numbers(..))) => false,
            (None, None) => {
                unknown.push(name.clone());
                continue;
            }
        };
        let value = match (word, text.parse::<f64>(), range) {
            (true, _, Some(Range::Words(known))) if !known.contains(&text) => {
                Err(format!("`{text}` is not one of {}", known.join(", ")))
            }
            (true, ..) => Ok(Setting::Word(text.into())),
            (false, Ok(x), Some(Range::Numbers(what, fits))) if !x.is_finite() || !fits(x) => {
                Err(format!("{text} is not {what}"))
            }
            (false, Ok(x), _) if x.is_finite() => Ok(Setting::Number(x)),
            (false, ..) => Err(format!("`{text}` is not a number")),
        };
        let bare_power = name == "entropy_transform" && text == "pow" && power.is_none();
        match value {
            _ if bare_power => problems.push(Problem::new(&flag, "`pow` needs its power").help("pow:P with P >= 0")),
            Err(why) => problems.push(Problem::new(&flag, why)),
            Ok(_) if !defaults.contains_key(name) => unknown.push(name.clone()),
            Ok(value) => drop(values.insert(name.clone(), value)),
        }
        match power.map(|p| (p, p.parse::<f64>())) {
            Some((_, Ok(p))) if p.is_finite() && p >= 0.0 => {
                values.insert("entropy_power".into(), Setting::Number(p));
            }
            Some((p, _)) => {
                problems.push(Problem::new(&flag, format!("`{p}` is not a power")).help("pow:P with P >= 0"))
            }
            None => {}
        }
    }
    (values, unknown)
}

fn setting(lit: &Lit) -> Setting {
    match lit {
        Lit::Word(w) => Setting::Word(w.to_string()),
        other => Setting::Number(other.number().unwrap_or_default()),
    }
}

/// The definition with its options' values in place, and the probe as `probe` says: computed in the step, or
/// read from `?cache` and computed by the output `PROBE`.
pub fn settle(definition: &[Rule], values: &BTreeMap<String, Setting>, probe: Probe) -> Vec<Rule> {
    let mut rules = definition.to_vec();
    for rule in &mut rules {
        let mut cached = None;
        for (_, term) in &mut rule.lets {
            *term = settled(term, values, probe, &mut cached);
        }
        for term in rule.right.iter_mut().flatten() {
            *term = settled(term, values, probe, &mut cached);
            if let (Term::Op(Op::Tuple, outputs), Some(value)) = (&mut *term, cached.take()) {
                outputs.push(Term::Op(Op::Output, vec![value, Term::Lit(Lit::Word(PROBE.into()))]));
            }
        }
    }
    rules
}

fn settled(term: &Term, values: &BTreeMap<String, Setting>, probe: Probe, cached: &mut Option<Term>) -> Term {
    let mut all = |args: &[Term]| args.iter().map(|a| settled(a, values, probe, cached)).collect::<Vec<_>>();
    match term {
        Term::Op(op, args) => Term::Op(*op, all(args)),
        Term::Call(name, args) => match (&**name, all(args).as_slice()) {
            ("option", [Term::Lit(Lit::Word(option)), Term::Lit(default)]) => {
                Term::Lit(values.get(&**option).map_or_else(|| default.clone(), |v| literal(v, default)))
            }
            ("cached", [_, value]) if probe == Probe::EveryStep => value.clone(),
            ("cached", [cache, value]) => {
                *cached = Some(value.clone());
                cache.clone()
            }
            (_, args) => Term::Call(name.clone(), args.to_vec()),
        },
        other => other.clone(),
    }
}

/// A value as the literal of its default's kind.
fn literal(value: &Setting, default: &Lit) -> Lit {
    match (value, default) {
        (Setting::Word(w), _) => Lit::Word(w.as_str().into()),
        (Setting::Number(x), Lit::Int(_)) => Lit::Int(Dim::Known(*x as i64)),
        (Setting::Number(x), _) => Lit::Float(F64(*x)),
    }
}
