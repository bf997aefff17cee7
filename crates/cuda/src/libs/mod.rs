//! Where the libraries are: the driver, the kernels' compiler (NVRTC) and cuDNN.
//!
//! Nothing is linked; each library is opened when it is first needed and stays open. It is looked for in this order,
//! and the first file that works is taken:
//!
//! 1. the folders in `SWAV_CUDA_LIBS`, separated as in `PATH`, with their `lib`, `*/lib` and `nvidia/*/lib`;
//! 2. where the system's loader looks (`LD_LIBRARY_PATH`, `ld.so.cache`);
//! 3. the usual folders of CUDA and of the driver;
//! 4. `nvidia/*/lib` of a Python environment: `VIRTUAL_ENV`, `CONDA_PREFIX`, and what `python3` imports from.
//!
//! A file of a version that does not work with this driver is passed over.

mod open;
mod places;

pub(crate) use open::{Symbols, symbols};
pub use places::{Origin, Place, Places};

use std::fmt;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::{Error, Result, cudnn, driver, nvrtc};

/// A library that this crate opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Library {
    /// The user's part of NVIDIA's driver.
    Driver,
    /// The compiler of CUDA C.
    Nvrtc,
    /// cuDNN, version 9.
    Cudnn,
}

impl Library {
    /// All of them, in the order in which they are opened.
    pub const ALL: [Library; 3] = [Library::Driver, Library::Nvrtc, Library::Cudnn];

    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Library::Driver => "NVIDIA's driver (libcuda.so.1)",
            Library::Nvrtc => "NVRTC (libnvrtc.so)",
            Library::Cudnn => "cuDNN 9 (libcudnn.so.9)",
        }
    }

    /// The names of its file, the preferred one first, for a driver that supports CUDA `major`.
    fn files(self, major: Option<u32>) -> &'static [&'static str] {
        match (self, major) {
            (Library::Driver, _) => &["libcuda.so.1"],
            (Library::Nvrtc, Some(..=12)) => &["libnvrtc.so.12"],
            (Library::Nvrtc, _) => &["libnvrtc.so.13", "libnvrtc.so.12"],
            (Library::Cudnn, _) => &["libcudnn.so.9"],
        }
    }

    /// How to get it.
    fn remedy(self, major: Option<u32>) -> String {
        let install = match (self, major) {
            (Library::Driver, _) => {
                return "install NVIDIA's driver for this system (the toolkit is not needed)".into();
            }
            (Library::Nvrtc, Some(..=12)) => "pip install nvidia-cuda-nvrtc-cu12",
            (Library::Nvrtc, _) => "pip install nvidia-cuda-nvrtc",
            (Library::Cudnn, Some(..=12)) => "pip install nvidia-cudnn-cu12",
            (Library::Cudnn, _) => "pip install nvidia-cudnn-cu13",
        };
        format!("`{install}`, or name the folder of its file in SWAV_CUDA_LIBS")
    }
}

/// A library's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Which search found it.
    pub origin: Origin,
    /// Its version; of the driver, that of CUDA which it supports.
    pub version: String,
}

/// A library that is open.
pub(crate) struct Loaded<A> {
    /// Its functions.
    pub(crate) api: A,
    /// Its file.
    pub(crate) found: Found,
}

/// What was found where.
#[derive(Debug)]
pub struct Report {
    /// Each library, or why it is missing.
    pub libraries: Vec<(Library, Result<Found>)>,
    /// All places that are searched, in order.
    pub places: Vec<Place>,
}

impl Report {
    /// Whether all libraries are there.
    pub fn is_complete(&self) -> bool {
        self.libraries.iter().all(|(_, found)| found.is_ok())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (library, found) in &self.libraries {
            match found {
                Ok(found) => {
                    let Found { path, origin, version } = found;
                    writeln!(f, "{}: version {version}, {} ({origin})", library.name(), path.display())?;
                }
                Err(error) => {
                    let what = match error {
                        Error::LibraryMissing { .. } => "missing",
                        _ => "found, but of no use",
                    };
                    writeln!(f, "{}: {what}", library.name())?;
                    let mut cause: Option<&dyn std::error::Error> = Some(error);
                    while let Some(error) = cause {
                        writeln!(f, "    {error}")?;
                        cause = error.source();
                    }
                }
            }
        }
        if !self.is_complete() {
            writeln!(f, "Searched, in this order:")?;
            for place in &self.places {
                writeln!(f, "    {place}")?;
            }
        }
        Ok(())
    }
}

/// Looks for all libraries, and opens those that it finds.
pub fn report() -> Report {
    let libraries = Library::ALL.map(|library| {
        let found = match library {
            Library::Driver => driver().map(|loaded| loaded.found.clone()),
            Library::Nvrtc => nvrtc().map(|loaded| loaded.found.clone()),
            Library::Cudnn => cudnn().map(|loaded| loaded.found.clone()),
        };
        (library, found)
    });
    Report { libraries: libraries.into(), places: Places::of_this_process().all() }
}

/// Opens a library once a process. A failure is not kept: the next call looks again.
struct Once<A: 'static>(Mutex<Option<&'static Loaded<A>>>);

impl<A> Once<A> {
    fn get(&self, open: impl FnOnce() -> Result<Loaded<A>>) -> Result<&'static Loaded<A>> {
        let mut slot = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(loaded) = *slot {
            return Ok(loaded);
        }
        // Libraries are never closed: their threads and exit handlers would outlive their code.
        let loaded: &'static Loaded<A> = Box::leak(Box::new(open()?));
        *slot = Some(loaded);
        Ok(loaded)
    }
}

/// The driver.
pub(crate) fn driver() -> Result<&'static Loaded<driver::Api>> {
    static DRIVER: Once<driver::Api> = Once(Mutex::new(None));
    DRIVER.get(|| {
        find(Library::Driver, None, &Places::of_this_process(), |api: &driver::Api| {
            supported(api.cuda_version()?)
        })
    })
}

/// The oldest major version of CUDA whose libraries this crate uses.
const OLDEST: u32 = 12;

/// The version of CUDA that a driver supports, as text.
///
/// # Errors
/// [`Error::DriverTooOld`] where no library that this crate uses works with it.
fn supported((major, minor): (u32, u32)) -> Result<String> {
    let version = format!("{major}.{minor}");
    if major < OLDEST {
        let remedy = "update the driver".into();
        return Err(Error::DriverTooOld { expected: format!("{OLDEST}.0"), got: version, remedy });
    }
    Ok(version)
}

/// Whether a cuDNN that was built for a major version of CUDA works with a driver that supports `driver`.
///
/// # Errors
/// [`Error::DriverTooOld`].
fn built_for(cuda: u32, driver: Option<u32>) -> Result<()> {
    let Some(driver) = driver.filter(|&driver| cuda > driver) else { return Ok(()) };
    Err(Error::DriverTooOld {
        expected: format!("{cuda}.0 (this cuDNN was built for it)"),
        got: format!("{driver}.x"),
        remedy: format!("update the driver, or {}", Library::Cudnn.remedy(Some(driver))),
    })
}

/// CUDA's major version that the driver supports, if there is a driver.
fn driver_major() -> Option<u32> {
    driver().ok()?.api.cuda_version().ok().map(|(major, _)| major)
}

/// The kernels' compiler, of a version whose code the driver can load.
pub(crate) fn nvrtc() -> Result<&'static Loaded<nvrtc::Api>> {
    static NVRTC: Once<nvrtc::Api> = Once(Mutex::new(None));
    let major = driver_major();
    NVRTC.get(|| {
        find(Library::Nvrtc, major, &Places::of_this_process(), |api: &nvrtc::Api| {
            let (major, minor) = api.version()?;
            Ok(format!("{major}.{minor}"))
        })
    })
}

/// cuDNN, built for a version of CUDA that the driver supports.
pub(crate) fn cudnn() -> Result<&'static Loaded<cudnn::Api>> {
    static CUDNN: Once<cudnn::Api> = Once(Mutex::new(None));
    let major = driver_major();
    CUDNN.get(|| {
        find(Library::Cudnn, major, &Places::of_this_process(), |api: &cudnn::Api| {
            built_for(api.cuda_major(), major).map(|()| api.version_text())
        })
    })
}

/// Opens the first file of `library` that can be opened and whose functions `version` accepts.
///
/// # Errors
/// The first reason why a file that is there was passed over; where no file is there, [`Error::LibraryMissing`].
fn find<A: Symbols>(
    library: Library,
    major: Option<u32>,
    places: &Places,
    version: impl Fn(&A) -> Result<String>,
) -> Result<Loaded<A>> {
    let mut refused = None;
    for place in places.iter() {
        for file in library.files(major) {
            let Some(path) = place.candidate(file) else { continue };
            let attempt = open::open::<A>(library.name(), &path).and_then(|(api, path)| {
                let version = version(&api)?;
                Ok(Loaded { api, found: Found { path, origin: place.origin(), version } })
            });
            match attempt {
                Ok(loaded) => return Ok(loaded),
                // That the loader knows no such file is no refusal.
                Err(Error::LibraryBroken { source: libloading::Error::DlOpen { .. }, .. })
                    if place.is_loader() => {}
                Err(error) => refused = refused.or(Some(error)),
            }
        }
    }
    Err(refused
        .unwrap_or_else(|| Error::LibraryMissing { library: library.name(), remedy: library.remedy(major) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Maths {
        cos: unsafe extern "C" fn(f64) -> f64,
    }

    impl Symbols for Maths {
        fn resolve(library: &libloading::Library) -> Result<Self, libloading::Error> {
            // SAFETY: `cos` of the C library has this type.
            Ok(Maths { cos: *unsafe { library.get(b"cos\0") }? })
        }

        fn address(&self) -> usize {
            self.cos as *const () as usize
        }
    }

    /// A folder with the C library's mathematics under the name of `library`.
    fn disguised(name: &str) -> Option<tempfile::TempDir> {
        let real = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6", "/usr/lib/libm.so.6"];
        let real = real.iter().find(|path| std::path::Path::new(path).exists())?;
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::copy(real, folder.path().join(name)).expect("a copy");
        Some(folder)
    }

    #[test]
    fn the_first_accepted_file_is_taken() {
        let Some(folder) = disguised("libcudnn.so.9") else { return };
        let places = Places::folders(&[PathBuf::from("/nowhere"), folder.path().to_owned()]);
        let loaded = find(Library::Cudnn, None, &places, |maths: &Maths| {
            // SAFETY: `cos` has no precondition.
            Ok(format!("{}", unsafe { (maths.cos)(0.0) }))
        });
        let loaded = loaded.expect("the file is there");
        assert_eq!(loaded.found.version, "1");
        assert_eq!(loaded.found.path.file_name(), Some("libcudnn.so.9".as_ref()));
        assert_eq!(loaded.found.origin, Origin::Variable);
    }

    #[test]
    fn a_file_that_is_passed_over_says_why() {
        let Some(folder) = disguised("libcudnn.so.9") else { return };
        let places = Places::folders(&[folder.path().to_owned()]);
        let refused = find(Library::Cudnn, Some(12), &places, |_: &Maths| {
            built_for(13, Some(12)).map(|()| "9.14.0".into())
        });
        assert!(matches!(refused, Err(Error::DriverTooOld { .. })));
    }

    #[test]
    fn an_old_driver_is_told_from_a_library_that_is_too_new() {
        assert_eq!(supported((12, 0)).ok().as_deref(), Some("12.0"));
        assert_eq!(supported((13, 1)).ok().as_deref(), Some("13.1"));
        let old = supported((11, 8)).map_err(|error| error.to_string());
        let expected =
            "the NVIDIA driver supports CUDA up to 11.8, expected 12.0 or newer; update the driver";
        assert_eq!(old, Err(expected.to_owned()));
        for (cuda, driver) in [(12, Some(12)), (12, Some(13)), (13, None)] {
            assert!(built_for(cuda, driver).is_ok());
        }
        // There is a cuDNN for the driver that is there.
        let Err(Error::DriverTooOld { expected, got, remedy }) = built_for(13, Some(12)) else {
            panic!("CUDA 13 does not run on a driver for 12")
        };
        assert!(expected.starts_with("13.0") && got == "12.x" && remedy.contains("nvidia-cudnn-cu12"));
    }

    #[test]
    fn a_report_tells_what_is_missing_from_what_is_of_no_use() {
        let old = || supported((11, 8)).map(|_| unreachable!("too old"));
        let missing = || Error::LibraryMissing { library: "NVRTC", remedy: "get it".into() };
        let libraries = vec![(Library::Driver, old()), (Library::Nvrtc, Err(missing()))];
        let report = Report { libraries, places: vec![Place::Loader] };
        assert!(!report.is_complete());
        let text = report.to_string();
        assert!(text.contains(
            "(libcuda.so.1): found, but of no use\n    the NVIDIA driver supports CUDA up to 11.8"
        ));
        assert!(text.contains("(libnvrtc.so): missing\n    NVRTC was not found; get it"), "{text}");
    }

    #[test]
    fn a_file_without_the_functions_is_broken() {
        struct Nothing;
        impl Symbols for Nothing {
            fn resolve(library: &libloading::Library) -> Result<Self, libloading::Error> {
                // SAFETY: the function is not there, so nothing is called through this type.
                unsafe { library.get::<unsafe extern "C" fn()>(b"no_such_function\0") }.map(|_| Nothing)
            }

            fn address(&self) -> usize {
                0
            }
        }
        let Some(folder) = disguised("libnvrtc.so.12") else { return };
        let places = Places::folders(&[folder.path().to_owned()]);
        let broken = find(Library::Nvrtc, Some(12), &places, |_: &Nothing| Ok(String::new()));
        assert!(matches!(broken, Err(Error::LibraryBroken { .. })));
    }

    #[test]
    fn a_missing_library_says_how_to_get_it() {
        let places = Places::folders(&[PathBuf::from("/nowhere")]);
        let missing = find(Library::Cudnn, Some(12), &places, |_: &Maths| Ok(String::new()));
        let Err(Error::LibraryMissing { remedy, .. }) = missing else { panic!("it is not there") };
        assert!(remedy.contains("nvidia-cudnn-cu12"), "{remedy}");
    }

    #[test]
    fn a_report_needs_nothing() {
        let report = report();
        assert_eq!(report.libraries.len(), 3);
        assert!(report.to_string().contains("cuDNN 9"));
    }
}
