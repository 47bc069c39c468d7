//! Tokens of a run: how often they were masked, and single samples as a map of their entropies.

use super::Run;
use super::chart::number;
use super::page::{escape, table};
use serde::Deserialize;
use std::fmt::Write;

/// What a run has written of its tokens.
#[derive(Debug, Deserialize)]
pub struct Tokens {
    bins: Vec<Bin>,
    step: u64,
    samples: Vec<Vec<Token>>,
}

#[derive(Debug, Deserialize)]
struct Bin {
    tokens: u64,
    rate: f64,
    masked: u64,
}

#[derive(Debug, Deserialize)]
pub struct Token {
    text: String,
    answer: bool,
    entropy: Option<f64>,
    surprise: Option<f64>,
    beta: Option<f64>,
    rate: Option<f64>,
    masked: bool,
    loss: Option<f64>,
    weight: Option<f64>,
}

impl Tokens {
    pub fn step(&self) -> u64 {
        self.step
    }

    pub fn samples(&self) -> &[Vec<Token>] {
        &self.samples
    }
}

impl Token {
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn answer(&self) -> bool {
        self.answer
    }

    pub fn masked(&self) -> bool {
        self.masked
    }

    /// What a map shows by its colour.
    pub fn shade(&self) -> f64 {
        self.entropy.or(self.surprise).or(self.rate).filter(|x| x.is_finite()).unwrap_or(0.0)
    }
}

/// The tokens of maps on one page: about 300 bytes each.
const MOST: usize = 3072;

/// The sections of all runs that have them.
pub fn html(runs: &[Run]) -> String {
    let most = MOST / runs.len().max(1);
    let sections: String = runs.iter().filter_map(|run| Some(section(&run.name, run.tokens.as_ref()?, most))).collect();
    if sections.is_empty() {
        return sections;
    }
    format!(
        "<h2>Tokens</h2><p>The darker an answer's token, the higher its entropy H beside the highest of its sample \
         (without a probe: its masking probability t). Masked tokens are underlined. Under the pointer: the entropy H, \
         what the method makes of it (beta), the masking probability t, and the weight of the token's cross-entropy in the \
         loss.</p>{sections}"
    )
}

fn section(name: &str, tokens: &Tokens, most: usize) -> String {
    let heads = ["t between", "tokens", "mean t", "masked", "standard errors apart"];
    let heads: String = heads.map(|h| format!("<th scope=\"col\">{h}</th>")).concat();
    let row = |(k, bin): (usize, &Bin)| {
        let n = bin.tokens as f64;
        let (mean, masked) = (bin.rate / n, bin.masked as f64 / n);
        let apart = (masked - mean) / (mean * (1.0 - mean) / n).sqrt().max(1e-12);
        format!(
            "<tr><th scope=\"row\">{:.1} and {:.1}</th><td>{}</td><td>{mean:.4}</td><td>{masked:.4}</td><td>{apart:+.1}</td></tr>",
            k as f64 / 10.0,
            (k + 1) as f64 / 10.0,
            bin.tokens
        )
    };
    let rows: String = tokens.bins.iter().enumerate().filter(|(_, bin)| bin.tokens > 0).map(row).collect();
    let samples: String = tokens.samples.iter().map(|s| map(&s[..s.len().min(most / tokens.samples.len())])).collect();
    format!("<h3>{}, step {}</h3>{}{samples}", escape(name), tokens.step, table(&heads, &rows))
}

/// A sample as running text.
fn map(sample: &[Token]) -> String {
    let top = sample.iter().map(Token::shade).fold(f64::MIN_POSITIVE, f64::max);
    let mut out = String::from("<p class=\"map\">");
    for token in sample {
        if !token.answer {
            out += &escape(&token.text);
            continue;
        }
        let mut title = Vec::new();
        title.extend(token.entropy.map(|h| format!("H {} nats", number(h))));
        title.extend(token.surprise.map(|h| format!("surprise {} nats", number(h))));
        title.extend(token.beta.map(|b| format!("beta {}", number(b))));
        title.extend(token.rate.map(|t| format!("t {}", number(t))));
        title.push(match (token.masked, token.weight) {
            (true, Some(w)) => format!("masked, weight {}", number(w)),
            (false, Some(w)) => format!("not masked (would weigh {})", number(w)),
            (true, None) => "masked".into(),
            (false, None) => "not masked".into(),
        });
        title.extend(token.loss.map(|l| format!("cross-entropy {}", number(l))));
        let class = if token.masked { "token masked" } else { "token" };
        let strength = 100.0 * token.shade() / top;
        let _ = write!(
            out,
            "<span class=\"{class}\" style=\"--h:{strength:.0}%\" title=\"{}\">{}</span>",
            title.join(", "),
            escape(&token.text)
        );
    }
    out + "</p>"
}
