//! Time and memory stay in proportion to the file, whatever it says: the program runs in a small address
//! space, and is ended where it takes too long.
#![cfg(target_os = "linux")]

use crate::build::*;
use crate::{graphs, operands};
use std::process::{Command, Output};

/// Runs `weftc compile` on a model in 1 GiB of address space and within a minute of processor time.
fn bounded(model: Vec<u8>) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.onnx"), model).unwrap();
    Command::new("sh")
        .args(["-c", "ulimit -v 1048576; ulimit -t 60; exec \"$0\" compile model.onnx --mask-id 31 --quiet"])
        .arg(env!("CARGO_BIN_EXE_weftc"))
        .current_dir(folder.path())
        .output()
        .unwrap()
}

fn refused(model: Vec<u8>) -> String {
    let output = bounded(model);
    let message = String::from_utf8_lossy(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(3), "{:?} {}", output.status, &message[..message.len().min(1000)]);
    assert!(message.len() < 1 << 20, "{} bytes of message", message.len());
    message
}

/// The small model with a chain of `n` nodes in the middle.
fn chain(n: usize, op: &str) -> Vec<u8> {
    let name = |k: usize| if k == 0 { "hidden".to_string() } else { format!("h{k}") };
    let last = |k: usize| if k == n { "last".to_string() } else { name(k) };
    through((1..=n).map(|k| named(&format!("n{k}"), node(op, &[&name(k - 1)], &[&last(k)]))).collect())
}

#[test]
fn huge_sizes_take_no_memory() {
    let size = |dims: &[i64]| with(|_, g| g.initializer[0].dims = dims.to_vec());
    refused(size(&[1 << 40, 1 << 10]));
    refused(size(&[i64::MAX, i64::MAX]));
    refused(through_with(
        &[ints("k", &[1 << 40, 1, 4])],
        vec![
            node("ConstantOfShape", &["k"], &["zeros"]),
            named("step", node("Add", &["hidden", "zeros"], &["sum"])),
            named("last", node("Reshape", &["sum", "k"], &["last"])),
        ],
    ));
}

#[test]
fn sizes_do_not_grow_without_end() {
    refused(operands::polynomial(40));
    refused(operands::sums(40));
}

#[test]
fn functions_do_not_multiply_without_end() {
    assert!(refused(graphs::laughs(30)).contains("unfold"));
}

#[test]
fn a_chain_of_100_000_nodes_is_compiled() {
    let output = bounded(chain(100_000, "Neg"));
    assert!(output.status.success(), "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_chain_of_100_000_broken_nodes_is_refused() {
    assert!(refused(chain(100_000, "Foo")).contains("first `n1`"));
    let missing = |k: usize| named(&format!("n{k}"), node("Neg", &[&format!("gone{k}")], &[&format!("h{k}")]));
    refused(through((0..100_000).map(missing).chain([step("Neg")]).collect()));
}

#[test]
fn many_weights_and_branches_are_refused_in_time() {
    let model = with(|_, g| {
        g.initializer.extend((0..20_000).map(|k| floats(&format!("w{k}"), &[2])));
        let add = |k: usize| named(&format!("n{k}"), node("Add", &[&format!("w{k}"), "gone"], &[&format!("h{k}")]));
        g.node.splice(1..1, (0..20_000).map(add));
    });
    refused(model);
}
