//! Signatures of file systems, volume managers, partition tables and other DRBD meta data, so that creating meta data
//! can refuse to overwrite what somebody may still want.
//!
//! The signatures are the magic numbers that each format's own documentation gives. A match is a reason to ask, no
//! proof; no match is no proof that a device is empty.

use crate::MD_BLOCK_SIZE;
use crate::placement::INDEXED_SLOT_SECTORS;
use crate::superblock::{Format, detect};

/// Something that was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What it is, for people: `ext4 file system`.
    pub name: &'static str,
    /// Where its signature lies, in bytes.
    pub offset_bytes: u64,
}

/// A signature that is a fixed run of bytes.
struct Magic {
    name: &'static str,
    /// Counts from the end of the device if negative.
    offset_bytes: i64,
    bytes: &'static [u8],
}

const fn magic(name: &'static str, offset_bytes: i64, bytes: &'static [u8]) -> Magic {
    Magic { name, offset_bytes, bytes }
}

const MAGICS: &[Magic] = &[
    magic("XFS file system", 0, b"XFSB"),
    magic("btrfs file system", 0x10040, b"_BHRfS_M"),
    magic("ReiserFS file system", 0x10034, b"ReIsEr"),
    magic("JFS file system", 0x8000, b"JFS1"),
    magic("F2FS file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    magic("ISO 9660 file system", 0x8001, b"CD001"),
    magic("NTFS file system", 3, b"NTFS    "),
    magic("exFAT file system", 3, b"EXFAT   "),
    magic("FAT file system", 54, b"FAT1"),
    magic("FAT32 file system", 82, b"FAT32   "),
    magic("squashfs file system", 0, b"hsqs"),
    magic("LUKS encrypted volume", 0, b"LUKS\xba\xbe"),
    magic("BlueStore object store", 0, b"bluestore block device"),
    magic("swap space", 4086, b"SWAPSPACE2"),
    magic("swap space", 4086, b"SWAP-SPACE"),
    magic("hibernation image", 4086, b"S1SUSPEND"),
    magic("GPT partition table", 512, b"EFI PART"),
    magic("GPT partition table", 4096, b"EFI PART"),
    magic("GPT partition table (backup)", -512, b"EFI PART"),
    magic("GPT partition table (backup)", -4096, b"EFI PART"),
    magic("Linux software RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("Linux software RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
];

const LVM_LABEL: &[u8] = b"LABELONE";
const LVM_TYPE: &[u8] = b"LVM2 001";
const MD_RAID_MAGIC_LE: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];
const ZFS_UBERBLOCK_MAGIC: u64 = 0x00ba_b10c;
/// The uberblocks of the first ZFS label, 1 KiB apart.
const ZFS_UBERBLOCKS: (u64, usize) = (128 * 1024, 128 * 1024);
const EXT_MAGIC: u16 = 0xef53;
const EXT_COMPAT_HAS_JOURNAL: u32 = 0x4;
/// Extents, 64 bit, flexible block groups: what ext3 does not have.
const EXT_INCOMPAT_EXT4: u32 = 0x40 | 0x80 | 0x200;
const EXT_INCOMPAT_JOURNAL_DEVICE: u32 = 0x8;

/// Fills the buffer with what the device has from an offset in bytes on.
pub type ReadRange<'a, E> = dyn FnMut(u64, &mut [u8]) -> Result<(), E> + 'a;

/// Looks for known signatures on a device of `size_bytes`. `read(offset_bytes, buffer)` must fill the buffer; it is
/// only asked for ranges inside of the device, each at most 128 KiB, not aligned to anything.
///
/// # Errors
/// The first error of `read`.
pub fn probe_foreign<E>(size_bytes: u64, read: &mut ReadRange<'_, E>) -> Result<Vec<Signature>, E> {
    let mut probe = Probe { size_bytes, read, found: Vec::new() };
    for magic in MAGICS {
        probe.fixed(magic)?;
    }
    probe.ext()?;
    probe.lvm()?;
    probe.mbr()?;
    probe.raid_at_end()?;
    probe.zfs()?;
    probe.drbd()?;
    Ok(probe.found)
}

struct Probe<'a, E> {
    size_bytes: u64,
    read: &'a mut ReadRange<'a, E>,
    found: Vec<Signature>,
}

impl<E> Probe<'_, E> {
    /// Reads a range; `false` if it does not lie inside of the device.
    fn get(&mut self, offset_bytes: u64, buffer: &mut [u8]) -> Result<bool, E> {
        let inside = offset_bytes.checked_add(buffer.len() as u64).is_some_and(|end| end <= self.size_bytes);
        if inside {
            (self.read)(offset_bytes, buffer)?;
        }
        Ok(inside)
    }

    fn add(&mut self, name: &'static str, offset_bytes: u64) {
        self.found.push(Signature { name, offset_bytes });
    }

    fn fixed(&mut self, magic: &Magic) -> Result<(), E> {
        let offset = if magic.offset_bytes < 0 {
            self.size_bytes.checked_add_signed(magic.offset_bytes)
        } else {
            Some(magic.offset_bytes.unsigned_abs())
        };
        let mut buffer = [0; 32];
        let buffer = &mut buffer[..magic.bytes.len()];
        if let Some(offset) = offset
            && self.get(offset, buffer)?
            && buffer == magic.bytes
        {
            self.add(magic.name, offset);
        }
        Ok(())
    }

    fn ext(&mut self) -> Result<(), E> {
        let mut block = [0; 128];
        if !self.get(1024, &mut block)? || le16(&block, 56) != EXT_MAGIC {
            return Ok(());
        }
        let (compat, incompat) = (le32(&block, 92), le32(&block, 96));
        let name = if incompat & EXT_INCOMPAT_JOURNAL_DEVICE != 0 {
            "ext3 or ext4 external journal"
        } else if incompat & EXT_INCOMPAT_EXT4 != 0 {
            "ext4 file system"
        } else if compat & EXT_COMPAT_HAS_JOURNAL != 0 {
            "ext3 file system"
        } else {
            "ext2 file system"
        };
        self.add(name, 1024 + 56);
        Ok(())
    }

    /// An LVM label lies in one of the first four sectors.
    fn lvm(&mut self) -> Result<(), E> {
        for offset in [0, 512, 1024, 1536] {
            let mut label = [0; 32];
            if self.get(offset, &mut label)? && label.starts_with(LVM_LABEL) && label[24..] == *LVM_TYPE {
                self.add("LVM physical volume", offset);
            }
        }
        Ok(())
    }

    /// Boot sectors of file systems have the same signature: only a table with a plausible entry counts.
    fn mbr(&mut self) -> Result<(), E> {
        let mut sector = [0; 512];
        if !self.get(0, &mut sector)? || sector[510..] != [0x55, 0xaa] {
            return Ok(());
        }
        let (entries, _) = sector[446..510].as_chunks::<16>();
        let plausible = entries.iter().all(|entry| entry[0] & 0x7f == 0);
        let used = entries.iter().any(|entry| entry[4] != 0 && le32(entry, 12) != 0);
        if plausible && used {
            self.add("MBR partition table", 510);
        }
        Ok(())
    }

    /// Formats 1.0 and 0.90 keep their super block near the end.
    fn raid_at_end(&mut self) -> Result<(), E> {
        let v1_0 = self.size_bytes.checked_sub(8192).map(|at| at & !4095);
        let v0_90 = (self.size_bytes & !0xffff).checked_sub(0x10000);
        for offset in [v1_0, v0_90].into_iter().flatten().filter(|&offset| offset > 4096) {
            let mut word = [0; 4];
            if self.get(offset, &mut word)? && word == MD_RAID_MAGIC_LE {
                self.add("Linux software RAID member", offset);
            }
        }
        Ok(())
    }

    fn zfs(&mut self) -> Result<(), E> {
        let (start, len) = ZFS_UBERBLOCKS;
        let mut ring = vec![0; len];
        if !self.get(start, &mut ring)? {
            return Ok(());
        }
        let (blocks, _) = ring.as_chunks::<1024>();
        let hit = (0u64..).zip(blocks).find(|(_, block)| {
            let magic = block.first_chunk::<8>().copied().unwrap_or_default();
            u64::from_le_bytes(magic) == ZFS_UBERBLOCK_MAGIC || u64::from_be_bytes(magic) == ZFS_UBERBLOCK_MAGIC
        });
        if let Some((index, _)) = hit {
            self.add("ZFS pool member", start + index * 1024);
        }
        Ok(())
    }

    /// DRBD meta data: internal, flexible external, the first slots of indexed, and the fixed place of v07.
    fn drbd(&mut self) -> Result<(), E> {
        let block_size = MD_BLOCK_SIZE as u64;
        let aligned_end = self.size_bytes / block_size * block_size;
        let slot_bytes = INDEXED_SLOT_SECTORS * crate::SECTOR_SIZE;
        let places =
            [aligned_end.checked_sub(block_size), Some(0), Some(slot_bytes), aligned_end.checked_sub(slot_bytes)];
        let mut seen = Vec::new();
        for offset in places.into_iter().flatten() {
            let mut block = [0; MD_BLOCK_SIZE];
            if seen.contains(&offset) || !self.get(offset, &mut block)? {
                continue;
            }
            seen.push(offset);
            match detect(&block) {
                Format::V07 => self.add("DRBD meta data v07", offset),
                Format::V08 | Format::V08Unclean => self.add("DRBD meta data v08", offset),
                Format::V09 => self.add("DRBD meta data v09", offset),
                Format::None | Format::Unknown => {}
            }
        }
        Ok(())
    }
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
