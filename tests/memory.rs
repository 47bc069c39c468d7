//! What a step takes in memory: the order in which ONNX Runtime computes it, the estimate, and recomputed layers.
//!
//! Measured is `MaxInUse` of ONNX Runtime's own allocator: the bytes of values that live at once, and of the weights that
//! the session holds, on whatever machine.  Parameters that are trained and their gradients lie in buffers of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use weftc::compile::{Budget, Compiled, Options, Trainable, compile};
use weftc::error::Error;
use weftc::manifest::Role;
use weftc::memory::Values;
use weftc::onnx::train_file::{Port, TrainFile};
use weftc::rules::parse::library;
use weftc::runtime::{self, Buffer, HostTensor, Session};

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
        let trained: Vec<Port> = trained.map(|p| ports.iter().find(|port| port.name == p.name).unwrap().clone()).collect();
        let folder = tempfile::tempdir().unwrap();
        let options = runtime::Options {
            threads: 1,
            folder: Some(self.file.folder().to_path_buf()),
            profile: profiled.then(|| folder.path().join("profile")),
            ..runtime::Options::default()
        };
        let session = Session::from_bytes(&self.file.session_bytes(&trained).unwrap(), &options).unwrap();
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
            "answer_mask" => HostTensor::new(&shape, &(0..n).map(|k| k % length >= length / 4).collect::<Vec<_>>()),
            "t" => HostTensor::new(&shape[..1], &(0..batch).map(|k| 0.3 + 0.4 * draw(k)).collect::<Vec<f32>>()),
            "u" => HostTensor::new(&shape, &(0..n).map(draw).collect::<Vec<f32>>()),
            name if *name == self.compiled.manifest.token_input => {
                HostTensor::new(&shape, &(0..n).map(|k| (k * 7 % (vocabulary - 1)) as i64).collect::<Vec<_>>())
            }
            _ => HostTensor::new(&shape, &vec![1i64; n]),
        }
        .unwrap()
    }

    /// The estimate of what [`Outcome::most`] counts: values, and weights that are not trained.
    fn estimate(&self, batch: usize, length: usize) -> u64 {
        let compiled = &self.compiled;
        let values = Values::new(&compiled.graph, &compiled.order, &library().unwrap().lower).unwrap();
        let rows = values.graph().find_leaf(&compiled.manifest.token_input).unwrap();
        let rows = values.graph().leaf(rows).ty.shape[0].clone();
        let fixed = values.fixed(&compiled.trainable);
        let size = |s: &weftc::ir::Sym| Some(if rows.symbols().contains(s) { batch as i64 } else { length as i64 });
        fixed.parameters - fixed.gradients + values.peak(&size)
    }
}

/// The nodes of a profile, in order.
fn computed(profile: &Path) -> Vec<String> {
    let events: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(profile).unwrap()).unwrap();
    let names = events.as_array().unwrap().iter().filter(|e| e["cat"] == "Node").filter_map(|e| e["name"].as_str());
    names.filter_map(|n| n.strip_suffix("_kernel_time")).map(String::from).collect()
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
            for share in [1.0, 0.75, 0.0] {
                if share < 1.0 {
                    let whole = case(&Options { memory: None, ..options.clone() });
                    let values = whole.estimate(*batch, *length) as f64;
                    let library = library().unwrap();
                    let fixed = Values::new(&whole.compiled.graph, &whole.compiled.order, &library.lower).unwrap();
                    let fixed = fixed.fixed(&whole.compiled.trainable);
                    let rest = fixed.total() - (fixed.parameters - fixed.gradients);
                    let bytes = (values * share) as u64 + rest;
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
