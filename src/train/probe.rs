//! What the entropy pass gave for each sample, kept over steps (`--probe every:K`, `--probe reference`).

use super::batch::Batch;
use crate::error::{Error, Result};
use crate::ir::DType;
use crate::manifest::Probe;
use crate::runtime::HostTensor;
use std::collections::BTreeMap;

/// The rates of every sample that was seen, and when they were computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache {
    probe: Probe,
    samples: BTreeMap<usize, Kept>,
}

/// Of one sample: which epochs it holds for, and a number for each of its tokens.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    generation: u32,
    beta: Vec<f32>,
}

/// The cache as tensors, in the order of `Cache::tensors`.
pub const NAMES: [&str; 4] = ["probe/samples", "probe/generations", "probe/lengths", "probe/values"];

impl Cache {
    /// `None` where the pass is part of every step.
    pub fn new(probe: Probe) -> Option<Self> {
        (probe != Probe::EveryStep).then(|| Cache { probe, samples: BTreeMap::new() })
    }

    /// `beta` of a batch, `[B, L]` f32; `run` computes it where a sample's is missing or too old.
    pub fn beta(&mut self, batch: &Batch, run: impl FnOnce() -> Result<HostTensor>) -> Result<HostTensor> {
        let shape = batch.tokens.shape();
        let length = shape.get(1).and_then(|n| usize::try_from(*n).ok()).unwrap_or(0);
        let generation = self.probe.generation(batch.epoch).unwrap_or(0);
        let real =
            |row: usize| batch.real.bytes()[row * length..(row + 1) * length].iter().filter(|b| **b != 0).count();
        let fresh = |(row, sample): (usize, &usize)| {
            self.samples.get(sample).is_some_and(|k| k.generation == generation && k.beta.len() == real(row))
        };
        let (mut values, mut new) = (vec![0f32; batch.tokens.len()], Vec::new());
        if !batch.samples.is_empty() && batch.samples.iter().enumerate().all(fresh) {
            for (row, sample) in batch.samples.iter().enumerate() {
                let kept = &self.samples[sample].beta;
                values[row * length..row * length + kept.len()].copy_from_slice(kept);
            }
            return HostTensor::new(shape, &values);
        }
        let computed = run()?;
        if computed.len() != values.len() {
            return Err(Error::internal("probe", format!("{computed:?} is not one number a token of {shape:?}")));
        }
        values.iter_mut().zip(computed.to_f64()).for_each(|(v, x)| *v = x as f32);
        for (row, sample) in batch.samples.iter().enumerate() {
            let place = row * length..row * length + real(row);
            match self.samples.get(sample).filter(|_| fresh((row, sample))) {
                // A sample keeps what it has for its epochs, whoever is beside it.
                Some(kept) => values[place].copy_from_slice(&kept.beta),
                None => new.push((*sample, Kept { generation, beta: values[place].to_vec() })),
            }
        }
        self.samples.extend(new);
        HostTensor::new(shape, &values)
    }

    /// Everything that is kept, to be saved.
    pub fn tensors(&self) -> Result<[HostTensor; 4]> {
        let all = |f: &dyn Fn(&usize, &Kept) -> i64| self.samples.iter().map(|(s, k)| f(s, k)).collect::<Vec<i64>>();
        let n = [self.samples.len() as i64];
        let values: Vec<f32> = self.samples.values().flat_map(|k| k.beta.iter().copied()).collect();
        Ok([
            HostTensor::new(&n, &all(&|sample, _| *sample as i64))?,
            HostTensor::new(&n, &all(&|_, kept| i64::from(kept.generation)))?,
            HostTensor::new(&n, &all(&|_, kept| kept.beta.len() as i64))?,
            HostTensor::new(&[values.len() as i64], &values)?,
        ])
    }

    /// The types of `tensors`.
    pub const TYPES: [DType; 4] = [DType::I64, DType::I64, DType::I64, DType::F32];

    /// Puts back what `tensors` gave.
    ///
    /// # Errors
    /// Where the parts do not fit together.
    pub fn restore(&mut self, [samples, generations, lengths, values]: [HostTensor; 4]) -> Result<()> {
        let broken = || Error::runtime("the saved probe does not fit together");
        let values: Vec<f32> = values.to_f64().iter().map(|x| *x as f32).collect();
        let mut rest = values.as_slice();
        let mut restored = BTreeMap::new();
        for ((sample, generation), length) in samples.to_f64().iter().zip(generations.to_f64()).zip(lengths.to_f64()) {
            let (beta, behind) = rest.split_at_checked(length as usize).ok_or_else(broken)?;
            restored.insert(*sample as usize, Kept { generation: generation as u32, beta: beta.to_vec() });
            rest = behind;
        }
        if !rest.is_empty() || restored.len() != samples.len() {
            return Err(broken());
        }
        self.samples = restored;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::batch::Shape;
    use crate::train::data::Sample;
    use crate::train::sampler::Sampler;

    fn batch(samples: &[usize], epoch: u32) -> Batch {
        let own: Vec<Sample> =
            samples.iter().map(|k| Sample { tokens: vec![1; k + 2], prompt: 1, total: k + 2 }).collect();
        let rows: Vec<(usize, &Sample)> = samples.iter().copied().zip(&own).collect();
        Batch::new(&rows, Shape::default(), Sampler::new(0), epoch).unwrap()
    }

    #[test]
    fn samples_are_kept_for_their_epochs_and_over_a_restart() {
        let mut cache = Cache::new("every:2".parse().unwrap()).unwrap();
        let run = |x: f32| move || HostTensor::new(&[2, 3], &[x; 6]);
        let never = || -> Result<HostTensor> { panic!("it is kept") };
        let values = |t: HostTensor| t.values::<f32>().unwrap();
        assert_eq!(values(cache.beta(&batch(&[0, 1], 0), run(1.0)).unwrap()), [1.0; 6]);
        // Sample 0 has two tokens; in another place and the next epoch it is the same.
        assert_eq!(values(cache.beta(&batch(&[1, 0], 1), never).unwrap()), [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        let mut other = Cache::new("every:2".parse().unwrap()).unwrap();
        other.restore(cache.tensors().unwrap()).unwrap();
        assert_eq!(other, cache);
        assert_eq!(values(other.beta(&batch(&[0, 1], 2), run(2.0)).unwrap()), [2.0; 6]);
        // A new sample does not change what the one beside it has.
        assert_eq!(
            values(other.beta(&batch(&[0, 2], 2), || HostTensor::new(&[2, 4], &[3f32; 8])).unwrap())[..2],
            [2.0; 2]
        );
        assert_eq!(values(other.beta(&batch(&[0, 1], 3), never).unwrap()), [2.0, 2.0, 0.0, 2.0, 2.0, 2.0]);
        assert!(Cache::new(Probe::EveryStep).is_none());
    }
}
