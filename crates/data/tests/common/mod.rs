//! Files for the tests: small images in many encodings, and data sets in every layout.
#![allow(dead_code)] // Every test binary uses another part.

pub mod parquet;
pub mod zip;

use std::{fs, io::Write, path::Path, sync::Arc};

use image::{ImageEncoder, Rgb, RgbImage};
use swav_data::{DataConfig, DataError, Dataset, Split, open};

/// An image that differs for every `id`, at every pixel.
pub fn picture(width: u32, height: u32, id: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 9 + id * 31) as u8, (y * 11 + id * 17) as u8, (x * 3 + y * 5 + id * 57) as u8])
    })
}

/// A JPEG of `image`.
pub fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 92).encode_image(image).unwrap();
    bytes
}

/// A PNG of `image`: the pixels survive.
pub fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(image, image.width(), image.height(), image::ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

/// A PNG put together by hand, for the variants that encoders do not write. `rows` are the scan lines without their
/// filter bytes; `between` are chunks before the data.
pub fn raw_png(
    size: (u32, u32),
    depth: u8,
    colour: u8,
    between: &[(&[u8; 4], &[u8])],
    rows: &[&[u8]],
) -> Vec<u8> {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    for row in rows {
        zlib.write_all(&[0]).unwrap();
        zlib.write_all(row).unwrap();
    }
    let mut header = [size.0.to_be_bytes(), size.1.to_be_bytes()].concat();
    header.extend([depth, colour, 0, 0, 0]);
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        bytes.extend((data.len() as u32).to_be_bytes());
        let body = [kind, data].concat();
        bytes.extend(&body);
        let mut crc = flate2::Crc::new();
        crc.update(&body);
        bytes.extend(crc.sum().to_be_bytes());
    };
    chunk(b"IHDR", &header);
    between.iter().for_each(|(kind, data)| chunk(kind, data));
    chunk(b"IDAT", &zlib.finish().unwrap());
    chunk(b"IEND", &[]);
    bytes
}

/// Writes a file with the folders above it.
pub fn put(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A tar archive of members.
pub fn tar_of(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An IDX file of the given shape and values.
pub fn idx(shape: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, shape.len() as u8];
    shape.iter().for_each(|size| bytes.extend(size.to_be_bytes()));
    bytes.extend(data);
    bytes
}

/// Compresses with gzip.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// A line of this process's status, in KiB: `VmRSS` is the memory in use, `VmHWM` its peak.
#[cfg(target_os = "linux")]
pub fn memory_kib(key: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The labels of all images.
pub fn labels(data: &dyn Dataset) -> Vec<Option<u32>> {
    (0..data.len()).map(|index| data.label(index)).collect()
}

/// The data set at a path, of one split.
pub fn of(path: &Path, split: Split) -> Result<Arc<dyn Dataset>, DataError> {
    open(path, &DataConfig { split, ..DataConfig::default() })
}

/// What is wrong with a file that contradicts its format.
pub fn malformed(result: Result<Arc<dyn Dataset>, DataError>) -> String {
    match result {
        Err(DataError::Malformed { source, .. }) => source.to_string(),
        Err(other) => panic!("expected a malformed file, got {other}"),
        Ok(data) => panic!("opened {}", data.describe()),
    }
}
