//! How much memory there is, and how amounts of it are written.

use std::fs;

/// Bytes that this process can still have: what the system says is available, or what is left of the limit of its control
/// group, if that is less. `None` where the system does not tell (anything but Linux).
pub fn available_memory() -> Option<u64> {
    let system = available_in(&fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(group_memory().map_or(system, |group| group.min(system)))
}

/// An amount of memory for people: `1.5 GiB`.
///
/// ```
/// assert_eq!(swav_train::bytes(3 << 29), "1.5 GiB");
/// ```
pub fn bytes(n: u128) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut size, mut unit) = (n as f64, 0);
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        (size, unit) = (size / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{n} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

/// What the text of `/proc/meminfo` says is available.
fn available_in(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What is left of the limit of the process's control group, version 2 or 1; `None` without a limit. Files that the group
/// has read and that nobody needs any more count as free.
fn group_memory() -> Option<u64> {
    let number = |path: String| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("").trim_end_matches('/');
    let places = [
        (format!("/sys/fs/cgroup{own}"), "memory.max", "memory.current", "inactive_file "),
        ("/sys/fs/cgroup".to_owned(), "memory.max", "memory.current", "inactive_file "),
        (
            "/sys/fs/cgroup/memory".to_owned(),
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file ",
        ),
    ];
    places.into_iter().find_map(|(folder, limit, used, unneeded)| {
        let (limit, used) = (number(format!("{folder}/{limit}"))?, number(format!("{folder}/{used}"))?);
        let stat = fs::read_to_string(format!("{folder}/memory.stat")).unwrap_or_default();
        let unneeded = stat.lines().find_map(|line| line.strip_prefix(unneeded)?.trim().parse::<u64>().ok());
        Some(limit.saturating_sub(used.saturating_sub(unneeded.unwrap_or(0))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_understood() {
        let text = "MemTotal:       24576000 kB\nMemFree: 1 kB\nMemAvailable:   18000000 kB\n";
        assert_eq!(available_in(text), Some(18_000_000 * 1024));
        assert_eq!(available_in("MemTotal: 5 kB"), None);
        if cfg!(target_os = "linux") {
            assert!(available_memory().is_some_and(|n| n > 1 << 20));
        }
    }

    #[test]
    fn amounts_are_written_for_people() {
        let amounts = [(0, "0 B"), (1023, "1023 B"), (1 << 20, "1.0 MiB"), ((1 << 30) - 1, "1.0 GiB")];
        for (n, expected) in amounts {
            assert_eq!(bytes(n), expected);
        }
        assert_eq!(bytes(1 << 80), "1048576.0 EiB");
    }
}
