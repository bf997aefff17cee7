//! What encoded images become, and how bad ones are refused.

mod common;

use std::{fs, path::Path};

use common::{jpeg, picture, png, raw_png};
use swav_augment::Channels;
use swav_data::{DataConfig, DecodeConfig, SampleError, decode};

fn rgb(bytes: &[u8]) -> Vec<u8> {
    decode(bytes, &DecodeConfig::default()).unwrap().to_rgb().into_raw()
}

fn error(bytes: &[u8]) -> SampleError {
    decode(bytes, &DecodeConfig::default()).unwrap_err()
}

#[test]
fn png_keeps_its_pixels_and_jpeg_nearly() {
    let image = picture(19, 13, 4);
    assert_eq!(rgb(&png(&image)), image.as_raw().as_slice());
    let smooth = image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([(x * 7) as u8, (y * 7) as u8, 99]));
    let near = rgb(&jpeg(&smooth)).iter().zip(smooth.as_raw()).all(|(a, b)| a.abs_diff(*b) < 25);
    assert!(near);
}

/// Half a picture is refused; one that lacks a few bytes is shown, unless it must be whole.
#[test]
fn a_truncated_jpeg_is_shown_if_nearly_all_of_it_is_there() {
    let image = picture(64, 160, 1);
    let bytes = jpeg(&image);
    let strict = DecodeConfig { strict: true, ..DecodeConfig::default() };
    for share in [10, 30, 50, 80] {
        let cut = &bytes[..bytes.len() * share / 100];
        assert!(matches!(error(cut), SampleError::Truncated(_)), "{share}%: {:?}", error(cut));
    }
    let whole = decode(&bytes, &strict).unwrap();
    for missing in [1, 2, 3, 10, bytes.len() / 100] {
        let cut = &bytes[..bytes.len() - missing];
        assert!(matches!(decode(cut, &strict), Err(SampleError::Truncated(_))), "{missing} bytes");
        let shown = decode(cut, &DecodeConfig::default()).unwrap();
        let n_same = whole.data().iter().zip(shown.data()).take_while(|(a, b)| a == b).count();
        assert!(
            n_same >= whole.data().len() * 9 / 10,
            "{missing} bytes missing: {n_same} of {} shown",
            whole.data().len()
        );
        assert!(missing > 2 || n_same == whole.data().len(), "the end mark is no part of the picture");
    }
}

#[test]
fn a_truncated_png_is_refused() {
    let bytes = png(&picture(64, 48, 1));
    for share in [5, 50, 90] {
        let error = error(&bytes[..bytes.len() * share / 100]);
        assert!(matches!(error, SampleError::Truncated(_) | SampleError::Corrupt(_)), "{error:?}");
    }
}

#[test]
fn what_is_no_image_is_named_so() {
    assert!(matches!(error(b""), SampleError::Truncated(_)));
    assert!(matches!(error(b"<html>not found</html>"), SampleError::Unsupported(_)));
    assert!(matches!(error(&[0; 4096]), SampleError::Unsupported(_)));
    let mut broken = png(&picture(8, 8, 0));
    broken[40] ^= 0xff;
    assert!(matches!(error(&broken), SampleError::Corrupt(_) | SampleError::Truncated(_)));
}

#[test]
fn sixteen_bits_are_scaled() {
    let row: Vec<u8> = [0_u16, 257 * 100, 65535].iter().flat_map(|value| value.to_be_bytes()).collect();
    let grey = decode(&raw_png((3, 1), 16, 0, &[], &[&row]), &DecodeConfig::default()).unwrap();
    assert_eq!((grey.channels(), grey.data()), (Channels::Grey, &[0, 100, 255][..]));
    assert_eq!(rgb(&raw_png((1, 1), 16, 2, &[], &[&row])), [0, 100, 255]);
}

#[test]
fn palettes_are_looked_up() {
    let palette = [10, 20, 30, 200, 100, 50];
    assert_eq!(rgb(&raw_png((2, 1), 8, 3, &[(b"PLTE", &palette)], &[&[1, 0]])), [200, 100, 50, 10, 20, 30]);
    // One bit a pixel, and the second colour half transparent over white.
    let half = raw_png((2, 1), 1, 3, &[(b"PLTE", &palette), (b"tRNS", &[255, 128])], &[&[0b0100_0000]]);
    assert_eq!(rgb(&half), [10, 20, 30, 227, 177, 152]);
}

#[test]
fn grey_stays_one_channel() {
    let grey = decode(&raw_png((3, 1), 8, 0, &[], &[&[1, 2, 250]]), &DecodeConfig::default()).unwrap();
    assert_eq!((grey.channels(), grey.data()), (Channels::Grey, &[1, 2, 250][..]));
    assert_eq!(rgb(b"P2 2 1 255 7 9"), [7, 7, 7, 9, 9, 9]);
}

#[test]
fn transparency_is_composited_over_the_background() {
    let bytes = raw_png((3, 1), 8, 6, &[], &[&[10, 20, 30, 255, 10, 20, 30, 0, 0, 100, 200, 51]]);
    assert_eq!(rgb(&bytes), [10, 20, 30, 255, 255, 255, 204, 224, 244]);
    let black = DecodeConfig { background: [0; 3], ..DecodeConfig::default() };
    assert_eq!(decode(&bytes, &black).unwrap().data(), [10, 20, 30, 0, 0, 0, 0, 20, 40]);
    assert_eq!(rgb(&raw_png((1, 1), 8, 4, &[], &[&[40, 0]])), [255, 255, 255]);
}

#[test]
fn the_smallest_and_the_longest_images_decode() {
    assert_eq!(rgb(&png(&picture(1, 1, 3))), picture(1, 1, 3).into_raw());
    assert_eq!(decode(&jpeg(&picture(1, 1, 3)), &DecodeConfig::default()).unwrap().width(), 1);
    let row = vec![7; 20_000];
    let wide = decode(&raw_png((20_000, 2), 8, 0, &[], &[&row, &row]), &DecodeConfig::default()).unwrap();
    assert_eq!((wide.width(), wide.height()), (20_000, 2));
}

#[test]
fn decompression_bombs_are_refused_by_their_header() {
    let bombs = [
        b"P5 20000 20000 255\n".to_vec(),
        raw_png((20_000, 20_000), 8, 0, &[], &[&[0; 100]]),
        raw_png((4_000_000_000, 4_000_000_000), 1, 0, &[], &[&[0; 100]]),
    ];
    for bomb in &bombs[..2] {
        assert!(matches!(
            error(bomb),
            SampleError::TooLarge { width: 20_000, height: 20_000, max_pixels: 100_000_000 }
        ));
    }
    let giant = error(&bombs[2]);
    assert!(matches!(giant, SampleError::TooLarge { .. } | SampleError::Corrupt(_)), "{giant:?}");
    let small = DecodeConfig { max_pixels: 99, ..DecodeConfig::default() };
    assert!(matches!(
        decode(&png(&picture(10, 10, 0)), &small),
        Err(SampleError::TooLarge { max_pixels: 99, .. })
    ));
    assert!(decode(&png(&picture(9, 11, 0)), &small).is_ok());
    // Above the default limit, a raised one lets the decoder go on and find that the data end.
    let raised = DecodeConfig { max_pixels: 400_000_000, ..DecodeConfig::default() };
    assert!(!matches!(decode(&bombs[1], &raised), Err(SampleError::TooLarge { .. })));
}

/// 400 million pixels, one bit each in the file: refused as it is, and decoded to the last pixel if the limit allows.
#[test]
fn a_huge_image_is_decoded_under_a_raised_limit() {
    let side = 20_000;
    let row = vec![0b0000_0001; side / 8];
    let rows = vec![row.as_slice(); side];
    let bytes = raw_png((side as u32, side as u32), 1, 0, &[], &rows);
    let refused = error(&bytes).to_string();
    assert_eq!(refused, "20000x20000 is 400000000 pixels, above the limit of 100000000 (`max_pixels`)");
    let raised = DecodeConfig { max_pixels: 400_000_000, ..DecodeConfig::default() };
    let image = decode(&bytes, &raised).unwrap();
    assert_eq!((image.channels(), image.data().len()), (Channels::Grey, side * side));
    assert_eq!(image.data()[side * side - 9..], [255, 0, 0, 0, 0, 0, 0, 0, 255]);
}

/// The JPEG with an EXIF segment that says: turn by 90 degrees.
fn turned(image: &image::RgbImage) -> Vec<u8> {
    let plain = jpeg(image);
    let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01".to_vec();
    exif.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0]);
    let mut bytes = vec![0xff, 0xd8, 0xff, 0xe1];
    bytes.extend((exif.len() as u16 + 2).to_be_bytes());
    bytes.extend(exif);
    bytes.extend(&plain[2..]);
    bytes
}

#[test]
fn the_exif_orientation_is_applied_unless_it_must_not_be() {
    let bytes = turned(&picture(20, 10, 0));
    let size = |orientation| {
        let config = DecodeConfig { orientation, ..DecodeConfig::default() };
        let image = decode(&bytes, &config).unwrap();
        (image.width(), image.height())
    };
    assert_eq!((size(false), size(true)), ((20, 10), (10, 20)));
    let old: DecodeConfig = toml::from_str("apply_orientation = false").unwrap();
    assert!(!old.orientation, "configurations with the old name are read");
}

/// Each file in `data/pillow` shows what Pillow shows of it; `data/make_pictures.py` wrote both. Decoders of JPEG differ by a few
/// values; where the file is not JPEG, nothing may.
#[test]
fn pictures_are_shown_as_pillow_shows_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pillow");
    let (mut n_files, mut wrong) = (0, Vec::new());
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".expected.png") {
            continue;
        }
        let is_large = name.starts_with("large");
        let config = DecodeConfig { max_side: is_large.then_some(36), ..DecodeConfig::default() };
        let shown = decode(&fs::read(&path).unwrap(), &config)
            .unwrap_or_else(|error| panic!("{name}: {}", error.explain()));
        let expected = fs::read(path.with_file_name(format!("{name}.expected.png"))).unwrap();
        let expected = decode(&expected, &DecodeConfig::default()).unwrap();
        assert_eq!((shown.width(), shown.height()), (expected.width(), expected.height()), "{name}");
        assert_eq!(shown.channels(), expected.channels(), "{name}");
        let differences: Vec<u8> =
            shown.data().iter().zip(expected.data()).map(|(a, b)| a.abs_diff(*b)).collect();
        let largest = differences.iter().max().unwrap();
        let mean = differences.iter().map(|&d| f64::from(d)).sum::<f64>() / differences.len() as f64;
        let (max, max_mean) = match &name {
            // The filters that reduce are not the same, and colour that the file has at half the size is a little softer.
            _ if name.contains("420") => (40, 5.0),
            _ if is_large => (40, 2.0),
            _ if name.ends_with("jpg") || name.contains("jpeg") => (6, 1.0),
            _ => (0, 0.0),
        };
        if *largest > max || mean > max_mean {
            wrong.push(format!("{name}: largest difference {largest}, mean {mean:.2}"));
        }
        n_files += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(n_files, 23);
}

/// A grey TIFF of one row of 32-bit values: unsigned (1), signed (2) or floats (3).
fn grey_tiff(sample_format: u16, values: &[u32]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let tags: [(u16, u16, u32); 9] = [
        (256, 3, values.len() as u32),
        (257, 3, 1),
        (258, 3, 32),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8 + 2 + 9 * 12 + 4),
        (278, 3, 1),
        (279, 4, data.len() as u32),
        (339, 3, u32::from(sample_format)),
    ];
    let mut bytes = b"II*\0\x08\0\0\0\x09\0".to_vec();
    for (id, kind, value) in tags {
        bytes.extend(id.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes.extend(data);
    bytes
}

#[test]
fn grey_tiff_of_32_bits_finds_its_own_white() {
    let shown = |format, values: &[u32]| {
        decode(&grey_tiff(format, values), &DecodeConfig::default()).unwrap().into_data()
    };
    let floats = |values: &[f32]| shown(3, &values.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
    assert_eq!(floats(&[0.0, 0.5, 1.0]), [0, 128, 255]);
    assert_eq!(floats(&[0.0, 7.4, 255.0]), [0, 7, 255]);
    assert_eq!(floats(&[0.0, 25700.0, 65535.0]), [0, 100, 255]);
    assert_eq!(floats(&[-10.0, 0.0, 10.0, f32::NAN, f32::INFINITY]), [0, 128, 255, 0, 255]);
    assert_eq!(floats(&[f32::NAN, f32::NAN]), [0, 0]);
    assert_eq!(floats(&[-3.0, -3.0]), [0, 0]);
    assert_eq!(shown(1, &[0, 1, 200]), [0, 1, 200]);
    assert_eq!(shown(1, &[0, 25700, 65535]), [0, 100, 255]);
    assert_eq!(shown(1, &[0, u32::MAX / 2, u32::MAX]), [0, 127, 255]);
    assert_eq!(shown(2, &[(-5_i32).cast_unsigned(), 0, 5]), [0, 128, 255]);
}

#[test]
fn large_images_are_reduced_to_the_longest_side() {
    let config = DecodeConfig { max_side: Some(50), ..DecodeConfig::default() };
    for (bytes, expected) in [
        (png(&picture(100, 40, 1)), (50, 20)),
        (jpeg(&picture(40, 400, 1)), (5, 50)),
        (jpeg(&picture(401, 300, 1)), (50, 37)),
        (jpeg(&picture(50, 30, 1)), (50, 30)),
        (png(&picture(1000, 2, 1)), (50, 1)),
    ] {
        let image = decode(&bytes, &config).unwrap();
        assert_eq!((image.width(), image.height()), expected);
    }
    // Turning comes after, and changes nothing of it.
    let image = decode(&turned(&picture(200, 100, 0)), &config).unwrap();
    assert_eq!((image.width(), image.height()), (25, 50));
    assert!(
        DataConfig { decode: DecodeConfig { max_side: Some(0), ..config }, ..DataConfig::default() }
            .check()
            .is_err()
    );
}

#[test]
fn files_are_read_as_data_sets_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let (path, config) = (folder.path().join("a.png"), DecodeConfig::default());
    fs::write(&path, png(&picture(4, 3, 0))).unwrap();
    assert_eq!(swav_data::read_image(&path, &config).unwrap().data(), picture(4, 3, 0).as_raw().as_slice());
    assert!(matches!(swav_data::read_image(folder.path(), &config), Err(SampleError::NotAFile)));
    assert!(matches!(swav_data::read_image("nowhere.png", &config), Err(SampleError::Vanished)));
    if cfg!(target_os = "linux") {
        assert!(matches!(swav_data::read_image("/dev/zero", &config), Err(SampleError::NotAFile)));
    }
}

#[test]
fn what_is_known_and_not_read_is_named() {
    let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";
    for (bytes, name) in [
        (&heic[..], "HEIC"),
        (b"<?xml version='1.0'?>\n<svg xmlns=''/>", "SVG"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04rest", "zip"),
        (b"%PDF-1.7", "PDF"),
    ] {
        let error = error(bytes);
        assert!(
            matches!(error, SampleError::Unsupported(_)) && error.explain().contains(name),
            "{}",
            error.explain()
        );
    }
}

/// What `max_side` gains on the JPEGs in the folder `SWAV_PHOTOS`: `cargo test --release -p swav-data --test decoding -- --ignored
/// --nocapture`.
#[test]
#[ignore = "measures time on photos of yours"]
fn what_reduced_decoding_gains() {
    let folder = std::env::var("SWAV_PHOTOS").expect("SWAV_PHOTOS names a folder");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(bytes) = fs::read(&path) else { continue };
        for max_side in [None, Some(1024), Some(600)] {
            let config = DecodeConfig { max_side, ..DecodeConfig::default() };
            let begun = std::time::Instant::now();
            let Ok(image) = decode(&bytes, &config) else { continue };
            let (ms, kib) = (begun.elapsed().as_secs_f64() * 1e3, image.data().len() / 1024);
            println!(
                "{}: {max_side:?}: {}x{}, {ms:.1} ms, {kib} KiB",
                path.display(),
                image.width(),
                image.height()
            );
        }
    }
}
