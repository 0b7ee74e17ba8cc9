//! Finds the answer in the text after a thought: the letter of a choice, what follows a phrase.
//!
//! All of it is pure and knows no benchmark. Rules that stand for another harness say so.

/// The text after the last `phrase`, without regard to case; none where it does not occur. `phrase` is lower case.
pub(crate) fn after_last<'a>(text: &'a str, phrase: &str) -> Option<&'a str> {
    let at = find_all(text, phrase).last()?;
    Some(&text[at + phrase.len()..])
}

/// Where a phrase of lower-case ASCII letters occurs, without regard to case.
fn find_all<'a>(text: &'a str, phrase: &'a str) -> impl Iterator<Item = usize> + use<'a> {
    let (text, phrase) = (text.as_bytes(), phrase.as_bytes());
    (0..(text.len() + 1).saturating_sub(phrase.len()))
        .filter(move |&at| text[at..at + phrase.len()].eq_ignore_ascii_case(phrase))
}

/// The letter that an answer's text begins with, past white space, emphasis, brackets, quotes and a colon: `B`,
/// `**(B)**`, `: B.`, `\boxed{B}`. A letter within a word (`Because`) is none.
pub(crate) fn leading_letter(text: &str, letters: &str) -> Option<char> {
    let mut text = text.trim_start();
    loop {
        let rest =
            text.trim_start_matches(|c: char| c.is_whitespace() || "*_([{\"'`:：$".contains(c));
        let rest = ["\\boxed", "\\text", "\\textbf", "\\mathrm", "\\mathbf"]
            .iter()
            .find_map(|command| rest.strip_prefix(command))
            .unwrap_or(rest);
        if rest.len() == text.len() {
            break;
        }
        text = rest;
    }
    let mut chars = text.chars();
    let letter = chars.next().filter(|c| letters.contains(*c))?;
    let ends = chars.next().is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == '\''));
    ends.then_some(letter)
}

/// The letter of our multiple-choice prompts: what follows the last "answer:" or "answer is" that a letter
/// follows, or else the last box, or else a text that is nothing but a letter.
pub(crate) fn choice(text: &str, letters: &str) -> Option<char> {
    let after = |phrase: &str| {
        let places = find_all(text, phrase).collect::<Vec<_>>().into_iter().rev();
        let mut found = places.filter_map(|at| {
            let rest = &text[at + phrase.len()..];
            leading_letter(rest, letters).map(|letter| (at, letter))
        });
        found.next()
    };
    let said = ["answer is", "answer:", "answer**:", "answer：", "\\boxed{"].into_iter();
    let last = said.clone().take(4).filter_map(after).max_by_key(|(at, _)| *at);
    last.or_else(|| after("\\boxed{")).map(|(_, letter)| letter).or_else(|| {
        let rest = leading_letter(text, letters)?;
        let letters_in = text.chars().filter(|c| c.is_alphanumeric()).count();
        (letters_in == 1).then_some(rest)
    })
}

/// What `(?i)ANSWER\s*:\s*([A-D])` finds first (OpenCompass, MMLU b618ea).
pub(crate) fn first_answer_letter(text: &str) -> Option<char> {
    find_all(text, "answer").find_map(|at| {
        let rest = text[at + "answer".len()..].trim_start().strip_prefix(':')?;
        let letter = rest.trim_start().chars().next()?.to_ascii_uppercase();
        ('A'..='D').contains(&letter).then_some(letter)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_found_in_the_forms_that_models_write() {
        for text in [
            "ANSWER: B",
            "The answer is (B).",
            "I think A is tempting.\n\n**Answer: B**",
            "**Answer:** B",
            "**Answer**: (B) four",
            "answer: A\nNo, wait.\nAnswer: B",
            "so it is \\boxed{B}",
            "The answer is $\\boxed{\\text{B}}$",
            "答 answer：B",
            "B",
            " (B).\n",
            "The correct answer is: B. Because it is 4.",
        ] {
            assert_eq!(choice(text, "ABCD"), Some('B'), "{text}");
        }
        for text in
            ["", "Because", "answer: Because of B", "A or B", "answer: E", "the answer is unknown"]
        {
            assert_eq!(choice(text, "ABCD"), None, "{text}");
        }
        assert_eq!(choice("Answer: B\nThe answer is not clear", "ABCD"), Some('B'));
    }

    #[test]
    fn opencompass_takes_the_first_letter_after_answer_even_of_a_word() {
        assert_eq!(first_answer_letter("ANSWER: c"), Some('C'));
        assert_eq!(first_answer_letter("answer :\n B, answer: A"), Some('B'));
        assert_eq!(first_answer_letter("Answer: $B"), None);
        assert_eq!(first_answer_letter("answer: because"), Some('B'));
        assert_eq!(first_answer_letter("the answer is B"), None);
    }

    #[test]
    fn what_follows_the_last_phrase_is_found_in_any_case() {
        assert_eq!(after_last("The Answer is 3. the answer is 4.", "answer is "), Some("4."));
        assert_eq!(after_last("nothing", "answer is "), None);
        assert_eq!(after_last("answer i", "answer is "), None);
    }
}
