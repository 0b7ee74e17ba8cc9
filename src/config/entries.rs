//! The keys of a TOML table at any depth, and where their values are in the text.

use super::resolved::dotted;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// A key of a table.
pub(crate) struct Entry {
    /// The dotted path of the key.
    pub(crate) path: String,
    pub(crate) value: Range<usize>,
}

/// Returns every key of the table and of the tables in it.
pub(crate) fn entries(table: &DeTable<'_>) -> Vec<Entry> {
    let mut found = Vec::new();
    collect(table, "", &mut found);
    found
}

fn collect(table: &DeTable<'_>, prefix: &str, found: &mut Vec<Entry>) {
    for (key, value) in table {
        let path = dotted(prefix, key.get_ref());
        found.push(Entry { path: path.clone(), value: value.span() });
        if let DeValue::Table(below) = value.get_ref() {
            collect(below, &path, found);
        }
    }
}
