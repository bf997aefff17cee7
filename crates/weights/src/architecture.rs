//! Which network a file holds: found by names and shapes alone.

use std::collections::{BTreeMap, BTreeSet};

use swav_encoder::{BlockKind, EncoderConfig, Head, ResNet, Stem, Variant};

use crate::file::WeightsFile;
use crate::{Tensor, WeightsError};

/// The first convolution, by which a residual network is found.
const FIRST: &str = "conv1.weight";
/// A second name that only residual networks have.
const SECOND: &str = "layer1.0.conv1.weight";
const HEAD: &str = "projection_head.";
const PROTOTYPES: &str = "prototypes.";
/// Where several networks lie side by side, the one whose name holds the first of these words is meant: the one that is
/// kept for use.
const PREFERRED: [&str; 5] = ["teacher", "state_dict_ema", "model_ema", "state_dict", "model"];

/// A residual network in a file: what it is, and where its tensors lie.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// What the backbone's names begin with.
    pub(crate) prefix: String,
    /// The network, with the defaults for what weights do not say.
    pub(crate) config: EncoderConfig,
    /// Prototypes of each head; none without a prototype layer.
    pub(crate) n_prototypes: Vec<usize>,
    /// Name in the file by name in a state, of backbone, head and prototypes.
    pub(crate) names: BTreeMap<String, String>,
}

/// Finds the one network of a file, or that whose names begin with `prefix`, or with something that ends in it.
pub(crate) fn find(file: &WeightsFile, prefix: Option<&str>) -> Result<Found, WeightsError> {
    let prefix = choose(file, prefix)?;
    let mut names = BTreeMap::new();
    for (name, _) in file.tensors() {
        if let Some(own) = name.strip_prefix(&prefix)
            && is_backbone(own)
        {
            names.insert(own.to_owned(), name.to_owned());
        }
    }
    // Head and prototypes lie beside the backbone, or further out.
    for part in [HEAD, PROTOTYPES] {
        let outer = outwards(&prefix).find(|outer| {
            file.tensors().any(|(name, _)| name.strip_prefix(*outer).is_some_and(|own| own.starts_with(part)))
        });
        let Some(outer) = outer else { continue };
        for (name, _) in file.tensors() {
            if let Some(own) = name.strip_prefix(outer)
                && own.starts_with(part)
            {
                names.insert(own.to_owned(), name.to_owned());
            }
        }
    }
    let tensor = |own: &str| file.tensor(names.get(own)?);
    let resnet = backbone(&tensor)?;
    let (head, dim) = head(&tensor)?;
    let config = EncoderConfig { arch: resnet.into(), head, dim, ..EncoderConfig::default() };
    nothing_else(&config, &names)?;
    let n_prototypes = prototypes(&names, &tensor)?;
    Ok(Found { prefix, config, n_prototypes, names })
}

/// What the names of the network begin with.
fn choose(file: &WeightsFile, wanted: Option<&str>) -> Result<String, WeightsError> {
    let is_first = |tensor: &Tensor| matches!(tensor.shape(), [_, 3, _, _]);
    let candidates: Vec<&str> = file
        .tensors()
        .filter(|(_, tensor)| is_first(tensor))
        .filter_map(|(name, _)| name.strip_suffix(FIRST))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .filter(|prefix| file.tensor(&format!("{prefix}{SECOND}")).is_some())
        .collect();
    if let Some(wanted) = wanted {
        let dotted = format!("{}.", wanted.trim_end_matches('.'));
        let whole = candidates.iter().find(|prefix| **prefix == dotted || **prefix == wanted);
        // Or the end of one alone, without the names of the dictionaries around it.
        let ending = format!(".{dotted}");
        let mut endings = candidates.iter().filter(|prefix| prefix.ends_with(&ending));
        let found = whole.or_else(|| endings.next().filter(|_| endings.next().is_none()));
        return found.map(|prefix| (*prefix).to_owned()).ok_or_else(|| WeightsError::NotResNet {
            expected: format!("`{dotted}{FIRST}` and `{dotted}{SECOND}`"),
            got: listed(&candidates),
        });
    }
    match candidates.as_slice() {
        [] => Err(WeightsError::NotResNet {
            expected: format!("`{FIRST}` of 3 channels and `{SECOND}`, after any prefix"),
            got: other_stem(file).unwrap_or_else(|| some_names(file)),
        }),
        [one] => Ok((*one).to_owned()),
        several => {
            let words = |prefix: &str, word: &str| prefix.split('.').any(|part| part == word);
            let preferred = PREFERRED.iter().find_map(|word| {
                let mut with = several.iter().filter(|prefix| words(prefix, word));
                let one = with.next()?;
                Some(with.next().is_none().then_some(*one))
            });
            let ambiguous = || WeightsError::Ambiguous { got: several.iter().map(|&p| shown(p)).collect() };
            preferred.flatten().map(str::to_owned).ok_or_else(ambiguous)
        }
    }
}

fn shown(prefix: &str) -> String {
    if prefix.is_empty() { "no prefix".to_owned() } else { format!("`{prefix}`") }
}

fn listed(candidates: &[&str]) -> String {
    match candidates {
        [] => "no residual network at all".to_owned(),
        some => format!("networks with {}", some.iter().map(|p| shown(p)).collect::<Vec<_>>().join(", ")),
    }
}

/// The stem of a residual network that has another one.
fn other_stem(file: &WeightsFile) -> Option<String> {
    let prefix = file.tensors().find_map(|(name, _)| name.strip_suffix(SECOND))?;
    if let Some(first) = file.tensor(&format!("{prefix}{FIRST}")) {
        return Some(format!("`{prefix}{FIRST}` of shape {:?}", first.shape()));
    }
    let inner = format!("{prefix}conv1.");
    let (name, _) = file.tensors().find(|(name, _)| name.starts_with(&inner))?;
    Some(format!("a stem of several layers, with `{name}`"))
}

/// A few names of a file, to tell what it is.
fn some_names(file: &WeightsFile) -> String {
    let names: Vec<&str> = file.tensors().map(|(name, _)| name).take(4).collect();
    let n_tensors = file.tensors().count();
    match names.as_slice() {
        [] => "no tensors".to_owned(),
        names => {
            format!(
                "{n_tensors} tensor{}: {}{}",
                if n_tensors == 1 { "" } else { "s" },
                names.join(", "),
                if n_tensors > 4 { ", ..." } else { "" }
            )
        }
    }
}

/// A prefix, and it without its last parts: `a.b.`, `a.`, nothing.
fn outwards(prefix: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(prefix), |prefix| {
        let inner = prefix.strip_suffix('.')?;
        Some(&inner[..inner.rfind('.').map_or(0, |dot| dot + 1)])
    })
}

/// Whether a name is one of a backbone: of the stem, or of a stage.
fn is_backbone(own: &str) -> bool {
    let stage = |first: &str| first.strip_prefix("layer").is_some_and(|number| number.parse::<u8>().is_ok());
    own.split_once('.').is_some_and(|(first, _)| first == "conv1" || first == "bn1" || stage(first))
}

fn backbone<'a>(tensor: &impl Fn(&str) -> Option<&'a Tensor>) -> Result<ResNet, WeightsError> {
    let extents = |name: &str| tensor(name).map(Tensor::shape);
    let (width, stem) = match extents(FIRST) {
        Some(&[width, 3, 7, 7]) => (width, Stem::Imagenet),
        Some(&[width, 3, 3, 3]) => (width, Stem::Cifar),
        other => {
            return Err(WeightsError::NotResNet {
                expected: format!("`{FIRST}` of shape [width, 3, 7, 7] or [width, 3, 3, 3]"),
                got: format!("{:?}", other.unwrap_or_default()),
            });
        }
    };
    let n_blocks = |stage: usize| {
        (0..).take_while(|block| tensor(&format!("layer{stage}.{block}.conv1.weight")).is_some()).count()
    };
    let layers: Vec<usize> = (1..).map(n_blocks).take_while(|&n| n > 0).collect();
    let deep = tensor("layer1.0.conv3.weight").is_some();
    let block = if deep { BlockKind::Bottleneck } else { BlockKind::Basic };
    let refused =
        |expected: &str, got: String| Err(WeightsError::NotResNet { expected: expected.to_owned(), got });
    // Those of timm's and torchvision's relatives whose names are the same.
    if let (true, Some(&[inner, per_group, ..])) = (deep, extents("layer1.0.conv2.weight")) {
        if per_group > 0 && per_group < inner {
            let got = format!("{} groups of {per_group} channels, as a ResNeXt has", inner / per_group);
            return refused("convolutions without groups", got);
        }
        if inner != width {
            let got = format!("{inner}, as a wide ResNet has");
            return refused(&format!("bottlenecks of {width} channels inside, as many as the stem has"), got);
        }
    }
    if tensor("bn1.running_mean").is_none() && tensor("layer1.0.bn1.running_mean").is_none() {
        return refused("batch norms with running statistics", "norms without any".to_owned());
    }
    Ok(named(block, layers, width).with_stem(stem))
}

/// Refuses a network with more in it than this one has: it would compute something else.
fn nothing_else(config: &EncoderConfig, names: &BTreeMap<String, String>) -> Result<(), WeightsError> {
    let own: BTreeSet<String> = config.check()?.tensors().into_iter().map(|(name, _)| name).collect();
    let mut others = names.iter().filter(|(name, _)| is_backbone(name) && !own.contains(*name));
    let Some((_, first)) = others.next() else { return Ok(()) };
    let more = match others.count() {
        0 => String::new(),
        n => format!(" and {n} more like it"),
    };
    Err(WeightsError::NotResNet {
        expected: "nothing but convolutions and batch norms in stem and blocks".to_owned(),
        got: format!("`{first}`{more}"),
    })
}

/// The variant of these blocks, if it has a name.
fn named(block: BlockKind, layers: Vec<usize>, width: usize) -> ResNet {
    let known = [
        Variant::Resnet50w2,
        Variant::Resnet50w4,
        Variant::Resnet50w5,
        Variant::Resnet18,
        Variant::Resnet34,
        Variant::Resnet50,
    ];
    for variant in known {
        let (kind, blocks, widening) = variant.blocks();
        if (kind, &blocks) == (block, &layers) && (widening == 1 || width == 64 * widening) {
            return ResNet::new(variant).with_width(width / widening);
        }
    }
    ResNet::custom(block, layers).with_width(width)
}

/// The head, and the length of embeddings.
fn head<'a>(tensor: &impl Fn(&str) -> Option<&'a Tensor>) -> Result<(Head, usize), WeightsError> {
    let rows = |name: &str| match tensor(name).map(Tensor::shape) {
        Some(&[rows, _]) => Ok(rows),
        other => {
            let got = other.map_or("none".to_owned(), |shape| format!("shape {shape:?}"));
            Err(WeightsError::tensor(name, "a matrix", got))
        }
    };
    if tensor("projection_head.weight").is_some() {
        return Ok((Head::Linear, rows("projection_head.weight")?));
    }
    if tensor("projection_head.0.weight").is_some() {
        let hidden = rows("projection_head.0.weight")?;
        return Ok((Head::Mlp { hidden }, rows("projection_head.3.weight")?));
    }
    Ok((Head::None, EncoderConfig::default().dim))
}

/// How many prototypes each head has.
fn prototypes<'a>(
    names: &BTreeMap<String, String>,
    tensor: &impl Fn(&str) -> Option<&'a Tensor>,
) -> Result<Vec<usize>, WeightsError> {
    let n_heads = names.keys().filter(|name| name.starts_with("prototypes.prototypes")).count();
    let several = (0..n_heads).map(|head| format!("prototypes.prototypes{head}.weight"));
    let one = names.get("prototypes.weight").map(|_| "prototypes.weight".to_owned());
    several
        .chain(one)
        .map(|name| match tensor(&name).map(Tensor::shape) {
            Some(&[n_prototypes, _]) => Ok(n_prototypes),
            other => {
                let got = other.map_or("none".to_owned(), |shape| format!("shape {shape:?}"));
                Err(WeightsError::tensor(&name, "a matrix", got))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_shortened_from_the_end() {
        assert_eq!(outwards("a.b.").collect::<Vec<_>>(), ["a.b.", "a.", ""]);
        assert_eq!(outwards("").collect::<Vec<_>>(), [""]);
    }

    #[test]
    fn blocks_have_the_names_of_the_literature() {
        let of = |block, layers: &[usize], width| named(block, layers.to_vec(), width);
        assert_eq!(of(BlockKind::Bottleneck, &[3, 4, 6, 3], 64), ResNet::new(Variant::Resnet50));
        assert_eq!(of(BlockKind::Bottleneck, &[3, 4, 6, 3], 320), ResNet::new(Variant::Resnet50w5));
        assert_eq!(
            of(BlockKind::Bottleneck, &[3, 4, 6, 3], 96),
            ResNet::new(Variant::Resnet50).with_width(96)
        );
        assert_eq!(of(BlockKind::Basic, &[2, 2, 2, 2], 128), ResNet::new(Variant::Resnet18).with_width(128));
        let custom = ResNet::custom(BlockKind::Bottleneck, [3, 4, 23, 3]);
        assert_eq!(of(BlockKind::Bottleneck, &[3, 4, 23, 3], 64), custom);
    }
}
