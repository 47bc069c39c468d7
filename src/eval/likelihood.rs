//! Likelihoods of answers: the bound that diffusion language models are trained on, by fixed draws.

use crate::error::{Error, Problem, Result};
use crate::generate::Model;
use crate::generate::language::Language;
use crate::rng::SplitMix64;
use crate::train::data::{Row, Sample};
use serde_json::Value;

/// How many draws there are, and their seed.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    pub count: usize,
    pub seed: u64,
    /// Rows a model call.
    pub batch: usize,
}

/// A model, its language, and the draws.
pub struct Judge<'a> {
    pub model: &'a mut Model,
    pub language: &'a Language,
    pub draws: Draws,
}

impl Judge<'_> {
    /// The bound on the negative log-likelihood of a sample's answer, in nats a token.
    ///
    /// Times are the middles of `count` equal parts of (0, 1), the same for every model; a token is masked where its
    /// draw, which depends on seed, sample and part, is below the time, and its cross-entropy weighs 1/t.
    ///
    /// # Errors
    /// Failures of the runtime.
    pub fn nll(&mut self, number: usize, sample: &Sample) -> Result<f64> {
        let answer: Vec<usize> = (sample.prompt..sample.total).collect();
        let mut rng = SplitMix64::stream(self.draws.seed, number as u64);
        let count = self.draws.count;
        let draw = |k: usize| {
            let t = (k as f64 + 0.5) / count as f64;
            let masked = answer.iter().filter(|_| unit(&mut rng) < t).copied().collect::<Vec<_>>();
            (masked, 1.0 / t)
        };
        let draws: Vec<(Vec<usize>, f64)> = (0..count).map(draw).collect();
        Ok(self.weighted(&sample.tokens, &draws)? / answer.len() as f64)
    }

    /// The bound on the log-likelihood of `target` behind `prefix`, in nats.
    ///
    /// As LLaDA's evaluation: each draw masks an exact number of tokens, spread evenly over 1 to the target's length,
    /// and weighs by length over that number.
    ///
    /// # Errors
    /// Failures of the runtime.
    pub fn log_likelihood(&mut self, number: usize, prefix: &[i64], target: &[i64]) -> Result<f64> {
        let mut rng = SplitMix64::stream(self.draws.seed, number as u64);
        let (count, length) = (self.draws.count, target.len());
        let first = rng.below(length);
        let draw = |k: usize| {
            let masked = (first + k * length / count) % length + 1;
            let mut positions: Vec<usize> = (prefix.len()..prefix.len() + length).collect();
            rng.shuffle(&mut positions);
            positions.truncate(masked);
            (positions, length as f64 / masked as f64)
        };
        let draws: Vec<(Vec<usize>, f64)> = (0..count).map(draw).collect();
        Ok(-self.weighted(&[prefix, target].concat(), &draws)?)
    }

    /// The mean over draws, masked positions and a weight each, of the weighted sum of cross-entropies.
    fn weighted(&mut self, tokens: &[i64], draws: &[(Vec<usize>, f64)]) -> Result<f64> {
        let (len, mut sum) = (tokens.len(), 0.0);
        let some: Vec<&(Vec<usize>, f64)> = draws.iter().filter(|(masked, _)| !masked.is_empty()).collect();
        for part in some.chunks(self.draws.batch.max(1)) {
            let mut rows = Vec::with_capacity(part.len() * len);
            for (masked, _) in part {
                let start = rows.len();
                rows.extend_from_slice(tokens);
                masked.iter().for_each(|p| rows[start + p] = self.language.mask_id);
            }
            let mut z = self.model.logits(&rows, part.len(), len)?;
            let vocab = z.len() / rows.len().max(1);
            if let (true, Ok(mask)) = (self.language.excludes_mask, usize::try_from(self.language.mask_id)) {
                let own = z.chunks_exact_mut(vocab.max(1)).filter_map(|row| row.get_mut(mask));
                own.for_each(|logit| *logit = f32::NEG_INFINITY);
            }
            for (row, (masked, weight)) in part.iter().enumerate() {
                for p in masked {
                    let source = row * len + p.saturating_sub(self.language.logits_shift);
                    sum += weight * cross_entropy(&z[source * vocab..][..vocab], tokens[*p])?;
                }
            }
        }
        Ok(sum / draws.len() as f64)
    }
}

/// A number in [0, 1) of 53 bits.
fn unit(rng: &mut SplitMix64) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

fn cross_entropy(z: &[f32], token: i64) -> Result<f64> {
    let top = z.iter().fold(f32::NEG_INFINITY, |top, v| top.max(*v));
    let sum: f64 = z.iter().map(|v| f64::from(v - top).exp()).sum();
    match usize::try_from(token).ok().and_then(|k| z.get(k)) {
        Some(own) => Ok(sum.ln() - f64::from(own - top)),
        None => {
            let message = format!("token {token} is not in the vocabulary of {}", z.len());
            Err(Error::usage(Problem::new("--tokenizer", message).help("use the tokenizer of this model")))
        }
    }
}

/// A question with its choices, one of which is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choices {
    pub question: String,
    pub choices: Vec<String>,
    pub right: usize,
}

impl Choices {
    /// Reads a row of HellaSwag (ctx, endings, label), of MMLU (question, choices, answer), or of ARC (question,
    /// choices with text and label, answerKey).
    pub fn of(row: &Row) -> std::result::Result<Self, Problem> {
        let missing = |what: &str| Problem::new("", format!("a row of multiple choice needs {what}"));
        let field = |names: &[&str]| names.iter().find_map(|n| row.get(*n));
        let question = field(&["ctx", "question", "query"]).and_then(Value::as_str);
        let listed = field(&["endings", "choices"]).ok_or_else(|| missing("endings or choices"))?;
        let texts = listed.get("text").unwrap_or(listed).as_array();
        let choices: Option<Vec<String>> = texts.and_then(|l| l.iter().map(|c| c.as_str().map(String::from)).collect());
        let choices = choices.filter(|c| c.len() > 1).ok_or_else(|| missing("two choices of text"))?;
        let answer = field(&["label", "answer", "answerKey"]).ok_or_else(|| missing("label, answer or answerKey"))?;
        let named = listed.get("label").and_then(Value::as_array).and_then(|l| l.iter().position(|v| v == answer));
        let right = named.or_else(|| match answer {
            Value::Number(n) => n.as_u64().map(|n| n as usize),
            Value::String(s) => s.parse().ok().or_else(|| {
                let letter = s.bytes().next().filter(|b| s.len() == 1 && b.is_ascii_uppercase())?;
                Some(usize::from(letter - b'A'))
            }),
            _ => None,
        });
        let right = right.filter(|k| *k < choices.len()).ok_or_else(|| missing("a label that names a choice"))?;
        Ok(Choices { question: question.ok_or_else(|| missing("ctx or question"))?.into(), choices, right })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_of_three_benchmarks() {
        let of = |row: Value| {
            let Value::Object(row) = row else { panic!("no object") };
            Choices::of(&row).map_err(|p| p.message)
        };
        let want = Choices { question: "q".into(), choices: vec!["a".into(), "b".into()], right: 1 };
        for row in [
            json!({ "ctx": "q", "endings": ["a", "b"], "label": "1" }),
            json!({ "question": "q", "choices": ["a", "b"], "answer": 1 }),
            json!({ "question": "q", "choices": ["a", "b"], "answer": "B" }),
            json!({ "question": "q", "choices": { "text": ["a", "b"], "label": ["A", "B"] }, "answerKey": "B" }),
            json!({ "question": "q", "choices": { "text": ["a", "b"], "label": ["1", "2"] }, "answerKey": "2" }),
        ] {
            assert_eq!(of(row), Ok(want.clone()));
        }
        assert!(of(json!({ "ctx": "q", "endings": ["a", "b"], "label": "2" })).unwrap_err().contains("names a choice"));
        assert!(of(json!({ "ctx": "q", "endings": ["a"], "label": "0" })).is_err());
        assert!(of(json!({ "endings": ["a", "b"], "label": "0" })).is_err());
    }

    #[test]
    fn cross_entropies() {
        let z = [1.0f32.ln(), 3.0f32.ln()];
        assert!((cross_entropy(&z, 1).unwrap() - (4.0f64 / 3.0).ln()).abs() < 1e-6);
        assert!(cross_entropy(&z, 2).is_err() && cross_entropy(&z, -1).is_err());
    }
}
