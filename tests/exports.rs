//! Every export at hand: what was lifted, which rules fire where, and the step's numbers beside the oracle's.
//!
//! The exports of `models/` always, those of `../shared/models` where that folder is there.

use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use weftc::compile::{Options, Stage, compile, compile_watched, emit_ir};
use weftc::interp;
use weftc::ir::{DType, Graph, Leaf, LeafKind, Op};
use weftc::onnx::read;
use weftc::rules::Target;
use weftc::rules::library::library;
use weftc::runtime::HostTensor;
use weftc::train::{Setup, Trainer};

const OWN: &str = "models";
const SHARED: &str = "../shared/models";

const OWN_NAMES: [&str; 23] = [
    "attention_einsum_dynamo18",
    "attention_filled_dynamo18",
    "attention_groups_dynamo18",
    "attention_module_dynamo18",
    "attention_shared_legacy17",
    "attention_weights_dynamo18",
    "dream_micro_dynamo18",
    "experts_blocks_dynamo18",
    "experts_loop_dynamo18",
    "experts_put_dynamo18",
    "experts_put_legacy17",
    "experts_stacked_dynamo18",
    "llada_micro_dynamo18",
    "llada_micro_legacy17",
    "llada_micro_native23",
    "modulated_dynamo18",
    "modulated_legacy17",
    "rope_alternating_f16_dynamo18",
    "rope_complex_f32_dynamo18",
    "rope_halves_f16_legacy17",
    "rope_pairs_bf16_legacy17",
    "rope_pairs_f32_dynamo18",
    "sudoku",
];
const SHARED_NAMES: [&str; 12] = [
    "dream_nano_native__dynamo23",
    "dream_nano_sdpa__dynamo18",
    "hf_bert_eager__dynamo23",
    "hf_bert_sdpa__dynamo18",
    "hf_qwen2_bidir_sdpa__legacy17",
    "llada_nano_native__dynamo23",
    "llada_nano_sdpa__dynamo18",
    "llada_nano_sdpa__dynamo25",
    "llada_nano_sdpa__legacy17",
    "llada_tiny_native__dynamo23",
    "llada_tiny_sdpa__dynamo18",
    "optimum_bert",
];

/// The exports of a folder; none where one is missing.
fn exports(folder: &str) -> Vec<PathBuf> {
    let names = if folder == OWN { OWN_NAMES.as_slice() } else { &SHARED_NAMES };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files: Vec<PathBuf> = names.iter().map(|n| folder.join(format!("{n}.onnx"))).collect();
    if let Some(missing) = files.iter().find(|f| !f.is_file()) {
        println!("skipped: there is no {}", missing.display());
        return vec![];
    }
    files
}

fn name(file: &Path) -> String {
    file.file_stem().unwrap().to_string_lossy().to_string()
}

fn options(file: &Path, target: Target) -> Options {
    Options { mask_id: Some(3), target, ..Options::new(file) }
}

/// One step on ONNX Runtime in f32 and on the oracle in f64, on the same draws.
fn step_beside_the_oracle(file: &Path, target: Target) {
    let name = format!("{} {target:?}", name(file));
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train.onnx");
    compile(&options(file, target)).unwrap_or_else(|e| panic!("{name}: {e}")).write(&train).unwrap();
    let (batch, length) = (2i64, 12i64);
    let n = (batch * length) as usize;
    let mut runtime = Trainer::load(&train, Setup::default()).unwrap();
    let mut oracle = Trainer::load_interpreted(&train, Setup::default()).unwrap();
    let vocab = runtime.manifest().vocab_size;
    // A fixed sequence without structure; token 3 is the mask and does not occur.
    let tokens: Vec<i64> = (0..n as i64).map(|k| (k * 7 + 5) % vocab).map(|t| if t == 3 { 4 } else { t }).collect();
    let answer: Vec<bool> = (0..n).map(|k| k % length as usize >= 4 && k != n - 1).collect();
    let u: Vec<f32> = (0..n).map(|k| (k * 37 % 101) as f32 / 101.0).collect();
    let feeds = || {
        (
            HostTensor::new(&[batch, length], &tokens).unwrap(),
            HostTensor::new(&[batch, length], &answer).unwrap(),
            HostTensor::new(&[batch], &[0.7f32, 0.4]).unwrap(),
            HostTensor::new(&[batch, length], &u).unwrap(),
        )
    };
    let (a, b, c, d) = feeds();
    let ours = runtime.step_with(a, b, c, d).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (a, b, c, d) = feeds();
    let exact = oracle.step_with(a, b, c, d).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(ours.masked > 0, "{name}: nothing is masked");
    assert!(((ours.loss - exact.loss) / exact.loss).abs() < 1e-4, "{name}: loss {} and {}", ours.loss, exact.loss);
    assert_eq!(ours.diagnostics["mask"].to_f64(), exact.diagnostics["mask"].to_f64(), "{name}");
    let parameters: Vec<String> = runtime.parameters().map(str::to_string).collect();
    let gradient = |t: &Trainer, p: &str| t.gradient(p).unwrap().to_f64();
    let largest = |g: &[f64]| g.iter().fold(0f64, |m, x| m.max(x.abs()));
    let over_all = parameters.iter().map(|p| largest(&gradient(&oracle, p))).fold(0f64, f64::max);
    for p in &parameters {
        let (x, y) = (gradient(&runtime, p), gradient(&oracle, p));
        // A gradient that vanishes (a bias that softmax cancels) is compared with the largest of all.
        let scale = largest(&y).max(1e-3 * over_all);
        let apart = x.iter().zip(&y).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / scale;
        assert!(apart < 1e-4, "{name}: gradient of {p} differs by {apart:.1e}");
    }
}

#[test]
fn own_exports_step_as_the_oracle_does() {
    let files = exports(OWN);
    assert!(!files.is_empty());
    for file in &files {
        for target in [Target::Portable, Target::Cpu] {
            step_beside_the_oracle(file, target);
        }
    }
}

/// `inspect` and `bench` read what was compiled.
#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    for file in &exports(OWN) {
        for target in [Target::Portable, Target::Cpu, Target::Cuda] {
            let path = folder.path().join("train.onnx");
            compile(&options(file, target)).unwrap().write(&path).unwrap();
            let again = read(&path).unwrap_or_else(|e| panic!("{} for {target:?}: {e}", name(file)));
            assert!(again.is_training_graph);
        }
    }
}

/// ONNX's TopK takes no bf16, which is what is computed in on a GPU.
#[test]
fn experts_are_chosen_in_f32() {
    let is_choice = |op| matches!(op, Some(Op::TopkValues | Op::TopkIndices));
    for file in exports(OWN).iter().filter(|f| name(f).starts_with("experts_")) {
        let graph = compile(&options(file, Target::Cuda)).unwrap().graph;
        let chosen: Vec<DType> = graph
            .live()
            .into_iter()
            .filter(|id| is_choice(graph.node(*id).op()))
            .map(|id| graph.tensor_type(graph.node(id).children()[0]).unwrap().dtype)
            .collect();
        assert!(!chosen.is_empty() && chosen.iter().all(|t| *t == DType::F32), "{}: {chosen:?}", name(file));
    }
}

#[test]
fn shared_exports_step_as_the_oracle_does() {
    for file in &exports(SHARED) {
        for target in [Target::Portable, Target::Cpu] {
            step_beside_the_oracle(file, target);
        }
    }
}

/// The logits of the graph as it was read and of the composites, in f64, where narrow types round nothing.
#[test]
fn lifting_changes_no_logits() {
    for file in exports(OWN).iter().chain(&exports(SHARED)) {
        let source = read(file).unwrap().graph;
        let mut lifted = None;
        compile_watched(&options(file, Target::Cpu), &mut |stage, graph| {
            if stage == Stage::Lift {
                lifted = Some(graph.clone());
            }
        })
        .unwrap();
        let (batch, length) = (2, 7);
        let feed = |leaf: &Leaf| {
            let value = |k: usize| match &*leaf.name {
                name if name.contains("mask") => 1.0,
                name if name.contains("position") => (k % length) as f64,
                name if name.contains("type") => 0.0,
                _ => ((k * 7 + 5) % 13) as f64,
            };
            let values: Vec<f64> = (0..batch * length).map(value).collect();
            (leaf.name.clone(), Tensor::from_vec(values, (batch, length), &Device::Cpu).unwrap())
        };
        let feeds: BTreeMap<String, Tensor> =
            source.leaves.iter().filter(|l| l.kind == LeafKind::Input).map(feed).collect();
        let lifted = lifted.unwrap();
        let logits = &lifted.outputs[0].0;
        let values = |graph: &Graph| -> Vec<f64> {
            interp::run(graph, &feeds).unwrap()[logits].flatten_all().unwrap().to_vec1().unwrap()
        };
        let (before, after) = (values(&source), values(&lifted));
        let largest = before.iter().fold(0f64, |m, x| m.max(x.abs()));
        let apart = before.iter().zip(&after).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / largest;
        println!("{:<32} {apart:.1e}", name(file));
        assert!(before.len() == after.len() && apart < 1e-7, "{}: {apart:.1e}", name(file));
    }
}

/// How often an operator stands in a graph's text.
fn count(text: &str, op: &str) -> usize {
    text.matches(&format!("({op} ")).count()
}

/// The composites, and what of their spellings must not be left over.
const COMPOSITES: [&str; 10] =
    ["rms_norm", "layer_norm", "rope", "attention", "attention_bias", "swiglu", "silu", "gelu", "gelu_tanh", "matmul"];
const LEFT_OVER: [&str; 9] = ["softmax", "sigmoid", "erf", "tanh", "rsqrt", "sqrt", "mean", "rotate_half", "is_nan"];

fn lifted_table(files: &[PathBuf]) -> String {
    let mut out = format!("{:<30}", "");
    COMPOSITES.iter().for_each(|c| out += &format!("{c:>15}"));
    out += "  left over\n";
    for file in files {
        let text = emit_ir(&options(file, Target::Cpu), Stage::Lift).unwrap();
        out += &format!("{:<30}", name(file));
        COMPOSITES.iter().for_each(|c| out += &format!("{:>15}", count(&text, c)));
        let left: Vec<String> = LEFT_OVER.iter().filter(|op| count(&text, op) > 0).map(|op| op.to_string()).collect();
        out += &format!("  {}\n", if left.is_empty() { "nothing".into() } else { left.join(" ") });
    }
    out
}

#[test]
fn own_exports_are_lifted() {
    insta::assert_snapshot!(lifted_table(&exports(OWN)));
}

#[test]
fn shared_exports_are_lifted() {
    let files = exports(SHARED);
    if !files.is_empty() {
        insta::assert_snapshot!(lifted_table(&files));
    }
}

/// A graph for each rule that no export here needs.
const CASES: &[(&str, &str)] = &[
    ("power-minus-half", "(pow x -0.5)"),
    ("div-sqrt", "(div x (sqrt y))"),
    ("lift-rms-norm-factor", "(mul x (mul (rsqrt (add (mean (mul x x) [-1]) 1e-5)) w))"),
    (
        "lift-normalize",
        "(mul (sub x (mean x [-1])) (rsqrt (add (mean (mul (sub x (mean x [-1])) (sub x (mean x [-1]))) [-1]) 1e-5)))",
    ),
    (
        "lift-normalize-moments",
        "(mul (sub x (mean x [-1])) (rsqrt (add (max (sub (mean (mul x x) [-1]) (mul (mean x [-1]) (mean x [-1]))) 0.0) 1e-5)))",
    ),
    ("lift-layer-norm", "(add (mul (normalize x 1e-5) w) b)"),
    (
        "lift-layer-norm-affine",
        "(add (mul x (mul (rsqrt (add (mean (mul (sub x (mean x [-1])) (sub x (mean x [-1]))) [-1]) 1e-5)) w))
           (sub b (mul (mean x [-1]) (mul (rsqrt (add (mean (mul (sub x (mean x [-1])) (sub x (mean x [-1]))) [-1]) 1e-5)) w))))",
    ),
    (
        "lift-rope-halves",
        "(concat (sub (mul (slice q 3 0 2 1) c) (mul (slice q 3 2 4 1) d))
           (add (mul (slice q 3 2 4 1) c) (mul (slice q 3 0 2 1) d)) 3)",
    ),
    (
        "lift-rope-pairs",
        "(reshape (concat
           (reshape (sub (mul (reshape (slice p 4 0 1 1) [batch 2 seq 2]) c) (mul (reshape (slice p 4 1 2 1) [batch 2 seq 2]) d)) [batch 2 seq 2 1])
           (reshape (add (mul (reshape (slice p 4 0 1 1) [batch 2 seq 2]) d) (mul (reshape (slice p 4 1 2 1) [batch 2 seq 2]) c)) [batch 2 seq 2 1])
           4) [batch 2 seq 4])",
    ),
    (
        "lift-rope-alternating",
        "(add (mul q (concat c c -1)) (mul
           (reshape (concat (reshape (neg (slice q 3 1 4 2)) [batch 2 seq 2 1]) (reshape (slice q 3 0 4 2) [batch 2 seq 2 1]) 4) [batch 2 seq 4])
           (concat d d -1)))",
    ),
    ("slice-concat-first", "(slice (concat c d 1) 1 0 2 1)"),
    ("slice-concat-second", "(slice (concat c d 1) 1 2 4 1)"),
    ("slice-slice", "(slice (slice y 1 1 4 1) 1 1 3 1)"),
    ("concat-concat", "(concat (concat c d 1) (concat d c 1) 1)"),
    ("lift-gelu", "(mul (mul x 0.5) (add 1.0 (erf (mul x 0.70710678))))"),
    ("lift-gelu-tanh", "(mul (mul x 0.5) (add 1.0 (tanh (mul 0.79788456 (add x (mul 0.044715 (mul x (mul x x))))))))"),
    ("lift-gelu-tanh-power", "(mul (mul x 0.5) (add 1.0 (tanh (mul 0.79788456 (add x (mul 0.044715 (pow x 3.0)))))))"),
    ("tanh-outer-half", "(mul 0.5 (mul x (add 1.0 (tanh y))))"),
    ("tanh-inner-half", "(mul x (mul 0.5 (add 1.0 (tanh y))))"),
    ("lift-attention-unscaled", "(matmul (softmax (matmul q (transpose k [0 1 3 2])) -1) v)"),
    ("lift-attention-bias-unscaled", "(matmul (softmax (add (matmul q (transpose k [0 1 3 2])) m) -1) v)"),
    (
        "lift-attention-bias-guarded",
        "(matmul (where (is_nan (softmax (add (mul (matmul q (transpose k [0 1 3 2])) 0.5) m) -1)) 0.0
           (softmax (add (mul (matmul q (transpose k [0 1 3 2])) 0.5) m) -1)) v)",
    ),
    (
        "lift-attention-bias-guarded-unscaled",
        "(matmul (where (is_nan (softmax (add (matmul q (transpose k [0 1 3 2])) m) -1)) 0.0
           (softmax (add (matmul q (transpose k [0 1 3 2])) m) -1)) v)",
    ),
    (
        "lift-attention-guarded-unscaled",
        "(matmul (where (is_nan (softmax (matmul q (transpose k [0 1 3 2])) -1)) 0.0
           (softmax (matmul q (transpose k [0 1 3 2])) -1)) v)",
    ),
    (
        "lift-attention-kept",
        "(matmul (softmax (where (greater m 0.0) (mul (matmul q (transpose k [0 1 3 2])) 0.5) -inf) -1) v)",
    ),
    ("attention-even-bias", "(attention_bias q k v (full 1e-9 f32 [batch 1 1 seq]) 0.5)"),
    ("sum-over-count", "(div (sum x [-1]) 8.0)"),
    ("scale-rope", "(rope (mul q 0.5) cos sin)"),
    ("expand-identity", "(expand x [batch 8])"),
    ("expand-expand", "(expand (expand w [1 8]) [batch 8])"),
    ("cast-identity", "(cast x f32)"),
    ("slice-identity", "(slice x 0 0 batch 1)"),
    ("neg-neg", "(neg (neg x))"),
    ("mul-one", "(mul x 1.0)"),
    ("div-one", "(div x 1.0)"),
    ("add-zero", "(add x 0.0)"),
    ("sub-zero", "(sub x 0.0)"),
    ("mul-neg", "(mul (neg x) y)"),
    ("sub-neg", "(sub x (neg y))"),
    ("gemm-nt", "(matmul x (transpose s [1 0]))"),
    ("matmul-nbits", "(matmul x (transpose (dequantize codes scales 8 8) [1 0]))"),
    ("product-fused", "(matmul (transpose h [0 2 1]) g)"),
    ("sink-loss-times", "(weighted_cross_entropy h ids (mul (loss_weight r mask mask token 1.0) r))"),
    ("sink-loss-mask", "(weighted_cross_entropy h ids (cast mask f32))"),
    ("rms-norm-tokens", "(rms_norm (transpose (reshape h [batch seq 2 4]) [0 2 1 3]) c4 0.1)"),
    ("layer-norm-tokens", "(layer_norm (transpose (reshape h [batch seq 2 4]) [0 2 1 3]) c4 c4 0.1)"),
    (
        "tokens-first-grouped",
        "(attention (transpose (reshape h [batch seq 2 4]) [0 2 1 3])
           (reshape (expand (reshape (transpose (reshape (slice g 2 0 4 1) [batch seq 1 4]) [0 2 1 3]) [batch 1 1 seq 4]) [batch 1 2 seq 4]) [batch 2 seq 4])
           (reshape (expand (reshape (transpose (reshape (slice g 2 4 8 1) [batch seq 1 4]) [0 2 1 3]) [batch 1 1 seq 4]) [batch 1 2 seq 4]) [batch 2 seq 4])
           0.5)",
    ),
    ("take-put", "(take_rows (put_rows (take_rows h i) i batch seq) i)"),
    ("take-matmul-nbits", "(take_rows (matmul_nbits h codes scales 8 8) i)"),
    ("take-gather", "(take_rows (gather s ids 0) i)"),
    ("take-packed", "(take_rows (gather (reshape h [batch*seq 8]) ids 0) i)"),
    (
        "take-rope-places",
        "(take_rows (transpose (rope q (expand (reshape cos [1 1 seq 4]) [batch 1 seq 4]) (expand (reshape sin [1 1 seq 4]) [batch 1 seq 4])) [0 2 1 3]) i)",
    ),
    ("take-add-row", "(take_rows (add h b) i)"),
    ("take-add-number", "(take_rows (add h 1.0) i)"),
    ("take-sub", "(take_rows (sub h g) i)"),
    ("take-mul", "(take_rows (mul h g) i)"),
    ("take-mul-row", "(take_rows (mul b h) i)"),
    ("take-mul-number", "(take_rows (mul h 2.0) i)"),
    ("take-max-number", "(take_rows (max h 0.0) i)"),
    ("take-cast", "(take_rows (cast h f64) i)"),
    ("take-tanh", "(take_rows (tanh h) i)"),
    ("take-sigmoid", "(take_rows (sigmoid h) i)"),
    ("take-silu", "(take_rows (silu h) i)"),
    ("take-gelu", "(take_rows (gelu h) i)"),
    ("take-gelu-tanh", "(take_rows (gelu_tanh h) i)"),
    ("take-layer-norm", "(take_rows (layer_norm h w b 0.1) i)"),
    ("take-normalize", "(take_rows (normalize h 0.1) i)"),
    ("take-sum", "(take_rows (sum h [-1]) i)"),
    ("take-rms-norm-heads", "(take_rows (transpose (rms_norm q c4 0.1) [0 2 1 3]) i)"),
    ("take-shifted", "(take_rows (shift_logits h 1) (true_rows mask rows.7))"),
    ("take-shifted-matmul-nbits", "(take_rows (shift_logits (matmul_nbits h codes scales 8 8) 1) i)"),
    ("take-shifted-add-row", "(take_rows (shift_logits (add h b) 1) i)"),
    ("take-shifted-mul-number", "(take_rows (shift_logits (mul h 0.5) 1) i)"),
    ("take-shifted-cast", "(take_rows (shift_logits (cast h f64) 1) i)"),
    ("take-shifted-by-concat", "(take_rows (concat (slice h 1 0 1 1) (slice h 1 0 seq-1 1) 1) i)"),
    ("sink-queries", "(take_rows (transpose (attention (transpose (reshape h [batch seq 2 4]) [0 2 1 3]) k v 0.5) [0 2 1 3]) i)"),
    (
        "sink-queries-bias",
        "(take_rows (transpose (attention_bias (transpose (reshape h [batch seq 2 4]) [0 2 1 3]) k v bias 0.5) [0 2 1 3]) i)",
    ),
    ("sink-head-entropy-scale", "(token_entropy (mul (matmul x (transpose s [1 0])) 0.5) some)"),
    ("sink-head-loss-scale", "(weighted_cross_entropy (mul (matmul x (transpose s [1 0])) 0.5) one each)"),
    ("sink-head-entropy-cast-table", "(token_entropy (matmul x (cast (transpose s16 [1 0]) f32)) some)"),
    ("sink-head-loss-cast-table", "(weighted_cross_entropy (matmul x (cast (transpose s16 [1 0]) f32)) one each)"),
    (
        "sink-queries-rope-bias",
        "(take_rows (transpose (attention_bias (rope q cos sin) k v bias 0.5) [0 2 1 3]) i)",
    ),
    ("cuda-decode", "(dequantize codes scales 4 64)"),
    ("cuda-decode-filled", "(dequantize codes scales 8 8)"),
    // As where half of each head is rotated.
    ("cuda-attention", "(attention (cast q f16) (cast k f16) (cast v f16) 0.5)"),
    (
        "cuda-attention-grad",
        "(attention_grad (cast (concat q q 3) f16) (cast (concat q k 3) f16) (cast (concat k v 3) f16) (cast (concat v v 3) f16) 0.5)",
    ),
    (
        "cuda-attention-bias",
        "(attention_bias (cast (concat q k 3) f16) (cast (concat k v 3) f16) (cast (concat v v 3) f16) (cast bias f16) 0.5)",
    ),
    (
        "cuda-attention-bias-grad",
        "(attention_bias_grad (cast (concat q q 3) f16) (cast (concat q k 3) f16) (cast (concat k v 3) f16) (cast (concat v v 3) f16) (cast bias f16) 0.5)",
    ),
];

/// Whether a library rule fires on a case's graph, among all rewrites of the library.
fn fires(rule: &str, term: &str) -> bool {
    let text = format!(
        "(graph case
           (input x f32 [batch 8]) (input y f32 [batch 8]) (param w f32 [8]) (param b f32 [8]) (param s f32 [4 8])
           (param s16 f16 [4 8]) (input some bool [batch]) (input one i64 [batch]) (input each f32 [batch])
           (param codes u8 [4 1 32]) (param scales f32 [4 1])
           (input q f32 [batch 2 seq 4]) (input k f32 [batch 2 seq 4]) (input v f32 [batch 2 seq 4])
           (input h f32 [batch seq 8]) (input g f32 [batch seq 8]) (input mask bool [batch seq]) (input i i64 [n]) (input ids i64 [batch seq])
           (input r f32 [batch seq]) (param c4 f32 [4])
           (input cos f32 [seq 4]) (input sin f32 [seq 4]) (input bias f32 [seq seq])
           (input m f32 [1 1 1 seq]) (input p f32 [batch 2 seq 2 2]) (input c f32 [seq 2]) (input d f32 [seq 2])
           (output out {term}))"
    );
    let graph = weftc::ir::text::parse(&text).unwrap_or_else(|e| panic!("{rule}: {}", e.message));
    let library = library().unwrap();
    let rules: Vec<_> =
        [&library.lift, &library.simplify, &library.layout, &library.fuse].into_iter().flatten().collect();
    if library.sink.iter().any(|r| *r.name == *rule) {
        let (sink, simplify): (Vec<_>, Vec<_>) = (library.sink.iter().collect(), library.simplify.iter().collect());
        return weftc::sink::sink(&graph, &sink, &simplify, true).unwrap().fired.contains_key(rule);
    }
    if library.lower.iter().any(|r| *r.name == *rule) {
        let mut fired = BTreeMap::new();
        let rules = library.lower_for(Target::Cuda);
        let expanded = weftc::lower::expand(&graph, &rules, Target::Cuda, &mut fired).unwrap();
        weftc::lower::finish(&expanded, &rules, Target::Cuda, &mut fired).unwrap();
        return fired.contains_key(rule);
    }
    weftc::rewrite::saturate(&graph, &rules, &Default::default()).unwrap().fired.contains_key(rule)
}

#[test]
fn every_case_fires_its_rule() {
    let silent: Vec<&str> = CASES.iter().filter(|(rule, term)| !fires(rule, term)).map(|(rule, _)| *rule).collect();
    assert!(silent.is_empty(), "these do not fire in their case: {}", silent.join(", "));
}

#[test]
fn every_rule_fires_in_a_model_or_a_case() {
    let files = exports(SHARED);
    if files.is_empty() {
        return;
    }
    let files = [exports(OWN), files].concat();
    let mut fired: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in &files {
        for target in [Target::Portable, Target::Cpu, Target::Cuda] {
            for rule in compile(&options(file, target)).unwrap().manifest.rules_fired.into_keys() {
                fired.entry(rule).or_default().insert(name(file));
            }
        }
    }
    let library = library().unwrap();
    let mut out = String::new();
    let mut nowhere = Vec::new();
    let families = [&library.lift, &library.simplify, &library.layout, &library.sink, &library.fuse];
    // What a target has that is better is used somewhere too.
    let marked = library.lower.iter().filter(|rule| rule.target.is_some());
    for rule in families.into_iter().flatten().chain(marked) {
        let rule = rule.name.to_string();
        let place = match fired.get(&rule) {
            Some(models) => format!("{} models, first {}", models.len(), models.first().unwrap()),
            None if CASES.iter().any(|(name, _)| *name == rule) => "a case of its own".to_string(),
            None => {
                nowhere.push(rule.clone());
                "nowhere".to_string()
            }
        };
        out += &format!("{rule:<34} {place}\n");
    }
    assert!(nowhere.is_empty(), "rules that fire in no model and no case: {}", nowhere.join(", "));
    insta::assert_snapshot!(out);
}

#[test]
fn composites_are_operators() {
    for name in COMPOSITES.iter().chain(&LEFT_OVER) {
        assert!(Op::parse(name).is_some(), "{name}");
    }
}
