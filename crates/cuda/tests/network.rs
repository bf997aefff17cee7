//! Tapes on the host's machine against the CPU kernels: forward, gradients, statistics, inference.

mod reference;

use reference::{Reference, crops, distance, gradients, initial_running, noise, pack, unpack};
use swav_cuda::host::{Host, HostProgram, Order};
use swav_cuda::network::{
    BlockKind, GradientSource, Group, Head, Network, NetworkSpec, Options, Output, Stem, padded,
};
use swav_cuda::shape::Element;
use swav_cuda::tape::{PixelFormat, Rule, Scalars};

fn spec(stem: Stem, block: BlockKind, width: usize, layers: &[usize], head: Head) -> NetworkSpec {
    NetworkSpec { stem, stem_channels: width, block, layers: layers.to_vec(), head }
}

fn options(element: Element, checkpointing: bool) -> Options {
    Options { element, tf32: false, checkpointing, pixels: PixelFormat::F32 }
}

/// What a forward and a backward pass on the host's machine give.
struct Pass {
    output: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    running: Vec<f32>,
    bits: Vec<u8>,
    output_bits: Vec<u8>,
}

/// Rows without the padding of their ends.
fn strip(values: &[f32], dim: usize) -> Vec<f32> {
    values.chunks_exact(padded(dim)).flat_map(|row| row[..dim].to_vec()).collect()
}

fn pad(values: &[f32], dim: usize) -> Vec<f32> {
    let rows = values.chunks_exact(dim);
    rows.flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.0, padded(dim) - dim))).collect()
}

fn host_with(network: &Network, parameters: &[f32], element: Element) -> Host {
    let mut host = Host::new();
    let mut refresh = HostProgram::new(network.refresh(element));
    let ids = network.persistent(&mut swav_cuda::tape::Program::new(element));
    host.write_f32(&mut refresh, ids.parameters, parameters);
    host.write_f32(&mut refresh, ids.running, &initial_running(network));
    host.run(&mut refresh, 0, &Scalars::default(), Order::AsWritten);
    host
}

fn run(reference: &Reference, network: &Network, groups: &[Group], options: &Options, order: Order) -> Pass {
    let mut host = host_with(network, &reference.packed(network), options.element);
    run_on(&mut host, network, groups, options, order)
}

fn run_on(host: &mut Host, network: &Network, groups: &[Group], options: &Options, order: Order) -> Pass {
    let train = network.train(groups, options);
    let mut program = HostProgram::new(train.program.clone());
    for ((_, pixels), &id) in crops(groups).iter().zip(&train.pixels) {
        host.write_f32(&mut program, id, pixels);
    }
    host.run(&mut program, 0, &Scalars::default(), order);
    let dim = network.spec().embedding_dim();
    let output = host.read_f32(&program, train.output);
    let rows = output.len() / padded(dim);
    host.write_f32(&mut program, train.gradient, &pad(&output_gradient(rows * dim), dim));
    host.run(&mut program, 1, &Scalars::default(), order);
    let bits = host.read(&program, train.gradients).to_vec();
    Pass {
        output: strip(&output, dim),
        gradients: gradients(network, &bits, groups.len(), options.element),
        running: host.read_f32(&program, train.persistent.running),
        output_bits: host.read(&program, train.output).to_vec(),
        bits,
    }
}

fn output_gradient(len: usize) -> Vec<f32> {
    (0..len).map(|i| 0.1 * noise(i, 77)).collect()
}

fn group(images: usize, height: usize, width: usize) -> Group {
    Group { images, height, width }
}

/// Every architecture's forward, gradients and statistics, f32, with and without kept blocks.
#[test]
fn networks_agree_with_the_cpu_kernels() {
    let mlp = Head::Mlp { hidden: 12, dim: 5 };
    let cases = [
        (spec(Stem::Cifar, BlockKind::Basic, 8, &[1, 1], mlp), vec![group(3, 8, 8), group(4, 6, 6)]),
        (spec(Stem::Cifar, BlockKind::Basic, 5, &[2, 1], Head::None), vec![group(3, 7, 9)]),
        (
            spec(Stem::Imagenet, BlockKind::Bottleneck, 8, &[1, 2], mlp),
            vec![group(2, 32, 32), group(3, 23, 21), group(2, 16, 17)],
        ),
        (
            spec(Stem::Imagenet, BlockKind::Basic, 3, &[1, 1, 1], Head::Linear { dim: 9 }),
            vec![group(4, 33, 30)],
        ),
    ];
    for (spec, groups) in cases {
        let network = Network::new(spec.clone());
        let mut reference = Reference::new(&spec, 0.0);
        let crops = crops(&groups);
        let initial = reference.packed(&network);
        assert_eq!(unpack(&network, &initial), reference.parameters);
        let plain = run(&reference, &network, &groups, &options(Element::F32, false), Order::AsWritten);
        let output = reference.forward(&crops);
        assert!(distance(&plain.output, &output) < 1e-5, "{spec:?}: {}", distance(&plain.output, &output));
        reference.backward(&crops, &output_gradient(output.len()));
        for (index, (got, expected)) in plain.gradients.iter().zip(&reference.gradients).enumerate() {
            let distance = distance(got, expected);
            // A bias before a batch norm has no gradient but rounding.
            let norm = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!(distance < 1e-4 || norm < 1e-5, "{spec:?}: gradient {index}: {distance}, norm {norm}");
        }
        for (norm, (mean, var)) in network.parameters().norms.iter().zip(&reference.running) {
            let at = 2 * norm.at;
            assert!(distance(&plain.running[at..at + norm.channels], mean) < 1e-4);
            let at = at + padded(norm.channels);
            assert!(distance(&plain.running[at..at + norm.channels], var) < 1e-4);
        }
        let kept = options(Element::F32, true);
        for (options, order) in [
            (kept, Order::AsWritten),
            (options(Element::F32, false), Order::LastStreamFirst),
            (kept, Order::LastStreamFirst),
        ] {
            let other = run(&reference, &network, &groups, &options, order);
            assert!(
                other.bits == plain.bits && other.output_bits == plain.output_bits,
                "{options:?} {order:?}"
            );
        }
    }
}

/// What pads channels is zero, in parameters, gradients and statistics, so that it never matters.
#[test]
fn padding_stays_zero() {
    let spec = spec(Stem::Imagenet, BlockKind::Bottleneck, 3, &[1, 1], Head::Mlp { hidden: 5, dim: 3 });
    let network = Network::new(spec.clone());
    let reference = Reference::new(&spec, 0.0);
    let groups = [group(2, 17, 16), group(3, 12, 13)];
    let options = options(Element::Bf16, false);
    let pass = run(&reference, &network, &groups, &options, Order::AsWritten);
    let layout = network.parameters().gradients(2, Element::Bf16);
    for (i, parameter) in network.parameters().list.iter().enumerate() {
        let values: usize = (0..layout.count[i])
            .map(|group| {
                let bytes = &pass.bits[layout.at[i] + group * layout.step[i]..];
                let size = layout.element[i].bytes();
                let bytes = &bytes[..parameter.shape.padded_len() * size];
                bytes.chunks_exact(size).filter(|bytes| bytes.iter().any(|&b| b & 0x7f != 0)).count()
            })
            .sum();
        assert!(values <= layout.count[i] * parameter.shape.len(), "parameter {i}");
    }
    assert!(pass.output.iter().chain(pass.gradients.iter().flatten()).all(|x| x.is_finite()));
}

#[test]
fn inference_agrees_with_the_cpu_kernels() {
    let spec = spec(Stem::Imagenet, BlockKind::Bottleneck, 8, &[1, 1], Head::Mlp { hidden: 12, dim: 5 });
    let network = Network::new(spec.clone());
    let mut reference = Reference::new(&spec, 0.0);
    reference.forward(&crops(&[group(4, 32, 32)]));
    let mut host = host_with(&network, &reference.packed(&network), Element::F32);
    let mut running = initial_running(&network);
    for (norm, (mean, var)) in network.parameters().norms.iter().zip(&reference.running) {
        running[2 * norm.at..][..norm.channels].copy_from_slice(mean);
        running[2 * norm.at + padded(norm.channels)..][..norm.channels].copy_from_slice(var);
    }
    for size in [group(3, 32, 32), group(1, 45, 27)] {
        let pixels = crops(&[size]).remove(0).1;
        for (output, dim, with_head) in [(Output::Features, 64, false), (Output::Head, 5, true)] {
            let infer = network.infer(size, output, &options(Element::F32, false));
            let mut program = HostProgram::new(infer.program);
            host.write_f32(&mut program, infer.persistent.running, &running);
            host.write_f32(&mut program, infer.pixels, &pixels);
            host.run(&mut program, 0, &Scalars::default(), Order::AsWritten);
            let got = strip(&host.read_f32(&program, infer.output), dim);
            assert!(distance(&got, &reference.infer(size, &pixels, with_head)) < 1e-5);
        }
    }
}

/// With open rectifiers bf16's rounding is all that differs, and it stays small.
#[test]
fn bf16_stays_near_f32_where_rectifiers_are_open() {
    let spec = spec(Stem::Imagenet, BlockKind::Bottleneck, 8, &[1, 1], Head::Mlp { hidden: 16, dim: 8 });
    let network = Network::new(spec.clone());
    let reference = Reference::new(&spec, 4.0);
    let groups = [group(4, 32, 32), group(4, 24, 24)];
    let exact = run(&reference, &network, &groups, &options(Element::F32, false), Order::AsWritten);
    let rounded = run(&reference, &network, &groups, &options(Element::Bf16, false), Order::AsWritten);
    assert!(distance(&rounded.output, &exact.output) < 0.03);
    let mut errors: Vec<f64> = (rounded.gradients.iter().zip(&exact.gradients))
        .filter(|(_, exact)| exact.iter().any(|g| g.abs() > 1e-4))
        .map(|(rounded, exact)| distance(rounded, exact))
        .collect();
    errors.sort_by(f64::total_cmp);
    assert!(errors[errors.len() / 2] < 0.12, "median {}", errors[errors.len() / 2]);
    let kept = run(&reference, &network, &groups, &options(Element::Bf16, true), Order::LastStreamFirst);
    assert!(kept.bits == rounded.bits, "blocks that run again give the same bits");
}

/// Updates follow the rules, over several steps, with both groups' gradients.
#[test]
fn updates_follow_the_rules() {
    let spec = spec(Stem::Cifar, BlockKind::Basic, 4, &[1], Head::Linear { dim: 6 });
    let network = Network::new(spec.clone());
    let groups = [group(3, 8, 8), group(4, 6, 6)];
    for rule in [Rule::Larc, Rule::Sgd, Rule::AdamW] {
        let reference = Reference::new(&spec, 0.0);
        let mut values = reference.parameters.clone();
        let mut first: Vec<Vec<f32>> = values.iter().map(|p| vec![0.0; p.len()]).collect();
        let mut second = first.clone();
        let mut host = host_with(&network, &reference.packed(&network), Element::F32);
        let mut update = HostProgram::new(network.update(GradientSource::Groups(2), rule, Element::F32).0);
        for step in 1..=3 {
            let pass = run_on(&mut host, &network, &groups, &options(Element::F32, false), Order::AsWritten);
            let mut scalars = Scalars::default();
            for class in &mut scalars.classes {
                (class.lr, class.momentum, class.weight_decay, class.trust) = (0.1, 0.9, 0.01, 0.02);
                (class.beta2, class.epsilon) = (0.99, 1e-8);
                class.first_correction = 1.0 / (1.0 - 0.9f32.powi(step));
                class.second_correction = 1.0 / (1.0 - 0.99f32.powi(step));
            }
            host.run(&mut update, 0, &scalars, Order::AsWritten);
            for (i, g) in pass.gradients.iter().enumerate() {
                expected(rule, step, &mut values[i], g, (&mut first[i], &mut second[i]));
            }
            let ids = network.persistent(&mut swav_cuda::tape::Program::new(Element::F32));
            let got = host.read_f32(&update, ids.parameters);
            assert!(distance(&got, &pack(&network, &values)) < 1e-5, "{rule:?}, step {step}");
            // The next step starts from the same values on both sides.
            host.write_f32(&mut update, ids.parameters, &pack(&network, &values));
        }
    }
}

/// One update by the formulas.
fn expected(rule: Rule, step: i32, p: &mut [f32], g: &[f32], (v, s): (&mut [f32], &mut [f32])) {
    let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    let (parameter, gradient) = (norm(p), norm(g));
    let (scale, decay) = match rule {
        Rule::Larc if parameter == 0.0 || gradient == 0.0 => (1.0, 0.0),
        Rule::Larc => (0.02 * parameter / (gradient + 0.01 * parameter + 1e-8), 0.01),
        _ => (1.0, 0.01),
    };
    for i in 0..p.len() {
        if rule == Rule::AdamW {
            v[i] = 0.9 * v[i] + 0.1 * g[i];
            s[i] = 0.99 * s[i] + 0.01 * g[i] * g[i];
            p[i] -= 0.1 * 0.01 * p[i];
            let (m, q) = (v[i] / (1.0 - 0.9f32.powi(step)), s[i] / (1.0 - 0.99f32.powi(step)));
            p[i] -= 0.1 * m / (q.sqrt() + 1e-8);
        } else {
            v[i] = 0.9 * v[i] + (g[i] + decay * p[i]) * scale;
            p[i] -= 0.1 * v[i];
        }
    }
}
