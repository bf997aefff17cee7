//! The card: context, streams, events, memory, graphs, kernels.
//!
//! A thin layer over the driver, no more than what a tape needs. All objects keep their [`Card`] alive; all calls may
//! come from any thread.

mod api;
mod graph;
mod memory;
mod module;
mod stream;

use std::ffi::{CStr, c_int};
use std::fmt;
use std::sync::Arc;

pub(crate) use api::{Api, Handle};
pub use graph::Graph;
pub use memory::{DeviceMemory, PinnedMemory};
pub use module::{Module, Resources};
pub use stream::{Event, Stream};

use crate::{Error, Result, libs};
use api::{NO_DEVICE, call};

/// The oldest compute capability that has bf16 matrix units.
pub const OLDEST: (u32, u32) = (8, 0);

/// What a card is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Its number, as in `cuda:0`.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability, major and minor.
    pub compute: (u32, u32),
    /// Its multiprocessors.
    pub multiprocessors: usize,
    /// Its memory in bytes.
    pub memory: u64,
    /// Its second-level cache in bytes.
    pub cache: u64,
}

impl Properties {
    /// The architecture in the compiler's words, as `sm_90`.
    pub fn arch(&self) -> String {
        format!("sm_{}{}", self.compute.0, self.compute.1)
    }

    /// # Errors
    /// [`Error::CardTooOld`] below [`OLDEST`].
    pub fn check(&self) -> Result<()> {
        if self.compute < OLDEST {
            return Err(Error::CardTooOld { card: self.name.clone(), got: self.compute });
        }
        Ok(())
    }
}

impl fmt::Display for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Properties { ordinal, name, compute: (major, minor), multiprocessors, memory, .. } = self;
        let gib = *memory as f64 / f64::from(1 << 30);
        write!(
            f,
            "cuda:{ordinal} {name}, compute capability {major}.{minor}, {multiprocessors} multiprocessors, {gib:.1} GiB"
        )
    }
}

/// All cards of this machine, also those that are too old.
///
/// # Errors
/// No driver, or a driver that does not work.
pub fn cards() -> Result<Vec<Properties>> {
    let api = initialised()?;
    (0..count(api)?).map(|ordinal| properties(api, ordinal).map(|(_, properties)| properties)).collect()
}

/// The driver, ready for calls.
fn initialised() -> Result<&'static Api> {
    let api = &libs::driver()?.api;
    // SAFETY: 0 is the only legal argument; repeated calls do nothing.
    let status = unsafe { (api.cuInit)(0) };
    if status != NO_DEVICE {
        api.check("cuInit", status)?;
    }
    Ok(api)
}

fn count(api: &Api) -> Result<usize> {
    let mut count = 0;
    // SAFETY: writes one integer.
    let status = unsafe { (api.cuDeviceGetCount)(&mut count) };
    // Without a card, initialisation has failed in a way that is no error here.
    if matches!(status, NO_DEVICE | 3) {
        return Ok(0);
    }
    api.check("cuDeviceGetCount", status)?;
    Ok(count.max(0) as usize)
}

fn properties(api: &Api, ordinal: usize) -> Result<(c_int, Properties)> {
    // Numbers from the driver's header.
    const MULTIPROCESSORS: c_int = 16;
    const CACHE: c_int = 38;
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    let (mut device, mut name, mut memory) = (0, [0; 128], 0);
    // SAFETY: writes one integer.
    unsafe { call!(api, cuDeviceGet(&mut device, ordinal as c_int)) }?;
    // SAFETY: writes at most `name.len()` bytes, with a zero at the end.
    unsafe { call!(api, cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device)) }?;
    // SAFETY: writes one size.
    unsafe { call!(api, cuDeviceTotalMem_v2(&mut memory, device)) }?;
    let attribute = |which| -> Result<u32> {
        let mut value = 0;
        // SAFETY: writes one integer.
        unsafe { call!(api, cuDeviceGetAttribute(&mut value, which, device)) }?;
        Ok(value.max(0) as u32)
    };
    let properties = Properties {
        ordinal,
        // SAFETY: the driver ended the name with a zero.
        name: unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned(),
        compute: (attribute(MAJOR)?, attribute(MINOR)?),
        multiprocessors: attribute(MULTIPROCESSORS)? as usize,
        memory: memory as u64,
        cache: u64::from(attribute(CACHE)?),
    };
    Ok((device, properties))
}

/// A card in use, by its primary context.
pub struct Card {
    api: &'static Api,
    device: c_int,
    context: Handle,
    properties: Properties,
}

// SAFETY: a context may be used from any thread that makes it current, as every method does.
unsafe impl Send for Card {}
// SAFETY: the driver's calls are safe from several threads at once.
unsafe impl Sync for Card {}

impl Card {
    /// Opens a card.
    ///
    /// # Errors
    /// No driver, no such card, a card too old, or a card that does not answer.
    pub fn open(ordinal: usize) -> Result<Arc<Card>> {
        let api = initialised()?;
        let expected = count(api)?;
        if ordinal >= expected {
            return Err(Error::NoSuchCard { expected, got: ordinal });
        }
        let (device, properties) = properties(api, ordinal)?;
        properties.check()?;
        let mut context = std::ptr::null_mut();
        // SAFETY: writes one handle, which is released when the card is dropped.
        unsafe { call!(api, cuDevicePrimaryCtxRetain(&mut context, device)) }?;
        let card = Arc::new(Card { api, device, context, properties });
        card.bind()?;
        Ok(card)
    }

    /// What the card is.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Free and total memory in bytes.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        self.bind()?;
        // SAFETY: writes two sizes; the context is current.
        unsafe { call!(self.api, cuMemGetInfo_v2(&mut free, &mut total)) }?;
        Ok((free as u64, total as u64))
    }

    /// Waits until the card has done everything that was asked of it.
    ///
    /// # Errors
    /// The driver's; also errors of kernels that ran before.
    pub fn synchronise(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the context is current.
        unsafe { call!(self.api, cuCtxSynchronize()) }
    }

    /// The driver's functions, with this card's context current on the calling thread.
    fn driver(&self) -> Result<&'static Api> {
        self.bind()?;
        Ok(self.api)
    }

    /// Makes the card's context current on the calling thread.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context is alive as long as the card.
        unsafe { call!(self.api, cuCtxSetCurrent(self.context)) }
    }
}

impl fmt::Debug for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Card").field("properties", &self.properties).finish_non_exhaustive()
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`; all objects of the context hold an `Arc` of this card. At the process' end
        // the driver may be gone already, which the call says by a status that nobody needs.
        unsafe { (self.api.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(compute: (u32, u32)) -> Properties {
        Properties {
            ordinal: 1,
            name: "Some Card".into(),
            compute,
            multiprocessors: 10,
            memory: 3 << 29,
            cache: 1 << 20,
        }
    }

    #[test]
    fn old_cards_are_refused() {
        assert!(card((8, 0)).check().is_ok());
        assert!(card((12, 0)).check().is_ok());
        let old = card((7, 5)).check();
        assert!(matches!(old, Err(Error::CardTooOld { got: (7, 5), .. })));
        let text = old.map_err(|error| error.to_string());
        assert_eq!(text, Err("Some Card has compute capability 7.5, expected 8.0 (Ampere) or newer".into()));
    }

    #[test]
    fn a_card_in_words() {
        assert_eq!(card((9, 0)).arch(), "sm_90");
        let words = card((9, 0)).to_string();
        assert_eq!(words, "cuda:1 Some Card, compute capability 9.0, 10 multiprocessors, 1.5 GiB");
    }

    #[test]
    fn a_machine_without_a_card_is_an_error_and_not_a_crash() {
        match cards() {
            Ok(cards) => {
                let got = cards.len();
                let missing = Card::open(got);
                assert!(
                    matches!(missing, Err(Error::NoSuchCard { expected, got: asked }) if (expected, asked) == (got, got))
                );
            }
            Err(error) => {
                assert!(matches!(error, Error::LibraryMissing { .. } | Error::Driver { .. }), "{error}")
            }
        }
    }
}
