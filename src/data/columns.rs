//! The keys of a row that the program does not know, with their values exactly as they were written.

use serde::de::{Error, IgnoredAny};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Keys with the JSON text of their values, in the order of the keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns(BTreeMap<String, String>);

impl Columns {
    /// Returns the keys of the object `row` that are not among `known`.
    pub(crate) fn other_than<E: Error>(known: &[&str], row: &RawValue) -> Result<Self, E> {
        let names: BTreeMap<String, IgnoredAny> = parse(row.get())?;
        if names.keys().all(|name| known.contains(&name.as_str())) {
            return Ok(Self::default());
        }
        let values: BTreeMap<String, Box<RawValue>> = parse(row.get())?;
        let others = values.into_iter().filter(|(name, _)| !known.contains(&name.as_str()));
        Ok(Self(others.map(|(name, value)| (name, value.get().to_owned())).collect()))
    }

    /// Returns each key with the JSON text of its value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

fn parse<'t, T: serde::Deserialize<'t>, E: Error>(text: &'t str) -> Result<T, E> {
    serde_json::from_str(text).map_err(E::custom)
}

impl Serialize for Columns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw = |text: &str| {
            RawValue::from_string(text.to_owned()).expect("invariant: it was read as JSON")
        };
        serializer.collect_map(self.iter().map(|(name, value)| (name, raw(value))))
    }
}
