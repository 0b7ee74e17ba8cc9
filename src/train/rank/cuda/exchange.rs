//! A GPU's way to the others: NCCL on a stream of its own, so that some gradients travel while others
//! are computed.
//!
//! Contract: what is queued here runs beside the computation; [`Exchange::follow`] and
//! [`Exchange::precede`] order the two where they meet. A rank that fails ends the calls of all ranks of
//! this process.

use crate::cuda::nccl::{Communicator, UniqueId};
use crate::cuda::{Device, Event, Stream};
use crate::dist::Member;
use anyhow::Result;
use std::sync::Arc;

/// One rank's end.
pub(super) struct Exchange {
    communicator: Arc<Communicator>,
    /// Those of all ranks of this process.
    all: Vec<Arc<Communicator>>,
    stream: Stream,
    reached: Event,
}

impl Exchange {
    /// Joins the ranks that have `id`, which only a rank without others can do without, and waits for
    /// all of them.
    pub(super) fn join(
        device: &Arc<Device>,
        id: Option<UniqueId>,
        (rank, size): (usize, usize),
    ) -> Result<Self> {
        let communicator = Arc::new(match id {
            Some(id) => Communicator::join(device, id, rank, size)?,
            None => Communicator::single(device),
        });
        Ok(Self {
            all: vec![communicator.clone()],
            communicator,
            stream: Stream::new(device)?,
            reached: Event::new(device)?,
        })
    }

    /// Makes the failure of one the failure of all.
    pub(super) fn tie<'e>(exchanges: impl Iterator<Item = &'e mut Self>) {
        let exchanges: Vec<_> = exchanges.collect();
        let all: Vec<_> = exchanges.iter().map(|exchange| exchange.communicator.clone()).collect();
        exchanges.into_iter().for_each(|exchange| exchange.all.clone_from(&all));
    }

    pub(super) fn communicator(&self) -> &Communicator {
        &self.communicator
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// What is queued here from now on waits for what is queued in `computation` now.
    pub(super) fn follow(&self, computation: &Stream) -> Result<()> {
        self.reached.record(computation)?;
        self.stream.wait(&self.reached)
    }

    /// What is queued in `computation` from now on waits for what is queued here now.
    pub(super) fn precede(&self, computation: &Stream) -> Result<()> {
        self.reached.record(&self.stream)?;
        computation.wait(&self.reached)
    }
}

impl Member for Exchange {
    fn rank(&self) -> usize {
        self.communicator.rank()
    }

    fn size(&self) -> usize {
        self.communicator.size()
    }

    fn abort(&self) {
        self.all.iter().for_each(|communicator| communicator.abort());
    }
}
