//! Self-supervised image pretraining by swapped cluster assignments (SwAV)
