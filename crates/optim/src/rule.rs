//! What an update is to do: the method with this step's numbers, groups of parameters, clipping.

/// A method with the hyperparameters of this step. `p` is the parameter, `g` its gradient.
///
/// Exhaustive on purpose: what runs updates on a device of its own has to know every method.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Method {
    /// SGD with layer-wise adaptive rates (You et al. 2017, equation 6; the form of NVIDIA Apex's `LARC` with
    /// `clip=False`, which the SwAV reference uses): if `|p|` and `|g|` are both non-zero,
    /// `g <- (g + weight_decay·p)·trust·|p| / (|g| + weight_decay·|p| + 1e-8)`, else `g` stays as it is, without
    /// weight decay; then `v <- momentum·v + g` and `p <- p - lr·v`.
    Larc {
        /// Learning rate, not negative.
        lr: f32,
        /// Momentum in `0..1`.
        momentum: f32,
        /// Weight decay, not negative.
        weight_decay: f32,
        /// Trust coefficient, .001 in the reference.
        trust: f32,
    },
    /// SGD with momentum as PyTorch has it: `g <- g + weight_decay·p`, `v <- momentum·v + g`, `p <- p - lr·v`. The
    /// learning rate is outside of the momentum, so a change of it acts at once on all of `v`.
    Sgd {
        /// Learning rate, not negative.
        lr: f32,
        /// Momentum in `0..1`.
        momentum: f32,
        /// Weight decay, not negative.
        weight_decay: f32,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2, with PyTorch's placing of
    /// epsilon): `p <- p·(1 - lr·weight_decay)`, `m <- b1·m + (1 - b1)·g`, `s <- b2·s + (1 - b2)·g²`,
    /// `p <- p - lr·(m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + epsilon)` at the t-th update.
    AdamW {
        /// Learning rate, not negative.
        lr: f32,
        /// Decay of the mean of gradients, `0..1`.
        beta1: f32,
        /// Decay of the mean of squared gradients, `0..1`.
        beta2: f32,
        /// Added to the denominator, positive.
        epsilon: f32,
        /// Weight decay, not negative.
        weight_decay: f32,
    },
}

impl Method {
    /// The learning rate.
    pub fn lr(&self) -> f32 {
        match *self {
            Self::Larc { lr, .. } | Self::Sgd { lr, .. } | Self::AdamW { lr, .. } => lr,
        }
    }

    /// The same method without weight decay and without rates by layer: LARC becomes SGD.
    fn plain(self) -> Self {
        match self {
            Self::Larc { lr, momentum, .. } | Self::Sgd { lr, momentum, .. } => {
                Self::Sgd { lr, momentum, weight_decay: 0.0 }
            }
            Self::AdamW { lr, beta1, beta2, epsilon, .. } => {
                Self::AdamW { lr, beta1, beta2, epsilon, weight_decay: 0.0 }
            }
        }
    }
}

/// What a parameter is in its network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// A matrix or a filter: what products are made with.
    #[default]
    Weight,
    /// Added after a product.
    Bias,
    /// Scale or shift of a normalisation.
    Norm,
}

/// Which parameters are treated alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Groups {
    /// All of them, as the SwAV reference has it.
    #[default]
    Alike,
    /// Biases and the parameters of norms get no weight decay, and plain SGD in the place of LARC, as is usual where
    /// batches are large (Goyal et al. 2017, section 5.3; You et al. 2020).
    ExemptNormsAndBiases,
}

/// All that an update needs besides parameters and gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct UpdateRule {
    /// The method, with this step's learning rate.
    pub method: Method,
    /// Which parameters it treats alike.
    pub groups: Groups,
    /// A factor on every gradient before anything else, 1 for none: where clipping enters, see
    /// [`clip_scale`](crate::clip_scale).
    pub gradient_scale: f32,
}

impl UpdateRule {
    /// A method for all parameters alike, without clipping.
    pub const fn new(method: Method) -> Self {
        Self { method, groups: Groups::Alike, gradient_scale: 1.0 }
    }

    /// The learning rate.
    pub fn lr(&self) -> f32 {
        self.method.lr()
    }

    /// The method for a parameter of this role.
    pub fn for_role(&self, role: Role) -> Method {
        match (self.groups, role) {
            (Groups::Alike, _) | (Groups::ExemptNormsAndBiases, Role::Weight) => self.method,
            (Groups::ExemptNormsAndBiases, Role::Bias | Role::Norm) => self.method.plain(),
        }
    }
}

impl From<Method> for UpdateRule {
    fn from(method: Method) -> Self {
        Self::new(method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_exempt_norms_and_biases_alone() {
        let larc = Method::Larc { lr: 0.5, momentum: 0.9, weight_decay: 0.1, trust: 1e-3 };
        let adamw = Method::AdamW { lr: 0.5, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 };
        for method in [larc, adamw] {
            let mut rule = UpdateRule::from(method);
            for role in [Role::Weight, Role::Bias, Role::Norm] {
                assert_eq!(rule.for_role(role), method);
            }
            rule.groups = Groups::ExemptNormsAndBiases;
            assert_eq!(rule.for_role(Role::Weight), method);
            for role in [Role::Bias, Role::Norm] {
                match rule.for_role(role) {
                    Method::Sgd { lr, momentum, weight_decay } => {
                        assert_eq!((lr, momentum, weight_decay, method), (0.5, 0.9, 0.0, larc));
                    }
                    Method::AdamW { weight_decay, lr, .. } => {
                        assert_eq!((weight_decay, lr, method), (0.0, 0.5, adamw));
                    }
                    Method::Larc { .. } => panic!("not exempt: {rule:?}"),
                }
            }
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn rules_survive_a_file() {
        let rule = UpdateRule::new(Method::Sgd { lr: 0.1, momentum: 0.9, weight_decay: 1e-4 });
        let text = serde_json::to_string(&rule).unwrap();
        assert!(text.contains(r#""groups":"alike""#), "{text}");
        assert_eq!(serde_json::from_str::<UpdateRule>(&text).unwrap(), rule);
    }
}
