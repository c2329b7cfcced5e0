//! Numbers as people read them: sizes, rates, times left.
//!
//! Invariant: this is for eyes only; what programs read is in bytes and seconds.

use std::time::Duration;

const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// `0 B`, `1023 B`, `1.0 KiB`, `12.3 MiB`: three digits at most before the point, one behind it.
#[expect(clippy::cast_precision_loss, reason = "one digit behind the point is shown")]
pub fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A rate in bytes per second: `12.3 MiB/s`.
pub fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", size(bytes_per_second))
}

/// `1 file`, `2 files`: a count and the name of what is counted.
pub fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// A time in its two largest units, `3d 4h`, `4h 5m`, `5m 6s` or `6s`; `-` if it is not known.
pub fn time(time: Option<Duration>) -> String {
    let Some(seconds) = time.map(|time| time.as_secs()) else { return "-".to_owned() };
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {seconds}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// How long `bytes_left` takes at `bytes_per_second`; `None` if nothing moves.
pub fn time_left(bytes_left: u64, bytes_per_second: u64) -> Option<Duration> {
    bytes_left.checked_div(bytes_per_second).map(Duration::from_secs)
}

/// A share in percent, rounded down, so that 100 means all of it; nothing of nothing is all.
pub fn percent(part: u64, whole: u64) -> u64 {
    let share = u128::from(part.min(whole)) * 100 / u128::from(whole.max(1));
    if whole == 0 { 100 } else { u64::try_from(share).unwrap_or(100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (12_897_485, "12.3 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(rate(12_897_485), "12.3 MiB/s");
    }

    #[test]
    fn one_is_singular() {
        let counts = [0, 1, 2].map(|count| counted(count, "file"));
        assert_eq!(counts, ["0 files", "1 file", "2 files"]);
    }

    #[test]
    fn times() {
        let cases = [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (273_600, "3d 4h")];
        for (seconds, text) in cases {
            assert_eq!(time(Some(Duration::from_secs(seconds))), text);
        }
        assert_eq!(time(time_left(10, 0)), "-");
        assert_eq!(time(time_left(1000, 10)), "1m 40s");
    }

    #[test]
    fn shares_are_rounded_down() {
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(5, 5), 100);
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }
}
