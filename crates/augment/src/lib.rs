//! Multi-crop augmentation: the SwAV recipe and its relatives
