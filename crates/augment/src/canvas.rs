//! The crop that is being worked on: 8-bit colour planes, and the per-pixel operations that still wait.

use crate::point;
use crate::{AugmentError, Channels, ImageView, PointOp};

/// A crop on its way through the steps: 8-bit values, one plane per channel, each (height, width).
///
/// Per-pixel operations are not run when they are [pushed](Canvas::push), but when a step looks at the
/// pixels, all of them in one pass. All buffers keep their memory, so that a canvas that is used again
/// does not allocate.
///
/// ```
/// use swav_augment::{Canvas, Channels, ImageView, PointOp};
///
/// let image = ImageView::new(2, 1, Channels::Rgb, &[10, 20, 30, 40, 50, 60]).unwrap();
/// let mut canvas = Canvas::default();
/// canvas.load(image);
/// canvas.push(PointOp::Blend { toward: 0, factor: 2.0 });
/// canvas.push(PointOp::Solarize { threshold: 100 });
/// assert_eq!(canvas.planes(), [20, 80, 40, 155, 60, 135]);
/// assert_eq!(canvas.to_rgb_bytes(), [20, 40, 60, 80, 155, 135]);
/// ```
#[derive(Debug, Clone)]
pub struct Canvas {
    width: usize,
    height: usize,
    channels: Channels,
    planes: Vec<u8>,
    pending: Vec<PointOp>,
    pub(crate) work: Work,
}

/// Buffers that steps use between two states of the canvas.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    #[cfg(feature = "warp")]
    pub bytes: Vec<u8>,
    #[cfg(feature = "warp")]
    pub more_bytes: Vec<u8>,
    pub floats: Vec<f32>,
    pub kernel: Vec<i16>,
    pub padded: Vec<i16>,
    pub rows: Vec<i16>,
}

impl Default for Canvas {
    /// One black pixel.
    fn default() -> Self {
        Self {
            width: 1,
            height: 1,
            channels: Channels::Grey,
            planes: vec![0],
            pending: Vec::with_capacity(8),
            work: Work::default(),
        }
    }
}

impl Canvas {
    /// Width in pixels, at least 1.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Greyscale (one plane) or colour (three).
    pub fn channels(&self) -> Channels {
        self.channels
    }

    /// Appends an operation to those that wait. What cannot change a greyscale canvas is left out.
    pub fn push(&mut self, op: PointOp) {
        if !(self.channels == Channels::Grey && op.keeps_grey()) {
            self.pending.push(op);
        }
    }

    /// The pixels after all operations so far: (channels, height, width).
    pub fn planes(&mut self) -> &mut [u8] {
        if !self.pending.is_empty() {
            point::apply(&mut self.planes, self.channels.count(), &self.pending);
            self.pending.clear();
        }
        &mut self.planes
    }

    /// Mean luminance after all operations so far, rounded half up, as Pillow's contrast takes it.
    pub fn mean_luminance(&mut self) -> u8 {
        let sum = point::apply_and_sum(&mut self.planes, self.channels.count(), &self.pending);
        self.pending.clear();
        let n = (self.width * self.height) as u64;
        // At most 255, because every luminance is.
        ((2 * sum + n) / (2 * n)) as u8
    }

    /// Copies a whole image in, without resizing it.
    pub fn load(&mut self, image: ImageView<'_>) {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let planes = self.reset(width, height, image.channels());
        match image.channels() {
            Channels::Grey => planes.copy_from_slice(image.data()),
            Channels::Rgb => {
                let (red, rest) = planes.split_at_mut(width * height);
                let (green, blue) = rest.split_at_mut(width * height);
                for (((pixel, r), g), b) in
                    image.data().as_chunks::<3>().0.iter().zip(red).zip(green).zip(blue)
                {
                    [*r, *g, *b] = *pixel;
                }
            }
        }
    }

    /// The pixels after all operations so far as RGB bytes, (height, width, 3).
    pub fn to_rgb_bytes(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; self.width * self.height * 3];
        self.write_rgb_bytes(&mut bytes).expect("the buffer has the canvas's size");
        bytes
    }

    /// Writes the pixels after all operations so far as RGB bytes, (height, width, 3). Greyscale values are repeated for the three
    /// channels.
    ///
    /// # Errors
    /// [`AugmentError::OutputLength`] if `out` has another length than `height * width * 3`.
    pub fn write_rgb_bytes(&mut self, out: &mut [u8]) -> Result<(), AugmentError> {
        let (width, height, channels) = (self.width, self.height, self.channels);
        let n = width * height;
        if out.len() != 3 * n {
            return Err(AugmentError::OutputLength { width, height, expected: 3 * n, got: out.len() });
        }
        let planes = self.planes();
        let (red, green, blue) = match channels {
            Channels::Grey => (&planes[..], &planes[..], &planes[..]),
            Channels::Rgb => (&planes[..n], &planes[n..2 * n], &planes[2 * n..]),
        };
        let pixels = out.as_chunks_mut::<3>().0.iter_mut();
        for (((pixel, &r), &g), &b) in pixels.zip(red).zip(green).zip(blue) {
            *pixel = [r, g, b];
        }
        Ok(())
    }

    /// Makes room for a crop of this size, whose planes the caller then fills; nothing waits any more.
    pub(crate) fn reset(&mut self, width: usize, height: usize, channels: Channels) -> &mut [u8] {
        (self.width, self.height, self.channels) = (width, height, channels);
        self.pending.clear();
        self.planes.resize(width * height * channels.count(), 0);
        &mut self.planes
    }

    /// The pixels after all operations so far, and the work buffers.
    pub(crate) fn planes_and_work(&mut self) -> (&mut Vec<u8>, &mut Work) {
        self.planes();
        (&mut self.planes, &mut self.work)
    }

    /// The pixels before the operations that wait, to be moved about: what waits is done to them later.
    pub(crate) fn raw_planes(&mut self) -> &mut [u8] {
        &mut self.planes
    }

    /// The pixels before, and the operations that wait.
    pub(crate) fn planes_and_pending(&self) -> (&[u8], &[PointOp]) {
        (&self.planes, &self.pending)
    }
}
