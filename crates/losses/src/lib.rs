//! The swapped-prediction loss of SwAV, its gradient and its diagnostics
