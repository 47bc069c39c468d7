//! Whether two answers in LaTeX are the same: the rewriting of spellings that the MATH benchmark (Hendrycks and others,
//! arXiv 2103.03874) scores with, and a comparison of numbers beside it.

use super::arithmetic::{Dialect, evaluate};

/// Whether the two are spelled the same after rewriting: the benchmark's own rule.
pub fn same_spelling(a: &str, b: &str) -> bool {
    spelling(a) == spelling(b)
}

/// Whether they are spelled the same, or are the same number.
pub fn same(a: &str, b: &str) -> bool {
    if same_spelling(a, b) {
        return true;
    }
    match (number(a), number(b)) {
        (Some(x), Some(y)) => (x - y).abs() <= 1e-9 * x.abs().max(y.abs()).max(1.0),
        _ => plain(a) == plain(b),
    }
}

/// An answer in the benchmark's canonical spelling.
fn spelling(text: &str) -> String {
    let mut s = text.replace('\n', "").replace("\\!", "").replace("\\\\", "\\");
    for (long, short) in [("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", "")] {
        s = s.replace(long, short);
    }
    for sign in ["^{\\circ}", "^\\circ", "\\$"] {
        s = s.replace(sign, "");
    }
    s = without_units(&s).replace("\\%", "").replace('%', "");
    s = s.replace(" .", " 0.").replace("{.", "{0.");
    if s.starts_with('.') {
        s.insert(0, '0');
    }
    // `k = 5` answers with 5.
    let sides: Vec<&str> = s.split('=').collect();
    if let [name, value] = sides[..]
        && name.chars().count() <= 2
    {
        s = value.to_string();
    }
    s = roots(&s).replace(' ', "");
    s = fractions(&s);
    if s == "0.5" {
        s = "\\frac{1}{2}".into();
    }
    slashed(&s)
}

/// `5\text{ cm}`: units stand behind a text that begins with a space.
fn without_units(s: &str) -> String {
    match s.split("\\text{ ").collect::<Vec<_>>()[..] {
        [value, _] => value.to_string(),
        _ => s.to_string(),
    }
}

/// `\sqrt3` to `\sqrt{3}`.
fn roots(s: &str) -> String {
    let mut parts = s.split("\\sqrt");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        out += "\\sqrt";
        match part.chars().next() {
            Some(c) if c != '{' => out += &format!("{{{c}}}{}", &part[c.len_utf8()..]),
            _ => out += part,
        }
    }
    out
}

/// `\frac12`, `\frac1{72}` to `\frac{1}{2}`, `\frac{1}{72}`; all stays as it is where one of them is cut short.
fn fractions(s: &str) -> String {
    let mut parts = s.split("\\frac");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        out += "\\frac";
        let mut signs = part.chars();
        match (signs.next(), signs.next()) {
            (Some('{'), _) => out += part,
            (Some(a), Some(b)) => {
                let rest = signs.as_str();
                out += &if b == '{' { format!("{{{a}}}{{{rest}") } else { format!("{{{a}}}{{{b}}}{rest}") };
            }
            _ => return s.to_string(),
        }
    }
    out
}

/// `3/4` of two whole numbers to `\frac{3}{4}`.
fn slashed(s: &str) -> String {
    let whole = |t: &str| t.parse::<i64>().ok().filter(|n| n.to_string() == t);
    match s.split_once('/').map(|(a, b)| (whole(a), whole(b))) {
        Some((Some(a), Some(b))) => format!("\\frac{{{a}}}{{{b}}}"),
        _ => s.to_string(),
    }
}

/// The answer as text: no dollar signs, no words of markup, one case.
fn plain(text: &str) -> String {
    let mut s = spelling(text).replace('$', "").replace("\\,", "").replace("\\;", "");
    for command in ["\\textbf", "\\text", "\\mathrm", "\\mathbf", "\\displaystyle"] {
        s = s.replace(command, "");
    }
    s.trim_end_matches('.').replace(['{', '}'], "").to_lowercase()
}

/// The value of an answer that is a number: decimals with thousands' commas, fractions, products.
fn number(text: &str) -> Option<f64> {
    let mut s = spelling(text).replace('$', "").replace("\\,", "").replace("{,}", "");
    if let Some(value) = grouped(&s) {
        return Some(value);
    }
    for (latex, sign) in [("\\cdot", "*"), ("\\times", "*"), ("\\div", "/"), ("\\pi", "*(3.141592653589793)")] {
        s = s.replace(latex, sign);
    }
    // `\frac{a}{b}` to `((a)/(b))`: its braces hold no others here, or it is no plain number.
    while let Some((before, rest)) = s.split_once("\\frac{") {
        let (above, rest) = rest.split_once("}{")?;
        let (below, rest) = rest.split_once('}')?;
        let joined = if before.ends_with(|c: char| c.is_ascii_digit()) { "+" } else { "" };
        s = format!("{before}{joined}(({above})/({below})){rest}");
    }
    let s = s.trim_start_matches('*').replace("(*", "(");
    evaluate(&s, Dialect::Python)
}

/// `12,345.6`: groups of three behind the first.
fn grouped(s: &str) -> Option<f64> {
    let (whole, decimals) = s.split_once('.').unwrap_or((s, ""));
    let mut groups = whole.trim_start_matches('-').split(',');
    let first = groups.next()?;
    let rest: Vec<&str> = groups.collect();
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    let fits = (1..=3).contains(&first.len()) && digits(first) && rest.iter().all(|g| g.len() == 3 && digits(g));
    (fits && !rest.is_empty() && digits(decimals)).then(|| s.replace(',', "").parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_the_benchmark() {
        let pairs = [
            ("\\dfrac{1}{2}", "\\frac{1}{2}"),
            ("\\frac12", "\\frac{1}{2}"),
            ("\\frac1{72}", "\\frac{1}{72}"),
            ("1/2", "\\frac{1}{2}"),
            ("0.5", "\\frac12"),
            (".5", "0.5"),
            ("x=5", "5"),
            ("\\sqrt3", "\\sqrt{3}"),
            ("\\left( 3, 4 \\right)", "(3,4)"),
            ("90^\\circ", "90"),
            ("5\\text{ cm}", "5"),
            ("10\\%", "10"),
            ("\\$3", "3"),
        ];
        for (a, b) in pairs {
            assert!(same_spelling(a, b), "{a} {b}: {} {}", spelling(a), spelling(b));
        }
        for (a, b) in
            [("2", "3"), ("1,000", "1000"), ("\\text{Evelyn}", "Evelyn"), ("0.25", "\\frac14"), ("\\frac1", "1")]
        {
            assert!(!same_spelling(a, b), "{a} {b}");
        }
    }

    #[test]
    fn the_same_number_counts_beside() {
        let pairs = [
            ("1,000", "1000"),
            ("11{,}111", "11111"),
            ("0.25", "\\frac14"),
            ("\\text{Evelyn}", "evelyn"),
            ("\\textbf{(B)}", "(b)"),
            ("2\\pi", "\\pi \\cdot 2"),
            ("$12.0$", "12"),
            ("3\\frac{1}{2}", "3.5"),
            ("-\\frac{3}{6}", "-0.5"),
            ("\\frac{\\pi}{2}", "\\frac{1}{2}\\pi"),
        ];
        for (a, b) in pairs {
            assert!(same(a, b), "{a} {b}: {:?} {:?}", number(a), number(b));
        }
        for (a, b) in [("(3,4)", "34"), ("1,2", "12"), ("x", "y"), ("\\frac{1}{0}", "0"), ("", "0"), ("\\frac{", "1")] {
            assert!(!same(a, b), "{a} {b}");
        }
    }
}
