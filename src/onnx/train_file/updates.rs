//! The optimizer's own graphs: an update of every parameter, the norm over all gradients, sums of gradients.

use super::{DOMAIN, Function, NO_DECAY, Port, TrainFile, onnx_type, value_info};
use crate::error::{Error, Problem, Result};
use crate::ir::ty::DType;
use crate::onnx::proto::{FunctionProto, GraphProto, NodeProto, TensorProto};

/// Parameters of one shape and element type that one node takes behind each other, by their indices: not more than `most`
/// elements, and only such that `alike` cannot tell apart.  On a GPU a small node takes as long as a larger one.
fn together(parameters: &[Port], most: usize, alike: &dyn Fn(&Port) -> bool) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (n, port) in parameters.iter().enumerate() {
        let elements = port.shape.iter().try_fold(1, |all: usize, d| all.checked_mul(usize::try_from((*d)?).ok()?));
        let limit = elements.filter(|n| *n > 0 && !port.shape.is_empty()).map_or(1, |n| (most / n).max(1));
        let fits = |group: &&mut Vec<usize>| {
            let first = &parameters[group[0]];
            group.len() < limit && (first.dtype, &first.shape, alike(first)) == (port.dtype, &port.shape, alike(port))
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(n),
            None => groups.push(vec![n]),
        }
    }
    groups
}

impl TrainFile {
    /// The graph of one update of every parameter by `own`: `p/N`, `g/N`, `STATE/N` (N the index in `parameters`) and
    /// the scalars to `p2/N`, `STATE2/N`.
    ///
    /// Parameters that do not decay read the scalar `NO_DECAY` instead of `weight_decay`.
    ///
    /// Each result may be bound to the buffer that it updates: this is checked against the function's body.  Up to `most`
    /// elements are updated together.
    pub fn update_model(
        &self,
        own: &Function,
        parameters: &[Port],
        decays: &dyn Fn(&Port) -> bool,
        most: usize,
    ) -> Result<Vec<u8>> {
        let function = self.function(own.name)?;
        let arity = (function.input.len(), function.output.len());
        let expected = (2 + own.state.len() + own.scalars.len(), 1 + own.state.len());
        if arity != expected {
            let why = format!("its {DOMAIN}.{} has {arity:?} inputs and outputs, not {expected:?}", own.name);
            return Err(Error::Model { model: self.path.clone(), problems: vec![Problem::new("", why)] });
        }
        // Inputs p, g, the state; outputs p, the state.
        for output in 0..expected.1 {
            let input = &function.input[if output == 0 { 0 } else { output + 1 }];
            if !writes_after_reads(function, input, &function.output[output]) {
                return Err(Error::internal(own.name, format!("{input} is still read when it is written")));
            }
        }
        let mut b = Standard::new("update");
        let scalar = |name: &&str| value_info(name, DType::F64, &[]);
        b.graph.input.extend(own.scalars.iter().chain([&NO_DECAY]).map(scalar));
        let changed: Vec<&str> = ["p"].iter().chain(own.state).copied().collect();
        let read: Vec<&str> = ["p", "g"].iter().chain(own.state).copied().collect();
        for group in together(parameters, most, decays) {
            let (first, parameter) = (group[0], &parameters[group[0]]);
            let ports = |prefix: &str| group.iter().map(|n| format!("{prefix}/{n}")).collect::<Vec<String>>();
            let same = |name: String| value_info(&name, parameter.dtype, &parameter.shape);
            b.graph.input.extend(read.iter().flat_map(|prefix| ports(prefix)).map(same));
            b.graph.output.extend(changed.iter().flat_map(|prefix| ports(&format!("{prefix}2"))).map(same));
            let mut input: Vec<String> = read.iter().map(|prefix| b.joined(&ports(prefix))).collect();
            let hyper = |h: &&'static str| if *h == "weight_decay" && !decays(parameter) { NO_DECAY } else { *h };
            input.extend(own.scalars.iter().map(|h| hyper(h).to_string()));
            let joined = |prefix: &&str| {
                if group.len() > 1 { format!("{prefix}2s/{first}") } else { format!("{prefix}2/{first}") }
            };
            b.graph.node.push(NodeProto {
                domain: DOMAIN.into(),
                op_type: own.name.into(),
                overload: function.overload.clone(),
                name: format!("update/{first}"),
                input,
                output: changed.iter().map(joined).collect(),
                ..NodeProto::default()
            });
            if group.len() > 1 {
                changed.iter().for_each(|prefix| b.parted(&joined(prefix), ports(&format!("{prefix}2"))));
            }
        }
        Ok(self.model_of(b.graph, vec![function.clone()]))
    }

    /// The graph of the Euclidean norm over all gradients: `g/N` to `norm` (f64).
    ///
    /// Rows are summed in f32 and rows of rows in f64: as exact as needed, and in an order that depends
    /// neither on the number of threads nor on anything else.  Up to `most` elements are read together.  With `kernels`
    /// our own operator sums the squares up, which the session must have.
    pub fn norm_model(&self, parameters: &[Port], most: usize, kernels: bool) -> Vec<u8> {
        let mut b = Standard::new("grad_norm");
        let mut sums = Vec::new();
        for group in together(parameters, most, &|_| true) {
            let parameter = &parameters[group[0]];
            let gradients: Vec<String> = group.iter().map(|n| format!("g/{n}")).collect();
            let same = |name: &String| value_info(name, parameter.dtype, &parameter.shape);
            b.graph.input.extend(gradients.iter().map(same));
            let mut value = b.joined(&gradients);
            if matches!(parameter.dtype, DType::F16 | DType::BF16) {
                value = b.cast(&value, DType::F32);
            }
            let squares = if kernels {
                value = b.node("SquareSums", &[&value], &[]);
                if let Some(node) = b.graph.node.last_mut() {
                    node.domain = DOMAIN.into();
                }
                b.cast(&value, DType::F64)
            } else if parameter.shape.len() > 1 {
                value = b.node("ReduceSumSquare", &[&value, "last_axis"], &[("keepdims", 0)]);
                b.cast(&value, DType::F64)
            } else {
                value = b.cast(&value, DType::F64);
                b.node("Mul", &[&value, &value], &[])
            };
            sums.push(b.node("ReduceSum", &[&squares], &[("keepdims", 0)]));
        }
        b.graph.initializer.push(TensorProto {
            name: "last_axis".into(),
            dims: vec![1],
            data_type: onnx_type(DType::I64),
            int64_data: vec![-1],
            ..TensorProto::default()
        });
        let sums: Vec<&str> = sums.iter().map(String::as_str).collect();
        let total = b.node("Sum", &sums, &[]);
        b.graph.node.push(NodeProto {
            op_type: "Sqrt".into(),
            name: "norm".into(),
            input: vec![total],
            output: vec!["norm".into()],
            ..NodeProto::default()
        });
        b.graph.output.push(value_info("norm", DType::F64, &[]));
        self.model_of(b.graph, Vec::new())
    }

    /// The graph that adds gradients to sums: `s/N` + `g/N` to `s2/N`, which may be bound to `s/N`.  With `kernels` by our
    /// own operator, which the session must have.
    pub fn sum_model(&self, parameters: &[Port], kernels: bool) -> Vec<u8> {
        let (domain, operator) = if kernels { (DOMAIN, "Accumulate") } else { ("", "Add") };
        let mut graph = GraphProto { name: "accumulate".into(), ..GraphProto::default() };
        for (n, parameter) in parameters.iter().enumerate() {
            let name = |prefix: &str| format!("{prefix}/{n}");
            let same = |prefix: &str| value_info(&name(prefix), parameter.dtype, &parameter.shape);
            graph.input.extend(["s", "g"].map(same));
            graph.output.push(same("s2"));
            graph.node.push(NodeProto {
                domain: domain.into(),
                op_type: operator.into(),
                name: name("add"),
                input: ["s", "g"].map(name).into(),
                output: vec![name("s2")],
                ..NodeProto::default()
            });
        }
        self.model_of(graph, Vec::new())
    }
}

/// Builds nodes of standard operators with fresh names.
struct Standard {
    graph: GraphProto,
}

impl Standard {
    fn new(name: &str) -> Self {
        Standard { graph: GraphProto { name: name.into(), ..GraphProto::default() } }
    }

    fn node(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, i64)]) -> String {
        let name = format!("{op}_{}", self.graph.node.len());
        let attribute = |&(key, i): &(&str, i64)| crate::onnx::proto::AttributeProto {
            name: key.into(),
            r#type: crate::onnx::proto::attribute_proto::AttributeType::Int.into(),
            i: Some(i),
            ..Default::default()
        };
        self.graph.node.push(NodeProto {
            op_type: op.into(),
            name: name.clone(),
            input: inputs.iter().map(|i| i.to_string()).collect(),
            output: vec![name.clone()],
            attribute: attributes.iter().map(attribute).collect(),
            ..NodeProto::default()
        });
        name
    }

    /// Values of one type behind each other; a single one as it is.
    fn joined(&mut self, values: &[String]) -> String {
        match values {
            [value] => value.clone(),
            _ => self.node("Concat", &values.iter().map(String::as_str).collect::<Vec<_>>(), &[("axis", 0)]),
        }
    }

    /// A value's equal parts.
    fn parted(&mut self, value: &str, parts: Vec<String>) {
        self.node("Split", &[value], &[("axis", 0), ("num_outputs", parts.len() as i64)]);
        if let Some(node) = self.graph.node.last_mut() {
            node.output = parts;
        }
    }

    fn cast(&mut self, value: &str, to: DType) -> String {
        self.node("Cast", &[value], &[("to", onnx_type(to).into())])
    }
}

/// Whether `output` may share the buffer of `input`: every node that reads `input` is needed for `output`,
/// so it has run when `output` is written, and the one that writes reads it elementwise if at all.
fn writes_after_reads(function: &FunctionProto, input: &str, output: &str) -> bool {
    let mut needed = vec![false; function.node.len()];
    let mut wanted = vec![output];
    while let Some(name) = wanted.pop() {
        let maker = function.node.iter().position(|n| n.output.iter().any(|o| o == name));
        if let Some(k) = maker.filter(|k| !needed[*k]) {
            needed[k] = true;
            wanted.extend(function.node[k].input.iter().map(String::as_str));
        }
    }
    function.node.iter().zip(needed).all(|(node, needed)| needed || !node.input.iter().any(|i| i == input))
}
