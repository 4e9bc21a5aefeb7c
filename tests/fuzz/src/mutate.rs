//! How inputs are spoilt.

use workload::Rng;

/// Numbers at which bounds are got wrong.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0xffff,
    4096,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    1 << 62,
    u64::MAX,
];

/// Bytes near the start in which most rules stand.
const HEAD_BYTES: u64 = 160;

/// Spoils `bytes` in one to five places, keeping their number.
pub fn spoil(rng: &mut Rng, bytes: &mut [u8]) {
    for _ in 0..=rng.below(5) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len() as u64;
        let reach = if rng.percent(70) { length.min(HEAD_BYTES) } else { length };
        let at = rng.below(reach) as usize;
        let end = (at + 1 + rng.below(64) as usize).min(bytes.len());
        match rng.below(6) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.next_u64() as u8,
            2 | 3 => number(rng, bytes, at),
            4 => bytes[at..end].fill(EDGES[rng.below(6) as usize] as u8),
            _ => {
                let from = rng.below(length - (end - at) as u64 + 1) as usize;
                bytes.copy_within(from..from + end - at, at);
            }
        }
    }
}

/// Puts an edge, or a neighbour of what is there, into an aligned field of 1, 2, 4 or 8 bytes.
fn number(rng: &mut Rng, bytes: &mut [u8], at: usize) {
    let width = 1 << rng.below(4);
    let at = at / width * width;
    let Some(field) = bytes.get_mut(at..at + width) else { return };
    let mut old = [0; 8];
    old[..width].copy_from_slice(field);
    let old = u64::from_le_bytes(old);
    let new = match rng.below(4) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        _ => EDGES[rng.below(EDGES.len() as u64) as usize],
    };
    field.copy_from_slice(&new.to_le_bytes()[..width]);
}

/// Makes the checksum at `at` right again, as FORMAT.md says it is computed. Where spoilt bytes
/// keep their old checksum a decoder looks no further.
pub fn reseal(bytes: &mut [u8], at: usize) {
    if bytes.len() < at + 4 {
        return;
    }
    let before = engine::kernel::crc32c(&bytes[..at]);
    let after = engine::kernel::crc32c(&bytes[at + 4..]);
    let sum = before.rotate_left(16).wrapping_add(after);
    bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spoils_everything_sooner_or_later() {
        let mut rng = Rng::new(1);
        let mut changed = [false; 300];
        for _ in 0..5000 {
            let mut bytes: Vec<u8> = (0..300).map(|i| (i * 7) as u8).collect();
            let whole = bytes.clone();
            spoil(&mut rng, &mut bytes);
            assert_eq!(bytes.len(), whole.len());
            changed.iter_mut().zip(bytes.iter().zip(whole)).for_each(|(c, (a, b))| *c |= *a != b);
        }
        assert!(changed.iter().all(|c| *c));
    }
}
