//! Finds the answer in what a model has written.

/// What lies between braces that begin `text`, which starts behind the opening one; `None` where they do not close.
fn braced(text: &str) -> Option<&str> {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&text[..at]);
        }
    }
    None
}

/// The content of the last `\boxed{..}`, with braces inside.
pub fn last_boxed(text: &str) -> Option<&str> {
    text.rmatch_indices("\\boxed{").find_map(|(at, open)| braced(&text[at + open.len()..]))
}

/// The content of the last `<answer>..</answer>`; one that is not closed reaches to the end.
pub fn last_answer(text: &str) -> Option<&str> {
    let (_, rest) = text.rsplit_once("<answer>")?;
    Some(rest.split("</answer>").next().unwrap_or(rest).trim())
}

/// The content of the first `<answer>..</answer>`, as d1 reads it.
pub fn first_answer(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<answer>")?;
    Some(rest.split_once("</answer>")?.0.trim())
}

/// The contents of `\boxed{..}` up to the first closing brace, within a line, as d1's regular expression for GSM8K has
/// them.
pub fn boxed_to_first_brace(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("\\boxed{") {
        match after.find(['}', '\n']) {
            Some(end) if after[end..].starts_with('}') => {
                found.push(&after[..end]);
                rest = &after[end + 1..];
            }
            _ => rest = after,
        }
    }
    found
}

/// The last `\boxed` or `\fbox` with its braces, or `\boxed ` to the next `$`, as Hendrycks's code for MATH finds it,
/// without the command; `None` also where that code gives up: no brace behind it, and `\fbox`.
pub fn hendrycks_boxed(text: &str) -> Option<&str> {
    if let Some((_, rest)) = text.rsplit_once("\\boxed ") {
        return rest.split('$').next();
    }
    let at = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox"))?;
    let rest = &text[at..];
    let open = rest.find('{')?;
    let inside = braced(&rest[open + 1..])?;
    rest[..open].eq("\\boxed").then_some(inside)
}

/// The decimal numbers of a text: an optional minus, digits, an optional point with digits.
pub fn numbers(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let digits = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    };
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let first = at + usize::from(bytes[at] == b'-');
        let whole = digits(first);
        if whole == first {
            at += 1;
            continue;
        }
        let end = if bytes.get(whole) == Some(&b'.') { digits(whole + 1) } else { whole };
        found.push(&text[at..end]);
        at = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_with_braces_inside() {
        let text = "\\boxed{1} then \\boxed{\\frac{1}{2}} and \\boxed{open";
        assert_eq!(last_boxed(text), Some("\\frac{1}{2}"));
        assert_eq!(boxed_to_first_brace("\\boxed{\\frac{1}{2}} \\boxed{3\n} \\boxed{4}"), ["\\frac{1", "4"]);
        assert_eq!(hendrycks_boxed("a \\boxed{x^{2}} b"), Some("x^{2}"));
        assert_eq!(hendrycks_boxed("\\fbox{3}"), None);
        assert_eq!(hendrycks_boxed("\\boxed"), None);
        assert_eq!(last_boxed("none"), None);
    }

    #[test]
    fn answers_first_and_last() {
        let text = "<answer> 1 </answer> no, <answer>2</answer>";
        assert_eq!((first_answer(text), last_answer(text)), (Some("1"), Some("2")));
        assert_eq!((first_answer("<answer>3"), last_answer("<answer>3")), (None, Some("3")));
    }

    #[test]
    fn numbers_as_the_expression_finds_them() {
        assert_eq!(numbers("a-3.5 and 1,000 or 7. -x --2"), ["-3.5", "1", "000", "7.", "-2"]);
        assert!(numbers("-. né").is_empty());
    }
}
