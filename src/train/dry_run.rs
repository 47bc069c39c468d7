//! `weftc run --dry-run`: what a run would do, told without opening a session or writing a file.

use super::args::RunArgs;
use super::plan::Plan;
use crate::ir::DType;
use crate::manifest::{Manifest, Parameter, Role};
use crate::runtime::buffer::PAGE;
use crate::units::{bytes, thousands};
use std::collections::BTreeSet;

/// The plan of a run, for people; `activations` are the bytes of a micro-batch of so many sequences and tokens, where they
/// can be had; of a parameter that `is_looked_up` only the rows that occur have gradients and moments.
pub fn text(
    args: &RunArgs,
    manifest: &Manifest,
    plan: &Plan,
    steps: u64,
    is_looked_up: &dyn Fn(&Parameter) -> bool,
    activations: &dyn Fn(usize, usize) -> Option<u64>,
) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| out += &format!("{name:<12}{text}\n");
    let method = &manifest.method;
    line(
        "model",
        format!("{}: {} for {}, in {}", args.train_onnx.display(), method.name, manifest.source.file, manifest.compute),
    );
    let trained: Vec<&Parameter> = manifest.parameters.iter().filter(|p| p.role == Role::Trainable).collect();
    let numbers = |p: &[&Parameter]| p.iter().map(|p| count(p)).sum::<u64>();
    let all: Vec<&Parameter> = manifest.parameters.iter().collect();
    let share = 100.0 * numbers(&trained) as f64 / numbers(&all).max(1) as f64;
    let adapter = manifest.adapter.as_ref();
    let adapter = adapter.map(|a| format!(": {} of rank {} on {} modules", a.name, a.rank, a.modules.len()));
    line(
        "trains",
        format!(
            "{} of {} numbers ({share:.2} %) in {} of {} tensors{}",
            thousands(numbers(&trained)),
            thousands(numbers(&all)),
            trained.len(),
            all.len(),
            adapter.unwrap_or_default()
        ),
    );
    let samples = &plan.dataset.samples;
    let tokens: u64 = samples.iter().map(|s| s.total as u64).sum();
    let answers: u64 = samples.iter().map(|s| (s.total - s.prompt) as u64).sum();
    let longest = samples.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
    line(
        "data",
        format!(
            "{}: {} samples of {} tokens, {} of them in answers, the longest {}",
            args.data,
            thousands(samples.len() as u64),
            thousands(tokens),
            thousands(answers),
            thousands(longest as u64)
        ),
    );
    let per_epoch = plan.steps_per_epoch();
    let epochs = steps as f64 / per_epoch as f64;
    line(
        "steps",
        format!(
            "{} of {} x {} sequences, {epochs:.2} epochs of {}: about {} tokens",
            thousands(steps),
            plan.accumulate,
            plan.batch,
            thousands(per_epoch),
            thousands((tokens as f64 * epochs) as u64)
        ),
    );
    let weights: u64 = all.iter().map(|p| count(p) * size(p)).sum();
    let one: u64 = trained.iter().map(|p| count(p) * size(p)).sum();
    // The mask token is one of them.
    let words = samples.iter().flat_map(|s| &s.tokens).collect::<BTreeSet<_>>().len() as u64 + 1;
    let used = |p: &&Parameter| match p.shape.first() {
        Some(rows) if *rows > 0 && is_looked_up(p) => {
            let row = count(p) * size(p) / *rows as u64;
            // A row takes a page of memory at least.
            (words * row.next_multiple_of(PAGE as u64)).min(count(p) * size(p))
        }
        _ => count(p) * size(p),
    };
    let used: u64 = trained.iter().map(used).sum();
    let gradients = used * if plan.accumulate > 1 { 2 } else { 1 };
    let fixed = weights + gradients + 2 * used;
    let parts = format!("weights {}, gradients {}, moments {}", bytes(weights), bytes(gradients), bytes(2 * used));
    let micro = format!("one micro-batch of {} x {} tokens", plan.batch, thousands(longest as u64));
    line(
        "memory",
        match activations(plan.batch, longest) {
            Some(n) => format!("about {}: {parts}, and {} of activations in {micro}", bytes(fixed + n), bytes(n)),
            None => {
                let logits = plan.batch as u64 * longest as u64 * manifest.vocab_size as u64 * 4;
                format!(
                    "{} at least: {parts}, and {} of logits in {micro}; the other activations are estimated where the \
                     source model is (--model)",
                    bytes(fixed + logits),
                    bytes(logits)
                )
            }
        },
    );
    if let Some(out) = &args.out {
        let every = args.save_every.map_or("where it is interrupted".into(), |n| format!("every {n} steps"));
        let text = format!("{}: checkpoints of {} {every}, {} stay", out.display(), bytes(3 * one), args.keep);
        line("out", text);
    }
    out
}

fn count(p: &Parameter) -> u64 {
    p.shape.iter().map(|n| *n as u64).product()
}

/// Bytes of a number.
fn size(p: &Parameter) -> u64 {
    DType::parse(&p.dtype).map_or(4, |dtype| dtype.size() as u64)
}
