//! Optimisers.

use super::Memory;
use crate::shape::Element;
use crate::tape::{Op, Rule, Scalars, UpdateScalars, UpdatedTensor, View};

fn gradient(memory: &Memory<'_>, tensor: &UpdatedTensor) -> Vec<f64> {
    let mut sum = memory.load(tensor.gradient, tensor.element, tensor.len);
    for group in 1..tensor.n_gradients {
        let other =
            memory.load(tensor.gradient.plus(group * tensor.gradient_step), tensor.element, tensor.len);
        sum.iter_mut().zip(other).for_each(|(sum, g)| *sum += g);
    }
    sum
}

fn square(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum()
}

pub(super) fn run(op: &Op, memory: &mut Memory<'_>, scalars: &Scalars) {
    match op {
        Op::Update { rule, tensors, report, .. } => {
            let updated = || tensors.iter().filter(|tensor| scalars.classes[tensor.class].enabled);
            let (mut parameters, mut gradients) = (0.0, 0.0);
            for tensor in updated() {
                parameters += square(&memory.floats(tensor.value, tensor.len));
                gradients += square(&gradient(memory, tensor));
            }
            let clip = clip_scale(scalars.max_gradient_norm, f64::sqrt(gradients));
            for tensor in updated() {
                update(memory, *rule, tensor, &scalars.classes[tensor.class], clip);
            }
            memory.change_report(*report, |report| {
                report.parameter_norm = parameters.sqrt();
                report.gradient_norm = gradients.sqrt();
                report.serial = scalars.serial;
                report.clip_scale = clip as f32;
            });
        }
        Op::SumGradients { tensors, parameters, out, .. } => {
            for tensor in tensors {
                let sum = gradient(memory, tensor);
                let at =
                    View { buffer: out.buffer, offset: out.offset + tensor.value.offset - parameters.offset };
                memory.store_floats(at, &sum);
            }
        }
        _ => unreachable!("called with an update"),
    }
}

/// What gradients of this norm are multiplied by.
fn clip_scale(max_norm: Option<f32>, norm: f64) -> f64 {
    let scale = |max_norm: f32| (f64::from(max_norm) / (norm + 1e-6)).min(1.0);
    max_norm.filter(|_| norm.is_finite()).map_or(1.0, scale)
}

/// Updates one parameter.
fn update(memory: &mut Memory<'_>, rule: Rule, tensor: &UpdatedTensor, numbers: &UpdateScalars, clip: f64) {
    let [lr, momentum, beta2, epsilon, decay, trust, first_correction, second_correction] = [
        numbers.lr,
        numbers.momentum,
        numbers.beta2,
        numbers.epsilon,
        numbers.weight_decay,
        numbers.trust,
        numbers.first_correction,
        numbers.second_correction,
    ]
    .map(f64::from);
    let mut g = gradient(memory, tensor);
    g.iter_mut().for_each(|g| *g *= f64::from(numbers.gradient_scale) * clip);
    let mut p = memory.floats(tensor.value, tensor.len);
    let mut v = memory.floats(tensor.first, tensor.len);
    let squares = (square(&p), square(&g));
    match rule {
        Rule::Larc | Rule::Sgd => {
            let (parameter, gradient) = (squares.0.sqrt(), squares.1.sqrt());
            let (scale, decay) = match rule {
                // A class that LARC leaves alone.
                Rule::Larc if trust < 0.0 => (1.0, decay),
                Rule::Larc if parameter == 0.0 || gradient == 0.0 => (1.0, 0.0),
                Rule::Larc => (trust * parameter / (gradient + decay * parameter + 1e-8), decay),
                _ => (1.0, decay),
            };
            for ((p, g), v) in p.iter_mut().zip(g).zip(&mut v) {
                *v = momentum * *v + (g + decay * *p) * scale;
                *p -= lr * f64::from(*v as f32);
            }
        }
        Rule::AdamW => {
            let second = tensor.second.unwrap_or_else(|| unreachable!("AdamW has a second moment"));
            let mut s = memory.floats(second, tensor.len);
            for (((p, g), m), s) in p.iter_mut().zip(g).zip(&mut v).zip(&mut s) {
                *m = momentum * *m + (1.0 - momentum) * g;
                *s = beta2 * *s + (1.0 - beta2) * g * g;
                *p -= lr * decay * *p;
                *p -= lr * (*m * first_correction) / ((*s * second_correction).sqrt() + epsilon);
            }
            memory.store_floats(second, &s);
        }
    }
    memory.store_floats(tensor.first, &v);
    memory.store_floats(tensor.value, &p);
    if let Some(copy) = tensor.copy {
        // The copy is of the value as it was stored.
        let stored: Vec<f64> = p.iter().map(|&p| f64::from(p as f32)).collect();
        memory.store(copy, Element::Bf16, &stored);
    }
}
