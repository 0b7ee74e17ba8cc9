//! An endpoint with all that is remembered of it: what was answered, what was spent, how many calls it bears.

use super::Call;
use super::budget::Ledger;
use super::endpoint::{Endpoint, Sampling};
use super::http::Http;
use super::journal::Journal;
use super::request::Request;
use super::throttle::Throttle;
use anyhow::Result;
use std::path::Path;
use std::sync::Arc;

/// An endpoint that is asked.
pub(crate) struct Link {
    pub(crate) endpoint: Endpoint,
    pub(crate) sampling: Sampling,
    pub(crate) http: Arc<Http>,
    pub(crate) journal: Journal,
    pub(crate) ledger: Ledger,
    pub(crate) throttle: Throttle,
    /// Whether the endpoint has ever responded.
    pub(crate) was_reached: bool,
}

impl Link {
    /// Asks an endpoint, and keeps in `dir` whatever it answers; what is there already is not asked again.
    pub(crate) fn open(endpoint: Endpoint, sampling: Sampling, dir: &Path) -> Result<Self> {
        let http = Arc::new(Http::new(&endpoint)?);
        let (journal, ledger, num_interrupted) = Journal::open(dir, &endpoint)?;
        if num_interrupted > 0 {
            tracing::warn!(
                "{num_interrupted} calls of an earlier run were on their way when it ended: they may have been \
                 paid, and are asked again ({})",
                journal.path().display()
            );
        }
        let throttle = Throttle::new(endpoint.limits.concurrency);
        Ok(Self { endpoint, sampling, http, journal, ledger, throttle, was_reached: false })
    }

    pub(crate) fn request<'a>(&'a self, call: &'a Call) -> Request<'a> {
        Request::new(&self.endpoint, self.sampling, call)
    }
}
