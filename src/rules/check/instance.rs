//! One random well-typed instance of a left side.
//!
//! The term is built from the leaves up.  A variable is drawn where it is met first, with what is known
//! by then: the types of its siblings, the literals before it, and guards that determine it.

use super::operand::Wanted;
use super::random::Random;
use super::{Failure, Outcome, admitted, attribute, describe, is_var, literal, operand};
use crate::ir::op::Arity;
use crate::ir::{Builder, DType, Dim, F64, Graph, Id, Lit, Op};
use crate::rules::template::{Subst, instantiate};
use crate::rules::{Kind, Rule, Sample, Term, Var};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// What the elements of a drawn tensor may be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fill {
    /// Any sign, or all positive: each instance decides.
    Real,
    Positive,
    /// Any sign: finite differences see poles badly.
    AwayFromZero,
    /// `[0, 1)`.
    Unit,
    /// Integers below this; 0 where there are none.
    Index(i64),
    /// Different integers below this, ascending.
    Rows(i64),
    Bool,
    /// A step number: 1, 2, ..
    Step,
}

/// The variables of a rule with their types and literals, and the left side over them.
pub struct Instance<'r> {
    pub rule: &'r Rule,
    pub graph: Graph,
    pub subst: Subst,
    /// The left side's node.
    pub root: Id,
    /// The operands of a variadic left side, in order.
    pub operands: Vec<Id>,
    fills: BTreeMap<String, Fill>,
    /// Inputs of which the first is false wherever the second is.
    within: Vec<(String, String)>,
    /// The type of the instance's numbers: mostly floating-point, now and then integers, to which rewrites without a guard
    /// apply as well.
    pub float: DType,
    positive: bool,
    /// The sizes that `:sample` names.
    words: BTreeMap<String, i64>,
}

/// Values for the inputs of an instance.
pub struct Point {
    pub feeds: BTreeMap<String, Tensor>,
}

impl Point {
    /// Whether an input has no elements: then operators such as a maximum may have no value.
    pub fn is_empty(&self) -> bool {
        self.feeds.values().any(|t| t.elem_count() == 0)
    }

    /// The same with every number rounded to f32.
    pub fn single(&self) -> Point {
        let rounded = |t: &Tensor| {
            let values: Vec<f64> = t.flatten_all()?.to_vec1::<f64>()?.iter().map(|x| f64::from(*x as f32)).collect();
            Tensor::from_vec(values, t.shape(), t.device())
        };
        let feeds = self
            .feeds
            .iter()
            .map(|(name, t)| (name.clone(), rounded(t).unwrap_or_else(|_: candle_core::Error| t.clone())));
        Point { feeds: feeds.collect() }
    }
}

fn number(rule: &Rule, random: &mut Random) -> DType {
    let any = rule.kind == Kind::Rewrite && random.chance(0.1);
    if any { DType::I64 } else { random.pick(&[DType::F32, DType::F64]) }
}

impl<'r> Instance<'r> {
    /// Draws the variables of a rule; `Err` says why this draw is no instance.
    pub fn draw(rule: &'r Rule, random: &mut Random) -> Result<Self, String> {
        random.start();
        let mut instance = Instance {
            rule,
            graph: Graph::new(&rule.name),
            subst: Subst::new(),
            root: Id::from(0),
            operands: Vec::new(),
            fills: BTreeMap::new(),
            within: Vec::new(),
            float: number(rule, random),
            positive: random.chance(0.5),
            words: BTreeMap::new(),
        };
        instance.root = instance.build(&rule.left, random)?;
        if !admitted(rule, &mut instance) {
            return Err("a guard does not hold".into());
        }
        Ok(instance)
    }

    fn build(&mut self, term: &Term, random: &mut Random) -> Result<Id, String> {
        match term {
            Term::Var(v) => self.subst.get(v).copied().ok_or_else(|| format!("?{v} stands alone")),
            Term::Lit(l) => self.graph.lit(l.clone()),
            Term::Call(name, _) => Err(format!("`{name}` on the left")),
            Term::Op(op, args) => self.node(*op, args, random),
        }
    }

    fn node(&mut self, op: Op, args: &[Term], random: &mut Random) -> Result<Id, String> {
        if op == Op::Objective {
            return self.objective(args, random);
        }
        let first = op.operands(args.len());
        let mut ids: Vec<Option<Id>> = vec![None; first];
        for (slot, arg) in ids.iter_mut().zip(args) {
            if !matches!(arg, Term::Var(v) if !self.subst.contains_key(v)) {
                *slot = Some(self.build(arg, random)?);
            }
        }
        for k in 0..first {
            let Term::Var(v) = &args[k] else { continue };
            if ids[k].is_none() {
                ids[k] = Some(match self.subst.get(v) {
                    Some(id) => *id,
                    None => self.draw_operand(v, op, k, &ids, random)?,
                });
            }
        }
        let mut children: Vec<Id> = ids.into_iter().flatten().collect();
        if self.rule.variadic && matches!(op.row().arity, Arity::AtLeast(_)) {
            for k in 1..1 + random.below(3) {
                let known: Vec<Option<Id>> = children.iter().copied().map(Some).chain([None]).collect();
                children.push(self.draw_operand(&format!("x{k}").into(), op, k, &known, random)?);
            }
            self.operands = children.clone();
        }
        for (arg, attr) in args[first..].iter().zip(op.row().attrs) {
            let id = match arg {
                Term::Var(v) if !self.subst.contains_key(v) => {
                    let lit = match self.sampled(v, random).or_else(|| self.determined(v)) {
                        Some(Wanted::Literal(lit)) => lit,
                        Some(Wanted::Tensor(..)) => {
                            return Err(format!("?{v} is an attribute and sampled as a tensor"));
                        }
                        None => attribute::draw(self, op, attr, &children, random)?,
                    };
                    let id = self.graph.lit(lit)?;
                    self.subst.insert(v.clone(), id);
                    id
                }
                // A bare symbol is a word to the reader; there are no symbols in an instance.
                other => self.build(other, random)?,
            };
            children.push(id);
        }
        let id = self.graph.op(op, &children)?;
        for (k, child) in children.iter().take(self.operands.len().max(first)).enumerate() {
            if let (Some(leaf), Some(fill)) = (self.graph.as_leaf(*child), operand::fill(&self.graph, op, k, &children))
            {
                let name = self.graph.leaf(leaf).name.clone();
                let old = self.fills.get(&name).copied();
                self.fills.insert(name, tighter(old, fill));
            }
        }
        let name = |k: usize| self.graph.as_leaf(children[k]).map(|l| self.graph.leaf(l).name.clone());
        if let Some((Some(inner), Some(outer))) = operand::within(op).map(|(i, o)| (name(i), name(o))) {
            self.within.push((inner, outer));
        }
        Ok(id)
    }

    /// A variable in operand position: what `:sample` or a guard says, or what fits its siblings.
    fn draw_operand(
        &mut self,
        v: &Var,
        op: Op,
        k: usize,
        siblings: &[Option<Id>],
        random: &mut Random,
    ) -> Result<Id, String> {
        let guarded =
            |name: &str| self.rule.guards.iter().any(|g| &*g.name == name && g.args.iter().any(|a| is_var(a, v)));
        let (number, tensor) = (guarded("lit") || guarded("near"), guarded("tensor"));
        let wanted = match self.sampled(v, random).or_else(|| self.determined(v)) {
            Some(w) => w,
            None if number || (!tensor && operand::may_be_number(op) && random.chance(0.08)) => {
                Wanted::Literal(Lit::Float(F64(random.pick(&[0.5, -0.5, 2.0, -1.5, 3.0, 1e-3, 1.0]))))
            }
            None => operand::draw(self, op, k, siblings, random)?,
        };
        let id = match wanted {
            Wanted::Literal(lit) => self.graph.lit(lit)?,
            Wanted::Tensor(dtype, shape) => {
                let shape: Vec<Dim> = shape.into_iter().map(Dim::Known).collect();
                self.graph.input(v, dtype, &shape)
            }
        };
        self.subst.insert(v.clone(), id);
        Ok(id)
    }

    /// What the rule's `:sample` says of a variable.
    fn sampled(&mut self, v: &Var, random: &mut Random) -> Option<Wanted> {
        let (_, sample) = self.rule.samples.iter().find(|(name, _)| name == v)?;
        Some(match sample {
            Sample::Lit(l) => Wanted::Literal(l.clone()),
            Sample::Tensor(dtype, dims) => {
                for word in dims.iter().flat_map(Dim::symbols) {
                    self.words.entry(word.as_str().to_string()).or_insert_with(|| random.named_size());
                }
                let size = |d: &Dim| d.eval(&|s| self.words.get(s.as_str()).copied()).unwrap_or(1);
                Wanted::Tensor(*dtype, dims.iter().map(size).collect())
            }
        })
    }

    /// The literal that a guard `(eq ?v TERM)` or `(near ?v TERM)` leaves for a variable.
    fn determined(&mut self, v: &Var) -> Option<Wanted> {
        for guard in self.rule.guards.iter().filter(|g| matches!(&*g.name, "eq" | "near")) {
            let [a, b] = guard.args.as_slice() else { continue };
            let other = if is_var(a, v) { b } else { a };
            if is_var(a, v) != is_var(b, v)
                && let Ok(id) = instantiate(other, &self.subst.clone(), &mut self.graph)
                && let Some(lit) = literal(&self.graph, id)
            {
                return Some(Wanted::Literal(lit));
            }
        }
        None
    }

    /// `(objective logits ids answer t u ..)` over a small model: an embedding, its mean over the
    /// sequence mixed in, so that logits depend on every token.
    fn objective(&mut self, args: &[Term], random: &mut Random) -> Result<Id, String> {
        let (b, l, vocab) = (random.int(1, 3), random.int(1, 5), random.int(2, 6));
        let known = |dims: &[i64]| dims.iter().copied().map(Dim::Known).collect::<Vec<_>>();
        let g = &mut self.graph;
        let ids = g.input("ids", DType::I64, &known(&[b, l]));
        let table = g.input("table", DType::F32, &known(&[vocab, vocab]));
        let answer = g.input("answer", DType::Bool, &known(&[b, l]));
        let t = g.input("t", DType::F32, &known(&[b]));
        let u = g.input("u", DType::F32, &known(&[b, l]));
        let axis = g.lit(Lit::Int(Dim::Known(0)))?;
        let h = g.op(Op::Gather, &[table, ids, axis])?;
        let axes = g.lit(Lit::Ints([Dim::Known(1)].into()))?;
        let mean = g.op(Op::Mean, &[h, axes])?;
        let logits = g.op(Op::Add, &[h, mean])?;
        for (name, fill) in [("ids", Fill::Index(vocab)), ("answer", Fill::Bool), ("t", Fill::Unit), ("u", Fill::Unit)]
        {
            self.fills.insert(name.into(), fill);
        }
        let cache = g.input("cache", DType::F32, &known(&[b, l]));
        let operands = [logits, ids, answer, t, u, cache];
        let mut children = operands.to_vec();
        for attr in Op::Objective.row().attrs {
            let lit = match (attr.name, attr.kind) {
                ("mask_id", _) => Lit::Int(Dim::Known(random.int(0, vocab - 1))),
                _ => attribute::draw(self, Op::Objective, attr, &operands, random)?,
            };
            children.push(self.graph.lit(lit)?);
        }
        for (arg, id) in args.iter().zip(&children) {
            let Term::Var(v) = arg else { return Err("a definition's left side holds variables only".into()) };
            self.subst.insert(v.clone(), *id);
        }
        self.graph.op(Op::Objective, &children)
    }

    /// Random values for the inputs.
    pub fn point(&self, random: &mut Random) -> Point {
        let mut feeds = BTreeMap::new();
        for leaf in &self.graph.leaves {
            let shape: Vec<usize> = leaf.ty.shape.iter().map(|d| d.known().unwrap_or(0) as usize).collect();
            let fill = match (self.fills.get(&leaf.name), leaf.ty.dtype) {
                (_, DType::Bool) => Fill::Bool,
                (Some(fill), _) => *fill,
                (None, t) if t.is_int() => Fill::Index(4),
                (None, _) => Fill::Real,
            };
            let n = shape.iter().product();
            // Now and then a whole answer is empty, or all of a sequence is one.
            let bias = random.pick(&[0.6, 0.6, 0.6, 0.0, 1.0]);
            if let Fill::Rows(most) = fill {
                let mut rows = random.permutation(usize::try_from(most).unwrap_or(0).max(n));
                rows.truncate(n);
                rows.sort();
                let rows: Vec<f64> = rows.into_iter().map(|k| k as f64).collect();
                if let Ok(tensor) = Tensor::from_vec(rows, shape, &Device::Cpu) {
                    feeds.insert(leaf.name.clone(), tensor);
                }
                continue;
            }
            let whole = |x: f64| if leaf.ty.dtype.is_int() { x.abs().ceil().copysign(x) } else { x };
            let values: Vec<f64> = (0..n).map(|_| whole(self.value(fill, bias, random))).collect();
            if let Ok(tensor) = Tensor::from_vec(values, shape, &Device::Cpu) {
                feeds.insert(leaf.name.clone(), tensor);
            }
        }
        for (inner, outer) in &self.within {
            let both = feeds.get(inner).zip(feeds.get(outer)).map(|(i, o)| i * o);
            if let Some(Ok(both)) = both {
                feeds.insert(inner.clone(), both);
            }
        }
        Point { feeds }
    }

    fn value(&self, fill: Fill, bias: f64, random: &mut Random) -> f64 {
        match fill {
            Fill::Real if self.positive => random.between(0.1, 2.0),
            Fill::Real => random.between(-2.0, 2.0),
            Fill::AwayFromZero if !self.positive && random.chance(0.5) => random.between(-2.0, -0.1),
            Fill::Positive | Fill::AwayFromZero => random.between(0.1, 2.0),
            Fill::Unit => random.between(0.01, 0.99),
            Fill::Index(n) | Fill::Rows(n) => random.int(0, n - 1).max(0) as f64,
            Fill::Bool => f64::from(random.chance(bias)),
            Fill::Step => random.int(1, 9) as f64,
        }
    }

    pub fn no_meaning(&self, message: String) -> Outcome {
        let instance = describe(&self.graph, &[self.root], None);
        Outcome::Fails(Box::new(Failure::NoMeaning { instance, message }))
    }

    /// `roots`: left and right; `at`: the place in the flattened value.
    pub fn differs(&self, point: &Point, roots: &[Id], at: usize, (left, right): (f64, f64)) -> Outcome {
        let shape = self.graph.type_of(roots[0]).shape().iter().map(|d| d.known().unwrap_or(1).max(1) as usize);
        let mut place = Vec::new();
        let mut rest = at;
        for n in shape.collect::<Vec<_>>().into_iter().rev() {
            place.insert(0, rest % n);
            rest /= n;
        }
        let instance = describe(&self.graph, roots, Some(point));
        Outcome::Fails(Box::new(Failure::Differs { instance, point: format!("{place:?}"), left, right }))
    }
}

/// The fill that satisfies both uses of a variable.
fn tighter(old: Option<Fill>, new: Fill) -> Fill {
    match (old, new) {
        (Some(Fill::Index(a)), Fill::Index(b)) => Fill::Index(a.min(b)),
        (Some(Fill::Rows(a) | Fill::Index(a)), Fill::Rows(b) | Fill::Index(b)) => Fill::Rows(a.min(b)),
        (Some(old), Fill::Real) => old,
        _ => new,
    }
}
