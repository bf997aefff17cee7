//! Times plans on memory of their own.

use std::sync::Arc;

use crate::Result;
use crate::cudnn::{ConvPlan, Cudnn};
use crate::driver::{Card, DeviceMemory, Event, Stream};
use crate::self_test;
use crate::shape::Element;

/// Runs plans and looks at the clock of the card.
#[derive(Debug)]
pub(super) struct Stopwatch {
    card: Arc<Card>,
    stream: Stream,
    events: [Event; 2],
    /// Tensors of plans: input, weights, output, and the workspace.
    blocks: [Option<DeviceMemory>; 4],
    /// The type of the noise in the blocks.
    element: Element,
}

/// Bytes of noise that are made on the host; longer blocks repeat them.
const NOISE: usize = 4 << 20;

impl Stopwatch {
    pub(super) fn new(card: &Arc<Card>) -> Result<Stopwatch> {
        Ok(Stopwatch {
            card: Arc::clone(card),
            stream: Stream::new(card)?,
            events: [Event::timed(card)?, Event::timed(card)?],
            blocks: [None, None, None, None],
            element: Element::F32,
        })
    }

    /// Milliseconds of a plan: the median of some runs, of one if that is far slower than `best`; nothing if it does not
    /// run. Adds the card's time to `spent`.
    ///
    /// # Errors
    /// Memory does not suffice, or the driver's.
    pub(super) fn time(
        &mut self,
        cudnn: &Cudnn,
        plan: &Arc<ConvPlan>,
        best: f32,
        spent: &mut f32,
    ) -> Result<Option<f32>> {
        let conv = plan.conv();
        if conv.element != self.element {
            self.blocks = [None, None, None, None];
            self.element = conv.element;
        }
        let shape = conv.shape;
        let size = |len: usize| (len * conv.element.bytes()) as u64;
        let sizes =
            [size(shape.input_len()), size(shape.weight_len()), size(shape.output_len()), plan.workspace()];
        for (index, bytes) in sizes.into_iter().enumerate() {
            self.reserve(index, bytes)?;
        }
        let [x, w, y, workspace] =
            self.blocks.each_ref().map(|block| block.as_ref().map_or(0, DeviceMemory::address));
        // SAFETY: the blocks have these sizes, and the result does not outlive this call, which waits for the card.
        let bound = unsafe { plan.bind(x, w, y, workspace) }?;
        // Once for what a plan does the first time. Some plans turn out not to run.
        let [start, end] = &self.events;
        start.record(&self.stream)?;
        if cudnn.run(&bound, &self.stream).is_err() {
            return Ok(None);
        }
        end.record(&self.stream)?;
        let first = start.milliseconds_to(end)?;
        *spent += first;
        // The first run is slower by what is loaded then, by some milliseconds.
        if first > 4.0 * best + 20.0 {
            return Ok(Some(first));
        }
        let n_runs = if shape.flops() > 30_000_000_000 { 3 } else { 5 };
        let mut times = Vec::with_capacity(n_runs);
        for _ in 0..n_runs {
            start.record(&self.stream)?;
            cudnn.run(&bound, &self.stream)?;
            end.record(&self.stream)?;
            let time = start.milliseconds_to(end)?;
            *spent += time;
            times.push(time);
        }
        times.sort_unstable_by(f32::total_cmp);
        Ok(Some(times[n_runs / 2]))
    }

    /// Makes a block at least `bytes` long, filled with noise: matrix units draw less power on zeros and run faster.
    fn reserve(&mut self, index: usize, bytes: u64) -> Result<()> {
        if self.blocks[index].as_ref().is_some_and(|block| block.bytes() >= bytes) {
            return Ok(());
        }
        self.blocks[index] = None;
        let block = DeviceMemory::new(&self.card, bytes)?;
        let mut filled = (NOISE as u64).min(bytes);
        block.upload(0, &noise(self.element)[..filled as usize], &self.stream)?;
        while filled < bytes {
            let step = filled.min(bytes - filled);
            block.copy_to(0, &block, filled, step, &self.stream)?;
            filled += step;
        }
        self.blocks[index] = Some(block);
        Ok(())
    }
}

/// Values between -1 and 1.
fn noise(element: Element) -> Vec<u8> {
    element.to_bytes(&self_test::noise(NOISE / element.bytes(), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_spread_evenly() {
        let bytes = noise(Element::Bf16);
        assert_eq!(bytes.len(), NOISE);
        let values = Element::Bf16.to_values(&bytes);
        assert!(values.iter().all(|value| value.abs() <= 1.0));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.01 && (square - 1.0 / 3.0).abs() < 0.01, "{mean} {square}");
        assert_eq!(noise(Element::F32).len(), NOISE);
    }
}
