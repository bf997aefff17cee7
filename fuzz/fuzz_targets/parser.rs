//! One parser under libFuzzer, which the environment names; damage is libFuzzer's own, the checks are those of `swav-fuzz`:
//!
//! ```text
//! cargo run --release -p swav-fuzz -- --write-seeds fuzz/corpus
//! SWAV_PARSER=parquet cargo +nightly fuzz run parser fuzz/corpus/parquet -- -rss_limit_mb=1024 -max_len=100000
//! ```
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use swav_fuzz::{Parser, feed};
use tempfile::TempDir;

static PARSER: LazyLock<Parser> = LazyLock::new(|| {
    let name = std::env::var("SWAV_PARSER").unwrap_or_else(|_| "image".to_owned());
    // Panics of decoders that the project contains are no findings, but libFuzzer's hook would end the process at them.
    std::panic::set_hook(Box::new(|_| ()));
    let named = Parser::ALL.iter().find(|parser| parser.name() == name);
    *named.unwrap_or_else(|| panic!("SWAV_PARSER={name}: no such parser"))
});
static SCRATCH: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().expect("a folder for files"));

fuzz_target!(|input: &[u8]| {
    feed(*PARSER, input, SCRATCH.path());
});
