//! Initial parameters, each from its own random stream, derived from the seed and the parameter's name.
//!
//! So a layer starts with the same values whatever else the network has.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use swav_kernels::net::ParamKind;

use crate::layers::ParameterInfo;

/// The initial values of one parameter, in the layout of a state (OIHW):
///
/// - convolutions: Kaiming normal by fan-out (He et al. 2015), standard deviation `sqrt(2 / (O·H·W))`;
/// - linear layers: PyTorch's default, uniform within `±1 / sqrt(inputs)`, weight and bias;
/// - batch norm: 1 and 0.
///
/// `fan_in` is the number of inputs of the linear layer that a bias belongs to.
pub(crate) fn initial_values(info: &ParameterInfo, fan_in: usize, seed: u64) -> Vec<f32> {
    let shape = info.state_shape();
    let length = shape.iter().product();
    let mut rng = stream(seed, &info.name);
    match info.kind {
        ParamKind::Conv => {
            let fan_out: usize = shape[0] * shape[2..].iter().product::<usize>();
            let deviation = (2.0 / fan_out as f64).sqrt() as f32;
            let mut normal = || -> f32 { StandardNormal.sample(&mut rng) };
            (0..length).map(|_| normal() * deviation).collect()
        }
        ParamKind::NormWeight => vec![1.0; length],
        ParamKind::NormBias => vec![0.0; length],
        _ => {
            let bound = (1.0 / fan_in as f64).sqrt() as f32;
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

    fn info(name: &str, kind: ParamKind, device_shape: &[usize]) -> ParameterInfo {
        ParameterInfo { name: name.into(), kind, device_shape: device_shape.to_vec() }
    }

    #[test]
    fn convolutions_have_the_deviation_of_their_fan_out() {
        let values = initial_values(&info("conv1.weight", ParamKind::Conv, &[64, 3, 3, 32]), 0, 31);
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 1e-3 && (variance / (2.0 / 576.0) - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn linear_layers_stay_within_their_bound() {
        let values = initial_values(&info("w", ParamKind::LinearWeight, &[100, 64]), 64, 31);
        let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(largest <= 0.125 && largest > 0.12);
    }

    #[test]
    fn names_and_seeds_choose_the_stream() {
        let conv = |name: &str, seed| initial_values(&info(name, ParamKind::Conv, &[4, 3, 3, 4]), 0, seed);
        assert_eq!(conv("a", 1), conv("a", 1));
        assert_ne!(conv("a", 1), conv("b", 1));
        assert_ne!(conv("a", 1), conv("a", 2));
    }
}
