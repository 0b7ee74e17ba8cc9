//! A model behind an API that speaks OpenAI's chat protocol.
//!
//! Contract: what was answered once is read from the journal and not asked again. Before a call is sent, the most
//! that it can cost is reserved and written down; what comes back is on disk before anything reads it. Left out:
//! how calls are sent at the same time (`round`), and what a reply means (`decision`).

use super::account::Cost;
use super::answer::Outcome;
use super::endpoint::{Endpoint, Sampling};
use super::link::Link;
use super::request::Key;
use super::round::Round;
use super::{Account, Agent, Call};
use crate::base::progress::Progress;
use anyhow::Result;
use std::collections::HashSet;
use std::path::Path;

/// A model behind an API.
pub struct Api(Link);

impl Api {
    /// Asks an endpoint, and keeps in `dir` whatever it answers; what is there already is not asked again.
    pub fn open(endpoint: Endpoint, sampling: Sampling, dir: &Path) -> Result<Self> {
        Link::open(endpoint, sampling, dir).map(Self)
    }
}

impl Agent for Api {
    fn ask(
        &mut self,
        calls: &[Call],
        progress: &Progress,
        on_outcome: &mut (dyn FnMut(usize, Outcome) -> Result<()> + Send),
    ) -> Result<()> {
        let Self(link) = self;
        let mut todo: Vec<usize> = (0..calls.len()).collect();
        while !todo.is_empty() {
            let mut keys: HashSet<Key> = HashSet::new();
            let (mut unanswered, mut twins, mut num_known) = (Vec::new(), Vec::new(), 0);
            for index in todo {
                let key = link.request(&calls[index]).key()?;
                if let Some(answer) = link.journal.answer(key)? {
                    num_known += 1;
                    on_outcome(index, Outcome::Answered(answer))?;
                } else if keys.insert(key) {
                    unanswered.push(index);
                } else {
                    // The same call twice: what the first one brings will answer the other.
                    twins.push(index);
                }
            }
            if num_known > 0 {
                let path = link.journal.path().display();
                tracing::info!(
                    "{num_known} answers are known ({path}), {} are asked for",
                    unanswered.len()
                );
            }
            if !unanswered.is_empty() {
                Round::new(link, calls, progress, on_outcome).ask(unanswered)?;
            }
            todo = twins;
        }
        Ok(())
    }

    fn account(&self) -> Account {
        let Self(Link { endpoint, sampling, journal, ledger, .. }) = self;
        let cost = Cost::of(endpoint, ledger, journal.num_unknown());
        let account = Account::of(endpoint, *sampling, journal.num_cut());
        Account { cost: Some(cost), ..account }
    }
}
