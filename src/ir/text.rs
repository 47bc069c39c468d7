//! Graphs as text, for snapshots, tests and `--emit-ir`.
//!
//! ```text
//! (graph tiny
//!   (input ids i64 [batch seq])
//!   (param wte f32 [64 16])
//!   (let h (gather wte ids 0))          ; f32[batch seq 16]
//!   (output hidden h))
//! ```

use super::builder::Builder;
use super::dim::Dim;
use super::graph::{Data, Graph, Id, Leaf, LeafId, LeafKind, Node};
use super::op::Op;
use super::sexpr::{Sexpr, SyntaxError, read};
use super::ty::{DType, F64, Lit, TensorType, Type};
use rustc_hash::{FxHashMap, FxHashSet};
use std::fmt::Write;

/// Prints a graph; nodes are numbered in order of use, so equal graphs print equally.
pub fn print(graph: &Graph) -> String {
    let mut out = format!("(graph {}\n", word(&graph.name));
    let live = graph.live();
    let used: FxHashSet<LeafId> = live.iter().filter_map(|id| graph.as_leaf(*id)).collect();
    for (k, leaf) in graph.leaves.iter().enumerate() {
        if used.contains(&LeafId(k as u32)) {
            let kind = match leaf.kind {
                LeafKind::Input => "input",
                LeafKind::Param => "param",
                LeafKind::Const => "const",
            };
            let _ = writeln!(
                out,
                "  ({kind} {} {} [{}])",
                word(&leaf.name),
                leaf.ty.dtype.name(),
                super::ty::join(&leaf.ty.shape)
            );
        }
    }
    let mut names: FxHashMap<Id, String> = FxHashMap::default();
    let mut numbered = 0;
    for id in live {
        let name = match graph.node(id) {
            Node::Leaf(l) => word(&graph.leaf(*l).name),
            Node::Lit(l) => l.to_string(),
            Node::Op(op, children) => {
                let args: Vec<_> = children.iter().map(|c| names[c].as_str()).collect();
                let call = [&[op.name()], args.as_slice()].concat().join(" ");
                let _ = writeln!(out, "  (let %{numbered} ({call})) ; {}", graph.type_of(id));
                format!("%{numbered}")
            }
        };
        numbered += usize::from(name.starts_with('%'));
        names.insert(id, name);
    }
    for (name, id) in &graph.outputs {
        let _ = writeln!(out, "  (output {} {})", word(name), names[id]);
    }
    out.truncate(out.trim_end().len());
    out + ")\n"
}

/// A name as one atom: characters that end an atom become `_`.
fn word(name: &str) -> String {
    let clean: String = name.chars().map(|c| if c.is_whitespace() || "()[];".contains(c) { '_' } else { c }).collect();
    if clean.is_empty() { "_".into() } else { clean }
}

/// A literal from one expression: a number, a dimension, a list, an element type or a word.
pub fn literal(e: &Sexpr) -> Option<Lit> {
    if let Some(items) = e.bracket() {
        let dims: Option<Box<[Dim]>> = items.iter().map(|i| i.atom().and_then(Dim::parse)).collect();
        return dims.map(Lit::Ints);
    }
    let atom = e.atom()?;
    if let Some(t) = DType::parse(atom) {
        return Some(Lit::DType(t));
    }
    if let Ok(n) = atom.parse::<i64>() {
        return Some(Lit::Int(Dim::Known(n)));
    }
    match atom.parse::<f64>() {
        Ok(x) => Some(Lit::Float(F64(x))),
        Err(_) => Dim::parse(atom).filter(|_| atom.contains(['*', '+'])).map(Lit::Int).or(Some(Lit::Word(atom.into()))),
    }
}

/// Reads a graph as `print` writes it.
pub fn parse(text: &str) -> Result<Graph, SyntaxError> {
    let top = read(text)?;
    let whole = 0..text.len();
    let [Sexpr::List(forms, _)] = top.as_slice() else {
        return Err(SyntaxError::new(&whole, "expected one (graph NAME ...)"));
    };
    let [Sexpr::Atom(head, _), Sexpr::Atom(name, _), forms @ ..] = forms.as_slice() else {
        return Err(SyntaxError::new(&whole, "expected (graph NAME ...)"));
    };
    if head != "graph" {
        return Err(SyntaxError::new(&whole, "expected (graph NAME ...)"));
    }
    let mut graph = Graph::new(name);
    let mut names: FxHashMap<String, Id> = FxHashMap::default();
    for form in forms {
        let bad = |m: String| SyntaxError::new(form.span(), m);
        let items = form.list().ok_or_else(|| bad("expected a list".into()))?;
        match items {
            [Sexpr::Atom(kind, _), Sexpr::Atom(name, _), Sexpr::Atom(dtype, _), shape @ Sexpr::Bracket(..)] => {
                let kind = match kind.as_str() {
                    "input" => LeafKind::Input,
                    "param" => LeafKind::Param,
                    "const" => LeafKind::Const,
                    other => return Err(bad(format!("unknown leaf kind `{other}`"))),
                };
                let dtype = DType::parse(dtype).ok_or_else(|| bad(format!("unknown element type `{dtype}`")))?;
                let Some(Lit::Ints(shape)) = literal(shape) else { return Err(bad("bad shape".into())) };
                let data: Option<Data> = None;
                let ty = TensorType::new(dtype, shape.to_vec());
                let id =
                    graph.add_leaf(Leaf { name: name.clone(), ty, kind, data, transposed: false, source_name: None });
                names.insert(name.clone(), id);
            }
            [Sexpr::Atom(kind, _), Sexpr::Atom(name, _), body] if kind == "let" || kind == "output" => {
                let id = term(&mut graph, &names, body)?;
                if kind == "output" {
                    graph.outputs.push((name.clone(), id));
                } else {
                    names.insert(name.clone(), id);
                }
            }
            _ => {
                return Err(bad(
                    "expected (input|param|const NAME DTYPE [SHAPE]), (let NAME TERM) or (output NAME TERM)".into(),
                ));
            }
        }
    }
    Ok(graph)
}

fn term(graph: &mut Graph, names: &FxHashMap<String, Id>, e: &Sexpr) -> Result<Id, SyntaxError> {
    let bad = |m: String| SyntaxError::new(e.span(), m);
    if let Some(id) = e.atom().and_then(|a| names.get(a)) {
        return Ok(*id);
    }
    let Some([head, args @ ..]) = e.list() else {
        let lit = literal(e).ok_or_else(|| bad("not a literal".into()))?;
        return match lit {
            Lit::Word(w) if w.starts_with('%') => Err(bad(format!("`{w}` is not bound"))),
            lit => graph.lit(lit).map_err(bad),
        };
    };
    let name = head.atom().unwrap_or_default();
    let op = Op::parse(name).ok_or_else(|| bad(format!("unknown operator `{name}`")))?;
    let children: Result<Vec<Id>, _> = args.iter().map(|a| term(graph, names, a)).collect();
    let children = children?;
    // A bare symbol in an integer attribute reads as a word; the operator table says what it is.
    let first = op.operands(children.len());
    let mut fixed = children.clone();
    // So does a size in an operand's place.
    for (k, id) in children.iter().enumerate().take(first) {
        if let Type::Lit(Lit::Word(w)) = graph.type_of(*id)
            && let Some(dim) = Dim::parse(&w.clone())
        {
            fixed[k] = graph.lit(Lit::Int(dim)).map_err(bad)?;
        }
    }
    for (k, attr) in op.row().attrs.iter().enumerate() {
        let Some(id) = children.get(first + k) else { continue };
        if let (super::op::Kind::Int, Type::Lit(Lit::Word(w))) = (attr.kind, graph.type_of(*id))
            && let Some(dim) = Dim::parse(&w.clone())
        {
            fixed[first + k] = graph.lit(Lit::Int(dim)).map_err(bad)?;
        }
    }
    graph.op(op, &fixed).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn print_reads_back() {
        let text = "(graph tiny
  (input ids i64 [batch seq])
  (param wte f32 [64 16])
  (let %0 (gather wte ids 0)) ; f32[batch seq 16]
  (let %1 (slice %0 1 0 seq-1 1)) ; f32[batch seq-1 16]
  (let %2 (mul %0 0.5)) ; f32[batch seq 16]
  (output hidden %1)
  (output half %2))
";
        assert_eq!(print(&parse(text).unwrap()), text);
    }

    #[test]
    fn type_errors_name_the_operator() {
        let error = parse("(graph g (input x f32 [2 3]) (input y f32 [4]) (output z (add x y)))").unwrap_err();
        assert_eq!(error.message, "add(f32[2 3], f32[4]): sizes 3 and 4 do not broadcast");
    }
}
