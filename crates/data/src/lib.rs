#![doc = include_str!("../README.md")]

mod batch;
mod cache;
mod census;
mod check;
mod cifar;
mod config;
mod dataset;
mod decode;
mod error;
mod folder;
mod hash;
mod idx;
mod kinds;
mod labels;
mod layout;
mod list;
mod loader;
mod names;
mod open;
#[cfg(feature = "parquet")]
mod parquet;
mod sampler;
mod shapes;
mod shards;
mod source;
mod survey;
mod table;
mod tar;
mod unpack;
mod views;
mod zip;

pub use batch::{BadImage, CropGroup, MultiCropBatch, ViewKey, ViewShape, Views};
pub use cache::Cached;
pub use census::LabelCensus;
pub use check::{BadFile, CheckReport, check};
pub use cifar::{Cifar, CifarKind, check_cifar};
pub use config::{DataConfig, DataSpec, Format, Split};
pub use dataset::{Dataset, Subset};
pub use decode::{DecodeConfig, JpegFault, decode, jpeg_end};
pub use error::{Cause, DataError, LoaderError, SampleError};
pub use folder::Folder;
pub use hash::StableHash;
pub use idx::{Idx, IdxArray, read_idx};
pub use labels::LabelKind;
pub use list::{FileList, split_list_line};
pub use loader::{BatchPlan, Loader, LoaderConfig, LoaderSpec, LoaderStats, OnBad, Position};
pub use open::{open, survey};
#[cfg(feature = "parquet")]
pub use parquet::ParquetImages;
pub use sampler::Shuffle;
pub use shapes::{Shapes, ShapesConfig, ShapesSpec};
pub use shards::{Shards, split_member_name};
pub use survey::{LeftAside, Reason, Survey};
pub use tar::{TarMember, TarSummary, scan_tar};
pub use views::{ReadViews, read_views, view_batch_size, view_values};
