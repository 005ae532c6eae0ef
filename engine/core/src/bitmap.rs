//! The out-of-sync bitmap of one volume: one slot per peer, sparse in memory, with the interleaved on-disk layout.
//!
//! A set bit means that the block may differ on that peer. Bits beyond the end of the device do not exist: they read
//! as 0 and are never stored. Every change marks the on-disk 4 KiB blocks it touches as dirty, so that the owner can
//! write them out lazily, or before an activity log transaction evicts their extent.
//!
//! Layout and rules: reference ondisk-metadata.md section 5 (32-bit little-endian words interleaved over all slots).

mod sparse;

use std::ops::Range;

use rkyv::{Archive, Deserialize, Serialize};

use sparse::{PAGE_BITS, SparseBits};

/// Size of one on-disk bitmap block, the unit of all bitmap I/O.
pub const BLOCK_SIZE: usize = 4096;
/// Most bits per slot: 1 PiB at 4 KiB per bit.
pub const MAX_BITS: u64 = 1 << 38;
/// Most slots of one volume.
pub const MAX_SLOTS: usize = 32;

const BLOCK_WORDS: u64 = (BLOCK_SIZE / 4) as u64;
/// log2 of the bytes covered by one activity log extent.
const AL_EXTENT_SHIFT: u32 = 22;

/// The bitmap of one volume. All bit numbers are block numbers of `1 << block_shift` bytes; ranges of bits are given
/// by their first and last bit, both inclusive.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
pub struct Bitmap {
    block_shift: u32,
    slots: Vec<SparseBits>,
    /// One bit per on-disk block.
    dirty: SparseBits,
}

/// Marks the on-disk blocks that hold bits `first..=last` of `slot`.
fn mark(dirty: &mut SparseBits, slots: u64, slot: usize, first: u64, last: u64) {
    let block = |bit: u64| (bit / 32 * slots + slot as u64) / BLOCK_WORDS;
    dirty.update(block(first), block(last), true, |_, _| {});
}

/// Number of on-disk blocks for `bits` bits in each of `slots` slots.
fn block_count(bits: u64, slots: u64) -> u64 {
    (bits.div_ceil(64) * 2 * slots).div_ceil(BLOCK_WORDS)
}

impl Bitmap {
    /// A clean bitmap of `bits_total` bits for each of `slots` peers, `1 << block_shift` bytes per bit.
    ///
    /// # Panics
    /// If `slots` is 0 or above [`MAX_SLOTS`], `bits_total` above [`MAX_BITS`], or `block_shift` not in 12..=20:
    /// these come from meta data that was validated before.
    pub fn new(bits_total: u64, slots: usize, block_shift: u32) -> Self {
        assert!((1..=MAX_SLOTS).contains(&slots), "{slots} bitmap slots");
        assert!(bits_total <= MAX_BITS, "{bits_total} bits");
        assert!((12..=20).contains(&block_shift), "2^{block_shift} bytes per bit");
        Bitmap {
            block_shift,
            slots: vec![SparseBits::new(bits_total); slots],
            dirty: SparseBits::new(block_count(bits_total, slots as u64)),
        }
    }

    /// Bits per slot.
    pub fn bits_total(&self) -> u64 {
        self.slots[0].len()
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Sectors covered by one bit.
    pub fn sectors_per_bit(&self) -> u64 {
        1 << (self.block_shift - 9)
    }

    /// Number of set bits of `slot`. O(1).
    pub fn count(&self, slot: usize) -> u64 {
        self.slots[slot].count()
    }

    /// Is this bit set?
    pub fn test(&self, slot: usize, bit: u64) -> bool {
        self.slots[slot].test(bit)
    }

    /// Sets bits `first..=last`; gives the number of newly set ones.
    pub fn set_range(&mut self, slot: usize, first: u64, last: u64) -> u64 {
        self.update(slot, first, last, true)
    }

    /// Clears bits `first..=last`; gives the number of newly cleared ones.
    pub fn clear_range(&mut self, slot: usize, first: u64, last: u64) -> u64 {
        self.update(slot, first, last, false)
    }

    fn update(&mut self, slot: usize, first: u64, last: u64, value: bool) -> u64 {
        let (slots, dirty) = (self.slots.len() as u64, &mut self.dirty);
        self.slots[slot].update(first, last, value, |a, b| mark(dirty, slots, slot, a, b))
    }

    /// Sets all bits of `slot`; gives the number of newly set ones.
    pub fn set_all(&mut self, slot: usize) -> u64 {
        match self.bits_total() {
            0 => 0,
            bits => self.update(slot, 0, bits - 1, true),
        }
    }

    /// Clears all bits of `slot`; gives the number of newly cleared ones.
    pub fn clear_all(&mut self, slot: usize) -> u64 {
        match self.bits_total() {
            0 => 0,
            bits => self.update(slot, 0, bits - 1, false),
        }
    }

    /// Makes slot `to` equal to slot `from`.
    pub fn copy_slot(&mut self, from: usize, to: usize) {
        let (slots, dirty) = (self.slots.len() as u64, &mut self.dirty);
        if let Ok([from, target]) = self.slots.get_disjoint_mut([from, to]) {
            target.copy_from(from, |a, b| mark(dirty, slots, to, a, b));
        } else {
            assert!(from == to && to < self.slots.len(), "slots {from}, {to}");
        }
    }

    /// Sets in slot `to` every bit that is set in slot `from`; gives the number of newly set ones.
    pub fn or_slot(&mut self, from: usize, to: usize) -> u64 {
        let mut newly_set = 0;
        let mut at = 0;
        while let Some(first) = self.next_set(from, at) {
            at = self.next_clear(from, first).unwrap_or(self.bits_total());
            newly_set += self.set_range(to, first, at - 1);
        }
        newly_set
    }

    /// Is any of the bits `first..=last` set?
    pub fn any_in_range(&self, slot: usize, first: u64, last: u64) -> bool {
        self.next_set(slot, first).is_some_and(|bit| bit <= last)
    }

    /// The first set bit at or after `from`.
    pub fn next_set(&self, slot: usize, from: u64) -> Option<u64> {
        self.slots[slot].next(from, true)
    }

    /// The first clear bit at or after `from`.
    pub fn next_clear(&self, slot: usize, from: u64) -> Option<u64> {
        self.slots[slot].next(from, false)
    }

    /// The run of equal bits that begins at `from`: its value and length. `None` at or beyond the end.
    pub fn next_run(&self, slot: usize, from: u64) -> Option<(bool, u64)> {
        if from >= self.bits_total() {
            return None;
        }
        let value = self.test(slot, from);
        let end = self.slots[slot].next(from, !value);
        Some((value, end.unwrap_or(self.bits_total()) - from))
    }

    /// Bits `64 * index..64 * index + 64` of `slot`, lowest bit first (the word of a plain bitmap packet).
    pub fn word64(&self, slot: usize, index: u64) -> u64 {
        self.slots[slot].word(index)
    }

    /// ORs 64-bit words into `slot`, starting at bit `bit_offset` (a multiple of 64); what lies beyond the end is
    /// ignored. Gives the number of newly set bits.
    pub fn or_words(&mut self, slot: usize, bit_offset: u64, words: impl IntoIterator<Item = u64>) -> u64 {
        assert!(bit_offset.is_multiple_of(64), "bit offset {bit_offset}");
        let mut newly_set = 0;
        for (index, word) in (bit_offset / 64..).zip(words) {
            let word = word | self.word64(slot, index);
            let (set, _) = self.slots[slot].replace_word(index, word);
            if set > 0 {
                let last = (index * 64 + 63).min(self.bits_total() - 1);
                mark(&mut self.dirty, self.slots.len() as u64, slot, index * 64, last);
                newly_set += set;
            }
        }
        newly_set
    }

    /// Bits `32 * index..32 * index + 32` of `slot`: the on-disk word `index * slots + slot`.
    pub fn word32(&self, slot: usize, index: u64) -> u32 {
        (self.word64(slot, index / 2) >> (index % 2 * 32)) as u32
    }

    /// Replaces 32 bits of `slot` with what the disk holds; bits beyond the end are ignored, nothing becomes dirty.
    pub fn load_word32(&mut self, slot: usize, index: u64, value: u32) {
        let shift = index % 2 * 32;
        let old = self.word64(slot, index / 2);
        let new = old & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
        self.slots[slot].replace_word(index / 2, new);
    }

    /// The blocks that `sectors` sectors from `sector` touch, even partly: what to **set**. `None` if there are none.
    pub fn bits_touched(&self, sector: u64, sectors: u64) -> Option<(u64, u64)> {
        let per_bit = self.sectors_per_bit();
        let end = sector.saturating_add(sectors).div_ceil(per_bit);
        let (first, end) = (sector / per_bit, end.min(self.bits_total()));
        (sectors > 0 && first < end).then(|| (first, end - 1))
    }

    /// The blocks that are covered completely: what may be **cleared**. A last block that the device of
    /// `capacity_sectors` only has a part of counts when the range reaches the end of the device.
    pub fn bits_covered(&self, sector: u64, sectors: u64, capacity_sectors: u64) -> Option<(u64, u64)> {
        let per_bit = self.sectors_per_bit();
        let end = sector.saturating_add(sectors);
        let end = if end >= capacity_sectors { capacity_sectors.div_ceil(per_bit) } else { end / per_bit };
        let (first, end) = (sector.div_ceil(per_bit), end.min(self.bits_total()));
        (sectors > 0 && first < end).then(|| (first, end - 1))
    }

    /// The bits that lie in one 4 MiB activity log extent. `None` beyond the end.
    pub fn bits_of_extent(&self, extent: u32) -> Option<(u64, u64)> {
        let sectors = 1u64 << (AL_EXTENT_SHIFT - 9);
        self.bits_touched(u64::from(extent) * sectors, sectors)
    }

    /// Changes the number of bits: what remains is kept, new bits are clear. All on-disk blocks become dirty.
    pub fn resize(&mut self, bits_total: u64) {
        let mut resized = Bitmap::new(bits_total, self.slots.len(), self.block_shift);
        for slot in 0..self.slots.len() {
            let mut at = 0;
            while let Some(first) = self.next_set(slot, at).filter(|bit| *bit < bits_total) {
                at = self.next_clear(slot, first).unwrap_or(self.bits_total());
                resized.set_range(slot, first, at.min(bits_total) - 1);
            }
        }
        resized.mark_all_dirty();
        *self = resized;
    }
}

/// On-disk blocks: numbers count 4 KiB blocks from the start of the on-disk bitmap.
impl Bitmap {
    /// Number of on-disk blocks that hold this bitmap.
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.dirty.len()).expect("bounded by MAX_BITS and MAX_SLOTS")
    }

    /// Number of blocks that differ from what was written last.
    pub fn dirty_count(&self) -> u64 {
        self.dirty.count()
    }

    /// All dirty blocks in ascending order.
    pub fn dirty_blocks(&self) -> impl Iterator<Item = u32> + '_ {
        let next = |from| self.dirty.next(from, true);
        std::iter::successors(next(0), move |block| next(block + 1)).map(|block| block as u32)
    }

    /// The first dirty block at or after `from`, which is clean from now on: encode and write it. If the write
    /// fails, give it back with [`Bitmap::mark_dirty`].
    pub fn take_next_dirty(&mut self, from: u32) -> Option<u32> {
        let block = self.dirty.next(u64::from(from), true)?;
        self.dirty.update(block, block, false, |_, _| {});
        Some(block as u32)
    }

    /// This block is as it will be on disk: it was encoded and is being written.
    pub fn mark_clean(&mut self, block: u32) {
        self.dirty.update(u64::from(block), u64::from(block), false, |_, _| {});
    }

    /// Is any of these blocks dirty?
    pub fn is_dirty_range(&self, blocks: Range<u32>) -> bool {
        let next = self.dirty.next(u64::from(blocks.start), true);
        next.is_some_and(|block| block < u64::from(blocks.end))
    }

    /// Marks one block as not yet written.
    pub fn mark_dirty(&mut self, block: u32) {
        self.dirty.update(u64::from(block), u64::from(block), true, |_, _| {});
    }

    /// Marks all blocks as not yet written (new meta data, or moved meta data).
    pub fn mark_all_dirty(&mut self) {
        if self.dirty.len() > 0 {
            self.dirty.update(0, self.dirty.len() - 1, true, |_, _| {});
        }
    }

    /// The blocks that hold bits (of any slot) of one 4 MiB activity log extent; empty beyond the end.
    pub fn blocks_of_extent(&self, extent: u32) -> Range<u32> {
        let Some((first, last)) = self.bits_of_extent(extent) else {
            return 0..0;
        };
        let slots = self.slots.len() as u64;
        let start = first / 32 * slots / BLOCK_WORDS;
        let end = ((last / 32 + 1) * slots).div_ceil(BLOCK_WORDS);
        start as u32..end as u32
    }

    /// For each slot: the words (of the slot) in on-disk block `block`, as a range of word numbers.
    fn words_in_block(&self, block: u32, slot: usize) -> Range<u64> {
        let slots = self.slots.len() as u64;
        let start = u64::from(block) * BLOCK_WORDS;
        let first_at_or_after = |word: u64| word.saturating_sub(slot as u64).div_ceil(slots);
        let end = first_at_or_after(start + BLOCK_WORDS);
        first_at_or_after(start)..end.min(self.bits_total().div_ceil(32))
    }

    /// Byte offset of word `index` of `slot` in its on-disk block.
    fn offset_in_block(&self, slot: usize, index: u64) -> usize {
        ((index * self.slots.len() as u64 + slot as u64) % BLOCK_WORDS * 4) as usize
    }

    /// Writes the content of on-disk block `block` to `buffer`.
    pub fn encode_block(&self, block: u32, buffer: &mut [u8; BLOCK_SIZE]) {
        assert!(block < self.blocks(), "block {block} of {}", self.blocks());
        buffer.fill(0);
        for slot in 0..self.slots.len() {
            let words = self.words_in_block(block, slot);
            // An on-disk block holds less than one page of a slot: skip clean ones at once.
            if !words.is_empty() && !self.any_in_words(slot, &words) {
                continue;
            }
            for index in words {
                let at = self.offset_in_block(slot, index);
                buffer[at..at + 4].copy_from_slice(&self.word32(slot, index).to_le_bytes());
            }
        }
    }

    fn any_in_words(&self, slot: usize, words: &Range<u64>) -> bool {
        debug_assert!(words.start * 32 / PAGE_BITS == (words.end - 1) * 32 / PAGE_BITS);
        self.any_in_range(slot, words.start * 32, words.end * 32 - 1)
    }

    /// Takes over the content of on-disk block `block`. Nothing becomes dirty; bits beyond the end are ignored.
    pub fn load_block(&mut self, block: u32, buffer: &[u8; BLOCK_SIZE]) {
        assert!(block < self.blocks(), "block {block} of {}", self.blocks());
        for slot in 0..self.slots.len() {
            for index in self.words_in_block(block, slot) {
                let at = self.offset_in_block(slot, index);
                let bytes = [buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]];
                self.load_word32(slot, index, u32::from_le_bytes(bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests;
