//! Runs that are killed, interrupted, or cannot write: what is on disk is whole, and a resumed run is the same run.
//!
//! `WEFTC_KILLS=200 cargo test --release --test checkpoints` kills as often in each test.

#![cfg(unix)]

mod program;
mod toy;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use weftc::rng::SplitMix64;
use weftc::train::store;

const DATA: &str = r#"{"input_ids": [0, 1, 2, 3], "prompt_len": 1}
{"input_ids": [4, 3], "prompt_len": 0}
{"input_ids": [2, 2, 1, 0, 4], "prompt_len": 2}
{"input_ids": [3, 1, 1], "prompt_len": 1}
{"input_ids": [1, 4, 0, 2], "prompt_len": 1}
"#;

/// How often each test kills; quick by default.
fn kills(default: usize) -> usize {
    std::env::var("WEFTC_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn toy(folder: &Path) -> PathBuf {
    std::fs::write(folder.join("data.jsonl"), DATA).unwrap();
    toy::write(folder, &toy::Options::default())
}

/// A compiled model, whose state takes longer to write.
fn micro(folder: &Path) -> PathBuf {
    use weftc::compile::{Options, compile};
    std::fs::write(folder.join("data.jsonl"), DATA).unwrap();
    let model = folder.join("model.onnx");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/llada_micro_dynamo18.onnx"), &model).unwrap();
    let train = folder.join("train.onnx");
    compile(&Options { mask_id: Some(31), ..Options::new(&model) }).unwrap().write(&train).unwrap();
    train
}

/// `weftc run` of `train` into `out`, a folder beside it.
fn command(train: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weftc"));
    let data = train.with_file_name("data.jsonl");
    command.arg("run").arg(train).arg("--data").arg(data).args(["--quiet", "--threads", "1", "--batch-size", "1"]);
    command.arg("--out").arg(train.with_file_name(out)).args(more);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Exit code and errors.
fn finish(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn weights(train: &Path, out: &str) -> Vec<u8> {
    std::fs::read(train.with_file_name(out).join("model.safetensors")).unwrap()
}

/// Starts or resumes the run in `out`, and waits until its first step is near.
fn start(train: &Path, out: &str, more: &[&str]) -> Child {
    let folder = train.with_file_name(out);
    // Written when everything is loaded; a resumed run takes over what is in it, so it is moved aside by a rename.
    let metrics = folder.join("metrics.jsonl");
    let before = std::fs::metadata(&metrics).and_then(|m| m.modified()).ok();
    let mut command = command(train, out, more);
    if store::find(&folder).is_ok() {
        command.arg("--resume").arg(&folder);
    }
    let mut child = command.spawn().unwrap();
    let since = Instant::now();
    while std::fs::metadata(&metrics).and_then(|m| m.modified()).ok() == before && child.try_wait().unwrap().is_none() {
        assert!(since.elapsed() < Duration::from_secs(60), "the run does not start");
        std::thread::sleep(Duration::from_micros(200));
    }
    child
}

/// Waits for `micros`, then kills with SIGKILL; whether the run had ended by itself, which must be well.
fn kill(mut child: Child, micros: u64) -> bool {
    std::thread::sleep(Duration::from_micros(micros));
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let ended = output.status.code();
    assert!(matches!(ended, None | Some(0)), "{ended:?}: {}", String::from_utf8_lossy(&output.stderr));
    ended.is_some()
}

/// The step of the last checkpoint, which is read to its last byte.
fn latest(out: &Path) -> u64 {
    let Ok((folder, _)) = store::find(out) else { return 0 };
    let bytes = std::fs::read(folder.join("state.safetensors")).unwrap();
    safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let position = &header.metadata().as_ref().unwrap()["weftc.position"];
    let step = serde_json::from_str::<serde_json::Value>(position).unwrap()["step"].as_u64().unwrap();
    assert_eq!(folder.file_name().unwrap().to_str().unwrap(), format!("step-{step:08}"));
    step
}

/// Kills at random moments of a run with micro-batches; every run that comes to its end has the weights of one
/// that was left alone.
#[test]
fn killed_runs_end_with_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let train = toy(folder.path());
    let more = ["--steps", "90", "--accumulate", "2", "--lr", "0.05", "--save-every", "7", "--keep", "3"];
    let since = Instant::now();
    assert_eq!(finish(command(&train, "whole", &more)), (Some(0), String::new()));
    let micros = since.elapsed().as_micros() as u64 / 6;
    let mut rng = SplitMix64::new(1);
    let (mut ended, mut killed) = (0, 0);
    while killed < kills(20) {
        match kill(start(&train, "out", &more), rng.below(micros as usize) as u64) {
            false => killed += 1,
            true => {
                ended += 1;
                assert!(weights(&train, "out") == weights(&train, "whole"), "after {killed} kills");
                std::fs::remove_dir_all(train.with_file_name("out")).unwrap();
            }
        }
    }
    let mut last = command(&train, "out", &more);
    if store::find(&train.with_file_name("out")).is_ok() {
        last.arg("--resume").arg(train.with_file_name("out"));
    }
    assert_eq!(finish(last), (Some(0), String::new()));
    assert!(weights(&train, "out") == weights(&train, "whole"), "after {killed} kills");
    eprintln!("{killed} kills, {} whole runs", ended + 1);
}

/// Kills while states are written, one a step: the last checkpoint always loads, and never goes back.
#[test]
fn a_kill_while_saving_leaves_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let train = micro(folder.path());
    let out = train.with_file_name("out");
    let mut rng = SplitMix64::new(2);
    let (mut before, mut scratch) = (0, 0);
    let all = kills(20);
    for _ in 0..all {
        let ended = kill(start(&train, "out", &["--steps", "1000000", "--save-every", "1"]), rng.below(60_000) as u64);
        assert!(!ended);
        let after = latest(&out);
        assert!(after >= before, "{after} after {before}");
        before = after;
        let left = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(".weftc-");
        let checkpoints = std::fs::read_dir(out.join(store::FOLDER)).into_iter().flatten();
        scratch += usize::from(checkpoints.flatten().any(|entry| left(&entry.file_name())));
    }
    eprintln!("{all} kills up to step {before}, {scratch} of them within a save");
    assert!(before > 0 && scratch > 0, "step {before}, {scratch} kills within a save");
}

/// The run of `signal`, in whose folder nothing but a checkpoint is missing to go on.
fn interrupted(signal: &str) {
    let folder = tempfile::tempdir().unwrap();
    let train = toy(folder.path());
    let child = start(&train, "out", &["--steps", "100000000", "--lr", "0.05"]);
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    let out = train.with_file_name("out");
    let record = std::fs::read_to_string(out.join("run.json")).unwrap();
    assert!(record.contains("\"state\": \"interrupted\""), "{record}");
    let step = latest(&out);
    let steps = format!("--steps={}", step + 50);
    assert_eq!(finish(command(&train, "whole", &[&steps, "--lr", "0.05"])), (Some(0), String::new()));
    let lines = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines().count() as u64;
    assert_eq!(lines, step);
    // Without --out it goes on where it was.
    let (code, _, errors) = program::weftc(&[
        "run",
        train.to_str().unwrap(),
        "--data",
        train.with_file_name("data.jsonl").to_str().unwrap(),
        "--batch-size=1",
        &steps,
        "--lr=0.05",
        "--quiet",
        "--resume",
        out.to_str().unwrap(),
    ]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(weights(&train, "out") == weights(&train, "whole"));
}

#[test]
fn ctrl_c_finishes_the_step_and_saves() {
    interrupted("-INT");
}

#[test]
fn termination_finishes_the_step_and_saves() {
    interrupted("-TERM");
}

/// A file system that takes no more of a file than 80 blocks, which the run's record fits in and its state does not: the
/// shell ignores SIGXFSZ, so that writes fail as on a full disk.
#[test]
fn where_a_checkpoint_does_not_fit_the_old_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let train = micro(folder.path());
    let out = train.with_file_name("out");
    assert_eq!(finish(command(&train, "out", &["--steps", "3", "--save-every", "3"])).0, Some(0));
    let run = command(&train, "out", &["--steps", "6", "--save-every", "3"]);
    let mut limited = Command::new("sh");
    limited.arg("-c").arg("trap '' XFSZ; ulimit -f 80; exec \"$@\"").arg("sh").arg(run.get_program());
    limited.args(run.get_args()).arg("--resume").arg(&out).stderr(Stdio::piped());
    let (code, errors) = finish(limited);
    assert!(code == Some(7) && errors.contains("File too large"), "{code:?}: {errors}");
    assert!(errors.contains("step-00000003 is still whole"), "{errors}");
    assert_eq!(latest(&out), 3);
    assert_eq!(finish(resumed(&train, &["--steps", "6", "--save-every", "3"])), (Some(0), String::new()));
    assert_eq!(latest(&out), 6);
}

/// A disk that is full for real: a file system of its own, of 400 kB, into which one state fits and two do not.
#[test]
fn on_a_full_disk_the_old_checkpoint_stays() {
    let folder = tempfile::tempdir().unwrap();
    let train = micro(folder.path());
    let out = train.with_file_name("out");
    std::fs::create_dir(&out).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=400k", "tmpfs"]).arg(&out).output();
    if !mounted.is_ok_and(|o| o.status.success()) {
        println!("skipped: a file system can be mounted by root alone");
        return;
    }
    let first = finish(command(&train, "out", &["--steps", "3", "--save-every", "3"]));
    let before = latest(&out);
    let (code, errors) = finish(resumed(&train, &["--steps", "40", "--save-every", "1", "--keep", "9"]));
    let (after, left) = (latest(&out), store_names(&out));
    let unmounted = Command::new("umount").arg(&out).status();
    assert!(unmounted.is_ok_and(|s| s.success()));
    assert_eq!((first, before), ((Some(0), String::new()), 3));
    assert!(code == Some(7) && errors.contains("No space left"), "{code:?}: {errors}");
    assert!(errors.contains("is still whole") && errors.contains("help: free some space"), "{errors}");
    assert!(after >= 3 && left.iter().all(|name| name == "latest" || name.starts_with("step-")), "{after}: {left:?}");
}

fn store_names(out: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(out.join(store::FOLDER)).unwrap();
    entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Frozen weights in a file of their own: the model's file stays as it is when one of them changes, and the run's
/// continuation is refused.
#[test]
fn changed_external_weights_are_refused() {
    use weftc::adapt::Spec;
    use weftc::compile::{Options, compile};
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("data.jsonl"), DATA).unwrap();
    let model = folder.path().join("model.onnx");
    toy::with_external_weights(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/llada_micro_dynamo18.onnx"), &model);
    let train = folder.path().join("train.onnx");
    let options = Options {
        mask_id: Some(31),
        trainable: "lora".parse().unwrap(),
        adapter: Spec { rank: 2, alpha: 4.0, targets: vec!["q".into()], ..Spec::default() },
        ..Options::new(&model)
    };
    compile(&options).unwrap().write(&train).unwrap();
    let out = train.with_file_name("out");
    assert_eq!(finish(command(&train, "out", &["--steps", "3", "--save-every", "1"])), (Some(0), String::new()));
    assert_eq!(finish(resumed(&train, &["--steps", "4", "--save-every", "1"])), (Some(0), String::new()));
    let data = folder.path().join("model.onnx.data");
    let mut bytes = std::fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    let (code, errors) = finish(resumed(&train, &["--steps", "5", "--save-every", "1"]));
    assert!(code == Some(2) && errors.contains("the weights in model.onnx.data: the interrupted run had"), "{errors}");
    assert_eq!(latest(&out), 4);
}

/// The run in `out`, gone on with.
fn resumed(train: &Path, more: &[&str]) -> Command {
    let mut command = command(train, "out", more);
    command.arg("--resume").arg(train.with_file_name("out"));
    command
}

#[test]
fn where_a_folder_is_read_only_the_old_checkpoint_stays() {
    let folder = tempfile::tempdir().unwrap();
    let train = micro(folder.path());
    let out = train.with_file_name("out");
    let more = |steps: &'static str| ["--steps", steps, "--save-every", "1", "--runtime", "interpreter"];
    assert_eq!(finish(command(&train, "out", &more("1"))).0, Some(0));
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(folder.path(), 0o755);
    mode(&out, 0o777);
    mode(&out.join(store::FOLDER), 0o555);
    let mut run = resumed(&train, &more("2"));
    // Modes do not bind root: it runs as nobody.
    let root = std::fs::write(out.join(store::FOLDER).join("probe"), "").is_ok();
    if root {
        std::fs::remove_file(out.join(store::FOLDER).join("probe")).unwrap();
        run.uid(65534).gid(65534);
        if let Err(e) = run.spawn().and_then(|mut child| child.kill()) {
            eprintln!("skipped: the test runs as root, and nobody cannot run the program: {e}");
            return;
        }
    }
    let (code, errors) = finish(run);
    mode(&out.join(store::FOLDER), 0o755);
    assert!(code == Some(7) && errors.contains("Permission denied"), "{code:?}: {errors}");
    assert_eq!(latest(&out), 1);
}

#[test]
fn another_model_data_or_settings_are_refused_with_every_difference() {
    let folder = tempfile::tempdir().unwrap();
    let train = toy(folder.path());
    let out = train.with_file_name("out");
    assert_eq!(finish(command(&train, "out", &["--steps", "4", "--save-every", "2", "--seed", "4"])).0, Some(0));
    let mut bytes = std::fs::read(&train).unwrap();
    bytes.extend_from_slice(&[0x32, 0]); // an empty doc_string: the same model, other bytes
    std::fs::write(&train, bytes).unwrap();
    std::fs::write(train.with_file_name("data.jsonl"), DATA.replace("[4, 3]", "[4, 2]")).unwrap();
    let (code, errors) = finish(resumed(&train, &["--steps", "9", "--schedule", "linear", "--clip", "2"]));
    assert_eq!(code, Some(2), "{errors}");
    let wanted = [
        "--seed: the interrupted run had 4, this one 0",
        "--clip: the interrupted run had 1, this one 2",
        "--schedule: the interrupted run had constant, this one linear",
        "--data: the interrupted run had 5 samples of SHA-256",
        "TRAIN_ONNX: the interrupted run had the file of SHA-256",
        "--steps or --epochs: the interrupted run had none, this one 9 steps",
    ];
    assert!(wanted.iter().all(|w| errors.contains(w)), "{errors}");
    // A new run does not write over it.
    let (code, errors) = finish(command(&train, "out", &["--steps", "9"]));
    assert!(code == Some(2) && errors.contains("holds the checkpoints of another run"), "{code:?}: {errors}");
    assert_eq!(latest(&out), 4);
}

/// A rate so large that an update overflows: ten steps are skipped, and nothing that is not finite is written.
#[test]
fn a_run_that_diverges_leaves_the_last_good_state() {
    let folder = tempfile::tempdir().unwrap();
    let train = toy(folder.path());
    let out = train.with_file_name("out");
    // The rate rises to its peak: the first steps are sound.
    let more = ["--steps", "40", "--lr", "1e38", "--warmup", "20", "--adam-eps", "1e-30", "--clip", "0"];
    let (code, errors) = finish(command(&train, "out", &more));
    assert!(code == Some(5) && errors.contains("diverged"), "{code:?}: {errors}");
    assert!(!out.join("model.safetensors").exists());
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    assert!(!metrics.contains("NaN") && !metrics.contains("inf"), "{metrics}");
    let (saved, _) = store::find(&out).unwrap();
    assert!(errors.contains("the last good state, of step") && latest(&out) > 0, "{errors}");
    let bytes = std::fs::read(saved.join("state.safetensors")).unwrap();
    for (name, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let finite = view.data().chunks(4).all(|b| f32::from_le_bytes(b.try_into().unwrap()).is_finite());
        assert!(finite, "{name}");
    }
}
