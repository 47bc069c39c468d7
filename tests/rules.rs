//! The machine proof of every rule in `rules/`, and that no operator lacks what it needs.

use std::collections::BTreeSet;
use weftc::ir::op::{Arity, Emit, ROWS};
use weftc::rules::check::check;
use weftc::rules::parse::library;
use weftc::rules::{Rule, Term};

/// Any number; the same instances every time.
const SEED: u64 = 20260726;

fn all_rules() -> Vec<Rule> {
    let library = library().unwrap();
    let families = [library.lift, library.simplify, library.fuse, library.grad, library.lower];
    families.into_iter().flatten().chain(library.methods.into_values().flatten()).collect()
}

/// Equalities within 1e-10 in f64; gradient rows within 1e-6 of finite differences and 1e-9 of candle.
#[test]
fn every_rule_holds() {
    println!("{:<32} {:>9} {:>7} {:>8} {:>9} {:>9}", "rule", "instances", "drawn", "points", "worst", "by candle");
    let mut failures = Vec::new();
    for rule in all_rules() {
        match check(&rule, SEED) {
            Ok(p) => println!(
                "{:<32} {:>9} {:>7} {:>8} {:>9.1e} {:>9}",
                rule.name, p.instances, p.drawn, p.points, p.worst, p.confirmed
            ),
            Err(why) => failures.push(format!("{}: {} ({}):\n{why}", rule.file, rule.name, rule.doc)),
        }
    }
    assert!(failures.is_empty(), "{} rules fail\n\n{}", failures.len(), failures.join("\n\n"));
}
