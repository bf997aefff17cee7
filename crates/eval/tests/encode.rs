//! Features of a data set from a real encoder.

use std::sync::Arc;

use ndarray::s;
use swav_augment::{CenterCrop, Channels, EvalView, Image, Normalize, Scratch};
use swav_data::{Dataset, SampleError};
use swav_encoder::{BlockKind, EncoderConfig, Output, ResNet, Stem, build_cpu, image_batch};
use swav_eval::encode;

/// Stripes of various widths; the third image cannot be read.
struct Stripes;

impl Dataset for Stripes {
    fn len(&self) -> usize {
        6
    }
    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        if index == 2 {
            return Err(SampleError::Vanished);
        }
        let bytes = (0..12 * 10 * 3).map(|i| if i % (index + 4) < 3 { 200 } else { 30 }).collect();
        Ok(Arc::new(Image::new(12, 10, Channels::Rgb, bytes).unwrap()))
    }
}

#[test]
fn features_of_a_data_set_are_those_of_its_images() {
    let config = EncoderConfig {
        arch: ResNet::custom(BlockKind::Basic, [1, 1]).with_width(8).with_stem(Stem::Cifar).into(),
        dim: 6,
        ..EncoderConfig::default()
    };
    let encoder = build_cpu(&config.check().unwrap(), 5).unwrap();
    let view = EvalView::new(CenterCrop { resize: 8, size: 8 }, Normalize::default()).unwrap();
    for (output, dim) in [(Output::Features, 16), (Output::Embedding, 6)] {
        let features = encode(encoder.as_ref(), &Stripes, &view, output, None).unwrap();
        assert_eq!((features.rows.dim(), &features.indices[..]), ((5, dim), &[0, 1, 3, 4, 5][..]));
        assert_eq!(features.skipped.len(), 1);
        for (row, &index) in features.indices.iter().enumerate() {
            let mut pixels = vec![0.0; 8 * 8 * 3];
            view.fill(Stripes.image(index).unwrap().view(), &mut pixels, &mut Scratch::default()).unwrap();
            let alone = encoder.embed(image_batch(&pixels, 1, 8, 8).unwrap(), output).unwrap();
            let difference = &features.rows.slice(s![row..=row, ..]) - &alone;
            assert!(difference.iter().all(|d| d.abs() < 1e-5), "image {index}: {difference}");
        }
    }
}
