//! S-expressions with spans: `( )` lists, `[ ]` literal lists, atoms, `;` comments.

use std::ops::Range;

/// A piece of text, by byte offsets into its file.
pub type Span = Range<usize>;

#[derive(Clone, Debug, PartialEq)]
pub enum Sexpr {
    Atom(String, Span),
    List(Vec<Sexpr>, Span),
    Bracket(Vec<Sexpr>, Span),
}

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntaxError {
    pub span: Span,
    pub message: String,
    pub help: Option<String>,
}

impl SyntaxError {
    pub fn new(span: &Span, message: impl Into<String>) -> Self {
        SyntaxError { span: span.clone(), message: message.into(), help: None }
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl Sexpr {
    pub fn span(&self) -> &Span {
        match self {
            Sexpr::Atom(_, s) | Sexpr::List(_, s) | Sexpr::Bracket(_, s) => s,
        }
    }

    pub fn atom(&self) -> Option<&str> {
        if let Sexpr::Atom(a, _) = self { Some(a) } else { None }
    }

    pub fn list(&self) -> Option<&[Sexpr]> {
        if let Sexpr::List(l, _) = self { Some(l) } else { None }
    }

    pub fn bracket(&self) -> Option<&[Sexpr]> {
        if let Sexpr::Bracket(l, _) = self { Some(l) } else { None }
    }
}

/// The deepest nesting that is read; more is an error, not a stack overflow.
const MAX_DEPTH: usize = 200;

/// Reads every top-level expression of a text.
pub fn read(text: &str) -> Result<Vec<Sexpr>, SyntaxError> {
    let mut open: Vec<(char, usize, Vec<Sexpr>)> = Vec::new();
    let mut top = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let done = match c {
            c if c.is_whitespace() => continue,
            ';' => {
                while chars.next_if(|(_, c)| *c != '\n').is_some() {}
                continue;
            }
            '(' | '[' => {
                if open.len() == MAX_DEPTH {
                    return Err(SyntaxError::new(&(at..at + 1), format!("nested deeper than {MAX_DEPTH}")));
                }
                open.push((c, at, Vec::new()));
                continue;
            }
            ')' | ']' => {
                let Some((opened, start, items)) = open.pop() else {
                    return Err(SyntaxError::new(&(at..at + 1), format!("`{c}` closes nothing")));
                };
                match (opened, c) {
                    ('(', ')') => Sexpr::List(items, start..at + 1),
                    ('[', ']') => Sexpr::Bracket(items, start..at + 1),
                    _ => return Err(SyntaxError::new(&(at..at + 1), format!("`{c}` closes `{opened}`"))),
                }
            }
            _ => {
                let mut end = at + c.len_utf8();
                while let Some((k, c)) = chars.next_if(|(_, c)| !c.is_whitespace() && !"()[];".contains(*c)) {
                    end = k + c.len_utf8();
                }
                Sexpr::Atom(text[at..end].to_string(), at..end)
            }
        };
        open.last_mut().map_or(&mut top, |(_, _, items)| items).push(done);
    }
    match open.pop() {
        None => Ok(top),
        Some((c, at, _)) => Err(SyntaxError::new(&(at..at + 1), format!("`{c}` is never closed"))),
    }
}
