//! The parts of the benchmark: names, order, and what each of them needs.

use std::fmt;

use super::found::Result;
use super::{Bench, bits, checks, fixtures, libraries, machines, parity, pretrain, speed};

/// A part, in the order of worth: what is first is what one wants to know most about a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Part {
    /// What was found of libraries and cards, and whether kernels spill registers.
    Libs,
    /// The self-test.
    Test,
    /// Each operation of other networks against the host.
    Operations,
    /// Whole trainings against the host, rectifiers open.
    Networks,
    /// The same bits again, and without recorded graphs.
    Bits,
    /// Plans of convolutions chosen, written down, and adopted by another executor.
    Plans,
    /// The encoder against the CPU's, while state moves there and back.
    Parity,
    /// The encoder's own tests with recorded numbers (--tests).
    Fixtures,
    /// Training steps, ours in mixed precision and PyTorch's in bf16 in turn; and where the time goes.
    Speed,
    /// A whole training from JPEG photographs on disk.
    Pretrain,
    /// Training steps in f32, ours and PyTorch's.
    F32,
    /// PyTorch compiled, which may take longer than all the others.
    Compiled,
}

impl Part {
    /// All of them, in order.
    pub const ALL: [Part; 12] = [
        Part::Libs,
        Part::Test,
        Part::Operations,
        Part::Networks,
        Part::Bits,
        Part::Plans,
        Part::Parity,
        Part::Fixtures,
        Part::Speed,
        Part::Pretrain,
        Part::F32,
        Part::Compiled,
    ];

    /// The name that --parts takes.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Libs => "libs",
            Part::Test => "test",
            Part::Operations => "operations",
            Part::Networks => "networks",
            Part::Bits => "bits",
            Part::Plans => "plans",
            Part::Parity => "parity",
            Part::Fixtures => "fixtures",
            Part::Speed => "speed",
            Part::Pretrain => "pretrain",
            Part::F32 => "f32",
            Part::Compiled => "compiled",
        }
    }

    /// Whether it compares, and measures nothing.
    pub fn compares(self) -> bool {
        self <= Part::Fixtures
    }

    /// Why it cannot be done with these arguments, if it cannot.
    pub(super) fn obstacle(self, bench: &Bench) -> Option<&'static str> {
        let any_device = matches!(self, Part::Bits | Part::Parity | Part::Fixtures | Part::Pretrain);
        match self {
            _ if bench.card.is_none() && !any_device => Some("it needs a card, --device cuda:N"),
            Part::Fixtures if bench.args.tests.is_none() => Some("without --tests"),
            Part::Compiled if bench.args.torch_script.is_none() => Some("without --torch-script"),
            _ => None,
        }
    }

    /// Does the work.
    pub(super) fn work(self, bench: &Bench) -> Result {
        match self {
            Part::Libs => libraries::part(bench.number()?),
            Part::Test => checks::self_test(bench.number()?),
            Part::Operations => checks::operations(&machines::on_card(bench.number()?)),
            Part::Networks => checks::networks(&machines::on_card(bench.number()?)),
            Part::Bits => bits::part(bench),
            Part::Plans => bits::plans(&machines::on_card(bench.number()?)),
            Part::Parity => parity::part(&bench.args.device),
            Part::Fixtures => fixtures::part(bench),
            Part::Speed => speed::speed(bench),
            Part::Pretrain => pretrain::part(bench),
            Part::F32 => speed::f32(bench),
            Part::Compiled => speed::compiled(bench),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn the_list_is_complete_in_order_and_has_the_names_that_the_option_takes() {
        assert_eq!(Part::value_variants(), Part::ALL);
        for part in Part::ALL {
            assert_eq!(part.to_possible_value().unwrap().get_name(), part.name());
        }
        assert!(Part::ALL.is_sorted());
    }
}
