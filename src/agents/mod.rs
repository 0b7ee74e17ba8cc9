//! Models that answer messages: behind an API that speaks OpenAI's chat protocol, on this machine, or recorded.
//!
//! Contract: whoever asks an [`Agent`] does not know which of the three it is. An answer of an API is on disk,
//! raw, before anything reads it, and is never asked for a second time. Left out: what is asked, and what
//! an answer is worth (`rollout`, `eval`).

mod account;
mod answer;
mod api;
mod budget;
mod decision;
mod endpoint;
mod error_body;
mod http;
mod journal;
mod link;
mod local;
mod recorded;
mod recording;
mod request;
mod round;
mod senders;
mod throttle;

pub use account::Account;
pub use answer::{Answer, Finish, Outcome, Refusal, RefusalKind, TokenCounts};
pub use api::Api;
pub use budget::{Budget, Prices};
pub use endpoint::{Accepts, Endpoint, Limits, MaxTokensField, Sampling};
pub use local::{Local, LocalSizes};
pub use recorded::Recorded;

use crate::base::progress::Progress;
use crate::tokenizer::Message;
use anyhow::Result;
use std::sync::Arc;

/// One question, to which one answer is wanted.
#[derive(Debug, Clone)]
pub struct Call {
    /// What it is asked for, such as a problem's id: equal messages with other ids are other calls.
    pub id: String,
    pub messages: Arc<[Message]>,
    /// Which of several answers to the same messages.
    pub sample: usize,
    /// Key of the answer's randomness, for those who can draw by one.
    pub seed: u64,
}

/// A model that answers messages.
pub trait Agent {
    /// Asks all `calls` and gives what comes of each, with its place in the list, to `on_outcome`, in no
    /// particular order, each once.
    ///
    /// Errors, also those of `on_outcome`, and an interrupt end it after the calls that are on their way.
    fn ask(
        &mut self,
        calls: &[Call],
        progress: &Progress,
        on_outcome: &mut (dyn FnMut(usize, Outcome) -> Result<()> + Send),
    ) -> Result<()>;

    /// Who answered, with which settings, and what that took so far.
    fn account(&self) -> Account;
}
