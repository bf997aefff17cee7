//! One training step: scores, codes, loss, gradients, update; generic over the encoder, the codes and the loss.

use ndarray::{Array2, ArrayView2, ArrayView4};
use swav_collective::Collective;
use swav_encoder::{Encoder, StateDict, StateTensor};
use swav_losses::Diagnostics;
use swav_optim::{Role, Slots, UpdateRule, UpdateStats, clip_scale};
use swav_prototypes::Prototypes;

use crate::codes::{AssignCodes, Code, CodesInput, CodesVitals, Remembered};
use crate::collective::agreed;
use crate::error::{Quantity, TrainError};
use crate::loss::{Loss, LossInput};
use crate::moment::Moment;
use crate::mutants::mutated;

type Advice = Box<dyn Fn(Quantity, u64) -> String + Send>;

/// Everything of a run that is trained or remembered outside the encoder.
pub struct Swav {
    /// The prototypes.
    pub prototypes: Prototypes,
    /// What assigns codes, with its memory.
    pub codes: Box<dyn AssignCodes>,
    /// The loss.
    pub loss: Box<dyn Loss>,
    slots: Vec<Slots>,
    advice: Advice,
}

/// One batch of this process.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// The crops of each resolution, (crops·B, height, width, 3), crop by crop: all images of crop 0, then of crop 1, ...
    pub groups: &'a [ArrayView4<'a, f32>],
    /// The index in the data set of each image.
    pub indices: &'a [usize],
    /// When.
    pub moment: Moment,
}

/// How a step changes the parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// The optimiser's rule, with this step's learning rate.
    pub rule: UpdateRule,
    /// Gradients of encoder and prototypes are scaled down to this norm together; `None` leaves them.
    pub max_gradient_norm: Option<f64>,
    /// Whether prototypes are updated; they are frozen at the start of training.
    pub update_prototypes: bool,
}

impl From<UpdateRule> for Update {
    /// Updates everything, without clipping.
    fn from(rule: UpdateRule) -> Self {
        Self { rule, max_gradient_norm: None, update_prototypes: true }
    }
}

/// What one forward and backward pass gives.
#[derive(Debug, Clone)]
pub struct StepOutput {
    /// When it was.
    pub moment: Moment,
    /// The loss in nats, averaged over heads; of this process's images.
    pub loss: f64,
    /// The embeddings (crops·B, D), crop by crop.
    pub embeddings: Array2<f32>,
    /// The scores under each head, (crops·B, K).
    pub scores: Vec<Array2<f32>>,
    /// The codes of each head.
    pub codes: Vec<Vec<Code>>,
    /// The gradient with respect to the prototypes of each head, (K, D).
    pub grad_prototypes: Vec<Array2<f32>>,
    /// State of the first head's codes and predictions, if the loss says.
    pub diagnostics: Option<Diagnostics>,
    /// `1 - |mean z|²` over the batch: 0 if all embeddings are equal, towards 1 if they spread over the sphere.
    pub spread: f64,
    /// Whether remembered embeddings took part in the codes.
    pub queue_used: bool,
}

/// The numbers of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepNumbers {
    /// The loss in nats, averaged over heads.
    pub loss: f64,
    /// State of the first head's codes and predictions, if the loss says.
    pub diagnostics: Option<Diagnostics>,
    /// `1 - |mean z|²` over the batch.
    pub spread: f64,
    /// Whether remembered embeddings took part in the codes.
    pub queue_used: bool,
    /// State of the codes, where it is known.
    pub codes: CodesVitals,
    /// Norms of all parameters and gradients.
    pub norms: UpdateStats,
}

impl Swav {
    /// A step that assigns codes with `codes` and has the loss `loss`.
    pub fn new(prototypes: Prototypes, loss: Box<dyn Loss>, codes: Box<dyn AssignCodes>) -> Self {
        let slots = vec![Slots::default(); prototypes.n_heads()];
        Self { prototypes, codes, loss, slots, advice: Box::new(|_, _| String::new()) }
    }

    /// Lets `advice` say what to do about a number that is not finite in a step.
    #[must_use]
    pub fn with_advice(mut self, advice: impl Fn(Quantity, u64) -> String + Send + 'static) -> Self {
        self.advice = Box::new(advice);
        self
    }

    /// Forward and backward pass on one batch. Gradients stay in the encoder and in the output; no parameter
    /// changes, but the prototypes are projected onto the sphere, batch-norm statistics move and the batch
    /// enters the memory of the codes.
    ///
    /// Codes are computed over the processes of `collective`, and gradients are averaged over them. Where a number is
    /// not finite on one of them, all fail.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] if embeddings or loss are not finite, [`TrainError::Rank`] if those of another process
    /// are not, and the parts' own errors.
    pub fn forward_backward(
        &mut self,
        encoder: &mut dyn Encoder,
        batch: &Batch<'_>,
        collective: &dyn Collective,
    ) -> Result<StepOutput, TrainError> {
        let Batch { groups, indices, moment } = *batch;
        self.prototypes.normalise();
        let z = encoder.forward_train(groups)?;
        if indices.is_empty() || !z.nrows().is_multiple_of(indices.len()) {
            return Err(TrainError::Batch { n_images: indices.len(), n_rows: z.nrows() });
        }
        agreed(collective, self.finite(z.iter().all(|x| x.is_finite()), Quantity::Embedding, moment))?;

        let n_heads = self.prototypes.n_heads();
        let mut output = StepOutput::new(z, moment, n_heads);
        let z = output.embeddings.view();
        let mut grad_z = Array2::<f32>::zeros(z.dim());
        for head in 0..n_heads {
            let scores = self.prototypes.scores(head, z)?;
            let assigned = self.codes.assign(&CodesInput {
                moment,
                head,
                indices,
                embeddings: z,
                scores: scores.view(),
                prototypes: &self.prototypes,
                collective,
            })?;
            let input = LossInput { moment, head, scores: scores.view(), codes: &assigned.codes };
            let mut evaluated = self.loss.evaluate(&input)?;
            if n_heads > 1 {
                evaluated.grad_scores *= 1.0 / n_heads as f32;
            }
            let grad_scores = evaluated.grad_scores.view();
            output.grad_prototypes.push(self.prototypes.grad_weights(head, grad_scores, z)?);
            grad_z += &self.prototypes.grad_embeddings(head, grad_scores)?;
            output.loss += evaluated.loss / n_heads as f64;
            output.queue_used |= assigned.used_memory;
            if head == 0 {
                output.diagnostics = evaluated.diagnostics;
            }
            output.scores.push(scores);
            output.codes.push(assigned.codes);
        }
        agreed(collective, self.finite(output.loss.is_finite(), Quantity::Loss, moment))?;

        self.codes.remember(&Remembered { moment, indices, embeddings: z })?;
        encoder.backward(grad_z.view())?;
        if collective.world_size() > 1 {
            average_gradients(encoder, &mut output.grad_prototypes, collective)?;
        }
        Ok(output)
    }

    /// Updates the encoder and, unless they are frozen, the prototypes. A frozen prototype gets no update
    /// at all: no gradient, no decay, no momentum.
    ///
    /// # Errors
    /// The encoder's; [`TrainError::NotFinite`] if a gradient is not finite, which the parameters have then
    /// taken in already.
    pub fn update(
        &mut self,
        encoder: &mut dyn Encoder,
        output: &StepOutput,
        update: &Update,
    ) -> Result<UpdateStats, TrainError> {
        let update_prototypes = update.update_prototypes || mutated("frozen-prototypes-updated");
        let trained = if update_prototypes { output.grad_prototypes.as_slice() } else { &[] };
        let mut rule = update.rule;
        if let Some(max_norm) = update.max_gradient_norm {
            let norms = trained.iter().map(|grad| swav_optim::norm(flat(grad)));
            rule.gradient_scale = clip_scale(max_norm, norms.fold(encoder.gradient_norm()?, f64::hypot));
        }
        let mut stats = encoder.update(&rule)?;
        for (head, grad) in trained.iter().enumerate() {
            let mut weights = self.prototypes.weights_mut(head)?;
            let values = weights.as_slice_mut().expect("weights are contiguous");
            let slots = &mut self.slots[head];
            stats = stats.merge(swav_optim::apply(&rule, Role::Weight, values, flat(grad), slots));
        }
        self.finite(stats.gradient_norm.is_finite(), Quantity::Gradient, output.moment)?;
        Ok(stats)
    }

    /// The optimiser's memory of one head.
    pub(crate) fn slots(&self, head: usize) -> &Slots {
        &self.slots[head]
    }

    /// Replaces a single head and the optimiser's memory of it.
    pub(crate) fn set_head(&mut self, prototypes: Prototypes, slots: Slots) {
        self.prototypes = prototypes;
        self.slots = vec![slots];
    }

    pub(crate) fn not_finite(&self, what: Quantity, moment: Moment) -> TrainError {
        TrainError::NotFinite { step: moment.step, what, advice: (self.advice)(what, moment.step) }
    }

    fn finite(&self, is_finite: bool, what: Quantity, moment: Moment) -> Result<(), TrainError> {
        if is_finite { Ok(()) } else { Err(self.not_finite(what, moment)) }
    }

    /// The prototypes by name, as tensors.
    ///
    /// # Errors
    /// None in practice; the encoder's tensors check their lengths.
    pub fn state(&self) -> Result<StateDict, TrainError> {
        let mut state = StateDict::new();
        for (head, name) in self.prototypes.names().into_iter().enumerate() {
            let weights = self.prototypes.weights(head)?;
            let values = weights.iter().copied().collect();
            state.insert(name, StateTensor::new(weights.shape().to_vec(), values)?);
        }
        Ok(state)
    }

    /// The optimiser's memory of the prototypes, in the form of
    /// [`StateDict::insert_slots`].
    pub fn optimizer_state(&self) -> StateDict {
        let mut state = StateDict::new();
        for (head, name) in self.prototypes.names().into_iter().enumerate() {
            let shape = self.prototypes.weights(head).map(|w| w.shape().to_vec()).unwrap_or_default();
            state.insert_slots(&name, &shape, &self.slots[head]);
        }
        state
    }

    /// Replaces prototypes and their optimiser's memory by what [`state`](Self::state) and
    /// [`optimizer_state`](Self::optimizer_state) gave.
    ///
    /// # Errors
    /// Missing tensors, or tensors of other shapes; nothing changes then.
    pub fn load(&mut self, state: &StateDict, optimizer: &StateDict) -> Result<(), TrainError> {
        let (mut heads, mut slots) = (Vec::new(), Vec::new());
        for (head, name) in self.prototypes.names().into_iter().enumerate() {
            let shape = self.prototypes.weights(head)?.raw_dim();
            let tensor = state.expect(&name, &[shape[0], shape[1]])?;
            let weights = Array2::from_shape_vec(shape, tensor.data().to_vec());
            heads.push(weights.expect("the shape was just compared"));
            slots.push(optimizer.slots(&name, &[shape[0], shape[1]])?);
        }
        self.prototypes = Prototypes::from_weights(heads)?;
        self.slots = slots;
        Ok(())
    }
}

impl StepOutput {
    /// The output of a step that has come as far as the embeddings.
    fn new(embeddings: Array2<f32>, moment: Moment, n_heads: usize) -> Self {
        Self {
            moment,
            loss: 0.0,
            spread: spread(embeddings.view()),
            embeddings,
            scores: Vec::with_capacity(n_heads),
            codes: Vec::with_capacity(n_heads),
            grad_prototypes: Vec::with_capacity(n_heads),
            diagnostics: None,
            queue_used: false,
        }
    }
}

/// `1 - |mean row|²`, summed in the order of the rows.
fn spread(z: ArrayView2<'_, f32>) -> f64 {
    let mut mean = vec![0.0f64; z.ncols()];
    for row in z.rows() {
        for (sum, &x) in mean.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    let n = z.nrows() as f64;
    1.0 - mean.iter().map(|sum| (sum / n).powi(2)).sum::<f64>()
}

/// The values of a gradient.
fn flat(grad: &Array2<f32>) -> &[f32] {
    grad.as_slice().expect("a gradient is a new array")
}

/// Replaces gradients by their means over all processes.
fn average_gradients(
    encoder: &mut dyn Encoder,
    grad_prototypes: &mut [Array2<f32>],
    collective: &dyn Collective,
) -> Result<(), TrainError> {
    encoder.reduce_gradients(collective)?;
    let share = 1.0 / collective.world_size() as f32;
    for grad in grad_prototypes {
        let values = grad.as_slice_mut().expect("a gradient is a new array");
        collective.sum_f32(values)?;
        values.iter_mut().for_each(|value| *value *= share);
    }
    Ok(())
}
