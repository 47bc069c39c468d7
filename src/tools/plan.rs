//! What a training step will need, for a plan: the activations of a train.onnx that was compiled before.

use super::memory::{Memory, estimate};
use crate::compile::{Budget, Compiled, Options, compile};
use crate::error::Result;
use crate::manifest::{Manifest, Recompute};
use crate::onnx::weights::sha256;
use std::path::Path;

/// Bytes of the activations of one micro-batch of `batch` sequences of `length` tokens, by the estimate of `weftc
/// inspect`: the source is compiled again, which reads no weight.
///
/// # Errors
/// As a compile of `source`, which must be the model that the manifest names.
pub fn activations(manifest: &Manifest, source: &Path, batch: usize, length: usize) -> Result<u64> {
    let options = Options { memory: None, ..options(manifest, source) };
    let compiled = compile(&options)?;
    Ok(between(&estimate(&compiled)?, batch as f64, length as f64))
}

/// A train.onnx compiled again from its source, to count what it does and takes; `None` where the source is not there any
/// more or not the same, or was compiled with rules of its own.
pub fn recompiled(manifest: &Manifest, source: &Path) -> Option<Compiled> {
    let same = sha256(source).is_ok_and(|hash| hash == manifest.source.sha256);
    same.then(|| compile(&options(manifest, source)).ok()).flatten()
}

/// The options by which `source` was compiled to a train.onnx with this manifest.
pub fn options(manifest: &Manifest, source: &Path) -> Options {
    let budget = |r: &Recompute| Budget { bytes: r.budget, batch: Some(r.batch), length: Some(r.length) };
    Options {
        method: manifest.method.name.clone(),
        logits_shift: manifest.method.logits_shift,
        excludes_mask: manifest.method.excludes_mask,
        settings: manifest.method.options.iter().map(|(name, setting)| (name.clone(), setting.to_string())).collect(),
        probe: manifest.method.probe,
        memory: manifest.recompute.as_ref().map(budget),
        ..Options::of(manifest, source.to_path_buf(), None)
    }
}

/// The estimate at a point between those that are there, linear in either direction; never below what is known for less.
fn between(memory: &Memory, batch: f64, length: f64) -> u64 {
    let mut lengths: Vec<i64> = memory.steps.iter().map(|s| s.length).collect();
    lengths.dedup();
    let at = |l: i64| {
        let points: Vec<(f64, f64)> =
            (memory.steps.iter().filter(|s| s.length == l)).map(|s| (s.batch as f64, s.activations as f64)).collect();
        line(&points, batch)
    };
    let points: Vec<(f64, f64)> = lengths.iter().map(|l| (*l as f64, at(*l))).collect();
    line(&points, length).max(0.0) as u64
}

/// Through the two points around `x`; below the first through the origin, beyond the last along the last two.
fn line(points: &[(f64, f64)], x: f64) -> f64 {
    let k = points.partition_point(|p| p.0 < x).min(points.len().saturating_sub(1));
    let Some(&(x1, y1)) = points.get(k) else { return 0.0 };
    let (x0, y0) = if k == 0 { (0.0, 0.0) } else { points[k - 1] };
    y0 + (y1 - y0) * (x - x0) / (x1 - x0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_between_and_beyond() {
        let points = [(2.0, 20.0), (4.0, 60.0)];
        assert_eq!([1.0, 2.0, 3.0, 4.0, 5.0].map(|x| line(&points, x)), [10.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!((line(&points[..1], 3.0), line(&[], 3.0)), (30.0, 0.0));
    }
}
