//! What is typed: questions of one line or several, and commands.

use crate::base::error::usage;
use anyhow::{Context, Result};
use std::io::{self, BufRead, IsTerminal, Write};

/// Begins and ends a question of several lines.
const QUOTE: &str = "\"\"\"";

/// A command or a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Say(String),
    Help,
    Undo,
    Clear,
    System(Option<String>),
    Settings,
    Set(String, String),
    Quit,
}

impl Command {
    /// Reads a command, or a question.
    fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        Ok(match (name, rest) {
            ("/help", "") => Self::Help,
            ("/undo", "") => Self::Undo,
            ("/clear", "") => Self::Clear,
            ("/system", rest) => Self::System((!rest.is_empty()).then(|| rest.to_owned())),
            ("/settings", "") => Self::Settings,
            ("/set", rest) => match rest.split_once(char::is_whitespace) {
                Some((name, value)) => Self::Set(name.to_owned(), value.trim().to_owned()),
                None => return Err(usage("/set NAME VALUE, as in /set temperature 0.7")),
            },
            ("/quit" | "/exit", "") => Self::Quit,
            (name, _) if name.starts_with('/') => {
                return Err(usage(format!("there is no command {name}: /help lists all")));
            }
            _ => Self::Say(text.to_owned()),
        })
    }
}

/// Reads commands and questions from stdin.
pub(crate) struct Input {
    is_terminal: bool,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self { is_terminal: io::stdin().is_terminal() }
    }

    /// Returns whether a person types.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Returns the next command, or none at the end of the input. A person is told of mistakes, and asked
    /// again.
    pub(crate) fn next(&mut self) -> Result<Option<Command>> {
        loop {
            let Some(text) = read(&mut |prompt| self.line(prompt))? else { return Ok(None) };
            if text.trim().is_empty() {
                continue;
            }
            match Command::parse(&text) {
                Err(mistake) if self.is_terminal => crate::base::terminal::line(mistake),
                command => return command.map(Some),
            }
        }
    }

    fn line(&self, prompt: &str) -> Result<Option<String>> {
        if self.is_terminal {
            let mut stderr = io::stderr().lock();
            let _nobody_looks = write!(stderr, "{prompt}").and_then(|()| stderr.flush());
        }
        let mut line = String::new();
        let len = io::stdin().lock().read_line(&mut line).context("reading stdin")?;
        Ok((len > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()))
    }
}

/// Reads a text of one line, or of several that are joined.
fn read(line: &mut dyn FnMut(&str) -> Result<Option<String>>) -> Result<Option<String>> {
    let Some(mut text) = line("> ")? else { return Ok(None) };
    if let Some(start) = text.trim_start().strip_prefix(QUOTE) {
        let mut lines = vec![start.to_owned()];
        while !lines.last().is_some_and(|last| last.trim_end().ends_with(QUOTE)) {
            let Some(next) = line("... ")? else { break };
            lines.push(next);
        }
        let text = lines.join("\n");
        let text = text.trim_end();
        return Ok(Some(text.strip_suffix(QUOTE).unwrap_or(text).to_owned()));
    }
    while let Some(start) = text.strip_suffix('\\') {
        text = format!("{start}\n{}", line("... ")?.unwrap_or_default());
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[&str]) -> Vec<String> {
        let mut lines = lines.iter().map(|line| (*line).to_owned());
        let mut next = |_: &str| Ok(lines.next());
        std::iter::from_fn(|| read(&mut next).unwrap()).collect()
    }

    #[test]
    fn a_question_may_have_several_lines() {
        assert_eq!(texts(&["a", "b \\", "c\\", "d"]), ["a", "b \nc\nd"]);
        assert_eq!(texts(&["\"\"\"a", " b", "c\"\"\"", "d"]), ["a\n b\nc", "d"]);
        assert_eq!(texts(&["\"\"\"a\"\"\"", "\"\"\"b"]), ["a", "b"]);
    }

    #[test]
    fn commands_are_read_and_unknown_ones_refused() {
        let parse = |text| Command::parse(text).unwrap();
        assert_eq!(parse(" /undo "), Command::Undo);
        assert_eq!(parse("/set top_p  0.9"), Command::Set("top_p".into(), "0.9".into()));
        assert_eq!(parse("/system be brief"), Command::System(Some("be brief".into())));
        assert_eq!(parse("/system"), Command::System(None));
        assert_eq!(parse("1/2 = ?"), Command::Say("1/2 = ?".into()));
        for wrong in ["/und", "/set x", "/undo 2"] {
            assert_eq!(crate::base::error::exit_code(&Command::parse(wrong).unwrap_err()), 2);
        }
    }
}
