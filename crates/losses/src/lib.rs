//! The swapped-prediction loss of SwAV, its gradient by the scores, and cheap diagnostics.
//!
//! Each image is seen as V crops. Some of them, the assignment crops A, have codes q: soft assignments to K
//! prototypes. The code of one crop is predicted from the scores s of every other crop of the same image
//! (Caron et al. 2020, equations 1 and 2 and section 3.2; reference `main_swav.py`):
//!
//! ```text
//! L = 1/|A| · Σ_{i in A} 1/(V-1) · Σ_{v != i} 1/B · Σ_b  -Σ_k q_i[b,k] · log softmax(s_v[b] / τ)[k]
//! ```
//!
//! Codes are constants. [`SwappedPrediction::evaluate`] gives the loss and its gradient in one pass over the
//! scores, on all threads, with the same bits for any number of them.
//!
//! ```
//! use ndarray::array;
//! use swav_losses::SwappedPrediction;
//!
//! let loss = SwappedPrediction::new(2, &[0, 1], 0.1)?;
//! // Two crops of one image (crop by crop), three prototypes.
//! let scores = array![[0.9, 0.1, 0.0], [0.8, 0.2, 0.1]];
//! let codes = [array![[0.9, 0.1, 0.0]], array![[0.8, 0.1, 0.1]]];
//! let out = loss.evaluate(scores.view(), &[codes[0].view(), codes[1].view()])?;
//! assert!(out.loss > 0.0);
//! assert_eq!(out.grad_scores.dim(), (2, 3));
//! # Ok::<(), swav_losses::LossError>(())
//! ```

mod diagnostics;
mod error;
mod softmax;
mod swapped;

pub use diagnostics::{Diagnostics, entropy};
pub use error::LossError;
pub use swapped::{SwappedLoss, SwappedPrediction};
