//! Next-number prediction: the first terms of a sequence are shown, the next one is the answer (paper A.1, A.6.3).
//!
//! All terms of a problem but the last are shown. The answer of a response is, after its thought, what the last
//! `\boxed{}` holds, or else the last integer. Both may have a sign and commas between thousands (`-1,234,567`;
//! in a box also `1{,}234`, spaces and `$`); a box that holds anything else is no answer. Decimal fractions and
//! digits within words are no integers. Integers of any size are compared digit by digit.

use super::grade::{FormatError, Grade};
use super::response::{answer, canonical_integer};
use super::{About, Task, problems};
use crate::base::error::usage;
use crate::data::problem::Problem;
use crate::data::prompt::Template;
use crate::tokenizer::Message;
use anyhow::{Context, Result};
use minijinja::context;
use minijinja::value::Serde;
use serde_json::value::RawValue;
use std::path::Path;

/// Fewer than three shown terms say nothing of the next one.
const FEWEST_TERMS: usize = 4;

/// Problems with terms, and the prompt that shows them.
pub struct NextNumber {
    problems: Vec<Problem>,
    prompt: Template,
}

impl NextNumber {
    /// The task with the prompt of a user's file, or else its own. A problem with too few terms, or with one
    /// that is no integer, is refused and named.
    pub fn open(problems: Vec<Problem>, prompt: Option<&Path>) -> Result<Self> {
        let prompt = open_prompt(prompt)?;
        problems::check(&problems)?;
        problems.iter().try_for_each(check_terms)?;
        Ok(Self { problems, prompt })
    }

    /// The terms that are shown, and the one that is asked for.
    fn terms(&self, problem: usize) -> (&[String], &str) {
        let (next, shown) = self.problems[problem]
            .terms
            .split_last()
            .expect("invariant: every problem has enough terms");
        (shown, next)
    }
}

/// The prompt of a user's file, or else the task's own.
pub(crate) fn open_prompt(file: Option<&Path>) -> Result<Template> {
    let bundled =
        (include_str!("../../data/prompts/next_number.txt"), "data/prompts/next_number.txt");
    let (prompt, place) = Template::open(file, bundled)?;
    if !prompt.uses("terms") {
        return Err(usage(format!(
            "{place}: the prompt template does not show {{{{ terms }}}}, without which nobody can know \
             what is asked"
        )));
    }
    Ok(prompt)
}

fn check_terms(Problem { problem_id: id, terms, .. }: &Problem) -> Result<()> {
    if terms.len() < FEWEST_TERMS {
        return Err(usage(format!(
            "problem {id:?} has {} terms: next-number needs at least {FEWEST_TERMS}",
            terms.len()
        )));
    }
    match terms.iter().find(|term| canonical_integer(term).is_none()) {
        Some(term) => Err(usage(format!("problem {id:?}: bad term {term:?}"))),
        None => Ok(()),
    }
}

impl Task for NextNumber {
    fn name(&self) -> &'static str {
        "next-number"
    }

    fn num_problems(&self) -> usize {
        self.problems.len()
    }

    fn about(&self, problem: usize) -> About<'_> {
        About::of(&self.problems[problem])
    }

    fn messages(&self, problem: usize) -> Result<Vec<Message>> {
        let (terms, _) = self.terms(problem);
        let problem = &self.problems[problem];
        let context = context! { terms => Serde(terms), problem => Serde(problem) };
        let text = self.prompt.render(context, || format!("problem {}", problem.problem_id))?;
        Ok(vec![Message::new("user", text)])
    }

    fn grade(&self, problem: usize, response: &str, _: &dyn Fn() -> bool) -> Result<Grade> {
        let (_, expected) = self.terms(problem);
        let answer = integer_answer(response);
        let answer = answer.as_deref().map_err(|&error| error);
        Ok(Grade::of_answer(answer, expected, |answer| {
            canonical_integer(expected).as_deref() == Some(answer)
        }))
    }

    fn problem_json(&self, problem: usize) -> Result<Box<RawValue>> {
        serde_json::value::to_raw_value(&self.problems[problem]).context("encoding a problem")
    }

    fn prompt_sha256(&self) -> &str {
        self.prompt.hash()
    }
}

/// The integer that a response answers with, in canonical decimal form.
fn integer_answer(response: &str) -> Result<String, FormatError> {
    let answer = answer(response).ok_or(FormatError::UnclosedThink)?;
    let found = match answer.rfind(BOX) {
        Some(start) => boxed(&answer[start + BOX.len()..]).and_then(|content| integer(&content)),
        None => last_integer(answer),
    };
    found.ok_or(FormatError::NoAnswer)
}

const BOX: &str = "\\boxed{";

/// What a box holds whose content begins `text`, without what LaTeX ignores; `None` if it does not end.
fn boxed(text: &str) -> Option<String> {
    let mut depth = 0;
    let end = text.char_indices().find_map(|(at, c)| {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
        None
    })?;
    let content = text[..end].replace("{,}", ",").replace("\\,", "").replace("\\!", "");
    Some(content.chars().filter(|c| !c.is_whitespace() && *c != '$').collect())
}

/// The integer that `text` is, with or without commas between thousands.
fn integer(text: &str) -> Option<String> {
    let text = text.replace('−', "-");
    let digits = text.trim_start_matches(['-', '+']);
    let mut groups = digits.split(',');
    let first = groups.next().unwrap_or_default();
    let is_grouped = digits.contains(',');
    if is_grouped && !((1..=3).contains(&first.len()) && groups.all(|group| group.len() == 3)) {
        return None;
    }
    canonical_integer(&text.replace(',', ""))
}

/// The last integer in `text`.
fn last_integer(text: &str) -> Option<String> {
    let chars: Vec<char> = text.chars().collect();
    let is_digit = |at: usize| chars.get(at).is_some_and(char::is_ascii_digit);
    let is_word = |at: usize| chars.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_');
    let (mut last, mut at) = (None, 0);
    while at < chars.len() {
        if !is_digit(at) {
            at += 1;
            continue;
        }
        let start = at;
        while is_digit(at) || (matches!(chars.get(at), Some('.' | ',')) && is_digit(at + 1)) {
            at += 1;
        }
        let begins_word = start > 0 && is_word(start - 1);
        if begins_word || is_word(at) {
            while is_word(at) {
                at += 1;
            }
            continue;
        }
        let number: String = chars[start..at].iter().collect();
        // A minus after a number or a word subtracts.
        let is_signed = start > 0 && matches!(chars[start - 1], '-' | '−');
        let subtracts = start > 1 && (is_word(start - 2) || chars[start - 2] == ')');
        let sign = if is_signed && !subtracts { "-" } else { "" };
        let whole = integer(&format!("{sign}{number}"));
        // Otherwise a list without spaces, of which the last counts.
        last = whole.or_else(|| integer(number.rsplit(',').next()?)).or(last);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn task(terms: &[&str]) -> Result<NextNumber> {
        let problem = json!({"problem_id": "p", "tests": [], "terms": terms});
        NextNumber::open(vec![serde_json::from_value(problem).unwrap()], None)
    }

    fn grade(next: &str, response: &str) -> Grade {
        task(&["1", "2", "4", next]).unwrap().grade(0, response, &|| false).unwrap()
    }

    #[test]
    fn all_terms_but_the_last_are_shown() {
        let messages = task(&["1", "2", "4", "-8", "123456789"]).unwrap().messages(0).unwrap();
        assert!(messages[0].content.contains("\n1, 2, 4, -8\n"), "{}", messages[0].content);
        assert!(!messages[0].content.contains("123456789"));
    }

    #[test]
    fn integers_of_any_size_are_compared_exactly() {
        let long = format!("9{}", "0".repeat(4000));
        assert!(grade(&long, &format!("\\boxed{{{long}}}")).passed());
        let other = format!("{}1", &long[..4000]);
        assert!(!grade(&long, &format!("\\boxed{{{other}}}")).passed());
        assert!(grade("-0", "0").passed());
        assert!(grade("007", "The next term is 7.").passed());
    }

    #[test]
    fn the_answer_is_the_last_box_or_else_the_last_integer_after_the_thought() {
        for (response, answer) in [
            ("It is \\boxed{8}, not 9.", Ok("8")),
            ("\\boxed{1} or rather \\boxed{ 1{,}234 }", Ok("1234")),
            ("\\boxed{$-12$}", Ok("-12")),
            ("\\boxed{−1,234,567}", Ok("-1234567")),
            ("\\boxed{x = 4}", Err(FormatError::NoAnswer)),
            ("\\boxed{12.5} 7", Err(FormatError::NoAnswer)),
            ("\\boxed{4", Err(FormatError::NoAnswer)),
            ("The answer is **16**.", Ok("16")),
            ("16 (twice 8.5)", Ok("16")),
            ("2, 4, 8, -16", Ok("-16")),
            ("2,4,8,16", Ok("16")),
            ("1,000,001 it is", Ok("1000001")),
            ("it is 17-3", Ok("3")),
            ("a_5, the 6th, x7", Err(FormatError::NoAnswer)),
            ("no idea", Err(FormatError::NoAnswer)),
            ("<think>8? 9?</think>\n10", Ok("10")),
            ("8? 9?</think>", Err(FormatError::NoAnswer)),
            ("<think>it must be \\boxed{8}", Err(FormatError::UnclosedThink)),
        ] {
            let answer = answer.map(str::to_owned);
            assert_eq!(integer_answer(response), answer, "{response}");
        }
    }

    #[test]
    fn a_wrong_answer_is_kept_with_what_was_expected() {
        let grade = grade("8", "9");
        assert_eq!(grade.failure().as_deref(), Some("wrong_answer"));
        let failure = grade.verdict.failure.unwrap();
        assert_eq!((failure.expected.as_str(), failure.got.as_str()), ("8", "9"));
    }

    #[test]
    fn a_problem_that_asks_nothing_is_named() {
        let error = |terms: &[&str]| task(terms).err().unwrap().to_string();
        assert!(error(&["1", "2", "3"]).contains("\"p\" has 3 terms"));
        assert!(error(&["1", "2", "x", "4"]).contains("bad term \"x\""));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_error(text in "\\PC{0,80}") {
            let _ = integer_answer(&text);
            let _ = integer_answer(&format!("\\boxed{{{text}"));
        }

        #[test]
        fn a_written_integer_comes_back(value: i128, before in "[a-z ]{0,9}") {
            let answer = Ok(value.to_string());
            proptest::prop_assert_eq!(&integer_answer(&format!("{before}: {value}.")), &answer);
            proptest::prop_assert_eq!(&integer_answer(&format!("{before}\\boxed{{{value}}}")), &answer);
        }
    }
}
