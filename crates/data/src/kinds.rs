//! Files that people have beside images and that are not read: known by their names or first bytes, with what to do.

/// A kind of file that no data set of ours is made of.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileKind {
    /// What people call it.
    pub(crate) name: &'static str,
    /// What to do to have its images read.
    pub(crate) advice: &'static str,
    endings: &'static [&'static str],
}

const CONVERT: &str = "convert them to JPEG or PNG";
const UNPACK: &str = "unpack them";
const EXPORT: &str = "write the images to files, one folder for each class, or to tar shards";

macro_rules! kinds {
    ($($constant:ident: $name:literal, $advice:expr, [$($ending:literal),*];)*) => {
        $(const $constant: FileKind = FileKind { name: $name, advice: $advice, endings: &[$($ending),*] };)*
        /// All of them, of which the first with a name's ending counts.
        const KINDS: &[&FileKind] = &[$(&$constant),*];
    };
}

kinds! {
    HEIC: "HEIC", CONVERT, ["heic", "heif", "hif", "heics", "heifs"];
    AVIF: "AVIF", CONVERT, ["avif", "avifs"];
    JXL: "JPEG XL", CONVERT, ["jxl"];
    JP2: "JPEG 2000", CONVERT, ["jp2", "j2k", "jpf", "jpx", "j2c", "jpc"];
    SVG: "SVG", "draw them as PNG", ["svg", "svgz"];
    PSD: "Photoshop", CONVERT, ["psd", "psb"];
    RAW: "camera raw", CONVERT, [
        "dng", "cr2", "cr3", "crw", "nef", "nrw", "arw", "srf", "sr2", "orf", "rw2", "raf", "pef", "srw", "x3f", "3fr", "raw"
    ];
    EXR: "OpenEXR", CONVERT, ["exr"];
    HDR: "Radiance HDR", CONVERT, ["hdr"];
    TGA: "TGA", CONVERT, ["tga"];
    DDS: "DDS", CONVERT, ["dds"];
    ICO: "ICO", CONVERT, ["ico", "cur", "icns"];
    QOI: "QOI", CONVERT, ["qoi"];
    XCF: "GIMP", CONVERT, ["xcf"];
    DICOM: "DICOM", CONVERT, ["dcm", "dicom"];
    NIFTI: "NIfTI", "cut them into slices as PNG", ["nii", "nii.gz"];
    PDF: "PDF", "draw their pages as PNG", ["pdf", "ps", "eps"];
    VIDEO: "video", "write their frames as JPEG", [
        "mp4", "mov", "avi", "mkv", "webm", "m4v", "mpg", "mpeg", "wmv", "3gp", "mts"
    ];
    TAR_GZ: "gzipped tar", UNPACK, ["tar.gz", "tgz"];
    TAR_OTHER: "compressed tar", UNPACK, ["tar.bz2", "tbz2", "tbz", "tar.xz", "txz", "tar.zst", "tzst", "tar.lz4", "tar.z"];
    TAR: "tar", "to read them, give their path", ["tar"];
    PARQUET: "Parquet", "to read them, give their path", ["parquet"];
    ZIP: "zip", UNPACK, ["zip", "zipx", "cbz"];
    SEVEN: "7z", UNPACK, ["7z"];
    RAR: "RAR", UNPACK, ["rar", "cbr"];
    MATLAB: "MATLAB", EXPORT, ["mat"];
    HDF5: "HDF5", EXPORT, ["h5", "hdf5", "hdf", "he5"];
    LMDB: "LMDB", EXPORT, ["mdb", "lmdb"];
    NUMPY: "numpy", EXPORT, ["npy", "npz"];
    PICKLE: "Python pickle", EXPORT, ["pkl", "pickle", "p", "joblib"];
    TORCH: "PyTorch", EXPORT, ["pt", "pth", "ckpt"];
    TFRECORD: "TFRecord", EXPORT, ["tfrecord", "tfrecords", "array_record", "riegeli"];
    RECORDIO: "MXNet RecordIO", EXPORT, ["rec"];
    ARROW: "Arrow", "write them as Parquet (`datasets.Dataset.to_parquet`)", ["arrow", "feather"];
    FFCV: "FFCV", EXPORT, ["beton"];
    MDS: "MosaicML streaming", EXPORT, ["mds"];
    SQLITE: "SQLite", EXPORT, ["sqlite", "sqlite3", "db3"];
    CIFAR_PICKLE: "CIFAR's Python pickle", "take the binary version of the data set (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz)", [];
    IDX_FILE: "IDX", "give the folder that they are in", [];
}

/// What Git keeps in place of a large file that was not fetched.
pub(crate) const LFS_POINTER: FileKind = FileKind {
    name: "Git LFS pointer",
    advice: "fetch what they stand for with `git lfs pull`",
    endings: &[],
};

/// What lies on other machines.
pub(crate) const REMOTE: FileKind =
    FileKind { name: "remote", advice: "download them, and list the files", endings: &[] };

/// Members of archives.
pub(crate) const ENCRYPTED: FileKind =
    FileKind { name: "encrypted", advice: "unpack the archive with its password", endings: &[] };
pub(crate) const PACKED_OTHERWISE: FileKind = FileKind {
    name: "bzip2, LZMA or zstd",
    advice: "unpack the archive, or pack it with deflate",
    endings: &[],
};

/// Files of data sets within an archive.
pub(crate) const PACKED: FileKind = FileKind { name: "packed data set", advice: UNPACK, endings: &[] };

/// Whether a name is that of a file that holds many images, and would be read if it lay in a folder.
pub(crate) fn is_packed_data(name: &[u8]) -> bool {
    let name = std::str::from_utf8(name).unwrap_or_default();
    crate::idx::is_images_name(name)
        || crate::cifar::is_cifar_name(name)
        || [".tar", ".tar.gz", ".tgz", ".parquet"].iter().any(|ending| name.ends_with(ending))
}

/// The kind that a file's name tells.
pub(crate) fn of_name(name: &[u8]) -> Option<&'static FileKind> {
    if is_cifar_pickle(name) {
        return Some(&CIFAR_PICKLE);
    }
    if is_idx(name) {
        return Some(&IDX_FILE);
    }
    let lower = name.to_ascii_lowercase();
    // TFRecord shards are called `x.tfrecord-00000-of-00010`.
    if lower.windows(10).any(|window| window == b".tfrecord-") {
        return Some(&TFRECORD);
    }
    let ends = |ending: &&str| {
        lower
            .strip_suffix(ending.as_bytes())
            .is_some_and(|before| before.last() == Some(&b'.') && before.len() > 1)
    };
    KINDS.iter().copied().find(|kind| kind.endings.iter().any(ends))
}

/// Whether a name is that of a file of the MNIST family, be it of images or of labels.
pub(crate) fn is_idx(name: &[u8]) -> bool {
    let lower = name.to_ascii_lowercase();
    lower.ends_with(b"-ubyte") || lower.ends_with(b"-ubyte.gz")
}

/// The files of CIFAR's version for Python have no ending. `train` and `test` of CIFAR-100 say too little.
fn is_cifar_pickle(name: &[u8]) -> bool {
    let number = name.strip_prefix(b"data_batch_");
    number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
        || name == b"test_batch"
        || name == b"batches.meta"
}

/// Whether a file's first bytes are those of a [`LFS_POINTER`].
pub(crate) fn is_lfs_pointer(start: &[u8]) -> bool {
    start.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// The kind that a file's first bytes tell; 262 of them are enough.
pub(crate) fn of_bytes(start: &[u8]) -> Option<&'static FileKind> {
    if start.get(4..8) == Some(b"ftyp") {
        return Some(media(&start[8..]));
    }
    if is_lfs_pointer(start) {
        return Some(&LFS_POINTER);
    }
    let magic: &[(&[u8], &FileKind)] = &[
        (b"\xff\x0a", &JXL),
        (b"\0\0\0\x0cJXL \r\n\x87\n", &JXL),
        (b"\0\0\0\x0cjP  \r\n\x87\n", &JP2),
        (b"\xff\x4f\xff\x51", &JP2),
        (b"8BPS", &PSD),
        (b"FUJIFILM", &RAW),
        (b"IIRO", &RAW),
        (b"IIU\0", &RAW),
        (b"v/1\x01", &EXR),
        (b"#?RADIANCE", &HDR),
        (b"DDS ", &DDS),
        (b"qoif", &QOI),
        (b"gimp xcf", &XCF),
        (b"%PDF", &PDF),
        (b"%!PS", &PDF),
        (b"\x1a\x45\xdf\xa3", &VIDEO),
        (b"PK\x03\x04", &ZIP),
        (b"PK\x05\x06", &ZIP),
        (b"7z\xbc\xaf\x27\x1c", &SEVEN),
        (b"Rar!\x1a\x07", &RAR),
        (b"\x1f\x8b", &TAR_GZ),
        (b"\x28\xb5\x2f\xfd", &TAR_OTHER),
        (b"BZh", &TAR_OTHER),
        (b"\xfd7zXZ\0", &TAR_OTHER),
        (b"MATLAB", &MATLAB),
        (b"\x89HDF\r\n\x1a\n", &HDF5),
        (b"\x93NUMPY", &NUMPY),
        (b"ARROW1", &ARROW),
        (b"SQLite format 3\0", &SQLITE),
        (b"\x80\x02", &PICKLE),
        (b"\x80\x03", &PICKLE),
        (b"\x80\x04", &PICKLE),
        (b"\x80\x05", &PICKLE),
    ];
    if let Some((_, kind)) = magic.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(kind);
    }
    if start.get(128..132) == Some(b"DICM") {
        return Some(&DICOM);
    }
    // LMDB's number lies behind the first page's header, in the machine's order.
    if matches!(start.get(16..20), Some(b"\xde\xc0\xef\xbe" | b"\xbe\xef\xc0\xde")) {
        return Some(&LMDB);
    }
    let text = start.trim_ascii_start();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text).to_ascii_lowercase();
    let holds = |word: &[u8]| text.windows(word.len()).any(|window| window == word);
    (text.starts_with(b"<svg") || (text.starts_with(b"<?xml") && holds(b"<svg"))).then_some(&SVG)
}

/// The kind of an ISO media file by its first brand that tells: `mif1` stands first in HEIC and in AVIF files.
fn media(brands: &[u8]) -> &'static FileKind {
    let brands = brands.chunks_exact(4).take(16);
    for brand in brands {
        match brand {
            b"avif" | b"avis" => return &AVIF,
            b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" => return &HEIC,
            b"crx " => return &RAW,
            b"isom" | b"iso2" | b"mp41" | b"mp42" | b"qt  " | b"avc1" | b"M4V " => return &VIDEO,
            _ => {}
        }
    }
    &HEIC
}

/// Files that say something about a data set and are no part of it: nobody needs to be told that they are no images.
pub(crate) fn is_furniture(name: &[u8]) -> bool {
    let lower = name.to_ascii_lowercase();
    let starts: [&[u8]; 5] = [b"readme", b"license", b"licence", b"copying", b"citation"];
    starts.iter().any(|start| lower.starts_with(start))
        || matches!(&lower[..], b"thumbs.db" | b"desktop.ini" | b"ehthumbs.db" | b"batches.meta.txt")
        || lower.ends_with(b".md")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_kinds() {
        for (name, expected) in [
            ("IMG_1.HEIC", Some("HEIC")),
            ("a.avif", Some("AVIF")),
            ("icon.svg", Some("SVG")),
            ("a.tar.gz", Some("gzipped tar")),
            ("a.tgz", Some("gzipped tar")),
            ("a.tar.xz", Some("compressed tar")),
            ("photos.ZIP", Some("zip")),
            ("train_32x32.mat", Some("MATLAB")),
            ("data.mdb", Some("LMDB")),
            ("camelyon.h5", Some("HDF5")),
            ("data_batch_1", Some("CIFAR's Python pickle")),
            ("test_batch", Some("CIFAR's Python pickle")),
            ("data_batch_1.bin", None),
            ("data_batch_x", None),
            ("train.tfrecord-00000-of-00010", Some("TFRecord")),
            ("train-labels-idx1-ubyte.gz", Some("IDX")),
            ("notes.txt", None),
            (".zip", None),
            ("zip", None),
        ] {
            assert_eq!(of_name(name.as_bytes()).map(|kind| kind.name), expected, "{name}");
        }
    }

    #[test]
    fn first_bytes_tell_kinds() {
        for (start, expected) in [
            (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], Some("HEIC")),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", Some("HEIC")),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", Some("AVIF")),
            (b"\0\0\0\x1cftypavif\0\0\0\0avif", Some("AVIF")),
            (b"\0\0\0\x18ftypmp42\0\0\0\0isom", Some("video")),
            (b"\0\0\0\x0cftyp", Some("HEIC")),
            (b"<?xml version=\"1.0\"?>\n<svg>", Some("SVG")),
            (b"version https://git-lfs.github.com/spec/v1\noid", Some("Git LFS pointer")),
            (b"<html><svg>", None),
            (b"PK\x03\x04rest", Some("zip")),
            (b"\x89PNG\r\n\x1a\n", None),
            (b"", None),
        ] {
            assert_eq!(of_bytes(start).map(|kind| kind.name), expected, "{start:?}");
        }
    }
}
