//! How much memory this process has used.

/// The largest resident set so far in MiB, as the system counts it; `None` where it does not tell.
pub fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn a_large_buffer_shows() {
        let buffer = vec![1u8; 64 << 20];
        let peak = super::peak_rss_mib().expect("Linux tells");
        assert!(peak > 64.0 && peak < 1e6, "{peak} MiB with a buffer of {} bytes", buffer.len());
    }
}
