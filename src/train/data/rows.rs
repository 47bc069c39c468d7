//! Rows of a file as JSON objects, with the place of each.

use crate::error::{Error, Problem, Result};
use serde_json::{Map, Value};
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;

/// A row: its fields by name.
pub type Row = Map<String, Value>;

/// What `each` is told of a row: its place (`file:line`), and its fields or why it has none.
pub type Seen<'a> = &'a mut dyn FnMut(String, std::result::Result<Row, Problem>);

/// Reads the rows `wanted` of `path`; returns how many rows the file has, up to the end of `wanted`.
///
/// # Errors
/// `Io`, or `Data` where the file as a whole cannot be read.
pub fn read(path: &Path, wanted: &Range<usize>, each: Seen) -> Result<usize> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    match path.extension().unwrap_or_default().to_string_lossy().to_lowercase().as_str() {
        "parquet" => parquet(path, &name, wanted, each),
        "json" => array(path, &name, wanted, each),
        "csv" => table(path, &name, wanted, each),
        _ => lines(path, &name, wanted, each),
    }
}

fn refuse(path: &Path, why: String, help: &str) -> Error {
    Error::Data { data: path.to_path_buf(), problems: vec![Problem::new("", why).help(help)] }
}

fn lines(path: &Path, name: &str, wanted: &Range<usize>, each: Seen) -> Result<usize> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut count = 0;
    for (number, line) in BufReader::new(file).split(b'\n').enumerate() {
        if count >= wanted.end {
            break;
        }
        let line = line.map_err(|e| Error::io("read", path, e))?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        if wanted.contains(&count) {
            let row = serde_json::from_slice(&line).map_err(|e| {
                // serde counts lines within the one line it was given.
                let why = e.to_string().replace(&format!(" at line {} column {}", e.line(), e.column()), "");
                Problem::new("", format!("column {}: {why}", e.column()))
            });
            each(format!("{name}:{}", number + 1), row);
        }
        count += 1;
    }
    Ok(count)
}

/// One array of objects, or lines that were named `.json`.
fn array(path: &Path, name: &str, wanted: &Range<usize>, each: Seen) -> Result<usize> {
    let text = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    if text.trim_ascii_start().first() != Some(&b'[') {
        return lines(path, name, wanted, each);
    }
    let values: Vec<Value> = serde_json::from_slice(&text)
        .map_err(|e| refuse(path, e.to_string(), "a .json file holds one array of objects, or an object a line"))?;
    let count = values.len().min(wanted.end);
    for (k, value) in values.into_iter().enumerate().take(wanted.end).skip(wanted.start) {
        let row = match value {
            Value::Object(row) => Ok(row),
            other => Err(Problem::new("", format!("a row is an object, not {other}"))),
        };
        each(format!("{name}[{k}]"), row);
    }
    Ok(count)
}

/// A table whose first line names the columns; every field is text.
fn table(path: &Path, name: &str, wanted: &Range<usize>, each: Seen) -> Result<usize> {
    let fails = |e: csv::Error| Error::Data { data: path.into(), problems: vec![Problem::new(name, e.to_string())] };
    let mut table = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_path(path).map_err(fails)?;
    let names = table.headers().map_err(fails)?.clone();
    let mut count = 0;
    for record in table.records().take(wanted.end) {
        let record = record.map_err(fails)?;
        if wanted.contains(&count) {
            let row = match record.len() == names.len() {
                true => Ok(names.iter().zip(&record).map(|(n, field)| (n.to_string(), Value::from(field))).collect()),
                false => Err(Problem::new("", format!("{} fields for {} columns", record.len(), names.len()))),
            };
            each(format!("{name}:{}", record.position().map_or(0, csv::Position::line)), row);
        }
        count += 1;
    }
    Ok(count)
}

#[cfg(feature = "parquet")]
fn parquet(path: &Path, name: &str, wanted: &Range<usize>, each: Seen) -> Result<usize> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let help = "weftc reads parquet files as Hugging Face writes them";
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let bad = |e: parquet::errors::ParquetError| refuse(path, e.to_string(), help);
    let reader = SerializedFileReader::new(file).map_err(bad)?;
    let mut count = 0;
    for row in reader.get_row_iter(None).map_err(bad)?.take(wanted.end) {
        let row = row.map_err(bad)?;
        if wanted.contains(&count) {
            let row = match row.to_json_value() {
                Value::Object(row) => Ok(row),
                other => Err(Problem::new("", format!("a row is an object, not {other}"))),
            };
            each(format!("{name}[{count}]"), row);
        }
        count += 1;
    }
    Ok(count)
}

#[cfg(not(feature = "parquet"))]
fn parquet(path: &Path, _: &str, _: &Range<usize>, _: Seen) -> Result<usize> {
    let help = "cargo install --path . --features parquet reads it; or convert it: python -c \"import pandas, sys; \
                pandas.read_parquet(sys.argv[1]).to_json(sys.argv[2], orient='records', lines=True)\" FILE.parquet FILE.jsonl";
    Err(refuse(path, "this weftc was built without parquet".into(), help))
}
