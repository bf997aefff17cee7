//! Whole training steps against PyTorch: the reference's network, loss, queue and LARC-SGD.
//!
//! A recorded run whose `init.*` tensors are its `after.*` tensors does not hold the state it started from (its maker
//! did not copy before training), so it cannot be replayed by anybody. Of such a run everything that can be checked
//! without the start is: codes and loss of every step from its scores, and the trained network's embeddings. Whole
//! runs are replayed from the encoder's own records.

mod support;

use ndarray::{Array2, ArrayD, IxDyn, s};
use serde_json::Value;
use support::to_nhwc;
use swav_collective::Single;
use swav_encoder::{
    Arch, BlockKind, Checkpointing, Encoder, EncoderConfig, Head, Method, Output, Precision, StateDict,
    StateTensor, Stem, UpdateRule, build_cpu, image_batch,
};
use swav_fixtures::{Start, Tensors, ensure, json, max_abs_difference, relative_error, replay};
use swav_losses::SwappedPrediction;
use swav_ot::Codes;
use swav_prototypes::{FeatureQueue, Prototypes};
use swav_train::{Batch, Moment, SinkhornCodes, Swapped, Swav};

const ASSIGN: [usize; 2] = [0, 1];

/// One of the two recorded runs.
struct Recorded {
    name: String,
    tensors: Tensors,
    json: Value,
}

impl Recorded {
    fn open(name: &str) -> Self {
        Self { name: name.to_owned(), tensors: Tensors::open(name), json: json(name) }
    }

    /// A run that the encoder's tests replay as well, recorded by `crates/encoder/oracle/make_steps.py`.
    fn of_the_encoder(name: &str) -> Self {
        Self::open(&format!("{}/../encoder/oracle/{name}", env!("CARGO_MANIFEST_DIR")))
    }

    fn starts_at_its_end(&self) -> bool {
        self.state("init.") == self.state("after.")
    }

    fn steps(&self) -> &[Value] {
        self.json["steps"].as_array().unwrap_or_else(|| panic!("{} has steps", self.name))
    }

    fn loss(&self) -> SwappedPrediction {
        SwappedPrediction::new(self.count("crops"), &ASSIGN, self.number("temperature") as f32).unwrap()
    }

    fn codes(&self) -> Codes<f32> {
        Codes::new(self.number("epsilon"), self.count("iterations")).unwrap()
    }

    fn number(&self, key: &str) -> f64 {
        self.json[key].as_f64().unwrap_or_else(|| panic!("{} has a number {key}", self.name))
    }

    fn count(&self, key: &str) -> usize {
        self.json[key].as_u64().unwrap_or_else(|| panic!("{} has a count {key}", self.name)) as usize
    }

    /// All tensors below a prefix.
    fn state(&self, prefix: &str) -> StateDict {
        let names = self.tensors.names();
        let below = names.iter().filter_map(|name| name.strip_prefix(prefix));
        below
            .map(|name| {
                let tensor = self.tensors.f32(&format!("{prefix}{name}"));
                let values = tensor.iter().copied().collect();
                (name.to_owned(), StateTensor::new(tensor.shape().to_vec(), values).unwrap())
            })
            .collect()
    }

    /// The state at the start, or one beside it.
    fn start(&self, start: Start) -> StateDict {
        let state = self.state("init.").into_iter();
        state
            .map(|(name, tensor)| {
                let mut values = tensor.data().to_vec();
                start.nudge(&mut values);
                (name, StateTensor::new(tensor.shape().to_vec(), values).unwrap())
            })
            .collect()
    }

    /// What is trained beside the encoder, as at the start.
    fn swav(&self, dim: usize) -> Swav {
        let weights = self.tensors.f32("init.prototypes.weight").into_dimensionality().unwrap();
        let prototypes = Prototypes::from_weights(vec![weights]).unwrap();
        let mut codes = SinkhornCodes::new(self.codes(), &ASSIGN);
        if self.count("queue_length") > 0 {
            let batch = self.count("batch");
            let length = FeatureQueue::usable_length(self.count("queue_length"), batch);
            codes.set_queue(Some(FeatureQueue::new(ASSIGN.len(), length, dim, batch).unwrap()));
        }
        Swav::new(prototypes, Box::new(Swapped::new(self.loss())), Box::new(codes))
    }

    /// Crops of a step as groups of one resolution: (pixels NHWC, images, side).
    fn groups(&self, step: usize) -> Vec<(Vec<f32>, usize, usize)> {
        let mut groups: Vec<(Vec<f32>, usize, usize)> = Vec::new();
        for crop in 0..self.count("crops") {
            let pixels = self.tensors.f32(&format!("step{step}.crop{crop}"));
            let (n, side) = (pixels.shape()[0], pixels.shape()[2]);
            match groups.last_mut().filter(|group| group.2 == side) {
                Some(group) => {
                    group.0.extend(to_nhwc(&pixels));
                    group.1 += n;
                }
                None => groups.push((to_nhwc(&pixels), n, side)),
            }
        }
        groups
    }
}

/// The encoder that the fixture was made with; sizes are read off its weights.
fn encoder(init: &StateDict, exact: bool, checkpointing: Checkpointing) -> Box<dyn Encoder> {
    let extent = |name: &str, axis: usize| init.get(name).expect(name).shape()[axis];
    let config = EncoderConfig {
        arch: Arch::Custom { block: BlockKind::Bottleneck, layers: vec![1, 1, 1, 1] },
        width: extent("conv1.weight", 0),
        stem: Stem::Imagenet,
        head: Head::Mlp { hidden: extent("projection_head.0.weight", 0) },
        dim: extent("projection_head.3.weight", 0),
        precision: Precision::F32,
        exact,
        checkpointing,
    };
    let mut encoder = build_cpu(&config.check().unwrap(), 0).unwrap();
    let weights = init.iter().filter(|(name, _)| !name.starts_with("prototypes"));
    encoder.load_state(&weights.map(|(n, t)| (n.to_owned(), t.clone())).collect()).unwrap();
    encoder
}

fn array(shape: &[usize], values: Vec<f32>) -> ArrayD<f32> {
    ArrayD::from_shape_vec(IxDyn(shape), values).unwrap()
}

/// What can be checked without the state that a run started from.
fn check_without_start(recorded: &Recorded) {
    let batch = recorded.count("batch");
    for (step, expected) in recorded.steps().iter().enumerate() {
        let matrix = |what: &str| -> Array2<f32> {
            recorded.tensors.f32(&format!("step{step}.{what}")).into_dimensionality().unwrap()
        };
        let scores = matrix("scores");
        let codes = ASSIGN.map(|crop| matrix(&format!("q{crop}")));
        if expected["queue_used"].as_bool() == Some(false) {
            for (crop, expected) in ASSIGN.iter().zip(&codes) {
                let mut actual = scores.slice(s![crop * batch..(crop + 1) * batch, ..]).to_owned();
                recorded.codes().assign(actual.view_mut()).unwrap();
                let difference = max_abs_difference(&*actual, &**expected);
                assert!(difference < 1e-5, "step {step}: codes of crop {crop} differ by {difference}");
            }
        }
        let loss =
            recorded.loss().evaluate(scores.view(), &codes.each_ref().map(|code| code.view())).unwrap();
        let expected = expected["loss"].as_f64().expect("a loss");
        assert!((loss.loss - expected).abs() < 1e-4, "step {step}: loss {} against {expected}", loss.loss);
    }
    let mut trained = encoder(&recorded.state("after."), true, Checkpointing::Off);
    let difference = trained_difference(recorded, trained.as_mut());
    assert!(difference < 1e-3, "embeddings in inference differ by {difference:e}");
}

/// By how much the trained network's embeddings in inference mode differ.
fn trained_difference(recorded: &Recorded, encoder: &mut dyn Encoder) -> f64 {
    let pixels = recorded.tensors.f32("step0.crop0");
    let (n, side) = (pixels.shape()[0], pixels.shape()[2]);
    let pixels = to_nhwc(&pixels);
    let z = encoder.embed(image_batch(&pixels, n, side, side).unwrap(), Output::Embedding).unwrap();
    max_abs_difference(&z.into_dyn(), &recorded.tensors.f32("eval.z_of_step0_crop0"))
}

/// Follows a record, from its start or one beside it.
fn follow(recorded: &Recorded, exact: bool, checkpointing: Checkpointing) {
    if recorded.starts_at_its_end() {
        eprintln!("{} does not hold the state that it started from: checked without a replay", recorded.name);
        return check_without_start(recorded);
    }
    replay(|start| train(recorded, start, exact, checkpointing));
}

/// Trains as the record did, comparing at each step.
fn train(recorded: &Recorded, start: Start, exact: bool, checkpointing: Checkpointing) -> Result<(), String> {
    let mut encoder = encoder(&recorded.start(start), exact, checkpointing);
    let mut swav = recorded.swav(encoder.embedding_dim());
    let mut rounding_only = Vec::new();
    for (step, expected) in recorded.steps().iter().enumerate() {
        let groups = recorded.groups(step);
        let groups: Vec<ndarray::ArrayView4<'_, f32>> =
            groups.iter().map(|(data, n, side)| image_batch(data, *n, *side, *side).unwrap()).collect();
        let indices: Vec<usize> = (0..recorded.count("batch")).collect();
        let batch = Batch { groups: &groups, indices: &indices, moment: Moment::default() };
        let output = swav.forward_backward(encoder.as_mut(), &batch, &Single).unwrap();

        assert_eq!(Some(output.queue_used), expected["queue_used"].as_bool(), "step {step}: queue");
        let close = |what: &str, actual: ArrayD<f32>| {
            let difference =
                max_abs_difference(&actual, &recorded.tensors.f32(&format!("step{step}.{what}")));
            ensure!(difference < 1e-3, "step {step}: {what} differs by {difference:e}");
            Ok(())
        };
        close("z", output.embeddings.clone().into_dyn())?;
        close("scores", output.scores[0].clone().into_dyn())?;
        for (index, crop) in ASSIGN.iter().enumerate() {
            close(&format!("q{crop}"), output.codes[0][index].weights.clone().into_dyn())?;
        }
        let loss = expected["loss"].as_f64().expect("a loss");
        ensure!((output.loss - loss).abs() < 1e-4, "step {step}: loss {} against {loss}", output.loss);
        let gradients = recorded.state(&format!("step{step}.grad."));
        assert!(step > 0 || !gradients.is_empty(), "the first step's gradients are recorded");
        rounding_only.extend(compare_gradients(step, &gradients, |name| {
            if name == "prototypes.weight" {
                return output.grad_prototypes[0].iter().copied().collect();
            }
            encoder.gradient(name).unwrap_or_else(|| panic!("a gradient of {name}"))
        })?);

        let lr = expected["lr"].as_f64().expect("a learning rate") as f32;
        let rule = UpdateRule::new(Method::Larc {
            lr,
            momentum: recorded.number("momentum") as f32,
            weight_decay: recorded.number("weight_decay") as f32,
            trust: recorded.number("trust") as f32,
        });
        let thawed = step >= recorded.count("freeze_prototypes_iters");
        swav.update(encoder.as_mut(), &output, &rule, thawed).unwrap();
    }

    let after: StateDict = encoder.state().unwrap().into_iter().chain(swav.state().unwrap()).collect();
    for (name, expected) in recorded.state("after.").iter() {
        let actual = after.get(name).unwrap_or_else(|| panic!("a tensor {name}"));
        assert_eq!(actual.shape(), expected.shape(), "{name}");
        let actual = array(actual.shape(), actual.data().to_vec());
        let expected = array(expected.shape(), expected.data().to_vec());
        // LARC gives every tensor a step of the same relative length. Where the gradient is rounding, so is its
        // direction, and only the size of what was added can be compared.
        let error = if rounding_only.iter().any(|tiny| tiny == name) {
            max_abs_difference(&actual, &expected)
        } else {
            relative_error(&actual, &expected)
        };
        ensure!(error < 1e-3, "after the last step: {name} differs by {error:e}");
    }
    let difference = trained_difference(recorded, encoder.as_mut());
    ensure!(difference < 1e-3, "embeddings in inference differ by {difference:e}");
    Ok(())
}

/// Every gradient within 1e-3 of its norm. A tensor whose norm is under 1e-6 of the largest (a bias before batch norm,
/// whose gradient is zero but for rounding) is compared with that scale instead; these tensors' names are returned.
fn compare_gradients(
    step: usize,
    expected: &StateDict,
    actual: impl Fn(&str) -> Vec<f32>,
) -> Result<Vec<String>, String> {
    let norm = |t: &StateTensor| t.data().iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let tiny = 1e-6 * expected.iter().map(|(_, tensor)| norm(tensor)).fold(0.0, f64::max);
    let mut rounding_only = Vec::new();
    for (name, tensor) in expected.iter() {
        let expected = array(tensor.shape(), tensor.data().to_vec());
        let actual = array(tensor.shape(), actual(name));
        if norm(tensor) < tiny {
            let difference = max_abs_difference(&actual, &expected);
            ensure!(difference < tiny, "step {step}: tiny gradient of {name} differs by {difference:e}");
            rounding_only.push(name.to_owned());
        } else {
            let error = relative_error(&actual, &expected);
            ensure!(error < 1e-3, "step {step}: gradient of {name}, relative error {error:e}");
        }
    }
    Ok(rounding_only)
}

#[test]
fn parity_steps_bottleneck() {
    let recorded = Recorded::open("steps_bottleneck");
    follow(&recorded, true, Checkpointing::Off);
    follow(&recorded, false, Checkpointing::Off);
    follow(&recorded, true, Checkpointing::Blocks);
}

#[test]
fn parity_steps_queue() {
    let recorded = Recorded::open("steps_queue");
    follow(&recorded, true, Checkpointing::Off);
    follow(&recorded, false, Checkpointing::Off);
}

#[test]
fn parity_steps_multicrop_replayed() {
    let recorded = Recorded::of_the_encoder("steps_multicrop");
    assert!(!recorded.starts_at_its_end());
    follow(&recorded, true, Checkpointing::Off);
    follow(&recorded, false, Checkpointing::Off);
    follow(&recorded, true, Checkpointing::Blocks);
}

#[test]
fn parity_steps_with_queue_replayed() {
    let recorded = Recorded::of_the_encoder("steps_with_queue");
    assert!(!recorded.starts_at_its_end());
    assert!(recorded.steps().iter().any(|step| step["queue_used"] == true), "the queue has to be in use");
    follow(&recorded, true, Checkpointing::Off);
    follow(&recorded, false, Checkpointing::Off);
}

#[test]
fn parity_steps_zero_residual_replayed() {
    let recorded = Recorded::of_the_encoder("steps_zero_residual");
    assert!(!recorded.starts_at_its_end());
    follow(&recorded, true, Checkpointing::Off);
    follow(&recorded, false, Checkpointing::Off);
}
