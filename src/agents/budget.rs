//! What calls cost, and what may be spent.
//!
//! Contract: the most that a call can cost is reserved before it is sent, so calls that go on at the same time
//! never exceed the budget together. What a call cost takes the place of what was reserved; where that cannot be
//! known, the reserve counts as spent. Money is whole numbers of 1e-12 USD, so that nothing is lost to rounding.

use super::answer::{Answer, TokenCounts};
use crate::base::error::usage;
use crate::base::human;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, AddAssign, SubAssign};

/// 1e-12 USD for a token, in USD for a million tokens.
const PICO_USD_PER_USD_PER_MILLION: f64 = 1e6;
const PICO_USD_PER_USD: f64 = 1e12;

/// More than any million tokens ever cost.
const HIGHEST_PRICE: f64 = 1e6;

/// What tokens cost, in USD for a million.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Of prompts.
    pub input: f64,
    /// Of what of a prompt the endpoint has in a cache; where not given, as `input`.
    pub cached_input: Option<f64>,
    /// Of answers, their thoughts among them.
    pub output: f64,
}

/// What may be spent with all calls of a recording; nothing bounds what is not given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Money.
    pub usd: Option<f64>,
    /// Tokens of prompts and answers.
    pub tokens: Option<u64>,
}

/// Tokens and what they cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spend {
    pub(crate) tokens: u64,
    pub(crate) pico_usd: u64,
}

impl Prices {
    pub(crate) fn check(&self) -> Result<()> {
        let prices = [
            ("input", Some(self.input)),
            ("cached_input", self.cached_input),
            ("output", Some(self.output)),
        ];
        let is_wrong = |price: f64| !(0.0..=HIGHEST_PRICE).contains(&price);
        match prices
            .into_iter()
            .find_map(|(name, price)| Some((name, price.filter(|p| is_wrong(*p))?)))
        {
            None => Ok(()),
            Some((name, price)) => Err(usage(format!(
                "prices.{name} is {price}: it must be USD for a million tokens, from 0 to {HIGHEST_PRICE}"
            ))),
        }
    }
}

/// What so many tokens cost, rounded up.
fn cost(tokens: u64, usd_per_million: f64) -> u64 {
    let pico_usd = (usd_per_million * PICO_USD_PER_USD_PER_MILLION).round() as u64;
    tokens.saturating_mul(pico_usd)
}

impl Budget {
    pub(crate) fn check(&self, has_prices: bool) -> Result<()> {
        if let Some(usd) = self.usd {
            if !(usd > 0.0 && usd <= HIGHEST_PRICE) {
                return Err(usage(format!(
                    "budget.usd is {usd}: it must be above 0 and at most {HIGHEST_PRICE}"
                )));
            }
            if !has_prices {
                return Err(usage(
                    "budget.usd needs `prices`, without which nothing is known to cost",
                ));
            }
        }
        match self.tokens {
            Some(0) => Err(usage("budget.tokens is 0: leave it out, or give at least 1")),
            _ => Ok(()),
        }
    }

    /// Whether so much may be spent.
    fn covers(&self, spend: Spend) -> bool {
        let usd = self.usd.map(|usd| (usd * PICO_USD_PER_USD) as u64);
        usd.is_none_or(|most| spend.pico_usd <= most)
            && self.tokens.is_none_or(|most| spend.tokens <= most)
    }
}

impl Add for Spend {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl AddAssign for Spend {
    fn add_assign(&mut self, other: Self) {
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.pico_usd = self.pico_usd.saturating_add(other.pico_usd);
    }
}

impl SubAssign for Spend {
    fn sub_assign(&mut self, other: Self) {
        self.tokens = self.tokens.saturating_sub(other.tokens);
        self.pico_usd = self.pico_usd.saturating_sub(other.pico_usd);
    }
}

impl Spend {
    pub(crate) fn usd(self) -> f64 {
        self.pico_usd as f64 / PICO_USD_PER_USD
    }

    /// A share of it, such as what is still to come.
    pub(crate) fn scaled(self, factor: f64) -> Self {
        let scale = |n: u64| (n as f64 * factor) as u64;
        Self { tokens: scale(self.tokens), pico_usd: scale(self.pico_usd) }
    }
}

impl fmt::Display for Spend {
    /// Money where tokens have a price, otherwise tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pico_usd, self.usd()) {
            (0, _) => write!(f, "{} tokens", human::count(self.tokens)),
            (_, usd) if usd < 0.1 => write!(f, "{usd:.6} USD"),
            (_, usd) => write!(f, "{usd:.2} USD"),
        }
    }
}

/// What was spent and is reserved.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    prices: Option<Prices>,
    budget: Budget,
    /// What calls cost, as their endpoint counted.
    pub(crate) spent: Spend,
    /// What calls may have cost of which that cannot be known.
    pub(crate) unknown: Spend,
    pub(crate) reserved: Spend,
}

impl Ledger {
    pub(crate) fn new(
        prices: Option<Prices>,
        budget: Budget,
        (spent, unknown): (Spend, Spend),
    ) -> Self {
        Self { prices, budget, spent, unknown, reserved: Spend::default() }
    }

    /// What a call costs at most, or cost.
    pub(crate) fn cost(&self, tokens: TokenCounts) -> Spend {
        let TokenCounts { prompt, cached, completion } = tokens;
        let cached = cached.min(prompt);
        let pico_usd = self.prices.map_or(0, |prices| {
            let fresh = cost(prompt - cached, prices.input);
            let cached = cost(cached, prices.cached_input.unwrap_or(prices.input));
            fresh.saturating_add(cached).saturating_add(cost(completion, prices.output))
        });
        Spend { tokens: prompt.saturating_add(completion), pico_usd }
    }

    /// What a call cost that brought this answer, or none, and whether that is known: some endpoints do not count.
    pub(crate) fn cost_of_answer(&self, answer: Option<&Answer>, reserved: Spend) -> (Spend, bool) {
        match answer.and_then(|answer| answer.tokens) {
            Some(tokens) => (self.cost(tokens), true),
            None => (reserved, false),
        }
    }

    /// Reserves what a call may cost. Says whether the budget has room for it.
    pub(crate) fn reserve(&mut self, most: Spend) -> bool {
        let has_room = self.budget.covers(self.spent + self.unknown + self.reserved + most);
        if has_room {
            self.reserved += most;
        }
        has_room
    }

    /// Books what a call cost in place of what was reserved for it.
    pub(crate) fn settle(&mut self, reserved: Spend, cost: Spend, is_known: bool) {
        self.reserved -= reserved;
        *(if is_known { &mut self.spent } else { &mut self.unknown }) += cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICES: Prices = Prices { input: 0.28, cached_input: Some(0.0028), output: 0.42 };

    fn ledger(usd: Option<f64>, tokens: Option<u64>) -> Ledger {
        Ledger::new(Some(PRICES), Budget { usd, tokens }, Default::default())
    }

    #[test]
    fn a_price_is_counted_to_the_last_digit() {
        let tokens = TokenCounts { prompt: 1_000_000, cached: 400_000, completion: 1 };
        let cost = ledger(None, None).cost(tokens);
        // 0.6 x 0.28 + 0.4 x 0.0028 + 0.42e-6 USD.
        assert_eq!(cost, Spend { tokens: 1_000_001, pico_usd: 169_120_420_000 });
        assert_eq!(cost.to_string(), "0.17 USD");
    }

    #[test]
    fn what_is_reserved_counts_until_the_cost_is_known() {
        let mut ledger = ledger(None, Some(100));
        let most = Spend { tokens: 40, pico_usd: 0 };
        assert!(ledger.reserve(most) && ledger.reserve(most));
        assert!(!ledger.reserve(most), "two calls on their way leave no room for a third");
        ledger.settle(most, Spend { tokens: 5, pico_usd: 0 }, true);
        assert!(ledger.reserve(most));
        ledger.settle(most, most, false);
        assert_eq!(
            (ledger.spent.tokens, ledger.unknown.tokens, ledger.reserved.tokens),
            (5, 40, 40)
        );
        assert!(!ledger.reserve(most), "what may have been paid counts");
        assert!(ledger.reserve(Spend { tokens: 15, pico_usd: 0 }));
    }

    #[test]
    fn money_has_a_budget_of_its_own() {
        let mut ledger = ledger(Some(1e-6), None);
        let call = ledger.cost(TokenCounts { prompt: 1, cached: 0, completion: 1 });
        assert!(ledger.reserve(call));
        assert!(!ledger.reserve(call), "0.7e-6 USD twice");
    }
}
