//! What the model of a run said: before, after, and between.

use super::Run;
use super::page::{escape, table};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The prompts, the steps between first and last, and the characters of a text that are shown.
const PROMPTS: usize = 8;
const BETWEEN: usize = 6;
const LENGTH: usize = 2000;

/// A line of samples.jsonl.
#[derive(Clone, Debug, Deserialize)]
pub struct Sample {
    step: u64,
    sample: usize,
    prompt: String,
    answer: String,
    reference: Option<String>,
}

/// The sections of all runs that have samples.
pub fn html(runs: &[Run]) -> String {
    let sections: String = runs.iter().map(|run| section(run, (LENGTH / runs.len()).max(200))).collect();
    if sections.is_empty() { sections } else { format!("<h2>Samples before and after</h2>{sections}") }
}

fn section(run: &Run, most: usize) -> String {
    let mut prompts: BTreeMap<usize, Vec<&Sample>> = BTreeMap::new();
    for sample in &run.samples {
        prompts.entry(sample.sample).or_default().push(sample);
    }
    let steps = |f: fn(&Sample) -> u64| run.samples.iter().map(f);
    let (Some(first), Some(last)) = (steps(|s| s.step).min(), steps(|s| s.step).max()) else { return String::new() };
    let text = |text: &str| {
        let cut = text.chars().count() > most;
        let shown: String = text.chars().take(most).collect();
        format!("<td class=\"said\">{}{}</td>", escape(&shown), if cut { " ..." } else { "" })
    };
    let row = |said: &Vec<&Sample>| {
        let at = |step: u64| said.iter().rev().find(|s| s.step == step).map_or("", |s| s.answer.as_str());
        let reference = said[0].reference.as_deref().map_or("<td></td>".into(), text);
        format!("<tr>{}{}{}{reference}</tr>", text(&said[0].prompt), text(at(first)), text(at(last)))
    };
    let rows: String = prompts.values().take(PROMPTS).map(row).collect();
    let heads = [
        "prompt".to_string(),
        if first == 0 { "before training".into() } else { format!("after {first} steps") },
        format!("after {last} steps"),
        "in the data".to_string(),
    ];
    let heads: String = heads.iter().map(|h| format!("<th scope=\"col\">{h}</th>")).collect();
    format!("<h3>{}</h3>{}{}", escape(&run.name), table(&heads, &rows), between(&prompts, first, last, &text))
}

/// The first prompt's answers on the way.
fn between(prompts: &BTreeMap<usize, Vec<&Sample>>, first: u64, last: u64, text: &dyn Fn(&str) -> String) -> String {
    let Some(said) = prompts.values().next() else { return String::new() };
    let on_the_way: Vec<&&Sample> = said.iter().filter(|s| s.step > first && s.step < last).collect();
    let shown = on_the_way.iter().step_by(on_the_way.len().div_ceil(BETWEEN).max(1));
    let row = |s: &&&Sample| format!("<tr><th scope=\"row\">{}</th>{}</tr>", s.step, text(&s.answer));
    let rows: String = shown.map(row).collect();
    if rows.is_empty() {
        return rows;
    }
    let heads = "<th scope=\"col\">steps</th><th scope=\"col\">answer to the first prompt</th>";
    format!("<details><summary>On the way</summary>{}</details>", table(heads, &rows))
}
