//! Noise in real files: a training graph or an error of the model's, never a panic.

use crate::build::*;
use crate::outcome;
use prost::Message;
use weftc::error::Error;

/// Numbers from a fixed seed (Knuth's MMIX generator, upper bits).
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// One to four damages: a byte changed, a bit flipped, bytes left out, or bytes repeated.
fn damage(clean: &[u8], draw: &mut Draw) -> Vec<u8> {
    let mut bytes = clean.to_vec();
    for _ in 0..1 + draw.below(4) {
        let at = draw.below(bytes.len());
        let end = (at + 1 + draw.below(8)).min(bytes.len());
        match draw.below(6) {
            0..=1 => bytes[at] = draw.below(256) as u8,
            2..=3 => bytes[at] ^= 1 << draw.below(8),
            4 => drop(bytes.drain(at..end)),
            _ => drop(bytes.splice(at..at, clean[at.min(clean.len() - 1)..end.min(clean.len())].to_vec())),
        }
    }
    bytes
}

/// `WEFTC_NOISE` sets the number of rounds.
#[test]
fn noise_never_panics() {
    let rounds: usize = std::env::var("WEFTC_NOISE").ok().and_then(|n| n.parse().ok()).unwrap_or(500);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    // Most of an exported file is weights, where noise goes unseen: most rounds take the small one.
    let (small, exported) = (small().encode_to_vec(), exported());
    let mut draw = Draw(7);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..rounds {
        let bytes = damage(if round % 5 == 0 { &exported } else { &small }, &mut draw);
        std::fs::write(&path, &bytes).unwrap();
        match outcome(&path, |_| {}) {
            Ok(_) => accepted += 1,
            Err(e @ Error::Internal { .. }) => panic!("round {round}: {e}"),
            Err(_) => refused += 1,
        }
    }
    assert!(accepted > rounds / 20 && refused > rounds / 20, "{accepted} accepted, {refused} refused");
}
