//! What a machine takes for it: seconds by the amount of work, as `weftc bench --calibrate` measures them.
//!
//! A calibration changes predictions and nothing else: extraction weighs by fixed numbers, so that what `compile` writes
//! does not depend on a file that nobody named.

use super::{Unit, Work};
use crate::atomic;
use crate::error::{Error, Problem, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// The version of the file.
const VERSION: u32 = 1;

/// Seconds over an amount of work: straight between measured points, from nothing for nothing, at the last point's rate
/// beyond it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Curve(Vec<[f64; 2]>);

impl Curve {
    /// The curve through points (amount, seconds), the amounts rising.
    pub fn new(points: Vec<[f64; 2]>) -> Self {
        Curve(points)
    }

    pub fn seconds(&self, amount: f64) -> f64 {
        let Some(&[last, slowest]) = self.0.last() else { return 0.0 };
        if amount >= last {
            return slowest * amount / last;
        }
        let above = self.0.partition_point(|p| p[0] <= amount);
        let [x0, y0] = above.checked_sub(1).map_or([0.0, 0.0], |k| self.0[k]);
        let [x1, y1] = self.0[above];
        y0 + (y1 - y0) * (amount - x0) / (x1 - x0)
    }

    /// The most that is done in a second, by its points.
    pub fn best(&self) -> f64 {
        self.0.iter().map(|[amount, seconds]| amount / seconds).fold(0.0, f64::max)
    }

    /// Why it is no curve.
    fn fault(&self) -> Option<&'static str> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if self.0.is_empty() {
            return Some("has no point");
        }
        if !self.0.iter().all(|p| positive(p[0]) && positive(p[1])) {
            return Some("has a number that is not above 0");
        }
        (!self.0.is_sorted_by(|a, b| a[0] < b[0])).then_some("has amounts that do not rise")
    }
}

/// A machine and a number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub version: u32,
    /// The processor, for people.
    pub processor: String,
    pub threads: usize,
    /// Seconds that a node takes besides its work.
    pub node: f64,
    /// Floating-point operations of our products.
    pub product: Curve,
    /// Of ONNX Runtime's.
    pub matmul: Curve,
    /// Of attention in one kernel.
    pub attention: Curve,
    pub attention_grad: Curve,
    /// Bytes read and written.
    pub bytes: Curve,
    /// Exponentials and the like.
    pub functions: Curve,
    /// Elements that are summed up.
    pub sum: Curve,
}

impl Machine {
    /// The machine that times are predicted for where none was measured: two cores with AVX-512.
    pub fn reference() -> Self {
        let line =
            |points: &[(f64, f64)]| Curve(points.iter().map(|(amount, rate)| [*amount, amount / rate]).collect());
        Machine {
            version: VERSION,
            processor: "reference: two cores with AVX-512".into(),
            threads: 2,
            node: 3e-6,
            product: line(&[(4e6, 100e9), (300e6, 380e9), (2e9, 430e9)]),
            matmul: line(&[(4e6, 90e9), (300e6, 330e9), (2e9, 380e9)]),
            attention: line(&[(4e6, 50e9), (600e6, 200e9)]),
            attention_grad: line(&[(4e6, 50e9), (600e6, 200e9)]),
            bytes: line(&[(1e6, 40e9), (16e6, 30e9), (256e6, 25e9)]),
            functions: line(&[(1e5, 1e9), (1e6, 1.5e9)]),
            sum: line(&[(1e5, 2e9), (1e6, 3e9)]),
        }
    }

    /// Seconds of a node.
    pub fn seconds(&self, work: &Work) -> f64 {
        let products = work.products as f64;
        let pass = self.bytes.seconds(work.bytes as f64).max(self.functions.seconds(work.functions as f64));
        self.node
            + match work.unit {
                Unit::Pass => pass,
                Unit::Sum => self.sum.seconds(work.elements as f64).max(pass),
                Unit::MatMul => self.matmul.seconds(products).max(pass),
                Unit::Product => self.product.seconds(products).max(pass),
                // Its scores are never in memory.
                Unit::Attention => self.attention.seconds(products),
                Unit::AttentionGrad => self.attention_grad.seconds(products),
            }
    }

    fn curves(&self) -> [(&'static str, &Curve); 7] {
        [
            ("product", &self.product),
            ("matmul", &self.matmul),
            ("attention", &self.attention),
            ("attention_grad", &self.attention_grad),
            ("bytes", &self.bytes),
            ("functions", &self.functions),
            ("sum", &self.sum),
        ]
    }

    pub fn new(processor: String, threads: usize, node: f64, curves: [Curve; 7]) -> Self {
        let [product, matmul, attention, attention_grad, bytes, functions, sum] = curves;
        let version = VERSION;
        Machine { version, processor, threads, node, product, matmul, attention, attention_grad, bytes, functions, sum }
    }

    /// Reads a calibration.
    ///
    /// # Errors
    /// `Io`; `Usage` with everything that is wrong in the file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let help = "weftc bench --calibrate measures the machine anew";
        let refuse = |why: String| Problem::new(path.display().to_string(), why).help(help);
        let machine: Machine =
            toml::from_str(&text).map_err(|e| Error::usage(refuse(format!("is no calibration: {}", e.message()))))?;
        let mut problems = Vec::new();
        if machine.version != VERSION {
            problems.push(refuse(format!("has version {}, this weftc reads {VERSION}", machine.version)));
        }
        if machine.threads == 0 {
            problems.push(refuse("threads must be at least 1".into()));
        }
        if !(machine.node.is_finite() && machine.node >= 0.0) {
            problems.push(refuse("node is no number of seconds".into()));
        }
        problems.extend(machine.curves().iter().filter_map(|(name, c)| Some(refuse(format!("{name} {}", c.fault()?)))));
        if problems.is_empty() { Ok(machine) } else { Err(Error::Usage { problems }) }
    }

    /// Writes a calibration, whole or not at all.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(|e| Error::internal("calibrate", e.to_string()))?;
        atomic::write(path, |out| out.write_all(text.as_bytes()))
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} threads; a node by itself {:.1} us", self.processor, self.threads, self.node * 1e6)?;
        self.curves().iter().try_for_each(|(name, curve)| {
            let rates = curve.0.iter().map(|[amount, seconds]| format!("{:.1}", amount / seconds / 1e9));
            let unit = if matches!(*name, "bytes" | "functions" | "sum") { "G/s" } else { "GFLOP/s" };
            let least = curve.0.first().map_or(0.0, |p| p[0]);
            let most = curve.0.last().map_or(0.0, |p| p[0]);
            let rates = rates.collect::<Vec<_>>().join(" ");
            writeln!(f, "    {name:<14} {rates} {unit}, from {least:.1e} to {most:.1e} at once")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_straight_between_points() {
        let curve = Curve::new(vec![[2.0, 1.0], [4.0, 5.0]]);
        assert_eq!([0.0, 1.0, 2.0, 3.0, 4.0, 8.0].map(|x| curve.seconds(x)), [0.0, 0.5, 1.0, 3.0, 5.0, 10.0]);
        assert_eq!((curve.best(), Curve::new(vec![]).seconds(3.0)), (2.0, 0.0));
    }

    #[test]
    fn a_calibration_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calibration.toml");
        let machine = Machine::reference();
        machine.write(&path).unwrap();
        assert_eq!(Machine::read(&path).unwrap(), machine);
        let text = std::fs::read_to_string(&path).unwrap();
        let bad = text.replace("version = 1", "version = 9").replace("threads = 2", "threads = 0");
        let bad = bad.lines().map(|l| if l.starts_with("bytes") { "bytes = [[2.0, 1.0], [1.0, -1.0]]" } else { l });
        std::fs::write(&path, bad.collect::<Vec<_>>().join("\n")).unwrap();
        let Err(Error::Usage { problems }) = Machine::read(&path) else { panic!("it was read") };
        assert_eq!(problems.len(), 3, "{problems:?}");
        std::fs::write(&path, "threads = ").unwrap();
        assert_eq!(Machine::read(&path).unwrap_err().exit_code(), 2);
        assert_eq!(Machine::read(&folder.path().join("missing")).unwrap_err().exit_code(), 7);
    }
}
