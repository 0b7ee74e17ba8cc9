//! Turns tokens into text as they come, and ends a response at the first stop string.
//!
//! Text is given out once no later token can change it: never a part of a character, and nothing that may
//! turn out to begin a stop string. The pieces together are the whole text, which ends before the first
//! stop string. Bytes that belong to no character become U+FFFD and do not change the characters beside
//! them. Special tokens have no text; a stop string that spells a special token is a stop token.

use super::{Next, Observer, RequestId, Rollout};
use crate::base::error::usage;
use crate::tokenizer::Tokenizer;
use anyhow::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// Stands for bytes that are no character, or not yet.
const REPLACEMENT: char = '\u{fffd}';

/// A character has at most four bytes in UTF-8, and a token has at least one.
const CHARACTER_TOKENS: usize = 4;

/// The strings and tokens that end a response.
#[derive(Debug, Default)]
pub struct Stops {
    /// A response ends where one of these texts appears; only the text before it is kept.
    strings: Vec<String>,
    /// A response ends with any of these tokens; see [`super::SamplingParams::stop_ids`].
    pub ids: Vec<u32>,
    /// Whether the string that ends a response is kept, too.
    pub keeps_string: bool,
    /// A string that begins in the text of so many first tokens does not count.
    pub min_tokens: usize,
}

impl Stops {
    /// Sorts `strings` into texts and stop tokens: a string that spells exactly one special token is a stop
    /// token. Refuses an empty string, and one that has a special token beside other text, since that never
    /// appears in a response.
    pub fn new(tokenizer: &Tokenizer, strings: &[String]) -> Result<Self> {
        let mut stops = Self::default();
        for string in strings {
            if string.is_empty() {
                return Err(usage("a stop string must not be empty"));
            }
            let ids = tokenizer.encode(string)?;
            match (&ids[..], first_special(tokenizer, &ids)?) {
                (_, None) => stops.strings.push(string.clone()),
                ([id], Some(_)) => stops.ids.push(*id),
                (_, Some(special)) => {
                    return Err(usage(format!(
                        "the stop string {string:?} holds the special token {special:?}, which has no \
                         text in a response: give it without the rest, or leave it out"
                    )));
                }
            }
        }
        Ok(stops)
    }
}

/// Returns the spelling of the first of `ids` that is a special token and so has no text.
fn first_special(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Option<String>> {
    for &id in ids {
        let spelling = tokenizer.decode_with_special_tokens(&[id])?;
        if !spelling.is_empty() && tokenizer.decode(&[id])?.is_empty() {
            return Ok(Some(spelling));
        }
    }
    Ok(None)
}

/// The text of a response that grows token by token.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    stops: Arc<Stops>,
    num_pushed: usize,
    /// The text so far that no later token changes.
    text: String,
    /// In so many bytes of `text` no stop string counts.
    num_unsearched: usize,
    /// So many bytes of `text` were given out.
    num_taken: usize,
    end: End,
    /// The last tokens whose text is in `text`, then those whose text is not yet. The text of a token
    /// depends on the tokens just before it (a leading space, say), but not on those long before.
    tokens: Vec<u32>,
    num_settled: usize,
}

/// Whether more text may come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// This stop string came.
    Stopped(usize),
    /// No more tokens come.
    Finished,
}

impl<'t> TextStream<'t> {
    pub fn new(tokenizer: &'t Tokenizer, stops: Arc<Stops>) -> Self {
        Self {
            tokenizer,
            stops,
            num_pushed: 0,
            text: String::new(),
            num_unsearched: 0,
            num_taken: 0,
            end: End::Open,
            tokens: Vec::new(),
            num_settled: 0,
        }
    }

    /// Adds the next token. It fails where the tokenizer fails to decode.
    pub fn push(&mut self, token: u32) -> Result<()> {
        self.num_pushed += 1;
        self.tokens.push(token);
        while self.end == End::Open && !self.settle()? {
            if self.tokens.len() - self.num_settled <= CHARACTER_TOKENS {
                break;
            }
            // The oldest of so many is in no character that may still come.
            let alone = self.text_until(self.num_settled + 1)?;
            self.tokens.remove(self.num_settled);
            self.add(&alone);
        }
        Ok(())
    }

    /// Settles what was held back: no more tokens come.
    pub fn finish(&mut self) -> Result<()> {
        if self.end == End::Open {
            let rest = self.text_until(self.tokens.len())?;
            self.add(&rest);
        }
        if self.end == End::Open {
            self.end = End::Finished;
        }
        Ok(())
    }

    /// The stop string that came.
    pub fn stop(&self) -> Option<&str> {
        match self.end {
            End::Stopped(which) => Some(&self.stops.strings[which]),
            End::Open | End::Finished => None,
        }
    }

    /// Returns the text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the text that is new since the last call and that no later token changes.
    pub fn take(&mut self) -> &str {
        let held = if self.end == End::Open { self.may_begin_a_stop() } else { 0 };
        let start = std::mem::replace(&mut self.num_taken, self.text.len() - held);
        &self.text[start..self.num_taken]
    }

    /// Moves the text of all tokens to `text`, if there is any and it ends with a whole character. Returns
    /// whether it did.
    fn settle(&mut self) -> Result<bool> {
        let new = self.text_until(self.tokens.len())?;
        if new.is_empty() || new.ends_with(REPLACEMENT) {
            return Ok(false);
        }
        self.add(&new);
        self.tokens.drain(..self.num_settled);
        self.num_settled = self.tokens.len();
        Ok(true)
    }

    /// Returns the text that the tokens up to `end` add to the settled text.
    fn text_until(&self, end: usize) -> Result<String> {
        let known = self.tokenizer.decode(&self.tokens[..self.num_settled])?;
        let mut text = self.tokenizer.decode(&self.tokens[..end])?;
        if text.starts_with(&known) {
            return Ok(text.split_off(known.len()));
        }
        // With byte fallback a whole run of bytes decodes to U+FFFD until its last byte is there.
        self.tokenizer.decode(&self.tokens[self.num_settled..end])
    }

    /// Adds settled text, up to the first stop string.
    fn add(&mut self, new: &str) {
        let Stops { strings, keeps_string, min_tokens, .. } = &*self.stops;
        let longest = strings.iter().map(String::len).max().unwrap_or(0);
        let mut from = (self.text.len() + 1).saturating_sub(longest).min(self.text.len());
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        from = from.max(self.num_unsearched);
        self.text.push_str(new);
        if self.num_pushed <= *min_tokens {
            self.num_unsearched = self.text.len();
            return;
        }
        let find = |(which, stop): (usize, &String)| {
            self.text[from..].find(stop.as_str()).map(|at| (at, which))
        };
        if let Some((at, which)) = strings.iter().enumerate().filter_map(find).min() {
            let kept = if *keeps_string { strings[which].len() } else { 0 };
            self.text.truncate(from + at + kept);
            self.end = End::Stopped(which);
        }
    }

    /// Counts the bytes at the end of the text that may begin a stop string.
    fn may_begin_a_stop(&self) -> usize {
        let strings = &self.stops.strings;
        let most = self.text.len() - self.num_unsearched + 1;
        let longest = strings.iter().map(String::len).max().unwrap_or(0).min(most);
        let may = |len: &usize| {
            let tail = self.text.get(self.text.len() - len..);
            tail.is_some_and(|tail| strings.iter().any(|s| s.len() > *len && s.starts_with(tail)))
        };
        (1..longest).rev().find(may).unwrap_or(0)
    }
}

/// Returns the whole text of a response, without regard to stop strings.
pub fn text_of(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<String> {
    let text = tokenizer.decode(tokens)?;
    if !text.contains(REPLACEMENT) {
        return Ok(text);
    }
    let mut stream = TextStream::new(tokenizer, Arc::default());
    tokens.iter().try_for_each(|&token| stream.push(token))?;
    stream.finish()?;
    Ok(stream.text)
}

/// A reader receives responses as text.
pub trait Reader: Send {
    /// Receives text that a response now has and will keep.
    fn text(&mut self, _request: RequestId, _sample: usize, _new: &str) -> Result<()> {
        Ok(())
    }

    /// Receives the whole text of a response that ended.
    fn finished(
        &mut self,
        request: RequestId,
        sample: usize,
        text: String,
        rollout: Rollout,
    ) -> Result<()>;
}

/// Observes rollouts for a reader, and ends those in which a stop string appears.
pub struct Reading<'t, R> {
    tokenizer: &'t Tokenizer,
    stops: Arc<Stops>,
    /// Whether the reader receives text before a response ends.
    is_streamed: bool,
    reader: R,
    streams: HashMap<(RequestId, usize), TextStream<'t>>,
    /// The first failure. It waits here because an observer cannot return errors to the engine.
    failure: Option<Error>,
}

impl<'t, R: Reader> Reading<'t, R> {
    /// Creates an observer that gives `reader` every response when it ends and, where `is_streamed`, its
    /// text while it grows.
    pub fn new(tokenizer: &'t Tokenizer, stops: Stops, is_streamed: bool, reader: R) -> Self {
        let (stops, streams) = (Arc::new(stops), HashMap::new());
        Self { tokenizer, stops, is_streamed, reader, streams, failure: None }
    }

    /// Returns the first failure, the reader's own too. Nothing was read after it.
    pub fn into_result(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }

    fn read(&mut self, at: (RequestId, usize), token: Option<&u32>) -> Result<Next> {
        if !self.is_streamed && self.stops.strings.is_empty() {
            return Ok(Next::Continue);
        }
        let new = || TextStream::new(self.tokenizer, Arc::clone(&self.stops));
        let stream = self.streams.entry(at).or_insert_with(new);
        token.map_or(Ok(()), |&token| stream.push(token))?;
        if self.is_streamed {
            self.reader.text(at.0, at.1, stream.take())?;
        }
        Ok(if stream.stop().is_some() { Next::Stop } else { Next::Continue })
    }

    fn end(&mut self, at: (RequestId, usize), rollout: Rollout) -> Result<()> {
        let text = match self.streams.remove(&at) {
            None => text_of(self.tokenizer, &rollout.tokens)?,
            Some(mut stream) => {
                stream.finish()?;
                if self.is_streamed {
                    self.reader.text(at.0, at.1, stream.take())?;
                }
                stream.text
            }
        };
        self.reader.finished(at.0, at.1, text, rollout)
    }

    /// Keeps the first failure.
    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|failure| self.failure.get_or_insert(failure)).ok()
    }
}

impl<R: Reader> Observer for Reading<'_, R> {
    fn token(&mut self, request: RequestId, sample: usize, rollout: &Rollout) -> Next {
        if self.failure.is_some() {
            return Next::Cancel;
        }
        let read = self.read((request, sample), rollout.tokens.last());
        self.note(read).unwrap_or(Next::Cancel)
    }

    fn finished(&mut self, request: RequestId, sample: usize, rollout: Rollout) {
        if self.failure.is_none() {
            let ended = self.end((request, sample), rollout);
            self.note(ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::bpe;
    use crate::tokenizer::test_support::small_tokenizer;
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};
    use std::path::Path;

    /// Loads a tokenizer whose tokens are the 256 bytes and `words`, with SentencePiece's byte fallback.
    fn with_byte_fallback(dir: &Path, words: &[&str]) -> Tokenizer {
        let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
        let tokens =
            bytes.chain(words.iter().map(|word| (*word).to_owned())).chain(["</s>".into()]);
        let vocab: Map<String, Value> =
            tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
        let end = vocab["</s>"].clone();
        let special = json!({
            "id": end, "content": "</s>", "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        });
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": [special],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true},
        });
        std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        std::fs::write(dir.join("tokenizer_config.json"), r#"{"eos_token": "</s>"}"#).unwrap();
        Tokenizer::load(dir).unwrap()
    }

    /// Returns the pieces in which the text of `tokens` comes, with the last piece at the end, and the
    /// whole text.
    fn pieces(tokenizer: &Tokenizer, stops: &Arc<Stops>, tokens: &[u32]) -> (Vec<String>, String) {
        let mut stream = TextStream::new(tokenizer, Arc::clone(stops));
        let mut pieces = Vec::new();
        for &token in tokens {
            stream.push(token).unwrap();
            pieces.push(stream.take().to_owned());
        }
        stream.finish().unwrap();
        pieces.push(stream.take().to_owned());
        assert_eq!(pieces.concat(), stream.text());
        (pieces, stream.text)
    }

    #[test]
    fn a_character_of_several_bytes_comes_whole() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = with_byte_fallback(dir.path(), &["▁hi", "a"]);
        let smile: Vec<u32> = "😀".bytes().map(u32::from).collect();
        let tokens = [&[256], &smile[..], &smile, &[257, 256]].concat();
        let (pieces, text) = pieces(&tokenizer, &Arc::default(), &tokens);
        assert_eq!(text, "hi😀😀a hi");
        let wanted = ["hi", "", "", "", "😀", "", "", "", "😀", "a", " hi", ""];
        assert_eq!(pieces, wanted);
        assert_eq!(text_of(&tokenizer, &tokens).unwrap(), text);
    }

    #[test]
    fn bytes_of_no_character_leave_their_neighbours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = with_byte_fallback(dir.path(), &["▁hi", "a"]);
        let text = |bytes: &[u8], after: &[u32]| {
            let bytes = bytes.iter().copied().map(u32::from);
            let tokens: Vec<u32> = bytes.chain(after.iter().copied()).collect();
            let text = pieces(&tokenizer, &Arc::default(), &tokens).1;
            assert_eq!(text, text_of(&tokenizer, &tokens).unwrap());
            text
        };
        assert_eq!(text("😀\u{e9}".as_bytes(), &[]), "😀é");
        // The first byte of another character, which never comes.
        assert_eq!(text(b"\xf0\x9f\x98\x80\xe2", &[257]), "😀\u{fffd}a");
        assert_eq!(text(b"\xf0\x9f\x98\x80\xe2", &[256]), "😀\u{fffd} hi");
        assert_eq!(text(b"\xf0\x9f\x98\x80\xe2", &[]), "😀\u{fffd}");
        // More first bytes than a character has, then a character.
        assert_eq!(text(b"\xf0\xf0\xf0\xf0\x9f\x98\x80", &[]), "\u{fffd}\u{fffd}\u{fffd}😀");
    }

    #[test]
    fn a_stop_string_ends_the_text_wherever_tokens_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = with_byte_fallback(dir.path(), &["a", "b", "c", "ab", "bc"]);
        let strings = ["bcc".to_owned(), "ß".to_owned()];
        let stops = Arc::new(Stops::new(&tokenizer, &strings).unwrap());
        let [a, b, c, ab, bc] = [256, 257, 258, 259, 260];
        for tokens in [&[a, bc, c, a][..], &[ab, c, c], &[a, b, c, c], &[a, 0xc3, 0x9f, a]] {
            let (pieces, text) = pieces(&tokenizer, &stops, tokens);
            assert_eq!(text, "a", "{tokens:?}");
            assert_eq!(pieces[0], "a");
        }
        // Text that could have begun a stop string but did not comes later.
        let (pieces, text) = pieces(&tokenizer, &stops, &[a, bc, b, bc]);
        assert_eq!(
            (text.as_str(), &pieces[..]),
            ("abcbbc", &["a", "", "bc", "b", "bc"].map(String::from)[..])
        );
    }

    #[test]
    fn a_stop_string_can_be_kept_and_counts_only_after_the_first_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = with_byte_fallback(dir.path(), &["a", "b"]);
        let [a, b] = [256, 257];
        let text = |keeps_string, min_tokens| {
            let stops = Stops::new(&tokenizer, &["ab".to_owned()]).unwrap();
            let stops = Stops { keeps_string, min_tokens, ..stops };
            let mut stream = TextStream::new(&tokenizer, Arc::new(stops));
            [a, b, a, b, b].iter().for_each(|&token| stream.push(token).unwrap());
            stream.finish().unwrap();
            assert_eq!(stream.stop(), (stream.text() != "ababb").then_some("ab"));
            stream.text().to_owned()
        };
        assert_eq!([text(false, 0), text(true, 0)], ["", "ab"]);
        // A string that begins among the first tokens does not count.
        assert_eq!([text(false, 2), text(true, 2), text(false, 3)], ["ab", "abab", "ababb"]);
    }

    #[test]
    fn a_stop_string_that_is_a_special_token_is_a_stop_token_and_with_other_text_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
        let stops = |text: &str| Stops::new(&tokenizer, &[text.to_owned()]);
        let end = stops(bpe::END_OF_TURN).unwrap();
        assert_eq!(end.ids, [tokenizer.token_to_id(bpe::END_OF_TURN).unwrap()]);
        assert!(end.strings.is_empty());
        assert_eq!(stops("</think>").unwrap().strings, ["</think>"]);
        for text in [format!("{}\n", bpe::END_OF_TURN), String::new()] {
            assert_eq!(crate::base::error::exit_code(&stops(&text).unwrap_err()), 2, "{text:?}");
        }
    }

    #[test]
    fn any_tokens_become_the_same_text_piece_by_piece_and_at_once() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tokenizers =
            [small_tokenizer(one.path()), with_byte_fallback(other.path(), &["a", "b", "▁c", "▁"])];
        let text = "[a-c é😀]{0,12}";
        let noise = proptest::collection::vec(0u32..300, 0..12);
        proptest!(|(text in text, noise in noise, stop in "[a-c é😀]{1,3}")| {
            for tokenizer in &tokenizers {
                let ids = tokenizer.encode(&text).unwrap();
                let whole = tokenizer.decode(&ids).unwrap();
                prop_assert_eq!(&pieces(tokenizer, &Arc::default(), &ids).1, &whole);
                let stops = Arc::new(Stops::new(tokenizer, std::slice::from_ref(&stop)).unwrap());
                let until = whole.find(&stop).map_or(&*whole, |end| &whole[..end]);
                prop_assert_eq!(&pieces(tokenizer, &stops, &ids).1, until);
                // No tokens make it panic.
                let size = tokenizer.vocab_size() as u32;
                let noise: Vec<u32> = noise.iter().map(|&id| id % size).collect();
                pieces(tokenizer, &stops, &noise);
            }
        });
    }
}
