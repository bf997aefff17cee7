//! Date and machine, for the report.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, as `2026-03-31 14:05 UTC`.
pub(super) fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(seconds)
}

/// The date and time of day of a second since 1970, in the proleptic Gregorian calendar.
fn date(seconds: u64) -> String {
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut day) = (1970, days);
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if day < length {
            break;
        }
        day -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", day + 1, of_day / 3600, of_day / 60 % 60)
}

/// What this report was made on.
pub(super) fn environment(device: &str) -> Vec<(String, String)> {
    let mut found = vec![
        ("program", format!("swav {}", env!("CARGO_PKG_VERSION"))),
        ("device of the training", device.to_owned()),
        ("this machine", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
    ];
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if let Some(model) = text.lines().find_map(|line| line.strip_prefix("model name")) {
        found.push(("processor", model.trim_start_matches([' ', '\t', ':']).to_owned()));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    found.push(("cores", cores.to_string()));
    found.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59 UTC"),
            (4_102_444_800, "2100-01-01 00:00 UTC"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }
}
