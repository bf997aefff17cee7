//! Damaged and hostile input for everything that parses: whole files of every kind, ways to damage them, and what has to hold of
//! the answers.
//!
//! ```
//! use rand::SeedableRng;
//! use swav_fuzz::{Parser, case, feed, seeds};
//! let scratch = tempfile::tempdir()?;
//! let seeds = seeds(Parser::Idx, scratch.path())?;
//! let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
//! for _ in 0..100 {
//!     feed(Parser::Idx, &case(Parser::Idx, &seeds, &mut rng), scratch.path());
//! }
//! # Ok::<(), anyhow::Error>(())
//! ```

mod mutate;
mod parsers;
mod seeds;
#[path = "../../data/tests/common/zip.rs"]
mod zip;

pub use mutate::case;
pub use parsers::{Answer, Parser, feed};
pub use seeds::of as seeds;
