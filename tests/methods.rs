//! Every method against METHOD.md written a second time, on candle's own autograd; and their statistics.

use candle_core::{D, Device, Tensor, Var};
use std::collections::BTreeMap;
use std::path::PathBuf;
use weftc::compile::{Options, Stage, compile, emit_ir};
use weftc::interp;
use weftc::ir::{Builder, Graph, Node, text};
use weftc::rules::Target;
use weftc::runtime::HostTensor;
use weftc::train::{Setup, Trainer};

const MASK: i64 = 31;
const SHAPE: (usize, usize) = (3, 12);

fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/llada_micro_dynamo18.onnx")
}

/// A repeatable number in [0, 1) for every place.
fn draw(k: usize) -> f64 {
    ((k as f64 * 0.754_877_666 + 0.31).fract() * 97.13).fract()
}

/// The lifted model in f64: logits of tokens, with the parameters as variables.
struct Model {
    graph: Graph,
    vars: BTreeMap<String, Var>,
    excludes_mask: bool,
}

impl Model {
    fn new(options: &Options) -> Self {
        let compiled = compile(options).unwrap();
        let mut graph = text::parse(&emit_ir(options, Stage::Lift).unwrap()).unwrap();
        // The text has no values; the compiled graph has the same leaves, with theirs.
        for leaf in &mut graph.leaves {
            if let Some(full) = compiled.graph.leaves.iter().find(|l| l.name == leaf.name) {
                leaf.data.clone_from(&full.data);
            }
        }
        let mut values = Graph::with_leaves_of(&graph);
        for p in compiled.manifest.parameters.iter() {
            let id = values.insert(Node::Leaf(graph.find_leaf(&p.name).unwrap())).unwrap();
            values.outputs.push((p.name.clone(), id));
        }
        let vars = interp::run(&values, &BTreeMap::new()).unwrap();
        let vars = vars.into_iter().map(|(n, v)| (n, Var::from_tensor(&v).unwrap())).collect();
        Model { graph, vars, excludes_mask: options.excludes_mask }
    }

    /// log softmax of the logits, `[B, L, V]`.
    fn log_probs(&self, tokens: &[i64]) -> Tensor {
        let ids: Vec<f64> = tokens.iter().map(|t| *t as f64).collect();
        let mut feeds =
            BTreeMap::from([("input_ids".to_string(), Tensor::from_vec(ids, SHAPE, &Device::Cpu).unwrap())]);
        feeds.extend(self.vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())));
        let mut z = interp::run(&self.graph, &feeds).unwrap().remove("logits").unwrap();
        if self.excludes_mask {
            let row: Vec<f64> = (0..=MASK).map(|k| if k == MASK { -1e9 } else { 0.0 }).collect();
            z = z.broadcast_add(&Tensor::new(row, &Device::Cpu).unwrap()).unwrap();
        }
        let top = z.max_keepdim(D::Minus1).unwrap().detach();
        let z = z.broadcast_sub(&top).unwrap();
        z.broadcast_sub(&z.exp().unwrap().sum_keepdim(D::Minus1).unwrap().log().unwrap()).unwrap()
    }
}

/// One batch with its draws.
struct Batch {
    ids: Vec<i64>,
    answer: Vec<bool>,
    t: Vec<f32>,
    u: Vec<f32>,
}

fn batch() -> Batch {
    let (b, l) = SHAPE;
    let prompts = [3, 6, 1];
    Batch {
        ids: (0..b * l).map(|k| (draw(k) * 31.0) as i64).collect(),
        answer: (0..b * l).map(|k| k % l >= prompts[k / l] && k % l < l - k / l).collect(),
        t: (0..b).map(|k| draw(k + 90) as f32 * 0.6 + 0.2).collect(),
        u: (0..b * l).map(|k| draw(k + 7) as f32).collect(),
    }
}

/// METHOD.md, with every choice.
struct Method<'a> {
    name: &'a str,
    transform: &'a dyn Fn(f64) -> f64,
    batch_scope: bool,
    norm: &'a str,
    power: f64,
    floor: f64,
}

impl Method<'_> {
    /// Loss (numerator over denominator) and its gradients.
    fn step(&self, model: &Model, batch: &Batch) -> (f64, BTreeMap<String, Vec<f64>>) {
        let (rows, length) = SHAPE;
        let n = rows * length;
        let own = |b: usize| (b * length..(b + 1) * length).filter(|k| batch.answer[*k]).collect::<Vec<_>>();
        // The probe: H, or the token's own surprise.
        let masked: Vec<i64> = (0..n).map(|k| if batch.answer[k] { MASK } else { batch.ids[k] }).collect();
        let probe: Vec<Vec<f64>> = model.log_probs(&masked).flatten_to(1).unwrap().to_vec2().unwrap();
        let h: Vec<f64> = (0..n)
            .map(|k| match self.name {
                "weft-nll" => -probe[k][batch.ids[k] as usize],
                _ => -probe[k].iter().map(|p| p.exp() * p).sum::<f64>(),
            })
            .collect();
        let beta: Vec<f64> = h.iter().map(|h| (self.transform)(*h)).collect();
        let mean = |of: &[usize]| of.iter().map(|k| beta[*k]).sum::<f64>() / of.len() as f64;
        let all: Vec<usize> = (0..rows).flat_map(own).collect();
        let ratio: Vec<f64> =
            (0..n).map(|k| beta[k] / if self.batch_scope { mean(&all) } else { mean(&own(k / length)) }).collect();
        // Times, masks.
        let per_token = matches!(self.name, "weft" | "weft-nll");
        let rate: Vec<f64> = (0..n)
            .map(|k| {
                let t = (1.0 - 1e-3) * f64::from(batch.t[k / length]) + 1e-3;
                (1.0 - (1.0 - t).powf(if per_token { ratio[k] } else { 1.0 })).max(self.floor)
            })
            .collect();
        let mask: Vec<bool> = (0..n).map(|k| batch.answer[k] && f64::from(batch.u[k]) < rate[k]).collect();
        let noisy: Vec<i64> = (0..n).map(|k| if mask[k] { MASK } else { batch.ids[k] }).collect();
        let log_probs = model.log_probs(&noisy).flatten_to(1).unwrap();
        let plain: Vec<Vec<f64>> = log_probs.to_vec2().unwrap();
        let chosen = |k: usize| plain[k][batch.ids[k] as usize];
        // Weights.
        let weight = |k: usize| -> f64 {
            let row = k / length * length..(k / length + 1) * length;
            match self.name {
                "sw" => rate[k].powf(-self.power) * ratio[k],
                "cart" => row.filter(|j| !mask[*j]).map(|j| 0.5 * 0.1 * 0.9f64.powi(j.abs_diff(k) as i32 - 1)).sum(),
                "papl" => {
                    let total: f64 = row.filter(|j| mask[*j]).map(|j| (chosen(j) / 2.0).exp()).sum();
                    1.0 + 0.7 * (chosen(k) / 2.0).exp() / total
                }
                _ => rate[k].powf(-self.power),
            }
        };
        let share = |k: usize| if self.norm == "sequence" { 1.0 / own(k / length).len() as f64 } else { 1.0 };
        let w: Vec<f64> = (0..n).map(|k| if mask[k] { weight(k) * share(k) } else { 0.0 }).collect();
        let count = match self.norm {
            "sequence" => rows,
            "token" => all.len(),
            _ => mask.iter().filter(|m| **m).count(),
        };
        let ids = Tensor::from_vec(batch.ids.clone(), (n, 1), &Device::Cpu).unwrap();
        let ce = log_probs.gather(&ids, 1).unwrap().neg().unwrap().squeeze(1).unwrap();
        let loss = (ce * Tensor::from_vec(w, n, &Device::Cpu).unwrap()).unwrap().sum_all().unwrap();
        let loss = (loss / count as f64).unwrap();
        let store = loss.backward().unwrap();
        let gradient = |v: &Var| store.get(v).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        (loss.to_scalar().unwrap(), model.vars.iter().map(|(name, v)| (name.clone(), gradient(v))).collect())
    }
}

fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let scale = theirs.iter().fold(1e-12f64, |m, x| m.max(x.abs()));
    ours.iter().zip(theirs).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

fn trainer(options: &Options) -> Trainer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.onnx");
    compile(options).unwrap().write(&path).unwrap();
    Trainer::load(&path, Setup::default()).unwrap()
}

fn step(trainer: &mut Trainer, batch: &Batch) -> weftc::train::StepResult {
    let (b, l) = (SHAPE.0 as i64, SHAPE.1 as i64);
    let host = |e: weftc::error::Result<HostTensor>| e.unwrap();
    let tokens = host(HostTensor::new(&[b, l], &batch.ids));
    let answer = host(HostTensor::new(&[b, l], &batch.answer));
    let result = trainer.step_with(
        tokens,
        answer,
        host(HostTensor::new(&[b], &batch.t)),
        host(HostTensor::new(&[b, l], &batch.u)),
    );
    result.unwrap()
}

fn options(method: &Method, settings: &[(&str, &str)]) -> Options {
    let base = Options { mask_id: Some(MASK), method: method.name.into(), ..Options::new(model()) };
    settings.iter().fold(base, |o, (name, value)| o.with(name, value)).with("t_floor", method.floor)
}

#[test]
fn every_method_is_the_one_of_method_md() {
    let sqrt: &dyn Fn(f64) -> f64 = &f64::sqrt;
    let plain = Method { name: "weft", transform: sqrt, batch_scope: false, norm: "sequence", power: 1.0, floor: 1e-3 };
    let papl = [("papl_tau", "2"), ("papl_alpha", "0.7")];
    let cases: Vec<(Method, Vec<(&str, &str)>)> = vec![
        (Method { ..plain }, vec![]),
        (Method { transform: &|h| h, ..plain }, vec![("entropy_transform", "linear")]),
        (Method { transform: &f64::ln_1p, ..plain }, vec![("entropy_transform", "log1p")]),
        (Method { transform: &|h| h.powf(1.7), ..plain }, vec![("entropy_transform", "pow:1.7")]),
        (Method { batch_scope: true, norm: "token", ..plain }, vec![("beta_scope", "batch"), ("loss_norm", "token")]),
        (
            Method { norm: "masked", power: 0.5, floor: 0.4, ..plain },
            vec![("loss_norm", "masked"), ("weight_power", "0.5")],
        ),
        (Method { name: "sft", ..plain }, vec![]),
        (Method { name: "weft-nll", ..plain }, vec![]),
        (Method { name: "sw", ..plain }, vec![]),
        (Method { name: "sw", batch_scope: true, ..plain }, vec![("beta_scope", "batch")]),
        (Method { name: "cart", norm: "masked", ..plain }, vec![]),
        (Method { name: "papl", norm: "masked", ..plain }, papl.to_vec()),
        (Method { name: "papl", ..plain }, [&papl[..], &[("loss_norm", "sequence")]].concat()),
    ];
    for (method, settings) in cases {
        check(&method, &settings, &options(&method, &settings));
    }
}

/// Loss and gradients of a step are those of METHOD.md.
fn check(method: &Method, settings: &[(&str, &str)], options: &Options) {
    let place = format!("{} {settings:?}", method.name);
    let mut trainer = trainer(options);
    let result = step(&mut trainer, &batch());
    // The first update has moved the weights; the gradients are from before.
    let (loss, gradients) = method.step(&Model::new(options), &batch());
    assert!(result.masked > 3 && ((result.loss - loss) / loss).abs() < 1e-5, "{place}: {} and {loss}", result.loss);
    let mut worst = 0f64;
    for (name, theirs) in &gradients {
        let ours: Vec<f64> = trainer.gradient(name).unwrap().to_f64().iter().map(|g| g / result.loss_count).collect();
        worst = worst.max(distance(&ours, theirs));
    }
    assert!(worst < 1e-5, "{place}: a gradient differs by {worst:.1e}");
    println!("{place}: loss {:.1e}, gradients {worst:.1e}", ((result.loss - loss) / loss).abs());
}

/// A mask token that cannot be predicted has no part in entropies and losses, nor its row of the head a gradient.
#[test]
fn a_mask_token_that_is_never_predicted() {
    let plain =
        Method { name: "weft", transform: &f64::sqrt, batch_scope: false, norm: "sequence", power: 1.0, floor: 1e-3 };
    let papl = Method { name: "papl", norm: "masked", ..plain };
    for (method, settings) in [(&plain, &[][..]), (&papl, &[("papl_tau", "2"), ("papl_alpha", "0.7")])] {
        let with = |target| Options { excludes_mask: true, target, ..options(method, settings) };
        for target in [Target::Cpu, Target::Portable] {
            check(method, settings, &with(target));
        }
        let mut trainer = trainer(&with(Target::Cpu));
        assert!(
            step(&mut trainer, &batch()).loss < step(&mut self::trainer(&options(method, settings)), &batch()).loss
        );
        let head = trainer.parameters().find(|n| n.ends_with("transformer.ff_out.weight")).unwrap().to_string();
        let head = trainer.gradient(&head).unwrap();
        // A column of [width, vocabulary].
        let own = |k: usize| k % (MASK as usize + 1) == MASK as usize;
        assert_eq!(head.shape()[1], MASK + 1);
        assert!(head.to_f64().iter().enumerate().all(|(k, g)| (*g == 0.0) == own(k)));
    }
}

/// The head's bias takes what makes a token impossible, on whatever side it is added: no logits are kept.
#[test]
fn a_head_without_logits_leaves_the_mask_token_out() {
    for (name, mask_id) in [("llada_micro_dynamo18", MASK), ("modulated_dynamo18", 63), ("modulated_legacy17", 63)] {
        let path = model().with_file_name(format!("{name}.onnx"));
        let options = Options { mask_id: Some(mask_id), excludes_mask: true, ..Options::new(path) };
        let graph = compile(&options).unwrap().graph.histogram();
        assert!(["head_entropy", "head_expect"].iter().all(|op| graph.contains_key(op)), "{name}: {graph:?}");
    }
}

/// SMDM's mask token has no logit at all.
#[test]
fn a_mask_token_without_a_logit_needs_no_leaving_out() {
    let path = model().with_file_name("modulated_dynamo18.onnx");
    let notes = |excludes_mask| {
        compile(&Options { mask_id: Some(64), excludes_mask, ..Options::new(&path) }).unwrap().notes.join("\n")
    };
    let told = "--exclude-mask has no effect: the model has no logit for its mask token 64";
    assert!(notes(true).contains(told) && !notes(false).contains(told));
}

/// Without an entropy pass there is half the forward work.
#[test]
fn sft_has_no_probe() {
    let matmuls = |method: &str| {
        let options = Options { mask_id: Some(MASK), method: method.into(), ..Options::new(model()) };
        let graph = compile(&options).unwrap().graph.histogram();
        assert_eq!(graph.contains_key("head_entropy"), method == "weft");
        ["product", "product_add", "token_attention", "row_attention"]
            .iter()
            .filter_map(|op| graph.get(op))
            .sum::<usize>()
    };
    // 7 weights and attention in each of 2 layers.
    assert_eq!(matmuls("weft") - matmuls("sft"), 2 * 8);
}

/// Without a prompt the first two tokens of an answer read one row of shifted logits: its gradient is the sum of both.
#[test]
fn shifted_logits_without_a_prompt() {
    for target in [Target::Cpu, Target::Portable] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.onnx");
        let options = Options { mask_id: Some(MASK), logits_shift: 1, target, ..Options::new(model()) };
        compile(&options).unwrap().write(&path).unwrap();
        let norm = |mut trainer: Trainer| {
            let tokens: Vec<i64> = (4..16).collect();
            let result = trainer.step_with(
                HostTensor::new(&[2, 6], &tokens).unwrap(),
                HostTensor::new(&[2, 6], &[true; 12]).unwrap(),
                HostTensor::new(&[2], &[0.7f32, 0.9]).unwrap(),
                HostTensor::new(&[2, 6], &[0f32; 12]).unwrap(),
            );
            let result = result.unwrap();
            assert_eq!(result.masked, 12);
            result.grad_norm
        };
        let ours = norm(Trainer::load(&path, Setup::default()).unwrap());
        let theirs = norm(Trainer::load_interpreted(&path, Setup::default()).unwrap());
        assert!((ours - theirs).abs() < 1e-5 * theirs, "{target:?}: {ours} and {theirs}");
    }
}

/// Where all logits are equal, so are the entropies: WeFT is then SFT, bit for bit.
#[test]
fn equal_entropies_give_sft() {
    let run = |method: &str| {
        let options = Options { mask_id: Some(MASK), method: method.into(), ..Options::new(model()) };
        let mut trainer = trainer(&options);
        let names: Vec<String> = trainer.parameters().map(str::to_string).collect();
        let head = names.iter().filter(|n| n.ends_with("transformer.ff_out.weight"));
        for name in head {
            let zeros = HostTensor::from_f64(
                weftc::ir::DType::F32,
                trainer.parameter(name).unwrap().shape(),
                &vec![0.0; trainer.parameter(name).unwrap().len()],
            );
            trainer.set_parameter(name, &zeros.unwrap()).unwrap();
        }
        let result = step(&mut trainer, &batch());
        let gradients: Vec<Vec<u8>> = names.iter().map(|n| trainer.gradient(n).unwrap().bytes().to_vec()).collect();
        let kept = ["mask_rate", "mask", "token_loss"].map(|n| result.diagnostics[n].bytes().to_vec());
        (result.loss.to_bits(), kept, gradients)
    };
    assert!(run("weft") == run("sft"));
}

/// The sampler and the weights through ONNX Runtime: what METHOD.md says of their expectations.
#[test]
fn expectations() {
    const ROWS: usize = 1000;
    const COLUMNS: usize = 1000;
    let text = format!(
        "(graph g (input b f32 [{ROWS} {COLUMNS}]) (input a bool [{ROWS} {COLUMNS}]) (input t f32 [{ROWS}]) (input u f32 [{ROWS} {COLUMNS}])
           (let r (mask_rate b a t sequence 0.001 0.001)) (let m (sample_mask r a u))
           (output rate r) (output mask m) (output weight (loss_weight r m a token 1.0)))"
    );
    let graph = text::parse(&text).unwrap();
    let library = weftc::rules::library::library().unwrap();
    let bytes = weftc::onnx::write::plain(&graph, &library.lower).unwrap();
    let mut session = weftc::runtime::Session::from_bytes(&bytes, &weftc::runtime::Options::default()).unwrap();
    let mut random = weftc::rng::SplitMix64::new(7);
    let mut unit = || random.below(1 << 24) as f32 / (1 << 24) as f32;
    let (rows, columns) = (ROWS as i64, COLUMNS as i64);
    // Every row has the same beta: 0.5, 1 and 2 times their mean, in turns.
    let beta: Vec<f32> = (0..ROWS * COLUMNS).map(|k| [3.0, 6.0, 12.0, 3.0][k % 4]).collect();
    let t: Vec<f32> = (0..ROWS).map(|k| (k as f32 + unit()) / ROWS as f32).collect();
    let u: Vec<f32> = (0..ROWS * COLUMNS).map(|_| unit()).collect();
    let feeds = [
        ("b", HostTensor::new(&[rows, columns], &beta).unwrap()),
        ("a", HostTensor::new(&[rows, columns], &vec![true; ROWS * COLUMNS]).unwrap()),
        ("t", HostTensor::new(&[rows], &t).unwrap()),
        ("u", HostTensor::new(&[rows, columns], &u).unwrap()),
    ];
    let out = session.run(feeds.iter().map(|(n, x)| (*n, x))).unwrap();
    let (rate, mask, weight) = (out["rate"].to_f64(), out["mask"].to_f64(), out["weight"].to_f64());

    // E[1{masked} / t_i] = 1.  Rows of a tiny t have a few enormous weights: the variance is sum (1 - t_i) / t_i.
    let n = (ROWS * COLUMNS) as f64;
    let mean = weight.iter().sum::<f64>() / n;
    assert!((mean - 1.0).abs() < 0.005, "E[1/t_i of the masked] is {mean}");
    // The rate of masks, for every ratio r, within four standard deviations; E over t of t_i is r / (1 + r).
    for (k, r) in [(0usize, 0.5f64), (1, 1.0), (2, 2.0)] {
        let own: Vec<usize> = (0..ROWS * COLUMNS).filter(|i| i % 4 == k).collect();
        let expected: f64 = own.iter().map(|i| rate[*i]).sum();
        let sigma = own.iter().map(|i| rate[*i] * (1.0 - rate[*i])).sum::<f64>().sqrt();
        let masked: f64 = own.iter().map(|i| mask[*i]).sum();
        assert!((masked - expected).abs() < 4.0 * sigma, "{masked} masks of {expected} +- {sigma}");
        let of_time = expected / own.len() as f64;
        assert!((of_time - r / (1.0 + r)).abs() < 2e-3, "E[t_i] is {of_time} for r = {r}");
    }
}

/// A probe that is not part of the step: the same numbers while the weights are those it saw, on ONNX Runtime and on
/// the interpreter; and old ones afterwards.
#[test]
fn a_cached_probe_is_the_probe_of_its_moment() {
    let run = |probe: &str, interpreted: bool| {
        let options = Options { mask_id: Some(MASK), probe: probe.parse().unwrap(), ..Options::new(model()) };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.onnx");
        compile(&options).unwrap().write(&path).unwrap();
        let optimizer = weftc::train::Optimizer { lr: 0.05, ..Default::default() };
        let setup = Setup { optimizer, ..Setup::default() };
        let mut trainer =
            if interpreted { Trainer::load_interpreted(&path, setup) } else { Trainer::load(&path, setup) }.unwrap();
        let tokens: Vec<weftc::train::data::Sample> = (0..3)
            .map(|k| weftc::train::data::Sample {
                tokens: batch().ids[12 * k..12 * k + 12].to_vec(),
                prompt: 2 + k,
                total: 12 - k,
            })
            .collect();
        let rows: Vec<_> = tokens.iter().enumerate().collect();
        let sampler = weftc::train::sampler::Sampler::new(3);
        let steps = (0..3).map(|epoch| {
            let batch = weftc::train::batch::Batch::new(&rows, Default::default(), sampler, epoch).unwrap();
            let result = trainer.step_on(&[batch], true).unwrap();
            (result.loss, result.diagnostics["mask_rate"].to_f64(), result.diagnostics.contains_key("entropy"))
        });
        steps.collect::<Vec<_>>()
    };
    let (every, cached, reference) = (run("every-step", false), run("every:2", false), run("reference", false));
    assert!(every[0].2 && !cached[0].2, "the entropy pass is not part of the step");
    assert!(distance(&cached[0].1, &every[0].1) < 1e-6 && distance(&reference[0].1, &every[0].1) < 1e-6);
    // The weights have moved on, the rates of epoch 1 and of the reference have not.
    let moved = |ours: &[(f64, Vec<f64>, bool)], k: usize| distance(&ours[k].1, &every[k].1) > 1e-4;
    assert_eq!([moved(&cached, 1), moved(&reference, 1), moved(&reference, 2)], [true; 3]);
    for probe in ["every:2", "reference"] {
        for (ours, theirs) in run(probe, false).iter().zip(run(probe, true)) {
            assert!(((ours.0 - theirs.0) / theirs.0).abs() < 1e-3, "{probe}: {} and {}", ours.0, theirs.0);
        }
    }
}

#[test]
fn settings_of_other_methods_are_noted_and_unknown_ones_refused() {
    let base = |method: &str| Options { mask_id: Some(MASK), method: method.into(), ..Options::new(model()) };
    let compiled = compile(&base("sft").with("entropy_transform", "linear")).unwrap();
    assert_eq!(compiled.notes, ["--entropy-transform has no effect on the method sft"]);
    let mut wrong = base("papl");
    wrong.set.insert("entropy_power".into(), "1".into());
    wrong.settings.insert("papl_tau".into(), "0".into());
    wrong.probe = "every:3".parse().unwrap();
    insta::assert_snapshot!(compile(&wrong).err().unwrap());
}

/// The first `lisp` block of the README is a method, which is proved, compiled and trained as it stands there.
#[test]
fn the_method_in_the_readme_is_one() {
    let readme = include_str!("../README.md");
    let text = readme.split("```lisp\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let rules = tempfile::tempdir().unwrap();
    std::fs::create_dir(rules.path().join("methods")).unwrap();
    std::fs::write(rules.path().join("methods/focal.egg"), text).unwrap();
    let folder = Some(rules.path().to_path_buf());
    let mut options = Options { mask_id: Some(MASK), method: "focal".into(), rules: folder, ..Options::new(model()) };
    let focal = step(&mut trainer(&options), &batch());
    assert!(focal.masked > 3 && focal.diagnostics.contains_key("token_loss"));
    // gamma = 0 is SFT.
    options.set.insert("gamma".into(), "0".into());
    let plain = step(&mut trainer(&options), &batch());
    let sft = Options { method: "sft".into(), rules: None, set: BTreeMap::new(), ..options.clone() };
    let sft = step(&mut trainer(&sft), &batch());
    assert!(((plain.loss - sft.loss) / sft.loss).abs() < 1e-6, "{} and {}", plain.loss, sft.loss);
    assert!(focal.loss < plain.loss);
    options.set.insert("gama".into(), "1".into());
    let error = compile(&options).err().unwrap().to_string();
    assert!(error.contains("gama") && error.contains("gamma=2"), "{error}");
}
