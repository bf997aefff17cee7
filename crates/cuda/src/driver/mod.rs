//! The card: context, streams, events, memory, graphs, kernels.
