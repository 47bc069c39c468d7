//! Time and memory stay in proportion to the file, whatever it says: the program runs in a small address
//! space, and is ended where it takes too long.
#![cfg(target_os = "linux")]

use crate::build::*;
use crate::{graphs, operands};
use std::process::{Command, Output};
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::onnx::proto::*;

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
    // Degrees that arithmetic does not follow are computed at run time: the graph stays small.
    assert!(bounded(operands::polynomial(40)).status.success());
    insta::assert_snapshot!(refused(operands::sums(40)));
}

#[test]
fn functions_do_not_multiply_without_end() {
    insta::assert_snapshot!(refused(graphs::laughs(30)));
}

#[test]
fn constants_do_not_grow_without_end() {
    let numbers: Vec<i64> = (0..4096).map(|k| k * k).collect();
    let table = [ints("c0", &numbers)];
    let double = |k: usize| {
        let (from, to) = (format!("c{k}"), format!("c{}", k + 1));
        named(&format!("n{k}"), node("Concat", &[&from, &from], &[&to])).int("axis", 0)
    };
    refused(through_with(
        &table,
        (0..40).map(double).chain([named("step", node("Add", &["hidden", "c40"], &["last"]))]).collect(),
    ));
    let copy = |k: usize| named(&format!("n{k}"), node("Neg", &[&format!("c{k}")], &[&format!("c{}", k + 1)]));
    insta::assert_snapshot!(refused(through_with(&table, (0..20_000).map(copy).chain([step("Neg")]).collect())));
    let wide = named("wide", node("Concat", &vec!["c0"; 100_000], &["c1"])).int("axis", 0);
    refused(through_with(&table, vec![wide, step("Neg")]));
}

#[test]
fn a_chain_of_100_000_nodes_is_compiled() {
    let output = bounded(chain(100_000, "Neg"));
    assert!(output.status.success(), "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_chain_of_100_000_broken_nodes_is_refused() {
    assert!(refused(chain(100_000, "Foo")).contains("(node `n1`)"));
    let missing = |k: usize| named(&format!("n{k}"), node("Neg", &[&format!("gone{k}")], &[&format!("h{k}")]));
    refused(through((0..100_000).map(missing).chain([step("Neg")]).collect()));
}

#[test]
fn many_weights_are_refused_in_time() {
    let model = with(|_, g| {
        g.initializer.extend((0..20_000).map(|k| floats(&format!("w{k}"), &[2])));
        let add = |k: usize| named(&format!("n{k}"), node("Add", &[&format!("w{k}"), "gone"], &[&format!("h{k}")]));
        g.node.splice(1..1, (0..20_000).map(add));
    });
    refused(model);
}

/// Each branch sees all names around it: 20,000 branches must not copy them.
#[test]
fn many_branches_are_compiled_in_time() {
    let truth =
        TensorProto { data_type: DataType::Bool.into(), int64_data: vec![], int32_data: vec![1], ..int("truth", 1) };
    let branch = |k: usize| {
        let (from, inner) = (if k == 0 { "hidden".into() } else { format!("h{k}") }, format!("inner{k}"));
        let to = if k == 19_999 { "last".into() } else { format!("h{}", k + 1) };
        let body = GraphProto {
            node: vec![node("Neg", &[&from], &[&inner])],
            output: vec![value(&inner, DataType::Float, &[])],
            ..Default::default()
        };
        node("If", &["truth"], &[&to]).graph("then_branch", body)
    };
    let output = bounded(through_with(&[truth], (0..20_000).map(branch).collect()));
    assert!(output.status.success(), "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
}
