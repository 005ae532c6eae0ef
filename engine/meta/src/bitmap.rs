//! Addressing of the bitmap on disk (reference section 5).
//!
//! Each peer slot has one bit for every block of the device; set means out of sync. On disk the 32 bit words of all
//! slots are interleaved: word `w` of slot `k` of `P` is word `w * P + k` from the bitmap's start, little endian.
//! With one slot this is a plain little endian bit array. IO is in blocks of 4096 bytes from the bitmap's start.
//! Bits beyond the end of the device are zero: encoding writes them so. Decoding hides what is there, as the driver of
//! 8.4 leaves whatever its memory held in the rest of the last block.

use std::ops::Range;

use thiserror::Error;

use crate::{AL_EXTENT_SIZE, DEFAULT_BITMAP_BLOCK_SIZE, MAX_BITMAP_BLOCK_SIZE, MAX_PEERS, MD_BLOCK_SIZE, SECTOR_SIZE};

/// Bits in a word of the bitmap.
pub const WORD_BITS: u64 = 32;
/// Words in a block of the bitmap on disk.
pub const WORDS_PER_BLOCK: u64 = MD_BLOCK_SIZE as u64 / 4;
/// Largest device that a bitmap is made for: 1 PiB.
pub const MAX_DEVICE_BYTES: u64 = 1 << 50;

/// Why there can be no bitmap of the wanted shape.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GeometryError {
    /// The number of slots is not 1 to 31.
    #[error("{0} bitmap slots are not in 1..=31")]
    MaxPeers(u32),
    /// The block size is not a power of two of 4 KiB to 1 MiB.
    #[error("bitmap block size {0} is not a power of two of 4 KiB to 1 MiB")]
    BlockSize(u32),
    /// More bits than a device of 1 PiB has.
    #[error("{0} bitmap bits are more than a device of 1 PiB has")]
    Bits(u64),
}

/// The shape of a bitmap: how many slots, how many bits in each, how many bytes for a bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapGeometry {
    max_peers: u32,
    bits: u64,
    block_size: u32,
}

impl BitmapGeometry {
    /// A bitmap with `max_peers` slots of `bits` bits, each for `block_size` bytes of the device.
    ///
    /// # Errors
    /// [`GeometryError`] for a number out of range.
    pub fn new(max_peers: u32, bits: u64, block_size: u32) -> Result<Self, GeometryError> {
        if !(1..=MAX_PEERS).contains(&max_peers) {
            return Err(GeometryError::MaxPeers(max_peers));
        }
        let sizes = DEFAULT_BITMAP_BLOCK_SIZE..=MAX_BITMAP_BLOCK_SIZE;
        if !block_size.is_power_of_two() || !sizes.contains(&block_size) {
            return Err(GeometryError::BlockSize(block_size));
        }
        if bits > MAX_DEVICE_BYTES / u64::from(block_size) {
            return Err(GeometryError::Bits(bits));
        }
        Ok(Self { max_peers, bits, block_size })
    }

    /// The bitmap of a device of `size_sectors`; a last partial block has a bit of its own.
    ///
    /// # Errors
    /// [`GeometryError`] for a number out of range.
    pub fn for_device(max_peers: u32, size_sectors: u64, block_size: u32) -> Result<Self, GeometryError> {
        // The block size is checked before it divides.
        Self::new(max_peers, 0, block_size)?;
        Self::new(max_peers, bits_for_sectors(size_sectors, block_size), block_size)
    }

    /// Number of slots.
    #[must_use]
    pub fn max_peers(&self) -> u32 {
        self.max_peers
    }

    /// Bits in each slot.
    #[must_use]
    pub fn bits(&self) -> u64 {
        self.bits
    }

    /// Bytes of the device for each bit.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Words of a slot that hold bits of the device.
    #[must_use]
    pub fn words(&self) -> u64 {
        self.bits.div_ceil(WORD_BITS)
    }

    /// Bytes of all slots on disk, before rounding up to whole blocks.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        slot_bytes(self.bits) * u64::from(self.max_peers)
    }

    /// Number of 4096 byte blocks on disk.
    #[must_use]
    pub fn disk_blocks(&self) -> u64 {
        self.size_bytes().div_ceil(MD_BLOCK_SIZE as u64)
    }

    /// The words of a slot that lie in an on-disk block; empty if the block is beyond the bitmap.
    ///
    /// # Panics
    /// If the slot is not below `max_peers`.
    #[must_use]
    pub fn words_in_block(&self, index: u64, slot: u32) -> Range<u64> {
        assert!(slot < self.max_peers, "slot {slot} of {}", self.max_peers);
        let (peers, slot) = (u64::from(self.max_peers), u64::from(slot));
        // The first word of the slot at or after a place in the interleaved array.
        let word_at = |place: u64| place.saturating_sub(slot).div_ceil(peers).min(self.words());
        let first_place = index.saturating_mul(WORDS_PER_BLOCK);
        word_at(first_place)..word_at(first_place.saturating_add(WORDS_PER_BLOCK))
    }

    /// The bits of a slot that lie in an on-disk block; empty if the block is beyond the bitmap.
    ///
    /// # Panics
    /// If the slot is not below `max_peers`.
    #[must_use]
    pub fn bits_in_block(&self, index: u64, slot: u32) -> Range<u64> {
        let words = self.words_in_block(index, slot);
        (words.start * WORD_BITS).min(self.bits)..(words.end * WORD_BITS).min(self.bits)
    }

    /// The on-disk block that holds a bit of a slot.
    ///
    /// # Panics
    /// If the slot or the bit is out of range.
    #[must_use]
    pub fn block_of_bit(&self, bit: u64, slot: u32) -> u64 {
        assert!(slot < self.max_peers && bit < self.bits, "bit {bit} of slot {slot} is outside of {self:?}");
        (bit / WORD_BITS * u64::from(self.max_peers) + u64::from(slot)) / WORDS_PER_BLOCK
    }

    /// Calls `found(first_bit, word)` for every word of a slot in an on-disk block, in order; zero words too.
    ///
    /// # Panics
    /// If the slot is not below `max_peers`.
    pub fn decode_block(&self, block: &[u8; MD_BLOCK_SIZE], index: u64, slot: u32, found: &mut dyn FnMut(u64, u32)) {
        let (words, _) = block.as_chunks::<4>();
        for word_index in self.words_in_block(index, slot) {
            let raw = words[self.place_in_block(index, slot, word_index)];
            let word = u32::from_le_bytes(raw) & self.device_mask(word_index);
            found(word_index * WORD_BITS, word);
        }
    }

    /// Fills an on-disk block from `word_of(slot, word_index)`, which is asked once for every word that lies in it.
    /// What lies beyond the device becomes zero.
    pub fn encode_block(&self, index: u64, out: &mut [u8; MD_BLOCK_SIZE], word_of: &dyn Fn(u32, u64) -> u32) {
        out.fill(0);
        let (words, _) = out.as_chunks_mut::<4>();
        for slot in 0..self.max_peers {
            for word_index in self.words_in_block(index, slot) {
                let word = word_of(slot, word_index) & self.device_mask(word_index);
                words[self.place_in_block(index, slot, word_index)] = word.to_le_bytes();
            }
        }
    }

    /// Sets the bits of all slots for the given activity log extents in an on-disk block: what applying the activity
    /// log does (reference section 6). Extents beyond the device have no bits. Tells whether the block changed.
    ///
    /// # Panics
    /// If the extents are not in ascending order.
    pub fn mark_extents(&self, index: u64, block: &mut [u8; MD_BLOCK_SIZE], extents: &[u32]) -> bool {
        assert!(extents.is_sorted(), "the hot set comes sorted");
        let mut changed = false;
        let (words, _) = block.as_chunks_mut::<4>();
        for slot in 0..self.max_peers {
            let in_block = self.words_in_block(index, slot);
            for &extent in self.extents_in(&self.bits_in_block(index, slot), extents) {
                let bits = self.extent_bits(extent);
                let first = (bits.start / WORD_BITS).max(in_block.start);
                let end = bits.end.div_ceil(WORD_BITS).min(in_block.end);
                for word_index in first..end {
                    let word = &mut words[self.place_in_block(index, slot, word_index)];
                    let old = u32::from_le_bytes(*word);
                    let new = old | mask_in_word(&bits, word_index);
                    changed |= old != new;
                    *word = new.to_le_bytes();
                }
            }
        }
        changed
    }

    /// The on-disk blocks that hold bits of an activity log extent; empty if it is beyond the device.
    #[must_use]
    pub fn extent_blocks(&self, extent: u32) -> Range<u64> {
        let bits = self.extent_bits(extent);
        if bits.is_empty() {
            return 0..0;
        }
        self.block_of_bit(bits.start, 0)..self.block_of_bit(bits.end - 1, self.max_peers - 1) + 1
    }

    /// Bits of one slot in an activity log extent of 4 MiB: 1024 at 4 KiB each.
    #[must_use]
    pub fn bits_per_extent(&self) -> u64 {
        AL_EXTENT_SIZE / u64::from(self.block_size)
    }

    /// The bits of an activity log extent; the last one of the device may have fewer, those beyond it none.
    #[must_use]
    pub fn extent_bits(&self, extent: u32) -> Range<u64> {
        let first = u64::from(extent) * self.bits_per_extent();
        first.min(self.bits)..(first + self.bits_per_extent()).min(self.bits)
    }

    /// Number of activity log extents of the device.
    #[must_use]
    pub fn al_extents(&self) -> u32 {
        let extents = self.bits.div_ceil(self.bits_per_extent());
        u32::try_from(extents).expect("a device of at most 1 PiB has at most 2^28 extents")
    }

    /// Those of the sorted extents that have bits in a range.
    fn extents_in<'a>(&self, bits: &Range<u64>, extents: &'a [u32]) -> &'a [u32] {
        let before = |bit: u64| move |extent: &u32| u64::from(*extent) * self.bits_per_extent() < bit;
        let end = extents.partition_point(before(bits.end));
        // An extent that begins up to its length before the range reaches into it.
        let start = extents.partition_point(before((bits.start + 1).saturating_sub(self.bits_per_extent())));
        if bits.is_empty() { &[] } else { &extents[start..end.max(start)] }
    }

    /// The place of a word in its block.
    fn place_in_block(&self, index: u64, slot: u32, word_index: u64) -> usize {
        let place = word_index * u64::from(self.max_peers) + u64::from(slot);
        usize::try_from(place - index * WORDS_PER_BLOCK).expect("a word is looked for in its own block")
    }

    /// The bits of a word that stand for blocks of the device.
    fn device_mask(&self, word_index: u64) -> u32 {
        mask_in_word(&(0..self.bits), word_index)
    }
}

/// The bits of a range that lie in a word, as a mask.
fn mask_in_word(bits: &Range<u64>, word_index: u64) -> u32 {
    let base = word_index * WORD_BITS;
    let start = bits.start.clamp(base, base + WORD_BITS) - base;
    let end = bits.end.clamp(base, base + WORD_BITS) - base;
    if start >= end {
        return 0;
    }
    let below = |n: u64| u32::try_from((1u64 << n) - 1).expect("n is at most 32");
    below(end) & !below(start)
}

/// Bits for a device of this size, a last partial block counting as one.
pub(crate) fn bits_for_sectors(size_sectors: u64, block_size: u32) -> u64 {
    size_sectors.div_ceil(u64::from(block_size) / SECTOR_SIZE)
}

/// Bytes of one slot on disk: whole words of 64 bits.
pub(crate) fn slot_bytes(bits: u64) -> u64 {
    bits.div_ceil(64) * 8
}

#[cfg(test)]
#[path = "bitmap_tests.rs"]
mod tests;
