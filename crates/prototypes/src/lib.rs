//! The prototype layer of SwAV: K trainable unit vectors that score an embedding, and the feature queue.
//!
//! In SwAV (Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster
//! Assignments", section 3) an embedding z on the unit sphere is compared with K prototypes, the rows of a
//! matrix C: `scores = z Cᵀ`. The prototypes are the weight of a dense layer without bias, kept at unit
//! length by a projection before each step. This crate holds them ([`Prototypes`]), both gradients of the
//! scores, the freezing of the first iterations, several heads of different sizes, and the queue of past
//! embeddings that makes small batches large enough for balanced codes ([`FeatureQueue`]).
//!
//! Every product is computed in blocks whose borders depend on the shapes alone, so the bits of a result
//! do not depend on the number of threads.
//!
//! ```
//! use ndarray::array;
//! use rand::SeedableRng;
//! use rand_chacha::ChaCha8Rng;
//! use swav_prototypes::Prototypes;
//!
//! let mut rng = ChaCha8Rng::seed_from_u64(31);
//! let prototypes = Prototypes::random(&[10], 4, &mut rng)?;
//! let z = array![[1.0f32, 0.0, 0.0, 0.0], [0.0, 0.6, 0.8, 0.0]];
//! let scores = prototypes.scores(0, z.view())?;
//! assert_eq!(scores.dim(), (2, 10));
//! # Ok::<(), swav_prototypes::PrototypeError>(())
//! ```

mod error;
mod product;
mod prototypes;
mod queue;

pub use error::PrototypeError;
pub use product::matrix_product;
pub use prototypes::{Freeze, Prototypes};
pub use queue::FeatureQueue;
