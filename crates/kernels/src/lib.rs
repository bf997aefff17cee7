//! CPU kernels of a convolutional network: SIMD, fused, deterministic
