//! Entropic optimal transport: certified, sharded, deterministic
