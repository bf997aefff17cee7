//! What programs take of a card's memory, before one is there.

use super::{Network, Options, StepSpec};
use crate::arena::{Plan, largest_that_fits, persistent_bytes};
use crate::tape::{Program, Role};

/// Bytes that convolutions may need on each stream beside a program's buffers; those seen took up to 9 MB.
const WORKSPACE: u64 = 64 << 20;

/// Bytes of a context, the libraries' code and their own buffers.
pub(crate) const CONTEXT: u64 = 600 << 20;

/// An upper bound on what a program takes: its buffers, a second copy of what the host writes, workspaces, the context.
pub fn program_bytes(program: &Program) -> u64 {
    let inputs = program.buffers.iter().filter(|buffer| buffer.role == Role::Input);
    let inputs: usize = inputs.map(|buffer| buffer.bytes).sum();
    let n_streams = program.tapes.iter().map(|tape| tape.n_streams()).max().unwrap_or(1);
    let buffers = Plan::new(program).bytes() + persistent_bytes(program) + inputs;
    buffers as u64 + WORKSPACE * n_streams as u64 + CONTEXT
}

impl Network {
    /// What a whole step takes.
    pub fn step_bytes(&self, spec: &StepSpec, options: &Options) -> u64 {
        program_bytes(&self.step(spec, options).program)
    }

    /// The largest batch, at most the step's own, whose step fits into `limit` bytes; 0 if none does.
    pub fn largest_batch(&self, spec: &StepSpec, options: &Options, limit: u64) -> usize {
        largest_that_fits(limit, spec.scores.batch, |batch| self.step_bytes(&spec.with_batch(batch), options))
    }
}

impl StepSpec {
    /// The same step with another number of images; a queue keeps about its length.
    pub fn with_batch(&self, batch: usize) -> StepSpec {
        let mut spec = self.clone();
        for group in &mut spec.groups {
            group.images = group.images / self.scores.batch * batch;
        }
        spec.scores.batch = batch;
        spec.scores.queue = self.scores.queue.next_multiple_of(batch);
        spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{BlockKind, Group, Head, NetworkSpec, Stem};
    use crate::shape::Element;
    use crate::tape::{PixelFormat, Rule, ScoreShape};

    /// ResNet-50 with its head, 2 crops of 224 pixels and 6 of 96: PyTorch's peak for 64 images is 9.4 GB, its context
    /// not counted.
    #[test]
    fn a_resnet_50_step_of_64_images_takes_less_than_pytorch() {
        let network = Network::new(NetworkSpec {
            stem: Stem::Imagenet,
            stem_channels: 64,
            block: BlockKind::Bottleneck,
            layers: vec![3, 4, 6, 3],
            head: Head::Mlp { hidden: 2048, dim: 128 },
        });
        let group = |images, size| Group { images, height: size, width: size };
        let spec = StepSpec {
            groups: vec![group(128, 224), group(384, 96)],
            scores: ScoreShape {
                n_prototypes: 3000,
                stride: 3000,
                batch: 64,
                n_crops: 8,
                assign: vec![0, 1],
                queue: 0,
                epsilon: 0.05,
                temperature: 0.1,
            },
            n_iters: 3,
            rule: Rule::Larc,
        };
        let options = |checkpointing| Options {
            element: Element::Bf16,
            tf32: false,
            checkpointing,
            pixels: PixelFormat::F32,
        };
        let plain = network.step_bytes(&spec, &options(false));
        let kept = network.step_bytes(&spec, &options(true));
        assert!((5_000_000_000..9_400_000_000).contains(&(plain - CONTEXT)), "{plain}");
        assert!(kept < plain * 3 / 4, "{kept} of {plain}");
        assert_eq!(network.largest_batch(&spec, &options(false), plain), 64);
        let half = network.largest_batch(&spec, &options(false), plain / 2);
        assert!((20..40).contains(&half), "{half}");
        assert_eq!(network.largest_batch(&spec, &options(false), 1 << 20), 0);
    }
}
