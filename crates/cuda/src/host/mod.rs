//! The machine that runs a tape on the CPU, to test against.
//!
//! It computes in f64 and rounds where a value is stored, to f32 or bf16, as the card does; so it differs from the card
//! by the card's summation error alone. It uses the same [plan](crate::arena::Plan) of the arena, and takes the
//! operations of different streams in an order of the caller's choice. It is written to be read, not for speed.

mod codes;
mod convolution;
mod memory;
mod norm;
mod rows;
mod update;

use std::collections::HashMap;

use crate::arena::Plan;
use crate::tape::{BufferId, Op, Program, Report, Role, Scalars, Tape};

pub use memory::Memory;

/// In which order the streams' operations are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they stand in the tape.
    AsWritten,
    /// From the last stream whatever it may do, then from the one before, and so on.
    LastStreamFirst,
}

/// Persistent buffers by name, shared by programs.
#[derive(Debug, Clone, Default)]
pub struct Host {
    persistent: HashMap<String, Vec<u8>>,
}

/// A program, and memory for what is not persistent.
#[derive(Debug, Clone)]
pub struct HostProgram {
    program: Program,
    plan: Plan,
    arena: Vec<u8>,
}

impl HostProgram {
    /// Plans the program. Its memory holds values that are no numbers until they are written.
    pub fn new(program: Program) -> Self {
        let plan = Plan::new(&program);
        let arena = vec![0xff; plan.bytes()];
        HostProgram { program, plan, arena }
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }
}

impl Host {
    /// No buffers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A persistent buffer, with zeros where it was shorter before.
    pub fn persistent(&mut self, name: &str, bytes: usize) -> &mut [u8] {
        let buffer = self.persistent.entry(name.to_owned()).or_default();
        if buffer.len() < bytes {
            buffer.resize(bytes, 0);
        }
        buffer
    }

    /// Runs a tape of a program.
    ///
    /// # Panics
    /// If the program has no such tape, or an operation reaches beyond its buffers.
    pub fn run(&mut self, program: &mut HostProgram, tape: usize, scalars: &Scalars, order: Order) {
        let HostProgram { program, plan, arena } = program;
        for buffer in program.buffers.iter().filter(|buffer| buffer.role == Role::Persistent) {
            let zeros = || buffer.contents.clone().unwrap_or_else(|| vec![0; buffer.bytes]);
            self.persistent.entry(buffer.name.clone()).or_insert_with(zeros);
        }
        let mut memory = Memory::new(program, plan, arena, &mut self.persistent);
        for node in sequence(&program.tapes[tape], order) {
            run(&program.tapes[tape].nodes[node].op, &mut memory, scalars);
        }
    }

    /// The bytes of a buffer.
    pub fn read<'a>(&'a self, program: &'a HostProgram, id: BufferId) -> &'a [u8] {
        let buffer = &program.program.buffers[id.0];
        match program.plan.place(id) {
            Some(at) => &program.arena[at..at + buffer.bytes],
            None => self.persistent.get(&buffer.name).map_or(&[], Vec::as_slice),
        }
    }

    /// The values of a buffer of f32.
    pub fn read_f32(&self, program: &HostProgram, id: BufferId) -> Vec<f32> {
        let (values, _) = self.read(program, id).as_chunks::<4>();
        values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }

    /// What a step reported.
    pub fn report(&self, program: &HostProgram, id: BufferId) -> Report {
        self.read(program, id).first_chunk().map(Report::from_bytes).unwrap_or_default()
    }

    /// The bytes of a buffer, to write.
    pub fn bytes_mut<'a>(&'a mut self, program: &'a mut HostProgram, id: BufferId) -> &'a mut [u8] {
        let HostProgram { program, plan, arena } = program;
        let buffer = &program.buffers[id.0];
        match plan.place(id) {
            Some(at) => &mut arena[at..at + buffer.bytes],
            None => self.persistent(&buffer.name, buffer.bytes),
        }
    }

    /// Sets a buffer of f32.
    ///
    /// # Panics
    /// If it holds another number of values.
    pub fn write_f32(&mut self, program: &mut HostProgram, id: BufferId, values: &[f32]) {
        let buffer = &program.program.buffers[id.0];
        assert_eq!(buffer.bytes, 4 * values.len(), "values of {}", buffer.name);
        let bytes = self.bytes_mut(program, id).as_chunks_mut::<4>().0;
        bytes.iter_mut().zip(values).for_each(|(slot, value)| *slot = value.to_le_bytes());
    }
}

/// The nodes of a tape in an order that its streams allow.
fn sequence(tape: &Tape, order: Order) -> Vec<usize> {
    if order == Order::AsWritten {
        return (0..tape.nodes.len()).collect();
    }
    let n_streams = tape.n_streams();
    let mut queues: Vec<Vec<usize>> = vec![Vec::new(); n_streams];
    for (index, node) in tape.nodes.iter().enumerate() {
        queues[node.stream].push(index);
    }
    let mut next = vec![0; n_streams];
    let mut out = Vec::with_capacity(tape.nodes.len());
    while out.len() < tape.nodes.len() {
        // The last stream whose next node does not wait for a node that is still to come.
        let free = (0..n_streams).rev().find(|&stream| {
            queues[stream].get(next[stream]).is_some_and(|&index| match tape.nodes[index].op {
                Op::Wait { other } => queues[other].get(next[other]).is_none_or(|&first| first > index),
                _ => true,
            })
        });
        let stream = free.unwrap_or_else(|| unreachable!("the order of the tape itself is possible"));
        out.push(queues[stream][next[stream]]);
        next[stream] += 1;
    }
    out
}

fn run(op: &Op, memory: &mut Memory<'_>, scalars: &Scalars) {
    match op {
        Op::Wait { .. } => {}
        Op::Fill { to, bytes, byte } => memory.bytes_mut(*to, *bytes).fill(*byte),
        Op::Copy { from, to, bytes } => {
            let copy = memory.bytes(*from, *bytes).to_vec();
            memory.bytes_mut(*to, *bytes).copy_from_slice(&copy);
        }
        Op::Conv { .. } => convolution::conv(op, memory),
        Op::Input { .. } | Op::MaskStem { .. } => convolution::stem(op, memory),
        Op::BnStatistics { .. } | Op::BnFold { .. } | Op::BnRunning { .. } | Op::BnApply { .. } => {
            norm::forward(op, memory, scalars);
        }
        Op::BnReduce { .. } | Op::BnGradient { .. } => norm::backward(op, memory),
        Op::StemPool { .. } | Op::StemPoolReduce { .. } | Op::StemPoolGradient { .. } => {
            norm::pool(op, memory)
        }
        Op::Codes { .. } | Op::Loss { .. } | Op::QueuePush { .. } => codes::run(op, memory, scalars),
        Op::Update { .. } | Op::SumGradients { .. } => update::run(op, memory, scalars),
        _ => rows::run(op, memory),
    }
}
