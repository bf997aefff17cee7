//! Recorded work.

use std::sync::Arc;

use super::api::call;
use super::{Card, Handle, Stream};
use crate::Result;

/// Work that was recorded once ([`Stream::capture`]) and is given to a stream by one call.
///
/// Kernels' arguments and addresses are those of the recording; what changes must lie in the card's memory, which must
/// outlive the graph.
#[derive(Debug)]
pub struct Graph {
    card: Arc<Card>,
    raw: Handle,
    nodes: usize,
}

// SAFETY: graphs belong to the context, not to a thread.
unsafe impl Send for Graph {}
// SAFETY: launches of one graph are ordered by the driver.
unsafe impl Sync for Graph {}

impl Graph {
    /// Makes a recorded graph ready to run, and frees the record.
    pub(super) fn from_recorded(card: &Arc<Card>, recorded: Handle) -> Result<Graph> {
        let api = card.driver()?;
        let (mut raw, mut nodes) = (std::ptr::null_mut(), 0);
        // SAFETY: the record is alive; a null list asks for the number alone.
        let counted = unsafe { call!(api, cuGraphGetNodes(recorded, std::ptr::null_mut(), &mut nodes)) };
        // SAFETY: the record is alive; writes one handle, destroyed when the graph is dropped.
        let made =
            counted.and_then(|()| unsafe { call!(api, cuGraphInstantiateWithFlags(&mut raw, recorded, 0)) });
        // SAFETY: the record is not used after this.
        unsafe { (api.cuGraphDestroy)(recorded) };
        made.map(|()| Graph { card: Arc::clone(card), raw, nodes })
    }

    /// Kernels, copies and fills in it.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Gives the work to a stream.
    ///
    /// # Errors
    /// The driver's.
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        let api = self.card.driver()?;
        // SAFETY: both are alive. The memory that the graph uses is its maker's duty.
        unsafe { call!(api, cuGraphLaunch(self.raw, stream.raw())) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(api) = self.card.driver() {
            // SAFETY: made in `from_recorded`, dropped once; a run in progress is not disturbed.
            unsafe { (api.cuGraphExecDestroy)(self.raw) };
        }
    }
}
