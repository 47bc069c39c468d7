//! Shows the denoising in the terminal.

use super::language::Language;
use crate::error::{Error, Result};
use crate::stdout::coloured;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;

/// Draws the answer of one row after each step: over itself in a terminal, a line a step elsewhere.
pub struct Screen<'a> {
    language: &'a Language,
    /// Where the answer begins in the row.
    prompt: usize,
    shown: Vec<i64>,
    /// Lines that the picture before took; 0 before the first.
    lines: usize,
    terminal: bool,
    coloured: bool,
    width: usize,
    step: usize,
}

impl<'a> Screen<'a> {
    pub fn new(language: &'a Language, row: &[i64], prompt: usize) -> Self {
        let width = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).unwrap_or(80usize).clamp(20, 400);
        let (terminal, coloured) = (std::io::stderr().is_terminal(), coloured(&std::io::stderr()));
        Screen { language, prompt, shown: row[prompt..].to_vec(), lines: 0, terminal, coloured, width, step: 0 }
    }

    /// Draws `row`.
    ///
    /// # Errors
    /// A tokenizer that fails; a terminal that is gone is none.
    pub fn draw(&mut self, row: &[i64]) -> Result<()> {
        self.step += 1;
        let answer = &row[self.prompt..];
        let text = self.picture(answer)?;
        let out = match (self.terminal, self.lines) {
            (false, _) => format!("{:>4} {text}\n", self.step),
            (true, 0) => format!("{text}\n"),
            // Up to the first line of the picture before, and clear from there.
            (true, lines) => format!("\x1b[{lines}A\x1b[J{text}\n"),
        };
        self.lines = text.lines().count().max(1);
        self.shown = answer.to_vec();
        match std::io::stderr().lock().write_all(out.as_bytes()) {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("write", Path::new("standard error"), e)),
            _ => Ok(()),
        }
    }

    /// The answer with a dot for each mask; in a terminal wrapped, and what is new in green.
    fn picture(&self, answer: &[i64]) -> Result<String> {
        let (mut out, mut column) = (String::new(), 0);
        for (token, before) in answer.iter().zip(&self.shown) {
            let mask = *token == self.language.mask_id;
            let piece = if mask { "·".into() } else { self.language.decode(&[*token], false)? };
            let piece: String = piece.chars().map(|c| if c.is_control() { '⏎' } else { c }).collect();
            if !self.terminal {
                out += &piece;
                continue;
            }
            let wide = piece.chars().count();
            if column + wide > self.width && column > 0 {
                out.push('\n');
                column = 0;
            }
            column += wide;
            match token == before {
                _ if !self.coloured => out += &piece,
                true if mask => out += &format!("\x1b[2m{piece}\x1b[0m"),
                true => out += &piece,
                false => out += &format!("\x1b[32m{piece}\x1b[0m"),
            }
        }
        Ok(out)
    }
}
