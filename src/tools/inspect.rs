//! What is in a model file and what weftc makes of it.

use super::memory::{Memory, Step, estimate};
use super::structure::{Block, LeftOver, blocks, left_over};
use crate::compile::{Options, Stage, compile_watched};
use crate::error::{Error, Problem, Result};
use crate::ir::{Data, Graph, Leaf, LeafId, LeafKind, TensorType};
use crate::onnx::{Source, read};
use crate::precision::Compute;
use crate::rules::Target;
use crate::rules::library::library;
use indexmap::IndexMap;
use rustc_hash::FxHashSet;
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// An input or output.
#[derive(Clone, Debug, Serialize)]
pub struct Port {
    pub name: String,
    pub dtype: String,
    /// Sizes or symbols.
    pub shape: Vec<String>,
}

/// A weight.
#[derive(Clone, Debug, Serialize)]
pub struct Parameter {
    /// The source framework's name, where the reader could find it.
    pub name: String,
    /// The name in the file, where it differs.
    pub source_name: Option<String>,
    pub dtype: String,
    pub shape: Vec<String>,
    pub numbers: u64,
    pub bytes: u64,
    /// In a file of its own beside the model.
    pub external: bool,
    /// Why it cannot be trained; `None` where it can.
    pub frozen: Option<String>,
}

/// What `weftc inspect` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    pub producer: String,
    pub opset: i64,
    pub sha256: String,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    pub parameters: Vec<Parameter>,
    pub mended: Vec<String>,
    /// Empty where the model can be trained; else what stands in the way.
    pub obstacles: Vec<String>,
    pub structure: Vec<Block>,
    pub left_over: Vec<LeftOver>,
    /// Of a model that can be trained.
    pub memory: Option<Memory>,
}

/// Reads a model, lifts it, and tries to compile it for a CPU.
///
/// # Errors
/// What keeps the file from being read.  What keeps the model from being trained is part of the answer.
pub fn inspect(model: &Path) -> Result<Inspection> {
    inspect_in(model, Compute::Auto)
}

/// The same for a step that computes in another type, which halves activations but not weights.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_in(model: &Path, compute: Compute) -> Result<Inspection> {
    let source = read(model)?;
    let rules = library()?;
    // The mask token is one literal in the graph: which one it is changes nothing that is shown.
    let options = Options { mask_id: Some(0), target: Target::Cpu, compute, ..Options::new(model) };
    let mut lifted = None;
    let compiled = compile_watched(&options, &mut |stage, graph| {
        if stage == Stage::Lift {
            lifted = Some(graph.clone());
        }
    });
    let lifted = match lifted {
        Some(graph) => graph,
        None => crate::compile::lift(&source.graph, &rules, Target::Cpu)?.graph,
    };
    let (memory, obstacles) = match compiled {
        Ok(compiled) => (Some(estimate(&compiled, &source.graph, compiled.lower_rules())?), vec![]),
        Err(Error::Model { problems, .. } | Error::Usage { problems }) => (None, problems),
        Err(other) => return Err(other),
    };
    Ok(Inspection {
        producer: source.producer.clone(),
        opset: source.opset,
        sha256: source.sha256.clone(),
        inputs: source
            .graph
            .leaves
            .iter()
            .filter(|l| l.kind == LeafKind::Input)
            .map(|l| port(&l.name, &l.ty))
            .collect(),
        outputs: outputs(&source.graph),
        parameters: parameters(&source, &lifted, !obstacles.is_empty()),
        mended: source.mended.clone(),
        obstacles: obstacles.iter().map(Problem::to_string).collect(),
        structure: blocks(&lifted),
        left_over: left_over(&lifted),
        memory,
    })
}

fn port(name: &str, ty: &TensorType) -> Port {
    Port { name: name.into(), dtype: ty.dtype.name().into(), shape: ty.shape.iter().map(|d| d.to_string()).collect() }
}

fn outputs(graph: &Graph) -> Vec<Port> {
    graph.outputs.iter().filter_map(|(name, id)| Some(port(name, graph.tensor_type(*id)?))).collect()
}

fn parameters(source: &Source, lifted: &Graph, obstructed: bool) -> Vec<Parameter> {
    let used: FxHashSet<_> = lifted.live().iter().filter_map(|id| lifted.as_leaf(*id)).collect();
    let one = |(k, leaf): (usize, &Leaf)| {
        let frozen = if !leaf.ty.dtype.is_float() {
            Some(format!("{} numbers are not trained", leaf.ty.dtype.name()))
        } else if !obstructed && !used.contains(&LeafId(k as u32)) {
            Some("the logits do not depend on it".into())
        } else {
            None
        };
        let port = port(&leaf.name, &leaf.ty);
        let numbers = leaf.ty.shape.iter().filter_map(|d| u64::try_from(d.known()?).ok()).product();
        Parameter {
            name: port.name,
            source_name: leaf.source_name.clone(),
            dtype: port.dtype,
            shape: port.shape,
            numbers,
            bytes: numbers * leaf.ty.dtype.size() as u64,
            external: matches!(&leaf.data, Some(Data::File { path, .. }) if *path != source.path),
            frozen,
        }
    };
    let leaves = source.graph.leaves.iter().enumerate().filter(|(_, l)| l.kind == LeafKind::Param);
    leaves.map(one).collect()
}

/// Lines of what was mended that people are shown.
const MENDED: usize = 6;

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "opset {}, written by {}", self.opset, self.producer)?;
        for (title, ports) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            writeln!(f, "{title}")?;
            ports.iter().try_for_each(|p| writeln!(f, "    {:<24} {}[{}]", p.name, p.dtype, p.shape.join(" ")))?;
        }
        self.show_parameters(f)?;
        if !self.mended.is_empty() {
            writeln!(f, "mended while reading")?;
            self.mended.iter().take(MENDED).try_for_each(|m| writeln!(f, "    {m}"))?;
            if self.mended.len() > MENDED {
                writeln!(f, "    and {} more; --json lists all", self.mended.len() - MENDED)?;
            }
        }
        self.show_structure(f)?;
        match &self.memory {
            Some(memory) => memory.fmt(f),
            None => {
                writeln!(f, "weftc cannot train this model")?;
                self.obstacles.iter().try_for_each(|o| writeln!(f, "    {o}"))
            }
        }
    }
}

impl Inspection {
    fn show_parameters(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = |p: &mut dyn Iterator<Item = &Parameter>| {
            p.fold((0, 0, 0), |(n, numbers, bytes), p| (n + 1, numbers + p.numbers, bytes + p.bytes))
        };
        let (tensors, numbers, bytes) = total(&mut self.parameters.iter());
        writeln!(f, "parameters: {tensors} tensors, {} numbers, {}", thousands(numbers), size(bytes))?;
        // The blocks' parameters differ in a number; one line stands for all.
        let mut groups: IndexMap<(String, String), Vec<&Parameter>> = IndexMap::new();
        for p in &self.parameters {
            let ty = format!("{}[{}]", p.dtype, p.shape.join(" "));
            groups.entry((starred(&p.name), ty)).or_default().push(p);
        }
        let width = groups.keys().map(|(name, _)| name.len()).max().unwrap_or(0);
        for ((name, ty), members) in &groups {
            let name = if let [one] = members.as_slice() { &one.name } else { name };
            let times = if members.len() > 1 { format!("{} of ", members.len()) } else { String::new() };
            writeln!(f, "    {name:<width$}  {ty:<18} {times}{}", thousands(members[0].numbers))?;
        }
        if !self.obstacles.is_empty() {
            return Ok(());
        }
        let (trained, numbers, _) = total(&mut self.parameters.iter().filter(|p| p.frozen.is_none()));
        writeln!(f, "can be trained: {trained} of {tensors} tensors, {} numbers", thousands(numbers))?;
        let frozen = self.parameters.iter().filter_map(|p| Some((&p.name, p.frozen.as_ref()?)));
        frozen.into_iter().try_for_each(|(name, why)| writeln!(f, "    not {name}: {why}"))
    }

    fn show_structure(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "structure")?;
        let list = |counts: &mut dyn Iterator<Item = (&String, &usize)>| {
            counts.map(|(op, n)| format!("{op} {n}")).collect::<Vec<_>>().join(", ")
        };
        for b in &self.structure {
            let several = || format!("{} .. {}, {} blocks, each", b.first, b.last, b.blocks);
            let name = if b.blocks > 1 { several() } else { b.first.clone() };
            writeln!(f, "    {name}")?;
            if !b.composites.is_empty() {
                writeln!(f, "        {}", list(&mut b.composites.iter().map(|(op, n)| (op, n))))?;
            }
            if !b.others.is_empty() {
                writeln!(f, "        and {}", list(&mut b.others.iter()))?;
            }
        }
        if self.left_over.is_empty() {
            return writeln!(f, "    every idiom was recognised");
        }
        writeln!(f, "    not recognised as part of a composite; `weftc explain RULE MODEL` says why")?;
        self.left_over.iter().try_for_each(|l| {
            let more = if l.count > l.places.len() { ", .." } else { "" };
            writeln!(f, "        {} {}: {}{more}", l.operator, l.count, l.places.join(", "))
        })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "memory and operations of a training step with AdamW (estimate)")?;
        let fixed = [("weights and tables", self.parameters), ("gradients", self.gradients), ("moments", self.moments)];
        fixed.iter().try_for_each(|(name, bytes)| writeln!(f, "    {name:<22} {:>12}", size(*bytes)))?;
        if self.looked_up > 0 {
            let most = size(self.looked_up);
            writeln!(
                f,
                "    less for words that do not occur: an embedding's share of both, {most}, is taken row by row"
            )?;
        }
        writeln!(f, "    {:>7} {:>7}    {:>10}  {:>12} {:>12}", "batch", "length", "activations", "total", "GFLOP")?;
        let row = |s: &Step| (s.batch, s.length, size(s.activations), size(s.total), s.flops as f64 / 1e9);
        self.steps.iter().map(row).try_for_each(|(batch, length, activations, total, gflop)| {
            writeln!(f, "    {batch:>7} {length:>7} {activations:>14}  {total:>12} {gflop:>12.3}")
        })
    }
}

/// A name with `*` for every number in it.
fn starred(name: &str) -> String {
    let number = |p: &str| !p.is_empty() && p.chars().all(|c| c.is_ascii_digit());
    name.split('.').map(|p| if number(p) { "*" } else { p }).collect::<Vec<_>>().join(".")
}

/// `8015581184` as `8,015,581,184`.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let first = digits.len() % 3;
    let groups = digits.as_bytes()[first..].chunks(3).map(|c| String::from_utf8_lossy(c).to_string());
    let head = (first > 0).then(|| digits[..first].to_string());
    head.into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    let kb = bytes as f64 / 1e3;
    match kb {
        ..1e3 => format!("{kb:.1} kB"),
        1e3..1e7 => format!("{:.1} MB", kb / 1e3),
        _ => format!("{:.1} GB", kb / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1000, 8_015_581_184].map(thousands), ["0", "999", "1,000", "8,015,581,184"]);
        assert_eq!([31_040, 1_234_567, 32_000_000_000].map(size), ["31.0 kB", "1.2 MB", "32.0 GB"]);
        assert_eq!(starred("h.10.ln_1.weight"), "h.*.ln_1.weight");
    }
}
