//! Chat templates: a conversation as the text that the model was trained on.

use super::format::Message;
use super::python_json;
use crate::error::{Error, Problem, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};
use std::path::Path;

/// The templates that are built in.  LLaDA's own template appends the header of an assistant to every text;
/// this one does so only where an answer is to follow.
const BUILT_IN: [(&str, &str); 2] =
    [("llada", include_str!("templates/llada.jinja")), ("chatml", include_str!("templates/chatml.jinja"))];

/// A compiled template and the special tokens that it may name.
pub struct Chat {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// Prompt and answer of one turn, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub prompt: String,
    pub answer: String,
}

const NAME: &str = "chat_template";

impl Chat {
    /// A template from its source.
    ///
    /// # Errors
    /// `Usage`, with the line where the template is wrong.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let wrong = |e: minijinja::Error| {
            Error::usage(Problem::new("--chat-template", format!("{e:#}")).help("a template in the language of Jinja"))
        };
        environment.set_syntax(syntax.map_err(wrong)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", |value: Value, options: Kwargs| python_json::tojson(&value, options));
        environment.add_function("raise_exception", |why: String| -> std::result::Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, why))
        });
        environment.add_template_owned(NAME, source.to_string()).map_err(wrong)?;
        Ok(Chat { environment, bos: bos.into(), eos: eos.into() })
    }

    /// `llada`, `chatml`, a file with a template, or a `tokenizer_config.json` that holds one.
    ///
    /// # Errors
    /// `Io`, or `Usage` where there is no template or it is wrong.
    pub fn find(name: &str) -> Result<Self> {
        if let Some((_, source)) = BUILT_IN.iter().find(|(n, _)| *n == name) {
            let bos = if name == "llada" { "<|startoftext|>" } else { "" };
            return Self::new(source.trim_end_matches('\n'), bos, "<|endoftext|>");
        }
        let path = Path::new(name);
        if !path.is_file() {
            let known: Vec<&str> = BUILT_IN.iter().map(|(n, _)| *n).collect();
            let problem = Problem::new("--chat-template", format!("`{name}` is neither a file nor built in"));
            return Err(Error::usage(problem.help(format!("built in are {}", known.join(" and ")))));
        }
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        if path.extension().is_some_and(|e| e == "json") {
            Self::of_config(&text, path)
        } else {
            Self::new(&text, "", "")
        }
    }

    /// The template of a `tokenizer_config.json`.
    fn of_config(text: &str, path: &Path) -> Result<Self> {
        let refuse = |why: String| Error::usage(Problem::new(path.display().to_string(), why));
        let config: serde_json::Value = serde_json::from_str(text).map_err(|e| refuse(e.to_string()))?;
        // Tokens are strings, or objects with their text; several templates are a list with names.
        let token = |key: &str| {
            let value = &config[key];
            value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_string()
        };
        let template = &config[NAME];
        let list = template.as_array().and_then(|l| l.iter().find(|t| t["name"] == "default").or(l.first()));
        let source = template.as_str().or_else(|| list.and_then(|t| t["template"].as_str()));
        let source = source.ok_or_else(|| refuse("it holds no chat_template".into()))?;
        Self::new(source, &token("bos_token"), &token("eos_token"))
    }

    /// The text of a conversation; `open` ends it where the assistant's answer begins.
    pub fn render(&self, messages: &[Message], open: bool) -> std::result::Result<String, Problem> {
        let turn = |m: &Message| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        let turns: Vec<Value> = messages.iter().map(turn).collect();
        let values = context! {
            messages => turns, add_generation_prompt => open, bos_token => self.bos.as_str(), eos_token => self.eos.as_str(),
        };
        let template = self.environment.get_template(NAME).and_then(|t| t.render(values));
        template.map_err(|e| Problem::new("", format!("the chat template fails: {e:#}")))
    }

    /// The turn `answer` of `messages`, which is one of the assistant's: everything before it is the prompt.
    pub fn turn(&self, messages: &[Message], answer: usize) -> std::result::Result<Turn, Problem> {
        let prompt = self.render(&messages[..answer], true)?;
        let whole = self.render(&messages[..=answer], false)?;
        match whole.strip_prefix(prompt.as_str()) {
            Some(rest) if !rest.is_empty() => Ok(Turn { answer: rest.to_string(), prompt }),
            _ => Err(Problem::new("", "the chat template does not put the answer behind its prompt")
                .help("the template must honour add_generation_prompt; --chat-template llada and chatml are built in")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
        turns.iter().map(|(r, c)| Message { role: r.to_string(), content: c.to_string() }).collect()
    }

    #[test]
    fn the_built_in_templates() {
        let turns = messages(&[("user", " hi "), ("assistant", "ho")]);
        let of = |name: &str| Chat::find(name).unwrap().turn(&turns, 1).unwrap();
        let llada = of("llada");
        assert_eq!(
            llada.prompt,
            "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        );
        assert_eq!(llada.answer, "ho<|eot_id|>");
        let chatml = of("chatml");
        assert_eq!(chatml.prompt, "<|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\n");
        assert_eq!(chatml.answer, "ho<|im_end|>\n");
    }

    /// White space, methods of Python's strings and errors as in the templates of real tokenizers; the expected
    /// text is what Python's jinja2 3.1 with trim_blocks and lstrip_blocks renders.
    #[test]
    fn blocks_and_methods_are_those_of_python() {
        let source = "{{ bos_token }}\n{% for m in messages %}\n    {% if m['role'].startswith('sys') %}\n        \
                      {{- raise_exception('no system') }}\n    {% endif %}\n  [{{ m.role | upper }}] {{ m['content'].strip() }}\n{% endfor %}\n{% if add_generation_prompt %}\n>\n{%- endif %}";
        let chat = Chat::new(source, "<s>", "</s>").unwrap();
        let text = chat.render(&messages(&[("user", " a "), ("assistant", "b\n")]), true).unwrap();
        assert_eq!(text, "<s>\n  [USER] a\n  [ASSISTANT] b\n>");
        let why = chat.render(&messages(&[("system", "x")]), true).unwrap_err();
        assert!(why.message.contains("no system"), "{}", why.message);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        assert!(Chat::new("{% for %}", "", "").is_err_and(|e| e.to_string().contains("--chat-template")));
        assert!(Chat::find("nowhere").is_err_and(|e| e.to_string().contains("llada and chatml")));
        let always = Chat::new("{{ messages[0].content }}>", "", "").unwrap();
        assert!(always.turn(&messages(&[("user", "a"), ("assistant", "b")]), 1).is_err());
    }
}
