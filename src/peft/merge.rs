//! `weftc merge`: an adapter becomes part of a model's weights.

use super::beside::coded;
use super::{Module, find};
use crate::error::{Error, Problem, Result};
use crate::ir::{DType, Graph, Leaf, LeafKind, Node, Op};
use crate::onnx::read::{read, ties};
use crate::onnx::replace::{Beside, replace};
use crate::runtime::HostTensor;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Merge an adapter of PEFT or of weftc into an ONNX model.
#[derive(Clone, Debug, clap::Args)]
pub struct MergeArgs {
    /// The model that the adapter belongs to: an ONNX file of any exporter
    pub model: PathBuf,
    /// The adapter's folder: adapter_config.json and adapter_model.safetensors
    pub adapter: PathBuf,
    /// Where to write the merged model
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Print nothing on success
    #[arg(short, long)]
    pub quiet: bool,
}

/// Writes `args.model` again with every weight that has an adapter changed, or with the adapter beside its product where the
/// weight is in few bits; returns how many those are.
///
/// # Errors
/// `Io`; `Model` for a model that cannot be read; `Usage` with every module that the model does not have, or uses in
/// more than a linear layer.
pub fn merge(args: &MergeArgs) -> Result<usize> {
    let adapter = super::read(&args.adapter)?;
    if let (Ok(a), Ok(b)) = (args.model.canonicalize(), args.output.canonicalize())
        && a == b
    {
        let problem = Problem::new(args.output.display().to_string(), "is the model itself");
        return Err(Error::usage(problem.help("write the merged model under another name with -o")));
    }
    let source = read(&args.model)?;
    let (chosen, beside) = assign(&source.graph, &adapter.modules, &args.model)?;
    // A weight that the file holds twice is merged twice.
    let ties = ties(&args.model)?;
    let merged = RefCell::new(Vec::new());
    let replaced = replace(&args.model, &args.output, &beside, &mut |name, old| {
        let tie = ties.get(name);
        let Some((module, turned)) = chosen.get(tie.map_or(name, |t| &t.to)) else { return Ok(None) };
        let old = HostTensor::from_bytes(old.dtype, &old.shape, old.bytes.clone())?;
        if tie.is_none() {
            merged.borrow_mut().push(name.to_string());
        }
        Ok(Some(module.merge(&old, turned ^ tie.is_some_and(|t| t.transposed))?.bytes().to_vec()))
    })?;
    let merged = merged.into_inner();
    if merged.len() < chosen.len() {
        let lost: Vec<&str> = chosen.keys().filter(|n| !merged.contains(n)).map(String::as_str).collect();
        return Err(Error::internal("merge", format!("{} was not found again", lost.join(", "))));
    }
    if replaced.beside < beside.len() {
        let message = format!("{} adapters of weights in few bits found no product", beside.len() - replaced.beside);
        return Err(Error::internal("merge", message));
    }
    Ok(merged.len() + beside.len())
}

/// The module of each initializer by its name in the file, and whether it lies there as [in out].
type Chosen<'a> = BTreeMap<String, (&'a Module, bool)>;

/// What is merged, and what stands beside weights in few bits.
fn assign<'a>(graph: &Graph, modules: &'a BTreeMap<String, Module>, model: &Path) -> Result<(Chosen<'a>, Vec<Beside>)> {
    let weights: Vec<&Leaf> = graph
        .leaves
        .iter()
        .filter(|l| l.kind == LeafKind::Param && l.ty.dtype.is_float() && l.ty.rank() == 2)
        .collect();
    let coded = coded(graph);
    let name = |weight: &str| weight.strip_suffix(".weight").unwrap_or(weight).to_string();
    let dense = weights.iter().map(|leaf| name(&leaf.name));
    let names: Vec<String> = dense.chain(coded.iter().map(|c| name(&c.name))).collect();
    let tables = tables(graph);
    let (mut chosen, mut beside, mut problems) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (wanted, module) in modules {
        let size = |t: &HostTensor, axis: usize| t.shape().get(axis).copied();
        let (inner, outer) = (size(&module.a, 1), size(&module.b, 0));
        let (o, i) = (outer.unwrap_or(0), inner.unwrap_or(0));
        let found = find(wanted, names.iter().map(String::as_str));
        if let Some(weight) = found.and_then(|found| coded.iter().find(|c| name(&c.name) == found)) {
            if weight.shape == [outer, inner] {
                beside.push(module.beside(weight)?);
            } else {
                let message = format!("the adapter is for {o} x {i}, the weight in few bits is {:?}", weight.shape);
                problems.push(Problem::new(wanted, message));
            }
            continue;
        }
        let leaf = found.and_then(|found| weights.iter().zip(&names).find(|(_, n)| *n == found));
        let Some((leaf, _)) = leaf else {
            let near = names.iter().min_by_key(|n| strsim::levenshtein(n, wanted));
            let help = near.map_or("the model has no weights".into(), |n| format!("the nearest name is {n}"));
            problems.push(Problem::new(wanted, format!("{} has no such linear layer", model.display())).help(help));
            continue;
        };
        if tables.contains(&leaf.name.as_str()) {
            problems.push(
                Problem::new(wanted, "the model also looks this weight up as an embedding: merging would change both")
                    .help("export the model with untied weights"),
            );
            continue;
        }
        let sizes: Vec<Option<i64>> = leaf.ty.shape.iter().map(|d| d.known()).collect();
        if sizes != if leaf.transposed { [inner, outer] } else { [outer, inner] } {
            problems.push(Problem::new(wanted, format!("the adapter is for {o} x {i}, the weight is {}", leaf.ty)));
            continue;
        }
        let file_name = leaf.source_name.clone().unwrap_or_else(|| leaf.name.clone());
        chosen.insert(file_name, (module, leaf.transposed));
    }
    if problems.is_empty() { Ok((chosen, beside)) } else { Err(Error::Usage { problems }) }
}

/// The weights that are looked up by index.
fn tables(graph: &Graph) -> Vec<&str> {
    let mut names = Vec::new();
    for id in graph.live() {
        let Node::Op(Op::Gather, children) = graph.node(id) else { continue };
        let of = |id| graph.as_leaf(id).map(|leaf| graph.leaf(leaf));
        let table = of(children[0]).or_else(|| match graph.node(children[0]) {
            Node::Op(Op::Transpose, c) => of(c[0]),
            _ => None,
        });
        names.extend(table.filter(|l| l.ty.dtype != DType::I64).map(|l| l.name.as_str()));
    }
    names
}
