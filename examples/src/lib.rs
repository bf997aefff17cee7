//! Runnable examples live in `examples/examples`; here is what some of them share.

use std::path::Path;

use anyhow::Context;
use swav::Model;
use swav::data::{DataConfig, Split};
use swav::encoder::{BlockKind, EncoderConfig, Head, ResNet, Stem, build_cpu};
use swav::weights::Preprocessing;

/// A model and names and pictures of a folder. Without paths: a small untrained network, and built-in images.
pub fn model_and_images(
    model: Option<&str>,
    folder: Option<&str>,
) -> anyhow::Result<(Model, Vec<(String, image::DynamicImage)>)> {
    let model = match model {
        Some(path) => Model::open(path)?,
        None => {
            let arch =
                ResNet::custom(BlockKind::Basic, [1, 1, 1]).with_width(16).with_stem(Stem::Cifar).into();
            let config = EncoderConfig { arch, head: Head::None, ..EncoderConfig::default() };
            let preprocessing = Preprocessing { resize: 48, size: 48, ..Preprocessing::default() };
            Model::new(build_cpu(&config.check()?, 31)?, preprocessing)?
        }
    };
    let data =
        DataConfig { path: folder.unwrap_or("builtin").into(), split: Split::All, ..DataConfig::default() };
    let data = data.open()?;
    let n_images = if folder.is_some() { data.len() } else { 48 };
    let named = |index| {
        let image = data.image(index).with_context(|| data.name(index))?;
        let name = data.name(index);
        let name =
            Path::new(&name).file_name().map_or(name.clone(), |name| name.to_string_lossy().into_owned());
        Ok((name, image.to_rgb().into()))
    };
    let images = (0..n_images).map(named).collect::<anyhow::Result<_>>()?;
    Ok((model, images))
}
