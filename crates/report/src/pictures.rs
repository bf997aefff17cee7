//! Many small pictures on a few JPEG sheets.

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, RgbImage, imageops};

use crate::base64;

/// A sheet of at most this many rows becomes one JPEG.
const MAX_ROWS: usize = 40;
/// Quality of the JPEGs, of 100.
const QUALITY: u8 = 78;

/// Square pictures of one size, in rows, on JPEG sheets.
#[derive(Debug, Clone)]
pub struct Sheet {
    /// Side of a picture in pixels.
    pub side: usize,
    /// Pictures in a row.
    pub columns: usize,
    /// How many pictures there are.
    pub n_pictures: usize,
    /// The sheets as JPEG files, of [`rows_per_file`](Self::rows_per_file) rows each.
    files: Vec<Vec<u8>>,
}

/// Takes pictures in and makes a [`Sheet`] of them.
#[derive(Debug, Clone)]
pub struct Thumbnails {
    side: usize,
    columns: usize,
    pictures: Vec<Vec<u8>>,
}

impl Thumbnails {
    /// Pictures of `side` pixels, `columns` in a row; both at least 1. Sides that are multiples of 16 keep JPEG from mixing
    /// neighbours.
    pub fn new(side: usize, columns: usize) -> Self {
        Self { side: side.max(1), columns: columns.max(1), pictures: Vec::new() }
    }

    /// Appends a square picture of RGB bytes, of any side: it is reduced, or enlarged by its pixels. One of another shape
    /// becomes a grey square. Gives its place on the sheet.
    pub fn push(&mut self, side: usize, rgb: &[u8]) -> usize {
        let wanted = self.side as u32;
        let picture = u32::try_from(side).ok().and_then(|side| RgbImage::from_raw(side, side, rgb.to_vec()));
        let picture = picture.filter(|picture| picture.width() > 0);
        let picture = picture.map(|picture| match picture.width() {
            width if width == wanted => picture,
            width if 2 * width <= wanted => {
                imageops::resize(&picture, wanted, wanted, imageops::FilterType::Nearest)
            }
            _ => imageops::resize(&picture, wanted, wanted, imageops::FilterType::Triangle),
        });
        let grey = || vec![128; self.side * self.side * 3];
        self.pictures.push(picture.map_or_else(grey, RgbImage::into_raw));
        self.pictures.len() - 1
    }

    /// All of them as JPEG sheets.
    pub fn finish(self) -> Sheet {
        use rayon::prelude::*;
        let per_file = self.columns * MAX_ROWS;
        let files = self.pictures.par_chunks(per_file).map(|part| self.file(part)).collect();
        Sheet { side: self.side, columns: self.columns, n_pictures: self.pictures.len(), files }
    }

    fn file(&self, pictures: &[Vec<u8>]) -> Vec<u8> {
        let (side, stride) = (self.side, 3 * self.side);
        let (width, height) = (side * self.columns, side * pictures.len().div_ceil(self.columns));
        let mut pixels = vec![0u8; 3 * width * height];
        for (at, picture) in pictures.iter().enumerate() {
            let (row, column) = (at / self.columns, at % self.columns);
            for (y, line) in picture.chunks_exact(stride).enumerate() {
                let first = 3 * ((row * side + y) * width + column * side);
                pixels[first..first + stride].copy_from_slice(line);
            }
        }
        let mut file = Vec::new();
        let encoder = JpegEncoder::new_with_quality(&mut file, QUALITY);
        let (width, height) = (width as u32, height as u32);
        // Only a side above 65535 is refused, which 40 rows of thumbnails do not have.
        let _ = image::ImageEncoder::write_image(encoder, &pixels, width, height, ExtendedColorType::Rgb8);
        file
    }
}

impl Sheet {
    /// Rows of each file but the last, which has what is left.
    pub fn rows_per_file(&self) -> usize {
        MAX_ROWS
    }

    /// Bytes of all files.
    pub fn n_bytes(&self) -> usize {
        self.files.iter().map(Vec::len).sum()
    }

    /// The files as data URIs.
    pub(crate) fn uris(&self) -> impl Iterator<Item = String> {
        self.files.iter().map(|file| format!("data:image/jpeg;base64,{}", base64::encode(file)))
    }

    /// Which file a picture is in, and its row and column there.
    pub(crate) fn place(&self, picture: usize) -> (usize, usize, usize) {
        let row = picture / self.columns;
        (row / MAX_ROWS, row % MAX_ROWS, picture % self.columns)
    }
}
