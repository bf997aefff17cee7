//! One training step: scores, codes, loss, gradients, update; generic over the encoder.

use ndarray::{Array2, s};
use swav_encoder::{Encoder, ImageBatch, StateDict, StateTensor};
use swav_losses::{Diagnostics, SwappedPrediction};
use swav_optim::{Role, Slots, UpdateRule, UpdateStats};
use swav_ot::Codes;
use swav_prototypes::{FeatureQueue, Prototypes};

use crate::collective::Collective;
use crate::error::TrainError;

/// Everything of a run that is trained or remembered outside the encoder.
pub struct Swav {
    /// The prototypes.
    pub prototypes: Prototypes,
    /// The feature queue, once its epoch has come.
    pub queue: Option<FeatureQueue>,
    slots: Vec<Slots>,
    loss: SwappedPrediction,
    codes: Codes<f32>,
}

/// What one forward and backward pass gives.
#[derive(Debug, Clone)]
pub struct StepOutput {
    /// The loss in nats, averaged over heads.
    pub loss: f64,
    /// The embeddings (crops·B, D), crop by crop.
    pub embeddings: Array2<f32>,
    /// The scores under each head, (crops·B, K).
    pub scores: Vec<Array2<f32>>,
    /// The codes of each head, one (B, K) array for each assignment crop.
    pub codes: Vec<Vec<Array2<f32>>>,
    /// The gradient by the prototypes of each head, (K, D).
    pub grad_prototypes: Vec<Array2<f32>>,
    /// State of the first head's codes and predictions.
    pub diagnostics: Diagnostics,
    /// `1 - |mean z|²` over the batch: 0 if all embeddings are equal, towards 1 if they spread over the sphere.
    pub spread: f64,
    /// Whether the queue took part in the codes.
    pub queue_used: bool,
}

impl Swav {
    /// A step that computes codes with `codes` and the loss with `loss`.
    pub fn new(prototypes: Prototypes, loss: SwappedPrediction, codes: Codes<f32>) -> Self {
        let slots = vec![Slots::default(); prototypes.n_heads()];
        Self { prototypes, queue: None, slots, loss, codes }
    }

    /// Forward and backward pass on one batch. Gradients stay in the encoder and in the output; no parameter
    /// changes, but the prototypes are projected onto the sphere, batch-norm statistics move and the batch
    /// enters the queue.
    ///
    /// `groups` are the crops of each resolution, crop by crop; all crops together are those of the loss.
    /// Gradients are averaged over the processes of `collective`, codes are computed over all of them.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] (without advice; the caller knows the configuration) if embeddings or loss are
    /// not finite, and the parts' own errors.
    pub fn forward_backward(
        &mut self,
        encoder: &mut dyn Encoder,
        groups: &[ImageBatch<'_>],
        collective: &mut dyn Collective,
    ) -> Result<StepOutput, TrainError> {
        self.prototypes.normalise();
        let z = encoder.forward_train(groups)?;
        if !z.iter().all(|x| x.is_finite()) {
            return Err(not_finite("an embedding"));
        }
        let n_heads = self.prototypes.n_heads();
        let batch = z.nrows() / self.loss.n_crops();
        let mut output = StepOutput {
            loss: 0.0,
            spread: spread(&z),
            scores: Vec::with_capacity(n_heads),
            codes: Vec::with_capacity(n_heads),
            grad_prototypes: Vec::with_capacity(n_heads),
            diagnostics: Diagnostics::default(),
            queue_used: false,
            embeddings: z,
        };
        let z = output.embeddings.view();
        let mut grad_z = Array2::<f32>::zeros(z.dim());
        let head_share = 1.0 / n_heads as f32;
        for head in 0..n_heads {
            let scores = self.prototypes.scores(head, z)?;
            let mut codes = Vec::with_capacity(self.loss.assign().len());
            for (index, &crop) in self.loss.assign().iter().enumerate() {
                let own = scores.slice(s![crop * batch..(crop + 1) * batch, ..]);
                let mut all = match &self.queue {
                    Some(queue) => {
                        output.queue_used |= queue.is_ready(index);
                        queue.with_batch(index, &self.prototypes, head, own)?
                    }
                    None => own.to_owned(),
                };
                self.codes.assign_sharded(all.view_mut(), collective)?;
                let first = all.nrows() - batch;
                codes.push(if first == 0 { all } else { all.slice(s![first.., ..]).to_owned() });
            }
            let views: Vec<_> = codes.iter().map(|code| code.view()).collect();
            let mut swapped = self.loss.evaluate(scores.view(), &views)?;
            if n_heads > 1 {
                swapped.grad_scores *= head_share;
            }
            output.loss += swapped.loss / n_heads as f64;
            if head == 0 {
                output.diagnostics = swapped.diagnostics;
            }
            let grad = swapped.grad_scores.view();
            output.grad_prototypes.push(self.prototypes.grad_weights(head, grad, z)?);
            grad_z += &self.prototypes.grad_embeddings(head, grad)?;
            output.scores.push(scores);
            output.codes.push(codes);
        }
        if !output.loss.is_finite() {
            return Err(not_finite("the loss"));
        }
        if let Some(queue) = &mut self.queue {
            for (index, &crop) in self.loss.assign().iter().enumerate() {
                queue.push(index, z.slice(s![crop * batch..(crop + 1) * batch, ..]))?;
            }
        }
        encoder.backward(grad_z.view())?;
        if collective.world_size() > 1 {
            average_gradients(encoder, &mut output.grad_prototypes, collective)?;
        }
        Ok(output)
    }

    /// Applies `rule` to the encoder and, unless they are frozen, to the prototypes.
    ///
    /// # Errors
    /// The encoder's; [`TrainError::NotFinite`] if a gradient is not finite, which the parameters have then
    /// taken in already.
    pub fn update(
        &mut self,
        encoder: &mut dyn Encoder,
        output: &StepOutput,
        rule: &UpdateRule,
        prototypes_too: bool,
    ) -> Result<UpdateStats, TrainError> {
        let mut stats = encoder.update(rule)?;
        if prototypes_too {
            for (head, grad) in output.grad_prototypes.iter().enumerate() {
                let mut weights = self.prototypes.weights_mut(head)?;
                let values = weights.as_slice_mut().expect("weights are contiguous");
                let grad = grad.as_slice().expect("a gradient is a new array");
                stats =
                    stats.merge(swav_optim::apply(rule, Role::Weight, values, grad, &mut self.slots[head]));
            }
        }
        if stats.gradient_norm.is_finite() { Ok(stats) } else { Err(not_finite("a gradient")) }
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

fn not_finite(what: &'static str) -> TrainError {
    TrainError::NotFinite { step: 0, what, advice: String::new() }
}

/// `1 - |mean row|²`, summed in the order of the rows.
fn spread(z: &Array2<f32>) -> f64 {
    let mut mean = vec![0.0f64; z.ncols()];
    for row in z.rows() {
        for (sum, &x) in mean.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    let n = z.nrows() as f64;
    1.0 - mean.iter().map(|sum| (sum / n).powi(2)).sum::<f64>()
}

/// Gradients of all processes, added and divided by their number.
fn average_gradients(
    encoder: &mut dyn Encoder,
    grad_prototypes: &mut [Array2<f32>],
    collective: &mut dyn Collective,
) -> Result<(), TrainError> {
    let share = 1.0 / collective.world_size() as f32;
    let mut failure = None;
    let mut average = |values: &mut [f32]| {
        if failure.is_none() {
            failure = collective.all_reduce_sum(values).err();
        }
        values.iter_mut().for_each(|value| *value *= share);
    };
    encoder.map_gradients(&mut |_, values| average(values))?;
    for grad in grad_prototypes {
        average(grad.as_slice_mut().expect("a gradient is a new array"));
    }
    failure.map_or(Ok(()), |error| Err(TrainError::Collective(error)))
}
