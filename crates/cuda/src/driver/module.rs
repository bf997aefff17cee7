//! Compiled kernels on the card.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::sync::Arc;

use super::api::call;
use super::{Card, Handle, Stream};
use crate::kernels::{Arg, Launch};
use crate::{Error, Result};

/// What a kernel takes of a multiprocessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Registers a thread.
    pub registers: u32,
    /// Bytes a thread that did not fit into registers.
    pub spilled: u32,
    /// Bytes of shared memory a block.
    pub shared: u32,
}

/// Compiled kernels on a card.
#[derive(Debug)]
pub struct Module {
    card: Arc<Card>,
    raw: Handle,
    functions: HashMap<String, Handle>,
}

// SAFETY: modules belong to the context, not to a thread.
unsafe impl Send for Module {}
// SAFETY: launches are safe from several threads at once.
unsafe impl Sync for Module {}

impl Module {
    /// Loads compiled code and looks kernels up by name.
    ///
    /// # Errors
    /// [`Error::Shape`] for a name that the code lacks; the driver's, for code of another architecture or of a newer
    /// CUDA than the driver's.
    pub fn new<'n>(
        card: &Arc<Card>,
        cubin: &[u8],
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<Module> {
        let mut raw = std::ptr::null_mut();
        let api = card.driver()?;
        // SAFETY: `cubin` is an image of the size that its own header tells; writes one handle, unloaded on drop.
        unsafe { call!(api, cuModuleLoadData(&mut raw, cubin.as_ptr().cast())) }?;
        let mut module = Module { card: Arc::clone(card), raw, functions: HashMap::new() };
        for name in names {
            let missing =
                || Error::Shape { what: "kernel", expected: name.into(), got: "no such kernel".into() };
            let text = CString::new(name).map_err(|_| missing())?;
            let mut function = std::ptr::null_mut();
            // SAFETY: the module is alive, the name ends with a zero; writes one handle, which lives with the module.
            let status = unsafe { (api.cuModuleGetFunction)(&mut function, raw, text.as_ptr()) };
            if status != super::api::SUCCESS {
                return Err(missing());
            }
            module.functions.insert(name.to_owned(), function);
        }
        Ok(module)
    }

    /// Its card.
    pub fn card(&self) -> &Arc<Card> {
        &self.card
    }

    /// What a kernel takes of a multiprocessor.
    ///
    /// # Errors
    /// [`Error::Shape`] for an unknown name, or the driver's.
    pub fn resources(&self, name: &str) -> Result<Resources> {
        // Numbers from the driver's header.
        const SHARED: c_int = 1;
        const LOCAL: c_int = 3;
        const REGISTERS: c_int = 4;
        let function = self.function(name)?;
        let api = self.card.driver()?;
        let attribute = |which| -> Result<u32> {
            let mut value = 0;
            // SAFETY: the function is alive; writes one integer.
            unsafe { call!(api, cuFuncGetAttribute(&mut value, which, function)) }?;
            Ok(value.max(0) as u32)
        };
        Ok(Resources {
            registers: attribute(REGISTERS)?,
            spilled: attribute(LOCAL)?,
            shared: attribute(SHARED)?,
        })
    }

    /// Gives a kernel to a stream.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, in number and type, and what the kernel reads and writes through its
    /// pointers must be memory of the card that lives until the stream has passed the kernel, for a recorded launch
    /// until the graph is dropped.
    ///
    /// # Errors
    /// [`Error::Shape`] for an unknown name, or the driver's.
    pub unsafe fn launch(&self, launch: &Launch<u64>, stream: &Stream) -> Result<()> {
        let function = self.function(launch.kernel)?;
        // Each argument has a cell of eight bytes, whose first bytes are the argument.
        let cells: Vec<u64> = launch.args.iter().map(cell).collect();
        let mut pointers: Vec<*mut c_void> =
            cells.iter().map(|cell| std::ptr::from_ref(cell).cast_mut().cast()).collect();
        let [grid_x, grid_y, grid_z] = launch.grid;
        let [block_x, block_y, block_z] = launch.block;
        let (arguments, none) = (pointers.as_mut_ptr(), std::ptr::null_mut());
        let api = self.card.driver()?;
        // SAFETY: the function is alive; the driver reads the arguments before it returns, and does not write to them.
        // What they mean is the caller's promise.
        unsafe {
            call!(
                api,
                cuLaunchKernel(
                    function,
                    grid_x,
                    grid_y,
                    grid_z,
                    block_x,
                    block_y,
                    block_z,
                    0,
                    stream.raw(),
                    arguments,
                    none
                )
            )
        }
    }

    fn function(&self, name: &str) -> Result<Handle> {
        let missing =
            || Error::Shape { what: "kernel", expected: "one that was loaded".into(), got: name.into() };
        self.functions.get(name).copied().ok_or_else(missing)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(api) = self.card.driver() {
            // SAFETY: loaded in `new`, dropped once.
            unsafe { (api.cuModuleUnload)(self.raw) };
        }
    }
}

/// The bytes of an argument, at the start of eight.
fn cell(arg: &Arg<u64>) -> u64 {
    match *arg {
        Arg::Pointer(address) => address,
        Arg::Null => 0,
        Arg::I32(value) => u64::from(value.cast_unsigned()),
        Arg::F32(value) => u64::from(value.to_bits()),
    }
}

// The four bytes of an argument must be the first of its cell.
const _: () = assert!(cfg!(target_endian = "little"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_the_first_bytes_of_their_cells() {
        assert_eq!(cell(&Arg::I32(-2)).to_ne_bytes()[..4], (-2_i32).to_ne_bytes());
        assert_eq!(cell(&Arg::F32(1.5)).to_ne_bytes()[..4], 1.5_f32.to_ne_bytes());
        assert_eq!(cell(&Arg::Pointer(1 << 40)), 1 << 40);
        assert_eq!(cell(&Arg::Null), 0);
    }
}
