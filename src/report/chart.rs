//! A chart of one number over the steps of runs, as inline SVG.

use super::Run;
use super::page::escape;
use std::fmt::Write;

pub const WIDTH: f64 = 640.0;
pub const HEIGHT: f64 = 220.0;
/// Left of the curves, for the axis; above and below them.
const MARGIN: (f64, f64, f64) = (64.0, 12.0, 24.0);
/// A curve has no more points; the means of neighbours stand for them.
const MOST_POINTS: usize = 600;

/// A number of a line of metrics.jsonl.
pub type Value<'a> = &'a dyn Fn(&serde_json::Value) -> Option<f64>;

/// The chart with its title, or nothing where no run has the number.
pub fn svg(title: &str, runs: &[Run], value: Value, smooth: bool) -> String {
    match drawing(title, runs, value, smooth, "") {
        empty if empty.is_empty() => empty,
        drawing => format!("<figure><figcaption>{}</figcaption>{drawing}</figure>\n", escape(title)),
    }
}

/// The chart alone.  `smooth` lays a running mean over the points; `attributes` are those of its element.
pub fn drawing(title: &str, runs: &[Run], value: Value, smooth: bool, attributes: &str) -> String {
    let points = |run: &Run| -> Vec<(f64, f64)> {
        let point = |m: &serde_json::Value| Some((m["step"].as_f64()?, value(m).filter(|y| y.is_finite())?));
        run.steps.iter().filter_map(point).collect()
    };
    let curves: Vec<Vec<(f64, f64)>> = runs.iter().map(points).collect();
    let all = || curves.iter().flatten();
    if all().next().is_none() {
        return String::new();
    }
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
    };
    let ((x0, x1), (y0, y1)) = (bounds(|p| p.0), bounds(|p| p.1));
    let (left, top, bottom) = MARGIN;
    let across = |x: f64| left + (WIDTH - left - 8.0) * (x - x0) / (x1 - x0).max(1e-12);
    let up = |y: f64| HEIGHT - bottom - (HEIGHT - top - bottom) * (y - y0) / (y1 - y0).max(1e-12);
    let last: Vec<String> = (runs.iter().zip(&curves))
        .filter_map(|(run, curve)| Some(format!("{} ends at {}", run.name, number(curve.last()?.1))))
        .collect();
    let label =
        escape(&format!("{title} over steps {x0} to {x1}, from {} to {}; {}", number(y0), number(y1), last.join("; ")));
    let mut out = format!("<svg {attributes} viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">");
    for k in 0..=4 {
        let y = y0 + (y1 - y0) * f64::from(k) / 4.0;
        let at = up(y);
        let _ =
            write!(out, "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>", WIDTH - 8.0);
        let _ =
            write!(out, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", left - 6.0, at + 4.0, number(y));
        if y1 == y0 {
            break;
        }
    }
    for (x, anchor) in [(x0, "start"), (x1, "end")] {
        let _ =
            write!(out, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">step {x}</text>", across(x), HEIGHT - 6.0);
    }
    for (k, curve) in curves.iter().enumerate().filter(|(_, curve)| !curve.is_empty()) {
        let name = escape(&runs[k].name);
        let mut line = |points: &[(f64, f64)], class: &str| {
            let path: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
            let path = path.join(" ");
            let _ = write!(
                out,
                "<polyline class=\"run{} {class}\" points=\"{path}\"><title>{name}</title></polyline>",
                k % 6
            );
        };
        let thin = thinned(curve);
        if smooth && curve.len() > 20 {
            line(&thin, "raw");
            line(&thinned(&running(curve)), "curve");
        } else {
            line(&thin, "curve");
        }
    }
    out + "</svg>"
}

/// The mean of each point with those before it, a twentieth of the curve.
fn running(curve: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let window = curve.len().div_ceil(20);
    let mean = |part: &[(f64, f64)]| part.iter().map(|p| p.1).sum::<f64>() / part.len() as f64;
    (0..curve.len()).map(|k| (curve[k].0, mean(&curve[(k + 1).saturating_sub(window)..=k]))).collect()
}

fn thinned(curve: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mean = |part: &[(f64, f64)]| {
        let sum = part.iter().fold((0.0, 0.0), |a, p| (a.0 + p.0, a.1 + p.1));
        (sum.0 / part.len() as f64, sum.1 / part.len() as f64)
    };
    curve.chunks(curve.len().div_ceil(MOST_POINTS).max(1)).map(mean).collect()
}

/// A number in four digits.
pub fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if !(1e-3..1e6).contains(&a) => format!("{x:.2e}"),
        a if a >= 1000.0 => format!("{x:.0}"),
        _ => format!("{x:.4}").trim_end_matches('0').trim_end_matches('.').to_string(),
    }
}
