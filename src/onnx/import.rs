//! The walk over a model's nodes: names to values, functions inlined, every problem collected.

mod declared;
mod inline;
mod order;
mod repeat;

use super::build::{Build, Value};
use super::call::Call;
use super::held;
use super::hints;
use super::known::Known;
use super::names::{self, Entry};
use super::ops;
use super::proto::tensor_proto::DataLocation;
use super::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto};
use super::symbols::Symbols;
use super::tensor::{Site, Tensor};
use crate::error::Problem;
use crate::ir::{Dim, Graph, Id};
use indexmap::IndexMap;
use order::Early;
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::Arc;

/// The deepest nesting of functions and branches that is followed.
const MAX_DEPTH: usize = 32;

/// The most nodes that are read, functions unfolded: a few lines of functions can stand for 2^32.
const MAX_NODES: usize = 1 << 19;

/// The most elements that are kept as known numbers, over the whole model and as operands of one node.
const MAX_ELEMENTS: usize = 1 << 22;

/// The characters of a node's name, and of the calls around it, that messages keep.
const MAX_NAME: usize = 120;

/// A graph and what was mended in it.
pub struct Imported {
    pub graph: Graph,
    pub mended: Vec<String>,
}

/// Values by name, in one scope of names.
type Env<'m> = FxHashMap<&'m str, Value>;

/// Attributes that a function's nodes may refer to.
type Bindings<'m> = Vec<(&'m str, &'m AttributeProto)>;

/// Where nodes are read: their scope of attributes, opset and place.
#[derive(Clone)]
struct Scope<'m> {
    bindings: Bindings<'m>,
    opset: i64,
    /// The call that nodes are inlined from, for messages.
    inside: String,
    depth: usize,
    /// The functions that are being inlined.
    calls: Vec<*const FunctionProto>,
}

/// Operators of one kind that cannot be read: how many, and the first.
struct Group {
    count: usize,
    first: String,
    message: String,
    help: String,
}

pub struct Importer<'m> {
    model: &'m ModelProto,
    site: &'m Site,
    opset: i64,
    b: Build,
    functions: FxHashMap<(&'m str, &'m str, &'m str), &'m FunctionProto>,
    /// Tables of Constant nodes, by the address of their tensor: an inlined function has them once.
    constants: FxHashMap<*const TensorProto, usize>,
    problems: Vec<Problem>,
    groups: IndexMap<String, Group>,
    /// Nodes read so far, and elements of known values.
    read: usize,
    elements: usize,
    /// Names that weights have taken over from the nodes that copy or hold them.
    leaves: FxHashSet<&'m str>,
}

impl<'m> Importer<'m> {
    pub fn new(model: &'m ModelProto, site: &'m Site, opset: i64) -> Self {
        let key = |f: &'m FunctionProto| (f.domain.as_str(), f.name.as_str(), f.overload.as_str());
        Importer {
            model,
            site,
            opset,
            b: Build::default(),
            functions: model.functions.iter().map(|f| (key(f), f)).collect(),
            constants: FxHashMap::default(),
            problems: Vec::new(),
            groups: IndexMap::new(),
            read: 0,
            elements: 0,
            leaves: FxHashSet::default(),
        }
    }

    pub fn run(mut self) -> Result<Imported, Vec<Problem>> {
        let Some(graph) = &self.model.graph else {
            return Err(vec![Problem::new("", "the file holds no graph").help(DAMAGED)]);
        };
        self.b.graph.name = if graph.name.is_empty() { "model".into() } else { graph.name.clone() };
        let mut env = Env::default();
        self.declarations(graph);
        self.inputs(graph, &mut env);
        let mended = self.weights(graph, &mut env);
        let scope = Scope { bindings: vec![], opset: self.opset, inside: String::new(), depth: 0, calls: vec![] };
        self.nodes(&graph.node, &mut env, &scope);
        for output in graph.output.iter().filter(|_| self.read <= MAX_NODES) {
            match env.get(output.name.as_str()).cloned() {
                None => {
                    let problem = Problem::new(&output.name, "no node produces this output");
                    self.problems.push(problem.help("the file is damaged; export the model again"));
                }
                Some(Value::Refused) => {}
                Some(value) => match self.b.tensor(&value) {
                    Ok(id) => {
                        self.problems.extend(declared::contradiction(output, &self.b, id));
                        self.b.graph.outputs.push((output.name.clone(), id));
                    }
                    Err(why) => self.problems.push(Problem::new(&output.name, why)),
                },
            }
        }
        self.leaf_names();
        let groups = self.groups.into_values().map(|g| {
            let nodes = if g.count == 1 { "node".to_string() } else { format!("{} nodes, first", g.count) };
            Problem::new("", format!("{} ({nodes} `{}`)", g.message, g.first)).help(g.help)
        });
        let problems: Vec<Problem> = groups.chain(self.problems).collect();
        if problems.is_empty() { Ok(Imported { graph: self.b.graph, mended }) } else { Err(problems) }
    }

    fn inputs(&mut self, graph: &'m GraphProto, env: &mut Env<'m>) {
        // An input with an initializer is a weight that may be overridden.
        let weights: FxHashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
        let fed = || graph.input.iter().filter(|i| !weights.contains(i.name.as_str()));
        let mut symbols = Symbols::new(fed());
        for input in fed() {
            match symbols.type_of(input) {
                Ok(ty) => {
                    let id = self.b.graph.input(&input.name, ty.dtype, &ty.shape);
                    env.insert(&input.name, Value::Node(id));
                }
                Err(why) => {
                    let help = "the model's inputs must be tensors of known rank: token ids, i64 [batch, length]";
                    self.problems.push(Problem::new(&input.name, why).help(help));
                    env.insert(&input.name, Value::Refused);
                }
            }
        }
    }

    fn weights(&mut self, graph: &'m GraphProto, env: &mut Env<'m>) -> Vec<String> {
        let mut tensors: Vec<(&'m str, Tensor)> = Vec::new();
        // A file that is missing is one problem, however many weights lie in it.
        let mut refused: IndexMap<(String, bool), Vec<&str>> = IndexMap::new();
        for proto in &graph.initializer {
            match self.site.tensor(proto) {
                Ok(tensor) => tensors.push((&proto.name, tensor)),
                Err(why) => {
                    let external = proto.data_location == DataLocation::External as i32;
                    refused.entry((why, external)).or_default().push(&proto.name);
                    env.insert(&proto.name, Value::Refused);
                }
            }
        }
        // What cannot be read is said of the node.
        tensors.extend(held::weights(graph).into_iter().filter_map(|(n, t)| Some((n, self.site.tensor(t).ok()?))));
        for ((why, external), names) in refused {
            let help = match external {
                true => "external data must lie in the model's folder or below, complete",
                false => "weights must be dense numbers, complete; export the model again",
            };
            let place = match names.as_slice() {
                [one] => (*one).to_string(),
                _ => format!("{} and {} more", names[0], names.len() - 1),
            };
            self.problems.push(Problem::new(place, why).help(help));
        }
        for sparse in graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()) {
            env.insert(&sparse.name, Value::Refused);
        }
        let own: FxHashSet<&'m str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
        let results = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
        let names: FxHashSet<&'m str> = own.iter().copied().chain(results).collect();
        let plan = names::plan(graph, &tensors);
        let mut leaves: FxHashMap<String, Id> = FxHashMap::default();
        for (name, entry) in &plan.entries {
            let value = match entry {
                Entry::Known(known, _) if known.len() == 1 => Value::Known(known.clone()),
                Entry::Known(known, leaf) => {
                    self.b.tables.push(leaf.clone());
                    Value::Known(Known { table: Some(self.b.tables.len() - 1), ..known.clone() })
                }
                Entry::Leaf(leaf) => {
                    let id = self.b.graph.add_leaf(leaf.clone());
                    leaves.insert(name.clone(), id);
                    Value::Node(id)
                }
                Entry::Row(leaf, rank) => {
                    let id = self.b.graph.add_leaf(leaf.clone());
                    let ones = std::iter::repeat_n(Dim::Known(1), rank.saturating_sub(1));
                    let row: Vec<Dim> = ones.chain(leaf.ty.shape.iter().cloned()).collect();
                    self.b.reshape(id, &row).map_or(Value::Refused, Value::Node)
                }
                Entry::Tied { .. } => continue,
            };
            if let Some(name) = names.get(name.as_str()) {
                env.insert(name, value);
            }
        }
        for (name, entry) in &plan.entries {
            let Entry::Tied { to, transposed } = entry else { continue };
            let value = match (leaves.get(to), transposed) {
                (Some(id), false) => Value::Node(*id),
                (Some(id), true) => self.b.swap_last(*id).map_or(Value::Refused, Value::Node),
                (None, _) => Value::Refused,
            };
            if let Some(name) = names.get(name.as_str()) {
                env.insert(name, value);
            }
        }
        let taken = plan.entries.iter().filter_map(|(name, _)| names.get(name.as_str()).copied());
        self.leaves = taken.filter(|n| !own.contains(n)).collect();
        plan.mended
    }

    fn nodes(&mut self, nodes: &'m [NodeProto], env: &mut Env<'m>, scope: &Scope<'m>) {
        let later: FxHashSet<&str> = nodes.iter().flat_map(|n| n.output.iter().map(String::as_str)).collect();
        let mut early = Early::default();
        for node in nodes {
            let place = place(node, &scope.inside);
            // Parameters that TorchScript copied are leaves already, and so are weights that nodes hold.
            if let ("Identity" | "Constant", [copy]) = (node.op_type.as_str(), node.output.as_slice())
                && scope.depth == 0
                && self.leaves.remove(copy.as_str())
            {
                continue;
            }
            if !self.within_bounds(&place) {
                return;
            }
            let before = self.b.graph.len();
            let results = match self.operands(node, env, &later, &mut early, &place) {
                Some(inputs) => self.node(node, inputs, env, scope, &place),
                None => vec![],
            };
            let origin: Arc<str> = place.as_str().into();
            for k in before..self.b.graph.len() {
                self.b.graph.origin.entry(Id::from(k)).or_insert_with(|| origin.clone());
            }
            // No result means that the node was refused, and said so.
            if (1..node.output.len()).contains(&results.len())
                && node.output[results.len()..].iter().any(|o| !o.is_empty())
            {
                let message = format!("{}: results after the first {} are not supported", node.op_type, results.len());
                self.problems.push(Problem::new(&place, message));
            }
            let known = |v: &Value| if let Value::Known(known) = v { known.len() } else { 0 };
            self.elements += results.iter().map(known).sum::<usize>();
            let mut results = results.into_iter();
            for output in &node.output {
                let value = results.next().unwrap_or(Value::Refused);
                if !output.is_empty() && env.insert(output, value).is_some() {
                    let problem = Problem::new(&place, format!("`{output}` is there already and produced again"));
                    self.problems.push(problem.help(DAMAGED));
                }
            }
        }
        self.problems.extend(early.problem(nodes, &scope.inside));
    }

    /// Counts a node; false, with one message, where the model unfolds beyond all bounds.
    fn within_bounds(&mut self, place: &str) -> bool {
        self.read += 1;
        let why = match self.read {
            _ if self.read > MAX_NODES + 1 => return false,
            n if n > MAX_NODES => format!("the model's functions and loops unfold to more than {MAX_NODES} nodes"),
            _ if self.elements > MAX_ELEMENTS => {
                self.read = MAX_NODES + 1;
                format!("more than {MAX_ELEMENTS} constants are computed while reading")
            }
            _ => return true,
        };
        let help = "no model of a sensible size does this; export it again, with constants folded";
        self.problems.push(Problem::new(place, why).help(help));
        false
    }

    /// A node's operands; `None` where one is missing or was refused.
    fn operands(
        &mut self,
        node: &NodeProto,
        env: &Env,
        later: &FxHashSet<&str>,
        early: &mut Early,
        place: &str,
    ) -> Option<Vec<Value>> {
        let mut inputs = Vec::new();
        let mut complete = true;
        let mut elements = 0;
        for name in &node.input {
            match env.get(name.as_str()) {
                _ if name.is_empty() => inputs.push(Value::Absent),
                Some(Value::Refused) => complete = false,
                Some(value) => {
                    elements += if let Value::Known(known) = value { known.len() } else { 0 };
                    if elements > MAX_ELEMENTS {
                        let why = format!("its operands are more than {MAX_ELEMENTS} constants");
                        self.problems.push(Problem::new(place, why));
                        return None;
                    }
                    inputs.push(value.clone());
                }
                None if later.contains(name.as_str()) => {
                    complete = false;
                    early.add(place, name);
                }
                None => {
                    complete = false;
                    let problem = Problem::new(place, format!("`{name}` is no input, weight or result of a node"));
                    self.problems.push(problem.help(DAMAGED));
                }
            }
        }
        complete.then_some(inputs)
    }

    fn node(
        &mut self,
        node: &'m NodeProto,
        inputs: Vec<Value>,
        env: &mut Env<'m>,
        scope: &Scope<'m>,
        place: &str,
    ) -> Vec<Value> {
        let mut call = Call {
            op: &node.op_type,
            inputs,
            outputs: node.output.iter().filter(|o| !o.is_empty()).count(),
            attrs: resolve(node, &scope.bindings),
            mistyped: Default::default(),
        };
        let key = (node.domain.as_str(), node.op_type.as_str(), node.overload.as_str());
        let standard = matches!(node.domain.as_str(), "" | "ai.onnx");
        let mut result = if let Some(function) = self.functions.get(&key).copied() {
            self.inline(function, &call, scope, place)
        } else if standard && call.op == "Constant" {
            self.constant(&call, node.output.first().map_or("", String::as_str))
        } else if standard && call.op == "If" {
            self.branch(&call, env, scope, place)
        } else if standard && call.op == "Loop" {
            self.repeat(&call, env, scope, place)
        } else if standard && call.op == "Scan" {
            self.scan(&call, env, scope, place)
        } else {
            match ops::find(&node.domain, &node.op_type, scope.opset) {
                Some(row) if row.since <= scope.opset => {
                    call.promote(row.was);
                    row.read(&mut self.b, &call)
                }
                Some(row) => {
                    let message = format!("{} needs opset {}, the file says {}", row.name, row.since, scope.opset);
                    let help = "the exporter wrote an invalid file (it does for opsets that it does not know): export \
                                again with opset_version=25";
                    return self.refuse(message, help.into(), place);
                }
                None => {
                    if call.op.is_empty() {
                        return self.refuse("there are nodes without an operator".into(), hints::help("", ""), place);
                    }
                    let domain = if standard { String::new() } else { format!("{}::", node.domain) };
                    let message = format!("operator {domain}{} is not supported", clipped(&node.op_type, MAX_NAME));
                    return self.refuse(message, hints::help(&node.domain, &node.op_type), place);
                }
            }
        };
        let mistyped = call.mistyped.take();
        if !mistyped.is_empty() {
            result = Err(mistyped.join("; ").into());
        }
        result.unwrap_or_else(|problem| {
            let message = format!("{}: {}", clipped(&node.op_type, MAX_NAME), problem.message);
            let help = problem.help.unwrap_or_else(|| UNREAD.into());
            self.problems.push(Problem::new(place, message).help(help));
            vec![]
        })
    }

    fn refuse(&mut self, message: String, help: String, place: &str) -> Vec<Value> {
        let new = Group { count: 0, first: place.to_string(), message: message.clone(), help };
        self.groups.entry(message).or_insert(new).count += 1;
        vec![]
    }
}

/// Help for what no exporter writes.
const DAMAGED: &str = "the file is damaged; export the model again";

/// Help for a node that contradicts its operator, as far as weftc knows it.
const UNREAD: &str = "if onnx.checker accepts the model (full_check=True), weftc does not read this form yet";

/// The beginning of a text.
fn clipped(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}

/// A node's attributes, with those of the enclosing function put in for references.
fn resolve<'m>(node: &'m NodeProto, bindings: &Bindings<'m>) -> Bindings<'m> {
    let bound = |name: &str| bindings.iter().find(|(n, _)| *n == name).map(|(_, a)| *a);
    node.attribute
        .iter()
        .filter_map(|a| match a.ref_attr_name.as_str() {
            "" => Some((a.name.as_str(), a)),
            name => bound(name).map(|outer| (a.name.as_str(), outer)),
        })
        .collect()
}

/// How messages call a node.
fn place(node: &NodeProto, inside: &str) -> String {
    let name = match (node.name.as_str(), node.output.first()) {
        ("", Some(output)) => format!("{} -> {output}", node.op_type),
        ("", None) => node.op_type.clone(),
        (name, _) => name.to_string(),
    };
    let name = clipped(&name, MAX_NAME);
    if inside.is_empty() { name } else { format!("{} > {name}", clipped(inside, MAX_NAME)) }
}
