//! Every native kernel computes what its function's body says, on ONNX Runtime.

use proptest::prelude::*;
use prost::Message;
use weftc::ir::{Builder, DType};
use weftc::kernels;
use weftc::onnx::proto::ModelProto;
use weftc::onnx::write::plain;
use weftc::rng::SplitMix64;
use weftc::rules::library::library;
use weftc::runtime;
use weftc::runtime::device::{Choice, Device};
use weftc::runtime::{HostTensor, Options, Session, cuda};

/// Relative to the largest value of a row, or to 1.
const TOLERANCE: f64 = 2e-6;

/// A session of the graph with kernels, or with bodies.
fn session(text: &str, native: bool, threads: usize) -> Session {
    let graph = weftc::ir::text::parse(text).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
    let bytes = plain(&graph, &library().unwrap().lower).unwrap();
    let model = ModelProto::decode(bytes.as_slice()).unwrap();
    let mut options = Options { threads, ..Options::default() };
    weftc::runtime::environment(&mut |line| eprintln!("{line}")).unwrap();
    if native {
        let names: Vec<&str> = model.functions.iter().map(|f| f.name.as_str()).collect();
        assert!(!names.is_empty());
        let kernels = kernels::step(names.iter().copied(), threads).unwrap();
        options.operators.push(kernels.unwrap_or_else(|| panic!("there is no kernel for {names:?}")));
    }
    Session::from_bytes(&bytes, &options).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// What is drawn for an operand.
#[derive(Clone, Copy)]
enum Draw {
    /// From -3 to 3.
    Values,
    /// From -1 to 1.
    Small,
    /// Whole numbers below a limit.
    Below(i64),
    /// Whole numbers below a limit, as f32.
    Numbers(i64),
    /// Mostly 1, else 0.
    Flags,
    /// A fixed number.
    Is(f64),
    /// Values, a third of them 0.
    Sparse,
    /// Non-negative, so many of which sum to at most 1.
    Below1(i64),
    /// Different whole numbers below a limit, ascending.
    Places(i64),
    /// Non-negative rows that sum to 1.
    Probabilities,
}

struct Operand {
    name: &'static str,
    dtype: DType,
    shape: Vec<i64>,
    draw: Draw,
}

fn f(name: &'static str, shape: &[i64]) -> Operand {
    Operand { name, dtype: DType::F32, shape: shape.to_vec(), draw: Draw::Values }
}

impl Operand {
    fn drawn(self, dtype: DType, draw: Draw) -> Self {
        Operand { dtype, draw, ..self }
    }

    fn value(&self, rng: &mut SplitMix64) -> HostTensor {
        let n = self.shape.iter().product::<i64>() as usize;
        let mut unit = || rng.below(1 << 24) as f64 / (1 << 24) as f64;
        let mut one = |draw: Draw| match draw {
            Draw::Places(_) => 0.0,
            Draw::Values | Draw::Probabilities => 6.0 * unit() - 3.0,
            Draw::Small => 2.0 * unit() - 1.0,
            Draw::Below(k) | Draw::Numbers(k) => (unit() * k as f64).floor(),
            Draw::Below1(k) => unit() / k as f64,
            Draw::Flags => f64::from(u8::from(unit() < 0.7)),
            Draw::Is(x) => x,
            Draw::Sparse => (unit() * 3.0 - 1.0).max(0.0),
        };
        let mut values: Vec<f64> = (0..n).map(|_| one(self.draw)).collect();
        if let Draw::Places(limit) = self.draw {
            let mut all: Vec<i64> = (0..limit).collect();
            while all.len() > n {
                all.remove(rng.below(all.len()));
            }
            values = all.into_iter().map(|place| place as f64).collect();
        }
        if let (Draw::Probabilities, Some(width)) = (self.draw, self.shape.last()) {
            for row in values.chunks_mut(*width as usize) {
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                row.iter_mut().for_each(|x| *x = x.exp() / sum);
            }
        }
        HostTensor::from_f64(self.dtype, &self.shape, &values).unwrap()
    }
}

/// The graph of one node.
fn graph(node: &str, operands: &[Operand]) -> String {
    let inputs = operands.iter().map(|o| {
        let sizes: Vec<String> = o.shape.iter().map(i64::to_string).collect();
        format!("(input {} {} [{}])", o.name, o.dtype.name(), sizes.join(" "))
    });
    format!("(graph g {} (let out ({node})) (output result out))", inputs.collect::<Vec<_>>().join(" "))
}

fn same(text: &str, feeds: &[(&str, HostTensor)], width: usize) -> Result<(), String> {
    let run = |native: bool, threads: usize| {
        let mut session = session(text, native, threads);
        session.run(feeds.iter().map(|(n, v)| (*n, v))).unwrap_or_else(|e| panic!("{e}\n{text}"))["result"].clone()
    };
    let (want, got) = (run(false, 1), run(true, 1));
    if run(true, 2) != got {
        return Err(format!("two threads give other bits\n{text}"));
    }
    if (got.shape(), got.dtype()) != (want.shape(), want.dtype()) {
        return Err(format!("{got:?} is not {want:?}\n{text}"));
    }
    let (got, want) = (got.to_f64(), want.to_f64());
    for (row, (got, want)) in got.chunks(width.max(1)).zip(want.chunks(width.max(1))).enumerate() {
        let scale = want.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
        for (k, (got, want)) in got.iter().zip(want).enumerate() {
            let alike = got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= TOLERANCE * scale;
            if !alike {
                return Err(format!("row {row}, element {k}: kernel {got}, body {want}\n{text}"));
            }
        }
    }
    Ok(())
}

/// Sizes: leading b and l, width n.
type Sizes = (i64, i64, i64);

/// Every kernel, with operands of such sizes.
fn nodes((b, l, n): Sizes) -> Vec<(&'static str, Vec<Operand>)> {
    let x = || f("x", &[b, l, n]);
    // Small, so that products of three are, and what cancels is not large beside the result.
    let small = |name: &'static str, shape: &[i64]| f(name, shape).drawn(DType::F32, Draw::Small);
    let dy = || small("dy", &[b, l, n]);
    let (w, bias) = (|| small("w", &[n]), || small("bias", &[n]));
    let (even, tokens) = (2 * n, [b, l]);
    let table = |name: &'static str| f(name, &[l, even]);
    let turned = |name: &'static str| f(name, &[b, 3, l, even]);
    let ids = || f("ids", &tokens).drawn(DType::I64, Draw::Below(n));
    // Inner sizes of products and keys of attention: sums of few terms, which f32 keeps.
    let (m, e) = (l % 40 + 2, n.min(40));
    let [q, k, v] = [("q", l), ("k", m), ("v", m)].map(|(name, rows)| move || small(name, &[b, 3, rows, e]));
    let head_dy = || small("dy", &[b, 3, l, e]);
    // So many heads that the function goes through them by halves; each its own bias, or all one.
    let many = |name: &'static str, rows: i64| small(name, &[b, 6, rows, e]);
    let halves = || vec![many("q", l), many("k", m), many("v", m)];
    let with = |bias: Operand| -> Vec<Operand> { halves().into_iter().chain([bias]).collect() };
    let with_dy = |rest: Vec<Operand>| -> Vec<Operand> { [many("dy", l)].into_iter().chain(rest).collect() };
    let mask = |shape: &[i64]| f("bias", shape);
    // Heads behind tokens; values are wider than keys.  Some queries: two in three tokens.
    let [tq, tk, tv] =
        [("q", l, e), ("k", m, e), ("v", m, e + 3)].map(|(name, rows, d)| move || small(name, &[b, rows, 3, d]));
    let token_dy = || small("dy", &[b, l, 3, e + 3]);
    let some = b * m * 2 / 3;
    let (rq, row_dy) = (|| small("q", &[some, 3, e]), || small("dy", &[some, 3, e + 3]));
    // x y + u v, the second over few steps.
    let pair = |rows: &[i64], [y, v]: [&[i64]; 2]| {
        let left = |name, steps| small(name, &[rows, &[steps]].concat());
        vec![left("x", m), small("y", y), left("u", 3), small("v", v)]
    };
    let added = |mut operands: Vec<Operand>, shape: &[i64]| {
        operands.push(small("c", shape));
        operands
    };
    let at = || f("at", &[b, l]).drawn(DType::I64, Draw::Below(5));
    let places = || f("i", &[some]).drawn(DType::I64, Draw::Places(b * m));
    vec![
        ("product x y 0 0 1.0", vec![small("x", &[b, l, m]), small("y", &[m, n])]),
        ("product x y 0 1 -0.5", vec![small("x", &[b, l, m]), small("y", &[n, m])]),
        ("product x y 1 0 1.0", vec![small("x", &[m, l]), small("y", &[m, n])]),
        ("product x y 1 1 2.0", vec![small("x", &[b, m, l]), small("y", &[b, n, m])]),
        ("product x y 0 0 1.0", vec![small("x", &[l, m]), small("y", &[b, 3, m, n])]),
        ("product x y 1 0 1.0", vec![small("x", &[b, 1, m, l]), small("y", &[1, 3, m, n])]),
        ("product_add x y c 0 1 0.5", vec![small("x", &[b, l, m]), small("y", &[n, m]), small("c", &[b, l, n])]),
        ("product_add x y c 1 0 1.0", vec![small("x", &[m, l]), small("y", &[m, n]), small("c", &[l, n])]),
        ("product_pair x y u v 0 0.5 1 2.0", pair(&[l], [&[m, n], &[n, 3]])),
        ("product_pair x y u v 1 1.0 0 -1.0", pair(&[b, l], [&[n, m], &[3, n]])),
        ("product_pair x y u v 0 1.0 0 1.0", pair(&[b, l], [&[b, m, n], &[3, n]])),
        ("product_pair_add x y u v c 0 1.0 0 0.5", added(pair(&[b, l], [&[m, n], &[3, n]]), &[b, l, n])),
        ("product_pair_add x y u v c 1 2.0 1 1.0", added(pair(&[l], [&[n, m], &[n, 3]]), &[l, n])),
        ("gather_matmul w at x 0", vec![small("w", &[5, n, m]), at(), small("x", &[b, l, m, 1])]),
        ("gather_matmul w at x 1", vec![small("w", &[5, m, n]), at(), small("x", &[b, l, m, 3])]),
        ("gather_matmul_grad dy x at 5", vec![small("dy", &[b, l, n, 1]), small("x", &[b, l, m, 1]), at()]),
        ("gather_matmul_grad dy x at 5", vec![small("dy", &[b, l, n, 2]), small("x", &[b, l, m, 2]), at()]),
        ("attention q k v 0.3", vec![q(), k(), v()]),
        ("attention_bias q k v bias 0.3", vec![q(), k(), v(), mask(&[b, 1, 1, m])]),
        ("attention_bias q k v bias -0.3", vec![q(), k(), v(), mask(&[l, m])]),
        ("attention_grad dy q k v 0.3", vec![head_dy(), q(), k(), v()]),
        ("attention_bias_grad dy q k v bias 0.3", vec![head_dy(), q(), k(), v(), mask(&[b, 1, l, m])]),
        ("attention q k v 0.3", halves()),
        ("attention_bias q k v bias 0.3", with(mask(&[b, 1, 1, m]))),
        ("attention_bias q k v bias 0.3", with(mask(&[6, l, m]))),
        ("attention_bias q k v bias 0.3", with(mask(&[l, m]))),
        ("attention_grad dy q k v 0.3", with_dy(halves())),
        ("attention_bias_grad dy q k v bias 0.3", with_dy(with(mask(&[b, 1, l, m])))),
        ("attention_bias_grad dy q k v bias 0.3", with_dy(with(mask(&[b, 6, 1, m])))),
        ("attention_bias_grad dy q k v bias 0.3", with_dy(with(mask(&[l, m])))),
        ("token_attention q k v 0.3", vec![tq(), tk(), tv()]),
        ("token_attention_bias q k v bias 0.3", vec![tq(), tk(), tv(), mask(&[b, 1, 1, m])]),
        ("token_attention_grad dy q k v 0.3", vec![token_dy(), tq(), tk(), tv()]),
        ("token_attention_bias_grad dy q k v bias 0.3", vec![token_dy(), tq(), tk(), tv(), mask(&[3, l, m])]),
        ("token_attention q k v 0.3", vec![small("q", &[b, l, 6, e]), tk(), tv()]),
        (
            "token_attention_grad dy q k v 0.3",
            vec![small("dy", &[b, l, 6, e + 3]), small("q", &[b, l, 6, e]), tk(), tv()],
        ),
        ("row_attention q k v i 0.3", vec![small("q", &[some, 6, e]), tk(), tv(), places()]),
        ("row_attention q k v i 0.3", vec![rq(), tk(), tv(), places()]),
        ("row_attention_bias q k v i bias 0.3", vec![rq(), tk(), tv(), places(), mask(&[3, m, m])]),
        ("row_attention_grad dy q k v i 0.3", vec![row_dy(), rq(), tk(), tv(), places()]),
        (
            "row_attention_bias_grad dy q k v i bias 0.3",
            vec![row_dy(), rq(), tk(), tv(), places(), mask(&[b, 1, m, m])],
        ),
        ("rms_norm x w 0.5", vec![x(), w()]),
        ("rms_norm_grad dy x w 0.5", vec![dy(), x(), w()]),
        ("rms_norm_grad_w dy x 0.5", vec![dy(), x()]),
        ("rms_norm_grad_sum dy x 0.5", vec![dy(), x()]),
        ("layer_norm x w bias 0.5", vec![x(), w(), bias()]),
        ("layer_norm_grad dy x w 0.5", vec![dy(), x(), w()]),
        ("layer_norm_grad dy x 1.0 0.5", vec![dy(), x()]),
        ("normalize x 0.5", vec![x()]),
        ("rope x cos sin", vec![turned("x"), table("cos"), table("sin")]),
        ("rope x cos sin", vec![turned("x"), f("cos", &[1, 1, l, even]), f("sin", &[b, 1, l, even])]),
        ("rope x cos sin", vec![f("x", &[b, l, 3, even]), f("cos", &[l, 1, even]), f("sin", &[b, 1, 1, even])]),
        ("rope_grad dy cos sin", vec![turned("dy"), table("cos"), table("sin")]),
        ("silu_grad x dy", vec![x(), dy()]),
        ("swiglu x u", vec![x(), f("u", &[b, l, n])]),
        ("swiglu x u", vec![x(), f("u", &[l, 1])]),
        ("swiglu_grad dy x u", vec![dy(), x(), f("u", &[b, l, n])]),
        ("swiglu_grad_u dy x", vec![dy(), x()]),
        ("gelu x", vec![x()]),
        ("gelu_grad x dy", vec![x(), dy()]),
        ("gelu_tanh x", vec![x()]),
        ("gelu_tanh_grad x dy", vec![x(), dy()]),
        ("softmax_grad y dy -1", vec![f("y", &[b, l, n]).drawn(DType::F32, Draw::Probabilities), dy()]),
        ("softmax_grad y dy 1", vec![f("y", &[b, l, n]).drawn(DType::F32, Draw::Below1(l)), dy()]),
        ("token_entropy x answer", vec![x(), f("answer", &tokens).drawn(DType::Bool, Draw::Flags)]),
        ("weighted_cross_entropy x ids g", vec![x(), ids(), f("g", &tokens).drawn(DType::F32, Draw::Sparse)]),
        ("weighted_cross_entropy_grad x ids g", vec![x(), ids(), f("g", &tokens).drawn(DType::F32, Draw::Sparse)]),
        ("gather_grad dy ids 7", vec![dy(), f("ids", &tokens).drawn(DType::I64, Draw::Below(7))]),
        (
            "dropout x rate rows columns 2039",
            vec![
                x(),
                f("rate", &[]).drawn(DType::F32, Draw::Is(0.3)),
                f("rows", &[b, l, 3]).drawn(DType::F32, Draw::Numbers(2039)),
                f("columns", &[b, 3, n]).drawn(DType::F32, Draw::Numbers(2039)),
            ],
        ),
    ]
}

fn compare(sizes: Sizes, seed: u64) -> Result<(), String> {
    let mut rng = SplitMix64::new(seed);
    for (node, operands) in nodes(sizes) {
        let feeds: Vec<(&str, HostTensor)> = operands.iter().map(|o| (o.name, o.value(&mut rng))).collect();
        same(&graph(node, &operands), &feeds, sizes.2 as usize)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn kernels_mean_what_their_bodies_say(b in 1i64..4, l in 1i64..6, n in 1i64..300, seed in any::<u64>()) {
        if let Err(why) = compare((b, l, n), seed) {
            prop_assert!(false, "{why}");
        }
    }
}

/// Several threads, several parts; no sequence at all; rows of one element and of two.  Sums stay short enough for the
/// bodies, which add them up in f32.
#[test]
fn sizes_at_the_edges() {
    for sizes in [(2, 70, 1031), (0, 3, 5), (3, 1, 1), (1, 1, 64), (1, 300, 2)] {
        compare(sizes, 3).unwrap();
    }
}

/// Logits of -inf have no probability, rows without weight no loss.
#[test]
fn special_logits() {
    let z: Vec<f32> = (0..3 * 70).map(|k| if k % 5 == 0 { f32::NEG_INFINITY } else { (k % 13) as f32 * 7.0 }).collect();
    let z = HostTensor::new(&[1, 3, 70], &z).unwrap();
    let ids = HostTensor::new(&[1, 3], &[1i64, 2, 69]).unwrap();
    let g = HostTensor::new(&[1, 3], &[1f32, 0.0, 0.25]).unwrap();
    let answer = HostTensor::new(&[1, 3], &[true, true, false]).unwrap();
    let (tokens, logits) = ([1, 3], [1, 3, 70]);
    let ids_of = || f("ids", &tokens).drawn(DType::I64, Draw::Values);
    for node in ["weighted_cross_entropy z ids g", "weighted_cross_entropy_grad z ids g"] {
        let text = graph(node, &[f("z", &logits), ids_of(), f("g", &tokens)]);
        same(&text, &[("z", z.clone()), ("ids", ids.clone()), ("g", g.clone())], 70).unwrap();
    }
    let text =
        graph("token_entropy z answer", &[f("z", &logits), f("answer", &tokens).drawn(DType::Bool, Draw::Flags)]);
    same(&text, &[("z", z), ("answer", answer)], 70).unwrap();
}

/// The head's kernels: blocks that end within the vocabulary, no row at all, weights that lie either way, columns that a
/// bias forbids, and logits that grow from block to block, so that what was summed up is scaled.
#[test]
fn heads_in_blocks() {
    let mut rng = SplitMix64::new(11);
    for (n, d, v) in [(5, 7, 1), (3, 1, 40), (0, 3, 5), (33, 16, 1023), (2, 8, 1024), (70, 5, 2100), (70, 64, 2100)] {
        let mut bias: Vec<f32> = (0..v).map(|k| k as f32 / 300.0).collect();
        bias.iter_mut().skip(1).step_by(3).for_each(|b| *b = f32::NEG_INFINITY);
        let bias = HostTensor::new(&[v], &bias).unwrap();
        for trans in [0, 1] {
            let shape = if trans == 1 { [v, d] } else { [d, v] };
            let operands = [
                f("g", &[n]).drawn(DType::F32, Draw::Sparse),
                f("h", &[n, d]).drawn(DType::F32, Draw::Small),
                f("w", &shape).drawn(DType::F32, Draw::Small),
                f("bias", &[v]),
                f("ids", &[n]).drawn(DType::I64, Draw::Below(v)),
                f("lse", &[n]),
                f("answer", &[n]).drawn(DType::Bool, Draw::Flags),
            ];
            let mut feeds: Vec<(&str, HostTensor)> = operands.iter().map(|o| (o.name, o.value(&mut rng))).collect();
            feeds[3].1 = bias.clone();
            for (node, wanted, width) in [
                (format!("head_entropy h w bias answer {trans}"), vec![1, 2, 3, 6], 1),
                (format!("head_expect h w bias {trans} 0 {v}"), vec![1, 2, 3], d + 1),
                (format!("head_grad_w g h w bias ids lse {trans} 0 {v}"), vec![0, 1, 2, 3, 4, 5], v * d),
                (format!("head_grad_b g h w bias ids lse {trans} 0 {v}"), vec![0, 1, 2, 3, 4, 5], v),
            ] {
                let operand =
                    |k: &usize| Operand { name: operands[*k].name, shape: operands[*k].shape.clone(), ..operands[*k] };
                let used: Vec<Operand> = wanted.iter().map(operand).collect();
                let feeds: Vec<_> = wanted.iter().map(|k| feeds[*k].clone()).collect();
                same(&graph(&node, &used), &feeds, width as usize).unwrap();
            }
        }
    }
}

/// A query all of whose keys are masked reads nothing; more queries than are taken at a time; no keys at all.
#[test]
fn attention_at_the_edges() {
    let mut rng = SplitMix64::new(7);
    for (queries, keys, width) in [(300, 5, 8), (3, 300, 8), (130, 130, 8), (130, 130, 64), (300, 70, 64)] {
        let heads = |name: &'static str, rows: i64| f(name, &[2, 1, rows, width]).drawn(DType::F32, Draw::Small);
        let mut bias = vec![0f32; (queries * keys) as usize];
        bias[..keys as usize].fill(f32::NEG_INFINITY);
        let bias = HostTensor::new(&[queries, keys], &bias).unwrap();
        let operands = [heads("dy", queries), heads("q", queries), heads("k", keys), heads("v", keys)];
        let values: Vec<HostTensor> = operands.iter().map(|o| o.value(&mut rng)).collect();
        let mut feeds: Vec<(&str, HostTensor)> = operands.iter().map(|o| o.name).zip(values).collect();
        feeds.push(("bias", bias));
        let all: Vec<Operand> = operands.into_iter().chain([f("bias", &[queries, keys])]).collect();
        same(&graph("attention_bias q k v bias 0.4", &all[1..]), &feeds[1..], width as usize).unwrap();
        same(&graph("attention_bias_grad dy q k v bias 0.4", &all), &feeds, width as usize).unwrap();
    }
}

/// Heads as wide as a model's: as many for keys as for queries, several queries to a key's head, queries of some tokens.
#[test]
fn attention_of_wide_heads() {
    let mut rng = SplitMix64::new(9);
    let (b, l, d, e) = (2, 100, 64, 60);
    let some = b * l * 2 / 3;
    let small = |name: &'static str, shape: &[i64]| f(name, shape).drawn(DType::F32, Draw::Small);
    let [k, v] = [("k", d), ("v", e)].map(|(name, width)| move || small(name, &[b, l, 3, width]));
    let outside = || [("q", d), ("k", d), ("v", e)].map(|(name, width)| small(name, &[b, 3, l, width])).into_iter();
    let places = || f("i", &[some]).drawn(DType::I64, Draw::Places(b * l));
    let cases = [
        ("attention q k v 0.3", outside().collect()),
        ("attention_grad dy q k v 0.3", [small("dy", &[b, 3, l, e])].into_iter().chain(outside()).collect()),
        ("token_attention q k v 0.3", vec![small("q", &[b, l, 6, d]), k(), v()]),
        ("token_attention_grad dy q k v 0.3", vec![small("dy", &[b, l, 6, e]), small("q", &[b, l, 6, d]), k(), v()]),
        ("row_attention q k v i 0.3", vec![small("q", &[some, 6, d]), k(), v(), places()]),
        (
            "row_attention_grad dy q k v i 0.3",
            vec![small("dy", &[some, 6, e]), small("q", &[some, 6, d]), k(), v(), places()],
        ),
    ];
    for (node, operands) in cases {
        let feeds: Vec<_> = operands.iter().map(|o| (o.name, o.value(&mut rng))).collect();
        same(&graph(node, &operands), &feeds, 64).unwrap();
    }
}

/// Where a bias shuts keys off, they are not computed: samples of a packed row, a window, padding; -inf or the least number,
/// by which a query that sees no key sees all.
#[test]
fn attention_passes_over_what_no_query_sees() {
    let n = 700;
    let samples = |i: i64, j: i64| i / 150 == j / 150 && i < 690;
    let window = |i: i64, j: i64| (i - j).abs() < 40;
    let padded = |_: i64, j: i64| (64..500).contains(&j);
    let split = |i: i64, j: i64| (i - j).rem_euclid(600) < 20;
    let patterns: [&dyn Fn(i64, i64) -> bool; 4] = [&samples, &window, &padded, &split];
    let mut rng = SplitMix64::new(8);
    for (d, e) in [(8, 9), (64, 62)] {
        let small = |name: &'static str, width: i64| f(name, &[1, n, 2, width]).drawn(DType::F32, Draw::Small);
        let operands = [small("dy", e), small("q", d), small("k", d), small("v", e)];
        let values: Vec<HostTensor> = operands.iter().map(|o| o.value(&mut rng)).collect();
        let all: Vec<Operand> = operands.into_iter().chain([f("bias", &[n, n])]).collect();
        for (open, shut) in patterns.iter().flat_map(|p| [(p, f32::NEG_INFINITY), (p, f32::MIN)]) {
            let bias = (0..n * n).map(|k| if open(k / n, k % n) { 0.25 } else { shut });
            let bias = HostTensor::new(&[n, n], &bias.collect::<Vec<_>>()).unwrap();
            let feeds: Vec<_> = all.iter().map(|o| o.name).zip(values.iter().cloned().chain([bias])).collect();
            same(&graph("token_attention_bias q k v bias 0.4", &all[1..]), &feeds[1..], e as usize).unwrap();
            same(&graph("token_attention_bias_grad dy q k v bias 0.4", &all), &feeds, e as usize).unwrap();
        }
    }
}

/// Results that overwrite their operands: ONNX Runtime reuses a buffer that nobody else reads.
#[test]
fn results_may_take_the_place_of_operands() {
    let text = "(graph g (input x f32 [5 130]) (input w f32 [130]) (input c f32 [5 130]) (input s f32 [5 130])
        (let a (mul x 2.0)) (let b (gelu_tanh a)) (let d (rope b c s)) (let e (rms_norm d w 0.1)) (let h (gelu e))
        (let i (swiglu_grad_u h x)) (output result i))";
    let mut rng = SplitMix64::new(5);
    let shapes: [(&'static str, &[i64]); 4] = [("x", &[5, 130]), ("w", &[130]), ("c", &[5, 130]), ("s", &[5, 130])];
    let feeds: Vec<_> = shapes.iter().map(|(name, shape)| (*name, f(name, shape).value(&mut rng))).collect();
    same(text, &feeds, 130).unwrap();
}

/// Whether the kernel for a GPU computes what the body of f32 says on the CPU, for each element type that it takes.  Operands
/// said to be f16 are of that type.
fn same_on_a_gpu(node: &str, operands: &[Operand], device: Device, rng: &mut SplitMix64) {
    let Device::Cuda(id) = device else { panic!("no GPU") };
    let gpu = kernels::cuda::Gpu { device: id, cache: runtime::locate::cache_folder().ok() };
    let name: String = node.split(' ').next().unwrap().split('_').map(capital).collect();
    let operands_of = |dtype: DType| {
        let typed = |o: &Operand| if o.dtype == DType::F16 { dtype } else { o.dtype };
        operands.iter().map(|o| Operand { dtype: typed(o), shape: o.shape.clone(), ..*o }).collect::<Vec<Operand>>()
    };
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::F16, 2e-3), (DType::BF16, 1.6e-2)] {
        let own = operands_of(dtype);
        let text = graph(node, &own);
        let parsed = weftc::ir::text::parse(&text).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
        let root = parsed.outputs[0].1;
        let types: Vec<_> = parsed.node(root).children().iter().map(|c| parsed.type_of(*c)).collect();
        if !kernels::cuda::takes(&name, &types) {
            continue;
        }
        let values: Vec<HostTensor> = own.iter().map(|o| o.value(rng)).collect();
        let feeds = |values: &[HostTensor]| {
            own.iter().map(|o| o.name.to_string()).zip(values.iter().cloned()).collect::<Vec<(String, HostTensor)>>()
        };
        let run = |mut session: Session, values: &[HostTensor]| {
            let feeds = feeds(values);
            let outputs =
                session.run(feeds.iter().map(|(n, v)| (n.as_str(), v))).unwrap_or_else(|e| panic!("{e}\n{text}"));
            outputs["result"].to_f64()
        };
        let bytes = plain(&parsed, &library().unwrap().lower).unwrap();
        let model = ModelProto::decode(bytes.as_slice()).unwrap();
        let kernels = kernels::cuda::step(model.functions.iter().map(|f| f.name.as_str()), &gpu).unwrap();
        let operators = vec![kernels.unwrap_or_else(|| panic!("there is no kernel for {node}"))];
        let options = Options { operators, device, assignment: true, ..Options::default() };
        let session_on_gpu = Session::from_bytes(&bytes, &options).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let assigned = session_on_gpu.assignment().unwrap();
        let places: Vec<&String> =
            assigned.iter().filter(|(_, nodes)| nodes.contains_key(&name)).map(|(p, _)| p).collect();
        assert!(places.len() == 1 && places[0].starts_with("CUDA"), "{assigned:?}\n{text}");
        let got = run(session_on_gpu, &values);
        // ONNX Runtime 1.31 fails to sum over no rows.
        let want = if values[0].shape().contains(&0) {
            vec![0.0; got.len()]
        } else {
            let wide = |v: &HostTensor| match v.dtype() {
                DType::F16 | DType::BF16 => HostTensor::from_f64(DType::F32, v.shape(), &v.to_f64()).unwrap(),
                _ => v.clone(),
            };
            run(session(&graph(node, &operands_of(DType::F32)), false, 1), &values.iter().map(wide).collect::<Vec<_>>())
        };
        assert_eq!(got.len(), want.len(), "{text}");
        let scale = want.iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
        for (k, (got, want)) in got.iter().zip(&want).enumerate() {
            let alike = got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= tolerance * scale;
            assert!(alike, "element {k}: kernel {got}, body {want}\n{text}");
        }
    }
}

/// Kernels for a GPU compile, on a machine that has the compiler.
#[test]
fn kernels_for_a_gpu_compile() {
    if cuda::has_compiler() {
        ["sm_80", "sm_90"].iter().for_each(|architecture| kernels::cuda::check(architecture).unwrap());
    } else {
        eprintln!("skipped: there is no NVRTC");
    }
}

/// Every kernel for a GPU, where there is one.
#[test]
fn kernels_on_a_gpu() {
    let gpu = cuda::devices().ok().and_then(|_| Choice::Cuda.resolve(0, &mut |line| println!("{line}")).ok());
    let Some((device, _)) = gpu.filter(|_| cuda::has_compiler()) else {
        eprintln!("skipped: there is no GPU that can be used, or no NVRTC");
        return;
    };
    let mut rng = SplitMix64::new(9);
    for (b, l, n) in [(2, 5, 48), (1, 3, 1031), (3, 1, 1), (2, 9, 4096), (0, 3, 8)] {
        let t = |name: &'static str, shape: &[i64]| f(name, shape).drawn(DType::F16, Draw::Small);
        let (rows, d) = (b * l, n.min(70));
        let sums = |name: &'static str| f(name, &[rows, 3]).drawn(DType::F32, Draw::Probabilities);
        let heads = nodes((b, l, n)).into_iter().map(|(node, operands)| {
            let float = |o: Operand| if o.dtype == DType::F32 { Operand { dtype: DType::F16, ..o } } else { o };
            (node, operands.into_iter().map(float).collect::<Vec<Operand>>())
        });
        let logits = || t("z", &[rows, n]);
        let of = |name: &'static str| f(name, &[rows]).drawn(DType::F32, Draw::Small);
        let numbers = |name: &'static str, k: i64| f(name, &[k]).drawn(DType::I64, Draw::Below(n));
        // Codes in bytes, in blocks of which a thread takes one at a time or several elements.
        let coded = |bytes: i64| vec![f("q", &[b, l, bytes]).drawn(DType::U8, Draw::Below(256)), t("scales", &[b, l])];
        let own = [
            ("decode q scales 4", coded(n.min(64))),
            ("decode q scales 8", coded(n.min(64))),
            ("logit_sums z", vec![logits()]),
            ("logit_exp z s", vec![logits(), f("s", &[rows, 3]).drawn(DType::F32, Draw::Small)]),
            (
                "logit_grad z g ids lse at",
                vec![
                    logits(),
                    of("g"),
                    numbers("ids", rows),
                    of("lse"),
                    f("at", &[n]).drawn(DType::I64, Draw::Places(n)),
                ],
            ),
            ("block_expect s x", vec![sums("s"), t("x", &[rows, d])]),
            ("merge_sums s r", vec![sums("s"), sums("r")]),
            (
                "merge_expect x y",
                ["x", "y"].map(|name| f(name, &[rows, d + 1]).drawn(DType::F32, Draw::Small)).into_iter().collect(),
            ),
        ];
        for (node, operands) in heads.chain(own) {
            same_on_a_gpu(node, &operands, device, &mut rng);
        }
    }
    for (b, l, m, d, e) in [(2, 5, 7, 8, 8), (1, 70, 300, 64, 64), (2, 333, 129, 128, 40)] {
        let t = |name: &'static str, shape: &[i64]| f(name, shape).drawn(DType::F16, Draw::Small);
        // Heads of their own, and one of keys for two of queries.
        for shared in [2, 4] {
            let with = |bias: Option<Operand>| {
                let plain = [
                    t("dy", &[b, l, 4, e]),
                    t("q", &[b, l, 4, d]),
                    t("k", &[b, m, shared, d]),
                    t("v", &[b, m, shared, e]),
                ];
                plain.into_iter().chain(bias).collect::<Vec<Operand>>()
            };
            same_on_a_gpu("token_attention_grad dy q k v 0.3", &with(None), device, &mut rng);
            let node = "token_attention_bias_grad dy q k v bias 0.3";
            for shape in [vec![b, 1, 1, m], vec![4, l, m], vec![l, m]] {
                if shared == 4 {
                    let operands = with(Some(t("bias", &shape)));
                    same_on_a_gpu(node, &operands, device, &mut rng);
                    same_on_a_gpu("token_attention_bias q k v bias 0.3", &operands[1..], device, &mut rng);
                }
            }
        }
    }
}

/// A word with a large first letter.
fn capital(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_uppercase() + rest
}

/// An error of a kernel names the operator and the shapes.
#[test]
fn what_does_not_fit_is_refused() {
    let text = "(graph g (input dy f32 [2 4]) (input ids i64 [2]) (output z (gather_grad dy ids 3)))";
    let dy = HostTensor::new(&[2, 4], &[0f32; 8]).unwrap();
    let ids = HostTensor::new(&[2], &[0i64, 3]).unwrap();
    let error = session(text, true, 1).run([("dy", &dy), ("ids", &ids)]).unwrap_err().to_string();
    assert!(error.contains("GatherGrad: index 3 is beyond 3 rows"), "{error}");
}
