//! Texts that mean an amount: durations and sizes.

use std::time::Duration;

use jiff::fmt::friendly::{SpanParser, SpanPrinter};

use super::reader::Complaint;

/// `1m30s`, `0s`, `1.5s`.
pub(super) fn duration(text: &str) -> Result<Duration, Complaint> {
    SpanParser::new().parse_unsigned_duration(text.trim()).map_err(|_| {
        let complaint = Complaint::new("must be a duration with units, like \"90s\" or \"1m30s\"");
        if text.trim().parse::<f64>().is_ok() {
            let number = text.trim();
            complaint.help(format!(
                "write \"{number}s\" for {number} seconds, or \"{number}ms\", \"{number}m\", \"{number}h\""
            ))
        } else if text.contains('d') || text.contains('w') {
            complaint.help("the largest unit is hours: a day is \"24h\"")
        } else {
            complaint.help("units are h, m, s and ms")
        }
    })
}

/// A duration as people write it.
pub(super) fn show(duration: Duration) -> String {
    SpanPrinter::new().unsigned_duration_to_string(&duration)
}

/// The units of sizes, longest names first.
const SIZES: [(&str, u64); 9] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("b", 1),
];

/// `64MiB`, `10MB`, `512`.
pub(super) fn size(text: &str) -> Result<u64, Complaint> {
    let wrong = || Complaint::new("must be a size, like \"64MiB\", \"10MB\" or a number of bytes");
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '_').len();
    let (number, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
    let number = number.replace('_', "");
    let unit = unit.trim().to_ascii_lowercase();
    let Some((_, factor)) = SIZES.iter().chain([&("", 1)]).find(|(name, _)| *name == unit) else {
        let help = match unit.as_str() {
            "k" | "m" | "g" | "t" => {
                let big = unit.to_ascii_uppercase();
                format!("write \"{number}{big}iB\" (powers of 1024) or \"{number}{big}B\" (powers of 1000)")
            }
            _ => "units are B, KB, MB, GB, TB and KiB, MiB, GiB, TiB".to_owned(),
        };
        return Err(wrong().help(help));
    };
    let number: u64 = number.parse().map_err(|_| wrong().help("the number must be whole"))?;
    number.checked_mul(*factor).ok_or_else(|| Complaint::new("is too large"))
}

/// A size as people write it.
pub(super) fn show_size(bytes: u64) -> String {
    SIZES
        .iter()
        .filter(|(name, _)| name.ends_with("ib"))
        .rev()
        .find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor))
        .map_or_else(
            || {
                if bytes == 1 { "1 byte".to_owned() } else { format!("{bytes} bytes") }
            },
            |(name, factor)| {
                format!("{}{}iB", bytes / factor, name.chars().take(1).collect::<String>().to_ascii_uppercase())
            },
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_units() {
        assert_eq!(duration("1m30s").ok(), Some(Duration::from_secs(90)));
        assert_eq!(duration("1.5s").ok(), Some(Duration::from_millis(1500)));
        assert_eq!(duration("0s").ok(), Some(Duration::ZERO));
        for wrong in ["90", "", "-5s", "5 parsecs", "5s ago", "1d"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes_know_both_kinds_of_units() {
        assert_eq!(size("64MiB").ok(), Some(64 << 20));
        assert_eq!(size("10 MB").ok(), Some(10_000_000));
        assert_eq!(size("512").ok(), Some(512));
        for wrong in ["", "MiB", "1.5GiB", "64M", "99999999TiB", "-1", "1 gigabyte"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(show_size(64 << 20), "64MiB");
        assert_eq!(show_size(1000), "1000 bytes");
    }
}
