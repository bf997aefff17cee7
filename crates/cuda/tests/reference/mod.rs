//! The same network from the CPU kernels' units, f32, for the tests to compare with.

#![allow(dead_code, reason = "each test program uses a part")]

use swav_cuda::network::{BlockKind, Group, Head, Network, NetworkSpec, Stem};
use swav_cuda::shape::Element;
use swav_kernels::net::{self, Backward, RunningStats, Saved, Unit};
use swav_kernels::{Activations, Context, Options};

/// The units of a network, and which of them are the backbone's.
pub struct Reference {
    ctx: Context,
    units: Vec<Box<dyn Unit>>,
    n_backbone: usize,
    pub parameters: Vec<Vec<f32>>,
    pub running: Vec<(Vec<f32>, Vec<f32>)>,
    saved: Vec<Vec<Saved>>,
    pub gradients: Vec<Vec<f32>>,
}

/// A number between -1 and 1 that looks random.
pub fn noise(index: usize, seed: u32) -> f32 {
    let mut x = (index as u32).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503));
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^= x >> 16;
    x as f32 / 2_147_483_648.0 - 1.0
}

impl Reference {
    /// Units with parameters that look random; `shift` is added to the norms' beta (4 opens nearly all rectifiers).
    pub fn new(spec: &NetworkSpec, shift: f32) -> Self {
        let mut units: Vec<Box<dyn Unit>> = vec![match spec.stem {
            Stem::Imagenet => Box::new(net::Stem::imagenet(spec.stem_channels)),
            Stem::Cifar => Box::new(net::Stem::cifar(spec.stem_channels)),
        }];
        let kind = match spec.block {
            BlockKind::Basic => net::BlockKind::Basic,
            BlockKind::Bottleneck => net::BlockKind::Bottleneck,
        };
        let mut channels = spec.stem_channels;
        for (stage, &n) in spec.layers.iter().enumerate() {
            for index in 0..n {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let block = net::Block::new(kind, channels, spec.stem_channels << stage, stride);
                channels = block.c_out();
                units.push(Box::new(block));
            }
        }
        units.push(Box::new(net::GlobalAvgPool));
        let n_backbone = units.len();
        match spec.head {
            Head::None => {}
            Head::Linear { dim } => units.push(Box::new(net::Linear::new(channels, dim, true))),
            Head::Mlp { hidden, dim } => {
                units.push(Box::new(net::Linear::new(channels, hidden, true)));
                units.push(Box::new(net::BatchNorm1d::new(hidden, true)));
                units.push(Box::new(net::Linear::new(hidden, dim, true)));
            }
        }
        let mut parameters = Vec::new();
        for spec in units.iter().flat_map(|unit| unit.parameters()) {
            let fan_in: usize = spec.shape[1..].iter().product();
            let seed = parameters.len() as u32;
            let (scale, mean) = match spec.kind {
                net::ParamKind::NormWeight => (0.3, 1.0),
                net::ParamKind::NormBias => (0.2, shift),
                net::ParamKind::LinearBias => (0.1, 0.0),
                _ => ((6.0 / fan_in as f32).sqrt(), 0.0),
            };
            parameters.push((0..spec.len()).map(|i| mean + scale * noise(i, seed)).collect());
        }
        let norms = units.iter().flat_map(|unit| unit.norms());
        let running = norms.map(|norm| (vec![0.0; norm.channels], vec![1.0; norm.channels])).collect();
        let ctx = Context::new(Options { exact: true, ..Options::default() }).unwrap();
        Reference { ctx, units, n_backbone, parameters, running, saved: Vec::new(), gradients: Vec::new() }
    }

    /// The ranges of parameters and norms of each unit.
    fn ranges(&self) -> Vec<(usize, usize, usize, usize)> {
        let (mut p, mut n) = (0, 0);
        let mut one = |unit: &dyn Unit| {
            let (from, norm) = (p, n);
            p += unit.parameters().len();
            n += unit.norms().len();
            (from, p, norm, n)
        };
        self.units.iter().map(|unit| one(unit.as_ref())).collect()
    }

    fn slices(&self, from: usize, to: usize) -> Vec<&[f32]> {
        self.parameters[from..to].iter().map(Vec::as_slice).collect()
    }

    fn pass(&mut self, units: std::ops::Range<usize>, mut flow: Activations) -> Activations {
        let ranges = self.ranges();
        let mut all = Vec::new();
        for index in units {
            let (from, to, norm, _) = ranges[index];
            let (out, saved) =
                self.units[index].forward_train(&self.ctx, flow, &self.slices(from, to)).unwrap();
            for (i, stats) in saved.stats().iter().enumerate() {
                let (mean, var) = &mut self.running[norm + i];
                stats.update_running(mean, var, 0.1).unwrap();
            }
            all.push(saved);
            flow = out;
        }
        self.saved.push(all);
        flow
    }

    /// The head's output for all crops.
    pub fn forward(&mut self, groups: &[(Group, Vec<f32>)]) -> Vec<f32> {
        self.saved.clear();
        let mut rows = Vec::new();
        let mut n = 0;
        for (group, pixels) in groups {
            let shape = [group.images, group.height, group.width, 3];
            let input = Activations::from_f32(shape, pixels.clone()).unwrap();
            let out = self.pass(0..self.n_backbone, input);
            n += group.images;
            rows.extend(out.words);
        }
        let flow = Activations::from_f32([n, 1, 1, rows.len() / n], rows).unwrap();
        self.pass(self.n_backbone..self.units.len(), flow).words
    }

    fn back(&mut self, units: std::ops::Range<usize>, mut gradient: Activations) -> Option<Activations> {
        let ranges = self.ranges();
        let mut all = self.saved.pop().unwrap();
        for index in units.rev() {
            let (from, to, ..) = ranges[index];
            let parameters: Vec<&[f32]> = self.parameters[from..to].iter().map(Vec::as_slice).collect();
            let grads = &mut self.gradients[from..to];
            let saved = all.pop().unwrap();
            let unit = &self.units[index];
            let args = Backward {
                saved,
                grad_output: gradient,
                params: &parameters,
                grads,
                want_grad_input: index > 0,
            };
            gradient = unit.backward(&self.ctx, args).unwrap()?;
        }
        Some(gradient)
    }

    /// All gradients, from that of the head's output.
    pub fn backward(&mut self, groups: &[(Group, Vec<f32>)], gradient: &[f32]) {
        self.gradients = self.parameters.iter().map(|p| vec![0.0; p.len()]).collect();
        let n: usize = groups.iter().map(|(group, _)| group.images).sum();
        let gradient = Activations::from_f32([n, 1, 1, gradient.len() / n], gradient.to_vec()).unwrap();
        let features = self.back(self.n_backbone..self.units.len(), gradient).unwrap();
        let width = features.shape[3];
        let mut end = n * width;
        for (group, _) in groups.iter().rev() {
            let begin = end - group.images * width;
            let part = features.words[begin..end].to_vec();
            let part = Activations::from_f32([group.images, 1, 1, width], part).unwrap();
            self.back(0..self.n_backbone, part);
            end = begin;
        }
    }

    /// Features or the head's output with running statistics.
    pub fn infer(&self, group: Group, pixels: &[f32], with_head: bool) -> Vec<f32> {
        let shape = [group.images, group.height, group.width, 3];
        let mut flow = Activations::from_f32(shape, pixels.to_vec()).unwrap();
        let n = if with_head { self.units.len() } else { self.n_backbone };
        for (unit, (from, to, norm, norm_end)) in self.units[..n].iter().zip(self.ranges()) {
            let running = self.running[norm..norm_end].iter();
            let running: Vec<_> = running.map(|(mean, var)| RunningStats { mean, var }).collect();
            flow = unit.forward_infer(&self.ctx, &flow, &self.slices(from, to), &running).unwrap();
        }
        flow.words
    }

    /// The parameters as the network keeps them.
    pub fn packed(&self, network: &Network) -> Vec<f32> {
        pack(network, &self.parameters)
    }
}

/// Values of all parameters in one buffer.
pub fn pack(network: &Network, values: &[Vec<f32>]) -> Vec<f32> {
    let parameters = network.parameters();
    let mut packed = vec![0.0; parameters.len];
    for (parameter, values) in parameters.list.iter().zip(values) {
        let inside = parameter.shape.pack(values);
        packed[parameter.at..][..inside.len()].copy_from_slice(&inside);
    }
    packed
}

/// The values of all parameters in a buffer.
pub fn unpack(network: &Network, packed: &[f32]) -> Vec<Vec<f32>> {
    let list = network.parameters().list.iter();
    list.map(|p| p.shape.unpack(&packed[p.at..][..p.shape.padded_len()])).collect()
}

/// Running statistics of new norms.
pub fn initial_running(network: &Network) -> Vec<f32> {
    let parameters = network.parameters();
    let mut running = vec![0.0; 2 * parameters.norm_channels];
    for norm in &parameters.norms {
        let padded = swav_cuda::network::padded(norm.channels);
        running[2 * norm.at + padded..][..norm.channels].fill(1.0);
    }
    running
}

/// Crops that look random.
pub fn crops(groups: &[Group]) -> Vec<(Group, Vec<f32>)> {
    let all = groups.iter().enumerate();
    all.map(|(g, &group)| {
        let len = group.images * group.height * group.width * 3;
        (group, (0..len).map(|i| 2.0 * noise(i, 100 + g as u32)).collect())
    })
    .collect()
}

/// Relative distance in the Euclidean norm.
pub fn distance(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f64| x * x;
    let difference: f64 = got.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    (difference / norm.max(1e-30)).sqrt()
}

/// The bytes of a gradients' buffer as values by parameter, groups added.
pub fn gradients(network: &Network, bytes: &[u8], n_groups: usize, element: Element) -> Vec<Vec<f32>> {
    let layout = network.parameters().gradients(n_groups, element);
    let list = network.parameters().list.iter().enumerate();
    list.map(|(i, parameter)| {
        let len = parameter.shape.padded_len();
        let mut sum = vec![0.0f32; len];
        for group in 0..layout.count[i] {
            let at = &bytes[layout.at[i] + group * layout.step[i]..];
            for (j, sum) in sum.iter_mut().enumerate() {
                *sum += match layout.element[i] {
                    Element::F32 => f32::from_le_bytes(at[4 * j..4 * j + 4].try_into().unwrap()),
                    Element::Bf16 => half::bf16::from_le_bytes([at[2 * j], at[2 * j + 1]]).to_f32(),
                };
            }
        }
        parameter.shape.unpack(&sum)
    })
    .collect()
}
