//! What is fed, and what has to hold of the answer.

use std::{fs, io::Cursor, path::Path};

use swav_data::{
    CifarKind, DataConfig, DecodeConfig, Format, SampleError, Split, check_cifar, decode, open, read_idx,
    scan_tar,
};
#[cfg(feature = "train")]
use swav_train::{Checkpoint, TrainConfig};
#[cfg(feature = "train")]
use swav_weights::{Import, WeightsFile};

/// What parses the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Parser {
    /// Pictures of every format.
    Image,
    /// Tar archives.
    Tar,
    /// Gzipped tar archives.
    Tgz,
    /// Zip archives.
    Zip,
    /// IDX files, plain and gzipped.
    Idx,
    /// CIFAR's binary files.
    Cifar,
    /// File lists.
    List,
    /// Parquet files.
    Parquet,
    /// Checkpoints.
    #[cfg(feature = "train")]
    Checkpoint,
    /// Configurations.
    #[cfg(feature = "train")]
    Config,
    /// Weights: safetensors and both formats of PyTorch.
    #[cfg(feature = "train")]
    Weights,
}

impl Parser {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Image,
        Self::Tar,
        Self::Tgz,
        Self::Zip,
        Self::Idx,
        Self::Cifar,
        Self::List,
        Self::Parquet,
        #[cfg(feature = "train")]
        Self::Checkpoint,
        #[cfg(feature = "train")]
        Self::Config,
        #[cfg(feature = "train")]
        Self::Weights,
    ];

    /// Its name, as options have it.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// What a parser made of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It read it.
    Read,
    /// It gave an error.
    Refused,
    /// A library panicked, and the parser gave an error.
    Contained,
}

fn answer<T, E>(result: Result<T, E>) -> Answer {
    if result.is_ok() { Answer::Read } else { Answer::Refused }
}

/// Images of more pixels are refused.
const MAX_PIXELS: u64 = 1 << 18;
/// Archives that unpack to more are refused.
const UNPACK_MIB: usize = 8;

/// Feeds one input; what has to be a file is written into the scratch folder first.
///
/// # Panics
/// If the parser does, or if its answer contradicts the input.
pub fn feed(parser: Parser, input: &[u8], scratch: &Path) -> Answer {
    match parser {
        Parser::Image => image(input),
        Parser::Tar => {
            let mut end = 0;
            let result = scan_tar(Cursor::new(input), |member| {
                assert!(member.offset >= end, "members follow each other");
                end = member.offset + member.size;
            });
            assert!(end <= input.len() as u64, "members lie inside the archive");
            if result.is_ok_and(|summary| summary.n_corrupt > 0 || summary.truncated) {
                return Answer::Refused;
            }
            data_set(input, &scratch.join("x.tar"), Format::Tar)
        }
        Parser::Tgz => data_set(input, &scratch.join("x.tgz"), Format::Tar),
        Parser::Zip => data_set(input, &scratch.join("x.zip"), Format::Tar),
        Parser::Idx => {
            let array = if input.starts_with(&[0x1f, 0x8b]) {
                read_idx(flate2::read::MultiGzDecoder::new(input))
            } else {
                read_idx(input)
            };
            if let Ok(array) = &array {
                assert_eq!(array.shape.iter().product::<usize>(), array.data.len());
            }
            answer(array)
        }
        Parser::Cifar => {
            let kinds = [CifarKind::Cifar10, CifarKind::Cifar100];
            answer(kinds.into_iter().find_map(|kind| check_cifar(input, kind).ok()).ok_or(()))
        }
        Parser::List => data_set(input, &scratch.join("list.txt"), Format::List),
        Parser::Parquet => data_set(input, &scratch.join("x.parquet"), Format::Parquet),
        #[cfg(feature = "train")]
        Parser::Checkpoint => {
            let path = scratch.join("checkpoint.safetensors");
            fs::write(&path, input).expect("the scratch folder takes files");
            answer(Checkpoint::read(&path))
        }
        #[cfg(feature = "train")]
        Parser::Weights => match WeightsFile::from_bytes(input.to_vec()) {
            Ok(mut file) => {
                let n_values: usize = file.tensors().map(|(_, tensor)| tensor.n_values()).sum();
                let read = file.read_all();
                assert!(read.is_err() || n_values <= input.len(), "no more numbers than bytes");
                let _ = Import::read(&mut file, None);
                answer(read)
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                Answer::Refused
            }
        },
        #[cfg(feature = "train")]
        Parser::Config => {
            let text = String::from_utf8_lossy(input);
            let config = TrainConfig::parse(&text, &[]);
            answer(config.map_err(|_| ()).and_then(|config| config.check().map_err(|_| ())))
        }
    }
}

fn image(input: &[u8]) -> Answer {
    let side = input.len().is_multiple_of(3).then_some(20);
    let config = DecodeConfig { max_pixels: MAX_PIXELS, max_side: side, ..DecodeConfig::default() };
    match decode(input, &config) {
        Ok(image) => {
            assert!(u64::from(image.width()) * u64::from(image.height()) <= MAX_PIXELS, "max_pixels holds");
            assert!(side.is_none_or(|side| image.width().max(image.height()) <= side), "max_side holds");
            Answer::Read
        }
        Err(SampleError::DecoderPanic(_)) => Answer::Contained,
        Err(_) => Answer::Refused,
    }
}

/// Opens a file as a data set and reads some of its images and labels.
fn data_set(input: &[u8], path: &Path, format: Format) -> Answer {
    fs::write(path, input).expect("the scratch folder takes files");
    let decode = DecodeConfig { max_pixels: MAX_PIXELS, ..DecodeConfig::default() };
    let config = DataConfig {
        format,
        split: Split::All,
        decode,
        cache_mib: 1,
        unpack_mib: UNPACK_MIB,
        ..DataConfig::default()
    };
    let Ok(data) = open(path, &config) else { return Answer::Refused };
    // Headers of 512 bytes each may be packed to one.
    assert!(data.len() <= 2 * input.len(), "no data set has more images than bytes");
    let mut answer = Answer::Read;
    for index in [0, data.len() / 2, data.len() - 1, data.len()] {
        let _ = (data.label(index), data.name(index));
        match data.image(index) {
            Ok(_) => {}
            Err(SampleError::DecoderPanic(_)) => answer = Answer::Contained,
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    answer
}
