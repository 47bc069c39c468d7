//! What is in a model file and what weftc makes of it.

use super::memory::{Memory, Step, estimate};
use super::structure::{Block, LeftOver, blocks, left_over};
use crate::compile::{Options, Stage, compile_watched};
use crate::error::{Error, Problem, Result};
use crate::ir::{Data, Graph, Leaf, LeafId, LeafKind, TensorType};
use crate::onnx::{Source, read};
use crate::rules::library::library;
use crate::units::{bytes, thousands};
use indexmap::IndexMap;
use rustc_hash::FxHashSet;
use serde::Serialize;
use std::fmt;

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
    /// What is trained, as [`crate::manifest::Manifest::trained`] tells it, where the model can be.
    pub trained: Option<String>,
    /// What a step of that takes.
    pub memory: Option<Memory>,
}

/// Reads a model, lifts it, and tries to compile it as `options` say; without a mask token any will do, since it is one
/// literal in the graph.
///
/// # Errors
/// What keeps the file from being read.  What keeps the model from being trained is part of the answer.
pub fn inspect(options: &Options) -> Result<Inspection> {
    let source = read(&options.model)?;
    let rules = library()?;
    let options = Options { mask_id: options.mask_id.or(Some(0)), ..options.clone() };
    let mut lifted = None;
    let compiled = compile_watched(&options, &mut |stage, graph| {
        if stage == Stage::Lift {
            lifted = Some(graph.clone());
        }
    });
    let lifted = match lifted {
        Some(graph) => graph,
        None => crate::compile::lift(&source.graph, &rules, options.target)?.graph,
    };
    let (trained, memory, obstacles) = match compiled {
        Ok(compiled) => (Some(compiled.manifest.trained()), Some(estimate(&compiled)?), vec![]),
        Err(Error::Model { problems, .. } | Error::Usage { problems }) => (None, None, problems),
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
        trained,
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
pub const MENDED: usize = 6;

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
            Some(memory) => {
                let trained = in_words(self.trained.as_deref().unwrap_or_default());
                writeln!(f, "memory and operations of a step that trains {trained} with AdamW (estimate)")?;
                memory.fmt(f)
            }
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
        let (tensors, numbers, size) = total(&mut self.parameters.iter());
        writeln!(f, "parameters: {tensors} tensors, {} numbers, {}", thousands(numbers), bytes(size))?;
        let ty = |p: &Parameter| format!("{}[{}]", p.dtype, p.shape.join(" "));
        write!(f, "{}", Tensors(self.parameters.iter().map(|p| (p.name.as_str(), ty(p), p.numbers)).collect()))?;
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

/// Tensors with their types and numbers, one a line; one line stands for those of all blocks, whose names differ in a number.
pub(super) struct Tensors<'a>(pub Vec<(&'a str, String, u64)>);

impl fmt::Display for Tensors<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: IndexMap<(String, &str), Vec<(&str, u64)>> = IndexMap::new();
        for (name, ty, numbers) in &self.0 {
            groups.entry((starred(name), ty)).or_default().push((name, *numbers));
        }
        let width = groups.keys().map(|(name, _)| name.len()).max().unwrap_or(0);
        let types = groups.keys().map(|(_, ty)| ty.len()).max().unwrap_or(0).max(18);
        groups.iter().try_for_each(|((name, ty), members)| {
            let name = if let [(one, _)] = members.as_slice() { *one } else { name };
            let times = if members.len() > 1 { format!("{} of ", members.len()) } else { String::new() };
            writeln!(f, "    {name:<width$}  {ty:<types$} {times}{}", thousands(members[0].1))
        })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fixed = [("weights and tables", self.parameters), ("gradients", self.gradients), ("moments", self.moments)];
        fixed.iter().try_for_each(|(name, n)| writeln!(f, "    {name:<22} {:>12}", bytes(*n)))?;
        if self.looked_up > 0 {
            let most = bytes(self.looked_up);
            writeln!(
                f,
                "    less for words that do not occur: an embedding's share of both, {most}, is taken row by row"
            )?;
        }
        writeln!(f, "    {:>7} {:>7}    {:>10}  {:>12} {:>12}", "batch", "length", "activations", "total", "GFLOP")?;
        let row = |s: &Step| (s.batch, s.length, bytes(s.activations), bytes(s.total), s.flops as f64 / 1e9);
        self.steps.iter().map(row).try_for_each(|(batch, length, activations, total, gflop)| {
            writeln!(f, "    {batch:>7} {length:>7} {activations:>14}  {total:>12} {gflop:>12.3}")
        })?;
        writeln!(f, "    on a CPU the program and ONNX Runtime take some 50 MB besides")
    }
}

/// What [`crate::manifest::Manifest::trained`] tells, in a sentence.
pub(super) fn in_words(trained: &str) -> String {
    match trained {
        "full" => "every weight".into(),
        some if some.contains(" of ") => format!("{some} weights"),
        adapter => adapter.into(),
    }
}

/// A name with `*` for every number in it.
fn starred(name: &str) -> String {
    let number = |p: &str| !p.is_empty() && p.chars().all(|c| c.is_ascii_digit());
    name.split('.').map(|p| if number(p) { "*" } else { p }).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blocks() {
        assert_eq!(starred("h.10.ln_1.weight"), "h.*.ln_1.weight");
    }
}
