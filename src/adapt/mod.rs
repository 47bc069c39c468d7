//! The adapt stage: trained factors beside frozen weights.
//!
//! An adapter is the definition of the operator `adapted`, text in `rules/adapters/`.  The stage puts that
//! operator in the place of each chosen matrix product, lets the definition unfold, and chooses the cheaper order
//! of the factors (`rules/factor.egg`): gradients, which are derived afterwards, are then cheap too.

pub mod dropout;
pub mod targets;

use crate::error::{Error, Problem, Result};
use crate::ir::{
    Builder, DType, Data, Dim, F64, Graph, Id, Leaf, LeafId, LeafKind, Lit, Matrix, Node, Op, Recipe, TensorType,
};
use crate::manifest::{Adapter, Part};
use crate::rewrite::{self, Saturated};
use crate::rng::SplitMix64;
use crate::rules::template::{Subst, holds, instantiate, matches as matches_rule};
use crate::rules::{Rule, Term};
use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;
use targets::{Kind, Linear};

/// What adapters to add, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub rank: i64,
    pub alpha: f64,
    /// `q`, `k`, `v`, `o`, `gate`, `up`, `down`, `head`, `all-linear`, or patterns over names.
    pub targets: Vec<String>,
    /// Probability with which an element of the adapters' input is dropped, in the training pass only; from 0, below 1.
    pub dropout: f64,
    pub seed: u64,
}

impl Default for Spec {
    fn default() -> Self {
        Spec { rank: 8, alpha: 16.0, targets: ["q", "k", "v"].map(String::from).to_vec(), dropout: 0.0, seed: 0 }
    }
}

/// A model with adapters.
pub struct Adapted {
    pub saturated: Saturated,
    /// The new parameters, all of which are trained.
    pub trainable: Vec<LeafId>,
    pub parts: BTreeMap<String, Part>,
    pub adapter: Adapter,
    /// What was adapted, for people.
    pub note: String,
}

/// Adds the adapter `name`, whose definition is `definition`, to the first output of `model`, whose tokens are
/// `[B, L]`.
///
/// # Errors
/// `Usage`: a rank or alpha out of range, targets that match nothing.
pub fn apply(
    model: &Graph,
    name: &str,
    definition: &[Rule],
    factor: &[Rule],
    tokens: &[Dim],
    spec: &Spec,
) -> Result<Adapted> {
    let internal = |m: String| Error::internal("adapt", m);
    let logits = model.outputs.first().map(|(_, id)| *id).ok_or_else(|| internal("the logits are gone".into()))?;
    let linears = targets::linears(model, logits);
    let chosen = choose(&linears, spec)?;
    if let Some(linear) = chosen.iter().find(|l| l.in_few_bits).filter(|_| has_magnitude(definition)) {
        let problem = Problem::new(
            "--trainable",
            format!("{name} needs the lengths of a weight's columns, and `{}` is in few bits", linear.name),
        );
        return Err(Error::usage(
            problem.help("train with lora or rslora, or compile the model that is not quantised"),
        ));
    }
    let mut graph = Graph::with_leaves_of(model);
    let mut parts = BTreeMap::new();
    let mut trainable = Vec::new();
    let mut parts_of: BTreeMap<LeafId, Vec<Id>> = BTreeMap::new();
    for linear in &chosen {
        if parts_of.contains_key(&linear.weight) {
            continue;
        }
        let weight = model.leaf(linear.weight).clone();
        let shape = model.tensor_type(linear.w).map(|t| t.shape.clone()).unwrap_or_default();
        let [Some(inner), Some(outer)] = [0, 1].map(|k| shape.get(k).and_then(|d| d.known())) else {
            return Err(internal(format!("{} has no known shape", linear.name)));
        };
        let module = module(&linear.name);
        let (turned, in_few_bits) = (model.as_leaf(linear.w).is_none(), linear.in_few_bits);
        let shared = !in_few_bits && is_used_elsewhere(model, logits, linear.weight, &chosen);
        let mut add = |part: &str, shape: &[i64], data: Option<Data>| {
            let leaf_name = format!("{module}.{part}");
            parts.insert(
                leaf_name.clone(),
                Part { base: linear.name.clone(), part: part.into(), turned, shared, in_few_bits },
            );
            let id = graph.add_leaf(Leaf {
                name: leaf_name,
                ty: TensorType::new(DType::F32, shape.iter().map(|n| Dim::from(*n)).collect::<Vec<_>>()),
                kind: LeafKind::Param,
                data,
                transposed: shape.len() == 2,
                source_name: None,
            });
            trainable.extend(graph.as_leaf(id));
            id
        };
        let inline = |values: Vec<f32>| {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            Some(Data::Inline(bytes.into()))
        };
        let first = inline(kaiming(spec.seed, module, inner, spec.rank));
        let zeros = inline(vec![0.0; (spec.rank * outer) as usize]);
        let mut own =
            vec![add("lora_A.weight", &[inner, spec.rank], first), add("lora_B.weight", &[spec.rank, outer], zeros)];
        if has_magnitude(definition) {
            let from = weight.ty.dtype;
            let matrix = Matrix { from, rows: inner as usize, columns: outer as usize, transposed: turned };
            let norms = |data| Data::Derived { from: Arc::new(data), recipe: Recipe::ColumnNorms(matrix) };
            own.push(add("lora_magnitude_vector", &[outer], weight.data.map(norms)));
        }
        parts_of.insert(linear.weight, own);
    }
    let widths: Vec<(Id, i64)> = chosen.iter().filter_map(|l| Some((l.node, width(model, l)?))).collect();
    let thinned = dropout::add(&mut graph, spec.dropout, tokens, &widths).map_err(internal)?;
    let products: FxHashMap<Id, &Linear> = chosen.iter().map(|l| (l.node, *l)).collect();
    let (rank, alpha) = (Lit::Int(spec.rank.into()), Lit::Float(F64(spec.alpha)));
    graph
        .copy_outputs(model, |g, old, node| match (products.get(&old), &node) {
            (Some(linear), Node::Op(_, c)) => {
                let mut children = vec![c[0], c[1], thinned.input(g, old, c[0])?];
                children.extend(&parts_of[&linear.weight]);
                children.extend([g.lit(alpha.clone())?, g.lit(rank.clone())?]);
                g.op(Op::Adapted, &children)
            }
            _ => g.insert(node),
        })
        .map_err(internal)?;
    let rules: Vec<&Rule> = definition.iter().collect();
    let mut saturated = rewrite::saturate(&graph, &rules, &rewrite::Options::default())?;
    saturated.graph = factored(&saturated.graph, factor, &mut saturated.fired).map_err(internal)?;
    let place = || format!("rules/adapters/{name}.egg");
    let scale = scale(definition, spec).map_err(|why| Error::usage(Problem::new(place(), why)))?;
    let mut modules: Vec<String> = chosen.iter().map(|l| module(&l.name).to_string()).collect();
    modules.dedup();
    let parameters: i64 =
        trainable.iter().map(|l| graph.leaf(*l).ty.shape.iter().filter_map(|d| d.known()).product::<i64>()).sum();
    let note = format!("{name} of rank {} on {}: {parameters} trained numbers", spec.rank, counts(&chosen));
    let adapter = Adapter {
        name: name.into(),
        rank: spec.rank,
        alpha: spec.alpha,
        scale,
        dropout: spec.dropout,
        seed: spec.seed,
        modules,
    };
    Ok(Adapted { saturated, trainable, parts, adapter, note })
}

/// Applies the rules wherever they hold, each node once.
fn factored(graph: &Graph, rules: &[Rule], fired: &mut BTreeMap<String, usize>) -> std::result::Result<Graph, String> {
    let mut next = Graph::with_leaves_of(graph);
    next.copy_outputs(graph, |g, _, node| {
        let id = g.insert(node)?;
        for rule in rules {
            let (Some(subst), Some(Some(right))) = (matches_rule(g, id, &rule.left), rule.right.first()) else {
                continue;
            };
            if holds(&rule.guards, &subst, g) {
                *fired.entry(rule.name.to_string()).or_default() += 1;
                return instantiate(right, &subst, g);
            }
        }
        Ok(id)
    })?;
    Ok(next)
}

/// Whether the model uses a weight beside the layers that are adapted.
fn is_used_elsewhere(model: &Graph, logits: Id, weight: LeafId, chosen: &[&Linear]) -> bool {
    let own = |id: Id| chosen.iter().any(|l| l.weight == weight && (l.node == id || l.w == id));
    let reads = |id: &Id| model.node(*id).children().iter().any(|c| model.as_leaf(*c) == Some(weight));
    let transposes = |id: Id| model.node(id).op() == Some(Op::Transpose);
    let order = model.reachable([logits]);
    let others = order.iter().filter(|id| reads(id) && !own(**id));
    // A transpose of its own that another layer uses counts as well.
    let turned = order
        .iter()
        .filter(|id| !own(**id) && model.node(**id).children().iter().any(|c| transposes(*c) && reads(c) && own(*c)));
    others.chain(turned).next().is_some()
}

/// The module of a weight: its name without `.weight`.
fn module(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// `14 layers (2 q, 2 k, ..)`.
fn counts(chosen: &[&Linear]) -> String {
    let of = |kind: Kind| chosen.iter().filter(|l| l.kinds.contains(&kind)).count();
    let named: Vec<String> =
        Kind::ALL.into_iter().filter(|k| of(*k) > 0).map(|k| format!("{} {}", of(k), k.name())).collect();
    format!("{} layers ({})", chosen.len(), named.join(", "))
}

/// Whether the definition takes a magnitude behind the input, the weight, the adapter's input and two factors.
fn has_magnitude(definition: &[Rule]) -> bool {
    let operands = |rule: &Rule| match &rule.left {
        Term::Op(op, children) => op.operands(children.len()),
        _ => 0,
    };
    definition.iter().any(|rule| operands(rule) > 5)
}

/// The size of a layer's input.
fn width(model: &Graph, linear: &Linear) -> Option<i64> {
    model.tensor_type(linear.w)?.shape.first()?.known()
}

/// The definition's `(scale EXPR)`: what it multiplies the product of the factors by.
fn scale(definition: &[Rule], spec: &Spec) -> std::result::Result<f64, String> {
    fn find(term: &Term) -> Option<&Term> {
        match term {
            Term::Call(name, args) if &**name == "scale" => args.first(),
            Term::Call(_, args) | Term::Op(_, args) => args.iter().find_map(find),
            _ => None,
        }
    }
    let rule = definition.first().ok_or("the adapter has no definition")?;
    let terms = rule.lets.iter().map(|(_, term)| term).chain(rule.right.iter().flatten());
    let wanted = terms.into_iter().find_map(find);
    let wanted = wanted.ok_or("its definition has no (scale EXPR): files that leave could not say how to merge it")?;
    let Term::Op(_, children) = &rule.left else { return Err("its left side is no operator".into()) };
    let [.., Term::Var(alpha), Term::Var(rank)] = children.as_slice() else {
        return Err("its left side does not end in variables for alpha and the rank".into());
    };
    let mut graph = Graph::new("scale");
    let mut subst = Subst::default();
    subst.insert(alpha.clone(), graph.lit(Lit::Float(F64(spec.alpha)))?);
    subst.insert(rank.clone(), graph.lit(Lit::Int(spec.rank.into()))?);
    let value = instantiate(wanted, &subst, &mut graph)?;
    graph.type_of(value).lit().and_then(Lit::number).ok_or_else(|| "its scale is no number".into())
}

/// The linear layers that the targets name.
fn choose<'l>(linears: &'l [Linear], spec: &Spec) -> Result<Vec<&'l Linear>> {
    let mut problems = Vec::new();
    if spec.rank < 1 {
        problems.push(Problem::new("--lora-rank", format!("{} is no rank; from 1", spec.rank)));
    }
    if !spec.alpha.is_finite() || spec.alpha <= 0.0 {
        problems.push(Problem::new("--lora-alpha", format!("{} is not a number above 0", spec.alpha)));
    }
    if !(0.0..1.0).contains(&spec.dropout) {
        problems.push(Problem::new("--lora-dropout", format!("{} is not a number from 0, below 1", spec.dropout)));
    }
    let fits = |target: &str, linear: &Linear| match (Kind::parse(target), target) {
        (Some(kind), _) => linear.kinds.contains(&kind),
        (_, "all-linear") => !linear.kinds.contains(&Kind::Head),
        _ => matches(target, &linear.name),
    };
    for target in &spec.targets {
        if !linears.iter().any(|l| fits(target, l)) {
            let mut kinds: BTreeMap<Kind, usize> = BTreeMap::new();
            linears.iter().flat_map(|l| &l.kinds).for_each(|k| *kinds.entry(*k).or_default() += 1);
            let kinds: Vec<String> = kinds.iter().map(|(k, n)| format!("{} ({n})", k.name())).collect();
            let names: Vec<&str> = linears.iter().take(8).map(|l| l.name.as_str()).collect();
            let kinds = if kinds.is_empty() { "no layers of a known kind".into() } else { kinds.join(", ") };
            let names =
                if names.is_empty() { "and no other".into() } else { format!("names such as {}", names.join(", ")) };
            let help = format!("this model has {kinds}; {names}");
            problems.push(Problem::new("--lora-targets", format!("`{target}` is no linear layer")).help(help));
        }
    }
    if !problems.is_empty() {
        return Err(Error::Usage { problems });
    }
    Ok(linears.iter().filter(|l| spec.targets.iter().any(|t| fits(t, l))).collect())
}

/// Whether a weight's name fits a pattern: with `*` for any text against the whole name or its module, without it
/// against the last part of the module, as PEFT does (`q_proj`).
pub fn matches(pattern: &str, weight: &str) -> bool {
    let module = module(weight);
    if !pattern.contains('*') {
        return weight == pattern || module == pattern || module.ends_with(&format!(".{pattern}"));
    }
    glob(pattern.as_bytes(), weight.as_bytes()) || glob(pattern.as_bytes(), module.as_bytes())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((b'*', rest)), _) => (0..=text.len()).any(|k| glob(rest, &text[k..])),
        (Some((p, rest)), Some((t, behind))) => p == t && glob(rest, behind),
        (Some(_), None) => false,
    }
}

/// U(-1/sqrt(in), 1/sqrt(in)), as PEFT's kaiming-uniform with a = sqrt(5); the same for a seed and a name.
fn kaiming(seed: u64, module: &str, inner: i64, rank: i64) -> Vec<f32> {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update(module);
    let key = hasher.finalize().iter().take(8).fold(0u64, |n, b| n << 8 | u64::from(*b));
    let mut random = SplitMix64::new(key);
    let bound = 1.0 / (inner as f64).sqrt();
    let unit = |n: u64| (n >> 11) as f64 / (1u64 << 53) as f64;
    (0..inner * rank).map(|_| ((2.0 * unit(random.next_u64()) - 1.0) * bound) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_are_those_of_peft_or_globs() {
        let name = "transformer.blocks.1.q_proj.weight";
        for (pattern, fits) in [
            ("q_proj", true),
            ("proj", false),
            ("blocks.1.q_proj", true),
            ("*.1.*", true),
            ("transformer.blocks.1.q_proj", true),
            ("*k_proj*", false),
            ("*.weight", true),
            (name, true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern}");
        }
    }
}
