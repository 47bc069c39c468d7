//! Sequences that share rows: every loss and gradient is that of the sequences alone.

use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use weftc::adapt::Spec;
use weftc::compile::{Options, compile};
use weftc::interp;
use weftc::ir::{Graph, LeafKind, text};
use weftc::packing;
use weftc::rules::Target;
use weftc::train::batch::Batch;
use weftc::train::data::{Packing, Sample};
use weftc::train::sampler::Sampler;
use weftc::train::{Setup, Trainer};

const OWN: [&str; 12] = [
    "dream_micro_dynamo18",
    "experts_blocks_dynamo18",
    "experts_stacked_dynamo18",
    "llada_micro_dynamo18",
    "llada_micro_legacy17",
    "llada_micro_native23",
    "rope_alternating_f16_dynamo18",
    "rope_complex_f32_dynamo18",
    "rope_halves_f16_legacy17",
    "rope_pairs_bf16_legacy17",
    "rope_pairs_f32_dynamo18",
    "sudoku",
];
const SHARED: [&str; 7] = [
    "dream_nano_native__dynamo23",
    "dream_nano_sdpa__dynamo18",
    "hf_bert_eager__dynamo23",
    "hf_bert_sdpa__dynamo18",
    "hf_qwen2_bidir_sdpa__legacy17",
    "llada_nano_sdpa__legacy17",
    "optimum_bert",
];

const MASK: i64 = 3;

fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(format!("{name}.onnx"))
}

/// Samples of these lengths; the last has tokens behind its answer that are not supervised.
fn samples(lengths: &[usize], vocabulary: i64) -> Vec<Sample> {
    let token = |k: usize| match (k as i64 * 7 + 5) % vocabulary {
        MASK => MASK + 1,
        token => token,
    };
    let sample = |(s, n): (usize, &usize)| Sample {
        tokens: (0..*n).map(|k| token(k * (s + 2) + s)).collect(),
        prompt: n / 3,
        total: n - usize::from(s + 1 == lengths.len()),
    };
    lengths.iter().enumerate().map(sample).collect()
}

/// The loss, its count, and every gradient of a step.
type Step = (f64, f64, BTreeMap<String, Vec<f64>>);

/// A step of the samples, packed or each alone in a micro-batch of its own.
fn step(options: &Options, lengths: &[usize], packed: bool, interpreted: bool) -> Step {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.onnx");
    let options = Options { packing: packed, ..options.clone() };
    let name = options.model.display().to_string();
    compile(&options).unwrap_or_else(|e| panic!("{name}: {e}")).write(&path).unwrap();
    let setup = Setup { accumulate: lengths.len(), ..Setup::default() };
    let load = if interpreted { Trainer::load_interpreted } else { Trainer::load };
    let mut trainer = load(&path, setup).unwrap_or_else(|e| panic!("{name}: {e}"));
    let samples = samples(lengths, trainer.manifest().vocab_size);
    let numbered: Vec<(usize, &Sample)> = samples.iter().enumerate().collect();
    let size = if packed { lengths.len() } else { 1 };
    let batch = |part: &[(usize, &Sample)]| Batch::new(part, trainer.shape(), Sampler::new(4), 1).unwrap();
    let mut batches: Vec<Batch> = numbered.chunks(size).map(batch).collect();
    if packed && lengths.iter().all(|n| *n == lengths[0]) {
        // Samples of one length in two rows, which is not what a run would choose.
        let (rows, n) = (lengths.len().div_ceil(2), lengths[0]);
        let starts = (0..lengths.len()).map(|s| (s / 2, s % 2 * n)).collect();
        batches[0].places = Some(Packing { rows, length: 2 * n, starts }.places(lengths, n).unwrap());
    }
    assert!(!packed || batches[0].places.as_ref().unwrap().shape()[0] < lengths.len() as i64, "no row is shared");
    let result = trainer.step_on(&batches, false).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(result.masked > 0, "{name}: nothing is masked");
    let names: Vec<String> = trainer.parameters().map(str::to_string).collect();
    let gradient = |name: String| (name.clone(), trainer.gradient(&name).unwrap().to_f64());
    (result.loss_sum, result.loss_count, names.into_iter().map(gradient).collect())
}

/// The relative difference of two losses, and the largest of two gradients beside the largest of their weight, or a
/// thousandth of the largest of all where it vanishes.
fn apart(ours: &Step, theirs: &Step) -> (f64, f64) {
    assert_eq!(ours.1, theirs.1);
    let largest = |g: &[f64]| g.iter().fold(0f64, |m, x| m.max(x.abs()));
    let over_all = theirs.2.values().map(|g| largest(g)).fold(0f64, f64::max);
    let gradients = theirs.2.iter().map(|(name, b)| {
        let off = ours.2[name].iter().zip(b).fold(0f64, |m, (x, y)| m.max((x - y).abs()));
        off / largest(b).max(1e-3 * over_all)
    });
    ((ours.0 - theirs.0).abs() / theirs.0.abs(), gradients.fold(0f64, f64::max))
}

/// In f64 nothing but the order of sums differs; in f32 that is a few units of the last digit.
fn check(name: &str, options: &Options, lengths: &[usize], interpreted: bool) {
    let (loss, gradients) =
        apart(&step(options, lengths, true, interpreted), &step(options, lengths, false, interpreted));
    println!("{name:<44} {} {loss:.1e} {gradients:.1e}", if interpreted { "f64" } else { "f32" });
    let (least, most) = if interpreted { (1e-12, 1e-10) } else { (1e-6, 1e-5) };
    assert!(loss < least && gradients < most, "{name}: the loss differs by {loss:.1e}, a gradient by {gradients:.1e}");
}

fn options(model: PathBuf) -> Options {
    Options { mask_id: Some(MASK), ..Options::new(model) }
}

#[test]
fn exports_step_as_their_sequences_alone() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models");
    let there = SHARED.iter().map(|n| shared.join(format!("{n}.onnx"))).filter(|f| f.is_file());
    for model in OWN.iter().map(|n| own(n)).chain(there) {
        let name = model.file_stem().unwrap().to_string_lossy().to_string();
        for target in [Target::Cpu, Target::Portable] {
            check(&name, &Options { target, ..options(model.clone()) }, &[9, 4, 6], false);
        }
        check(&name, &options(model), &[9, 4, 6], true);
    }
}

#[test]
fn every_method_steps_as_its_sequences_alone() {
    for method in ["weft", "sft", "weft-nll", "sw", "cart", "papl"] {
        // CART counts a batch's padding as context, in rows too: no sample has any here.
        let lengths: &[usize] = if method == "cart" { &[7, 7, 7] } else { &[5, 3, 10, 6, 2] };
        for (model, logits_shift) in [("llada_micro_dynamo18", 0), ("dream_micro_dynamo18", 1)] {
            let options = Options { method: method.into(), logits_shift, ..options(own(model)) };
            check(&format!("{method} {model}"), &options, lengths, true);
            for norm in ["sequence", "token", "masked"] {
                let options = options.clone().with("loss_norm", norm);
                check(&format!("{method} {model} {norm}"), &options, lengths, false);
            }
        }
    }
}

/// A token is dropped where it would be alone: its numbers are its sequence's.
#[test]
fn adapters_and_dropout_step_as_their_sequences_alone() {
    for (adapter, dropout) in [("lora", 0.0), ("lora", 0.4), ("dora", 0.4)] {
        let targets = ["q", "v", "up", "head"].map(String::from).to_vec();
        let adapter_spec = Spec { rank: 4, alpha: 8.0, targets, dropout, seed: 2 };
        let options = Options {
            trainable: adapter.parse().unwrap(),
            adapter: adapter_spec,
            ..options(own("llada_micro_dynamo18"))
        };
        for target in [Target::Cpu, Target::Portable] {
            let options = Options { target, ..options.clone() };
            check(&format!("{adapter} {dropout} {target:?}"), &options, &[7, 4, 11, 3, 5], false);
        }
        check(&format!("{adapter} {dropout}"), &options, &[7, 4, 11, 3, 5], true);
    }
}

fn parsed(body: &str) -> Graph {
    let text = format!(
        "(graph g (input ids i64 [batch seq]) (input mask f32 [batch seq]) (param e f32 [13 8]) (param w f32 [8 8])
           (param wpe f32 [20 8]) (param slopes f32 [2 1 1]) (param head f32 [8 13]) (param n f32 [8])
           (let x (gather e ids 0)) {body})"
    );
    text::parse(&text).unwrap_or_else(|e| panic!("{}\n{text}", e.message))
}

const HEADS: &str = "
    (let h (matmul x w)) (let q (transpose (reshape h [batch seq 2 4]) [0 2 1 3]))
    (let away (abs (sub (reshape (iota seq) [seq 1]) (reshape (iota seq) [1 seq]))))";
const AFTER: &str = "(let y (matmul (reshape (transpose a [0 2 1 3]) [batch seq 8]) head)) (output logits y)";

/// Logits of each sequence alone, and of all of them in rows.
fn logits(graph: &Graph, lengths: &[usize]) -> [Vec<f64>; 2] {
    let padded = *lengths.iter().max().unwrap();
    let run = |graph: &Graph, part: &[usize], first: usize, long: usize, places: Option<Tensor>| {
        let mut feeds: BTreeMap<String, Tensor> = BTreeMap::new();
        for leaf in &graph.leaves {
            let random = |k: usize| ((k * 37 + leaf.name.len() * 11) % 29) as f64 / 29.0 - 0.5;
            let value = match (leaf.kind, &*leaf.name) {
                (LeafKind::Input, "places") => places.clone().unwrap(),
                (LeafKind::Input, name) => {
                    let of = |s: usize, k: usize| match name {
                        "ids" => ((s + first) * 5 + k * 7 + k * k) as f64 % 13.0,
                        _ => f64::from(u8::from(k % 4 != 3)),
                    };
                    let values: Vec<f64> = (0..part.len() * long).map(|k| of(k / long, k % long)).collect();
                    Tensor::from_vec(values, (part.len(), long), &Device::Cpu).unwrap()
                }
                _ => {
                    let shape: Vec<usize> = leaf.ty.shape.iter().map(|d| d.known().unwrap() as usize).collect();
                    let n: usize = shape.iter().product();
                    Tensor::from_vec((0..n).map(random).collect::<Vec<f64>>(), shape, &Device::Cpu).unwrap()
                }
            };
            feeds.insert(leaf.name.clone(), value);
        }
        let found = interp::run(graph, &feeds).unwrap_or_else(|e| panic!("{e:?}"))["logits"].clone();
        found.flatten_all().unwrap().to_vec1::<f64>().unwrap()
    };
    let alone: Vec<f64> = lengths.iter().enumerate().flat_map(|(s, n)| run(graph, &[*n], s, *n, None)).collect();
    let packing = Packing::of(lengths);
    assert!(packing.rows < lengths.len());
    let places = packing.places(lengths, padded).unwrap().to_f64();
    let places = Tensor::from_vec(places, (packing.rows, packing.length), &Device::Cpu).unwrap();
    let packed = packing::apply(graph, "ids").unwrap_or_else(|e| panic!("{e}"));
    let all = run(&packed, lengths, 0, padded, Some(places));
    let width = all.len() / lengths.len() / padded;
    let own = |s: usize| all[s * padded * width..(s * padded + lengths[s]) * width].to_vec();
    [alone, (0..lengths.len()).flat_map(own).collect()]
}

/// What depends on places: as operands of either rank, over pairs of tokens, by head, learned, cut out of tables.
#[test]
fn places_are_those_in_a_sequence() {
    let bodies = [
        "(let a (attention q q q 0.5))",
        // Learned positions: looked up at a count, and cut out of their table.
        "(let h2 (add x (gather wpe (iota seq) 0))) (let a (transpose (reshape h2 [batch seq 2 4]) [0 2 1 3]))",
        "(let h2 (add x (reshape (slice wpe 0 0 seq 1) [1 seq 8]))) (let a (transpose (reshape h2 [batch seq 2 4]) [0 2 1 3]))",
        "(let a (transpose (reshape (tanh (reshape x [batch seq 4 2])) [batch seq 2 4]) [0 2 1 3]))",
        "(let h2 (add x (tanh (slice wpe 0 0 seq 1)))) (let a (transpose (reshape h2 [batch seq 2 4]) [0 2 1 3]))",
        "(let h2 (add x (expand (reshape (slice wpe 0 0 seq 1) [1 seq 8]) [batch seq 8]))) (let a (transpose (reshape h2 [batch seq 2 4]) [0 2 1 3]))",
        // By head.
        "(let a (mul q (add (mul (cast (reshape (iota seq) [seq 1]) f32) 0.1) slopes)))",
        // Distances by head, and a mask of the keys.
        "(let far (mul (cast away f32) slopes)) (let a (attention_bias q q q far 0.5))",
        "(let shut (where (greater mask 0.5) (full 0.0 f32 [1]) -1e9)) (let b (add (reshape shut [batch 1 1 seq]) (mul (cast (reshape away [1 1 seq seq]) f32) 0.1)))
         (let a (attention_bias q q q b 0.5))",
        // A window, and a causal mask.
        "(let near (where (less away 2) (full 0.0 f32 [1]) -1e9)) (let a (attention_bias q q q near 0.5))",
        // What a row of the batch counts as a place of its own.
        "(let at (expand (reshape (cast (iota seq) f32) [1 seq]) [batch seq])) (let a (mul q (reshape at [batch 1 seq 1])))",
        // One list of all tokens.
        "(let r (reshape (tanh (reshape x [batch*seq 8])) [batch seq 8])) (let a (transpose (reshape r [batch seq 2 4]) [0 2 1 3]))",
    ];
    for body in bodies {
        let graph = parsed(&format!("{HEADS} {body} {AFTER}"));
        let [alone, packed] = logits(&graph, &[5, 2, 7, 3, 4]);
        let apart = alone.iter().zip(&packed).fold(0f64, |m, (x, y)| m.max((x - y).abs()));
        assert!(alone.len() == packed.len() && apart < 1e-12, "{body}\ndiffers by {apart:.1e}");
    }
}

/// Rows that a model chooses itself, as for experts, are looked up and put back by their tokens' numbers, however those are
/// taken apart.
#[test]
fn chosen_rows_are_their_tokens() {
    let bodies = [
        // Of one list of all tokens.
        "(let r (true_rows (reshape on [batch*seq]) rows)) (let y (tanh (matmul (gather flat r 0) w)))
         (let z (reshape (put_rows y r 1 batch*seq) [batch seq 8]))",
        // Of sequences, added to all.
        "(let r (true_rows on rows)) (let y (tanh (matmul (gather flat r 0) w)))
         (let z (reshape (scatter_add flat (expand (reshape r [rows 1]) [rows 8]) y 0) [batch seq 8]))",
        // Of pairs of a choice and a token, which are told apart.
        "(let r (true_rows (transpose (reshape (greater x 0.1) [batch*seq 8]) [1 0]) rows)) (let k (div r batch*seq))
         (let t (sub r (mul k batch*seq))) (let share (gather (reshape x [8*batch*seq 1]) (add (mul t 8) k) 0))
         (let y (mul (matmul (gather flat t 0) w) share))
         (let z (reshape (scatter_add (full 0.0 f32 [batch*seq 8]) (expand (reshape t [rows 1]) [rows 8]) y 0) [batch seq 8]))",
        // The choice between sequences and places.
        "(let r (true_rows (transpose (greater x 0.1) [0 2 1]) rows)) (let b (div r 8*seq)) (let j (sub r (mul b 8*seq)))
         (let k (div j seq)) (let l (sub j (mul k seq))) (let t (add l (mul b seq)))
         (let y (mul (gather flat t 0) (gather slopes8 k 0)))
         (let z (reshape (scatter_add flat (expand (reshape t [rows 1]) [rows 8]) y 0) [batch seq 8]))",
        // Each token twice.
        "(let two (reshape (expand (reshape flat [batch*seq 1 8]) [batch*seq 2 8]) [2*batch*seq 8]))
         (let r (true_rows (greater (reshape (slice two 1 0 1 1) [2*batch*seq]) 0.0) rows)) (let y (matmul (gather two r 0) w))
         (let z (reshape (sum (reshape (put_rows y r 1 2*batch*seq) [batch*seq 2 8]) [1]) [batch seq 8]))",
        // Among a token's own.
        "(let best (topk_indices x 3 2 1)) (let y (gather_elements x best 2))
         (let z (scatter_add (full 0.0 f32 [batch seq 8]) best (mul y y) 2))",
    ];
    for body in bodies {
        let graph = parsed(&format!("{HEADS} {CHOSEN} {body} {CHOSEN_AFTER} {AFTER}"));
        let [alone, packed] = logits(&graph, &[5, 2, 7, 3, 4]);
        let apart = alone.iter().zip(&packed).fold(0f64, |m, (x, y)| m.max((x - y).abs()));
        assert!(alone.len() == packed.len() && apart < 1e-12, "{body}\ndiffers by {apart:.1e}");
    }
}

const CHOSEN: &str =
    "(let on (greater (reshape (slice x 2 0 1 1) [batch seq]) 0.0)) (let flat (reshape x [batch*seq 8]))
    (let slopes8 (reshape (slice wpe 0 0 8 1) [8 8]))";
const CHOSEN_AFTER: &str =
    "(let p (transpose (reshape (add x z) [batch seq 2 4]) [0 2 1 3])) (let a (attention p p p 0.5))";

/// What joins tokens behind the last product is computed by sequence: a model that shifts its own logits.
#[test]
fn logits_are_shifted_within_their_sequence() {
    let graph = parsed(&format!(
        "{HEADS} (let a (attention q q q 0.5)) (let y (matmul (reshape (transpose a [0 2 1 3]) [batch seq 8]) head))
         (output logits (concat (slice y 1 0 1 1) (slice y 1 0 seq-1 1) 1))"
    ));
    let [alone, packed] = logits(&graph, &[5, 2, 7, 3, 4]);
    assert!(alone.iter().zip(&packed).all(|(x, y)| (x - y).abs() < 1e-12));
}

/// The same of one list of all tokens: rows that weftc takes for joined, and that come apart again.
#[test]
fn a_list_of_all_tokens_is_read_by_sequence() {
    let graph = parsed(&format!(
        "{HEADS} (let a (attention q q q 0.5)) (let y (matmul (reshape (transpose a [0 2 1 3]) [batch*seq 8]) head))
         (output logits (reshape (reshape y [batch 13*seq]) [batch seq 13]))"
    ));
    let [alone, packed] = logits(&graph, &[5, 2, 7, 3, 4]);
    let differ = alone.iter().zip(&packed).filter(|(x, y)| (*x - *y).abs() >= 1e-12).count();
    assert!(alone.len() == packed.len() && differ == 0, "{differ} of {}", alone.len());
}

/// `weftc` on ragged data: how much padding is left, and a run that goes on from its middle as if it had not stopped.
#[test]
fn a_packed_run_resumes_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let weftc = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_weftc")).args(arguments).current_dir(folder.path()).output().unwrap();
        let text = [output.stdout, output.stderr].map(|t| String::from_utf8(t).unwrap()).concat();
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    };
    let row = |s: &Sample| serde_json::json!({"input_ids": s.tokens, "prompt_len": s.prompt}).to_string();
    let lengths: Vec<usize> = (0..14).map(|k| 2 + k * 5 % 11).collect();
    let rows: Vec<String> = samples(&lengths, 31).iter().map(row).collect();
    std::fs::write(at("data.jsonl"), rows.join("\n")).unwrap();
    std::fs::copy(own("llada_micro_dynamo18"), at("model.onnx")).unwrap();
    weftc(&[
        "compile",
        "model.onnx",
        "--mask-id",
        "3",
        "--packing",
        "--probe",
        "every:2",
        "--trainable",
        "lora",
        "--lora-dropout",
        "0.1",
    ]);
    let run = ["run", "train.onnx", "--data", "data.jsonl", "--threads", "1", "--batch-size", "3", "--accumulate", "2"];
    let more = ["--epochs", "3", "--save-every", "4", "--keep", "9", "--lr", "0.01", "--schedule", "linear"];
    let text = weftc(&[&run[..], &more, &["--out", "whole"]].concat());
    assert!(text.contains("of the tokens fed are padding (") && text.contains("with a row for each sample"), "{text}");
    assert!(weftc(&["data", "data.jsonl"]).contains("where samples share rows (compile --packing)"));
    let mut checkpoints: Vec<PathBuf> =
        std::fs::read_dir(at("whole/checkpoints")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    checkpoints.sort();
    let first = checkpoints[0].display().to_string();
    weftc(&[&run[..], &more, &["--out", "rest", "--resume", &first]].concat());
    let weights = |out: &str| std::fs::read(at(out).join("model.safetensors")).unwrap();
    assert!(weights("whole") == weights("rest"), "the weights differ behind {first}");
    let losses = |out: &str| -> Vec<String> {
        let text = std::fs::read_to_string(at(out).join("metrics.jsonl")).unwrap();
        let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].to_string();
        text.lines().map(loss).collect()
    };
    let (whole, rest) = (losses("whole"), losses("rest"));
    assert_eq!((whole.len(), &whole[whole.len() - 5..]), (9, &rest[rest.len() - 5..]));
}

#[test]
fn what_joins_tokens_is_refused() {
    let refused =
        |body: &str| packing::apply(&parsed(&format!("{HEADS} {body} {AFTER}")), "ids").unwrap_err().to_string();
    let mut out = String::new();
    for body in [
        "(let s (softmax (matmul q (transpose q [0 1 3 2])) -1)) (let a (matmul s q))",
        "(let z (cumsum x 1 0)) (let a (transpose (reshape (matmul z w) [batch seq 2 4]) [0 2 1 3]))",
        "(let z (add x (concat (slice x 1 0 1 1) (slice x 1 0 seq-1 1) 1))) (let a (transpose (reshape (matmul z w) [batch seq 2 4]) [0 2 1 3]))",
        "(let z (sub x (mean x [1]))) (let a (transpose (reshape (matmul z w) [batch seq 2 4]) [0 2 1 3]))",
        "(let z (mul x seq)) (let a (transpose (reshape (matmul (cast z f32) w) [batch seq 2 4]) [0 2 1 3]))",
        "(let z (add x (cast (reshape (iota batch) [batch 1 1]) f32))) (let a (transpose (reshape z [batch seq 2 4]) [0 2 1 3]))",
        "(let z (reshape (transpose q [0 1 2 3]) [batch seq 8])) (let a (transpose (reshape (matmul z w) [batch seq 2 4]) [0 2 1 3]))",
        "(let t (reshape q [2*batch seq 4])) (let a (reshape (attention t t t 0.5) [batch 2 seq 4]))",
    ] {
        out += &format!("{}\n\n", refused(body));
    }
    // Chosen rows: their neighbours', their number, all of them at once, pairs of tokens, sequences, other tokens'.
    let back = "(let z (reshape (put_rows y r 1 batch*seq) [batch seq 8]))";
    let rows = "(let r (true_rows on rows)) (let t (gather flat r 0))";
    for body in [
        &format!("{rows} (let y (gather flat (add r 1) 0)) {back}"),
        &format!("{rows} (let y (mul t (reshape (cast r f32) [rows 1]))) {back}"),
        &format!("{rows} (let y (sub t (mean t [0]))) {back}"),
        "(let r (true_rows (greater (matmul x (transpose x [0 2 1])) 0.0) rows)) (let b (div r seq*seq))
         (let z (add x (reshape (slice (gather flat b 0) 0 0 1 1) [1 1 8])))",
        &format!("{rows} (let y (gather flat (div r seq) 0)) {back}"),
        &format!("{rows} (let z (transpose (put_rows t r seq batch) [1 0 2]))"),
        &format!("{rows} (let y (mul t (reshape (cast (iota rows) f32) [rows 1]))) {back}"),
    ] {
        out += &format!("{}\n\n", refused(&format!("{CHOSEN} {body} {CHOSEN_AFTER}")));
    }
    let behind = format!(
        "{HEADS} {CHOSEN} (let a (attention q q q 0.5)) (let y (matmul (reshape (transpose a [0 2 1 3]) [batch seq 8]) head))
         {rows} (output logits (add y (mean (gather (reshape y [batch*seq 13]) r 0) [0])))"
    );
    out += &format!("{}\n\n", packing::apply(&parsed(&behind), "ids").unwrap_err());
    let fixed = text::parse("(graph g (input ids i64 [1 16]) (param e f32 [13 8]) (output logits (gather e ids 0)))");
    out += &packing::apply(&fixed.unwrap_or_else(|e| panic!("{}", e.message)), "ids").unwrap_err().to_string();
    insta::assert_snapshot!(out);
}
