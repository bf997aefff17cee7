//! Streams and events.

use std::sync::Arc;

use super::api::{NOT_READY, call};
use super::{Card, Graph, Handle};
use crate::Result;

/// A queue of work for the card, done in order.
#[derive(Debug)]
pub struct Stream {
    card: Arc<Card>,
    raw: Handle,
}

// SAFETY: streams belong to the context, not to a thread.
unsafe impl Send for Stream {}
// SAFETY: the driver's calls on a stream are safe from several threads at once.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream, which does not wait for the default one.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(card: &Arc<Card>) -> Result<Stream> {
        const NON_BLOCKING: u32 = 1;
        let mut raw = std::ptr::null_mut();
        let api = card.driver()?;
        // SAFETY: writes one handle, destroyed when the stream is dropped.
        unsafe { call!(api, cuStreamCreate(&mut raw, NON_BLOCKING)) }?;
        Ok(Stream { card: Arc::clone(card), raw })
    }

    /// Its card.
    pub fn card(&self) -> &Arc<Card> {
        &self.card
    }

    /// Waits until everything given to the stream is done.
    ///
    /// # Errors
    /// The driver's; also errors of kernels that ran before.
    pub fn synchronise(&self) -> Result<()> {
        let api = self.card.driver()?;
        // SAFETY: the stream is alive.
        unsafe { call!(api, cuStreamSynchronize(self.raw)) }
    }

    /// Lets the stream wait for an event that was recorded.
    ///
    /// # Errors
    /// The driver's.
    pub fn wait(&self, event: &Event) -> Result<()> {
        let api = self.card.driver()?;
        // SAFETY: both are alive.
        unsafe { call!(api, cuStreamWaitEvent(self.raw, event.raw, 0)) }
    }

    /// Records what `work` gives to this stream, and to streams that wait for it and are waited for, as a graph.
    /// Nothing of it runs.
    ///
    /// # Errors
    /// Those of `work`, and the driver's: for one, when `work` makes a call that waits for the card.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        // Other threads may go on to allocate and copy.
        const RELAXED: u32 = 2;
        let api = self.card.driver()?;
        // SAFETY: the stream is alive, and captured by nobody else as this takes the only thread that uses it.
        unsafe { call!(api, cuStreamBeginCapture_v2(self.raw, RELAXED)) }?;
        let result = work();
        let mut recorded = std::ptr::null_mut();
        // SAFETY: ends the capture begun above, also after a failure; writes one handle.
        let ended = unsafe { call!(api, cuStreamEndCapture(self.raw, &mut recorded)) };
        let graph = ended.and_then(|()| Graph::from_recorded(&self.card, recorded));
        result.and(graph)
    }

    pub(crate) fn raw(&self) -> Handle {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(api) = self.card.driver() {
            // SAFETY: created in `new`, dropped once; work that was given to it is still done.
            unsafe { (api.cuStreamDestroy_v2)(self.raw) };
        }
    }
}

/// A mark in a stream, to wait for or to time by.
#[derive(Debug)]
pub struct Event {
    card: Arc<Card>,
    raw: Handle,
}

// SAFETY: events belong to the context, not to a thread.
unsafe impl Send for Event {}
// SAFETY: the driver's calls on an event are safe from several threads at once.
unsafe impl Sync for Event {}

impl Event {
    /// An event that costs least, which cannot be timed by.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(card: &Arc<Card>) -> Result<Event> {
        const DISABLE_TIMING: u32 = 2;
        Event::with_flags(card, DISABLE_TIMING)
    }

    /// An event to time by.
    ///
    /// # Errors
    /// The driver's.
    pub fn timed(card: &Arc<Card>) -> Result<Event> {
        Event::with_flags(card, 0)
    }

    fn with_flags(card: &Arc<Card>, flags: u32) -> Result<Event> {
        let mut raw = std::ptr::null_mut();
        let api = card.driver()?;
        // SAFETY: writes one handle, destroyed when the event is dropped.
        unsafe { call!(api, cuEventCreate(&mut raw, flags)) }?;
        Ok(Event { card: Arc::clone(card), raw })
    }

    /// Marks the present end of a stream.
    ///
    /// # Errors
    /// The driver's.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        let api = self.card.driver()?;
        // SAFETY: both are alive.
        unsafe { call!(api, cuEventRecord(self.raw, stream.raw)) }
    }

    /// Whether the mark was reached.
    ///
    /// # Errors
    /// The driver's.
    pub fn is_reached(&self) -> Result<bool> {
        let api = self.card.driver()?;
        // SAFETY: the event is alive.
        let status = unsafe { (api.cuEventQuery)(self.raw) };
        if status == NOT_READY {
            return Ok(false);
        }
        api.check("cuEventQuery", status).map(|()| true)
    }

    /// Waits until the mark is reached.
    ///
    /// # Errors
    /// The driver's.
    pub fn synchronise(&self) -> Result<()> {
        let api = self.card.driver()?;
        // SAFETY: the event is alive.
        unsafe { call!(api, cuEventSynchronize(self.raw)) }
    }

    /// Milliseconds from this event to a later one; both were made by [`Event::timed`] and recorded. Waits for the
    /// later one.
    ///
    /// # Errors
    /// The driver's.
    pub fn milliseconds_to(&self, later: &Event) -> Result<f32> {
        later.synchronise()?;
        let mut milliseconds = 0.0;
        let api = self.card.driver()?;
        // SAFETY: both are alive; writes one float.
        unsafe { call!(api, cuEventElapsedTime(&mut milliseconds, self.raw, later.raw)) }?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(api) = self.card.driver() {
            // SAFETY: created in `with_flags`, dropped once.
            unsafe { (api.cuEventDestroy_v2)(self.raw) };
        }
    }
}
