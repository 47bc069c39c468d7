//! How many of the masked positions a step fills.

use serde::Serialize;

/// The number of tokens a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The same number in each step, the remainder in the first ones (LLaDA's linear schedule).
    #[default]
    Even,
    /// Times fall evenly from 1 to `eps`; from time t to s a share of `1 - s/t` is filled (Dream's).
    Timesteps { eps: f32 },
}

/// Dream's default for `Timesteps`.
pub const EPS: f32 = 1e-3;

impl Schedule {
    /// How many of `open` positions step `step` of `steps` fills; the last step fills all.
    pub fn count(self, open: usize, step: usize, steps: usize) -> usize {
        match self {
            _ if step + 1 >= steps => open,
            Schedule::Even => open.div_ceil(steps - step),
            // In f32 and rounded down, as Dream's code has it: 7.9999995 positions are 7.
            Schedule::Timesteps { eps } => (open as f32 * falling(eps, step, steps)) as usize,
        }
    }

    /// The probability with which each open position is filled by a step, where positions are drawn.
    pub fn chance(self, step: usize, steps: usize) -> f64 {
        match self {
            _ if step + 1 >= steps => 1.0,
            Schedule::Even => 1.0 / (steps - step) as f64,
            Schedule::Timesteps { eps } => f64::from(falling(eps, step, steps)),
        }
    }
}

/// `1 - s/t` of a step.
fn falling(eps: f32, step: usize, steps: usize) -> f32 {
    1.0 - time(eps, step + 1, steps) / time(eps, step, steps)
}

/// Point `k` of `steps + 1` from 1 to `eps`; from the middle on it is counted from the end, as PyTorch's `linspace`.
fn time(eps: f32, k: usize, steps: usize) -> f32 {
    let width = (eps - 1.0) / steps as f32;
    if k < steps.div_ceil(2) { 1.0 + width * k as f32 } else { eps - width * (steps - k) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_filled_by_the_last_step() {
        for schedule in [Schedule::Even, Schedule::Timesteps { eps: EPS }] {
            for (open, steps) in [(1, 1), (10, 4), (3, 8), (256, 128)] {
                let mut left = open;
                (0..steps).for_each(|step| left -= schedule.count(left, step, steps));
                assert_eq!(left, 0, "{schedule:?} {open} {steps}");
                assert_eq!(schedule.chance(steps - 1, steps), 1.0);
            }
        }
    }

    #[test]
    fn the_remainder_comes_first() {
        let counts = |open: usize, steps: usize| {
            let mut left = open;
            let step = |k: usize| {
                let n = Schedule::Even.count(left, k, steps);
                left -= n;
                n
            };
            (0..steps).map(step).collect::<Vec<_>>()
        };
        assert_eq!(counts(10, 4), [3, 3, 2, 2]);
        assert_eq!(counts(2, 4), [1, 1, 0, 0]);
    }
}
