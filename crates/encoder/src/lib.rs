//! ResNet encoders with a projection head on dfdx
