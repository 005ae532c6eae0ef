//! What Zea writes, `drbdmeta` reads.

use zea_meta::create::{create_md, create_md_v08};
use zea_meta::{
    BitmapGeometry, CreateParams, DeviceFlags, Layout, LayoutParams, MD_BLOCK_SIZE, PeerFlags, Placement, SuperBlock,
    SuperBlockV08, V08Flags,
};

use crate::dump::{Dump, number};
use crate::image::{Image, device_bytes, layouts};
use crate::tool::{MdFormat, Tool};

/// A pattern that differs between slots and words, with runs of zeros as the dump compresses them.
pub(crate) fn pattern(slot: u32, word_index: u64) -> u32 {
    if word_index % 5 < 3 { 0 } else { (word_index as u32).wrapping_mul(0x9e37_79b9) ^ (slot << 16) | 1 }
}

/// What a slot of the pattern looks like in the dump: words of 64 bits, padded with zeros.
fn pattern_words(geometry: &BitmapGeometry, slot: u32) -> Vec<u64> {
    let word = |index: u64| {
        let bits_left = geometry.bits().saturating_sub(index * 32).min(32);
        u64::from(pattern(slot, index)) & ((1 << bits_left) - 1)
    };
    (0..geometry.bits().div_ceil(64)).map(|index| word(2 * index) | word(2 * index + 1) << 32).collect()
}

/// The dump goes on to the end of the last block on disk, with zeros.
fn assert_is_pattern(words: &[u64], geometry: &BitmapGeometry, slot: u32) {
    let expected = pattern_words(geometry, slot);
    assert!(words.len() >= expected.len(), "slot {slot} of {geometry:?}");
    let (in_device, beyond) = words.split_at(expected.len());
    assert!(in_device == expected, "slot {slot} of {geometry:?}");
    assert!(beyond.iter().all(|&word| word == 0), "slot {slot} of {geometry:?}");
}

/// A super block in which every field has a value of its own.
fn lived_in(created: SuperBlock, layout: &Layout) -> SuperBlock {
    let mut super_block = created;
    super_block.effective_size_sectors = layout.usable_sectors;
    super_block.current_uuid = 0x0123_4567_89ab_cdef;
    super_block.device_uuid = 0xfeed_0000_beef_0001;
    super_block.flags =
        DeviceFlags::CONSISTENT | DeviceFlags::WAS_UP_TO_DATE | DeviceFlags::AL_CLEAN | DeviceFlags::HAVE_QUORUM;
    super_block.la_peer_max_bio_size = 1 << 20;
    super_block.al_nr_extents = 1237;
    for (node_id, peer) in (0u64..).zip(&mut super_block.peers) {
        peer.bitmap_uuid = 0x1000 + node_id;
        peer.bitmap_dagtag = 0x2000 + node_id;
        let flags = [PeerFlags::CONNECTED, PeerFlags::OUTDATED, PeerFlags::FULL_SYNC, PeerFlags::NODE_EXISTS];
        peer.flags = flags[node_id as usize % flags.len()] | PeerFlags::DEVICE_SEEN;
    }
    for (age, uuid) in (0u64..).zip(&mut super_block.history_uuids) {
        *uuid = 0x3000 + age;
    }
    super_block
}

fn assert_layout(dump: &Dump, layout: &Layout) {
    assert_eq!(dump.field("md_size_sect"), u64::from(layout.md_size_sect));
    assert_eq!(dump.field("md_offset"), layout.super_block_offset_bytes);
    assert_eq!(dump.field("al_offset"), layout.al_offset_bytes);
    assert_eq!(dump.field("bm_offset"), layout.bitmap_offset_bytes);
}

fn assert_dump_of(dump: &Dump, super_block: &SuperBlock) {
    let node_id = super_block.node_id.map_or("-1".to_owned(), |id| id.to_string());
    assert_eq!(dump.fields["version"], "\"v09\"");
    assert_eq!(dump.fields["node-id"], node_id);
    assert_eq!(dump.field("max-peers"), u64::from(super_block.bm_max_peers));
    assert_eq!(dump.field("current-uuid"), super_block.current_uuid);
    assert_eq!(dump.field("flags"), u64::from(super_block.flags.bits()));
    assert_eq!(dump.field("al-extents"), u64::from(super_block.al_nr_extents));
    assert_eq!(dump.field("la-size-sect"), super_block.effective_size_sectors);
    assert_eq!(dump.field("bm-byte-per-bit"), u64::from(super_block.bm_bytes_per_bit));
    assert_eq!(dump.field("device-uuid"), super_block.device_uuid);
    assert_eq!(dump.field("la-peer-max-bio-size"), u64::from(super_block.la_peer_max_bio_size));
    assert_eq!(dump.field("al-stripes"), u64::from(super_block.al_stripes));
    assert_eq!(dump.field("al-stripe-size-4k"), u64::from(super_block.al_stripe_size_4k));
    assert_eq!(dump.uuids, super_block.history_uuids);
    assert_eq!(dump.peers.len(), super_block.peers.len());
    for (node_id, peer) in super_block.peers.iter().enumerate() {
        assert_eq!(dump.peer(node_id, "bitmap-index"), peer.bitmap_index.to_string());
        assert_eq!(number(dump.peer(node_id, "bitmap-uuid")), peer.bitmap_uuid);
        assert_eq!(number(dump.peer(node_id, "bitmap-dagtag")), peer.bitmap_dagtag);
        assert_eq!(number(dump.peer(node_id, "flags")), u64::from(peer.flags.bits()));
    }
}

fn write_super_block(image: &Image, layout: &Layout, super_block: &SuperBlock) {
    let mut block = [0; MD_BLOCK_SIZE];
    super_block.encode(&mut block);
    image.write(layout.super_block_offset_bytes, &block);
}

#[test]
fn drbdmeta_dumps_fresh_meta_data_of_zea() {
    let Some(tool) = Tool::find() else { return };
    for params in layouts() {
        let created = create_md(&CreateParams::new(params)).unwrap();
        let image = Image::new(device_bytes(&params));
        image.scribble(&created.layout);
        image.perform(&created.writes);
        let dump = Dump::parse(&tool.ok(MdFormat::V09, &image.path(), params.placement, &["dump-md"]));
        assert_layout(&dump, &created.layout);
        assert_dump_of(&dump, &created.super_block);
        assert_eq!(dump.bitmaps, vec![Vec::<u64>::new(); params.max_peers as usize]);
    }
}

#[test]
fn drbdmeta_dumps_lived_in_meta_data_of_zea() {
    let Some(tool) = Tool::find() else { return };
    for params in layouts() {
        let peers = if params.max_peers == 1 { vec![3] } else { vec![5, 0] };
        let created = create_md(&CreateParams { node_id: Some(2), peers, ..CreateParams::new(params) }).unwrap();
        let layout = created.layout;
        let super_block = lived_in(created.super_block, &layout);
        let image = Image::new(device_bytes(&params));
        image.perform(&created.writes);
        write_super_block(&image, &layout, &super_block);
        let geometry = BitmapGeometry::for_device(params.max_peers, layout.usable_sectors, 4096).unwrap();
        image.write_bitmap(&layout, &geometry, &pattern);

        let dump = Dump::parse(&tool.ok(MdFormat::V09, &image.path(), params.placement, &["dump-md"]));
        assert_layout(&dump, &layout);
        assert_dump_of(&dump, &super_block);
        assert_eq!(dump.bitmaps.len(), params.max_peers as usize);
        for (slot, words) in (0u32..).zip(&dump.bitmaps) {
            assert_is_pattern(words, &geometry, slot);
        }
    }
}

#[test]
fn drbdmeta_get_gi_shows_the_uuids_and_flags_of_zea() {
    let Some(tool) = Tool::find() else { return };
    let params = LayoutParams::internal(131_072, 2);
    let created = create_md(&CreateParams { node_id: Some(2), ..CreateParams::new(params) }).unwrap();
    let super_block = lived_in(created.super_block, &created.layout);
    let image = Image::new(device_bytes(&params));
    image.perform(&created.writes);
    write_super_block(&image, &created.layout, &super_block);
    for node_id in [0u8, 1, 31] {
        let peer = super_block.peers[usize::from(node_id)].flags;
        let device = |flag| u8::from(super_block.flags.contains(flag));
        let of_peer = |flag| u8::from(peer.contains(flag));
        let flags = [
            device(DeviceFlags::CONSISTENT),
            device(DeviceFlags::WAS_UP_TO_DATE),
            device(DeviceFlags::PRIMARY_IND),
            device(DeviceFlags::CRASHED_PRIMARY),
            device(DeviceFlags::AL_CLEAN),
            device(DeviceFlags::AL_DISABLED),
            device(DeviceFlags::PRIMARY_LOST_QUORUM),
            of_peer(PeerFlags::CONNECTED),
            of_peer(PeerFlags::OUTDATED),
            of_peer(PeerFlags::FENCING),
            of_peer(PeerFlags::FULL_SYNC),
            of_peer(PeerFlags::DEVICE_SEEN),
        ];
        let flags = flags.map(|flag| flag.to_string()).join(":");
        let expected = format!("{}{flags}", super_block.uuid_set(node_id));
        let command = ["get-gi", "--node-id", &node_id.to_string()];
        assert_eq!(tool.ok(MdFormat::V09, &image.path(), params.placement, &command).trim(), expected);
    }
}

#[test]
fn drbdmeta_dumps_v08_meta_data_of_zea() {
    let Some(tool) = Tool::find() else { return };
    for params in layouts().into_iter().filter(|params| params.max_peers == 1) {
        let created = create_md_v08(&CreateParams::new(params)).unwrap();
        let layout = created.layout;
        let super_block = SuperBlockV08 {
            effective_size_sectors: layout.usable_sectors,
            current_uuid: 0x0123_4567_89ab_cdef,
            bitmap_uuid: 0x1000,
            history_uuids: [0x3000, 0x3001],
            device_uuid: 0xfeed_0000_beef_0001,
            flags: V08Flags::CONSISTENT
                | V08Flags::WAS_UP_TO_DATE
                | V08Flags::PEER_OUT_DATED
                | V08Flags::FULL_SYNC
                | V08Flags::AL_CLEAN,
            la_peer_max_bio_size: 130_560,
            ..created.super_block.clone()
        };
        let image = Image::new(device_bytes(&params));
        image.scribble(&layout);
        image.perform(&created.writes);
        let fresh = Dump::parse(&tool.ok(MdFormat::V08, &image.path(), params.placement, &["dump-md"]));
        assert_layout(&fresh, &layout);
        assert_eq!(fresh.uuids, [4, 0, 0, 0]);

        let mut block = [0; MD_BLOCK_SIZE];
        super_block.encode(&mut block);
        image.write(layout.super_block_offset_bytes, &block);
        let geometry = BitmapGeometry::for_device(1, layout.usable_sectors, 4096).unwrap();
        image.write_bitmap(&layout, &geometry, &pattern);
        let dump = Dump::parse(&tool.ok(MdFormat::V08, &image.path(), params.placement, &["dump-md"]));
        assert_layout(&dump, &layout);
        assert_eq!(dump.fields["version"], "\"v08\"");
        assert_eq!(dump.uuids, [super_block.current_uuid, super_block.bitmap_uuid, 0x3000, 0x3001]);
        // The dump shows no flags for v08, get-gi does.
        let gi = tool.ok(MdFormat::V08, &image.path(), params.placement, &["get-gi"]);
        assert_eq!(gi.trim(), format!("{}1:1:0:0:1:1:0", super_block.uuid_set()));
        assert_eq!(dump.field("la-size-sect"), super_block.effective_size_sectors);
        assert_eq!(dump.field("device-uuid"), super_block.device_uuid);
        assert_eq!(dump.field("la-peer-max-bio-size"), 130_560);
        assert_eq!(dump.field("al-extents"), u64::from(super_block.al_nr_extents));
        assert_eq!(dump.bitmaps.len(), 1);
        assert_is_pattern(&dump.bitmaps[0], &geometry, 0);
    }
}

#[test]
fn drbdmeta_restores_what_it_dumped_from_zea() {
    let Some(tool) = Tool::find() else { return };
    let params = LayoutParams::internal(131_072, 2);
    let created =
        create_md(&CreateParams { node_id: Some(2), peers: vec![0, 1], ..CreateParams::new(params) }).unwrap();
    let layout = created.layout;
    let super_block = lived_in(created.super_block, &layout);
    let geometry = BitmapGeometry::for_device(2, layout.usable_sectors, 4096).unwrap();
    let from = Image::new(device_bytes(&params));
    from.perform(&created.writes);
    write_super_block(&from, &layout, &super_block);
    from.write_bitmap(&layout, &geometry, &pattern);
    let text = tool.ok(MdFormat::V09, &from.path(), Placement::Internal, &["dump-md"]);

    let to = Image::new(device_bytes(&params));
    let dump_file = to.path().with_extension("dump");
    std::fs::write(&dump_file, text).unwrap();
    let dump_file = dump_file.to_str().expect("a plain path");
    tool.ok(MdFormat::V09, &to.path(), Placement::Internal, &["restore-md", dump_file]);
    let restored = SuperBlock::decode(&to.read_block(layout.super_block_offset_bytes)).unwrap();
    let expected = SuperBlock { al_nr_extents: restored.al_nr_extents, ..super_block };
    assert_eq!(restored, expected);
    for slot in 0..2 {
        assert_eq!(to.read_slot(&layout, &geometry, slot), from.read_slot(&layout, &geometry, slot));
    }
}
