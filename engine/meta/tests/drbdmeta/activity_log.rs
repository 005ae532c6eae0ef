//! `drbdmeta apply-al` on rings that Zea wrote: the same bits as Zea's own replay sets.

use zea_meta::activity_log::{
    AL_FREE, AlTransaction, AlUpdate, TransactionKind, initialized_block, next_context_start, slot_block, window_len,
};
use zea_meta::create::{create_md, create_md_v08};
use zea_meta::{
    BitmapGeometry, CreateParams, DeviceFlags, Layout, LayoutParams, MD_BLOCK_SIZE, SuperBlock, SuperBlockV08,
    V08Flags, replay,
};

use crate::image::{Block, Image, MIB, device_bytes};
use crate::tool::{MdFormat, Tool};
use crate::writing::pattern;

/// Slots of the activity log: two windows.
const SLOTS: u16 = 1237;

/// Commits `count` transactions with changes of pseudo-random slots to a ring.
fn write_ring(image: &Image, layout: &Layout, first: u32, count: u32, extents: u32) {
    let (stripes, stripe_size) = (layout.params.al_stripes, layout.params.al_stripe_size_4k);
    let mut table = vec![AL_FREE; usize::from(SLOTS)];
    let mut context_start = 0;
    for step in 0..count {
        let start = usize::from(context_start);
        // Few slots, so that extents are evicted, and each extent in one slot only.
        let changes: Vec<AlUpdate> = (0..3u32)
            .map(|i| {
                let slot = (step * 7 + i) % 20;
                let slot_nr = u16::try_from(if slot < 10 { slot } else { slot + 1200 }).expect("a slot");
                AlUpdate { slot_nr, extent_nr: (slot + 20 * (step % 3)) % extents }
            })
            .collect();
        let transaction = AlTransaction {
            tr_number: first.wrapping_add(step),
            kind: TransactionKind::Update,
            context_size: SLOTS,
            context_start,
            context: table[start..start + window_len(context_start, SLOTS)].to_vec(),
            updates: changes.clone(),
        };
        for change in changes {
            table[usize::from(change.slot_nr)] = change.extent_nr;
        }
        let mut block = [0; MD_BLOCK_SIZE];
        transaction.encode(&mut block);
        write_ring_block(image, layout, slot_block(transaction.tr_number, stripes, stripe_size), &block);
        context_start = next_context_start(context_start, SLOTS);
    }
}

fn write_ring_block(image: &Image, layout: &Layout, index: u32, block: &Block) {
    image.write(layout.al_offset_bytes + u64::from(index) * MD_BLOCK_SIZE as u64, block);
}

/// The bitmap as Zea would leave it after applying the ring that is on the image.
fn applied_by_zea(image: &Image, layout: &Layout, geometry: &BitmapGeometry) -> Vec<Block> {
    let hot = replay(&image.read_ring(layout), geometry.al_extents()).expect("a ring that can be replayed");
    assert!(!hot.extents.is_empty());
    (0..geometry.disk_blocks())
        .map(|index| {
            let mut block = image.bitmap_block(layout, index);
            geometry.mark_extents(index, &mut block, &hot.extents);
            block
        })
        .collect()
}

fn assert_applied(image: &Image, layout: &Layout, geometry: &BitmapGeometry, expected: &[Block]) {
    for (index, expected) in (0u64..).zip(expected) {
        let found = image.bitmap_block(layout, index);
        for slot in 0..geometry.max_peers() {
            let words = |block: &Block| {
                let mut words = Vec::new();
                geometry.decode_block(block, index, slot, &mut |bit, word| words.push((bit, word)));
                words
            };
            assert!(words(&found) == words(expected), "slot {slot} in block {index} of {:?}", layout.params);
        }
    }
    assert!(image.read_ring(layout).iter().all(|block| *block == initialized_block()));
}

/// Rings: first transaction number, number of transactions, whether the next one is torn. None crosses 2^31: there
/// `drbdmeta` 9.22 takes the newest transaction for the oldest, as it compares the numbers and not their distance.
const RINGS: [(u32, u32, bool); 5] =
    [(0, 3, false), (0, 20, true), (u32::MAX - 5, 9, false), (0x8000_0005, 30, true), (1000, 300, false)];

#[test]
fn drbdmeta_apply_al_sets_the_bits_that_zea_sets() {
    let Some(tool) = Tool::find() else { return };
    for (max_peers, al_stripes, al_stripe_size_4k) in [(1, 1, 8), (2, 1, 8), (7, 2, 16), (31, 1, 8)] {
        for (first, count, torn) in RINGS {
            let size_sectors = (256 * MIB + 4096 * 77) / 512;
            let params =
                LayoutParams { al_stripes, al_stripe_size_4k, ..LayoutParams::internal(size_sectors, max_peers) };
            let created = create_md(&CreateParams { node_id: Some(0), peers: vec![1], ..CreateParams::new(params) });
            let created = created.unwrap();
            let layout = created.layout;
            let image = Image::new(device_bytes(&params));
            image.perform(&created.writes);
            let super_block = SuperBlock {
                effective_size_sectors: layout.usable_sectors,
                al_nr_extents: SLOTS.into(),
                flags: DeviceFlags::CONSISTENT | DeviceFlags::WAS_UP_TO_DATE | DeviceFlags::PRIMARY_IND,
                ..created.super_block
            };
            let mut block = [0; MD_BLOCK_SIZE];
            super_block.encode(&mut block);
            image.write(layout.super_block_offset_bytes, &block);
            let geometry = BitmapGeometry::for_device(max_peers, layout.usable_sectors, 4096).unwrap();
            image.write_bitmap(&layout, &geometry, &pattern);
            write_ring(&image, &layout, first, count, geometry.al_extents());
            if torn {
                let next = slot_block(first.wrapping_add(count), al_stripes, al_stripe_size_4k);
                write_ring_block(&image, &layout, next, &[0x5a; MD_BLOCK_SIZE]);
            }
            let expected = applied_by_zea(&image, &layout, &geometry);
            tool.ok(MdFormat::V09, &image.path(), params.placement, &["apply-al"]);
            assert_applied(&image, &layout, &geometry, &expected);
            let clean = SuperBlock { flags: super_block.flags | DeviceFlags::AL_CLEAN, ..super_block };
            assert_eq!(SuperBlock::decode(&image.read_block(layout.super_block_offset_bytes)), Ok(clean));
        }
    }
}

#[test]
fn drbdmeta_apply_al_without_primary_indicator_sets_no_bits() {
    let Some(tool) = Tool::find() else { return };
    let params = LayoutParams::internal(64 * 2048, 2);
    let created = create_md(&CreateParams::new(params)).unwrap();
    let layout = created.layout;
    let image = Image::new(device_bytes(&params));
    image.perform(&created.writes);
    let super_block = SuperBlock {
        effective_size_sectors: layout.usable_sectors,
        flags: DeviceFlags::CONSISTENT,
        ..created.super_block
    };
    let mut block = [0; MD_BLOCK_SIZE];
    super_block.encode(&mut block);
    image.write(layout.super_block_offset_bytes, &block);
    let geometry = BitmapGeometry::for_device(2, layout.usable_sectors, 4096).unwrap();
    write_ring(&image, &layout, 0, 5, geometry.al_extents());
    tool.ok(MdFormat::V09, &image.path(), params.placement, &["apply-al"]);
    assert!(image.read_slot(&layout, &geometry, 0).iter().all(|&word| word == 0));
    assert!(image.read_ring(&layout).iter().all(|block| *block == initialized_block()));
}

#[test]
fn drbdmeta_apply_al_on_v08_sets_the_bits_that_zea_sets() {
    let Some(tool) = Tool::find() else { return };
    for (first, count, torn) in RINGS {
        let params = LayoutParams::internal((128 * MIB + 4096 * 3) / 512, 1);
        let created = create_md_v08(&CreateParams::new(params)).unwrap();
        let layout = created.layout;
        let image = Image::new(device_bytes(&params));
        image.perform(&created.writes);
        let super_block = SuperBlockV08 {
            effective_size_sectors: layout.usable_sectors,
            al_nr_extents: SLOTS.into(),
            flags: V08Flags::CONSISTENT | V08Flags::WAS_UP_TO_DATE | V08Flags::PRIMARY_IND,
            unclean: true,
            ..created.super_block
        };
        let mut block = [0; MD_BLOCK_SIZE];
        super_block.encode(&mut block);
        image.write(layout.super_block_offset_bytes, &block);
        let geometry = BitmapGeometry::for_device(1, layout.usable_sectors, 4096).unwrap();
        image.write_bitmap(&layout, &geometry, &pattern);
        write_ring(&image, &layout, first, count, geometry.al_extents());
        if torn {
            write_ring_block(&image, &layout, slot_block(first.wrapping_add(count), 1, 8), &[0x5a; MD_BLOCK_SIZE]);
        }
        let expected = applied_by_zea(&image, &layout, &geometry);
        tool.ok(MdFormat::V08, &image.path(), params.placement, &["apply-al"]);
        assert_applied(&image, &layout, &geometry, &expected);
        let clean = SuperBlockV08 { flags: super_block.flags | V08Flags::AL_CLEAN, unclean: false, ..super_block };
        assert_eq!(SuperBlockV08::decode(&image.read_block(layout.super_block_offset_bytes)), Ok(clean));
    }
}
