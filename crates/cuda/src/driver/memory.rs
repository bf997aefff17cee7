//! Memory of the card, and memory of the host that the card reads and writes by itself.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use super::api::{OUT_OF_MEMORY, call};
use super::{Card, Stream};
use crate::{Error, Result};

/// A block of the card's memory, aligned to 256 bytes.
#[derive(Debug)]
pub struct DeviceMemory {
    card: Arc<Card>,
    address: u64,
    bytes: u64,
}

impl DeviceMemory {
    /// Allocates a block. Its content is whatever lay there.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with what is needed and what is there, or the driver's.
    pub fn new(card: &Arc<Card>, bytes: u64) -> Result<DeviceMemory> {
        let mut address = 0;
        let api = card.driver()?;
        // SAFETY: writes one address, freed when the block is dropped. Zero bytes are not allowed.
        let status = unsafe { (api.cuMemAlloc_v2)(&mut address, bytes.max(256) as usize) };
        if status == OUT_OF_MEMORY {
            let (free, total) = card.memory()?;
            let name = card.properties().name.clone();
            return Err(Error::OutOfMemory { card: name, needed: bytes, free, total });
        }
        api.check("cuMemAlloc", status)?;
        Ok(DeviceMemory { card: Arc::clone(card), address, bytes })
    }

    /// Where it lies on the card.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sets a range of bytes to `value`, when the stream comes to it.
    ///
    /// # Errors
    /// A range outside the block, or the driver's.
    pub fn fill(&self, range: Range<u64>, value: u8, stream: &Stream) -> Result<()> {
        let (address, bytes) = self.part(&range)?;
        if bytes == 0 {
            return Ok(());
        }
        let api = self.card.driver()?;
        // SAFETY: the range lies in the block.
        unsafe { call!(api, cuMemsetD8Async(address, value, bytes, stream.raw())) }
    }

    /// Copies `bytes` to `offset` and waits for it.
    ///
    /// # Errors
    /// A range outside the block, or the driver's.
    pub fn upload(&self, offset: u64, bytes: &[u8], stream: &Stream) -> Result<()> {
        let (address, len) = self.part(&(offset..offset + bytes.len() as u64))?;
        if len == 0 {
            return Ok(());
        }
        let api = self.card.driver()?;
        // SAFETY: both ranges are whole, and the host's lives until the copy is done: below it is waited for.
        unsafe { call!(api, cuMemcpyHtoDAsync_v2(address, bytes.as_ptr().cast(), len, stream.raw())) }?;
        stream.synchronise()
    }

    /// Copies a range to the host once the stream has come to it.
    ///
    /// # Errors
    /// A range outside the block, or the driver's.
    pub fn download(&self, range: Range<u64>, stream: &Stream) -> Result<Vec<u8>> {
        let (address, bytes) = self.part(&range)?;
        let mut values = vec![0_u8; bytes];
        if bytes == 0 {
            return Ok(values);
        }
        let api = self.card.driver()?;
        // SAFETY: both ranges are whole, and the host's lives until the copy is done: below it is waited for.
        unsafe {
            call!(api, cuMemcpyDtoHAsync_v2(values.as_mut_ptr().cast(), address, bytes, stream.raw()))
        }?;
        stream.synchronise()?;
        Ok(values)
    }

    /// Copies `bytes` bytes from `from` of this block to `at` of another one or of this one, when the stream comes to
    /// it. The ranges may not overlap.
    ///
    /// # Errors
    /// A range outside its block, ranges that overlap, or the driver's.
    pub fn copy_to(
        &self,
        from: u64,
        other: &DeviceMemory,
        at: u64,
        bytes: u64,
        stream: &Stream,
    ) -> Result<()> {
        let ((source, len), (target, _)) =
            (self.part(&(from..from + bytes))?, other.part(&(at..at + bytes))?);
        if source.abs_diff(target) < bytes {
            let got = format!("{from} and {at}");
            return Err(Error::Shape { what: "distance of two ranges", expected: bytes.to_string(), got });
        }
        if len == 0 {
            return Ok(());
        }
        let api = self.card.driver()?;
        // SAFETY: both ranges lie in their blocks and do not overlap.
        unsafe { call!(api, cuMemcpyDtoDAsync_v2(target, source, len, stream.raw())) }
    }

    /// Address and length of a range.
    fn part(&self, range: &Range<u64>) -> Result<(u64, usize)> {
        if range.start > range.end || range.end > self.bytes {
            let (expected, got) = (format!("within {} bytes", self.bytes), format!("{range:?}"));
            return Err(Error::Shape { what: "range of a block of the card's memory", expected, got });
        }
        Ok((self.address + range.start, (range.end - range.start) as usize))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if let Ok(api) = self.card.driver() {
            // SAFETY: allocated in `new`, dropped once. The driver waits for work that uses it.
            unsafe { (api.cuMemFree_v2)(self.address) };
        }
    }
}

/// A block of the host's memory that stays where it is, so that the card copies from and to it while the host goes on.
///
/// [`PinnedMemory::upload`] and [`PinnedMemory::download`] return at once. Who writes to the block, reads from it or
/// drops it must know by an event that the card is done; dropping waits by itself.
#[derive(Debug)]
pub struct PinnedMemory {
    card: Arc<Card>,
    address: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for PinnedMemory {}
// SAFETY: shared references only read it.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Allocates a block of zeros.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(card: &Arc<Card>, bytes: usize) -> Result<PinnedMemory> {
        let mut address = std::ptr::null_mut();
        let api = card.driver()?;
        // SAFETY: writes one address, freed when the block is dropped. Zero bytes are not allowed.
        unsafe { call!(api, cuMemHostAlloc(&mut address, bytes.max(1), 0)) }?;
        let address: *mut u8 = address.cast();
        // SAFETY: freshly allocated with at least `bytes` bytes.
        unsafe { address.write_bytes(0, bytes.max(1)) };
        Ok(PinnedMemory { card: Arc::clone(card), address, bytes })
    }

    /// Lets the card copy the first `bytes` bytes of this block to `offset` of its own, when the stream comes to it.
    ///
    /// # Safety
    /// Nobody may write to those bytes before the stream has passed the copy.
    ///
    /// # Errors
    /// A range outside the blocks, or the driver's.
    pub unsafe fn upload(&self, bytes: usize, to: &DeviceMemory, offset: u64, stream: &Stream) -> Result<()> {
        self.holds(bytes)?;
        let (address, len) = to.part(&(offset..offset + bytes as u64))?;
        let api = self.card.driver()?;
        // SAFETY: both ranges are whole; the caller keeps the host's as it is, and dropping it waits for the card.
        unsafe { call!(api, cuMemcpyHtoDAsync_v2(address, self.address.cast(), len, stream.raw())) }
    }

    /// Lets the card copy `range` of its own block to the start of this one, when the stream comes to it.
    ///
    /// # Safety
    /// Nobody may read or write those bytes before the stream has passed the copy.
    ///
    /// # Errors
    /// A range outside the blocks, or the driver's.
    pub unsafe fn download(&mut self, from: &DeviceMemory, range: Range<u64>, stream: &Stream) -> Result<()> {
        let (address, len) = from.part(&range)?;
        self.holds(len)?;
        let api = self.card.driver()?;
        // SAFETY: both ranges are whole; the caller leaves the host's alone, and dropping it waits for the card.
        unsafe { call!(api, cuMemcpyDtoHAsync_v2(self.address.cast(), address, len, stream.raw())) }
    }

    fn holds(&self, bytes: usize) -> Result<()> {
        if bytes > self.bytes {
            let (expected, got) = (format!("at most {}", self.bytes), bytes.to_string());
            return Err(Error::Shape { what: "bytes of pinned memory", expected, got });
        }
        Ok(())
    }
}

impl Deref for PinnedMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: allocated with this size and initialised.
        unsafe { std::slice::from_raw_parts(self.address, self.bytes) }
    }
}

impl DerefMut for PinnedMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this size and initialised; the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // A copy may be under way.
        let _ = self.card.synchronise();
        if let Ok(api) = self.card.driver() {
            // SAFETY: allocated in `new`, dropped once, and the card is done with it.
            unsafe { (api.cuMemFreeHost)(self.address.cast()) };
        }
    }
}
