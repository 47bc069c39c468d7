//! Measures the machine: what products, attention, memory traffic and functions take, and a node by itself.

use super::node::{Timed, median};
use super::system;
use crate::cost::machine::Curve;
use crate::cost::{self, Machine, Work};
use crate::error::{Error, Problem, Result};
use crate::ir::{Graph, Node};
use crate::rules::Rule;
use crate::runtime::device::Device;
use crate::runtime::locate::cache_folder;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Runs that a figure is the median of, at least, and the seconds that they may take.
const RUNS: usize = 5;
const SECONDS: f64 = 0.1;

/// Rows, contracted size and columns of products: from the smallest models' to those of wide layers.
const PRODUCTS: [[usize; 3]; 5] =
    [[32, 64, 64], [256, 64, 256], [512, 512, 512], [1024, 512, 1536], [1024, 1024, 2048]];

/// Products of which a GPU's ceiling is measured at once.
const PRODUCTS_IN_A_ROW: usize = 8;

/// Sequences times heads, length, and width of a head.
const ATTENTION: [[usize; 3]; 4] = [[8, 32, 16], [16, 64, 64], [32, 128, 64], [32, 256, 64]];

/// Elements of a pass.
const PASSES: [usize; 5] = [1 << 12, 1 << 16, 1 << 19, 1 << 22, 1 << 24];

/// Elements of a function, and of a sum of rows of 512.
const FUNCTIONS: [usize; 3] = [1 << 12, 1 << 17, 1 << 21];

/// Links of a chain of nodes that do next to nothing, each of a kernel of ours and one of ONNX Runtime's.
const CHAIN: usize = 100;

/// Measures the machine with so many threads (0: all).
///
/// # Errors
/// Where ONNX Runtime fails.
pub fn calibrate(rules: &[Rule], threads: usize) -> Result<Machine> {
    let threads = system::threads(threads);
    let link = |k: usize| format!("(let y{} (neg (swiglu y{k} y{k})))", k + 1);
    let chain = |n: usize| {
        let links = (0..n).map(link).collect::<String>();
        let source = format!("(graph g (input y0 f32 [8]) {links} (output result y{n}))");
        middle(&mut Timed::of(&source, rules, true, threads)?)
    };
    let (short, long) = (chain(1)?, chain(CHAIN)?);
    let node = ((long - short) / (2 * (CHAIN - 1)) as f64).max(0.0);
    // What a call of a session takes by itself is no node's.
    let call = (short - 2.0 * node).max(0.0);
    let beyond = |seconds: f64| (seconds - call - node).max(seconds / 100.0);
    let curve = |native: bool, nodes: Vec<(String, String)>, amount: &dyn Fn(&Work) -> u64| -> Result<Curve> {
        let mut points: Vec<[f64; 2]> = Vec::new();
        for (body, inputs) in nodes {
            let mut timed = Timed::new(&body, &inputs, rules, native, threads)?;
            let done = work(timed.graph()).as_ref().map(amount).unwrap_or_default();
            points.push([done as f64, beyond(middle(&mut timed)?)]);
        }
        Ok(Curve::new(points))
    };
    let product = products(rules, true, threads, beyond)?;
    let matmul = products(rules, false, threads, beyond)?;
    let shapes = |[n, l, d]: [usize; 3], names: &[&str]| {
        names.iter().map(|x| format!("{x} f32 [1 {n} {l} {d}]")).collect::<Vec<_>>().join("; ")
    };
    let forward = ATTENTION.map(|s| ("attention q k v 0.125".into(), shapes(s, &["q", "k", "v"])));
    let backward = ATTENTION.map(|s| ("attention_grad dy q k v 0.125".into(), shapes(s, &["dy", "q", "k", "v"])));
    let attention = curve(true, forward.to_vec(), &|w| w.products)?;
    let attention_grad = curve(true, backward.to_vec(), &|w| w.products)?;
    let pass = PASSES.map(|n| ("add x y".to_string(), format!("x f32 [{n}]; y f32 [{n}]")));
    let bytes = curve(false, pass.to_vec(), &|w| w.bytes)?;
    let exp = FUNCTIONS.map(|n| ("exp x".to_string(), format!("x f32 [{n}]")));
    let functions = curve(false, exp.to_vec(), &|w| w.functions)?;
    let rows = FUNCTIONS.map(|n| ("sum x [-1]".to_string(), format!("x f32 [{} 512]", n / 512)));
    let sum = curve(false, rows.to_vec(), &|w| w.elements)?;
    let curves = [product, matmul, attention, attention_grad, bytes, functions, sum];
    Ok(Machine::new(system::processor(), threads, node, curves))
}

/// The most floating-point operations a second of our products: squares and layers, and the shapes of `own`.
///
/// # Errors
/// Where ONNX Runtime fails.
pub fn ceiling(rules: &[Rule], threads: usize, own: &[[usize; 3]]) -> Result<f64> {
    let mut best: f64 = 0.0;
    for [m, k, n] in [[512; 3], [1024; 3], [1024, 512, 1536]].iter().chain(own) {
        let (body, inputs) = form(true, 0, [*m, *k, *n]);
        let seconds = quickest(&mut Timed::new(&body, &inputs, rules, true, threads)?)?;
        best = best.max((2 * m * k * n) as f64 / seconds);
    }
    Ok(best)
}

/// The same of a GPU's products, squares of the type that steps are computed in.
///
/// # Errors
/// Where ONNX Runtime fails.
pub fn ceiling_on(device: Device, compute: &str) -> Result<f64> {
    let mut best: f64 = 0.0;
    for n in [4096, 8192] {
        let seconds = quickest(&mut Timed::on(device, &products_in_a_row(n, compute), &[], false, 0)?)?;
        best = best.max(PRODUCTS_IN_A_ROW as f64 * 2.0 * (n as f64).powi(3) / seconds);
    }
    Ok(best)
}

/// Several products of squares, so that the conversion before them is nothing beside: numbers of 16 bits are not copied to
/// a device.
fn products_in_a_row(n: usize, compute: &str) -> String {
    let products: String = (0..PRODUCTS_IN_A_ROW).map(|k| format!("(let y{} (matmul y{k} y0))", k + 1)).collect();
    let result = format!("(let z (cast (slice y{PRODUCTS_IN_A_ROW} 0 0 1 1) f32)) (output result z)");
    format!("(graph g (input x f32 [{n} {n}]) (let y0 (cast x {compute})) {products} {result})")
}

/// A product of `[m k]` and `[k n]`: 0 of plain factors, 1 of one that lies transposed behind, 2 in front.
fn form(native: bool, which: usize, [m, k, n]: [usize; 3]) -> (String, String) {
    let (x, y) = ([[m, k], [m, k], [k, m]][which], [[k, n], [n, k], [k, n]][which]);
    let flags = ["0 0", "0 1", "1 0"][which];
    let op = if native { "product" } else { "fused_matmul" };
    let inputs = format!("x f32 [{} {}]; y f32 [{} {}]", x[0], x[1], y[0], y[1]);
    (format!("{op} x y {flags} 1.0"), inputs)
}

/// The mean of the three forms that a layer has: its value, and the gradients of its input and of its weight.
fn products(rules: &[Rule], native: bool, threads: usize, beyond: impl Fn(f64) -> f64) -> Result<Curve> {
    let mut points = Vec::new();
    for shape in PRODUCTS {
        let mut seconds = 0.0;
        for which in 0..3 {
            let (body, inputs) = form(native, which, shape);
            seconds += beyond(middle(&mut Timed::new(&body, &inputs, rules, native, threads)?)?) / 3.0;
        }
        points.push([2.0 * shape.iter().product::<usize>() as f64, seconds]);
    }
    Ok(Curve::new(points))
}

/// What the one node of a graph does.
fn work(graph: &Graph) -> Option<Work> {
    let node = graph.live().into_iter().find(|id| matches!(graph.node(*id), Node::Op(..)))?;
    cost::of(graph, node, &|_| 1)
}

/// The median of some runs, the first left out.
fn middle(timed: &mut Timed) -> Result<f64> {
    Ok(median(&mut runs(timed)?))
}

fn quickest(timed: &mut Timed) -> Result<f64> {
    Ok(runs(timed)?.into_iter().fold(f64::INFINITY, f64::min))
}

fn runs(timed: &mut Timed) -> Result<Vec<f64>> {
    timed.run()?;
    let (started, mut times) = (Instant::now(), Vec::new());
    while times.len() < RUNS || started.elapsed().as_secs_f64() < SECONDS {
        times.push(timed.run()?);
    }
    Ok(times)
}

/// Where a calibration lies unless something else is said.
///
/// # Errors
/// `Usage` where there is no folder for it.
pub fn default_path() -> Result<PathBuf> {
    let none = |why: String| Error::usage(Problem::new("--calibration", why));
    Ok(cache_folder().map_err(none)?.join("calibration.toml"))
}

/// The calibration at `path`, else the one that is kept, else the built-in figures.
///
/// # Errors
/// As [`Machine::read`]; a kept one that cannot be read counts as none.
pub fn machine(path: Option<&Path>) -> Result<Machine> {
    match path {
        Some(path) => Machine::read(path),
        None => Ok(default_path().and_then(|p| Machine::read(&p)).unwrap_or_else(|_| Machine::reference())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_measured_on_a_device() {
        let mut timed = Timed::on(Device::Cpu, &products_in_a_row(32, "f16"), &[], false, 1).unwrap();
        assert!(quickest(&mut timed).unwrap() > 0.0);
    }
}
