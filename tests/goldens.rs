//! PyTorch's numbers: one step and five AdamW steps of the reference models, on ONNX Runtime.
//!
//! The models and goldens lie in `../shared`; without that folder the test says so and checks nothing.

use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weftc::compile::{Options, compile};
use weftc::manifest::{Parameter, Role};
use weftc::precision::Compute;
use weftc::rules::Target;
use weftc::runtime::HostTensor;
use weftc::runtime::device::{Choice, Device};
use weftc::train::optimizer::Decay;
use weftc::train::{Optimizer, Setup, Trainer};

/// A golden file's tensors as f64 with their shapes, and its metadata.
struct Golden {
    tensors: BTreeMap<String, (Vec<i64>, Vec<f64>)>,
    clip: Option<f64>,
}

fn shared() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let found = folder.join("goldens").is_dir() && folder.join("models").is_dir();
    if !found {
        println!("skipped: there is no ../shared with models and goldens beside this checkout");
    }
    found.then_some(folder)
}

fn golden(path: &Path) -> Golden {
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let clip = metadata.metadata().as_ref().unwrap()["max_norm"].parse().ok();
    let mut tensors = BTreeMap::new();
    for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let data = view.data();
        let values: Vec<f64> = match view.dtype() {
            Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) as f64).collect(),
            Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            Dtype::U8 | Dtype::BOOL => data.iter().map(|b| *b as f64).collect(),
            other => panic!("{name}: {other:?}"),
        };
        tensors.insert(name, (view.shape().iter().map(|n| *n as i64).collect(), values));
    }
    Golden { tensors, clip }
}

impl Golden {
    fn values(&self, name: &str) -> &[f64] {
        &self.tensors.get(name).unwrap_or_else(|| panic!("the golden has no {name}")).1
    }

    /// The golden's name of a parameter: an adapter's factors are `X.lora_A`, what it adapts is `X.base.weight`.
    fn name(&self, p: &Parameter) -> String {
        let (module, last) = p.name.rsplit_once('.').unwrap_or(("", &p.name));
        let adapted = format!("{module}.base.{last}");
        match &p.part {
            Some(_) => module.to_string(),
            None if self.tensors.contains_key(&format!("init.{adapted}")) => adapted,
            None => p.name.clone(),
        }
    }

    /// A tensor of the golden in the orientation of train.onnx.
    fn oriented(&self, prefix: &str, p: &Parameter) -> Vec<f64> {
        let (shape, values) = &self.tensors[&format!("{prefix}.{}", self.name(p))];
        if !p.transposed {
            return values.clone();
        }
        let (rows, columns) = (shape[0] as usize, shape[1] as usize);
        (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
    }

    fn step(&self, input: &str, k: usize) -> Vec<f32> {
        let (shape, values) = &self.tensors[input];
        let size = shape[1..].iter().product::<i64>() as usize;
        values[k * size..(k + 1) * size].iter().map(|x| *x as f32).collect()
    }
}

/// The CPU; what `WEFTC_TEST_DEVICE` names on a machine with a GPU (`benches/gpu.sh`).
fn device() -> Device {
    let cuda = std::env::var("WEFTC_TEST_DEVICE").is_ok_and(|name| name == "cuda");
    let choice = if cuda { Choice::Cuda } else { Choice::Cpu };
    choice.resolve(0, &mut |line| println!("{line}")).unwrap().0
}

/// The largest difference, relative to the largest element.
fn distance(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let scale = theirs.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    ours.iter().zip(theirs).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// The largest relative difference of single elements, where `theirs` is not 0; exact where it is.
fn relative(ours: &[f64], theirs: &[f64]) -> f64 {
    let one = |(a, b): (&f64, &f64)| if *b == 0.0 { if *a == 0.0 { 0.0 } else { 1.0 } } else { ((a - b) / b).abs() };
    ours.iter().zip(theirs).map(one).fold(0.0, f64::max)
}

/// Compiles an export, trains five steps on the golden's draws and compares everything.
fn check(model: &Path, golden: &Golden, target: Target, method: &str, trainable: &str) -> String {
    let name = format!("{} {target:?}", model.file_stem().unwrap().to_string_lossy());
    let (shape, tokens) = &golden.tensors["input.tokens"];
    let (batch, length) = (shape[0] as usize, shape[1] as usize);
    let config = golden.tensors.iter().find(|(n, _)| n.ends_with("wte.weight") && n.starts_with("init.")).unwrap().1;
    let vocab = config.0[0];

    let trainable = trainable.parse().unwrap();
    let options = Options {
        mask_id: Some(vocab - 1),
        target,
        method: method.into(),
        trainable,
        compute: Compute::F32,
        ..Options::new(model)
    };
    let options = options.with("t_floor", 0.0);
    let compiled = compile(&options).unwrap_or_else(|e| panic!("{name}: {e}"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.onnx");
    compiled.write(&file).unwrap();

    let optimizer = Optimizer { lr: 1e-3, weight_decay: 0.1, clip: golden.clip, ..Optimizer::default() };
    let session = weftc::runtime::Options { device: device(), ..weftc::runtime::Options::default() };
    let mut trainer =
        Trainer::load(&file, Setup { optimizer, decay: Decay::All, session, ..Setup::default() }).unwrap();
    let parameters: Vec<Parameter> = trainer.manifest().parameters.clone();
    let mut names: Vec<String> = parameters.iter().map(|p| golden.name(p)).collect();
    let mut expected: Vec<&str> = golden.tensors.keys().filter_map(|k| k.strip_prefix("init.")).collect();
    names.sort();
    expected.sort();
    assert_eq!(names, expected, "{name}: the parameters have PyTorch's names");
    let parameters: Vec<Parameter> = parameters.into_iter().filter(|p| p.role == Role::Trainable).collect();
    for p in &parameters {
        // The golden's factors are drawn; ours start in their own way.
        if p.part.is_some() {
            let now = trainer.parameter(&p.name).unwrap();
            let value = HostTensor::from_f64(now.dtype(), now.shape(), &golden.oriented("init", p)).unwrap();
            trainer.set_parameter(&p.name, &value).unwrap();
        }
        let initial = trainer.parameter(&p.name).unwrap().to_f64();
        assert_eq!(initial, golden.oriented("init", p), "{name}: {} starts as in the golden", p.name);
    }

    let (prompt, total) = (golden.values("input.prompt_len"), golden.values("input.total_len"));
    let inside = |i: usize| (prompt[i / length]..total[i / length]).contains(&((i % length) as f64));
    let answer: Vec<bool> = (0..batch * length).map(inside).collect();
    let ids: Vec<i64> = tokens.iter().map(|x| *x as i64).collect();
    let (b, l) = (batch as i64, length as i64);
    let mut worst_gradient = 0f64;
    let mut worst_loss = 0f64;
    for k in 0..5 {
        let step = trainer
            .step_with(
                HostTensor::new(&[b, l], &ids).unwrap(),
                HostTensor::new(&[b, l], &answer).unwrap(),
                HostTensor::new(&[b], &golden.step("input.t", k)).unwrap(),
                HostTensor::new(&[b, l], &golden.step("input.u", k)).unwrap(),
            )
            .unwrap();
        let diagnostic = |n: &str| step.diagnostics[n].to_f64();
        assert_eq!(diagnostic("mask"), golden.values(&format!("step{}.mask", k + 1)), "{name}: mask of step {}", k + 1);
        let loss = golden.values("hist.loss_seq")[k];
        worst_loss = worst_loss.max(((step.loss - loss) / loss).abs());
        if k > 0 {
            continue;
        }
        let rate = relative(&diagnostic("mask_rate"), golden.values("step1.t_i"));
        assert_eq!(step.diagnostics.contains_key("entropy"), method == "weft", "{name}: only WeFT has an entropy pass");
        if method == "weft" {
            let entropy = relative(&diagnostic("entropy"), golden.values("step1.entropy"));
            assert!(entropy < 1e-5, "{name}: entropy differs by {entropy:.1e}");
        }
        assert!(rate < 1e-5, "{name}: t_i differs by {rate:.1e}");
        let ce: Vec<f64> =
            golden.values("step1.ce").iter().zip(golden.values("step1.mask")).map(|(c, m)| c * m).collect();
        let token_loss = distance(&diagnostic("token_loss"), &ce);
        assert!(token_loss < 1e-5, "{name}: token losses differ by {token_loss:.1e}");
        let norm = golden.values("hist.grad_norm")[0];
        assert!(((step.grad_norm - norm) / norm).abs() < 1e-5, "{name}: gradient norm {} and {norm}", step.grad_norm);
        for p in &parameters {
            let gradient: Vec<f64> =
                trainer.gradient(&p.name).unwrap().to_f64().iter().map(|g| g / step.loss_count).collect();
            let apart = distance(&gradient, &golden.oriented("grad", p));
            assert!(apart < 1e-4, "{name}: gradient of {} differs by {apart:.1e}", p.name);
            worst_gradient = worst_gradient.max(apart);
        }
    }
    assert!(worst_loss < 1e-5, "{name}: a loss differs by {worst_loss:.1e}");
    let mut worst_weight = 0f64;
    for p in &parameters {
        let apart = distance(&trainer.parameter(&p.name).unwrap().to_f64(), &golden.oriented("p5", p));
        assert!(apart < 5e-4, "{name}: {} after five steps differs by {apart:.1e}", p.name);
        worst_weight = worst_weight.max(apart);
    }
    format!("{name}: loss {worst_loss:.1e}, gradients {worst_gradient:.1e}, weights after 5 steps {worst_weight:.1e}")
}

fn check_all(exports: &[&str], goldens: &[&str]) {
    let Some(shared) = shared() else { return };
    for file in goldens {
        let golden = golden(&shared.join("goldens").join(format!("{file}.safetensors")));
        // nano_sft_full: the model, the method, what is trained.
        let word = |known: [&'static str; 2]| known.into_iter().find(|w| file.split('_').any(|f| f == *w)).unwrap();
        let (method, trainable) = (word(["weft", "sft"]), word(["full", "lora8"]).trim_end_matches('8'));
        for export in exports {
            for target in [Target::Portable, Target::Cpu, Target::Cuda] {
                println!(
                    "{file}: {}",
                    check(&shared.join("models").join(format!("{export}.onnx")), &golden, target, method, trainable)
                );
            }
        }
    }
}

const NANO: [&str; 4] = [
    "llada_nano_sdpa__dynamo18",
    "llada_nano_sdpa__dynamo25",
    "llada_nano_native__dynamo23",
    "llada_nano_sdpa__legacy17",
];

#[test]
fn nano() {
    check_all(
        &NANO,
        &["nano_weft_full", "nano_weft_full_noclip", "nano_sft_full", "nano_sft_lora8", "nano_weft_lora8"],
    );
}

#[test]
fn tiny() {
    check_all(&["llada_tiny_sdpa__dynamo18", "llada_tiny_native__dynamo23"], &["tiny_weft_full"]);
}

/// Dream's exports shift their logits inside the graph.
#[test]
fn dream_nano() {
    check_all(
        &["dream_nano_sdpa__dynamo18", "dream_nano_native__dynamo23"],
        &["dream_nano_weft_full", "dream_nano_weft_lora8"],
    );
}
