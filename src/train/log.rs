//! What is seen of a run: a progress bar or plain lines, and `metrics.jsonl`, and event files.

use super::tensorboard::Events;
use crate::atomic;
use crate::error::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize)]
pub struct Metrics {
    /// From 1.
    pub step: u64,
    pub epoch: u32,
    pub loss: f64,
    pub loss_sum: f64,
    pub loss_count: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// Tokens of this step that are no padding.
    pub tokens: usize,
    /// How many of them were masked.
    pub masked: usize,
    /// The loss on --eval-data behind this step, where it was due and is finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// The time this step took.
    pub seconds: f64,
    /// `updated`, `empty` (nothing was masked) or `skipped` (not finite).
    pub outcome: &'static str,
}

/// Where progress goes.
pub struct Log {
    bar: Option<ProgressBar>,
    /// Print a line every so many steps, where there is no bar.
    every: u64,
    quiet: bool,
    steps: u64,
    file: Option<(File, PathBuf)>,
    events: Option<Events>,
    start: Instant,
    tokens: usize,
}

impl Log {
    /// `done` of `steps` steps are made already; `folder` gets `metrics.jsonl`, which a resumed run appends to, and
    /// with `tensorboard` an event file.
    pub fn new(done: u64, steps: u64, quiet: bool, folder: Option<&Path>, tensorboard: bool) -> Result<Self> {
        let terminal = std::io::stderr().is_terminal() && !quiet;
        let style = "{bar:24} {pos}/{len}  {msg}  {elapsed} < {eta}";
        let bar = terminal.then(|| {
            let bar = ProgressBar::new(steps).with_position(done);
            bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.reset_eta();
            bar
        });
        let open = |folder: &Path| {
            let path = folder.join("metrics.jsonl");
            let kept = if done == 0 { String::new() } else { lines_until(&path, done)? };
            atomic::write(&path, |file| file.write_all(kept.as_bytes()))?;
            let file = File::options().append(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
            Ok::<_, Error>((file, path))
        };
        let file = folder.map(open).transpose()?;
        let events = folder.filter(|_| tensorboard).map(|folder| Events::new(folder, done)).transpose()?;
        let every = steps.div_ceil(50).max(1);
        Ok(Log { bar, every, quiet, steps, file, events, start: Instant::now(), tokens: 0 })
    }

    pub fn step(&mut self, m: &Metrics) -> Result<()> {
        self.tokens += m.tokens;
        let rate = self.tokens as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        let outcome = if m.outcome == "updated" { "" } else { m.outcome };
        let held_out = m.eval_loss.map(|loss| format!("eval {loss:.4}  ")).unwrap_or_default();
        let text = format!("loss {:.4}  {held_out}norm {:.3}  {rate:.0} tok/s  {outcome}", m.loss, m.grad_norm);
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            bar.inc(1);
        } else if !self.quiet
            && (m.step.is_multiple_of(self.every) || m.step == 1 || m.step == self.steps || m.eval_loss.is_some())
        {
            eprintln!("step {}/{}  {}", m.step, self.steps, text.trim_end());
        }
        if let Some(events) = &mut self.events {
            events.step(m)?;
        }
        if let Some((file, path)) = &mut self.file {
            let mut line = serde_json::to_string(m).map_err(|e| Error::internal("log", e.to_string()))?;
            line.push('\n');
            file.write_all(line.as_bytes()).map_err(|e| Error::io("write", path, e))?;
        }
        Ok(())
    }

    /// A line that does not disturb the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.quiet => {}
            None => eprintln!("{line}"),
        }
    }

    /// Closes the bar; returns the seconds since the start.
    pub fn finish(&self) -> f64 {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
        self.start.elapsed().as_secs_f64()
    }
}

/// The lines of an earlier run up to step `done`: it may have gone on after the state was saved.
pub(super) fn lines_until(path: &Path, done: u64) -> Result<String> {
    #[derive(serde::Deserialize)]
    struct Line {
        step: u64,
    }
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        other => other.map_err(|e| Error::io("read", path, e))?,
    };
    let before = |line: &&str| serde_json::from_str::<Line>(line).is_ok_and(|l| l.step <= done);
    Ok(text.lines().filter(before).flat_map(|line| [line, "\n"]).collect())
}
