//! The walk over a model's nodes: names to values, functions inlined, every problem collected.

mod inline;

use super::build::{Build, Value};
use super::call::Call;
use super::known::Known;
use super::names::{self, Entry};
use super::ops;
use super::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto};
use super::tensor::{Site, Tensor};
use crate::error::Problem;
use crate::ir::{Graph, Id};
use indexmap::IndexMap;
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::Arc;

/// The deepest nesting of functions and branches that is followed.
const MAX_DEPTH: usize = 32;

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
        }
    }

    pub fn run(mut self) -> Result<Imported, Vec<Problem>> {
        let Some(graph) = &self.model.graph else {
            return Err(vec![Problem::new("", "the file holds no graph")]);
        };
        self.b.graph.name = if graph.name.is_empty() { "model".into() } else { graph.name.clone() };
        let mut env = Env::default();
        self.inputs(graph, &mut env);
        let mended = self.weights(graph, &mut env);
        let scope = Scope { bindings: vec![], opset: self.opset, inside: String::new(), depth: 0 };
        self.nodes(&graph.node, &mut env, &scope);
        for output in &graph.output {
            match env.get(output.name.as_str()).cloned() {
                None => {
                    let problem = Problem::new(&output.name, "no node produces this output");
                    self.problems.push(problem.help("the file is damaged; export the model again"));
                }
                Some(Value::Refused) => {}
                Some(value) => match self.b.tensor(&value) {
                    Ok(id) => self.b.graph.outputs.push((output.name.clone(), id)),
                    Err(why) => self.problems.push(Problem::new(&output.name, why)),
                },
            }
        }
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
        let mut symbols = super::symbols::Symbols::default();
        for input in graph.input.iter().filter(|i| !weights.contains(i.name.as_str())) {
            match symbols.type_of(input) {
                Ok(ty) => {
                    let id = self.b.graph.input(&input.name, ty.dtype, &ty.shape);
                    env.insert(&input.name, Value::Node(id));
                }
                Err(why) => {
                    self.problems.push(Problem::new(&input.name, why));
                    env.insert(&input.name, Value::Refused);
                }
            }
        }
    }

    fn weights(&mut self, graph: &'m GraphProto, env: &mut Env<'m>) -> Vec<String> {
        let mut tensors: Vec<(&'m str, Tensor)> = Vec::new();
        for proto in &graph.initializer {
            match self.site.tensor(proto) {
                Ok(tensor) => tensors.push((&proto.name, tensor)),
                Err(why) => {
                    self.problems.push(Problem::new(&proto.name, why));
                    env.insert(&proto.name, Value::Refused);
                }
            }
        }
        let plan = names::plan(graph, &tensors);
        // Names as the graph holds them: of initializers, and of the results of copying nodes.
        let results = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
        let own: FxHashSet<&'m str> = graph.initializer.iter().map(|t| t.name.as_str()).chain(results).collect();
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
                Entry::Tied { .. } => continue,
            };
            if let Some(name) = own.get(name.as_str()).copied() {
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
            if let Some(name) = own.get(name.as_str()).copied() {
                env.insert(name, value);
            }
        }
        plan.mended
    }

    fn nodes(&mut self, nodes: &'m [NodeProto], env: &mut Env<'m>, scope: &Scope<'m>) {
        let later: FxHashSet<&str> = nodes.iter().flat_map(|n| n.output.iter().map(String::as_str)).collect();
        for node in nodes {
            let place = place(node, &scope.inside);
            // Parameters that TorchScript copied are leaves already.
            if node.op_type == "Identity"
                && scope.depth == 0
                && node.output.iter().all(|o| env.contains_key(o.as_str()))
            {
                continue;
            }
            let before = self.b.graph.len();
            let results = match self.operands(node, env, &later, &place) {
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
            let mut results = results.into_iter();
            for output in &node.output {
                let value = results.next().unwrap_or(Value::Refused);
                if !output.is_empty() && env.insert(output, value).is_some() {
                    self.problems.push(Problem::new(&place, format!("`{output}` is produced twice")));
                }
            }
        }
    }

    /// A node's operands; `None` where one is missing or was refused.
    fn operands(&mut self, node: &NodeProto, env: &Env, later: &FxHashSet<&str>, place: &str) -> Option<Vec<Value>> {
        let mut inputs = Vec::new();
        let mut complete = true;
        for name in &node.input {
            match env.get(name.as_str()) {
                _ if name.is_empty() => inputs.push(Value::Absent),
                Some(Value::Refused) => complete = false,
                Some(value) => inputs.push(value.clone()),
                None => {
                    complete = false;
                    let (why, help) = if later.contains(name.as_str()) {
                        ("is produced only by a later node", "the nodes are out of order or form a cycle")
                    } else {
                        ("is no input, weight or result of a node", "the file is damaged; export the model again")
                    };
                    self.problems.push(Problem::new(place, format!("`{name}` {why}")).help(help));
                }
            }
        }
        complete.then_some(inputs)
    }

    fn node(
        &mut self,
        node: &'m NodeProto,
        inputs: Vec<Value>,
        env: &Env<'m>,
        scope: &Scope<'m>,
        place: &str,
    ) -> Vec<Value> {
        let call = Call {
            op: &node.op_type,
            inputs,
            outputs: node.output.iter().filter(|o| !o.is_empty()).count(),
            attrs: resolve(node, &scope.bindings),
        };
        let key = (node.domain.as_str(), node.op_type.as_str(), node.overload.as_str());
        let standard = matches!(node.domain.as_str(), "" | "ai.onnx");
        let result = if let Some(function) = self.functions.get(&key).copied() {
            self.inline(function, call, scope, place)
        } else if standard && call.op == "Constant" {
            self.constant(&call, node.output.first().map_or("", String::as_str))
        } else if standard && call.op == "If" {
            self.branch(&call, env, scope, place)
        } else {
            match ops::find(&node.domain, &node.op_type) {
                Some(row) if !standard || row.since <= scope.opset => row.read(&mut self.b, &call),
                Some(row) => {
                    let message = format!("{} needs opset {}, the file says {}", row.name, row.since, scope.opset);
                    let help = "the exporter wrote an invalid file (it does for opsets that it does not know): export \
                                again with opset_version=23, 24 or 25";
                    return self.refuse(message, help, place);
                }
                None => {
                    let domain = if standard { String::new() } else { format!("{}::", node.domain) };
                    let message = format!("operator {domain}{} is not supported", node.op_type);
                    let help = "if the model can do without it, export it in evaluation mode, without cache and \
                                data-dependent control flow";
                    return self.refuse(message, help, place);
                }
            }
        };
        result.unwrap_or_else(|problem| {
            let message = format!("{}: {}", node.op_type, problem.message);
            self.problems.push(Problem { place: place.to_string(), message, help: problem.help });
            vec![]
        })
    }

    fn refuse(&mut self, message: String, help: &str, place: &str) -> Vec<Value> {
        let new = Group { count: 0, first: place.to_string(), message: message.clone(), help: help.to_string() };
        self.groups.entry(message).or_insert(new).count += 1;
        vec![]
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
    if inside.is_empty() { name } else { format!("{inside} > {name}") }
}
