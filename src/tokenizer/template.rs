//! A model's own chat template, rendered as transformers renders it.
//!
//! Contract: the text is byte for byte that of transformers, whose Jinja environment is imitated
//! here; `{% generation %}` tags become byte ranges of the text. A template that does not compile, or
//! that refuses a conversation, is the user's error, in one line.
//!
//! Left out: which of the text is learnt ([`super::targets`]), tools and documents. `strftime_now` is
//! left undefined on purpose: templates then use their fixed date, and a prompt never depends on the
//! day.

use super::message::{Message, Watched};
use super::{json, special_token};
use crate::base::error::usage;
use crate::base::fs::read_text;
use anyhow::Result;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A model's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens under the names that templates know (`bos_token`, ...).
    special_tokens: Vec<(&'static str, String)>,
    ends: Vec<String>,
    has_spans: bool,
    place: String,
}

const NAME: &str = "chat_template";
const OPEN: &str = "codeseq_open";
const CLOSE: &str = "codeseq_close";

/// Instructions that a template may take for one text: a second's work, where long conversations take
/// some hundred thousand.
pub(crate) const FUEL: u64 = 1 << 24;

impl ChatTemplate {
    /// The template beside a tokenizer: `chat_template.jinja`, else the config's key.
    pub(crate) fn load(
        dir: &Path,
        config: &serde_json::Value,
        ends: Vec<String>,
    ) -> Result<Option<Self>> {
        let file = dir.join("chat_template.jinja");
        let inline = dir.join("tokenizer_config.json").display().to_string();
        let (source, place) = if file.is_file() {
            (read_text(&file)?, file.display().to_string())
        } else {
            match &config[NAME] {
                serde_json::Value::Null => return Ok(None),
                serde_json::Value::String(source) => (source.clone(), inline),
                named => {
                    let default = named.as_array().and_then(|entries| {
                        let entry = entries.iter().find(|entry| entry["name"] == "default")?;
                        entry["template"].as_str()
                    });
                    let source = default.ok_or_else(|| {
                        usage(format!("{inline}: {NAME}: no template named \"default\""))
                    })?;
                    (source.to_owned(), inline)
                }
            }
        };
        let special_tokens = ["bos_token", "eos_token", "pad_token", "unk_token"]
            .into_iter()
            .filter_map(|key| Some((key, special_token(config, key)?.to_owned())))
            .collect();
        Self::new(&source, special_tokens, ends, place).map(Some)
    }

    /// Compiles `source`; `place` is where it lies, for errors.
    pub(crate) fn new(
        source: &str,
        special_tokens: Vec<(&'static str, String)>,
        ends: Vec<String>,
        place: String,
    ) -> Result<Self> {
        let (source, has_spans) = mark_generation(&source.replace("\r\n", "\n"));
        let mut environment = environment();
        environment
            .add_template_owned(NAME, source)
            .map_err(|e| usage(format!("{place}: bad chat template: {}", one_line(&e))))?;
        Ok(Self { environment, special_tokens, ends, has_spans, place })
    }

    /// The conversation as text, with the opening of an assistant turn at its end if wanted.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        Ok(self.render_spans(messages, add_generation_prompt)?.0)
    }

    /// Whether the template says itself what its assistant says.
    pub(crate) fn has_spans(&self) -> bool {
        self.has_spans
    }

    /// Spellings of the tokens that end a turn.
    pub(crate) fn ends(&self) -> &[String] {
        &self.ends
    }

    /// Where the template lies, for errors.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// The conversation as text, and the byte ranges between its generation tags.
    pub(crate) fn render_spans(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<(String, Vec<Range<usize>>)> {
        let (open, close) = sentinels(messages);
        let turns = messages.iter().map(Message::value).collect();
        let text = self.fill(turns, add_generation_prompt, (&open, &close))?;
        Ok(split_sentinels(&text, &open, &close))
    }

    /// Which keys of the turns, beside their own, the template does not look at.
    pub(crate) fn unread_keys(&self, messages: &[Message]) -> Result<BTreeSet<String>> {
        let watched: Vec<Arc<Watched>> = messages.iter().map(Watched::new).collect();
        let turns = watched.iter().map(|turn| Value::from_dyn_object(turn.clone())).collect();
        self.fill(turns, false, ("", ""))?;
        let unread = watched.iter().zip(messages).flat_map(|(turn, message)| turn.unread(message));
        Ok(unread.map(str::to_owned).collect())
    }

    fn fill(
        &self,
        turns: Vec<Value>,
        add_generation_prompt: bool,
        (open, close): (&str, &str),
    ) -> Result<String> {
        let mut context = vec![
            ("messages", Value::from(turns)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            (OPEN, Value::from(open)),
            (CLOSE, Value::from(close)),
        ];
        context.extend(self.special_tokens.iter().map(|(k, v)| (*k, Value::from(v.as_str()))));
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(Value::from_pairs(context)))
            .map_err(|e| {
                usage(format!("{}: the chat template failed: {}", self.place, one_line(&e)))
            })
    }
}

/// What is wrong with a template, in one line.
pub(crate) fn one_line(error: &Error) -> String {
    error.to_string().replace('\n', " ")
}

/// Jinja as transformers sets it up for chat templates.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", json::tojson);
    environment.add_test("iterable", |v: &Value| !v.is_none() && v.try_iter().is_ok());
    environment.add_function("raise_exception", |message: String| -> Result<(), Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment
}

/// Replaces the generation tags, which minijinja does not know, by tags that print sentinels.
///
/// The outer tag keeps the left whitespace marker and the inner one the right marker, so blanks are
/// trimmed as before; `with` gives the span the scope of its own that transformers gives it.
fn mark_generation(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut found = false;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(length) = tag.find("%}").map(|end| end + 2) else { break };
        let body = &tag[2..length - 2];
        let left = body.chars().next().filter(|c| "-+".contains(*c));
        let body = body.trim_start_matches(['-', '+']);
        let right = body.chars().next_back().filter(|c| "-+".contains(*c));
        let name = body.trim_end_matches(['-', '+']).trim();
        let [left, right] = [left, right].map(|marker| marker.map_or(String::new(), String::from));
        match name {
            "generation" => {
                found = true;
                out.push_str(&format!("{{%{left} with %}}{{{{ {OPEN} }}}}{{% if true {right}%}}"));
            }
            "endgeneration" => {
                out.push_str(&format!("{{%{left} endif %}}{{{{ {CLOSE} }}}}{{% endwith {right}%}}"))
            }
            _ => {
                // Only the opening is passed: an unrelated tag may hold the end of a comment.
                out.push_str("{%");
                rest = &tag[2..];
                continue;
            }
        }
        rest = &tag[length..];
    }
    out.push_str(rest);
    (out, found)
}

/// Two private-use strings that no message contains.
fn sentinels(messages: &[Message]) -> (String, String) {
    let core = absent(messages);
    (format!("\u{e001}{core}\u{e001}"), format!("\u{e002}{core}\u{e002}"))
}

/// A private-use string that no message contains.
pub(crate) fn absent(messages: &[Message]) -> String {
    let mut core = String::from("\u{e000}");
    let holds = |m: &Message, core: &String| {
        let more = || m.more.values().any(|value| value.to_string().contains(core));
        m.content.contains(core) || m.role.contains(core) || more()
    };
    while messages.iter().any(|m| holds(m, &core)) {
        core.push('\u{e000}');
    }
    core
}

/// The text without sentinels and the ranges they enclosed.
fn split_sentinels(marked: &str, open: &str, close: &str) -> (String, Vec<Range<usize>>) {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut pieces = marked.split(open);
    text.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let start = text.len();
        let (inside, after) = piece.split_once(close).unwrap_or((piece, ""));
        text.push_str(inside);
        spans.push(start..text.len());
        text.push_str(after);
    }
    (text, spans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    #[test]
    fn whitespace_markers_act_as_on_the_original_tags() {
        let source = "{% for m in messages %}\n  {{ m.role }}:\n  {%- generation %}\n  \
                      {{ m.content }}\n  {%+ endgeneration -%}\n  |\n{% endfor %}";
        let template = ChatTemplate::new(source, Vec::new(), Vec::new(), "t".to_owned()).unwrap();
        let dialogue = [Message::new("user", "q"), Message::new("assistant", "a")];
        let (text, spans) = template.render_spans(&dialogue, false).unwrap();
        assert_eq!(text, "  user:  q\n  |\n  assistant:  a\n  |\n");
        assert_eq!(&text[spans[1].clone()], "  a\n  ");
    }

    #[test]
    fn a_template_can_refuse_a_conversation() {
        let template = |source| ChatTemplate::new(source, Vec::new(), Vec::new(), "t.jinja".into());
        let error = template("{{ raise_exception('no such\nrole') }}")
            .and_then(|template| template.render(&[], true))
            .unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("t.jinja: the chat template failed"), "{error}");
        assert!(error.to_string().contains("no such role"), "{error}");
        assert!(template("{% if %}").err().unwrap().to_string().contains("t.jinja"));
    }

    #[test]
    fn a_template_that_does_not_end_is_refused() {
        let rounds = "{% for i in range(99999) %}".repeat(3) + &"{% endfor %}".repeat(3);
        let template = ChatTemplate::new(&rounds, Vec::new(), Vec::new(), "t.jinja".into());
        let error = template.unwrap().render(&[], true).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("fuel"), "{error}");
    }
}
