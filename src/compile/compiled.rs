//! A compiled training step, and how it becomes a file.

use super::Stage;
use crate::atomic;
use crate::error::{Error, Problem, Result};
use crate::ir::{DType, Graph, Id, LeafId};
use crate::manifest::Manifest;
use crate::onnx::data_file::DataFile;
use crate::onnx::write::{Beside, Parts, encode_with, inline_bytes};
use crate::rules::{Rule, Target};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One line of the compile report.
#[derive(Clone, Debug)]
pub struct StageReport {
    pub stage: Stage,
    /// Operator nodes after the stage.
    pub nodes: usize,
    pub seconds: f64,
}

/// A compiled training step.
pub struct Compiled {
    /// The lowered graph.
    pub graph: Graph,
    /// Its nodes in file order.
    pub order: Vec<Id>,
    pub trainable: Vec<LeafId>,
    pub manifest: Manifest,
    pub stages: Vec<StageReport>,
    /// What the user should know, one line each.
    pub notes: Vec<String>,
    /// By rule of rules/sink.egg: the floating-point operations that it saves for each token that a pass does not read.
    pub saved: BTreeMap<String, u64>,
    /// The longest sequence that the model takes, where it says so.
    pub most_tokens: Option<i64>,
    /// From so many bytes of weights on they are written to a file of their own beside train.onnx.
    pub inline_limit: u64,
    pub(super) source: PathBuf,
    pub(super) lower_rules: Vec<Rule>,
}

/// Protobuf messages end at 2 GiB.
pub(super) const INLINE_LIMIT: u64 = 1 << 30;

impl Compiled {
    /// The bytes of train.onnx.  `folder` is where it will lie: the manifest names the source relative to it.
    pub fn encode(&self, folder: &Path) -> Result<Vec<u8>> {
        encode_with(&self.parts(Some(&self.manifest_for(folder))), None)
    }

    /// The model that was compiled.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The rules behind the functions of fused nodes.
    pub fn lower_rules(&self) -> &[Rule] {
        &self.lower_rules
    }

    /// Whether training runs kernels in place of functions.
    pub fn kernels(&self) -> bool {
        has_kernels(self.manifest.target, &self.manifest.compute)
    }

    /// The manifest of a file in `folder`.
    fn manifest_for(&self, folder: &Path) -> Manifest {
        let mut manifest = self.manifest.clone();
        manifest.source.file = relative(&self.source, folder);
        manifest
    }

    fn parts<'a>(&'a self, manifest: Option<&'a Manifest>) -> Parts<'a> {
        Parts {
            graph: &self.graph,
            order: &self.order,
            trainable: &self.trainable,
            rules: &self.lower_rules,
            manifest,
            source: &self.source,
        }
    }

    /// Writes train.onnx, whole or not at all, and `<path>.data` where its weights are many; returns their size in
    /// bytes.
    pub fn write(&self, path: &Path) -> Result<usize> {
        if same_file(&self.source, path) {
            let problem = Problem::new(path.display().to_string(), "is the source model itself")
                .help("write the training graph under another name with -o");
            return Err(Error::usage(problem));
        }
        save(&self.parts(Some(&self.manifest_for(folder_of(path)))), path, self.inline_limit)
    }
}

/// Writes a file, whole or not at all, and `<path>.data` where its weights are more than `inline_limit` bytes; returns
/// their size in bytes.
pub(super) fn save(parts: &Parts, path: &Path, inline_limit: u64) -> Result<usize> {
    let large = inline_bytes(parts.graph, parts.source) > inline_limit;
    let mut data = if large { Some(DataFile::new(path)?) } else { None };
    let with_source = same_file(folder_of(parts.source), folder_of(path));
    let bytes = encode_with(parts, data.as_mut().map(|file| Beside { file, with_source }))?;
    let mut size = bytes.len();
    if let Some(data) = data {
        size += data.size() as usize;
        data.finish()?;
    }
    atomic::write(path, |out| out.write_all(&bytes))?;
    Ok(size)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// `path` as seen from `folder`, with `/` between parts; the plain path where they share no root.
fn relative(path: &Path, folder: &Path) -> String {
    let (Ok(path_full), Ok(folder)) = (path.canonicalize(), folder.canonicalize()) else {
        return path.display().to_string();
    };
    let (to, from): (Vec<_>, Vec<_>) = (path_full.components().collect(), folder.components().collect());
    let common = to.iter().zip(&from).take_while(|(a, b)| a == b).count();
    if common == 0 {
        return path.display().to_string();
    }
    let up = std::iter::repeat_n("..".to_string(), from.len() - common);
    let down = to[common..].iter().map(|c| c.as_os_str().to_string_lossy().to_string());
    up.chain(down).collect::<Vec<_>>().join("/")
}

/// Whether training for a target runs kernels in place of functions, where it computes in this type: on a GPU most have one.
pub(super) fn has_kernels(target: Target, compute: &str) -> bool {
    match target {
        Target::Cpu => compute == DType::F32.name(),
        Target::Cuda => true,
        Target::Portable => false,
    }
}
