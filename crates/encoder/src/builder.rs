//! From a specification and the name of a device to an encoder.

use dfdx::prelude::{Cpu, Device};

use crate::composed::Composed;
use crate::cpu::Kernels;
use crate::network::Network;
use crate::{Encoder, EncoderError, EncoderSpec};

/// The name of the CPU that runs dfdx's own operations.
const COMPOSED: &str = "cpu:composed";

#[cfg(feature = "cuda")]
const DEVICES: &str = "`cpu`, `cpu:composed`, `cuda` or `cuda:N`";
#[cfg(not(feature = "cuda"))]
const DEVICES: &str =
    "`cpu` or `cpu:composed` (this build has no CUDA: build with `--features cuda`, docs/cuda.md says how)";

/// An encoder on the CPU, its parameters drawn from `seed`.
///
/// # Errors
/// A device's error.
pub fn build_cpu(spec: &EncoderSpec, seed: u64) -> Result<Box<dyn Encoder>, EncoderError> {
    Ok(Box::new(Network::new(spec, Kernels::new(spec)?, seed)?))
}

/// An encoder on a device: `cpu`; `cpu:composed`, dfdx's own operations on the CPU, slow, for comparisons; with
/// the feature `cuda` also `cuda` and `cuda:N`. The same seed gives the same parameters on every device.
///
/// # Errors
/// [`EncoderError::UnknownDevice`], or [`EncoderError::Device`] if the device cannot be opened.
pub fn build(device: &str, spec: &EncoderSpec, seed: u64) -> Result<Box<dyn Encoder>, EncoderError> {
    match device {
        "cpu" => build_cpu(spec, seed),
        COMPOSED => Ok(Box::new(composed(COMPOSED, Cpu::default(), spec, seed)?)),
        _ => build_other(device, spec, seed),
    }
}

#[cfg(not(feature = "cuda"))]
fn build_other(device: &str, _: &EncoderSpec, _: u64) -> Result<Box<dyn Encoder>, EncoderError> {
    Err(EncoderError::UnknownDevice { expected: DEVICES, got: device.to_owned() })
}

#[cfg(feature = "cuda")]
fn build_other(device: &str, spec: &EncoderSpec, seed: u64) -> Result<Box<dyn Encoder>, EncoderError> {
    Ok(Box::new(open_cuda(device, spec, seed)?))
}

#[cfg(feature = "cuda")]
fn open_cuda(
    device: &str,
    spec: &EncoderSpec,
    seed: u64,
) -> Result<Network<Composed<dfdx::prelude::Cuda>>, EncoderError> {
    let unknown = || EncoderError::UnknownDevice { expected: DEVICES, got: device.to_owned() };
    let ordinal = match device.strip_prefix("cuda").ok_or_else(unknown)? {
        "" => 0,
        number => number.strip_prefix(':').and_then(|n| n.parse().ok()).ok_or_else(unknown)?,
    };
    let tensors = dfdx::prelude::Cuda::try_build(ordinal, 0)
        .map_err(|error| EncoderError::Device(format!("CUDA device {ordinal} does not open: {error:?}")))?;
    composed(&format!("cuda:{ordinal}"), tensors, spec, seed)
}

fn composed<D: Device<f32>>(
    name: &str,
    tensors: D,
    spec: &EncoderSpec,
    seed: u64,
) -> Result<Network<Composed<D>>, EncoderError> {
    Network::new(spec, Composed::new(name, tensors, spec), seed)
}

/// As [`build`] for the two CPUs and CUDA, without projection head and normalisation: embeddings are features.
#[cfg(test)]
pub(crate) fn build_without_head(
    device: &str,
    spec: &EncoderSpec,
    seed: u64,
) -> Result<Box<dyn Encoder>, EncoderError> {
    match device {
        "cpu" => Ok(Box::new(Network::new(spec, Kernels::new(spec)?, seed)?.without_head())),
        COMPOSED => Ok(Box::new(composed(COMPOSED, Cpu::default(), spec, seed)?.without_head())),
        #[cfg(feature = "cuda")]
        _ => Ok(Box::new(open_cuda(device, spec, seed)?.without_head())),
        #[cfg(not(feature = "cuda"))]
        _ => build_other(device, spec, seed),
    }
}
