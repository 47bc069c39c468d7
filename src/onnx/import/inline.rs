//! What a node holds inside: the body of a function, a branch, a constant.

use super::{Env, Importer, MAX_DEPTH, MAX_NODES, Scope};
use crate::error::Problem;
use crate::ir::{Data, Dim, Leaf, LeafKind, TensorType};
use crate::onnx::build::Value;
use crate::onnx::call::{Call, Read};
use crate::onnx::known::{Items, Known};
use crate::onnx::proto::{FunctionProto, GraphProto, TensorProto};
use crate::onnx::read::OPSETS;
use crate::onnx::tensor::Tensor;
use rustc_hash::FxHashSet;

impl<'m> Importer<'m> {
    /// Reads the body of a model-local function in place of its call.
    pub(super) fn inline(
        &mut self,
        function: &'m FunctionProto,
        call: &Call<'m>,
        scope: &Scope<'m>,
        place: &str,
    ) -> Read {
        let full_name = format!("{}::{}", function.domain, function.name);
        if scope.calls.contains(&std::ptr::from_ref(function)) {
            let problem = Problem::new("", format!("function {full_name} calls itself"));
            return Err(problem.help("no model can run this; export the model again"));
        }
        if scope.depth >= MAX_DEPTH {
            return Err(format!("functions call one another deeper than {MAX_DEPTH} levels").into());
        }
        if call.inputs.len() > function.input.len() {
            let (given, takes) = (call.inputs.len(), function.input.len());
            return Err(format!("{given} operands for function {full_name}, which takes {takes}").into());
        }
        let mut env = Env::default();
        let mut inputs = call.inputs.iter().cloned();
        for formal in &function.input {
            env.insert(formal, inputs.next().unwrap_or(Value::Absent));
        }
        let mut bindings = call.attrs.clone();
        for default in &function.attribute_proto {
            if !bindings.iter().any(|(n, _)| *n == default.name) {
                bindings.push((&default.name, default));
            }
        }
        let opset = function.opset_import.iter().find(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
        let opset = opset.map_or(scope.opset, |o| o.version);
        if !OPSETS.contains(&opset) {
            let range = format!("{} to {}", OPSETS.start(), OPSETS.end());
            return Err(format!("function {full_name} is written for opset {opset}; {range} are read").into());
        }
        let calls = [scope.calls.as_slice(), &[std::ptr::from_ref(function)]].concat();
        let inner = Scope { bindings, opset, inside: place.to_string(), depth: scope.depth + 1, calls };
        self.nodes(&function.node, &mut env, &inner);
        if self.read > MAX_NODES {
            return Ok(vec![Value::Refused; function.output.len()]);
        }
        let result = |name: &String| env.get(name.as_str()).cloned();
        let missing = |name: &String| Problem::new("", format!("function {full_name} never computes `{name}`"));
        function.output.iter().map(|name| result(name).ok_or_else(|| missing(name))).collect()
    }

    /// `If` on a condition that is known while reading.
    pub(super) fn branch(&mut self, call: &Call<'m>, env: &mut Env<'m>, scope: &Scope<'m>, place: &str) -> Read {
        let Some(condition) = call.known(0).and_then(Known::uniform) else {
            let help = "export for fixed behaviour: no branch may depend on the model's inputs";
            return Err(Problem::new("", "the condition depends on the model's inputs").help(help));
        };
        if scope.depth >= MAX_DEPTH {
            return Err(format!("branches are nested deeper than {MAX_DEPTH} levels").into());
        }
        let name = if condition != 0.0 { "then_branch" } else { "else_branch" };
        let graph = call.graph_attr(name).ok_or_else(|| format!("attribute {name} is missing"))?;
        self.body(graph, env, scope, place)
    }

    /// The results of a graph in a node, which sees the names around it; its own end with it.
    pub(super) fn body(&mut self, graph: &'m GraphProto, env: &mut Env<'m>, scope: &Scope<'m>, place: &str) -> Read {
        let own = graph.initializer.iter().map(|t| t.name.as_str());
        let own = own.chain(graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str)));
        let own: FxHashSet<&'m str> = own.filter(|name| !env.contains_key(name)).collect();
        let outcome = self.within(graph, env, scope, place);
        for name in own {
            env.remove(name);
        }
        outcome
    }

    fn within(&mut self, graph: &'m GraphProto, env: &mut Env<'m>, scope: &Scope<'m>, place: &str) -> Read {
        for proto in &graph.initializer {
            let value = self.table(proto, &proto.name).map_err(Problem::from)?;
            env.insert(&proto.name, value);
        }
        let inner = Scope { inside: place.to_string(), depth: scope.depth + 1, ..scope.clone() };
        self.nodes(&graph.node, env, &inner);
        if self.read > MAX_NODES {
            return Ok(vec![Value::Refused; graph.output.len()]);
        }
        let missing = |name: &str| Problem::new("", format!("its graph never computes `{name}`"));
        let result = |name: &str| env.get(name).cloned().ok_or_else(|| missing(name));
        graph.output.iter().map(|o| result(&o.name)).collect()
    }

    pub(super) fn constant(&mut self, call: &Call<'m>, output: &str) -> Read {
        let vector = |items: Items, dtype| {
            let n = match &items {
                Items::Ints(v) => v.len(),
                Items::Floats(v) => v.len(),
            };
            Known { dtype, shape: vec![n], items, table: None }
        };
        let known = if let Some(proto) = call.tensor_attr("value") {
            return Ok(vec![self.table(proto, output)?]);
        } else if let Some(n) = call.int("value_int") {
            Known::scalar(Dim::Known(n))
        } else if let Some(x) = call.float("value_float") {
            Known::float(x)
        } else if let Some(ns) = call.ints("value_ints") {
            Known::vector(ns.iter().copied().map(Dim::Known).collect())
        } else if let Some(a) = call.attr("value_floats") {
            vector(Items::Floats(a.floats.iter().copied().map(f64::from).collect()), crate::ir::DType::F32)
        } else {
            return Err("only dense numbers are supported".into());
        };
        Ok(vec![Value::Known(known)])
    }

    /// The tensor of a Constant node: known where it is small, a table otherwise.  What is written into
    /// the graph itself is never a weight: exporters keep parameters apart as initializers.
    fn table(&mut self, proto: &'m TensorProto, name: &str) -> Result<Value, String> {
        let tensor = self.site.tensor(proto)?;
        let known = if tensor.dtype.is_float() && tensor.numel() != 1 { None } else { Known::load(&tensor) };
        // A single number is the same wherever it is from: no leaf of its own.
        if let Some(known) = known.clone().filter(|k| k.len() == 1) {
            return Ok(Value::Known(known));
        }
        let key: *const TensorProto = proto;
        let k = match self.constants.get(&key) {
            Some(k) => *k,
            None => {
                let leaf = Self::leaf(tensor, name);
                self.b.tables.push(leaf);
                self.constants.insert(key, self.b.tables.len() - 1);
                self.b.tables.len() - 1
            }
        };
        match known {
            Some(known) => Ok(Value::Known(Known { table: Some(k), ..known })),
            None => self.b.table(k).map(Value::Node),
        }
    }

    fn leaf(tensor: Tensor, name: &str) -> Leaf {
        let dims: Vec<Dim> = tensor.dims.iter().map(|n| Dim::Known(*n as i64)).collect();
        let data: Option<Data> = Some(tensor.data);
        let ty = TensorType::new(tensor.dtype, dims);
        Leaf { name: name.to_string(), ty, kind: LeafKind::Const, data, transposed: false, source_name: None }
    }
}
