//! Whole steps on the host's machine against recorded trainings. What an engine has to do otherwise, the tests of all
//! devices see to: the host's machine is one of them, `cuda:host`.

mod planned;

use std::sync::Arc;

use ndarray::{Array2, Array4, Ix3};
use swav_cuda::machine::HostMachine;
use swav_cuda::shape::Element;
use swav_fixtures::{Named, Training};
use swav_optim::Method;

use super::Cuda;
use super::values::{pad, strip};
use crate::engine::{Engine, Value};
use crate::layers::Layers;
use crate::whole_step::GroupShape;
use crate::{
    BlockKind, Crops, EncoderConfig, EncoderError, Head, Precision, ResNet, Scaling, Slots, StepInputs,
    StepPlan, UpdateRule, WholeStep,
};

fn config(precision: Precision) -> EncoderConfig {
    EncoderConfig {
        arch: ResNet::custom(BlockKind::Bottleneck, [1; 4]).with_width(8).into(),
        head: Head::Mlp { hidden: 24 },
        dim: 16,
        precision,
        ..EncoderConfig::default()
    }
}

fn engine(precision: Precision) -> (Cuda, Arc<Layers>) {
    let spec = config(precision).check().unwrap();
    let layers = Arc::new(Layers::new(&spec));
    (Cuda::new("cuda:host", &spec, layers.clone(), Box::new(HostMachine::new())).unwrap(), layers)
}

fn load(engine: &mut Cuda, layers: &Layers, state: &Named) {
    for (index, info) in layers.parameters.iter().enumerate() {
        let values: Vec<f32> = state[&info.name].iter().copied().collect();
        engine.write(Value::Parameter(index), info.to_engine_layout(&values)).unwrap();
    }
    for (index, norm) in layers.norms.iter().enumerate() {
        let values = |what: &str| state[&format!("{}.{what}", norm.name)].iter().copied().collect();
        engine.write(Value::Mean(index), values("running_mean")).unwrap();
        engine.write(Value::Variance(index), values("running_var")).unwrap();
    }
}

fn plan(training: &Training, shapes: &[[usize; 3]], queue_length: usize) -> StepPlan {
    let batch_size = training.count("batch");
    let group = |&[n, height, width]: &[usize; 3]| GroupShape { n_crops: n / batch_size, height, width };
    StepPlan {
        batch_size,
        groups: shapes.iter().map(group).collect(),
        scaling: None,
        crops_for_assign: vec![0, 1],
        temperature: training.number("temperature") as f32,
        epsilon: training.number("epsilon"),
        sinkhorn_iters: training.count("iterations"),
        n_prototypes: training.count("prototypes"),
        queue_length,
    }
}

fn far(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f64| x * x;
    let gap: f64 = got.iter().zip(expected).map(|(a, b)| square(f64::from(a - b))).sum();
    gap.sqrt() / expected.iter().map(|&x| square(f64::from(x))).sum::<f64>().sqrt().max(1e-6)
}

fn matrix(named: &Named, name: &str) -> Array2<f32> {
    named[name].clone().into_dimensionality().unwrap()
}

/// Steps in a row: the report of each, prototypes and queue after each, momenta that go on.
#[test]
fn parity_whole_steps_follow_the_recorded_training() {
    for name in ["steps_bottleneck", "steps_queue"] {
        let training = Training::open(name);
        let (mut engine, layers) = engine(Precision::F32);
        let queue_length = training.count("queue_length");
        let steps: Vec<_> = training.steps().collect();
        let frozen = training.count("freeze_prototypes_iters");
        let mut reports = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let (before, groups) = (step.before(), step.groups());
            if index == 0 {
                let shapes: Vec<_> = groups.iter().map(|g| [g.dim().0, g.dim().1, g.dim().2]).collect();
                engine.prepare(&plan(&training, &shapes, queue_length)).unwrap();
                load(&mut engine, &layers, &before.state);
                let prototypes = matrix(&before.state, "prototypes.weight");
                engine.load_prototypes(prototypes.view(), &Slots::default()).unwrap();
            }
            let rule = UpdateRule::new(Method::Larc {
                lr: step.lr as f32,
                momentum: training.number("momentum") as f32,
                weight_decay: training.number("weight_decay") as f32,
                trust: training.number("trust") as f32,
            });
            let inputs = StepInputs {
                step: index as u64,
                rule,
                max_gradient_norm: None,
                update_prototypes: index >= frozen,
                use_queue: step.queue_used,
                push_queue: queue_length > 0,
            };
            let views: Vec<_> = groups.iter().map(|group| group.view()).collect();
            reports.extend(engine.step(Crops::Values(&views), &inputs).unwrap());
            let (prototypes, slots) = engine.prototypes().unwrap();
            let after = matrix(&step.state_after(), "prototypes.weight");
            let gap = far(prototypes.as_slice().unwrap(), after.as_slice().unwrap());
            assert!(gap < 1e-4, "{name}, step {index}: prototypes {gap:e}");
            assert_eq!(slots.n_updates, (index + 1).saturating_sub(frozen) as u64);
            if let Some(queue) = steps.get(index + 1).and_then(|next| next.before().queue) {
                let queue = queue.into_dimensionality::<Ix3>().unwrap();
                let got = engine.queue().unwrap();
                let gap = far(got.as_slice().unwrap(), queue.as_slice().unwrap());
                assert!(gap < 1e-4, "{name}, step {index}: queue {gap:e}");
            }
        }
        reports.extend(engine.finish().unwrap());
        let numbers: Vec<u64> = reports.iter().map(|report| report.step).collect();
        assert_eq!(numbers, (0..steps.len() as u64).collect::<Vec<_>>());
        for (report, step) in reports.iter().zip(&steps) {
            assert!(
                (report.loss - step.loss).abs() < 1e-4 * step.loss,
                "{name}: {} {}",
                report.loss,
                step.loss
            );
        }
        // What was loaded comes back, newest first.
        if queue_length > 0 {
            let queue = engine.queue().unwrap();
            engine.load_queue(queue.view()).unwrap();
            assert_eq!(engine.queue().unwrap(), queue);
        }
    }
}

const SCALING: Scaling =
    Scaling { scale: [0.0172, 0.0175, 0.0174], shift: [-2.1271927, -2.0357141, -1.8044444] };

/// Crops of bytes, some of them no contiguous arrays, give the reports and prototypes of the values that they become.
#[test]
fn steps_of_bytes_have_the_bits_of_steps_of_values() {
    let training = Training::open("steps_bottleneck");
    let step = training.steps().next().unwrap();
    let shapes: Vec<_> = step.groups().iter().map(|g| [g.dim().0, g.dim().1, g.dim().2]).collect();
    let bytes: Vec<Array4<u8>> = shapes
        .iter()
        .map(|&[n, height, width]| {
            // Width before height, and turned.
            let laid = Array4::from_shape_fn((n, width, height, 3), |(n, x, y, c)| {
                ((n * 8191 + x * 131 + y * 31 + c * 7) % 256) as u8
            });
            laid.permuted_axes([0, 2, 1, 3])
        })
        .collect();
    let bytes: Vec<_> = bytes.iter().map(|bytes| bytes.view()).collect();
    let values: Vec<_> = bytes.iter().map(|&bytes| SCALING.values(bytes)).collect();
    let values: Vec<_> = values.iter().map(|values| values.view()).collect();
    let rule = UpdateRule::new(Method::Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.0 });
    for precision in [Precision::F32, Precision::Mixed] {
        let run = |scaling, crops: Crops<'_>| {
            let (mut engine, layers) = engine(precision);
            engine.prepare(&StepPlan { scaling, ..plan(&training, &shapes, 0) }).unwrap();
            load(&mut engine, &layers, &step.before().state);
            let prototypes = matrix(&step.before().state, "prototypes.weight");
            engine.load_prototypes(prototypes.view(), &Slots::default()).unwrap();
            let mut reports = Vec::new();
            for step in 0..2 {
                let inputs = StepInputs {
                    step,
                    rule,
                    max_gradient_norm: None,
                    update_prototypes: true,
                    use_queue: false,
                    push_queue: false,
                };
                reports.extend(engine.step(crops, &inputs).unwrap());
            }
            reports.extend(engine.finish().unwrap());
            (reports, engine.prototypes().unwrap())
        };
        assert_eq!(run(Some(SCALING), Crops::Bytes(&bytes)), run(None, Crops::Values(&values)));
    }
}

/// TF32 rounds what convolutions multiply to 11 bits, and nothing where it is not asked for.
#[test]
fn a_matrix_unit_rounds_convolutions_unless_they_are_to_be_exact() {
    let training = Training::open("steps_bottleneck");
    let step = training.steps().next().unwrap();
    let (state, groups) = (step.before().state, step.groups());
    let views: Vec<_> = groups.iter().map(|group| group.view()).collect();
    let embeddings = |matrix_unit: bool, exact: bool| {
        let spec = EncoderConfig { matrix_unit, exact, ..config(Precision::F32) }.check().unwrap();
        let layers = Arc::new(Layers::new(&spec));
        let mut engine = Cuda::new("cuda:host", &spec, layers.clone(), Box::new(HostMachine::new())).unwrap();
        load(&mut engine, &layers, &state);
        engine.forward_train(&views, 0.1, true).unwrap()
    };
    let plain = embeddings(false, false);
    assert_eq!(embeddings(true, true), plain);
    let gap = far(embeddings(true, false).as_slice().unwrap(), plain.as_slice().unwrap());
    assert!((1e-5..1e-2).contains(&gap), "{gap:e}");
}

/// Without momentum and decay an optimiser remembers the gradient that it took: shorter where it was clipped, in the
/// same proportion everywhere.
#[test]
fn clipping_shortens_the_step_of_encoder_and_prototypes_alike() {
    let training = Training::open("steps_bottleneck");
    let step = training.steps().next().unwrap();
    let (before, groups) = (step.before(), step.groups());
    let views: Vec<_> = groups.iter().map(|group| group.view()).collect();
    let shapes: Vec<_> = groups.iter().map(|g| [g.dim().0, g.dim().1, g.dim().2]).collect();
    let prototypes = matrix(&before.state, "prototypes.weight");
    let run = |max_gradient_norm: Option<f64>| {
        let (mut engine, layers) = engine(Precision::F32);
        engine.prepare(&plan(&training, &shapes, 0)).unwrap();
        load(&mut engine, &layers, &before.state);
        engine.load_prototypes(prototypes.view(), &Slots::default()).unwrap();
        let inputs = StepInputs {
            step: 0,
            rule: UpdateRule::new(Method::Sgd { lr: 1.0, momentum: 0.0, weight_decay: 0.0 }),
            max_gradient_norm,
            update_prototypes: true,
            use_queue: false,
            push_queue: false,
        };
        engine.step(Crops::Values(&views), &inputs).unwrap();
        let norm = engine.finish().unwrap()[0].gradient_norm;
        let slots = (0..layers.parameters.len()).map(|parameter| engine.read_slots(parameter).unwrap());
        let mut taken: Vec<f32> = slots.flat_map(|slots| slots.first).collect();
        taken.extend(engine.prototypes().unwrap().1.first);
        (norm, taken)
    };
    let (norm, plain) = run(None);
    let (same, long) = run(Some(2.0 * norm));
    let (reported, clipped) = run(Some(norm / 4.0));
    assert_eq!([same, reported], [norm; 2], "the norm before clipping is reported");
    assert_eq!(long, plain, "gradients that are short enough stay");
    let expected: Vec<f32> = plain.iter().map(|gradient| gradient / 4.0).collect();
    let gap = far(&clipped, &expected);
    assert!(gap < 1e-6, "{gap:e}");
}

#[test]
fn steps_of_other_shapes_are_refused() {
    let training = Training::open("steps_bottleneck");
    let step = training.steps().next().unwrap();
    let groups = step.groups();
    let (mut engine, layers) = engine(Precision::Mixed);
    let shapes: Vec<_> = groups.iter().map(|g| [g.dim().0, g.dim().1, g.dim().2]).collect();
    let plan = plan(&training, &shapes, 0);
    engine.prepare(&plan).unwrap();
    load(&mut engine, &layers, &step.before().state);
    let rule = UpdateRule::new(Method::Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.0 });
    let inputs = StepInputs {
        step: 0,
        rule,
        max_gradient_norm: None,
        update_prototypes: true,
        use_queue: false,
        push_queue: false,
    };
    let views: Vec<_> = groups.iter().map(|group| group.view()).collect();
    let refused = |engine: &mut Cuda, crops| engine.step(crops, &inputs).unwrap_err();
    assert!(matches!(refused(&mut engine, Crops::Values(&views[..1])), EncoderError::Images { .. }));
    let bytes: Vec<_> = groups.iter().map(|group| group.map(|_| 7u8)).collect();
    let bytes: Vec<_> = bytes.iter().map(|bytes| bytes.view()).collect();
    assert!(matches!(refused(&mut engine, Crops::Bytes(&bytes)), EncoderError::Images { .. }));
    engine.prepare(&StepPlan { scaling: Some(SCALING), ..plan.clone() }).unwrap();
    assert!(matches!(refused(&mut engine, Crops::Values(&views)), EncoderError::Images { .. }));
    assert!(engine.prepare(&StepPlan { queue_length: 7, ..plan }).is_err());
    assert!(engine.load_prototypes(Array2::zeros((3, 16)).view(), &Slots::default()).is_err());
}

#[test]
fn rows_are_padded_and_stripped() {
    let values: Vec<f32> = (0..15).map(|i| i as f32).collect();
    assert_eq!(strip(&pad(values.clone(), 5), 5), values);
    assert_eq!(pad([1.0, 2.0], 1).len(), 16);
    for (value, bits) in [(1.0, 0x3f80), (-2.5, 0xc020), (1.003_906_3, 0x3f80), (1.011_718_8, 0x3f82)] {
        assert_eq!(Element::Bf16.to_bytes(&[value]), u16::to_le_bytes(bits), "{value}");
    }
}
