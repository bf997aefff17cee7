//! The card's memory, as programs use it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::driver::{Card, DeviceMemory, Stream};
use crate::kernels::SCALAR_BYTES;
use crate::tape::{BufferId, Program, Role, View};
use crate::{Error, Result, arena};

/// Bytes of the card's memory, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryUse {
    /// Parameters, momenta, statistics and whatever else lives from run to run.
    pub persistent: u64,
    /// Activations, gradients and inputs.
    pub arena: u64,
    /// What convolutions need while they run.
    pub workspaces: u64,
}

impl MemoryUse {
    /// All together.
    pub fn total(&self) -> u64 {
        self.persistent + self.arena + self.workspaces
    }
}

/// All blocks of an executor.
#[derive(Debug)]
pub(super) struct Memory {
    card: Arc<Card>,
    persistent: BTreeMap<String, Persistent>,
    arena: Option<DeviceMemory>,
    workspaces: Vec<Option<DeviceMemory>>,
    scalars: Option<DeviceMemory>,
    generation: u64,
}

#[derive(Debug)]
struct Persistent {
    memory: DeviceMemory,
    contents: Option<Vec<u8>>,
}

impl Memory {
    pub(super) fn new(card: &Arc<Card>) -> Memory {
        Memory {
            card: Arc::clone(card),
            persistent: BTreeMap::new(),
            arena: None,
            workspaces: Vec::new(),
            scalars: None,
            generation: 0,
        }
    }

    /// A number that changes whenever a block moves.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn in_use(&self) -> MemoryUse {
        let workspaces = self.workspaces.iter().flatten().map(DeviceMemory::bytes).sum();
        let persistent = self.persistent.values().map(|buffer| buffer.memory.bytes()).sum();
        MemoryUse { persistent, arena: self.arena.as_ref().map_or(0, DeviceMemory::bytes), workspaces }
    }

    /// Makes room for a program whose streams need these workspaces. The card must be idle.
    pub(super) fn provide(
        &mut self,
        program: &Program,
        plan: &arena::Plan,
        workspaces: &[u64],
        stream: &Stream,
    ) -> Result<()> {
        let mut names = BTreeSet::new();
        for buffer in program.buffers.iter().filter(|buffer| buffer.role == Role::Persistent) {
            if !names.insert(buffer.name.as_str()) {
                let got = buffer.name.clone();
                return Err(Error::Shape {
                    what: "names of persistent buffers",
                    expected: "distinct".into(),
                    got,
                });
            }
            self.provide_persistent(&buffer.name, buffer.bytes as u64, buffer.contents.as_deref(), stream)?;
        }
        let bytes = plan.bytes() as u64;
        if self.arena.as_ref().is_none_or(|block| block.bytes() < bytes) {
            // The old block goes first: both may not fit.
            self.arena = None;
            self.generation += 1;
            let block = DeviceMemory::new(&self.card, bytes)?;
            // Not a number: what is read before it is written shows.
            block.fill(0..bytes, 0xff, stream)?;
            self.arena = Some(block);
        }
        for (index, &bytes) in workspaces.iter().enumerate() {
            if self.workspaces.len() == index {
                self.workspaces.push(None);
            }
            let slot = &mut self.workspaces[index];
            if bytes > 0 && slot.as_ref().is_none_or(|block| block.bytes() < bytes) {
                *slot = None;
                self.generation += 1;
                *slot = Some(DeviceMemory::new(&self.card, bytes)?);
            }
        }
        if self.scalars.is_none() {
            self.generation += 1;
            self.scalars = Some(DeviceMemory::new(&self.card, SCALAR_BYTES as u64)?);
        }
        stream.synchronise()
    }

    /// A persistent buffer of at least `bytes` bytes; a longer one takes the old one's contents over.
    fn provide_persistent(
        &mut self,
        name: &str,
        bytes: u64,
        contents: Option<&[u8]>,
        stream: &Stream,
    ) -> Result<()> {
        let old = self.persistent.get(name);
        if let Some(old) = old {
            if contents.is_some() && old.contents.as_deref() != contents {
                let (expected, got) = ("the same in all programs".into(), format!("others in {name}"));
                return Err(Error::Shape { what: "contents of a persistent buffer", expected, got });
            }
            if old.memory.bytes() >= bytes {
                return Ok(());
            }
        }
        let block = DeviceMemory::new(&self.card, bytes)?;
        block.fill(0..bytes, 0, stream)?;
        match (contents, old) {
            (Some(contents), _) => block.upload(0, contents, stream)?,
            (None, Some(old)) => {
                block.upload(0, &old.memory.download(0..old.memory.bytes(), stream)?, stream)?
            }
            (None, None) => {}
        }
        self.generation += 1;
        let persistent = Persistent { memory: block, contents: contents.map(<[u8]>::to_vec) };
        self.persistent.insert(name.to_owned(), persistent);
        Ok(())
    }

    /// A persistent buffer.
    pub(super) fn persistent(&self, name: &str) -> Result<&DeviceMemory> {
        let missing = || Error::Shape {
            what: "persistent buffer",
            expected: "one of a loaded program".into(),
            got: name.to_owned(),
        };
        self.persistent.get(name).map(|buffer| &buffer.memory).ok_or_else(missing)
    }

    /// The block that a buffer lies in, and where.
    pub(super) fn place(
        &self,
        program: &Program,
        plan: &arena::Plan,
        id: BufferId,
    ) -> Result<(&DeviceMemory, u64)> {
        let buffer = &program.buffers[id.0];
        if buffer.role == Role::Persistent {
            return Ok((self.persistent(&buffer.name)?, 0));
        }
        let nowhere = || Error::Shape {
            what: "buffer",
            expected: "one that an operation touches".into(),
            got: buffer.name.clone(),
        };
        let at = plan.place(id).ok_or_else(nowhere)?;
        Ok((self.arena()?, at as u64))
    }

    /// The address of a place in a buffer.
    pub(super) fn address(&self, program: &Program, plan: &arena::Plan, view: View) -> Result<u64> {
        let (block, at) = self.place(program, plan, view.buffer)?;
        Ok(block.address() + at + view.offset as u64)
    }

    pub(super) fn arena(&self) -> Result<&DeviceMemory> {
        let missing =
            || Error::Shape { what: "arena", expected: "a loaded program".into(), got: "none".into() };
        self.arena.as_ref().ok_or_else(missing)
    }

    /// The block of the numbers that change between runs.
    pub(super) fn scalars(&self) -> Result<&DeviceMemory> {
        let missing =
            || Error::Shape { what: "scalars", expected: "a loaded program".into(), got: "none".into() };
        self.scalars.as_ref().ok_or_else(missing)
    }

    /// Address of a stream's workspace, 0 if it needs none.
    pub(super) fn workspace(&self, stream: usize) -> u64 {
        self.workspaces.get(stream).and_then(Option::as_ref).map_or(0, DeviceMemory::address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_add_up() {
        let used = MemoryUse { persistent: 1, arena: 20, workspaces: 300 };
        assert_eq!(used.total(), 321);
    }
}
