//! What can go wrong, for the user: what, where, and what to do.

use crate::ir::sexpr::SyntaxError;
use std::fmt;
use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

/// One thing that is wrong with a model, a data file or a command line.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The node, tensor, or `file:line`.
    pub place: String,
    pub message: String,
    pub help: Option<String>,
}

impl Problem {
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Problem { place: place.into(), message: message.into(), help: None }
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", shown(&self.place, MAX_PLACE))?;
        }
        write!(f, "{}", shown(&self.message, MAX_TEXT))?;
        self.help.iter().try_for_each(|h| write!(f, "\n    help: {}", shown(h, MAX_TEXT)))
    }
}

/// The characters of a place and of a text that are shown; names in a file may be of any length.
const MAX_PLACE: usize = 160;
const MAX_TEXT: usize = 600;

/// The problems that are shown; a broken file may have one a node.
const MAX_PROBLEMS: usize = 100;

/// Text for a terminal: control characters escaped, the middle left out where it is long.
fn shown(text: &str, most: usize) -> String {
    // Unicode's controls of direction can make a text read as another.
    let steers = |c: char| matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let safe = |c: char| match c.is_control() || steers(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    let count = text.chars().count();
    if count <= most {
        return text.chars().map(safe).collect();
    }
    let half = most / 2;
    let (head, tail) = (text.chars().take(half).map(safe), text.chars().skip(count - half).map(safe));
    format!("{} ... {}", head.collect::<String>(), tail.collect::<String>())
}

/// An error of the program, with everything that was found, not only the first.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// A rule file or graph text.
    #[error("{}", render(file, text, errors))]
    Syntax { file: String, text: String, errors: Vec<SyntaxError> },
    /// Mistakes in several rule files.
    #[error("{}", errors.iter().map(Error::to_string).collect::<Vec<_>>().join("\n\n"))]
    Several { errors: Vec<Error> },
    /// The model cannot be read, compiled or trained.
    #[error("{}", list(&format!("{}: cannot use this model", model.display()), problems))]
    Model { model: PathBuf, problems: Vec<Problem> },
    /// The training data cannot be used.
    #[error("{}", list(&format!("{}: cannot use this data", data.display()), problems))]
    Data { data: PathBuf, problems: Vec<Problem> },
    /// The command line contradicts itself or the model.
    #[error("{}", list("cannot do this", problems))]
    Usage { problems: Vec<Problem> },
    /// ONNX Runtime is missing or refuses.
    #[error("{message}{}", help.as_ref().map(|h| format!("\n    help: {h}")).unwrap_or_default())]
    Runtime { message: String, help: Option<String> },
    /// A mistake in weftc itself.
    #[error("internal error in {stage}: {message}\n    help: please report this with the model and the command line")]
    Internal { stage: &'static str, message: String },
}

impl Error {
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Error::Io { action, path: path.to_path_buf(), source }
    }

    pub fn usage(problem: Problem) -> Self {
        Error::Usage { problems: vec![problem] }
    }

    pub fn runtime(message: impl Into<String>) -> Self {
        Error::Runtime { message: message.into(), help: None }
    }

    pub fn internal(stage: &'static str, message: impl Into<String>) -> Self {
        Error::Internal { stage, message: message.into() }
    }

    /// One error of what went wrong in several files; nothing where nothing did.
    pub fn all(mut errors: Vec<Error>) -> Result<()> {
        match (errors.pop(), errors.is_empty()) {
            (None, _) => Ok(()),
            (Some(one), true) => Err(one),
            (Some(last), false) => {
                errors.push(last);
                Err(Error::Several { errors })
            }
        }
    }

    /// What to do, where the message does not say it itself.
    pub fn hint(&self) -> Option<&'static str> {
        use std::io::ErrorKind::*;
        let Error::Io { source, .. } = self else { return None };
        match source.kind() {
            NotFound => Some("is the path right, and is its folder there?"),
            PermissionDenied | ReadOnlyFilesystem => Some("choose a folder that you may write to, or change its mode"),
            StorageFull | QuotaExceeded | FileTooLarge => Some("free some space, or write to another file system"),
            IsADirectory => Some("name a file in that folder"),
            UnexpectedEof => Some("the file has become shorter: copy or download it again"),
            _ => None,
        }
    }

    /// The exit code of the program; 2 is also clap's for a bad command line.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage { .. } => 2,
            Error::Model { .. } => 3,
            Error::Data { .. } => 4,
            Error::Runtime { .. } => 5,
            Error::Syntax { .. } => 6,
            Error::Several { errors } => errors.first().map_or(70, Error::exit_code),
            Error::Io { .. } => 7,
            Error::Internal { .. } => 70,
        }
    }
}

fn list(head: &str, problems: &[Problem]) -> String {
    let mut lines: Vec<String> = problems.iter().take(MAX_PROBLEMS).map(|p| format!("  {p}")).collect();
    if problems.len() > MAX_PROBLEMS {
        lines.push(format!("  and {} more like these", problems.len() - MAX_PROBLEMS));
    }
    format!("{head}\n{}", lines.join("\n"))
}

/// `path:line:col: message`, the line, a caret, and the help.
fn render(file: &str, text: &str, errors: &[SyntaxError]) -> String {
    let one = |e: &SyntaxError| {
        let start = e.span.start.min(text.len());
        let line_start = text[..start].rfind('\n').map_or(0, |k| k + 1);
        let line = text[line_start..].lines().next().unwrap_or_default();
        let number = text[..start].matches('\n').count() + 1;
        let column = text[line_start..start].chars().count() + 1;
        let width = e.span.len().clamp(1, (line.chars().count() + 1).saturating_sub(column).max(1));
        let margin = " ".repeat(number.to_string().len());
        let pad = " ".repeat(column - 1);
        let help = e.help.as_ref().map(|h| format!("\n{margin} = help: {h}")).unwrap_or_default();
        format!(
            "{file}:{number}:{column}: {}\n{margin} |\n{number} | {line}\n{margin} | {pad}{}{help}",
            e.message,
            "^".repeat(width)
        )
    };
    errors.iter().map(one).collect::<Vec<_>>().join("\n\n")
}
