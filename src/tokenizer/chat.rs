//! Conversations as tokens: the model's own chat template, and which tokens carry loss.
//!
//! Contract: templates render to the text that transformers renders (its Jinja environment is
//! imitated below), and loss falls on assistant turns only: on the template's `{% generation %}`
//! spans, or, where it has none, on what a turn adds to the rendered prompt before it. A mask that is
//! empty or covers everything is refused: training on it is a mistake that no loss curve shows.
//!
//! Left out: tools and documents in conversations. `strftime_now` is left undefined on purpose:
//! templates then use their fixed date, and a prompt never depends on the day.

use super::{Tokenizer, json, special_token};
use crate::base::error::usage;
use crate::base::fs::read_text;
use anyhow::Result;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A conversation as tokens; `loss_mask[i]` says whether token `i` is to be learnt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokenized {
    /// The tokens.
    pub input_ids: Vec<u32>,
    /// As long as `input_ids`.
    pub loss_mask: Vec<bool>,
}

impl Tokenized {
    /// Refuses masks that would train on nothing or on the prompt; `what` names the sample.
    pub fn check_mask(&self, what: &str) -> Result<()> {
        let learnt = self.learnt();
        if learnt == 0 {
            Err(usage(format!("{what}: no token carries loss: is there an assistant turn?")))
        } else if learnt == self.input_ids.len() {
            Err(usage(format!("{what}: every token carries loss, the prompt too: check the mask")))
        } else {
            Ok(())
        }
    }

    /// How many tokens carry loss.
    pub fn learnt(&self) -> usize {
        self.loss_mask.iter().filter(|&&learn| learn).count()
    }
}

/// A model's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens under the names that templates know (`bos_token`, ...).
    special_tokens: Vec<(&'static str, String)>,
    /// Spellings of the tokens that end a turn.
    ends: Vec<String>,
    has_spans: bool,
    place: String,
}

const NAME: &str = "chat_template";
const OPEN: &str = "codeseq_open";
const CLOSE: &str = "codeseq_close";

impl ChatTemplate {
    /// The template beside a tokenizer: `chat_template.jinja`, else the config's key.
    pub(super) fn load(
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
    fn new(
        source: &str,
        special_tokens: Vec<(&'static str, String)>,
        ends: Vec<String>,
        place: String,
    ) -> Result<Self> {
        let (source, has_spans) = mark_generation(&source.replace("\r\n", "\n"));
        let mut environment = environment();
        environment
            .add_template_owned(NAME, source)
            .map_err(|e| usage(format!("{place}: bad chat template: {e}")))?;
        Ok(Self { environment, special_tokens, ends, has_spans, place })
    }

    /// The conversation as text, with the opening of an assistant turn at its end if wanted.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        Ok(self.render_spans(messages, add_generation_prompt)?.0)
    }

    /// The conversation as text, and the byte ranges of what its assistant says.
    pub fn render_with_spans(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        if self.has_spans {
            self.render_spans(messages, false)
        } else {
            self.spans_by_prefix(messages)
        }
    }

    fn render_spans(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<(String, Vec<Range<usize>>)> {
        let (open, close) = sentinels(messages);
        let turns: Vec<Value> = messages
            .iter()
            .map(|m| {
                let fields = [("role", m.role.as_str()), ("content", m.content.as_str())];
                Value::from_pairs(fields.map(|(k, v)| (k, Value::from(v))))
            })
            .collect();
        let mut context = vec![
            ("messages", Value::from(turns)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            (OPEN, Value::from(open.as_str())),
            (CLOSE, Value::from(close.as_str())),
        ];
        context.extend(self.special_tokens.iter().map(|(k, v)| (*k, Value::from(v.as_str()))));
        let text = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render(Value::from_pairs(context)))
            .map_err(|e| usage(format!("{}: the chat template failed: {e}", self.place)))?;
        Ok(split_sentinels(&text, &open, &close))
    }

    /// An assistant turn is what it adds to the rendering of the turns before it.
    fn spans_by_prefix(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        let text = self.render(messages, false)?;
        let mut spans = Vec::new();
        for (i, _) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
            let before = self.render(&messages[..i], true)?;
            let mut after = self.render(&messages[..=i], false)?;
            if !after.starts_with(&before) || !text.starts_with(&after) {
                return Err(usage(format!(
                    "{}: the template changes earlier turns when later ones follow, so the tokens \
                     to learn cannot be told: mark them with {{% generation %}} ... \
                     {{% endgeneration %}}",
                    self.place
                )));
            }
            let last_end = self
                .ends
                .iter()
                .filter_map(|end| {
                    Some(before.len() + after[before.len()..].rfind(end)? + end.len())
                })
                .max();
            after.truncate(last_end.unwrap_or(after.len()));
            spans.push(before.len()..after.len());
        }
        Ok((text, spans))
    }
}

impl Tokenizer {
    /// The tokens of a conversation to learn from.
    pub fn encode_sample(&self, messages: &[Message]) -> Result<Tokenized> {
        let (text, spans) = self.template()?.render_with_spans(messages)?;
        let encoding = self.encoding(&text)?;
        let ranges = encoding.get_offsets();
        let mut loss_mask = vec![false; ranges.len()];
        for span in spans.iter().filter(|span| !span.is_empty()) {
            let first = ranges.partition_point(|range| range.1 <= span.start);
            let last = ranges.partition_point(|range| range.0 < span.end);
            loss_mask[first..last].fill(true);
        }
        let sample = Tokenized { input_ids: encoding.get_ids().to_vec(), loss_mask };
        sample.check_mask("conversation")?;
        Ok(sample)
    }

    /// The tokens that ask for the next assistant turn.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.encode(&self.template()?.render(messages, true)?)
    }
}

/// Jinja as transformers sets it up for chat templates.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
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
    let mut core = String::from("\u{e000}");
    while messages.iter().any(|m| m.content.contains(&core) || m.role.contains(&core)) {
        core.push('\u{e000}');
    }
    (format!("\u{e001}{core}\u{e001}"), format!("\u{e002}{core}\u{e002}"))
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
    use crate::tokenizer::bpe;
    use proptest::prelude::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, Vec::new(), vec!["<e>".to_owned()], "t".to_owned()).unwrap()
    }

    fn turns(contents: &[(&str, &str)]) -> Vec<Message> {
        contents.iter().map(|(role, content)| Message::new(*role, *content)).collect()
    }

    #[test]
    fn whitespace_markers_act_as_on_the_original_tags() {
        let dialogue = turns(&[("user", "q"), ("assistant", "a")]);
        let source = "{% for m in messages %}\n  {{ m.role }}:\n  {%- generation %}\n  \
                      {{ m.content }}\n  {%+ endgeneration -%}\n  |\n{% endfor %}";
        let (text, spans) = template(source).render_with_spans(&dialogue).unwrap();
        assert_eq!(text, "  user:  q\n  |\n  assistant:  a\n  |\n");
        assert_eq!(&text[spans[1].clone()], "  a\n  ");
    }

    #[test]
    fn a_template_without_spans_learns_turns_up_to_their_end() {
        let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<e>\n{% endfor %}\
                      {% if add_generation_prompt %}[assistant]{% endif %}";
        let dialogue =
            turns(&[("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]);
        let (text, spans) = template(source).render_with_spans(&dialogue).unwrap();
        let said: Vec<&str> = spans.into_iter().map(|span| &text[span]).collect();
        assert_eq!(said, ["a<e>", "b<e>"]);
    }

    #[test]
    fn a_template_that_rewrites_earlier_turns_needs_spans() {
        let source = "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}";
        let dialogue = turns(&[("user", "q"), ("assistant", "a")]);
        let error = template(source).render_with_spans(&dialogue).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("generation"), "{error}");
    }

    #[test]
    fn a_template_can_refuse_a_conversation() {
        let error =
            template("{{ raise_exception('no such role') }}").render(&[], true).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("no such role"), "{error}");
        let broken = ChatTemplate::new("{% if %}", Vec::new(), Vec::new(), "t.jinja".to_owned());
        assert!(broken.err().unwrap().to_string().contains("t.jinja"));
    }

    #[test]
    fn a_sample_without_an_assistant_or_without_a_prompt_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bpe::tests::small(dir.path());
        let error = tokenizer.encode_sample(&turns(&[("user", "q")])).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        let all = Tokenized { input_ids: vec![1, 2], loss_mask: vec![true, true] };
        assert_eq!(exit_code(&all.check_mask("line 3").unwrap_err()), 2);
    }

    #[test]
    fn a_sample_is_its_prompt_then_the_learnt_response_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bpe::tests::small(dir.path());
        proptest!(|(question in any::<String>(), answer in any::<String>())| {
            let dialogue = turns(&[("user", &question), ("assistant", &answer)]);
            let prompt = tokenizer.encode_prompt(&dialogue[..1]).unwrap();
            let sample = tokenizer.encode_sample(&dialogue).unwrap();
            let mut expected = prompt.clone();
            expected.extend(tokenizer.encode(&answer).unwrap());
            expected.extend(tokenizer.eos_ids());
            prop_assert_eq!(&sample.input_ids, &expected);
            let mask: Vec<bool> = (0..expected.len()).map(|i| i >= prompt.len()).collect();
            prop_assert_eq!(&sample.loss_mask, &mask);
        });
    }

    #[test]
    fn contents_that_look_like_sentinels_do_not_move_the_mask() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = bpe::tests::small(dir.path());
        let dialogue = turns(&[
            ("user", "\u{e001}\u{e000}\u{e001} x \u{e002}\u{e000}\u{e002}"),
            ("assistant", "y\u{e002}\u{e000}\u{e000}\u{e002}"),
        ]);
        let (text, spans) = tokenizer.template().unwrap().render_with_spans(&dialogue).unwrap();
        assert_eq!(&text[spans[0].clone()], format!("{}<|im_end|>", dialogue[1].content));
    }
}
