//! Methods of Python's strings and lists, and its slices, for chat templates.
//!
//! Each returns what Python returns, or an error. White space is Python's: that of Unicode and the four
//! separators U+001C to U+001F. Methods that `minijinja_contrib::pycompat` computes correctly are not here.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind};

/// Returns whether Python's `str.strip` removes it.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Calls a method of a string; `None` for a method that is not here.
pub(crate) fn string_method(
    text: &str,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    let value = match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            strip(text, name, chars).into()
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "split" | "rsplit" => split(text, name == "rsplit", args)?,
        "splitlines" => {
            let (keep_ends, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep_ends = keep_ends.or(named.get("keepends")?).unwrap_or(false);
            named.assert_all_used()?;
            lines(text, keep_ends).into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let is_first = name == "partition";
            let found = match is_first {
                _ if separator.is_empty() => return Err(invalid("empty separator")),
                true => text.split_once(separator),
                false => text.rsplit_once(separator),
            };
            let parts = match found {
                Some((before, after)) => [before, separator, after],
                None if is_first => [text, "", ""],
                None => ["", "", text],
            };
            Value::from(Tuple::new(parts.map(Value::from).to_vec()))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let within = Within::new(text, start, end);
            if name == "count" {
                return Ok(Some(within.count(part).into()));
            }
            match within.find(part, name.starts_with('r')) {
                Some(at) => at.into(),
                None if name.ends_with("find") => (-1).into(),
                None => return Err(invalid("substring not found")),
            }
        }
        "startswith" | "endswith" => {
            let (parts, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let within = Within::new(text, start, end);
            let holds = |part: &Value| {
                let part = part.as_str().ok_or_else(|| {
                    invalid(&format!("{name}: expected strings, found a {}", part.kind()))
                })?;
                Ok::<bool, Error>(match within.text {
                    None => false,
                    Some(text) if name == "startswith" => text.starts_with(part),
                    Some(text) => text.ends_with(part),
                })
            };
            match parts.kind() {
                ValueKind::Seq => {
                    let mut any = false;
                    for part in items(parts)? {
                        any |= holds(&part)?;
                    }
                    any.into()
                }
                _ => holds(parts)?.into(),
            }
        }
        "join" => {
            let (parts,): (&Value,) = from_args(args)?;
            let parts = items(parts)?;
            let texts = parts.iter().map(|part| {
                part.as_str().ok_or_else(|| {
                    invalid(&format!("join: expected strings, found a {}", part.kind()))
                })
            });
            texts.collect::<Result<Vec<_>, _>>()?.join(text).into()
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            pad(text, name, width, fill.unwrap_or(' ')).into()
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let width = width.saturating_sub(sign.len());
            format!("{sign}{}", pad(digits, "rjust", width, '0')).into()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped = text.chars().map(|c| {
                if c.is_uppercase() {
                    c.to_lowercase().to_string()
                } else {
                    c.to_uppercase().to_string()
                }
            });
            swapped.collect::<String>().into()
        }
        "title" => {
            let () = from_args(args)?;
            title(text).into()
        }
        "isspace" => {
            let () = from_args(args)?;
            (!text.is_empty() && text.chars().all(is_space)).into()
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// Is Python's `list.index`.
pub(crate) fn index(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (wanted,): (&Value,) = from_args(args)?;
    let found = items(list)?.iter().position(|item| item == wanted);
    found.map(Value::from).ok_or_else(|| invalid(&format!("{wanted} is not in list")))
}

/// Is Python's `value[start:stop:step]`.
pub(crate) fn slice(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (start, stop, step): (Option<i64>, Option<i64>, Option<i64>) = from_args(args)?;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(invalid("slice step cannot be zero"));
    }
    if let Some(text) = value.as_str() {
        let chars: Vec<char> = text.chars().collect();
        let places = places(chars.len(), start, stop, step);
        return Ok(places.map(|i| chars[i]).collect::<String>().into());
    }
    let all = match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => items(value)?,
        kind => return Err(invalid(&format!("a {kind} has no slices"))),
    };
    let part: Vec<Value> = places(all.len(), start, stop, step).map(|i| all[i].clone()).collect();
    Ok(if value.is_tuple() { Value::from(Tuple::new(part)) } else { Value::from(part) })
}

/// Removes `chars`, or else white space, from the ends of a text; `name` says from which.
pub(crate) fn strip<'t>(text: &'t str, name: &str, chars: Option<&str>) -> &'t str {
    let is_taken = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    match name {
        "lstrip" => text.trim_start_matches(is_taken),
        "rstrip" => text.trim_end_matches(is_taken),
        _ => text.trim_matches(is_taken),
    }
}

/// Pads a text to `width` characters; `name` says on which side.
pub(crate) fn pad(text: &str, name: &str, width: usize, fill: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        // CPython rounds this way.
        _ => missing / 2 + (missing & width & 1),
    };
    let fill = |count: usize| fill.to_string().repeat(count);
    format!("{}{text}{}", fill(left), fill(missing - left))
}

/// Splits a text into lines, at everything that Python takes for the end of a line.
pub(crate) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |c| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(is_end) {
        let first = rest[at..].chars().next().map_or(0, char::len_utf8);
        let end = at + if rest[at..].starts_with("\r\n") { 2 } else { first };
        lines.push(&rest[..if keep_ends { end } else { at }]);
        rest = &rest[end..];
    }
    lines.extend(Some(rest).filter(|rest| !rest.is_empty()));
    lines
}

fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, most, named): (Option<&Value>, Option<i64>, Kwargs) = from_args(args)?;
    let named_separator: Option<Value> = named.get("sep")?;
    let most = most.or(named.get("maxsplit")?);
    named.assert_all_used()?;
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX - 1);
    let separator = separator.or(named_separator.as_ref()).filter(|separator| !separator.is_none());
    let parts: Vec<&str> = match separator.map(|separator| (separator.as_str(), separator)) {
        None if from_right => {
            let mut parts = split_at_spaces(text, most, true);
            parts.reverse();
            parts
        }
        None => split_at_spaces(text, most, false),
        Some((Some(""), _)) => return Err(invalid("empty separator")),
        Some((Some(separator), _)) if from_right => {
            let mut parts: Vec<&str> = text.rsplitn(most + 1, separator).collect();
            parts.reverse();
            parts
        }
        Some((Some(separator), _)) => text.splitn(most + 1, separator).collect(),
        Some((None, other)) => {
            return Err(invalid(&format!("split: expected a string, found a {}", other.kind())));
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Splits at most `most` words off one end of a text; the rest of the text is the last element.
fn split_at_spaces(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let side = if from_right { "rstrip" } else { "lstrip" };
    let (mut parts, mut rest) = (Vec::new(), strip(text, side, None));
    while !rest.is_empty() {
        let border = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = border.filter(|_| parts.len() < most) else {
            parts.push(rest);
            break;
        };
        let after = at + rest[at..].chars().next().map_or(0, char::len_utf8);
        let (word, left) =
            if from_right { (&rest[after..], &rest[..at]) } else { (&rest[..at], &rest[after..]) };
        parts.push(word);
        rest = strip(left, side, None);
    }
    parts
}

/// A part of a text, bounded by characters as in `str.find`.
struct Within<'t> {
    /// Is `None` where the part begins beyond the end of the text.
    text: Option<&'t str>,
    /// The number of characters before it.
    start: usize,
}

impl<'t> Within<'t> {
    fn new(text: &'t str, start: Option<i64>, end: Option<i64>) -> Self {
        let len = text.chars().count();
        let bound = |at: i64| {
            if at < 0 { len.saturating_sub(at.unsigned_abs() as usize) } else { at as usize }
        };
        let (start, end) = (start.map_or(0, bound), end.map_or(len, bound).min(len));
        let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
        let text = (start <= end).then(|| &text[byte(start)..byte(end)]);
        Self { text, start }
    }

    /// Returns the index of the character at which `part` first occurs, or last.
    fn find(&self, part: &str, from_right: bool) -> Option<usize> {
        let text = self.text?;
        let at = if from_right { text.rfind(part) } else { text.find(part) }?;
        Some(self.start + text[..at].chars().count())
    }

    fn count(&self, part: &str) -> usize {
        self.text.map_or(0, |text| text.matches(part).count())
    }
}

/// Capitalises each run of letters, as `str.title`.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        let is_cased = c.is_uppercase() || c.is_lowercase();
        match c {
            _ if !is_cased || in_word => out.extend(c.to_lowercase()),
            // This is the only common letter whose title case differs from its upper case.
            'ß' => out.push_str("Ss"),
            _ => out.extend(c.to_uppercase()),
        }
        in_word = is_cased;
    }
    out
}

/// Returns the indices that a slice of something of `len` items takes, as `slice.indices` bounds them.
fn places(
    len: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
) -> impl Iterator<Item = usize> {
    let len = len as i64;
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let bound = |at: i64| (if at < 0 { at.saturating_add(len) } else { at }).clamp(lowest, highest);
    let (start, stop) = (start.map_or(first, bound), stop.map_or(last, bound));
    let is_before = move |at: &i64| if step > 0 { *at < stop } else { *at > stop };
    std::iter::successors(Some(start), move |at| at.checked_add(step))
        .take_while(is_before)
        .map(|at| at as usize)
}

fn items(value: &Value) -> Result<Vec<Value>, Error> {
    value.try_iter()?.checked().collect()
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_owned())
}
