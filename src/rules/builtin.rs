//! The two tables that rules may call: computed attributes and guards.
//!
//! Both see only the types of their arguments (a literal's type is its value), so they work alike in a
//! graph and in the e-graph.  Everything else about a rule stands in its text.

use crate::ir::dim::numel;
use crate::ir::infer::{resolve_axes, resolve_axis};
use crate::ir::{Builder, DType, Dim, F64, Id, Lit, Type};
use std::ops::Range;

/// A row of either table: name, number of arguments (`None`: any), what it gives.
pub struct Row<F: 'static> {
    pub name: &'static str,
    pub arity: Option<usize>,
    pub doc: &'static str,
    run: F,
}

type Computed = Row<fn(&[&Type]) -> Option<Lit>>;
type Guard = Row<fn(&[&Type]) -> Option<bool>>;

fn int(t: &Type) -> Option<Dim> {
    t.lit()?.int().cloned()
}

fn ints(t: &Type) -> Option<&[Dim]> {
    t.lit()?.ints()
}

fn known(t: &Type) -> Option<i64> {
    int(t)?.known()
}

fn number(t: &Type) -> Option<f64> {
    t.lit()?.number()
}

fn shape(t: &Type) -> Option<&[Dim]> {
    t.tensor().map(|t| t.shape.as_slice())
}

/// An index into a list, where `-1` is the last.
fn index(at: &Type, len: usize) -> Option<usize> {
    resolve_axis(known(at)?, len).ok()
}

fn list(dims: impl IntoIterator<Item = Dim>) -> Option<Lit> {
    Some(Lit::Ints(dims.into_iter().collect()))
}

fn size(dim: Dim) -> Option<Lit> {
    Some(Lit::Int(dim))
}

fn float(x: f64) -> Option<Lit> {
    x.is_finite().then_some(Lit::Float(F64(x)))
}

/// A permutation as plain indices.
fn perm(t: &Type) -> Option<Vec<usize>> {
    let p = resolve_axes(ints(t)?, ints(t)?.len()).ok()?;
    (0..p.len()).all(|k| p.contains(&k)).then_some(p)
}

fn indices(p: impl IntoIterator<Item = usize>) -> Option<Lit> {
    list(p.into_iter().map(|k| Dim::Known(k as i64)))
}

fn swapped(rank: usize) -> Option<Vec<usize>> {
    let mut p: Vec<usize> = (0..rank).collect();
    p.swap(rank.checked_sub(2)?, rank - 1);
    Some(p)
}

fn ordered(shape: &[Dim], p: &[usize]) -> Option<Vec<Dim>> {
    (shape.len() == p.len()).then(|| p.iter().map(|k| shape[*k].clone()).collect())
}

/// Where the shape `fine` splits axes of `coarse`: the range of its axes that each becomes.  `None` where it splits none, or
/// does more than that; axes of one element that are put in or taken out are none of an axis's.
fn parts(coarse: &[Dim], fine: &[Dim]) -> Option<Vec<Range<usize>>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for axis in coarse {
        let start = found.last().map_or(0, |r| r.end);
        let end = (start + 1..=fine.len()).find(|end| numel(&fine[start..*end]) == *axis)?;
        let is_plain = end == start + 1 || fine[start..end].iter().all(|d| !d.is(1));
        is_plain.then(|| found.push(start..end))?;
    }
    (found.last().is_some_and(|r| r.end == fine.len()) && fine.len() > coarse.len()).then_some(found)
}

/// Computed attributes: literals from the types of the arguments.
#[rustfmt::skip]
pub static COMPUTED: &[Computed] = &[
    // Of tensors.
    Row { name: "shape", arity: Some(1), doc: "the shape of x", run: |a| list(shape(a[0])?.to_vec()) },
    Row { name: "rank", arity: Some(1), doc: "the number of axes of x, or the length of a list",
          run: |a| size(Dim::Known(shape(a[0]).or(ints(a[0]))?.len() as i64)) },
    Row { name: "dim", arity: Some(2), doc: "the size of axis k of x", run: |a| { let s = shape(a[0])?; size(s[index(a[1], s.len())?].clone()) } },
    Row { name: "dtype", arity: Some(1), doc: "the element type of x", run: |a| Some(Lit::DType(a[0].tensor()?.dtype)) },
    Row { name: "numel", arity: Some(1), doc: "the number of elements of x", run: |a| size(numel(shape(a[0])?)) },
    Row { name: "rows", arity: Some(1), doc: "the shape of x as a matrix: [elements / last, last]",
          run: |a| { let (last, lead) = shape(a[0])?.split_last()?; list([numel(lead), last.clone()]) } },
    Row { name: "leads", arity: Some(1), doc: "the shape of x without its last two axes",
          run: |a| { let s = shape(a[0])?; list(s[..s.len().checked_sub(2)?].to_vec()) } },
    Row { name: "with_leads", arity: Some(3), doc: "the shape of x with n and m as its last two axes",
          run: |a| { let s = shape(a[0])?; list(s[..s.len().checked_sub(2)?].iter().cloned().chain([int(a[1])?, int(a[2])?])) } },
    Row { name: "leading_axes", arity: Some(2), doc: "all axes of x but the last k, counted from the end",
          run: |a| { let n = shape(a[0])?.len() as i64; list((0..n - known(a[1])?).map(|k| Dim::Known(k - n))) } },
    Row { name: "normal_axis", arity: Some(2), doc: "axis k of x counted from the front", run: |a| size(Dim::Known(index(a[1], shape(a[0])?.len())? as i64)) },
    Row { name: "reduced", arity: Some(2), doc: "how many elements of x a reduction over the axes joins",
          run: |a| { let s = shape(a[0])?; size(resolve_axes(ints(a[1])?, s.len()).ok()?.into_iter().map(|k| s[k].clone()).fold(Dim::Known(1), |x, y| x * y)) } },
    Row { name: "swap_last", arity: Some(1), doc: "the permutation that swaps the last two axes of x", run: |a| indices(swapped(shape(a[0])?.len())?) },
    Row { name: "to_front", arity: Some(3), doc: "the permutation that moves n axes of x, from axis k on, to the front",
          run: |a| { let (r, k, n) = (shape(a[0])?.len(), usize::try_from(known(a[1])?).ok()?, usize::try_from(known(a[2])?).ok()?);
                     (k + n <= r).then(|| indices((k..k + n).chain(0..k).chain(k + n..r)))? } },
    // Of reshapes of transposed tensors.
    Row { name: "outer_axis", arity: Some(3), doc: "the axis of x that axis k of x in the shape s is the outer part of, or all of",
          run: |a| { let (s, to) = (shape(a[0])?, ints(a[1])?); let k = index(a[2], to.len())?; let (before, behind) = (numel(&to[..k]), numel(&to[k + 1..]));
                     let leads = |j: &usize| numel(&s[..*j]) == before && behind.div_exact(&numel(&s[j + 1..])).is_some_and(|inner| inner * to[k].clone() == s[*j]);
                     size(Dim::Known((0..s.len()).find(leads)? as i64)) } },
    Row { name: "split_shape", arity: Some(3), doc: "x with the axes split that the shape r splits of x in the order p",
          run: |a| { let (p, r) = (perm(a[1])?, ints(a[2])?); let parts = parts(&ordered(shape(a[0])?, &p)?, r)?;
                     list((0..p.len()).flat_map(|k| r[parts[p.iter().position(|x| *x == k).unwrap_or(k)].clone()].to_vec())) } },
    Row { name: "split_perm", arity: Some(3), doc: "the order p of x with those axes split",
          run: |a| { let (p, r) = (perm(a[1])?, ints(a[2])?); let parts = parts(&ordered(shape(a[0])?, &p)?, r)?;
                     let start = |axis: usize| (0..p.len()).filter(|k| p[*k] < axis).map(|k| parts[k].len()).sum::<usize>();
                     indices(p.iter().zip(&parts).flat_map(|(axis, part)| (0..part.len()).map(move |k| start(*axis) + k))) } },
    Row { name: "merge_perm", arity: Some(3), doc: "the order of x such that the shape r, which merges neighbouring axes of x, is then in the order p",
          run: |a| { let (r, p) = (ints(a[1])?, perm(a[2])?); let parts = parts(r, shape(a[0])?)?; (p.len() == r.len()).then(|| indices(p.iter().flat_map(|k| parts[*k].clone())))? } },
    // Of permutations and lists.
    Row { name: "item", arity: Some(2), doc: "element k of a list", run: |a| { let s = ints(a[0])?; size(s[index(a[1], s.len())?].clone()) } },
    Row { name: "compose", arity: Some(2), doc: "the permutation: first p, then q",
          run: |a| { let (p, q) = (perm(a[0])?, perm(a[1])?); (p.len() == q.len()).then(|| indices(q.iter().map(|k| p[*k])))? } },
    Row { name: "invert", arity: Some(1), doc: "the inverse permutation",
          run: |a| { let p = perm(a[0])?; indices((0..p.len()).map(|k| p.iter().position(|x| *x == k).unwrap_or(k))) } },
    Row { name: "permute", arity: Some(2), doc: "the list s in the order p", run: |a| { let (s, p) = (ints(a[0])?, perm(a[1])?); (s.len() == p.len()).then(|| list(p.iter().map(|k| s[*k].clone())))? } },
    Row { name: "list", arity: None, doc: "the list of these integers", run: |a| a.iter().map(|t| int(t)).collect::<Option<Box<[Dim]>>>().map(Lit::Ints) },
    Row { name: "length", arity: Some(1), doc: "the length of a list", run: |a| size(Dim::Known(ints(a[0])?.len() as i64)) },
    Row { name: "head", arity: Some(2), doc: "the first k of the list", run: |a| list(ints(a[0])?.get(..known(a[1])? as usize)?.to_vec()) },
    Row { name: "drop", arity: Some(2), doc: "the list without its first k", run: |a| list(ints(a[0])?.get(known(a[1])? as usize..)?.to_vec()) },
    Row { name: "tail", arity: Some(2), doc: "the last k of the list", run: |a| { let s = ints(a[0])?; list(s[s.len().checked_sub(known(a[1])? as usize)?..].to_vec()) } },
    Row { name: "insert", arity: Some(3), doc: "the list with d inserted as its element k; -1 appends",
          run: |a| { let mut s = ints(a[0])?.to_vec(); let k = index(a[1], s.len() + 1)?; s.insert(k, int(a[2])?); list(s) } },
    Row { name: "replace", arity: Some(3), doc: "the list with d as its element k",
          run: |a| { let mut s = ints(a[0])?.to_vec(); let k = index(a[1], s.len())?; s[k] = int(a[2])?; list(s) } },
    Row { name: "swap_tail", arity: Some(1), doc: "the list with its last two swapped",
          run: |a| { let mut s = ints(a[0])?.to_vec(); let n = s.len(); s.swap(n.checked_sub(2)?, n - 1); list(s) } },
    Row { name: "numel_of", arity: Some(1), doc: "the product of a list", run: |a| size(numel(ints(a[0])?)) },
    // Of integers and numbers.
    Row { name: "iadd", arity: Some(2), doc: "a + b", run: |a| size(int(a[0])? + int(a[1])?) },
    Row { name: "isub", arity: Some(2), doc: "a - b", run: |a| size(int(a[0])? - int(a[1])?) },
    Row { name: "imul", arity: Some(2), doc: "a b", run: |a| size(int(a[0])? * int(a[1])?) },
    Row { name: "idiv", arity: Some(2), doc: "a / b, where it is exact", run: |a| size(int(a[0])?.div_exact(&int(a[1])?)?) },
    Row { name: "middle", arity: Some(2), doc: "the integer half way between a and b, which are known",
          run: |a| size(Dim::Known(known(a[0])?.midpoint(known(a[1])?))) },
    Row { name: "end_of", arity: Some(3), doc: "the end of a slice of n elements from a on, c apart; of none it is a",
          run: |a| { let (a, n, c) = (int(a[0])?, int(a[1])?, int(a[2])?); size(if n.is(0) { a } else { a + Dim::Known(1) + (n - Dim::Known(1)) * c }) } },
    Row { name: "imin", arity: Some(2), doc: "the smaller of a and b, where it is known",
          run: |a| { let (x, y) = (int(a[0])?, int(a[1])?); size(if (x.clone() - y.clone()).known()? <= 0 { x } else { y }) } },
    Row { name: "fadd", arity: Some(2), doc: "a + b", run: |a| float(number(a[0])? + number(a[1])?) },
    Row { name: "fsub", arity: Some(2), doc: "a - b", run: |a| float(number(a[0])? - number(a[1])?) },
    Row { name: "fmul", arity: Some(2), doc: "a b", run: |a| float(number(a[0])? * number(a[1])?) },
    Row { name: "scale", arity: Some(1), doc: "the number itself: what an adapter's product is multiplied by, which is recorded with it", run: |a| a[0].lit().cloned() },
    Row { name: "option", arity: Some(2), doc: "the hyper-parameter of that name, which is the second argument unless the user sets it", run: |a| a[1].lit().cloned() },
    Row { name: "flog", arity: Some(1), doc: "the natural logarithm of a", run: |a| float(number(a[0])?.ln()) },
    Row { name: "fsqrt", arity: Some(1), doc: "the square root of a", run: |a| float(number(a[0])?.sqrt()) },
    Row { name: "frecip", arity: Some(1), doc: "1 / a", run: |a| float(1.0 / number(a[0])?) },
];

/// Guards: conditions on the types of the arguments.
#[rustfmt::skip]
pub static GUARDS: &[Guard] = &[
    Row { name: "lit", arity: Some(1), doc: "x is a number, not a tensor", run: |a| Some(number(a[0]).is_some()) },
    Row { name: "tensor", arity: Some(1), doc: "x is a tensor", run: |a| Some(a[0].tensor().is_some()) },
    Row { name: "rank", arity: Some(2), doc: "x has k axes", run: |a| Some(shape(a[0])?.len() as i64 == known(a[1])?) },
    Row { name: "same_shape", arity: Some(2), doc: "x and y have one shape", run: |a| Some(shape(a[0])? == shape(a[1])?) },
    Row { name: "same_type", arity: Some(2), doc: "x and y have one shape and element type", run: |a| Some(a[0].tensor()? == a[1].tensor()?) },
    Row { name: "broadcasts", arity: Some(2), doc: "x broadcasts to the shape s, which it does not enlarge",
          run: |a| { let (x, s) = (shape(a[0])?, ints(a[1])?); Some(x.len() <= s.len() && x.iter().rev().zip(s.iter().rev()).all(|(n, m)| n.is(1) || n == m)) } },
    Row { name: "eq", arity: Some(2), doc: "two literals are equal; numbers by value", run: |a| Some(equal(a[0].lit()?, a[1].lit()?)) },
    Row { name: "ne", arity: Some(2), doc: "two literals differ", run: |a| Some(!equal(a[0].lit()?, a[1].lit()?)) },
    Row { name: "gt", arity: Some(2), doc: "a > b", run: |a| Some(number(a[0])? > number(a[1])?) },
    Row { name: "near", arity: Some(2), doc: "two numbers agree to 1e-6, as after a trip through f32", run: |a| Some((number(a[0])? - number(a[1])?).abs() <= 1e-6 * number(a[1])?.abs()) },
    Row { name: "is_float", arity: Some(1), doc: "x holds floating-point numbers", run: |a| Some(a[0].tensor()?.dtype.is_float()) },
    Row { name: "single", arity: Some(1), doc: "x holds floating-point numbers of 32 bits", run: |a| Some(a[0].tensor()?.dtype == DType::F32) },
    Row { name: "narrow", arity: Some(1), doc: "x holds floating-point numbers of 16 bits", run: |a| Some(matches!(a[0].tensor()?.dtype, DType::F16 | DType::BF16)) },
    Row { name: "identity_perm", arity: Some(1), doc: "p moves no axis", run: |a| { let p = perm(a[0])?; Some(p.iter().enumerate().all(|(k, x)| k == *x)) } },
    Row { name: "swaps_last", arity: Some(1), doc: "p swaps the last two axes and moves no other", run: |a| { let p = perm(a[0])?; Some(swapped(p.len())? == p) } },
    Row { name: "low_rank", arity: Some(2), doc: "a is [k r], b [r n], and r (k + n) < k n",
          run: |a| match (shape(a[0])?, shape(a[1])?) {
              ([k, r], [r2, n]) if r == r2 => { let (k, n, r) = (k.known()?, n.known()?, r.known()?); Some(r * (k + n) < k * n) }
              _ => Some(false),
          } },
    Row { name: "keeps_order", arity: Some(2), doc: "p moves no axis of x past another but those of one element",
          run: |a| { let (s, p) = (shape(a[0])?, perm(a[1])?); let kept: Vec<usize> = p.into_iter().filter(|k| s.get(*k).is_some_and(|d| !d.is(1))).collect(); Some(kept.is_sorted()) } },
    Row { name: "last_axis", arity: Some(2), doc: "axis k is the last of x", run: |a| { let n = shape(a[0])?.len(); Some(index(a[1], n)? + 1 == n) } },
];

fn equal(a: &Lit, b: &Lit) -> bool {
    match (a.number(), b.number()) {
        (Some(x), Some(y)) => x == y,
        _ => a == b,
    }
}

/// Evaluates a computed attribute.
pub fn compute<B: Builder>(name: &str, args: &[Id], b: &mut B) -> Result<Id, String> {
    if name == "apply" {
        let [root, leaf, new] = args else { return Err("apply takes (apply ?logits ?ids ?new)".into()) };
        return b.substitute(*root, *leaf, *new);
    }
    if name == "true_rows_of" {
        let [mask] = args else { return Err("true_rows_of takes a mask".into()) };
        return b.true_rows(*mask);
    }
    // The values of options and of caches are put into the text of a method before it unfolds.
    if name == "cached" {
        let [_, value] = args else { return Err("cached takes (cached ?cache value)".into()) };
        return Ok(*value);
    }
    let row = COMPUTED.iter().find(|r| r.name == name).ok_or_else(|| format!("unknown computed attribute `{name}`"))?;
    let lit = {
        let types: Vec<&Type> = args.iter().map(|a| b.type_of(*a)).collect();
        if row.arity.is_some_and(|n| n != types.len()) {
            return Err(format!("`{name}` takes {:?} arguments", row.arity));
        }
        (row.run)(&types).ok_or_else(|| {
            let got: Vec<String> = types.iter().map(|t| t.to_string()).collect();
            format!("({name} {}) has no value", got.join(" "))
        })?
    };
    b.lit(lit)
}

/// Evaluates a guard.
pub fn test<B: Builder>(name: &str, args: &[Id], b: &B) -> bool {
    let Some(row) = GUARDS.iter().find(|r| r.name == name) else { return false };
    let types: Vec<&Type> = args.iter().map(|a| b.type_of(*a)).collect();
    row.arity.is_none_or(|n| n == types.len()) && (row.run)(&types).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::sexpr::read;
    use crate::ir::{Graph, text};

    /// A graph with `x`: f32 `[batch 4 6]`, and the arguments of `(name arg ..)` in it.
    fn call(source: &str) -> (Graph, String, Vec<Id>) {
        let mut graph = Graph::new("g");
        let x = graph.input("x", DType::F32, &[Dim::sym("batch"), 4.into(), 6.into()]);
        let forms = read(source).unwrap();
        let [name, args @ ..] = forms[0].list().unwrap() else { panic!("{source}") };
        let args =
            args.iter().map(|a| if a.atom() == Some("x") { x } else { graph.lit(text::literal(a).unwrap()).unwrap() });
        let args = args.collect();
        (graph, name.atom().unwrap().into(), args)
    }

    #[test]
    fn computed_attributes() {
        for (source, want) in [
            ("(shape x)", "[batch 4 6]"),
            ("(dim x -1)", "6"),
            ("(rows x)", "[4*batch 6]"),
            ("(leads x)", "[batch]"),
            ("(with_leads x 2 3)", "[batch 2 3]"),
            ("(leading_axes x 2)", "[-3]"),
            ("(normal_axis x -1)", "2"),
            ("(reduced x [0 -1])", "6*batch"),
            ("(swap_last x)", "[0 2 1]"),
            ("(to_front x 1 2)", "[1 2 0]"),
            // out[k] = in[p[k]]: first p, then q.
            ("(compose [1 2 0] [0 2 1])", "[1 0 2]"),
            ("(invert [1 2 0])", "[2 0 1]"),
            ("(permute [7 8 9] [1 2 0])", "[8 9 7]"),
            ("(list 1 batch+0)", "[1 batch]"),
            ("(drop [1 2 3] 1)", "[2 3]"),
            ("(tail [1 2 3] 1)", "[3]"),
            ("(insert [1 2] -1 3)", "[1 2 3]"),
            ("(replace [1 2] -1 3)", "[1 3]"),
            ("(item [7 8 9] -1)", "9"),
            ("(outer_axis x [batch 2 2 6] 1)", "1"),
            ("(outer_axis x [batch 4 2 3] 2)", "2"),
            // [6 4 batch] to [2 3 4 batch]; [4 6*batch] of [batch 4 6], its last axes merged and put first.
            ("(split_shape x [2 1 0] [2 3 4 batch])", "[batch 4 2 3]"),
            ("(split_perm x [2 1 0] [2 3 4 batch])", "[2 3 1 0]"),
            ("(merge_perm x [batch 24] [1 0])", "[1 2 0]"),
            ("(idiv 6 2)", "3"),
            ("(end_of 1 3 2)", "6"),
            ("(end_of 1 0 2)", "1"),
            ("(imin 3*batch 3*batch+1)", "3*batch"),
            ("(frecip 4)", "0.25"),
        ] {
            let (mut graph, name, args) = call(source);
            let id = compute(&name, &args, &mut graph).unwrap_or_else(|e| panic!("{source}: {e}"));
            assert_eq!(graph.type_of(id).to_string(), want, "{source}");
        }
        for source in [
            "(dim x 3)",
            "(idiv 7 2)",
            "(frecip 0)",
            "(invert [0 0])",
            "(tail [1] -1)",
            "(drop [1] 2)",
            "(shape 1)",
            "(to_front x 2 2)",
        ] {
            let (mut graph, name, args) = call(source);
            assert!(compute(&name, &args, &mut graph).is_err(), "{source}");
        }
    }

    #[test]
    fn guards() {
        for (source, want) in [
            ("(rank x 3)", true),
            ("(rank x 2)", false),
            ("(lit 2.0)", true),
            ("(lit x)", false),
            ("(tensor x)", true),
            ("(narrow x)", false),
            ("(eq 1 1.0)", true),
            ("(ne sequence token)", true),
            ("(near 0.70710677 0.7071067811865476)", true),
            ("(near 0.7 0.7071067811865476)", false),
            ("(swaps_last [0 2 1])", true),
            ("(swaps_last [1 0 2])", false),
            ("(identity_perm [0 -2 2])", true),
            ("(last_axis x -1)", true),
            ("(last_axis x 1)", false),
            ("(broadcasts x [2 batch 4 6])", true),
            ("(broadcasts x [batch 1 6])", false),
            ("(broadcasts x [4 6])", false),
            // What has no meaning does not hold.
            ("(last_axis x 5)", false),
            ("(gt x 1)", false),
        ] {
            let (graph, name, args) = call(source);
            assert_eq!(test(&name, &args, &graph), want, "{source}");
        }
    }
}
