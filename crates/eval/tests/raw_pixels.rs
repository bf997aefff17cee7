//! Raw pixels as features: what they hold, what happens to images that cannot be read, and the accuracy that is known
//! for Fashion-MNIST.

use std::sync::Arc;

use ndarray::{Array2, array};
use swav_augment::{CenterCrop, Channels, Image};
use swav_data::{DataConfig, Dataset, SampleError, Split};
use swav_eval::{EvalError, KnnClassifier, KnnConfig, raw_pixels};

/// Images of one colour; black ones cannot be read.
struct Plain(Vec<[u8; 3]>);

impl Dataset for Plain {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        match self.0[index] {
            [0, 0, 0] => Err(SampleError::Vanished),
            colour => Ok(Arc::new(Image::new(3, 2, Channels::Rgb, colour.repeat(6)).unwrap())),
        }
    }
    fn label(&self, index: usize) -> Option<u32> {
        (index < 3).then_some(index as u32 + 10)
    }
}

fn assert_close(actual: &Array2<f32>, expected: &Array2<f32>) {
    let close = |(a, e): (&f32, &f32)| (a - e).abs() < 1e-6;
    assert!(actual.dim() == expected.dim() && actual.iter().zip(expected).all(close), "{actual}");
}

const PIXEL: CenterCrop = CenterCrop { resize: 1, size: 1 };

#[test]
fn unreadable_images_are_left_out_and_named() {
    let data = Plain(vec![[255, 0, 51], [0, 0, 0], [102, 0, 0]]);
    let mut done = Vec::new();
    let features = raw_pixels(&data, PIXEL, Some(&mut |n| done.push(n))).unwrap();
    assert_close(&features.rows, &array![[1.0, 0.0, 0.2], [0.4, 0.0, 0.0]]);
    assert_eq!(features.indices, [0, 2]);
    assert!(matches!(features.skipped[..], [(1, SampleError::Vanished)]));
    assert_eq!(features.labels(&data).unwrap(), [10, 12]);
    assert_eq!(done, [3]);
}

#[test]
fn pixels_without_colour_are_kept_once() {
    let features = raw_pixels(&Plain(vec![[51; 3], [255; 3]]), PIXEL, None).unwrap();
    assert_close(&features.rows, &array![[0.2], [1.0]]);
}

#[test]
fn large_views_are_reduced() {
    let features = raw_pixels(&Plain(vec![[51, 0, 0]]), CenterCrop { resize: 256, size: 224 }, None).unwrap();
    assert_eq!(features.rows.dim(), (1, 32 * 32 * 3));
}

#[test]
fn what_is_missing_is_named() {
    let unreadable = raw_pixels(&Plain(vec![[0; 3]]), PIXEL, None).unwrap_err();
    assert!(
        matches!(&unreadable, EvalError::Unreadable { source: SampleError::Vanished, .. }),
        "{unreadable}"
    );
    let empty = raw_pixels(&Plain(vec![]), PIXEL, None).unwrap_err();
    assert!(matches!(&empty, EvalError::NoImages { .. }), "{empty}");

    let data = Plain(vec![[9; 3]; 4]);
    let unlabelled = raw_pixels(&data, PIXEL, None).unwrap().labels(&data).unwrap_err();
    assert!(matches!(&unlabelled, EvalError::NoLabel { image, .. } if image == "image 3"), "{unlabelled}");
}

/// The 60,000 training and 10,000 test images in `SWAV_FASHION_MNIST` (default: where Debian's package
/// dataset-fashion-mnist puts them): `cargo test --release -p swav-eval -- --ignored fashion_mnist`
#[test]
#[ignore = "needs Fashion-MNIST and a minute"]
fn raw_pixels_of_fashion_mnist_reach_the_known_accuracy() {
    let folder = std::env::var("SWAV_FASHION_MNIST").unwrap_or("/usr/share/datasets/fashion-mnist".into());
    let crop = CenterCrop { resize: 28, size: 28 };
    let part = |split| {
        let data = swav_data::open(&folder, &DataConfig { split, ..DataConfig::default() }).unwrap();
        let features = raw_pixels(&data, crop, None).unwrap();
        let labels = features.labels(&data).unwrap();
        (features.rows, labels)
    };
    let ((bank, labels), (queries, truth)) = (part(Split::Train), part(Split::Test));
    assert_eq!((bank.dim(), queries.dim()), ((60_000, 784), (10_000, 784)));
    let knn = KnnClassifier::new(KnnConfig::default().check().unwrap(), bank, labels).unwrap();
    let top1 = knn.predict(queries.view()).unwrap().accuracy(&truth).unwrap().top1;
    // An independent implementation reaches 84.59%; a neighbour whose rank hangs on rounding may move an image.
    assert!((top1 - 0.8459).abs() < 0.001, "{top1}");
}
