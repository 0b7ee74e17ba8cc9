//! Finds the code in a response.

/// The content of the last ```` ```python ```` block, or nothing when there is none, when it is
/// not closed, or when it is blank. Fences stand on lines of their own.
pub fn extract_code(response: &str) -> Option<String> {
    let mut last = None;
    let mut open: Option<(bool, Vec<&str>)> = None;
    for line in response.lines() {
        let trimmed = line.trim();
        match &mut open {
            None => {
                if let Some(info) = trimmed.strip_prefix("```") {
                    open = Some((is_python(info), Vec::new()));
                    if is_python(info) {
                        last = None;
                    }
                }
            }
            Some((python, body)) => {
                if trimmed == "```" {
                    if *python {
                        last = Some(body.join("\n"));
                    }
                    open = None;
                } else if trimmed.strip_prefix("```").is_some_and(is_python) {
                    // An earlier fence was left open: the block starts here.
                    open = Some((true, Vec::new()));
                    last = None;
                } else {
                    body.push(line);
                }
            }
        }
    }
    last.filter(|code| !code.trim().is_empty())
}

fn is_python(info: &str) -> bool {
    let language = info.trim().to_ascii_lowercase();
    matches!(language.as_str(), "python" | "python3" | "py")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_python_block_counts() {
        let response =
            "a\n```python\nprint(1)\n```\nb\n```python\nn = int(input())\nprint(n)\n```\nc";
        assert_eq!(extract_code(response).unwrap(), "n = int(input())\nprint(n)");
    }

    #[test]
    fn a_block_that_is_open_blank_or_of_another_language_is_no_code() {
        assert_eq!(extract_code("```python\nprint(1)\n```\n```python\nprint(2)"), None);
        assert_eq!(extract_code("```python\n \n```"), None);
        assert_eq!(extract_code("```text\nprint(1)\n```"), None);
        assert_eq!(extract_code("print(1)"), None);
        assert_eq!(extract_code(""), None);
    }

    #[test]
    fn a_fence_left_open_before_does_not_hide_the_last_block() {
        let response = "```\nnotes\n```python\nprint(1)\n```";
        assert_eq!(extract_code(response).unwrap(), "print(1)");
    }

    #[test]
    fn carriage_returns_and_language_spellings_are_accepted() {
        assert_eq!(extract_code("```Python3\r\nprint(1)\r\n```\r\n").unwrap(), "print(1)");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(?s).{0,200}") {
            let _ = extract_code(&text);
        }

        #[test]
        fn fences_in_any_order_give_code_without_fences(
            parts in prop::collection::vec(
                prop_oneof![
                    Just("```python\n"), Just("```\n"), Just("```"), Just("print(1)\n"),
                    Just("\n"), Just("```py"), Just("text"), Just("<think>\n"), Just("\r\n"),
                ],
                0..30,
            )
        ) {
            if let Some(code) = extract_code(&parts.concat()) {
                prop_assert!(!code.trim().is_empty());
                prop_assert!(code.lines().all(|line| line.trim() != "```"));
            }
        }

        #[test]
        fn what_was_wrapped_is_found(code in "[ -_a-~\n]{1,80}", before in "[ -_a-~\n]{0,40}") {
            prop_assume!(!code.trim().is_empty());
            let response = format!("{before}\n```python\n{code}\n```\n");
            let found = extract_code(&response).unwrap();
            prop_assert_eq!(found.trim_end(), code.trim_end());
        }
    }
}
