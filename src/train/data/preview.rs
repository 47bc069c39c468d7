//! Rows as the model sees them: prompt, answer, padding.

use super::Sample;
use std::fmt::Write;
use tokenizers::Tokenizer;

/// Where a part of a row begins and ends, in a terminal (colour) and elsewhere (brackets).
struct Mark {
    colour: &'static str,
    open: &'static str,
    close: &'static str,
}

const PROMPT: Mark = Mark { colour: "\x1b[2m", open: "", close: "" };
const ANSWER: Mark = Mark { colour: "\x1b[32m", open: "⟦", close: "⟧" };
const PADDING: Mark = Mark { colour: "\x1b[31m", open: "⟨", close: "⟩" };

/// The samples as text, one behind the other, each filled up to the longest with `pad_id`.
///
/// In a terminal (`colour`) the prompt is dim, the answer green, padding red; elsewhere the answer stands in `⟦⟧`, padding
/// in `⟨⟩`.  Without a tokenizer tokens are their ids.
pub fn preview(samples: &[Sample], tokenizer: Option<&Tokenizer>, pad_id: i64, colour: bool) -> String {
    let longest = samples.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
    let mut out = String::new();
    for (number, sample) in samples.iter().enumerate() {
        let (prompt, total) = (sample.prompt, sample.total);
        let padding = longest - sample.tokens.len();
        let _ = writeln!(
            out,
            "--- {number}: {prompt} tokens of prompt, {} of answer, {} of padding",
            total - prompt,
            longest - total
        );
        for (tokens, mark) in [(&sample.tokens[..prompt], PROMPT), (&sample.tokens[prompt..total], ANSWER)] {
            put(&mut out, &text(tokens, tokenizer), &mark, colour);
        }
        // Of many alike one is shown, and their number.
        let mut behind = text(&sample.tokens[total..], tokenizer);
        if padding > 0 {
            let _ = write!(behind, "{} x{padding}", text(&[pad_id], tokenizer));
        }
        put(&mut out, &behind, &PADDING, colour);
        out.push('\n');
    }
    out
}

fn put(out: &mut String, text: &str, mark: &Mark, colour: bool) {
    if text.is_empty() {
        return;
    }
    match colour {
        true => *out += &format!("{}{text}\x1b[0m", mark.colour),
        false => *out += &format!("{}{text}{}", mark.open, mark.close),
    }
}

/// The text with its special tokens; a control character of the data cannot steer the terminal.
fn text(tokens: &[i64], tokenizer: Option<&Tokenizer>) -> String {
    let ids: Vec<u32> = tokens.iter().filter_map(|t| u32::try_from(*t).ok()).collect();
    let plain = || tokens.iter().map(|t| format!("{t} ")).collect::<String>();
    let text = tokenizer.and_then(|t| t.decode(&ids, false).ok()).unwrap_or_else(plain);
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_told_apart() {
        let long = Sample { tokens: vec![1, 2, 3, 4, 5], prompt: 2, total: 4 };
        let short = Sample { tokens: vec![6, 7], prompt: 1, total: 2 };
        let plain = preview(&[long.clone(), short.clone()], None, 0, false);
        assert_eq!(
            plain,
            "--- 0: 2 tokens of prompt, 2 of answer, 1 of padding\n1 2 ⟦3 4 ⟧⟨5 ⟩\n\
             --- 1: 1 tokens of prompt, 1 of answer, 3 of padding\n6 ⟦7 ⟧⟨0  x3⟩\n"
        );
        assert!(preview(&[long], None, 0, true).contains("\x1b[32m3 4 \x1b[0m"));
    }
}
