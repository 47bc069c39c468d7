//! A measurement for people.

use super::Report;
use crate::cost::{Part, Prediction};
use std::fmt;

/// Operators that are shown.
const OPERATORS: usize = 12;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { threads, batch, length, step_s, profiled, .. } = self;
        writeln!(f, "{}: {}, {} trained, {}", self.model.display(), self.method, self.trainable, self.compute)?;
        writeln!(f, "{batch} sequences of {length} tokens, {:.0} masked; {threads} threads", self.masked)?;
        let (min, steps, rate) = (self.step_min_s, self.steps, self.tokens_per_s);
        writeln!(f, "step        {} (median of {steps}, least {}), {rate:.0} tokens/s", time(*step_s), time(min))?;
        if let Some(mb) = self.peak_rss_mb {
            writeln!(f, "memory      {mb} MB at most")?;
        }
        if let Some(mb) = self.device_mb {
            writeln!(f, "            {mb} MB of the GPU's in use")?;
        }
        let ceiling = self
            .ceiling_gflops
            .map_or("products alone were not measured".into(), |c| format!("products alone reach {c:.0} GFLOP/s"));
        match self.gflops.zip(self.gflops_unsunk) {
            Some((own, unsunk)) => {
                writeln!(f, "operations  {own:.0} GFLOP/s as executed, {unsunk:.0} as if every token were read")?;
                let shares = self.share.zip(self.share_unsunk);
                let shares = shares.map(|(own, unsunk)| format!("{own:.2} and {unsunk:.2} of the ceiling: "));
                writeln!(f, "            {}{ceiling}", shares.unwrap_or_default())?;
            }
            _ => writeln!(
                f,
                "operations  not counted: the source model is not there, or has rules of its own; {ceiling}"
            )?,
        }
        let change = 100.0 * (profiled.seconds / step_s - 1.0);
        writeln!(f, "\nparts of a profiled step (profiling changed its time by {change:+.0} %)")?;
        if self.device_mb.is_some() {
            writeln!(f, "    nodes only start work on the GPU: with CUDA_LAUNCH_BLOCKING=1 they wait for it")?;
        }
        let told = self.predicted.as_ref();
        // The cost model knows CPUs.
        let seconds = |seconds: f64| self.device_mb.is_none().then_some(seconds);
        writeln!(f, "    {:<12} {:>11} {:>11} {:>7} {:>10}", "part", "measured", "predicted", "ratio", "GFLOP")?;
        for part in Part::ALL {
            let measured = profiled.parts[part as usize];
            let share = told.map(|p| p.parts[part as usize]);
            row(f, part.name(), measured, share.map(|s| (seconds(s.seconds), s.flops)))?;
        }
        row(f, "between", profiled.between, None)?;
        row(f, "outside", profiled.outside, None)?;
        row(f, "sum", profiled.seconds, None)?;
        row(f, "unprofiled", *step_s, told.map(|p| (seconds(p.total().seconds), p.total().flops)))?;
        writeln!(f, "    between: in ONNX Runtime, but in no node; outside: batches are made, fed, results read")?;
        if let Some(p) = told.filter(|_| self.device_mb.is_none()) {
            writeln!(f, "    predicted for {}", machine(p))?;
        }
        writeln!(f, "\n    {:<12} {:<28} {:>6} {:>11} {:>7}", "part", "operator", "nodes", "time", "share")?;
        profiled.operators.iter().take(OPERATORS).try_for_each(|o| {
            let (part, share) = (o.part.name(), 100.0 * o.seconds / profiled.seconds);
            writeln!(f, "    {part:<12} {:<28} {:>6} {:>11} {share:>5.1} %", o.operator, o.nodes, time(o.seconds))
        })
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, measured: f64, told: Option<(Option<f64>, u64)>) -> fmt::Result {
    let flops = told.map(|(_, n)| format!("{:.3}", n as f64 / 1e9)).unwrap_or_default();
    let seconds = told.and_then(|(seconds, _)| seconds);
    let (seconds, ratio) = seconds.map(|s| (time(s), format!("{:.2}", s / measured))).unwrap_or_default();
    writeln!(f, "{}", format!("    {name:<12} {:>11} {seconds:>11} {ratio:>7} {flops:>10}", time(measured)).trim_end())
}

/// A prediction in one line.
pub fn line(p: &Prediction) -> String {
    let parts = Part::ALL.map(|part| format!("{} {}", part.name(), time(p.parts[part as usize].seconds)));
    let (batch, length, whole) = (p.load.batch, p.load.length, time(p.total().seconds));
    format!("a step of {batch} sequences of {length} tokens: {whole} ({}), for {}", parts.join(", "), machine(p))
}

fn machine(p: &Prediction) -> String {
    format!("{}, {} thread{}", p.machine, p.threads, if p.threads == 1 { "" } else { "s" })
}

/// Seconds for people.
pub fn time(seconds: f64) -> String {
    match seconds {
        1.0.. => format!("{seconds:.2} s"),
        1e-3.. => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{:.1} us", seconds * 1e6),
    }
}
