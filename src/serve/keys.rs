//! API keys: who has one may use the server.
//!
//! Contract: keys are kept and compared as SHA-256 digests, all of them in constant time, and never shown.
//! Without keys anybody who reaches the server may use it.

use crate::base::error::usage;
use anyhow::Result;
use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// The keys of a server.
#[derive(Default)]
pub struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    /// A key a line; empty lines do not count. `place` names the text in errors.
    pub fn parse(text: &str, place: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys: Vec<[u8; 32]> = lines.map(|key| Sha256::digest(key).into()).collect();
        if keys.is_empty() {
            return Err(usage(format!("{place} holds no API key: write one a line")));
        }
        Ok(Self(keys))
    }

    /// Returns whether a request with these headers is from somebody who has a key.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> bool {
        let bearer = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let bearer = bearer.and_then(|value| {
            let (scheme, key) = value.split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
        });
        let given = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()));
        let digest = Sha256::digest(given.unwrap_or_default().trim_ascii());
        let is_known = self.0.iter().fold(Choice::from(0), |known, key| known | key.ct_eq(&digest));
        self.0.is_empty() || is_known.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_given_in_either_header() {
        let keys = ApiKeys::parse("first\n\n second \n", "k").unwrap();
        let admits = |name: &'static str, value: &str| {
            keys.admit(&HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]))
        };
        assert!(
            admits("authorization", "Bearer first") && admits("authorization", "bearer second")
        );
        assert!(admits("x-api-key", "second"));
        for (name, value) in [
            ("authorization", "Bearer third"),
            ("authorization", "Bearer "),
            ("authorization", "first"),
            ("authorization", ""),
            ("x-api-key", ""),
        ] {
            assert!(!admits(name, value), "{name}: {value}");
        }
        assert!(!keys.admit(&HeaderMap::new()) && ApiKeys::default().admit(&HeaderMap::new()));
        let error = ApiKeys::parse(" \n", "keys.txt").err().unwrap();
        assert!(error.to_string().contains("keys.txt"));
    }
}
