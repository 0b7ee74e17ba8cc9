//! Finds what is learnt of a rendered conversation: the text of its assistants.
//!
//! The text is the template's. A template with `{% generation %}` tags says itself what is learnt. With any
//! other template, an assistant's turn is learnt from where its prompt ends to the token that ends the
//! turn, that token included; a header after it is not learnt. To find the words of a turn, they are
//! replaced by stand-ins and the conversation is rendered again. Stand-ins keep white space, and whatever
//! the template itself names (such as `</think>`), so a template that removes thoughts and wraps them again
//! does the same to the stand-ins.
//!
//! Templates often drop the thoughts of earlier turns. Such a turn stays as the template prints it and is
//! not learnt, because the model would never say it that way. The last turn is learnt whole: if the
//! template drops its thoughts (as that of DeepSeek-R1-Distill does), they are put back, beginning where
//! the prompt ends.
//!
//! Sources: the mask of transformers' `return_assistant_tokens_mask`, and the prefix rendering of TRL's
//! prompt-completion data.

use super::message::{Message, THOUGHTS};
use super::python::is_space;
use super::template::{ChatTemplate, absent};
use crate::base::error::usage;
use anyhow::Result;
use std::ops::Range;

impl ChatTemplate {
    /// Returns the conversation as text, and the byte ranges of what its assistants say. Without generation
    /// tags there is one range for each assistant turn, empty if the turn is not learnt.
    pub fn render_with_spans(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        if self.has_spans() {
            return self.render_spans(messages, false);
        }
        let mut stand_ins = StandIns::new(messages, self.markers());
        let mut filled = stand_ins.fill(&self.render(&stand_ins.messages, false)?);
        if filled.text != self.render(messages, false)? {
            return Err(self.changes_words());
        }
        if let Some(said) = self.kept_thoughts(messages, &stand_ins, &filled)? {
            stand_ins.replace_last(said);
            filled = stand_ins.fill(&self.render(&stand_ins.messages, false)?);
        }
        let span = |turn| {
            let Some(words) = filled.words(turn) else { return 0..0 };
            let end = self.end(&stand_ins, turn, &filled.text[words.end..]);
            self.start(&stand_ins, turn, &filled.text, &words)..words.end + end
        };
        let spans = (0..stand_ins.turns.len()).map(span).collect();
        Ok((filled.text, spans))
    }

    /// Returns the spelling of the token that ends an assistant's turn, if the template writes one.
    pub(crate) fn turn_end(&self) -> Option<&str> {
        let exchange = [Message::new("user", "q"), Message::new("assistant", "a")];
        let stand_ins = StandIns::new(&exchange, &[]);
        let filled = stand_ins.fill(&self.render(&stand_ins.messages, false).ok()?);
        let rest = &filled.text[filled.words(0)?.end..];
        let end = self.end(&stand_ins, 0, rest);
        let first =
            self.special().iter().filter_map(|token| Some((rest[..end].find(token)?, token)));
        first.min_by_key(|(at, _)| *at).map(|(_, token)| token.as_str())
    }

    /// Returns what the last assistant says, if the template drops a part of it or writes it otherwise than
    /// the prompt begins it.
    fn kept_thoughts(
        &self,
        messages: &[Message],
        stand_ins: &StandIns<'_>,
        filled: &Filled,
    ) -> Result<Option<String>> {
        let Some(last) = stand_ins.turns.last() else { return Ok(None) };
        let (turn, at) = (stand_ins.turns.len() - 1, last.message);
        let is_dropped = filled.words(turn).is_none();
        let is_history = |stand_ins: &StandIns<'_>| -> Result<bool> {
            let ended = stand_ins.fill(&self.render(&stand_ins.messages[..=at], false)?);
            Ok(ended.words(turn).is_some())
        };
        if is_dropped && is_history(stand_ins)? {
            return Ok(None);
        }
        let prompt = self.prompt(stand_ins, turn);
        let begins_as_prompt = prompt.as_ref().is_none_or(|prompt| filled.text.starts_with(prompt));
        let content = messages[at].content.as_str();
        let has_thoughts = self.markers().iter().any(|marker| content.contains(marker));
        if !is_dropped && !begins_as_prompt && !has_thoughts {
            self.warn_of_unthought();
        }
        if !is_dropped && (begins_as_prompt || !has_thoughts) {
            return Ok(None);
        }
        let mut whole = stand_ins.clone();
        whole.replace_last(content.to_owned());
        let whole = whole.fill(&self.render(&whole.messages, false)?);
        let Some(words) = whole.words(turn) else { return Err(self.changes_words()) };
        let opening = prompt.as_deref().and_then(|p| p.strip_prefix(&whole.text[..words.start]));
        let opening = opening.filter(|opening| self.markers().iter().any(|m| m == opening.trim()));
        let Some(opening) = opening else { return Ok(is_dropped.then(|| content.to_owned())) };
        let (marker, space) = opening.split_at(opening.trim_end().len());
        let thoughts = content.trim_start_matches(is_space).strip_prefix(marker.trim_start());
        let thoughts = thoughts.map_or(content, |t| t.strip_prefix(space).unwrap_or(t));
        Ok(Some(format!("{opening}{thoughts}")))
    }

    /// Returns the text that asks for an assistant's turn, if the template has one.
    fn prompt(&self, stand_ins: &StandIns<'_>, turn: usize) -> Option<String> {
        let before = &stand_ins.messages[..stand_ins.turns[turn].message];
        // Not every template can render an empty conversation, and none needs to.
        let prompt = if before.is_empty() { None } else { self.render(before, true).ok() };
        Some(stand_ins.fill(&prompt?).text)
    }

    /// Returns where a turn begins whose words are at `words`: where its prompt ends, even if the template
    /// opens a thought after that.
    fn start(
        &self,
        stand_ins: &StandIns<'_>,
        turn: usize,
        text: &str,
        words: &Range<usize>,
    ) -> usize {
        let Some(prompt) = self.prompt(stand_ins, turn) else { return words.start };
        let shared = shared_start(&prompt, text);
        if shared == prompt.len() && shared <= words.end {
            return shared;
        }
        let gap = text.get(shared..words.start).map(|gap| {
            let own = self.markers().iter().filter(|marker| !self.special().contains(marker));
            own.fold(gap.to_owned(), |gap, marker| gap.replace(marker, ""))
        });
        if gap.is_some_and(|gap| gap.trim().is_empty()) { shared } else { words.start }
    }

    /// Returns how much of `rest`, the text after a turn's words, still belongs to the turn.
    fn end(&self, stand_ins: &StandIns<'_>, turn: usize, rest: &str) -> usize {
        let (closing, is_open) = self.closing(stand_ins, turn).unwrap_or_default();
        let tail = &rest[..shared_start(&closing, rest)];
        let after = |token: &String| Some(tail.find(token.as_str())? + token.len());
        let last = |token: &String| Some(tail.rfind(token.as_str())? + token.len());
        if let Some(end) = self.ends().iter().filter_map(last).max() {
            return end;
        }
        if let Some(end) = self.special().iter().filter_map(after).min() {
            return end;
        }
        if !is_open && !tail.is_empty() && tail == closing {
            return tail.len();
        }
        // Some templates end the last turn with another token than earlier ones, and some models end a turn
        // with the token that opens the next.
        let begins = |text: &str, tokens: &[String]| {
            let begun = tokens.iter().filter(|token| text.trim_start().starts_with(token.as_str()));
            begun.map(String::len).max()
        };
        let has_end = begins(&closing, self.special()).is_some() && !is_open;
        let next = if has_end { begins(rest, self.special()) } else { begins(rest, self.ends()) };
        next.map_or(0, |token| rest.len() - rest.trim_start().len() + token)
    }

    /// Returns what the template writes after a turn that is the last, and whether it always opens the next
    /// turn. Of an opened turn it returns at most what a user's turn begins with too.
    fn closing(&self, stand_ins: &StandIns<'_>, turn: usize) -> Option<(String, bool)> {
        let at = stand_ins.turns[turn].message;
        let behind = |messages: &[Message], open| {
            let filled = stand_ins.fill(&self.render(messages, open).ok()?);
            Some(filled.text[filled.words(turn)?.end..].to_owned())
        };
        let turns = &stand_ins.messages[..=at];
        let closing = behind(turns, false)?;
        if behind(turns, true).as_ref() != Some(&closing) {
            return Some((closing, false));
        }
        let asked_again = [turns, &[Message::new("user", "q")]].concat();
        let shared = behind(&asked_again, false).map_or(0, |next| shared_start(&closing, &next));
        Some((closing[..shared].to_owned(), true))
    }

    fn changes_words(&self) -> anyhow::Error {
        usage(format!(
            "{}: the template changes what assistants say, so the tokens to learn cannot be \
             told: mark them with {{% generation %}} ... {{% endgeneration %}}",
            self.place()
        ))
    }
}

/// Returns the length of the longest beginning that two texts share, in bytes.
fn shared_start(one: &str, other: &str) -> usize {
    let same = one.chars().zip(other.chars()).take_while(|(a, b)| a == b);
    same.map(|(c, _)| c.len_utf8()).sum()
}

/// An assistant's turn whose words are replaced.
#[derive(Clone)]
struct Turn<'m> {
    /// The index of the message.
    message: usize,
    /// The words that the stand-ins replace, in order.
    words: Vec<std::borrow::Cow<'m, str>>,
}

/// A conversation in which stand-ins, which occur nowhere else, replace what assistants say.
#[derive(Clone)]
struct StandIns<'m> {
    messages: Vec<Message>,
    turns: Vec<Turn<'m>>,
    core: String,
}

/// A rendered conversation, with the words back in their places.
struct Filled {
    text: String,
    /// For each turn, where each of its words is; `None` where the template dropped or repeated the word.
    places: Vec<Vec<Option<Range<usize>>>>,
}

impl<'m> StandIns<'m> {
    /// Replaces everything but white space and `markers` by stand-ins.
    fn new(messages: &'m [Message], markers: &[String]) -> Self {
        let core = absent(messages);
        let (mut turns, mut stand_ins) = (Vec::new(), messages.to_vec());
        for (i, message) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
            let mut words = Vec::new();
            let mut replace = |text: &'m str| {
                let mut replaced = String::new();
                for (piece, is_word) in pieces(text, markers) {
                    if is_word {
                        replaced.push_str(&Self::name(&core, turns.len(), words.len()));
                        words.push(piece.into());
                    } else {
                        replaced.push_str(piece);
                    }
                }
                replaced
            };
            let thoughts =
                THOUGHTS.iter().find_map(|key| Some((key, message.more.get(*key)?.as_str()?)));
            if let Some((key, text)) = thoughts {
                stand_ins[i].more[*key] = replace(text).into();
            }
            let mut content = replace(&message.content);
            if words.is_empty() {
                content.insert_str(0, &Self::name(&core, turns.len(), 0));
                words.push("".into());
            }
            stand_ins[i].content = content;
            turns.push(Turn { message: i, words });
        }
        Self { messages: stand_ins, turns, core }
    }

    /// Replaces the last assistant's words by one stand-in for `said`.
    fn replace_last(&mut self, said: String) {
        let number = self.turns.len() - 1;
        let at = self.turns[number].message;
        for key in THOUGHTS {
            if let Some(marked) = self.messages[at].more.get(key).and_then(|value| value.as_str()) {
                let thoughts = self.fill(marked).text;
                self.messages[at].more[key] = thoughts.into();
            }
        }
        self.turns[number].words = vec![said.into()];
        self.messages[at].content = Self::name(&self.core, number, 0);
    }

    fn name(core: &str, turn: usize, word: usize) -> String {
        format!("\u{e003}{core}{turn}.{word}\u{e004}")
    }

    /// Puts the words back in the places of their stand-ins.
    fn fill(&self, marked: &str) -> Filled {
        let mut text = String::with_capacity(marked.len());
        let mut places: Vec<Vec<Option<Range<usize>>>> =
            self.turns.iter().map(|turn| vec![None; turn.words.len()]).collect();
        let opening = format!("\u{e003}{}", self.core);
        let mut pieces = marked.split(&*opening);
        text.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            let (name, after) = piece.split_once('\u{e004}').unwrap_or((piece, ""));
            let numbers = name.split_once('.').map(|(turn, word)| (turn.parse(), word.parse()));
            if let Some((Ok(turn), Ok(word))) = numbers
                && let Some(said) =
                    self.turns.get::<usize>(turn).and_then(|turn| turn.words.get::<usize>(word))
            {
                let place = &mut places[turn][word];
                *place = place.is_none().then(|| text.len()..text.len() + said.len());
                text.push_str(said);
            }
            text.push_str(after);
        }
        Filled { text, places }
    }
}

impl Filled {
    /// Returns where a turn's words are, if all of them are there in order.
    fn words(&self, turn: usize) -> Option<Range<usize>> {
        let places: Vec<&Range<usize>> =
            self.places[turn].iter().map(Option::as_ref).collect::<Option<_>>()?;
        let is_ordered = places.windows(2).all(|pair| pair[0].end <= pair[1].start);
        let (first, last) = (places.first()?, places.last()?);
        is_ordered.then_some(first.start..last.end)
    }
}

/// Splits a text into pieces, and says of each whether it is a word: neither white space nor a marker.
fn pieces<'t>(text: &'t str, markers: &[String]) -> Vec<(&'t str, bool)> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    let next = |rest: &str| {
        let found =
            markers.iter().filter_map(|marker| Some((rest.find(marker.as_str())?, marker.len())));
        found.min_by_key(|(at, len)| (*at, std::cmp::Reverse(*len)))
    };
    while let Some((at, len)) = next(rest) {
        pieces.extend(without_space(&rest[..at]));
        pieces.push((&rest[at..at + len], false));
        rest = &rest[at + len..];
    }
    pieces.extend(without_space(rest));
    pieces
}

/// Splits a text into the white space at its beginning, its words, and the white space at its end.
fn without_space(text: &str) -> impl Iterator<Item = (&str, bool)> {
    let start = text.len() - text.trim_start_matches(is_space).len();
    let end = text.trim_end_matches(is_space).len().max(start);
    let parts = [(&text[..start], false), (&text[start..end], true), (&text[end..], false)];
    parts.into_iter().filter(|(part, _)| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::tokenizer::template::Spellings;

    const ENDS: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<e>\n{% endfor %}\
                        {% if add_generation_prompt %}[assistant]{% endif %}";
    /// Like DeepSeek-R1-Distill's, it drops thoughts, and its prompt opens one.
    const FORGETFUL: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
                             A:{{ m.content.split('</think>')[-1] }}<e>{% else %}\
                             U:{{ m.content }}{% endif %}{% endfor %}\
                             {% if add_generation_prompt %}A:<think>\n{% endif %}";
    /// Like Qwen3's, it wraps thoughts anew and drops those of earlier turns.
    const WRAPPING: &str = "{% for m in messages %}{% if m.role == 'assistant' %}A:\
                            {% set thoughts = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') \
                            if '</think>' in m.content else '' %}\
                            {% if loop.last %}{{ '<think>\n' + thoughts + '\n</think>\n\n' }}{% endif %}\
                            {{ m.content.split('</think>')[-1].lstrip('\n') }}<e>{% else %}\
                            U:{{ m.content }}{% endif %}{% endfor %}\
                            {% if add_generation_prompt %}A:{% endif %}";
    /// Like Llama 3's first template, it always opens the next turn.
    const OPEN: &str = "{% for m in messages %}<h>{{ m.role }}</h>{{ m.content | trim }}<t>{% endfor %}\
                        <h>assistant</h>";
    /// Like Phi-3.5's, it ends a conversation with another token than a turn.
    const OTHER_END: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<t>\n{% endfor %}\
                             {% if add_generation_prompt %}<assistant>{% else %}<e>{% endif %}";

    fn template(source: &str) -> ChatTemplate {
        let spellings = Spellings {
            ends: vec!["<e>".to_owned()],
            special: ["<e>", "<h>", "</h>", "<t>"].map(str::to_owned).to_vec(),
            ..Spellings::default()
        };
        ChatTemplate::test(source, spellings).unwrap()
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
        assert_eq!(said(ENDS, &[("user", "q"), ("assistant", "")]).1, ["<e>"]);
    }

    #[test]
    fn a_header_that_follows_a_turn_is_not_learnt() {
        let dialogue = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")];
        let (text, turns) = said(OPEN, &dialogue);
        assert!(text.ends_with("b<t><h>assistant</h>"), "{text}");
        assert_eq!(turns, ["a<t>", "b<t>"]);
        assert_eq!(template(OPEN).turn_end(), Some("<t>"));
        let bare = OPEN.replace("<t>", "").replace("<h>", "[").replace("</h>", "]");
        assert_eq!(said(&bare, &dialogue).1, ["a", "b"]);
        assert_eq!(template(&bare).turn_end(), None);
    }

    #[test]
    fn every_turn_has_its_end_though_another_token_ends_the_conversation() {
        let dialogue = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")];
        assert_eq!(said(OTHER_END, &dialogue).1, ["a<t>", "b<t>\n<e>"]);
        assert_eq!(template(OTHER_END).turn_end(), Some("<t>"));
    }

    /// The templates are those of OLMo (allenai/open-instruct#1800) and GLM (huggingface/trl#5988).
    #[test]
    fn a_turn_may_end_otherwise_than_the_last() {
        let dialogue = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")];
        let olmo = ENDS.replace("<e>", "{{ '<e>' if loop.last else '<t>' }}");
        assert_eq!(said(&olmo, &dialogue).1, ["a<t>", "b<e>"]);
        let glm = "{% for m in messages %}{{ '<e>' if m.role == 'user' else '<h>' }}{{ m.content }}\
                   {% endfor %}{% if add_generation_prompt %}<h>{% endif %}";
        assert_eq!(said(glm, &dialogue).1, ["a<e>", "b"]);
    }

    #[test]
    fn thoughts_of_the_last_turn_survive_a_template_that_drops_them() {
        let dialogue = [
            ("user", "q"),
            ("assistant", "<think>\nx</think>a"),
            ("user", "r"),
            ("assistant", "<think>\ny</think>b"),
        ];
        let (text, turns) = said(FORGETFUL, &dialogue);
        assert_eq!(
            text, "U:qA:a<e>U:rA:<think>\ny</think>b<e>",
            "history is as the template prints it"
        );
        assert_eq!(turns, ["", "y</think>b<e>"], "the prompt opens with <think>");
        for thoughts in ["<think>y</think>b", "y</think>b"] {
            let (text, turns) = said(FORGETFUL, &[("user", "r"), ("assistant", thoughts)]);
            assert_eq!(
                text, "U:rA:<think>\ny</think>b<e>",
                "a target begins where the prompt ends"
            );
            assert_eq!(turns, ["y</think>b<e>"]);
        }
    }

    #[test]
    fn thoughts_are_learnt_as_a_template_wraps_them() {
        let dialogue = [
            ("user", "q"),
            ("assistant", "<think>x</think>a"),
            ("user", "r"),
            ("assistant", "<think>\ny\n</think>\nb"),
        ];
        let (text, turns) = said(WRAPPING, &dialogue);
        assert_eq!(text, "U:qA:a<e>U:rA:<think>\ny\n</think>\n\nb<e>");
        assert_eq!(turns, ["", "<think>\ny\n</think>\n\nb<e>"]);
        let (text, turns) = said(WRAPPING, &[("user", "q"), ("assistant", "a")]);
        assert_eq!(text, "U:qA:<think>\n\n</think>\n\na<e>");
        assert_eq!(turns, ["<think>\n\n</think>\n\na<e>"]);
        let asked_again = [("user", "q"), ("assistant", "<think>x</think>a"), ("user", "r")];
        assert_eq!(said(WRAPPING, &asked_again), ("U:qA:a<e>U:r".to_owned(), vec![String::new()]));
    }

    #[test]
    fn thoughts_beside_the_content_are_learnt_where_they_are_printed() {
        let template = template(
            "{% for m in messages %}{% if m.role == 'assistant' %}A:{% if loop.last %}\
             {{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content }}<e>{% else %}\
             U:{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
        );
        let dialogue =
            turns(&[("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]);
        let think = |mut message: Message| {
            message.more.insert("reasoning_content".to_owned(), " why\n".into());
            message
        };
        let dialogue: Vec<Message> = dialogue.into_iter().map(think).collect();
        let (text, spans) = template.render_with_spans(&dialogue).unwrap();
        assert_eq!(text, "U:qA:a<e>U:rA:<think> why\n</think>b<e>");
        let said: Vec<&str> = spans.into_iter().map(|span| &text[span]).collect();
        assert_eq!(said, ["", "<think> why\n</think>b<e>"]);
    }

    #[test]
    fn a_target_without_thoughts_is_learnt_whole_though_the_prompt_opens_with_one() {
        let (text, said) = said(FORGETFUL, &[("user", "q"), ("assistant", "a")]);
        assert_eq!((text.as_str(), said), ("U:qA:a<e>", vec!["a<e>".to_owned()]));
    }

    #[test]
    fn a_conversation_that_cannot_be_empty_is_not_rendered_empty() {
        let strict = ENDS.replace("{% for", "{% set first = messages[0].role + '' %}{% for");
        let dialogue = [("assistant", "a"), ("user", "q"), ("assistant", "b")];
        assert_eq!(said(&strict, &dialogue).1, ["a<e>", "b<e>"]);
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
