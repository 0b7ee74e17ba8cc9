//! The connections over which the ranks of a process wait for each other, here and on other nodes.
//!
//! Cutting them makes every call fail that waits or comes later, here and on the other nodes. The loss of a
//! node does the same. Dropping them tells the other nodes that this one is done.

use crate::cuda::nccl::Group;
use crate::nodes::{Lane, Meeting, Watch};
use anyhow::Result;
use std::sync::Arc;
use std::time::Duration;

/// Nodes wait for each other this long at the start, since node 0 may have data to prepare.
pub(crate) const MEETING: Duration = Duration::from_secs(30 * 60);

/// An aborted process has this long to end by itself.
const GRACE: Duration = Duration::from_secs(20);

pub(crate) struct Ties {
    pub(crate) communicators: Group,
    pub(crate) lanes: Vec<Arc<Lane>>,
    watch: Watch,
}

impl Ties {
    /// Takes the connections of a meeting, and watches the other nodes from now on.
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

/// Watches the other nodes. When one is lost, it aborts the communicators, so that the ranks of this node
/// fail instead of waiting. A process that still hangs after that is ended with code 1.
fn guard(meeting: Meeting, communicators: Group) -> Result<Watch> {
    meeting.watch(move |lost| {
        tracing::error!("{lost} is gone; stopping this node (--resume goes on from what is saved)");
        communicators.abort();
        std::thread::sleep(GRACE);
        std::process::exit(1);
    })
}
