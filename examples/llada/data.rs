//! The external file: rotary tables, and weights as random numbers or holes.

use super::Shape;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{available_parallelism, scope};
use weftc::onnx::proto::tensor_proto::DataType;
use weftc::rng::SplitMix64;

const ROPE_BASE: f64 = 500_000.0;

/// What the elements of an external tensor are.
#[derive(Clone, Copy)]
pub enum Fill {
    /// Normal-like numbers of this scale, or holes.
    Random(f64),
    Ones,
    /// Cosines or sines of position times frequency.
    Angles(fn(f64) -> f64),
}

/// A tensor in the external file.
pub struct Part {
    pub offset: u64,
    pub numel: usize,
    pub dtype: DataType,
    pub fill: Fill,
}

impl Part {
    pub fn is_table(&self) -> bool {
        matches!(self.fill, Fill::Angles(_))
    }

    /// Writes tables, and weights where they are filled, into a file that is as long as all of them.
    fn write(&self, shape: &Shape, path: &Path) -> io::Result<()> {
        if shape.fill.is_none() && !self.is_table() {
            return Ok(());
        }
        let mut file = BufWriter::with_capacity(1 << 20, OpenOptions::new().write(true).open(path)?);
        file.seek(SeekFrom::Start(self.offset))?;
        let mut rng = SplitMix64::new(shape.fill.unwrap_or_default() ^ self.offset);
        let half = shape.width / shape.heads / 2;
        for k in 0..self.numel {
            let x = match self.fill {
                // The sum of four uniform draws has variance 1/3.
                Fill::Random(scale) => {
                    let draw = |_| (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
                    scale * 3f64.sqrt() * (0..4).map(draw).sum::<f64>()
                }
                Fill::Ones => 1.0,
                Fill::Angles(f) => f((k / half) as f64 * ROPE_BASE.powf(-((k % half) as f64) / half as f64)),
            };
            match self.dtype {
                DataType::Bfloat16 => file.write_all(&half::bf16::from_f64(x).to_le_bytes())?,
                _ => file.write_all(&(x as f32).to_le_bytes())?,
            }
        }
        file.flush()
    }
}

/// Writes all parts, on as many threads as there are.
pub fn write(parts: &[Part], shape: &Shape, path: &Path) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let some = || parts.get(next.fetch_add(1, Ordering::Relaxed));
    let work = || std::iter::from_fn(some).try_for_each(|part| part.write(shape, path));
    scope(|scope| {
        let threads: Vec<_> = (0..available_parallelism()?.get()).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
