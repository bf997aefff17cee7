//! ONNX files: the network as a graph, operator set 17, written without any library.
//!
//! Images are `images`, (batch, 3, height, width), normalised floats, or (batch, height, width, 3) bytes where the
//! normalisation is inside; batch, height and width are free. Outputs are `features` (batch, features), with the head also
//! `embedding` (batch, dim) of unit length, with prototypes also `scores` (batch, prototypes), of several heads `scores0`,
//! `scores1` and so on.

mod graph;
mod message;

use std::io::{self, Write};

use swav_encoder::{EncoderConfig, StateDict};

use crate::export::Part;
use crate::preprocessing::Preprocessing;
use crate::{Metadata, WeightsError};
use graph::Graph;
use message::Message;

/// Version of the format: that of ONNX 1.12, which has operator set 17.
const IR_VERSION: u64 = 8;
const OPERATOR_SET: u64 = 17;
/// Bytes that a file has at most, as every reader of protocol buffers wants it.
const MAX_BYTES: u64 = (1 << 31) - 1;

/// What is in an ONNX file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OnnxOptions {
    /// How much of the network.
    pub part: Part,
    /// Whether batch norms are folded into the convolutions and linear layers before them: fewer operations, the same
    /// numbers up to rounding.
    pub fold_batch_norm: bool,
    /// Where images come in as bytes: how they are normalised. Resizing and cropping stay outside.
    pub normalize: Option<Preprocessing>,
}

impl OnnxOptions {
    /// Checks that the file of such a network stays below 2 GiB, from its shapes alone.
    ///
    /// # Errors
    /// [`WeightsError::TooLarge`]; [`WeightsError::Encoder`] for an architecture that is refused.
    pub fn check(&self, encoder: &EncoderConfig) -> Result<(), WeightsError> {
        let tensors = encoder.check()?.tensors();
        let own = tensors.iter().filter(|(name, _)| self.part.has(name));
        below_limit(4 * own.map(|(_, shape)| shape.iter().product::<usize>() as u64).sum::<u64>())
    }
}

fn below_limit(got: u64) -> Result<(), WeightsError> {
    if got <= MAX_BYTES {
        return Ok(());
    }
    let part = "ONNX file, in bytes (safetensors and .pth have no such limit)".to_owned();
    Err(WeightsError::TooLarge { part, expected: MAX_BYTES, got })
}

/// An ONNX file, ready to be written.
pub struct Onnx<'a> {
    model: Message<'a>,
}

impl<'a> Onnx<'a> {
    /// The graph of a network.
    ///
    /// `state` has the encoder's tensors and, for [`Part::Prototypes`], the prototypes. `metadata` goes into the model's
    /// properties.
    ///
    /// # Errors
    /// [`WeightsError::Misfit`] if a tensor is missing or of another shape, [`WeightsError::NoPart`] without the head or the
    /// prototypes that are asked for, [`WeightsError::TooLarge`] for more than 2 GiB.
    pub fn new(
        config: &EncoderConfig,
        state: &'a StateDict,
        options: &OnnxOptions,
        metadata: &Metadata,
    ) -> Result<Self, WeightsError> {
        options.check(config)?;
        let graph = Graph::build(config, state, options)?;
        let mut operators = Message::new();
        operators.text(1, "");
        operators.number(2, OPERATOR_SET);
        let mut model = Message::new();
        model.number(1, IR_VERSION);
        model.text(2, "swav");
        model.text(3, env!("CARGO_PKG_VERSION"));
        model.message(8, operators);
        for (key, value) in metadata {
            let mut entry = Message::new();
            entry.text(1, key);
            entry.text(2, value);
            model.message(14, entry);
        }
        model.message(7, graph);
        below_limit(model.len())?;
        Ok(Self { model })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// What the writer reports.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        self.model.write(to)
    }
}
