//! What `--data` names: sources joined by `+`, each with a slice behind it.

use crate::error::{Error, Problem, Result};
use std::ops::Range;
use std::path::Path;

/// One source: `s1k[train:1000]`, `data.jsonl[10:20]`, `folder`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// A path, or the name of a dataset.
    pub name: String,
    /// `train`, `test`, ..; `None` takes what there is (of several: `train`).
    pub split: Option<String>,
    /// Which rows, from 0.
    pub rows: Range<usize>,
}

/// Reads `spec`.
///
/// `[N]`, `[SPLIT]`, `[SPLIT:N]`, `[:N]`, `[A:B]` and `[SPLIT:A:B]` are slices: a lone number, or the one behind
/// a split, is how many rows to take.
///
/// # Errors
/// `Usage`: every source that is empty or whose slice cannot be read.
pub fn parse(spec: &str) -> Result<Vec<Part>> {
    // A file's name may hold any of the signs.
    if Path::new(spec).exists() {
        return Ok(vec![Part { name: spec.into(), split: None, rows: 0..usize::MAX }]);
    }
    let mut problems = Vec::new();
    let mut parts = Vec::new();
    for text in spec.split('+') {
        match part(text.trim()) {
            Ok(part) => parts.push(part),
            Err(why) => problems.push(
                Problem::new("--data", why)
                    .help("a source is a path or a name, with a slice such as [100], [train:1000] or [10:20]"),
            ),
        }
    }
    if problems.is_empty() { Ok(parts) } else { Err(Error::Usage { problems }) }
}

fn part(text: &str) -> std::result::Result<Part, String> {
    let whole = Part { name: text.into(), split: None, rows: 0..usize::MAX };
    if text.is_empty() {
        return Err("there is a source without a name".into());
    }
    let Some((name, slice)) = text.strip_suffix(']').and_then(|t| t.rsplit_once('[')) else { return Ok(whole) };
    let bad = || format!("`[{slice}]` is not a slice");
    let number = |t: &str| t.parse::<usize>().map_err(|_| bad());
    let pieces: Vec<&str> = slice.split(':').map(str::trim).collect();
    let is_name = |t: &str| t.chars().next().is_some_and(char::is_alphabetic);
    let (split, ends) = match pieces.split_first() {
        Some((first, rest)) if is_name(first) => (Some(first.to_string()), rest),
        _ => (None, pieces.as_slice()),
    };
    let rows = match ends {
        [] => 0..usize::MAX,
        [n] => 0..number(n)?,
        [a, b] => {
            let start = if a.is_empty() { 0 } else { number(a)? };
            start..if b.is_empty() { usize::MAX } else { number(b)? }
        }
        _ => return Err(bad()),
    };
    if name.is_empty() || rows.start >= rows.end {
        return Err(if name.is_empty() { bad() } else { format!("`[{slice}]` holds no row") });
    }
    Ok(Part { name: name.into(), split, rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices() {
        let of = |text: &str| parse(text).map(|p| (p[0].split.clone(), p[0].rows.clone())).ok();
        let train = || Some("train".to_string());
        assert_eq!(of("s1k"), Some((None, 0..usize::MAX)));
        assert_eq!(of("s1k[train]"), Some((train(), 0..usize::MAX)));
        assert_eq!(of("s1k[train:1000]"), Some((train(), 0..1000)));
        assert_eq!(of("s1k[train:5:10]"), Some((train(), 5..10)));
        assert_eq!(of("x.jsonl[7]"), Some((None, 0..7)));
        assert_eq!(of("x.jsonl[:7]"), Some((None, 0..7)));
        assert_eq!(of("x.jsonl[7:]"), Some((None, 7..usize::MAX)));
        for bad in ["", "a+", "[3]", "x[1:2:3:4]", "x[-1]", "x[train:b]", "x[5:5]"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn sources_are_joined_and_all_mistakes_listed() {
        let names = |text: &str| parse(text).unwrap().into_iter().map(|p| p.name).collect::<Vec<_>>();
        assert_eq!(names("s1k[train:10] + my.jsonl"), ["s1k", "my.jsonl"]);
        let text = parse("a[x:y]+b[2:1]").unwrap_err().to_string();
        assert!(text.contains("`[x:y]` is not a slice") && text.contains("`[2:1]` holds no row"), "{text}");
    }
}
