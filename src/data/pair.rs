//! Pairs of answers to one prompt, of which one is preferred: as they lie in files, and as tokens.
//!
//! A row is what TRL calls a conversational preference: `prompt` holds the turns before, `chosen` and
//! `rejected` one assistant's turn each. Without `prompt`, `chosen` and `rejected` are whole conversations
//! that differ in their last turns. Only the answers are learnt.

use crate::base::error::usage;
use crate::tokenizer::{Message, Tokenizer};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Two answers to the same conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Row", into = "Row")]
pub struct Pair {
    /// The turns that are answered.
    pub prompt: Vec<Message>,
    pub chosen: Message,
    pub rejected: Message,
    /// The problem that is answered, where there is one.
    pub problem_id: Option<String>,
}

/// A pair as a row has it.
#[derive(Serialize, Deserialize)]
struct Row {
    #[serde(default)]
    prompt: Option<Vec<Message>>,
    chosen: Vec<Message>,
    rejected: Vec<Message>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    problem_id: Option<String>,
}

impl TryFrom<Row> for Pair {
    type Error = String;

    fn try_from(row: Row) -> Result<Self, String> {
        let split = |name: &str, mut turns: Vec<Message>| match turns.pop() {
            Some(answer) if answer.is_assistant() => Ok((turns, answer)),
            _ => Err(format!("`{name}` does not end with an assistant's turn")),
        };
        let (before_chosen, chosen) = split("chosen", row.chosen)?;
        let (before_rejected, rejected) = split("rejected", row.rejected)?;
        if before_chosen != before_rejected {
            return Err("`chosen` and `rejected` differ in more than their last turns".to_owned());
        }
        let prompt =
            match row.prompt {
                Some(prompt) if before_chosen.is_empty() => prompt,
                Some(_) => return Err(
                    "`chosen` holds more turns than the answer: leave `prompt` out, or those turns"
                        .to_owned(),
                ),
                None => before_chosen,
            };
        if prompt.is_empty() {
            return Err("nothing is answered: `prompt` holds no turn".to_owned());
        }
        Ok(Self { prompt, chosen, rejected, problem_id: row.problem_id })
    }
}

impl From<Pair> for Row {
    fn from(pair: Pair) -> Self {
        let Pair { prompt, chosen, rejected, problem_id } = pair;
        Self { prompt: Some(prompt), chosen: vec![chosen], rejected: vec![rejected], problem_id }
    }
}

/// An answer behind its prompt, as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AnsweredPrompt {
    /// Ends where the assistant begins; at least one token.
    pub prompt: Vec<u32>,
    /// All that is learnt, with the token that ends the turn.
    pub answer: Vec<u32>,
}

impl AnsweredPrompt {
    pub fn num_tokens(&self) -> usize {
        self.prompt.len() + self.answer.len()
    }

    fn new(tokenizer: &Tokenizer, prompt: &[Message], answer: &Message) -> Result<Self> {
        let mut turns = prompt.to_vec();
        turns.iter_mut().for_each(|turn| turn.train = false);
        turns.push(Message { train: true, ..answer.clone() });
        let sample = tokenizer.encode_sample(&turns)?;
        let is_learnt = |&learnt: &bool| learnt;
        let first = sample.loss_mask.iter().position(is_learnt).unwrap_or_default();
        let last = sample.loss_mask.iter().rposition(is_learnt).unwrap_or_default();
        if first == 0 || !sample.loss_mask[first..=last].iter().all(is_learnt) {
            return Err(usage(
                "the chat template does not keep the answer in one piece behind the prompt",
            ));
        }
        let mut prompt = sample.input_ids;
        prompt.truncate(last + 1);
        let answer = prompt.split_off(first);
        Ok(Self { prompt, answer })
    }
}

/// A pair as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenPair {
    pub chosen: AnsweredPrompt,
    pub rejected: AnsweredPrompt,
}

impl TokenPair {
    pub fn new(tokenizer: &Tokenizer, pair: &Pair) -> Result<Self> {
        let encode = |name: &'static str, answer: &Message| {
            AnsweredPrompt::new(tokenizer, &pair.prompt, answer).context(name)
        };
        Ok(Self {
            chosen: encode("chosen", &pair.chosen)?,
            rejected: encode("rejected", &pair.rejected)?,
        })
    }

    /// Whether both answers follow the same tokens: a tokenizer may join the end of a prompt with the
    /// beginning of an answer.
    pub fn shares_prompt(&self) -> bool {
        self.chosen.prompt == self.rejected.prompt
    }

    /// Tokens of the longer prompt and answer.
    pub fn longest(&self) -> usize {
        self.chosen.num_tokens().max(self.rejected.num_tokens())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::test_support::small_tokenizer;

    fn read(row: &str) -> Result<Pair, String> {
        serde_json::from_str(row).map_err(|e| e.to_string())
    }

    const ASKED: &str = r#"{"role": "user", "content": "q"}"#;

    fn said(content: &str) -> String {
        format!(r#"{{"role": "assistant", "content": "{content}"}}"#)
    }

    #[test]
    fn a_pair_with_its_prompt_apart_is_the_same_as_one_of_whole_conversations() {
        let (a, b) = (said("a"), said("b"));
        let apart = format!(r#"{{"prompt": [{ASKED}], "chosen": [{a}], "rejected": [{b}]}}"#);
        let whole = format!(r#"{{"chosen": [{ASKED}, {a}], "rejected": [{ASKED}, {b}]}}"#);
        let pair = read(&apart).unwrap();
        assert_eq!(pair, read(&whole).unwrap());
        assert_eq!(
            (pair.prompt.len(), &*pair.chosen.content, &*pair.rejected.content),
            (1, "a", "b")
        );
        assert_eq!(read(&serde_json::to_string(&pair).unwrap()).unwrap(), pair);
    }

    #[test]
    fn a_row_that_is_no_pair_is_refused_by_what_it_lacks() {
        let (a, b) = (said("a"), said("b"));
        for (row, part) in [
            (format!(r#"{{"chosen": [{a}], "rejected": [{b}]}}"#), "nothing is answered"),
            (format!(r#"{{"prompt": [{ASKED}], "chosen": [{a}], "rejected": []}}"#), "`rejected`"),
            (format!(r#"{{"prompt": [{ASKED}], "chosen": [{a}]}}"#), "rejected"),
            (format!(r#"{{"chosen": [{ASKED}, {a}], "rejected": [{a}, {b}]}}"#), "last turns"),
            (
                format!(
                    r#"{{"prompt": [{ASKED}], "chosen": [{ASKED}, {a}], "rejected": [{ASKED}, {b}]}}"#
                ),
                "leave `prompt` out",
            ),
        ] {
            let error = read(&row).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn answers_are_learnt_with_their_end_and_earlier_turns_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
        let prompt = [("user", "7"), ("assistant", "old"), ("user", "8")];
        let pair = Pair {
            prompt: prompt.map(|(role, content)| Message::new(role, content)).to_vec(),
            chosen: Message::new("assistant", "42"),
            rejected: Message::new("assistant", "0"),
            problem_id: None,
        };
        let tokens = TokenPair::new(&tokenizer, &pair).unwrap();
        assert!(tokens.shares_prompt());
        let text = |ids: &[u32]| tokenizer.decode_with_special_tokens(ids).unwrap();
        assert_eq!(text(&tokens.chosen.answer), "42<|im_end|>");
        assert_eq!(text(&tokens.rejected.answer), "0<|im_end|>");
        assert_eq!(tokens.chosen.prompt, tokenizer.encode_prompt(&pair.prompt).unwrap());
    }
}
