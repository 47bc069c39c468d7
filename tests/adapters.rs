//! Adapters: where they go, the order of their factors, what a run leaves.

use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weftc::adapt::Spec;
use weftc::compile::{Options, Stage, compile, emit_ir};
use weftc::interp;
use weftc::ir::{Graph, text};
use weftc::manifest::Role;
use weftc::peft::merge::{MergeArgs, merge};
use weftc::precision::Compute;
use weftc::quantize::Quantization;
use weftc::runtime::{self, HostTensor, Session};
use weftc::train::adapter;
use weftc::train::batch::Batch;
use weftc::train::data::Sample;
use weftc::train::sampler::Sampler;
use weftc::train::{Optimizer, RunArgs, Setup, StepResult, Trainer};

const MODELS: [&str; 4] =
    ["llada_micro_dynamo18", "llada_micro_native23", "llada_micro_legacy17", "dream_micro_dynamo18"];
const EVERYWHERE: [&str; 8] = ["q", "k", "v", "o", "gate", "up", "down", "head"];

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(format!("{name}.onnx"))
}

fn options(name: &str, adapter: &str, targets: &[&str], rank: i64) -> Options {
    let targets = targets.iter().map(|t| t.to_string()).collect();
    Options {
        mask_id: Some(31),
        trainable: adapter.parse().unwrap(),
        adapter: Spec { rank, alpha: 2.0 * rank as f64, targets, seed: 5, ..Spec::default() },
        ..Options::new(model(name))
    }
}

/// Exporters lose names; structure tells what a layer is for.
#[test]
fn targets_are_found_by_structure() {
    let mut out = String::new();
    for name in MODELS {
        for kind in EVERYWHERE {
            let manifest = compile(&options(name, "lora", &[kind], 2)).unwrap().manifest;
            out += &format!("{name:<22} {kind:<5} {}\n", manifest.adapter.unwrap().modules.join(" "));
        }
    }
    insta::assert_snapshot!(out);
}

#[test]
fn what_matches_nothing_is_refused_with_what_there_is() {
    let refuse = |options: Options| compile(&options).err().unwrap().to_string();
    let mut out = refuse(options(MODELS[0], "lora", &["q", "query", "*.7.*"], 0));
    out += &refuse(options(MODELS[0], "lorra,*.norm*", &["q"], 2));
    insta::assert_snapshot!(out);
}

fn histogram(graph: &Graph, op: &str, shape: &[i64]) -> usize {
    let shape: Vec<weftc::ir::Dim> = shape.iter().map(|n| (*n).into()).collect();
    let is = |id: &weftc::ir::Id| {
        graph.node(*id).op().is_some_and(|o| o.name() == op) && graph.tensor_type(*id).is_some_and(|t| t.shape == shape)
    };
    graph.live().iter().filter(|id| is(id)).count()
}

/// The cheap order of the factors is chosen, forward and backward; where the rank is large, the other.
#[test]
fn factors_are_multiplied_in_the_cheaper_order() {
    let at = |rank| {
        let options = options(MODELS[0], "lora", &["q"], rank);
        let graph = text::parse(&emit_ir(&options, Stage::Optimise).unwrap()).unwrap();
        (emit_ir(&options, Stage::Adapt).unwrap(), graph)
    };
    let (adapted, graph) = at(2);
    insta::assert_snapshot!(
        adapted.lines().filter(|l| l.contains("lora") || l.contains("matmul")).collect::<Vec<_>>().join("\n")
    );
    // 16 wide: no product of the factors, and no gradient of a frozen weight.
    assert_eq!(histogram(&graph, "matmul", &[16, 16]) + histogram(&graph, "gemm", &[16, 16]), 0);
    let gradients: Vec<&str> = graph.outputs.iter().filter_map(|(n, _)| n.strip_prefix("grad/")).collect();
    assert!(gradients.len() == 4 && gradients.iter().all(|n| n.contains("lora_")), "{gradients:?}");
    let (_, wide) = at(64);
    assert!(histogram(&wide, "matmul", &[16, 16]) > 0, "W + s A B is cheaper at rank 64");
}

/// Patterns choose weights; nothing else gets a gradient.
#[test]
fn patterns_choose_what_is_trained() {
    let compiled = compile(&options(MODELS[0], "*.1.*norm*, transformer.ff_out", &["q"], 2)).unwrap();
    let trained = compiled.manifest.parameters.iter().filter(|p| p.role == Role::Trainable).map(|p| p.name.as_str());
    let outputs = compiled.graph.outputs.iter().filter_map(|(n, _)| n.strip_prefix("grad/"));
    let trained: Vec<&str> = trained.collect();
    assert_eq!(trained, outputs.collect::<Vec<_>>());
    assert_eq!(
        trained,
        ["transformer.blocks.1.attn_norm.weight", "transformer.blocks.1.ff_norm.weight", "transformer.ff_out.weight"]
    );
}

fn tokens(k: i64) -> Vec<i64> {
    (0..24).map(|i| (i * 7 + k) % 31).collect()
}

/// Trains `options` for some steps; the trainer, its folder, and the model with adapters as a graph and feeds.
fn trained(options: &Options) -> (Trainer, tempfile::TempDir, Graph, BTreeMap<String, Tensor>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.onnx");
    let compiled = compile(options).unwrap();
    compiled.write(&path).unwrap();
    let optimizer = Optimizer { lr: 0.02, ..Optimizer::default() };
    let mut trainer = Trainer::load(&path, Setup { optimizer, ..Setup::default() }).unwrap();
    for k in 0..6 {
        let (t, u) = ([0.7f32, 0.6], (0..24).map(|i| ((i * 5 + k * 3) % 24) as f32 / 24.0).collect::<Vec<_>>());
        trainer
            .step_with(
                HostTensor::new(&[2, 12], &tokens(0)).unwrap(),
                HostTensor::new(&[2, 12], &(0..24).map(|i| i % 12 > 3).collect::<Vec<bool>>()).unwrap(),
                HostTensor::new(&[2], &t).unwrap(),
                HostTensor::new(&[2, 12], &u).unwrap(),
            )
            .unwrap();
    }
    let mut graph = text::parse(&emit_ir(options, Stage::Adapt).unwrap()).unwrap();
    for leaf in &mut graph.leaves {
        leaf.data = compiled.graph.leaves.iter().find(|l| l.name == leaf.name).and_then(|l| l.data.clone());
    }
    let ids: Vec<f64> = tokens(3).iter().map(|t| *t as f64).collect();
    let mut feeds = BTreeMap::from([("input_ids".to_string(), Tensor::from_vec(ids, (2, 12), &Device::Cpu).unwrap())]);
    for name in trainer.parameters() {
        let value = trainer.parameter(name).unwrap();
        let shape: Vec<usize> = value.shape().iter().map(|n| *n as usize).collect();
        feeds.insert(name.to_string(), Tensor::from_vec(value.to_f64(), shape, &Device::Cpu).unwrap());
    }
    (trainer, folder, graph, feeds)
}

fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let scale = theirs.iter().fold(1e-12f64, |m, x| m.max(x.abs()));
    ours.iter().zip(theirs).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// The merged model's logits on ONNX Runtime are those of base and adapter.
#[test]
fn merged_logits_are_those_of_base_and_adapter() {
    for (name, adapter) in MODELS.into_iter().zip(["lora", "rslora", "dora", "dora"]) {
        // Dream's head is its embedding: an adapter there is trained, but not merged.
        let targets = if name.starts_with("dream") { &EVERYWHERE[..7] } else { &EVERYWHERE[..] };
        let (trainer, folder, graph, feeds) = trained(&options(name, adapter, targets, 3));
        let expected = interp::run(&graph, &feeds).unwrap()["logits"].flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let merged = trainer.save(folder.path()).unwrap();
        let logits = |path: &Path| {
            let mut session = Session::open(path, &runtime::Options::default()).unwrap();
            let ids = HostTensor::new(&[2, 12], &tokens(3)).unwrap();
            session.run([("input_ids", &ids)]).unwrap()["logits"].to_f64()
        };
        let apart = distance(&logits(&merged), &expected);
        assert!(apart < 1e-5, "{name}, {adapter}: merged logits differ by {apart:.1e}");
        let moved = distance(&logits(&model(name)), &expected);
        assert!(moved > 1e-2, "{name}: training changed the logits by {moved:.1e} only");
    }
}

/// One step on fixed draws: its outputs, and the gradients of its loss by name.
fn step(options: &Options, numbers: Option<u64>) -> (StepResult, BTreeMap<String, Vec<f64>>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.onnx");
    compile(options).unwrap().write(&path).unwrap();
    let mut trainer = Trainer::load(&path, Setup::default()).unwrap();
    let sample = Sample { tokens: (0..12).map(|i| i * 5 % 31).collect(), prompt: 4, total: 12 };
    let shape = trainer.shape();
    let mut batch = Batch::new(&[(0, &sample), (1, &sample)], shape, Sampler::new(3), 0).unwrap();
    batch.dropout = numbers
        .and_then(|seed| Batch::new(&[(0, &sample), (1, &sample)], shape, Sampler::new(seed), 0).unwrap().dropout);
    let result = trainer.step_on(&[batch], true).unwrap();
    let gradients = trainer.parameters().map(|name| (name.to_string(), trainer.gradient(name).unwrap().to_f64()));
    let gradients = gradients.collect();
    (result, gradients)
}

/// DoRA starts at the base model, where its factors' gradients are LoRA's: the magnitude is the norm, which counts as
/// a constant.
#[test]
fn dora_starts_as_lora() {
    for name in MODELS {
        let [lora, dora] = ["lora", "dora"].map(|adapter| step(&options(name, adapter, &EVERYWHERE[..7], 3), None));
        let (ours, theirs) = (dora.0.loss, lora.0.loss);
        assert!((ours - theirs).abs() < 1e-6 * theirs, "{name}: {ours} and {theirs}");
        for (parameter, gradient) in &lora.1 {
            let apart = distance(&dora.1[parameter], gradient);
            assert!(apart < 1e-5, "{name}: {parameter} is {apart:.1e} off");
        }
        let magnitudes: Vec<_> = dora.1.iter().filter(|(n, _)| n.ends_with("lora_magnitude_vector")).collect();
        assert_eq!(magnitudes.len() * 2, lora.1.len(), "{name}");
        assert!(magnitudes.iter().all(|(_, g)| g.iter().any(|x| *x != 0.0)), "{name}: a magnitude is not trained");
    }
}

/// The base of DoRA is quantised as that of LoRA is, also where it computes in f16: its norms are of the same weights.
#[test]
fn the_base_of_dora_is_quantised() {
    for compute in [Compute::F32, Compute::F16] {
        let [lora, dora] = ["lora", "dora"].map(|adapter| {
            let quantize = Some(Quantization::Int8);
            let options = Options { quantize, compute, ..options(MODELS[0], adapter, &EVERYWHERE[..7], 3) };
            let manifest = compile(&options).unwrap().manifest;
            let quantized = manifest.parameters.iter().filter(|p| p.quantized.is_some()).count();
            (quantized, step(&options, None).0.loss)
        });
        assert!(lora.0 >= 14 && lora.0 == dora.0, "{lora:?} and {dora:?}");
        // The magnitudes start as the norms of the weights before they were rounded.
        assert!((lora.1 - dora.1).abs() < 2e-2 * lora.1, "{lora:?} and {dora:?}");
    }
}

/// A third of the adapters' inputs is dropped in the training pass; the entropy pass does not see it, and without
/// numbers, as on held-out data, nothing is dropped.
#[test]
fn dropout_acts_on_the_training_pass_only() {
    for adapter in ["lora", "dora"] {
        let plain = Options { method: "weft".into(), ..options(MODELS[0], adapter, &EVERYWHERE, 3) };
        let thin = Options { adapter: Spec { dropout: 1.0 / 3.0, ..plain.adapter.clone() }, ..plain.clone() };
        let ((whole, all), (off, none)) = (step(&plain, None), step(&thin, None));
        assert_eq!(off.loss, whole.loss);
        for (name, gradient) in &all {
            assert!(distance(&none[name], gradient) < 1e-6, "{adapter}: {name}");
        }
        let [(one, a), (_, b)] = [5, 6].map(|seed| step(&thin, Some(seed)));
        assert_eq!(one.diagnostics["entropy"], whole.diagnostics["entropy"]);
        // B starts as 0: the loss is that of the base, but what B learns comes through what is left of its input.
        let apart = |x: &BTreeMap<String, Vec<f64>>, y: &BTreeMap<String, Vec<f64>>| {
            x.iter().filter(|(n, _)| n.contains("lora_B")).map(|(n, g)| distance(g, &y[n])).fold(0.0, f64::max)
        };
        assert!(apart(&a, &all) > 0.05 && apart(&a, &b) > 0.05, "{adapter}: nothing was dropped");
        assert_eq!(step(&thin, Some(5)).1, a, "{adapter}: the same numbers drop the same elements");
    }
}

/// Over many draws the share that stays is the one asked for, in rows and in columns, and pairs are independent.
#[test]
fn the_share_that_is_dropped_is_the_rate() {
    let graph = text::parse(
        "(graph g (input x f32 [1 l n]) (input rate f32 []) (input r f32 [1 l 3]) (input c f32 [1 3 n])
           (output y (dropout x rate r c 2039)))",
    )
    .unwrap();
    let (l, n, rate) = (512usize, 768usize, 0.1);
    let sampler = Sampler::new(11);
    let tensor = |values: Vec<f64>, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    let draw = |columns, count| sampler.dropout(0, 0, columns, count, 2039).into_iter().map(f64::from).collect();
    let feeds = BTreeMap::from([
        ("x".to_string(), tensor(vec![1.0; l * n], &[1, l, n])),
        ("rate".to_string(), tensor(vec![rate], &[])),
        ("r".to_string(), tensor(draw(false, 3 * l), &[1, l, 3])),
        ("c".to_string(), tensor(draw(true, 3 * n), &[1, 3, n])),
    ]);
    let y = interp::run(&graph, &feeds).unwrap()["y"].flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let kept: Vec<f64> = y.iter().map(|y| f64::from(*y != 0.0)).collect();
    let stay = ((1.0 - rate) * 2039.0).ceil() / 2039.0;
    let sigma = |count: usize| (stay * (1.0 - stay) / count as f64).sqrt();
    let share = |of: &dyn Fn(usize) -> usize, count: usize| (0..count).map(|k| kept[of(k)]).sum::<f64>() / count as f64;
    assert!((share(&|k| k, l * n) - stay).abs() < 4.0 * sigma(l * n));
    for row in 0..l {
        assert!((share(&|k| row * n + k, n) - stay).abs() < 5.0 * sigma(n), "row {row}");
    }
    for column in 0..n {
        assert!((share(&|k| k * n + column, l) - stay).abs() < 5.0 * sigma(l), "column {column}");
    }
    // Neighbours in both directions and across: correlation below 4 standard errors.
    for step in [1, n, n + 1] {
        let count = l * n - step;
        let both = (0..count).map(|k| (kept[k] - stay) * (kept[k + step] - stay)).sum::<f64>() / count as f64;
        assert!((both / (stay * (1.0 - stay))).abs() < 4.0 / (count as f64).sqrt(), "step {step}: {both}");
    }
}

/// What `weftc run --out` writes: PEFT's two files, the merged weights under the source's names, no factors.
#[test]
fn a_run_leaves_an_adapter_for_peft() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.onnx");
    compile(&options(MODELS[0], "lora", &["q", "v"], 2)).unwrap().write(&path).unwrap();
    let data = folder.path().join("data.jsonl");
    std::fs::write(&data, "{\"input_ids\": [1,2,3,4,5,6,7,8], \"prompt_len\": 2}\n".repeat(4)).unwrap();
    let out = folder.path().join("out");
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }
    let flags = ["--steps", "3", "--batch-size", "2", "--quiet", "--lr", "0.01"].map(String::from);
    let named = [("--data", &data), ("--out", &out)].map(|(f, p)| [f.to_string(), p.display().to_string()]);
    let line = ["weftc".to_string(), path.display().to_string()].into_iter().chain(flags).chain(named.concat());
    let summary = weftc::train::run(&<Cli as clap::Parser>::parse_from(line).run).unwrap();
    assert_eq!(summary.notes, Vec::<String>::new());
    let names = |file: &str| {
        let bytes = std::fs::read(out.join(file)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let line = |(name, view): (String, safetensors::tensor::TensorView)| format!("{name} {:?}", view.shape());
        let mut lines: Vec<String> = tensors.tensors().into_iter().map(line).collect();
        lines.sort();
        lines.join("\n")
    };
    let config = std::fs::read_to_string(out.join("adapter_config.json")).unwrap();
    insta::assert_snapshot!(format!(
        "{}\n\n{config}\n{}",
        names("adapter_model.safetensors"),
        names("model.safetensors")
    ));
}

/// An adapter that a run left is merged as the run itself merged it, byte for byte, and training goes on from it.
#[test]
fn an_adapter_comes_back() {
    for (name, adapter) in MODELS.into_iter().zip(["lora", "rslora", "dora", "dora"]) {
        let targets = if name.starts_with("dream") { &EVERYWHERE[..7] } else { &EVERYWHERE[..] };
        let options = options(name, adapter, targets, 3);
        let (trainer, folder, ..) = trained(&options);
        let own = trainer.save(folder.path()).unwrap();
        let manifest = trainer.manifest().adapter.clone().unwrap();
        adapter::save(&trainer, &manifest, folder.path()).unwrap();
        let output = folder.path().join("merged.onnx");
        let args = MergeArgs { model: model(name), adapter: folder.path().into(), output: output.clone(), quiet: true };
        assert_eq!(merge(&args).unwrap(), manifest.modules.len(), "{name}");
        assert!(std::fs::read(&own).unwrap() == std::fs::read(&output).unwrap(), "{name}: merged otherwise");

        let mut again = Trainer::load(&folder.path().join("train.onnx"), Setup::default()).unwrap();
        adapter::load(&mut again, folder.path()).unwrap();
        for parameter in trainer.parameters() {
            assert_eq!(again.parameter(parameter).unwrap(), trainer.parameter(parameter).unwrap(), "{parameter}");
        }
    }
}

/// Everything that stands in the way is named at once.
#[test]
fn what_does_not_fit_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let (trainer, from, ..) = trained(&options(MODELS[0], "lora", &["q", "head"], 2));
    let manifest = trainer.manifest().adapter.clone().unwrap();
    adapter::save(&trainer, &manifest, from.path()).unwrap();
    let mut out = String::new();
    let mut show = |what: &str, error: String| {
        let error = error.replace(&from.path().display().to_string(), "DIR");
        out += &format!("{what}\n{}\n", error.replace(env!("CARGO_MANIFEST_DIR"), "."));
    };
    // Another kind, rank and set of modules.
    let train = folder.path().join("train.onnx");
    compile(&options(MODELS[0], "dora", &["q", "k"], 4)).unwrap().write(&train).unwrap();
    let mut other = Trainer::load(&train, Setup::default()).unwrap();
    show("init", adapter::load(&mut other, from.path()).unwrap_err().to_string());
    compile(&Options { trainable: "full".parse().unwrap(), ..options(MODELS[0], "lora", &["q"], 2) })
        .unwrap()
        .write(&train)
        .unwrap();
    let mut full = Trainer::load(&train, Setup::default()).unwrap();
    show("init without an adapter", adapter::load(&mut full, from.path()).unwrap_err().to_string());
    // Dream's modules have other names and sizes.
    let args = |name: &str, output: &Path| MergeArgs {
        model: model(name),
        adapter: from.path().into(),
        output: output.into(),
        quiet: true,
    };
    let output = folder.path().join("merged.onnx");
    show("merge into another model", merge(&args(MODELS[3], &output)).unwrap_err().to_string());
    assert!(!output.exists());
    show("merge onto the model", merge(&args(MODELS[0], &model(MODELS[0]))).unwrap_err().to_string());
    let config = from.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text
        .replace("\"bias\": \"none\"", "\"bias\": \"all\"")
        .replace("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]");
    std::fs::write(&config, text.replace("\"use_dora\": false", "\"use_dora\": true")).unwrap();
    show("what PEFT has beyond factors", merge(&args(MODELS[0], &output)).unwrap_err().to_string());
    insta::assert_snapshot!(out);
}
