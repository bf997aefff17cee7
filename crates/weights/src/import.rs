//! Import: a network out of any file, with an account of what was there and what was not.

use std::collections::{BTreeMap, BTreeSet};

use swav_encoder::{Arch, EncoderConfig, EncoderSpec, Head, StateDict, Stem};

use crate::architecture::{self, Found};
use crate::file::{Format, WeightsFile};
use crate::preprocessing::Preprocessing;
use crate::{Dtype, WeightsError};

/// A count of batches, which PyTorch before 0.4.1 did not have and inference does not need.
const COUNT: &str = "num_batches_tracked";
const HEAD: &str = "projection_head.";
const PROTOTYPES: &str = "prototypes.";

/// A network that was found in a file.
///
/// Names of the SwAV reference, of torchvision's and of timm's ResNets are the same, and are those of a [`StateDict`]; what
/// comes before them (`module.`, `state_dict.`, `teacher.backbone.`) is left out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Import {
    /// The network, with the defaults for what weights do not say, such as the precision.
    pub encoder: EncoderConfig,
    /// Parameters and statistics of backbone and head.
    pub state: StateDict,
    /// The prototypes; empty without any.
    pub prototypes: StateDict,
    /// How many prototypes each of their heads has.
    pub n_prototypes: Vec<usize>,
    /// How images have to be shown to it, where the file says so.
    pub preprocessing: Option<Preprocessing>,
    /// What was found.
    pub account: Account,
}

/// What an import found and did not find.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Account {
    /// The kind of file.
    pub format: Format,
    /// What the backbone's names begin with in the file.
    pub prefix: String,
    /// Tensors that were taken, by the kind of their numbers in the file.
    pub taken: BTreeMap<Dtype, usize>,
    /// What the network could have and the file has not: parts, or names of tensors that it can do without.
    pub missing: Vec<String>,
    /// Tensors of the file that were not taken, with their shapes; none of them belongs to the backbone.
    pub left_over: Vec<(String, Vec<usize>)>,
}

impl Import {
    /// Reads the network of a file; where there are several, that whose names begin with `prefix`, or with dictionaries around
    /// it: `encoder_q` for `state_dict.module.encoder_q.conv1.weight`.
    ///
    /// The architecture is inferred from names and shapes: blocks, width, stem, head and prototypes. Then every shape is
    /// checked. A backbone with anything else in it (other norms, squeeze and excitation, groups) is refused: it would
    /// compute something else. What has no tensors cannot be seen: a ResNet whose strides are blurred by a fixed filter
    /// (timm's `resnetblur`, `resnetaa`) passes for one without.
    ///
    /// # Errors
    /// [`WeightsError::NotResNet`], [`WeightsError::Ambiguous`], [`WeightsError::Misfit`] with every tensor that is missing
    /// or of another shape; [`WeightsError::Tensor`] if a number is not finite, which a rectifier would hide; what is wrong with
    /// the file.
    pub fn read(file: &mut WeightsFile, prefix: Option<&str>) -> Result<Self, WeightsError> {
        let found = architecture::find(file, prefix).map_err(|error| file.blame(error))?;
        let spec = found.config.check()?;
        let fit = Fit::of(file, &found, &spec, |_| true);
        if !fit.is_good() {
            return Err(file.blame(WeightsError::Misfit { missing: fit.missing, shapes: fit.shapes }));
        }
        let account = account(file, &found, &fit);
        let preprocessing = Preprocessing::of_metadata(file.metadata()).map_err(|error| file.blame(error))?;
        let all = read_network(file, &fit.names)?;
        let (prototypes, state): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(name, _)| name.starts_with(PROTOTYPES));
        Ok(Self {
            encoder: found.config,
            state: state.into_iter().collect(),
            prototypes: prototypes.into_iter().collect(),
            n_prototypes: found.n_prototypes,
            preprocessing,
            account,
        })
    }
}

impl Import {
    /// How images have to be shown to the network: what the file says, else what is usual for its stem, 224 pixels of an
    /// image of 256 or, for a 3x3 stem, 32 pixels.
    pub fn preprocessing_or_usual(&self) -> Preprocessing {
        let small = match &self.encoder.arch {
            Arch::ResNet(resnet) => resnet.stem == Stem::Cifar,
            _ => false,
        };
        let usual = Preprocessing::default();
        let usual = if small { Preprocessing { resize: 32, size: 32, ..usual } } else { usual };
        self.preprocessing.unwrap_or(usual)
    }
}

/// Weights that a training starts from, for an encoder that is given.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Start {
    /// Parameters and statistics of the backbone, and of the head if it fits.
    pub state: StateDict,
    /// Whether the head is among them; else it has to keep its initial values.
    pub with_head: bool,
}

impl Start {
    /// Reads the weights of an encoder's backbone, and those of its head if the file has one of the same shape.
    ///
    /// # Errors
    /// [`WeightsError::Misfit`] if the backbone is another one; as [`Import::read`].
    pub fn read(file: &mut WeightsFile, spec: &EncoderSpec) -> Result<Self, WeightsError> {
        let found = architecture::find(file, None).map_err(|error| file.blame(error))?;
        let parts = |name: &str| name.starts_with(HEAD) || name.starts_with(PROTOTYPES);
        let backbone = Fit::of(file, &found, spec, |name| !parts(name));
        if !backbone.is_good() {
            let Fit { missing, shapes, .. } = backbone;
            return Err(file.blame(WeightsError::Misfit { missing, shapes }));
        }
        let head = Fit::of(file, &found, spec, |name| name.starts_with(HEAD));
        let with_head = head.is_good() && !head.names.is_empty();
        let mut names = backbone.names;
        if with_head {
            names.extend(head.names);
        }
        Ok(Self { state: read_network(file, &names)?, with_head })
    }
}

/// Tensors under other names. Their numbers have to be finite: features of a network with others may look sound, since a
/// rectifier makes 0 of what is not a number.
fn read_network(file: &mut WeightsFile, names: &[(String, String)]) -> Result<StateDict, WeightsError> {
    let state = file.read_some(names)?;
    for (name, tensor) in state.iter() {
        if let Some(at) = tensor.data().iter().position(|value| !value.is_finite()) {
            let got = format!("{} at {at}", tensor.data()[at]);
            let expected = "finite numbers".to_owned();
            return Err(file.blame(WeightsError::Tensor { name: name.to_owned(), expected, got }));
        }
    }
    Ok(state)
}

/// How the tensors of a file fit those of a network.
#[derive(Default)]
struct Fit {
    /// Name in a state, name in the file.
    names: Vec<(String, String)>,
    /// Those that the network needs and the file has not.
    missing: Vec<String>,
    /// Those it can do without.
    dispensable: Vec<String>,
    /// Name, expected shape, shape.
    shapes: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl Fit {
    /// Compares those tensors of a network that are wanted, and the prototypes.
    fn of(file: &WeightsFile, found: &Found, spec: &EncoderSpec, wanted: impl Fn(&str) -> bool) -> Self {
        let mut expected = spec.tensors();
        let several = found.n_prototypes.len() > 1 || !found.names.contains_key("prototypes.weight");
        for (head, &n_prototypes) in found.n_prototypes.iter().enumerate() {
            let name = if several {
                format!("prototypes.prototypes{head}.weight")
            } else {
                "prototypes.weight".to_owned()
            };
            expected.push((name, vec![n_prototypes, spec.embedding_dim()]));
        }
        let mut fit = Self::default();
        for (name, shape) in expected.into_iter().filter(|(name, _)| wanted(name)) {
            let tensor = found.names.get(&name).and_then(|theirs| Some((theirs, file.tensor(theirs)?)));
            match tensor {
                None if name.ends_with(COUNT) => fit.dispensable.push(name),
                None => fit.missing.push(name),
                Some((theirs, tensor)) if tensor.shape() == shape => fit.names.push((name, theirs.clone())),
                Some((_, tensor)) => fit.shapes.push((name, shape, tensor.shape().to_vec())),
            }
        }
        fit
    }

    fn is_good(&self) -> bool {
        self.missing.is_empty() && self.shapes.is_empty()
    }
}

fn account(file: &WeightsFile, found: &Found, fit: &Fit) -> Account {
    let names: BTreeSet<&str> = fit.names.iter().map(|(_, theirs)| theirs.as_str()).collect();
    let mut taken = BTreeMap::new();
    let mut left_over = Vec::new();
    for (name, tensor) in file.tensors() {
        if names.contains(name) {
            *taken.entry(tensor.dtype()).or_insert(0) += 1;
        } else {
            left_over.push((name.to_owned(), tensor.shape().to_vec()));
        }
    }
    let mut missing = fit.dispensable.clone();
    if found.config.head == Head::None {
        missing.push("projection head".to_owned());
    }
    if found.n_prototypes.is_empty() {
        missing.push("prototypes".to_owned());
    }
    Account { format: file.format(), prefix: found.prefix.clone(), taken, missing, left_over }
}
