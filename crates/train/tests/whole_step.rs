//! Steps that run on an encoder's device as a whole give the numbers of the host's path, reported late as they may be.

mod support;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use ndarray::{Array2, Array3, ArrayView2, ArrayView3, ArrayView4};
use serde_json::json;
use support::{Linear, assert_same_bits, data, settings, start};
use swav_collective::{Collective, InMemory, Single};
use swav_encoder::{
    Crops, Description, DeviceMemory, Encoder, EncoderError, Output, Slots, StateDict, StateTensor,
    StepInputs, StepPlan, StepReport, SyncBatchNorm, TrainingStep, UpdateRule, UpdateStats, WholeStep,
};
use swav_losses::SwappedPrediction;
use swav_ot::Codes;
use swav_prototypes::{FeatureQueue, Prototypes};
use swav_train::{
    Batch, Checkpoint, Metrics, Moment, RunFolder, Section, Setup, SinkhornCodes, StopFlag, Swapped, Swav,
    TrainError, Trainer, Update,
};

/// A device on paper: the linear encoder, which keeps prototypes and queue to itself and reports a step late.
struct Device {
    encoder: Linear,
    swav: Option<Swav>,
    plan: Option<StepPlan>,
    reports: VecDeque<StepReport>,
    /// What it has chosen, whether it takes other choices, and what it was told in its turn.
    choices: Option<String>,
    refuses: bool,
    told: Arc<Mutex<Vec<String>>>,
    /// Whether its memory has no room for a pass.
    is_full: bool,
    /// Whether it claims to have more parameters than any disk has room for.
    is_vast: bool,
}

impl Device {
    fn new() -> Self {
        Self {
            encoder: Linear::new(6),
            swav: None,
            plan: None,
            reports: VecDeque::new(),
            choices: None,
            refuses: false,
            told: Arc::default(),
            is_full: false,
            is_vast: false,
        }
    }

    fn swav(&mut self) -> &mut Swav {
        self.swav.as_mut().expect("prototypes were loaded")
    }
}

impl WholeStep for Device {
    fn prepare(&mut self, plan: &StepPlan) -> Result<(), EncoderError> {
        self.told.lock().unwrap().push("prepare".to_owned());
        self.plan = Some(plan.clone());
        Ok(())
    }

    fn load_prototypes(&mut self, weights: ArrayView2<'_, f32>, slots: &Slots) -> Result<(), EncoderError> {
        let plan = self.plan.as_ref().expect("prepared");
        let n_crops = plan.groups.iter().map(|group| group.n_crops).sum();
        let loss = SwappedPrediction::new(n_crops, &plan.crops_for_assign, plan.temperature).unwrap();
        let codes = Codes::new(plan.epsilon, plan.sinkhorn_iters).unwrap();
        let codes = SinkhornCodes::new(codes, &plan.crops_for_assign);
        let prototypes = Prototypes::from_weights(vec![weights.to_owned()]).unwrap();
        let mut swav = Swav::new(prototypes, Box::new(Swapped::new(loss)), Box::new(codes));
        let mut memory = StateDict::new();
        memory.insert_slots("prototypes.weight", weights.shape(), slots);
        let state = swav.state().unwrap();
        swav.load(&state, &memory).unwrap();
        self.swav = Some(swav);
        Ok(())
    }

    fn prototypes(&mut self) -> Result<(Array2<f32>, Slots), EncoderError> {
        let swav = self.swav();
        let weights = swav.prototypes.weights(0).unwrap().to_owned();
        let slots = swav.optimizer_state().slots("prototypes.weight", weights.shape())?;
        Ok((weights, slots))
    }

    fn load_queue(&mut self, queue: ArrayView3<'_, f32>) -> Result<(), EncoderError> {
        let batch_size = self.plan.as_ref().expect("prepared").batch_size;
        let is_filled = |row: &ArrayView2<'_, f32>| row.iter().any(|&x| x != 0.0);
        let filled = queue.axis_iter(ndarray::Axis(1)).take_while(is_filled).count();
        let lists = vec![filled; queue.dim().0];
        let queue = FeatureQueue::from_rows(queue.to_owned(), batch_size, lists).unwrap();
        self.swav().codes.as_sinkhorn().unwrap().set_queue(Some(queue));
        Ok(())
    }

    fn queue(&mut self) -> Result<Array3<f32>, EncoderError> {
        Ok(self.swav().codes.as_sinkhorn().unwrap().queue().expect("a queue was loaded").rows().to_owned())
    }

    fn step(&mut self, crops: Crops<'_>, inputs: &StepInputs) -> Result<Option<StepReport>, EncoderError> {
        let scaling = self.plan.as_ref().and_then(|plan| plan.scaling).expect("crops come as bytes");
        let Crops::Bytes(groups) = crops else { panic!("{crops:?}") };
        let values: Vec<_> = groups.iter().map(|&images| scaling.values(images)).collect();
        let groups: &[_] = &values.iter().map(|values| values.view()).collect::<Vec<_>>();
        let indices: Vec<usize> = (0..self.plan.as_ref().expect("prepared").batch_size).collect();
        let swav = self.swav.as_mut().expect("prototypes were loaded");
        let batch =
            Batch { groups, indices: &indices, moment: Moment { step: inputs.step, ..Moment::default() } };
        let output = swav.forward_backward(&mut self.encoder, &batch, &Single).unwrap();
        assert_eq!(output.queue_used, inputs.use_queue, "step {}", inputs.step);
        let update = Update {
            rule: inputs.rule,
            max_gradient_norm: inputs.max_gradient_norm,
            update_prototypes: inputs.update_prototypes,
        };
        let norms = swav.update(&mut self.encoder, &output, &update).unwrap();
        let diagnostics = output.diagnostics.unwrap();
        self.reports.push_back(StepReport {
            step: inputs.step,
            loss: output.loss,
            code_entropy: diagnostics.code_entropy,
            code_perplexity: diagnostics.code_perplexity,
            prediction_perplexity: diagnostics.prediction_perplexity,
            spread: output.spread,
            parameter_norm: norms.parameter_norm,
            gradient_norm: norms.gradient_norm,
        });
        Ok(if self.reports.len() > 1 { self.reports.pop_front() } else { None })
    }

    fn finish(&mut self) -> Result<Vec<StepReport>, EncoderError> {
        Ok(self.reports.drain(..).collect())
    }
}

impl Encoder for Device {
    fn whole_step(&mut self) -> Option<&mut dyn WholeStep> {
        Some(self)
    }

    fn embedding_dim(&self) -> usize {
        self.encoder.embedding_dim()
    }

    fn feature_dim(&self) -> usize {
        self.encoder.feature_dim()
    }

    fn device(&self) -> &str {
        "paper"
    }

    fn description(&self) -> Description {
        self.encoder.description()
    }

    fn join(
        &mut self,
        collective: Arc<dyn Collective>,
        batch_norm: SyncBatchNorm,
    ) -> Result<(), EncoderError> {
        self.encoder.join(collective, batch_norm)
    }

    fn forward_train(&mut self, groups: &[ArrayView4<'_, f32>]) -> Result<Array2<f32>, EncoderError> {
        assert!(self.plan.is_none(), "the step runs on the device");
        if self.is_full {
            let source = "no room".into();
            return Err(EncoderError::OutOfMemory { device: "paper".to_owned(), memory: None, source });
        }
        self.encoder.forward_train(groups)
    }

    fn backward(&mut self, gradient: ArrayView2<'_, f32>) -> Result<(), EncoderError> {
        assert!(self.plan.is_none(), "the step runs on the device");
        self.encoder.backward(gradient)
    }

    fn reduce_gradients(&mut self, collective: &dyn Collective) -> Result<(), EncoderError> {
        self.encoder.reduce_gradients(collective)
    }

    fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError> {
        self.encoder.update(rule)
    }

    fn embed(&self, images: ArrayView4<'_, f32>, output: Output) -> Result<Array2<f32>, EncoderError> {
        self.encoder.embed(images, output)
    }

    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        if self.is_vast {
            return vec![("all".to_owned(), vec![1 << 27, 1 << 27])];
        }
        self.encoder.parameters()
    }

    fn gradient(&self, name: &str) -> Option<Vec<f32>> {
        self.encoder.gradient(name)
    }

    fn state(&self) -> Result<StateDict, EncoderError> {
        self.encoder.state()
    }

    fn device_memory(&self, step: TrainingStep<'_>, rule: &UpdateRule) -> Option<DeviceMemory> {
        assert!(matches!(rule.method, swav_encoder::Method::Larc { .. }));
        let (batch_size, told) = match step {
            TrainingStep::Whole(StepPlan { batch_size, groups, queue_length, .. }) => {
                (*batch_size, format!("memory of steps with {groups:?} and a queue of {queue_length}"))
            }
            TrainingStep::Passes { batch_size, groups } => {
                (batch_size, format!("memory of passes over {groups:?}"))
            }
        };
        self.told.lock().unwrap().push(told);
        Some(DeviceMemory { batch_size, needed: 1, available: 2, largest: 9, largest_again: None })
    }

    fn choices(&self) -> Option<String> {
        self.choices.clone()
    }

    fn adopt_choices(&mut self, choices: &str) -> Result<(), EncoderError> {
        self.told.lock().unwrap().push(format!("choose {choices}"));
        match self.refuses {
            true => Err(EncoderError::Missing { name: "another card".to_owned() }),
            false => Ok(()),
        }
    }

    fn load_state(&mut self, state: &StateDict) -> Result<(), EncoderError> {
        self.told.lock().unwrap().push("load".to_owned());
        self.encoder.load_state(state)
    }

    fn optimizer_state(&self) -> Result<StateDict, EncoderError> {
        self.encoder.optimizer_state()
    }

    fn load_optimizer_state(&mut self, state: &StateDict) -> Result<(), EncoderError> {
        self.encoder.load_optimizer_state(state)
    }
}

fn on_device(folder: &Path, overrides: &[&str]) -> Setup {
    Setup::new(settings(overrides), Box::new(Device::new()), data(), RunFolder::at(folder))
}

fn lines(folder: &Path) -> Vec<Metrics> {
    let text = std::fs::read_to_string(RunFolder::at(folder).metrics()).unwrap();
    let read = |line: &str| serde_json::from_str::<Metrics>(line).unwrap();
    // The clock differs, and the state of the codes is not known where they stay on the device.
    let of_host =
        |line| Metrics { images_per_s: 0.0, data_wait: 0.0, row_residual: None, queue_drift: None, ..line };
    text.lines().map(|line| of_host(read(line))).collect()
}

fn run(trainer: Trainer) -> StateDict {
    let mut trainer = trainer.show_progress(false);
    assert!(trainer.run(&StopFlag::new()).unwrap().finished);
    trainer.state().unwrap()
}

const OVERRIDES: &[&str] = &["checkpoint.every_iters=3", "checkpoint.keep=100", "optimizer.clip_norm=0.5"];

#[test]
fn whole_steps_have_the_bits_of_the_hosts_path() {
    let folder = tempfile::tempdir().unwrap();
    let (host, device) = (folder.path().join("host"), folder.path().join("device"));
    let expected = run(start(&host, OVERRIDES).unwrap());
    assert_same_bits(&run(on_device(&device, OVERRIDES).start().unwrap()), &expected);
    assert_eq!(lines(&device), lines(&host));
    let (host, device) = (RunFolder::at(&host), RunFolder::at(&device));
    for (a, b) in host.resumable().iter().zip(device.resumable()) {
        assert_eq!(Checkpoint::read(a).unwrap(), Checkpoint::read(&b).unwrap());
    }

    // Half a queue and a full one, from the middle of a run.
    for step in [6, 12] {
        let part = RunFolder::at(folder.path().join(format!("from-{step}")));
        std::fs::create_dir_all(part.checkpoints()).unwrap();
        std::fs::copy(device.config(), part.config()).unwrap();
        let from = device.checkpoint_of(step);
        std::fs::copy(&from, part.checkpoint_of(step)).unwrap();
        assert_same_bits(&run(on_device(part.root(), OVERRIDES).resume().unwrap()), &expected);
    }
}

/// What a device has chosen is in every checkpoint, and the device of a resumed run is told before it does anything. One that
/// cannot choose so goes on by its own choice.
#[test]
fn a_resumed_run_brings_its_devices_choices() {
    let folder = tempfile::tempdir().unwrap();
    let setup = |folder: &Path, device: Device| {
        Setup::new(settings(OVERRIDES), Box::new(device), data(), RunFolder::at(folder))
    };
    let whole = folder.path().join("whole");
    let (choices, told) = (Some("plan 7\n\"of\" 9".to_owned()), Arc::default());
    let device = Device { choices: choices.clone(), told: Arc::clone(&told), ..Device::new() };
    let expected = run(setup(&whole, device).start().unwrap());
    assert!(!told.lock().unwrap().iter().any(|what: &String| what.starts_with("choose")));
    let whole = RunFolder::at(&whole);
    for path in whole.resumable() {
        let checkpoint = Checkpoint::read(&path).unwrap();
        let [section] = checkpoint.sections_of("device") else { panic!("one process") };
        assert_eq!(section.values["choices"].as_str().map(str::to_owned), choices);
    }
    for refuses in [false, true] {
        let part = RunFolder::at(folder.path().join(format!("refuses-{refuses}")));
        std::fs::create_dir_all(part.checkpoints()).unwrap();
        std::fs::copy(whole.config(), part.config()).unwrap();
        std::fs::copy(whole.checkpoint_of(6), part.checkpoint_of(6)).unwrap();
        let told = Arc::default();
        let device = Device { refuses, told: Arc::clone(&told), ..Device::new() };
        assert_same_bits(&run(setup(part.root(), device).resume().unwrap()), &expected);
        let told: Vec<String> = told.lock().unwrap().clone();
        assert_eq!(told[0], format!("choose {}", choices.as_deref().unwrap()));
        assert_eq!(told[1..3], ["load", "prepare"]);
    }
    // Without choices a checkpoint is what it was.
    let plain = RunFolder::at(folder.path().join("plain"));
    run(setup(plain.root(), Device::new()).start().unwrap());
    let checkpoint = Checkpoint::read(&plain.checkpoint_of(6)).unwrap();
    assert!(!checkpoint.sections.contains_key("device"));
}

/// A copy of a run's folder as it was when its checkpoint of `step` was the newest.
fn part_of(run: &RunFolder, to: &Path, step: u64) -> RunFolder {
    let part = RunFolder::at(to);
    std::fs::create_dir_all(part.checkpoints()).unwrap();
    std::fs::copy(run.config(), part.config()).unwrap();
    std::fs::copy(run.checkpoint_of(step), part.checkpoint_of(step)).unwrap();
    part
}

/// The choices in the checkpoint of a step.
fn choices_at(run: &RunFolder, step: u64) -> Option<String> {
    let checkpoint = Checkpoint::read(&run.checkpoint_of(step)).unwrap();
    checkpoint.sections_of("device").first()?.values.get("choices")?.as_str().map(str::to_owned)
}

/// A leg on a device that has nothing to choose keeps what the one before has chosen, for one that comes later.
#[test]
fn choices_survive_a_leg_on_a_device_that_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let setup = |folder: &Path, device: Device| {
        Setup::new(settings(OVERRIDES), Box::new(device), data(), RunFolder::at(folder))
    };
    let choices = Some("plan 7\n\"of\" 9".to_owned());
    let first = RunFolder::at(folder.path().join("first"));
    let expected =
        run(setup(first.root(), Device { choices: choices.clone(), ..Device::new() }).start().unwrap());

    let host = part_of(&first, &folder.path().join("host"), 6);
    assert_same_bits(&run(support::resume(host.root(), OVERRIDES).unwrap()), &expected);
    for step in [9, 12, 20] {
        assert_eq!(choices_at(&host, step), choices);
    }
    let again = part_of(&host, &folder.path().join("again"), 12);
    let told = Arc::default();
    let device = Device { told: Arc::clone(&told), ..Device::new() };
    assert_same_bits(&run(setup(again.root(), device).resume().unwrap()), &expected);
    assert_eq!(told.lock().unwrap()[0], format!("choose {}", choices.as_deref().unwrap()));
    // Another device, which does not take them, leaves them until it has its own.
    for (own, left) in [(None, choices.clone()), (Some("plan 1".to_owned()), Some("plan 1".to_owned()))] {
        let other = part_of(&host, &folder.path().join(format!("other-{}", own.is_some())), 12);
        let device = Device { refuses: true, choices: own, ..Device::new() };
        assert_same_bits(&run(setup(other.root(), device).resume().unwrap()), &expected);
        assert_eq!(choices_at(&other, 15), left);
    }
}

/// Each process has a device with choices of its own, and gets these again.
#[test]
fn devices_of_several_processes_keep_their_own_choices() {
    let folder = tempfile::tempdir().unwrap();
    let first = RunFolder::at(folder.path().join("first"));
    let ranks = |run_folder: &RunFolder, is_new: bool, own: &(dyn Fn(usize) -> Option<String> + Sync)| {
        thread::scope(|scope| {
            let ranks: Vec<_> = InMemory::group(2)
                .into_iter()
                .enumerate()
                .map(|(rank, collective)| {
                    scope.spawn(move || {
                        let told = Arc::default();
                        let device = Device { choices: own(rank), told: Arc::clone(&told), ..Device::new() };
                        let settings = settings(&[OVERRIDES, &["training.batch_size=4"]].concat());
                        let setup = Setup::new(settings, Box::new(device), data(), run_folder.clone());
                        let setup = setup.collective(Arc::new(collective));
                        let state = run(if is_new { setup.start() } else { setup.resume() }.unwrap());
                        let first: Option<String> = told.lock().unwrap().first().cloned();
                        (state, first)
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        })
    };
    let trained = ranks(&first, true, &|rank| Some(format!("plan of {rank}")));
    // A leg without choices, and one that is told of those before it.
    let host = part_of(&first, &folder.path().join("host"), 6);
    ranks(&host, false, &|_| None);
    let again = part_of(&host, &folder.path().join("again"), 12);
    for (rank, (state, told)) in ranks(&again, false, &|_| None).into_iter().enumerate() {
        assert_same_bits(&state, &trained[rank].0);
        assert_eq!(told.as_deref(), Some(format!("choose plan of {rank}").as_str()));
    }
}

/// Whatever is in the section of the devices, a run that has no use for it goes on with its bits.
#[test]
fn a_section_of_the_device_that_means_nothing_hurts_no_run() {
    let folder = tempfile::tempdir().unwrap();
    let first = RunFolder::at(folder.path().join("first"));
    let expected = run(start(first.root(), OVERRIDES).unwrap());
    let values = |json: serde_json::Value| json.as_object().unwrap().clone();
    let of_values = |json| vec![Section { values: values(json), ..Section::default() }];
    let tensor = StateTensor::new(vec![2], vec![1.0, f32::NAN]).unwrap();
    let tensors = [("choices".to_owned(), tensor)].into_iter().collect();
    let sections = [
        (Vec::new(), None),
        (of_values(json!({})), None),
        (of_values(json!({ "choices": 7 })), None),
        (of_values(json!({ "choices": { "plans": [] } })), None),
        (
            of_values(json!({ "choices": "no plans\u{0} at all", "of": "elsewhere" })),
            Some("no plans\u{0} at all"),
        ),
        (vec![Section { tensors, ..Section::default() }, Section::default()], None),
    ];
    for (index, (section, kept)) in sections.into_iter().enumerate() {
        let part = part_of(&first, &folder.path().join(format!("part-{index}")), 6);
        let mut checkpoint = Checkpoint::read(&part.checkpoint_of(6)).unwrap();
        checkpoint.sections.insert("device".to_owned(), section);
        checkpoint.write(&part.checkpoint_of(6)).unwrap();
        assert_same_bits(&run(support::resume(part.root(), OVERRIDES).unwrap()), &expected);
        assert_eq!(choices_at(&part, 12).as_deref(), kept);
    }
}

/// A run whose first checkpoint could not be written does not begin, and leaves nothing behind.
#[test]
fn a_disk_without_room_for_a_checkpoint_is_told_before_the_first_step() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("run");
    let device = Device { is_vast: true, ..Device::new() };
    let setup = Setup::new(settings(&[]), Box::new(device), data(), RunFolder::at(&folder));
    let mut trainer = setup.start().unwrap().show_progress(false);
    let error = trainer.run(&StopFlag::new()).unwrap_err();
    assert!(matches!(&error, TrainError::DiskFull { path, .. } if *path == folder), "{error}");
    assert!(error.to_string().contains("a checkpoint takes about 128.0 PiB"), "{error}");
    assert!(!folder.exists());
}

/// A step that goes by way of the host and does not fit is refused with what would.
#[test]
fn a_step_without_room_names_the_batch_that_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device { is_full: true, ..Device::new() };
    let heads = settings(&["prototypes.n_prototypes=[12, 12]"]);
    let setup = Setup::new(heads, Box::new(device), data(), RunFolder::at(folder.path().join("run")));
    let mut trainer = setup.start().unwrap().show_progress(false);
    let TrainError::Encoder(error) = trainer.run(&StopFlag::new()).unwrap_err() else { panic!() };
    assert_eq!(
        error.to_string(),
        "the memory of device `paper` does not suffice: about 0.1 GiB of 0.0 GiB for a batch of 8; up to 9 images would fit"
    );
}

/// The memory of the device is asked for by the very plan that steps are prepared with; by passes where the host has a part in
/// the step.
#[test]
fn memory_is_told_of_the_steps_that_are_run() {
    let folder = tempfile::tempdir().unwrap();
    let asked = |name: &str, overrides: &[&str], other_codes: bool| {
        let told = Arc::default();
        let device = Device { told: Arc::clone(&told), ..Device::new() };
        let settings = settings(overrides);
        assert_eq!(settings.device_memory(&device, 1).unwrap().batch_size, 8);
        let setup = Setup::new(settings, Box::new(device), data(), RunFolder::at(folder.path().join(name)));
        let setup = match other_codes {
            true => setup.codes(SinkhornCodes::new(Codes::new(0.05, 3).unwrap(), &[0])),
            false => setup,
        };
        let mut trainer = setup.start().unwrap();
        assert_eq!(trainer.device_memory().unwrap().unwrap().batch_size, 8);
        let told: Vec<String> = told.lock().unwrap().clone();
        told
    };
    let told = asked("one", &[], false);
    assert!(
        told[0].starts_with("memory of steps with [GroupShape { n_crops: 2, height: 12, width: 12 }"),
        "{told:?}"
    );
    assert!(told[0].contains("a queue of 16"), "{told:?}");
    assert_eq!(told[0], told[1]);
    // Two heads; codes of other crops than the loss's, which only the trainer knows of.
    let heads = asked("two", &["prototypes.n_prototypes=[12, 12]"], false);
    assert!(heads[0].starts_with("memory of passes over [GroupShape { n_crops: 2,"), "{heads:?}");
    assert_eq!(heads[0], heads[1]);
    let codes = asked("codes", &[], true);
    assert_eq!((&codes[0], &codes[1]), (&told[0], &heads[0]));
    // Of several processes each goes by way of the host.
    let device = Device::new();
    settings(&[]).device_memory(&device, 2).unwrap();
    assert_eq!(device.told.lock().unwrap()[0], heads[0]);
    assert_eq!(settings(&[]).device_memory(&Linear::new(6), 1), None);
}

#[test]
fn callbacks_see_every_step_in_its_turn() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = on_device(folder.path(), &[]).start().unwrap();
    let mut next = 0;
    trainer.on_step(move |event| {
        assert_eq!(event.metrics.step, next);
        assert!(event.output.is_none(), "arrays stay on the device");
        // What a callback sees of the prototypes is of this step: of unit length only before an update.
        assert_eq!(event.swav.prototypes.n_prototypes(0)?, 12);
        next += 1;
        Ok(())
    });
    run(trainer);
}
