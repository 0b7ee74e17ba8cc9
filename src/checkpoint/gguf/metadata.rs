//! What a GGUF file says about itself, by keys.
//!
//! Contract: a value of another kind than is asked for is the user's error, which names file and key.

use crate::base::error::usage;
use anyhow::Result;
use candle_core::quantized::gguf_file::Value;
use std::collections::HashMap;
use std::path::PathBuf;

/// Values by their keys.
pub(crate) struct Metadata {
    pub(crate) path: PathBuf,
    pub(crate) values: HashMap<String, Value>,
}

impl Metadata {
    /// Makes an error of the user that names file and key.
    pub(crate) fn wrong(&self, key: &str, what: &str) -> anyhow::Error {
        usage(format!("{}: {key}: {what}", self.path.display()))
    }

    /// Reads a text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "a text", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Reads a whole number from 0 on.
    pub(crate) fn size(&self, key: &str) -> Result<Option<u64>> {
        self.get(key, "a whole number from 0 on", whole)
    }

    /// Reads a number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", |value| match value {
            Value::F32(number) => Some(f64::from(*number)),
            Value::F64(number) => Some(*number),
            other => whole(other).map(|number| number as f64),
        })
    }

    /// Reads a yes or no.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// Reads a list of texts.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.list(key, "a list of texts", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Reads a list of whole numbers from 0 on.
    pub(crate) fn sizes(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.list(key, "a list of whole numbers", whole)
    }

    /// Refuses a file that does not have the key.
    pub(crate) fn required<T>(&self, key: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| self.wrong(key, "the file does not have this key"))
    }

    fn get<'m, T>(
        &'m self,
        key: &str,
        kind: &str,
        read: impl Fn(&'m Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let wrong = || self.wrong(key, &format!("expected {kind}, found {:?}", value.value_type()));
        read(value).map(Some).ok_or_else(wrong)
    }

    fn list<'m, T>(
        &'m self,
        key: &str,
        kind: &str,
        read: impl Fn(&'m Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        self.get(key, kind, |value| match value {
            Value::Array(values) => values.iter().map(&read).collect(),
            _ => None,
        })
    }
}

/// Returns a whole number from 0 on, in whichever format it is stored.
fn whole(value: &Value) -> Option<u64> {
    match *value {
        Value::U8(number) => Some(number.into()),
        Value::U16(number) => Some(number.into()),
        Value::U32(number) => Some(number.into()),
        Value::U64(number) => Some(number),
        Value::I8(number) => number.try_into().ok(),
        Value::I16(number) => number.try_into().ok(),
        Value::I32(number) => number.try_into().ok(),
        Value::I64(number) => number.try_into().ok(),
        _ => None,
    }
}
