//! The program `swav`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: swav_kernels::AlignedAllocator = swav_kernels::AlignedAllocator;

fn main() -> ExitCode {
    swav_cli::main()
}
