//! What runs programs: the card, or the host in its place.

use std::ops::Range;

use crate::error::Result;
use crate::host::{Host, HostProgram, Order};
use crate::plans::PlanBook;
use crate::tape::{BufferId, Program, Role, Scalars};

/// Something that runs programs. Persistent buffers are shared by name; the other buffers of a program are its own, and
/// a run of another program may overwrite them.
pub trait Machine: Send {
    /// Takes a program over; its number. A program without tapes only declares persistent buffers.
    ///
    /// # Errors
    /// The machine's: out of memory, no plan for a convolution.
    fn load(&mut self, program: Program) -> Result<usize>;

    /// Starts a tape; a machine may return before it has run.
    ///
    /// # Errors
    /// The machine's, also of earlier runs.
    fn run(&mut self, program: usize, tape: usize, scalars: &Scalars) -> Result<()>;

    /// Lets `fill` write an input of `bytes` bytes for the next run of this program.
    ///
    /// # Errors
    /// The machine's.
    fn stage(
        &mut self,
        program: usize,
        buffer: BufferId,
        bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<()>;

    /// Reads bytes of an input or output, after all that was started.
    ///
    /// # Errors
    /// The machine's, also of earlier runs.
    fn read(&mut self, program: usize, buffer: BufferId, range: Range<usize>) -> Result<Vec<u8>>;

    /// Writes a persistent buffer from byte `offset` on.
    ///
    /// # Errors
    /// The machine's.
    fn write_persistent(&mut self, name: &str, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Reads bytes of a persistent buffer, after all that was started.
    ///
    /// # Errors
    /// The machine's, also of earlier runs.
    fn read_persistent(&mut self, name: &str, range: Range<usize>) -> Result<Vec<u8>>;

    /// Begins to read the first `bytes` bytes of an output, without waiting for it.
    ///
    /// # Errors
    /// The machine's.
    fn fetch(&mut self, program: usize, buffer: BufferId, bytes: usize) -> Result<u64>;

    /// Waits for what [`fetch`](Self::fetch) began.
    ///
    /// # Errors
    /// The machine's, also of earlier runs.
    fn take(&mut self, ticket: u64) -> Result<Vec<u8>>;

    /// Bytes that programs may take together as things are, counted as [`program_bytes`](crate::network::program_bytes) does;
    /// `None` where nothing bounds them.
    fn memory_limit(&self) -> Option<u64> {
        None
    }

    /// The plans of all convolutions so far: another machine of the same kind that adopts them gives the same bits. `None` where
    /// there is nothing to choose.
    fn plans(&self) -> Option<PlanBook> {
        None
    }

    /// Takes over plans of convolutions that were chosen elsewhere, for programs that are yet to be loaded.
    ///
    /// # Errors
    /// [`Error::Plans`](crate::Error::Plans) for plans of another kind of machine; nothing is taken over then.
    fn adopt_plans(&mut self, _book: &PlanBook) -> Result<()> {
        Ok(())
    }

    /// Convolutions for which a plan was known that could not be taken any more, so that another was chosen.
    fn n_refused_plans(&self) -> usize {
        0
    }
}

/// The host as a machine: what a card should do, slowly.
#[derive(Debug, Default)]
pub struct HostMachine {
    host: Host,
    programs: Vec<HostProgram>,
    fetched: Vec<Vec<u8>>,
}

impl HostMachine {
    /// A machine without programs.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Machine for HostMachine {
    fn load(&mut self, program: Program) -> Result<usize> {
        for buffer in program.buffers.iter().filter(|buffer| buffer.role == Role::Persistent) {
            let bytes = self.host.persistent(&buffer.name, buffer.bytes);
            if let Some(contents) = &buffer.contents {
                bytes.copy_from_slice(contents);
            }
        }
        self.programs.push(HostProgram::new(program));
        Ok(self.programs.len() - 1)
    }

    fn run(&mut self, program: usize, tape: usize, scalars: &Scalars) -> Result<()> {
        self.host.run(&mut self.programs[program], tape, scalars, Order::AsWritten);
        Ok(())
    }

    fn stage(
        &mut self,
        program: usize,
        buffer: BufferId,
        bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<()> {
        fill(&mut self.host.bytes_mut(&mut self.programs[program], buffer)[..bytes]);
        Ok(())
    }

    fn read(&mut self, program: usize, buffer: BufferId, range: Range<usize>) -> Result<Vec<u8>> {
        Ok(self.host.read(&self.programs[program], buffer)[range].to_vec())
    }

    fn write_persistent(&mut self, name: &str, offset: usize, bytes: &[u8]) -> Result<()> {
        self.host.persistent(name, offset + bytes.len())[offset..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read_persistent(&mut self, name: &str, range: Range<usize>) -> Result<Vec<u8>> {
        Ok(self.host.persistent(name, range.end)[range].to_vec())
    }

    fn fetch(&mut self, program: usize, buffer: BufferId, bytes: usize) -> Result<u64> {
        let read = self.read(program, buffer, 0..bytes)?;
        self.fetched.push(read);
        Ok(self.fetched.len() as u64 - 1)
    }

    fn take(&mut self, ticket: u64) -> Result<Vec<u8>> {
        Ok(std::mem::take(&mut self.fetched[ticket as usize]))
    }
}
