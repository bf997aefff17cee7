//! cuDNN's graph API, as far as single convolutions need it.
//!
//! A [`Convolution`] becomes a graph of one operation; cuDNN proposes ways to compute it ([`Cudnn::proposals`]), each a
//! [`Choice`] of an engine and its settings; a choice becomes a [`ConvPlan`]; a plan with addresses is a [`BoundConv`],
//! which runs. Only ways that give the same bits each time are proposed, and for f32 only those that compute in f32.

mod conv;
mod descriptor;
mod names;

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::sync::{Arc, Mutex};

pub(crate) use conv::no_plan;
pub use conv::{BoundConv, Choice, ConvPlan, Convolution, Proposal, check_graph};

use crate::driver::{Card, Stream};
use crate::libs::{self, symbols};
use crate::{Error, Result};
use descriptor::{Descriptor, Raw};

type Status = c_uint;

symbols! {
    /// cuDNN's functions. The names are its own.
    pub struct Api {
        cudnnGetVersion() -> usize;
        cudnnGetCudartVersion() -> usize;
        cudnnGetErrorString(Status) -> *const c_char;
        cudnnGetLastErrorString(*mut c_char, usize) -> ();
        cudnnCreate(*mut *mut c_void) -> Status;
        cudnnDestroy(*mut c_void) -> Status;
        cudnnSetStream(*mut c_void, *mut c_void) -> Status;
        cudnnBackendCreateDescriptor(c_uint, *mut Raw) -> Status;
        cudnnBackendDestroyDescriptor(Raw) -> Status;
        cudnnBackendFinalize(Raw) -> Status;
        cudnnBackendSetAttribute(Raw, c_uint, c_uint, i64, *const c_void) -> Status;
        cudnnBackendGetAttribute(Raw, c_uint, c_uint, i64, *mut i64, *mut c_void) -> Status;
        cudnnBackendExecute(*mut c_void, Raw, Raw) -> Status;
    }
}

impl Api {
    /// The version: major, minor, patch.
    pub(crate) fn version(&self) -> (u32, u32, u32) {
        // SAFETY: takes nothing, needs no card.
        let version = unsafe { (self.cudnnGetVersion)() } as u32;
        (version / 10_000, version % 10_000 / 100, version % 100)
    }

    /// The version in words.
    pub(crate) fn version_text(&self) -> String {
        let (major, minor, patch) = self.version();
        format!("{major}.{minor}.{patch}")
    }

    /// The major version of CUDA that it was built for.
    pub(crate) fn cuda_major(&self) -> u32 {
        // SAFETY: takes nothing, needs no card.
        (unsafe { (self.cudnnGetCudartVersion)() } / 1000) as u32
    }

    /// An error for a status other than success.
    fn check(&self, call: &'static str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: returns a static string for any number.
        let name = unsafe { CStr::from_ptr((self.cudnnGetErrorString)(status)) }.to_string_lossy();
        let mut message = [0; 1024];
        // SAFETY: writes at most that many bytes, with a zero at the end.
        unsafe { (self.cudnnGetLastErrorString)(message.as_mut_ptr(), message.len()) };
        message[message.len() - 1] = 0;
        // SAFETY: ends with a zero, by the line above at the latest.
        let message = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy();
        Err(Error::Cudnn { call, status, text: format!("{name} {message}").trim().to_owned() })
    }
}

/// cuDNN on a card, or for the description of one.
#[derive(Debug)]
pub struct Cudnn {
    api: &'static Api,
    target: Target,
}

/// What plans are made for.
#[derive(Debug)]
enum Target {
    /// A card.
    Card {
        /// The card.
        card: Arc<Card>,
        /// The library's state for it.
        handle: Mutex<Handle>,
    },
    /// A card's properties.
    Described(Descriptor),
}

/// `cudnnHandle_t`.
#[derive(Debug)]
struct Handle(*mut c_void);

// SAFETY: a handle may be used from any thread, by one at a time.
unsafe impl Send for Handle {}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Cudnn {
    /// Opens cuDNN for a card.
    ///
    /// # Errors
    /// cuDNN is missing or broken, or cannot use the card.
    pub fn new(card: &Arc<Card>) -> Result<Cudnn> {
        // Some of its engines compile by NVRTC, which they find by name once it is open.
        libs::nvrtc()?;
        let api = &libs::cudnn()?.api;
        card.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle for the current context, destroyed on drop.
        let status = unsafe { (api.cudnnCreate)(&mut handle) };
        api.check("cudnnCreate", status)?;
        Ok(Cudnn { api, target: Target::Card { card: Arc::clone(card), handle: Mutex::new(Handle(handle)) } })
    }

    /// Opens cuDNN for a card that is not there: it proposes and plans, but does not run. Needs cuDNN 9.8.
    ///
    /// `properties` is a JSON object, whose names cuDNN gives.
    ///
    /// # Errors
    /// cuDNN is missing or broken, too old, or cannot make sense of the properties.
    pub fn for_description(properties: &str) -> Result<Cudnn> {
        libs::nvrtc()?;
        let api = &libs::cudnn()?.api;
        let mut description = Descriptor::new(api, names::kind::DEVICEPROP)?;
        let text = [properties.as_bytes(), &[0]].concat();
        description.set(names::attr::DEVICEPROP_JSON_REPRESENTATION, &text)?;
        Ok(Cudnn { api, target: Target::Described(description.finish(Vec::new())?) })
    }

    /// Its version: major, minor, patch.
    pub fn version(&self) -> (u32, u32, u32) {
        self.api.version()
    }

    /// Gives a convolution to a stream.
    ///
    /// # Errors
    /// cuDNN's or the driver's.
    pub fn run(&self, conv: &BoundConv, stream: &Stream) -> Result<()> {
        self.with_handle(|handle| {
            // The handle may still point at another stream.
            // SAFETY: both are alive.
            let status = unsafe { (self.api.cudnnSetStream)(handle, stream.raw()) };
            self.api.check("cudnnSetStream", status)?;
            let (plan, pack) = conv.raw();
            // SAFETY: plan and addresses belong together; who bound them keeps the memory.
            let status = unsafe { (self.api.cudnnBackendExecute)(handle, plan, pack) };
            self.api.check("cudnnBackendExecute", status)
        })
    }

    /// Calls `work` with the handle (null without a card), alone, and with the card's context current.
    fn with_handle<T>(&self, work: impl FnOnce(*mut c_void) -> Result<T>) -> Result<T> {
        match &self.target {
            Target::Card { card, handle } => {
                card.bind()?;
                let handle = handle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                work(handle.0)
            }
            Target::Described(_) => work(std::ptr::null_mut()),
        }
    }

    /// Sets the attribute of a descriptor that names the card's description, where it is a description.
    fn describe(&self, descriptor: &mut Descriptor, attribute: c_uint) -> Result<()> {
        match &self.target {
            Target::Card { .. } => Ok(()),
            Target::Described(description) => descriptor.set_part(attribute, description),
        }
    }
}

impl Drop for Cudnn {
    fn drop(&mut self) {
        let _ = self.with_handle(|handle| {
            if !handle.is_null() {
                // SAFETY: created in `new`, dropped once.
                unsafe { (self.api.cudnnDestroy)(handle) };
            }
            Ok(())
        });
    }
}
