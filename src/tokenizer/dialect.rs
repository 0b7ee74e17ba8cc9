//! Rewrites the source of a chat template where minijinja's syntax differs from Jinja2's.
//!
//! The rewritten source means in minijinja what the original means in Jinja2 as transformers uses it, and
//! stays on its line. Three things are rewritten: generation tags, which minijinja does not know; slices,
//! which it reads wrongly when they go backwards; and what a loop iterates over, which must not be none.
//!
//! Filters, tests, methods and functions are in [`super::jinja`].

use super::jinja::{CLOSE, EACH, OPEN, SLICE};
use std::ops::Range;

/// Returns the rewritten source, and whether it has generation tags.
pub(crate) fn rewrite(source: &str) -> (String, bool) {
    // Jinja2 reads line breaks this way.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut has_spans = false;
    let mut rest = &*source;
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let (ending, kind) = match tag.get(..2) {
            Some("{#") => (tag.find("#}"), "#}"),
            Some("{{") => (end_of_tag(tag, "}}"), "}}"),
            Some("{%") => (end_of_tag(tag, "%}"), "%}"),
            _ => {
                out.push('{');
                rest = &tag[1..];
                continue;
            }
        };
        // A tag without an end is left to minijinja, whose error says so.
        let Some(end) = ending else {
            rest = tag;
            break;
        };
        let (body, after) = (&tag[2..end], &tag[end + 2..]);
        rest = after;
        match kind {
            "#}" => out.push_str(&tag[..end + 2]),
            "}}" => out.push_str(&format!("{{{{{}}}}}", slices(body))),
            _ => {
                let (left, body, right) = markers(body);
                match body.trim() {
                    "generation" => {
                        has_spans = true;
                        // The outer tag keeps the left whitespace marker and the inner one the right
                        // marker, so blanks are trimmed as before; `with` gives the span the scope of
                        // its own that transformers gives it.
                        out.push_str(&format!(
                            "{{%{left} with %}}{{{{ {OPEN} }}}}{{% if true {right}%}}"
                        ));
                    }
                    "endgeneration" => out.push_str(&format!(
                        "{{%{left} endif %}}{{{{ {CLOSE} }}}}{{% endwith {right}%}}"
                    )),
                    "raw" => {
                        out.push_str(&tag[..end + 2]);
                        let text = end_of_raw(after);
                        out.push_str(&after[..text]);
                        rest = &after[text..];
                    }
                    _ => out.push_str(&format!("{{%{left}{}{right}%}}", slices(&each(body)))),
                }
            }
        }
    }
    out.push_str(rest);
    (out, has_spans)
}

/// Returns where the tag at the start of `tag` ends: at `end` outside of strings and brackets.
fn end_of_tag(tag: &str, end: &str) -> Option<usize> {
    Tokens::new(&tag[2..])
        .find(|token| token.depth == 0 && tag[2 + token.at..].starts_with(end))
        .map(|t| 2 + t.at)
}

/// Returns how much of `text` is raw: all before the tag that ends it.
fn end_of_raw(text: &str) -> usize {
    let is_end = |&(at, _): &(usize, &str)| {
        let tag = text[at + 2..].trim_start_matches(['-', '+']).trim_start();
        tag.starts_with("endraw")
    };
    text.match_indices("{%").find(is_end).map_or(text.len(), |(at, _)| at)
}

/// Returns a block tag's left whitespace marker, its body, and its right marker.
fn markers(body: &str) -> (&str, &str, &str) {
    let is_marker = |c: char| c == '-' || c == '+';
    let inner = body.strip_prefix(is_marker).unwrap_or(body);
    let (left, inner) = (&body[..body.len() - inner.len()], inner);
    let middle = inner.strip_suffix(is_marker).unwrap_or(inner);
    (left, middle, &inner[middle.len()..])
}

/// Returns the body of a tag that opens a loop, with a check of its iterable; any other body is returned as
/// it is.
fn each(body: &str) -> String {
    let words = || Tokens::new(body).filter(|token| token.depth == 0 && token.is_word);
    let word = |token: &Token| &body[token.at..token.at + token.len];
    if words().next().is_none_or(|first| word(&first) != "for") {
        return body.to_owned();
    }
    let Some(start) = words().find(|token| word(token) == "in").map(|token| token.at + token.len)
    else {
        return body.to_owned();
    };
    let is_after = |token: &Token| token.at >= start && ["if", "recursive"].contains(&word(token));
    let end = words().find(is_after).map_or(body.len(), |token| token.at);
    format!("{} ({})|{EACH} {}", &body[..start], &body[start..end], &body[end..])
}

/// Returns an expression in which slices are method calls.
fn slices(expression: &str) -> String {
    let mut out = String::with_capacity(expression.len());
    let mut rest = 0;
    while let Some(Range { start, end }) = brackets(expression, rest) {
        out.push_str(&expression[rest..start]);
        let inside = &expression[start + 1..end];
        let colons: Vec<usize> = Tokens::new(inside)
            .filter(|token| token.depth == 0 && inside[token.at..].starts_with(':'))
            .map(|token| token.at)
            .collect();
        if colons.is_empty() {
            out.push_str(&format!("[{}]", slices(inside)));
        } else {
            let starts = std::iter::once(0).chain(colons.iter().map(|at| at + 1));
            let ends = colons.iter().copied().chain([inside.len()]);
            let part = |(start, end): (usize, usize)| match &inside[start..end] {
                part if part.trim().is_empty() => format!("none{part}"),
                part => slices(part),
            };
            let parts: Vec<String> = starts.zip(ends).map(part).collect();
            out.push_str(&format!(".{SLICE}({})", parts.join(",")));
        }
        rest = end + 1;
    }
    out.push_str(&expression[rest..]);
    out
}

/// Returns the first pair of square brackets, from `from` on, that is in no other pair of them.
fn brackets(expression: &str, from: usize) -> Option<Range<usize>> {
    let mut tokens = Tokens::new(&expression[from..]);
    let open = tokens.find(|token| expression[from + token.at..].starts_with('['))?;
    let close = tokens.find(|token| token.depth == open.depth)?;
    let is_closed = expression[from + close.at..].starts_with(']');
    is_closed.then_some(from + open.at..from + close.at)
}

/// A piece of an expression: a word, a string, or one other character.
struct Token {
    at: usize,
    len: usize,
    /// The number of brackets around it. A bracket is outside of what it encloses.
    depth: usize,
    is_word: bool,
}

struct Tokens<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0, depth: 0 }
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        let at = self.at;
        let rest = &self.text[at..];
        let first = rest.chars().next()?;
        let in_word = |c: char| c.is_alphanumeric() || c == '_';
        let is_word = in_word(first);
        let len = match first {
            '"' | '\'' => end_of_string(rest, first),
            _ if is_word => rest.find(|c| !in_word(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        if [')', ']', '}'].contains(&first) {
            self.depth = self.depth.saturating_sub(1);
        }
        let depth = self.depth;
        if ['(', '[', '{'].contains(&first) {
            self.depth += 1;
        }
        self.at += len;
        Some(Token { at, len, depth, is_word })
    }
}

/// Returns the length of the string literal with which `text` begins.
fn end_of_string(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(source: &str) -> String {
        rewrite(source).0
    }

    #[test]
    fn what_jinja_and_minijinja_read_alike_stays_as_it_is() {
        for source in [
            "{{ {'a': {'b': [1, 2]}}['a'] }}{% set x = {'a': 1} %} { x } {",
            "{# {% for x in y %} {{ x[1:] }} #}{% raw %}{% for x in y %}{{ x[1:] }}{% endraw %}",
            "{{ '{% for x in y %}' }}{{ \"[1:2] \\\" }} %}\" }}{% if '%}' %}{%- endif -%}",
            "{{ x",
            "{% for x in y",
        ] {
            assert_eq!(rewritten(source), source);
        }
    }

    #[test]
    fn slices_are_calls() {
        assert_eq!(rewritten("{{ x[1:] }}"), format!("{{{{ x.{SLICE}(1,none) }}}}"));
        assert_eq!(rewritten("{% if x[::-1] %}"), format!("{{% if x.{SLICE}(none,none,-1) %}}"));
        let nested = format!("{{{{ x['a'][y.{SLICE}(none,2)|length] }}}}");
        assert_eq!(rewritten("{{ x['a'][y[:2]|length] }}"), nested);
        let deeper = format!("{{{{ x.{SLICE}(y[0],{{'a': 1}}['a']) }}}}");
        assert_eq!(rewritten("{{ x[y[0]:{'a': 1}['a']] }}"), deeper);
    }

    #[test]
    fn loops_check_what_they_go_over() {
        assert_eq!(rewritten("{%- for x in y -%}"), format!("{{%- for x in ( y )|{EACH} -%}}"));
        let filtered = format!("{{% for a, b in ( (y if z else w) )|{EACH} if a in b %}}");
        assert_eq!(rewritten("{% for a, b in (y if z else w) if a in b %}"), filtered);
        let recursive = format!("{{% for x in ( y )|{EACH} recursive %}}");
        assert_eq!(rewritten("{% for x in y recursive %}"), recursive);
    }
}
