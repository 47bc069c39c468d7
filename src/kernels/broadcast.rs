//! NumPy's broadcasting for operands that are read row by row.

use super::operator::Tensor;

/// The sizes of a tensor.
#[derive(Clone, PartialEq, Eq)]
pub struct Shape(pub Vec<usize>);

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl Shape {
    pub fn new(sizes: &[i64]) -> Self {
        Shape(sizes.iter().map(|n| usize::try_from(*n).unwrap_or(0)).collect())
    }

    pub fn numel(&self) -> usize {
        self.0.iter().product()
    }

    /// The size of the last axis; 1 where there is none.
    pub fn width(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// How many rows there are along the last axis.
    pub fn rows(&self) -> usize {
        self.0[..self.0.len().saturating_sub(1)].iter().product()
    }

    /// The shape that both broadcast to.
    pub fn join(&self, other: &Shape) -> Result<Shape, String> {
        let rank = self.0.len().max(other.0.len());
        let size = |s: &Shape, k: usize| (k + s.0.len()).checked_sub(rank).map_or(1, |k| s.0[k]);
        let sizes = (0..rank).map(|k| match (size(self, k), size(other, k)) {
            (a, b) if a == b || b == 1 => Ok(a),
            (1, b) => Ok(b),
            _ => Err(format!("shapes {self} and {other} do not broadcast")),
        });
        sizes.collect::<Result<_, _>>().map(Shape)
    }
}

/// An operand as rows of a larger tensor.
pub struct Rows {
    at: *const f32,
    /// Sizes of the leading axes and the operand's strides along them, innermost first; neighbours that are one
    /// stretch of memory are merged.
    axes: Vec<(usize, usize)>,
    /// Where a size of 1 on the last axis is repeated: the repetition, kept alive.
    _repeated: Option<Vec<f32>>,
}

// SAFETY: as for `Tensor`.
unsafe impl Send for Rows {}
unsafe impl Sync for Rows {}

impl Rows {
    /// `operand` broadcast to `shape`.  Errors where it does not.
    pub fn new(operand: &Tensor<f32>, shape: &Shape) -> Result<Self, String> {
        if operand.shape.join(shape)? != *shape {
            return Err(format!("shape {} does not broadcast to {shape}", operand.shape));
        }
        let width = shape.width();
        let (mut at, mut repeated) = (operand.at, None);
        if operand.shape.width() != width {
            // SAFETY: the elements live as long as the call; nothing is written yet.
            let all: Vec<f32> =
                unsafe { operand.values() }.iter().flat_map(|x| std::iter::repeat_n(*x, width)).collect();
            at = all.as_ptr();
            repeated = Some(all);
        }
        let mut axes: Vec<(usize, usize)> = Vec::new();
        let mut stride = width;
        let leading = shape.0.len().saturating_sub(1);
        let missing = shape.0.len() - operand.shape.0.len();
        for k in (0..leading).rev() {
            let size = shape.0[k];
            let own = if k < missing { 1 } else { operand.shape.0[k - missing] };
            let step = if own == 1 { 0 } else { stride };
            stride *= own;
            match axes.last_mut() {
                _ if size == 1 => {}
                Some((n, s)) if *n * *s == step => *n *= size,
                _ => axes.push((size, step)),
            }
        }
        Ok(Rows { at, axes, _repeated: repeated })
    }

    /// How many rows of the larger tensor that follow one another, counted from the first, are one row of the operand.
    pub fn repeats(&self) -> usize {
        self.axes.first().filter(|(_, stride)| *stride == 0).map_or(1, |(size, _)| *size)
    }

    /// The address of row `r` of the larger tensor.
    ///
    /// # Safety
    /// There is such a row.
    #[inline]
    pub unsafe fn row(&self, r: usize) -> *const f32 {
        let (mut offset, mut rest) = (0, r);
        for (k, (size, stride)) in self.axes.iter().enumerate() {
            // The outermost axis takes what is left.
            if k + 1 == self.axes.len() {
                offset += rest * stride;
                break;
            }
            offset += rest % size * stride;
            rest /= size;
        }
        // SAFETY: by the caller's promise and the strides of `new`.
        unsafe { self.at.add(offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_numpy() {
        let values: Vec<f32> = (0..6).map(|x| x as f32).collect();
        let rows = |own: &[i64], full: &[i64]| {
            let (own, full) = (Shape::new(own), Shape::new(full));
            let rows = Rows::new(&Tensor { shape: own, at: values.as_ptr() }, &full).unwrap();
            // SAFETY: rows below the number of rows; widths are at least 1.
            (0..full.rows()).map(|r| unsafe { *rows.row(r) }).collect::<Vec<f32>>()
        };
        assert_eq!(rows(&[3, 2], &[3, 2]), [0.0, 2.0, 4.0]);
        assert_eq!(rows(&[2], &[2, 2, 2]), [0.0; 4]);
        assert_eq!(rows(&[3, 2], &[2, 3, 2]), [0.0, 2.0, 4.0, 0.0, 2.0, 4.0]);
        assert_eq!(rows(&[3, 1, 2], &[3, 2, 2]), [0.0, 0.0, 2.0, 2.0, 4.0, 4.0]);
        assert_eq!(rows(&[2, 1, 3, 1], &[2, 2, 3, 5]), [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 3.0, 4.0, 5.0]);
        assert_eq!(rows(&[], &[2, 3]), [0.0, 0.0]);
    }

    #[test]
    fn what_does_not_broadcast_is_refused() {
        let values = [0f32; 4];
        let x = Tensor { shape: Shape::new(&[4]), at: values.as_ptr() };
        assert!(Rows::new(&x, &Shape::new(&[4, 2])).is_err());
        assert!(Rows::new(&x, &Shape::new(&[1])).is_err());
    }
}
