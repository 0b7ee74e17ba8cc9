//! Conversations as tokens, and which of the tokens carry loss.
//!
//! A conversation is rendered by the model's own template ([`super::template`]) and tokenised as one text.
//! Loss falls on what assistants say ([`super::targets`]). A mask that is empty or covers everything is
//! refused: no loss curve would show such a mistake.

use super::Tokenizer;
use super::message::Message;
use crate::base::error::usage;
use anyhow::Result;
use std::ops::Range;

/// A conversation as tokens, and which of them are learnt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokenized {
    pub input_ids: Vec<u32>,
    /// Whether each token is learnt; as long as `input_ids`.
    pub loss_mask: Vec<bool>,
}

impl Tokenized {
    /// Refuses a mask that would train on nothing, or on the prompt too. `what` names the sample in errors.
    pub fn check_mask(&self, what: &str) -> Result<()> {
        let learnt = self.learnt();
        if learnt == 0 {
            Err(usage(format!("{what}: no token carries loss: is there an assistant turn?")))
        } else if self.loss_mask.iter().all(|&learn| learn) {
            Err(usage(format!("{what}: every token carries loss, the prompt too: check the mask")))
        } else {
            Ok(())
        }
    }

    /// Counts the tokens that are learnt; the first token is not, since nothing predicts it.
    pub fn learnt(&self) -> usize {
        self.loss_mask.iter().skip(1).filter(|&&learn| learn).count()
    }
}

impl Tokenizer {
    /// Returns the tokens of a conversation to learn from. Refuses a mask that would train on nothing or on
    /// the prompt too.
    pub fn encode_sample(&self, messages: &[Message]) -> Result<Tokenized> {
        let sample = self.encode_masked(messages)?;
        sample.check_mask("conversation")?;
        Ok(sample)
    }

    /// Returns the tokens of a conversation, whatever its mask.
    pub fn encode_masked(&self, messages: &[Message]) -> Result<Tokenized> {
        messages.iter().try_for_each(Message::check_role)?;
        self.unread_keys(messages)?;
        let (text, spans) = self.template()?.render_with_spans(messages)?;
        let spans = learnt_spans(messages, spans)?;
        let encoding = self.encoding(&text)?;
        let ranges = encoding.get_offsets();
        let mut loss_mask = vec![false; ranges.len()];
        for span in spans.iter().filter(|span| !span.is_empty()) {
            let first = ranges.partition_point(|range| range.1 <= span.start);
            let last = ranges.partition_point(|range| range.0 < span.end);
            loss_mask[first..last].fill(true);
        }
        Ok(Tokenized { input_ids: encoding.get_ids().to_vec(), loss_mask })
    }

    /// Returns the tokens that ask for the next assistant turn.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.unread_keys(messages)?;
        self.encode(&self.template()?.render(messages, true)?)
    }
}

/// Returns the spans of the turns that are learnt, among those of all assistant turns.
fn learnt_spans(messages: &[Message], spans: Vec<Range<usize>>) -> Result<Vec<Range<usize>>> {
    let said: Vec<&Message> = messages.iter().filter(|message| message.is_assistant()).collect();
    if said.iter().all(|message| message.train) {
        return Ok(spans);
    }
    if said.len() != spans.len() {
        return Err(usage(format!(
            "the chat template marks {} stretches of {} assistant turns, so a turn cannot be left \
             unlearnt (`train`, `weight`, `loss`)",
            spans.len(),
            said.len()
        )));
    }
    Ok(spans.into_iter().zip(said).filter(|(_, turn)| turn.train).map(|(span, _)| span).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::tokenizer::test_support::small_tokenizer;
    use proptest::prelude::*;

    fn turns(contents: &[(&str, &str)]) -> Vec<Message> {
        contents.iter().map(|(role, content)| Message::new(*role, *content)).collect()
    }

    #[test]
    fn a_sample_without_an_assistant_or_without_a_prompt_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
        let error = tokenizer.encode_sample(&turns(&[("user", "q")])).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        let all = Tokenized { input_ids: vec![1, 2], loss_mask: vec![true, true] };
        assert_eq!(exit_code(&all.check_mask("line 3").unwrap_err()), 2);
    }

    #[test]
    fn a_sample_is_its_prompt_then_the_learnt_response_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
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
        let tokenizer = small_tokenizer(dir.path());
        let dialogue = turns(&[
            ("user", "\u{e001}\u{e000}\u{e001} x \u{e002}\u{e000}\u{e002}"),
            ("assistant", "y\u{e002}\u{e000}\u{e000}\u{e002}"),
        ]);
        let (text, spans) = tokenizer.template().unwrap().render_with_spans(&dialogue).unwrap();
        assert_eq!(&text[spans[0].clone()], format!("{}<|im_end|>", dialogue[1].content));
    }
}
