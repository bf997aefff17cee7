//! Buffers as bytes, read and written as numbers.

use std::collections::HashMap;

use half::bf16;

use crate::arena::Plan;
use crate::shape::{ConvShape, Element};
use crate::tape::{Program, Report, View};

/// The buffers of a program while it runs.
pub struct Memory<'a> {
    program: &'a Program,
    plan: &'a Plan,
    arena: &'a mut [u8],
    persistent: &'a mut HashMap<String, Vec<u8>>,
}

impl<'a> Memory<'a> {
    pub(super) fn new(
        program: &'a Program,
        plan: &'a Plan,
        arena: &'a mut [u8],
        persistent: &'a mut HashMap<String, Vec<u8>>,
    ) -> Self {
        Memory { program, plan, arena, persistent }
    }

    /// How activations are stored.
    pub fn act(&self) -> Element {
        self.program.element
    }

    /// Whether a convolution rounds what it multiplies to TF32.
    pub fn rounds(&self, shape: &ConvShape) -> bool {
        self.program.rounds(shape)
    }

    /// `len` bytes of a buffer.
    pub fn bytes(&self, view: View, len: usize) -> &[u8] {
        let buffer = &self.program.buffers[view.buffer.0];
        assert!(
            view.offset + len <= buffer.bytes,
            "{} has {} bytes, not {}",
            buffer.name,
            buffer.bytes,
            view.offset + len
        );
        match self.plan.place(view.buffer) {
            Some(at) => &self.arena[at + view.offset..][..len],
            None => &self.persistent[&buffer.name][view.offset..][..len],
        }
    }

    /// `len` bytes of a buffer, to write.
    pub fn bytes_mut(&mut self, view: View, len: usize) -> &mut [u8] {
        let buffer = &self.program.buffers[view.buffer.0];
        assert!(
            view.offset + len <= buffer.bytes,
            "{} has {} bytes, not {}",
            buffer.name,
            buffer.bytes,
            view.offset + len
        );
        match self.plan.place(view.buffer) {
            Some(at) => &mut self.arena[at + view.offset..][..len],
            None => {
                let bytes = self.persistent.get_mut(&buffer.name);
                &mut bytes.unwrap_or_else(|| unreachable!("persistent buffers were made"))[view.offset..]
                    [..len]
            }
        }
    }

    /// Values of an element type.
    pub fn load(&self, view: View, element: Element, len: usize) -> Vec<f64> {
        let bytes = self.bytes(view, len * element.bytes());
        match element {
            Element::F32 => {
                bytes.as_chunks::<4>().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect()
            }
            Element::Bf16 => {
                bytes.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f64()).collect()
            }
        }
    }

    /// Rounds values to an element type, by f32.
    pub fn store(&mut self, view: View, element: Element, values: &[f64]) {
        let bytes = self.bytes_mut(view, values.len() * element.bytes());
        match element {
            Element::F32 => {
                for (slot, &x) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *slot = (x as f32).to_le_bytes();
                }
            }
            Element::Bf16 => {
                for (slot, &x) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                    *slot = bf16::from_f32(x as f32).to_le_bytes();
                }
            }
        }
    }

    /// Activations.
    pub fn load_act(&self, view: View, len: usize) -> Vec<f64> {
        self.load(view, self.act(), len)
    }

    /// Rounds values to activations.
    pub fn store_act(&mut self, view: View, values: &[f64]) {
        self.store(view, self.act(), values);
    }

    /// Values of f32.
    pub fn floats(&self, view: View, len: usize) -> Vec<f64> {
        self.load(view, Element::F32, len)
    }

    /// Rounds values to f32.
    pub fn store_floats(&mut self, view: View, values: &[f64]) {
        self.store(view, Element::F32, values);
    }

    /// Changes a part of the report.
    pub fn change_report(&mut self, view: View, change: impl FnOnce(&mut Report)) {
        let bytes = self.bytes_mut(view, Report::BYTES);
        if let Some(bytes) = bytes.first_chunk_mut::<{ Report::BYTES }>() {
            let mut report = Report::from_bytes(bytes);
            change(&mut report);
            *bytes = report.to_bytes();
        }
    }
}
