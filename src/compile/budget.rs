//! Fitting a step into memory: as few layers as that takes are recomputed in the backward part.

use super::Pipeline;
use super::compiled::has_kernels;
use crate::error::{Error, Problem, Result};
use crate::ir::{DType, Graph, LeafId};
use crate::manifest::Recompute;
use crate::memory::Values;
use crate::recompute::Layers;
use crate::schedule;

/// The batch that a step is estimated for where nothing says so: that of `weftc run`.
const BATCH: i64 = 8;

/// What a training step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub bytes: u64,
    /// Sequences in a micro-batch [the model's own, else 8].
    pub batch: Option<i64>,
    /// Tokens in a sequence [the model's own, else the longest that it takes].
    pub length: Option<i64>,
}

/// Reads `800MB`, `1.5 GiB` or a number of bytes.
///
/// # Errors
/// What is no size.
pub fn bytes(text: &str) -> std::result::Result<u64, String> {
    let text = text.trim();
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text[..text.len() - unit.len()].parse().map_err(|_| format!("`{text}` starts with no number"))?;
    let (letter, rest) = unit.trim().split_at(unit.trim().len().min(1));
    let power = match letter.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(format!("`{unit}` is no unit of memory; 12GB, 800MB and 1.5GiB are sizes")),
    };
    let base: f64 = match rest.to_ascii_lowercase().as_str() {
        "" | "b" => 1000.0,
        "i" | "ib" => 1024.0,
        _ => return Err(format!("`{unit}` is no unit of memory; 12GB, 800MB and 1.5GiB are sizes")),
    };
    Ok((number * base.powi(power)) as u64)
}

impl Pipeline<'_> {
    /// `graph` with as few layers recomputed as the budget asks for, and what to say of it in the manifest.
    pub(super) fn fit(
        &mut self,
        graph: Graph,
        most_tokens: Option<i64>,
        token_input: &str,
        trainable: &[LeafId],
        compute: DType,
    ) -> Result<(Graph, Option<Recompute>)> {
        let Some(budget) = self.options.memory else { return Ok((graph, None)) };
        let tokens = graph.find_leaf(token_input).map(|l| graph.leaf(l).ty.shape.clone()).unwrap_or_default();
        let [rows, columns] = tokens.as_slice() else {
            return Err(Error::internal("schedule", "the tokens are not [batch, length]"));
        };
        let batch = fixed("--budget-batch", rows.known(), budget.batch)?.unwrap_or(BATCH);
        let length = fixed("--budget-length", columns.known(), budget.length)?.or(most_tokens);
        let Some(length) = length else {
            let problem = Problem::new("--memory-budget", "nothing says how long sequences are")
                .help("give the longest of your data: --budget-length 1024");
            return Err(Error::usage(problem));
        };
        let rules = &self.library.lower;
        let kernels = has_kernels(self.options.target, compute.name());
        let total = |graph: &Graph| -> Result<u64> {
            let values = Values::new(graph, &schedule::order(graph), rules, kernels)?;
            Ok(values.fixed(trainable).total() + values.peak(rows, batch, length))
        };
        let whole = total(&graph)?;
        let step = format!("a step of {batch} sequences of {length} tokens");
        if whole <= budget.bytes {
            self.notes.push(format!("{step} takes {} (estimate): nothing needs to be recomputed", mb(whole)));
            return Ok((graph, None));
        }
        let order = schedule::order(&graph);
        let layers = Layers::find(&graph, order);
        let of = layers.count();
        let with = |n: usize| -> Result<(Graph, u64)> {
            let changed = layers.recomputed(&graph, n)?;
            let bytes = total(&changed)?;
            Ok((changed, bytes))
        };
        let (mut chosen, mut estimate) = with(of)?;
        if estimate > budget.bytes {
            let told = if of == 0 {
                "no repeated layers were found that could be recomputed".into()
            } else {
                format!("with all {of} layers recomputed it takes {}", mb(estimate))
            };
            let problem = Problem::new("--memory-budget", format!("{} do not hold {step}: {told}", mb(budget.bytes)))
                .help(format!(
                    "the least is --memory-budget {}MB; fewer or shorter sequences (--budget-batch, --budget-length), \
                     or adapters (--trainable lora) take less",
                    estimate.min(whole).div_ceil(1_000_000)
                ));
            return Err(Error::usage(problem));
        }
        // The more layers, the less memory.
        let (mut too_few, mut enough) = (0, of);
        while enough - too_few > 1 {
            let n = too_few.midpoint(enough);
            let (changed, bytes) = with(n)?;
            if bytes <= budget.bytes {
                (chosen, estimate, enough) = (changed, bytes, n);
            } else {
                too_few = n;
            }
        }
        self.notes.push(format!(
            "recomputes the first {enough} of {of} layers in the backward part: {step} takes {} (estimate), without {}",
            mb(estimate),
            mb(whole)
        ));
        let recompute = Recompute { layers: enough, of, budget: budget.bytes, batch, length, estimate };
        Ok((chosen, Some(recompute)))
    }
}

/// A size that the model fixes, or that the user gives.
fn fixed(flag: &'static str, own: Option<i64>, given: Option<i64>) -> Result<Option<i64>> {
    match (own, given) {
        (Some(own), Some(given)) if own != given => {
            Err(Error::usage(Problem::new(flag, format!("the model fixes {own}, not {given}"))))
        }
        (_, Some(given)) if given < 1 => Err(Error::usage(Problem::new(flag, "must be at least 1"))),
        _ => Ok(own.or(given)),
    }
}

fn mb(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_read() {
        let sizes = ["12GB", "800MB", "1.5 GiB", "500kB", "4096", "2g", "1TB"].map(bytes);
        let wanted = [12_000_000_000, 800_000_000, 1_610_612_736, 500_000, 4096, 2_000_000_000, 1_000_000_000_000];
        assert_eq!(sizes, wanted.map(Ok));
        assert!(["", "GB", "12XB", "12GX", "1.2.3MB", "-5MB"].iter().all(|s| bytes(s).is_err()));
    }
}
