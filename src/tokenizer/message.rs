//! One turn of a conversation, with everything that its row says about it.
//!
//! Its content is text. A row may give it as a string, as null (no text) or as a list of text parts, which
//! are joined; anything else is refused. A mask (`train`, `weight` or `loss`: a boolean, 0 or 1) says
//! whether an assistant's turn is learnt. Every other key that is not null is kept for the chat template.

use super::Tokenizer;
use crate::base::error::usage;
use anyhow::Result;
use minijinja::Value;
use minijinja::value::{Enumerator, Object, Serde};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value as Json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The roles that a conversation may have. Templates would skip other roles silently.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];
/// The keys that say whether a turn is learnt.
const MASKS: [&str; 3] = ["train", "weight", "loss"];
/// Keys that look like a mask, but whose meaning differs among programs.
const UNCLEAR_MASKS: [&str; 7] =
    ["mask", "masked", "loss_mask", "loss_weight", "train_detail", "training", "trainable"];
/// The keys that hold an assistant's thoughts; the first that is present counts.
pub(crate) const THOUGHTS: [&str; 3] = [REASONING, THINKING, "reasoning"];
/// The keys of thoughts that templates read.
const REASONING: &str = "reasoning_content";
const THINKING: &str = "thinking";
/// The keys that hold what an assistant says beside its content.
const SAID: [&str; 5] = ["tool_calls", "function_call", REASONING, "reasoning", THINKING];

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    pub content: String,
    /// Whether the turn is learnt, if it is an assistant's.
    #[serde(skip_serializing_if = "is_true")]
    pub train: bool,
    /// The other keys of the row, such as `tool_calls`.
    #[serde(flatten)]
    pub more: Map<String, Json>,
}

fn is_true(value: &bool) -> bool {
    *value
}

impl Message {
    /// Creates a turn of `role` that has only text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), train: true, more: Map::new() }
    }

    /// Refuses a role that is not one of the four.
    pub fn check_role(&self) -> Result<()> {
        if ROLES.contains(&self.role.as_str()) {
            return Ok(());
        }
        let known = ROLES.join(", ");
        Err(usage(format!("unknown role {:?}: expected one of {known}", self.role)))
    }

    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }

    /// Returns the thoughts of the turn, if they are beside its content.
    pub(crate) fn thoughts(&self) -> Option<&Json> {
        THOUGHTS.iter().find_map(|key| self.more.get(*key))
    }

    /// Returns the turn as a template sees it. Its thoughts have every name that templates know, as in
    /// transformers.
    pub(crate) fn value(&self) -> Value {
        let own = [("role", self.role.as_str()), ("content", self.content.as_str())];
        let own = own.map(|(key, text)| (key, Value::from(text)));
        let mut more = self.more.clone();
        if let Some(thoughts) = self.thoughts() {
            more.entry(THINKING).or_insert_with(|| thoughts.clone());
            more.insert(REASONING.to_owned(), thoughts.clone());
        }
        let more =
            more.iter().map(|(key, value)| (key.as_str(), Value::from(Serde(value.clone()))));
        Value::from_pairs(own.into_iter().chain(more))
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_keys(Map::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl Message {
    fn from_keys(mut keys: Map<String, Json>) -> Result<Self, String> {
        let role = match keys.shift_remove("role") {
            Some(Json::String(role)) => role,
            Some(other) => return Err(format!("`role` is {other}: expected text")),
            None => return Err("a message has no `role`".to_owned()),
        };
        let content = keys.shift_remove("content");
        keys.retain(|_, value| !value.is_null());
        let content = match content {
            // A turn that only calls tools may have no content.
            None if SAID.iter().all(|key| !keys.contains_key(*key)) => {
                return Err("a message has no `content`".to_owned());
            }
            content => text(content.unwrap_or_default())?,
        };
        if let Some(key) = UNCLEAR_MASKS.iter().find(|key| keys.contains_key(**key)) {
            return Err(format!(
                "a message has `{key}`, which means different things to different programs: say \
                 `\"train\": true` or `false`"
            ));
        }
        let mut train = true;
        for key in MASKS {
            let Some(value) = keys.shift_remove(key) else { continue };
            let is_learnt = mask(key, &value)?;
            if is_learnt && role != "assistant" {
                return Err(format!(
                    "`{key}` of a {role} turn is {value}: only assistants are learnt"
                ));
            }
            train &= is_learnt || role != "assistant";
        }
        Ok(Self { role, content, train, more: keys })
    }
}

/// Returns the text of a content.
fn text(content: Json) -> Result<String, String> {
    match content {
        Json::Null => Ok(String::new()),
        Json::String(text) => Ok(text),
        Json::Array(parts) => parts.into_iter().map(text_of_part).collect(),
        other => Err(format!("`content` is {other}: expected text, or a list of text parts")),
    }
}

fn text_of_part(part: Json) -> Result<String, String> {
    match part {
        Json::String(text) => Ok(text),
        Json::Object(mut part) if part.get("type").is_some_and(|kind| kind == "text") => {
            match part.remove("text") {
                Some(Json::String(text)) => Ok(text),
                _ => Err("a part of `content` has the type \"text\" but no `text`".to_owned()),
            }
        }
        other => Err(format!(
            "`content` has a part of type {}: only text can be learnt",
            other.get("type").unwrap_or(&Json::Null)
        )),
    }
}

/// Returns whether a mask says that its turn is learnt.
fn mask(key: &str, value: &Json) -> Result<bool, String> {
    match value {
        Json::Bool(is_learnt) => Ok(*is_learnt),
        Json::Number(number) if number.as_f64() == Some(0.0) => Ok(false),
        Json::Number(number) if number.as_f64() == Some(1.0) => Ok(true),
        other => Err(format!("`{key}` is {other}: a turn is learnt (1, true) or not (0, false)")),
    }
}

/// A turn that remembers which keys a template read.
#[derive(Debug)]
pub(crate) struct Watched {
    turn: Value,
    seen: Mutex<BTreeSet<String>>,
}

impl Watched {
    pub(crate) fn new(message: &Message) -> Arc<Self> {
        Arc::new(Self { turn: message.value(), seen: Mutex::default() })
    }

    /// Returns the keys of `message`, which is this turn, that the template did not read.
    pub(crate) fn unread<'m>(&self, message: &'m Message) -> Vec<&'m str> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let has_read_thoughts = THOUGHTS.iter().any(|key| seen.contains(*key));
        let is_read = |(key, value): &(&String, &Json)| {
            let is_thoughts = THOUGHTS.contains(&key.as_str()) && message.thoughts() == Some(value);
            seen.contains(*key) || (is_thoughts && has_read_thoughts)
        };
        let unread = message.more.iter().filter(|entry| !is_read(entry));
        unread.map(|(key, _)| key.as_str()).collect()
    }
}

impl Object for Watched {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        if let Some(key) = key.as_str() {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned());
        }
        self.turn.get_item(key).ok().filter(|value| !value.is_undefined())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.turn.try_iter().map_or(Enumerator::Empty, |keys| Enumerator::Values(keys.collect()))
    }
}

impl Tokenizer {
    /// Returns the keys of these turns that the chat template does not read. Refuses a key that holds what
    /// an assistant says: the model would learn, or be shown, another answer.
    pub fn unread_keys(&self, messages: &[Message]) -> Result<BTreeSet<String>> {
        if messages.iter().all(|message| message.more.is_empty()) {
            return Ok(BTreeSet::new());
        }
        let unread = self.template()?.unread_keys(messages)?;
        match SAID.iter().find(|key| unread.contains(**key)) {
            Some(key) => Err(usage(format!(
                "{}: the chat template does not render `{key}`, so what the assistant says would be \
                 lost: use a template that does, or write it into `content`",
                self.template()?.place()
            ))),
            None => Ok(unread),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::template::{ChatTemplate, Spellings};
    use crate::tokenizer::test_support::small_tokenizer;

    fn message(text: &str) -> Result<Message, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn content_is_text_in_each_of_its_spellings() {
        for (content, text) in [
            (r#""a""#, "a"),
            ("null", ""),
            (r#"[{"type": "text", "text": "a", "image": null}, "b"]"#, "ab"),
        ] {
            let line = format!(r#"{{"role": "user", "content": {content}}}"#);
            assert_eq!(message(&line).unwrap(), Message::new("user", text));
        }
        for (content, reason) in [
            ("5", "`content` is 5"),
            (r#"{"text": "a"}"#, "expected text"),
            (r#"[{"type": "image", "url": "x"}]"#, "part of type \"image\""),
            (r#"[{"type": "text"}]"#, "no `text`"),
        ] {
            let line = format!(r#"{{"role": "user", "content": {content}}}"#);
            assert!(message(&line).unwrap_err().contains(reason), "{content}");
        }
        assert!(message(r#"{"role": "user"}"#).unwrap_err().contains("no `content`"));
    }

    #[test]
    fn a_mask_says_whether_a_turn_is_learnt() {
        for (mask, train) in
            [(r#""weight": 0"#, false), (r#""weight": 1.0"#, true), (r#""train": false"#, false)]
        {
            let line = format!(r#"{{"role": "assistant", "content": "a", {mask}}}"#);
            let read = message(&line).unwrap();
            assert_eq!((read.train, read.more.is_empty()), (train, true), "{mask}");
        }
        for (role, mask, reason) in [
            ("assistant", r#""weight": 0.5"#, "`weight` is 0.5"),
            ("assistant", r#""train_detail": []"#, "`train_detail`"),
            ("user", r#""train": true"#, "only assistants"),
        ] {
            let line = format!(r#"{{"role": "{role}", "content": "a", {mask}}}"#);
            assert!(message(&line).unwrap_err().contains(reason), "{mask}");
        }
        message(r#"{"role": "user", "content": "a", "weight": 0}"#).unwrap();
    }

    #[test]
    fn a_turn_that_is_not_learnt_is_read_without_loss() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
        let mut turns = ["q", "a", "r", "b"].map(|text| Message::new("user", text));
        (turns[1].role, turns[3].role) = ("assistant".to_owned(), "assistant".to_owned());
        let both = tokenizer.encode_sample(&turns).unwrap();
        turns[1].train = false;
        let last = tokenizer.encode_sample(&turns).unwrap();
        assert_eq!(both.input_ids, last.input_ids);
        let learnt = |sample: &crate::tokenizer::Tokenized| {
            let ids = sample.input_ids.iter().zip(&sample.loss_mask);
            let ids: Vec<u32> = ids.filter(|(_, learn)| **learn).map(|(id, _)| *id).collect();
            tokenizer.decode(&ids).unwrap()
        };
        assert_eq!((learnt(&both).as_str(), learnt(&last).as_str()), ("ab", "b"));
    }

    #[test]
    fn keys_that_a_template_looks_at_are_told_from_others() {
        let source = "{% for m in messages %}{{ m.content }}{% if m.tool_calls %}\
                      {{ m.tool_calls | tojson }}{% endif %}{% endfor %}";
        let template = ChatTemplate::test(source, Spellings::default()).unwrap();
        let line =
            r#"{"role": "assistant", "tool_calls": [{"id": 12345678901234567}], "name": "x"}"#;
        let turns = [message(line).unwrap()];
        assert_eq!(template.render(&turns, false).unwrap(), r#"[{"id": 12345678901234567}]"#);
        let unread = template.unread_keys(&turns).unwrap();
        assert_eq!(unread.into_iter().collect::<Vec<_>>(), ["name"]);
    }

    #[test]
    fn thoughts_go_by_every_name_that_templates_know() {
        let source = "{% for m in messages %}{{ m.KEY }}|{{ m.content }}{% endfor %}";
        for (read, given) in
            [(REASONING, "reasoning"), (REASONING, THINKING), (THINKING, REASONING)]
        {
            let template = ChatTemplate::test(&source.replace("KEY", read), Spellings::default());
            let template = template.unwrap();
            let line = format!(r#"{{"role": "assistant", "content": "a", "{given}": "why"}}"#);
            let turns = [message(&line).unwrap()];
            assert_eq!(template.render(&turns, false).unwrap(), "why|a", "{read} of {given}");
            assert!(template.unread_keys(&turns).unwrap().is_empty());
        }
        let two = r#"{"role": "assistant", "content": "a", "thinking": "b", "reasoning": "c"}"#;
        let template = ChatTemplate::test(&source.replace("KEY", THINKING), Spellings::default());
        let unread = template.unwrap().unread_keys(&[message(two).unwrap()]).unwrap();
        assert_eq!(unread.into_iter().collect::<Vec<_>>(), ["reasoning"]);
    }

    #[test]
    fn what_an_assistant_says_beside_its_content_is_rendered_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
        let line = r#"{"role": "assistant", "content": "a", "reasoning_content": "because"}"#;
        let turns = [Message::new("user", "q"), message(line).unwrap()];
        let error = tokenizer.encode_sample(&turns).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        assert!(error.to_string().contains("does not render `reasoning_content`"), "{error}");
    }
}
