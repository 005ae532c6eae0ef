//! What `drbdmeta` writes, Zea reads; and both make the same bytes.

use zea_meta::create::{create_md, create_md_v08};
use zea_meta::superblock::{Format, detect};
use zea_meta::{
    CreateParams, DeviceFlags, Layout, LayoutParams, MD_BLOCK_SIZE, PeerFlags, PeerMd, Placement, SuperBlock,
    SuperBlockV08, V08Flags, foreign, replay,
};

use crate::image::{Image, device_bytes, layouts};
use crate::tool::{MdFormat, Tool};

/// Lets `drbdmeta` create v09 meta data.
fn create_by_tool(tool: &Tool, params: &LayoutParams) -> Image {
    let image = Image::new(device_bytes(params));
    let (stripes, stripe_kib) = (params.al_stripes.to_string(), (params.al_stripe_size_4k * 4).to_string());
    let peers = params.max_peers.to_string();
    let mut command = vec!["create-md"];
    if (params.al_stripes, params.al_stripe_size_4k) != (1, 8) {
        command.extend(["--al-stripes", &stripes, "--al-stripe-size-kB", &stripe_kib]);
    }
    command.push(&peers);
    tool.ok(MdFormat::V09, &image.path(), params.placement, &command);
    image
}

fn decode(image: &Image, layout: &Layout) -> SuperBlock {
    SuperBlock::decode(&image.read_block(layout.super_block_offset_bytes)).expect("a super block")
}

fn assert_same_bytes(found: &Image, expected: &Image, offset_bytes: u64, len: u64) {
    // Bitmaps of large meta data devices are compared at both ends.
    let window = len.min(1 << 20);
    for offset in [offset_bytes, offset_bytes + len - window] {
        let window = usize::try_from(window).expect("a window");
        assert!(found.read(offset, window) == expected.read(offset, window), "{len} bytes at {offset_bytes}");
    }
}

fn stripe_variants() -> Vec<LayoutParams> {
    let base = LayoutParams::internal(64 * 2048, 3);
    [(4, 16), (2, 8), (1, 16), (3, 21)]
        .map(|(al_stripes, al_stripe_size_4k)| LayoutParams { al_stripes, al_stripe_size_4k, ..base })
        .to_vec()
}

#[test]
fn drbdmeta_and_zea_create_the_same_bytes() {
    let Some(tool) = Tool::find() else { return };
    for params in layouts().into_iter().chain(stripe_variants()) {
        let theirs = create_by_tool(&tool, &params);
        let created = create_md(&CreateParams::new(params)).unwrap();
        let layout = created.layout;
        let super_block = decode(&theirs, &layout);
        assert_eq!(super_block, created.super_block, "{params:?}");
        assert_eq!(layout.check(&super_block, 0), Ok(()));
        assert!(replay(&theirs.read_ring(&layout), 0).unwrap().extents.is_empty());

        let ours = Image::new(device_bytes(&params));
        ours.perform(&created.writes);
        assert_same_bytes(&theirs, &ours, layout.super_block_offset_bytes, MD_BLOCK_SIZE as u64);
        assert_same_bytes(&theirs, &ours, layout.al_offset_bytes, layout.al_size_bytes);
        assert_same_bytes(&theirs, &ours, layout.bitmap_offset_bytes, layout.bitmap_size_bytes);
    }
}

#[test]
fn drbdmeta_and_zea_create_the_same_v08_bytes() {
    let Some(tool) = Tool::find() else { return };
    for params in layouts().into_iter().filter(|params| params.max_peers == 1) {
        let theirs = Image::new(device_bytes(&params));
        tool.ok(MdFormat::V08, &theirs.path(), params.placement, &["create-md"]);
        let created = create_md_v08(&CreateParams::new(params)).unwrap();
        let layout = created.layout;
        let block = theirs.read_block(layout.super_block_offset_bytes);
        assert_eq!(SuperBlockV08::decode(&block), Ok(created.super_block.clone()), "{params:?}");
        assert_eq!(layout.check_v08(&created.super_block), Ok(()));
        let ours = Image::new(device_bytes(&params));
        ours.perform(&created.writes);
        assert_eq!(block, ours.read_block(layout.super_block_offset_bytes));
        assert_same_bytes(&theirs, &ours, layout.al_offset_bytes, layout.al_size_bytes);
    }
}

#[test]
fn drbdmeta_set_gi_is_read_back() {
    let Some(tool) = Tool::find() else { return };
    let params = LayoutParams::internal(131_072, 2);
    let image = create_by_tool(&tool, &params);
    let gi = "0123456789ABCDEF:1111111111111111:2222222222222222:3333333333333333:1:1:1:1:0:0:1:1:1:0:1:1";
    tool.ok(MdFormat::V09, &image.path(), Placement::Internal, &["set-gi", "--node-id", "7", gi]);
    let super_block = decode(&image, &Layout::compute(&params).unwrap());
    assert_eq!(super_block.uuid_set(7), gi[..68].parse().unwrap());
    assert_eq!(super_block.uuid_set(6).bitmap, 0);
    let device = DeviceFlags::CONSISTENT
        | DeviceFlags::WAS_UP_TO_DATE
        | DeviceFlags::PRIMARY_IND
        | DeviceFlags::CRASHED_PRIMARY
        | DeviceFlags::PRIMARY_LOST_QUORUM;
    assert_eq!(super_block.flags, device);
    let peer = PeerFlags::CONNECTED | PeerFlags::OUTDATED | PeerFlags::FULL_SYNC | PeerFlags::DEVICE_SEEN;
    assert_eq!(super_block.peers[7].flags, peer);
}

#[test]
fn drbdmeta_set_gi_of_v08_is_read_back() {
    let Some(tool) = Tool::find() else { return };
    let params = LayoutParams::internal(131_072, 1);
    let image = Image::new(device_bytes(&params));
    tool.ok(MdFormat::V08, &image.path(), params.placement, &["create-md"]);
    let gi = "0123456789ABCDEF:1111111111111111:2222222222222222:3333333333333333:1:0:1:1:0:1:1";
    tool.ok(MdFormat::V08, &image.path(), params.placement, &["set-gi", gi]);
    let block = image.read_block(Layout::compute(&params).unwrap().super_block_offset_bytes);
    let super_block = SuperBlockV08::decode(&block).unwrap();
    assert_eq!(super_block.uuid_set(), gi[..68].parse().unwrap());
    let flags = V08Flags::CONSISTENT
        | V08Flags::PRIMARY_IND
        | V08Flags::CONNECTED_IND
        | V08Flags::PEER_OUT_DATED
        | V08Flags::CRASHED_PRIMARY;
    assert!(super_block.flags.contains(flags), "{:?}", super_block.flags);
    assert!(!super_block.flags.intersects(V08Flags::WAS_UP_TO_DATE | V08Flags::FULL_SYNC), "{:?}", super_block.flags);
}

/// What v08 knew of the peer but for its UUID, `drbdmeta` leaves with node 0, and the bitmap with nobody.
#[test]
fn drbdmeta_converts_v08_and_zea_claims_the_bitmap() {
    let Some(tool) = Tool::find() else { return };
    let params = LayoutParams::internal(131_072, 1);
    let image = Image::new(device_bytes(&params));
    let layout = Layout::compute(&params).unwrap();
    let is_converted = || decode(&image, &layout).is_converted();
    tool.ok(MdFormat::V08, &image.path(), params.placement, &["create-md"]);
    tool.ok(MdFormat::V09, &image.path(), params.placement, &["create-md", "1"]);
    assert!(!is_converted(), "it was never used");
    tool.ok(MdFormat::V08, &image.path(), params.placement, &["create-md"]);
    let gi = "0123456789ABCDEF:1111111111111111:2222222222222222:3333333333333333:1:1:0:1:1:1:0";
    tool.ok(MdFormat::V08, &image.path(), params.placement, &["set-gi", gi]);
    tool.ok(MdFormat::V09, &image.path(), params.placement, &["create-md", "1"]);
    let mut converted = decode(&image, &layout);
    assert!(converted.is_converted());
    converted.claim_converted(5);
    let flags = PeerFlags::CONNECTED | PeerFlags::OUTDATED | PeerFlags::FULL_SYNC;
    assert_eq!(converted.peers[5], PeerMd { bitmap_index: 0, flags, ..PeerMd::UNUSED });
    assert_eq!(converted.uuid_set(5).history[..2], [0x2222_2222_2222_2222, 0x3333_3333_3333_3333]);
    assert!(!converted.is_converted() && converted.slot_of(0).is_none());
}

#[test]
fn drbdmeta_outdate_invalidate_and_wipe_are_read_back() {
    let Some(tool) = Tool::find() else { return };
    let params = LayoutParams::internal(131_072, 2);
    let layout = Layout::compute(&params).unwrap();
    let image = create_by_tool(&tool, &params);
    tool.ok(MdFormat::V09, &image.path(), Placement::Internal, &["set-gi", "--node-id", "1", "4:0:0:0:1:1"]);
    let good = DeviceFlags::CONSISTENT | DeviceFlags::WAS_UP_TO_DATE | DeviceFlags::AL_CLEAN;
    assert_eq!(decode(&image, &layout).flags, good);
    tool.ok(MdFormat::V09, &image.path(), Placement::Internal, &["outdate"]);
    assert_eq!(decode(&image, &layout).flags, DeviceFlags::CONSISTENT | DeviceFlags::AL_CLEAN);
    tool.ok(MdFormat::V09, &image.path(), Placement::Internal, &["invalidate"]);
    assert_eq!(decode(&image, &layout).flags, DeviceFlags::AL_CLEAN);
    tool.ok(MdFormat::V09, &image.path(), Placement::Internal, &["wipe-md"]);
    assert_eq!(detect(&image.read_block(layout.super_block_offset_bytes)), Format::None);
}

#[test]
fn drbdmeta_and_zea_forget_a_peer_alike() {
    let Some(tool) = Tool::find() else { return };
    let params = LayoutParams::internal(131_072, 3);
    let created =
        create_md(&CreateParams { node_id: Some(0), peers: vec![1, 2], ..CreateParams::new(params) }).unwrap();
    let mut super_block = created.super_block;
    super_block.current_uuid = 0xabcd_0000;
    super_block.peers[1].bitmap_uuid = 0x1000;
    super_block.peers[1].flags = PeerFlags::DEVICE_SEEN | PeerFlags::NODE_EXISTS;
    super_block.peers[0].bitmap_uuid = 0x77;
    super_block.peers[3].flags = PeerFlags::NODE_EXISTS;
    for (node_id, peer) in (0u64..).zip(&mut super_block.peers).skip(3) {
        peer.bitmap_uuid = 0xa68e_54fc_90b7_6f00 + node_id;
    }
    let mut block = [0; MD_BLOCK_SIZE];
    super_block.encode(&mut block);
    let image = Image::new(device_bytes(&params));
    image.perform(&created.writes);
    image.write(created.layout.super_block_offset_bytes, &block);
    tool.ok(MdFormat::V09, &image.path(), Placement::Internal, &["forget-peer", "--node-id", "1"]);
    super_block.forget_peer(1).unwrap();
    assert_eq!(decode(&image, &created.layout), super_block);
}

#[test]
fn drbdmeta_meta_data_is_recognised_as_foreign() {
    let Some(tool) = Tool::find() else { return };
    let cases = [
        (MdFormat::V09, Placement::Internal, "DRBD meta data v09"),
        (MdFormat::V08, Placement::Internal, "DRBD meta data v08"),
        (MdFormat::V09, Placement::FlexExternal, "DRBD meta data v09"),
        (MdFormat::V09, Placement::Indexed(1), "DRBD meta data v09"),
    ];
    for (format, placement, name) in cases {
        let size_bytes = (300 << 20) + 5 * 512;
        let image = Image::new(size_bytes);
        let command: &[&str] = if format == MdFormat::V09 { &["create-md", "2"] } else { &["create-md"] };
        tool.ok(format, &image.path(), placement, command);
        let found = foreign::probe_foreign(size_bytes, &mut |offset, buffer: &mut [u8]| {
            buffer.copy_from_slice(&image.read(offset, buffer.len()));
            Ok::<(), ()>(())
        });
        let names: Vec<_> = found.unwrap().into_iter().map(|signature| signature.name).collect();
        assert_eq!(names, [name], "{placement:?}");
    }
}
