//! Random numbers for the checks: small, seeded, the same on every machine.

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random {
    state: u64,
    /// The size of every axis, if the instance is a cube.
    side: Option<i64>,
    /// Whether axes are often empty.
    hollow: bool,
    always_hollow: bool,
}

impl Random {
    /// A stream for each name, so that adding a rule changes no other rule's instances.
    pub fn new(seed: u64, name: &str) -> Self {
        let mixed =
            name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Random { state: mixed, side: None, hollow: false, always_hollow: false }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// One of `0..n`; 0 for `n = 0`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// One of `low..=high`.
    pub fn int(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1).max(1) as usize) as i64
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// One of a list that is not empty.
    pub fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    /// The numbers `0..n` in random order.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut p: Vec<usize> = (0..n).collect();
        for k in (1..n).rev() {
            p.swap(k, self.below(k + 1));
        }
        p
    }

    /// Starts an instance.  Some are cubes: where sizes differ, sides that confuse two axes have different
    /// types and are never compared.  Some of the others have empty axes.
    pub fn start(&mut self) {
        self.side = if self.chance(0.4) && !self.always_hollow { Some(self.int(2, 3)) } else { None };
        self.hollow = self.chance(0.1) || self.always_hollow;
    }

    /// From here on every instance may have empty axes, and none is a cube.
    pub fn only_hollow(&mut self) {
        self.always_hollow = true;
    }

    /// A size that `:sample` names: 1 to 4, and 0 now and then where all instances may be hollow.
    pub fn named_size(&mut self) -> i64 {
        if self.always_hollow && self.chance(0.15) { 0 } else { self.int(1, 4) }
    }

    /// A size of a test tensor: mostly 2 to 4, sometimes 1, now and then 0; in a cube its side.
    pub fn size(&mut self) -> i64 {
        if let Some(side) = self.side {
            return side;
        }
        match self.unit() {
            u if u < if self.hollow { 0.15 } else { 0.02 } => 0,
            u if u < 0.20 => 1,
            u if u < 0.52 => 2,
            u if u < 0.83 => 3,
            _ => 4,
        }
    }
}
