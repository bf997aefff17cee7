//! The prototype layer of SwAV: unit rows, scores, gradients, feature queue
