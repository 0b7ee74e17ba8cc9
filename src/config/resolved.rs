//! A configuration after merging: the typed value, and the origin of each of its parts.

use super::source::Origin;
use std::collections::BTreeMap;
use toml::{Table, Value};

/// A typed configuration that remembers where every value came from.
#[derive(Debug, Clone)]
pub struct Resolved<T> {
    pub value: T,
    /// The value as TOML, with defaults.
    pub table: Table,
    /// The origin of every given key, by its dotted path; a path that is not in it has its default.
    pub origins: BTreeMap<String, Origin>,
}

impl<T> Resolved<T> {
    /// Returns where the value at a dotted path came from.
    pub fn origin(&self, path: &str) -> Origin {
        self.origins.get(path).cloned().unwrap_or(Origin::Default)
    }

    /// Returns every value as TOML, for the run directory.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        self.render(&self.table, "", &mut text, None);
        text
    }

    /// Returns every value as TOML with its origin as a comment, for `--dry-run`.
    pub fn render_with_origins(&self) -> String {
        let mut text = String::new();
        let width = line_width(&self.table).min(48);
        self.render(&self.table, "", &mut text, Some(width));
        text
    }

    fn render(&self, table: &Table, prefix: &str, text: &mut String, origins_at: Option<usize>) {
        let values = table.iter().filter(|(_, value)| !value.is_table());
        for (key, value) in values {
            let mut line = assignment(key, value);
            if let Some(width) = origins_at {
                let origin = self.origin(&dotted(prefix, key));
                line = format!("{line:<width$}  # {origin}");
            }
            text.push_str(&line);
            text.push('\n');
        }
        for (key, value) in table {
            let Value::Table(below) = value else { continue };
            let path = dotted(prefix, key);
            if below.is_empty() || below.values().any(|value| !value.is_table()) {
                let gap = if text.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}[{path}]\n"));
            }
            self.render(below, &path, text, origins_at);
        }
    }
}

fn assignment(key: &str, value: &Value) -> String {
    format!("{} = {value}", quoted_if_needed(key))
}

fn line_width(table: &Table) -> usize {
    let widths = table.iter().map(|(key, value)| match value {
        Value::Table(below) => line_width(below),
        value => assignment(key, value).chars().count(),
    });
    widths.max().unwrap_or(0)
}

/// Returns the path of `key` in the table at `prefix`.
pub(crate) fn dotted(prefix: &str, key: &str) -> String {
    let key = quoted_if_needed(key);
    if prefix.is_empty() { key } else { format!("{prefix}.{key}") }
}

fn quoted_if_needed(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(is_bare) {
        key.to_owned()
    } else {
        Value::String(key.to_owned()).to_string()
    }
}
