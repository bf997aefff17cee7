//! From the name of a device to an encoder that runs on it.

use std::sync::Arc;

use dfdx::prelude::Cpu;

use crate::composed::Composed;
use crate::cpu::Kernels;
use crate::engine::Engine;
use crate::layers::Layers;
use crate::network::Network;
use crate::{Encoder, EncoderConfig, EncoderError, EncoderSpec, Head};

/// What makes an engine for a network. The number is that of the device, 0 where the name gives none.
type Open = fn(&EncoderSpec, Arc<Layers>, usize) -> Result<Box<dyn Engine>, EncoderError>;

/// A kind of device.
struct Entry {
    /// The name, without a number.
    name: &'static str,
    /// Whether `:N` may follow.
    numbered: bool,
    open: Open,
}

/// Every kind of device that there is, in this build or in another one.
const ENTRIES: &[Entry] = &[
    Entry { name: "cpu", numbered: false, open: open_cpu },
    #[cfg(all(test, feature = "cuda"))]
    Entry { name: "cuda:host", numbered: false, open: open_cuda_host },
    Entry { name: "cuda", numbered: true, open: open_cuda },
    Entry { name: "dfdx:cpu", numbered: false, open: open_dfdx_cpu },
    Entry { name: "dfdx:cuda", numbered: true, open: open_dfdx_cuda },
];

const NAMES: &str = "`auto`, `cpu`, `cuda:N`, `dfdx:cpu` or `dfdx:cuda:N`";

/// An encoder on a device, its parameters drawn from `seed`. The same seed gives the same parameters on every device.
///
/// | device | is |
/// |---|---|
/// | `auto` | `cuda:0` where this build and this machine can run it, else `cpu` |
/// | `cpu` | the fused kernels of `swav-kernels` |
/// | `cuda`, `cuda:N` | an NVIDIA card (feature `cuda`) |
/// | `dfdx:cpu` | dfdx's own operations on the CPU, slow, for comparisons |
/// | `dfdx:cuda`, `dfdx:cuda:N` | the same on an NVIDIA card (feature `dfdx-cuda`) |
///
/// # Errors
/// [`EncoderError::UnknownDevice`]; [`EncoderError::Unavailable`] if this build or this machine lacks the device;
/// [`EncoderError::Unsupported`] if the device cannot do what the specification asks for.
pub fn build(device: &str, spec: &EncoderSpec, seed: u64) -> Result<Box<dyn Encoder>, EncoderError> {
    Ok(Box::new(network(device, spec, Layers::new(spec), seed)?))
}

/// [`build`] for the device `cpu`.
///
/// # Errors
/// [`EncoderError::Kernels`] if the instruction set that the environment asks for is not there.
pub fn build_cpu(spec: &EncoderSpec, seed: u64) -> Result<Box<dyn Encoder>, EncoderError> {
    build("cpu", spec, seed)
}

/// As [`build`], without projection head and without scaling to unit length: embeddings are features, and what is trained is
/// the backbone alone, by the gradient of its features. For fine-tuning with labels. Its state is that of the whole network
/// without the tensors whose names begin with `projection_head`.
///
/// # Errors
/// As [`build`].
pub fn build_backbone(device: &str, spec: &EncoderSpec, seed: u64) -> Result<Box<dyn Encoder>, EncoderError> {
    let spec = EncoderConfig { head: Head::None, ..spec.config().clone() }.check()?;
    Ok(Box::new(network(device, &spec, Layers::new(&spec), seed)?.without_scaling()))
}

/// As [`build`], without projection head and scaling: embeddings are features.
#[cfg(all(test, feature = "parity"))]
pub(crate) fn build_without_head(
    device: &str,
    spec: &EncoderSpec,
    seed: u64,
) -> Result<Box<dyn Encoder>, EncoderError> {
    let layers = Layers { head: Vec::new(), ..Layers::new(spec) };
    Ok(Box::new(network(device, spec, layers, seed)?.without_scaling()))
}

fn network(device: &str, spec: &EncoderSpec, layers: Layers, seed: u64) -> Result<Network, EncoderError> {
    let layers = Arc::new(layers);
    let engine = open(device, spec, &layers)?;
    tracing::debug!(device = engine.name(), "the encoder's device is open");
    Network::new(spec, layers, engine, seed)
}

fn open(device: &str, spec: &EncoderSpec, layers: &Arc<Layers>) -> Result<Box<dyn Engine>, EncoderError> {
    if device == "auto" {
        return match open("cuda:0", spec, layers) {
            Err(EncoderError::Unavailable { .. }) => open("cpu", spec, layers),
            engine => engine,
        };
    }
    let unknown = || EncoderError::UnknownDevice { expected: NAMES, got: device.to_owned() };
    let number = |entry: &Entry| -> Option<usize> {
        match device.strip_prefix(entry.name)? {
            "" => Some(0),
            rest if entry.numbered => rest.strip_prefix(':')?.parse().ok(),
            _ => None,
        }
    };
    let (entry, number) =
        ENTRIES.iter().find_map(|entry| Some((entry, number(entry)?))).ok_or_else(unknown)?;
    (entry.open)(spec, Arc::clone(layers), number)
}

fn open_cpu(spec: &EncoderSpec, layers: Arc<Layers>, _: usize) -> Result<Box<dyn Engine>, EncoderError> {
    Ok(Box::new(Kernels::new(spec, layers)?))
}

fn open_dfdx_cpu(spec: &EncoderSpec, layers: Arc<Layers>, _: usize) -> Result<Box<dyn Engine>, EncoderError> {
    Ok(Box::new(Composed::new("dfdx:cpu", spec, layers, || Ok(Cpu::default()))?))
}

#[cfg(feature = "dfdx-cuda")]
fn open_dfdx_cuda(
    spec: &EncoderSpec,
    layers: Arc<Layers>,
    number: usize,
) -> Result<Box<dyn Engine>, EncoderError> {
    let name = format!("dfdx:cuda:{number}");
    let device = name.clone();
    let open = move || {
        dfdx::prelude::Cuda::try_build(number, 0).map_err(|error| EncoderError::Unavailable {
            device,
            advice: "look at `nvidia-smi` for the cards and the driver of this machine".to_owned(),
            source: Some(format!("{error:?}").into()),
        })
    };
    Ok(Box::new(Composed::new(&name, spec, layers, open)?))
}

#[cfg(not(feature = "dfdx-cuda"))]
fn open_dfdx_cuda(_: &EncoderSpec, _: Arc<Layers>, number: usize) -> Result<Box<dyn Engine>, EncoderError> {
    Err(EncoderError::Unavailable {
        device: format!("dfdx:cuda:{number}"),
        advice: "this build lacks it; build with `--features dfdx-cuda`, which needs a CUDA toolkit"
            .to_owned(),
        source: None,
    })
}

#[cfg(feature = "cuda")]
fn open_cuda(
    spec: &EncoderSpec,
    layers: Arc<Layers>,
    number: usize,
) -> Result<Box<dyn Engine>, EncoderError> {
    Ok(Box::new(crate::cuda::open(spec, layers, number)?))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: &EncoderSpec, _: Arc<Layers>, number: usize) -> Result<Box<dyn Engine>, EncoderError> {
    Err(EncoderError::Unavailable {
        device: format!("cuda:{number}"),
        advice: "this build lacks it; build with `--features cuda`".to_owned(),
        source: None,
    })
}

/// The engine of `cuda:N` with the host in the place of the card.
#[cfg(all(test, feature = "cuda"))]
fn open_cuda_host(
    spec: &EncoderSpec,
    layers: Arc<Layers>,
    _: usize,
) -> Result<Box<dyn Engine>, EncoderError> {
    let machine = Box::new(swav_cuda::machine::HostMachine::new());
    Ok(Box::new(crate::cuda::Cuda::new("cuda:host", spec, layers, machine)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockKind, Head, Stem};

    fn built(device: &str) -> Result<Box<dyn Encoder>, EncoderError> {
        let config = crate::tests::small(BlockKind::Basic, Stem::Cifar, Head::None);
        build(device, &config.check().unwrap(), 1)
    }

    #[test]
    fn names_that_nothing_has_are_refused() {
        for device in ["", "gpu", "cuda:x", "cuda:", "cpu:", "cpu:1", "dfdx", "dfdx:cpu:0", "cpu:composed"] {
            let error = built(device).err().unwrap();
            assert!(matches!(&error, EncoderError::UnknownDevice { got, .. } if got == device), "{error}");
        }
    }

    #[test]
    fn devices_say_their_names() {
        assert_eq!(built("cpu").unwrap().device(), "cpu");
        assert_eq!(built("dfdx:cpu").unwrap().device(), "dfdx:cpu");
        let auto = built("auto").unwrap();
        assert!(["cpu", "cuda:0"].contains(&auto.device()));
    }

    #[cfg(not(feature = "dfdx-cuda"))]
    #[test]
    fn a_device_of_another_build_says_how_to_get_it() {
        for device in ["dfdx:cuda", "dfdx:cuda:3"] {
            let error = built(device).err().unwrap();
            assert!(matches!(error, EncoderError::Unavailable { .. }));
            assert!(error.to_string().contains("--features dfdx-cuda"), "{error}");
        }
    }
}
