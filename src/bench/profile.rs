//! What ONNX Runtime's profile of a session tells: the time of each node, run by run.

use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// A node of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub node: String,
    pub operator: String,
    pub seconds: f64,
}

/// One run of a session.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// From the call to its return, inside ONNX Runtime.
    pub seconds: f64,
    pub events: Vec<Event>,
}

#[derive(Deserialize)]
struct Raw {
    cat: String,
    name: String,
    /// Microseconds.
    ts: f64,
    dur: f64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
struct Arguments {
    #[serde(default)]
    op_name: String,
}

/// The runs of a profile, in order.
///
/// # Errors
/// `Io`; `Runtime` for what is no profile.
pub fn runs(path: &Path) -> Result<Vec<Run>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    parse(&text).map_err(|e| Error::runtime(format!("ONNX Runtime's profile cannot be read: {e}")))
}

fn parse(text: &str) -> std::result::Result<Vec<Run>, serde_json::Error> {
    let raw: Vec<Raw> = serde_json::from_str(text)?;
    let mut runs: Vec<(f64, Run)> = raw
        .iter()
        .filter(|e| e.cat == "Session" && e.name == "model_run")
        .map(|e| (e.ts, Run { seconds: e.dur / 1e6, events: vec![] }))
        .collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    for event in raw.into_iter().filter(|e| e.cat == "Node") {
        let Some(node) = event.name.strip_suffix("_kernel_time") else { continue };
        // A run stands in the file behind its nodes.
        let Some(k) = runs.partition_point(|(begun, _)| *begun <= event.ts).checked_sub(1) else { continue };
        let (operator, seconds) = (event.args.op_name, event.dur / 1e6);
        runs[k].1.events.push(Event { node: node.into(), operator, seconds });
    }
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_belong_to_the_run_that_began_last() {
        let node = |name: &str, ts: u32| {
            format!(r#"{{"cat":"Node","name":"{name}_kernel_time","ts":{ts},"dur":5,"args":{{"op_name":"Exp"}}}}"#)
        };
        let run = |ts: u32| format!(r#"{{"cat":"Session","name":"model_run","ts":{ts},"dur":40,"args":{{}}}}"#);
        let text = [node("a", 12), run(10), node("b", 62), node("a", 70), run(60)].join(",");
        let found = parse(&format!("[{text}]")).unwrap();
        let names = |run: &Run| run.events.iter().map(|e| e.node.clone()).collect::<Vec<_>>();
        assert_eq!(found.iter().map(names).collect::<Vec<_>>(), [vec!["a"], vec!["b", "a"]]);
        assert_eq!(
            (found[0].seconds, found[0].events[0].seconds, found[0].events[0].operator.as_str()),
            (4e-5, 5e-6, "Exp")
        );
    }
}
