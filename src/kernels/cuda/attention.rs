//! What is launched for attention in 16 bits.

use super::super::broadcast::Shape;
use super::operator::Argument::{Float, Operand, Result as Output, Scratch, Size};
use super::operator::{Argument, Launch, Node, Plan};
use crate::ir::Type;

pub const BIAS: &str = concat!(include_str!("attention.cuh"), include_str!("attention_bias.cu"));
pub const GRAD: &str = concat!(include_str!("attention.cuh"), include_str!("attention_grad.cu"));

/// Threads of a block, and keys or queries of a tile: `THREADS` and `TILE` of the source.
const THREADS: u32 = 256;
const TILE: usize = 64;

/// Whether heads of q, k and v, which are operand `first` and those behind it, are as wide as the kernels take: multiples of
/// 8, up to 128.
pub fn fits(types: &[&Type], first: usize) -> bool {
    let width = |k: usize| types.get(k).and_then(|t| t.shape().last()?.known());
    [first, first + 2].into_iter().all(|k| width(k).is_some_and(|d| d % 8 == 0 && (8..=128).contains(&d)))
}

/// The macros for heads of queries and values of these widths.
pub fn macros(d: usize, dv: usize, biased: bool) -> Vec<String> {
    let bias = biased.then(|| "BIAS".to_string());
    [format!("D={d}"), format!("DV={dv}")].into_iter().chain(bias).collect()
}

/// Queries [B Lq H D], keys [B Lk K D] and values [B Lk K E], and what is behind them.
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    shared: usize,
    d: usize,
    e: usize,
}

impl Sizes {
    fn new(q: &Shape, k: &Shape, v: &Shape) -> Result<Self, String> {
        let wrong = || format!("q {q}, k {k} and v {v} do not fit");
        let shape = |s: &Shape| <[usize; 4]>::try_from(s.0.as_slice()).map_err(|_| wrong());
        let ([batch, queries, heads, d], [_, keys, shared, _], [.., e]) = (shape(q)?, shape(k)?, shape(v)?);
        let fits = k.0 == [batch, keys, shared, d] && v.0 == [batch, keys, shared, e];
        if fits && keys > 0 && shared > 0 && heads % shared == 0 {
            Ok(Sizes { batch, queries, keys, heads, shared, d, e })
        } else {
            Err(wrong())
        }
    }

    /// Bytes of two tiles of rows of both widths: a row has 8 elements more than it needs.
    fn tiles(&self) -> usize {
        let pitch = |n: usize| n.next_multiple_of(16) + 8;
        4 * TILE * (pitch(self.d) + pitch(self.e))
    }

    fn arguments(&self) -> [Argument; 5] {
        [self.batch, self.queries, self.keys, self.heads, self.shared].map(Size)
    }
}

/// Where an operand that broadcasts to [B H Lq Lk] has its elements: strides.
fn strides(bias: &Shape, sizes: &Sizes) -> Result<Vec<usize>, String> {
    let to = [sizes.batch, sizes.heads, sizes.queries, sizes.keys];
    let missing = 4usize.checked_sub(bias.0.len()).ok_or_else(|| format!("a bias {bias} of more than four axes"))?;
    let own: Vec<usize> = std::iter::repeat_n(1, missing).chain(bias.0.iter().copied()).collect();
    if own.iter().zip(to).any(|(n, size)| *n != 1 && *n != size) {
        return Err(format!("the bias {bias} does not fit {to:?}"));
    }
    let steps = (0..4).map(|k| own[k + 1..].iter().product());
    Ok(own.iter().zip(steps).map(|(n, step)| if *n == 1 { 0 } else { step }).collect())
}

/// softmax(scale q k^T + bias) v
pub fn forward(node: &Node) -> Result<Plan, String> {
    let sizes = Sizes::new(&node.shapes[0], &node.shapes[1], &node.shapes[2])?;
    let steps = strides(&node.shapes[3], &sizes)?;
    let arguments = [Operand(0), Operand(1), Operand(2), Output(0), Operand(3)].into_iter().chain(sizes.arguments());
    let arguments = arguments.chain(steps.iter().map(|n| Size(*n))).chain([Float(node.numbers[0] as f32)]).collect();
    let Sizes { batch, queries, heads, d, e, .. } = sizes;
    let rows = if d.next_multiple_of(16) + 2 * e.next_multiple_of(16) <= 192 { 256 } else { 128 };
    let launch = Launch {
        function: "attention_bias",
        macros: macros(d, e, true),
        grid: [queries.div_ceil(rows) * heads * batch, 1, 1],
        block: THREADS,
        shared: sizes.tiles() as u32,
        arguments,
    };
    Ok(Plan { results: vec![Shape(vec![batch, queries, heads, e])], scratch: Vec::new(), launches: vec![launch] })
}

/// The cotangents of q, k and v from dy, q, k, v, and a bias where there is one: statistics of the queries' rows first, then
/// those of q, then those of k and v.
pub fn gradient(node: &Node) -> Result<Plan, String> {
    let sizes = Sizes::new(&node.shapes[1], &node.shapes[2], &node.shapes[3])?;
    let Sizes { batch, queries, keys, heads, shared, d, e } = sizes;
    if node.shapes[0].0 != [batch, queries, heads, e] {
        return Err(format!("dy {} does not fit", node.shapes[0]));
    }
    let bias = node.shapes.get(4);
    let steps = bias.map(|bias| strides(bias, &sizes)).transpose()?.unwrap_or_default();
    // Rows of a block: twice as many where the products' operands fit the registers (`GROUPS_*` of the source).
    let (dp, ep) = (d.next_multiple_of(16), e.next_multiple_of(16));
    let rows_q = if 2 * dp + ep <= 192 { 256 } else { 128 };
    let rows_kv = if dp + ep <= 128 { 256 } else { 128 };
    let statistics = TILE * if bias.is_some() { 24 } else { 16 };
    let launch = |function: &'static str, blocks: usize, shared: usize, results: Vec<Argument>| {
        let operands = [1, 2, 3, 0].map(Operand).into_iter().chain([Scratch(0), Scratch(1)]).chain(results);
        let arguments = operands.chain(bias.map(|_| Operand(4))).chain(sizes.arguments());
        let arguments =
            arguments.chain(steps.iter().map(|n| Size(*n))).chain([Float(node.numbers[0] as f32)]).collect();
        let (macros, shared) = (macros(d, e, bias.is_some()), shared as u32);
        Launch { function, macros, grid: [blocks, 1, 1], block: THREADS, shared, arguments }
    };
    let blocks = |rows: usize, of: usize, heads: usize| rows.div_ceil(of) * heads * batch;
    let launches = vec![
        launch("attention_grad_rows", blocks(queries, 256, heads), sizes.tiles(), vec![]),
        launch("attention_grad_q", blocks(queries, rows_q, heads), sizes.tiles(), vec![Output(0)]),
        launch(
            "attention_grad_kv",
            blocks(keys, rows_kv, shared),
            sizes.tiles() + statistics,
            vec![Output(1), Output(2)],
        ),
    ];
    let rows = batch * heads * queries * 4;
    let results = [1, 2, 3].map(|k| Shape(vec![node.shapes[k].numel()])).to_vec();
    Ok(Plan { results, scratch: vec![if bias.is_some() { 2 * rows } else { rows }, rows], launches })
}
