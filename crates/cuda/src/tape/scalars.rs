//! What changes between runs of the same tape, and what a run reports.

/// Classes of parameters that an update may treat differently.
pub const N_CLASSES: usize = 4;

/// The numbers of an update for one class of parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateScalars {
    /// Learning rate.
    pub lr: f32,
    /// Momentum (LARC, SGD), or AdamW's first decay.
    pub momentum: f32,
    /// AdamW's second decay.
    pub beta2: f32,
    /// AdamW's epsilon.
    pub epsilon: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// LARC's trust coefficient; below zero: this class follows SGD.
    pub trust: f32,
    /// `1 / (1 - beta1^t)` at this update.
    pub first_correction: f32,
    /// `1 / (1 - beta2^t)` at this update.
    pub second_correction: f32,
    /// Multiplies gradients before anything else.
    pub gradient_scale: f32,
    /// Whether there is an update at all.
    pub enabled: bool,
}

impl Default for UpdateScalars {
    fn default() -> Self {
        UpdateScalars {
            lr: 0.0,
            momentum: 0.0,
            beta2: 0.0,
            epsilon: 1e-8,
            weight_decay: 0.0,
            trust: 0.001,
            first_correction: 1.0,
            second_correction: 1.0,
            gradient_scale: 1.0,
            enabled: true,
        }
    }
}

/// What the host sets before a run. On a card it lies in memory, since a captured graph freezes its arguments.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scalars {
    /// The numbers of an update, by [`UpdatedTensor::class`](super::UpdatedTensor).
    pub classes: [UpdateScalars; N_CLASSES],
    /// The share of a batch in the running statistics.
    pub bn_momentum: f32,
    /// The norm, above 0, that the gradients of all updated parameters together are clipped to: where theirs is `n`,
    /// they are multiplied by `min(1, max / (n + 1e-6))`, unless it is not finite. `None` for no clipping.
    pub max_gradient_norm: Option<f32>,
    /// Whether the queue takes part in the codes.
    pub queue_ready: bool,
    /// Whether the batch enters the queue.
    pub queue_push: bool,
    /// The row of each of the queue's lists that the batch's first row goes to.
    pub queue_row: u32,
    /// The number that the report repeats, to say which run it is of.
    pub serial: u32,
}

impl Default for Scalars {
    fn default() -> Self {
        Scalars {
            classes: [UpdateScalars::default(); N_CLASSES],
            bn_momentum: 0.1,
            max_gradient_norm: None,
            queue_ready: false,
            queue_push: false,
            queue_row: 0,
            serial: 0,
        }
    }
}

/// What a run of a whole step writes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Report {
    /// The loss in nats.
    pub loss: f64,
    /// Mean entropy of a sample's code in nats.
    pub code_entropy: f64,
    /// exp of the entropy of the mean code.
    pub code_perplexity: f64,
    /// exp of the entropy of the mean prediction over all crops.
    pub prediction_perplexity: f64,
    /// `1 - |mean z|²`.
    pub spread: f64,
    /// Euclidean norm of all updated parameters before the update.
    pub parameter_norm: f64,
    /// Euclidean norm of their gradients before clipping.
    pub gradient_norm: f64,
    /// [`Scalars::serial`] of the run.
    pub serial: u32,
    /// What gradients were multiplied by to clip them, 1 for not at all.
    pub clip_scale: f32,
}

impl Report {
    /// Size in bytes: seven f64, a u32 and an f32.
    pub const BYTES: usize = 64;

    /// From bytes.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        let value = |i: usize| f64::from_le_bytes(words[i]);
        Report {
            loss: value(0),
            code_entropy: value(1),
            code_perplexity: value(2),
            prediction_perplexity: value(3),
            spread: value(4),
            parameter_norm: value(5),
            gradient_norm: value(6),
            serial: u64::from_le_bytes(words[7]) as u32,
            clip_scale: f32::from_bits((u64::from_le_bytes(words[7]) >> 32) as u32),
        }
    }

    /// To bytes.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let values = [
            self.loss,
            self.code_entropy,
            self.code_perplexity,
            self.prediction_perplexity,
            self.spread,
            self.parameter_norm,
            self.gradient_norm,
        ];
        let mut bytes = [0; Self::BYTES];
        let last = u64::from(self.serial) | u64::from(self.clip_scale.to_bits()) << 32;
        let words = values.map(f64::to_bits).into_iter().chain([last]);
        bytes
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .zip(words)
            .for_each(|(slot, word)| *slot = word.to_le_bytes());
        bytes
    }
}
