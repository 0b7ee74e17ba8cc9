//! Answers out of a recording: a run that is repeated without a network.
//!
//! Contract: a call gets the answer that it got when it was recorded. One that is not in the recording is a
//! mistake, which is said with what the nearest one has instead. Nothing is written.

use super::answer::Outcome;
use super::endpoint::{Endpoint, Sampling};
use super::recording::Recording;
use super::request::Request;
use super::{Account, Agent, Call};
use crate::base::error::usage;
use crate::base::progress::Progress;
use anyhow::Result;
use std::path::Path;

/// A model as it once answered.
pub struct Recorded {
    endpoint: Endpoint,
    sampling: Sampling,
    recording: Recording,
}

impl Recorded {
    /// Opens what [`super::Api`] wrote into `dir`.
    pub fn open(endpoint: Endpoint, sampling: Sampling, dir: &Path) -> Result<Self> {
        let recording = Recording::open(Recording::path_in(dir))?;
        Ok(Self { endpoint, sampling, recording })
    }
}

impl Agent for Recorded {
    fn ask(
        &mut self,
        calls: &[Call],
        _progress: &Progress,
        on_outcome: &mut (dyn FnMut(usize, Outcome) -> Result<()> + Send),
    ) -> Result<()> {
        for (index, call) in calls.iter().enumerate() {
            let request = Request::new(&self.endpoint, self.sampling, call);
            let Some(answer) = self.recording.answer(request.key()?)? else {
                return Err(usage(format!(
                    "the recording has no answer to {:?}, sample {}: {}",
                    call.id,
                    call.sample,
                    self.recording.nearest(&request)?
                )));
            };
            on_outcome(index, Outcome::Answered(answer))?;
        }
        Ok(())
    }

    fn account(&self) -> Account {
        let account = Account::of(&self.endpoint, self.sampling, self.recording.num_cut);
        Account { is_replay: true, ..account }
    }
}
