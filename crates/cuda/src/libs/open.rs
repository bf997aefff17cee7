//! Opening a library and taking its functions.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The functions that this crate takes of a library.
pub(crate) trait Symbols: Sized {
    /// Looks all functions up.
    fn resolve(library: &libloading::Library) -> Result<Self, libloading::Error>;

    /// The address of one of them, by which the library's file is found.
    fn address(&self) -> usize;
}

/// Declares a struct of functions of a library, and looks them up by name.
macro_rules! symbols {
    ($(#[$meta:meta])* pub struct $api:ident { $first:ident($($first_args:tt)*) -> $first_result:ty;
        $($name:ident($($args:tt)*) -> $result:ty;)* }) => {
        $(#[$meta])*
        #[allow(non_snake_case, reason = "the library's own names")]
        pub struct $api {
            pub(crate) $first: unsafe extern "C" fn($($first_args)*) -> $first_result,
            $(pub(crate) $name: unsafe extern "C" fn($($args)*) -> $result,)*
        }

        impl $crate::libs::Symbols for $api {
            fn resolve(library: &libloading::Library) -> Result<Self, libloading::Error> {
                // SAFETY: the types are those of the library's headers, for all versions that are accepted.
                Ok(unsafe {
                    $api {
                        $first: *library.get(concat!(stringify!($first), "\0").as_bytes())?,
                        $($name: *library.get(concat!(stringify!($name), "\0").as_bytes())?,)*
                    }
                })
            }

            fn address(&self) -> usize {
                self.$first as *const () as usize
            }
        }
    };
}
pub(crate) use symbols;

/// Opens the file `path`, or what the loader knows by that name, and takes its functions.
///
/// Returns the real file too. The library is never closed.
pub(super) fn open<A: Symbols>(name: &'static str, path: &Path) -> Result<(A, PathBuf)> {
    let broken = |source| Error::LibraryBroken { library: name, path: path.to_owned(), source };
    // SAFETY: opening runs the library's initialisers; NVIDIA's have no preconditions, and the names looked for are
    // theirs.
    let library = unsafe { libloading::Library::new(path) }.map_err(broken)?;
    let api = A::resolve(&library).map_err(broken)?;
    // The functions must outlive the handle.
    std::mem::forget(library);
    let file = file_of(api.address()).unwrap_or_else(|| path.to_owned());
    Ok((api, file))
}

/// The file that is mapped at an address of this process, where the system tells.
fn file_of(address: usize) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, _) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let from = usize::from_str_radix(from, 16).ok()?;
        let to = usize::from_str_radix(to, 16).ok()?;
        let path = &line[line.find('/')?..];
        (from..to).contains(&address).then(|| PathBuf::from(path))
    })
}
