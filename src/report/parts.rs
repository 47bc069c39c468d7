//! Where the time of a step goes: measured, and as the cost model tells.

use super::Run;
use super::page::{escape, table};
use serde_json::Value;

/// The parts of a step, as parts.json names them.
const PARTS: [&str; 4] = ["probe", "forward", "backward", "optimizer"];

/// Operators that are listed.
const OPERATORS: usize = 12;

/// Nothing where no run has taken a step apart.
pub fn html(runs: &[Run]) -> String {
    let own: String = runs.iter().filter(|run| run.parts.is_object()).map(section).collect();
    if own.is_empty() { own } else { format!("<h2>Where the time of a step goes</h2>{own}") }
}

fn section(run: &Run) -> String {
    let (measured, predicted) = (&run.parts["measured"], &run.parts["predicted"]);
    let whole = measured["seconds"].as_f64().unwrap_or(0.0);
    let row = |name: &str, seconds: f64, told: Option<f64>| {
        let told = told.map_or("not known".into(), time);
        let share = 100.0 * seconds / whole.max(1e-9);
        format!("<tr><th scope=\"row\">{name}</th><td>{}</td><td>{share:.1} %</td><td>{told}</td></tr>", time(seconds))
    };
    let part = |part: &str| {
        let seconds = measured["parts"][part].as_f64().unwrap_or(0.0);
        row(part, seconds, predicted["parts"][part]["seconds"].as_f64())
    };
    let rest =
        [("between", "in ONNX Runtime, but in no node"), ("outside", "making and feeding batches, reading results")];
    let rest = rest.map(|(name, what)| row(what, measured[name].as_f64().unwrap_or(0.0), None));
    let operator = |o: &Value| {
        let text = |name: &str| escape(o[name].as_str().unwrap_or_default());
        let seconds = o["seconds"].as_f64().unwrap_or(0.0);
        format!(
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{:.1} %</td></tr>",
            text("operator"),
            text("part"),
            o["nodes"],
            time(seconds),
            100.0 * seconds / whole.max(1e-9)
        )
    };
    let operators = measured["operators"].as_array().into_iter().flatten().take(OPERATORS).map(operator);
    let machine = predicted["machine"].as_str().map(|name| format!(", predicted for {}", escape(name)));
    format!(
        "<h3>{}: step {}, {}{}</h3>{}<details><summary>The costliest operators</summary>{}</details>",
        escape(&run.name),
        run.parts["step"],
        time(whole),
        machine.unwrap_or_default(),
        table(&heads(&["part", "measured", "of the step", "predicted"]), &(PARTS.map(part).concat() + &rest.concat())),
        table(&heads(&["operator", "part", "nodes", "time", "of the step"]), &operators.collect::<String>())
    )
}

fn time(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

fn heads(names: &[&str]) -> String {
    names.iter().map(|name| format!("<th scope=\"col\">{name}</th>")).collect()
}
