//! What a step takes in memory: the order in which ONNX Runtime computes it, the estimate, and recomputed layers.
//!
//! Measured is `MaxInUse` of ONNX Runtime's own allocator: the bytes of values that are held at once, on whatever machine.
//! Weights and gradients lie in buffers of ours, or in the file.

#[path = "../examples/llada/mod.rs"]
mod llada;

use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use weftc::compile::{Budget, Compiled, Options, Trainable, compile};
use weftc::error::Error;
use weftc::interp;
use weftc::ir::{Builder, DType, Id, text};
use weftc::kernels;
use weftc::manifest::Role;
use weftc::memory::Values;
use weftc::onnx::proto::{ModelProto, NodeProto};
use weftc::onnx::train_file::{Port, TrainFile};
use weftc::onnx::write;
use weftc::precision::Compute;
use weftc::rules::Target;
use weftc::rules::library::library;
use weftc::runtime::{self, Buffer, HostTensor, Session, environment};

/// Compiled, and what it was measured on.
struct Case {
    compiled: Compiled,
    file: TrainFile,
    _folder: tempfile::TempDir,
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn options(model: &Path, mask_id: i64, trainable: &str) -> Options {
    let Ok(trainable) = trainable.parse::<Trainable>();
    Options { mask_id: Some(mask_id), trainable, ..Options::new(model) }
}

fn case(options: &Options) -> Case {
    let folder = tempfile::tempdir().unwrap();
    let compiled = compile(options).unwrap_or_else(|e| panic!("{e}"));
    let path = folder.path().join("train.onnx");
    compiled.write(&path).unwrap();
    let file = TrainFile::read(&path, options.model.parent()).unwrap();
    Case { compiled, file, _folder: folder }
}

/// What a run leaves.
struct Outcome {
    outputs: BTreeMap<String, Vec<f64>>,
    most: u64,
    /// Names of nodes in the order in which they were computed.
    computed: Vec<String>,
}

impl Case {
    /// Runs the step as training does, twice; `profiled` tells the order of nodes of the first run.
    fn run(&self, batch: usize, length: usize, profiled: bool) -> Outcome {
        let ports = self.file.inputs();
        let trained = self.compiled.manifest.parameters.iter().filter(|p| p.role == Role::Trainable);
        let trained: Vec<Port> =
            trained.map(|p| ports.iter().find(|port| port.name == p.name).unwrap().clone()).collect();
        let folder = tempfile::tempdir().unwrap();
        let options = runtime::Options {
            threads: 1,
            // As training has it.
            prepack: false,
            folder: Some(self.file.folder().to_path_buf()),
            profile: profiled.then(|| folder.path().join("profile")),
            ..runtime::Options::default()
        };
        environment(&mut |_| {}).unwrap();
        let operators = kernels::step(self.file.functions(), 1).unwrap().into_iter().collect();
        let options = runtime::Options { operators, ..options };
        let session = Session::from_bytes(&self.file.step(&trained).unwrap().bytes, &options).unwrap();
        let mut bound = session.bind().unwrap();
        let mut gradients = Vec::new();
        for port in &trained {
            let value = self.file.initial(&port.name).unwrap();
            let value = HostTensor::from_bytes(value.dtype, &value.shape, value.bytes).unwrap();
            bound.input(&port.name, &Buffer::from_host(&value).unwrap()).unwrap();
            let mut gradient = Buffer::zeros(value.dtype(), value.shape()).unwrap();
            bound.output(&format!("grad/{}", port.name), &mut gradient).unwrap();
            gradients.push((format!("grad/{}", port.name), gradient));
        }
        for port in ports.iter().filter(|p| !self.file.has_default(&p.name)) {
            bound.input(&port.name, &Buffer::from_host(&self.feed(port, batch, length)).unwrap()).unwrap();
        }
        let others = self.file.step_outputs().into_iter().map(|p| p.name).filter(|n| !n.starts_with("grad/"));
        others.for_each(|name| bound.fetch(&name));
        let outputs = bound.run().unwrap();
        let computed = if profiled { computed(&bound.end_profile().unwrap()) } else { vec![] };
        bound.run().unwrap();
        let most = bound.session().most_memory().unwrap();
        let outputs = outputs.into_iter().map(|(name, t)| (name, t.to_f64()));
        let gradients = gradients.into_iter().map(|(name, buffer)| (name, buffer.read().unwrap().to_f64()));
        Outcome { outputs: outputs.chain(gradients).collect(), most, computed }
    }

    fn feed(&self, port: &Port, batch: usize, length: usize) -> HostTensor {
        let (n, vocabulary) = (batch * length, self.compiled.manifest.vocab_size as usize);
        let shape = [batch as i64, length as i64];
        let draw = |k: usize| (k * 37 % 101) as f32 / 101.0;
        match port.name.as_str() {
            // Every token is read, which is what the estimate assumes.
            "answer_mask" => HostTensor::new(&shape, &vec![true; n]),
            "t" => HostTensor::new(&shape[..1], &(0..batch).map(|k| 0.3 + 0.4 * draw(k)).collect::<Vec<f32>>()),
            "u" => HostTensor::new(&shape, &vec![0f32; n]),
            name if *name == self.compiled.manifest.token_input => {
                HostTensor::new(&shape, &(0..n).map(|k| (k * 7 % (vocabulary - 1)) as i64).collect::<Vec<_>>())
            }
            _ => HostTensor::new(&shape, &vec![1i64; n]),
        }
        .unwrap()
    }

    /// The estimate of what [`Outcome::most`] counts: values without gradients and weights.
    fn estimate(&self, batch: usize, length: usize) -> u64 {
        let compiled = &self.compiled;
        let kernels = compiled.manifest.target == Target::Cpu;
        let values = Values::new(&compiled.graph, &compiled.order, &library().unwrap().lower, kernels).unwrap();
        let rows = values.graph().find_leaf(&compiled.manifest.token_input).unwrap();
        let rows = values.graph().leaf(rows).ty.shape[0].clone();
        values.peak(&rows, batch as i64, length as i64)
    }
}

/// The nodes of a profile, in order.
fn computed(profile: &Path) -> Vec<String> {
    let events: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(profile).unwrap()).unwrap();
    let names = events.as_array().unwrap().iter().filter(|e| e["cat"] == "Node").filter_map(|e| e["name"].as_str());
    names.filter_map(|n| n.strip_suffix("_kernel_time")).map(String::from).collect()
}

const BATCH: usize = 8;
const LENGTH: usize = 33;

fn sudoku(trainable: &str) -> Options {
    options(&models().join("sudoku.onnx"), 15, trainable)
}

/// A model of five layers, of which four are alike: rows sink into the last.
struct Deep {
    folder: tempfile::TempDir,
}

impl Deep {
    fn new() -> Self {
        Self::with_heads(4)
    }

    fn with_heads(heads: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (layers, width, ffn) = (5, 64, 128);
        let fill = Some(1);
        let shape = llada::Shape { layers, width, heads, ffn, vocabulary: 48, length: 64, bf16: false, fill };
        let written = llada::write(&shape, &folder.path().join("deep.onnx")).unwrap();
        // In f32, with a table of rotary angles.
        assert!(written.data_bytes >= 4 * written.parameters);
        Deep { folder }
    }

    fn options(&self, trainable: &str) -> Options {
        options(&self.folder.path().join("deep.onnx"), 47, trainable)
    }
}

/// The same with a budget of `bytes`.
fn within(options: &Options, bytes: u64) -> Options {
    let memory = Budget { bytes, batch: Some(BATCH as i64), length: Some(LENGTH as i64) };
    Options { memory: Some(memory), ..options.clone() }
}

/// The least budget, as the refusal of a smaller one tells it, in bytes.
fn least(options: &Options) -> u64 {
    let Err(Error::Usage { problems }) = compile(&within(options, 1)) else { panic!("one byte is enough") };
    let text = problems[0].to_string();
    let number = text.split("the least is --memory-budget ").nth(1).and_then(|t| t.split("MB").next());
    number.unwrap_or_else(|| panic!("{text}")).parse::<u64>().unwrap() * 1_000_000
}

/// The nodes of train.onnx that are no calls of functions: those keep their names, and a position in the profile.
fn nodes(case: &Case) -> Vec<NodeProto> {
    let model = ModelProto::decode(std::fs::read(case.file.path()).unwrap().as_slice()).unwrap();
    model.graph.unwrap().node
}

/// Whatever ONNX Runtime makes of the file's order: it computes the loss before anything that only gradients need, and
/// each gradient at most a few nodes behind what it is made of.
#[test]
fn onnx_runtime_computes_in_the_order_that_is_meant() {
    for trainable in ["full", "lora"] {
        let case = case(&sudoku(trainable));
        let computed = case.run(BATCH, LENGTH, true).computed;
        let at: BTreeMap<&str, usize> = computed.iter().enumerate().map(|(k, name)| (name.as_str(), k)).collect();
        let nodes = nodes(&case);
        // When what a value is made of is there; of a function's call no later than that is known.
        let mut ready: BTreeMap<&str, usize> = BTreeMap::new();
        let mut worst = (0, "");
        for node in &nodes {
            let inputs = node.input.iter().filter_map(|i| ready.get(i.as_str())).copied().max().unwrap_or(0);
            let own = at.get(node.name.as_str()).copied();
            if let Some(own) = own.filter(|_| node.output[0].starts_with("grad/")) {
                worst = worst.max((own.saturating_sub(inputs), node.output[0].as_str()));
            }
            for output in &node.output {
                ready.insert(output, own.unwrap_or(inputs));
            }
        }
        println!("{trainable}: {} nodes, the gradient that waits longest: {worst:?}", computed.len());
        assert!(computed.len() > 300 && worst.0 <= 25, "{trainable}: {worst:?} of {} nodes", computed.len());

        let mut needed: BTreeSet<String> =
            case.file.step_outputs().iter().map(|p| p.name.clone()).filter(|n| !n.starts_with("grad/")).collect();
        for node in nodes.iter().rev() {
            if node.output.iter().any(|o| needed.contains(o)) {
                needed.extend(node.input.iter().cloned());
            }
        }
        let last = ["loss", "loss_sum", "token_loss"].iter().filter_map(|name| at.get(name)).max().unwrap();
        let forward = |n: &NodeProto| n.output.iter().any(|o| needed.contains(o));
        let early = |n: &&NodeProto| !forward(n) && at.get(n.name.as_str()).is_some_and(|k| k < last);
        let early: Vec<&str> = nodes.iter().filter(early).map(|n| n.name.as_str()).collect();
        assert!(early.is_empty(), "{trainable}: before the loss is there: {early:?}");
    }
}

#[test]
fn the_estimate_is_within_a_tenth_of_what_is_measured() {
    let deep = Deep::new();
    for trainable in ["full", "lora"] {
        let tight = deep.options(trainable);
        for options in [sudoku(trainable), tight.clone(), within(&tight, least(&tight))] {
            let case = case(&options);
            for (batch, length) in [(BATCH, LENGTH), (3, 20)] {
                let (most, estimate) = (case.run(batch, length, false).most, case.estimate(batch, length));
                let ratio = estimate as f64 / most as f64;
                let layers = case.compiled.manifest.recompute.map_or(0, |r| r.layers);
                println!(
                    "{trainable}, {layers} layers recomputed, {batch} x {length}: {estimate} of {most}, {ratio:.3}"
                );
                assert!((0.9..=1.1).contains(&ratio), "{trainable} {layers} {batch} {length}: {estimate} {most}");
            }
        }
    }
}

/// Without kernels attention is products and a softmax: no score of the forward part waits for the backward part, and
/// ONNX Runtime merges none with those that are computed again.
#[test]
fn no_layer_keeps_the_scores_of_its_attention() {
    let deep = Deep::new();
    for target in [Target::Portable, Target::Cuda] {
        let options = Options { target, compute: Compute::F32, ..deep.options("lora") };
        let case = case(&options);
        let graph = &case.compiled.graph;
        let loss = graph.outputs.iter().filter(|(name, _)| !name.starts_with("grad/")).map(|(_, id)| *id);
        let forward: BTreeSet<Id> = graph.reachable(loss).into_iter().collect();
        let is_score = |id: &Id| match graph.type_of(*id).shape() {
            [_, _, queries, keys] => queries.known().is_none() && queries == keys,
            _ => false,
        };
        let scores: Vec<Id> = graph.live().into_iter().filter(is_score).collect();
        let own = scores.iter().filter(|id| forward.contains(id)).count();
        // Five layers, twice; rows sink into the last.
        assert!(own >= 8 && scores.len() > own, "{target:?}: {own} of {}", scores.len());
        for id in graph.live().into_iter().filter(|id| !forward.contains(id)) {
            let kept = graph.node(id).children().iter().find(|c| is_score(c) && forward.contains(c));
            assert!(kept.is_none(), "{target:?}: {:?} reads a score of the forward part", graph.node(id));
        }
        let (most, estimate) = (case.run(BATCH, LENGTH, false).most, case.estimate(BATCH, LENGTH));
        let ratio = estimate as f64 / most as f64;
        println!("{target:?}: {own} scores forward, {estimate} of {most}, {ratio:.3}");
        assert!((0.9..=1.1).contains(&ratio), "{target:?}: {estimate} {most}");
    }
}

/// Without kernels four heads' scores are in memory at a time: four times as many heads need hardly more, and ONNX Runtime
/// begins with no heads before it has done with others.
#[test]
fn few_heads_are_in_memory_at_a_time() {
    let (batch, length) = (2, 64);
    let most = |heads: usize, trainable: &str| {
        let deep = Deep::with_heads(heads);
        let case = case(&Options { target: Target::Portable, ..deep.options(trainable) });
        let (most, estimate) = (case.run(batch, length, false).most, case.estimate(batch, length));
        let ratio = estimate as f64 / most as f64;
        println!("{trainable}, {heads} heads: {estimate} of {most}, {ratio:.3}");
        assert!((0.9..=1.1).contains(&ratio), "{trainable}, {heads} heads: {estimate} {most}");
        let one = 4 * batch * length * length;
        (most, one as u64)
    };
    for trainable in ["full", "lora"] {
        let ((few, one), (many, _)) = (most(4, trainable), most(16, trainable));
        // Scores, and what their softmax and their cotangents are made of: three tensors at least for 12 heads more.
        assert!(many < few + 8 * one, "{trainable}: {many} for 16 heads, {few} for 4, {one} a head's scores");
    }
}

/// Recomputed layers change no bit, are not merged with the originals, and save what the estimate says.
#[test]
fn recomputed_layers_give_the_same_numbers_in_less_memory() {
    let deep = Deep::new();
    for trainable in ["full", "lora"] {
        let plain = deep.options(trainable);
        let (whole, tight) = (case(&plain), case(&within(&plain, least(&plain))));
        let told = tight.compiled.manifest.recompute.unwrap();
        assert!(told.layers >= 2, "{told:?}");
        assert_eq!((told.of, told.batch, told.length), (4, BATCH as i64, LENGTH as i64));
        assert!(told.estimate <= told.budget);
        let note = format!("recomputes the first {} of 4 layers", told.layers);
        assert!(tight.compiled.notes.iter().any(|n| n.starts_with(&note)));
        let (before, after) = (whole.run(BATCH, LENGTH, false), tight.run(BATCH, LENGTH, false));
        assert_eq!(before.outputs.keys().collect::<Vec<_>>(), after.outputs.keys().collect::<Vec<_>>());
        for (name, values) in &before.outputs {
            assert!(*values == after.outputs[name], "{trainable}: {name}");
        }
        assert!(before.outputs["loss"][0] > 0.1, "nothing is masked");
        println!("{trainable}: {} instead of {}", after.most, before.most);
        assert!((after.most as f64) < 0.85 * before.most as f64, "{trainable}: {} {}", after.most, before.most);
    }
}

#[test]
fn the_interpreter_finds_the_same_numbers() {
    let deep = Deep::new();
    let plain = deep.options("full");
    let (whole, tight) = (case(&plain), case(&within(&plain, least(&plain))));
    let mut feeds = BTreeMap::new();
    for port in whole.file.inputs().iter().filter(|p| !whole.file.has_default(&p.name)) {
        let value = whole.feed(port, 2, 20);
        let shape: Vec<usize> = value.shape().iter().map(|n| *n as usize).collect();
        let tensor = candle_core::Tensor::from_vec(value.to_f64(), shape, &candle_core::Device::Cpu).unwrap();
        feeds.insert(port.name.clone(), tensor);
    }
    let [before, after] = [&whole, &tight].map(|c| interp::run(&c.compiled.graph, &feeds).unwrap());
    let flat = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    assert!(flat(&before["loss"])[0] > 0.1 && before.len() == after.len());
    for (name, value) in &before {
        assert_eq!(flat(value), flat(&after[name]), "{name}");
    }
}

/// Where sizes are fixed, ONNX Runtime knows every shape; it computes the exponential twice all the same.
#[test]
fn what_comes_after_something_is_not_merged() {
    for (shape, times) in [("[2 3]", 2), ("[batch 3]", 2)] {
        let source = format!(
            "(graph g (input x f32 {shape}) (let y (exp x)) (let d (sin y)) (let z (exp (after x d)))
              (output a (add y d)) (output b (cos z)))"
        );
        let graph = text::parse(&source).unwrap_or_else(|e| panic!("{}", e.message));
        let folder = tempfile::tempdir().unwrap();
        let profile = Some(folder.path().join("profile"));
        let options = runtime::Options { threads: 1, profile, ..runtime::Options::default() };
        let mut session = Session::from_bytes(&write::plain(&graph, &[]).unwrap(), &options).unwrap();
        // Not even what is no number keeps the second from the value of the first.
        let x = HostTensor::new(&[2, 3], &[f32::NAN, 0.0, 1.0, -1.0, 2.0, f32::INFINITY]).unwrap();
        let out = session.run([("x", &x)]).unwrap();
        let want: Vec<f64> = x.to_f64().iter().map(|x| (*x as f32).exp().cos().into()).collect();
        for (got, want) in out["b"].to_f64().iter().zip(want) {
            assert!(got.is_nan() && want.is_nan() || (got - want).abs() < 1e-6, "{got} {want}");
        }
        let computed = computed(&session.end_profile().unwrap());
        let exps = computed.iter().filter(|n| n.starts_with("exp_")).count();
        let order: Vec<usize> =
            ["sin_0", "exp_1"].iter().filter_map(|n| computed.iter().position(|c| c == n)).collect();
        assert!(exps == times && order.is_sorted() && order.len() == 2, "{shape}: {computed:?}");
    }
}

/// Two sessions that run in turns need what one needs, where they share memory.
#[test]
fn sessions_take_memory_in_turns() {
    let source = "(graph g (input x f32 [n]) (output y (sum (exp (sin x)) [0])))";
    let model = write::plain(&text::parse(source).unwrap_or_else(|e| panic!("{}", e.message)), &[]).unwrap();
    let x = HostTensor::zeros(DType::F32, &[1 << 20]).unwrap();
    let options = runtime::Options { threads: 1, shares_memory: true, ..runtime::Options::default() };
    let mut sessions: Vec<Session> = (0..2).map(|_| Session::from_bytes(&model, &options).unwrap()).collect();
    let most: Vec<u64> = (0..4)
        .map(|k| {
            sessions[k % 2].run([("x", &x)]).unwrap();
            sessions[k % 2].most_memory().unwrap()
        })
        .collect();
    assert!(most[0] >= 4 << 20 && most.iter().all(|m| *m < most[0] + (1 << 20)), "{most:?}");
}

#[test]
fn budgets_that_cannot_be_met_are_refused_with_one_that_can() {
    let plain = sudoku("full");
    let enough = least(&plain);
    compile(&within(&plain, enough)).unwrap_or_else(|e| panic!("{e}"));
    let compiled = compile(&within(&plain, 1 << 40)).unwrap_or_else(|e| panic!("{e}"));
    assert!(compiled.manifest.recompute.is_none());
    assert!(compiled.notes.iter().any(|n| n.ends_with("nothing needs to be recomputed")), "{:?}", compiled.notes);
    let Err(error) = compile(&within(&plain, enough / 2)) else { panic!("half of that is enough") };
    assert_eq!(error.exit_code(), 2);
}

/// Measured and estimated bytes of several models, for people.
#[test]
#[ignore = "prints a table; takes minutes"]
fn table() {
    let shared = |name: &str| models().join("../../shared/models").join(name);
    let small = (models().join("../target/bench/custom.onnx"), 4095);
    let cases = [
        (shared("llada_tiny_native__dynamo23.onnx"), 1, 4, 64),
        (shared("llada_nano_sdpa__dynamo18.onnx"), 1, 4, 64),
        (shared("dream_nano_sdpa__dynamo18.onnx"), 1, 4, 64),
        (shared("hf_bert_sdpa__dynamo18.onnx"), 1, 4, 64),
        (models().join("sudoku.onnx"), 15, 8, 33),
        (small.0.clone(), small.1, 1, 128),
        (small.0, small.1, 4, 256),
    ];
    for (model, mask, batch, length) in cases.iter().filter(|c| c.0.exists()) {
        for trainable in ["full", "lora"] {
            let mut options = options(model, *mask, trainable);
            for share in [1.0, 0.75, 0.55] {
                if share < 1.0 {
                    let whole = case(&Options { memory: None, ..options.clone() });
                    let values = whole.estimate(*batch, *length) as f64;
                    let library = library().unwrap();
                    let fixed =
                        Values::new(&whole.compiled.graph, &whole.compiled.order, &library.lower, true).unwrap();
                    let fixed = fixed.fixed(&whole.compiled.trainable);
                    let bytes = (values * share) as u64 + fixed.total();
                    options.memory = Some(Budget { bytes, batch: Some(*batch as i64), length: Some(*length as i64) });
                }
                match compile(&options) {
                    Err(e) => println!("    {e}"),
                    Ok(_) => {
                        let case = case(&options);
                        let (most, estimate) = (case.run(*batch, *length, false).most, case.estimate(*batch, *length));
                        println!(
                            "{} {trainable} {batch}x{length} {:?}: measured {:.3} MB, estimated {:.3}, ratio {:.3}",
                            model.file_name().unwrap().to_string_lossy(),
                            case.compiled.manifest.recompute.map(|r| (r.layers, r.of)),
                            most as f64 / 1e6,
                            estimate as f64 / 1e6,
                            estimate as f64 / most as f64
                        );
                    }
                }
            }
        }
    }
}
