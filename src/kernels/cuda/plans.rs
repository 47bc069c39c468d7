//! What is launched for operands of which shapes.

use super::super::adamw::Numbers;
use super::super::broadcast::Shape;
use super::layout::Layout;
use super::operator::Argument::{Flag, Float, Operand, Result as Output, Scratch, Size, Sizes};
use super::operator::{Argument, Launch, Node, Plan};

/// Threads of a block that goes through single elements.
const BLOCK: u32 = 256;

/// How many blocks of rows a sum over rows is made of.
const PARTS: usize = 64;

fn launch(function: &'static str, grid: [usize; 3], block: u32, arguments: Vec<Argument>) -> Launch {
    Launch { function, macros: Vec::new(), grid, block, shared: 0, arguments }
}

fn one(result: Shape, launch: Launch) -> Result<Plan, String> {
    Ok(Plan { results: vec![result], scratch: Vec::new(), launches: vec![launch] })
}

fn joined(shapes: &[Shape]) -> Result<Shape, String> {
    let first = shapes.first().cloned().unwrap_or(Shape(Vec::new()));
    shapes.iter().skip(1).try_fold(first, |s, t| s.join(t))
}

/// A function of single elements.
pub fn elementwise(function: &'static str, node: &Node) -> Result<Plan, String> {
    let result = joined(node.shapes)?;
    let layout = Layout::new(&result, &node.shapes.iter().collect::<Vec<_>>())?;
    let operands = 0..node.shapes.len();
    let n = result.numel();
    let mut arguments: Vec<Argument> = operands.clone().map(Operand).collect();
    arguments.extend([Output(0), Size(n), Flag(layout.is_flat()), Sizes(layout.axes())]);
    arguments.extend(operands.map(|k| Sizes(layout.strides(k))));
    let threads = n.div_ceil(16 / node.bytes);
    one(result, launch(function, [threads.div_ceil(BLOCK as usize), 1, 1], BLOCK, arguments))
}

/// A function of rows along the last axis, one row a block, whose length is that of operand `x`; its number is epsilon.
pub fn by_row(function: &'static str, x: usize, node: &Node) -> Result<Plan, String> {
    let result = joined(node.shapes)?;
    let width = result.width();
    if node.shapes[x].width() != width {
        return Err(format!("x of shape {} has rows of another length than the result, {result}", node.shapes[x]));
    }
    // Rows are looked up as elements, and whether they have more than one stands in the stride of an axis of size 1.
    let rows = |s: &Shape| Shape(s.0[..s.0.len().saturating_sub(1)].to_vec());
    let leading: Vec<Shape> = node.shapes.iter().map(rows).collect();
    let layout = Layout::new(&rows(&result), &leading.iter().collect::<Vec<_>>())?;
    let inside = |sizes: Vec<i64>, last: i64| sizes[1..].iter().copied().chain([last]).collect::<Vec<i64>>();
    let axes = layout.axes();
    if axes[0] != 1 {
        return Err(format!("rows of {result} are repeated along too many axes"));
    }
    let (sizes, total) = axes.split_at(axes.len() - 1);
    let axes: Vec<i64> = inside(sizes.to_vec(), 1).into_iter().chain(total.iter().copied()).collect();
    let mut arguments: Vec<Argument> = (0..node.shapes.len()).map(Operand).collect();
    arguments.extend([Output(0), Size(width), Sizes(axes)]);
    for (k, shape) in node.shapes.iter().enumerate() {
        let own = shape.width();
        let strides = layout.strides(k).into_iter().map(|step| step * own as i64).collect();
        arguments.push(Sizes(inside(strides, i64::from(own > 1 || width == 1))));
    }
    arguments.push(Float(node.numbers[0] as f32));
    let block = threads(width, node);
    one(result.clone(), launch(function, [result.rows(), 1, 1], block, arguments))
}

/// Threads for a row: a pack for each, in whole warps, at most 256.
fn threads(width: usize, node: &Node) -> u32 {
    width.div_ceil(16 / node.bytes).next_multiple_of(32).clamp(32, BLOCK as usize) as u32
}

/// The sum over rows of dy x / rms(x): parts of the rows first, and the parts in order.
pub fn rms_norm_grad_sum(node: &Node) -> Result<Plan, String> {
    let (dy, x) = (&node.shapes[0], &node.shapes[1]);
    if dy != x {
        return Err(format!("dy {dy} and x {x} have different shapes"));
    }
    let (rows, width) = (x.rows(), x.width());
    let part = rows.div_ceil(PARTS).max(1);
    let parts = rows.div_ceil(part);
    let columns = width.div_ceil(BLOCK as usize);
    let launches = vec![
        launch(
            "rms_norm_rows",
            [rows, 1, 1],
            threads(width, node),
            vec![Operand(1), Scratch(0), Size(width), Float(node.numbers[0] as f32)],
        ),
        launch(
            "rms_norm_grad_parts",
            [columns, parts, 1],
            BLOCK,
            vec![Operand(0), Operand(1), Scratch(0), Scratch(1), Size(rows), Size(width), Size(part)],
        ),
        launch("sum_parts", [columns, 1, 1], BLOCK, vec![Scratch(1), Output(0), Size(parts), Size(width)]),
    ];
    Ok(Plan { results: vec![Shape(vec![width])], scratch: vec![rows * 4, parts * width * 4], launches })
}

/// Rotary positions: x, and tables that broadcast to it but for their last axis.
pub fn rope(function: &'static str, node: &Node) -> Result<Plan, String> {
    let x = &node.shapes[0];
    let width = x.width();
    if width % 2 == 1 || node.shapes[1..].iter().any(|t| t.width() != width) {
        return Err(format!(
            "rows of shape {x} have no halves, or tables {} and {} are of another width",
            node.shapes[1], node.shapes[2]
        ));
    }
    // Lengths of rows are equal: rows are looked up as elements are.
    let rows = |s: &Shape| Shape(s.0[..s.0.len().saturating_sub(1)].to_vec());
    let tables: Vec<Shape> = node.shapes[1..].iter().map(rows).collect();
    let layout = Layout::new(&rows(x), &tables.iter().collect::<Vec<_>>())?;
    let (n, half) = (x.rows(), width / 2);
    let strides = |k: usize| Sizes(layout.strides(k).into_iter().map(|step| step * width as i64).collect());
    let arguments = vec![
        Operand(0),
        Operand(1),
        Operand(2),
        Output(0),
        Size(n),
        Size(half),
        Sizes(layout.axes()),
        strides(0),
        strides(1),
    ];
    let packs = n * half.div_ceil(16 / node.bytes);
    one(x.clone(), launch(function, [packs.div_ceil(BLOCK as usize), 1, 1], BLOCK, arguments))
}

/// Whole blocks of a weight from codes and scales; the number is how many bits a code has.
pub fn decode(node: &Node) -> Result<Plan, String> {
    let (codes, scales) = (&node.shapes[0], &node.shapes[1]);
    let (function, per_byte) = if node.numbers[0] == 4.0 { ("decode_4", 2) } else { ("decode_8", 1) };
    let (&[rows, blocks, bytes], &[r, b]) = (codes.0.as_slice(), scales.0.as_slice()) else {
        return Err(format!("codes {codes} are not [rows, blocks, bytes], or scales {scales} not [rows, blocks]"));
    };
    if [rows, blocks] != [r, b] {
        return Err(format!("scales {scales} are not one for each block of the codes {codes}"));
    }
    let block = bytes * per_byte;
    let n = rows * blocks * block;
    let threads = n.div_ceil(16 / node.bytes);
    let arguments = vec![Operand(0), Operand(1), Output(0), Size(n), Size(block)];
    let launch = launch(function, [threads.div_ceil(BLOCK as usize), 1, 1], BLOCK, arguments);
    one(Shape(vec![rows, blocks * block]), launch)
}

/// Updates p, m and v by g; the numbers are lr, weight_decay, beta1, beta2, eps, step, grad_scale.
pub fn adamw(node: &Node) -> Result<Plan, String> {
    let p = &node.shapes[0];
    let numbers: [f64; 7] = node.numbers.try_into().map_err(|_| "scalars are missing".to_string())?;
    if node.shapes.iter().any(|s| s != p) {
        return Err("p, g, m and v have different shapes".into());
    }
    let n = p.numel();
    let operands = (0..4).map(Operand).chain((0..3).map(Output));
    let numbers = Numbers::new(numbers).in_order().map(Float);
    let arguments = operands.chain([Size(n)]).chain(numbers).collect();
    // A thread takes several elements of a large parameter.
    let blocks = n.div_ceil(BLOCK as usize).min(1 << 14);
    let launches = vec![launch("adamw", [blocks, 1, 1], BLOCK, arguments)];
    Ok(Plan { results: vec![p.clone(); 3], scratch: Vec::new(), launches })
}

/// Threads for a row of logits.
const LOGITS: u32 = 512;

/// [rows, 3] from logits [rows, width].
pub fn logit_sums(node: &Node) -> Result<Plan, String> {
    let z = &node.shapes[0];
    let arguments = vec![Operand(0), Output(0), Size(z.width())];
    one(Shape(vec![z.rows(), 3]), launch("logit_sums", [z.rows(), 1, 1], LOGITS, arguments))
}

/// Logits, and their sums.
pub fn logit_exp(node: &Node) -> Result<Plan, String> {
    let z = &node.shapes[0];
    let arguments = vec![Operand(0), Operand(1), Output(0), Size(z.width())];
    one(z.clone(), launch("logit_exp", [z.rows(), 1, 1], LOGITS, arguments))
}

/// Logits, for each row a factor, a token and log sum e^z, and the columns.
pub fn logit_grad(node: &Node) -> Result<Plan, String> {
    let z = &node.shapes[0];
    let arguments = (0..5).map(Operand).chain([Output(0), Size(z.width())]).collect();
    one(z.clone(), launch("logit_grad", [z.rows(), 1, 1], LOGITS, arguments))
}

/// Sums of two blocks.
pub fn merge_sums(node: &Node) -> Result<Plan, String> {
    let rows = node.shapes[0].rows();
    let arguments = vec![Operand(0), Operand(1), Output(0), Size(rows)];
    one(node.shapes[0].clone(), launch("merge_sums", [rows.div_ceil(BLOCK as usize), 1, 1], BLOCK, arguments))
}

/// Sums, and rows [n, d].
pub fn block_expect(node: &Node) -> Result<Plan, String> {
    let (rows, width) = (node.shapes[1].rows(), node.shapes[1].width());
    let arguments = vec![Operand(0), Operand(1), Output(0), Size(width)];
    one(Shape(vec![rows, width + 1]), launch("block_expect", [rows, 1, 1], BLOCK, arguments))
}

/// Expected rows of two blocks.
pub fn merge_expect(node: &Node) -> Result<Plan, String> {
    let x = &node.shapes[0];
    let arguments = vec![Operand(0), Operand(1), Output(0), Size(x.width())];
    one(x.clone(), launch("merge_expect", [x.rows(), 1, 1], BLOCK, arguments))
}
