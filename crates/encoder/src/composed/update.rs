//! The optimiser's rules as dfdx operations, without a wait for the device between parameters.
//!
//! Same formulae as [`swav_optim::apply`], with norms in f32.

use dfdx::prelude::{
    Axis, BroadcastTo, ChooseFrom, Device, HasShape, ReshapeTo, Tensor, TryAdd, TryDiv, TryMatMul, TryMul,
    TryNe,
};
use swav_optim::{LARC_EPSILON, Method, Role, adam_corrections};

use super::Vector;
use super::local::read;
use crate::{UpdateRule, UpdateStats};

type Scalar<D> = Tensor<(usize,), f32, D>;

/// The optimiser's state of one parameter on a device.
pub(super) struct DeviceSlots<D: Device<f32>> {
    pub(super) first: Option<Vector<D>>,
    pub(super) second: Option<Vector<D>>,
    pub(super) n_updates: u64,
}

impl<D: Device<f32>> Default for DeviceSlots<D> {
    fn default() -> Self {
        Self { first: None, second: None, n_updates: 0 }
    }
}

/// A parameter and its slots; its gradient and its role.
type Updated<'a, D> = ((&'a mut Vector<D>, &'a mut DeviceSlots<D>), (Vector<D>, Role));

/// Updates every parameter and gives the norms of all.
pub(super) fn update<'a, D: Device<f32>>(
    tensors: &D,
    rule: &UpdateRule,
    all: impl Iterator<Item = Updated<'a, D>>,
) -> Result<UpdateStats, D::Err> {
    let mut squares: Option<(Scalar<D>, Scalar<D>)> = None;
    for ((parameter, slots), (mut gradient, role)) in all {
        let of_parameter = dot(parameter, parameter)?;
        let of_gradient = dot(&gradient, &gradient)?;
        squares = Some(match squares {
            None => (of_parameter.clone(), of_gradient.clone()),
            Some((p, g)) => (p.try_add(of_parameter.clone())?, g.try_add(of_gradient.clone())?),
        });
        let mut norms = (of_parameter.try_sqrt()?, of_gradient.try_sqrt()?);
        if rule.gradient_scale != 1.0 {
            gradient = gradient.try_mul(rule.gradient_scale)?;
            norms.1 = norms.1.try_mul(rule.gradient_scale)?;
        }
        slots.n_updates += 1;
        match rule.for_role(role) {
            Method::Larc { lr, momentum, weight_decay, trust } => {
                let decayed = larc(tensors, parameter, gradient, norms, weight_decay, trust)?;
                momentum_step(parameter, decayed, slots, lr, momentum)?;
            }
            Method::Sgd { lr, momentum, weight_decay } => {
                let mut decayed = gradient;
                decayed.try_axpy(1.0, parameter, weight_decay)?;
                momentum_step(parameter, decayed, slots, lr, momentum)?;
            }
            Method::AdamW { lr, beta1, beta2, epsilon, weight_decay } => {
                let (first_scale, second_scale) = adam_corrections(beta1, beta2, slots.n_updates);
                let square = gradient.clone().try_square()?;
                let first = average(slots.first.take(), gradient, beta1)?;
                let second = average(slots.second.take(), square, beta2)?;
                let root = second.clone().try_mul(second_scale)?.try_sqrt()?.try_add(epsilon)?;
                let step = first.clone().try_mul(first_scale)?.try_div(root)?;
                parameter.try_axpy(1.0 - lr * weight_decay, &step, -lr)?;
                (slots.first, slots.second) = (Some(first), Some(second));
            }
        }
    }
    Ok(squares.map_or_else(UpdateStats::default, |(p, g)| UpdateStats {
        parameter_norm: f64::from(read(&p)[0]).sqrt(),
        gradient_norm: f64::from(read(&g)[0]).sqrt(),
    }))
}

/// LARC's gradient: `(g + wd·p)·trust·|p| / (|g| + wd·|p| + 1e-8)`, or `g` where a norm is zero.
fn larc<D: Device<f32>>(
    tensors: &D,
    parameter: &Vector<D>,
    gradient: Vector<D>,
    (parameter_norm, gradient_norm): (Scalar<D>, Scalar<D>),
    weight_decay: f32,
    trust: f32,
) -> Result<Vector<D>, D::Err> {
    let usable = parameter_norm.try_ne(0.0)?;
    let other = gradient_norm.try_ne(0.0)?;
    let decay_norm = parameter_norm.clone().try_mul(weight_decay)?;
    let denominator = gradient_norm.try_add(decay_norm)?.try_add(LARC_EPSILON as f32)?;
    let scale = parameter_norm.try_mul(trust)?.try_div(denominator)?;
    let (one, zero) = (tensors.try_tensor_from_vec(vec![1.0], (1,))?, tensors.try_zeros_like(&(1,))?);
    let decay = scale.clone().try_mul(weight_decay)?;
    let scale = usable.clone().try_choose(other.clone().try_choose(scale, one.clone())?, one)?;
    let decay = usable.try_choose(other.try_choose(decay, zero.clone())?, zero)?;
    let shape = *parameter.shape();
    let decayed = parameter.clone().try_mul(spread(decay, shape)?)?;
    gradient.try_mul(spread(scale, shape)?)?.try_add(decayed)
}

/// `v <- momentum·v + g`, `p <- p - lr·v`.
fn momentum_step<D: Device<f32>>(
    parameter: &mut Vector<D>,
    gradient: Vector<D>,
    slots: &mut DeviceSlots<D>,
    lr: f32,
    momentum: f32,
) -> Result<(), D::Err> {
    let velocity = match slots.first.take() {
        None => gradient,
        Some(mut velocity) => {
            velocity.try_axpy(momentum, &gradient, 1.0)?;
            velocity
        }
    };
    parameter.try_axpy(1.0, &velocity, -lr)?;
    slots.first = Some(velocity);
    Ok(())
}

/// `beta·old + (1 - beta)·new`, old being zero at first.
fn average<D: Device<f32>>(old: Option<Vector<D>>, new: Vector<D>, beta: f32) -> Result<Vector<D>, D::Err> {
    match old {
        None => new.try_mul(1.0 - beta),
        Some(mut old) => {
            old.try_axpy(beta, &new, 1.0 - beta)?;
            Ok(old)
        }
    }
}

/// The inner product, as a product of matrices: one order of additions, no atomics.
fn dot<D: Device<f32>>(a: &Vector<D>, b: &Vector<D>) -> Result<Scalar<D>, D::Err> {
    let length = a.shape().0;
    let row = a.clone().try_reshape_like(&(1, length))?;
    row.try_matmul(b.clone().try_reshape_like(&(length, 1))?)?.try_reshape_like(&(1,))
}

/// One value as a vector.
fn spread<D: Device<f32>>(scalar: Scalar<D>, shape: (usize,)) -> Result<Vector<D>, D::Err> {
    scalar.try_reshape_like(&())?.try_broadcast_like::<_, Axis<0>>(&shape)
}
