//! The compiler of the crate's own kernels.
//!
//! Compiled code is kept in the user's cache folder under a hash of everything that it depends on, so that only the
//! first run compiles (about two seconds). A file that cannot be read or is damaged is compiled anew, one that cannot
//! be written is left out.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use crate::libs::{self, symbols};
use crate::{Error, Result};

type Status = c_int;
type Program = *mut c_void;

symbols! {
    /// The compiler's functions. The names are NVRTC's.
    pub struct Api {
        nvrtcVersion(*mut c_int, *mut c_int) -> Status;
        nvrtcCreateProgram(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> Status;
        nvrtcDestroyProgram(*mut Program) -> Status;
        nvrtcCompileProgram(Program, c_int, *const *const c_char) -> Status;
        nvrtcGetProgramLogSize(Program, *mut usize) -> Status;
        nvrtcGetProgramLog(Program, *mut c_char) -> Status;
        nvrtcGetCUBINSize(Program, *mut usize) -> Status;
        nvrtcGetCUBIN(Program, *mut c_char) -> Status;
    }
}

impl Api {
    /// The version, major and minor.
    pub(crate) fn version(&self) -> Result<(u32, u32)> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two integers.
        let status = unsafe { (self.nvrtcVersion)(&mut major, &mut minor) };
        if status != 0 {
            return Err(Error::Compile { arch: "any card".into(), status, log: "no version".into() });
        }
        Ok((major.max(0) as u32, minor.max(0) as u32))
    }
}

/// Compiled code.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The code, for one architecture.
    pub cubin: Vec<u8>,
    /// What the compiler said; empty where the code came from the cache.
    pub log: String,
}

/// Compiles `source`, CUDA C++17 that includes nothing, for an architecture such as `sm_90`.
///
/// # Errors
/// [`Error::Compile`] with the compiler's log; NVRTC is missing or broken.
pub fn compile(source: &str, arch: &str, options: &[&str]) -> Result<Compiled> {
    let api = &libs::nvrtc()?.api;
    let error = |status, log| Error::Compile { arch: arch.into(), status, log };
    let check = |status, what: &str| if status == 0 { Ok(()) } else { Err(error(status, what.to_owned())) };
    let text = CString::new(source).map_err(|_| error(0, "a zero byte in the source".into()))?;
    let mut program = OwnedProgram { api, raw: std::ptr::null_mut() };
    // SAFETY: strings end with zeros, there are no headers; writes one handle, destroyed when `program` is dropped.
    let status = unsafe {
        let (none, name) = (std::ptr::null(), c"kernels.cu".as_ptr());
        (api.nvrtcCreateProgram)(&mut program.raw, text.as_ptr(), name, 0, none, none)
    };
    check(status, "nvrtcCreateProgram")?;
    let arguments: Vec<CString> = [format!("--gpu-architecture={arch}").as_str(), "--std=c++17"]
        .iter()
        .chain(options)
        .map(|option| CString::new(*option).map_err(|_| error(0, "a zero byte in an option".into())))
        .collect::<Result<_>>()?;
    let pointers: Vec<*const c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    // SAFETY: the program is alive, and so are the options until the call returns.
    let compiled =
        unsafe { (api.nvrtcCompileProgram)(program.raw, pointers.len() as c_int, pointers.as_ptr()) };
    let log = program.text(api.nvrtcGetProgramLogSize, api.nvrtcGetProgramLog);
    let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned();
    if compiled != 0 {
        return Err(error(compiled, log));
    }
    let cubin = program.text(api.nvrtcGetCUBINSize, api.nvrtcGetCUBIN);
    if cubin.is_empty() {
        return Err(error(0, "the compiler wrote no code".into()));
    }
    Ok(Compiled { cubin, log })
}

/// Compiles as [`compile`] does, or takes the result from the folder `cache`.
///
/// # Errors
/// As [`compile`]; a cache that cannot be used is none.
pub fn compile_cached(source: &str, arch: &str, options: &[&str], cache: Option<&Path>) -> Result<Compiled> {
    let (major, minor) = libs::nvrtc()?.api.version()?;
    let key = [format!("{arch} {major}.{minor}").as_bytes(), options.join(" ").as_bytes(), source.as_bytes()]
        .join(&0);
    let file = cache.map(|folder| folder.join(format!("kernels-{arch}-{:016x}.cubin", hash(&key))));
    if let Some(cubin) = file.as_deref().and_then(read_checked) {
        return Ok(Compiled { cubin, log: String::new() });
    }
    let compiled = compile(source, arch, options)?;
    if let Some(file) = file {
        // What cannot be kept is compiled again.
        let _ = write_checked(&file, &compiled.cubin);
    }
    Ok(compiled)
}

/// The user's cache folder of this project: `swav` in `XDG_CACHE_HOME` or `~/.cache`.
pub fn cache_folder() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let root = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    root.map(|root| root.join("swav"))
}

/// A line of the compiler's report, asked for by the option `--ptxas-options=-v`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelReport {
    /// The kernel.
    pub name: String,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes a thread that are stored because registers do not suffice.
    pub spilled: u32,
}

/// Reads the report in a log of the compiler.
pub fn kernel_reports(log: &str) -> Vec<KernelReport> {
    let number_before = |line: &str, word: &str| -> Option<u32> {
        let before = line[..line.find(word)?].trim_end();
        before[before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1)..].parse().ok()
    };
    let mut reports: Vec<KernelReport> = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            reports.push(KernelReport { name, registers: 0, spilled: 0 });
        } else if let Some(report) = reports.last_mut() {
            if let Some(bytes) = number_before(line, " bytes spill stores") {
                report.spilled = bytes;
            }
            if let Some(registers) = number_before(line, " registers") {
                report.registers = registers;
            }
        }
    }
    reports
}

/// A program of the compiler.
struct OwnedProgram {
    api: &'static Api,
    raw: Program,
}

impl OwnedProgram {
    /// A result whose size one function tells and another writes; empty after a failure.
    fn text(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        write: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Vec<u8> {
        let mut len = 0;
        // SAFETY: the program is alive; writes one size.
        if unsafe { size(self.raw, &mut len) } != 0 {
            return Vec::new();
        }
        let mut bytes = vec![0_u8; len];
        // SAFETY: writes the number of bytes just told.
        let status = unsafe { write(self.raw, bytes.as_mut_ptr().cast()) };
        if status == 0 { bytes } else { Vec::new() }
    }
}

impl Drop for OwnedProgram {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: created in `compile`, dropped once.
            unsafe { (self.api.nvrtcDestroyProgram)(&mut self.raw) };
        }
    }
}

/// FNV-1a, 64 bits.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The content of a file that [`write_checked`] wrote, if it is whole.
fn read_checked(file: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).ok()?;
    let (sum, content) = bytes.split_first_chunk::<8>()?;
    (u64::from_le_bytes(*sum) == hash(content)).then(|| content.to_vec())
}

/// Writes a hash of the content, then the content; other processes see the whole file or none.
fn write_checked(file: &Path, content: &[u8]) -> std::io::Result<()> {
    let sum = hash(content).to_le_bytes();
    crate::files::write_whole(file, &[&sum[..], content].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_the_compiler_is_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'norm_apply_bf16' for 'sm_90'\n\
            ptxas info    : Function properties for norm_apply_bf16\n\
            \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 32 registers, used 1 barriers\n\
            ptxas info    : Compiling entry function 'big' for 'sm_90'\n\
            ptxas info    : Function properties for big\n\
            \x20   24 bytes stack frame, 16 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 255 registers, used 1 barriers, 4224 bytes smem";
        let report = |name: &str, registers, spilled| KernelReport { name: name.into(), registers, spilled };
        assert_eq!(kernel_reports(log), [report("norm_apply_bf16", 32, 0), report("big", 255, 16)]);
    }

    #[test]
    fn a_damaged_file_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("deep/er/code");
        write_checked(&file, b"some code").expect("writes");
        assert_eq!(read_checked(&file).as_deref(), Some(&b"some code"[..]));
        let mut bytes = std::fs::read(&file).expect("reads");
        *bytes.last_mut().expect("not empty") ^= 1;
        std::fs::write(&file, &bytes).expect("writes");
        assert_eq!(read_checked(&file), None);
        std::fs::write(&file, b"short").expect("writes");
        assert_eq!(read_checked(&file), None);
    }

    #[test]
    fn the_hash_is_that_of_the_literature() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn compiling_without_the_compiler_is_an_error() {
        match compile("extern \"C\" __global__ void one(float* x) { *x = 1; }", "sm_90", &[]) {
            Ok(compiled) => assert_eq!(&compiled.cubin[..4], b"\x7fELF"),
            Err(error) => assert!(matches!(error, Error::LibraryMissing { .. }), "{error}"),
        }
    }

    #[test]
    fn a_mistake_in_the_source_is_told() {
        match compile("extern \"C\" __global__ void one(float* x) { *x = y; }", "sm_90", &[]) {
            Err(Error::Compile { log, .. }) => assert!(log.contains("\"y\" is undefined"), "{log}"),
            other => assert!(matches!(other, Err(Error::LibraryMissing { .. })), "{other:?}"),
        }
    }
}
