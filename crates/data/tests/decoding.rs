//! What encoded images become, and how bad ones are refused.

mod common;

use common::{jpeg, picture, png, raw_png};
use swav_augment::Channels;
use swav_data::{DecodeConfig, SampleError, decode};

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

#[test]
fn a_truncated_jpeg_is_refused_wherever_it_is_cut() {
    let bytes = jpeg(&picture(64, 48, 1));
    for share in [10, 30, 50, 80, 99] {
        let cut = &bytes[..bytes.len() * share / 100];
        assert!(matches!(error(cut), SampleError::Truncated(_)), "{share}%: {:?}", error(cut));
    }
    assert!(matches!(error(&bytes[..bytes.len() - 1]), SampleError::Truncated(_)));
    assert!(decode(&bytes, &DecodeConfig::default()).is_ok());
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
fn the_exif_orientation_is_applied_on_demand_only() {
    let bytes = turned(&picture(20, 10, 0));
    let size = |apply_orientation| {
        let config = DecodeConfig { apply_orientation, ..DecodeConfig::default() };
        let image = decode(&bytes, &config).unwrap();
        (image.width(), image.height())
    };
    assert_eq!((size(false), size(true)), ((20, 10), (10, 20)));
}
