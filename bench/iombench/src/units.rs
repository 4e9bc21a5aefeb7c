//! Sizes and durations as people write and read them.

/// Bytes from `4096`, `4K` (1024-based: K M G T, also KiB ...), `4KB` (1000-based), `8s` (sectors).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a size"))?;
    let power = |base: u64, letter: u8| match letter {
        b'K' | b'k' => Some(base),
        b'M' | b'm' => Some(base.pow(2)),
        b'G' | b'g' => Some(base.pow(3)),
        b'T' | b't' => Some(base.pow(4)),
        _ => None,
    };
    let factor = match unit.as_bytes() {
        [] | b"B" => Some(1),
        b"s" => Some(512),
        [letter] | [letter, b'i', b'B'] => power(1024, *letter),
        [letter, b'B'] => power(1000, *letter),
        _ => None,
    };
    let factor = factor.ok_or_else(|| format!("`{unit}` is not a unit: use K M G T or KB MB"))?;
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"))
}

/// Bytes for a person: `1.5 GiB`.
pub fn size(bytes: f64) -> String {
    let mut value = bytes;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value.fract() == 0.0 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// Nanoseconds for a person, three digits: `83.1 us`, `2.40 ms`.
pub fn latency(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let decimals = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.decimals$} {unit}")
}

/// Seconds from `10`, `1.5`, `10s`, `2m`, `500ms`.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a duration"))?;
    let factor = match unit {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{unit}` is not a unit of time: use ms s m h")),
    };
    let seconds = number * factor;
    if seconds > 0.0 && seconds <= 1e8 {
        Ok(std::time::Duration::from_secs_f64(seconds))
    } else {
        Err(format!("a run of `{text}` is not possible"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_habits_of_coreutils() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("4KB", 4000),
            ("1M", 1 << 20),
            ("2MB", 2_000_000),
            ("3G", 3 << 30),
            ("1T", 1 << 40),
            ("8s", 4096),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "4X", "4KK", "-1", "1.5K", "99999999T", "4 K"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn figures_are_readable() {
        assert_eq!(size(4096.0), "4 KiB");
        assert_eq!(size(1536.0 * 1024.0), "1.5 MiB");
        assert_eq!(size(100.0), "100 B");
        assert_eq!(latency(83_123.0), "83.1 us");
        assert_eq!(latency(2_400_000.0), "2.40 ms");
        assert_eq!(latency(1_000.0), "1.00 us");
        assert_eq!(latency(3e9), "3.00 s");
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("10").unwrap().as_secs(), 10);
        assert_eq!(parse_duration("500ms").unwrap().as_millis(), 500);
        assert_eq!(parse_duration("2m").unwrap().as_secs(), 120);
        for text in ["", "0", "-1", "3 s", "1y", "."] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
