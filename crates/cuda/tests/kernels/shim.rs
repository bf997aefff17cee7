//! The kernels' source as a library for the CPU: built by the machine's C++ compiler, loaded, called.

use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};

use swav_cuda::kernels::{self, Arg, Launch};

const SHIM: &str = include_str!("shim.hpp");
const ENTRIES: &str = include_str!("shim.cpp");

/// Set in the run whose library has the address sanitiser.
pub const SANITIZED: &str = "SWAV_SHIM_SANITIZED";

/// The library. A card in small: one kernel at a time.
pub struct Shim {
    library: libloading::Library,
    names: Vec<String>,
    kinds: Vec<String>,
    busy: Mutex<()>,
}

/// The C++ compiler: `CXX`, else `c++`.
pub fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".into())
}

/// The library, built by the first caller.
pub fn shim() -> &'static Shim {
    static SHIM: OnceLock<Shim> = OnceLock::new();
    SHIM.get_or_init(|| {
        let sanitized = std::env::var_os(SANITIZED).is_some();
        Shim::load(&build(sanitized))
    })
}

/// All source text, with the table of kernels.
fn text() -> String {
    let mut text = kernels::source_with("shim.hpp", SHIM);
    text.push_str("static const shim::Kernel shim_kernels[] = {\n");
    for name in kernels::NAMES {
        text.push_str(&format!("{{\"{name}\", shim::Call<{name}>::kinds, shim::Call<{name}>::run}},\n"));
    }
    text.push_str("};\n#line 1 \"shim.cpp\"\n");
    text + ENTRIES
}

/// Compiles the library, unless one of the same text is there.
pub fn build(sanitized: bool) -> PathBuf {
    let text = text();
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let kind = if sanitized { "sanitized" } else { "plain" };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join(format!("kernels-{kind}-{hash:016x}.so"));
    if library.exists() {
        return library;
    }
    let id = std::process::id();
    let (source, fresh) = (folder.join(format!("kernels-{id}.cpp")), folder.join(format!("kernels-{id}.so")));
    std::fs::write(&source, text).expect("the build folder can be written");
    let mut command = Command::new(compiler());
    command.args(["-std=c++17", "-shared", "-fPIC", "-w", "-march=native", "-ffp-contract=off"]);
    command.args(["-fno-strict-aliasing", "-U_FORTIFY_SOURCE"]);
    if sanitized {
        command.args(["-O1", "-g", "-fsanitize=address", "-fsanitize=alignment,bounds,shift"]);
        command.arg("-fno-sanitize-recover=all");
    } else {
        command.arg("-O2");
    }
    command.arg("-o").arg(&fresh).arg(&source);
    let output = command.output().unwrap_or_else(|error| {
        panic!("these tests need a C++ compiler, and {} does not start ({error}); set CXX", compiler())
    });
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&fresh, &library).expect("a file of the build folder can be renamed");
    std::fs::remove_file(&source).expect("a file of the build folder can be removed");
    library
}

impl Shim {
    fn load(path: &Path) -> Self {
        // SAFETY: the library was built from this crate's own source and runs nothing when loaded.
        let library = unsafe { libloading::Library::new(path) }.expect("a library that was just built loads");
        let mut shim = Self { library, names: Vec::new(), kinds: Vec::new(), busy: Mutex::new(()) };
        // SAFETY: the signatures are those in shim.cpp.
        unsafe {
            let count: extern "C" fn() -> u32 = shim.symbol(b"shim_count");
            let name: extern "C" fn(u32) -> *const c_char = shim.symbol(b"shim_name");
            let kinds: extern "C" fn(u32) -> *const c_char = shim.symbol(b"shim_kinds");
            let text = |p| CStr::from_ptr(p).to_str().expect("names are ASCII").to_owned();
            for i in 0..count() {
                shim.names.push(text(name(i)));
                shim.kinds.push(text(kinds(i)));
            }
        }
        shim
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `T` must be the function's type.
    unsafe fn symbol<T: Copy>(&self, name: &[u8]) -> T {
        // SAFETY: the caller's promise.
        *unsafe { self.library.get::<T>(name) }.expect("the library has this function")
    }

    /// Sizes of the structures Tensor, Chunk, StepScalars, StepReport.
    pub fn sizes(&self) -> [u32; 4] {
        // SAFETY: the signature is that in shim.cpp.
        let size: extern "C" fn(u32) -> u32 = unsafe { self.symbol(b"shim_size") };
        [0, 1, 2, 3].map(|i| size(i))
    }

    /// Runs launches one after the other. `order`: bit 0 turns the order of a block's threads round, bit 1 that of
    /// the blocks. Panics if an argument is of another kind than the kernel's parameter.
    pub fn run(&self, launches: &[Launch<u64>], order: u32) {
        let guard = self.busy.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for launch in launches {
            self.launch(launch, order, &guard);
        }
    }

    fn launch(&self, launch: &Launch<u64>, order: u32, _busy: &MutexGuard<'_, ()>) {
        let kernel = launch.kernel;
        let index = self.names.iter().position(|name| name == kernel).expect("the kernel exists");
        let kind = |arg: &Arg<u64>| match arg {
            Arg::Pointer(_) | Arg::Null => 'p',
            Arg::I32(_) => 'i',
            Arg::F32(_) => 'f',
        };
        let given: String = launch.args.iter().map(kind).collect();
        assert_eq!(given, self.kinds[index], "kinds of the arguments of {kernel}");
        assert!(launch.grid.iter().all(|&n| n > 0) && launch.grid[1] < 65536 && launch.grid[2] < 65536);
        let mut words: Vec<u64> = launch
            .args
            .iter()
            .map(|arg| match *arg {
                Arg::Pointer(p) => p,
                Arg::Null => 0,
                Arg::I32(n) => u64::from(n as u32),
                Arg::F32(x) => u64::from(x.to_bits()),
            })
            .collect();
        let args: Vec<*mut c_void> = words.iter_mut().map(|word| (word as *mut u64).cast()).collect();
        type Call = unsafe extern "C" fn(u32, *const u32, *const u32, *const *mut c_void, u32);
        // SAFETY: the signature is that in shim.cpp; the arguments have the kinds of the kernel's parameters, and
        // pointers are those of buffers that the test sized for the operation.
        unsafe {
            let call: Call = self.symbol(b"shim_launch");
            call(index as u32, launch.grid.as_ptr(), launch.block.as_ptr(), args.as_ptr(), order);
        }
    }
}
