//! What changes from step to step lies in the card's memory: written by the host before a step, read after it.
//!
//! Launches are recorded once, with their arguments, so these values cannot be arguments. The layouts are those of
//! `step.cuh`.

/// An optimiser's numbers for one class of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RuleScalars {
    /// Learning rate.
    pub lr: f32,
    /// Momentum, or AdamW's first decay.
    pub momentum: f32,
    /// AdamW's second decay.
    pub second_decay: f32,
    /// AdamW's epsilon.
    pub epsilon: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// LARC's trust coefficient; negative: this class follows SGD.
    pub trust: f32,
    /// `1 / (1 - momentum^t)` at AdamW's t-th update.
    pub first_correction: f32,
    /// `1 / (1 - second_decay^t)` at AdamW's t-th update.
    pub second_correction: f32,
    /// Whether this class is updated, and counted in the norms.
    pub enabled: bool,
    /// What gradients are multiplied by first; the reported norm is that before.
    pub gradient_scale: f32,
}

impl RuleScalars {
    const BYTES: usize = 48;

    fn write(&self, out: &mut Vec<u8>) {
        let floats = [
            self.lr,
            self.momentum,
            self.second_decay,
            self.epsilon,
            self.weight_decay,
            self.trust,
            self.first_correction,
            self.second_correction,
        ];
        out.extend(floats.iter().flat_map(|x| x.to_le_bytes()));
        out.extend(i32::from(self.enabled).to_le_bytes());
        out.extend(self.gradient_scale.to_le_bytes());
        out.extend([0; 8]);
    }
}

/// A step's scalars.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepScalars {
    /// The numbers of each class of tensors.
    pub classes: [RuleScalars; 4],
    /// Whether the batch enters the queue.
    pub queue_push: bool,
    /// Whether the queue takes part in the codes.
    pub queue_ready: bool,
    /// The row of the queues where the batch is put.
    pub queue_slot: u32,
    /// The step's number, copied to the report.
    pub serial: u32,
    /// Share of a batch in the running statistics.
    pub bn_momentum: f32,
    /// Gradients of all updated tensors together are clipped to this norm; 0: they are not clipped.
    pub max_gradient_norm: f32,
}

impl StepScalars {
    /// Size on the card.
    pub const BYTES: usize = 4 * RuleScalars::BYTES + 32;

    /// The structure as the kernels read it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::BYTES);
        self.classes.iter().for_each(|rule| rule.write(&mut out));
        out.extend(i32::from(self.queue_push).to_le_bytes());
        out.extend(i32::from(self.queue_ready).to_le_bytes());
        out.extend(self.queue_slot.to_le_bytes());
        out.extend(self.serial.to_le_bytes());
        out.extend(self.bn_momentum.to_le_bytes());
        out.extend(self.max_gradient_norm.to_le_bytes());
        out.extend([0; 8]);
        out
    }
}

/// What a step reports.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepReport {
    /// The loss in nats, averaged over samples and pairs of crops.
    pub loss: f64,
    /// Mean entropy of a code in nats.
    pub code_entropy: f64,
    /// exp of the entropy of the mean code.
    pub code_perplexity: f64,
    /// exp of the entropy of the mean prediction.
    pub prediction_perplexity: f64,
    /// `1 - |mean embedding|²`.
    pub spread: f64,
    /// Euclidean norm of the parameters before the update.
    pub parameter_norm: f64,
    /// Euclidean norm of the gradients before clipping; not finite if a gradient is not.
    pub gradient_norm: f64,
    /// The step's number.
    pub serial: u32,
    /// What gradients were multiplied by to clip them, 1 for not at all.
    pub clip_scale: f32,
}

impl StepReport {
    /// Size on the card.
    pub const BYTES: usize = 64;

    /// From what the kernels wrote.
    ///
    /// # Panics
    /// If there are fewer than [`BYTES`](Self::BYTES) bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let word = |i: usize| {
            u64::from_le_bytes(
                *bytes[8 * i..].first_chunk().expect("a report has eight words of eight bytes"),
            )
        };
        let number = |i| f64::from_bits(word(i));
        Self {
            loss: number(0),
            code_entropy: number(1),
            code_perplexity: number(2),
            prediction_perplexity: number(3),
            spread: number(4),
            parameter_norm: number(5),
            gradient_norm: number(6),
            serial: word(7) as u32,
            clip_scale: f32::from_bits((word(7) >> 32) as u32),
        }
    }
}
