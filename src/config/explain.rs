//! Turns a deserialisation error into one line a user can act on.
//!
//! Reads the wording of serde's own errors (unknown field, unknown variant, missing field, invalid
//! type) and toml's of enums, which are stable; a wording it does not know is passed on with its place.

use super::choice;
use super::diff::paths;
use super::entries::{Entry, entries, remove};
use super::resolved::dotted;
use super::source::Sources;
use crate::base::error::usage;
use anyhow::{Error, Result};
use toml::de::DeTable;

/// The paths of a whole configuration in which a misplaced key may have its right place.
///
/// They are only known once the unknown keys are gone, so they are removed one by one.
pub(crate) fn known_elsewhere(
    merged: &DeTable<'_>,
    error: &toml::de::Error,
    read: impl Fn(DeTable<'_>) -> Result<toml::Table, toml::de::Error>,
) -> Vec<String> {
    let mut table = merged.clone();
    let mut error = error.clone();
    while let Some(name) = unknown_field(error.message()) {
        let Some(entry) = find_key(&entries(&table), &error, name) else { break };
        remove(&mut table, &entry);
        match read(table.clone()) {
            Ok(known) => return paths(&known),
            Err(next) => error = next,
        }
    }
    Vec::new()
}

fn find_key(entries: &[Entry], error: &toml::de::Error, name: &str) -> Option<String> {
    locate(entries, error, name).map(|entry| entry.path.clone())
}

/// The entry an unknown field stands in: by its span, else (tagged enums lose it) by its name.
fn locate<'e>(entries: &'e [Entry], error: &toml::de::Error, name: &str) -> Option<&'e Entry> {
    let span = error.span();
    let by_span = entries.iter().find(|e| Some(&e.key) == span.as_ref() && e.name() == name);
    by_span.or_else(|| entries.iter().find(|e| e.name() == name))
}

/// The one line for `error`; `known` are the paths of the whole configuration, where known.
pub(crate) fn explain(
    error: &toml::de::Error,
    sources: &Sources,
    merged: &DeTable<'_>,
    known: &[String],
) -> Error {
    let message = error.message();
    let entries = entries(merged);
    if let Some(name) = unknown_field(message) {
        let entry = locate(&entries, error, name);
        let path = entry.map_or(name, |e| e.path.as_str());
        let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
        let place = entry
            .map_or_else(|| sources.names(), |entry| sources.origin(entry.key.start).to_string());
        let here = quoted(message).skip(1).collect::<Vec<_>>();
        let hint = match nearest(name, &here) {
            Some(near) => format!("did you mean `{}`?", dotted(parent, near)),
            None => match known.iter().find(|k| k.rsplit('.').next() == Some(name)) {
                Some(elsewhere) => format!("did you mean `{elsewhere}`?"),
                None if here.is_empty() => "nothing is known here".to_owned(),
                None => format!("known keys here: {}", here.join(", ")),
            },
        };
        return usage(format!("{place}: unknown key `{path}`; {hint}"));
    }
    let span = error.span().unwrap_or(0..0);
    let entry = entries.iter().find(|e| e.value == span && !span.is_empty());
    let place =
        entry.map_or_else(|| sources.names(), |entry| sources.origin(entry.start()).to_string());
    let path = entry.map_or("", |e| e.path.as_str());
    if message.starts_with("missing field") {
        let name = quoted(message).next().unwrap_or_default();
        return usage(format!("{place}: the key `{}` is required", dotted(path, name)));
    }
    if message.starts_with("unknown variant") {
        let mut names = quoted(message);
        let given = names.next().unwrap_or_default();
        // A choice with a value is a key, whose place serde does not tell.
        let choice = entries.iter().find(|e| path.is_empty() && e.name() == given);
        let place = choice.map_or(place, |e| sources.origin(e.key.start).to_string());
        let above = |e: &'_ Entry| e.path.rsplit_once('.').map(|(above, _)| above.to_owned());
        let path = choice.and_then(above).unwrap_or_else(|| path.to_owned());
        let values = names.collect::<Vec<_>>();
        let hint = nearest(given, &values).map_or_else(
            || format!("known values: {}", values.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        return usage(format!("{place}: unknown value `{given}` of `{path}`; {hint}"));
    }
    if message.starts_with("wanted exactly 1 element") {
        let several = choice::contradiction(&entries, error).map(|(table, _)| table);
        let place = several.map_or(place, |table| sources.origin(table.start()).to_string());
        let path = several.map_or(path, |table| table.path.as_str());
        return usage(format!("{place}: `{path}` takes exactly one key"));
    }
    if message == "wanted string or table" {
        return usage(format!("{place}: `{path}` must be a name or a table with one key"));
    }
    let message = plain(message);
    match path {
        "" => usage(format!("{place}: {message}")),
        path => usage(format!("{place}: `{path}` is {message}")),
    }
}

/// Refuses a key that was given but left no trace in the typed configuration.
pub(crate) fn refuse_ignored(
    merged: &DeTable<'_>,
    effective: &toml::Table,
    sources: &Sources,
) -> Result<()> {
    let known = paths(effective);
    for entry in entries(merged).iter().filter(|e| !e.is_table) {
        if !known.contains(&entry.path) {
            let place = sources.origin(entry.key.start);
            return Err(usage(format!("{place}: unknown key `{}`", entry.path)));
        }
    }
    Ok(())
}

fn unknown_field(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field").and_then(|rest| quoted(rest).next())
}

/// The parts of a message between backticks.
fn quoted(message: &str) -> impl Iterator<Item = &str> {
    message.split('`').skip(1).step_by(2)
}

/// serde's words for types, as a user of TOML would say them.
fn plain(message: &str) -> String {
    let message =
        message.trim_start_matches("invalid type: ").trim_start_matches("invalid value: ");
    let Some((given, expected)) = message.rsplit_once(", expected ") else {
        return message.replace('\n', ", ");
    };
    let expected = match expected {
        "f32" | "f64" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "a sequence" => "a list",
        "a map" => "a table",
        name if name.starts_with("struct ") => "a table",
        other => other,
    };
    format!("{given}, expected {expected}")
}

/// The candidate within a third of `name`'s letters (at least two) of edits, if any.
fn nearest<'c>(name: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let allowed = (name.len() / 3).max(2).min(name.len().saturating_sub(1));
    candidates
        .iter()
        .map(|&candidate| (edits(name, candidate), candidate))
        .filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Edit distance with insertions, deletions, substitutions and swaps of neighbours.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = substituted.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_of_neighbours_is_one_edit() {
        assert_eq!(edits("setps", "steps"), 1);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
    }

    #[test]
    fn the_nearest_name_is_near_or_none() {
        assert_eq!(nearest("max_token", &["min_tokens", "max_tokens"]), Some("max_tokens"));
        assert_eq!(nearest("batch", &["steps", "seed"]), None);
        assert_eq!(nearest("x", &["lr"]), None);
    }
}
