//! The functions of domain `ai.weft`: what each fused node means in standard operators.

use super::emit::{CONTRIB, DOMAIN, OPSET, Scope};
use super::proto::{FunctionProto, OperatorSetIdProto};
use crate::error::{Error, Result};
use crate::ir::op::{Attr, Emit, Kind, Slot};
use crate::ir::{DType, F64, Lit, Op, TensorType, Type};
use crate::lower;
use crate::rules::{Rule, Term};
use std::collections::BTreeMap;

/// The functions of a file, shared by equal bodies.
#[derive(Default)]
pub struct Functions {
    pub protos: BTreeMap<String, FunctionProto>,
    by_signature: BTreeMap<String, String>,
}

impl Functions {
    /// The name of the function for a fused node over operands of these types.
    pub fn name(&mut self, op: Op, types: &[&Type], rules: &[Rule]) -> Result<String> {
        let (Emit::Weft(base) | Emit::Kernel(base)) = op.row().emit else {
            return Err(Error::internal("write", format!("{} is not a fused node", op.name())));
        };
        // Calls that differ in the names of their sizes share a body.
        let types = lower::renamed(&with_placeholders(op, types));
        let signature = types.iter().map(|t| format!("{t} ")).collect::<String>();
        let signature = format!("{base} {signature}");
        // A node cannot carry a size that is known only when it runs: its function is called otherwise, since a
        // kernel reads the attribute.
        let base = match unknown(op, &types).next() {
            Some(name) => &format!("{base}_any_{name}"),
            None => base,
        };
        if let Some(name) = self.by_signature.get(&signature) {
            return Ok(name.clone());
        }
        let mut proto = function(op, &types.iter().collect::<Vec<_>>(), rules)?;
        // Equal bodies are one function; another body of the same operator gets a number.
        let mut name = base.to_string();
        for k in 2.. {
            proto.name = name.clone();
            match self.protos.get(&name) {
                Some(other) if *other != proto => name = format!("{base}{k}"),
                _ => break,
            }
        }
        self.protos.insert(name.clone(), proto);
        self.by_signature.insert(signature, name.clone());
        Ok(name)
    }
}

/// The attributes that a fused node carries, by ONNX name.
pub(super) fn node_attributes(op: Op) -> impl Iterator<Item = (usize, &'static Attr, &'static str)> {
    op.row().attrs.iter().enumerate().filter_map(|(k, a)| match a.slot {
        Slot::Attribute(name) => Some((k, a, name)),
        _ => None,
    })
}

/// Whether the node carries the attribute: not where it is a size that is unknown before the graph runs.
pub(super) fn is_known(lit: &Lit) -> bool {
    lit.int().is_none_or(|d| d.known().is_some())
}

/// The attributes that the node does not carry.
fn unknown(op: Op, types: &[Type]) -> impl Iterator<Item = &'static str> {
    let first = op.operands(types.len());
    node_attributes(op)
        .filter(move |(k, ..)| types[first + k].lit().is_some_and(|l| !is_known(l)))
        .map(|(.., name)| name)
}

/// The names that the operator's `lower` rule gives its operands.
fn operand_names(op: Op, rules: &[Rule]) -> Vec<String> {
    let vars = rules.iter().find_map(|r| match &r.left {
        Term::Op(head, vars) if *head == op => Some(vars),
        _ => None,
    });
    vars.into_iter().flatten().map(|v| if let Term::Var(n) = v { n.to_string() } else { String::new() }).collect()
}

/// The types with a placeholder for each float that the node carries as an attribute.
///
/// Placeholders are distinct NaNs, so that in the body each is told from the others and from constants
/// of the same value, whatever the call's own numbers are.
fn with_placeholders(op: Op, types: &[&Type]) -> Vec<Type> {
    let mut types: Vec<Type> = types.iter().map(|t| (*t).clone()).collect();
    let first = op.operands(types.len());
    // A number among the operands is handed over like the others, as a scalar of their type.
    let weak = types[..first].iter().find_map(Type::tensor).map_or(DType::F32, |t| t.dtype);
    for operand in &mut types[..first] {
        if operand.lit().is_some() {
            *operand = Type::Tensor(TensorType::new(weak, vec![]));
        }
    }
    for (k, attr, _) in node_attributes(op) {
        if attr.kind == Kind::Float {
            types[first + k] = Type::Lit(Lit::Float(F64(f64::from_bits(0x7ff8_0000_0000_0000 | (k as u64 + 1)))));
        }
    }
    types
}

fn function(op: Op, types: &[&Type], rules: &[Rule]) -> Result<FunctionProto> {
    let body = lower::body(op, types, &operand_names(op, rules), rules)?;
    let first = op.operands(types.len());
    let attributes = node_attributes(op).filter_map(|(k, _, name)| Some((types[first + k].lit()?.clone(), name)));
    let mut functions = Functions::default();
    let mut scope = Scope::new(&body, rules, &mut functions, Some(attributes.collect()))?;
    let order = body.live();
    scope.run(&order)?;
    let output: Vec<String> = body.outputs.iter().map(|(name, _)| name.clone()).collect();
    let node = std::mem::take(&mut scope.nodes);
    let domains = if scope.uses_contrib { vec![("", OPSET), (CONTRIB, 1)] } else { vec![("", OPSET)] };
    let opset = |(domain, version): (&str, i64)| OperatorSetIdProto { domain: domain.into(), version };
    let opset_import = domains.into_iter().map(opset).collect();
    let doc: Vec<&str> =
        rules.iter().filter(|r| matches!(&r.left, Term::Op(h, _) if *h == op)).map(|r| r.doc.as_str()).collect();
    Ok(FunctionProto {
        domain: DOMAIN.into(),
        input: body.leaves.iter().map(|l| l.name.clone()).collect(),
        output,
        attribute: node_attributes(op)
            .filter(|(k, ..)| types[first + k].lit().is_none_or(is_known))
            .map(|(_, _, name)| name.to_string())
            .collect(),
        node,
        doc_string: doc.first().unwrap_or(&"").to_string(),
        opset_import,
        ..Default::default()
    })
}
