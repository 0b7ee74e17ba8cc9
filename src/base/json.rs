//! JSON values that keep how they were written.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Deserializes the content of a JSON string, or the digits of a JSON number as they were written: numbers of
/// any size stay exact.
pub fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    match raw.get().as_bytes()[0] {
        b'"' => serde_json::from_str(raw.get()).map_err(serde::de::Error::custom),
        b'-' | b'0'..=b'9' => Ok(raw.get().to_owned()),
        _ => Err(serde::de::Error::custom("expected a string or a number")),
    }
}
