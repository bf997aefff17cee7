//! The machine that runs a tape on the card.
//!
//! An [`Executor`] owns the card's memory: persistent buffers by name, which all programs share, one arena for
//! everything else, as large as the largest program needs it, and a workspace a stream for convolutions. Loading a
//! program chooses its plans; its first run gives operations to the streams one by one, and records them for all later
//! runs, which are one call each. Nothing is allocated while a program runs.
//!
//! Addresses are frozen when a program is bound. Where loading another program moves something, programs are bound
//! again by themselves.

mod bind;
mod memory;
mod transfer;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

pub use memory::MemoryUse;

use crate::cudnn::Cudnn;
use crate::driver::{Card, Event, Graph, Module, Stream};
use crate::machine::Machine;
use crate::network::CONTEXT;
use crate::plans::{PlanBook, Planner, Selection};
use crate::tape::{BufferId, Program, Scalars};
use crate::{Error, Result, arena, kernels, nvrtc};
use bind::BoundTape;
use memory::Memory;
use transfer::Transfers;

/// How an [`Executor`] works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorOptions {
    /// How plans of convolutions are chosen.
    pub selection: Selection,
    /// The folder that keeps compiled kernels and choices of plans; see [`nvrtc::cache_folder`].
    pub cache: Option<PathBuf>,
    /// Whether runs after the first are recorded.
    pub graphs: bool,
}

impl Default for ExecutorOptions {
    /// Fastest plans, the user's cache folder, recorded.
    fn default() -> Self {
        ExecutorOptions { selection: Selection::default(), cache: nvrtc::cache_folder(), graphs: true }
    }
}

/// A program of an [`Executor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProgramId(usize);

/// Runs programs on a card.
#[derive(Debug)]
pub struct Executor {
    // Dropped from first to last: graphs before what they use.
    programs: Vec<Loaded>,
    transfers: Transfers,
    streams: Vec<Stream>,
    module: Module,
    planner: Planner,
    cudnn: Arc<Cudnn>,
    memory: Memory,
    options: ExecutorOptions,
    card: Arc<Card>,
}

/// A program with its places.
#[derive(Debug)]
struct Loaded {
    program: Program,
    plan: arena::Plan,
    /// The tapes with addresses, if they were bound, and when (see [`Memory::generation`]).
    bound: Option<(u64, Vec<Runnable>)>,
}

/// A bound tape.
#[derive(Debug)]
struct Runnable {
    tape: BoundTape,
    has_run: bool,
    graph: Option<Graph>,
}

impl Executor {
    /// Compiles or loads the kernels, and opens cuDNN.
    ///
    /// # Errors
    /// A library is missing or too new for the driver, or the card does not answer.
    pub fn new(card: &Arc<Card>, options: ExecutorOptions) -> Result<Executor> {
        let arch = card.properties().arch();
        let (source, cache) = (kernels::source(), options.cache.as_deref());
        let compiled = nvrtc::compile_cached(&source, &arch, kernels::OPTIONS, cache)?;
        let module = Module::new(card, &compiled.cubin, kernels::NAMES.iter().copied())?;
        let cudnn = Arc::new(Cudnn::new(card)?);
        let planner = Planner::new(card, Arc::clone(&cudnn), options.selection, options.cache.clone());
        let streams = vec![Stream::new(card)?];
        let transfers = Transfers::new(card)?;
        let memory = Memory::new(card);
        let card = Arc::clone(card);
        Ok(Executor {
            programs: Vec::new(),
            transfers,
            streams,
            module,
            planner,
            cudnn,
            memory,
            options,
            card,
        })
    }

    /// Its card.
    pub fn card(&self) -> &Arc<Card> {
        &self.card
    }

    /// The kernels.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// The plans: to read the choices, or to adopt others before programs are loaded.
    pub fn planner(&mut self) -> &mut Planner {
        &mut self.planner
    }

    /// Bytes of the card's memory that are in use, and for what.
    pub fn memory_use(&self) -> MemoryUse {
        self.memory.in_use()
    }

    /// Makes a program ready: plans of its convolutions, memory for its buffers.
    ///
    /// What the host wrote to, or has not yet read from, buffers of other programs may be lost, except persistent ones.
    ///
    /// # Errors
    /// [`Error::NoPlan`], [`Error::OutOfMemory`], persistent buffers that contradict those of another program, or the
    /// driver's.
    pub fn load(&mut self, program: Program) -> Result<ProgramId> {
        let plan = arena::Plan::new(&program);
        // Timing needs memory too, so it comes before the arena.
        bind::choose_plans(&program, &mut self.planner)?;
        self.planner.finish();
        let n_streams = program.tapes.iter().map(|tape| tape.n_streams()).max().unwrap_or(1);
        while self.streams.len() < n_streams {
            self.streams.push(Stream::new(&self.card)?);
        }
        self.card.synchronise()?;
        let workspaces = bind::workspaces(&program, n_streams, &mut self.planner)?;
        self.memory.provide(&program, &plan, &workspaces, &self.streams[0])?;
        self.programs.push(Loaded { program, plan, bound: None });
        Ok(ProgramId(self.programs.len() - 1))
    }

    /// A loaded program.
    ///
    /// # Panics
    /// If `id` is another executor's.
    pub fn program(&self, id: ProgramId) -> &Program {
        &self.programs[id.0].program
    }

    /// Runs a tape of a program; returns when everything is on its way.
    ///
    /// What was staged for the program's inputs is used by this run.
    ///
    /// # Errors
    /// cuDNN's or the driver's; also errors of kernels that ran before.
    ///
    /// # Panics
    /// If `id` is another executor's, or the program has no such tape.
    pub fn run(&mut self, id: ProgramId, tape: usize, scalars: &Scalars) -> Result<()> {
        self.bind(id)?;
        self.transfers.write_scalars(&kernels::scalar_bytes(scalars), &self.memory, &self.streams[0])?;
        let Loaded { program, plan, bound } = &mut self.programs[id.0];
        self.transfers.use_staged(
            id.0,
            &self.memory,
            |id| plan.place(id).map(|at| at as u64),
            &self.streams[0],
        )?;
        let Some((_, runnables)) = bound else { unreachable!("bound above") };
        assert!(tape < runnables.len(), "a program of {} tapes has no tape {tape}", program.tapes.len());
        let runnable = &mut runnables[tape];
        if !self.options.graphs {
            return runnable.tape.run(&self.module, &self.cudnn, &self.memory, &self.streams);
        }
        if runnable.graph.is_none() && runnable.has_run {
            let (module, cudnn, memory, streams) = (&self.module, &self.cudnn, &self.memory, &self.streams);
            let graph = streams[0].capture(|| runnable.tape.run(module, cudnn, memory, streams))?;
            runnable.graph = Some(graph);
        }
        match &runnable.graph {
            Some(graph) => graph.launch(&self.streams[0]),
            None => {
                // Kernels that run for the first time may be loaded, which cannot be recorded.
                runnable.has_run = true;
                runnable.tape.run(&self.module, &self.cudnn, &self.memory, &self.streams)
            }
        }
    }

    /// Runs the nodes of a tape one by one, each alone and waited for, and returns the milliseconds of each (0 for
    /// those that only wait), for profiles.
    ///
    /// # Errors
    /// As [`Executor::run`].
    ///
    /// # Panics
    /// As [`Executor::run`].
    pub fn profile(&mut self, id: ProgramId, tape: usize, scalars: &Scalars) -> Result<Vec<f32>> {
        self.bind(id)?;
        self.transfers.write_scalars(&kernels::scalar_bytes(scalars), &self.memory, &self.streams[0])?;
        let Loaded { plan, bound, .. } = &mut self.programs[id.0];
        self.transfers.use_staged(
            id.0,
            &self.memory,
            |id| plan.place(id).map(|at| at as u64),
            &self.streams[0],
        )?;
        let Some((_, runnables)) = bound else { unreachable!("bound above") };
        runnables[tape].tape.profile(&self.module, &self.cudnn, &self.memory, &self.streams)
    }

    /// Kernels, copies and fills in a recorded tape; nothing before its second run.
    pub fn graph_nodes(&self, id: ProgramId, tape: usize) -> Option<usize> {
        let (_, runnables) = self.programs.get(id.0)?.bound.as_ref()?;
        runnables.get(tape)?.graph.as_ref().map(Graph::nodes)
    }

    /// Waits until the card is done with everything.
    ///
    /// # Errors
    /// The driver's; also errors of kernels that ran before.
    pub fn synchronise(&self) -> Result<()> {
        self.card.synchronise()
    }

    /// Marks the end of what was given to the card, to time by.
    ///
    /// # Errors
    /// The driver's.
    pub fn mark(&self) -> Result<Event> {
        let event = Event::timed(&self.card)?;
        event.record(&self.streams[0])?;
        Ok(event)
    }

    /// Gives an input's first `bytes` bytes to the card for the program's next run: `fill` writes them into memory that
    /// the card copies from while it is still busy with earlier runs.
    ///
    /// # Errors
    /// A buffer that is shorter, or the driver's.
    pub fn stage(
        &mut self,
        id: ProgramId,
        buffer: BufferId,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        self.check_range(id, buffer, 0, bytes)?;
        self.transfers.stage((id.0, buffer), bytes, fill)
    }

    /// Asks for the first `bytes` bytes of a buffer as they are after the runs so far; returns at once.
    ///
    /// # Errors
    /// A buffer that is shorter, or the driver's.
    pub fn fetch(&mut self, id: ProgramId, buffer: BufferId, bytes: usize) -> Result<u64> {
        self.check_range(id, buffer, 0, bytes)?;
        let Loaded { program, plan, .. } = &self.programs[id.0];
        let (memory, at) = self.memory.place(program, plan, buffer)?;
        self.transfers.fetch(memory, at..at + bytes as u64, &self.streams[0])
    }

    /// Whether what a ticket asked for has arrived.
    ///
    /// # Errors
    /// The driver's; also errors of kernels that ran before.
    pub fn is_ready(&self, ticket: u64) -> Result<bool> {
        self.transfers.is_ready(ticket)
    }

    /// What a ticket asked for; waits for it.
    ///
    /// # Errors
    /// The driver's; also errors of kernels that ran before.
    pub fn take(&mut self, ticket: u64) -> Result<Vec<u8>> {
        self.transfers.take(ticket)
    }

    /// Writes to a buffer after everything so far, and waits for it.
    ///
    /// # Errors
    /// A range outside the buffer, or the driver's.
    pub fn write(&mut self, id: ProgramId, buffer: BufferId, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check_range(id, buffer, offset, bytes.len())?;
        let (memory, at) = self.place(id, buffer)?;
        memory.upload(at + offset as u64, bytes, &self.streams[0])
    }

    /// Reads from a buffer after everything so far.
    ///
    /// # Errors
    /// A range outside the buffer, or the driver's.
    pub fn read(&self, id: ProgramId, buffer: BufferId, range: Range<usize>) -> Result<Vec<u8>> {
        self.check_range(id, buffer, range.start, range.len())?;
        let (memory, at) = self.place(id, buffer)?;
        memory.download(at + range.start as u64..at + range.end as u64, &self.streams[0])
    }

    /// Writes to a persistent buffer after everything so far, and waits for it.
    ///
    /// # Errors
    /// No such buffer, a range outside it, or the driver's.
    pub fn write_persistent(&mut self, name: &str, offset: usize, bytes: &[u8]) -> Result<()> {
        self.memory.persistent(name)?.upload(offset as u64, bytes, &self.streams[0])
    }

    /// Reads from a persistent buffer after everything so far.
    ///
    /// # Errors
    /// No such buffer, a range outside it, or the driver's.
    pub fn read_persistent(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>> {
        let memory = self.memory.persistent(name)?;
        memory.download(range.start as u64..range.end as u64, &self.streams[0])
    }

    /// Binds a program's tapes to today's addresses, if they are not.
    fn bind(&mut self, id: ProgramId) -> Result<()> {
        let generation = self.memory.generation();
        let Loaded { program, plan, bound } = &mut self.programs[id.0];
        if bound.as_ref().is_some_and(|(at, _)| *at == generation) {
            return Ok(());
        }
        // The old graphs may still run.
        self.card.synchronise()?;
        *bound = None;
        let mut runnables = Vec::with_capacity(program.tapes.len());
        for tape in &program.tapes {
            let binder = bind::Binder {
                program,
                plan,
                memory: &self.memory,
                planner: &mut self.planner,
                stream: &self.streams[0],
                card: &self.card,
                tables: Vec::new(),
            };
            let tape = binder.bind(tape)?;
            runnables.push(Runnable { tape, has_run: false, graph: None });
        }
        *bound = Some((generation, runnables));
        Ok(())
    }

    /// Where a buffer lies.
    fn place(&self, id: ProgramId, buffer: BufferId) -> Result<(&crate::driver::DeviceMemory, u64)> {
        let Loaded { program, plan, .. } = &self.programs[id.0];
        self.memory.place(program, plan, buffer)
    }

    fn check_range(&self, id: ProgramId, buffer: BufferId, offset: usize, bytes: usize) -> Result<()> {
        let len = self.programs[id.0].program.buffers[buffer.0].bytes;
        if offset + bytes > len {
            let (expected, got) = (format!("within {len} bytes"), format!("{bytes} from {offset}"));
            return Err(Error::Shape { what: "range of a buffer", expected, got });
        }
        Ok(())
    }
}

impl Machine for Executor {
    fn load(&mut self, program: Program) -> Result<usize> {
        Executor::load(self, program).map(|id| id.0)
    }

    fn run(&mut self, program: usize, tape: usize, scalars: &Scalars) -> Result<()> {
        Executor::run(self, ProgramId(program), tape, scalars)
    }

    fn stage(
        &mut self,
        program: usize,
        buffer: BufferId,
        bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<()> {
        Executor::stage(self, ProgramId(program), buffer, bytes, fill)
    }

    fn read(&mut self, program: usize, buffer: BufferId, range: Range<usize>) -> Result<Vec<u8>> {
        Executor::read(self, ProgramId(program), buffer, range)
    }

    fn write_persistent(&mut self, name: &str, offset: usize, bytes: &[u8]) -> Result<()> {
        Executor::write_persistent(self, name, offset, bytes)
    }

    fn read_persistent(&mut self, name: &str, range: Range<usize>) -> Result<Vec<u8>> {
        Executor::read_persistent(self, name, range)
    }

    fn fetch(&mut self, program: usize, buffer: BufferId, bytes: usize) -> Result<u64> {
        Executor::fetch(self, ProgramId(program), buffer, bytes)
    }

    fn take(&mut self, ticket: u64) -> Result<Vec<u8>> {
        Executor::take(self, ticket)
    }

    /// What is free and what programs have by now: not what others on the card have.
    fn memory_limit(&self) -> Option<u64> {
        let (free, _) = self.card.memory().ok()?;
        Some(free + self.memory.in_use().total() + CONTEXT)
    }

    fn plans(&self) -> Option<PlanBook> {
        Some(self.planner.book()).filter(|book| !book.plans().is_empty())
    }

    fn adopt_plans(&mut self, book: &PlanBook) -> Result<()> {
        self.planner.adopt(book)
    }

    fn n_refused_plans(&self) -> usize {
        self.planner.refused().len()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Nothing may run any more when memory goes.
        let _ = self.card.synchronise();
    }
}
