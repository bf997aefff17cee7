//! Whole steps on the host's machine against recorded trainings: loss, gradients, state, momenta, queue.

use std::collections::BTreeMap;

use swav_cuda::host::{Host, HostProgram, Order};
use swav_cuda::network::{BlockKind, Group, Head, Network, NetworkSpec, Options, Stem, StepSpec, padded};
use swav_cuda::shape::Element;
use swav_cuda::tape::{BufferId, PixelFormat, Program, Rule, Scalars, ScoreShape};
use swav_fixtures::{Named, Step, Training};

/// The recorded network: bottleneck blocks 1, 1, 1, 1 from 8 channels, head 256-24-16.
fn network() -> Network {
    Network::new(NetworkSpec {
        stem: Stem::Imagenet,
        stem_channels: 8,
        block: BlockKind::Bottleneck,
        layers: vec![1; 4],
        head: Head::Mlp { hidden: 24, dim: 16 },
    })
}

/// The reference's names of parameters and norms, in the network's order.
fn names() -> (Vec<String>, Vec<String>) {
    let (mut parameters, mut norms) = (vec![], vec![]);
    let mut conv = |conv: String, norm: String| {
        parameters.extend([format!("{conv}.weight"), format!("{norm}.weight"), format!("{norm}.bias")]);
        norms.push(norm);
    };
    conv("conv1".into(), "bn1".into());
    for stage in 1..=4 {
        for i in 1..=3 {
            conv(format!("layer{stage}.0.conv{i}"), format!("layer{stage}.0.bn{i}"));
        }
        conv(format!("layer{stage}.0.downsample.0"), format!("layer{stage}.0.downsample.1"));
    }
    let head = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"];
    parameters.extend(head.map(|name| format!("projection_head.{name}")));
    norms.push("projection_head.1".into());
    (parameters, norms)
}

/// A tensor with convolutions as OHWI.
fn inner(tensor: &ndarray::ArrayD<f32>) -> Vec<f32> {
    match tensor.ndim() {
        4 => tensor.view().permuted_axes(vec![0, 2, 3, 1]).iter().copied().collect(),
        _ => tensor.iter().copied().collect(),
    }
}

fn pad_rows(values: &[f32], dim: usize, rows: usize) -> Vec<f32> {
    let mut out: Vec<f32> = values
        .chunks_exact(dim)
        .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.0, padded(dim) - dim)))
        .collect();
    out.resize(rows * padded(dim), 0.0);
    out
}

/// Parameters (or momenta) in the network's buffer; zeros where there is none.
fn packed(network: &Network, named: &Named) -> Vec<f32> {
    let mut out = vec![0.0; network.parameters().len];
    for (parameter, name) in network.parameters().list.iter().zip(names().0) {
        if let Some(tensor) = named.get(&name) {
            let values = parameter.shape.pack(&inner(tensor));
            out[parameter.at..][..values.len()].copy_from_slice(&values);
        }
    }
    out
}

fn unpacked(network: &Network, values: &[f32]) -> BTreeMap<String, Vec<f32>> {
    let list = network.parameters().list.iter().zip(names().0);
    list.map(|(p, name)| (name, p.shape.unpack(&values[p.at..][..p.shape.padded_len()]))).collect()
}

fn running(network: &Network, named: &Named) -> Vec<f32> {
    let mut out = vec![0.0; 2 * network.parameters().norm_channels];
    for (norm, name) in network.parameters().norms.iter().zip(names().1) {
        for (row, what) in ["running_mean", "running_var"].iter().enumerate() {
            let values = inner(&named[&format!("{name}.{what}")]);
            out[2 * norm.at + row * padded(norm.channels)..][..norm.channels].copy_from_slice(&values);
        }
    }
    out
}

fn close(what: &str, got: &[f32], expected: &[f32], limit: f64) {
    let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let (got, expected) = (wide(got), wide(expected));
    let norm: f64 = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
    let far: f64 = got.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    // A bias before a batch norm has no gradient but rounding, which LARC then magnifies.
    let rounding = if what.contains("projection_head.0.bias") { 5e-4 } else { 1.0e-6 };
    assert!(far <= limit * norm + rounding, "{what}: {far:e} away from {norm:e}");
}

/// One recorded step from the state before it. One long function: what goes in, and what has to come out.
#[allow(clippy::too_many_lines)]
fn replay(training: &Training, step: &Step<'_>) {
    let network = network();
    let (batch, k, dim) = (training.count("batch"), training.count("prototypes"), 16);
    let crops = step.groups();
    let queue_length = training.count("queue_length");
    let before = step.before();
    let queue_rows = before.queue.as_ref().map_or(0, |_| queue_length);
    let spec = StepSpec {
        groups: crops
            .iter()
            .map(|group| Group { images: group.dim().0, height: group.dim().1, width: group.dim().2 })
            .collect(),
        scores: ScoreShape {
            n_prototypes: k,
            stride: padded(k),
            batch,
            n_crops: training.count("crops"),
            assign: vec![0, 1],
            queue: queue_rows,
            epsilon: training.number("epsilon") as f32,
            temperature: training.number("temperature") as f32,
        },
        n_iters: training.count("iterations"),
        rule: Rule::Larc,
    };
    let options =
        Options { element: Element::F32, tf32: false, checkpointing: false, pixels: PixelFormat::F32 };
    let program = network.step(&spec, &options);
    let (ids, prototypes) = (program.persistent, program.prototypes);
    let (report, gradients) = (program.report, program.gradients);
    let mut host = Host::new();
    let mut run = HostProgram::new(program.program);
    let mut write = |id: BufferId, values: &[f32]| host.write_f32(&mut run, id, values);
    write(ids.parameters, &packed(&network, &before.state));
    write(ids.first, &packed(&network, &before.velocity));
    write(ids.running, &running(&network, &before.state));
    write(prototypes.weights, &pad_rows(&inner(&before.state["prototypes.weight"]), dim, padded(k)));
    let velocity = before.velocity.get("prototypes.weight").map_or_else(|| vec![0.0; k * dim], inner);
    write(prototypes.first, &pad_rows(&velocity, dim, padded(k)));
    for (&id, group) in program.pixels.iter().zip(&crops) {
        write(id, group.as_slice().unwrap());
    }
    if let (Some(id), Some(queue)) = (prototypes.queue, &before.queue) {
        write(id, &inner(queue));
    }
    let mut scalars = Scalars { queue_ready: step.queue_used, ..Scalars::default() };
    for class in &mut scalars.classes {
        class.lr = step.lr as f32;
        class.momentum = training.number("momentum") as f32;
        class.weight_decay = training.number("weight_decay") as f32;
        class.trust = training.number("trust") as f32;
    }
    scalars.classes[2].enabled = step.index >= training.count("freeze_prototypes_iters");
    (scalars.queue_push, scalars.queue_row) = (true, (queue_rows.max(batch) - batch) as u32);
    host.run(&mut run, 0, &scalars, Order::LastStreamFirst);

    let name = |what: &str| format!("{}, step {}: {what}", training.name(), step.index);
    let got = host.report(&run, report);
    assert!((got.loss - step.loss).abs() < 1e-5 * step.loss, "{}: {} {}", name("loss"), got.loss, step.loss);
    let recorded = step.gradients();
    let n_groups = crops.len();
    let layout = network.parameters().gradients(n_groups, Element::F32);
    let all = host.read_f32(&run, gradients);
    for (i, (parameter, key)) in network.parameters().list.iter().zip(names().0).enumerate() {
        let len = parameter.shape.padded_len();
        let mut sum = vec![0.0f32; len];
        for group in 0..layout.count[i] {
            let at = (layout.at[i] + group * layout.step[i]) / 4;
            sum.iter_mut().zip(&all[at..at + len]).for_each(|(sum, g)| *sum += g);
        }
        close(&name(&key), &parameter.shape.unpack(&sum), &inner(&recorded[&key]), 1e-4);
    }
    let after = step.state_after();
    let values = unpacked(&network, &host.read_f32(&run, ids.parameters));
    values.iter().for_each(|(key, got)| close(&name(key), got, &inner(&after[key]), 1e-5));
    close(&name("statistics"), &host.read_f32(&run, ids.running), &running(&network, &after), 1e-5);
    let weights = host.read_f32(&run, prototypes.weights);
    close(&name("prototypes"), &weights[..k * dim], &inner(&after["prototypes.weight"]), 1e-5);
    if let Some(next) = training.steps().nth(step.index + 1) {
        let velocity = unpacked(&network, &host.read_f32(&run, ids.first));
        let next = next.before();
        for (key, got) in &velocity {
            close(&name(&format!("velocity of {key}")), got, &inner(&next.velocity[key]), 1e-4);
        }
        if let (Some(id), Some(queue)) = (prototypes.queue, next.queue) {
            // The list is a ring: its newest rows are the last ones now.
            let (got, expected) = (host.read_f32(&run, id), inner(&queue));
            for list in 0..2 {
                let at = list * queue_rows * dim;
                let last = at + (queue_rows - batch) * dim;
                close(&name("queue"), &got[last..][..batch * dim], &expected[at..][..batch * dim], 1e-5);
            }
        }
    }
}

#[test]
fn parity_steps_follow_the_recorded_training() {
    for name in ["steps_bottleneck", "steps_queue"] {
        let training = Training::open(name);
        for step in training.steps() {
            replay(&training, &step);
        }
    }
}

#[test]
fn a_whole_step_in_bf16_is_the_same_in_any_order_of_streams() {
    let network = network();
    let group = |images, size| Group { images, height: size, width: size };
    let spec = StepSpec {
        groups: vec![group(4, 32), group(6, 24)],
        scores: ScoreShape {
            n_prototypes: 20,
            stride: 24,
            batch: 2,
            n_crops: 5,
            assign: vec![0, 1],
            queue: 4,
            epsilon: 0.05,
            temperature: 0.1,
        },
        n_iters: 3,
        rule: Rule::AdamW,
    };
    let training = Training::open("steps_bottleneck");
    let before = training.steps().next().unwrap().before();
    let run = |checkpointing, order| {
        let options =
            Options { element: Element::Bf16, tf32: false, checkpointing, pixels: PixelFormat::F32 };
        let mut host = Host::new();
        let mut refresh = HostProgram::new(network.refresh(Element::Bf16));
        let ids = network.persistent(&mut Program::new(Element::Bf16));
        host.write_f32(&mut refresh, ids.parameters, &packed(&network, &before.state));
        host.run(&mut refresh, 0, &Scalars::default(), order);
        let step = network.step(&spec, &options);
        let mut program = HostProgram::new(step.program.clone());
        host.write_f32(&mut program, step.persistent.running, &running(&network, &before.state));
        let prototypes = pad_rows(&inner(&before.state["prototypes.weight"]), 16, 24);
        host.write_f32(&mut program, step.prototypes.weights, &prototypes);
        for (&id, group) in step.pixels.iter().zip(&spec.groups) {
            let len = group.images * group.height * group.width * 3;
            let pixels: Vec<f32> = (0..len).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect();
            host.write_f32(&mut program, id, &pixels);
        }
        let mut scalars = Scalars { queue_push: true, ..Scalars::default() };
        scalars
            .classes
            .iter_mut()
            .for_each(|class| (class.lr, class.momentum, class.beta2) = (0.01, 0.9, 0.99));
        host.run(&mut program, 0, &scalars, order);
        (host.report(&program, step.report), host.read(&program, ids.parameters).to_vec())
    };
    let plain = run(false, Order::AsWritten);
    assert!(plain.0.loss.is_finite() && plain.0.gradient_norm > 0.0 && plain.0.spread > 0.0);
    assert!(run(true, Order::LastStreamFirst) == plain);
    assert!(run(false, Order::LastStreamFirst) == plain);
}
