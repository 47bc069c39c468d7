//! Which values of a model depend on tokens, and which operators join tokens with one another.

use super::numbers::Number;
use crate::error::Problem;
use crate::ir::infer::resolve_axis;
use crate::ir::op::Cost;
use crate::ir::{Builder, Dim, Graph, Id, LeafKind, Lit, Node, Op, Sym};
use rustc_hash::{FxHashMap, FxHashSet};

/// A model's values, told apart by what they depend on.
pub struct Mixing<'m> {
    model: &'m Graph,
    batch: Sym,
    length: Sym,
    /// How many rows are chosen among tokens, as an expert's are.
    lists: FxHashSet<Sym>,
    /// Which token each row of such a list is.
    numbers: FxHashMap<Id, Number>,
    /// What depends on an input [B, L, ..].
    dependent: FxHashSet<Id>,
    /// What joins tokens, and what depends on it.
    behind: FxHashSet<Id>,
}

const HELP: &str = "compile without --packing; each sequence then has a row of its own";

impl<'m> Mixing<'m> {
    pub fn new(model: &'m Graph, batch: Sym, length: Sym) -> Self {
        let (lists, numbers, dependent, behind) = Default::default();
        let mut mixing = Mixing { model, batch, length, lists, numbers, dependent, behind };
        for id in model.live() {
            let fed = model.as_leaf(id).is_some_and(|leaf| {
                let leaf = model.leaf(leaf);
                leaf.kind == LeafKind::Input && leaf.ty.shape.starts_with(&mixing.sizes())
            });
            if fed || model.node(id).children().iter().any(|c| mixing.depends(*c)) {
                mixing.dependent.insert(id);
            }
            if mixing.depends(id) {
                mixing.count(id);
            }
            let behind = model.node(id).children().iter().any(|c| mixing.behind.contains(c));
            if behind || mixing.depends(id) && mixing.joins(id).is_some() {
                mixing.behind.insert(id);
            }
        }
        mixing
    }

    /// Whether a value depends on tokens, or on what else is fed for each.
    fn depends(&self, id: Id) -> bool {
        self.dependent.contains(&id)
    }

    /// Whether a value is computed in rows.
    pub fn in_rows(&self, id: Id) -> bool {
        self.depends(id) && !self.behind.contains(&id)
    }

    /// Whether operand `k` of a node in rows depends on places and has to be looked up at the tokens' own.
    pub fn looks_up(&self, id: Id, k: usize) -> bool {
        let Node::Op(op, children) = self.model.node(id) else { return false };
        // A table that is read at the tokens' places has no place itself; dropout's numbers are the sequences'.
        let kept = (*op == Op::Gather && k == 0) || *op == Op::Dropout || self.fills(children[k]);
        !kept && !self.depends(children[k]) && self.places(children[k])
    }

    /// Whether a value is one number for all places.
    pub fn fills(&self, id: Id) -> bool {
        self.model.node(id).op() == Some(Op::Full) && self.places(id)
    }

    /// Whether a value depends on a weight.
    pub fn learned(&self, id: Id) -> bool {
        let is_weight = |id: &Id| self.model.as_leaf(*id).is_some_and(|l| self.model.leaf(l).kind == LeafKind::Param);
        self.model.reachable([id]).iter().any(is_weight)
    }

    /// Whether its shape has an axis of tokens or of sequences.
    pub fn places(&self, id: Id) -> bool {
        self.model.tensor_type(id).is_some_and(|t| t.shape.iter().any(|d| self.counts(d)))
    }

    /// Every node whose meaning would change in a row of several sequences.
    pub fn problems(&self) -> Vec<Problem> {
        let live = self.model.live();
        let multiplies = |id: &Id| self.model.node(*id).op().is_some_and(|op| op.row().cost == Cost::Matmul);
        let deep = self.behind.iter().any(multiplies);
        let nodes = live.iter().filter_map(|id| {
            let op = self.model.node(*id).op().filter(|_| self.depends(*id))?;
            let why = match self.in_rows(*id) {
                true => self.misplaced(*id)?,
                false if deep => self.joins(*id)?,
                false => self.scattered(*id)?,
            };
            let place = self.model.origin.get(id).map_or_else(|| op.name().to_string(), |o| o.to_string());
            Some(Problem::new(place, format!("`{}` {why}", op.name())).help(HELP))
        });
        let outputs =
            self.model.outputs.iter().filter(|(_, id)| !self.model.type_of(*id).shape().starts_with(&self.sizes()));
        let outputs = outputs.map(|(name, _)| Problem::new(name, "has no row for each token").help(HELP));
        nodes.chain(outputs).collect()
    }

    fn sizes(&self) -> [Dim; 2] {
        [&self.batch, &self.length].map(|s| Dim::sym(s.as_str()))
    }

    /// Whether a size counts tokens, some of them or sequences.
    fn counts(&self, size: &Dim) -> bool {
        self.chosen(size) || size.symbols().iter().any(|s| *s == self.batch || *s == self.length)
    }

    /// Whether it counts rows that are chosen.
    fn chosen(&self, size: &Dim) -> bool {
        size.symbols().iter().any(|s| self.lists.contains(s))
    }

    /// Notes what a node counts: how many rows it chooses, or which.
    fn count(&mut self, id: Id) {
        if let (Some(Op::TrueRows), [list]) = (self.model.node(id).op(), self.shape(id)) {
            self.lists.extend(list.symbols());
        }
        if let Some(number) = self.number(id) {
            self.numbers.insert(id, number);
        }
    }

    /// The numbers of tokens that a node makes, or others of their digits.
    fn number(&self, id: Id) -> Option<Number> {
        let Node::Op(op, children) = self.model.node(id) else { return None };
        let known = |k: usize| children.get(k).and_then(|c| self.numbers.get(c));
        let lit = |k: usize| self.model.type_of(*children.get(k)?).lit().and_then(Lit::int);
        match op {
            Op::TrueRows if self.in_rows(children[0]) && !self.shape(children[0]).iter().any(|d| self.chosen(d)) => {
                Number::of(self.shape(children[0]), &self.sizes(), self.shape(id)[0].clone())
            }
            Op::Reshape | Op::Transpose | Op::Expand | Op::Cast => {
                let number = known(0)?;
                let stays = *op != Op::Reshape || self.keeps_rows(self.shape(children[0]), self.shape(id));
                let counting: Vec<&Dim> = self.shape(id).iter().filter(|d| self.counts(d)).collect();
                let whole = self.model.tensor_type(id).is_some_and(|t| !t.dtype.is_float());
                (stays && whole && counting == [&number.list]).then(|| number.clone())
            }
            Op::Mul => {
                let (number, factor) = known(0).zip(lit(1)).or_else(|| known(1).zip(lit(0)))?;
                number.times(factor)
            }
            Op::Div => known(0)?.over(lit(1)?),
            Op::Sub => known(0)?.minus(known(1)?),
            Op::Add => known(0)?.plus(known(1)?),
            _ => None,
        }
    }

    fn shape(&self, id: Id) -> &[Dim] {
        self.model.type_of(id).shape()
    }

    /// Why a node that depends on tokens computes something else in a row of several sequences.
    fn joins(&self, id: Id) -> Option<String> {
        let Node::Op(op, children) = self.model.node(id) else { return None };
        let op = *op;
        if self.numbers.contains_key(&id) {
            return None;
        }
        let operands = &children[..op.operands(children.len())];
        let lit = |k: usize| self.model.type_of(*children.get(operands.len() + k)?).lit();
        let axis = |k: usize| resolve_axis(lit(k)?.int()?.known()?, self.shape(operands[0]).len()).ok();
        let crosses =
            |axis: Option<usize>| axis.and_then(|k| self.shape(operands[0]).get(k)).is_none_or(|d| self.counts(d));
        let wrong = |bad: bool, why: &str| bad.then(|| why.to_string());
        if operands.iter().any(|c| self.model.type_of(*c).lit().and_then(Lit::int).is_some_and(|d| self.counts(d))) {
            return Some("computes with the number of tokens or of sequences".into());
        }
        let last = self.shape(operands[0]).last();
        let number = |k: usize| self.numbers.get(&operands[k]).filter(|n| n.tells_tokens());
        let looks_up = matches!(op, Op::Gather | Op::PutRows | Op::ScatterAdd);
        if (0..operands.len()).any(|k| number(k).is_some() && !(looks_up && k == 1)) {
            return Some("computes with the numbers of chosen tokens in a way that weftc does not follow".into());
        }
        // Along one axis, which is none of tokens, each token among its own.
        let alike = |axis: Option<usize>| {
            let others = |c: &Id| -> Vec<Option<&Dim>> {
                self.shape(*c).iter().enumerate().map(|(k, d)| (Some(k) != axis).then_some(d)).collect()
            };
            !crosses(axis) && operands.iter().all(|c| others(c) == others(&operands[0]))
        };
        // Whether rows are looked up along an axis by the numbers of their tokens, and no others.
        let by_number = |number: &Number, axis: Option<usize>| {
            let shape = self.shape(operands[0]);
            let alone = shape.iter().enumerate().all(|(k, d)| Some(k) == axis || !self.counts(d));
            alone && axis.is_some_and(|k| number.addresses(&shape[k..=k], &self.sizes()))
        };
        match op {
            // Element by element.
            op if op <= Op::Where => None,
            Op::Silu | Op::Swiglu | Op::Gelu | Op::GeluTanh => None,
            Op::Transpose | Op::Expand => None,
            Op::RmsNorm | Op::LayerNorm | Op::Normalize | Op::RotateHalf | Op::Rope | Op::Dropout => {
                wrong(last.is_none_or(|d| self.counts(d)), "works along the tokens")
            }
            Op::Softmax | Op::CumSum => wrong(crosses(axis(0)), "goes over the tokens of a row"),
            Op::Sum | Op::Mean | Op::ReduceMax => {
                let axes = lit(0).and_then(Lit::ints).unwrap_or_default();
                let over =
                    |d: &Dim| crosses(d.known().and_then(|k| resolve_axis(k, self.shape(operands[0]).len()).ok()));
                wrong(axes.iter().any(over), "goes over the tokens of a row")
            }
            Op::Slice | Op::Pad | Op::Unslice | Op::Concat => wrong(crosses(axis(0)), "moves tokens along their row"),
            Op::MatMul => {
                let placed = operands.iter().any(|c| !self.depends(*c) && self.places(*c));
                wrong(
                    placed || last.is_none_or(|d| self.counts(d)),
                    "sums over the tokens of a row; weftc knows attention, and does not find it in this spelling",
                )
            }
            Op::Reshape => wrong(!self.keeps_rows(self.shape(operands[0]), self.shape(id)), "takes rows apart"),
            Op::Gather => {
                let table = operands[0];
                let elsewhere = |k: usize, d: &Dim| Some(k) != axis(0) && self.counts(d);
                let fits = if let Some(number) = number(1) {
                    self.depends(table) && by_number(number, axis(0))
                } else if self.depends(table) {
                    !self.depends(operands[1]) && !self.places(operands[1]) && !crosses(axis(0))
                } else {
                    !self.shape(table).iter().enumerate().any(|(k, d)| elsewhere(k, d))
                };
                wrong(!fits, "looks tokens up by their place in a row")
            }
            Op::TopkValues | Op::TopkIndices => wrong(crosses(axis(1)), "goes over the tokens of a row"),
            Op::GatherElements => wrong(!alike(axis(0)), "looks tokens up by their place in a row"),
            Op::ScatterAdd => {
                let fits = number(1).map_or_else(|| alike(axis(0)), |number| by_number(number, axis(0)));
                wrong(!fits, "adds to tokens by their place in a row")
            }
            Op::PutRows => {
                let shape = [0, 1].map(|k| lit(k).and_then(Lit::int).cloned().unwrap_or(Dim::Known(0)));
                let fits = number(1).is_some_and(|number| number.addresses(&shape, &self.sizes()));
                wrong(!fits, "puts tokens where their numbers do not say")
            }
            Op::TrueRows => Some("chooses rows by what weftc cannot tell to be tokens'".into()),
            Op::Attention | Op::AttentionBias => {
                let heads = |c: &Id| self.depends(*c) && self.shape(*c).len() == 4 && self.is_row(self.shape(*c), 2);
                wrong(!operands[..3].iter().all(heads), "is not over [batch, heads, tokens, width]")
            }
            _ => Some("may join tokens: weftc cannot tell".into()),
        }
    }

    /// Why a node that is computed by sequence cannot be: an operand has rows, but not of sequences.
    fn scattered(&self, id: Id) -> Option<String> {
        let lost = |c: &&Id| {
            let shape = self.model.tensor_type(**c).filter(|_| self.in_rows(**c)).map(|t| t.shape.as_slice());
            shape.is_some_and(|s| !s.starts_with(&self.sizes()) && self.flat(s).is_none())
        };
        let child = self.model.node(id).children().iter().find(lost)?;
        Some(format!("joins tokens, and reads {}, which has no row for each", self.model.type_of(*child)))
    }

    /// How many elements of the first axis are each token's, where that is all tokens of all sequences.
    pub fn flat(&self, shape: &[Dim]) -> Option<Dim> {
        let [batch, length] = self.sizes();
        shape.first()?.div_exact(&(batch * length)).filter(|each| !self.counts(each))
    }

    /// Whether axis 0 counts sequences, axis `k` their tokens, and no other either.
    fn is_row(&self, shape: &[Dim], k: usize) -> bool {
        let [batch, length] = self.sizes();
        shape.iter().enumerate().all(|(j, d)| match j {
            0 => *d == batch,
            j if j == k => *d == length,
            _ => !self.counts(d),
        })
    }

    /// Why an operand that depends on places alone cannot be looked up at the tokens' own.
    fn misplaced(&self, id: Id) -> Option<String> {
        let [batch, length] = self.sizes();
        let children = self.model.node(id).children();
        let looked_up = (0..children.len()).filter(|k| self.looks_up(id, *k)).map(|k| children[k]);
        let result = self.shape(id);
        for child in looked_up {
            let shape = self.shape(child);
            let missing = result.len().saturating_sub(shape.len());
            let fits = |(j, d): (usize, &Dim)| match j + missing {
                0 => d.is(1) || *d == batch,
                _ => !self.counts(d) || *d == length,
            };
            if result.first() != Some(&batch) || !shape.iter().enumerate().all(fits) {
                let ty = self.model.type_of(child);
                return Some(format!("reads {ty}, which depends on places in a way that weftc does not follow"));
            }
            if self.counts_sequences(child) {
                return Some("reads what depends on a sequence's place in the batch".into());
            }
        }
        None
    }

    /// Whether sequences are counted for it, so that they are not alike.
    fn counts_sequences(&self, id: Id) -> bool {
        let counts = |id: &Id| {
            let Node::Op(Op::Iota, c) = self.model.node(*id) else { return false };
            self.model.type_of(c[0]).lit().and_then(Lit::int).is_none_or(|n| n.symbols().contains(&self.batch))
        };
        self.model.reachable([id]).iter().any(counts)
    }

    /// Whether a reshape leaves every token its elements: axes of tokens stay, or sequences and their tokens are joined
    /// to one list or taken apart from it.
    fn keeps_rows(&self, from: &[Dim], to: &[Dim]) -> bool {
        let sized = |s: &[Dim]| s.iter().filter(|d| !d.is(1)).cloned().collect::<Vec<Dim>>();
        let (from, to) = (sized(from), sized(to));
        let (mut i, mut j) = (0, 0);
        while i < from.len() && j < to.len() {
            let (mut x, mut y) = (from[i].clone(), to[j].clone());
            let (first_i, first_j) = (i, j);
            (i, j) = (i + 1, j + 1);
            while x != y {
                if j < to.len() && x.div_exact(&y).is_some() {
                    y = y * to[j].clone();
                    j += 1;
                } else if i < from.len() && y.div_exact(&x).is_some() {
                    x = x * from[i].clone();
                    i += 1;
                } else {
                    return false;
                }
            }
            let parts = if i - first_i > 1 { &from[first_i..i] } else { &to[first_j..j] };
            // Elements of one token may be cut anyhow.
            let both = i - first_i > 1 && j - first_j > 1;
            if self.counts(&x) && (both || !self.in_order(parts)) {
                return false;
            }
        }
        i == from.len() && j == to.len()
    }

    /// Whether the parts of a joined axis stand in the one order that is read back: sequences or chosen tokens, then the
    /// tokens of a sequence, then what is each one's.
    fn in_order(&self, parts: &[Dim]) -> bool {
        let [batch, length] = self.sizes();
        let [first, rest @ ..] = parts else { return false };
        let each = match rest {
            [] => return true,
            [second, each @ ..] if *first == batch && *second == length => each,
            each if *first == batch || self.chosen(first) || self.flat(parts).is_some() => each,
            _ => return false,
        };
        each.iter().all(|d| !self.counts(d))
    }
}
