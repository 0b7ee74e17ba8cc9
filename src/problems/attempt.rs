//! Plausible wrong programs: one place edited, and one short sentence that names the mistake.
//!
//! A family's own slips come first, then slips that any program invites: a number misread, two
//! numbers swapped, a loop one step too long, an operator mistaken, the input shifted. Whether an
//! attempt really fails is for the judge to say.

use super::family::{Numbers, Pattern};

/// A wrong program and the sentence that explains it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub code: String,
    /// A sentence that names the mistake.
    pub reason: String,
}

/// Edits that apply wherever their text occurs in a program.
const COMMON: [(&str, &str, &str); 13] = [
    ("range(n)", "range(n + 1)", "The loop ran once too often."),
    ("range(n)", "range(n - 1)", "The loop ended one step too early."),
    ("range(n - 1)", "range(n)", "The loop ran once too often."),
    ("range(n - 1)", "range(n - 2)", "The loop ended one step too early."),
    ("range(1, n + 1)", "range(1, n)", "The last number n was left out."),
    ("range(1, n + 1)", "range(1, n + 2)", "The loop ran past n."),
    ("range(n + 1)", "range(n)", "The last number n was left out."),
    ("(n - 1)", "n", "There are n - 1 steps, not n."),
    ("(n + 1)", "n", "It is n + 1 here, not n."),
    (" or ", " and ", "One of the two conditions is enough."),
    (" and ", " or ", "Both conditions must hold."),
    (" == 0", " != 0", "The condition is the wrong way round."),
    (" ** ", " * ", "A power is needed, not a product."),
];

/// Lists the wrong programs of `pattern`. No two are equal, and none equals the solution.
pub fn attempts(pattern: &Pattern) -> Vec<Attempt> {
    let solution = pattern.family.solution(pattern.numbers);
    let mut found: Vec<Attempt> = Vec::new();
    let mut add = |code: String, reason: String| {
        if code != solution && found.iter().all(|a| a.code != code) {
            found.push(Attempt { code, reason });
        }
    };
    for slip in &pattern.family.slips {
        let code = pattern
            .family
            .program(pattern.numbers, |body| body.replacen(slip.find, slip.replace, 1));
        add(code, pattern.fill(slip.reason, |_| None));
    }
    for (find, replace, reason) in COMMON {
        if let Some(code) = edit_first(&solution, find, replace, |_| true) {
            add(code, reason.to_owned());
        }
    }
    for (code, reason) in operators(&solution) {
        add(code, reason);
    }
    for (numbers, reason) in misread(pattern) {
        add(pattern.family.solution(numbers), reason);
    }
    for shift in ["- 1", "+ 1"] {
        let code = solution.replacen("int(input())", &format!("int(input()) {shift}"), 1);
        add(code, "The input must be used as it is.".to_owned());
    }
    found
}

/// Replaces the first `find` after the line that reads `n` whose place is `allowed`. A program
/// that searches with `while` is left alone there, lest it searches forever.
fn edit_first(
    code: &str,
    find: &str,
    replace: &str,
    allowed: impl Fn(usize) -> bool,
) -> Option<String> {
    let searches = code.contains("while ");
    let body = code.find("n = int(input())\n").expect("every program reads n") + 17;
    let at = code.match_indices(find).map(|(at, _)| at).find(|&at| {
        let line = &code[code[..at].rfind('\n').map_or(0, |i| i + 1)..];
        let in_search = searches && (line.starts_with("while ") || line.starts_with(' '));
        at >= body && !in_search && allowed(at)
    })?;
    Some(format!("{}{replace}{}", &code[..at], &code[at + find.len()..]))
}

/// Slips with numbers: one is off by one, or two are swapped.
fn misread(pattern: &Pattern) -> Vec<(Numbers, String)> {
    let values = pattern.values();
    let roles: Vec<&str> = pattern.family.numbers.iter().map(|open| open.role).collect();
    let mut slips = Vec::new();
    for i in 0..values.len() {
        for j in i + 1..values.len() {
            if values[i] != values[j] {
                let swapped = pattern.numbers.replaced(i, values[j]).replaced(j, values[i]);
                slips.push((swapped, format!("{} and {} were swapped.", values[i], values[j])));
            }
        }
    }
    for (i, &value) in values.iter().enumerate() {
        for wrong in [value + 1, value - 1] {
            if wrong > 1 {
                let reason = format!("The {} is {value}, not {wrong}.", roles[i]);
                slips.push((pattern.numbers.replaced(i, wrong), reason));
            }
        }
    }
    slips.retain(|(numbers, _)| pattern.family.keeps(*numbers));
    slips
}

/// Slips with operators: each replaces its first occurrence outside of a `range(...)`.
fn operators(code: &str) -> Vec<(String, String)> {
    let edits = [
        (" + ", " - ", "It must be added, not subtracted."),
        (" - ", " + ", "It must be subtracted, not added."),
        (" * ", " + ", "It must be multiplied, not added."),
    ];
    let mut slips = Vec::new();
    for (find, replace, reason) in edits {
        if let Some(edited) = edit_first(code, find, replace, |at| !inside_range(code, at)) {
            slips.push((edited, reason.to_owned()));
        }
    }
    slips
}

fn inside_range(code: &str, at: usize) -> bool {
    let line = code[..at].rfind('\n').map_or(0, |i| i + 1);
    match code[line..at].rfind("range(") {
        Some(open) => {
            let between = &code[line + open..at];
            between.matches('(').count() > between.matches(')').count()
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problems::families;

    #[test]
    fn attempts_edit_one_place_and_say_why() {
        let families = families::all();
        let family = families.iter().find(|f| f.name == "linear_after").unwrap();
        let numbers = Numbers { a: 5, b: 3, ..Numbers::default() };
        let attempts = attempts(&Pattern::new(family, numbers));
        let reason = |code: &str| {
            let code = format!("n = int(input())\n{code}");
            attempts.iter().find(|a| a.code == code).map(|a| a.reason.as_str())
        };
        assert_eq!(reason("print(3 * n)"), Some("The 5 at the start were left out."));
        assert_eq!(reason("print(3 + 5 * n)"), Some("5 and 3 were swapped."));
        assert_eq!(reason("print(5 + 4 * n)"), Some("The step is 3, not 4."));
        assert_eq!(reason("print(5 + 3 * n)"), None, "the solution is no attempt");
    }

    #[test]
    fn operators_inside_a_range_are_left_alone() {
        let code = "n = int(input())\nprint(sum(i for i in range(1, n + 1)) + 2)";
        let edited = operators(code);
        assert_eq!(edited[0].0, "n = int(input())\nprint(sum(i for i in range(1, n + 1)) - 2)");
    }
}
