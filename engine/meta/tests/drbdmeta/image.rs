//! Sparse image files that stand for disks, and the combinations of size, slots and placement that are tested.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use tempfile::TempDir;
use zea_meta::{BitmapGeometry, Layout, LayoutParams, MD_BLOCK_SIZE, MdWrite, Placement, WriteContent};

pub(crate) type Block = [u8; MD_BLOCK_SIZE];

pub(crate) const MIB: u64 = 1 << 20;

/// Sizes in bytes: round, one block more than round, a few blocks more, not a multiple of 4 KiB, large.
pub(crate) const SIZES: [u64; 6] =
    [16 * MIB, 64 * MIB, 64 * MIB + 3 * 4096, 100 * MIB + 4096, 128 * MIB + 512 * 5, 1024 * MIB];
pub(crate) const PEERS: [u32; 4] = [1, 2, 7, 31];

/// Backing device of external meta data, in sectors: 300 MiB and an odd number of blocks.
pub(crate) const BACKING_SECTORS: u64 = 300 * 2048 + 8 * 7;

/// Every combination of size, slots and placement.
pub(crate) fn layouts() -> Vec<LayoutParams> {
    let mut all = Vec::new();
    for size in SIZES {
        for max_peers in PEERS {
            all.push(LayoutParams::internal(size / 512, max_peers));
            all.push(LayoutParams::flex_external(BACKING_SECTORS, size / 512, max_peers));
        }
    }
    let indexed = LayoutParams::flex_external(BACKING_SECTORS, 2 * 262_144, 2);
    all.push(LayoutParams { placement: Placement::Indexed(1), ..indexed });
    all
}

/// Size in bytes of the device that holds the meta data.
pub(crate) fn device_bytes(params: &LayoutParams) -> u64 {
    512 * if params.placement == Placement::Internal { params.backing_size_sectors } else { params.md_size_sectors }
}

/// An image file in a folder of its own.
pub(crate) struct Image {
    folder: TempDir,
    file: File,
}

impl Image {
    pub(crate) fn new(size_bytes: u64) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().join("disk");
        let file = File::options().read(true).write(true).create_new(true).open(path).expect("a new image");
        file.set_len(size_bytes).expect("a sparse image");
        Self { folder, file }
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::join(self.folder.path(), "disk")
    }

    pub(crate) fn write(&self, offset_bytes: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset_bytes).expect("a write to the image");
    }

    pub(crate) fn read(&self, offset_bytes: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset_bytes).expect("a read from the image");
        bytes
    }

    pub(crate) fn read_block(&self, offset_bytes: u64) -> Block {
        self.read(offset_bytes, MD_BLOCK_SIZE).try_into().expect("a whole block")
    }

    /// Leaves something behind where meta data is about to be created.
    pub(crate) fn scribble(&self, layout: &Layout) {
        let junk = [0xa5; MD_BLOCK_SIZE];
        self.write(layout.super_block_offset_bytes, &junk);
        self.write(layout.al_offset_bytes, &junk);
        self.write(layout.bitmap_offset_bytes, &junk);
        self.write(layout.bitmap_offset_bytes + layout.bitmap_size_bytes - 4096, &junk);
    }

    pub(crate) fn perform(&self, writes: &[MdWrite]) {
        for write in writes {
            match &write.content {
                WriteContent::Bytes(bytes) => self.write(write.offset_bytes, bytes),
                WriteContent::Zeros(len) => {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(&self.file, flags, write.offset_bytes, *len).expect("a hole in the image");
                }
            }
        }
    }

    pub(crate) fn bitmap_block(&self, layout: &Layout, index: u64) -> Block {
        self.read_block(layout.bitmap_offset_bytes + index * MD_BLOCK_SIZE as u64)
    }

    /// Writes a whole bitmap.
    pub(crate) fn write_bitmap(&self, layout: &Layout, geometry: &BitmapGeometry, word_of: &dyn Fn(u32, u64) -> u32) {
        for index in 0..geometry.disk_blocks() {
            let mut block = [0; MD_BLOCK_SIZE];
            geometry.encode_block(index, &mut block, word_of);
            self.write(layout.bitmap_offset_bytes + index * MD_BLOCK_SIZE as u64, &block);
        }
    }

    /// Reads one slot of a whole bitmap, in words of 32 bits.
    pub(crate) fn read_slot(&self, layout: &Layout, geometry: &BitmapGeometry, slot: u32) -> Vec<u32> {
        let mut words = Vec::new();
        for index in 0..geometry.disk_blocks() {
            let block = self.bitmap_block(layout, index);
            geometry.decode_block(&block, index, slot, &mut |first_bit, word| {
                assert_eq!(first_bit, words.len() as u64 * 32);
                words.push(word);
            });
        }
        words
    }

    /// The blocks of the activity log ring.
    pub(crate) fn read_ring(&self, layout: &Layout) -> Vec<Block> {
        let bytes = self.read(layout.al_offset_bytes, usize::try_from(layout.al_size_bytes).expect("a ring"));
        bytes.as_chunks::<MD_BLOCK_SIZE>().0.to_vec()
    }
}
