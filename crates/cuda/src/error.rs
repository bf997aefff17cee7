//! The errors of this crate.

use std::path::PathBuf;

/// What can be wrong with a card, its libraries, or a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A library was not found in any of the places that were searched.
    #[error("{library} was not found; {remedy}")]
    LibraryMissing {
        /// What was looked for, in words.
        library: &'static str,
        /// How to get it.
        remedy: String,
    },
    /// A library was found, but the loader refused it or it lacks a function.
    #[error("{library} at {path} cannot be used")]
    LibraryBroken {
        /// What was looked for, in words.
        library: &'static str,
        /// The file.
        path: PathBuf,
        /// What the loader said.
        #[source]
        source: libloading::Error,
    },
    /// A library was found in a version that this crate does not know.
    #[error("{library} at {path} has version {got}, expected {expected}")]
    LibraryVersion {
        /// What was looked for, in words.
        library: &'static str,
        /// The file.
        path: PathBuf,
        /// The versions that work.
        expected: &'static str,
        /// The version there.
        got: String,
    },
    /// The driver is older than what the libraries need.
    #[error("the NVIDIA driver supports CUDA up to {got}, expected {expected} or newer; {remedy}")]
    DriverTooOld {
        /// The oldest version that works, and what needs it.
        expected: String,
        /// The version that the driver supports.
        got: String,
        /// What helps.
        remedy: String,
    },
    /// The machine has fewer cards than the number asked for.
    #[error("no card {got}: this machine has {expected} usable card(s)")]
    NoSuchCard {
        /// How many there are.
        expected: usize,
        /// The number asked for.
        got: usize,
    },
    /// The card is too old for bf16 and the kernels of this crate.
    #[error("{card} has compute capability {}.{}, expected 8.0 (Ampere) or newer", got.0, got.1)]
    CardTooOld {
        /// The card's name.
        card: String,
        /// Its compute capability.
        got: (u32, u32),
    },
    /// The card's memory does not suffice.
    #[error(
        "out of memory on {card}: {} MiB needed, {} of {} MiB free",
        .needed.div_ceil(1 << 20),
        .free >> 20,
        .total >> 20
    )]
    OutOfMemory {
        /// The card's name.
        card: String,
        /// Bytes that were asked for.
        needed: u64,
        /// Bytes that were free.
        free: u64,
        /// Bytes of the card.
        total: u64,
    },
    /// A call to the driver failed.
    #[error("{call} failed: {name} ({code}), {text}")]
    Driver {
        /// The function of the driver.
        call: &'static str,
        /// CUDA's number of the error.
        code: i32,
        /// CUDA's name of the error.
        name: String,
        /// CUDA's description.
        text: String,
    },
    /// The kernels could not be compiled.
    #[error("the kernels could not be compiled for {arch} (NVRTC's status {status}):\n{log}")]
    Compile {
        /// The architecture, as `sm_90`.
        arch: String,
        /// NVRTC's status.
        status: i32,
        /// The compiler's log.
        log: String,
    },
    /// A call to cuDNN failed.
    #[error("cuDNN: {call} failed with status {status}: {text}")]
    Cudnn {
        /// What was called.
        call: &'static str,
        /// cuDNN's status.
        status: u32,
        /// cuDNN's last message.
        text: String,
    },
    /// cuDNN has no way to compute a convolution that is allowed here.
    #[error("cuDNN has no usable plan for {operation}")]
    NoPlan {
        /// The convolution, in words.
        operation: String,
    },
    /// A stored choice of plans cannot be used.
    #[error("the stored choice of plans is of no use here: {reason}")]
    Plans {
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// An argument does not have the size that the operation needs.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// What the operation needs.
        expected: String,
        /// What the caller passed.
        got: String,
    },
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_in_units_that_can_be_read() {
        let error = Error::OutOfMemory {
            card: "Some Card".into(),
            needed: (5 << 30) + 1,
            free: 7 << 20,
            total: 24 << 30,
        };
        assert_eq!(error.to_string(), "out of memory on Some Card: 5121 MiB needed, 7 of 24576 MiB free");
    }
}
