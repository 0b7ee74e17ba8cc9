//! The bytes of a single token.
//!
//! Contract: the bytes of tokens, one after the other, are those of their text, also where a character is
//! split between tokens. Special tokens have the bytes of their names.

use super::Tokenizer;
use tokenizers::DecoderWrapper;

impl Tokenizer {
    /// The bytes of a token; none for an id that no token has.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        if self.inner.get_added_tokens_decoder().contains_key(&id) {
            return token.into_bytes();
        }
        if self.inner.get_decoder().is_some_and(is_byte_level) {
            let byte =
                |c| byte_of(c).map_or_else(|| String::from(c).into_bytes(), |byte| vec![byte]);
            return token.chars().flat_map(byte).collect();
        }
        let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => vec![byte],
            None => token.replace('\u{2581}', " ").into_bytes(),
        }
    }
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(all) => all.get_decoders().iter().any(is_byte_level),
        _ => false,
    }
}

/// The byte that a character of a byte-level token stands for. GPT-2 writes printable bytes as they are,
/// and the others, in order, as the characters from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let is_printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u8::try_from(c) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => (0..=u8::MAX)
            .filter(|&byte| !is_printable(byte))
            .nth((u32::from(c) as usize).checked_sub(0x100)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::test_support::small_tokenizer;

    #[test]
    fn the_bytes_of_tokens_make_their_text() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
        let text = "a b\n\tß😀 <|im_end|>\u{7f}\u{ad}";
        let ids = tokenizer.encode(text).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
        assert!(tokenizer.token_bytes(u32::MAX).is_empty());
    }

    #[test]
    fn every_byte_has_a_character() {
        let byte_of_space = byte_of('\u{120}');
        assert_eq!(
            (byte_of_space, byte_of('!'), byte_of('\u{144}')),
            (Some(b' '), Some(b'!'), None)
        );
        let mut bytes: Vec<u8> = ('\0'..'\u{200}').filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert!(bytes.into_iter().eq(0..=u8::MAX));
    }
}
