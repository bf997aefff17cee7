//! An encoder of your own in about a dozen lines: its formula and the gradient; the rest is here.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{Array2, ArrayD, ArrayView2, ArrayView4, ArrayViewMut2, Ix2, concatenate, s};
use swav_collective::Collective;
use swav_optim::{Role, apply};

use crate::encoder::{check_groups, check_images};
use crate::unit_length::{to_unit_length, unit_length_gradient};
use crate::{
    BoxedError, Crops, Description, Encoder, EncoderError, Output, Slots, StateDict, StateTensor,
    SyncBatchNorm, UpdateRule, UpdateStats,
};

/// Arrays by name: the parameters of a [`Model`], or their gradients.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    arrays: BTreeMap<String, (Role, ArrayD<f32>)>,
}

impl Parameters {
    /// No parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a weight.
    #[must_use]
    pub fn with<D: ndarray::Dimension>(self, name: &str, values: ndarray::Array<f32, D>) -> Self {
        self.with_role(name, Role::Weight, values)
    }

    /// Adds a parameter of any role.
    #[must_use]
    pub fn with_role<D: ndarray::Dimension>(
        mut self,
        name: &str,
        role: Role,
        values: ndarray::Array<f32, D>,
    ) -> Self {
        let values = values.as_standard_layout().into_owned().into_dyn();
        self.arrays.insert(name.to_owned(), (role, values));
        self
    }

    /// The array of this name.
    ///
    /// # Errors
    /// [`EncoderError::Missing`].
    pub fn get(&self, name: &str) -> Result<&ArrayD<f32>, EncoderError> {
        let missing = || EncoderError::Missing { name: name.to_owned() };
        self.arrays.get(name).map(|(_, values)| values).ok_or_else(missing)
    }

    /// The array of this name, to change it.
    ///
    /// # Errors
    /// [`EncoderError::Missing`].
    pub fn get_mut(&mut self, name: &str) -> Result<&mut ArrayD<f32>, EncoderError> {
        let missing = || EncoderError::Missing { name: name.to_owned() };
        self.arrays.get_mut(name).map(|(_, values)| values).ok_or_else(missing)
    }

    /// The matrix of this name.
    ///
    /// # Errors
    /// [`EncoderError::Missing`], or [`EncoderError::Own`] if it has not two dimensions.
    pub fn matrix(&self, name: &str) -> Result<ArrayView2<'_, f32>, EncoderError> {
        self.get(name)?.view().into_dimensionality::<Ix2>().map_err(own)
    }

    /// The matrix of this name, to change it.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    pub fn matrix_mut(&mut self, name: &str) -> Result<ArrayViewMut2<'_, f32>, EncoderError> {
        self.get_mut(name)?.view_mut().into_dimensionality::<Ix2>().map_err(own)
    }

    /// Arrays of the same names, roles and shapes, all zero.
    fn zeros(&self) -> Self {
        let zero = |(name, (role, values)): (&String, &(Role, ArrayD<f32>))| {
            (name.clone(), (*role, ArrayD::zeros(values.raw_dim())))
        };
        Self { arrays: self.arrays.iter().map(zero).collect() }
    }
}

fn own(error: impl std::error::Error + Send + Sync + 'static) -> EncoderError {
    EncoderError::Own(BoxedError::from(error))
}

/// The formula of an encoder of your own: images to rows, and the gradient of its parameters.
///
/// [`OwnEncoder`] makes an [`Encoder`] of it. See there for an example.
pub trait Model: Send {
    /// What backward needs of a forward pass.
    type Saved: Send;

    /// Columns of the rows.
    fn embedding_dim(&self) -> usize;

    /// A row for each image, of any length: rows are scaled to unit length later.
    ///
    /// # Errors
    /// Whatever the model refuses; [`EncoderError::Own`] holds errors of other types.
    fn forward(
        &self,
        parameters: &Parameters,
        images: ArrayView4<'_, f32>,
    ) -> Result<(Array2<f32>, Self::Saved), EncoderError>;

    /// Adds the gradients of the parameters to `sums`, which have the names and shapes of `parameters`, from the
    /// gradient of the rows.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn backward(
        &self,
        parameters: &Parameters,
        saved: Self::Saved,
        gradient: ArrayView2<'_, f32>,
        sums: &mut Parameters,
    ) -> Result<(), EncoderError>;

    /// Columns of the features.
    fn feature_dim(&self) -> usize {
        self.embedding_dim()
    }

    /// Features of images, where they are not the rows themselves.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn features(
        &self,
        parameters: &Parameters,
        images: ArrayView4<'_, f32>,
    ) -> Result<Array2<f32>, EncoderError> {
        Ok(self.forward(parameters, images)?.0)
    }

    /// Columns of the outputs of the model's stages, if it has any.
    fn layer_dims(&self) -> Vec<usize> {
        Vec::new()
    }

    /// The output of a stage, counted from 1, averaged over positions. It is asked for only where
    /// [`layer_dims`](Self::layer_dims) has it.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn layer(
        &self,
        parameters: &Parameters,
        images: ArrayView4<'_, f32>,
        stage: usize,
    ) -> Result<Array2<f32>, EncoderError> {
        let _ = (parameters, images);
        Err(EncoderError::NoLayer { expected: self.layer_dims().len(), got: stage })
    }
}

/// An [`Encoder`] of a [`Model`]: unit length, order of the passes, optimiser, state, processes.
///
/// ```
/// use ndarray::{Array2, ArrayView2, ArrayView4, Axis, array};
/// use swav_encoder::{Encoder, EncoderError, Model, OwnEncoder, Parameters};
///
/// /// A matrix times the mean colour.
/// struct Linear;
///
/// impl Model for Linear {
///     type Saved = Array2<f32>;
///     fn embedding_dim(&self) -> usize {
///         2
///     }
///     fn forward(
///         &self, parameters: &Parameters, images: ArrayView4<'_, f32>,
///     ) -> Result<(Array2<f32>, Array2<f32>), EncoderError> {
///         let colours = images.mean_axis(Axis(1)).unwrap().mean_axis(Axis(1)).unwrap();
///         Ok((colours.dot(&parameters.matrix("weight")?.t()), colours))
///     }
///     fn backward(
///         &self, _: &Parameters, colours: Array2<f32>, gradient: ArrayView2<'_, f32>, sums: &mut Parameters,
///     ) -> Result<(), EncoderError> {
///         let mut sum = sums.matrix_mut("weight")?;
///         sum += &gradient.t().dot(&colours);
///         Ok(())
///     }
/// }
///
/// let weight = array![[0.5, -0.5, 0.1], [0.2, 0.3, -0.4]];
/// let mut encoder = OwnEncoder::new("linear", Linear, Parameters::new().with("weight", weight));
/// let images = ndarray::Array4::from_shape_fn((4, 8, 8, 3), |(n, _, x, c)| ((n + 2 * c + x) % 5) as f32);
/// let z = encoder.forward_train(&[images.view()])?;
/// encoder.backward(z.mapv(|x| x - 0.5).view())?;
/// assert_eq!(encoder.gradient("weight").map(|gradient| gradient.len()), Some(6));
/// # Ok::<(), EncoderError>(())
/// ```
pub struct OwnEncoder<M: Model> {
    name: String,
    model: M,
    parameters: Parameters,
    slots: BTreeMap<String, Slots>,
    pending: Option<Pending<M::Saved>>,
    gradients: Option<Parameters>,
}

/// A forward pass that waits for its backward pass.
struct Pending<S> {
    unit_rows: Array2<f32>,
    divisors: Vec<f32>,
    /// Of each group, with its number of rows.
    saved: Vec<(usize, S)>,
}

impl<M: Model> OwnEncoder<M> {
    /// An encoder with these initial parameters. The name goes into the record of a run.
    pub fn new(name: impl Into<String>, model: M, parameters: Parameters) -> Self {
        Self { name: name.into(), model, parameters, slots: BTreeMap::new(), pending: None, gradients: None }
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The parameters.
    pub fn values(&self) -> &Parameters {
        &self.parameters
    }
}

impl<M: Model> Encoder for OwnEncoder<M> {
    fn embedding_dim(&self) -> usize {
        self.model.embedding_dim()
    }

    fn feature_dim(&self) -> usize {
        self.model.feature_dim()
    }

    fn layer_dims(&self) -> Vec<usize> {
        self.model.layer_dims()
    }

    fn device(&self) -> &str {
        "cpu"
    }

    fn description(&self) -> Description {
        Description::Own(self.name.clone())
    }

    fn forward_train(&mut self, groups: &[ArrayView4<'_, f32>]) -> Result<Array2<f32>, EncoderError> {
        (self.pending, self.gradients) = (None, None);
        check_groups(Crops::Values(groups))?;
        let (mut rows, mut saved) = (Vec::new(), Vec::new());
        for &images in groups {
            let (group, kept) = self.model.forward(&self.parameters, images)?;
            saved.push((group.nrows(), kept));
            rows.push(group);
        }
        let views: Vec<_> = rows.iter().map(|group| group.view()).collect();
        let mut unit_rows = concatenate(ndarray::Axis(0), &views).map_err(own)?;
        let divisors = to_unit_length(&mut unit_rows);
        self.pending = Some(Pending { unit_rows: unit_rows.clone(), divisors, saved });
        Ok(unit_rows)
    }

    fn backward(&mut self, gradient: ArrayView2<'_, f32>) -> Result<(), EncoderError> {
        let pending = self.pending.as_ref().ok_or(EncoderError::NoForward)?;
        let (expected, got) = (pending.unit_rows.dim().into(), gradient.dim().into());
        if got != expected {
            return Err(EncoderError::GradientShape { expected, got });
        }
        let Pending { unit_rows, divisors, saved } = self.pending.take().ok_or(EncoderError::NoForward)?;
        let of_rows = unit_length_gradient(&unit_rows, &divisors, gradient);
        let (mut sums, mut start) = (self.parameters.zeros(), 0);
        for (n_rows, saved) in saved {
            let part = of_rows.slice(s![start..start + n_rows, ..]);
            self.model.backward(&self.parameters, saved, part, &mut sums)?;
            start += n_rows;
        }
        self.gradients = Some(sums);
        Ok(())
    }

    fn reduce_gradients(&mut self, collective: &dyn Collective) -> Result<(), EncoderError> {
        let gradients = self.gradients.as_mut().ok_or(EncoderError::NoGradients)?;
        let share = 1.0 / collective.world_size() as f32;
        for (_, gradient) in gradients.arrays.values_mut() {
            let values = gradient.as_slice_mut().expect("a gradient is a new array");
            collective.sum_f32(values)?;
            values.iter_mut().for_each(|value| *value *= share);
        }
        Ok(())
    }

    fn join(&mut self, _: Arc<dyn Collective>, batch_norm: SyncBatchNorm) -> Result<(), EncoderError> {
        match batch_norm {
            SyncBatchNorm::Off => Ok(()),
            SyncBatchNorm::On => Err(EncoderError::Unsupported {
                device: self.name.clone(),
                what: "batch norm that is synchronised between processes",
                advice: "use statistics of each process's own (training.sync_batch_norm = false)",
            }),
        }
    }

    fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError> {
        let gradients = self.gradients.take().ok_or(EncoderError::NoGradients)?;
        let mut stats = UpdateStats::default();
        for ((name, (role, values)), (_, gradient)) in
            self.parameters.arrays.iter_mut().zip(gradients.arrays.values())
        {
            let values = values.as_slice_mut().expect("parameters are in standard layout");
            let gradient = gradient.as_slice().expect("a gradient is a new array");
            let slots = self.slots.entry(name.clone()).or_default();
            stats = stats.merge(apply(rule, *role, values, gradient, slots));
        }
        Ok(stats)
    }

    fn embed(&self, images: ArrayView4<'_, f32>, output: Output) -> Result<Array2<f32>, EncoderError> {
        check_images(&images)?;
        self.output_dim(output)?;
        match output {
            Output::Layer(stage) => self.model.layer(&self.parameters, images, stage),
            Output::Features => self.model.features(&self.parameters, images),
            Output::Embedding => {
                let mut rows = self.model.forward(&self.parameters, images)?.0;
                to_unit_length(&mut rows);
                Ok(rows)
            }
        }
    }

    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let arrays = self.parameters.arrays.iter();
        arrays.map(|(name, (_, values))| (name.clone(), values.shape().to_vec())).collect()
    }

    fn gradient(&self, name: &str) -> Option<Vec<f32>> {
        let values = self.gradients.as_ref()?.get(name).ok()?;
        Some(values.iter().copied().collect())
    }

    fn state(&self) -> Result<StateDict, EncoderError> {
        let tensor = |(name, (_, values)): (&String, &(Role, ArrayD<f32>))| {
            let data = values.iter().copied().collect();
            Ok((name.clone(), StateTensor::new(values.shape().to_vec(), data)?))
        };
        self.parameters.arrays.iter().map(tensor).collect()
    }

    fn load_state(&mut self, state: &StateDict) -> Result<(), EncoderError> {
        if let Some((name, _)) = state.iter().find(|(name, _)| self.parameters.get(name).is_err()) {
            return Err(EncoderError::Unexpected { name: name.to_owned() });
        }
        let mut loaded = self.parameters.clone();
        for (name, (_, values)) in &mut loaded.arrays {
            let tensor = state.expect(name, values.shape())?;
            values.iter_mut().zip(tensor.data()).for_each(|(value, &new)| *value = new);
        }
        self.parameters = loaded;
        (self.pending, self.gradients) = (None, None);
        Ok(())
    }

    fn optimizer_state(&self) -> Result<StateDict, EncoderError> {
        let mut state = StateDict::new();
        for (name, slots) in &self.slots {
            state.insert_slots(name, self.parameters.get(name)?.shape(), slots);
        }
        Ok(state)
    }

    fn load_optimizer_state(&mut self, state: &StateDict) -> Result<(), EncoderError> {
        if let Some(name) = state.foreign_slot(self.parameters.arrays.keys().map(String::as_str)) {
            return Err(EncoderError::Unexpected { name: name.to_owned() });
        }
        let arrays = self.parameters.arrays.iter();
        let slots = arrays.map(|(name, (_, values))| Ok((name.clone(), state.slots(name, values.shape())?)));
        self.slots = slots.collect::<Result<_, EncoderError>>()?;
        Ok(())
    }
}
