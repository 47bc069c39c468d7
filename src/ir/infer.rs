//! Result types: one function a family of operators, named in the operator table.

mod composite;
mod contract;
mod head;
mod rows;

use super::dim::{Dim, numel};
use super::op::Op;
use super::ty::{DType, Lit, TensorType, Type};

pub use composite::*;
pub use contract::*;
pub use head::*;
pub use rows::*;

/// The types of a node's children, with readers that report what is missing.
pub struct Args<'a> {
    op: Op,
    types: &'a [&'a Type],
}

type Inferred = Result<Type, String>;

/// The type of `op` applied to children of these types; `Err` says why there is none.
pub fn infer(op: Op, types: &[&Type]) -> Inferred {
    if !op.accepts(types.len()) {
        let (want, attrs) = (op.row().arity, op.row().attrs.len());
        return Err(format!(
            "{} takes {want:?} operands and {attrs} attributes, got {} in all",
            op.name(),
            types.len()
        ));
    }
    let args = Args { op, types };
    (op.row().infer)(&args).map_err(|why| {
        let got = types.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(", ");
        format!("{}({got}): {why}", op.name())
    })
}

impl Args<'_> {
    fn operands(&self) -> usize {
        self.op.operands(self.types.len())
    }

    /// Operand `k` as a tensor.
    fn tensor(&self, k: usize) -> Result<&TensorType, String> {
        self.types[k].tensor().ok_or_else(|| format!("operand {k} must be a tensor"))
    }

    /// Attribute `k`, counted behind the operands.
    fn attr(&self, k: usize) -> Result<&Lit, String> {
        let name = self.op.row().attrs[k].name;
        self.types[self.operands() + k].lit().ok_or_else(|| format!("attribute {name} must be a literal"))
    }

    fn int(&self, k: usize) -> Result<&Dim, String> {
        self.attr(k)?.int().ok_or_else(|| format!("attribute {} must be an integer", self.op.row().attrs[k].name))
    }

    fn known(&self, k: usize) -> Result<i64, String> {
        self.int(k)?.known().ok_or_else(|| format!("attribute {} must be known", self.op.row().attrs[k].name))
    }

    fn ints(&self, k: usize) -> Result<&[Dim], String> {
        self.attr(k)?.ints().ok_or_else(|| format!("attribute {} must be a list", self.op.row().attrs[k].name))
    }

    /// An axis in `0..rank`; negative axes count from the end.
    fn axis(&self, k: usize, rank: usize) -> Result<usize, String> {
        resolve_axis(self.known(k)?, rank)
    }
}

pub fn resolve_axis(axis: i64, rank: usize) -> Result<usize, String> {
    let a = if axis < 0 { axis + rank as i64 } else { axis };
    if (0..rank as i64).contains(&a) { Ok(a as usize) } else { Err(format!("axis {axis} is outside rank {rank}")) }
}

/// Axes in `0..rank` from a literal list.
pub fn resolve_axes(axes: &[Dim], rank: usize) -> Result<Vec<usize>, String> {
    axes.iter().map(|a| a.known().ok_or("axes must be known".to_string()).and_then(|a| resolve_axis(a, rank))).collect()
}

fn tensor(dtype: DType, shape: Vec<Dim>) -> Inferred {
    Ok(Type::Tensor(TensorType { dtype, shape }))
}

/// The common shape of two shapes under NumPy's rule; unknown sizes must be provably equal.
pub fn broadcast_shapes(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, String> {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], k: usize| (k + s.len()).checked_sub(rank).map_or(Dim::Known(1), |i| s[i].clone());
    (0..rank)
        .map(|k| match (at(a, k), at(b, k)) {
            (x, y) if x == y => Ok(x),
            (x, y) if x.is(1) => Ok(y),
            (x, y) if y.is(1) => Ok(x),
            (x, y) => Err(format!("sizes {x} and {y} do not broadcast")),
        })
        .collect()
}

/// Common element type and shape of the operands `from..`; literals are weak scalars.
fn join(args: &Args, from: usize) -> Result<TensorType, String> {
    let mut joined: Option<TensorType> = None;
    for ty in &args.types[from..args.operands()] {
        match (ty, &mut joined) {
            (Type::Tensor(t), None) => joined = Some(t.clone()),
            (Type::Tensor(t), Some(j)) if t.dtype == j.dtype => j.shape = broadcast_shapes(&j.shape, &t.shape)?,
            (Type::Tensor(t), Some(j)) => {
                return Err(format!("element types {} and {} differ", j.dtype.name(), t.dtype.name()));
            }
            (Type::Lit(l), _) if l.number().is_some() => {}
            (Type::Lit(Lit::Int(_)), _) => {}
            (other, _) => return Err(format!("{other} is not a tensor or a number")),
        }
    }
    joined.ok_or_else(|| "at least one operand must be a tensor".into())
}

pub fn same(args: &Args) -> Inferred {
    Ok(Type::Tensor(args.tensor(0)?.clone()))
}

pub fn numeric(args: &Args) -> Inferred {
    match args.tensor(0)?.dtype {
        DType::Bool => Err("needs numbers".into()),
        _ => same(args),
    }
}

pub fn float(args: &Args) -> Inferred {
    match args.tensor(0)?.dtype {
        t if t.is_float() => same(args),
        t => Err(format!("needs floating-point numbers, got {}", t.name())),
    }
}

pub fn broadcast(args: &Args) -> Inferred {
    let t = join(args, 0)?;
    if t.dtype == DType::Bool { Err("needs numbers".into()) } else { Ok(Type::Tensor(t)) }
}

pub fn compare(args: &Args) -> Inferred {
    tensor(DType::Bool, join(args, 0)?.shape)
}

pub fn logic(args: &Args) -> Inferred {
    let t = join(args, 0)?;
    if t.dtype == DType::Bool { Ok(Type::Tensor(t)) } else { Err("needs booleans".into()) }
}

/// Booleans with the shape of operand 0.
pub fn predicate(args: &Args) -> Inferred {
    tensor(DType::Bool, args.tensor(0)?.shape.clone())
}

pub fn cast(args: &Args) -> Inferred {
    let Lit::DType(to) = args.attr(0)? else { return Err("attribute dtype must be an element type".into()) };
    tensor(*to, args.tensor(0)?.shape.clone())
}

pub fn select(args: &Args) -> Inferred {
    let condition = args.tensor(0)?;
    if condition.dtype != DType::Bool {
        return Err("the condition must be boolean".into());
    }
    let mut t = join(args, 1)?;
    t.shape = broadcast_shapes(&condition.shape, &t.shape)?;
    Ok(Type::Tensor(t))
}

pub fn reduce(args: &Args) -> Inferred {
    let mut t = args.tensor(0)?.clone();
    for a in resolve_axes(args.ints(0)?, t.rank())? {
        t.shape[a] = Dim::Known(1);
    }
    Ok(Type::Tensor(t))
}

pub fn transpose(args: &Args) -> Inferred {
    let x = args.tensor(0)?;
    let perm = resolve_axes(args.ints(0)?, x.rank())?;
    let mut sorted = perm.clone();
    sorted.sort();
    if sorted != (0..x.rank()).collect::<Vec<_>>() {
        return Err("perm is not a permutation of the axes".into());
    }
    tensor(x.dtype, perm.iter().map(|p| x.shape[*p].clone()).collect())
}

pub fn reshape(args: &Args) -> Inferred {
    let (x, shape) = (args.tensor(0)?, args.ints(0)?);
    if numel(&x.shape) != numel(shape) {
        return Err(format!("{} elements do not fill {} places", numel(&x.shape), numel(shape)));
    }
    tensor(x.dtype, shape.to_vec())
}

pub fn expand(args: &Args) -> Inferred {
    let (x, shape) = (args.tensor(0)?, args.ints(0)?);
    if broadcast_shapes(&x.shape, shape)? != shape {
        return Err("the shape does not contain the operand's".into());
    }
    tensor(x.dtype, shape.to_vec())
}

pub fn concat(args: &Args) -> Inferred {
    let mut t = args.tensor(0)?.clone();
    let axis = args.axis(0, t.rank())?;
    for k in 1..args.operands() {
        let other = args.tensor(k)?;
        let agrees = |(i, (a, b)): (usize, (&Dim, &Dim))| i == axis || a == b;
        if other.dtype != t.dtype
            || other.rank() != t.rank()
            || !t.shape.iter().zip(&other.shape).enumerate().all(agrees)
        {
            return Err(format!("operands 0 and {k} differ beside axis {axis}"));
        }
        t.shape[axis] = t.shape[axis].clone() + other.shape[axis].clone();
    }
    Ok(Type::Tensor(t))
}

/// How many indices `start, start + step, ...` lie below `end`.
pub fn slice_len(start: &Dim, end: &Dim, step: i64) -> Option<Dim> {
    let span = end.clone() - start.clone();
    match span.known() {
        Some(n) => Some(Dim::Known((n.max(0) + step - 1) / step)),
        None if step == 1 => Some(span),
        None => span.div_exact(&Dim::Known(step)),
    }
}

pub fn slice(args: &Args) -> Inferred {
    let mut t = args.tensor(0)?.clone();
    let axis = args.axis(0, t.rank())?;
    let step = args.known(3)?;
    if step < 1 {
        return Err("the step must be positive".into());
    }
    let (start, end) = (args.int(1)?, args.int(2)?);
    if let (Some(s), Some(e)) = (start.known(), end.known())
        && (s < 0 || e < s || t.shape[axis].known().is_some_and(|n| e > n))
    {
        return Err(format!("{s}..{e} is not inside 0..{}", t.shape[axis]));
    }
    t.shape[axis] = slice_len(start, end, step).ok_or("the length of the slice is unknown")?;
    Ok(Type::Tensor(t))
}

pub fn pad(args: &Args) -> Inferred {
    let mut t = args.tensor(0)?.clone();
    let axis = args.axis(0, t.rank())?;
    if [1, 2].iter().any(|k| args.int(*k).is_ok_and(|d| d.known().is_some_and(|n| n < 0))) {
        return Err("pads must not be negative".into());
    }
    t.shape[axis] = t.shape[axis].clone() + args.int(1)?.clone() + args.int(2)?.clone();
    Ok(Type::Tensor(t))
}

/// Zeros of length `size` along `axis` with operand 0 at `start, start + step, ...`.
pub fn unslice(args: &Args) -> Inferred {
    let mut t = args.tensor(0)?.clone();
    let axis = args.axis(0, t.rank())?;
    let (start, step, size) = (args.int(1)?, args.known(2)?, args.int(3)?);
    if step < 1 {
        return Err("the step must be positive".into());
    }
    let last = start.clone() + (t.shape[axis].clone() - Dim::Known(1)) * Dim::Known(step) + Dim::Known(1);
    if let (Some(end), Some(n)) = (last.known(), size.known())
        && end > n
    {
        return Err(format!("{end} places do not fit into {n}"));
    }
    t.shape[axis] = size.clone();
    Ok(Type::Tensor(t))
}

/// A tensor of one value.
pub fn full(args: &Args) -> Inferred {
    let Lit::DType(dtype) = args.attr(1)? else { return Err("attribute dtype must be an element type".into()) };
    args.attr(0)?.number().ok_or("attribute value must be a number")?;
    tensor(*dtype, args.ints(2)?.to_vec())
}

pub fn iota(args: &Args) -> Inferred {
    tensor(DType::I64, vec![args.int(0)?.clone()])
}

fn indices(t: &TensorType) -> Result<(), String> {
    if t.dtype == DType::I64 { Ok(()) } else { Err("indices must be i64".into()) }
}

pub fn gather(args: &Args) -> Inferred {
    let (x, idx) = (args.tensor(0)?, args.tensor(1)?);
    indices(idx)?;
    let axis = args.axis(0, x.rank())?;
    tensor(x.dtype, [&x.shape[..axis], &idx.shape, &x.shape[axis + 1..]].concat())
}

pub fn gather_elements(args: &Args) -> Inferred {
    let (x, idx) = (args.tensor(0)?, args.tensor(1)?);
    indices(idx)?;
    args.axis(0, x.rank())?;
    if x.rank() != idx.rank() {
        return Err("operand and indices must have one rank".into());
    }
    tensor(x.dtype, idx.shape.clone())
}

pub fn scatter_add(args: &Args) -> Inferred {
    let (x, idx, updates) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    indices(idx)?;
    args.axis(0, x.rank())?;
    if idx.shape != updates.shape || x.rank() != idx.rank() {
        return Err("indices and updates must have one shape, of the operand's rank".into());
    }
    same(args)
}

/// The best `k` elements along the axis.
pub fn topk_values(args: &Args) -> Inferred {
    let mut t = args.tensor(0)?.clone();
    let (k, axis) = (args.int(0)?, args.axis(1, t.rank())?);
    if k.known().is_some_and(|k| k < 0 || t.shape[axis].known().is_some_and(|n| k > n)) {
        return Err(format!("{k} elements cannot be picked out of {}", t.shape[axis]));
    }
    t.shape[axis] = k.clone();
    match t.dtype {
        DType::Bool => Err("needs numbers".into()),
        _ => Ok(Type::Tensor(t)),
    }
}

/// Where the best `k` elements lie along the axis.
pub fn topk_indices(args: &Args) -> Inferred {
    tensor(DType::I64, topk_values(args)?.shape().to_vec())
}

/// The gradient of `gather` on axis 0: rows of `dy` added up at their indices, `[rows, ...]`.
pub fn gather_grad(args: &Args) -> Inferred {
    let (dy, idx) = (args.tensor(0)?, args.tensor(1)?);
    indices(idx)?;
    if dy.rank() < idx.rank() || dy.shape[..idx.rank()] != idx.shape {
        return Err("the cotangent must start with the indices' shape".into());
    }
    tensor(dy.dtype, [&[args.int(0)?.clone()], &dy.shape[idx.rank()..]].concat())
}
