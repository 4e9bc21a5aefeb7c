//! Refuses to overwrite what somebody may miss: slices of arrays, filesystems, partition tables.
//!
//! Places and magics as documented by their makers and collected in util-linux's libblkid.

/// How much of the beginning of a device is looked at, in bytes.
pub const HEAD_BYTES: usize = 128 << 10;
/// How much of its end is looked at, in bytes; less on smaller devices.
pub const TAIL_BYTES: usize = 64 << 10;

/// The first bytes of the superblock of an array's slice.
const SLICE_MAGIC: &[u8] = b"iomd-slice\0\0\0\0\0\0";
/// The first bytes of every sector that we write ourselves.
const OURS: &[u8] = b"iomdtest";

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A slice of an array: never to be written.
    Slice,
    /// Something else that is known, by its name.
    Known(&'static str),
}

/// Name, offset in bytes from the beginning, magic.
const SIGNATURES: &[(&str, usize, &[u8])] = &[
    ("an ext2/3/4 filesystem", 0x438, &[0x53, 0xef]),
    ("an XFS filesystem", 0, b"XFSB"),
    ("a btrfs filesystem", 0x10040, b"_BHRfS_M"),
    ("an F2FS filesystem", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("an NTFS filesystem", 3, b"NTFS    "),
    ("an ISO 9660 filesystem", 0x8001, b"CD001"),
    ("a SquashFS filesystem", 0, b"hsqs"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("an MBR partition table or FAT filesystem", 510, &[0x55, 0xaa]),
    ("a LUKS container", 0, b"LUKS\xba\xbe"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("a member of a Linux software RAID", 0, MD_MAGIC),
    ("a member of a Linux software RAID", 4096, MD_MAGIC),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("a qcow2 image", 0, b"QFI\xfb"),
];
const MD_MAGIC: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];

/// Looks at the first and the last bytes of a device of `size` bytes.
pub fn inspect(head: &[u8], tail: &[u8], size: u64) -> Option<Found> {
    let tail_start = size - tail.len() as u64;
    let in_tail = |at: u64| at.checked_sub(tail_start).and_then(|at| tail.get(at as usize..));
    let tail_holds = |at: Option<u64>, magic: &[u8]| {
        at.and_then(in_tail).is_some_and(|bytes| bytes.starts_with(magic))
    };
    let backup = (size / 4096).checked_sub(1).map(|block| block * 4096);
    if head.starts_with(SLICE_MAGIC) || tail_holds(backup, SLICE_MAGIC) {
        return Some(Found::Slice);
    }
    for (name, offset, magic) in SIGNATURES {
        if holds(head, *offset, magic) {
            return Some(Found::Known(name));
        }
    }
    if tail_holds(size.checked_sub(512), b"EFI PART") {
        return Some(Found::Known("a GPT partition table"));
    }
    let version_1_0 = (size / 512).checked_sub(16).map(|sector| (sector & !7) * 512);
    if tail_holds(version_1_0, MD_MAGIC) {
        return Some(Found::Known("a member of a Linux software RAID"));
    }
    None
}

/// Random fill may look like a short magic, so sectors of our own are passed over.
fn holds(head: &[u8], offset: usize, magic: &[u8]) -> bool {
    let sector = offset / 512 * 512;
    head.get(offset..).is_some_and(|bytes| bytes.starts_with(magic))
        && !head[sector..].starts_with(OURS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(size: usize, at: usize, magic: &[u8]) -> Option<Found> {
        let mut disk = vec![0; size];
        disk[at..at + magic.len()].copy_from_slice(magic);
        let head = &disk[..size.min(HEAD_BYTES)];
        inspect(head, &disk[size - size.min(TAIL_BYTES)..], size as u64)
    }

    #[test]
    fn empty_devices_are_free() {
        for size in [512, 4096, 1 << 20] {
            assert_eq!(found(size, 0, b""), None);
        }
    }

    #[test]
    fn slices_are_known_by_either_superblock() {
        for size in [1 << 20, (1 << 20) + 512, (1 << 20) + 4095] {
            assert_eq!(found(size, 0, SLICE_MAGIC), Some(Found::Slice));
            assert_eq!(found(size, (1 << 20) - 4096, SLICE_MAGIC), Some(Found::Slice));
        }
        assert_eq!(found(1 << 20, 8192, SLICE_MAGIC), None);
    }

    #[test]
    fn every_signature_is_found_at_its_place() {
        for (name, offset, magic) in SIGNATURES {
            assert_eq!(found(1 << 20, *offset, magic), Some(Found::Known(name)));
        }
        let gpt = found(1 << 20, (1 << 20) - 512, b"EFI PART");
        assert_eq!(gpt, Some(Found::Known("a GPT partition table")));
        let md = found(1 << 20, (1 << 20) - 8192, MD_MAGIC);
        assert_eq!(md, Some(Found::Known("a member of a Linux software RAID")));
    }

    #[test]
    fn our_own_sectors_are_not_mistaken() {
        let mut disk = vec![0; 1 << 20];
        disk[..8].copy_from_slice(OURS);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(inspect(&disk[..HEAD_BYTES], &[], 1 << 20), None);
    }
}
