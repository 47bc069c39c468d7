//! What a file declares beside its nodes: names given twice, sparse weights, types of outputs.

use super::{DAMAGED, Importer};
use crate::error::Problem;
use crate::ir::{Dim, Id, LeafKind};
use crate::onnx::build::Build;
use crate::onnx::proto::tensor_shape_proto::{self, dimension};
use crate::onnx::proto::{GraphProto, ValueInfoProto, type_proto};
use crate::onnx::tensor;
use rustc_hash::{FxHashMap, FxHashSet};

impl<'m> Importer<'m> {
    /// What is declared twice, or in a way that is not read.
    pub(super) fn declarations(&mut self, graph: &'m GraphProto) {
        let mut twice = |names: &mut dyn Iterator<Item = &'m str>, what: &str| {
            let mut seen = FxHashSet::default();
            for name in names {
                if name.is_empty() {
                    self.problems.push(Problem::new("", format!("there is an {what} without a name")).help(DAMAGED));
                } else if !seen.insert(name) {
                    self.problems.push(Problem::new(name, format!("two {what}s have this name")).help(DAMAGED));
                }
            }
        };
        twice(&mut graph.input.iter().map(|i| i.name.as_str()), "input");
        twice(&mut graph.initializer.iter().map(|t| t.name.as_str()), "initializer");
        twice(&mut graph.output.iter().map(|o| o.name.as_str()), "output");
        let mut functions = FxHashSet::default();
        for f in &self.model.functions {
            if !functions.insert((&f.domain, &f.name, &f.overload)) {
                let name = format!("{}::{}", f.domain, f.name);
                self.problems.push(Problem::new(name, "two functions have this name").help(DAMAGED));
            }
        }
        for sparse in graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()) {
            let problem = Problem::new(&sparse.name, "is a sparse weight; only dense ones are supported");
            self.problems.push(problem.help("export the model with dense weights"));
        }
    }

    /// Every leaf has a name of its own in train.onnx: tables get a number, weights and inputs are refused.
    pub(super) fn leaf_names(&mut self) {
        let leaves = &mut self.b.graph.leaves;
        let said = !self.problems.is_empty();
        let mut taken: FxHashSet<String> = FxHashSet::default();
        for leaf in leaves.iter().filter(|l| l.kind != LeafKind::Const) {
            if !taken.insert(leaf.name.clone()) && !said {
                let problem = Problem::new(&leaf.name, "two inputs or weights have this name");
                self.problems.push(problem.help("rename one of them in the source model"));
            }
        }
        let mut next: FxHashMap<String, usize> = FxHashMap::default();
        for leaf in leaves.iter_mut().filter(|l| l.kind == LeafKind::Const) {
            let name = leaf.name.clone();
            while !taken.insert(leaf.name.clone()) {
                let k = next.entry(name.clone()).or_insert(1);
                *k += 1;
                leaf.name = format!("{name}_{k}");
            }
        }
    }
}

/// Where the declared type of an output is not the one that its nodes give.
pub fn contradiction(output: &ValueInfoProto, b: &Build, id: Id) -> Option<Problem> {
    let Some(type_proto::Value::TensorType(declared)) = &output.r#type.as_ref()?.value else {
        return Some(Problem::new(&output.name, "is declared as something other than a tensor"));
    };
    let found = b.ty(id).ok()?;
    let same_type = tensor::dtype(declared.elem_type).is_ok_and(|t| t == found.dtype);
    let dims = declared.shape.as_ref().map(|s| s.dim.as_slice());
    let agrees = |(dim, size): (&dimension::Value, &Dim)| match (dim, size.known()) {
        (dimension::Value::DimValue(n), Some(known)) => *n == known || *n <= 0,
        _ => true,
    };
    let same_shape = dims.is_none_or(|dims| {
        let sizes = dims.iter().zip(&found.shape).filter_map(|(d, size)| Some((d.value.as_ref()?, size)));
        dims.len() == found.shape.len() && sizes.into_iter().all(agrees)
    });
    if (same_type || declared.elem_type == 0) && same_shape {
        return None;
    }
    let size = |d: &tensor_shape_proto::Dimension| match &d.value {
        Some(dimension::Value::DimValue(n)) => n.to_string(),
        Some(dimension::Value::DimParam(name)) => name.clone(),
        None => "?".into(),
    };
    let sizes = dims.unwrap_or_default().iter().map(size).collect::<Vec<_>>().join(" ");
    let element = match tensor::dtype(declared.elem_type) {
        Ok(dtype) => dtype.name().to_string(),
        Err(why) => format!("({why})"),
    };
    let message = format!("is declared as {element}[{sizes}], its nodes give {found}");
    Some(Problem::new(&output.name, message).help("the file contradicts itself; export the model again"))
}
