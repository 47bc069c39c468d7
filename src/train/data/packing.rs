//! Samples that share rows, so that next to nothing is padded.

use crate::error::Result;
use crate::runtime::HostTensor;

/// Lengths of rows that are tried: from the longest sample's to twice that, in as many steps.
const STEPS: usize = 16;

/// What a row of the longest sample's length costs besides attention, in units of its attention, which grows with the
/// square of the length.
const PLAIN: usize = 8;

/// The samples of a micro-batch in rows of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    pub rows: usize,
    /// Places in a row.
    pub length: usize,
    /// By sample: its row, and where it begins.
    pub starts: Vec<(usize, usize)>,
}

impl Packing {
    /// The cheapest of a few row lengths, each filled by the first row that fits, the longest sample first.
    pub fn of(lengths: &[usize]) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&k| (std::cmp::Reverse(lengths[k]), k));
        let fitted = (0..=STEPS).map(|step| first_fit(lengths, &order, longest + longest * step / STEPS));
        let cost = |p: &Packing| (p.rows * p.length * (PLAIN * longest + p.length), p.length);
        fitted.min_by_key(cost).unwrap_or(Packing { rows: 0, length: 0, starts: vec![] })
    }

    /// The step's input `places` for a batch of samples padded to `padded` tokens: [rows, length] int64.
    pub fn places(&self, lengths: &[usize], padded: usize) -> Result<HostTensor> {
        let mut places = vec![-1i64; self.rows * self.length];
        for (sample, (&(row, start), &n)) in self.starts.iter().zip(lengths).enumerate() {
            let first = row * self.length + start;
            for (k, place) in places[first..first + n].iter_mut().enumerate() {
                *place = (sample * padded + k) as i64;
            }
        }
        HostTensor::new(&[self.rows as i64, self.length as i64], &places)
    }
}

/// Samples in rows of at most `most` places, which end where the fullest does.
fn first_fit(lengths: &[usize], order: &[usize], most: usize) -> Packing {
    let mut filled: Vec<usize> = Vec::new();
    let mut starts = vec![(0, 0); lengths.len()];
    for &sample in order {
        let n = lengths[sample];
        let row = filled.iter().position(|used| used + n <= most).unwrap_or_else(|| {
            filled.push(0);
            filled.len() - 1
        });
        starts[sample] = (row, filled[row]);
        filled[row] += n;
    }
    Packing { rows: filled.len(), length: filled.into_iter().max().unwrap_or(0), starts }
}

/// The share of padding where batches of `batch` samples follow `order` and share rows.
pub fn left_over(order: &[usize], batch: usize, length: &dyn Fn(usize) -> usize) -> f64 {
    let (mut fed, mut real) = (0, 0);
    for samples in order.chunks(batch.max(1)) {
        let lengths: Vec<usize> = samples.iter().map(|&k| length(k)).collect();
        let packing = Packing::of(&lengths);
        fed += packing.rows * packing.length;
        real += lengths.iter().sum::<usize>();
    }
    if fed == 0 { 0.0 } else { 1.0 - real as f64 / fed as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::SplitMix64;

    #[test]
    fn every_token_has_one_place() {
        let lengths = [3, 5, 2, 4];
        let packing = Packing::of(&lengths);
        assert_eq!((packing.rows, packing.length), (2, 7));
        let places = packing.places(&lengths, 5).unwrap();
        let wanted = [5, 6, 7, 8, 9, 10, 11, 15, 16, 17, 18, 0, 1, 2];
        assert_eq!(places.values::<i64>().unwrap(), wanted);
    }

    #[test]
    fn little_is_left_over_and_no_row_is_longer_than_two_samples() {
        let mut rng = SplitMix64::new(5);
        let lengths: Vec<usize> = (0..512).map(|_| 10 + rng.below(500)).collect();
        let order: Vec<usize> = (0..lengths.len()).collect();
        let share = left_over(&order, 8, &|k| lengths[k]);
        let padded = super::super::padding(&order, 8, &|k| lengths[k]);
        assert!(share < 0.06 && padded > 0.35, "{share} {padded}");
        for part in lengths.chunks(8) {
            let packing = Packing::of(part);
            assert!(packing.length <= 2 * part.iter().max().unwrap());
        }
        assert_eq!(Packing::of(&[]), Packing { rows: 0, length: 0, starts: vec![] });
        assert_eq!(left_over(&[], 2, &|_| 7), 0.0);
    }
}
