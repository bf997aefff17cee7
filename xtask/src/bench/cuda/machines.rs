//! The machines that are compared: executors on the card, or what a test puts in their place.

use anyhow::Context;
use swav_cuda::driver::Card;
use swav_cuda::exec::{Executor, ExecutorOptions};
use swav_cuda::machine::Machine;
use swav_cuda::network::{BlockKind, Head, NetworkSpec, Stem};
use swav_cuda::plans::Selection;
use swav_cuda::self_test::Scenario;
use swav_cuda::shape::Element;

/// How a machine works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// How plans of convolutions are chosen.
    pub selection: Selection,
    /// Whether runs are recorded.
    pub graphs: bool,
    /// Whether kernels and plans of other runs are taken.
    pub cache: bool,
}

impl How {
    /// cuDNN's first plans, recorded: what is ready soonest.
    pub const FIRST: How = How { selection: Selection::First, graphs: true, cache: true };

    /// An executor on a card.
    pub fn executor(self, number: usize) -> swav_cuda::Result<Executor> {
        let mut options =
            ExecutorOptions { selection: self.selection, graphs: self.graphs, ..Default::default() };
        options.cache = options.cache.filter(|_| self.cache);
        Executor::new(&Card::open(number)?, options)
    }
}

/// Opens a machine.
pub type Open<'a> = dyn Fn(How) -> anyhow::Result<Box<dyn Machine>> + 'a;

/// Opens executors on a card.
pub fn on_card(number: usize) -> impl Fn(How) -> anyhow::Result<Box<dyn Machine>> {
    move |how| {
        let executor = how.executor(number).with_context(|| format!("opening cuda:{number}"))?;
        Ok(Box::new(executor))
    }
}

/// Scenarios that take every path: stems, blocks, heads, odd numbers of channels.
pub fn scenarios(element: Element) -> [Scenario; 4] {
    let spec = |stem, stem_channels, block, layers: &[usize], head| {
        let layers = layers.to_vec();
        NetworkSpec { stem, stem_channels, block, layers, head }
    };
    let mlp = Head::Mlp { hidden: 72, dim: 24 };
    let linear = Head::Linear { dim: 20 };
    [
        (spec(Stem::Cifar, 16, BlockKind::Basic, &[1, 1], mlp), [15, 8]),
        (spec(Stem::Imagenet, 16, BlockKind::Bottleneck, &[2, 1], mlp), [42, 27]),
        (spec(Stem::Imagenet, 12, BlockKind::Basic, &[1, 1, 1], linear), [33, 32]),
        (spec(Stem::Cifar, 40, BlockKind::Bottleneck, &[1, 1], Head::None), [10, 7]),
    ]
    .map(|(network, sides)| Scenario::new(network, sides, element))
}

#[cfg(test)]
pub mod tests {
    use std::ops::Range;

    use swav_cuda::cudnn::{Choice, Convolution};
    use swav_cuda::machine::HostMachine;
    use swav_cuda::plans::{Entry, Place, PlanBook};
    use swav_cuda::shape::{ConvPass, ConvShape};
    use swav_cuda::tape::{BufferId, Program, Scalars};

    use super::*;

    /// The host in the card's place.
    pub fn on_host(_: How) -> anyhow::Result<Box<dyn Machine>> {
        Ok(Box::new(HostMachine::new()))
    }

    /// A machine that cannot be opened.
    pub fn nowhere(_: How) -> anyhow::Result<Box<dyn Machine>> {
        anyhow::bail!("no such machine")
    }

    /// The host, with something that may be wrong about it.
    pub struct Odd {
        /// What learning rates are multiplied by.
        pub rate: f32,
        /// The plans that it says it has.
        pub book: Option<PlanBook>,
        /// The number of the engine that it takes for all convolutions.
        pub engine: i64,
        host: HostMachine,
    }

    impl Odd {
        /// The host as it is, but for these.
        pub fn new(rate: f32, engine: i64) -> Self {
            Self { rate, book: None, engine, host: HostMachine::new() }
        }
    }

    /// A book of one plan.
    fn book(engine: i64) -> PlanBook {
        let mut book = PlanBook::new(Place { card: "none".into(), cudnn: "9.9.9".into() });
        let conv = Convolution {
            shape: ConvShape::linear(8, 8, 8),
            pass: ConvPass::Forward,
            element: Element::Bf16,
            tf32: false,
            accumulate: false,
        };
        book.insert(Entry { conv, choice: Choice { engine, knobs: Vec::new() }, microseconds: None });
        book
    }

    impl Machine for Odd {
        fn load(&mut self, program: Program) -> swav_cuda::Result<usize> {
            self.book.get_or_insert_with(|| book(self.engine));
            self.host.load(program)
        }
        fn run(&mut self, program: usize, tape: usize, scalars: &Scalars) -> swav_cuda::Result<()> {
            let mut scalars = *scalars;
            scalars.classes.iter_mut().for_each(|class| class.lr *= self.rate);
            self.host.run(program, tape, &scalars)
        }
        fn stage(
            &mut self,
            program: usize,
            buffer: BufferId,
            bytes: usize,
            fill: &mut dyn FnMut(&mut [u8]),
        ) -> swav_cuda::Result<()> {
            self.host.stage(program, buffer, bytes, fill)
        }
        fn read(
            &mut self,
            program: usize,
            buffer: BufferId,
            range: Range<usize>,
        ) -> swav_cuda::Result<Vec<u8>> {
            self.host.read(program, buffer, range)
        }
        fn write_persistent(&mut self, name: &str, offset: usize, bytes: &[u8]) -> swav_cuda::Result<()> {
            self.host.write_persistent(name, offset, bytes)
        }
        fn read_persistent(&mut self, name: &str, range: Range<usize>) -> swav_cuda::Result<Vec<u8>> {
            self.host.read_persistent(name, range)
        }
        fn fetch(&mut self, program: usize, buffer: BufferId, bytes: usize) -> swav_cuda::Result<u64> {
            self.host.fetch(program, buffer, bytes)
        }
        fn take(&mut self, ticket: u64) -> swav_cuda::Result<Vec<u8>> {
            self.host.take(ticket)
        }
        fn plans(&self) -> Option<PlanBook> {
            self.book.clone()
        }
        /// Takes over the plans, unless it was told to be another machine's.
        fn adopt_plans(&mut self, adopted: &PlanBook) -> swav_cuda::Result<()> {
            self.book = (self.engine == 1).then(|| adopted.clone());
            Ok(())
        }
        fn n_refused_plans(&self) -> usize {
            usize::from(self.engine != 1)
        }
    }
}
