//! What was said, and how answers are drawn.

use crate::base::error::usage;
use crate::engine::{SamplingParams, check_temperature};
use crate::tokenizer::Message;
use anyhow::Result;
use std::fmt::Write;
use std::str::FromStr;

const DEFAULT_MAX_NEW_TOKENS: usize = 1024;

/// A conversation and its settings.
pub(crate) struct Conversation {
    system: Option<String>,
    /// Questions and answers come in turn.
    turns: Vec<Message>,
    sampling: SamplingParams,
    seed: u64,
}

impl Conversation {
    /// Begins a conversation. Its answers end with one of `stop_ids`.
    pub(crate) fn new(system: Option<String>, stop_ids: Vec<u32>) -> Self {
        let max_new_tokens = DEFAULT_MAX_NEW_TOKENS;
        let sampling = SamplingParams { stop_ids, max_new_tokens, ..SamplingParams::default() };
        Self { system, turns: Vec::new(), sampling, seed: 0 }
    }

    /// Returns the conversation with another question.
    pub(crate) fn with_question(&self, question: &str) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let question = Message::new("user", question);
        system.chain(self.turns.iter().cloned()).chain([question]).collect()
    }

    pub(crate) fn remember(&mut self, question: String, answer: String) {
        self.turns.extend([Message::new("user", question), Message::new("assistant", answer)]);
    }

    /// Takes the last question and its answer back, and returns the question.
    pub(crate) fn undo(&mut self) -> Option<String> {
        self.turns.pop()?;
        self.turns.pop().map(|question| question.content)
    }

    pub(crate) fn clear(&mut self) {
        self.turns.clear();
    }

    pub(crate) fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Sets what the model is told first; `-` is nothing.
    pub(crate) fn set_system(&mut self, text: &str) {
        self.system = (text != "-").then(|| text.to_owned());
    }

    /// Returns how an answer of at most `room` tokens is drawn, and its seed.
    pub(crate) fn sampling(&self, room: usize, vocab_size: usize) -> (SamplingParams, u64) {
        let max_new_tokens = self.sampling.max_new_tokens.min(room);
        (SamplingParams { max_new_tokens, vocab_size, ..self.sampling.clone() }, self.seed)
    }

    /// Changes a setting.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let of = |range: std::ops::RangeInclusive<f32>| number(name, value, range);
        let s = &mut self.sampling;
        match name {
            "temperature" => {
                let temperature = parse(name, value, "a number")?;
                check_temperature(name, temperature)?;
                s.temperature = temperature;
            }
            "top_k" => s.top_k = parse(name, value, "a whole number, 0 or more")?,
            "top_p" => s.top_p = of(f32::MIN_POSITIVE..=1.0)?,
            "min_p" => s.min_p = of(0.0..=1.0)?,
            "repetition_penalty" => s.repetition_penalty = of(f32::MIN_POSITIVE..=f32::MAX)?,
            "presence_penalty" => s.presence_penalty = of(-2.0..=2.0)?,
            "frequency_penalty" => s.frequency_penalty = of(-2.0..=2.0)?,
            "max_new_tokens" => {
                let most: std::num::NonZero<u32> = parse(name, value, "a whole number, 1 or more")?;
                s.max_new_tokens = most.get() as usize;
            }
            "seed" => self.seed = parse(name, value, "a whole number, 0 or more")?,
            _ => {
                return Err(usage(format!("there is no setting {name:?}: /settings shows all")));
            }
        }
        Ok(())
    }

    /// Returns all settings, one a line.
    pub(crate) fn settings(&self) -> String {
        let s = &self.sampling;
        let rows: [(&str, &dyn std::fmt::Display); 9] = [
            ("temperature", &s.temperature),
            ("top_k", &s.top_k),
            ("top_p", &s.top_p),
            ("min_p", &s.min_p),
            ("repetition_penalty", &s.repetition_penalty),
            ("presence_penalty", &s.presence_penalty),
            ("frequency_penalty", &s.frequency_penalty),
            ("max_new_tokens", &s.max_new_tokens),
            ("seed", &self.seed),
        ];
        let mut text = String::new();
        for (name, value) in rows {
            let _never_fails = writeln!(text, "{name:<20}{value}");
        }
        text.trim_end().to_owned()
    }
}

fn parse<T: FromStr>(name: &str, value: &str, expected: &str) -> Result<T> {
    value.parse().map_err(|_| usage(format!("{name} is {value:?}: it must be {expected}")))
}

fn number(name: &str, value: &str, range: std::ops::RangeInclusive<f32>) -> Result<f32> {
    let (least, most) = (range.start(), range.end());
    let expected = format!("a number from {least} to {most}");
    let number = parse(name, value, &expected)?;
    if range.contains(&number) {
        return Ok(number);
    }
    Err(usage(format!("{name} is {value:?}: it must be {expected}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_can_be_taken_back_and_the_system_prompt_comes_first() {
        let mut conversation = Conversation::new(Some("s".to_owned()), vec![1]);
        conversation.remember("q".to_owned(), "a".to_owned());
        let roles = |conversation: &Conversation| -> Vec<String> {
            conversation.with_question("r").into_iter().map(|m| m.role).collect()
        };
        assert_eq!(roles(&conversation), ["system", "user", "assistant", "user"]);
        assert_eq!(conversation.undo().as_deref(), Some("q"));
        assert_eq!(conversation.undo(), None);
        conversation.set_system("-");
        assert_eq!(roles(&conversation), ["user"]);
    }

    #[test]
    fn settings_are_shown_as_they_were_set_and_checked() {
        let mut conversation = Conversation::new(None, Vec::new());
        for (name, value) in [("temperature", "0.7"), ("top_k", "40"), ("seed", "9")] {
            conversation.set(name, value).unwrap();
            assert!(conversation.settings().contains(&format!("{name:<20}{value}")));
        }
        for (name, value) in [
            ("temperature", "0.0001"),
            ("top_p", "0"),
            ("top_p", "x"),
            ("min_p", "NaN"),
            ("max_new_tokens", "0"),
            ("heat", "1"),
        ] {
            let error = conversation.set(name, value).unwrap_err();
            assert_eq!(crate::base::error::exit_code(&error), 2, "{name} {value}");
        }
        assert_eq!(conversation.sampling(5, 10).0.max_new_tokens, 5);
    }
}
