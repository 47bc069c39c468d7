//! `weftc doctor`: what is installed here, and what to do about what is not.

use super::cuda;
use super::environment;
use super::locate::{self, Origin};
use std::fmt;

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub state: State,
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Good,
    /// Missing, but weftc can do without.
    Absent,
    Bad,
}

/// What `weftc doctor` prints.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub checks: Vec<Check>,
    /// What to do, in order; empty where all is well.
    pub advice: Vec<String>,
}

impl Report {
    /// Whether a training graph can be run, or the library for it be downloaded.
    pub fn healthy(&self) -> bool {
        self.checks.iter().all(|c| c.state != State::Bad)
    }

    fn add(&mut self, name: &'static str, state: State, detail: impl Into<String>) {
        self.checks.push(Check { name, state, detail: detail.into() });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
        for check in &self.checks {
            let mark = match check.state {
                State::Good => "ok",
                State::Absent => "--",
                State::Bad => "!!",
            };
            writeln!(f, "{mark}  {:width$}  {}", check.name, check.detail)?;
        }
        match self.advice.is_empty() {
            true => write!(f, "\nweftc can train here."),
            false => write!(f, "\n{}", self.advice.join("\n")),
        }
    }
}

/// Downloads ONNX Runtime with its CUDA provider and the libraries that it needs, where they are not here.
///
/// # Errors
/// `Runtime` with what keeps them from being downloaded.
pub fn install_cuda(say: &mut dyn FnMut(&str)) -> Result<(), crate::error::Error> {
    environment::environment_for(true, say)?;
    cuda::install_libraries(say).map_err(crate::error::Error::runtime)
}

/// Looks for everything weftc needs to run a training graph; downloads nothing.
pub fn doctor() -> Report {
    let mut report = Report::default();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let system = format!(
        "weftc {} on {} {}, {threads} threads",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    );
    report.add("system", State::Good, system);
    match locate::cache_folder() {
        Ok(folder) => report.add("cache folder", State::Good, folder.display().to_string()),
        Err(why) => report.add("cache folder", State::Absent, why),
    }
    let (python, pip) = (python_version(&[]), python_version(&["-m", "pip"]));
    let state = |r: &Result<String, String>| if r.is_ok() { State::Good } else { State::Absent };
    report.add("python", state(&python), python.unwrap_or_else(|e| e));
    report.add("pip", state(&pip), pip.clone().unwrap_or_else(|e| e));

    let search = locate::search();
    if search.found.is_empty() {
        let explicit = search.missed.iter().any(|m| m.starts_with("ORT_DYLIB_PATH is /"));
        let state = if pip.is_ok() && !explicit { State::Absent } else { State::Bad };
        report.add("ONNX Runtime", state, search.missed.join("; "));
        report.advice.push(match state {
            State::Absent => "weftc run will download ONNX Runtime with pip the first time; nothing to do.".into(),
            _ => format!("weftc run needs ONNX Runtime: {}", locate::ways()),
        });
        return report;
    }
    match environment::environment(&mut |_| {}) {
        Ok(environment) => {
            let library = &environment.library;
            let version = library.version.clone().unwrap_or_else(|| "of unknown version".into());
            let origin = if library.origin == Origin::Downloaded { Origin::Cache } else { library.origin };
            report.add("ONNX Runtime", State::Good, format!("{version} ({})", origin.name()));
            report.add("library", State::Good, library.path.display().to_string());
            match environment::providers() {
                Ok(names) => report.add("providers", State::Good, names.join(", ")),
                Err(why) => report.add("providers", State::Bad, why.to_string()),
            }
            let missing = cuda::missing(0, library);
            let list: Vec<&str> = missing.iter().map(|(what, _)| what.as_str()).collect();
            match (list.is_empty(), cuda::devices()) {
                (true, _) if !cuda::has_compiler() => {
                    report.add("CUDA", State::Absent, format!("a GPU can be used, but {}", cuda::without_compiler()));
                }
                (true, _) => report.add("CUDA", State::Good, "a GPU can be used (--device cuda)"),
                (false, Ok(_)) => report.add("CUDA", State::Absent, format!("a GPU is there, but {}", list.join("; "))),
                (false, Err(why)) => report.add("CUDA", State::Absent, why),
            }
        }
        Err(why) => {
            report.add("ONNX Runtime", State::Bad, why.to_string().lines().take(4).collect::<Vec<_>>().join(" "));
            report.advice.push(format!("weftc run needs ONNX Runtime: {}", locate::ways()));
        }
    }
    report
}

/// The first line that some Python prints for `--version`.
fn python_version(arguments: &[&str]) -> Result<String, String> {
    let mut reasons = Vec::new();
    for python in locate::pythons() {
        let arguments: Vec<&std::ffi::OsStr> =
            arguments.iter().copied().chain(["--version"]).map(std::ffi::OsStr::new).collect();
        match locate::output(python, &arguments) {
            Ok(text) => return Ok(text.lines().next().unwrap_or_default().to_string()),
            Err(why) => reasons.push(why),
        }
    }
    Err(reasons.join("; "))
}
