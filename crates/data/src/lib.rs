//! Image data sets and a deterministic, resumable multi-crop loader
