//! Compares outputs exactly: line by line, token by token, integers of any size by value. White space is
//! that of ASCII; any other is part of a token.

/// Returns whether `got` is the expected output.
///
/// White space around lines and between tokens does not count, nor do blank lines at the start and the end.
/// Two tokens that are integers are equal if their values are (`+7`, `007`, `-0`). Other tokens must be the
/// same text, unless `tolerance` is given and both are numbers, not both integers, that differ by at most
/// that much, absolutely or relative to the expected one.
pub fn same_output(expected: &str, got: &[u8], tolerance: Option<f64>) -> bool {
    let Ok(got) = std::str::from_utf8(got) else { return false };
    let (expected, got) = (expected.trim_ascii(), got.trim_ascii());
    expected.lines().count() == got.lines().count()
        && expected.lines().zip(got.lines()).all(|(e, g)| same_line(e, g, tolerance))
}

fn same_line(expected: &str, got: &str, tolerance: Option<f64>) -> bool {
    let (mut expected, mut got) = (expected.split_ascii_whitespace(), got.split_ascii_whitespace());
    loop {
        match (expected.next(), got.next()) {
            (None, None) => return true,
            (Some(e), Some(g)) if same_token(e, g, tolerance) => {}
            _ => return false,
        }
    }
}

fn same_token(expected: &str, got: &str, tolerance: Option<f64>) -> bool {
    if expected == got {
        return true;
    }
    if let (Some(e), Some(g)) = (integer(expected), integer(got)) {
        return e == g;
    }
    let Some(tolerance) = tolerance else { return false };
    let (expected, got) = without_brackets(expected, got);
    match (expected.parse::<f64>(), got.parse::<f64>()) {
        (Ok(e), Ok(g)) if e.is_finite() && g.is_finite() => {
            (e - g).abs() <= tolerance * e.abs().max(1.0)
        }
        _ => false,
    }
}

/// Removes from two tokens the brackets and commas of a printed list that both have at the same end.
fn without_brackets<'t>(mut a: &'t str, mut b: &'t str) -> (&'t str, &'t str) {
    for mark in ['[', '('] {
        while let (Some(rest), Some(other)) = (a.strip_prefix(mark), b.strip_prefix(mark)) {
            (a, b) = (rest, other);
        }
    }
    for mark in [',', ']', ')'] {
        while let (Some(rest), Some(other)) = (a.strip_suffix(mark), b.strip_suffix(mark)) {
            (a, b) = (rest, other);
        }
    }
    (a, b)
}

/// Returns the sign and the digits without leading zeros; zero has no sign.
fn integer(token: &str) -> Option<(bool, &str)> {
    let (negative, digits) = match token.as_bytes().first()? {
        b'-' => (true, &token[1..]),
        b'+' => (false, &token[1..]),
        _ => (false, token),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    Some((negative && !digits.is_empty(), digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigInt;
    use proptest::prelude::*;

    fn same(expected: &str, got: &str) -> bool {
        same_output(expected, got.as_bytes(), None)
    }

    #[test]
    fn integers_are_equal_by_value_in_any_spelling() {
        assert!(same("7", "+007\n"));
        assert!(same("-7", "  -7  \n\n"));
        assert!(same("0", "-0"));
        assert!(!same("7", "-7"));
        assert!(!same("7", "7.0"));
        assert!(!same("1000", "1_000"));
        assert!(!same("7", "7 7"));
        assert!(!same("7", ""));
        assert!(!same("1", "\u{0661}"));
    }

    #[test]
    fn lines_and_their_tokens_must_match() {
        assert!(same("1 2\n3", "1  2 \r\n 3\n"));
        assert!(!same("1 2\n3", "1\n2 3"));
        assert!(same("yes", "yes"));
        assert!(!same("yes", "Yes"));
        assert!(same("1 2", "1\t2\r\n"));
        for other_space in ["1\u{a0}2", "1\u{2028}2", "1 2\u{3000}", "1\u{85}2"] {
            assert!(!same("1 2", other_space), "{other_space:?}");
        }
    }

    #[test]
    fn only_a_declared_tolerance_makes_numbers_close() {
        assert!(!same("0.5", "0.50"));
        assert!(same_output("0.5", b"0.50", Some(0.0)));
        assert!(same_output("0.333333", b"0.33333333", Some(1e-6)));
        assert!(!same_output("0.333333", b"0.34", Some(1e-6)));
        assert!(!same_output("1", b"nan", Some(1.0)));
        assert!(!same_output("1e400", b"inf", Some(1.0)));
        assert!(same_output("2", b"2.0", Some(0.0)));
        assert!(same_output("[0.333333, (1)]", b"[0.33333333, (1)]", Some(1e-6)));
        assert!(!same_output("[0.333333, 1.0]", b"[0.33333333 1.0]", Some(1e-6)));
        assert!(!same_output("[1]", b"1", Some(1e-6)));
        assert!(!same_output("123456789012", b"123456789013", Some(1e-3)), "integers are exact");
    }

    #[test]
    fn output_that_is_no_text_is_wrong() {
        assert!(!same_output("1", &[0xff], None));
    }

    proptest! {
        #[test]
        fn equality_agrees_with_big_integers(
            a in "-?[0-9]{1,60}", zeros in 0usize..5, flip in any::<bool>(), at in any::<prop::sample::Index>()
        ) {
            let (sign, digits) = match a.strip_prefix('-') { Some(d) => ("-", d), None => ("", &a[..]) };
            let mut other = format!("{sign}{}{digits}", "0".repeat(zeros));
            if flip {
                let start = other.len() - digits.len();
                let i = start + at.index(digits.len());
                let digit = (other.as_bytes()[i] - b'0' + 1) % 10 + b'0';
                other.replace_range(i..=i, std::str::from_utf8(&[digit]).unwrap());
            }
            let equal = a.parse::<BigInt>().unwrap() == other.parse::<BigInt>().unwrap();
            prop_assert_eq!(same(&a, &other), equal);
        }

        #[test]
        fn any_output_is_compared_without_a_panic(e in "(?s).{0,60}", g in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = same_output(&e, &g, Some(0.1));
            prop_assert!(same_output(&e, e.as_bytes(), None));
        }
    }
}
