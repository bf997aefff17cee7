//! Initial parameters, each from its own random stream, derived from the seed and the parameter's name.
//!
//! So a layer starts with the same values whatever else the network has.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};

use crate::layers::ParameterInfo;

/// What a parameter starts as.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Initial {
    /// One value.
    Constant(f32),
    /// Normal around 0.
    Normal {
        /// The standard deviation.
        deviation: f32,
    },
    /// Uniform within `±bound`.
    Uniform {
        /// The largest value.
        bound: f32,
    },
}

impl Initial {
    /// For a convolution before a ReLU: Kaiming normal by fan-out (He et al. 2015), standard deviation
    /// `sqrt(2 / fan_out)`, where `fan_out` is output channels times taps.
    pub(crate) fn kaiming(fan_out: usize) -> Self {
        Self::Normal { deviation: (2.0 / fan_out as f64).sqrt() as f32 }
    }

    /// PyTorch's default for a linear layer's weight and bias: uniform within `±1 / sqrt(fan_in)`.
    pub(crate) fn linear(fan_in: usize) -> Self {
        Self::Uniform { bound: (1.0 / fan_in as f64).sqrt() as f32 }
    }
}

/// The initial values of one parameter, in the layout of a state.
pub(crate) fn initial_values(info: &ParameterInfo, seed: u64) -> Vec<f32> {
    let length = info.shape.iter().product();
    let mut rng = stream(seed, &info.name);
    match info.initial {
        Initial::Constant(value) => vec![value; length],
        Initial::Normal { deviation } => {
            let mut normal = || -> f32 { StandardNormal.sample(&mut rng) };
            (0..length).map(|_| normal() * deviation).collect()
        }
        Initial::Uniform { bound } => {
            let uniform = Uniform::new_inclusive(-bound, bound).expect("the bound is finite and positive");
            (0..length).map(|_| rng.sample(uniform)).collect()
        }
    }
}

/// A generator for one name: the name's FNV-1a hash chooses the stream of the seed.
fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(hash);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Layout;
    use swav_optim::Role;

    fn values(name: &str, initial: Initial, shape: &[usize], seed: u64) -> Vec<f32> {
        let info = ParameterInfo {
            name: name.into(),
            role: Role::Weight,
            shape: shape.to_vec(),
            layout: Layout::Plain,
            initial,
        };
        initial_values(&info, seed)
    }

    #[test]
    fn convolutions_have_the_deviation_of_their_fan_out() {
        let values = values("conv1.weight", Initial::kaiming(576), &[64, 32, 3, 3], 31);
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 1e-3 && (variance / (2.0 / 576.0) - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn linear_layers_stay_within_their_bound() {
        let values = values("w", Initial::linear(64), &[100, 64], 31);
        let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(largest <= 0.125 && largest > 0.12);
    }

    #[test]
    fn names_and_seeds_choose_the_stream() {
        let conv = |name: &str, seed| values(name, Initial::kaiming(36), &[4, 4, 3, 3], seed);
        let bits = |values: Vec<f32>| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(conv("a", 1)), bits(conv("a", 1)));
        assert_ne!(conv("a", 1), conv("b", 1));
        assert_ne!(conv("a", 1), conv("a", 2));
    }
}
