//! What a row says: token ids, or a conversation whose last turn is the answer.

use super::rows::Row;
use crate::error::{Error, Problem, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// One turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`.
    pub role: String,
    pub content: String,
}

impl Message {
    fn new(role: &str, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// What is trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Example {
    /// Tokens as they are; the answer is `ids[prompt..total]`.
    Ids { ids: Vec<i64>, prompt: usize, total: usize },
    /// Text as it is, without a chat template.
    Plain { prompt: String, answer: String },
    /// Turns; each of the assistant can be an answer.
    Chat(Vec<Message>),
}

/// The user's names for the fields that a row is read from: `prompt=question,answer=solution`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Columns(BTreeMap<String, String>);

/// The fields that can be mapped.
const FIELDS: [&str; 7] = ["input_ids", "prompt_len", "total_len", "prompt", "answer", "messages", "trajectory"];

impl Columns {
    /// # Errors
    /// `Usage`: what is no `FIELD=COLUMN`, and every field that does not exist.
    pub fn parse(text: &str) -> Result<Self> {
        let mut columns = BTreeMap::new();
        let mut problems = Vec::new();
        for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            match pair.split_once('=') {
                Some((field, column)) if FIELDS.contains(&field.trim()) && !column.trim().is_empty() => {
                    columns.insert(field.trim().to_string(), column.trim().to_string());
                }
                _ => problems.push(
                    Problem::new("--columns", format!("`{pair}` maps no field"))
                        .help(format!("FIELD=COLUMN, where FIELD is one of {}", FIELDS.join(", "))),
                ),
            }
        }
        if problems.is_empty() { Ok(Columns(columns)) } else { Err(Error::Usage { problems }) }
    }

    fn get<'r>(&self, row: &'r Row, field: &str) -> Option<&'r Value> {
        row.get(self.0.get(field).map_or(field, String::as_str)).filter(|v| !v.is_null())
    }

    /// Whether a row holds token ids.
    pub fn has_ids(&self, row: &Row) -> bool {
        self.get(row, "input_ids").is_some()
    }

    fn maps(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }
}

/// Reads a row, by the first of these that it has: `input_ids`; `messages`; a question of s1K with its
/// trajectory and attempt (d1's format); `prompt` and `answer`.
pub fn example(row: &Row, columns: &Columns) -> std::result::Result<Example, Problem> {
    let text = |field: &str| columns.get(row, field).map(|v| string(field, v)).transpose();
    if let Some(ids) = columns.get(row, "input_ids") {
        return token_ids(row, columns, ids);
    }
    if let Some(messages) = columns.get(row, "messages") {
        return chat(messages);
    }
    if columns.maps("trajectory") {
        if let (Some(question), Some(trajectory), Some(attempt)) =
            (text("prompt")?, text("trajectory")?, text("answer")?)
        {
            return Ok(reasoning(question, &trajectory, &attempt));
        }
    } else if let Some(found) = s1k(row)? {
        return Ok(found);
    }
    match (text("prompt")?, text("answer")?) {
        (Some(prompt), Some(answer)) if columns.maps("prompt") || columns.maps("answer") => {
            Ok(Example::Chat(turn(prompt, answer)))
        }
        (Some(prompt), Some(answer)) => Ok(Example::Plain { prompt, answer }),
        _ => {
            let names: Vec<&str> = row.keys().map(String::as_str).collect();
            let have = if names.is_empty() {
                "it has no field".into()
            } else {
                format!("its fields are {}", names.join(", "))
            };
            let help = format!("{have}; --columns prompt=..,answer=.. maps other names");
            Err(Problem::new("", "a row needs input_ids and prompt_len, or messages, or prompt and answer").help(help))
        }
    }
}

/// Reads what is asked for in a row, which need not hold an answer: `input_ids` up to `prompt_len`, `messages` up to
/// the last turn that is not the assistant's, `prompt`, `question`.
pub fn question(row: &Row, columns: &Columns) -> std::result::Result<Example, Problem> {
    if let Some(ids) = columns.get(row, "input_ids") {
        let ids: Vec<i64> = Vec::deserialize(ids).map_err(|e| Problem::new("", format!("input_ids: {e}")))?;
        let prompt = columns.get(row, "prompt_len").map_or(Ok(ids.len()), usize::deserialize);
        let prompt = prompt.map_err(|e| Problem::new("", format!("prompt_len: {e}")))?;
        return Ok(Example::Ids { prompt: prompt.min(ids.len()), total: ids.len(), ids });
    }
    if let Some(messages) = columns.get(row, "messages") {
        let mut turns = turns(messages)?;
        turns.truncate(turns.iter().rposition(|m| m.role != "assistant").map_or(0, |k| k + 1));
        if turns.is_empty() {
            return Err(Problem::new("", "messages hold nothing to answer"));
        }
        return Ok(Example::Chat(turns));
    }
    let asked = ["prompt", "question"].iter().find_map(|field| Some((*field, columns.get(row, field)?)));
    match asked {
        Some((field, value)) => Ok(Example::Plain { prompt: string(field, value)?, answer: String::new() }),
        None => Err(Problem::new("", "a row needs a prompt, a question, messages or input_ids")),
    }
}

/// A question and its answer.
pub fn turn(prompt: String, answer: String) -> Vec<Message> {
    vec![Message::new("user", prompt), Message::new("assistant", answer)]
}

fn token_ids(row: &Row, columns: &Columns, ids: &Value) -> std::result::Result<Example, Problem> {
    let bad = |field: &str, e: serde_json::Error| Problem::new("", format!("{field}: {e}"));
    let ids: Vec<i64> = Vec::deserialize(ids).map_err(|e| bad("input_ids", e))?;
    let length =
        |field: &str| columns.get(row, field).map(|v| usize::deserialize(v).map_err(|e| bad(field, e))).transpose();
    let prompt = length("prompt_len")?.ok_or_else(|| {
        Problem::new("", "prompt_len is missing").help("how many of input_ids are the prompt, which is never masked")
    })?;
    let total = length("total_len")?.unwrap_or(ids.len());
    Ok(Example::Ids { ids, prompt, total })
}

/// A string, or the first of a list of strings.
fn string(field: &str, value: &Value) -> std::result::Result<String, Problem> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(list) => match list.first() {
            Some(first) => string(field, first),
            None => Err(Problem::new("", format!("{field} is an empty list"))),
        },
        other => Err(Problem::new("", format!("{field} must be text, not {other}"))),
    }
}

fn chat(messages: &Value) -> std::result::Result<Example, Problem> {
    let messages = turns(messages)?;
    if !messages.iter().any(|m| m.role == "assistant") {
        return Err(Problem::new("", "messages hold no turn of the assistant, so there is no answer"));
    }
    Ok(Example::Chat(messages))
}

fn turns(messages: &Value) -> std::result::Result<Vec<Message>, Problem> {
    // The two spellings in use: role and content, from and value (ShareGPT).
    #[derive(Deserialize)]
    struct Turn {
        #[serde(alias = "from")]
        role: String,
        #[serde(alias = "value")]
        content: String,
    }
    let turns: Vec<Turn> = Vec::deserialize(messages).map_err(|e| {
        Problem::new("", format!("messages: {e}")).help("a list of {\"role\": \"user\", \"content\": \"..\"}")
    })?;
    let role = |name: String| match name.as_str() {
        "human" => "user".to_string(),
        "gpt" | "model" => "assistant".into(),
        _ => name,
    };
    Ok(turns.into_iter().map(|t| Message { role: role(t.role), content: t.content }).collect())
}

/// The columns of simplescaling/s1K and s1K-1.1: where the trajectory lies, and the attempt.
const S1K: [(&str, &str); 3] = [
    ("deepseek_thinking_trajectory", "deepseek_attempt"),
    ("gemini_thinking_trajectory", "gemini_attempt"),
    ("thinking_trajectories", "attempt"),
];

fn s1k(row: &Row) -> std::result::Result<Option<Example>, Problem> {
    let text = |name: &str| row.get(name).filter(|v| !v.is_null()).map(|v| string(name, v)).transpose();
    let Some(question) = text("question")? else { return Ok(None) };
    for (trajectory, attempt) in S1K {
        if let (Some(trajectory), Some(attempt)) = (text(trajectory)?, text(attempt)?) {
            return Ok(Some(reasoning(question, &trajectory, &attempt)));
        }
    }
    Ok(None)
}

/// The answer as d1's SFT code spells it.
fn reasoning(question: String, trajectory: &str, attempt: &str) -> Example {
    let answer = format!("<reasoning>{trajectory}</reasoning>\n<answer>{attempt}</answer>");
    Example::Chat(turn(question, answer))
}

/// The system's text goes into the first turn of the user, with a blank line between (d1's format).
pub fn with_system(mut messages: Vec<Message>, system: Option<&str>) -> Vec<Message> {
    if let (Some(system), Some(user)) = (system, messages.iter_mut().find(|m| m.role == "user")) {
        user.content = format!("{system}\n\n{}", user.content);
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value, columns: &str) -> std::result::Result<Example, String> {
        let Value::Object(row) = value else { panic!("no object") };
        example(&row, &Columns::parse(columns).unwrap()).map_err(|p| p.message)
    }

    fn exchange(question: &str, answer: &str) -> Example {
        Example::Chat(vec![Message::new("user", question), Message::new("assistant", answer)])
    }

    #[test]
    fn both_revisions_of_s1k() {
        let want = exchange("q", "<reasoning>because</reasoning>\n<answer>4</answer>");
        let first = json!({ "solution": "4", "question": "q", "cot": null, "thinking_trajectories": ["because"], "attempt": "4" });
        let second = json!({ "question": "q", "deepseek_thinking_trajectory": "because", "deepseek_attempt": "4",
                             "gemini_attempt": "5", "gemini_thinking_trajectory": "no" });
        let lists = json!({ "question": "q", "deepseek_thinking_trajectory": ["because"], "deepseek_attempt": ["4"] });
        for row in [first, second, lists] {
            assert_eq!(read(row, ""), Ok(want.clone()));
        }
    }

    #[test]
    fn columns_map_any_names() {
        assert_eq!(read(json!({ "q": "1", "a": "2" }), "prompt=q, answer=a"), Ok(exchange("1", "2")));
        assert_eq!(
            read(json!({ "q": "1", "c": "x", "a": "2" }), "prompt=q,answer=a,trajectory=c"),
            Ok(exchange("1", "<reasoning>x</reasoning>\n<answer>2</answer>"))
        );
        assert!(Columns::parse("x=y,prompt").unwrap_err().to_string().contains("`prompt` maps no field"));
    }

    #[test]
    fn conversations_of_both_spellings() {
        let want = Ok(exchange("hi", "ho"));
        let openai =
            json!({ "messages": [{ "role": "user", "content": "hi" }, { "role": "assistant", "content": "ho" }] });
        assert_eq!(read(openai, ""), want);
        let sharegpt =
            json!({ "conversations": [{ "from": "human", "value": "hi" }, { "from": "gpt", "value": "ho" }] });
        assert_eq!(read(sharegpt, "messages=conversations"), want);
        let question = json!({ "messages": [{ "role": "user", "content": "hi" }] });
        assert!(read(question, "").unwrap_err().contains("no answer"));
    }

    #[test]
    fn the_system_text_joins_the_question() {
        let Example::Chat(messages) = exchange("q", "a") else { panic!() };
        assert_eq!(with_system(messages, Some("be brief"))[0].content, "be brief\n\nq");
    }

    #[test]
    fn questions_need_no_answer() {
        let of = |value: Value| {
            let Value::Object(row) = value else { panic!("no object") };
            question(&row, &Columns::default()).map_err(|p| p.message)
        };
        let plain = |prompt: &str| Ok(Example::Plain { prompt: prompt.into(), answer: String::new() });
        assert_eq!(of(json!({ "prompt": "a", "answer": "b" })), plain("a"));
        assert_eq!(of(json!({ "question": "q" })), plain("q"));
        assert_eq!(of(json!({ "input_ids": [1, 2, 3] })), Ok(Example::Ids { ids: vec![1, 2, 3], prompt: 3, total: 3 }));
        let Ok(Example::Chat(messages)) = of(json!({ "messages": [
            { "role": "user", "content": "hi" }, { "role": "assistant", "content": "ho" } ] }))
        else {
            panic!()
        };
        assert_eq!(messages, [Message::new("user", "hi")]);
        assert!(of(json!({ "text": "a" })).is_err() && of(json!({ "messages": [] })).is_err());
    }
}
