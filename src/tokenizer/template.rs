//! A model's own chat template, rendered as transformers renders it.
//!
//! The text equals that of transformers byte for byte; [`super::jinja`] imitates its Jinja environment. `{%
//! generation %}` tags become byte ranges of the text. A template that does not compile, or that refuses a
//! conversation, is the user's error, reported in one line.
//!
//! Which part of the text is learnt is found in [`super::targets`]. Tools and documents are not passed to
//! templates. A prompt never depends on the day: templates that ask for the date get [`DATE`], or the date
//! under the key `chat_template_date` of `tokenizer_config.json`.

use super::dialect;
use super::directory::Template;
use super::jinja::{CLOSE, OPEN, environment};
use super::message::{Message, Watched};
use crate::base::error::usage;
use crate::base::guard::quietly;
use anyhow::Result;
use chrono::NaiveDate;
use minijinja::{Environment, Error, Value};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Once};

/// The date that Llama 3's templates use when none is given.
pub(crate) const DATE: NaiveDate = NaiveDate::from_ymd_opt(2024, 7, 26).expect("a day of July");

const NAME: &str = "chat_template";

pub struct ChatTemplate {
    environment: Environment<'static>,
    spellings: Spellings,
    /// The tags that the template itself names, such as `</think>`.
    markers: Vec<String>,
    has_spans: bool,
    place: String,
    is_unthought: Once,
}

/// The spellings of special tokens.
#[derive(Default)]
pub(crate) struct Spellings {
    /// The names and spellings of those that templates know (`bos_token`, ...).
    pub(crate) named: Vec<(String, String)>,
    /// The spellings of those that end a sequence.
    pub(crate) ends: Vec<String>,
    /// The spellings of all.
    pub(crate) special: Vec<String>,
}

impl ChatTemplate {
    /// Compiles a template; `date` is its date of today.
    pub(crate) fn new(
        Template { source, place }: Template,
        spellings: Spellings,
        date: NaiveDate,
    ) -> Result<Self> {
        let markers = markers(&source);
        let (source, has_spans) = dialect::rewrite(&source);
        let mut environment = environment(date);
        environment
            .add_template_owned(NAME, source)
            .map_err(|e| usage(format!("{place}: bad chat template: {}", one_line(&e))))?;
        Ok(Self { environment, spellings, markers, has_spans, place, is_unthought: Once::new() })
    }

    /// Returns the conversation as text. With `add_generation_prompt` it ends with the opening of an
    /// assistant's turn.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        Ok(self.render_spans(messages, add_generation_prompt)?.0)
    }

    /// Returns whether the template has generation tags.
    pub(crate) fn has_spans(&self) -> bool {
        self.has_spans
    }

    /// Returns the spellings of the tokens that end a sequence.
    pub(crate) fn ends(&self) -> &[String] {
        &self.spellings.ends
    }

    /// Adds a token to those that end a sequence.
    pub(crate) fn add_end(&mut self, token: String) {
        self.spellings.ends.push(token);
    }

    /// Returns the spellings of all special tokens.
    pub(crate) fn special(&self) -> &[String] {
        &self.spellings.special
    }

    /// Returns the tags that the template itself names, such as `</think>`.
    pub(crate) fn markers(&self) -> &[String] {
        &self.markers
    }

    /// Returns where the template is from, for errors.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Warns, once, that the targets of turns without thoughts do not begin where their prompts end.
    pub(crate) fn warn_of_unthought(&self) {
        self.is_unthought.call_once(|| {
            tracing::warn!(
                "{}: the prompt for an answer opens a thought, but some answers to learn have none: they \
                 are learnt as the template prints them, where no prompt ends",
                self.place
            );
        });
    }

    /// Returns the conversation as text, and the byte ranges between its generation tags.
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

    /// Returns the keys of the turns, beside role and content, that the template does not read.
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
        let named = self.spellings.named.iter();
        context.extend(named.map(|(k, v)| (k.as_str(), Value::from(v.as_str()))));
        let render = || self.environment.get_template(NAME)?.render(Value::from_pairs(context));
        let failed =
            |what: &str| usage(format!("{}: the chat template failed: {what}", self.place));
        quietly(render)
            .ok_or_else(|| failed("the template engine cannot run it"))?
            .map_err(|e| failed(&one_line(&e)))
    }
}

/// Says in one line what is wrong with a template.
pub(crate) fn one_line(error: &Error) -> String {
    error.to_string().replace('\n', " ")
}

/// Returns the tags in a template's source: `<think>`, `[/THINK]`, `◁think▷`.
fn markers(source: &str) -> Vec<String> {
    let mut markers = Vec::new();
    for (open, close) in [('<', '>'), ('[', ']'), ('◁', '▷')] {
        for (at, _) in source.match_indices(open) {
            let Some(name) = source[at + open.len_utf8()..].split(close).next() else { continue };
            let fits = |c: char| match open {
                '[' => c.is_uppercase() || "_/".contains(c),
                _ => c.is_alphanumeric() || "_/|-:▁｜".contains(c),
            };
            let has_letter = name.contains(char::is_alphabetic);
            let marker = format!("{open}{name}{close}");
            if has_letter && name.chars().all(fits) && !markers.contains(&marker) {
                markers.push(marker);
            }
        }
    }
    markers
}

/// Returns two strings of private-use characters that no message contains.
fn sentinels(messages: &[Message]) -> (String, String) {
    let core = absent(messages);
    (format!("\u{e001}{core}\u{e001}"), format!("\u{e002}{core}\u{e002}"))
}

/// Returns a string of private-use characters that no message contains.
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

/// Returns the text without sentinels, and the ranges that they enclosed.
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
impl ChatTemplate {
    /// Compiles a template that comes from no file.
    pub(crate) fn test(source: &str, spellings: Spellings) -> Result<Self> {
        let template = Template { source: source.to_owned(), place: "t.jinja".to_owned() };
        Self::new(template, spellings, DATE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    fn template(source: &str) -> Result<ChatTemplate> {
        ChatTemplate::test(source, Spellings::default())
    }

    #[test]
    fn whitespace_markers_act_as_on_the_original_tags() {
        let source = "{% for m in messages %}\n  {{ m.role }}:\n  {%- generation %}\n  \
                      {{ m.content }}\n  {%+ endgeneration -%}\n  |\n{% endfor %}";
        let dialogue = [Message::new("user", "q"), Message::new("assistant", "a")];
        let (text, spans) = template(source).unwrap().render_spans(&dialogue, false).unwrap();
        assert_eq!(text, "  user:  q\n  |\n  assistant:  a\n  |\n");
        assert_eq!(&text[spans[1].clone()], "  a\n  ");
    }

    #[test]
    fn a_template_can_refuse_a_conversation() {
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
        let error = template(&rounds).unwrap().render(&[], true).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("fuel"), "{error}");
    }

    #[test]
    fn the_last_message_of_none_is_no_crash() {
        let last = template("{% for m in messages[::-1] %}{{ m.role }}{% endfor %}").unwrap();
        assert_eq!(last.render(&[], false).unwrap(), "");
        let first = template("{{ messages[0].role }}").unwrap().render(&[], false).unwrap_err();
        assert_eq!(exit_code(&first), 2);
    }

    #[test]
    fn a_template_names_its_tags() {
        let source =
            "{{ '<think>' + x[0] + y[i] + '</think>[/THINK]<|im_end|>' if a < b or b > c }}";
        assert_eq!(markers(source), ["<think>", "</think>", "<|im_end|>", "[/THINK]"]);
    }
}
