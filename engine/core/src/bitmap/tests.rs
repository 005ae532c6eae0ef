use proptest::prelude::*;

use super::{BLOCK_SIZE, Bitmap};

/// The oracle: one bool per bit and slot.
#[derive(Debug, Clone)]
struct Naive {
    slots: Vec<Vec<bool>>,
}

impl Naive {
    fn fill(&mut self, slot: usize, first: u64, last: u64, value: bool) -> u64 {
        let bits = &mut self.slots[slot][first as usize..=last as usize];
        let changed = bits.iter().filter(|bit| **bit != value).count();
        bits.fill(value);
        changed as u64
    }

    fn next(&self, slot: usize, from: u64, value: bool) -> Option<u64> {
        let bits = self.slots[slot].iter().enumerate().skip(from as usize);
        bits.into_iter().find(|(_, bit)| **bit == value).map(|(index, _)| index as u64)
    }

    /// The whole on-disk bitmap by the reference's formula, bit by bit.
    fn image(&self, blocks: u32) -> Vec<u8> {
        let mut image = vec![0; blocks as usize * BLOCK_SIZE];
        let slots = self.slots.len();
        for (slot, bits) in self.slots.iter().enumerate() {
            for (bit, _) in bits.iter().enumerate().filter(|(_, set)| **set) {
                let word = bit / 32 * slots + slot;
                image[4 * word + bit % 32 / 8] |= 1 << (bit % 8);
            }
        }
        image
    }
}

fn encode(bitmap: &Bitmap) -> Vec<u8> {
    let mut image = Vec::new();
    for block in 0..bitmap.blocks() {
        let mut buffer = [0xaa; BLOCK_SIZE];
        bitmap.encode_block(block, &mut buffer);
        image.extend_from_slice(&buffer);
    }
    image
}

#[derive(Debug, Clone)]
enum Op {
    Set(usize, u64, u64),
    Clear(usize, u64, u64),
    SetAll(usize),
    ClearAll(usize),
    Copy(usize, usize),
    Or(usize, usize),
    OrWords(usize, u64, Vec<u64>),
    WriteOut,
}

fn op(bits: u64) -> impl Strategy<Value = Op> {
    let slot = 0..31usize;
    // Mostly short ranges, some that cover whole pages and chunks.
    let range = (0..bits, prop_oneof![0..200u64, 0..70_000u64, 0..bits]);
    prop_oneof![
        4 => (slot.clone(), range.clone()).prop_map(|(s, (a, n))| Op::Set(s, a, n)),
        4 => (slot.clone(), range).prop_map(|(s, (a, n))| Op::Clear(s, a, n)),
        1 => slot.clone().prop_map(Op::SetAll),
        1 => slot.clone().prop_map(Op::ClearAll),
        1 => (slot.clone(), slot.clone()).prop_map(|(a, b)| Op::Copy(a, b)),
        1 => (slot.clone(), slot.clone()).prop_map(|(a, b)| Op::Or(a, b)),
        1 => (slot, 0..bits, prop::collection::vec(any::<u64>(), 0..5))
            .prop_map(|(s, a, w)| Op::OrWords(s, a / 64 * 64, w)),
        1 => Just(Op::WriteOut),
    ]
}

fn case() -> impl Strategy<Value = (u64, usize, Vec<Op>)> {
    // The large size has several chunks, a partial last page and a partial last word.
    let bits = prop_oneof![8 => 1..200u64, 8 => 1..70_000u64, 1 => Just(2_200_123u64)];
    (bits, 1..=31usize).prop_flat_map(|(bits, slots)| {
        let slots = if bits > 1_000_000 { 1 } else { slots };
        (Just(bits), Just(slots), prop::collection::vec(op(bits), 1..12))
    })
}

fn apply(bitmap: &mut Bitmap, naive: &mut Naive, disk: &mut [u8], op: Op) {
    let (bits, slots) = (bitmap.bits_total(), bitmap.slots());
    match op {
        Op::Set(slot, first, more) | Op::Clear(slot, first, more) => {
            let (slot, last) = (slot % slots, (first + more).min(bits - 1));
            let value = matches!(op, Op::Set(..));
            let changed =
                if value { bitmap.set_range(slot, first, last) } else { bitmap.clear_range(slot, first, last) };
            assert_eq!(changed, naive.fill(slot, first, last, value));
            assert_eq!(bitmap.any_in_range(slot, first, last), value);
        }
        Op::SetAll(slot) => {
            let changed = bitmap.set_all(slot % slots);
            assert_eq!(changed, naive.fill(slot % slots, 0, bits - 1, true));
        }
        Op::ClearAll(slot) => {
            let changed = bitmap.clear_all(slot % slots);
            assert_eq!(changed, naive.fill(slot % slots, 0, bits - 1, false));
        }
        Op::Copy(from, to) => {
            bitmap.copy_slot(from % slots, to % slots);
            naive.slots[to % slots] = naive.slots[from % slots].clone();
        }
        Op::Or(from, to) => {
            let before = bitmap.count(to % slots);
            let newly_set = bitmap.or_slot(from % slots, to % slots);
            let from = naive.slots[from % slots].clone();
            for (target, bit) in naive.slots[to % slots].iter_mut().zip(from) {
                *target |= bit;
            }
            assert_eq!(bitmap.count(to % slots), before + newly_set);
        }
        Op::OrWords(slot, offset, words) => {
            let slot = slot % slots;
            for bit in offset..bits.min(offset + 64 * words.len() as u64) {
                let word = words[((bit - offset) / 64) as usize];
                naive.slots[slot][bit as usize] |= word >> (bit % 64) & 1 == 1;
            }
            bitmap.or_words(slot, offset, words);
        }
        Op::WriteOut => {
            let mut from = 0;
            while let Some(block) = bitmap.take_next_dirty(from) {
                let at = block as usize * BLOCK_SIZE;
                let buffer = (&mut disk[at..at + BLOCK_SIZE]).try_into().expect("one block");
                bitmap.encode_block(block, buffer);
                from = block + 1;
            }
            assert_eq!(bitmap.dirty_count(), 0);
        }
    }
}

fn check(bitmap: &Bitmap, naive: &Naive) {
    let bits = bitmap.bits_total();
    for (slot, expected) in naive.slots.iter().enumerate() {
        assert_eq!(bitmap.count(slot), expected.iter().filter(|b| **b).count() as u64);
        let mut at = 0;
        let mut seen = Vec::new();
        while let Some((value, len)) = bitmap.next_run(slot, at) {
            assert_eq!(bitmap.test(slot, at), value);
            seen.resize(seen.len() + len as usize, value);
            at += len;
        }
        assert!(seen == *expected, "runs of slot {slot}");
        for from in [0, bits / 3, bits / 2, bits - 1, bits] {
            assert_eq!(bitmap.next_set(slot, from), naive.next(slot, from, true));
            assert_eq!(bitmap.next_clear(slot, from), naive.next(slot, from, false));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bitmap_is_the_naive_bitmap((bits, slots, ops) in case()) {
        let mut bitmap = Bitmap::new(bits, slots, 12);
        let mut naive = Naive { slots: vec![vec![false; bits as usize]; slots] };
        let mut disk = vec![0; bitmap.blocks() as usize * BLOCK_SIZE];
        for op in ops {
            apply(&mut bitmap, &mut naive, &mut disk, op);
        }
        check(&bitmap, &naive);

        // The encoding is the reference's formula, and what is not dirty is on the disk already.
        let image = encode(&bitmap);
        prop_assert!(image == naive.image(bitmap.blocks()));
        let dirty: Vec<u32> = bitmap.dirty_blocks().collect();
        for block in (0..bitmap.blocks()).filter(|block| !dirty.contains(block)) {
            let at = block as usize * BLOCK_SIZE;
            prop_assert!(image[at..at + BLOCK_SIZE] == disk[at..at + BLOCK_SIZE]);
            prop_assert!(!bitmap.is_dirty_range(block..block + 1));
        }

        // Loading gives the same bits and dirties nothing, also over old content.
        let mut loaded = Bitmap::new(bits, slots, 12);
        loaded.set_all(0);
        while loaded.take_next_dirty(0).is_some() {}
        for (block, buffer) in (0..).zip(image.chunks_exact(BLOCK_SIZE)) {
            loaded.load_block(block, buffer.try_into().expect("one block"));
        }
        prop_assert_eq!(loaded.dirty_count(), 0);
        check(&loaded, &naive);
    }

    #[test]
    fn bitmap_resize_keeps_what_remains(
        bits in 1..100_000u64, new_bits in 1..100_000u64,
        ranges in prop::collection::vec((0..100_000u64, 0..70_000u64), 0..6),
    ) {
        let mut bitmap = Bitmap::new(bits, 1, 12);
        let mut naive = Naive { slots: vec![vec![false; bits as usize]] };
        for (first, more) in ranges.into_iter().filter(|(first, _)| *first < bits) {
            bitmap.set_range(0, first, (first + more).min(bits - 1));
            naive.fill(0, first, (first + more).min(bits - 1), true);
        }
        bitmap.resize(new_bits);
        naive.slots[0].resize(new_bits as usize, false);
        prop_assert_eq!(bitmap.dirty_count(), u64::from(bitmap.blocks()));
        check(&bitmap, &naive);
    }

    #[test]
    fn bitmap_extent_blocks_hold_the_extents_bits(
        bits in 1..40_000u64, slots in 1..=31usize, extent in 0..45u32, slot in 0..31usize,
    ) {
        let mut bitmap = Bitmap::new(bits, slots, 12);
        let blocks = bitmap.blocks_of_extent(extent);
        match bitmap.bits_of_extent(extent) {
            None => {
                prop_assert!(blocks.is_empty());
                prop_assert!(u64::from(extent) * 1024 >= bits);
            }
            Some((first, last)) => {
                prop_assert_eq!(first, u64::from(extent) * 1024);
                prop_assert_eq!(last, (first + 1023).min(bits - 1));
                prop_assert!(!bitmap.is_dirty_range(blocks.clone()));
                bitmap.set_range(slot % slots, first, last);
                prop_assert!(bitmap.dirty_blocks().all(|block| blocks.contains(&block)));
                prop_assert!(bitmap.is_dirty_range(blocks));
            }
        }
    }
}

#[test]
fn bitmap_of_64_tib_all_set_is_cheap_and_quick() {
    let bits = (64 << 40) / 4096;
    let mut bitmap = Bitmap::new(bits, 8, 12);
    for slot in 0..8 {
        assert_eq!(bitmap.set_all(slot), bits);
    }
    assert_eq!(bitmap.dirty_count(), u64::from(bitmap.blocks()));
    assert_eq!(bitmap.next_clear(7, 0), None);
    assert_eq!(bitmap.next_run(7, 5), Some((true, bits - 5)));
    bitmap.clear_range(7, 12_345_678_901, 12_345_678_901);
    assert_eq!(bitmap.next_clear(7, 0), Some(12_345_678_901));
    bitmap.copy_slot(7, 3);
    assert_eq!(bitmap.count(3), bits - 1);
    assert_eq!(bitmap.clear_all(3), bits - 1);
    assert_eq!(bitmap.next_set(3, 0), None);
}

#[test]
fn bitmap_clearing_a_few_bits_dirties_a_few_blocks() {
    let mut bitmap = Bitmap::new(1 << 30, 1, 12);
    bitmap.set_range(0, 700_000_000, 700_000_001);
    assert_eq!(bitmap.take_next_dirty(0), Some(21362));
    bitmap.clear_all(0);
    assert_eq!(bitmap.dirty_blocks().collect::<Vec<_>>(), [21362]);
    bitmap.clear_all(0);
    assert_eq!(bitmap.dirty_count(), 1);
}

#[test]
fn bitmap_sectors_touched_and_covered() {
    // 100 whole blocks and one of 3 sectors.
    let capacity = 803;
    let bitmap = Bitmap::new(101, 1, 12);
    assert_eq!(bitmap.bits_touched(0, 0), None);
    assert_eq!(bitmap.bits_touched(7, 2), Some((0, 1)));
    assert_eq!(bitmap.bits_touched(8, 8), Some((1, 1)));
    assert_eq!(bitmap.bits_touched(802, 1), Some((100, 100)));
    assert_eq!(bitmap.bits_touched(808, 8), None);
    assert_eq!(bitmap.bits_touched(u64::MAX, u64::MAX), None);
    assert_eq!(bitmap.bits_touched(0, u64::MAX), Some((0, 100)));

    assert_eq!(bitmap.bits_covered(0, 0, capacity), None);
    assert_eq!(bitmap.bits_covered(7, 2, capacity), None);
    assert_eq!(bitmap.bits_covered(7, 9, capacity), Some((1, 1)));
    assert_eq!(bitmap.bits_covered(8, 15, capacity), Some((1, 1)));
    assert_eq!(bitmap.bits_covered(792, 8, capacity), Some((99, 99)));
    assert_eq!(bitmap.bits_covered(800, 2, capacity), None);
    assert_eq!(bitmap.bits_covered(800, 3, capacity), Some((100, 100)));
    assert_eq!(bitmap.bits_covered(801, 2, capacity), None);
    assert_eq!(bitmap.bits_covered(0, u64::MAX, capacity), Some((0, 100)));

    let coarse = Bitmap::new(16, 1, 16);
    assert_eq!(coarse.sectors_per_bit(), 128);
    assert_eq!(coarse.bits_touched(127, 2), Some((0, 1)));
    assert_eq!(coarse.bits_covered(0, 255, 2048), Some((0, 0)));
    assert_eq!(coarse.bits_of_extent(0), Some((0, 15)));
}

#[test]
fn bitmap_matches_the_reference_example_layout() {
    // b = 37, k = 2, P = 3: word (37 / 32) * 3 + 2 = 5, byte 5 / 8 = 0, bit 5.
    let mut bitmap = Bitmap::new(64, 3, 12);
    bitmap.set_range(2, 37, 37);
    let mut block = [0; BLOCK_SIZE];
    bitmap.encode_block(0, &mut block);
    assert_eq!(block[20], 1 << 5);
    assert_eq!(block.iter().filter(|byte| **byte != 0).count(), 1);
    assert_eq!(bitmap.word32(2, 1), 1 << 5);
    bitmap.load_word32(2, 1, 0);
    assert_eq!(bitmap.count(2), 0);
}
