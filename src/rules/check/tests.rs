//! The checker must refuse what is wrong: a proof that accepts anything proves nothing.

use super::*;
use crate::rules::parse::parse;

fn verdict(text: &str) -> Result<Proof, Failure> {
    check(&parse("test.egg", text).unwrap()[0], 1)
}

/// The message for a rule that must fail.
fn refusal(text: &str) -> String {
    match verdict(text) {
        Ok(proof) => panic!("{text} was accepted: {proof:?}"),
        Err(why) => why.to_string(),
    }
}

#[test]
fn true_rules_are_exercised() {
    let proof = verdict("(rewrite r (sub ?x (neg ?y)) (add ?x ?y))").unwrap();
    assert_eq!(proof.instances, INSTANCES);
    assert!(proof.points > INSTANCES && proof.worst == 0.0);
    let proof = verdict("(vjp (tanh ?x) => (mul ?dy (sub 1.0 (mul ?y ?y))))").unwrap();
    assert!(proof.confirmed > 0, "candle differentiates tanh");
}

#[test]
fn false_equalities_fail_with_a_counterexample() {
    let message = refusal("(rewrite r (sub ?x (neg ?y)) (sub ?x ?y))");
    assert!(message.starts_with("at [") && message.contains("(output right "), "{message}");
    // True only where a size is 1, for one order of axes, or for one sign.
    refusal("(rewrite r (mean ?x ?a) (sum ?x ?a))");
    refusal("(rewrite r (transpose (transpose ?x ?p) ?q) (transpose ?x (compose ?q ?p)))");
    refusal("(rewrite r (sqrt (mul ?x ?x)) ?x)");
    refusal("(rewrite r (abs ?x) (max ?x -1.0))");
}

/// Integers are divided without a rest.
#[test]
fn rules_of_real_numbers_fail_on_integers() {
    refusal("(rewrite r (mul (div ?x 3) 3) ?x)");
    verdict("(rewrite r (mul (div ?x 4) 4) ?x :when (is_float ?x))").unwrap();
}

#[test]
fn false_constants_are_seen() {
    refusal("(lower r (gelu ?x) (mul (mul ?x 0.5) (add 1.0 (erf (mul ?x 0.70710678)))))");
    refusal("(lower r (rms_norm ?x ?w ?eps) (mul (mul ?x (rsqrt (mean (mul ?x ?x) [-1]))) ?w))");
}

#[test]
fn false_gradients_fail() {
    refusal("(vjp (tanh ?x) => (mul ?dy (sub 1.0 ?y)))");
    refusal(
        "(vjp (matmul ?a ?b) => (matmul ?dy (transpose ?b (swap_last ?b))) (matmul (transpose ?a (swap_last ?a)) (neg ?dy)))",
    );
    // Right only where the axis is the last.
    refusal("(vjp (softmax ?x ?axis) => (softmax_grad ?y ?dy -1))");
    // The range of each operand is part of the row.
    refusal("(vjp (concat ?x... ?axis) => (slice ?dy ?axis 0 (isub ?end ?start) 1))");
}

/// True in f64, where 1e4 costs four of sixteen digits; in f32 it costs four of seven.
#[test]
fn what_loses_digits_in_f32_fails() {
    refusal("(rewrite r (add ?x 1.0) (sub (add ?x 10001.0) 10000.0) :search)");
    refusal("(vjp (tanh ?x) => (mul ?dy (sub (sub 10001.0 (mul ?y ?y)) 10000.0)))");
}

#[test]
fn what_cannot_be_exercised_fails() {
    let message = refusal("(rewrite r (neg (neg ?x)) ?x :when (rank ?x 9))");
    assert!(message.contains("only 0 of") && message.contains("a guard does not hold"), "{message}");
}

#[test]
fn a_composite_without_meaning_fails() {
    let message = refusal("(lower r (silu ?x) (transpose ?x [1 0 2 3 4 5]))");
    assert!(message.contains("is outside rank"), "{message}");
}

#[test]
fn samples_decide_shapes() {
    let text = "(rewrite r (neg (neg ?x)) ?x :when (rank ?x 5) :sample ((?x f32 [2 n 1 n 3])))";
    assert_eq!(verdict(text).unwrap().instances, INSTANCES);
}

#[test]
fn a_seed_draws_the_same_instances() {
    let rules =
        parse("test.egg", "(rewrite r (mul (mul ?x ?a) ?b) (mul ?x (fmul ?a ?b)) :when (lit ?a) (lit ?b))").unwrap();
    assert_eq!(check(&rules[0], 5).unwrap(), check(&rules[0], 5).unwrap());
    assert_ne!(check(&rules[0], 5).unwrap(), check(&rules[0], 6).unwrap());
}

/// True for most shapes and orders of axes: there are enough instances that some show it is not for all.
#[test]
fn what_few_instances_show_is_seen_with_any_seed() {
    let text = "(rewrite r (transpose (transpose ?x ?p) ?q) (transpose ?x (compose ?q ?p)))";
    let rule = &parse("test.egg", text).unwrap()[0];
    (0..50).for_each(|seed| assert!(check(rule, seed).is_err(), "seed {seed}"));
}
