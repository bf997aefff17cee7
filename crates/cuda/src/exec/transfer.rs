//! What travels between the host and the card while the card works.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::memory::Memory;
use crate::driver::{Card, DeviceMemory, Event, PinnedMemory, Stream};
use crate::kernels::SCALAR_BYTES;
use crate::tape::BufferId;
use crate::{Error, Result};

/// Runs that may be under way before the host waits for the oldest.
const SLOTS: usize = 8;

/// Copies under way.
#[derive(Debug)]
pub(super) struct Transfers {
    card: Arc<Card>,
    /// Copies from the host, besides the streams that compute.
    copies: Stream,
    scalars: Vec<Slot>,
    next_scalars: usize,
    inputs: BTreeMap<(usize, BufferId), Input>,
    /// Results on their way, by ticket, and blocks that none uses.
    results: Vec<Option<(Slot, usize)>>,
    spare: Vec<Slot>,
}

/// Pinned memory, and the event after which the card is done with it.
#[derive(Debug)]
struct Slot {
    memory: PinnedMemory,
    event: Event,
}

impl Slot {
    fn new(card: &Arc<Card>, bytes: usize) -> Result<Slot> {
        Ok(Slot { memory: PinnedMemory::new(card, bytes)?, event: Event::new(card)? })
    }
}

/// An input's two pairs of blocks: the host fills one while the card copies from the other.
#[derive(Debug)]
struct Input {
    halves: [Half; 2],
    next: usize,
    /// The half, and how many bytes of it, that the next run uses.
    staged: Option<(usize, usize)>,
}

#[derive(Debug)]
struct Half {
    /// Its event: the copy to `device` is done.
    host: Slot,
    device: DeviceMemory,
    /// The copy from `device` to the input is done.
    used: Event,
}

impl Transfers {
    pub(super) fn new(card: &Arc<Card>) -> Result<Transfers> {
        Ok(Transfers {
            card: Arc::clone(card),
            copies: Stream::new(card)?,
            scalars: (0..SLOTS).map(|_| Slot::new(card, SCALAR_BYTES)).collect::<Result<_>>()?,
            next_scalars: 0,
            inputs: BTreeMap::new(),
            results: Vec::new(),
            spare: Vec::new(),
        })
    }

    /// Writes the numbers of the next run, when `stream` comes to it.
    pub(super) fn write_scalars(&mut self, bytes: &[u8], memory: &Memory, stream: &Stream) -> Result<()> {
        let slot = &mut self.scalars[self.next_scalars];
        slot.event.synchronise()?;
        slot.memory[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: the block is not written again before its event, recorded next, is reached.
        unsafe { slot.memory.upload(bytes.len(), memory.scalars()?, 0, stream) }?;
        slot.event.record(stream)?;
        self.next_scalars = (self.next_scalars + 1) % SLOTS;
        Ok(())
    }

    /// Lets the host fill a block and the card copy it, for a program's next run.
    pub(super) fn stage(
        &mut self,
        input: (usize, BufferId),
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        if self.inputs.get(&input).is_none_or(|input| input.halves[0].host.memory.len() < bytes) {
            let half = || -> Result<Half> {
                let device = DeviceMemory::new(&self.card, bytes as u64)?;
                Ok(Half { host: Slot::new(&self.card, bytes)?, device, used: Event::new(&self.card)? })
            };
            // Blocks of another size may be in use by copies under way.
            self.card.synchronise()?;
            self.inputs.insert(input, Input { halves: [half()?, half()?], next: 0, staged: None });
        }
        let Some(input) = self.inputs.get_mut(&input) else { unreachable!("inserted above") };
        // What was staged and not used is replaced.
        let index = input.staged.map_or(input.next, |(index, _)| index);
        let Half { host, device, used } = &mut input.halves[index];
        host.event.synchronise()?;
        fill(&mut host.memory[..bytes]);
        self.copies.wait(used)?;
        // SAFETY: the host's block is not written again before its event, recorded next, is reached.
        unsafe { host.memory.upload(bytes, device, 0, &self.copies) }?;
        host.event.record(&self.copies)?;
        input.staged = Some((index, bytes));
        input.next = 1 - index;
        Ok(())
    }

    /// Copies what was staged for a program into its inputs, when `stream` comes to it.
    pub(super) fn use_staged(
        &mut self,
        program: usize,
        memory: &Memory,
        place: impl Fn(BufferId) -> Option<u64>,
        stream: &Stream,
    ) -> Result<()> {
        let range = (program, BufferId(0))..=(program, BufferId(usize::MAX));
        for ((_, buffer), input) in self.inputs.range_mut(range) {
            let Some((index, bytes)) = input.staged.take() else { continue };
            let half = &input.halves[index];
            stream.wait(&half.host.event)?;
            // An input that nothing reads has no place.
            if let Some(at) = place(*buffer) {
                half.device.copy_to(0, memory.arena()?, at, bytes as u64, stream)?;
            }
            half.used.record(stream)?;
        }
        Ok(())
    }

    /// Lets the card copy a range to the host, when `stream` comes to it.
    pub(super) fn fetch(&mut self, from: &DeviceMemory, range: Range<u64>, stream: &Stream) -> Result<u64> {
        let bytes = (range.end - range.start) as usize;
        let fitting = self.spare.iter().position(|slot| slot.memory.len() >= bytes);
        let mut slot = match fitting {
            Some(index) => self.spare.swap_remove(index),
            None => Slot::new(&self.card, bytes.max(4096))?,
        };
        // SAFETY: nobody reads the block before its event, recorded next, is reached.
        unsafe { slot.memory.download(from, range, stream) }?;
        slot.event.record(stream)?;
        let free = self.results.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            self.results.push(None);
            self.results.len() - 1
        });
        self.results[index] = Some((slot, bytes));
        Ok(index as u64)
    }

    pub(super) fn is_ready(&self, ticket: u64) -> Result<bool> {
        let result = self.results.get(ticket as usize).and_then(Option::as_ref);
        result.map_or(Ok(true), |(slot, _)| slot.event.is_reached())
    }

    pub(super) fn take(&mut self, ticket: u64) -> Result<Vec<u8>> {
        let unknown = || Error::Shape {
            what: "ticket",
            expected: "one of this executor".into(),
            got: "another".into(),
        };
        let (slot, bytes) =
            self.results.get_mut(ticket as usize).and_then(Option::take).ok_or_else(unknown)?;
        slot.event.synchronise()?;
        let values = slot.memory[..bytes].to_vec();
        self.spare.push(slot);
        Ok(values)
    }
}
