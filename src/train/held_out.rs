//! The loss on data that is not trained on, over fixed times and fixed draws: it changes with the weights alone.

use super::batch::{Batch, Shape};
use super::data::{Dataset, Sample};
use super::sampler::Sampler;
use super::samples::PROMPTS;
use super::trainer::Trainer;
use crate::error::Result;
use crate::runtime::HostTensor;

/// How many times each sample is masked: at the middles of as many equal parts of [0, 1).
const TIMES: u32 = 8;

/// The batches of an evaluation.
pub struct HeldOut {
    batches: Vec<Batch>,
    /// The first samples, for prompts.
    pub first: Vec<Sample>,
}

impl HeldOut {
    /// The samples at each of the times, in batches of `size`; the draws are the same in every run.
    pub fn new(dataset: &Dataset, size: usize, shape: Shape) -> Result<Self> {
        let samples: Vec<_> = dataset.samples.iter().enumerate().collect();
        let mut batches = Vec::new();
        for k in 0..TIMES {
            let t = (k as f32 + 0.5) / TIMES as f32;
            for part in samples.chunks(size.max(1)) {
                let batch = Batch::new(part, shape, Sampler::new(0), k)?;
                let t = HostTensor::new(batch.t.shape(), &vec![t; batch.t.len()])?;
                // They are no samples of the training data: nothing is to be kept for them.
                batches.push(Batch { t, samples: Vec::new(), dropout: None, ..batch });
            }
        }
        Ok(HeldOut { batches, first: dataset.samples.iter().take(PROMPTS).cloned().collect() })
    }

    /// The method's loss, normalised over all batches; changes nothing that training goes on from.
    ///
    /// # Errors
    /// Where the runtime fails.
    pub fn loss(&self, trainer: &mut Trainer) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0.0);
        for batch in &self.batches {
            let (s, c) = trainer.loss_on(batch)?;
            sum += s;
            count += c;
        }
        Ok(if count == 0.0 { 0.0 } else { sum / count })
    }
}
