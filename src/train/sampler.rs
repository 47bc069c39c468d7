//! Randomness: a pure function of (seed, epoch, sample, position).
//!
//! No state is carried from draw to draw, so a run can be repeated and resumed exactly, and neither the
//! batch size nor the number of threads changes what a sample sees.

/// Draws for a run, all from its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    seed: u64,
}

/// What a draw is for; part of the counter, so that no two purposes share a number.
#[derive(Clone, Copy)]
enum Stream {
    Shuffle = 0,
    Time = 1,
    Token = 2,
    Dropout = 3,
}

impl Sampler {
    pub fn new(seed: u64) -> Self {
        Sampler { seed }
    }

    /// The order of `samples` samples in an epoch: a permutation of `0..samples`.
    pub fn order(&self, epoch: u32, samples: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..samples).collect();
        // The index breaks ties, so the order is total.
        order.sort_by_cached_key(|&sample| {
            let [a, b, ..] = self.block(Stream::Shuffle, epoch, sample, 0);
            (u64::from(a) << 32 | u64::from(b), sample)
        });
        order
    }

    /// The time `t` of a sequence, uniform in [0, 1).
    pub fn time(&self, epoch: u32, sample: usize) -> f32 {
        unit(self.block(Stream::Time, epoch, sample, 0)[0])
    }

    /// The draws `u` of a sequence's first `length` tokens, uniform in [0, 1).
    pub fn tokens(&self, epoch: u32, sample: usize, length: usize) -> Vec<f32> {
        let blocks = (0..length.div_ceil(4)).flat_map(|k| self.block(Stream::Token, epoch, sample, k as u32));
        blocks.take(length).map(unit).collect()
    }

    /// `n` whole numbers below `field`, uniform but for one part in 10^6, as f32: those of a sequence's tokens, or of
    /// the `columns` that its elements are crossed with.
    pub fn dropout(&self, epoch: u32, sample: usize, columns: bool, n: usize, field: u32) -> Vec<f32> {
        // The two kinds count from far apart: a sequence has fewer than 2^31 blocks of numbers.
        let first = u32::from(columns) << 31;
        let blocks = (0..n.div_ceil(4)).flat_map(|k| self.block(Stream::Dropout, epoch, sample, first | k as u32));
        blocks.take(n).map(|bits| ((u64::from(bits) * u64::from(field)) >> 32) as f32).collect()
    }

    fn block(&self, stream: Stream, epoch: u32, sample: usize, position: u32) -> [u32; 4] {
        let sample = sample as u64;
        // Two bits of the stream above 62 bits of the sample: a data file has fewer lines.
        let high = (sample >> 32) as u32 | (stream as u32) << 30;
        philox([position, sample as u32, high, epoch], [self.seed as u32, (self.seed >> 32) as u32])
    }
}

/// The upper 24 bits as a number in [0, 1): every value is exactly representable in f32.
fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (high0, low0) = wide(0xD251_1F53, counter[0]);
        let (high1, low1) = wide(0xCD9E_8D57, counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

fn wide(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with Random123.
    #[test]
    fn philox_gives_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn a_draw_depends_on_everything_it_is_keyed_by_and_on_nothing_else() {
        let s = Sampler::new(7);
        assert_eq!(s.tokens(2, 5, 9)[..6], s.tokens(2, 5, 6)[..]);
        assert_eq!(s.time(2, 5), Sampler::new(7).time(2, 5));
        let others = [s.time(2, 6), s.time(3, 5), Sampler::new(8).time(2, 5), Sampler::new(7 | 1 << 40).time(2, 5)];
        assert!(others.iter().all(|t| *t != s.time(2, 5)));
        assert_ne!(s.time(2, 5), s.tokens(2, 5, 1)[0]);
    }

    #[test]
    fn an_order_is_a_permutation_that_changes_with_the_epoch() {
        let s = Sampler::new(1);
        let mut order = s.order(0, 100);
        assert_ne!(order, s.order(1, 100));
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }

    /// Mean and variance of 40,000 uniform draws within five standard errors.
    #[test]
    fn draws_are_uniform() {
        let n = 40_000;
        let u = Sampler::new(3).tokens(0, 0, n);
        assert!(u.iter().all(|x| (0.0..1.0).contains(x)));
        let mean = u.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
        let variance = u.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 5.0 * 0.2887 / 200.0, "{mean}");
        assert!((variance - 1.0 / 12.0).abs() < 5.0 * 0.0745 / 200.0, "{variance}");
    }
}
