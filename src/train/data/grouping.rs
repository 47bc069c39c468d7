//! Steps of samples of like length, so that little is padded.

/// Steps whose samples are exchanged for the sake of their length: enough for batches of nearly one length, few enough
/// that an epoch stays shuffled.
const WINDOW: usize = 64;

/// The order of an epoch in which each step of `group` samples holds like lengths.
///
/// Within windows of the shuffled `order` the samples are sorted by length and cut into steps; the steps follow one
/// another as their first samples did before, so no length comes first.  Samples of one length stay as they were, and
/// only the last step of the epoch may be short.
pub fn grouped(order: &[usize], group: usize, length: impl Fn(usize) -> usize) -> Vec<usize> {
    let mut lengths = order.iter().map(|&k| length(k));
    let first = lengths.next();
    if group < 2 || lengths.all(|n| Some(n) == first) {
        return order.to_vec();
    }
    let mut out = Vec::with_capacity(order.len());
    let mut short = Vec::new();
    for window in order.chunks(group * WINDOW) {
        let mut ranked: Vec<(usize, usize)> = window.iter().copied().enumerate().collect();
        ranked.sort_by_key(|(rank, k)| (length(*k), *rank));
        let (full, rest) = ranked.split_at(ranked.len() - ranked.len() % group);
        let mut steps: Vec<&[(usize, usize)]> = full.chunks(group).collect();
        steps.sort_by_key(|step| step.iter().map(|(rank, _)| *rank).min());
        out.extend(steps.concat().into_iter().map(|(_, k)| k));
        short.extend(rest.iter().map(|(_, k)| *k));
    }
    out.extend(short);
    out
}

/// The share of padding where batches of `batch` samples follow `order`, each filled up to its longest.
pub fn padding(order: &[usize], batch: usize, length: &dyn Fn(usize) -> usize) -> f64 {
    let (mut fed, mut real) = (0, 0);
    for samples in order.chunks(batch.max(1)) {
        let longest = samples.iter().map(|&k| length(k)).max().unwrap_or(0);
        fed += longest * samples.len();
        real += samples.iter().map(|&k| length(k)).sum::<usize>();
    }
    if fed == 0 { 0.0 } else { 1.0 - real as f64 / fed as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::SplitMix64;

    #[test]
    fn steps_hold_like_lengths_and_every_sample_once() {
        let mut rng = SplitMix64::new(5);
        let lengths: Vec<usize> = (0..1003).map(|_| 10 + rng.below(500)).collect();
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        rng.shuffle(&mut order);
        let new = grouped(&order, 8, |k| lengths[k]);
        let mut sorted = new.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..lengths.len()).collect::<Vec<_>>());
        let share = |order: &[usize]| padding(order, 8, &|k| lengths[k]);
        assert!(share(&order) > 0.35 && share(&new) < 0.02, "{} {}", share(&order), share(&new));
        // Neither the short nor the long ones come first.
        let middle = new.len() / 2;
        let mean = |part: &[usize]| part.iter().map(|k| lengths[*k]).sum::<usize>() / part.len();
        assert!(mean(&new[..middle]).abs_diff(mean(&new[middle..])) < 60);
    }

    #[test]
    fn one_length_stays_as_it_is() {
        let order = [4, 2, 0, 3, 1];
        assert_eq!(grouped(&order, 2, |_| 7), order);
        assert_eq!(grouped(&order, 1, |k| k), order);
        assert_eq!(padding(&order, 2, &|_| 7), 0.0);
        assert_eq!(padding(&[], 2, &|_| 7), 0.0);
    }
}
