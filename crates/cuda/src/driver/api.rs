//! The functions of the driver that this crate calls.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};

use crate::libs::symbols;
use crate::{Error, Result};

/// `CUresult`.
pub(crate) type Status = c_int;
/// `CUDA_SUCCESS`.
pub(crate) const SUCCESS: Status = 0;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(crate) const OUT_OF_MEMORY: Status = 2;
/// `CUDA_ERROR_NO_DEVICE`.
pub(crate) const NO_DEVICE: Status = 100;
/// `CUDA_ERROR_NOT_READY`.
pub(crate) const NOT_READY: Status = 600;
/// `CUDA_ERROR_SYSTEM_DRIVER_MISMATCH`.
pub(crate) const DRIVER_MISMATCH: Status = 803;

/// An opaque object of the driver: a context, stream, event, graph, module or function.
pub(crate) type Handle = *mut c_void;

symbols! {
    /// The driver's functions. The names are CUDA's.
    pub struct Api {
        cuInit(c_uint) -> Status;
        cuDriverGetVersion(*mut c_int) -> Status;
        cuGetErrorName(Status, *mut *const c_char) -> Status;
        cuGetErrorString(Status, *mut *const c_char) -> Status;
        cuDeviceGetCount(*mut c_int) -> Status;
        cuDeviceGet(*mut c_int, c_int) -> Status;
        cuDeviceGetName(*mut c_char, c_int, c_int) -> Status;
        cuDeviceGetAttribute(*mut c_int, c_int, c_int) -> Status;
        cuDeviceTotalMem_v2(*mut usize, c_int) -> Status;
        cuDevicePrimaryCtxRetain(*mut Handle, c_int) -> Status;
        cuDevicePrimaryCtxRelease_v2(c_int) -> Status;
        cuCtxSetCurrent(Handle) -> Status;
        cuCtxSynchronize() -> Status;
        cuMemGetInfo_v2(*mut usize, *mut usize) -> Status;
        cuMemAlloc_v2(*mut u64, usize) -> Status;
        cuMemFree_v2(u64) -> Status;
        cuMemHostAlloc(*mut *mut c_void, usize, c_uint) -> Status;
        cuMemFreeHost(*mut c_void) -> Status;
        cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, Handle) -> Status;
        cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, Handle) -> Status;
        cuMemcpyDtoDAsync_v2(u64, u64, usize, Handle) -> Status;
        cuMemsetD8Async(u64, u8, usize, Handle) -> Status;
        cuStreamCreate(*mut Handle, c_uint) -> Status;
        cuStreamDestroy_v2(Handle) -> Status;
        cuStreamSynchronize(Handle) -> Status;
        cuStreamWaitEvent(Handle, Handle, c_uint) -> Status;
        cuStreamBeginCapture_v2(Handle, c_uint) -> Status;
        cuStreamEndCapture(Handle, *mut Handle) -> Status;
        cuEventCreate(*mut Handle, c_uint) -> Status;
        cuEventDestroy_v2(Handle) -> Status;
        cuEventRecord(Handle, Handle) -> Status;
        cuEventQuery(Handle) -> Status;
        cuEventSynchronize(Handle) -> Status;
        cuEventElapsedTime(*mut f32, Handle, Handle) -> Status;
        cuGraphInstantiateWithFlags(*mut Handle, Handle, c_ulonglong) -> Status;
        cuGraphGetNodes(Handle, *mut Handle, *mut usize) -> Status;
        cuGraphLaunch(Handle, Handle) -> Status;
        cuGraphDestroy(Handle) -> Status;
        cuGraphExecDestroy(Handle) -> Status;
        cuModuleLoadData(*mut Handle, *const c_void) -> Status;
        cuModuleUnload(Handle) -> Status;
        cuModuleGetFunction(*mut Handle, Handle, *const c_char) -> Status;
        cuFuncGetAttribute(*mut c_int, c_int, Handle) -> Status;
        cuLaunchKernel(Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void) -> Status;
    }
}

/// Calls a function of the driver and makes an error of its status.
macro_rules! call {
    ($api:expr, $name:ident($($arg:expr),* $(,)?)) => {{
        let api: &$crate::driver::Api = $api;
        let status = (api.$name)($($arg),*);
        api.check(stringify!($name), status)
    }};
}
pub(crate) use call;

impl Api {
    /// The version of CUDA that the driver supports: major and minor. Needs no card.
    pub(crate) fn cuda_version(&self) -> Result<(u32, u32)> {
        let mut version = 0;
        // SAFETY: the function writes one integer, and may be called before `cuInit`.
        unsafe { call!(self, cuDriverGetVersion(&mut version)) }?;
        let version = version.max(0) as u32;
        Ok((version / 1000, version % 1000 / 10))
    }

    /// An error for a status other than success.
    pub(crate) fn check(&self, call: &'static str, status: Status) -> Result<()> {
        if status == SUCCESS { Ok(()) } else { Err(self.error(call, status)) }
    }

    /// The error of a status.
    pub(crate) fn error(&self, call: &'static str, code: Status) -> Error {
        type Describe = unsafe extern "C" fn(Status, *mut *const c_char) -> Status;
        let text = |describe: Describe| {
            let mut text = std::ptr::null();
            // SAFETY: the function writes one pointer, to a static string or null.
            let status = unsafe { describe(code, &mut text) };
            if status != SUCCESS || text.is_null() {
                return "unknown".to_owned();
            }
            // SAFETY: on success, the driver's static string with a zero at its end.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        let mut text_of = text(self.cuGetErrorString);
        if code == DRIVER_MISMATCH {
            text_of.push_str(
                "; the kernel's module and the library are of different versions: restart the machine",
            );
        }
        Error::Driver { call, code, name: text(self.cuGetErrorName), text: text_of }
    }
}
