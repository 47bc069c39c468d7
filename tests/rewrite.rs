//! Equality saturation on small graphs: `tests/golden/*.egg` in, printed graphs out (snapshots).
//!
//! A golden file holds rules, `(library FAMILY ..)` for built-in ones, and one `(graph ..)`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use weftc::ir::sexpr::{self, Sexpr};
use weftc::ir::{DType, Dim, Graph, Op, text};
use weftc::rewrite::{Options, Saturated, Stop, saturate};
use weftc::rules::Rule;
use weftc::rules::library::library;
use weftc::rules::parse::parse;

fn family(name: &str) -> Vec<Rule> {
    let mut l = library().unwrap_or_else(|e| panic!("{e}"));
    match name {
        "lift" => l.lift,
        "simplify" => l.simplify,
        "fuse" => l.fuse.into_iter().filter(|r| r.target.is_none()).collect(),
        method => l.methods.remove(method).unwrap_or_else(|| panic!("no family {method}")),
    }
}

/// The rules and the graph of a golden file.
fn case(file: &str, source: &str) -> (Vec<Rule>, Graph) {
    let forms = sexpr::read(source).unwrap_or_else(|e| panic!("{file}: {}", e.message));
    let (mut rules, mut own, mut graph) = (Vec::new(), String::new(), None);
    for form in &forms {
        let body = &source[form.span().clone()];
        match form.list() {
            Some([Sexpr::Atom(head, _), names @ ..]) if head == "library" => {
                rules.extend(names.iter().filter_map(Sexpr::atom).flat_map(family));
            }
            Some([Sexpr::Atom(head, _), ..]) if head == "graph" => {
                graph = Some(text::parse(body).unwrap_or_else(|e| panic!("{file}: {}", e.message)));
            }
            _ => own.push_str(body),
        }
    }
    rules.extend(parse(file, &own).unwrap_or_else(|e| panic!("{e}")));
    (rules, graph.unwrap_or_else(|| panic!("{file}: no graph")))
}

fn run(rules: &[Rule], graph: &Graph) -> Saturated {
    let rules: Vec<&Rule> = rules.iter().collect();
    saturate(graph, &rules, &Options::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn show(s: &Saturated) -> String {
    let mut out = text::print(&s.graph);
    for (name, n) in &s.fired {
        let _ = writeln!(out, "; {name} {n}");
    }
    out
}

/// The files of a folder of `tests/`, by stem: name, text.
fn files(folder: &str) -> BTreeMap<String, (String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let read = |path: PathBuf| {
        let part = |p: Option<&OsStr>| p.unwrap_or_default().to_string_lossy().into_owned();
        let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (part(path.file_stem()), (part(path.file_name()), source))
    };
    entries.map(|e| read(e.unwrap_or_else(|e| panic!("{e}")).path())).collect()
}

#[test]
fn golden_files() {
    for (stem, (file, source)) in files("golden") {
        let (rules, graph) = case(&file, &source);
        let out = run(&rules, &graph);
        assert_eq!(out.stats.stop, Stop::Saturated, "{file}");
        assert!(out.stats.cost_before.is_none_or(|before| out.stats.cost_after <= before), "{file}");
        assert_eq!(show(&out), show(&run(&rules, &graph)), "{file}: the same input gives another graph");
        insta::assert_snapshot!(format!("golden_{stem}"), show(&out));
    }
}

#[test]
fn bad_rule_files() {
    for (stem, (file, source)) in files("bad") {
        let error = parse(&file, &source).expect_err("the file is meant to be wrong");
        insta::assert_snapshot!(format!("bad_{stem}"), error.to_string());
    }
}

/// Decoder blocks as an exporter spells them: RMS norms, attention, a gated feed-forward, residuals.
fn blocks(layers: usize) -> String {
    let mut s =
        String::from("(graph chain (input ids i64 [batch seq]) (param wte f32 [64 16]) (param wt f32 [16 16])\n");
    s.push_str("(input cos f32 [seq 16]) (input sin f32 [seq 16])\n(let h (gather wte ids 0))\n");
    for l in 0..layers {
        let weights = ["n", "m"].map(|w| format!("(param {w}{l} f32 [16])\n")).concat()
            + &["q", "k", "v", "o", "g", "u", "d"].map(|w| format!("(param {w}{l} f32 [16 16])\n")).concat();
        s.push_str(&weights);
        let block = "
(let a (div h (sqrt (add (mean (pow h 2.0) [-1]) 1e-5)))) (let b (mul a nN))
(let q (matmul b (transpose (transpose qN [1 0]) [1 0]))) (let k (matmul b kN)) (let v (matmul b vN))
(let qr (add (mul q cos) (mul (concat (neg (slice q -1 8 16 1)) (slice q -1 0 8 1) -1) sin)))
(let kr (add (mul k cos) (mul (concat (neg (slice k -1 8 16 1)) (slice k -1 0 8 1) -1) sin)))
(let p (softmax (mul (matmul qr (transpose kr [0 2 1])) 0.25) -1))
(let h (add h (matmul (matmul p v) (transpose oN [1 0]))))
(let c (mul (mul h (reciprocal (sqrt (add (mean (mul h h) [-1]) 1e-5)))) mN))
(let g (matmul c gN)) (let u (matmul c uN))
(let h (add h (matmul (mul (mul g (sigmoid g)) u) dN)))";
        let named = block.replace("nN", &format!("n{l}")).replace("mN", &format!("m{l}"));
        let named = ["q", "k", "v", "o", "g", "u", "d"]
            .iter()
            .fold(named, |t, w| t.replace(&format!("{w}N"), &format!("{w}{l}")));
        s.push_str(&named);
    }
    s + "(output logits (matmul h wt)))"
}

#[test]
fn deep_models_are_lifted_whole() {
    let layers = 400;
    let graph = text::parse(&blocks(layers)).unwrap_or_else(|e| panic!("{}", e.message));
    let rules = [family("lift"), family("simplify")].concat();
    let out = run(&rules, &graph);
    println!("{} nodes: {:?}", graph.live().len(), out.stats);
    let want: BTreeMap<&str, usize> = [
        ("gather", 1),
        ("rms_norm", 2 * layers),
        ("rope", 2 * layers),
        ("attention", layers),
        ("swiglu", layers),
        ("matmul", 7 * layers + 1),
        ("transpose", layers),
        ("add", 2 * layers),
    ]
    .into();
    assert_eq!(out.graph.histogram(), want);
}

/// A sum over trees would double at every step: 2^300 at the end.
#[test]
fn a_residual_chain_of_depth_300_has_a_finite_cost() {
    let mut graph = Graph::new("chain");
    let mut x = graph.input("x", DType::F32, &[Dim::from(4)]);
    use weftc::ir::Builder;
    for _ in 0..300 {
        let y = graph.op(Op::Neg, &[x]).and_then(|n| graph.op(Op::Neg, &[n])).unwrap();
        let z = graph.op(Op::Exp, &[y]).unwrap();
        x = graph.op(Op::Add, &[y, z]).unwrap();
    }
    graph.outputs.push(("y".into(), x));
    let rules = parse("r.egg", "(rewrite neg-neg (neg (neg ?x)) ?x)").unwrap_or_else(|e| panic!("{e}"));
    let out = run(&rules, &graph);
    assert_eq!(out.graph.histogram(), [("add", 300), ("exp", 300)].into());
    assert_eq!(out.fired, [("neg-neg".to_string(), 300)].into());
    // 16 bytes in and out for each operand, and a launch.
    assert_eq!(out.stats.cost_after, 300 * (48 + 32 + 2 * 4096));
}

/// A rule without end: the limits stop it, at the same place every time, and the result is still right.
#[test]
fn limits_stop_a_rule_that_never_ends() {
    let source = "(rewrite grow (exp ?x) (exp (neg (neg ?x))) :search)
        (graph g (input x f32 [4]) (output y (exp x)))";
    let (rules, graph) = case("grow.egg", source);
    let rules: Vec<&Rule> = rules.iter().collect();
    let run = |iterations, nodes| {
        let out = saturate(&graph, &rules, &Options { iterations, nodes: Some(nodes) });
        out.unwrap_or_else(|e| panic!("{e}"))
    };
    let by_nodes = run(1000, 50);
    assert_eq!(by_nodes.stats.stop, Stop::Nodes);
    assert!(by_nodes.stats.nodes <= 50 + 3, "{:?}", by_nodes.stats);
    assert_eq!(run(1000, 50).stats.iterations, by_nodes.stats.iterations);
    let by_rounds = run(7, 1000);
    assert_eq!((by_rounds.stats.stop, by_rounds.fired["grow"]), (Stop::Iterations, 7));
    assert_eq!(text::print(&by_nodes.graph), text::print(&graph));
    assert_eq!(text::print(&by_rounds.graph), text::print(&graph));
}

#[test]
fn an_objective_without_definition_is_an_error() {
    let source = include_str!("golden/weft.egg").replace("(library weft)", "");
    let (rules, graph) = case("weft.egg", &source);
    let rules: Vec<&Rule> = rules.iter().collect();
    let error = saturate(&graph, &rules, &Options::default()).expect_err("nothing defines the objective");
    assert!(error.to_string().contains("`objective` has no definition"), "{error}");
}

#[test]
fn nodes_keep_the_place_they_came_from() {
    let source = "(rewrite lift-silu (mul ?x (sigmoid ?x)) (silu ?x))
        (graph g (input x f32 [4]) (output y (exp (mul x (sigmoid x)))))";
    let (rules, mut graph) = case("silu.egg", source);
    for id in graph.live() {
        if let Some(op) = graph.node(id).op() {
            graph.origin.insert(id, format!("/block/{}", op.name()).into());
        }
    }
    let out = run(&rules, &graph).graph;
    let places: Vec<_> =
        out.live().iter().filter_map(|id| Some((out.node(*id).op()?, out.origin.get(id)?.to_string()))).collect();
    assert_eq!(places, [(Op::Silu, "/block/mul".to_string()), (Op::Exp, "/block/exp".to_string())]);
}
