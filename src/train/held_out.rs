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
    /// By samples, at each of the times.
    batches: Vec<Vec<Batch>>,
    /// The first samples, for prompts.
    pub first: Vec<Sample>,
}

impl HeldOut {
    /// The samples at each of the times, in batches of `size`; the draws are the same in every run.
    pub fn new(dataset: &Dataset, size: usize, shape: Shape) -> Result<Self> {
        let samples: Vec<_> = dataset.samples.iter().enumerate().collect();
        let batch = |part: &[(usize, &Sample)], k: u32| {
            let batch = Batch::new(part, shape, Sampler::new(0), k)?;
            let t = vec![(k as f32 + 0.5) / TIMES as f32; batch.t.len()];
            let t = HostTensor::new(batch.t.shape(), &t)?;
            // They are no samples of the training data: nothing is to be kept for them.
            Ok(Batch { t, samples: Vec::new(), dropout: None, ..batch })
        };
        let parts = samples.chunks(size.max(1));
        let batches = parts.map(|part| (0..TIMES).map(|k| batch(part, k)).collect()).collect::<Result<_>>()?;
        Ok(HeldOut { batches, first: dataset.samples.iter().take(PROMPTS).cloned().collect() })
    }

    /// The method's loss, normalised over all batches; changes nothing that training goes on from.
    ///
    /// # Errors
    /// Where the runtime fails.
    pub fn loss(&self, trainer: &mut Trainer) -> Result<f64> {
        let [sum, count] = trainer.losses(&self.batches)?;
        Ok(if count == 0.0 { 0.0 } else { sum / count })
    }
}
