//! Every method against its formula, written once more in f64 and in another form, over several steps and with a
//! learning rate that changes; and what has to hold for any numbers.

use proptest::prelude::*;
use swav_optim::{
    Groups, Method, OptimError, Optimizer, Parameter, Role, Slots, UpdateRule, UpdateStats, apply,
    clip_scale, norm,
};

const LRS: [f32; 4] = [0.3, 0.05, 0.4, 0.0];

/// Reproducible numbers in -1..1.
fn noise(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

fn length(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The parameter after updates with the gradients, by the formulae of the papers in f64: SGD's closed form
/// `p_T = p_0 - Σ_t lr_t Σ_{s<=t} momentum^(t-s) g_s` for LARC and SGD, so that no velocity is carried along.
fn expected(method: impl Fn(f32) -> Method, start: &[f32], gradients: &[Vec<f32>]) -> Vec<f64> {
    let mut p = f64s(start);
    let mut decayed: Vec<Vec<f64>> = Vec::new();
    for (t, (gradient, lr)) in gradients.iter().zip(LRS).enumerate() {
        let g = f64s(gradient);
        let f = f64::from;
        match method(lr) {
            Method::Larc { lr, momentum, weight_decay, trust } => {
                let rate = f(trust) * length(&p) / (length(&g) + f(weight_decay) * length(&p) + 1e-8);
                decayed.push(g.iter().zip(&p).map(|(g, p)| rate * g + rate * f(weight_decay) * p).collect());
                descend(&mut p, &decayed, f(lr), f(momentum));
            }
            Method::Sgd { lr, momentum, weight_decay } => {
                decayed.push(g.iter().zip(&p).map(|(g, p)| g + f(weight_decay) * p).collect());
                descend(&mut p, &decayed, f(lr), f(momentum));
            }
            Method::AdamW { lr, beta1, beta2, epsilon, weight_decay } => {
                decayed.push(g);
                let mean = |beta: f64, power: i32, i: usize| {
                    let terms = decayed.iter().enumerate();
                    let sum: f64 = terms.map(|(s, g)| beta.powi((t - s) as i32) * g[i].powi(power)).sum();
                    sum * (1.0 - beta) / (1.0 - beta.powi(t as i32 + 1))
                };
                for (i, p) in p.iter_mut().enumerate() {
                    let (m, s) = (mean(f(beta1), 1, i), mean(f(beta2), 2, i));
                    *p = *p * (1.0 - f(lr) * f(weight_decay)) - f(lr) * m / (s.sqrt() + f(epsilon));
                }
            }
        }
    }
    p
}

fn descend(p: &mut [f64], gradients: &[Vec<f64>], lr: f64, momentum: f64) {
    for (i, p) in p.iter_mut().enumerate() {
        let velocity: f64 = gradients.iter().fold(0.0, |sum, g| momentum * sum + g[i]);
        *p -= lr * velocity;
    }
}

/// Runs the steps and compares with the formula, relative to the way that the parameter went.
fn check(method: impl Fn(f32) -> Method, start: &[f32], gradients: &[Vec<f32>], tolerance: f64) {
    let (mut value, mut slots) = (start.to_vec(), Slots::default());
    for (gradient, lr) in gradients.iter().zip(LRS) {
        let stats = apply(&method(lr).into(), Role::Weight, &mut value, gradient, &mut slots);
        assert!((stats.gradient_norm - length(&f64s(gradient))).abs() < 1e-9);
    }
    assert_eq!(slots.n_updates, gradients.len() as u64);
    let expected = expected(&method, start, gradients);
    let way: Vec<f64> = expected.iter().zip(start).map(|(e, s)| e - f64::from(*s)).collect();
    let error: Vec<f64> = expected.iter().zip(&value).map(|(e, v)| e - f64::from(*v)).collect();
    // A value of 1 has a rounding of 6e-8 a step, whatever the way.
    let rounding = 1e-7 * length(&f64s(start));
    assert!(length(&error) < tolerance * length(&way) + rounding, "{} of {}", length(&error), length(&way));
}

fn larc(lr: f32) -> Method {
    Method::Larc { lr, momentum: 0.9, weight_decay: 0.2, trust: 0.5 }
}

fn sgd(lr: f32) -> Method {
    Method::Sgd { lr, momentum: 0.8, weight_decay: 0.2 }
}

fn adamw(lr: f32) -> Method {
    Method::AdamW { lr, beta1: 0.8, beta2: 0.95, epsilon: 1e-3, weight_decay: 0.2 }
}

#[test]
fn methods_follow_their_formulae() {
    for n in [1, 7, 8, 33] {
        let gradients: Vec<_> = (0..4).map(|t| noise(n, 50 + t)).collect();
        for method in [larc, sgd, adamw] {
            check(method, &noise(n, 3), &gradients, 1e-6);
        }
    }
}

/// A gradient that is smaller than LARC's epsilon: the rate is `trust·|p| / (|g| + 1e-8)`, far from `trust·|p| / |g|`.
#[test]
fn larc_divides_by_no_less_than_its_epsilon() {
    let small: Vec<Vec<f32>> = (0..4).map(|t| noise(9, t + 1).iter().map(|x| x * 1e-9).collect()).collect();
    check(|lr| Method::Larc { lr, momentum: 0.9, weight_decay: 0.0, trust: 0.5 }, &noise(9, 3), &small, 1e-5);
}

#[test]
fn names_keep_their_own_state() {
    let mut optimizer = Optimizer::new();
    let (mut a, mut b) = (noise(5, 1), noise(3, 2));
    let (start_a, start_b) = (a.clone(), b.clone());
    let gradients: Vec<(Vec<f32>, Vec<f32>)> = (0..4).map(|t| (noise(5, 10 + t), noise(3, 20 + t))).collect();
    for ((of_a, of_b), lr) in gradients.iter().zip(LRS) {
        let rule = sgd(lr).into();
        let mut parameters = [
            Parameter { name: "a", role: Role::Weight, value: &mut a, gradient: of_a },
            Parameter { name: "b", role: Role::Bias, value: &mut b, gradient: of_b },
        ];
        let stats = optimizer.update(&rule, &mut parameters).unwrap();
        assert!((stats.gradient_norm - norm(of_a).hypot(norm(of_b))).abs() < 1e-12);
    }
    for (name, start, value, index) in [("a", start_a, a, 0), ("b", start_b, b, 1)] {
        let (mut alone, mut slots) = (start, Slots::default());
        for ((of_a, of_b), lr) in gradients.iter().zip(LRS) {
            let gradient = [of_a, of_b][index];
            apply(&sgd(lr).into(), Role::Weight, &mut alone, gradient, &mut slots);
        }
        assert_eq!(bits(&alone), bits(&value));
        assert_eq!(optimizer.slots(name), Some(&slots));
    }
    assert_eq!(optimizer.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn wrong_lengths_and_names_change_nothing() {
    let mut optimizer = Optimizer::new();
    let rule = UpdateRule::from(sgd(0.1));
    let mut value = [1.0f32, 2.0];
    let mut update = |optimizer: &mut Optimizer, gradient: &[f32]| {
        let parameter = Parameter { name: "w", role: Role::Weight, value: &mut value, gradient };
        optimizer.update(&rule, &mut [parameter])
    };
    let error = update(&mut optimizer, &[1.0]).unwrap_err();
    assert!(matches!(error, OptimError::Length { what: "gradient", expected: 2, got: 1, .. }));
    assert_eq!(optimizer, Optimizer::new());
    optimizer.set_slots("w", Slots { first: vec![0.0; 3], n_updates: 1, ..Slots::default() });
    let error = update(&mut optimizer, &[1.0, 1.0]).unwrap_err();
    assert!(matches!(error, OptimError::Length { what: "first", expected: 2, got: 3, .. }));
    optimizer.clear();
    update(&mut optimizer, &[0.0, 0.0]).unwrap();
    let (mut one, mut two) = ([0.0f32], [0.0f32]);
    let twice = |value| Parameter { name: "w", role: Role::Weight, value, gradient: &[0.0] };
    let error = Optimizer::new().update(&rule, &mut [twice(&mut one), twice(&mut two)]).unwrap_err();
    assert!(matches!(error, OptimError::Twice { name } if name == "w"));
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn methods() -> impl Strategy<Value = Method> {
    let lr = 1e-3f32..1.0;
    (lr, prop::sample::select(vec![larc as fn(f32) -> Method, sgd, adamw]))
        .prop_map(|(lr, method)| method(lr))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// LARC's first step is `lr·trust·|p|` long at most, whatever the gradient's length.
    #[test]
    fn larc_bounds_the_step(
        start in prop::collection::vec(-10.0f32..10.0, 1..40), seed in 1u64..1000, size in -20i32..20,
    ) {
        let gradient: Vec<f32> = noise(start.len(), seed).iter().map(|x| x * 2f32.powi(size)).collect();
        let (mut value, mut slots) = (start.clone(), Slots::default());
        let larc = Method::Larc { lr: 1.0, momentum: 0.0, weight_decay: 0.1, trust: 0.01 };
        let UpdateStats { parameter_norm, .. } =
            apply(&larc.into(), Role::Weight, &mut value, &gradient, &mut slots);
        prop_assert!(norm(&slots.first) <= 0.01 * parameter_norm * (1.0 + 1e-5));
    }

    /// Clipping is the same as gradients that came in shorter, for every method and role.
    #[test]
    fn clipping_scales_the_gradient(
        method in methods(), start in prop::collection::vec(-2.0f32..2.0, 1..40), seed in 1u64..1000,
        exempt: bool,
    ) {
        let gradient = noise(start.len(), seed);
        let mut rule = UpdateRule::from(method);
        rule.groups = if exempt { Groups::ExemptNormsAndBiases } else { Groups::Alike };
        for role in [Role::Weight, Role::Bias, Role::Norm] {
            // A power of two: no rounding.
            rule.gradient_scale = 0.25;
            let (mut clipped, mut clipped_slots) = (start.clone(), Slots::default());
            apply(&rule, role, &mut clipped, &gradient, &mut clipped_slots);
            rule.gradient_scale = 1.0;
            let short: Vec<f32> = gradient.iter().map(|g| 0.25 * g).collect();
            let (mut value, mut slots) = (start.clone(), Slots::default());
            apply(&rule, role, &mut value, &short, &mut slots);
            prop_assert_eq!(bits(&clipped), bits(&value));
            prop_assert_eq!(bits(&clipped_slots.first), bits(&slots.first));
        }
    }

    /// Exempted parameters forget weight decay; nothing else changes for weights.
    #[test]
    fn exempted_parameters_do_not_decay(method in methods(), start in prop::collection::vec(0.5f32..2.0, 1..40)) {
        let rule = UpdateRule { groups: Groups::ExemptNormsAndBiases, ..method.into() };
        let zero = vec![0.0; start.len()];
        for role in [Role::Bias, Role::Norm] {
            let mut value = start.clone();
            apply(&rule, role, &mut value, &zero, &mut Slots::default());
            prop_assert_eq!(bits(&value), bits(&start));
        }
        let gradient = noise(start.len(), 5);
        let (mut exempt, mut alike) = (start.clone(), start.clone());
        apply(&rule, Role::Weight, &mut exempt, &gradient, &mut Slots::default());
        apply(&method.into(), Role::Weight, &mut alike, &gradient, &mut Slots::default());
        prop_assert_eq!(bits(&exempt), bits(&alike));
    }

    /// The clipped gradients of several parameters have the norm asked for, or the one that they had.
    #[test]
    fn clipped_gradients_have_the_norm_asked_for(seed in 1u64..1000, max_norm in 0.01f64..10.0) {
        let gradients = [noise(17, seed), noise(4, seed + 1)];
        let total = norm(&gradients[0]).hypot(norm(&gradients[1]));
        let mut optimizer = Optimizer::new().with_max_gradient_norm(max_norm);
        let (mut a, mut b) = (vec![0.0; 17], vec![0.0; 4]);
        let rule = Method::Sgd { lr: 1.0, momentum: 0.0, weight_decay: 0.0 }.into();
        let mut parameters = [
            Parameter { name: "a", role: Role::Weight, value: &mut a, gradient: &gradients[0] },
            Parameter { name: "b", role: Role::Norm, value: &mut b, gradient: &gradients[1] },
        ];
        optimizer.update(&rule, &mut parameters).unwrap();
        let moved = norm(&a).hypot(norm(&b));
        prop_assert!((moved - total.min(max_norm)).abs() < 1e-4 * moved, "{moved} {total} {max_norm}");
        prop_assert!(clip_scale(max_norm, total) <= 1.0);
    }
}
