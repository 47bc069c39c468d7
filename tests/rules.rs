//! The machine proof of every rule in `rules/`, and that no operator lacks what it needs.

use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use weftc::interp;
use weftc::ir::op::{Emit, ROWS};
use weftc::ir::{Op, text};
use weftc::rules::check::check;
use weftc::rules::library::library;
use weftc::rules::template::{bind_lets, instantiate, matches};
use weftc::rules::{Rule, Term};

/// Any number; the same instances every time.
const SEED: u64 = 1;

/// Equalities within 1e-10 in f64; gradient rows within 1e-6 of finite differences and 1e-9 of candle.
#[test]
fn every_rule_holds() {
    let library = library().unwrap();
    let families = [
        library.lift,
        library.simplify,
        library.layout,
        library.sink,
        library.fuse,
        library.grad,
        library.lower,
        library.factor,
    ];
    let named = library.methods.into_values().chain(library.adapters.into_values());
    let rules = families.into_iter().flatten().chain(named.flatten());
    println!("{:<32} {:>9} {:>7} {:>8} {:>9} {:>9}", "rule", "instances", "drawn", "points", "worst", "by candle");
    let mut coverage = format!("{:<32} {:<10} {:>5} {:>5} {:>9}\n", "rule", "ranks", "ones", "empty", "broadcast");
    let mut failures = Vec::new();
    for rule in rules {
        match check(&rule, SEED) {
            Ok(p) => {
                println!(
                    "{:<32} {:>9} {:>7} {:>8} {:>9.1e} {:>9}",
                    rule.name, p.instances, p.drawn, p.points, p.worst, p.confirmed
                );
                coverage += &format!("{:<32} {}\n", rule.name, p.coverage);
            }
            Err(why) => failures.push(format!("{}: {} ({}):\n{why}", rule.file, rule.name, rule.doc)),
        }
    }
    assert!(failures.is_empty(), "{} rules fail\n\n{}", failures.len(), failures.join("\n\n"));
    insta::assert_snapshot!(coverage);
}

fn heads(rules: &[Rule]) -> Vec<Op> {
    let head = |r: &Rule| if let Term::Op(op, _) = &r.left { Some(*op) } else { None };
    rules.iter().filter_map(head).collect()
}

/// Operators without a gradient row, and why.
const NO_ROW: &[(&str, &[Op])] = &[
    (
        "made from contractions that have rows, after differentiation",
        &[
            Op::Gemm,
            Op::FusedMatMul,
            Op::Product,
            Op::ProductAdd,
            Op::ProductPair,
            Op::ProductPairAdd,
            Op::GatherMatMul,
            Op::GatherMatMulGrad,
            Op::MatMulNBits,
        ],
    ),
    ("made from composites, after differentiation", &[Op::OrtLayerNorm, Op::OrtAttention, Op::Decode]),
    ("holds no operand", &[Op::Full, Op::Iota]),
    (
        "a backward form: second derivatives are not taken",
        &[
            Op::GatherGrad,
            Op::LogitGrad,
            Op::RmsNormGrad,
            Op::RmsNormGradW,
            Op::RmsNormGradSum,
            Op::LayerNormGrad,
            Op::RopeGrad,
            Op::SiluGrad,
            Op::SwigluGrad,
            Op::SwigluGradU,
            Op::GeluGrad,
            Op::GeluTanhGrad,
            Op::AttentionProbs,
            Op::AttentionProbsBias,
            Op::AttentionGrad,
            Op::AttentionBiasGrad,
            Op::TokenAttentionGrad,
            Op::TokenAttentionBiasGrad,
            Op::RowAttentionGrad,
            Op::RowAttentionBiasGrad,
            Op::SoftmaxGrad,
            Op::ScoreGrad,
            Op::HeadExpect,
            Op::HeadGradZ,
            Op::HeadGradW,
            Op::HeadGradB,
            Op::WeightedCrossEntropyGrad,
            Op::ShiftLogitsGrad,
        ],
    ),
    ("unfolds before differentiation", &[Op::Objective, Op::Adapted]),
    (
        "made of a head, after differentiation",
        &[
            Op::HeadRows,
            Op::HeadLogits,
            Op::HeadSums,
            Op::LogitSums,
            Op::LogitExp,
            Op::BlockExpect,
            Op::MergeSums,
            Op::MergeExpect,
        ],
    ),
    ("not part of a loss", &[Op::AdamW, Op::Sgd, Op::After, Op::Tuple]),
];

#[test]
fn every_operator_has_a_gradient_row_or_a_reason() {
    let rows = heads(&library().unwrap().grad);
    let mut wrong = Vec::new();
    for row in ROWS {
        let excused = NO_ROW.iter().find(|(_, ops)| ops.contains(&row.op));
        match (rows.contains(&row.op), excused) {
            (false, None) => wrong.push(format!("{}: no row in rules/grad.egg", row.name)),
            (true, Some((why, _))) => wrong.push(format!("{}: has a row, but is listed here as: {why}", row.name)),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A fused node needs a function body, an operator that ONNX lacks an expansion; a method unfolds `objective`.
#[test]
fn every_composite_has_a_meaning() {
    let rules = heads(&library().unwrap().lower);
    let lacks =
        |emit: Emit, op: Op| matches!(emit, Emit::Weft(_) | Emit::Kernel(_) | Emit::Expand) && !rules.contains(&op);
    let missing: Vec<&str> = ROWS.iter().filter(|r| lacks(r.emit, r.op)).map(|r| r.name).collect();
    assert_eq!(missing, ["objective", "adapted"]);
}

/// METHOD.md, steps 1 to 6, in plain loops over one tiny model: logits of token i are
/// `table[x_i] + mean_j table[x_j]`.
#[test]
fn weft_is_the_method() {
    const MASK: usize = 4;
    let graph_text = "(graph g (input ids i64 [3 4]) (param table f32 [5 5]) (input answer bool [3 4]) (input t f32 [3]) (input u f32 [3 4])
      (let h (gather table ids 0)) (let logits (add h (mean h [1])))
      (output o (objective logits ids answer t u u 4 0)))";
    let mut graph = text::parse(graph_text).unwrap();
    let library = library().unwrap();
    let rule = &library.methods["weft"][0];
    let objective = graph.outputs[0].1;
    let mut subst = matches(&graph, objective, &rule.left).unwrap();
    bind_lets(&rule.lets, &mut subst, &mut graph).unwrap();
    let unfolded = instantiate(rule.right[0].as_ref().unwrap(), &subst, &mut graph).unwrap();
    graph.outputs = vec![("o".into(), unfolded)];

    let table: Vec<f64> = (0..25).map(|k| ((k * k * 7 + k) % 23) as f64 / 6.0 - 2.0).collect();
    let ids = [[0, 1, 2, 3], [3, 3, 1, 0], [2, 0, 1, 1]];
    // One sequence has no answer: it adds nothing to numerator or denominator.
    let answer = [[false, true, true, true], [false, false, true, true], [false; 4]];
    let t = [0.6f64, 0.8, 0.5];
    let u = [[0.0, 0.3, 0.9, 0.5], [0.0, 0.0, 0.4, 0.7], [0.0, 0.0, 0.0, 0.0]];

    let row = |x: usize| &table[5 * x..5 * x + 5];
    let logits = |x: &[usize; 4], i: usize| -> Vec<f64> {
        (0..5).map(|v| row(x[i])[v] + x.iter().map(|j| row(*j)[v]).sum::<f64>() / 4.0).collect()
    };
    let lse = |z: &[f64]| z.iter().map(|v| v.exp()).sum::<f64>().ln();
    let mut sum = 0.0;
    let (mut entropies, mut rates, mut masks, mut losses) = (vec![], vec![], vec![], vec![]);
    for b in 0..3 {
        let replace = |which: &dyn Fn(usize) -> bool| std::array::from_fn(|i| if which(i) { MASK } else { ids[b][i] });
        let probe: [usize; 4] = replace(&|i| answer[b][i]);
        let entropy = |i: usize| {
            let z = logits(&probe, i);
            lse(&z) - z.iter().map(|v| (v - lse(&z)).exp() * v).sum::<f64>()
        };
        let members: Vec<usize> = (0..4).filter(|i| answer[b][*i]).collect();
        let reference = members.iter().map(|i| entropy(*i).sqrt()).sum::<f64>() / members.len() as f64;
        let time = (1.0 - 1e-3) * t[b] + 1e-3;
        let rate = |i: usize| (1.0 - (1.0 - time).powf(entropy(i).sqrt() / reference)).max(1e-3);
        let masked = |i: usize| answer[b][i] && u[b][i] < rate(i);
        let noisy: [usize; 4] = replace(&masked);
        for i in 0..4 {
            let z = logits(&noisy, i);
            let loss = if masked(i) { lse(&z) - z[ids[b][i]] } else { 0.0 };
            if masked(i) {
                sum += loss / rate(i) / members.len() as f64;
            }
            entropies.push(if answer[b][i] { entropy(i) } else { 0.0 });
            rates.push(if answer[b][i] { rate(i) } else { 0.0 });
            masks.push(f64::from(masked(i)));
            losses.push(loss);
        }
    }
    assert!(masks.contains(&1.0) && answer.iter().flatten().zip(&masks).any(|(a, m)| *a && *m == 0.0));

    let tensor = |values: Vec<f64>, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    let feeds = BTreeMap::from([
        ("table".to_string(), tensor(table.clone(), &[5, 5])),
        ("ids".to_string(), tensor(ids.as_flattened().iter().map(|x| *x as f64).collect(), &[3, 4])),
        ("answer".to_string(), tensor(answer.as_flattened().iter().map(|x| f64::from(*x)).collect(), &[3, 4])),
        ("t".to_string(), tensor(t.to_vec(), &[3])),
        ("u".to_string(), tensor(u.as_flattened().to_vec(), &[3, 4])),
    ]);
    let outputs = interp::run(&graph, &feeds).unwrap();
    let expected = [vec![sum / 2.0], vec![sum], vec![2.0], entropies, rates, masks, losses];
    for (k, want) in expected.iter().enumerate() {
        let got: Vec<f64> = outputs[&format!("o.{k}")].flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-12, "output {k}: {got:?} is not {want:?}");
        }
    }
}
