//! The connection of a GPU to the others: NCCL on a stream of its own, so that some gradients are sent
//! while others are computed.
//!
//! What is queued here runs beside the computation. [`Exchange::follow`] and [`Exchange::precede`] order
//! the two where they meet. A rank that fails ends the calls of all ranks ([`Ties`]).

use super::ties::Ties;
use crate::cuda::nccl::{Communicator, UniqueId};
use crate::cuda::{Device, DeviceSliceMut, Event, Half, Stream};
use crate::ranks::{Member, Shards};
use anyhow::Result;
use std::sync::Arc;

/// What a rank needs to join the others.
pub(crate) struct Invitation {
    /// The identifier of the ranks' communicator; `None` for a rank without others.
    pub(crate) id: Option<UniqueId>,
    pub(crate) rank: usize,
    /// The number of ranks on all nodes.
    pub(crate) size: usize,
    pub(crate) ties: Arc<Ties>,
}

pub(crate) struct Exchange {
    communicator: Arc<Communicator>,
    ties: Arc<Ties>,
    stream: Stream,
    reached: Event,
}

impl Exchange {
    /// Joins the other ranks, and waits for all of them.
    pub(crate) fn join(device: &Arc<Device>, invitation: Invitation) -> Result<Self> {
        let Invitation { id, rank, size, ties } = invitation;
        let communicator = Arc::new(match id {
            Some(id) => Communicator::join(device, id, rank, size)?,
            None => Communicator::single(device),
        });
        ties.communicators.add(communicator.clone());
        communicator.wait().inspect_err(|_| ties.cut())?;
        let (stream, reached) = (Stream::new(device)?, Event::new(device)?);
        Ok(Self { communicator, ties, stream, reached })
    }

    pub(crate) fn communicator(&self) -> &Communicator {
        &self.communicator
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Makes what is queued here from now on wait for what `computation` has queued.
    pub(crate) fn follow(&self, computation: &Stream) -> Result<()> {
        self.reached.record(computation)?;
        self.stream.wait(&self.reached)
    }

    /// Makes what `computation` queues from now on wait for what is queued here.
    pub(crate) fn precede(&self, computation: &Stream) -> Result<()> {
        self.reached.record(&self.stream)?;
        computation.wait(&self.reached)
    }

    /// Fills `params` with the pieces of every rank, in the order of `computation`.
    pub(crate) fn gather(
        &self,
        shards: Shards,
        mut params: DeviceSliceMut<'_, Half>,
        computation: &Stream,
    ) -> Result<()> {
        self.follow(computation)?;
        for bucket in shards.buckets() {
            self.communicator.all_gather(&self.stream, params.range(bucket))?;
        }
        self.precede(computation)
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
        self.ties.cut();
    }
}
