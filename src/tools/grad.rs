//! The gradient graph of any scalar output of any model.

use crate::compile::{add_gradients, lift, lower_for, of_model, optimise};
use crate::error::{Error, Problem, Result};
use crate::ir::dim::numel;
use crate::ir::{Builder, Data, Graph, Id, LeafId, LeafKind};
use crate::onnx::write::{Parts, encode};
use crate::onnx::{Source, read};
use crate::rules::library::Library;
use crate::rules::parse::suggest;
use crate::rules::user::library_with;
use crate::rules::{Rule, Target};
use crate::{atomic, rewrite, schedule};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is differentiated, and with respect to what.
#[derive(Clone, Debug)]
pub struct Request {
    pub model: PathBuf,
    /// The scalar output; may be left out where there is one.
    pub output: Option<String>,
    /// Names of weights and inputs, `*` for any characters; every weight that the scalar depends on where empty.
    pub wrt: Vec<String>,
    pub target: Target,
    pub rules: Option<PathBuf>,
    pub trust_rules: bool,
}

impl Request {
    pub fn new(model: impl Into<PathBuf>) -> Self {
        let target = Target::Portable;
        Request { model: model.into(), output: None, wrt: vec![], target, rules: None, trust_rules: false }
    }
}

/// A model with gradients.
pub struct Gradients {
    /// Lowered: the model's outputs, then `grad/<name>`, each of the shape and type of its leaf.
    pub graph: Graph,
    pub order: Vec<Id>,
    /// The scalar that was differentiated.
    pub of: String,
    pub wrt: Vec<LeafId>,
    pub rules_fired: BTreeMap<String, usize>,
    lower_rules: Vec<Rule>,
    source: Source,
}

impl Gradients {
    /// The bytes of the file.  Weights of `wrt` are inputs with their value as default.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let weights: Vec<LeafId> =
            self.wrt.iter().copied().filter(|l| self.graph.leaf(*l).kind != LeafKind::Input).collect();
        encode(&Parts {
            graph: &self.graph,
            order: &self.order,
            trainable: &weights,
            rules: &self.lower_rules,
            manifest: None,
            source: &self.source.path,
        })
    }

    /// Writes the file, whole or not at all; returns its size in bytes.
    ///
    /// # Errors
    /// `Usage` where the file would replace the model, or lie apart from weights that it references.
    pub fn write(&self, path: &Path) -> Result<usize> {
        let folder = |p: &Path| {
            let parent = p.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            parent.canonicalize().ok()
        };
        let refuse = |message: &str, help: String| {
            Err(Error::usage(Problem::new(path.display().to_string(), message).help(help)))
        };
        let source = &self.source.path;
        if path.exists() && path.canonicalize().ok() == source.canonicalize().ok() {
            return refuse("is the source model itself", "write under another name with -o".into());
        }
        let external = |data: &Option<Data>| matches!(data, Some(Data::File { path, .. }) if path != source);
        if self.graph.leaves.iter().any(|l| external(&l.data)) && folder(path) != folder(source) {
            let beside = source.with_file_name(path.file_name().unwrap_or_default());
            return refuse(
                "the model's weights lie in files of their own, which are only found beside the file that names them",
                format!("write to {}", beside.display()),
            );
        }
        let bytes = self.encode()?;
        atomic::write(path, |out| out.write_all(&bytes))?;
        Ok(bytes.len())
    }
}

/// Differentiates one scalar output of a model.
///
/// # Errors
/// `Usage` with every name that does not fit, `Model` with every operator that has no gradient.
pub fn grad(request: &Request) -> Result<Gradients> {
    let library = library_with(request.rules.as_deref(), request.trust_rules)?;
    let source = read(&request.model)?;
    let found = (scalar(&source.graph, request.output.as_deref()), choose(&source.graph, &request.wrt));
    let (of, wrt) = match found {
        (Ok(of), Ok(wrt)) => (of, wrt),
        (of, wrt) => {
            let problems = of.err().into_iter().chain(wrt.err().into_iter().flatten()).collect();
            return Err(Error::Usage { problems });
        }
    };
    let mut rules_fired = BTreeMap::new();
    let (graph, wrt) = differentiated(&source, &library, request, (&of, wrt), &mut rules_fired)
        .map_err(|e| of_model(e, &request.model))?;
    let order = schedule::order(&graph);
    Ok(Gradients { graph, order, of, wrt, rules_fired, lower_rules: library.lower_for(request.target), source })
}

/// The lowered graph with gradients of the output, and the leaves that they belong to.
fn differentiated(
    source: &Source,
    library: &Library,
    request: &Request,
    (of, wrt): (&str, Option<Vec<LeafId>>),
    fired: &mut BTreeMap<String, usize>,
) -> Result<(Graph, Vec<LeafId>)> {
    let lifted = lift(&source.graph, library, request.target)?;
    rewrite::count(fired, &lifted.fired);
    let mut graph = lifted.graph;
    let root = graph.outputs.iter().find(|(n, _)| n == of).map(|(_, id)| *id);
    let root = root.ok_or_else(|| Error::internal("differentiate", "the output is gone"))?;
    let wrt = wrt.unwrap_or_else(|| weights_below(&graph, root));
    if wrt.is_empty() {
        let problem = Problem::new(of, "depends on no weight that has a gradient");
        return Err(Error::usage(problem.help("name inputs with --wrt")));
    }
    let names = wrt.iter().map(|l| format!("grad/{}", graph.leaf(*l).name));
    let taken = names.filter(|n| graph.outputs.iter().any(|(o, _)| o == n) || graph.find_leaf(n).is_some());
    let problems: Vec<Problem> =
        taken.map(|n| Problem::new(n, "is a name of the model's own").help("rename it in the model")).collect();
    if !problems.is_empty() {
        return Err(Error::Model { model: request.model.clone(), problems });
    }
    add_gradients(&mut graph, root, &wrt, &library.grad)?;
    let optimised = optimise(&graph, library, request.target)?;
    rewrite::count(fired, &optimised.fired);
    Ok((lower_for(&optimised.graph, library, request.target, fired)?, wrt))
}

/// The output to differentiate: floating-point, one element.
fn scalar(graph: &Graph, name: Option<&str>) -> std::result::Result<String, Problem> {
    let is_scalar = |id: &Id| graph.tensor_type(*id).is_some_and(|t| t.dtype.is_float() && numel(&t.shape).is(1));
    let scalars: Vec<&str> = graph.outputs.iter().filter(|(_, id)| is_scalar(id)).map(|(n, _)| n.as_str()).collect();
    let outputs: Vec<String> = graph.outputs.iter().map(|(n, id)| format!("{n}: {}", graph.type_of(*id))).collect();
    let outputs = outputs.join(", ");
    let help = "a gradient is of one number: give the model an output that is a sum or a mean, of shape []";
    match (name, scalars.as_slice()) {
        (Some(name), _) if scalars.contains(&name) => Ok(name.into()),
        (Some(name), _) if graph.outputs.iter().any(|(n, _)| n == name) => {
            Err(Problem::new(name, format!("is not a floating-point scalar; the outputs are {outputs}")).help(help))
        }
        (Some(name), _) => Err(Problem::new(name, format!("is not an output; the outputs are {outputs}"))),
        (None, [one]) => Ok(one.to_string()),
        (None, []) => Err(Problem::new("outputs", format!("none is a floating-point scalar: {outputs}")).help(help)),
        (None, several) => {
            let message = format!("several are scalars: {}", several.join(", "));
            Err(Problem::new("outputs", message).help("name one with --output"))
        }
    }
}

/// The leaves that the patterns name, in the order of the model; `None` where there are no patterns.
fn choose(graph: &Graph, patterns: &[String]) -> std::result::Result<Option<Vec<LeafId>>, Vec<Problem>> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let leaves = || (0..graph.leaves.len() as u32).map(LeafId).filter(|l| graph.leaf(*l).kind != LeafKind::Const);
    let names = |l: LeafId| {
        let leaf = graph.leaf(l);
        std::iter::once(leaf.name.as_str()).chain(leaf.source_name.as_deref())
    };
    let (mut chosen, mut problems) = (Vec::new(), Vec::new());
    for pattern in patterns {
        let found: Vec<LeafId> = leaves().filter(|l| names(*l).any(|n| fits(pattern, n))).collect();
        let float = |l: &&LeafId| graph.leaf(**l).ty.dtype.is_float();
        if let (Some(first), None) = (found.first(), found.iter().find(float)) {
            let message = format!("holds {}, which has no gradient", graph.leaf(*first).ty.dtype.name());
            problems.push(Problem::new(pattern, message));
        }
        if found.is_empty() {
            let near = suggest(pattern, leaves().flat_map(names));
            let help = near.unwrap_or_else(|| {
                "`weftc inspect MODEL` lists weights and inputs; `*` stands for any characters".into()
            });
            problems.push(Problem::new(pattern, "is neither a weight nor an input").help(help));
        }
        chosen.extend(found.iter().filter(float));
    }
    chosen.sort();
    chosen.dedup();
    if problems.is_empty() { Ok(Some(chosen)) } else { Err(problems) }
}

/// Floating-point weights that a value depends on, in the order of the model.
fn weights_below(graph: &Graph, root: Id) -> Vec<LeafId> {
    let mut leaves: Vec<LeafId> = graph.reachable([root]).iter().filter_map(|id| graph.as_leaf(*id)).collect();
    leaves.sort();
    leaves.dedup();
    leaves.retain(|l| graph.leaf(*l).kind == LeafKind::Param && graph.leaf(*l).ty.dtype.is_float());
    leaves
}

/// Whether a name fits a pattern, in which `*` stands for any characters.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|tail| {
            tail.char_indices().map(|(k, _)| k).chain([tail.len()]).any(|k| fits(rest, &tail[k..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, name, want) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("a.*", "a.", true),
            ("*.weight", "blocks.0.weight", true),
            ("*.weight", "blocks.0.weights", false),
            ("blocks.*.q*", "blocks.11.q_proj", true),
            ("blocks.*.q*", "block.11.q_proj", false),
        ] {
            assert_eq!(fits(pattern, name), want, "{pattern} {name}");
        }
    }
}
