//! Packing: several sequences share a row, so that the model computes next to no padding.
//!
//! A step keeps its inputs and outputs: a batch of sequences [B, L], draws and diagnostics by sequence.  Only the model
//! in the middle computes on rows [R, W].  The input `places` says which token of the batch, b L + l, lies where in
//! them; -1 is none.  Tokens are looked up there, logits are read back, so a method, its draws and its losses know
//! nothing of rows, and a loss is that of the sequences alone.
//!
//! In between
//! - what the model computes token by token stays as it is;
//! - attention takes a bias that shuts sequences off from one another, 0 within and -inf between them;
//! - what depends on a token's place but on no token (rotary angles, learned positions, distances) is looked up at the
//!   place in the token's own sequence;
//! - what joins tokens otherwise has no meaning in a row of several sequences.  Where nothing is multiplied behind it, as
//!   where a model shifts its own logits, it is computed by sequence; elsewhere it is refused (`packing::mixing`).

mod mixing;
mod numbers;
mod places;

use crate::error::{Error, Problem, Result};
use crate::ir::builder::PACKED;
use crate::ir::{Builder, DType, Dim, F64, Graph, Id, Lit, Node, Op, Sym, Type};
use crate::manifest::PLACES;
use mixing::Mixing;
use rustc_hash::FxHashMap;

/// The model with its tokens in rows.  `token_input` is [B, L]; logits are [B, L, V] as before.
///
/// # Errors
/// `Model` with every node that joins tokens otherwise than attention does.
pub fn apply(model: &Graph, token_input: &str) -> Result<Graph> {
    let refuse = |problems: Vec<Problem>| Err(Error::Model { model: model.name.clone().into(), problems });
    let tokens = model.find_leaf(token_input).map(|l| model.leaf(l).ty.shape.as_slice());
    let Some([batch, length]) = tokens else { return Err(internal("the tokens are not [batch, length]".into())) };
    let (Some(batch), Some(length)) = (symbol(batch), symbol(length).filter(|l| symbol(batch).as_ref() != Some(l)))
    else {
        let message = format!("rows of several sequences have sizes of their own, but its are {batch} x {length}");
        let help = "export the model with a dynamic batch and length, or compile without --packing";
        return refuse(vec![Problem::new(token_input, message).help(help)]);
    };
    let mut problems = Vec::new();
    if model.find_leaf(PLACES).is_some() {
        let problem = Problem::new(PLACES, "is the name of an input of packed steps");
        problems.push(problem.help("rename this input or weight in the source model"));
    }
    let mixing = Mixing::new(model, batch.clone(), length.clone());
    problems.extend(mixing.problems());
    if !problems.is_empty() {
        return refuse(problems);
    }
    let mut packer = Packer::new(model, &mixing, batch, length).map_err(internal)?;
    packer.graph.outputs = packer.outputs().map_err(internal)?;
    Ok(packer.graph)
}

fn internal(why: String) -> Error {
    Error::internal("pack", why)
}

/// The symbol that a size is.
fn symbol(size: &Dim) -> Option<Sym> {
    let [symbol] = <[Sym; 1]>::try_from(size.symbols()).ok()?;
    (Dim::sym(symbol.as_str()) == *size).then_some(symbol)
}

type Built<T> = std::result::Result<T, String>;

struct Packer<'m> {
    model: &'m Graph,
    mixing: &'m Mixing<'m>,
    graph: Graph,
    /// Nodes of the model and what became of them.
    built: FxHashMap<Id, Id>,
    /// B and L.
    batch: Dim,
    length: Dim,
    /// R and W.
    rows: Dim,
    width: Dim,
    /// [R, W] i64: the token of the batch that lies there; the first where there is none.
    at: Id,
    /// [R, W] bool: whether one lies there.
    taken: Id,
    /// [R, W] i64: its sequence, -1 where there is none, and its place in it.
    segments: Id,
    positions: Id,
    /// [R, 1, W, W] f32: 0 within a sequence, -inf between two.
    bias: Id,
}

impl<'m> Packer<'m> {
    fn new(model: &'m Graph, mixing: &'m Mixing<'m>, batch: Sym, length: Sym) -> Built<Self> {
        let [batch, length] = [batch, length].map(|s| Dim::sym(s.as_str()));
        let [rows, width] = PACKED.map(Dim::sym);
        let mut graph = Graph::with_leaves_of(model);
        let g = &mut graph;
        let places = g.input(PLACES, DType::I64, &[rows.clone(), width.clone()]);
        let zero = int(g, 0)?;
        let none = int(g, -1)?;
        let taken = g.op(Op::GreaterEqual, &[places, zero])?;
        let at = g.op(Op::Where, &[taken, places, zero])?;
        let l = int(g, length.clone())?;
        let sequence = g.op(Op::Div, &[at, l])?;
        let first = g.op(Op::Mul, &[sequence, l])?;
        let positions = g.op(Op::Sub, &[at, first])?;
        let segments = g.op(Op::Where, &[taken, sequence, none])?;
        let [queries, keys] = [[width.clone(), 1.into()], [1.into(), width.clone()]]
            .map(|[i, j]| reshape(g, segments, &[rows.clone(), 1.into(), i, j]));
        let same = g.op(Op::Equal, &[queries?, keys?])?;
        let open = full(g, 0.0, DType::F32, &[])?;
        let shut = g.lit(Lit::Float(F64(f64::NEG_INFINITY)))?;
        let bias = g.op(Op::Where, &[same, open, shut])?;
        let built = FxHashMap::default();
        Ok(Packer { model, mixing, graph, built, batch, length, rows, width, at, taken, segments, positions, bias })
    }

    /// The model's outputs, by sequence as before.
    fn outputs(&mut self) -> Built<Vec<(String, Id)>> {
        for id in self.model.live() {
            if self.model.tensor_type(id).is_none() {
                continue;
            }
            let new = self.node(id)?;
            if let Some(origin) = self.model.origin.get(&id) {
                self.graph.origin.entry(new).or_insert_with(|| origin.clone());
            }
            self.built.insert(id, new);
        }
        let outputs = self.model.outputs.iter();
        outputs.map(|(name, id)| Ok((name.clone(), self.by_sequence(*id)?))).collect()
    }

    /// The node in rows, or by sequence where it is fixed or lies behind what joins tokens.
    fn node(&mut self, id: Id) -> Built<Id> {
        let node = self.model.node(id);
        let Node::Op(op, children) = node else {
            let leaf = self.graph.insert(node.clone())?;
            return if self.mixing.in_rows(id) { self.looked_up(leaf, self.at) } else { Ok(leaf) };
        };
        let mut new = Vec::with_capacity(children.len());
        if !self.mixing.in_rows(id) {
            for child in children {
                new.push(match self.model.type_of(*child) {
                    Type::Lit(lit) => self.graph.lit(lit.clone())?,
                    _ => self.by_sequence(*child)?,
                });
            }
            return self.graph.op(*op, &new);
        }
        for (k, child) in children.iter().enumerate() {
            new.push(match self.model.type_of(*child) {
                Type::Lit(lit) => {
                    let lit = self.resized(lit);
                    self.graph.lit(lit)?
                }
                _ if self.mixing.fills(*child) => self.filled(*child)?,
                _ if self.mixing.looks_up(id, k) => self.placed(*child, self.model.type_of(id).shape(), *op)?,
                _ => self.built[child],
            });
        }
        match op {
            Op::Attention => new.insert(3, self.bias),
            Op::AttentionBias => new[3] = self.graph.op(Op::Add, &[new[3], self.bias])?,
            Op::Dropout => [new[2], new[3]] = self.draws(new[2], new[3])?,
            _ => {}
        }
        self.graph.op(if *op == Op::Attention { Op::AttentionBias } else { *op }, &new)
    }

    /// A value [B, L, ..] by sequence.
    fn by_sequence(&mut self, value: Id) -> Built<Id> {
        let new = self.built[&value];
        if !self.mixing.in_rows(value) {
            return Ok(new);
        }
        let slots = self.slots()?;
        let shape = self.model.type_of(value).shape();
        let Some(each) = self.mixing.flat(shape) else { return self.looked_up(new, slots) };
        // One list of all tokens.
        let by_row = [&[self.rows.clone(), self.width.clone(), each], &shape[1..]].concat();
        let new = reshape(&mut self.graph, new, &by_row)?;
        let new = self.looked_up(new, slots)?;
        reshape(&mut self.graph, new, shape)
    }

    /// [B, L] i64: where in the rows each token of the batch lies; 0 for what lies nowhere.
    fn slots(&mut self) -> Built<Id> {
        let (cells, tokens) = (self.rows.clone() * self.width.clone(), self.batch.clone() * self.length.clone());
        let g = &mut self.graph;
        let (zero, n) = (int(g, 0)?, int(g, cells.clone())?);
        let cell = g.op(Op::Iota, &[n])?;
        let taken = reshape(g, self.taken, std::slice::from_ref(&cells))?;
        let cell = g.op(Op::Where, &[taken, cell, zero])?;
        let at = reshape(g, self.at, &[cells])?;
        let empty = full(g, 0.0, DType::I64, std::slice::from_ref(&tokens))?;
        let slots = g.op(Op::ScatterAdd, &[empty, at, cell, zero])?;
        reshape(g, slots, &[self.batch.clone(), self.length.clone()])
    }

    /// One number for all places of the rows, where `id` is one for all of the sequences.
    fn filled(&mut self, id: Id) -> Built<Id> {
        let mut attributes = Vec::new();
        for lit in self.model.node(id).children().iter().filter_map(|c| self.model.type_of(*c).lit()) {
            attributes.push(self.graph.lit(self.resized(lit))?);
        }
        self.graph.op(Op::Full, &attributes)
    }

    /// The elements of a value [n, m, ..] at places i m + j.
    fn looked_up(&mut self, value: Id, places: Id) -> Built<Id> {
        let shape = self.graph.type_of(value).shape().to_vec();
        let [n, m, rest @ ..] = shape.as_slice() else { return Err(format!("{shape:?} has no two axes of tokens")) };
        let flat = reshape(&mut self.graph, value, &[&[n.clone() * m.clone()], rest].concat())?;
        let axis = int(&mut self.graph, 0)?;
        self.graph.op(Op::Gather, &[flat, places, axis])
    }

    /// A literal with R and W in place of B and L.
    fn resized(&self, lit: &Lit) -> Lit {
        lit.replaced(&|s| {
            [(&self.batch, &self.rows), (&self.length, &self.width)]
                .into_iter()
                .find_map(|(old, new)| (Dim::sym(s.as_str()) == *old).then(|| new.clone()))
        })
    }

    /// The numbers of dropout for rows: a token's, [R, W, B k], which are 0 but for those of its sequence, and the inputs'
    /// of all sequences, [R, B k, n].  Their inner product is that of the token's numbers and its sequence's inputs'.
    fn draws(&mut self, rows: Id, columns: Id) -> Built<[Id; 2]> {
        let g = &mut self.graph;
        let ([.., k], [.., n]) = (g.type_of(rows).shape(), g.type_of(columns).shape()) else {
            return Err("dropout has no numbers".into());
        };
        let (k, n) = (k.clone(), n.clone());
        let (r, w, all) = (self.rows.clone(), self.width.clone(), self.batch.clone() * k.clone());
        let one = Dim::Known(1);
        let sequences = int(g, self.batch.clone())?;
        let sequences = g.op(Op::Iota, &[sequences])?;
        let sequences = reshape(g, sequences, &[one.clone(), one.clone(), self.batch.clone(), one.clone()])?;
        let own = reshape(g, self.segments, &[r.clone(), w.clone(), one.clone(), one.clone()])?;
        let own = g.op(Op::Equal, &[own, sequences])?;
        let rows = reshape(g, rows, &[r.clone(), w.clone(), one.clone(), k])?;
        let zero = g.lit(Lit::Float(F64(0.0)))?;
        let rows = g.op(Op::Where, &[own, rows, zero])?;
        let columns = reshape(g, columns, &[one, all.clone(), n.clone()])?;
        Ok([reshape(g, rows, &[r.clone(), w, all.clone()])?, expand(g, columns, &[r, all, n])?])
    }
}

fn int(graph: &mut Graph, n: impl Into<Dim>) -> Built<Id> {
    graph.lit(Lit::Int(n.into()))
}

fn shaped(graph: &mut Graph, op: Op, x: Id, shape: &[Dim]) -> Built<Id> {
    if graph.type_of(x).shape() == shape {
        return Ok(x);
    }
    let shape = graph.lit(Lit::Ints(shape.into()))?;
    graph.op(op, &[x, shape])
}

fn reshape(graph: &mut Graph, x: Id, shape: &[Dim]) -> Built<Id> {
    shaped(graph, Op::Reshape, x, shape)
}

fn expand(graph: &mut Graph, x: Id, shape: &[Dim]) -> Built<Id> {
    shaped(graph, Op::Expand, x, shape)
}

fn transpose(graph: &mut Graph, x: Id, perm: impl Iterator<Item = usize>) -> Built<Id> {
    let perm = graph.lit(Lit::Ints(perm.map(|k| Dim::Known(k as i64)).collect()))?;
    graph.op(Op::Transpose, &[x, perm])
}

fn full(graph: &mut Graph, value: f64, dtype: DType, shape: &[Dim]) -> Built<Id> {
    let children = [Lit::Float(F64(value)), Lit::DType(dtype), Lit::Ints(shape.into())].map(|l| graph.lit(l));
    let [value, dtype, shape] = children;
    graph.op(Op::Full, &[value?, dtype?, shape?])
}
