//! What a program printed beside what it should have, by the rule of LiveCodeBench's authors: lines are compared
//! without white space around them; a line is right if its text is, or if all its tokens are equal decimal numbers.

use super::Ran;
use crate::sandbox::{Case, CaseVerdict, Ending, Failure, Reason, Verdict, VerdictKind};

/// The verdict on a program that ran on the first of these cases, or on all.
pub(crate) fn verdict(ran: Ran, cases: &[Case]) -> Verdict {
    let ended_well = ran.cases.iter().all(|case| case.ending == Ending::Finished);
    if !ended_well || ran.cases.is_empty() {
        return ran.verdict(None);
    }
    let is_right = |(ran, case): (&crate::sandbox::CaseOutcome, &Case)| {
        std::str::from_utf8(&ran.output).is_ok_and(|got| same(&case.output, got))
    };
    let right: Vec<bool> = ran.cases.iter().zip(cases).map(is_right).collect();
    let Some(wrong) = right.iter().position(|is_right| !is_right) else {
        return ran.verdict(Some((VerdictKind::Pass, String::new())));
    };
    let kind = |is_right: &bool| match is_right {
        true => VerdictKind::Pass,
        false => VerdictKind::Fail(Reason::WrongAnswer),
    };
    let shown = |text: &str| text.chars().take(super::SHOWN_CHARS).collect::<String>();
    let failure = Failure {
        case: wrong,
        input: shown(&cases[wrong].input),
        expected: shown(&cases[wrong].output),
        got: shown(&String::from_utf8_lossy(&ran.cases[wrong].output)),
        line: None,
        error: None,
    };
    let cases = ran.cases.iter().zip(&right).map(|(case, is_right)| CaseVerdict {
        input: String::new(),
        kind: kind(is_right),
        output: None,
        cpu_ms: case.cpu_ms,
    });
    Verdict {
        kind: kind(&false),
        cases: cases.collect(),
        cpu_ms: ran.cpu_ms,
        failure: Some(failure),
        near_limit: ran.near_limit,
    }
}

fn same(expected: &str, got: &str) -> bool {
    let lines = |text: &str| -> Vec<String> {
        text.trim().split('\n').map(|line| line.trim().to_owned()).collect()
    };
    let (expected, got) = (lines(expected), lines(got));
    expected.len() == got.len() && expected.iter().zip(&got).all(|(e, g)| e == g || decimals(e, g))
}

fn decimals(expected: &str, got: &str) -> bool {
    let numbers = |line: &str| line.split_whitespace().map(decimal).collect::<Option<Vec<_>>>();
    numbers(expected).is_some_and(|expected| numbers(got) == Some(expected))
}

/// Sign, digits without zeros at either end, and the exponent of the last digit.
fn decimal(token: &str) -> Option<(bool, String, i64)> {
    let (is_negative, rest) = match token.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, token.strip_prefix('+').unwrap_or(token)),
    };
    let (number, exponent) = match rest.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
        None => (rest, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some((false, String::new(), 0));
    }
    let last =
        i64::from(exponent) - fraction.len() as i64 + (digits.len() - significant.len()) as i64;
    Some((is_negative, significant.to_owned(), last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_equal_as_text_or_as_decimal_numbers() {
        for (expected, got) in [
            ("3\n", "3"),
            ("1 2\n3", " 1 2 \n3\n\n"),
            ("0.50", "5e-1"),
            ("1 -0", "1.0 0"),
            ("100", "1E2"),
            ("YES", "YES"),
        ] {
            assert!(same(expected, got), "{expected:?} {got:?}");
        }
        for (expected, got) in [
            ("3", ""),
            ("1 2", "1\n2"),
            ("YES", "yes"),
            ("0.5", "0.51"),
            ("1 2", "2 1"),
            ("1 x", "1.0 x"),
        ] {
            assert!(!same(expected, got), "{expected:?} {got:?}");
        }
    }
}
