//! Sizes as operators write and read them: K M G T count in 1024, KB MB GB TB in 1000.

/// Bytes from `4096`, `4K`, `4KiB` or `4KB`.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a size"))?;
    let exponent = |letter: char| "KMGT".find(letter.to_ascii_uppercase()).map(|at| at as u32 + 1);
    let mut letters = unit.chars();
    let factor = match (letters.next(), letters.as_str()) {
        (None, _) | (Some('B'), "") => Some(1),
        (Some(letter), "" | "iB") => exponent(letter).map(|power| 1024u64.pow(power)),
        (Some(letter), "B") => exponent(letter).map(|power| 1000u64.pow(power)),
        _ => None,
    };
    let factor = factor.ok_or_else(|| format!("`{unit}` is no unit: K M G T, or KB MB GB TB"))?;
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"))
}

/// Bytes for a person: `64 KiB`, `1.8 TiB`.
pub fn readable(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value.fract() == 0.0 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_count_as_they_say() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("4KB", 4000),
            ("64M", 64 << 20),
            ("2G", 2 << 30),
            ("2GB", 2_000_000_000),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "4Q", "4KK", "-4K", "1.5G", "4 K", "99999999T", "4KBB"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn people_read_binary_units() {
        assert_eq!(readable(0), "0 B");
        assert_eq!(readable(65536), "64 KiB");
        assert_eq!(readable(1536 << 20), "1.5 GiB");
    }
}
