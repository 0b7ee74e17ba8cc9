//! Fills `{name}`, `{name+1}` and `{name-1}` in stories, programs and reasons.
//!
//! Templates are part of the program, so a name that nothing fills is a broken invariant.

use num_bigint::BigInt;

/// Replaces every placeholder of `template` by the value that `lookup` has for its name.
pub(crate) fn fill(template: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut text = String::with_capacity(template.len() + 16);
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let close = open + rest[open..].find('}').expect("every placeholder is closed");
        text.push_str(&rest[..open]);
        let inside = &rest[open + 1..close];
        let (name, shift) = match inside.find(['+', '-']) {
            Some(at) => inside.split_at(at),
            None => (inside, ""),
        };
        let value = lookup(name).unwrap_or_else(|| panic!("unknown placeholder {{{inside}}}"));
        if shift.is_empty() {
            text.push_str(&value);
        } else {
            let value: BigInt = value.parse().expect("only numbers are shifted");
            let shift: i64 = shift.parse().expect("a shift is a signed number");
            text.push_str(&(value + shift).to_string());
        }
        rest = &rest[close + 1..];
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_and_shifted() {
        let text = fill("{a} of {things}, {a+1} or {a-2}.", |name| match name {
            "a" => Some("7".to_owned()),
            "things" => Some("coins".to_owned()),
            _ => None,
        });
        assert_eq!(text, "7 of coins, 8 or 5.");
    }
}
