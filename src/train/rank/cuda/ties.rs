//! What the ranks of a process wait for each other by, here and on other nodes.
//!
//! Contract: cutting it makes every waiting and future call fail, here and on the other nodes, and so does
//! the loss of a node. Dropping it tells the other nodes that this one is done.

use crate::cuda::nccl::{self, Group};
use crate::dist::Lane;
use crate::dist::rendezvous::Meeting;
use crate::dist::watch::Watch;
use anyhow::Result;
use std::sync::Arc;

/// Of all ranks of this process.
pub(super) struct Ties {
    pub(super) communicators: Group,
    pub(super) lanes: Vec<Arc<Lane>>,
    watch: Watch,
}

impl Ties {
    /// Takes the connections of a meeting, and watches over the other nodes from now on.
    pub(super) fn new(mut meeting: Meeting) -> Result<Arc<Self>> {
        let communicators = Group::default();
        let lanes = std::mem::take(&mut meeting.lanes).into_iter().map(Arc::new).collect();
        let watch = nccl::guard(meeting, communicators.clone())?;
        Ok(Arc::new(Self { communicators, lanes, watch }))
    }

    /// Ends the run on all nodes.
    pub(super) fn cut(&self) {
        self.communicators.abort();
        self.lanes.iter().for_each(|lane| lane.shut());
        self.watch.abandon();
    }
}
