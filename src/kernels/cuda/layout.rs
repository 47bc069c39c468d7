//! Where operands that broadcast have the elements of a result.

use super::super::broadcast::Shape;

/// How many axes a kernel is told of: `AXES` of `common.cuh`.
const AXES: usize = 6;

/// A result's axes, neighbours that are one stretch of memory in all operands merged, and operands' strides along them.
pub struct Layout {
    sizes: Vec<usize>,
    strides: Vec<Vec<usize>>,
}

impl Layout {
    /// Of operands that broadcast to `result`.
    ///
    /// # Errors
    /// Where one does not, or does so along more axes than kernels are told of.
    pub fn new(result: &Shape, operands: &[&Shape]) -> Result<Self, String> {
        let rank = result.0.len();
        let mut sizes: Vec<usize> = Vec::new();
        let mut strides = vec![Vec::new(); operands.len()];
        let mut steps = vec![1; operands.len()];
        for k in (0..rank).rev() {
            let own: Vec<usize> =
                operands.iter().map(|s| (k + s.0.len()).checked_sub(rank).map_or(1, |k| s.0[k])).collect();
            let along: Vec<usize> = own.iter().zip(&steps).map(|(n, step)| if *n == 1 { 0 } else { *step }).collect();
            steps.iter_mut().zip(&own).for_each(|(step, n)| *step *= n);
            let size = result.0[k];
            if let Some(j) = own.iter().position(|n| *n != 1 && *n != size) {
                return Err(format!("shape {} does not broadcast to {result}", operands[j]));
            }
            if size == 1 {
                continue;
            }
            // The axis inside goes on in this one where a step along this is all of that one's.
            let goes_on = |inner: usize| {
                let mut pairs = strides.iter().zip(&along);
                pairs.all(|(s, step): (&Vec<usize>, _)| s.last().is_some_and(|last| last * inner == *step))
            };
            match sizes.last_mut() {
                Some(inner) if *inner > 0 && goes_on(*inner) => *inner *= size,
                _ => {
                    sizes.push(size);
                    strides.iter_mut().zip(along).for_each(|(s, step)| s.push(step));
                }
            }
        }
        if sizes.len() > AXES {
            return Err(format!("operands broadcast to {result} along more than {AXES} axes"));
        }
        Ok(Layout { sizes, strides })
    }

    /// Whether every operand has the result's elements in its order.
    pub fn is_flat(&self) -> bool {
        self.sizes.is_empty() || self.sizes.len() == 1 && self.strides.iter().all(|s| s[0] == 1)
    }

    /// The structure `Axes`.
    pub fn axes(&self) -> Vec<i64> {
        let total: usize = self.sizes.iter().product();
        padded(&self.sizes, 1).into_iter().chain([total as i64]).collect()
    }

    /// The structure `Strides` of operand `k`.
    pub fn strides(&self, k: usize) -> Vec<i64> {
        padded(&self.strides[k], 0)
    }
}

/// Outermost first, as many as kernels are told of.
fn padded(values: &[usize], fill: i64) -> Vec<i64> {
    let missing = std::iter::repeat_n(fill, AXES - values.len());
    missing.chain(values.iter().rev().map(|n| *n as i64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(sizes: &[usize]) -> Shape {
        Shape(sizes.to_vec())
    }

    /// Where the kernels' `offset` finds an element.
    fn offset(layout: &Layout, operand: usize, mut index: usize) -> usize {
        let (axes, strides) = (layout.axes(), layout.strides(operand));
        let mut at = 0;
        for k in (0..AXES).rev() {
            at += index % axes[k] as usize * strides[k] as usize;
            index /= axes[k] as usize;
        }
        at
    }

    #[test]
    fn axes_merge_and_elements_are_found() {
        let result = shape(&[2, 3, 4, 5]);
        let operands = [shape(&[2, 3, 4, 5]), shape(&[4, 5]), shape(&[2, 1, 1, 5]), shape(&[3, 1, 1]), shape(&[])];
        let layout = Layout::new(&result, &operands.iter().collect::<Vec<_>>()).unwrap();
        for index in 0..120 {
            let at = [index / 60, index / 20 % 3, index / 5 % 4, index % 5];
            let expected = [index, at[2] * 5 + at[3], at[0] * 5 + at[3], at[1], 0];
            for (k, expected) in expected.into_iter().enumerate() {
                assert_eq!(offset(&layout, k, index), expected, "operand {k}, element {index}");
            }
        }
        let same = Layout::new(&result, &[&result, &result]).unwrap();
        assert!(same.is_flat() && same.axes() == [1, 1, 1, 1, 1, 120, 120]);
        let scaled = Layout::new(&result, &[&result, &shape(&[5])]).unwrap();
        assert!(!scaled.is_flat() && scaled.axes()[4..] == [24, 5, 120]);
        assert!(Layout::new(&result, &[&shape(&[3, 5])]).is_err());
        assert!(Layout::new(&shape(&[1, 1]), &[&shape(&[])]).unwrap().is_flat());
        // Of 12 sizes every other one is repeated.
        let (many, some) = (shape(&[2; 12]), shape(&[1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2]));
        assert!(Layout::new(&many, &[&some]).is_err());
    }
}
