//! cuDNN's graph API, as far as single convolutions need it.
