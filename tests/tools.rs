//! `inspect`, `explain`, `grad`, `check-rules` and `compile --rules`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use weftc::adapt::Spec;
use weftc::compile::{Budget, Options, compile};
use weftc::error::Error;
use weftc::ir::{DType, Data, Graph, LeafKind, text};
use weftc::onnx::write::{Parts, encode};
use weftc::quantize::Quantization;
use weftc::rules::Target;
use weftc::runtime::{self, HostTensor, Session};
use weftc::tools::{check, explain, grad, inspect, memory, training};

const MODELS: [&str; 5] = [
    "llada_micro_dynamo18.onnx",
    "llada_micro_native23.onnx",
    "llada_micro_legacy17.onnx",
    "dream_micro_dynamo18.onnx",
    "sudoku.onnx",
];

fn model(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(file)
}

#[test]
fn inspections() {
    let mut out = String::new();
    for file in MODELS {
        let inspection = inspect::inspect(&Options::new(model(file))).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(inspection.memory.is_some() && inspection.left_over.is_empty(), "{file}");
        out += &format!("# {file}\n{inspection}\n");
    }
    let folder = TempDir::new().unwrap();
    let inspection = inspect::inspect(&Options::new(tiny(&folder, None))).unwrap_or_else(|e| panic!("{e}"));
    out += &format!("# no language model\n{inspection}\n");
    insta::assert_snapshot!(out);
}

/// What a train.onnx was compiled for, and what its step takes; away from its source, the same without the latter.
#[test]
fn training_graphs() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::copy(model("sudoku.onnx"), at("model.onnx")).unwrap();
    let adapted = Options {
        mask_id: Some(15),
        trainable: "lora".parse().unwrap(),
        memory: Some(Budget { bytes: 3_000_000, batch: Some(8), length: Some(33) }),
        quantize: Some(Quantization::Int8),
        packing: true,
        ..Options::new(at("model.onnx"))
    };
    let named = Options { trainable: "*norm*".parse().unwrap(), ..Options::new(at("model.onnx")) };
    let mut out = String::new();
    for options in [adapted, Options { mask_id: Some(15), method: "papl".into(), ..named }] {
        compile(&options).and_then(|c| c.write(&at("train.onnx"))).unwrap_or_else(|e| panic!("{e}"));
        let shown = training::inspect(&at("train.onnx")).unwrap_or_else(|e| panic!("{e}"));
        assert!(shown.memory.is_some());
        out += &format!("{shown}\n");
    }
    std::fs::remove_file(at("model.onnx")).unwrap();
    let alone = training::inspect(&at("train.onnx")).unwrap_or_else(|e| panic!("{e}"));
    assert!(alone.memory.is_none() && alone.to_string().contains("estimated where the model is"), "{alone}");
    insta::assert_snapshot!(out);
}

/// The memory that is shown is that of the step that the flags of a compile make.
#[test]
fn inspections_take_the_flags_of_a_compile() {
    let source = model("sudoku.onnx").display().to_string();
    let weftc = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_weftc")).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let json = weftc(&["inspect", &source, "--trainable", "lora", "--lora-rank", "4", "--json"]);
    let compiled = compile(&Options {
        mask_id: Some(15),
        trainable: "lora".parse().unwrap(),
        adapter: Spec { rank: 4, ..Spec::default() },
        ..Options::new(model("sudoku.onnx"))
    });
    let compiled = compiled.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(json["trained"], "lora");
    for step in json["memory"]["steps"].as_array().unwrap() {
        let [batch, length] = ["batch", "length"].map(|name| step[name].as_i64().unwrap());
        assert_eq!(step["total"].as_u64(), Some(memory::total(&compiled, batch, length).unwrap()));
    }
    let full = weftc(&["inspect", &source, "--json"]);
    assert!(full["memory"]["moments"].as_u64() > json["memory"]["moments"].as_u64());
}

#[test]
fn explanations() {
    let file = "llada_micro_legacy17.onnx";
    let mut out = String::new();
    for rule in [
        "lift-rms-norm",
        "lift-attention-unscaled",
        "lift-silu",
        "transpose-transpose",
        "gemm-nt",
        "fused-matmul-nt",
        "d-gather",
        "attention",
        "loss-weight",
        "weft",
    ] {
        let explanation = explain::explain(&explain::Request::new(rule, model(file)));
        out += &explanation.unwrap_or_else(|e| panic!("{rule}: {e}")).text(false);
        out += "\n";
    }
    let portable =
        explain::Request { target: Target::Portable, ..explain::Request::new("fused-matmul-nt", model(file)) };
    out += &explain::explain(&portable).unwrap_or_else(|e| panic!("{e}")).text(false);
    let unknown = explain::explain(&explain::Request::new("lift-swigl", model(file)));
    out += &format!("\n{}\n", unknown.err().map(|e| e.to_string()).unwrap_or_default());
    insta::assert_snapshot!(out);
}

/// What a compile counts is what an explanation finds.
#[test]
fn explanations_agree_with_the_compiler() {
    let file = "dream_micro_dynamo18.onnx";
    let options = Options { mask_id: Some(31), ..Options::new(model(file)) };
    let fired = compile(&options).unwrap_or_else(|e| panic!("{e}")).manifest.rules_fired;
    let rewrites = fired.iter().filter(|(rule, _)| {
        ["lift-", "gemm-", "fused-", "transpose-", "mul-", "reshape-", "weight-gradient"]
            .iter()
            .any(|p| rule.starts_with(p))
    });
    let mut compared = 0;
    for (rule, count) in rewrites {
        let explanation = explain::explain(&explain::Request::new(rule, model(file))).unwrap_or_else(|e| panic!("{e}"));
        let found: usize = explanation.stages.iter().flat_map(|(_, r)| &r.fired).map(|(_, n)| n).sum();
        assert_eq!(found, *count, "{rule}");
        compared += 1;
    }
    assert!(compared > 5, "{fired:?}");
}

/// A model in f64 with two scalars, spelled in primitive operators.  Its epsilon is a number of f32 too:
/// attributes of fused nodes are.
const TINY: &str = "(graph tiny
  (input ids i64 [batch seq])
  (input x f64 [batch seq 3])
  (param wte f64 [5 3])
  (param norm.weight f64 [3])
  (param head.weight f64 [3 4])
  (param unused f64 [2])
  (let h (add (gather wte ids 0) x))
  (let n (mul (div h (sqrt (add (mean (pow h 2.0) [-1]) 0.0001220703125))) norm.weight))
  (let p (softmax (matmul n head.weight) -1))
  (output p p)
  (output loss (reshape (sum (mul p (log p)) [-3 -2 -1]) []))
  (output square (sum (mul h h) [-3 -2 -1]))
  (output twice (mul unused 2.0)))";

/// Values in (-1, 1) that repeat nowhere.
fn values(n: usize, seed: usize) -> Vec<f64> {
    (0..n).map(|k| (((k + 1) * (2 * seed + 3)) as f64 * 0.754877666).fract() * 2.0 - 1.0).collect()
}

fn numel(shape: &[weftc::ir::Dim]) -> usize {
    shape.iter().map(|d| usize::try_from(d.known().unwrap()).unwrap()).product()
}

/// The model above as a file; its weights lie in the file `beside`, where one is named.
fn tiny(folder: &TempDir, beside: Option<&str>) -> PathBuf {
    let mut graph: Graph = text::parse(TINY).unwrap_or_else(|e| panic!("{}", e.message));
    let mut all = Vec::new();
    for (k, leaf) in graph.leaves.iter_mut().enumerate().filter(|(_, l)| l.kind == LeafKind::Param) {
        let bytes: Vec<u8> = values(numel(&leaf.ty.shape), k).iter().flat_map(|x| x.to_le_bytes()).collect();
        let (offset, len) = (all.len() as u64, bytes.len() as u64);
        all.extend(&bytes);
        leaf.data = Some(match beside {
            Some(name) => Data::File { path: folder.path().join(name), offset, len },
            None => Data::Inline(bytes.into()),
        });
    }
    if let Some(name) = beside {
        std::fs::write(folder.path().join(name), all).unwrap();
    }
    let path = folder.path().join("tiny.onnx");
    let (order, source) = (graph.live(), path.as_path());
    let parts = Parts { graph: &graph, order: &order, trainable: &[], rules: &[], manifest: None, source };
    std::fs::write(&path, encode(&parts).unwrap()).unwrap();
    path
}

fn request(model: &Path, output: &str, wrt: &[&str]) -> grad::Request {
    let wrt = wrt.iter().map(|s| s.to_string()).collect();
    grad::Request { output: Some(output.into()), wrt, ..grad::Request::new(model) }
}

type Feeds = BTreeMap<String, HostTensor>;

fn run(bytes: &[u8], feeds: &Feeds) -> BTreeMap<String, Vec<f64>> {
    let options = runtime::Options { threads: 1, ..runtime::Options::default() };
    let mut session = Session::from_bytes(bytes, &options).unwrap_or_else(|e| panic!("{e}"));
    let out = session.run(feeds.iter().map(|(n, t)| (n.as_str(), t))).unwrap_or_else(|e| panic!("{e}"));
    out.into_iter().map(|(name, t)| (name, t.to_f64())).collect()
}

/// Against central differences in f64: h = 1e-5 leaves 1e-10 of truncation and 1e-11 of rounding.
#[test]
fn gradients_are_right_in_onnx_runtime() {
    let folder = TempDir::new().unwrap();
    let source = tiny(&folder, None);
    let gradients =
        grad::grad(&request(&source, "loss", &["*.weight", "wte", "x", "unused"])).unwrap_or_else(|e| panic!("{e}"));
    let bytes = gradients.encode().unwrap();
    let model = std::fs::read(&source).unwrap();
    let feeds: Feeds = [
        ("ids".to_string(), HostTensor::new(&[2, 3], &[0i64, 4, 1, 1, 2, 0]).unwrap()),
        ("x".to_string(), HostTensor::new(&[2, 3, 3], &values(18, 9)).unwrap()),
    ]
    .into();
    let (plain, with) = (run(&model, &feeds), run(&bytes, &feeds));
    let names: Vec<&str> = plain.keys().map(String::as_str).collect();
    assert_eq!(names, ["loss", "p", "square", "twice"]);
    for (name, want) in &plain {
        assert!(want.iter().zip(&with[name]).all(|(a, b)| (a - b).abs() < 1e-12), "{name}");
    }
    let (graph, written) = (&gradients.graph, text::parse(TINY).unwrap_or_else(|e| panic!("{}", e.message)));
    for leaf in gradients.wrt.iter().map(|l| graph.leaf(*l)) {
        let got = &with[&format!("grad/{}", leaf.name)];
        let start = match leaf.kind {
            LeafKind::Input => feeds[&leaf.name].clone(),
            _ => {
                let k = written.find_leaf(&leaf.name).unwrap().0 as usize;
                let shape: Vec<i64> = leaf.ty.shape.iter().filter_map(|d| d.known()).collect();
                HostTensor::new(&shape, &values(numel(&leaf.ty.shape), k)).unwrap()
            }
        };
        assert_eq!(got.len(), start.len(), "{}", leaf.name);
        for (k, g) in got.iter().enumerate() {
            let loss = |h: f64| {
                let mut moved = start.to_f64();
                moved[k] += h;
                let mut feeds = feeds.clone();
                feeds.insert(leaf.name.clone(), HostTensor::from_f64(DType::F64, start.shape(), &moved).unwrap());
                run(&bytes, &feeds)["loss"][0]
            };
            let difference = (loss(1e-5) - loss(-1e-5)) / 2e-5;
            assert!((g - difference).abs() < 1e-7 * (1.0 + g.abs()), "{}[{k}]: {g} {difference}", leaf.name);
        }
    }
    assert_eq!(with["grad/unused"], [0.0, 0.0]);
    assert!(with["grad/wte"][9..12].iter().all(|g| *g == 0.0), "token 3 does not occur");
}

/// A file for any runtime, with the weights as inputs that have a default.
#[test]
fn a_gradient_file_is_portable() {
    use onnx_protobuf::ModelProto;
    use protobuf::Message;
    let folder = TempDir::new().unwrap();
    let source = tiny(&folder, None);
    let write = || {
        let gradients = grad::grad(&request(&source, "square", &[])).unwrap_or_else(|e| panic!("{e}"));
        let path = folder.path().join("grad.onnx");
        gradients.write(&path).unwrap();
        std::fs::read(&path).unwrap()
    };
    let bytes = write();
    assert!(bytes == write(), "the same model gives the same bytes");
    let model = ModelProto::parse_from_bytes(&bytes).unwrap();
    let graph = &model.graph;
    let names = |v: &[onnx_protobuf::ValueInfoProto]| v.iter().map(|x| x.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&graph.input), ["ids", "x", "wte"]);
    assert_eq!(names(&graph.output), ["p", "loss", "square", "twice", "grad/wte"]);
    assert!(graph.initializer.iter().any(|i| i.name == "wte"));
    assert!(graph.node.iter().all(|n| n.domain.is_empty() || n.domain == "ai.weft"));
    assert!(model.metadata_props.is_empty() && model.functions.iter().all(|f| f.name != "AdamW"));
}

#[test]
fn gradient_refusals() {
    let folder = TempDir::new().unwrap();
    let source = tiny(&folder, None);
    let mut out = String::new();
    let mut show = |title: &str, request: grad::Request| {
        let error = grad::grad(&request).err().unwrap_or_else(|| panic!("{title}: was accepted"));
        let text = error.to_string().replace(&folder.path().display().to_string(), "models");
        out += &format!("# {title}: exit code {}\n{text}\n\n", error.exit_code());
    };
    show("several scalars", grad::Request { output: None, ..request(&source, "", &[]) });
    show("not a scalar, and names that do not fit", request(&source, "p", &["ids", "wtf", "layers.*"]));
    show("no such output", request(&source, "los", &[]));
    show("no scalar", grad::Request::new(model("sudoku.onnx")));
    let gradients = grad::grad(&request(&source, "loss", &[])).unwrap_or_else(|e| panic!("{e}"));
    let error = gradients.write(&source).expect_err("it would replace the model");
    out += &error.to_string().replace(&folder.path().display().to_string(), "models");
    insta::assert_snapshot!(out);
}

#[test]
fn weights_in_files_of_their_own_stay_there() {
    let (folder, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let source = tiny(&folder, Some("tiny.bin"));
    let gradients = grad::grad(&request(&source, "square", &[])).unwrap_or_else(|e| panic!("{e}"));
    let error = gradients.write(&elsewhere.path().join("grad.onnx")).expect_err("the weights are not there");
    let beside = folder.path().join("grad.onnx");
    assert!(error.to_string().contains(&format!("help: write to {}", beside.display())), "{error}");
    gradients.write(&beside).unwrap_or_else(|e| panic!("{e}"));
    let mut session = Session::open(&beside, &runtime::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let (ids, x) = (HostTensor::new(&[1, 1], &[2i64]).unwrap(), HostTensor::new(&[1, 1, 3], &[0.0f64; 3]).unwrap());
    let out = session.run([("ids", &ids), ("x", &x)]).unwrap_or_else(|e| panic!("{e}"));
    // square is |wte[2]|^2.
    let want: Vec<f64> = values(15, 2)[6..9].iter().map(|w| 2.0 * w).collect();
    assert_eq!(out["grad/wte"].to_f64()[6..9], want);
}

#[test]
fn the_command_line_has_its_exit_codes() {
    let folder = TempDir::new().unwrap();
    let source = tiny(&folder, None);
    let bad = folder.path().join("bad.egg");
    std::fs::write(&bad, "(rewrite mine-div (div ?x ?y) (mul ?x ?y))").unwrap();
    let (source, bad, out) = (source.display().to_string(), bad.display().to_string(), folder.path().join("g.onnx"));
    let out = out.display().to_string();
    let weftc = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_weftc")).args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, json) = weftc(&["inspect", &source, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, json["parameters"][0]["numbers"].as_u64()), (Some(0), Some(15)), "{json}");
    let (code, text) = weftc(&["grad", &source, "--wrt", "wte,x", "--output", "loss", "-o", &out]);
    assert!(code == Some(0) && text.ends_with("2 gradients of loss\n"), "{text}");
    assert!(Path::new(&out).is_file());
    assert_eq!(weftc(&["grad", &source, "--output", "p", "-o", &out]).0, Some(2));
    assert_eq!(weftc(&["explain", "lift-silu", &source]).0, Some(0));
    assert_eq!(weftc(&["explain", "lift-sil", &source]).0, Some(2));
    let (code, table) = weftc(&["check-rules", &bad]);
    assert!(code == Some(6) && table.ends_with("0 of 1 rules proved\n"), "{table}");
}

/// A folder of rule files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("methods")).unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn compile_with(folder: &TempDir, change: impl FnOnce(&mut Options)) -> Result<BTreeMap<String, usize>, Error> {
    let rules = Some(folder.path().to_path_buf());
    let mut options = Options { mask_id: Some(31), rules, ..Options::new(model("llada_micro_dynamo18.onnx")) };
    change(&mut options);
    compile(&options).map(|c| c.manifest.rules_fired)
}

const WEFT: &str = include_str!("../rules/methods/weft.egg");

#[test]
fn rules_of_the_users_own_are_used() {
    let mine = WEFT.replace("(define weft", "(define mine");
    let folder = folder(&[
        ("lift-mine.egg", "(rewrite mine-swap (add ?x ?y) (add ?y ?x))"),
        ("anything.egg", ";; -(x - y) = y - x\n(rewrite mine-neg-sub (neg (sub ?x ?y)) (sub ?y ?x))"),
        ("fuse.egg", "(rewrite mine-mul-swap (mul ?x ?y) (mul ?y ?x))"),
        (
            "grad.egg",
            "(vjp (matmul ?a ?b) => (matmul ?dy (transpose ?b (swap_last ?b))) (matmul (transpose ?a (swap_last ?a)) ?dy))",
        ),
        ("lower.egg", "(lower mine-silu (silu ?x) (mul (sigmoid ?x) ?x))"),
        ("methods/mine.egg", &mine),
        ("notes.txt", "not a rule file"),
    ]);
    let fired = compile_with(&folder, |o| o.method = "mine".into()).unwrap_or_else(|e| panic!("{e}"));
    for rule in ["mine-swap", "mine-mul-swap", "mine"] {
        assert!(fired.get(rule).is_some_and(|n| *n > 0), "{rule}: {fired:?}");
    }
    assert!(!fired.contains_key("weft"));
}

#[test]
fn false_rules_are_refused_unless_trusted() {
    let folder = folder(&[("own.egg", ";; wrong\n(rewrite mine-sub (sub ?x ?y) (sub ?y ?x))")]);
    let error = compile_with(&folder, |_| {}).expect_err("x - y is not y - x");
    let message = error.to_string();
    assert!(message.contains("own.egg:2:1: the rule `mine-sub` is wrong"), "{message}");
    assert!(message.contains("help: at ["), "{message}");
    assert_eq!(error.exit_code(), 6);
    compile_with(&folder, |o| o.trust_rules = true).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn every_mistake_in_a_folder_is_told() {
    let mut out = String::new();
    let mut show = |title: &str, files: &[(&str, &str)]| {
        let folder = folder(files);
        let error = compile_with(&folder, |_| {}).err().unwrap_or_else(|| panic!("{title}: was accepted"));
        let text = error.to_string().replace(&folder.path().display().to_string(), "DIR");
        out += &format!("# {title}: exit code {}\n{text}\n\n", error.exit_code());
    };
    show(
        "clashes with the library and with each other, and a mistake",
        &[
            ("a.egg", "(rewrite lift-silu (mul ?x (sigmoid ?x)) (silu ?x))\n(rewrite twin (neg (neg ?x)) ?x)"),
            ("b.egg", "(rewrite twin (neg (neg ?x)) ?x)"),
            ("c.egg", "(rewrite mine (negg ?x) ?x)"),
        ],
    );
    show(
        "forms in the wrong file",
        &[
            ("own.egg", "(lower mine (silu ?x) (mul ?x (sigmoid ?x)))"),
            ("grad.egg", "(rewrite mine-neg (neg (neg ?x)) ?x)"),
        ],
    );
    show("a method's name is taken", &[("methods/weft.egg", &WEFT.replace("(define weft", "(define mine"))]);
    show("no rules", &[]);
    insta::assert_snapshot!(out);
}

#[test]
fn rule_files_are_checked() {
    let folder = folder(&[
        (
            "good.egg",
            ";; x + x\n(rewrite mine-neg (neg (neg ?x)) ?x)\n(rewrite mine-sub (sub ?x (neg ?y)) (add ?x ?y))",
        ),
        ("bad.egg", "(rewrite mine-div (div ?x ?y) (mul ?x ?y))\n(rewrite mine-never (neg ?x) ?x :when (rank ?x 99))"),
    ]);
    let path = |name: &str| folder.path().join(name);
    let report = check::check(&[path("good.egg")]).unwrap_or_else(|e| panic!("{e}"));
    assert!(report.to_string().ends_with("2 of 2 rules proved"), "{report}");
    assert!(report.verdict().is_ok());
    let report = check::check(&[path("good.egg"), path("bad.egg")]).unwrap_or_else(|e| panic!("{e}"));
    let table = report.to_string().replace(&folder.path().display().to_string(), "DIR");
    assert!(table.contains("DIR/bad.egg\n") && table.ends_with("2 of 4 rules proved"), "{table}");
    let error = report.verdict().expect_err("two are not proved");
    assert_eq!(error.exit_code(), 6);
    let text = error.to_string();
    assert!(text.contains("`mine-div` is wrong") && text.contains("`mine-never` could not be proved"), "{text}");
}
