use proptest::prelude::*;

use super::*;
use crate::create::{CreateParams, create_md};

const MIB: u64 = 2048;

#[test]
fn meta_placement_internal_example_of_the_reference() {
    let layout = Layout::compute(&LayoutParams::internal(64 * MIB, 2)).unwrap();
    assert_eq!(layout.super_block_offset_bytes, 67_104_768);
    assert_eq!((layout.al_offset_bytes, layout.al_offset), (67_072_000, -64));
    assert_eq!((layout.bitmap_offset_bytes, layout.bm_offset), (67_067_904, -72));
    assert_eq!(layout.md_size_sect, 80);
    assert_eq!(layout.usable_sectors * SECTOR_SIZE, 67_067_904);
}

#[test]
fn meta_placement_internal_as_a_driver_left_it() {
    // A disk of 16 MiB with 3 slots, attached by DRBD 9.3.
    let layout = Layout::compute(&LayoutParams::internal(16 * MIB, 3)).unwrap();
    assert_eq!(layout.super_block_offset_bytes, 16_773_120);
    assert_eq!(layout.al_offset_bytes, 16_740_352);
    assert_eq!(layout.bitmap_offset_bytes, 16_736_256);
    assert_eq!(layout.usable_sectors, 32_688);
}

#[test]
fn meta_placement_external() {
    let flex = Layout::compute(&LayoutParams::flex_external(1 << 40, 64 * MIB + 1, 3)).unwrap();
    assert_eq!((flex.super_block_offset_bytes, flex.al_offset_bytes, flex.bitmap_offset_bytes), (0, 4096, 36_864));
    assert_eq!((flex.al_offset, flex.bm_offset, flex.md_size_sect), (8, 72, 131_073));
    assert_eq!(flex.bitmap_size_bytes, (64 << 20) - 36_864);
    // 67072000 bytes are 2794666 words of 64 bits for each slot.
    assert_eq!(flex.usable_sectors, 2_794_666 * 64 * 8);
    let params = LayoutParams { placement: Placement::Indexed(1), ..LayoutParams::flex_external(1000, 256 * MIB, 1) };
    let indexed = Layout::compute(&params).unwrap();
    assert_eq!(indexed.super_block_offset_bytes, 128 << 20);
    assert_eq!((indexed.al_offset, indexed.bm_offset, indexed.md_size_sect), (8, 72, 262_144));
    assert_eq!(indexed.usable_sectors, 1000);
    assert_eq!(indexed.bitmap_size_bytes, (128 << 20) - 36 * 1024);
}

#[test]
fn meta_placement_errors_have_names() {
    let internal = LayoutParams::internal(64 * MIB, 1);
    let flex = LayoutParams::flex_external(64 * MIB, 64 * MIB, 1);
    let indexed = LayoutParams { placement: Placement::Indexed(0), ..flex };
    let too_small = |size_sectors, needed_sectors| LayoutError::TooSmall { size_sectors, needed_sectors };
    let cases = [
        (LayoutParams { max_peers: 32, ..internal }, LayoutError::MaxPeers(32)),
        (LayoutParams { bytes_per_bit: 1, ..internal }, MetaError::BytesPerBit(1).into()),
        (
            LayoutParams { al_stripes: 0, ..internal },
            MetaError::ActivityLogSize { stripes: 0, stripe_size_4k: 8 }.into(),
        ),
        (LayoutParams { backing_size_sectors: 2047, ..internal }, too_small(2047, 2048)),
        (
            LayoutParams { al_stripe_size_4k: 4096, backing_size_sectors: 16 * MIB, ..internal },
            too_small(16 * MIB, 16 * MIB + 32),
        ),
        (LayoutParams { md_size_sectors: 2047, ..flex }, too_small(2047, 2048)),
        (LayoutParams { md_size_sectors: 1 << 33, ..flex }, LayoutError::MetaDataTooLarge(1 << 33)),
        (LayoutParams { backing_size_sectors: u64::MAX, ..flex }, LayoutError::BackingTooLarge(u64::MAX)),
        (indexed, too_small(64 * MIB, 262_144)),
        (LayoutParams { placement: Placement::Indexed(u32::MAX), ..flex }, LayoutError::Index(u32::MAX)),
        (LayoutParams { al_stripe_size_4k: 16, ..indexed }, LayoutError::IndexedShape),
    ];
    for (params, expected) in cases {
        assert_eq!(Layout::compute(&params), Err(expected));
    }
}

#[test]
fn meta_placement_largest_device_fits_the_fields() {
    let layout = Layout::compute(&LayoutParams::internal(MAX_DEVICE_SECTORS, 31)).unwrap();
    assert!(layout.bm_offset < 0);
    assert_eq!(i64::from(layout.bm_offset), 8 - i64::from(layout.md_size_sect));
}

#[test]
fn meta_placement_check_names_the_field() {
    let created = create_md(&CreateParams::new(LayoutParams::internal(64 * MIB, 2))).unwrap();
    let (layout, good) = (created.layout, created.super_block);
    assert_eq!(layout.check(&good, 3), Ok(()));

    let check = |change: &dyn Fn(&mut SuperBlock)| {
        let mut super_block = good.clone();
        change(&mut super_block);
        layout.check(&super_block, 3).unwrap_err()
    };
    let field = |field, found, expected| LayoutMismatch::Field { field, found, expected };
    assert_eq!(check(&|sb| sb.al_offset = -72), field("al_offset", -72, -64));
    assert_eq!(check(&|sb| sb.bm_offset = -80), field("bm_offset", -80, -72));
    assert_eq!(check(&|sb| sb.md_size_sect = 88), field("md_size_sect", 88, 80));
    assert_eq!(check(&|sb| sb.bm_max_peers = 1), field("bm_max_peers", 1, 2));
    assert_eq!(check(&|sb| sb.al_stripes = 2), field("al_stripes", 2, 1));
    assert_eq!(check(&|sb| sb.al_stripe_size_4k = 16), field("al_stripe_size_4k", 16, 8));
    assert_eq!(check(&|sb| sb.bm_bytes_per_bit = 8192), field("bm_bytes_per_bit", 8192, 4096));
    assert_eq!(check(&|sb| sb.node_id = Some(0)), LayoutMismatch::NodeId { found: 0, own: 3 });
    assert_eq!(check(&|sb| sb.peers[3].bitmap_index = 0), LayoutMismatch::OwnBitmapSlot(3));
    let usable_sectors = layout.usable_sectors;
    let effective_size_sectors = usable_sectors + 1;
    assert_eq!(
        check(&|sb| sb.effective_size_sectors = effective_size_sectors),
        LayoutMismatch::BackingTooSmall { usable_sectors, effective_size_sectors }
    );
    let covered_sectors = layout.covered_sectors();
    assert_eq!(
        check(&|sb| sb.effective_size_sectors = u64::MAX),
        LayoutMismatch::BitmapTooSmall { covered_sectors, effective_size_sectors: u64::MAX }
    );
}

proptest! {
    #[test]
    fn meta_placement_parts_do_not_overlap(
        size in 0u64..1 << 36,
        md_size in 0u64..1 << 33,
        max_peers in 0u32..33,
        shift in 11u32..22,
        stripes in 0u32..40,
        stripe_size in 0u32..300,
        placement in prop_oneof![
            Just(Placement::Internal),
            Just(Placement::FlexExternal),
            (0u32..70_000).prop_map(Placement::Indexed),
        ],
    ) {
        let params = LayoutParams {
            placement,
            backing_size_sectors: size,
            md_size_sectors: md_size,
            max_peers,
            bytes_per_bit: 1 << shift,
            al_stripes: stripes,
            al_stripe_size_4k: stripe_size,
        };
        let Ok(layout) = Layout::compute(&params) else { return Ok(()) };
        let device_bytes = if placement == Placement::Internal { size } else { md_size } * SECTOR_SIZE;
        let super_block = (layout.super_block_offset_bytes, 4096);
        let al = (layout.al_offset_bytes, layout.al_size_bytes);
        let bitmap = (layout.bitmap_offset_bytes, layout.bitmap_size_bytes);
        let mut parts = [super_block, al, bitmap];
        parts.sort_unstable();
        for pair in parts.windows(2) {
            prop_assert_eq!(pair[0].0 + pair[0].1, pair[1].0);
        }
        for (start, len) in parts {
            prop_assert!(start % 4096 == 0 && len % 4096 == 0 && len > 0 && start + len <= device_bytes);
        }
        prop_assert!(layout.usable_sectors <= size);
        // The bitmap of the largest device fits its area.
        let needed = bitmap_sectors(layout.usable_sectors, max_peers, params.bytes_per_bit) * SECTOR_SIZE;
        prop_assert!(needed <= layout.bitmap_size_bytes);
        prop_assert!(layout.usable_sectors <= layout.covered_sectors());
        if placement == Placement::Internal {
            prop_assert_eq!(layout.usable_sectors * SECTOR_SIZE, layout.bitmap_offset_bytes);
        }
        let relative = |field: i32| (layout.super_block_offset_bytes / SECTOR_SIZE).wrapping_add_signed(field.into());
        prop_assert_eq!(relative(layout.al_offset) * SECTOR_SIZE, layout.al_offset_bytes);
        prop_assert_eq!(relative(layout.bm_offset) * SECTOR_SIZE, layout.bitmap_offset_bytes);
    }

    #[test]
    fn meta_placement_never_panics(
        backing_size_sectors: u64,
        md_size_sectors: u64,
        index: u32,
        max_peers in 1u32..32,
        al_stripes: u32,
        al_stripe_size_4k: u32,
        shift in 12u32..21,
    ) {
        for placement in [Placement::Internal, Placement::FlexExternal, Placement::Indexed(index)] {
            let bytes_per_bit = 1 << shift;
            let params = LayoutParams {
                placement, backing_size_sectors, md_size_sectors, max_peers, bytes_per_bit, al_stripes, al_stripe_size_4k,
            };
            let _ = Layout::compute(&params);
            let _ = Layout::compute(&LayoutParams { al_stripes: 1, al_stripe_size_4k: 8, ..params });
        }
    }
}
