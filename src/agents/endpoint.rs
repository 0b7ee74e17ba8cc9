//! Where a model is served, how it is reached, what it costs: the settings of an endpoint.

use super::budget::{Budget, Prices};
use crate::base::error::usage;
use crate::config;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Far more calls and seconds than anybody waits for.
const MOST: u64 = 1 << 16;

/// Keys of a request that have settings of their own.
const OWN_KEYS: [&str; 8] = [
    "model",
    "messages",
    "temperature",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "stream",
    "n",
];

/// A model that others serve, by OpenAI's chat protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The base URL, such as `https://api.openai.com/v1`: `/chat/completions` is added to it.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// The environment variable that holds the key; without it no key is sent.
    pub key_env: Option<String>,
    /// The date on which prices and `accepts` were looked up: both change.
    pub as_of: Option<String>,
    /// What tokens cost.
    pub prices: Option<Prices>,
    /// What may be spent.
    #[serde(default)]
    pub budget: Budget,
    /// Which fields of a request the endpoint takes.
    #[serde(default)]
    pub accepts: Accepts,
    /// How it is asked.
    #[serde(default)]
    pub limits: Limits,
    /// More fields of every request, such as `reasoning_effort = "high"`.
    #[serde(default)]
    pub extra: BTreeMap<String, Value>,
}

/// Which fields of a request an endpoint takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Accepts {
    /// Whether `temperature` is sent.
    pub temperature: bool,
    /// Whether `seed` is sent: another one for each answer, the same one if the answer is asked for again.
    pub seed: bool,
    /// The field that holds the longest answer, in tokens.
    pub max_tokens_field: MaxTokensField,
    /// The role of what is said before the conversation.
    pub system_role: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MaxTokensField {
    MaxTokens,
    MaxCompletionTokens,
}

impl Default for Accepts {
    /// What most endpoints take.
    fn default() -> Self {
        Self {
            temperature: true,
            seed: true,
            max_tokens_field: MaxTokensField::MaxTokens,
            system_role: "system".to_owned(),
        }
    }
}

/// How an endpoint is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most calls at the same time. Fewer are made as long as the endpoint says that it has too many.
    pub concurrency: usize,
    /// How often a call that fails is sent in all.
    pub attempts: u32,
    /// The wait before a failed call is sent again; it doubles each time, up to a minute.
    pub first_wait_secs: f64,
    /// Longest wait for a connection.
    pub connect_timeout_secs: f64,
    /// Longest silence while a response is awaited or read.
    pub read_timeout_secs: f64,
    /// Longest time for a call, from its first byte to its last.
    pub call_timeout_secs: f64,
}

impl Default for Limits {
    /// Long answers of reasoning models take ten minutes.
    fn default() -> Self {
        Self {
            concurrency: 64,
            attempts: 8,
            first_wait_secs: 0.5,
            connect_timeout_secs: 10.0,
            read_timeout_secs: 600.0,
            call_timeout_secs: 1200.0,
        }
    }
}

/// How an answer is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits.
    pub temperature: f64,
    /// Longest answer, in tokens, the thought among them.
    pub max_tokens: u64,
}

impl Endpoint {
    /// Reads a TOML file, if one is given, and what stands in place of its values.
    pub fn load(
        file: Option<&Path>,
        url: Option<&str>,
        model: Option<&str>,
        key_env: Option<&str>,
    ) -> Result<Self> {
        let given = [("url", url), ("model", model), ("key_env", key_env)];
        let sets: Vec<String> = given
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", toml::Value::from(value?))))
            .collect();
        let files: Vec<PathBuf> = file.into_iter().map(Path::to_owned).collect();
        let mut endpoint: Self = config::load(&files, &sets)?.value;
        endpoint.url.truncate(endpoint.url.trim_end_matches('/').len());
        endpoint.check()?;
        Ok(endpoint)
    }

    /// Refuses settings with which nothing could be asked, and secrets where they would be written down.
    fn check(&self) -> Result<()> {
        let Self { url, limits, .. } = self;
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let rest = rest.filter(|rest| !rest.is_empty() && !rest.starts_with('/'));
        // Not shown: it may be a key.
        let Some(rest) = rest else {
            return Err(usage(
                "the endpoint's URL must begin with http:// or https:// and name a host, such as \
                 https://api.openai.com/v1",
            ));
        };
        if rest.contains(['@', '?', '#']) || rest.contains(char::is_whitespace) {
            return Err(usage(
                "the endpoint's URL must have no user, query or fragment: it is written into results, and a \
                 key belongs in an environment variable",
            ));
        }
        if let Some(rest) = url.strip_suffix("/chat/completions") {
            return Err(usage(format!(
                "the endpoint's URL is {url}: give the base URL, {rest}, without /chat/completions"
            )));
        }
        if self.model.is_empty() {
            return Err(usage("the endpoint's model has no name"));
        }
        let counts = [
            ("limits.concurrency", limits.concurrency as u64),
            ("limits.attempts", u64::from(limits.attempts)),
        ];
        if let Some((name, count)) = counts.iter().find(|(_, count)| !(1..=MOST).contains(count)) {
            return Err(usage(format!("{name} is {count}: it must be from 1 to {MOST}")));
        }
        let times = [
            ("limits.first_wait_secs", limits.first_wait_secs),
            ("limits.connect_timeout_secs", limits.connect_timeout_secs),
            ("limits.read_timeout_secs", limits.read_timeout_secs),
            ("limits.call_timeout_secs", limits.call_timeout_secs),
        ];
        let is_wrong = |secs: f64| !(secs > 0.0 && secs <= MOST as f64);
        if let Some((name, secs)) = times.iter().find(|(_, secs)| is_wrong(*secs)) {
            return Err(usage(format!("{name} is {secs}: it must be above 0 and at most {MOST}")));
        }
        if let Some(key) = self.extra.keys().find(|key| OWN_KEYS.contains(&key.as_str())) {
            return Err(usage(format!("extra.{key}: this field of a request is not for `extra`")));
        }
        if let Some(prices) = &self.prices {
            prices.check()?;
            if self.as_of.is_none() {
                return Err(usage(
                    "prices need the date on which they were looked up: set `as_of`",
                ));
            }
        }
        self.budget.check(self.prices.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;

    fn load(text: &str) -> Result<Endpoint> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endpoint.toml");
        std::fs::write(&path, text).unwrap();
        Endpoint::load(Some(&path), Some("http://h:1/v1/"), Some("m \"1\""), None)
    }

    #[test]
    fn a_file_and_arguments_make_an_endpoint() {
        let endpoint = load(
            "url = 'https://else'\nas_of = '2026-08-21'\nprices = { input = 0.28, output = 0.42 }\n\
             extra = { reasoning_effort = 'high', list = [1] }\naccepts.temperature = false\n",
        )
        .unwrap();
        assert_eq!((endpoint.url.as_str(), endpoint.model.as_str()), ("http://h:1/v1", "m \"1\""));
        assert_eq!(endpoint.extra["list"], serde_json::json!([1]));
        assert!(!endpoint.accepts.temperature && endpoint.accepts.seed);
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_its_key() {
        for (text, part) in [
            ("modle = 'x'", "modle"),
            ("limits.attempts = 0", "limits.attempts is 0"),
            ("limits.call_timeout_secs = -1", "limits.call_timeout_secs is -1"),
            ("extra = { stream = true }", "extra.stream"),
            ("prices = { input = 1, output = 1 }", "as_of"),
            ("as_of = 'x'\nprices = { input = -1, output = 1 }", "prices.input"),
            ("budget.usd = 1", "budget.usd needs `prices`"),
            ("budget.tokens = 0", "budget.tokens is 0"),
        ] {
            let error = load(text).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_url_that_may_hold_a_secret_is_refused_without_showing_it() {
        for url in
            ["https://me:secret@host/v1", "https://host/v1?key=secret", "sk-secret", "http:///v1"]
        {
            let error = Endpoint::load(None, Some(url), Some("m"), None).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let error = Endpoint::load(None, Some("http://h/chat/completions"), Some("m"), None);
        assert!(error.unwrap_err().to_string().contains("give the base URL, http://h,"));
    }
}
