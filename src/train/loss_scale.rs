//! Dynamic loss scaling: gradients in f16 are computed times a power of two, so that small ones are not 0.
//!
//! As in PyTorch's `GradScaler`, but that the scale halves and doubles only between bounds.  Powers of two
//! make the division by the scale exact.

use serde::{Deserialize, Serialize};

/// The scale of the first step: 2^16.
const START: u32 = 16;

/// The largest scale, 2^24: gradients that are still 0 at it are below what AdamW's eps lets through.
const MOST: u32 = 24;

/// So many steps without an overflow double the scale.
const GOOD_STEPS: u32 = 2000;

/// What the seed of the reverse sweep is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossScale {
    /// The scale is 2 to this power; the least is 2^0.
    log2: u32,
    /// Updates since the scale last changed.
    good: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale { log2: START, good: 0 }
    }
}

impl LossScale {
    pub fn scale(&self) -> f64 {
        f64::from(self.log2).exp2()
    }

    /// Gradients were finite.
    pub fn updated(&mut self) {
        self.good += 1;
        if self.good >= GOOD_STEPS {
            *self = LossScale { log2: (self.log2 + 1).min(MOST), good: 0 };
        }
    }

    /// Gradients overflowed.  Whether a smaller scale is left to try; if not, the step has failed for good.
    pub fn overflowed(&mut self) -> bool {
        let can_halve = self.log2 > 0;
        *self = LossScale { log2: self.log2.saturating_sub(1), good: 0 };
        can_halve
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_halves_down_to_one() {
        let mut s = LossScale::default();
        for k in (0..START).rev() {
            assert!(s.overflowed());
            assert_eq!(s.scale(), f64::from(k).exp2());
        }
        assert!(!s.overflowed());
        assert_eq!(s.scale(), 1.0);
    }

    #[test]
    fn good_steps_in_a_row_double_it_up_to_a_bound() {
        let mut s = LossScale::default();
        (1..GOOD_STEPS).for_each(|_| s.updated());
        assert!(s.overflowed());
        (1..GOOD_STEPS).for_each(|_| s.updated());
        assert_eq!(s.scale(), 32768.0);
        s.updated();
        assert_eq!(s.scale(), 65536.0);
        (0..20 * GOOD_STEPS).for_each(|_| s.updated());
        assert_eq!(s.scale(), f64::from(MOST).exp2());
    }
}
