//! Rules about what the network is shown: crops, colours, resolutions.

use swav_augment::CropConfig;
use swav_encoder::{Arch, Stem, Variant};

use crate::advice::{Case, Finding, Level};

/// A crop may be enlarged so far before it is a blur: crops of 48 pixels of a quarter of 100 are enlarged by 1.
const MAX_ENLARGEMENT: f64 = 2.5;
/// Pixels a side of the last feature map that small images may be enlarged for.
const MIN_MAP: usize = 4;
/// A patch of fewer pixels a side shows nothing.
const MIN_PATCH: f64 = 7.0;

pub(super) fn crops_above_images(case: &Case<'_>) -> Option<Finding> {
    let side = f64::from(case.facts.data.short_side);
    if side < 1.0 {
        return None;
    }
    // Enlarging serves where a last feature map of one or two pixels would be left otherwise.
    let useful = stride(&case.config.encoder.arch).map_or(0, |stride| MIN_MAP * stride);
    let most = (1.25 * side).max(useful as f64);
    let too_large = case.crops().iter().find(|crop| {
        let shown = side * f64::from(crop.max_scale).sqrt();
        crop.size as f64 > most.min(MAX_ENLARGEMENT * shown)
    })?;
    let shown = side * f64::from(too_large.max_scale).sqrt();
    Some(
        Finding::new(
            "crops-above-images",
            Level::Warning,
            format!(
                "crops of {} pixels show at most {shown:.0} pixels of images whose shorter side is {side:.0}",
                too_large.size
            ),
            "enlarged pixels carry nothing new, and cost as much as real ones",
            format!("smaller augment.crops: {}", describe(case)),
        )
        .set("augment.crops", crops_text(case)),
    )
}

pub(super) fn crops_show_nothing(case: &Case<'_>) -> Option<Finding> {
    let side = f64::from(case.facts.data.short_side);
    let patch = |crop: &CropConfig| side * f64::from(crop.min_scale).sqrt();
    let tiny = case.crops().iter().find(|crop| side > 0.0 && patch(crop) < MIN_PATCH)?;
    Some(
        Finding::new(
            "crops-show-nothing",
            Level::Warning,
            format!(
                "min_scale = {} of the crops of {} pixels: patches of {:.0} pixels of images of {side:.0}",
                tiny.min_scale,
                tiny.size,
                patch(tiny)
            ),
            "such a patch does not show what it is a part of, so its code cannot be predicted",
            format!("a larger min_scale: {}", describe(case)),
        )
        .set("augment.crops", crops_text(case)),
    )
}

pub(super) fn crops_alike(case: &Case<'_>) -> Option<Finding> {
    let crops = case.crops();
    (!crops.is_empty() && crops.iter().all(|crop| crop.min_scale > 0.85)).then(|| {
        Finding::new(
            "crops-alike",
            Level::Warning,
            "every crop shows at least 85% of its image (min_scale)",
            "views that are alike are told by colours and corners: nothing about content has to be learnt",
            format!("a smaller min_scale: {}", describe(case)),
        )
        .set("augment.crops", crops_text(case))
    })
}

pub(super) fn no_photometry(case: &Case<'_>) -> Option<Finding> {
    let augment = &case.config.augment;
    let off = |probability: Option<f32>| probability.unwrap_or(0.0) == 0.0;
    (!case.facts.data.is_grey && off(augment.color_jitter.probability) && off(augment.grayscale.probability))
        .then(|| {
            Finding::new(
                "no-photometry",
                Level::Warning,
                "augment has neither colour jitter nor greyscale, and the images are in colour",
                "crops of an image share its colours, which are easier to compare than what it shows",
                "augment.color_jitter.probability = 0.8, augment.grayscale.probability = 0.2",
            )
            .set("augment.color_jitter.probability", 0.8)
            .set("augment.grayscale.probability", 0.2)
        })
}

pub(super) fn colour_of_grey(case: &Case<'_>) -> Option<Finding> {
    let jitter = &case.config.augment.color_jitter;
    let colour = jitter.hue.unwrap_or(0.0) > 0.0 || jitter.saturation.unwrap_or(0.0) > 0.0;
    (case.facts.data.is_grey && colour && jitter.probability.unwrap_or(0.0) > 0.0).then(|| {
        Finding::new(
            "colour-of-grey",
            Level::Note,
            "augment.color_jitter changes hue or saturation, and the images are grey",
            "these steps take time and change nothing",
            "augment.preset = \"greyscale\", or hue and saturation of 0",
        )
        .set("augment.color_jitter.hue", "0.0")
        .set("augment.color_jitter.saturation", "0.0")
    })
}

pub(super) fn crops_below_stride(case: &Case<'_>) -> Option<Finding> {
    let stride = stride(&case.config.encoder.arch)?;
    let smallest = case.crops().iter().map(|crop| crop.size).min()?;
    let is_imagenet_stem =
        matches!(&case.config.encoder.arch, Arch::ResNet(net) if net.stem == Stem::Imagenet);
    (smallest < stride && is_imagenet_stem).then(|| {
        Finding::new(
            "crops-below-stride",
            Level::Warning,
            format!("crops of {smallest} pixels in a network that reduces {stride} pixels to one"),
            "the last feature map is a single pixel made of padding for the most part",
            "encoder.stem = \"cifar\", or larger crops",
        )
        .set("encoder.stem", "\"cifar\"")
    })
}

pub(super) fn stem_for_small_images(case: &Case<'_>) -> Option<Finding> {
    let largest = case.crops().iter().map(|crop| crop.size).max()?;
    let is_cifar_stem = matches!(&case.config.encoder.arch, Arch::ResNet(net) if net.stem == Stem::Cifar);
    (is_cifar_stem && largest >= 128).then(|| {
        Finding::new(
            "stem-for-small-images",
            Level::Warning,
            format!("encoder.stem = \"cifar\" with crops of {largest} pixels"),
            "without the reductions of the other stem every step takes about 16 times as long and as much memory",
            "encoder.stem = \"imagenet\"",
        )
        .set("encoder.stem", "\"imagenet\"")
    })
}

pub(super) fn other_view(case: &Case<'_>) -> Option<Finding> {
    let shown = case.config.reestimation.size;
    let largest = case.crops().iter().map(|crop| crop.size).max()?;
    let ratio = shown as f64 / largest as f64;
    (!(0.6..=2.0).contains(&ratio)).then(|| {
        // What keeps things as large as the crops show them on average.
        let size = largest.div_ceil(4) * 4 + largest / 8 / 4 * 4;
        Finding::new(
            "other-view",
            Level::Warning,
            format!("reestimation.size = {shown}, and the network is trained on crops of {largest} pixels"),
            "features are computed from images of reestimation.size: things have another scale than the network knows",
            format!("reestimation.size = {size}, reestimation.resize = {}", size * 8 / 7),
        )
        .set("reestimation.size", size)
        .set("reestimation.resize", if size < 64 { size } else { size * 8 / 7 })
    })
}

/// How many pixels of a crop become one of the last feature map.
fn stride(arch: &Arch) -> Option<usize> {
    let Arch::ResNet(net) = arch else { return None };
    let n_stages = match &net.variant {
        Variant::Custom { layers, .. } => layers.len(),
        _ => 4,
    };
    let stem = if net.stem == Stem::Imagenet { 4 } else { 1 };
    Some(stem << n_stages.saturating_sub(1).min(8))
}

/// Crops that suit the images, and the stem that there is.
fn suitable(case: &Case<'_>) -> Vec<CropConfig> {
    let stem = match &case.config.encoder.arch {
        Arch::ResNet(net) => net.stem,
        _ => Stem::Cifar,
    };
    crate::advice::proposal::crops(&case.facts.data, &case.facts.machine, stem)
}

fn describe(case: &Case<'_>) -> String {
    let each = suitable(case).into_iter().map(|crop| {
        format!(
            "{} of {} pixels with scale {} to {}",
            crop.n_crops, crop.size, crop.min_scale, crop.max_scale
        )
    });
    each.collect::<Vec<_>>().join(", ")
}

/// Crops that suit, as TOML.
fn crops_text(case: &Case<'_>) -> String {
    let each = suitable(case).into_iter().map(|crop| {
        format!(
            "{{ size = {}, n_crops = {}, min_scale = {:?}, max_scale = {:?} }}",
            crop.size, crop.n_crops, crop.min_scale, crop.max_scale
        )
    });
    format!("[{}]", each.collect::<Vec<_>>().join(", "))
}
