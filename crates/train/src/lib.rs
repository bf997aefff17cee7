//! Training orchestration for SwAV: config, schedules, optimisers, checkpoints, resume
