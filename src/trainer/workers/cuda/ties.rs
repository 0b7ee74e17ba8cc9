//! The connections by which the ranks of a process wait for each other, here and on other nodes.
//!
//! Contract: cutting it makes every waiting and future call fail, here and on the other nodes, and so does
//! the loss of a node. Dropping it tells the other nodes that this one is done.

use crate::cuda::nccl::Group;
use crate::nodes::{Lane, Meeting, Watch};
use anyhow::Result;
use std::sync::Arc;
use std::time::Duration;

/// How long nodes wait for each other at the start: node 0 may have data to prepare.
pub(crate) const MEETING: Duration = Duration::from_secs(30 * 60);

/// How long an aborted process gets to end by itself.
const GRACE: Duration = Duration::from_secs(20);

pub(crate) struct Ties {
    pub(crate) communicators: Group,
    pub(crate) lanes: Vec<Arc<Lane>>,
    watch: Watch,
}

impl Ties {
    /// Takes the connections of a meeting, and watches over the other nodes from now on.
    pub(crate) fn new(mut meeting: Meeting) -> Result<Arc<Self>> {
        let communicators = Group::default();
        let lanes = std::mem::take(&mut meeting.lanes).into_iter().map(Arc::new).collect();
        let watch = guard(meeting, communicators.clone())?;
        Ok(Arc::new(Self { communicators, lanes, watch }))
    }

    /// Ends the run on all nodes.
    pub(crate) fn cut(&self) {
        self.communicators.abort();
        self.lanes.iter().for_each(|lane| lane.shut());
        self.watch.abandon();
    }
}

/// Watches over the other nodes. When one is lost, aborts the communicators, so that the ranks of this node fail
/// instead of waiting; a process that still hangs after that is ended with code 1.
fn guard(meeting: Meeting, communicators: Group) -> Result<Watch> {
    meeting.watch(move |lost| {
        tracing::error!("{lost} is gone; stopping this node (--resume goes on from what is saved)");
        communicators.abort();
        std::thread::sleep(GRACE);
        std::process::exit(1);
    })
}
