//! An encoder of one's own, as another crate writes it.

use std::sync::Arc;

use ndarray::{Array2, Array4, ArrayView2, ArrayView4, Axis, array};
use swav_collective::{Collective, InMemory};
use swav_encoder::{
    Description, Encoder, EncoderError, Groups, Method, Model, Output, OwnEncoder, Parameters, Role,
    SyncBatchNorm, UpdateRule,
};

/// A matrix times the mean colour, plus a bias.
struct Affine;

impl Model for Affine {
    type Saved = Array2<f32>;

    fn embedding_dim(&self) -> usize {
        2
    }

    fn forward(
        &self,
        parameters: &Parameters,
        images: ArrayView4<'_, f32>,
    ) -> Result<(Array2<f32>, Array2<f32>), EncoderError> {
        let colours = self.features(parameters, images)?;
        let rows = colours.dot(&parameters.matrix("weight")?.t()) + parameters.get("bias")?;
        Ok((rows.into_dimensionality().expect("two dimensions"), colours))
    }

    fn backward(
        &self,
        _: &Parameters,
        colours: Array2<f32>,
        gradient: ArrayView2<'_, f32>,
        sums: &mut Parameters,
    ) -> Result<(), EncoderError> {
        let mut weight = sums.matrix_mut("weight")?;
        weight += &gradient.t().dot(&colours);
        *sums.get_mut("bias")? += &gradient.sum_axis(Axis(0)).into_dyn();
        Ok(())
    }

    fn feature_dim(&self) -> usize {
        3
    }

    fn features(&self, _: &Parameters, images: ArrayView4<'_, f32>) -> Result<Array2<f32>, EncoderError> {
        let mean = images.mean_axis(Axis(1)).and_then(|rows| rows.mean_axis(Axis(1)));
        Ok(mean.expect("images are not empty"))
    }

    fn layer_dims(&self) -> Vec<usize> {
        vec![3]
    }

    fn layer(
        &self,
        parameters: &Parameters,
        images: ArrayView4<'_, f32>,
        _: usize,
    ) -> Result<Array2<f32>, EncoderError> {
        Ok(self.features(parameters, images)? * 2.0)
    }
}

fn encoder() -> OwnEncoder<Affine> {
    let parameters = Parameters::new().with("weight", array![[0.5, -0.5, 0.1], [0.2, 0.3, -0.4]]).with_role(
        "bias",
        Role::Bias,
        array![0.3, -0.2],
    );
    OwnEncoder::new("mean colour", Affine, parameters)
}

fn images(n: usize, side: usize) -> Array4<f32> {
    Array4::from_shape_fn((n, side, side, 3), |(n, y, x, c)| ((7 * n + 3 * y + x + 5 * c) % 11) as f32 * 0.1)
}

fn step(encoder: &mut dyn Encoder, of_z: &Array2<f32>) -> Array2<f32> {
    let z = encoder.forward_train(&[images(3, 4).view(), images(2, 5).view()]).unwrap();
    encoder.backward(of_z.view()).unwrap();
    z
}

fn of_z() -> Array2<f32> {
    Array2::from_shape_fn((5, 2), |(i, j)| (i as f32 - 1.5 * j as f32) * 0.3)
}

#[test]
fn gradients_are_derivatives_through_the_scaling() {
    let mut encoder = encoder();
    let z = step(&mut encoder, &of_z());
    assert!(z.rows().into_iter().all(|row| (row.dot(&row) - 1.0).abs() < 1e-5));
    let start = encoder.state().unwrap();
    for (name, shape) in encoder.parameters() {
        step(&mut encoder, &of_z());
        let gradient = encoder.gradient(&name).unwrap();
        assert!(gradient.iter().any(|g| g.abs() > 0.05), "{name}: {gradient:?} tests nothing");
        for (i, &g) in gradient.iter().enumerate() {
            let mut value = |moved: f32| {
                let mut state = start.clone();
                let mut data = state.get(&name).unwrap().data().to_vec();
                data[i] += moved;
                state.insert(&name, swav_encoder::StateTensor::new(shape.clone(), data).unwrap());
                encoder.load_state(&state).unwrap();
                let z = encoder.forward_train(&[images(3, 4).view(), images(2, 5).view()]).unwrap();
                f64::from((&z * &of_z()).sum())
            };
            let numeric = (value(1e-2) - value(-1e-2)) / 2e-2;
            encoder.load_state(&start).unwrap();
            assert!((numeric - f64::from(g)).abs() < 5e-3, "{name}[{i}]: {g} against {numeric}");
        }
    }
}

#[test]
fn groups_and_clipping_reach_its_parameters() {
    let mut encoder = encoder();
    step(&mut encoder, &of_z());
    let norm = encoder.gradient_norm().unwrap();
    let gradients = ["weight", "bias"].map(|name| encoder.gradient(name).unwrap());
    let expected = gradients.iter().map(|values| swav_optim::norm(values)).fold(0.0, f64::hypot);
    assert!((norm - expected).abs() < 1e-9);
    let method = Method::Sgd { lr: 1.0, momentum: 0.0, weight_decay: 0.5 };
    let rule = UpdateRule { groups: Groups::ExemptNormsAndBiases, gradient_scale: 0.5, ..method.into() };
    let before = encoder.state().unwrap();
    encoder.update(&rule).unwrap();
    let after = encoder.state().unwrap();
    for (name, gradient, decay) in [("weight", &gradients[0], 0.5), ("bias", &gradients[1], 0.0)] {
        let (before, after) = (before.get(name).unwrap().data(), after.get(name).unwrap().data());
        for ((b, a), g) in before.iter().zip(after).zip(gradient) {
            assert!((a - (b - 0.5 * g - decay * b)).abs() < 1e-6, "{name}");
        }
    }
}

#[test]
fn state_and_momentum_travel() {
    let (mut first, mut second) = (encoder(), encoder());
    let rule = UpdateRule::new(Method::Larc { lr: 0.5, momentum: 0.9, weight_decay: 0.1, trust: 0.1 });
    step(&mut first, &of_z());
    first.update(&rule).unwrap();
    second.load_state(&first.state().unwrap()).unwrap();
    second.load_optimizer_state(&first.optimizer_state().unwrap()).unwrap();
    for encoder in [&mut first, &mut second] {
        step(encoder, &of_z());
        encoder.update(&rule).unwrap();
    }
    assert_eq!(first.state().unwrap(), second.state().unwrap());
    let mut foreign = first.state().unwrap();
    foreign.insert("more", swav_encoder::StateTensor::scalar(1.0));
    assert!(matches!(second.load_state(&foreign), Err(EncoderError::Unexpected { .. })));
    foreign.remove("more");
    foreign.remove("bias");
    assert!(matches!(second.load_state(&foreign), Err(EncoderError::Missing { .. })));
}

#[test]
fn it_keeps_the_promises_of_the_trait() {
    let mut encoder = encoder();
    assert_eq!(encoder.description(), Description::Own("mean colour".into()));
    assert!(encoder.statistics().is_none() && encoder.whole_step().is_none());
    assert!(matches!(encoder.backward(of_z().view()), Err(EncoderError::NoForward)));
    assert!(matches!(encoder.forward_train(&[]), Err(EncoderError::Images { .. })));
    let grey = Array4::<f32>::zeros((2, 4, 4, 1));
    assert!(matches!(encoder.forward_train(&[grey.view()]), Err(EncoderError::Images { .. })));
    assert!(matches!(encoder.gradient_norm(), Err(EncoderError::NoGradients)));
    let (colours, z) = (
        encoder.embed(images(3, 4).view(), Output::Features).unwrap(),
        encoder.embed(images(3, 4).view(), Output::Embedding).unwrap(),
    );
    assert_eq!((colours.dim(), z.dim()), ((3, 3), (3, 2)));
    assert_eq!(encoder.embed(images(3, 4).view(), Output::Layer(1)).unwrap(), colours * 2.0);
    let error = encoder.embed(images(3, 4).view(), Output::Layer(2)).unwrap_err();
    assert!(matches!(error, EncoderError::NoLayer { expected: 1, got: 2 }), "{error}");
    let group: Arc<dyn Collective> = Arc::new(InMemory::group(1).remove(0));
    let error = encoder.join(Arc::clone(&group), SyncBatchNorm::On).unwrap_err();
    assert!(matches!(error, EncoderError::Unsupported { .. }));
    encoder.join(group, SyncBatchNorm::Off).unwrap();
}
