//! What was never written takes no memory: rows of an embedding whose words do not occur.
//!
//! One test, so that nothing else in the process takes memory meanwhile.
#![cfg(target_os = "linux")]

#[path = "../examples/llada/mod.rs"]
mod llada;

use llada::Shape;
use std::path::Path;
use weftc::compile::{Options, Trainable, compile};
use weftc::ir::DType;
use weftc::manifest::Role;
use weftc::onnx::train_file::TrainFile;
use weftc::runtime::buffer::Memory;
use weftc::runtime::{Buffer, HostTensor, environment};
use weftc::train::batch::{self, Batch};
use weftc::train::data::Sample;
use weftc::train::optimizer::Decay;
use weftc::train::sampler::Sampler;
use weftc::train::{Optimizer, Setup, Trainer};

const MB: u64 = 1 << 20;
const VOCABULARY: usize = 100_000;
const WIDTH: usize = 256;

/// Bytes of memory that belong to no file.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// Two steps of two micro-batches; the embedding afterwards, and what training has taken.
fn trained(train_onnx: &Path, portable: bool) -> (Vec<u8>, u64) {
    let optimizer = Optimizer { weight_decay: 0.1, ..Setup::default().optimizer };
    let before = anonymous();
    let setup = Setup { accumulate: 2, portable, decay: Decay::All, optimizer, ..Setup::default() };
    let mut trainer = Trainer::load(train_onnx, setup).unwrap();
    for step in 0..2u32 {
        let row = |seed: i64| Sample {
            // Only the lower half of the vocabulary; the second step brings new words.
            tokens: (0..12)
                .map(|k| (k * 7919 + 104_729 * (seed + 5 * i64::from(step))) % (VOCABULARY as i64 / 2))
                .collect(),
            prompt: 3,
            total: 12,
        };
        let samples = [row(1), row(2)];
        let batches: Vec<Batch> = samples
            .iter()
            .map(|sample| Batch::new(&[(0, sample)], batch::Shape::default(), Sampler::new(3), step).unwrap())
            .collect();
        assert!(trainer.step_on(&batches, false).unwrap().grad_norm > 0.0);
    }
    let taken = anonymous().saturating_sub(before);
    let name = trainer.parameters().next().unwrap().to_string();
    (trainer.parameter(&name).unwrap().bytes().to_vec(), taken)
}

#[test]
fn rows_without_gradients_take_no_memory_and_are_updated_as_others() {
    environment(&mut |_| {}).unwrap();
    let embedding = (4 * VOCABULARY * WIDTH) as u64;

    let before = anonymous();
    let shape = [VOCABULARY as i64, WIDTH as i64];
    let mut buffer = Buffer::zeros_in(&Memory::default(), DType::F32, &shape).unwrap();
    let mut values = vec![0f32; VOCABULARY * WIDTH];
    values[WIDTH * 70_000] = 1.0;
    let tensor = HostTensor::new(&shape, &values).unwrap();
    buffer.write(&tensor).unwrap();
    assert!(buffer.read().unwrap().bytes() == tensor.bytes());
    buffer.clear().unwrap();
    assert!(buffer.read().unwrap().bytes().iter().all(|b| *b == 0));
    drop((values, tensor));
    let taken = anonymous().saturating_sub(before);
    assert!(taken < 4 * MB, "a buffer of zeros takes {taken} bytes");

    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    let shape = Shape {
        layers: 1,
        width: WIDTH,
        heads: 2,
        ffn: 64,
        vocabulary: VOCABULARY,
        length: 16,
        bf16: false,
        fill: Some(7),
    };
    let written = llada::write(&shape, &model).unwrap();
    let untied = (2 * VOCABULARY * WIDTH) as u64;
    assert!(written.parameters > untied && written.data_bytes > 4 * untied, "{written:?}");
    let trainable = Trainable::Named("*wte*".into());
    let options = Options { mask_id: Some(VOCABULARY as i64 - 1), trainable, ..Options::new(&model) };
    let path = folder.path().join("train.onnx");
    compile(&options).unwrap().write(&path).unwrap();

    let (weights, taken) = trained(&path, false);
    // The embedding itself; neither its gradient, nor the sum of gradients, nor two moments.
    assert!(taken < embedding + embedding / 2, "training takes {} MB, the embedding {}", taken / MB, embedding / MB);
    let (by_bodies, taken) = trained(&path, true);
    assert!(taken > 3 * embedding, "{taken}: functions' bodies are expected to write every row");
    // Words that never occurred, all but the mask token: they decay alike.
    let half = VOCABULARY / 2 * 4 * WIDTH..(VOCABULARY - 1) * 4 * WIDTH;
    assert!(weights[half.clone()] == by_bodies[half.clone()], "the updates differ");
    let initial = TrainFile::read(&path, None).unwrap();
    let name = &initial.manifest.parameters.iter().find(|p| p.role == Role::Trainable).unwrap().name;
    assert!(weights[half.clone()] != initial.initial(name).unwrap().bytes[half], "nothing decays");
}
