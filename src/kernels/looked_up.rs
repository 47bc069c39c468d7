//! Products with matrices that are looked up, as experts' weights are: what reads one matrix is multiplied at once, so
//! that no matrix is copied.

use super::broadcast::Shape;
use super::operator::{Call, Compute, Known, Target, Tensor, int};
use super::panels::multiply;
use super::product::Matrix;
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;
use std::ops::Range;

/// Rows that a thread takes at a time: enough for a packed matrix, few enough to share evenly.
const ROWS: usize = 256;

/// w [n, a, b], numbers [i..] and x [i.., b, c] to [i.., a, c]; `w` [n, b, a] where it is transposed.
pub struct GatherMatMul {
    transposed: bool,
}

/// dy [i.., a, c], x [i.., b, c] and numbers [i..] to [rows, a, b].
pub struct GatherMatMulGrad {
    rows: usize,
}

/// Which of a list read which matrix.
struct Readers {
    /// Places of the list, matrix by matrix, in order.
    places: Vec<usize>,
    /// Where in them each matrix begins, and where the last ends.
    starts: Vec<usize>,
}

impl Readers {
    fn new(numbers: &[i64], matrices: usize) -> Result<Self, String> {
        let mut owners = Vec::with_capacity(numbers.len());
        for number in numbers {
            let own = usize::try_from(if *number < 0 { number + matrices as i64 } else { *number });
            let own = own.ok().filter(|own| *own < matrices);
            owners.push(own.ok_or_else(|| format!("index {number} is beyond {matrices} matrices"))?);
        }
        let mut places: Vec<usize> = (0..owners.len()).collect();
        places.sort_by_key(|place| owners[*place]);
        let starts = (0..=matrices).map(|own| places.partition_point(|place| owners[*place] < own)).collect();
        Ok(Readers { places, starts })
    }

    fn of(&self, matrix: usize) -> &[usize] {
        &self.places[self.starts[matrix]..self.starts[matrix + 1]]
    }
}

/// Columns of the matrices [r, c] that lie at `places`, as rows behind one another: [places c, r].
///
/// # Safety
/// There are matrices at these places.
unsafe fn rows_of(from: &Tensor<f32>, places: &[usize], [r, c]: [usize; 2]) -> Vec<f32> {
    let mut rows = Vec::with_capacity(places.len() * c * r);
    for place in places {
        // SAFETY: by the caller's promise.
        let matrix = unsafe { std::slice::from_raw_parts(from.at.add(place * r * c), r * c) };
        if c == 1 {
            rows.extend_from_slice(matrix);
        } else {
            rows.extend((0..c).flat_map(|j| (0..r).map(move |i| matrix[i * c + j])));
        }
    }
    rows
}

/// The last two sizes, where those before are the numbers'.
fn matrix_sizes(shape: &Shape, numbers: &Shape) -> Result<[usize; 2], String> {
    match shape.0.strip_prefix(numbers.0.as_slice()) {
        Some([r, c]) => Ok([*r, *c]),
        _ => Err(format!("{shape} has no matrix for each number of {numbers}")),
    }
}

impl Compute for GatherMatMul {
    const NAME: &'static str = "GatherMatMul";
    const OPERANDS: &'static [Type] = &[Type::Float32, Type::Int64, Type::Float32];
    const SHAPE: Known = Known::Nothing;

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        Ok(GatherMatMul { transposed: int(node, "trans")? != 0 })
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let (w, numbers, x): (Tensor<f32>, Tensor<i64>, Tensor<f32>) =
            (call.operand(0)?, call.operand(1)?, call.operand(2)?);
        let [k, c] = matrix_sizes(&x.shape, &numbers.shape)?;
        let [n, height, width] = w.shape.0[..] else { return Err(format!("{} is no list of matrices", w.shape)) };
        let (a, inner) = if self.transposed { (width, height) } else { (height, width) };
        if inner != k {
            return Err(format!("the inner sizes of {} and {} differ", w.shape, x.shape));
        }
        let to = &call.result(&Shape([numbers.shape.0.as_slice(), &[a, c]].concat()))?;
        // SAFETY: they are not overwritten.
        let readers = Readers::new(unsafe { numbers.values() }, n)?;
        let parts = |own: usize| {
            let all = readers.starts[own]..readers.starts[own + 1];
            all.clone().step_by(ROWS).map(move |first| (own, first..all.end.min(first + ROWS)))
        };
        let parts: Vec<(usize, Range<usize>)> = (0..n).flat_map(parts).collect();
        let (x, matrices) = (&x, Matrix::new(w.at, width, !self.transposed));
        call.split(parts.len(), 1, |tasks| {
            for (own, range) in &parts[tasks] {
                let places = &readers.places[range.clone()];
                // SAFETY: matrix `own` is one of w's, and each place has its own part of the result.
                unsafe {
                    let rows = rows_of(x, places, [k, c]);
                    let mut products = vec![0f32; places.len() * c * a];
                    let factor = matrices.element(own * a * k);
                    let sizes = [places.len() * c, k, a];
                    let left = Matrix::new(rows.as_ptr(), k, false);
                    // Only threads can fail.
                    let _ = multiply(None, sizes, left, factor, (Target(products.as_mut_ptr()), a), 1.0, None);
                    for (place, product) in places.iter().zip(products.chunks_exact((c * a).max(1))) {
                        let to = to.at(place * a * c);
                        for (j, column) in product.chunks_exact(a.max(1)).enumerate() {
                            if c == 1 {
                                to.copy_from_nonoverlapping(column.as_ptr(), a);
                            } else {
                                column.iter().enumerate().for_each(|(i, x)| *to.add(i * c + j) = *x);
                            }
                        }
                    }
                }
            }
        })
    }
}

impl Compute for GatherMatMulGrad {
    const NAME: &'static str = "GatherMatMulGrad";
    const OPERANDS: &'static [Type] = &[Type::Float32, Type::Float32, Type::Int64];
    const SHAPE: Known = Known::Nothing;

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        let rows = int(node, "rows")?;
        Ok(GatherMatMulGrad { rows: usize::try_from(rows).map_err(|_| format!("{rows} rows"))? })
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let (dy, x, numbers): (Tensor<f32>, Tensor<f32>, Tensor<i64>) =
            (call.operand(0)?, call.operand(1)?, call.operand(2)?);
        let ([a, c], [b, columns]) =
            (matrix_sizes(&dy.shape, &numbers.shape)?, matrix_sizes(&x.shape, &numbers.shape)?);
        if c != columns {
            return Err(format!("the inner sizes of {} and {} differ", dy.shape, x.shape));
        }
        let to = &call.result(&Shape(vec![self.rows, a, b]))?;
        // SAFETY: they are not overwritten.
        let readers = Readers::new(unsafe { numbers.values() }, self.rows)?;
        // Rows of each matrix are shared out too: there may be fewer matrices than threads.
        let (strips, dy, x) = (a.div_ceil(ROWS), &dy, &x);
        call.split(self.rows * strips, 1, |tasks| {
            for task in tasks {
                let (own, first) = (task / strips, task % strips * ROWS);
                let places = readers.of(own);
                let high = ROWS.min(a - first);
                // SAFETY: no other task has these rows of this matrix.
                unsafe {
                    let (left, right) = (rows_of(dy, places, [a, c]), rows_of(x, places, [b, c]));
                    let left = Matrix::new(left.as_ptr(), a, true).from(first, 0);
                    let right = Matrix::new(right.as_ptr(), b, false);
                    let to = Target(to.at((own * a + first) * b));
                    let _ = multiply(None, [high, places.len() * c, b], left, right, (to, b), 1.0, None);
                }
            }
        })
    }
}
