//! The numbers of cuDNN's enumerations that this crate uses, by the names of its header (version 9).

use std::ffi::c_uint;

/// Kinds of descriptors, `CUDNN_BACKEND_*_DESCRIPTOR`.
pub(super) mod kind {
    use super::c_uint;

    pub const CONVOLUTION: c_uint = 1;
    pub const ENGINE: c_uint = 2;
    pub const ENGINECFG: c_uint = 3;
    pub const ENGINEHEUR: c_uint = 4;
    pub const EXECUTION_PLAN: c_uint = 5;
    pub const KNOB_CHOICE: c_uint = 7;
    pub const OPERATION_CONVOLUTION_FORWARD: c_uint = 10;
    pub const OPERATION_CONVOLUTION_BACKWARD_FILTER: c_uint = 11;
    pub const OPERATION_CONVOLUTION_BACKWARD_DATA: c_uint = 12;
    pub const OPERATIONGRAPH: c_uint = 15;
    pub const VARIANT_PACK: c_uint = 16;
    pub const TENSOR: c_uint = 17;
    pub const DEVICEPROP: c_uint = 38;
}

/// Attributes, `CUDNN_ATTR_*`.
pub(super) mod attr {
    use super::c_uint;

    pub const CONVOLUTION_COMP_TYPE: c_uint = 100;
    pub const CONVOLUTION_CONV_MODE: c_uint = 101;
    pub const CONVOLUTION_DILATIONS: c_uint = 102;
    pub const CONVOLUTION_FILTER_STRIDES: c_uint = 103;
    pub const CONVOLUTION_POST_PADDINGS: c_uint = 104;
    pub const CONVOLUTION_PRE_PADDINGS: c_uint = 105;
    pub const CONVOLUTION_SPATIAL_DIMS: c_uint = 106;
    pub const ENGINEHEUR_MODE: c_uint = 200;
    pub const ENGINEHEUR_OPERATION_GRAPH: c_uint = 201;
    pub const ENGINEHEUR_RESULTS: c_uint = 202;
    pub const ENGINEHEUR_DEVICEPROP: c_uint = 204;
    pub const ENGINECFG_ENGINE: c_uint = 300;
    pub const ENGINECFG_KNOB_CHOICES: c_uint = 302;
    pub const EXECUTION_PLAN_HANDLE: c_uint = 400;
    pub const EXECUTION_PLAN_ENGINE_CONFIG: c_uint = 401;
    pub const EXECUTION_PLAN_WORKSPACE_SIZE: c_uint = 402;
    pub const EXECUTION_PLAN_DEVICEPROP: c_uint = 407;
    pub const KNOB_CHOICE_KNOB_TYPE: c_uint = 600;
    pub const KNOB_CHOICE_KNOB_VALUE: c_uint = 601;
    pub const CONVOLUTION_FORWARD_ALPHA: c_uint = 700;
    pub const CONVOLUTION_FORWARD_BETA: c_uint = 701;
    pub const CONVOLUTION_FORWARD_CONV_DESC: c_uint = 702;
    pub const CONVOLUTION_FORWARD_W: c_uint = 703;
    pub const CONVOLUTION_FORWARD_X: c_uint = 704;
    pub const CONVOLUTION_FORWARD_Y: c_uint = 705;
    pub const CONVOLUTION_BWD_DATA_ALPHA: c_uint = 706;
    pub const CONVOLUTION_BWD_DATA_BETA: c_uint = 707;
    pub const CONVOLUTION_BWD_DATA_CONV_DESC: c_uint = 708;
    pub const CONVOLUTION_BWD_DATA_W: c_uint = 709;
    pub const CONVOLUTION_BWD_DATA_DX: c_uint = 710;
    pub const CONVOLUTION_BWD_DATA_DY: c_uint = 711;
    pub const CONVOLUTION_BWD_FILTER_ALPHA: c_uint = 712;
    pub const CONVOLUTION_BWD_FILTER_BETA: c_uint = 713;
    pub const CONVOLUTION_BWD_FILTER_CONV_DESC: c_uint = 714;
    pub const CONVOLUTION_BWD_FILTER_DW: c_uint = 715;
    pub const CONVOLUTION_BWD_FILTER_X: c_uint = 716;
    pub const CONVOLUTION_BWD_FILTER_DY: c_uint = 717;
    pub const OPERATIONGRAPH_HANDLE: c_uint = 800;
    pub const OPERATIONGRAPH_OPS: c_uint = 801;
    pub const OPERATIONGRAPH_ENGINE_GLOBAL_COUNT: c_uint = 802;
    pub const TENSOR_BYTE_ALIGNMENT: c_uint = 900;
    pub const TENSOR_DATA_TYPE: c_uint = 901;
    pub const TENSOR_DIMENSIONS: c_uint = 902;
    pub const TENSOR_STRIDES: c_uint = 903;
    pub const TENSOR_UNIQUE_ID: c_uint = 906;
    pub const VARIANT_PACK_UNIQUE_IDS: c_uint = 1000;
    pub const VARIANT_PACK_DATA_POINTERS: c_uint = 1001;
    pub const VARIANT_PACK_WORKSPACE: c_uint = 1003;
    pub const ENGINE_OPERATION_GRAPH: c_uint = 1300;
    pub const ENGINE_GLOBAL_INDEX: c_uint = 1301;
    pub const ENGINE_NUMERICAL_NOTE: c_uint = 1303;
    pub const ENGINE_BEHAVIOR_NOTE: c_uint = 1305;
    pub const ENGINE_DEVICEPROP: c_uint = 1307;
    pub const DEVICEPROP_JSON_REPRESENTATION: c_uint = 2702;
}

/// Types of attributes' values, `CUDNN_TYPE_*`.
pub(super) mod value {
    use super::c_uint;

    pub const HANDLE: c_uint = 0;
    pub const DATA_TYPE: c_uint = 1;
    pub const INT64: c_uint = 3;
    pub const FLOAT: c_uint = 4;
    pub const VOID_PTR: c_uint = 6;
    pub const CONVOLUTION_MODE: c_uint = 7;
    pub const HEUR_MODE: c_uint = 8;
    pub const KNOB_TYPE: c_uint = 9;
    pub const NUMERICAL_NOTE: c_uint = 11;
    pub const BACKEND_DESCRIPTOR: c_uint = 15;
    pub const BEHAVIOR_NOTE: c_uint = 19;
    pub const CHAR: c_uint = 24;
}

/// `CUDNN_DATA_FLOAT`.
pub(super) const DATA_FLOAT: c_uint = 0;
/// `CUDNN_DATA_BFLOAT16`.
pub(super) const DATA_BFLOAT16: c_uint = 9;
/// `CUDNN_CROSS_CORRELATION`.
pub(super) const CROSS_CORRELATION: c_uint = 1;
/// `CUDNN_HEUR_MODE_FALLBACK`.
pub(super) const HEUR_MODE_FALLBACK: c_uint = 2;
/// `CUDNN_HEUR_MODE_A`.
pub(super) const HEUR_MODE_A: c_uint = 3;
/// `CUDNN_NUMERICAL_NOTE_*`.
pub(super) mod note {
    use super::c_uint;

    pub const TENSOR_CORE: c_uint = 0;
    pub const DOWN_CONVERT_INPUTS: c_uint = 1;
    pub const REDUCED_PRECISION_REDUCTION: c_uint = 2;
    pub const NONDETERMINISTIC: c_uint = 4;
    /// `CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION`.
    pub const RUNTIME_COMPILATION: c_uint = 0;
}
