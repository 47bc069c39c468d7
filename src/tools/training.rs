//! What is in a train.onnx: what it was compiled from and for, and what a step of it takes.

use super::inspect::{Tensors, in_words};
use super::memory::{Memory, estimate};
use super::plan::recompiled;
use crate::error::Result;
use crate::manifest::{Manifest, PROBE, Parameter, Role};
use crate::onnx::train_file::{Port, TrainFile};
use crate::units::{bytes, thousands};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// What `weftc inspect` shows of a train.onnx.
#[derive(Debug, Serialize)]
pub struct Training {
    pub manifest: Manifest,
    /// The source model, as the manifest places it.
    pub source: PathBuf,
    #[serde(skip)]
    pub inputs: Vec<Port>,
    #[serde(skip)]
    pub outputs: Vec<Port>,
    /// How often each operator occurs.
    pub operators: BTreeMap<String, usize>,
    /// What a step takes, by a compile of the source; `None` where that is not there any more or not the same, or was
    /// compiled with rules of its own.
    pub memory: Option<Memory>,
}

/// Reads a train.onnx, and compiles its source again to estimate the memory of its step.
///
/// # Errors
/// `Io`; `Model` where the file is no train.onnx that this version understands.
pub fn inspect(path: &Path) -> Result<Training> {
    let file = TrainFile::read(path, None)?;
    let source = file.source();
    let memory = match recompiled(&file.manifest, &source) {
        Some(compiled) => Some(estimate(&compiled)?),
        None => None,
    };
    let (inputs, outputs, operators) = (file.inputs(), file.outputs(), file.operators());
    Ok(Training { manifest: file.manifest, source, inputs, outputs, operators, memory })
}

impl fmt::Display for Training {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.manifest;
        writeln!(f, "training graph of {}, written by weftc {}, opset {}", m.source.file, m.weftc, m.opset)?;
        let mut line = |name: &str, text: String| writeln!(f, "    {name:<12}{text}");
        let method = &m.method;
        let has_probe = self.outputs.iter().any(|p| ["entropy", "nll", PROBE].contains(&p.name.as_str()));
        let probe = if has_probe { format!(", entropy pass {}", String::from(method.probe)) } else { String::new() };
        let (name, mask, shift) = (&method.name, method.mask_id, method.logits_shift);
        let excluded = if method.excludes_mask { " (never predicted)" } else { "" };
        line("method", format!("{name}, mask token {mask}{excluded}, logits shift {shift}{probe}"))?;
        if !method.options.is_empty() {
            line(
                "",
                method.options.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", "),
            )?;
        }
        line("trains", self.trains())?;
        line("computes", format!("in {}, for {}", m.compute, m.target.name()))?;
        if m.packing {
            line("packing", "sequences share rows".into())?;
        }
        if let Some(r) = &m.recompute {
            line(
                "recomputes",
                format!(
                    "the first {} of {} layers in the backward part: {} x {} tokens in {} (estimate), for {}",
                    r.layers,
                    r.of,
                    r.batch,
                    r.length,
                    bytes(r.estimate),
                    bytes(r.budget)
                ),
            )?;
        }
        let is_parameter = |name: &str| m.parameters.iter().any(|p| name.starts_with(&p.name));
        show_ports(f, "inputs", self.inputs.iter().filter(|p| !is_parameter(&p.name)))?;
        show_ports(f, "outputs", self.outputs.iter().filter(|p| !p.name.starts_with("grad/")))?;
        let gradients = self.outputs.iter().filter(|p| p.name.starts_with("grad/")).count();
        writeln!(f, "    and the gradients of {gradients} tensors, grad/NAME")?;
        self.show_parameters(f, "trained", Role::Trainable)?;
        self.show_parameters(f, "frozen", Role::Frozen)?;
        let list = |counts: &BTreeMap<String, usize>| {
            counts.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "operators: {} nodes\n    {}", self.operators.values().sum::<usize>(), list(&self.operators))?;
        writeln!(f, "rules that fired\n    {}", list(&m.rules_fired))?;
        match &self.memory {
            Some(memory) => {
                writeln!(f, "memory and operations of a step with AdamW (estimate)")?;
                memory.fmt(f)
            }
            None => writeln!(
                f,
                "the memory of a step is estimated where the model is that this was compiled from, unchanged: {}",
                self.source.display()
            ),
        }
    }
}

impl Training {
    fn trains(&self) -> String {
        let m = &self.manifest;
        match &m.adapter {
            Some(a) => {
                let dropout = if a.dropout > 0.0 { format!(", dropout {}", a.dropout) } else { String::new() };
                format!("{} of rank {}, scale {}{dropout}, on {} layers", a.name, a.rank, a.scale, a.modules.len())
            }
            None => in_words(&m.trained()),
        }
    }

    fn show_parameters(&self, f: &mut fmt::Formatter<'_>, title: &str, role: Role) -> fmt::Result {
        let tensors: Vec<&Parameter> = self.manifest.parameters.iter().filter(|p| p.role == role).collect();
        let numbers = |p: &Parameter| p.shape.iter().map(|n| n.unsigned_abs()).product::<u64>();
        if tensors.is_empty() {
            return Ok(());
        }
        let ty = |p: &Parameter| {
            let sizes: Vec<String> = p.shape.iter().map(i64::to_string).collect();
            let stored = p.quantized.map(|q| format!(" in {} bits", q.bits())).unwrap_or_default();
            format!("{}[{}]{stored}", p.dtype, sizes.join(" "))
        };
        let total = thousands(tensors.iter().map(|p| numbers(p)).sum());
        writeln!(f, "{title}: {} tensors, {total} numbers", tensors.len())?;
        write!(f, "{}", Tensors(tensors.iter().map(|p| (p.name.as_str(), ty(p), numbers(p))).collect()))
    }
}

fn show_ports<'a>(f: &mut fmt::Formatter<'_>, title: &str, ports: impl Iterator<Item = &'a Port>) -> fmt::Result {
    writeln!(f, "{title}")?;
    let size = |n: &Option<i64>| n.map_or("?".into(), |n| n.to_string());
    for p in ports {
        let sizes: Vec<String> = p.shape.iter().map(size).collect();
        writeln!(f, "    {:<24} {}[{}]", p.name, p.dtype.name(), sizes.join(" "))?;
    }
    Ok(())
}
