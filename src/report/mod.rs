//! `weftc report`: the curves and settings of runs, side by side, in one file that needs nothing else.

mod chart;
mod figure;
mod page;
mod parts;
mod samples;
mod tokens;

use crate::atomic;
use crate::error::{Error, Problem, Result};
use crate::stdout::print;

use samples::Sample;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokens::Tokens;

/// Show runs: curves, figures and settings side by side, in one HTML file
#[derive(Clone, Debug, clap::Args)]
pub struct ReportArgs {
    /// The --out folders of runs
    #[arg(required = true, value_name = "DIR")]
    runs: Vec<PathBuf>,
    /// Where to write the page
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
    /// Also write the curves and the token map of the first run as an SVG, for a README or a paper
    #[arg(long, value_name = "FILE.svg")]
    figure: Option<PathBuf>,
    /// Print nothing on success
    #[arg(short, long)]
    quiet: bool,
}

/// What run.json has of the things that a run was made of, and what the page calls them.
const HASHED: [(&str, &str); 3] = [
    ("--data", "hash of the data"),
    ("TRAIN_ONNX", "hash of train.onnx"),
    ("the source model", "hash of the source model"),
];

/// What a run has left in its folder.
pub(crate) struct Run {
    name: String,
    /// The lines of metrics.jsonl.
    steps: Vec<Value>,
    /// How far it came, as run.json says.
    state: String,
    /// The settings of run.toml, where it is there, and the hashes of run.json.
    settings: BTreeMap<String, String>,
    /// What is in parts.json, where it is there.
    parts: Value,
    /// What is in tokens.json, where it is there.
    tokens: Option<Tokens>,
    /// The lines of samples.jsonl.
    samples: Vec<Sample>,
}

/// Writes the page.
///
/// # Errors
/// `Usage`, with every folder that holds no run; `Io`.
pub fn report(args: &ReportArgs) -> Result<()> {
    let (mut runs, mut problems) = (Vec::new(), Vec::new());
    for folder in &args.runs {
        match read(folder)? {
            Some(run) => runs.push(run),
            None => {
                let problem = Problem::new(folder.display().to_string(), "there is no metrics.jsonl with a step");
                problems.push(problem.help("name the --out folder of a run"));
            }
        }
    }
    if !problems.is_empty() {
        return Err(Error::Usage { problems });
    }
    let html = page::html(&runs);
    atomic::write(&args.output, |file| file.write_all(html.as_bytes()))?;
    let mut wrote =
        format!("wrote {} ({} runs, {:.0} kB)\n", args.output.display(), runs.len(), html.len() as f64 / 1e3);
    if let (Some(path), Some(run)) = (&args.figure, runs.first()) {
        let svg = figure::svg(run);
        atomic::write(path, |file| file.write_all(svg.as_bytes()))?;
        wrote += &format!("wrote {} ({:.0} kB)\n", path.display(), svg.len() as f64 / 1e3);
    }
    if args.quiet { Ok(()) } else { print(&wrote) }
}

/// Writes `report.html` into a run's own folder, if it has made a step.
///
/// # Errors
/// `Io`.
pub fn beside(folder: &Path) -> Result<()> {
    match read(folder)? {
        Some(run) => atomic::write(&folder.join("report.html"), |file| file.write_all(page::html(&[run]).as_bytes())),
        None => Ok(()),
    }
}

fn read(folder: &Path) -> Result<Option<Run>> {
    let text = |name: &str| {
        let path = folder.join(name);
        match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            other => other.map_err(|e| Error::io("read", &path, e)),
        }
    };
    // The last line of a killed run may have broken off.
    let steps: Vec<Value> = text("metrics.jsonl")?.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let table: toml::Table = text("run.toml")?.parse().unwrap_or_default();
    let mut settings: BTreeMap<String, String> =
        table.into_iter().map(|(name, value)| (name, value.to_string())).collect();
    let record: Value = serde_json::from_str(&text("run.json")?).unwrap_or_default();
    let state = record["state"].as_str().unwrap_or("unknown").to_string();
    for (key, name) in HASHED {
        settings.extend(record["settings"][key].as_str().map(|value| (name.to_string(), value.to_string())));
    }
    let tokens = serde_json::from_str(&text("tokens.json")?).ok();
    let parts = serde_json::from_str(&text("parts.json")?).unwrap_or_default();
    let samples = text("samples.jsonl")?.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let name = folder.display().to_string();
    Ok((!steps.is_empty()).then(|| Run { name, state, steps, settings, parts, tokens, samples }))
}
