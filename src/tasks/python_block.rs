//! Finds the code in a response.
//!
//! The grammar of fences is CommonMark's, read leniently: a fence is a line of three or more "`" or
//! "~", at any depth of lists; the block ends at a line of at least as many of the same and nothing
//! else, and loses the indentation of its opening fence. A python fence opens a block even where
//! an earlier one of another language was left open.

/// A python block of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PythonBlock {
    /// Where the line of its opening fence begins, in bytes.
    pub(crate) start: usize,
    /// Its lines, if it is closed.
    pub(crate) code: Option<String>,
}

/// The last block that opens as python, closed or not.
pub(crate) fn last_python_block(response: &str) -> Option<PythonBlock> {
    let mut last: Option<PythonBlock> = None;
    let mut open: Option<(Fence<'_>, Vec<&str>)> = None;
    let mut at = 0;
    for line in response.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let fence = Fence::of(line);
        match (&mut open, fence) {
            (Some((opening, body)), Some(fence)) if fence.closes(opening) => {
                if let (true, Some(block)) = (opening.is_python(), &mut last) {
                    block.code = Some(body.join("\n"));
                }
                open = None;
            }
            (Some((opening, body)), fence) => match fence {
                Some(fence) if fence.is_python() && !opening.holds(&fence) => {
                    last = Some(PythonBlock { start, code: None });
                    open = Some((fence, Vec::new()));
                }
                _ => body.push(without_indentation(line, opening.indentation)),
            },
            (None, Some(fence)) => {
                if fence.is_python() {
                    last = Some(PythonBlock { start, code: None });
                }
                open = Some((fence, Vec::new()));
            }
            (None, None) => {}
        }
    }
    last
}

/// A line that opens or closes a block.
struct Fence<'a> {
    indentation: usize,
    mark: char,
    length: usize,
    info: &'a str,
}

impl<'a> Fence<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let text = line.trim_start();
        let mark = text.chars().next().filter(|mark| matches!(mark, '`' | '~'))?;
        let info = text.trim_start_matches(mark);
        let (indentation, length) = (line.len() - text.len(), text.len() - info.len());
        // Three marks around a word are code within a line.
        (length >= 3 && !(mark == '`' && info.contains('`'))).then(|| Self {
            indentation,
            mark,
            length,
            info: info.trim(),
        })
    }

    /// Whether the block is said to be Python: `python`, `py3`, `python title="a.py"`, `{.python}`.
    fn is_python(&self) -> bool {
        let info = self.info.trim_start_matches(['{', '.', ' ']);
        let (language, _) = info.split_once([' ', '\t', ',', ':', '{', '}']).unwrap_or((info, ""));
        ["python", "python3", "py", "py3"].iter().any(|name| language.eq_ignore_ascii_case(name))
    }

    fn closes(&self, opening: &Self) -> bool {
        self.info.is_empty() && self.mark == opening.mark && self.length >= opening.length
    }

    /// Whether `inner` is part of this block, a Python program that quotes a fence.
    fn holds(&self, inner: &Self) -> bool {
        self.is_python() && (self.mark != inner.mark || self.length > inner.length)
    }
}

/// Up to `width` bytes of white space less.
fn without_indentation(line: &str, width: usize) -> &str {
    let present = line.len() - line.trim_start().len();
    line.get(present.min(width)..).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The content of the last python block, unless it is open or blank.
    fn extract_code(response: &str) -> Option<String> {
        last_python_block(response)?.code.filter(|code| !code.trim().is_empty())
    }

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

    #[test]
    fn a_block_in_a_list_loses_the_indentation_of_its_fence() {
        let response = "1. So:\n   ```python\n   if True:\n       print(1)\n   ```\n2. Done";
        assert_eq!(extract_code(response).unwrap(), "if True:\n    print(1)");
        let ragged = "  ```python\nprint(1)\n\n  ```";
        assert_eq!(extract_code(ragged).unwrap(), "print(1)\n");
    }

    #[test]
    fn python_is_recognised_in_its_usual_spellings() {
        for info in [
            "py",
            "py3",
            "Python3",
            " python",
            "python title=\"a.py\"",
            "{.python}",
            "python:a.py",
            "{.python .numberLines}",
            "{python}",
            "python {linenos=true}",
            "python,ignore",
        ] {
            assert_eq!(extract_code(&format!("```{info}\nx\n```")).as_deref(), Some("x"), "{info}");
        }
        for info in ["", "pycon", "python-repl", "pytb", "text python", "cpp", "python`x"] {
            assert_eq!(extract_code(&format!("```{info}\nx\n```")), None, "{info}");
        }
    }

    #[test]
    fn longer_fences_and_tildes_hold_shorter_and_other_ones() {
        let inner = "s = \"\"\"\n```python\n```\n\"\"\"";
        for fence in ["````", "~~~", "~~~~"] {
            let response = format!("{fence}python\n{inner}\n{fence}\n");
            assert_eq!(extract_code(&response).unwrap(), inner);
        }
        assert_eq!(extract_code("~~~python\nx\n```\n"), None);
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
                    Just("```python\n"), Just("```\n"), Just("```x "), Just("print(1)\n"),
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
