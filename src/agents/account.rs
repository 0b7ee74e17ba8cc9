//! Who answered, with which settings, and what it took: what a result says of its origin.

use super::budget::{Ledger, Prices};
use super::endpoint::{Endpoint, Sampling};
use super::request::settings;
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt;

/// Who answered, and what it took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Account {
    /// The base URL; absent where the model is one of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The model and how it draws, in the words of a request.
    pub settings: Map<String, Value>,
    /// Whether the answers were read from a recording, and nothing was asked.
    pub is_replay: bool,
    /// Answers that ended at the token limit; of an endpoint all those of the recording.
    pub num_cut: u64,
    /// What all calls of the recording cost; absent where none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// What calls cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// Tokens of prompts and answers, as the endpoint counts them.
    pub tokens: u64,
    pub usd: f64,
    /// Calls whose cost cannot be known: no answer came after they were sent, or it counts nothing.
    pub num_unknown: u64,
    /// The most that these may have cost more.
    pub most_unknown_tokens: u64,
    pub most_unknown_usd: f64,
    /// What was reckoned with.
    pub prices: Option<Prices>,
    pub as_of: Option<String>,
}

impl Account {
    /// The account of an endpoint that asked nothing.
    pub(crate) fn of(endpoint: &Endpoint, sampling: Sampling, num_cut: u64) -> Self {
        Self {
            endpoint: Some(endpoint.url.clone()),
            settings: settings(endpoint, sampling),
            is_replay: false,
            num_cut,
            cost: None,
        }
    }

    /// The settings as text, in one line.
    pub fn settings_text(&self) -> String {
        Value::from(self.settings.clone()).to_string()
    }
}

impl Cost {
    pub(crate) fn of(endpoint: &Endpoint, ledger: &Ledger, num_unknown: u64) -> Self {
        Self {
            tokens: ledger.spent.tokens,
            usd: ledger.spent.usd(),
            num_unknown,
            most_unknown_tokens: ledger.unknown.tokens,
            most_unknown_usd: ledger.unknown.usd(),
            prices: endpoint.prices,
            as_of: endpoint.as_of.clone(),
        }
    }
}

impl fmt::Display for Account {
    /// A line or two for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, is_replay, num_cut, cost, .. } = self;
        write!(f, "answered by {}", self.settings_text())?;
        if let Some(url) = endpoint {
            write!(f, " at {url}")?;
        }
        if *is_replay {
            write!(f, ", from a recording")?;
        }
        write!(f, "; {num_cut} answers were cut off at the token limit")?;
        let Some(Cost { tokens, usd, num_unknown, most_unknown_tokens, most_unknown_usd, .. }) =
            cost
        else {
            return Ok(());
        };
        let money =
            cost.as_ref().and_then(|cost| cost.as_of.as_ref().filter(|_| cost.prices.is_some()));
        write!(f, "\n{tokens} tokens")?;
        if let Some(date) = money {
            write!(f, ", {usd:.4} USD at the prices of {date}")?;
        }
        if *num_unknown > 0 {
            write!(
                f,
                "; {num_unknown} calls more may have been paid, at most {most_unknown_tokens} tokens"
            )?;
            if money.is_some() {
                write!(f, ", {most_unknown_usd:.4} USD")?;
            }
        }
        Ok(())
    }
}
