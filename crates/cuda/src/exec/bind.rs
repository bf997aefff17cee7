//! Tapes with addresses.

use std::sync::Arc;

use super::memory::Memory;
use crate::cudnn::{BoundConv, Convolution, Cudnn};
use crate::driver::{Card, DeviceMemory, Event, Module, Stream};
use crate::kernels::{self, Launch};
use crate::plans::Planner;
use crate::tape::{Node, Op, Program, Tape, View};
use crate::{Error, Result, arena};

/// An operation with addresses.
#[derive(Debug)]
enum Action {
    /// The stream waits for what another was given so far.
    Wait { other: usize, event: Event },
    /// Sets bytes at an offset of a block.
    Fill { block: Block, offset: u64, bytes: u64, byte: u8 },
    /// Copies bytes.
    Copy { from: (Block, u64), to: (Block, u64), bytes: u64 },
    /// Kernels, one after the other.
    Kernels(Vec<Launch<u64>>),
    /// A convolution.
    Conv(BoundConv),
}

/// A block of an executor's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Block {
    Arena,
    Persistent(String),
}

/// A tape with addresses.
#[derive(Debug)]
pub(super) struct BoundTape {
    /// By node of the tape: its stream, and what is done.
    actions: Vec<(usize, Action)>,
    /// Tables that kernels read.
    _tables: Vec<DeviceMemory>,
}

impl BoundTape {
    /// Gives everything to the streams.
    pub(super) fn run(
        &self,
        module: &Module,
        cudnn: &Cudnn,
        memory: &Memory,
        streams: &[Stream],
    ) -> Result<()> {
        self.actions
            .iter()
            .try_for_each(|(stream, action)| action.run(*stream, module, cudnn, memory, streams))
    }

    /// Runs the actions one by one on the first stream and returns the milliseconds of each.
    pub(super) fn profile(
        &self,
        module: &Module,
        cudnn: &Cudnn,
        memory: &Memory,
        streams: &[Stream],
    ) -> Result<Vec<f32>> {
        let card = streams[0].card();
        let (start, end) = (Event::timed(card)?, Event::timed(card)?);
        let mut times = Vec::with_capacity(self.actions.len());
        card.synchronise()?;
        for (stream, action) in &self.actions {
            if matches!(action, Action::Wait { .. }) {
                times.push(0.0);
                continue;
            }
            start.record(&streams[*stream])?;
            action.run(*stream, module, cudnn, memory, streams)?;
            end.record(&streams[*stream])?;
            times.push(start.milliseconds_to(&end)?);
        }
        Ok(times)
    }
}

impl Action {
    fn run(
        &self,
        stream: usize,
        module: &Module,
        cudnn: &Cudnn,
        memory: &Memory,
        streams: &[Stream],
    ) -> Result<()> {
        let here = &streams[stream];
        match self {
            Action::Wait { other, event } => {
                event.record(&streams[*other])?;
                here.wait(event)
            }
            Action::Fill { block, offset, bytes, byte } => {
                block.of(memory)?.fill(*offset..offset + bytes, *byte, here)
            }
            Action::Copy { from: (source, from), to: (target, to), bytes } => {
                source.of(memory)?.copy_to(*from, target.of(memory)?, *to, *bytes, here)
            }
            Action::Kernels(launches) => launches.iter().try_for_each(|launch| {
                // SAFETY: `kernels::launches` gives each kernel its own arguments, with the addresses of the program's
                // buffers; memory and graphs belong to one executor, which unbinds what has moved.
                unsafe { module.launch(launch, here) }
            }),
            Action::Conv(conv) => cudnn.run(conv, here),
        }
    }
}

impl Block {
    fn of<'m>(&self, memory: &'m Memory) -> Result<&'m DeviceMemory> {
        match self {
            Block::Arena => memory.arena(),
            Block::Persistent(name) => memory.persistent(name),
        }
    }
}

/// The convolution of an operation.
fn convolution(program: &Program, op: &Op) -> Option<Convolution> {
    match *op {
        Op::Conv { pass, shape, accumulate, .. } => {
            let (element, tf32) = (program.element, program.rounds(&shape));
            Some(Convolution { shape, pass, element, tf32, accumulate })
        }
        _ => None,
    }
}

/// Every convolution of a program, with its stream.
fn convolutions(program: &Program) -> impl Iterator<Item = (usize, Convolution)> {
    let nodes = program.tapes.iter().flat_map(|tape| &tape.nodes);
    nodes.filter_map(|Node { stream, op }| convolution(program, op).map(|conv| (*stream, conv)))
}

/// Makes the plans of all convolutions.
pub(super) fn choose_plans(program: &Program, planner: &mut Planner) -> Result<()> {
    convolutions(program).try_for_each(|(_, conv)| planner.plan(&conv).map(|_| ()))
}

/// Bytes that each stream's convolutions need while they run.
pub(super) fn workspaces(program: &Program, n_streams: usize, planner: &mut Planner) -> Result<Vec<u64>> {
    let mut bytes = vec![0; n_streams];
    for (stream, conv) in convolutions(program) {
        bytes[stream] = planner.plan(&conv)?.workspace().max(bytes[stream]);
    }
    Ok(bytes)
}

/// What binding a program needs.
pub(super) struct Binder<'e> {
    pub(super) program: &'e Program,
    pub(super) plan: &'e arena::Plan,
    pub(super) memory: &'e Memory,
    pub(super) planner: &'e mut Planner,
    pub(super) stream: &'e Stream,
    pub(super) card: &'e Arc<Card>,
    pub(super) tables: Vec<DeviceMemory>,
}

impl Binder<'_> {
    /// Binds a tape.
    pub(super) fn bind(mut self, tape: &Tape) -> Result<BoundTape> {
        let actions = tape.nodes.iter().map(|Node { stream, op }| Ok((*stream, self.action(*stream, op)?)));
        let actions = actions.collect::<Result<Vec<_>>>()?;
        Ok(BoundTape { actions, _tables: self.tables })
    }

    fn action(&mut self, stream: usize, op: &Op) -> Result<Action> {
        Ok(match op {
            Op::Wait { other } => Action::Wait { other: *other, event: Event::new(self.card)? },
            Op::Fill { to, bytes, byte } => {
                let (block, offset) = self.block(*to)?;
                Action::Fill { block, offset, bytes: *bytes as u64, byte: *byte }
            }
            Op::Copy { from, to, bytes } => {
                Action::Copy { from: self.block(*from)?, to: self.block(*to)?, bytes: *bytes as u64 }
            }
            Op::Conv { x, w, y, .. } => {
                let (conv, views) = (convolution(self.program, op), [*x, *w, *y]);
                let Some(conv) = conv else { unreachable!("a convolution") };
                self.conv(&conv, views, stream)?
            }
            other => Action::Kernels(kernels::launches(other, self.program.element, self)?),
        })
    }

    fn conv(&mut self, conv: &Convolution, [x, w, y]: [View; 3], stream: usize) -> Result<Action> {
        let plan = self.planner.plan(conv)?;
        let bytes = conv.element.bytes();
        let [x, w, y] = [
            self.checked(x, conv.shape.input_len() * bytes)?,
            self.checked(w, conv.shape.weight_len() * bytes)?,
            self.checked(y, conv.shape.output_len() * bytes)?,
        ];
        // SAFETY: the views are as long as the shapes' tensors, the workspace as the plan needs it; the executor
        // unbinds the tape before any of them moves.
        Ok(Action::Conv(unsafe { plan.bind(x, w, y, self.memory.workspace(stream)) }?))
    }

    /// The block that a view lies in, and where.
    fn block(&self, view: View) -> Result<(Block, u64)> {
        let buffer = &self.program.buffers[view.buffer.0];
        let (_, at) = self.memory.place(self.program, self.plan, view.buffer)?;
        let block = match buffer.role {
            crate::tape::Role::Persistent => Block::Persistent(buffer.name.clone()),
            _ => Block::Arena,
        };
        Ok((block, at + view.offset as u64))
    }

    /// The address of a view of `bytes` bytes within its buffer.
    fn checked(&self, view: View, bytes: usize) -> Result<u64> {
        let buffer = &self.program.buffers[view.buffer.0];
        if view.offset + bytes > buffer.bytes {
            let (expected, got) =
                (format!("within {}", buffer.bytes), format!("{bytes} from {}", view.offset));
            return Err(Error::Shape { what: "bytes of a convolution's tensor", expected, got });
        }
        self.memory.address(self.program, self.plan, view)
    }
}

impl kernels::Binding for Binder<'_> {
    fn address(&self, view: View) -> Result<u64> {
        self.memory.address(self.program, self.plan, view)
    }

    fn scalars(&self) -> Result<u64> {
        self.memory.scalars().map(DeviceMemory::address)
    }

    fn table(&mut self, bytes: &[u8]) -> Result<u64> {
        let table = DeviceMemory::new(self.card, bytes.len() as u64)?;
        table.upload(0, bytes, self.stream)?;
        let address = table.address();
        self.tables.push(table);
        Ok(address)
    }
}
