//! The loss on held-out data: without gradients, the entropy pass once for all draws, and the same number as the step's.

use clap::Parser;
use prost::Message;
use std::path::{Path, PathBuf};
use weftc::compile::{Options, compile};
use weftc::onnx::proto::ModelProto;
use weftc::onnx::train_file::TrainFile;
use weftc::train::{RunArgs, run};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
}

/// Compiles the smallest model.
fn compiled(folder: &Path, change: impl FnOnce(Options) -> Options) -> PathBuf {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/llada_micro_dynamo18.onnx");
    let train = folder.join("train.onnx");
    compile(&change(Options { mask_id: Some(31), ..Options::new(&model) })).unwrap().write(&train).unwrap();
    train
}

/// The loss on held-out samples of unlike lengths after a step.
fn loss(train: &Path, runtime: &str) -> f64 {
    let row = |n: i64, k: i64| {
        let tokens: Vec<String> = (0..n).map(|i| ((i * i + k) % 31).to_string()).collect();
        format!("{{\"input_ids\": [{}], \"prompt_len\": {}}}\n", tokens.join(","), n / 3)
    };
    let (data, out) = (train.with_file_name("held_out.jsonl"), train.with_file_name(runtime));
    std::fs::write(&data, [row(12, 3), row(7, 5), row(9, 11)].concat()).unwrap();
    let [train, data, out] = [train, &data, &out].map(|p| p.to_str().unwrap());
    let fixed = ["run", train, "--data", data, "--eval-data", data, "--out", out, "--runtime", runtime];
    let few = ["--quiet", "--lr", "0.01", "--batch-size", "2", "--steps", "1", "--no-length-groups"];
    run(&Cli::parse_from(fixed.iter().chain(&few)).run).unwrap();
    let metrics = std::fs::read_to_string(Path::new(out).join("metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    last["eval_loss"].as_f64().unwrap()
}

/// ONNX Runtime computes the loss alone, the reference interpreter the whole step, in f64.
#[test]
fn the_loss_alone_is_that_of_the_step() {
    let changes: [&dyn Fn(Options) -> Options; 6] = [
        &|o| o,
        &|o| Options { method: "sft".into(), ..o },
        &|o| Options { method: "weft-nll".into(), ..o },
        &|o| Options { probe: "every:2".parse().unwrap(), ..o },
        &|o| Options { probe: "reference".parse().unwrap(), trainable: "lora".parse().unwrap(), ..o },
        &|o| Options { packing: true, ..o },
    ];
    for (k, change) in changes.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let train = compiled(folder.path(), change);
        let [alone, step] = ["onnxruntime", "interpreter"].map(|runtime| loss(&train, runtime));
        assert!((alone - step).abs() < 2e-6 * step, "{k}: {alone} beside {step}");
    }
}

/// The parts of each file: what is fed, what comes out, and no node of the backward part.
#[test]
fn what_no_draw_changes_is_a_part_of_its_own() {
    let parts = |change: &dyn Fn(Options) -> Options| {
        let folder = tempfile::tempdir().unwrap();
        let file = TrainFile::read(&compiled(folder.path(), change), None).unwrap();
        let trainable: Vec<_> = file.inputs().into_iter().filter(|p| file.has_default(&p.name)).collect();
        let parts = file.evaluation(&trainable).unwrap();
        for part in [Some(&parts.loss), parts.before.as_ref()].into_iter().flatten() {
            let nodes = ModelProto::decode(part.bytes.as_slice()).unwrap().graph.unwrap().node;
            let backward = nodes.iter().find(|n| n.op_type.contains("Grad"));
            assert!(backward.is_none() && nodes.iter().any(|n| n.op_type.contains("Attention")), "{backward:?}");
        }
        let plain =
            |inputs: Vec<String>| -> Vec<String> { inputs.into_iter().filter(|i| !file.has_default(i)).collect() };
        (
            plain(parts.loss.inputs).join(" "),
            parts.before.map(|part| (plain(part.inputs).join(" "), part.outputs.join(" "))),
        )
    };
    let text = format!(
        "{:#?}",
        [
            parts(&|o| o),
            parts(&|o| Options { method: "sft".into(), ..o }),
            parts(&|o| Options { probe: "every:2".parse().unwrap(), ..o }),
        ]
    );
    insta::assert_snapshot!(text);
}
