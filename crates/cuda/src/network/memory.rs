//! What programs take of a card's memory, before one is there.

use std::collections::BTreeSet;

use super::{GradientSource, Group, Network, Options, StepSpec};
use crate::arena::{Plan, persistent_bytes};
use crate::plans::MOST_WORKSPACE;
use crate::shape::Element;
use crate::tape::{Op, Program, Role, Rule};

/// Bytes that convolutions may need beside a program's buffers, on each stream that has any: in bf16 all that cuDNN proposes
/// for the recipes take up to 36 MB, and those that were chosen took up to 9; in f32 some take whatever a plan may.
fn workspaces(program: &Program) -> u64 {
    let nodes = program.tapes.iter().flat_map(|tape| &tape.nodes);
    let convolutions = nodes.filter(|node| matches!(node.op, Op::Conv { .. }));
    let streams: BTreeSet<usize> = convolutions.map(|node| node.stream).collect();
    let each = match program.element {
        Element::Bf16 => 64 << 20,
        Element::F32 => MOST_WORKSPACE,
    };
    each * streams.len() as u64
}

/// Bytes of a context, the libraries' code and their own buffers.
pub(crate) const CONTEXT: u64 = 600 << 20;

/// An upper bound on what a program takes: its buffers, a second copy of what the host writes, workspaces, the context.
pub fn program_bytes(program: &Program) -> u64 {
    programs_bytes(&[program])
}

/// As [`program_bytes`] for programs that are loaded together: they share persistent buffers by name, and all else, as they
/// run one after the other.
fn programs_bytes(programs: &[&Program]) -> u64 {
    let all = || programs.iter().copied();
    let inputs = all().flat_map(|program| &program.buffers).filter(|buffer| buffer.role == Role::Input);
    let inputs: usize = inputs.map(|buffer| buffer.bytes).sum();
    let arena = all().map(|program| Plan::new(program).bytes()).max().unwrap_or(0);
    let workspaces = all().map(workspaces).max().unwrap_or(0);
    (arena + persistent_bytes(all()) + inputs) as u64 + workspaces + CONTEXT
}

impl Network {
    /// What a whole step takes, in bytes as [`program_bytes`] counts them.
    pub fn step_bytes(&self, spec: &StepSpec, options: &Options) -> u64 {
        program_bytes(&self.step(spec, options).program)
    }

    /// What training pass by pass takes, where the host has the embeddings in between: forward and backward pass over these
    /// groups of crops, sums of their gradients as clipping and averages over processes need them, and updates; in bytes as
    /// [`program_bytes`] counts them.
    pub fn passes_bytes(&self, groups: &[Group], rule: Rule, options: &Options) -> u64 {
        let element = options.element;
        let train = self.train(groups, options).program;
        let sums = self.sum_gradients(groups.len(), element);
        let [update, update_of_sums] = [GradientSource::Groups(groups.len()), GradientSource::Summed]
            .map(|source| self.update(source, rule, element).0);
        programs_bytes(&[&train, &sums, &update, &update_of_sums])
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
    use crate::arena::{ALIGNMENT, largest_that_fits};
    use crate::network::{BlockKind, Head, NetworkSpec, Stem};
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
        let largest = |limit| {
            largest_that_fits(limit, 64, |batch| network.step_bytes(&spec.with_batch(batch), &options(false)))
        };
        assert_eq!(largest(plain), 64);
        let half = largest(plain / 2);
        assert!((20..40).contains(&half), "{half}");
        assert_eq!(largest(1 << 20), 0);
        // Pass by pass there are no scores of prototypes, but two rows of f32 for each of bf16 and the sums of gradients.
        let passes = network.passes_bytes(&spec.groups, Rule::Larc, &options(false));
        assert!((plain * 9 / 10..plain * 11 / 10).contains(&passes), "{passes}, {plain} as a whole");
        let moments = network.passes_bytes(&spec.groups, Rule::AdamW, &options(false)) - passes;
        assert_eq!(moments, (4 * network.parameters().len).next_multiple_of(ALIGNMENT) as u64);
    }

    /// What a machine has to have for passes is there once for all programs: parameters, gradients, the larger arena.
    #[test]
    fn programs_that_are_loaded_together_share() {
        let network = Network::new(NetworkSpec {
            stem: Stem::Cifar,
            stem_channels: 8,
            block: BlockKind::Basic,
            layers: vec![1, 1],
            head: Head::Linear { dim: 8 },
        });
        let options =
            Options { element: Element::F32, tf32: false, checkpointing: false, pixels: PixelFormat::F32 };
        let groups = [Group { images: 4, height: 16, width: 16 }];
        let train = program_bytes(&network.train(&groups, &options).program);
        let sums = (4 * network.parameters().len).next_multiple_of(ALIGNMENT) as u64;
        assert_eq!(network.passes_bytes(&groups, Rule::Sgd, &options), train + sums);
    }
}
