//! A figure for a page or a paper: the curves and the token map of one run as an SVG that needs nothing else.

use super::Run;
use super::chart::{HEIGHT, WIDTH, drawing};
use super::page::{escape, updated};
use super::tokens::Token;
use std::fmt::Write;

/// Pixels between the charts, around all, and of a line of the map.
const GAP: f64 = 24.0;
const LINE: f64 = 30.0;
/// Of a character of the map, and the least of a token.
const CHARACTER: f64 = 9.0;
const LEAST: f64 = 22.0;
/// Lines of a sample.
const LINES: usize = 4;

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#1b1f24}.title{font-weight:600;font-size:15px}\
.grid{stroke:#d8dee4}polyline{fill:none;stroke:#0072b2;stroke-width:2;stroke-linejoin:round}.raw{opacity:.3;stroke-width:1}\
.map{font:13px ui-monospace,monospace;text-anchor:middle}.token{fill:#e69f00}.masked{stroke:#0072b2;stroke-width:3}";

/// Training loss and held-out loss (without one: the gradient's norm), and below them the answers of the last samples.
pub fn svg(run: &Run) -> String {
    let runs = std::slice::from_ref(run);
    let held_out = |m: &serde_json::Value| m["eval_loss"].as_f64();
    let place = |x: f64| format!("x=\"{x}\" y=\"{}\" width=\"{WIDTH}\" height=\"{HEIGHT}\"", GAP + 20.0);
    let right = 2.0 * GAP + WIDTH;
    let first = drawing("Training loss", runs, &updated("loss"), true, &place(GAP));
    let mut second = ("Held-out loss", drawing("Held-out loss", runs, &held_out, false, &place(right)));
    if second.1.is_empty() {
        let norm = drawing("Gradient norm", runs, &updated("grad_norm"), true, &place(right));
        second = ("Gradient norm, before clipping", norm);
    }
    let width = 3.0 * GAP + 2.0 * WIDTH;
    let top = 2.0 * GAP + 20.0 + HEIGHT;
    let mut body = String::new();
    for (x, title) in [(GAP, "Training loss"), (right, second.0)] {
        let _ = write!(body, "<text class=\"title\" x=\"{x}\" y=\"{}\">{title}</text>", GAP + 4.0);
    }
    body += &(first + &second.1);
    let mut bottom = top;
    if let Some(tokens) = run.tokens.as_ref().filter(|t| !t.samples().is_empty()) {
        let title = format!(
            "Answers at step {}: the darker a token, the higher its entropy; underlined tokens are masked",
            tokens.step()
        );
        let _ = write!(body, "<text class=\"title\" x=\"{GAP}\" y=\"{}\">{title}</text>", top + 8.0);
        bottom += GAP;
        for sample in tokens.samples() {
            bottom = map(&mut body, sample, width - GAP, bottom) + 8.0;
        }
    }
    let height = bottom + GAP;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"curves of a \
         training run and the entropies of its tokens\"><style>{STYLE}</style><rect width=\"{width}\" height=\"{height}\" \
         fill=\"#fff\"/>{body}</svg>\n"
    )
}

/// Draws a sample as rows of boxes that end at `right`; returns where the next one begins.
fn map(body: &mut String, sample: &[Token], right: f64, top: f64) -> f64 {
    let most = sample.iter().map(Token::shade).fold(f64::MIN_POSITIVE, f64::max);
    let (mut x, mut y, mut lines) = (GAP, top, 1);
    for token in sample {
        let text: String = token.text().trim().chars().take(24).collect();
        let wide = (CHARACTER * text.chars().count() as f64 + 6.0).max(LEAST);
        if x + wide > right {
            (x, y, lines) = (GAP, y + LINE, lines + 1);
        }
        if lines > LINES {
            break;
        }
        if token.answer() {
            let strength = token.shade() / most;
            let _ = write!(
                body,
                "<rect class=\"token\" x=\"{x:.0}\" y=\"{y:.0}\" width=\"{:.0}\" height=\"22\" fill-opacity=\"{strength:.2}\"/>",
                wide - 2.0
            );
        }
        if token.masked() {
            let _ = write!(
                body,
                "<line class=\"masked\" x1=\"{x:.0}\" x2=\"{:.0}\" y1=\"{1:.0}\" y2=\"{1:.0}\"/>",
                x + wide - 2.0,
                y + 24.0
            );
        }
        let _ = write!(
            body,
            "<text class=\"map\" x=\"{:.0}\" y=\"{:.0}\">{}</text>",
            x + wide / 2.0 - 1.0,
            y + 16.0,
            escape(&text)
        );
        x += wide;
    }
    y + LINE
}
