//! Products that are added up to one result.

use super::product::Matrix;

/// `scale x[m steps] y[steps n]`, one product of a sum.
#[derive(Clone, Copy)]
pub struct Term {
    pub x: Matrix,
    pub y: Matrix,
    pub steps: usize,
    pub scale: f32,
}

impl Term {
    /// What it adds to the result from row `i` and column `j` on.
    ///
    /// # Safety
    /// Both factors reach there.
    pub unsafe fn from(self, i: usize, j: usize) -> Self {
        // SAFETY: by the caller's promise.
        unsafe { Term { x: self.x.from(i, 0), y: self.y.from(0, j), ..self } }
    }

    /// At most so many steps from `start` on.
    ///
    /// # Safety
    /// There are steps from there on.
    unsafe fn part(self, start: usize, most: usize) -> Self {
        // SAFETY: by the caller's promise.
        let (x, y) = unsafe { (self.x.from(0, start), self.y.from(start, 0)) };
        Term { x, y, steps: most.min(self.steps - start), ..self }
    }
}

/// Terms cut into groups of so many steps each, or an eighth more: what is left of a term, or a short one, goes with those
/// before, so that the result is not written once more for it.
///
/// # Safety
/// The factors have the steps that are said.
pub unsafe fn groups(terms: &[Term], most: usize) -> Vec<Vec<Term>> {
    let mut groups: Vec<Vec<Term>> = vec![];
    for term in terms {
        // At least once: sums of nothing are zeros.
        for start in (0..term.steps.max(1)).step_by(most) {
            // SAFETY: by the caller's promise.
            let part = unsafe { term.part(start, most) };
            match groups.last_mut() {
                Some(group) if steps(group) + part.steps <= most + most / 8 => group.push(part),
                _ => groups.push(vec![part]),
            }
        }
    }
    groups
}

/// Steps of all terms.
pub fn steps(terms: &[Term]) -> usize {
    terms.iter().map(|term| term.steps).sum()
}

#[cfg(test)]
mod tests {
    use super::super::operator::Target;
    use super::super::panels::add_up;
    use super::super::tiles::FORCED;
    use super::*;

    #[test]
    fn what_is_short_goes_with_what_is_before() {
        let numbers = [0f32; 1];
        let cut = |steps: &[usize]| {
            let x = Matrix { at: numbers.as_ptr(), row: 0, column: 0 };
            let terms: Vec<Term> = steps.iter().map(|steps| Term { x, y: x, steps: *steps, scale: 1.0 }).collect();
            // SAFETY: all steps lie at one place.
            let groups = unsafe { groups(&terms, 64) };
            groups.iter().map(|group| group.iter().map(|term| term.steps).collect()).collect::<Vec<Vec<usize>>>()
        };
        assert_eq!(cut(&[0]), [[0]]);
        assert_eq!(cut(&[64, 8]), [[64, 8]]);
        assert_eq!(cut(&[72]), [[64, 8]]);
        assert_eq!(cut(&[8, 64, 9]), [vec![8, 64], vec![9]]);
        assert_eq!(cut(&[130, 64]), [vec![64], vec![64, 2], vec![64]]);
    }

    /// Against one product after another, the longer first or last.
    #[test]
    fn terms_are_added_up() {
        let numbers = |n: usize, seed: usize| {
            (seed..seed + n).map(|k| (k * 7919 % 4093) as f32 / 4093.0 - 0.5).collect::<Vec<f32>>()
        };
        for tiles in [false, true] {
            FORCED.set(Some(tiles));
            for ([m, n], steps) in [([70, 65], [520, 8]), ([33, 40], [8, 130]), ([70, 9], [40, 8]), ([6, 70], [40, 8])]
            {
                for transposed in [[false; 4], [true; 4], [false, true, true, false]] {
                    let factors: Vec<[Vec<f32>; 2]> =
                        steps.iter().map(|k| [numbers(m * k, 1), numbers(k * n, 5)]).collect();
                    let terms: Vec<Term> = (factors.iter().zip(steps).zip(transposed.chunks(2)))
                        .map(|(([x, y], k), t)| Term {
                            x: Matrix::new(x.as_ptr(), if t[0] { m } else { k }, t[0]),
                            y: Matrix::new(y.as_ptr(), if t[1] { k } else { n }, t[1]),
                            steps: k,
                            scale: 1.0 / k as f32,
                        })
                        .collect();
                    let before = numbers(m * n, 3);
                    let (mut at_once, mut one_by_one) = (vec![f32::NAN; m * n], before.clone());
                    let [to, other] = [&mut at_once, &mut one_by_one].map(|to| Target(to.as_mut_ptr()));
                    let add = Target(before.as_ptr().cast_mut());
                    // SAFETY: all have the sizes that are said.
                    unsafe {
                        add_up(None, [m, n], &terms, (to, n), Some(add)).unwrap();
                        for term in &terms {
                            add_up(None, [m, n], &[*term], (other, n), Some(other)).unwrap();
                        }
                    }
                    for (got, want) in at_once.iter().zip(&one_by_one) {
                        assert!((got - want).abs() < 1e-6, "{tiles} {m} {n} {steps:?}: {got} {want}");
                    }
                }
            }
        }
    }
}
