//! What exporters break, mended: the names of weights, ties between them, weights apart from tables.

use super::held;
use super::known::Known;
use super::origin::{Origins, Use, is_made_up, is_module_path};
use super::proto::GraphProto;
use super::scope::Scopes;
use super::tensor::Tensor;
use super::tie::{Form, Ties};
use crate::ir::blocks::CODES;
use crate::ir::graph::{Leaf, LeafKind};
use crate::ir::{Dim, TensorType};
use std::collections::{BTreeMap, BTreeSet};

/// What an initializer becomes.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Elements known while reading; used as a tensor it is this leaf.
    Known(Known, Leaf),
    Leaf(Leaf),
    /// A parameter that the file has behind more axes of size 1, so many in all.
    Row(Leaf, usize),
    /// The same data as the leaf of another initializer.
    Tied {
        to: String,
        transposed: bool,
    },
}

/// Every initializer in use, by its name in the source and in the source's order, and what was mended.
#[derive(Default, Debug)]
pub struct Weights {
    pub entries: Vec<(String, Entry)>,
    pub mended: Vec<String>,
}

/// Decides names, kinds and ties of a graph's initializers.
pub fn plan(graph: &GraphProto, tensors: &[(&str, Tensor)]) -> Weights {
    let uses = uses(graph);
    let names: BTreeSet<&str> = tensors.iter().map(|(n, _)| *n).collect();
    let origins = Origins::new(graph);
    let scopes = Scopes::new(graph, &names);
    let recovered = recovered_names(tensors, &uses, &names, &origins, &scopes);
    let claimed: BTreeSet<&str> = recovered.values().map(|r| r.name.as_str()).collect();
    let coded = coded_names(&uses, &origins, &scopes);
    let mut weights = Weights::default();
    let (mut params, mut computed) = (Vec::new(), Vec::new());
    for (source, tensor) in tensors {
        let Some(users) = uses.get(source) else { continue };
        let is_learned = tensor.dtype.is_float() && origins.is_learned(source, tensor, users);
        let new = recovered.get(source).filter(|_| is_learned);
        let codes = coded.get(source);
        let dims = match new.map(|r| r.form) {
            Some(Layout::Row(rank)) => &tensor.dims[tensor.dims.len() - rank..],
            // Keras lays the weights of a norm out for broadcasting.
            None if is_learned && tensor.is_row() && !is_module_path(source) && users.iter().all(Use::broadcasts) => {
                &tensor.dims[tensor.dims.len() - 1..]
            }
            _ => &tensor.dims,
        };
        let leaf = Leaf {
            name: codes.or(new.map(|r| &r.name)).cloned().unwrap_or_else(|| source.to_string()),
            ty: TensorType::new(tensor.dtype, dims.iter().map(|n| Dim::Known(*n as i64)).collect::<Vec<_>>()),
            kind: LeafKind::Const,
            data: Some(tensor.data.clone()),
            transposed: new.is_some_and(|r| r.form == Layout::Transposed),
            source_name: codes.or(new.map(|r| &r.name)).map(|_| source.to_string()),
        };
        // What is chosen from, and bounds of sizes, which TensorFlow has as floats.
        let is_choice = users.iter().all(|u| match u.node.op_type.as_str() {
            "OneHot" => true,
            "Max" | "Min" => !is_learned,
            _ => false,
        });
        let is_known = !tensor.dtype.is_float() || tensor.numel() == 1 && !is_learned || is_choice;
        let known = if is_known { Known::load(tensor) } else { None };
        if let Some(known) = known {
            weights.entries.push((source.to_string(), Entry::Known(known, leaf)));
            continue;
        }
        let kind = if is_learned { LeafKind::Param } else { LeafKind::Const };
        if let Some(r) = new {
            let how = match r.form {
                Layout::Own => "",
                Layout::Transposed => ", transposed",
                Layout::Row(_) => ", as a row",
            };
            weights.mended.push(format!("weight `{source}` is `{}`{how}", r.name));
        }
        if dims.len() < tensor.dims.len() {
            weights.entries.push((source.to_string(), Entry::Row(Leaf { kind, ..leaf }, tensor.dims.len())));
            continue;
        }
        if is_learned {
            // A copy of a weight that is there itself stands for it, wherever both are used.
            let is_there = |name: &str| names.contains(name) || claimed.contains(name);
            let is_copy = new.is_none() && origins.original(source).is_some_and(is_there);
            if let Some(parent) = origins.parents(source).first().filter(|_| new.is_none() && !is_copy) {
                computed.push(format!("`{source}` from `{parent}`"));
            }
            let is_factor = users.iter().all(Use::is_factor) && !is_copy;
            params.push(Candidate { entry: weights.entries.len(), made_up: origins.is_made_up(source), is_factor });
        }
        weights.entries.push((source.to_string(), Entry::Leaf(Leaf { kind, ..leaf })));
    }
    tie(&mut weights, params);
    untie(graph, tensors, &mut weights);
    // First what could not be mended: of the others there may be many.
    let told = [in_place(&computed), unnamed(&weights, &origins)];
    weights.mended.splice(0..0, told.into_iter().flatten());
    weights
}

fn uses(graph: &GraphProto) -> BTreeMap<&str, Vec<Use<'_>>> {
    let mut uses: BTreeMap<&str, Vec<Use>> = BTreeMap::new();
    for node in &graph.node {
        for (operand, name) in node.input.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
            uses.entry(name).or_default().push(Use { node, operand });
        }
        for body in node.attribute.iter().filter_map(|a| a.g.as_ref()) {
            // A loop's operands are its body's inputs, by place.
            let outer: BTreeMap<&str, &str> = body
                .input
                .iter()
                .zip(&node.input)
                .map(|(inner, outer)| (inner.name.as_str(), outer.as_str()))
                .collect();
            for (name, inner) in self::uses(body) {
                uses.entry(outer.get(name).copied().unwrap_or(name)).or_default().extend(inner);
            }
        }
    }
    for output in &graph.output {
        uses.entry(&output.name).or_default();
    }
    uses
}

/// The first of many.
fn few(names: &[String]) -> String {
    const FEW: usize = 3;
    let more = names.len().checked_sub(FEW).filter(|n| *n > 0).map(|n| format!(" and {n} more")).unwrap_or_default();
    names[..names.len().min(FEW)].join(", ") + &more
}

/// What is said of weights of which the file does not tell whose they are.
fn unnamed(weights: &Weights, origins: &Origins) -> Option<String> {
    let own = weights.entries.iter().filter(|(source, entry)| {
        let (Entry::Leaf(leaf) | Entry::Row(leaf, _)) = entry else { return false };
        leaf.kind == LeafKind::Param && leaf.name == *source && origins.parents(source).is_empty() && is_made_up(source)
    });
    let own: Vec<String> = own.map(|(source, _)| format!("`{source}`")).collect();
    let text = || {
        format!(
            "the file does not tell which parameters {} are, or are computed from: they are trained and saved under these \
             names; torch.onnx.export(.., do_constant_folding=False) keeps parameters",
            few(&own)
        )
    };
    (!own.is_empty()).then(text)
}

/// What is said of tensors that the exporter computed from parameters, which are trained instead of those.
fn in_place(computed: &[String]) -> Option<String> {
    let text = || {
        format!(
            "the exporter computed {}: these are trained, not the parameters, and saved under their own names; \
             torch.onnx.export(.., optimize=False) keeps parameters",
            few(computed)
        )
    };
    (!computed.is_empty()).then(text)
}

struct Recovered {
    name: String,
    form: Layout,
}

/// How a file has a parameter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Own,
    Transposed,
    /// Behind more axes of size 1 than it has axes.
    Row(usize),
}

/// Names for tensors that the exporter renamed, from the modules of the nodes that use them.
fn recovered_names<'m>(
    tensors: &[(&'m str, Tensor)],
    uses: &BTreeMap<&'m str, Vec<Use<'m>>>,
    names: &BTreeSet<&'m str>,
    origins: &Origins,
    scopes: &Scopes,
) -> BTreeMap<&'m str, Recovered> {
    let mut found: BTreeMap<&str, Recovered> = BTreeMap::new();
    let mut claims: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let is_learned = |n: &str, t: &Tensor| uses.get(n).is_some_and(|users| origins.is_learned(n, t, users));
    let nameless =
        |(n, t): &&(&str, Tensor)| origins.is_made_up(n) && t.dtype.is_float() && t.numel() > 1 && is_learned(n, t);
    for (source, tensor) in tensors.iter().filter(nameless) {
        let is_row = tensor.is_row();
        let vector = origins.vector(source, tensor.dims.len()).filter(|_| is_row);
        let original = origins.original(source).or(vector.map(|(name, _)| name));
        // What was computed from several values is no parameter of its module.
        if original.is_none() && !origins.parents(source).is_empty() {
            continue;
        }
        let candidate = uses.get(source).into_iter().flatten().find_map(|u| {
            let as_it_is = || (original.is_some() && u.takes_rows()).then_some(("", Layout::Own));
            let scale = || (is_row && origins.scales(u)).then_some(1);
            let row = || Some(("weight", Layout::Row(vector.map(|(_, rank)| rank).or_else(scale)?)));
            let (suffix, form) = role(u, tensor.dims.len()).or_else(as_it_is).or_else(row)?;
            let of_module = || Some(format!("{}.{suffix}", scopes.module(u.node)?));
            Some(Recovered { name: original.map(String::from).or_else(of_module)?, form })
        });
        if let Some(r) = candidate.filter(|r| !names.contains(r.name.as_str())) {
            claims.entry(r.name.clone()).or_default().push(source);
            found.insert(source, r);
        }
    }
    // Several tensors of one module (experts, say): none can claim the module's weight, unless they are copies of one
    // parameter, of a layer that is used again and again.
    let by_name: BTreeMap<&str, &Tensor> = tensors.iter().map(|(name, t)| (*name, t)).collect();
    let copies = |a: &str, b: &str| {
        let of_one = origins.original(a).is_some() && origins.original(a) == origins.original(b);
        of_one && by_name.get(a).zip(by_name.get(b)).is_some_and(|(a, b)| a.is_copy_of(b))
    };
    found.retain(|source, r| match claims.get(&r.name).map(Vec::as_slice) {
        Some([first, others @ ..]) => first == source && others.iter().all(|other| copies(first, other)),
        _ => false,
    });
    found
}

/// What is behind the names of weights that quantisers made codes of.
const CODED: &[&str] = &["_DQ_Q4", "_DQ_Q8", "_Q4", "_Q8", ".qweight", "_quantized", "_quant"];

/// Names for the codes of weights, `WEIGHT.codes`: of the weight that they are of, or of the module of their node.
fn coded_names<'m>(
    uses: &BTreeMap<&'m str, Vec<Use<'m>>>,
    origins: &Origins,
    scopes: &Scopes,
) -> BTreeMap<&'m str, String> {
    let of = |source: &str, users: &[Use]| {
        let user = users.iter().find(|u| u.is_codes())?;
        let base = CODED.iter().find_map(|end| source.strip_suffix(end)).unwrap_or(source);
        let of_module = || Some(format!("{}.weight", scopes.module(user.node)?));
        let made_up = || if origins.is_made_up(base) { of_module() } else { None };
        let weight = origins.original(base).map(String::from).or_else(made_up).unwrap_or_else(|| base.to_string());
        Some(format!("{weight}{CODES}"))
    };
    let mut found: BTreeMap<&str, String> =
        uses.iter().filter_map(|(source, users)| Some((*source, of(source, users)?))).collect();
    // Two of one name keep those of the file.
    let mut claims: BTreeMap<String, usize> = BTreeMap::new();
    found.values().for_each(|name| *claims.entry(name.clone()).or_default() += 1);
    found.retain(|_, name| claims.get(name) == Some(&1));
    found
}

/// Which parameter of its module an operand is, and whether the exporter transposed it.
fn role(u: &Use, rank: usize) -> Option<(&'static str, Layout)> {
    let attribute = |name: &str| u.node.attribute.iter().find(|a| a.name == name).map_or(0, |a| a.i());
    let factor = || if attribute("transB") == 0 { Layout::Transposed } else { Layout::Own };
    match (u.node.op_type.as_str(), u.operand, rank) {
        ("MatMul" | "FusedMatMul" | "Gemm", 1, 2) => Some(("weight", factor())),
        ("Gemm", 2, 1) => Some(("bias", Layout::Own)),
        ("Gather", 0, 2) => Some(("weight", Layout::Own)),
        ("LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization", 1, 1) => {
            Some(("weight", Layout::Own))
        }
        ("LayerNormalization", 2, 1) => Some(("bias", Layout::Own)),
        _ => None,
    }
}

/// A parameter that may be tied to another.
struct Candidate {
    entry: usize,
    /// Its name is the exporter's.
    made_up: bool,
    /// It is used in matrix products only.
    is_factor: bool,
}

/// Equal parameters become one leaf; of a pair the one with a name of its own stays.
fn tie(weights: &mut Weights, mut params: Vec<Candidate>) {
    params.sort_by_key(|c| (c.made_up, c.entry));
    let mut ties = Ties::default();
    for Candidate { entry: k, is_factor, .. } in params {
        let Some((source, Entry::Leaf(leaf))) = weights.entries.get(k) else { continue };
        let Some((to, form)) = ties.find_or_insert(source, leaf, is_factor) else { continue };
        let transposed = form == Form::Transposed;
        let how = if transposed { ", transposed" } else { "" };
        // A tie replaces what was said of the name.
        let said = format!("weight `{source}` is `{}`", leaf.name);
        weights.mended.retain(|m| !m.starts_with(&said));
        weights.mended.push(format!("weight `{source}` is tied to `{to}`{how}"));
        if let Some((_, entry)) = weights.entries.get_mut(k) {
            *entry = Entry::Tied { to, transposed };
        }
    }
}

/// Parameters that TorchScript copies from others that are equal to them.
fn untie(graph: &GraphProto, tensors: &[(&str, Tensor)], weights: &mut Weights) {
    let floats: BTreeMap<&str, &Tensor> =
        tensors.iter().filter(|(_, t)| t.dtype.is_float()).map(|(n, t)| (*n, t)).collect();
    let places: BTreeMap<String, usize> =
        weights.entries.iter().enumerate().map(|(k, (n, _))| (n.clone(), k)).collect();
    for (input, output) in graph.node.iter().filter_map(held::copy) {
        if !floats.get(input).is_some_and(|t| held::is_own(t)) {
            continue;
        }
        let Some((_, Entry::Leaf(leaf))) = places.get(input).and_then(|k| weights.entries.get(*k)) else { continue };
        if leaf.kind == LeafKind::Param {
            weights.mended.push(format!("weight `{output}` is its own, not a copy of `{input}`"));
            let leaf = Leaf { name: output.to_string(), source_name: None, ..leaf.clone() };
            weights.entries.push((output.to_string(), Entry::Leaf(leaf)));
        }
    }
}
