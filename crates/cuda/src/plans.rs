//! Which of cuDNN's ways to compute a convolution is taken.
