//! Evaluation of frozen features: weighted k-NN and friends
