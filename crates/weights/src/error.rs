//! What can be wrong with a file of weights.

use std::path::PathBuf;

use swav_encoder::EncoderError;

/// Why weights cannot be read, understood or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file cannot be read at all.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something is wrong with the contents of a file.
    #[error("{path}")]
    In {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<WeightsError>,
    },
    /// A file of another kind.
    #[error("expected {expected}, got {got}")]
    Format {
        /// The kinds of file that are read.
        expected: &'static str,
        /// What the file is.
        got: String,
    },
    /// A part of the file is not as its format wants it.
    #[error("{part}: expected {expected}, got {got}")]
    Malformed {
        /// The part.
        part: String,
        /// What the format wants.
        expected: String,
        /// What is there.
        got: String,
    },
    /// The file ends too early.
    #[error("{part}: expected a file of {expected} bytes or more, got {got}; is it truncated?")]
    Truncated {
        /// The part that would end behind the end.
        part: String,
        /// Bytes that the file would need to have.
        expected: u64,
        /// Bytes that it has.
        got: u64,
    },
    /// The pickle asks for something that tensors do not need. Nothing of it was executed.
    #[error(
        "the pickle asks for `{name}`: expected nothing but tensors in dictionaries and lists; nothing was executed. If you \
         trust the file, load it in Python and save its state_dict() alone"
    )]
    Refused {
        /// The function or class, with its module.
        name: String,
    },
    /// More than any file of weights needs.
    #[error("{part}: expected at most {expected}, got {got}")]
    TooLarge {
        /// What is too large.
        part: String,
        /// The limit.
        expected: u64,
        /// What the file has.
        got: u64,
    },
    /// A tensor is not what it has to be.
    #[error("tensor `{name}`: expected {expected}, got {got}")]
    Tensor {
        /// Its name.
        name: String,
        /// What it has to be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// Several networks in one file.
    #[error("expected one network, got {}; choose one by its prefix", .got.join(", "))]
    Ambiguous {
        /// The prefixes of their names.
        got: Vec<String>,
    },
    /// The tensors are not those of a residual network.
    #[error("expected a residual network: {expected}; got {got}")]
    NotResNet {
        /// What a residual network has.
        expected: String,
        /// What is there.
        got: String,
    },
    /// The tensors do not fit the architecture.
    #[error("the weights do not fit the architecture:{}", lines(.missing, .shapes))]
    Misfit {
        /// Names of tensors that are not there.
        missing: Vec<String>,
        /// Tensors of other shapes: name, expected shape, shape.
        shapes: Vec<(String, Vec<usize>, Vec<usize>)>,
    },
    /// A file cannot be written. What was there before is as it was.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is a file already.
    #[error("{path} exists already (nothing was changed)")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The network has no such part to export.
    #[error("{what}: expected a network with {expected}, got one without")]
    NoPart {
        /// What was asked for.
        what: &'static str,
        /// What it needs.
        expected: &'static str,
    },
    /// The architecture is refused.
    #[error("the architecture is refused")]
    Encoder(#[from] EncoderError),
    /// A preprocessing that cannot be done.
    #[error("preprocessing: expected {expected}, got {got}")]
    Preprocessing {
        /// What can be done.
        expected: String,
        /// What came.
        got: String,
    },
}

/// How many lines of a list are shown.
const SHOWN: usize = 8;

fn lines(missing: &[String], shapes: &[(String, Vec<usize>, Vec<usize>)]) -> String {
    let of_missing = missing.iter().map(|name| format!("\n  {name}: missing"));
    let of_shapes = shapes
        .iter()
        .map(|(name, expected, got)| format!("\n  {name}: expected shape {expected:?}, got {got:?}"));
    let mut text: String = of_missing.chain(of_shapes).take(SHOWN).collect();
    let n_more = (missing.len() + shapes.len()).saturating_sub(SHOWN);
    if n_more > 0 {
        text += &format!("\n  and {n_more} more");
    }
    text
}

impl WeightsError {
    /// A part that is not as its format wants it.
    pub(crate) fn malformed(part: impl Into<String>, expected: impl ToString, got: impl ToString) -> Self {
        Self::Malformed { part: part.into(), expected: expected.to_string(), got: got.to_string() }
    }

    /// A tensor that is not what it has to be.
    pub(crate) fn tensor(name: &str, expected: impl ToString, got: impl ToString) -> Self {
        Self::Tensor { name: name.to_owned(), expected: expected.to_string(), got: got.to_string() }
    }

    /// The same, saying which file it is about.
    #[must_use]
    pub fn in_file(self, path: impl Into<PathBuf>) -> Self {
        match self {
            named @ (Self::Read { .. } | Self::Write { .. } | Self::Exists { .. } | Self::In { .. }) => named,
            other => Self::In { path: path.into(), source: Box::new(other) },
        }
    }
}
