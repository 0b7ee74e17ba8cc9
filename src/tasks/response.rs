//! Reads a response: its thought, its program, the cases that it made itself.
//!
//! A thought lies between `<think>` and `</think>`, or `[THINK]` and `[/THINK]`; the answer is what follows. A
//! prompt may open the thought in the model's place: then `<think>` is put before the response
//! ([`with_opened_thought`]), and one rule holds for all: a thought that does not end leaves no answer.
//!
//! The program is the last python block (`python_block`) of the answer. The chain of thought is all
//! that precedes it. A self-made case is a line of the chain of thought
//!
//! ```text
//! [bullet] case [number]: INPUT SEPARATOR VALUE [anything]
//! ```
//!
//! `case` in any letter case; bullets `-`, `*`, `+`, `•`, `1.`, `1)`; separators `->`, `=>`, `→`, or
//! else the last `=`, or else the last `:`. INPUT holds exactly one integer (`3`, `n = 3`, `f(3)`)
//! and VALUE begins with one. Any text is read without error: what does not fit is no case.

use super::grade::FormatError;
use super::python_block::{PythonBlock, last_python_block};
use crate::tokenizer::{THOUGHT_CLOSES, THOUGHT_OPENS};
use std::borrow::Cow;
use std::collections::HashSet;

/// Whether a prompt, as the model reads it, ends with the beginning of a thought.
pub fn opens_thought(prompt: &str) -> bool {
    THOUGHT_OPENS.iter().any(|open| prompt.trim_end().ends_with(open))
}

/// A response as it is graded: with the beginning of its thought, where the prompt has that.
pub fn with_opened_thought(response: &str, is_opened: bool) -> Cow<'_, str> {
    match is_opened {
        true => Cow::Owned(format!("{}\n{response}", THOUGHT_OPENS[0])),
        false => Cow::Borrowed(response),
    }
}

/// What follows the thought, all of a response without one; `None` if the thought does not end.
pub(crate) fn answer(response: &str) -> Option<&str> {
    let first = |text: &str, marks: &[&str]| marks.iter().filter_map(|mark| text.find(mark)).min();
    let close = |text: &str| first(text, &THOUGHT_CLOSES);
    let start = match first(response, &THOUGHT_OPENS) {
        Some(open) => close(&response[open..]).map(|close| open + close),
        None => Some(close(response).unwrap_or(0)),
    };
    start.map(|start| &response[start..])
}

/// The answer without the mark that ends the thought; `None` if the thought does not end.
pub(crate) fn final_answer(response: &str) -> Option<&str> {
    let answer = answer(response)?;
    Some(THOUGHT_CLOSES.iter().find_map(|close| answer.strip_prefix(close)).unwrap_or(answer))
}

/// The program of a response.
pub fn program(response: &str) -> Result<String, FormatError> {
    read(response).program
}

/// A response with a program, in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProgramResponse {
    pub(crate) program: Result<String, FormatError>,
    /// Distinct self-made cases (input, value), in order, as canonical decimal integers.
    pub(crate) cases: Vec<(String, String)>,
}

/// Reads a response that holds a program.
pub(crate) fn read(response: &str) -> ProgramResponse {
    let answer = answer(response);
    let block = answer.and_then(last_python_block);
    let thought = match (answer, &block) {
        (Some(answer), Some(block)) => &response[..response.len() - answer.len() + block.start],
        _ => response,
    };
    let mut seen = HashSet::new();
    let cases = thought.lines().filter_map(case).filter(|case| seen.insert(case.clone())).collect();
    let program = match (answer, block) {
        (None, _) => Err(FormatError::UnclosedThink),
        (_, None) => Err(FormatError::NoCode),
        (_, Some(PythonBlock { code: None, .. })) => Err(FormatError::UnclosedCode),
        (_, Some(PythonBlock { code: Some(code), .. })) if code.trim().is_empty() => {
            Err(FormatError::EmptyCode)
        }
        (_, Some(PythonBlock { code: Some(code), .. })) => Ok(code),
    };
    ProgramResponse { program, cases }
}

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// The case that a line states, if it states one.
fn case(line: &str) -> Option<(String, String)> {
    let line = without_bullet(line.trim());
    if !starts_with_ignoring_case(line, "case") {
        return None;
    }
    let (number, pair) = line["case".len()..].split_once(':')?;
    let is_label = |c: char| c.is_ascii_digit() || "# *".contains(c);
    if !number.chars().all(is_label) {
        return None;
    }
    let (input, value) = ["->", "=>", "→"]
        .iter()
        .filter_map(|arrow| pair.split_once(arrow))
        .min_by_key(|(input, _)| input.len())
        .or_else(|| pair.rsplit_once('='))
        .or_else(|| pair.rsplit_once(':'))?;
    Some((only_integer(input)?, leading_integer(value)?))
}

fn without_bullet(line: &str) -> &str {
    let digits = line.len() - line.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let rest = match line[digits..].strip_prefix(['.', ')']) {
        Some(rest) if digits > 0 => rest,
        _ => line.trim_start_matches(['-', '*', '+', '•']),
    };
    rest.trim_start_matches([' ', '\t', '*', '`'])
}

/// The integer in `text` if there is exactly one.
fn only_integer(text: &str) -> Option<String> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let start = start - usize::from(text[..start].ends_with(['-', '+']));
    let integer = leading_integer(&text[start..])?;
    let after = text[start..].trim_start_matches(['-', '+']);
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
    (!after.contains(|c: char| c.is_ascii_digit())).then_some(integer)
}

/// The integer that `text` begins with, in canonical decimal form; not the start of a word or a fraction.
fn leading_integer(text: &str) -> Option<String> {
    let text = text.trim_start_matches([' ', '\t', '`', '"', '\'', '*', '(']);
    let (sign, digits) = match text.strip_prefix(['-', '−']) {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let length = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(length);
    let mut after = rest.chars();
    let ends = match after.next() {
        Some('.' | ',') => !after.next().is_some_and(|c| c.is_ascii_digit()),
        Some(c) => !c.is_alphanumeric() && c != '_',
        None => true,
    };
    (ends && !digits.is_empty()).then(|| canonical(sign, digits))
}

fn canonical(sign: &str, digits: &str) -> String {
    match digits.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => format!("{sign}{digits}"),
    }
}

/// A decimal integer without superfluous signs and zeros; `None` if `text` is anything else.
pub(crate) fn canonical_integer(text: &str) -> Option<String> {
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let decimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    decimal.then(|| canonical(sign, digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RESPONSE: &str = "<think>\ncase: 3 -> 11\ncase: 4 -> 15\nattempt:\nn = int(input())\n\
        print(4 * n)\nfails: 5 -> 20, expected 19. Off by one.\ncase: 3 -> 11\nattempt:\n\
        n = int(input())\nprint(4 * n - 1)\n</think>\n```python\nn = int(input())\n\
        print(4 * n - 1)\n```\n";

    fn pairs(cases: &[(&str, &str)]) -> Vec<(String, String)> {
        cases.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_response_is_read_in_all_its_parts() {
        let read = read(RESPONSE);
        assert_eq!(read.program.as_deref(), Ok("n = int(input())\nprint(4 * n - 1)"));
        assert_eq!(read.cases, pairs(&[("3", "11"), ("4", "15")]));
    }

    #[test]
    fn cases_are_read_in_many_spellings() {
        for line in [
            "case: 3 -> 11",
            "  - Case 1: 3 => 11.",
            "2) CASE #2: n = 3 → 11 (by the rule)",
            "* **case:** `3` -> `11`",
            "• case: f(3) = 11",
            "1. case: 3: 11, as 4 * 3 - 1",
            "case: n = 3 = 011",
            "case: +3->+11",
        ] {
            assert_eq!(case(line), Some(("3".to_owned(), "11".to_owned())), "{line}");
        }
        let long = "9".repeat(400);
        assert_eq!(case(&format!("case: -0 -> -{long}")), Some(("0".into(), format!("-{long}"))));
    }

    #[test]
    fn what_states_no_pair_of_integers_is_no_case() {
        for line in [
            "case: 3 -> eleven",
            "case: 3, 4 -> 11",
            "case: 3 -> 11.5",
            "case: 3 -> 1,100",
            "case: 3 -> 2n",
            "case: x -> 11",
            "case 3 -> 11",
            "in this case: 3 -> 11",
            "cases made: 3 -> 11",
            "case: 3",
            "case:",
        ] {
            assert_eq!(case(line), None, "{line}");
        }
    }

    #[test]
    fn the_format_needs_a_closed_think_part_and_a_closed_block_with_code_after_it() {
        let error = |text: &str| program(text).err();
        assert_eq!(error("```python\nprint(1)\n```"), None);
        assert_eq!(error("a</think>```python\n```python\nprint(1)\n``` "), None);
        assert_eq!(error("<think>```python\nprint(1)\n```"), Some(FormatError::UnclosedThink));
        assert_eq!(error("<think>```python\n1\n```</think>"), Some(FormatError::NoCode));
        assert_eq!(error("[THINK]```python\nprint(1)\n```"), Some(FormatError::UnclosedThink));
        assert_eq!(error("[THINK]x[/THINK]\n```python\nprint(1)\n```"), None);
        assert_eq!(error("```\nprint(1)\n```"), Some(FormatError::NoCode));
        assert_eq!(error("```python\nprint(1)\n"), Some(FormatError::UnclosedCode));
        assert_eq!(
            error("```python\n1\n```\n```python\nprint(1)"),
            Some(FormatError::UnclosedCode)
        );
        assert_eq!(error("```python\n \n```"), Some(FormatError::EmptyCode));
        assert_eq!(error(""), Some(FormatError::NoCode));
    }

    #[test]
    fn a_thought_that_the_prompt_opened_has_to_end_before_the_program() {
        assert!(opens_thought("<|Assistant|><think>\n"));
        assert!(!opens_thought("<|Assistant|><think>\n\n</think>\n\n"));
        assert!(opens_thought("[INST]q[/INST][THINK]"));
        assert!(!opens_thought("Think inside <think> and </think>."));
        let block = "```python\nprint(1)\n```";
        let read = |response: &str| program(&with_opened_thought(response, true));
        assert_eq!(read(&format!("try\n{block}")), Err(FormatError::UnclosedThink));
        assert_eq!(read(&format!("try</think>\n{block}")).as_deref(), Ok("print(1)"));
        assert_eq!(read(&format!("<think>try</think>\n{block}")).as_deref(), Ok("print(1)"));
    }

    #[test]
    fn the_last_block_is_the_program_and_what_precedes_it_is_thought() {
        let read = read(
            "case: 1 -> 2\n```python\nfirst\n```\ncase: 2 -> 4\n```Python\nlast\n```\ncase: 3 -> 6",
        );
        assert_eq!(read.program.as_deref(), Ok("last"));
        assert_eq!(read.cases, pairs(&[("1", "2"), ("2", "4")]));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_error(text in any::<String>()) {
            read(&text);
        }

        #[test]
        fn any_mixture_of_the_grammars_parts_is_read_without_error(
            parts in proptest::collection::vec(prop_oneof![
                Just("<think>"), Just("</think>"), Just("\n"), Just("```python\n"), Just("```"),
                Just("\n```\n"), Just("case"), Just(":"), Just("->"), Just("→"), Just("="),
                Just("-"), Just("−"), Just("3"), Just("007"), Just("."), Just(","), Just("fails:"),
                Just("é"), Just(" "), Just("1)"), Just("•"),
            ], 0..60),
        ) {
            let read = read(&parts.concat());
            prop_assert!(read.program.is_err() || !read.program.unwrap().trim().is_empty());
            let distinct: HashSet<_> = read.cases.iter().collect();
            prop_assert_eq!(distinct.len(), read.cases.len());
            for (input, value) in &read.cases {
                let again = canonical_integer(input);
                prop_assert_eq!(again.as_ref(), Some(input));
                let again = canonical_integer(value);
                prop_assert_eq!(again.as_ref(), Some(value));
            }
        }

        #[test]
        fn a_written_case_comes_back(n: i64, value: i128) {
            let expected = Some((n.to_string(), value.to_string()));
            prop_assert_eq!(case(&format!("case: {n} -> {value}")), expected);
        }
    }
}
