//! A batch: padded tokens, the answer mask, the draws, and whatever else the source model wants to be fed.

use super::data::{Packing, Sample};
use super::sampler::Sampler;
use crate::error::Result;
use crate::manifest::DROPOUT_FIELD;
use crate::runtime::HostTensor;

/// The inputs of one step, B sequences padded to L tokens.
#[derive(Clone, Debug)]
pub struct Batch {
    /// [B, L] int64, clean.
    pub tokens: HostTensor,
    /// [B, L] bool: what may be masked and is supervised.
    pub answer: HostTensor,
    /// `[B]` f32 in `[0, 1)`: one draw a sequence.
    pub t: HostTensor,
    /// [B, L] f32 in [0, 1): one draw a token.
    pub u: HostTensor,
    /// [B, L] bool: tokens that are no padding.
    pub real: HostTensor,
    /// Which samples of the data the rows are; empty where they are of no data.
    pub samples: Vec<usize>,
    pub epoch: u32,
    /// Numbers for dropout, [B, L, k] and [B, k, n] f32 (`manifest::DROPOUT`); without them nothing is dropped.
    pub dropout: Option<[HostTensor; 2]>,
    /// Where the sequences lie in rows (`manifest::PLACES`), for a packed step; without them each has a row of its own.
    pub places: Option<HostTensor>,
}

/// What shape batches must have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// The batch size of a graph that was exported for one; missing rows are padding.
    pub rows: Option<usize>,
    /// The length of a graph that was exported for one.
    pub length: Option<usize>,
    pub pad_id: i64,
    /// k and n of the numbers for dropout, where the graph has one.
    pub dropout: Option<[usize; 2]>,
    /// Whether sequences share rows.
    pub packing: bool,
}

impl Batch {
    /// The batch of the samples `(index in the data, sample)`, padded on the right to the longest, or to `shape`.
    pub fn new(samples: &[(usize, &Sample)], shape: Shape, sampler: Sampler, epoch: u32) -> Result<Self> {
        let longest = samples.iter().map(|(_, s)| s.tokens.len()).max().unwrap_or(0);
        let length = shape.length.unwrap_or(longest).max(longest);
        let rows = shape.rows.unwrap_or(samples.len()).max(samples.len());
        let n = rows * length;
        let (mut tokens, mut u) = (vec![shape.pad_id; n], vec![0f32; n]);
        let (mut answer, mut real) = (vec![false; n], vec![false; n]);
        let mut t = vec![0f32; rows];
        for (row, (index, sample)) in samples.iter().enumerate() {
            let at = row * length;
            tokens[at..at + sample.tokens.len()].copy_from_slice(&sample.tokens);
            answer[at + sample.prompt..at + sample.total].fill(true);
            real[at..at + sample.total].fill(true);
            u[at..at + length].copy_from_slice(&sampler.tokens(epoch, *index, length));
            t[row] = sampler.time(epoch, *index);
        }
        let dropout = shape.dropout.map(|[k, n]| dropout(samples, [rows, length], [k, n], sampler, epoch));
        let lengths: Vec<usize> = samples.iter().map(|(_, s)| s.tokens.len()).collect();
        let places = shape.packing.then(|| Packing::of(&lengths).places(&lengths, length));
        let shape = [rows as i64, length as i64];
        Ok(Batch {
            tokens: HostTensor::new(&shape, &tokens)?,
            answer: HostTensor::new(&shape, &answer)?,
            t: HostTensor::new(&shape[..1], &t)?,
            u: HostTensor::new(&shape, &u)?,
            real: HostTensor::new(&shape, &real)?,
            samples: samples.iter().map(|(index, _)| *index).collect(),
            epoch,
            dropout: dropout.transpose()?,
            places: places.transpose()?,
        })
    }

    /// L.
    pub fn length(&self) -> usize {
        self.tokens.shape().get(1).map_or(0, |n| *n as usize)
    }

    /// How many tokens are no padding.
    pub fn real_tokens(&self) -> usize {
        self.real.bytes().iter().filter(|b| **b != 0).count()
    }

    /// The value for the source model's input `name`, which has the shape [B, L]; `None` where weftc does not
    /// know what to feed.
    pub fn extra(&self, name: &str, dtype: crate::ir::DType) -> Option<Result<HostTensor>> {
        let shape = self.tokens.shape();
        let length = usize::try_from(*shape.get(1)?).ok()?;
        let values: Vec<f64> = match kind(name)? {
            Extra::Attention => self.real.to_f64(),
            Extra::Positions => (0..self.tokens.len()).map(|k| (k % length) as f64).collect(),
            Extra::Segments => vec![0.0; self.tokens.len()],
        };
        Some(HostTensor::from_f64(dtype, shape, &values))
    }
}

/// The numbers for dropout of samples padded to [B, L]: 0 for rows without a sample.
fn dropout(
    samples: &[(usize, &Sample)],
    [rows, length]: [usize; 2],
    [k, n]: [usize; 2],
    sampler: Sampler,
    epoch: u32,
) -> Result<[HostTensor; 2]> {
    let draw = |columns: bool, each: usize| {
        let mut numbers = Vec::with_capacity(rows * each);
        for (index, _) in samples {
            numbers.extend(sampler.dropout(epoch, *index, columns, each, DROPOUT_FIELD as u32));
        }
        numbers.resize(rows * each, 0.0);
        numbers
    };
    let (rows, length, k, n) = (rows as i64, length as i64, k as i64, n as i64);
    let tokens = draw(false, (length * k) as usize);
    let inputs = draw(true, (k * n) as usize);
    Ok([HostTensor::new(&[rows, length, k], &tokens)?, HostTensor::new(&[rows, k, n], &inputs)?])
}

enum Extra {
    /// 1 for tokens, 0 for padding.
    Attention,
    /// 0 .. L - 1.
    Positions,
    /// 0.
    Segments,
}

fn kind(name: &str) -> Option<Extra> {
    match name {
        "attention_mask" => Some(Extra::Attention),
        "position_ids" => Some(Extra::Positions),
        "token_type_ids" => Some(Extra::Segments),
        _ => None,
    }
}

/// Whether weftc knows what to feed to the input `name`.
pub fn is_known(name: &str) -> bool {
    kind(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::DType;

    fn sample(n: i64) -> Sample {
        Sample { tokens: (1..=n).collect(), prompt: 1, total: n as usize }
    }

    #[test]
    fn padding_is_never_an_answer() {
        let (a, b) = (sample(2), sample(4));
        let shape = Shape { rows: Some(3), length: Some(5), pad_id: 7, ..Shape::default() };
        let batch = Batch::new(&[(0, &a), (1, &b)], shape, Sampler::new(0), 0).unwrap();
        assert_eq!(batch.tokens.values::<i64>().unwrap(), [1, 2, 7, 7, 7, 1, 2, 3, 4, 7, 7, 7, 7, 7, 7]);
        assert_eq!(batch.answer.bytes(), [0, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(batch.real_tokens(), 6);
        let mask = batch.extra("attention_mask", DType::I64).unwrap().unwrap();
        assert_eq!(mask.to_f64()[..6], [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(batch.extra("position_ids", DType::I64).unwrap().unwrap().to_f64()[4..6], [4.0, 0.0]);
        assert!(batch.extra("pixel_values", DType::F32).is_none());
    }

    #[test]
    fn a_sample_is_drawn_the_same_in_any_batch() {
        let (a, b) = (sample(2), sample(4));
        let draws = |samples: &[(usize, &Sample)], row: usize| {
            let batch = Batch::new(samples, Shape::default(), Sampler::new(5), 3).unwrap();
            let (length, u) = (batch.u.shape()[1] as usize, batch.u.values::<f32>().unwrap());
            (batch.t.values::<f32>().unwrap()[row], u[row * length..row * length + 2].to_vec())
        };
        assert_eq!(draws(&[(0, &a)], 0), draws(&[(1, &b), (0, &a)], 1));
    }
}
