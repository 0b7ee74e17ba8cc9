//! The keys of a merged configuration, each with its path and its place in the text.

use super::resolved::dotted;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A key of the merged table, at any depth.
pub(crate) struct Entry {
    /// The dotted path.
    pub(crate) path: String,
    /// The span of the key.
    pub(crate) key: Range<usize>,
    /// The span of the value.
    pub(crate) value: Range<usize>,
    pub(crate) is_table: bool,
}

impl Entry {
    /// The last part of the path.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }

    /// Where the entry begins: a table at its key, a value at itself.
    pub(crate) fn start(&self) -> usize {
        if self.is_table { self.key.start } else { self.value.start }
    }
}

/// Lists every key of the table and of the tables in it.
pub(crate) fn entries(table: &DeTable<'_>) -> Vec<Entry> {
    let mut found = Vec::new();
    collect(table, "", &mut found);
    found
}

fn collect(table: &DeTable<'_>, prefix: &str, found: &mut Vec<Entry>) {
    for (key, value) in table {
        let path = dotted(prefix, key.get_ref());
        let below = match value.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => None,
        };
        let is_table = below.is_some();
        found.push(Entry { path: path.clone(), key: key.span(), value: value.span(), is_table });
        if let Some(table) = below {
            collect(table, &path, found);
        }
    }
}

/// Removes the key at a dotted path.
pub(crate) fn remove(table: &mut DeTable<'_>, path: &str) {
    match path.split_once('.') {
        None => {
            table.remove(path);
        }
        Some((first, rest)) => {
            if let Some(DeValue::Table(below)) = table.get_mut(first).map(Spanned::get_mut) {
                remove(below, rest);
            }
        }
    }
}
