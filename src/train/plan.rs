//! Which samples a step sees, and in which order.

use super::batch::{Batch, Shape};
use super::data::{self, Dataset};
use super::sampler::Sampler;
use crate::error::Result;

/// Which samples a step sees.
pub struct Plan<'a> {
    pub dataset: &'a Dataset,
    pub batch: usize,
    pub accumulate: usize,
    pub sampler: Sampler,
    /// Whether steps are made of samples of like length.
    pub by_length: bool,
    /// Whether samples share rows.
    pub packing: bool,
}

impl Plan<'_> {
    /// Optimizer steps of one pass over the data.
    pub fn steps_per_epoch(&self) -> u64 {
        self.dataset.samples.len().div_ceil(self.batch * self.accumulate).max(1) as u64
    }

    /// The samples of an epoch in the order in which steps take them.
    pub fn order(&self, epoch: u32) -> Vec<usize> {
        let drawn = self.sampler.order(epoch, self.dataset.samples.len());
        if !self.by_length {
            return drawn;
        }
        let length = |k: usize| self.dataset.samples[k].tokens.len();
        let grouped = data::grouped(&drawn, self.batch * self.accumulate, length);
        // Of a few samples the short last step may pad more than is saved.
        let saves = data::padding(&grouped, self.batch, &length) < data::padding(&drawn, self.batch, &length);
        if saves { grouped } else { drawn }
    }

    /// What the log says of padding; nothing where there is none.
    pub fn padding(&self) -> Option<String> {
        let length = |k: usize| self.dataset.samples[k].tokens.len();
        let drawn = data::padding(&self.sampler.order(0, self.dataset.samples.len()), self.batch, &length);
        let order = self.order(0);
        let share = if self.packing { data::left_over } else { data::padding };
        let percent = |x: f64| format!("{:.1} %", 100.0 * x);
        let instead = match (self.packing, self.by_length) {
            (true, _) => format!(" ({} with a row for each sample)", percent(drawn)),
            (_, true) => format!(" ({} without length groups)", percent(drawn)),
            _ => String::new(),
        };
        let share = share(&order, self.batch, &length);
        (drawn > 0.0).then(|| format!("{} of the tokens fed are padding{instead}", percent(share)))
    }

    /// The micro-batches of step `step` of an epoch whose order is `order`.
    pub fn batches(&self, order: &[usize], epoch: u32, step: u64, shape: Shape) -> Result<Vec<Batch>> {
        let group = self.batch * self.accumulate;
        let start = usize::try_from(step).unwrap_or(0) * group;
        let indices = &order[start.min(order.len())..(start + group).min(order.len())];
        let batch = |part: &[usize]| {
            let samples: Vec<_> = part.iter().map(|&i| (i, &self.dataset.samples[i])).collect();
            Batch::new(&samples, shape, self.sampler, epoch)
        };
        indices.chunks(self.batch).map(batch).collect()
    }
}
