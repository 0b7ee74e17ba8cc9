//! The fields of a request's JSON body, each taken once, by name.
//!
//! Contract: null means the default. A value of another kind or out of range is the user's error and names
//! its field; numbers in strings are no numbers. What nobody took is logged, once a name.

use super::error::ApiError;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

/// So many names of fields are remembered as logged: clients may make up more.
const MOST_LOGGED: usize = 200;

static LOGGED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The fields that are not taken yet.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::bad("the body must be a JSON object")),
            Err(error) => Err(ApiError::bad(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// Takes a value that is not null.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        let read = |value: Value| {
            value.as_bool().ok_or_else(|| ApiError::field(name, "expected true or false"))
        };
        self.take(name).map(read).transpose()
    }

    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        let read = |value| match value {
            Value::String(text) => Ok(text),
            _ => Err(ApiError::field(name, "expected a string")),
        };
        self.take(name).map(read).transpose()
    }

    pub(crate) fn integer(
        &mut self,
        name: &'static str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let read = |value: Value| {
            let integer = integer(&value).filter(|integer| range.contains(integer));
            let (least, most) = (range.start(), range.end());
            integer.ok_or_else(|| {
                ApiError::field(name, format!("expected an integer from {least} to {most}"))
            })
        };
        self.take(name).map(read).transpose()
    }

    /// Takes an integer that counts something.
    pub(crate) fn count(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<usize>, ApiError> {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        Ok(self.integer(name, range)?.map(|count| count as usize))
    }

    pub(crate) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, ApiError> {
        let read = |value: Value| {
            let number = value.as_f64().filter(|number| range.contains(number));
            let (least, most) = (range.start(), range.end());
            number.map(|number| number as f32).ok_or_else(|| {
                ApiError::field(name, format!("expected a number from {least} to {most}"))
            })
        };
        self.take(name).map(read).transpose()
    }

    /// Refuses a field, unless its value `is_harmless`.
    pub(crate) fn refuse(
        &mut self,
        name: &'static str,
        is_harmless: impl Fn(&Value) -> bool,
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !is_harmless(&value) => {
                Err(ApiError::unsupported(name, "this server does not support it"))
            }
            _ => Ok(()),
        }
    }

    /// Logs what is left, which changes nothing that was asked for.
    pub(crate) fn ignore_rest(self) {
        let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
        for name in self.0.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name) {
            let short: String = name.chars().take(60).collect();
            if logged.len() < MOST_LOGGED && logged.insert(short.clone()) {
                tracing::info!("requests have a field {short:?}, which is ignored");
            }
        }
    }
}

/// Reads an integer, also one that is written as 3.0.
pub(crate) fn integer(value: &Value) -> Option<i64> {
    let whole =
        |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
    value.as_i64().or_else(|| value.as_f64().and_then(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str, read: impl Fn(&mut Fields) -> Result<(), ApiError>) -> String {
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        read(&mut fields).unwrap_err().object().to_string()
    }

    #[test]
    fn what_is_no_json_object_is_refused() {
        for body in
            ["", "[]", "{", "{} x", r#"{"a": NaN}"#, r#"{"a": 1e400}"#, r#"{"a": "\ud83d"}"#]
        {
            assert!(Fields::parse(body.as_bytes()).is_err(), "{body}");
        }
        assert!(Fields::parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn null_is_the_default_and_a_wrong_value_names_its_field() {
        let mut fields =
            Fields::parse(br#"{"n": null, "seed": 3.0, "top_p": 1, "stream": true}"#).unwrap();
        assert_eq!(fields.count("n", 1..=5).unwrap(), None);
        assert_eq!(fields.integer("seed", i64::MIN..=i64::MAX).unwrap(), Some(3));
        assert_eq!(fields.number("top_p", 0.0..=1.0).unwrap(), Some(1.0));
        assert_eq!(fields.boolean("stream").unwrap(), Some(true));
        for n in ["\"2\"", "1.5", "0", "-1", "2147483648", "true", "[]"] {
            let body = format!(r#"{{"n": {n}}}"#);
            let object = refused(&body, |fields| fields.count("n", 1..=128).map(|_| ()));
            assert!(object.contains(r#""param":"n""#) && object.contains("1 to 128"), "{object}");
        }
        let tools = |fields: &mut Fields| fields.refuse("tools", |_| false);
        assert!(refused(r#"{"tools": [1]}"#, tools).contains("unsupported_parameter"));
        Fields::parse(br#"{"tools": null}"#).unwrap().refuse("tools", |_| false).unwrap();
    }
}
