//! An optimiser that knows its parameters by name.

use std::collections::{BTreeMap, BTreeSet};

use crate::{OptimError, Role, Slots, UpdateRule, UpdateStats, apply, clip_scale, norm};

/// A parameter for one update: where it lies, and its gradient.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// Its name, under which the optimiser remembers momentum and moments.
    pub name: &'a str,
    /// What it is, for [`Groups`](crate::Groups).
    pub role: Role,
    /// The values, which the update changes.
    pub value: &'a mut [f32],
    /// The gradient of the loss with respect to the values.
    pub gradient: &'a [f32],
}

/// The optimiser's state of all parameters, by name, and the bound on the norm of their gradients.
///
/// ```
/// use swav_optim::{Method, Optimizer, Parameter, Role, UpdateRule};
///
/// let rule = UpdateRule::new(Method::Sgd { lr: 0.1, momentum: 0.0, weight_decay: 0.0 });
/// let (mut weight, mut optimizer) = ([1.0, 2.0], Optimizer::new());
/// let parameter = Parameter { name: "w", role: Role::Weight, value: &mut weight, gradient: &[1.0, -1.0] };
/// optimizer.update(&rule, &mut [parameter])?;
/// assert_eq!(weight, [0.9, 2.1]);
/// assert_eq!(optimizer.slots("w").map(|slots| slots.n_updates), Some(1));
/// # Ok::<(), swav_optim::OptimError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Optimizer {
    slots: BTreeMap<String, Slots>,
    max_gradient_norm: Option<f64>,
}

impl Optimizer {
    /// An optimiser that remembers nothing yet and does not clip.
    pub fn new() -> Self {
        Self::default()
    }

    /// Clips gradients: where the norm of all of an update's gradients together is above `max_norm`, they are
    /// scaled down to it.
    #[must_use]
    pub fn with_max_gradient_norm(mut self, max_norm: f64) -> Self {
        self.max_gradient_norm = Some(max_norm);
        self
    }

    /// Updates parameters in place; returns the norms of all together, gradients before clipping.
    ///
    /// # Errors
    /// [`OptimError::Length`] or [`OptimError::Twice`]; nothing changes then.
    pub fn update(
        &mut self,
        rule: &UpdateRule,
        parameters: &mut [Parameter<'_>],
    ) -> Result<UpdateStats, OptimError> {
        self.check(parameters)?;
        let mut rule = *rule;
        if let Some(max_norm) = self.max_gradient_norm {
            let total = parameters.iter().fold(0.0, |sum: f64, p| sum.hypot(norm(p.gradient)));
            rule.gradient_scale *= clip_scale(max_norm, total);
        }
        let mut stats = UpdateStats::default();
        for Parameter { name, role, value, gradient } in parameters {
            let slots = self.slots.entry((*name).to_owned()).or_default();
            stats = stats.merge(apply(&rule, *role, value, gradient, slots));
        }
        Ok(stats)
    }

    fn check(&self, parameters: &[Parameter<'_>]) -> Result<(), OptimError> {
        let mut names = BTreeSet::new();
        for Parameter { name, value, gradient, .. } in parameters {
            if !names.insert(*name) {
                return Err(OptimError::Twice { name: (*name).to_owned() });
            }
            let slots = self.slots.get(*name);
            let lengths = slots.into_iter().flat_map(Slots::vectors);
            for (what, got) in lengths.chain([("gradient", *gradient)]) {
                if got.len() != value.len() {
                    let (name, expected, got) = ((*name).to_owned(), value.len(), got.len());
                    return Err(OptimError::Length { what, name, expected, got });
                }
            }
        }
        Ok(())
    }

    /// What is remembered of a parameter; nothing before its first update.
    pub fn slots(&self, name: &str) -> Option<&Slots> {
        self.slots.get(name)
    }

    /// Names, and what is remembered of them, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Slots)> {
        self.slots.iter().map(|(name, slots)| (name.as_str(), slots))
    }

    /// Replaces what is remembered of a parameter.
    pub fn set_slots(&mut self, name: impl Into<String>, slots: Slots) {
        self.slots.insert(name.into(), slots);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.slots.clear();
    }
}
