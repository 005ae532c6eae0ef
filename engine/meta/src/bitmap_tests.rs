use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The rule of the reference, bit by bit: where on disk a bit lies.
fn byte_and_bit(geometry: &BitmapGeometry, bit: u64, slot: u32) -> (u64, u8) {
    let word = bit / 32 * u64::from(geometry.max_peers()) + u64::from(slot);
    (4 * word + bit % 32 / 8, (bit % 8) as u8)
}

fn any_geometry(max_bits: u64) -> impl Strategy<Value = BitmapGeometry> {
    (1u32..=31, 0..max_bits, 12u32..=20)
        .prop_map(|(max_peers, bits, shift)| BitmapGeometry::new(max_peers, bits, 1 << shift).unwrap())
}

fn encode_all(geometry: &BitmapGeometry, words: &BTreeMap<(u32, u64), u32>) -> Vec<u8> {
    let word_of = |slot, word_index| words.get(&(slot, word_index)).copied().unwrap_or(0);
    let mut disk = Vec::new();
    for index in 0..geometry.disk_blocks() {
        let mut block = [0xaa; MD_BLOCK_SIZE];
        geometry.encode_block(index, &mut block, &word_of);
        disk.extend_from_slice(&block);
    }
    disk
}

#[test]
fn meta_bitmap_one_slot_is_a_plain_bit_array() {
    let geometry = BitmapGeometry::new(1, 40_000, 4096).unwrap();
    let disk = encode_all(&geometry, &BTreeMap::from([((0, 1), 0x8000_0201)]));
    assert_eq!(disk[..8], [0, 0, 0, 0, 1, 2, 0, 0x80]);
    assert_eq!(geometry.disk_blocks(), 2);
    assert_eq!(geometry.bits_in_block(0, 0), 0..32_768);
    assert_eq!(geometry.bits_in_block(1, 0), 32_768..40_000);
    assert_eq!(geometry.bits_in_block(2, 0), 40_000..40_000);
}

#[test]
fn meta_bitmap_sizes_of_the_reference() {
    // 64 MiB with 2 slots: one block.
    let geometry = BitmapGeometry::for_device(2, 131_072, 4096).unwrap();
    assert_eq!((geometry.bits(), geometry.disk_blocks(), geometry.al_extents()), (16_384, 1, 16));
    assert_eq!(geometry.bits_per_extent(), 1024);
    // A last partial block has a bit, a last partial extent counts.
    let geometry = BitmapGeometry::for_device(1, 8193, 4096).unwrap();
    assert_eq!((geometry.bits(), geometry.al_extents()), (1025, 2));
    assert_eq!(geometry.extent_bits(1), 1024..1025);
    assert_eq!(geometry.extent_bits(2), 1025..1025);
    assert_eq!(geometry.extent_blocks(2), 0..0);
    let largest = BitmapGeometry::for_device(31, 1 << 41, 1 << 20).unwrap();
    assert_eq!(largest.al_extents(), 1 << 28);
    assert_eq!(largest.extent_bits(u32::MAX), 1 << 30..1 << 30);
}

#[test]
fn meta_bitmap_errors_have_names() {
    assert_eq!(BitmapGeometry::new(0, 1, 4096), Err(GeometryError::MaxPeers(0)));
    assert_eq!(BitmapGeometry::new(32, 1, 4096), Err(GeometryError::MaxPeers(32)));
    for block_size in [0, 2048, 5000, 2 << 20] {
        assert_eq!(BitmapGeometry::for_device(1, 1, block_size), Err(GeometryError::BlockSize(block_size)));
    }
    let bits = (1 << 38) + 1;
    assert_eq!(BitmapGeometry::new(1, bits, 4096), Err(GeometryError::Bits(bits)));
    assert_eq!(BitmapGeometry::for_device(1, u64::MAX, 1 << 20), Err(GeometryError::Bits(1 << 53)));
}

#[test]
fn meta_bitmap_hides_what_lies_beyond_the_device() {
    let geometry = BitmapGeometry::new(2, 33, 4096).unwrap();
    let mut found = Vec::new();
    geometry.decode_block(&[0xff; MD_BLOCK_SIZE], 0, 1, &mut |bit, word| found.push((bit, word)));
    assert_eq!(found, [(0, u32::MAX), (32, 1)]);
    let mut block = [0xaa; MD_BLOCK_SIZE];
    geometry.encode_block(0, &mut block, &|_, _| u32::MAX);
    assert_eq!(block[..16], [255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0, 0, 1, 0, 0, 0]);
    assert!(block[16..].iter().all(|&byte| byte == 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn meta_bitmap_bits_lie_where_the_format_says(
        geometry in any_geometry(100_000),
        picks in proptest::collection::vec((any::<u64>(), any::<u32>()), 0..50),
    ) {
        prop_assume!(geometry.bits() > 0);
        let mut words = BTreeMap::new();
        let mut expected = vec![0u8; usize::try_from(geometry.disk_blocks()).unwrap() * MD_BLOCK_SIZE];
        for (bit, slot) in picks {
            let (bit, slot) = (bit % geometry.bits(), slot % geometry.max_peers());
            *words.entry((slot, bit / 32)).or_insert(0u32) |= 1 << (bit % 32);
            let (byte, in_byte) = byte_and_bit(&geometry, bit, slot);
            expected[usize::try_from(byte).unwrap()] |= 1 << in_byte;
            prop_assert_eq!(geometry.block_of_bit(bit, slot), byte / 4096);
            prop_assert!(geometry.bits_in_block(byte / 4096, slot).contains(&bit));
        }
        let disk = encode_all(&geometry, &words);
        prop_assert_eq!(&disk, &expected);
        let (blocks, _) = disk.as_chunks::<MD_BLOCK_SIZE>();
        let mut read = BTreeMap::new();
        for (index, block) in (0u64..).zip(blocks) {
            for slot in 0..geometry.max_peers() {
                geometry.decode_block(block, index, slot, &mut |bit, word| {
                    if word != 0 {
                        read.insert((slot, bit / 32), word);
                    }
                });
            }
        }
        prop_assert_eq!(read, words);
    }

    #[test]
    fn meta_bitmap_blocks_hold_every_bit_once(geometry in any_geometry(100_000)) {
        for slot in 0..geometry.max_peers() {
            let mut next = 0;
            for index in 0..geometry.disk_blocks() {
                let bits = geometry.bits_in_block(index, slot);
                prop_assert_eq!(bits.start, next);
                next = bits.end;
            }
            prop_assert_eq!(next, geometry.bits());
        }
    }

    #[test]
    fn meta_bitmap_marking_extents_sets_exactly_their_bits(
        geometry in any_geometry(8_000),
        mut extents in proptest::collection::vec(0u32..12, 0..20),
    ) {
        extents.sort_unstable();
        for index in 0..geometry.disk_blocks() {
            let mut block = [0; MD_BLOCK_SIZE];
            let changed = geometry.mark_extents(index, &mut block, &extents);
            let mut expected = [0u8; MD_BLOCK_SIZE];
            for slot in 0..geometry.max_peers() {
                for bit in geometry.bits_in_block(index, slot) {
                    let extent = u32::try_from(bit / geometry.bits_per_extent()).unwrap();
                    if extents.binary_search(&extent).is_ok() {
                        let (byte, in_byte) = byte_and_bit(&geometry, bit, slot);
                        expected[usize::try_from(byte % 4096).unwrap()] |= 1 << in_byte;
                        prop_assert!(geometry.extent_blocks(extent).contains(&index));
                    }
                }
            }
            prop_assert!(block == expected);
            prop_assert_eq!(changed, expected.iter().any(|&byte| byte != 0));
            prop_assert!(!geometry.mark_extents(index, &mut block, &extents));
        }
    }
}
