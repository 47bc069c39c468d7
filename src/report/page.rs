//! The page: figures, charts, settings.

use super::chart::{number, svg};
use super::{Run, parts, samples, tokens};
use serde_json::Value;
use std::collections::BTreeSet;

/// Colours of Okabe and Ito, which colour-blind readers tell apart, and dashes beside them.
const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--faint:#d8dee4;--mark:#fff3c4}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--paper:#14171a;--faint:#363c43;--mark:#4a3f12}}\
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:84rem;margin:2rem auto;padding:0 1rem}\
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));gap:1.5rem}\
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto}text{font-size:12px;fill:var(--ink)}\
.grid{stroke:var(--faint)}polyline{fill:none;stroke-width:2;stroke-linejoin:round}.raw{opacity:.3;stroke-width:1}\
.run0{stroke:#0072b2}.run1{stroke:#d55e00;stroke-dasharray:8 3}.run2{stroke:#009e73;stroke-dasharray:2 3}\
.run3{stroke:#cc79a7;stroke-dasharray:12 3 2 3}.run4{stroke:#e69f00}.run5{stroke:#56b4e9;stroke-dasharray:5 5}\
.wide{overflow-x:auto}table{border-collapse:collapse}th,td{border-bottom:1px solid var(--faint);padding:.25rem .75rem;text-align:left}\
tbody th{min-width:8rem}tbody th,.settings td,td.said{overflow-wrap:anywhere}\
td{font-variant-numeric:tabular-nums}.differs{background:var(--mark)}.map{white-space:pre-wrap;overflow-wrap:anywhere;border-left:3px solid var(--faint);padding-left:1rem}\
.token{background:color-mix(in srgb,#e69f00 var(--h),transparent)}.masked{text-decoration:underline 2px #0072b2}\
td.said{white-space:pre-wrap;vertical-align:top;max-width:28rem}details{margin-top:.5rem}.key{width:3rem;height:.75rem;vertical-align:middle}";

/// The whole file.
pub fn html(runs: &[Run]) -> String {
    let get = |name: &'static str| move |m: &Value| m[name].as_f64();
    let rate = |m: &Value| Some(m["tokens"].as_f64()? / m["seconds"].as_f64()?.max(1e-9));
    let charts = [
        svg("Training loss", runs, &updated("loss"), true),
        svg("Held-out loss", runs, &get("eval_loss"), false),
        svg("Gradient norm, before clipping", runs, &updated("grad_norm"), true),
        svg("Learning rate", runs, &get("lr"), false),
        svg("Tokens a second", runs, &rate, true),
    ];
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"><link rel=\"icon\" href=\"data:,\">\
         <title>weftc report</title><style>{STYLE}</style></head><body><main><h1>Training runs</h1>\n\
         <h2>Figures</h2>{}\n<h2>Curves</h2><p>Faint lines are single steps, strong ones their running mean.</p>\
         <div class=\"charts\">{}</div>\n{}\n{}\n{}\n<section class=\"settings\"><h2>Settings</h2>{}</section></main></body></html>\n",
        figures(runs),
        charts.concat(),
        parts::html(runs),
        samples::html(runs),
        tokens::html(runs),
        settings(runs)
    )
}

/// A number of steps that were made: one without masked tokens has a loss of 0 that says nothing.
pub fn updated(name: &'static str) -> impl Fn(&Value) -> Option<f64> {
    move |m| m[name].as_f64().filter(|_| m["outcome"] == "updated")
}

fn figures(runs: &[Run]) -> String {
    let sum = |run: &Run, name: &str| run.steps.iter().filter_map(|m| m[name].as_f64()).sum::<f64>();
    let count = |run: &Run, outcome: &str| run.steps.iter().filter(|m| m["outcome"] == outcome).count();
    let row = |(k, run): (usize, &Run)| {
        let losses: Vec<f64> = run.steps.iter().filter_map(updated("loss")).collect();
        let tenth = losses.len().div_ceil(10);
        let mean = |part: &[f64]| number(part.iter().sum::<f64>() / part.len().max(1) as f64);
        let held_out = run.steps.iter().rev().find_map(|m| m["eval_loss"].as_f64()).map_or("none".into(), number);
        let (tokens, seconds) = (sum(run, "tokens"), sum(run, "seconds"));
        format!(
            "<tr><th scope=\"row\"><svg class=\"key\" viewBox=\"0 0 48 12\" aria-hidden=\"true\">\
             <polyline class=\"run{}\" points=\"0,6 48,6\"/></svg> {}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{held_out}</td><td>{tokens:.0}</td><td>{seconds:.1}</td><td>{:.0}</td></tr>",
            k % 6,
            escape(&run.name),
            escape(&run.state),
            run.steps.len(),
            count(run, "skipped"),
            count(run, "empty"),
            mean(&losses[..tenth]),
            mean(&losses[losses.len() - tenth..]),
            tokens / seconds.max(1e-9)
        )
    };
    let heads = [
        "run",
        "state",
        "steps",
        "skipped",
        "empty",
        "loss, first tenth",
        "loss, last tenth",
        "held-out loss",
        "tokens",
        "seconds",
        "tokens/s",
    ];
    let heads: String = heads.map(|h| format!("<th scope=\"col\">{h}</th>")).concat();
    let rows: String = runs.iter().enumerate().map(row).collect();
    table(&heads, &rows)
}

fn settings(runs: &[Run]) -> String {
    let names: BTreeSet<&String> = runs.iter().flat_map(|run| run.settings.keys()).collect();
    if names.is_empty() {
        return "<p>There is no run.toml.</p>".into();
    }
    let row = |name: &String| {
        let value = |run: &Run| run.settings.get(name).cloned().unwrap_or_else(|| "not set".into());
        let values: Vec<String> = runs.iter().map(value).collect();
        let same = values.iter().all(|v| *v == values[0]);
        let (class, mark) = if same { ("", "") } else { (" class=\"differs\"", " (differs)") };
        let cells: String = values.iter().map(|v| format!("<td>{}</td>", escape(v))).collect();
        format!("<tr{class}><th scope=\"row\">{}{mark}</th>{cells}</tr>", escape(name))
    };
    let heads: String = runs.iter().map(|run| format!("<th scope=\"col\">{}</th>", escape(&run.name))).collect();
    let rows: String = names.into_iter().map(row).collect();
    table(&format!("<th scope=\"col\">setting</th>{heads}"), &rows)
}

/// Wide tables scroll by themselves, with the keyboard too.
pub fn table(heads: &str, rows: &str) -> String {
    format!(
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"table\"><table><thead><tr>{heads}</tr></thead>\
         <tbody>{rows}</tbody></table></div>"
    )
}

/// Text as HTML has it, in attributes too.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
