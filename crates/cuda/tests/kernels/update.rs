//! Optimisers over tables of tensors.

use swav_cuda::kernels::{
    Rule, RuleScalars, StepReport, StepScalars, SumGradients, TensorEntry, Update, tensor_table,
};
use swav_cuda::shape::Element;

use crate::data::{Buffer, Random, close, in_any_order};

/// Length, type and groups of gradients, class.
const TENSORS: [(usize, Element, usize, usize); 6] = [
    (8, Element::F32, 1, 1),
    (8192, Element::Bf16, 2, 0),
    (8200, Element::F32, 3, 0),
    (24_000, Element::Bf16, 1, 0),
    (64, Element::F32, 2, 0),
    (80, Element::Bf16, 2, 2),
];

/// The tensor whose gradient is zero.
const STILL: usize = 4;

fn rules(rule: Rule, step: i32) -> [RuleScalars; 4] {
    let (momentum, second_decay) = (0.9f32, 0.99f32);
    let base = RuleScalars {
        lr: 0.2,
        momentum,
        second_decay,
        epsilon: 1e-3,
        weight_decay: 0.01,
        trust: 0.02,
        first_correction: 1.0 / (1.0 - momentum.powi(step)),
        second_correction: 1.0 / (1.0 - second_decay.powi(step)),
        enabled: true,
        gradient_scale: 0.5,
    };
    // Class 1 follows SGD under LARC too; class 2 is frozen in the first step.
    let exempt =
        RuleScalars { trust: if rule == Rule::Larc { -1.0 } else { 0.02 }, weight_decay: 0.0, ..base };
    [base, exempt, RuleScalars { enabled: step > 1, gradient_scale: 1.0, ..base }, RuleScalars::default()]
}

/// One tensor by the formulas.
struct Reference {
    w: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    g: Vec<f64>,
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

impl Reference {
    fn update(&mut self, rule: Rule, s: &RuleScalars, clip: f64) {
        if !s.enabled {
            return;
        }
        let [lr, momentum, decay2, epsilon, wd, trust, scale] =
            [s.lr, s.momentum, s.second_decay, s.epsilon, s.weight_decay, s.trust, s.gradient_scale]
                .map(f64::from);
        let scale = scale * clip;
        let (p, g) = (norm(&self.w), norm(&self.g) * scale);
        let (factor, wd) = match rule {
            Rule::Larc if trust >= 0.0 && (p == 0.0 || g == 0.0) => (1.0, 0.0),
            Rule::Larc if trust >= 0.0 => (trust * p / (g + wd * p + 1e-8), wd),
            _ => (1.0, wd),
        };
        for i in 0..self.w.len() {
            let g = self.g[i] * scale;
            if rule == Rule::AdamW {
                self.first[i] = momentum * self.first[i] + (1.0 - momentum) * g;
                self.second[i] = decay2 * self.second[i] + (1.0 - decay2) * g * g;
                self.w[i] -= lr * wd * self.w[i];
                let [c1, c2] = [s.first_correction, s.second_correction].map(f64::from);
                self.w[i] -= lr * self.first[i] * c1 / ((self.second[i] * c2).sqrt() + epsilon);
            } else {
                self.first[i] = momentum * self.first[i] + (g + wd * self.w[i]) * factor;
                self.w[i] -= lr * self.first[i];
            }
        }
    }
}

/// The card's side of one tensor.
struct Held {
    weights: Buffer,
    first: Buffer,
    second: Buffer,
    gradient: Buffer,
    copy: Buffer,
}

fn held(seed: u64) -> (Vec<Held>, Vec<Reference>) {
    let mut random = Random::new(seed);
    let mut both = (Vec::new(), Vec::new());
    for (index, (len, element, groups, _)) in TENSORS.into_iter().enumerate() {
        let w = random.values(Element::F32, len, 0.5, 0.0);
        let size = if index == STILL { 0.0 } else { 0.1 };
        let gradient = random.values(element, len * groups, size, 0.0);
        let g = (0..len).map(|i| gradient.iter().skip(i).step_by(len).sum()).collect();
        let zeros = vec![0.0; len];
        both.0.push(Held {
            weights: Buffer::of(Element::F32, &w),
            first: Buffer::of(Element::F32, &zeros),
            second: Buffer::of(Element::F32, &zeros),
            gradient: Buffer::of(element, &gradient),
            copy: Buffer::empty(Element::Bf16, len),
        });
        both.1.push(Reference { w, first: zeros.clone(), second: zeros, g });
    }
    both
}

fn entries(held: &[Held]) -> Vec<TensorEntry<u64>> {
    let mut flat = 0;
    let entry = |(h, (len, element, groups, class)): (&Held, (usize, Element, usize, usize))| {
        let entry = TensorEntry {
            weights: h.weights.at(),
            first: h.first.at(),
            second: Some(h.second.at()),
            gradient: h.gradient.at(),
            element,
            groups,
            group_stride: (len * element.bytes()) as u64,
            copy: (class != 1).then(|| h.copy.at()),
            len,
            class,
            flat,
        };
        flat += len as u64;
        entry
    };
    held.iter().zip(TENSORS).map(entry).collect()
}

#[test]
fn all_rules_over_two_steps() {
    for rule in [Rule::Larc, Rule::Sgd, Rule::AdamW] {
        in_any_order(|run| {
            let (held, mut references) = held(3);
            let (tensors, chunks) = tensor_table(&entries(&held));
            let n_chunks = chunks.len() / 8;
            assert_eq!((n_chunks, tensors.len()), (9, TENSORS.len() * TensorEntry::<u64>::BYTES));
            let (tensors, chunks) = (Buffer::raw(&tensors), Buffer::raw(&chunks));
            let (partials, report) =
                (Buffer::empty(Element::F32, 2 * n_chunks), Buffer::bytes(StepReport::BYTES));
            for step in 1..=2 {
                let rules = rules(rule, step);
                // The second step's gradients are longer than that.
                let max_gradient_norm = if step == 2 { 0.75 } else { 0.0 };
                let (classes, serial) = (rules, step as u32);
                let values = StepScalars { classes, serial, max_gradient_norm, ..StepScalars::default() };
                let scalars = Buffer::raw(&values.to_bytes());
                let op = Update {
                    rule,
                    tensors: tensors.at(),
                    chunks: chunks.at(),
                    n_chunks,
                    scalars: scalars.at(),
                    partials: partials.at(),
                    report: report.at(),
                };
                run(&op.launches());
                let counted: Vec<usize> =
                    (0..TENSORS.len()).filter(|&i| rules[TENSORS[i].3].enabled).collect();
                let total = |f: &dyn Fn(&Reference) -> f64| {
                    norm(&counted.iter().map(|&i| f(&references[i])).collect::<Vec<_>>())
                };
                let expected = [total(&|r| norm(&r.w)), total(&|r| norm(&r.g))];
                let got = StepReport::from_bytes(&report.to_bytes());
                close("norms", &[got.parameter_norm, got.gradient_norm], &expected, 1e-5, 0.0);
                assert_eq!(got.serial, step as u32);
                let clip = if step == 2 { 0.75 / (expected[1] + 1e-6) } else { 1.0 };
                assert!(clip == 1.0 || clip < 0.5, "{clip}");
                close("clipping", &[f64::from(got.clip_scale)], &[clip], 1e-6, 0.0);
                references.iter_mut().zip(TENSORS).for_each(|(r, t)| r.update(rule, &rules[t.3], clip));
                for (i, (h, r)) in held.iter().zip(&references).enumerate() {
                    let len = r.w.len();
                    close(&format!("{rule:?}: weights of {i}"), &h.weights.read_f32(len), &r.w, 2e-5, 0.1);
                    close(&format!("{rule:?}: slot of {i}"), &h.first.read_f32(len), &r.first, 2e-5, 1e-2);
                    let second = if rule == Rule::AdamW { &r.second } else { &vec![0.0; len] };
                    close(
                        &format!("{rule:?}: second slot of {i}"),
                        &h.second.read_f32(len),
                        second,
                        2e-5,
                        1e-3,
                    );
                    let copied = TENSORS[i].3 != 1 && rules[TENSORS[i].3].enabled;
                    let copy = h.copy.read(Element::Bf16, len);
                    if copied {
                        close("copy", &copy, &r.w, 4.5e-3, 1e-3);
                    } else {
                        assert!(copy.iter().all(|x| x.is_nan()), "a copy that nobody asked for");
                    }
                }
            }
            held.into_iter().flat_map(|h| [h.weights, h.first, h.second, h.copy]).collect()
        });
    }
}

#[test]
fn gradients_of_groups_are_added() {
    in_any_order(|run| {
        let (held, references) = held(5);
        let (tensors, chunks) = tensor_table(&entries(&held));
        let n_chunks = chunks.len() / 8;
        let (tensors, chunks) = (Buffer::raw(&tensors), Buffer::raw(&chunks));
        let expected: Vec<f64> = references.iter().flat_map(|r| r.g.clone()).collect();
        let flat = Buffer::empty(Element::F32, expected.len());
        let op = SumGradients { tensors: tensors.at(), chunks: chunks.at(), n_chunks, flat: flat.at() };
        run(&op.launches());
        close("sums", &flat.read_f32(expected.len()), &expected, 1e-6, 0.1);
        vec![flat]
    });
}

/// Nothing is clipped then, so that it spreads no further.
#[test]
fn a_gradient_that_is_not_a_number_shows_in_the_norm() {
    in_any_order(|run| {
        let (mut held, _) = held(5);
        let mut gradient = vec![0.1; 8200 * 3];
        gradient[8200 + 11] = f64::NAN;
        held[2].gradient = Buffer::of(Element::F32, &gradient);
        let (tensors, chunks) = tensor_table(&entries(&held));
        let n_chunks = chunks.len() / 8;
        let (tensors, chunks) = (Buffer::raw(&tensors), Buffer::raw(&chunks));
        let values =
            StepScalars { classes: rules(Rule::Larc, 1), max_gradient_norm: 0.1, ..StepScalars::default() };
        let scalars = Buffer::raw(&values.to_bytes());
        let (partials, report) =
            (Buffer::empty(Element::F32, 2 * n_chunks), Buffer::bytes(StepReport::BYTES));
        let op = Update {
            rule: Rule::Larc,
            tensors: tensors.at(),
            chunks: chunks.at(),
            n_chunks,
            scalars: scalars.at(),
            partials: partials.at(),
            report: report.at(),
        };
        run(&op.launches());
        let report = StepReport::from_bytes(&report.to_bytes());
        assert!(report.gradient_norm.is_nan() && report.parameter_norm.is_finite());
        let spoilt = |held: &Held, len| held.weights.read_f32(len).iter().any(|w| w.is_nan());
        let spoilt: Vec<bool> = held.iter().zip(TENSORS).map(|(held, t)| spoilt(held, t.0)).collect();
        assert_eq!(spoilt, [false, false, true, false, false, false]);
        vec![partials]
    });
}
