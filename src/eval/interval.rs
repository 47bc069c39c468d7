//! Confidence intervals.

use serde::Serialize;

/// The 97.5 % point of the normal distribution.
pub const Z95: f64 = 1.959963984540054;

/// A measured value and what it may be, with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// A share of `items`, of which each is right or wrong, or right in part: Wilson's interval (1927), which stays in
    /// [0, 1] and is sensible for few items.
    pub fn share(value: f64, items: usize) -> Self {
        if items == 0 {
            return Estimate { value: f64::NAN, low: 0.0, high: 1.0 };
        }
        let (n, z2) = (items as f64, Z95 * Z95);
        let centre = (value + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = Z95 / (1.0 + z2 / n) * (value * (1.0 - value) / n + z2 / (4.0 * n * n)).sqrt();
        Estimate { value, low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
    }

    /// The mean of values that are independent, with the normal interval of their standard error.
    pub fn mean(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let value = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - value).powi(2)).sum::<f64>() / (n - 1.0);
        let half = if values.len() > 1 { Z95 * (variance / n).sqrt() } else { f64::INFINITY };
        Estimate { value, low: value - half, high: value + half }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At either end the measured share lies 1.96 standard deviations off.
    #[test]
    fn wilsons_interval() {
        for (share, n) in [(0.8, 10), (0.0, 20), (0.675, 200), (1.0, 5), (0.33, 1000)] {
            let e = Estimate::share(share, n);
            for end in [e.low, e.high] {
                let off = (share - end).abs();
                let deviation = (end * (1.0 - end) / n as f64).sqrt();
                assert!((off - Z95 * deviation).abs() < 1e-9, "{share} of {n}: {e:?}");
            }
            assert!(e.low <= share && share <= e.high && e.low >= 0.0 && e.high <= 1.0);
        }
        assert!(Estimate::share(0.0, 0).value.is_nan());
    }

    #[test]
    fn the_interval_of_a_mean() {
        let e = Estimate::mean(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(e.value, 2.5);
        assert!((e.high - 2.5 - Z95 * 0.645_497_224).abs() < 1e-8);
        assert_eq!(Estimate::mean(&[1.0]).low, f64::NEG_INFINITY);
    }
}
