//! Whole files for each parser, small, of every kind that it reads.

use std::{io::Cursor, path::Path};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
#[cfg(feature = "train")]
use swav_encoder::{BlockKind, EncoderConfig, Head, ResNet, StateDict, StateTensor, Stem};
#[cfg(feature = "train")]
use swav_weights::Metadata;
#[cfg(feature = "train")]
use swav_weights::export::{to_safetensors, to_torch};

use crate::parsers::Parser;
use crate::zip::zip_of;

macro_rules! files {
    ($folder:literal: $($name:literal),* $(,)?) => {
        vec![$(include_bytes!(concat!("../../data/tests/data/", $folder, "/", $name)).to_vec()),*]
    };
}

/// Whole files for a parser, small, of every kind that it reads.
///
/// # Errors
/// Those of the scratch folder, and of the encoders of pictures.
#[cfg_attr(not(feature = "train"), allow(unused_variables))]
pub fn of(parser: Parser, scratch: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    Ok(match parser {
        Parser::Image => images()?,
        // Those of gzipped archives are packed after the damage.
        Parser::Tar | Parser::Tgz => tars()?,
        Parser::Zip => {
            let images = images()?;
            vec![
                zip_of(&[
                    ("a/1.png", &images[0]),
                    ("a/1.cls", b"3"),
                    ("b/2.jpg", &images[5]),
                    ("notes.txt", b"x"),
                ]),
                zip_of(&[("x/train/1.png", &images[1]), ("x/test/2.png", &images[2]), ("._1.png", b"y")]),
            ]
        }
        Parser::Idx => {
            let (images, labels) = (idx(&[5, 6, 7]), idx(&[5]));
            vec![gzip(&images)?, images, labels, idx(&[3, 4, 4, 3])]
        }
        Parser::Cifar => vec![cifar(1, 3), cifar(2, 2)],
        Parser::List => [
            "a.png\nb c.jpg\n# note\nd/e.webp\n",
            "a.png 3\nb.png 0\n",
            "path,label\na,b.png,cat\nc.png,dog\n",
            "a.png\tx\ttrain\nb.png\ty\ttest\n",
            "\u{feff}\"a b.png\";1\r\n\"c.png\";2\r\n",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec(),
        Parser::Parquet => {
            let mut files = files!("encodings": "brotli.parquet", "dictionary.parquet", "dictionary_v2.parquet",
                "lengths.parquet", "lz4.parquet", "plain.parquet", "plain_v2.parquet", "prefixes.parquet", "struct.parquet");
            files.extend(
                files!(".": "hugging_face.parquet", "large.parquet", "named.parquet", "plain.parquet"),
            );
            files
        }
        #[cfg(feature = "train")]
        Parser::Checkpoint => vec![checkpoint(scratch)?],
        #[cfg(feature = "train")]
        Parser::Weights => weights()?,
        #[cfg(feature = "train")]
        Parser::Config => vec![
            include_bytes!("../../cli/recipes/quickstart.toml").to_vec(),
            include_bytes!("../../cli/recipes/photos.toml").to_vec(),
            include_bytes!("../../cli/recipes/imagenet-400ep-w5.toml").to_vec(),
        ],
    })
}

/// A small network in safetensors and in a zip archive of PyTorch, and one tensor in PyTorch's older format.
#[cfg(feature = "train")]
fn weights() -> anyhow::Result<Vec<Vec<u8>>> {
    let arch = ResNet::custom(BlockKind::Basic, [1]).with_width(2).with_stem(Stem::Cifar).into();
    let spec = EncoderConfig { arch, head: Head::Linear, dim: 3, ..EncoderConfig::default() }.check()?;
    let tensor = |shape: Vec<usize>| {
        let len = shape.iter().product();
        StateTensor::new(shape, vec![0.5; len])
    };
    let state: StateDict = spec
        .tensors()
        .into_iter()
        .map(|(name, shape)| Ok((name, tensor(shape)?)))
        .collect::<anyhow::Result<_>>()?;
    let legacy: &[&[u8]] = &[
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.",
        b"\x80\x02}X\x0d\0\0\0little_endian\x88s.",
        b"\x80\x02}q\0(X\x01\0\0\0tctorch._utils\n_rebuild_tensor_v2\nq\x01((X\x07\0\0\0storagectorch\nFloatStorage\n",
        b"X\x01\0\0\x000X\x03\0\0\0cpuK\x06tQK\0K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtRu.",
        b"\x80\x02]X\x01\0\0\x000a.\x06\0\0\0\0\0\0\0",
        &[7; 24],
    ];
    Ok(vec![to_safetensors(&state, &Metadata::new()), to_torch(&state)?, legacy.concat()])
}

fn images() -> anyhow::Result<Vec<Vec<u8>>> {
    let drawn = RgbImage::from_fn(23, 17, |x, y| Rgb([(x * 11) as u8, (y * 15) as u8, (x * y) as u8]));
    let drawn = DynamicImage::from(drawn);
    let variants = [
        drawn.clone(),
        drawn.to_luma8().into(),
        drawn.to_rgba8().into(),
        drawn.to_rgb16().into(),
        drawn.to_luma_alpha8().into(),
    ];
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Pnm, Tiff, WebP};
    let mut files = Vec::new();
    for format in [Png, Jpeg, Gif, Bmp, Pnm, Tiff, WebP] {
        for variant in &variants {
            let mut file = Cursor::new(Vec::new());
            // Not every format takes every variant.
            if variant.write_to(&mut file, format).is_ok() {
                files.push(file.into_inner());
            }
        }
    }
    files.extend(files!("pillow": "big.tif", "cmyk.jpg", "float.tif", "large_420.jpg", "large_progressive.jpg",
        "palette.tif", "palette_lzw.tif", "rgb_jpeg.tif", "turned_6.jpg", "turned_6.png", "turned_6.tif", "turned_6.webp",
        "ycbcr_jpeg.tif"));
    Ok(files)
}

/// Archives of images, of images with labels, and of archives.
fn tars() -> anyhow::Result<Vec<Vec<u8>>> {
    let images = images()?;
    let long = "long/".repeat(30);
    let plain = tar(&[("a/1.png", &images[0]), ("a/1.cls", b"3"), (&long, &[7; 20]), ("b.jpg", &[7; 1100])]);
    let inner = tar(&[("1.png", &images[1]), ("2.jpg", &images[5])]);
    let nested =
        tar(&[("n01.tar", &inner), ("n02.tar", &tar(&[("n03.tar", &inner)])), ("a.png", &images[0])]);
    Ok(vec![plain, nested])
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in members {
        let size = content.len();
        let mut block = [0; 512];
        let name = &name.as_bytes()[..name.len().min(99)];
        block[..name.len()].copy_from_slice(name);
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[156] = b'0';
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte: &u8| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend(block);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.extend([0; 1024]);
    archive
}

fn idx(shape: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, shape.len() as u8];
    shape.iter().for_each(|size| bytes.extend(size.to_be_bytes()));
    bytes.extend((0..shape.iter().product::<u32>()).map(|value| value as u8));
    bytes
}

/// A gzipped file.
pub(crate) fn gzip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut file = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut file, bytes)?;
    Ok(file.finish()?)
}

fn cifar(label_bytes: usize, n: usize) -> Vec<u8> {
    (0..n).flat_map(|image| [vec![image as u8; label_bytes], vec![image as u8; 3072]].concat()).collect()
}

#[cfg(feature = "train")]
fn checkpoint(scratch: &Path) -> anyhow::Result<Vec<u8>> {
    use anyhow::Context;
    use swav_train::{Checkpoint, RunPosition, Section};

    let section =
        Section { values: [("rows".to_owned(), 3.into())].into_iter().collect(), ..Section::default() };
    let checkpoint = Checkpoint {
        position: RunPosition { epoch: 1, batch: 2, step: 12 },
        config: "[training]\nepochs = 3\n".to_owned(),
        data_fingerprint: 7,
        data_description: "images".to_owned(),
        world_size: 1,
        state: Default::default(),
        optimizer: Default::default(),
        sections: std::collections::BTreeMap::from([("codes".to_owned(), vec![section])]),
    };
    let path = scratch.join("seed.safetensors");
    checkpoint.write(&path).context("a checkpoint to begin with")?;
    Ok(std::fs::read(path)?)
}
