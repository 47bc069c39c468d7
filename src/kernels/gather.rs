//! The cotangent of a lookup: rows of dy added up at their indices.

use super::broadcast::Shape;
use super::operator::{CHUNK, Call, Compute, Known, Tensor, int};
use super::vector::{Loop, Plus, dispatch, map};
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;

/// dy [indices.., d..] and indices to [rows, d..].  A row's terms are added in the order of the indices, whatever the
/// number of threads.
pub struct GatherGrad {
    rows: usize,
}

struct AddRow {
    row: *const f32,
    to: *mut f32,
    n: usize,
}
impl Loop for AddRow {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // SAFETY: both hold n elements.
        unsafe { map(Plus, [self.to.cast_const(), self.row], self.to, self.n) }
    }
}

/// Zeros are not written over zeros: most rows are of words that do not occur, and memory that was never written takes none.
struct ClearRows {
    to: *mut f32,
    rows: usize,
    n: usize,
}

impl Loop for ClearRows {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for row in 0..if self.n > 0 { self.rows } else { 0 } {
            // SAFETY: there are `rows` rows of n elements, of which every bit pattern is a value.
            let row = unsafe { std::slice::from_raw_parts_mut(self.to.add(row * self.n), self.n) };
            if row.iter().fold(0, |any, x| any | x.to_bits()) != 0 {
                row.fill(0.0);
            }
        }
    }
}

impl Compute for GatherGrad {
    const NAME: &'static str = "GatherGrad";
    const OPERANDS: &'static [Type] = &[Type::Float32, Type::Int64];
    const SHAPE: Known = Known::Nothing;

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        let rows = int(node, "rows")?;
        Ok(GatherGrad { rows: usize::try_from(rows).map_err(|_| format!("{rows} rows"))? })
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let (dy, indices): (Tensor<f32>, Tensor<i64>) = (call.operand(0)?, call.operand(1)?);
        let rank = indices.shape.0.len();
        if !dy.shape.0.starts_with(&indices.shape.0) {
            return Err(format!("dy {} does not have rows for indices {}", dy.shape, indices.shape));
        }
        let shape = Shape([&[self.rows], &dy.shape.0[rank..]].concat());
        let d: usize = dy.shape.0[rank..].iter().product();
        // SAFETY: they are not overwritten.
        let indices = unsafe { indices.values() };
        let mut places = Vec::with_capacity(indices.len());
        for (k, index) in indices.iter().enumerate() {
            let row = usize::try_from(if *index < 0 { index + self.rows as i64 } else { *index });
            let row = row.ok().filter(|r| *r < self.rows);
            places.push((row.ok_or_else(|| format!("index {index} is beyond {} rows", self.rows))?, k));
        }
        places.sort_unstable();
        let to = &call.result(&shape)?;
        let (dy, places) = (&dy, &places);
        call.split(self.rows, CHUNK.div_ceil(d.max(1)), |rows| {
            // SAFETY: the rows lie within the result, k within dy; no other part has them.
            dispatch(ClearRows { to: unsafe { to.at(rows.start * d) }, rows: rows.len(), n: d });
            let first = places.partition_point(|(row, _)| *row < rows.start);
            for (row, k) in places[first..].iter().take_while(|(row, _)| *row < rows.end) {
                dispatch(AddRow { row: unsafe { dy.at.add(k * d) }, to: unsafe { to.at(row * d) }, n: d });
            }
        })
    }
}
