//! What is learnt of a rendered conversation: where its assistants speak.
//!
//! Contract: a template with `{% generation %}` tags says so itself. For one without, an assistant
//! turn is what rendering it adds to the rendering of the turns before it (with the generation
//! prompt), up to and with the token that ends the turn. Where exactly its words lie is found by
//! rendering stand-ins in their place. So the words survive a template that rewrites them:
//! DeepSeek-R1-Distill drops all up to `</think>`, and training on what it leaves would unlearn the
//! thinking. What a target says is what the sample says, not what the template leaves of it.
//!
//! Source: the mask of transformers' `return_assistant_tokens_mask`, and prefix rendering as in
//! TRL's prompt-completion data.

use super::message::Message;
use super::template::{ChatTemplate, absent};
use crate::base::error::usage;
use anyhow::Result;
use std::ops::Range;

/// What marks a response whose beginning templates drop.
const THINK_END: &str = "</think>";

impl ChatTemplate {
    /// The conversation as text, and the byte ranges of what its assistants say.
    pub fn render_with_spans(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        if self.has_spans() {
            return self.render_spans(messages, false);
        }
        let stand_ins = StandIns::new(messages);
        let Filled { text, places, said } = self.fill_in(messages, &stand_ins)?;
        let mut spans = Vec::new();
        for (turn, content) in stand_ins.turns.iter().zip(places) {
            let part = |turns: &[Message], open| {
                let marked = self.render(turns, open).ok()?;
                Some(stand_ins.fill(&marked, &said)?.0).filter(|part| text.starts_with(part))
            };
            // Templates may open a response with words of their own, such as `<think>`.
            let before = part(&stand_ins.messages[..*turn], true).map(|before| before.len());
            let start = before.filter(|&start| start <= content.end).unwrap_or(content.start);
            let after = part(&stand_ins.messages[..=*turn], false).map(|after| after.len());
            spans.push(start..self.end_of_turn(&text, content.end, after));
        }
        Ok((text, spans))
    }

    /// The conversation with what its assistants say, whether the template keeps it or not.
    fn fill_in<'m>(&self, messages: &'m [Message], stand_ins: &StandIns) -> Result<Filled<'m>> {
        let rendered = self.render(messages, false)?;
        let marked = self.render(&stand_ins.messages, false)?;
        let contents: Vec<&str> =
            stand_ins.turns.iter().map(|&turn| messages[turn].content.as_str()).collect();
        let trimmed: Vec<&str> = contents.iter().map(|content| content.trim()).collect();
        let filled = |said: &Vec<&'m str>| {
            let (text, places) = stand_ins.fill(&marked, said)?;
            (places.len() == said.len()).then(|| Filled { text, places, said: said.clone() })
        };
        let mut ways = [&contents, &trimmed].into_iter().filter_map(filled);
        let exact = ways.find(|filled| filled.text == rendered);
        let has_thoughts = contents.iter().any(|content| content.contains(THINK_END));
        let kept = || filled(&contents).filter(|_| has_thoughts);
        exact.or_else(kept).ok_or_else(|| {
            usage(format!(
                "{}: the template changes what assistants say, so the tokens to learn cannot be \
                 told: mark them with {{% generation %}} ... {{% endgeneration %}}",
                self.place()
            ))
        })
    }

    /// Where the turn ends whose content ends at `content_end`: after its last end-of-turn token.
    ///
    /// `after` is how much of the text the turns up to this one make, where it can be told.
    fn end_of_turn(&self, text: &str, content_end: usize, after: Option<usize>) -> usize {
        let rest = &text[content_end..];
        let ends = self.ends().iter();
        match after.and_then(|after| after.checked_sub(content_end)) {
            Some(length) => {
                let tail = &rest[..length];
                let last = ends.filter_map(|end| Some(tail.rfind(end.as_str())? + end.len())).max();
                content_end + last.unwrap_or(length)
            }
            None => {
                let unpadded = rest.trim_start();
                let end = ends.filter(|end| unpadded.starts_with(end.as_str())).map(String::len);
                content_end + end.max().map_or(0, |end| rest.len() - unpadded.len() + end)
            }
        }
    }
}

/// A rendered conversation.
struct Filled<'m> {
    text: String,
    /// Where the assistants' contents lie in it.
    places: Vec<Range<usize>>,
    /// How they are spelled there.
    said: Vec<&'m str>,
}

/// A conversation whose assistants say what nobody says, so that it can be found again.
struct StandIns {
    messages: Vec<Message>,
    /// Which messages are the assistants'.
    turns: Vec<usize>,
    core: String,
}

impl StandIns {
    fn new(messages: &[Message]) -> Self {
        let core = absent(messages);
        let mut messages = messages.to_vec();
        let is_assistant = |&turn: &usize| messages[turn].role == "assistant";
        let turns: Vec<usize> = (0..messages.len()).filter(is_assistant).collect();
        for (i, &turn) in turns.iter().enumerate() {
            messages[turn].content = Self::name(&core, i);
        }
        Self { messages, turns, core }
    }

    fn name(core: &str, i: usize) -> String {
        format!("\u{e003}{core}{i}\u{e004}")
    }

    /// Puts contents in the places of the stand-ins, as many as there are, and says where they lie;
    /// none where the template dropped, repeated or moved one.
    fn fill(&self, marked: &str, contents: &[&str]) -> Option<(String, Vec<Range<usize>>)> {
        let mut text = String::with_capacity(marked.len());
        let mut places = Vec::new();
        let mut rest = marked;
        for (i, content) in contents.iter().enumerate() {
            let Some((before, after)) = rest.split_once(&Self::name(&self.core, i)) else { break };
            text.push_str(before);
            places.push(text.len()..text.len() + content.len());
            text.push_str(content);
            rest = after;
        }
        text.push_str(rest);
        let is_whole = marked.matches(&self.core).count() == places.len();
        is_whole.then_some((text, places))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    const ENDS: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<e>\n{% endfor %}\
                        {% if add_generation_prompt %}[assistant]{% endif %}";
    /// As DeepSeek-R1-Distill: thoughts are dropped, and the prompt opens with one.
    const FORGETFUL: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
                             A:{{ m.content.split('</think>')[-1] }}<e>{% else %}\
                             U:{{ m.content }}{% endif %}{% endfor %}\
                             {% if add_generation_prompt %}A:<think>\n{% endif %}";

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, Vec::new(), vec!["<e>".to_owned()], "t".to_owned()).unwrap()
    }

    fn turns(contents: &[(&str, &str)]) -> Vec<Message> {
        contents.iter().map(|(role, content)| Message::new(*role, *content)).collect()
    }

    fn said(source: &str, contents: &[(&str, &str)]) -> (String, Vec<String>) {
        let (text, spans) = template(source).render_with_spans(&turns(contents)).unwrap();
        let said = spans.into_iter().map(|span| text[span].to_owned()).collect();
        (text, said)
    }

    #[test]
    fn a_template_without_spans_learns_turns_up_to_their_end() {
        let dialogue = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", " b ")];
        assert_eq!(said(ENDS, &dialogue).1, ["a<e>", " b <e>"]);
        let trimming = ENDS.replace("m.content", "m.content | trim");
        assert_eq!(said(&trimming, &dialogue).1, ["a<e>", "b<e>"]);
        let first = [("assistant", "a"), ("user", "a")];
        assert_eq!(said(ENDS, &first).1, ["a<e>"]);
    }

    #[test]
    fn thoughts_survive_a_template_that_drops_them() {
        let dialogue = [
            ("user", "q"),
            ("assistant", "<think>\nx</think>a"),
            ("user", "r"),
            ("assistant", "<think>\ny</think>b"),
        ];
        let (text, said) = said(FORGETFUL, &dialogue);
        assert_eq!(text, "U:qA:<think>\nx</think>a<e>U:rA:<think>\ny</think>b<e>");
        assert_eq!(said, ["x</think>a<e>", "y</think>b<e>"], "the prompt opens with <think>");
    }

    #[test]
    fn a_target_without_thoughts_is_learnt_whole_though_the_prompt_opens_with_one() {
        let (text, said) = said(FORGETFUL, &[("user", "q"), ("assistant", "a")]);
        assert_eq!((text.as_str(), said), ("U:qA:a<e>", vec!["a<e>".to_owned()]));
    }

    #[test]
    fn a_template_that_changes_what_is_said_needs_tags() {
        for source in ["{% for m in messages %}{{ m.content | upper }}{% endfor %}", "nothing"] {
            let dialogue = turns(&[("user", "q"), ("assistant", "a")]);
            let error = template(source).render_with_spans(&dialogue).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains("generation"), "{error}");
        }
    }
}
