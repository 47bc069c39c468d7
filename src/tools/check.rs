//! The machine proof of rule files, as a table.

use crate::error::{Error, Result};
use crate::rules::check::{Failure, Proof, check_file};
use crate::rules::parse::load_all;
use crate::rules::user::{SEED, refutation};
use std::fmt;
use std::path::PathBuf;

/// The verdict on one rule.
pub struct Verdict {
    pub rule: String,
    pub file: String,
    /// The comment above the rule.
    pub doc: String,
    pub outcome: std::result::Result<Proof, Failure>,
}

/// The verdicts on all rules of some files, in their order.
pub struct Report {
    pub verdicts: Vec<Verdict>,
    /// What is wrong, with its place; none where everything is proved.
    errors: Vec<Error>,
}

impl Report {
    /// `Syntax` with every rule that is not proved.
    pub fn verdict(self) -> Result<()> {
        Error::all(self.errors)
    }
}

/// Reads rule files and proves every rule.
///
/// # Errors
/// `Io`, and `Syntax` with all mistakes of all files.
pub fn check(paths: &[PathBuf]) -> Result<Report> {
    let read = |p: &PathBuf| {
        let text = std::fs::read_to_string(p).map_err(|e| Error::io("read", p, e))?;
        Ok((p.display().to_string(), text))
    };
    let files: Vec<(String, String)> = paths.iter().map(read).collect::<Result<_>>()?;
    let borrowed: Vec<(&str, &str)> = files.iter().map(|(f, t)| (f.as_str(), t.as_str())).collect();
    let mut report = Report { verdicts: vec![], errors: vec![] };
    for ((file, text), rules) in files.iter().zip(load_all(&borrowed)?) {
        let mut wrong = Vec::new();
        for (rule, (name, outcome)) in rules.iter().zip(check_file(&rules, SEED)) {
            wrong.extend(outcome.as_ref().err().map(|failure| refutation(rule, failure)));
            report.verdicts.push(Verdict { rule: name, file: file.clone(), doc: rule.doc.clone(), outcome });
        }
        if !wrong.is_empty() {
            report.errors.push(Error::Syntax { file: file.clone(), text: text.clone(), errors: wrong });
        }
    }
    Ok(report)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.verdicts.iter().map(|v| v.rule.len()).max().unwrap_or(0).max(4);
        let (mut proved, mut file) = (0, "");
        for v in &self.verdicts {
            if v.file != file {
                file = &v.file;
                writeln!(f, "{file}")?;
                writeln!(
                    f,
                    "    {:<width$} {:>9} {:>7} {:>9} {:>9}",
                    "rule", "instances", "drawn", "numbers", "worst"
                )?;
            }
            match &v.outcome {
                Ok(p) => {
                    proved += 1;
                    let (name, worst) = (&v.rule, p.worst);
                    writeln!(f, "    {name:<width$} {:>9} {:>7} {:>9} {worst:>9.1e}", p.instances, p.drawn, p.points)?;
                }
                Err(Failure::NotExercised { instances, drawn, .. }) => {
                    writeln!(f, "    {:<width$} {instances:>9} {drawn:>7}  not proved", v.rule)?;
                }
                Err(_) => writeln!(f, "    {:<width$} {:>17}  wrong", v.rule, "")?,
            }
        }
        write!(f, "{proved} of {} rules proved", self.verdicts.len())
    }
}
