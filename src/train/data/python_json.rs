//! The filter `tojson` of chat templates: JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// The JSON of a value: `, ` and `: ` between its parts, or an element a line where `indent` says how far to set it in.
///
/// # Errors
/// An option that is not known; a value that has no JSON.
pub fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Python's other options change nothing here: texts are never escaped to ASCII.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = String::new();
    write(value, indent, 0, &mut out)?;
    Ok(out)
}

fn write(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    let fails = |e: serde_json::Error| Error::new(ErrorKind::InvalidOperation, e.to_string());
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => *out += "null",
        ValueKind::Bool | ValueKind::Number => *out += &value.to_string().to_lowercase(),
        ValueKind::String => *out += &serde_json::to_string(&value.to_string()).map_err(fails)?,
        ValueKind::Map => {
            let keys: Vec<Value> = value.try_iter()?.collect();
            listed(('{', '}'), keys.len(), indent, depth, out, &mut |k, out| {
                *out += &serde_json::to_string(&keys[k].to_string()).map_err(fails)?;
                *out += ": ";
                write(&value.get_item(&keys[k])?, indent, depth + 1, out)
            })?;
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            listed(('[', ']'), items.len(), indent, depth, out, &mut |k, out| {
                write(&items[k], indent, depth + 1, out)
            })?;
        }
        kind => return Err(Error::new(ErrorKind::InvalidOperation, format!("{kind} has no JSON"))),
    }
    Ok(())
}

type Part<'a> = &'a mut dyn FnMut(usize, &mut String) -> Result<(), Error>;

fn listed(
    brackets: (char, char),
    count: usize,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
    part: Part,
) -> Result<(), Error> {
    let line = |depth: usize| indent.map(|n| format!("\n{}", " ".repeat(n * depth)));
    out.push(brackets.0);
    for k in 0..count {
        match line(depth + 1) {
            Some(line) => *out += &format!("{}{line}", if k > 0 { "," } else { "" }),
            None if k > 0 => *out += ", ",
            None => {}
        }
        part(k, out)?;
    }
    if let (Some(line), true) = (line(depth), count > 0) {
        *out += &line;
    }
    out.push(brackets.1);
    Ok(())
}
