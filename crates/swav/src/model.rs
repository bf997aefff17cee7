//! A trained network, ready for use: images in, features out.

use std::path::{Path, PathBuf};

use image::DynamicImage;
use ndarray::{Array2, Array4, s};
use rayon::prelude::*;
use swav_augment::{AugmentError, Channels, EvalView, Image, ImageView, Scratch};
use swav_encoder::{Encoder, EncoderError, Output};
use swav_train::{ConfigError, RunFolder, TrainConfig, TrainError};
use swav_weights::{Import, Preprocessing, WeightsError, WeightsFile};

/// Pixels that are embedded at a time.
const BATCH_PIXELS: usize = 32 * 224 * 224;

/// A network with the preprocessing of its images.
///
/// ```no_run
/// let model = swav::Model::open("runs/photos")?;
/// let images = [image::open("cat.jpg")?, image::open("dog.jpg")?];
/// let features = model.embed(&images)?;
/// assert_eq!(features.nrows(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Model {
    encoder: Box<dyn Encoder>,
    preprocessing: Preprocessing,
    view: EvalView,
}

/// Why a model cannot be opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The path is neither a file of weights nor the folder of a run.
    #[error("{path}: expected a file of weights, or the folder of a run or an import; got neither")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// The configuration of the run is wrong.
    #[error("the run's configuration")]
    Config(#[from] ConfigError),
    /// The run has no weights that can be used.
    #[error("the run's weights")]
    Run(#[from] TrainError),
    /// The file of weights cannot be used.
    #[error("the weights")]
    Weights(#[from] WeightsError),
    /// The network cannot be built or run.
    #[error("the network")]
    Encoder(#[from] EncoderError),
    /// An image cannot be shown to the network.
    #[error("image {index}")]
    Image {
        /// Its position among those that were given.
        index: usize,
        /// What is wrong.
        #[source]
        source: AugmentError,
    },
}

impl Model {
    /// Opens the folder of a run (its final weights, else its newest checkpoint) or of an import, or a file of weights of
    /// any kind that [`swav_weights`] reads, on the best device that there is.
    ///
    /// # Errors
    /// [`ModelError`] with what is wrong with the path, the weights or the network.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        Self::open_on(path, "auto")
    }

    /// As [`open`](Self::open), on a device by its name: `cpu`, `cuda:0`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and for a device that is not there.
    pub fn open_on(path: impl AsRef<Path>, device: &str) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let folder = RunFolder::at(path);
        let (spec, state, preprocessing) = if folder.exists() {
            let settings = TrainConfig::load(&folder.config(), &[])?.check()?;
            (settings.encoder().clone(), folder.trained()?.encoder, settings.preprocessing())
        } else if path.is_dir() {
            return Err(ModelError::Path { path: path.to_owned() });
        } else {
            let import = Import::read(&mut WeightsFile::open(path)?, None)?;
            let preprocessing = import.preprocessing_or_usual();
            (import.encoder.check()?, import.state, preprocessing)
        };
        let mut encoder = swav_encoder::build(device, &spec, 0)?;
        encoder.load_state(&state)?;
        Self::new(encoder, preprocessing)
    }

    /// A network of one's own making.
    ///
    /// # Errors
    /// [`ModelError::Weights`] for a preprocessing out of range.
    pub fn new(encoder: Box<dyn Encoder>, preprocessing: Preprocessing) -> Result<Self, ModelError> {
        Ok(Self { encoder, view: preprocessing.view()?, preprocessing })
    }

    /// The same network with images shown in another way, such as larger than in training.
    ///
    /// # Errors
    /// [`ModelError::Weights`] for a preprocessing out of range.
    pub fn with_preprocessing(self, preprocessing: Preprocessing) -> Result<Self, ModelError> {
        Self::new(self.encoder, preprocessing)
    }

    /// How images are shown to the network.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// The network.
    pub fn encoder(&self) -> &dyn Encoder {
        self.encoder.as_ref()
    }

    /// Features of any number of images, a row each: resized, cropped and normalised as the weights want it.
    ///
    /// # Errors
    /// [`ModelError::Image`] for one without pixels; the device's.
    pub fn embed(&self, images: &[DynamicImage]) -> Result<Array2<f32>, ModelError> {
        self.output(images, Output::Features)
    }

    /// Another output of the network: embeddings of unit length, or the features of a stage.
    ///
    /// # Errors
    /// As [`embed`](Self::embed); [`ModelError::Encoder`] for a stage that there is not.
    pub fn output(&self, images: &[DynamicImage], output: Output) -> Result<Array2<f32>, ModelError> {
        let (view, size) = (&self.view, self.view.size());
        let mut rows = Array2::zeros((images.len(), self.encoder.output_dim(output)?));
        let n_at_once = (BATCH_PIXELS / (size * size)).max(1);
        for (batch, images) in images.chunks(n_at_once).enumerate() {
            let first = batch * n_at_once;
            let mut shown = Array4::zeros((images.len(), size, size, 3));
            let values = shown.as_slice_mut().expect("a new array is contiguous");
            values.par_chunks_exact_mut(size * size * 3).enumerate().try_for_each_init(
                Scratch::default,
                |scratch, (at, out)| {
                    show(view, &images[at], out, scratch)
                        .map_err(|source| ModelError::Image { index: first + at, source })
                },
            )?;
            let embedded = self.encoder.embed(shown.view(), output)?;
            rows.slice_mut(s![first..first + images.len(), ..]).assign(&embedded);
        }
        Ok(rows)
    }
}

/// Writes the view of an image to `out`.
fn show(
    view: &EvalView,
    image: &DynamicImage,
    out: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), AugmentError> {
    // The usual kinds are read where they lie.
    let plain = match image {
        DynamicImage::ImageRgb8(image) => Some((Channels::Rgb, image.dimensions(), image.as_raw())),
        DynamicImage::ImageLuma8(image) => Some((Channels::Grey, image.dimensions(), image.as_raw())),
        _ => None,
    };
    match plain {
        Some((channels, (width, height), bytes)) => {
            view.fill(ImageView::new(width, height, channels, bytes)?, out, scratch)
        }
        None => view.fill(Image::from_decoded(image.clone())?.view(), out, scratch),
    }
}

#[cfg(test)]
mod tests {
    use image::{Luma, Rgb, RgbImage};
    use swav_encoder::{BlockKind, EncoderConfig, Head, ResNet, Stem, build_cpu};
    use swav_weights::{Metadata, export, write_file};

    use super::*;

    fn config() -> EncoderConfig {
        let arch = ResNet::custom(BlockKind::Basic, [1, 1]).with_width(4).with_stem(Stem::Cifar).into();
        EncoderConfig { arch, head: Head::Linear, dim: 6, ..EncoderConfig::default() }
    }

    fn images(n: u32) -> Vec<DynamicImage> {
        let image =
            |i| RgbImage::from_fn(20 + i, 18, |x, y| Rgb([(x * 9) as u8, (y * 12) as u8, (i * 40) as u8]));
        (0..n).map(|i| image(i).into()).collect()
    }

    #[test]
    fn a_file_is_opened_with_its_preprocessing() {
        let encoder = build_cpu(&config().check().unwrap(), 5).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let preprocessing = Preprocessing { resize: 20, size: 16, ..Preprocessing::default() };
        let mut metadata = Metadata::new();
        preprocessing.enter(&mut metadata);
        let state = encoder.state().unwrap();
        let tensors: Vec<_> = state.iter().collect();
        write_file(&path, |to| export::safetensors(to, &tensors, &metadata)).unwrap();

        let model = Model::open_on(&path, "cpu").unwrap();
        assert_eq!(model.preprocessing(), &preprocessing);
        let features = model.embed(&images(5)).unwrap();
        let own = Model::new(encoder, preprocessing).unwrap();
        assert_eq!(features, own.embed(&images(5)).unwrap());
        assert_eq!(features.dim(), (5, 8));
        // Each image alone gives the same row, and every kind of output has its width.
        assert_eq!(features.row(3), model.embed(&images(5)[3..4]).unwrap().row(0));
        assert_eq!(model.output(&images(2), Output::Embedding).unwrap().dim(), (2, 6));
        assert_eq!(model.output(&images(2), Output::Layer(1)).unwrap().dim(), (2, 4));
        assert_eq!(model.embed(&[]).unwrap().dim(), (0, 8));
        // Grey and 16-bit images are shown as their 8-bit colours.
        let grey = DynamicImage::from(image::GrayImage::from_pixel(9, 9, Luma([77])));
        let kinds = [grey.clone(), grey.to_rgb8().into(), grey.to_rgba16().into()];
        let features = model.embed(&kinds).unwrap();
        assert!(features.row(0) == features.row(1) && features.row(1) == features.row(2));
        let larger =
            model.with_preprocessing(Preprocessing { resize: 64, size: 48, ..preprocessing }).unwrap();
        assert_eq!(larger.embed(&images(1)).unwrap().dim(), (1, 8));
    }

    #[test]
    fn paths_without_weights_are_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Model::open(folder.path()), Err(ModelError::Path { .. })));
        let none = Model::open(folder.path().join("none.pth"));
        assert!(matches!(none, Err(ModelError::Weights(WeightsError::Read { .. }))));
    }
}
