use proptest::prelude::*;

use super::*;
use crate::SuperBlockV08;
use crate::flags::V08Flags;

fn sample() -> SuperBlock {
    let mut peers = [PeerMd::UNUSED; PEER_ARRAY_LEN];
    peers[1] = PeerMd { bitmap_uuid: 0x11, bitmap_dagtag: 0x22, flags: PeerFlags::CONNECTED, bitmap_index: 1 };
    SuperBlock {
        effective_size_sectors: 130_992,
        current_uuid: 0x7979_960b_60d0_f25a,
        members: 3,
        device_uuid: 0x1234,
        flags: DeviceFlags::CONSISTENT | DeviceFlags::WAS_UP_TO_DATE,
        md_size_sect: 80,
        al_offset: -64,
        al_nr_extents: 1237,
        bm_offset: -72,
        bm_bytes_per_bit: 4096,
        la_peer_max_bio_size: 1 << 20,
        bm_max_peers: 2,
        node_id: Some(0),
        al_stripes: 1,
        al_stripe_size_4k: 8,
        peers,
        history_uuids: [7; HISTORY_UUIDS],
    }
}

fn encoded(super_block: &SuperBlock) -> [u8; MD_BLOCK_SIZE] {
    let mut block = [0xaa; MD_BLOCK_SIZE];
    super_block.encode(&mut block);
    block
}

/// A valid super block with any content: slots are dealt out to node ids by a permutation.
fn any_super_block() -> impl Strategy<Value = SuperBlock> {
    let numbers = any::<([u64; 4], [u32; 4], [i32; 2])>();
    let shape = (1..=MAX_PEERS, 12u32..=20, proptest::option::of(0u8..32), 1u32..=16, 8u32..=256);
    let peers = proptest::collection::vec(any::<(u64, u64, u32, bool)>(), PEER_ARRAY_LEN);
    let order = Just((0..32i32).collect::<Vec<_>>()).prop_shuffle();
    (numbers, shape, peers, order, any::<[u64; HISTORY_UUIDS]>()).prop_map(
        |((longs, words, offsets), (max_peers, shift, node_id, stripes, stripe_size), peers, order, history)| {
            let mut super_block = SuperBlock {
                effective_size_sectors: longs[0],
                current_uuid: longs[1],
                members: longs[2],
                device_uuid: longs[3],
                flags: DeviceFlags(words[0]),
                md_size_sect: words[1],
                al_offset: offsets[0],
                al_nr_extents: words[2],
                bm_offset: offsets[1],
                bm_bytes_per_bit: 1 << shift,
                la_peer_max_bio_size: words[3],
                bm_max_peers: max_peers,
                node_id,
                al_stripes: stripes,
                al_stripe_size_4k: stripe_size,
                peers: [PeerMd::UNUSED; PEER_ARRAY_LEN],
                history_uuids: history,
            };
            for ((id, entry), (peer, slot)) in (0u8..).zip(&mut super_block.peers).zip(peers.into_iter().zip(order)) {
                let (bitmap_uuid, bitmap_dagtag, flags, wants_slot) = peer;
                let has_slot = wants_slot && slot < max_peers.cast_signed() && node_id != Some(id);
                *entry = PeerMd {
                    bitmap_uuid,
                    bitmap_dagtag,
                    flags: PeerFlags(flags & 0x7fff_ffff),
                    bitmap_index: if has_slot { slot } else { -1 },
                };
            }
            super_block
        },
    )
}

fn any_super_block_v08() -> impl Strategy<Value = SuperBlockV08> {
    let numbers = any::<([u64; 6], [u32; 4], [i32; 2], bool)>();
    (numbers, 1u32..=16, 8u32..=256).prop_map(|((longs, words, offsets, unclean), stripes, stripe_size)| {
        let [effective_size_sectors, current_uuid, bitmap_uuid, h0, h1, device_uuid] = longs;
        SuperBlockV08 {
            effective_size_sectors,
            current_uuid,
            bitmap_uuid,
            history_uuids: [h0, h1],
            device_uuid,
            flags: V08Flags(words[0]),
            unclean,
            md_size_sect: words[1],
            al_offset: offsets[0],
            al_nr_extents: words[2],
            bm_offset: offsets[1],
            bm_bytes_per_bit: 4096,
            la_peer_max_bio_size: words[3],
            al_stripes: stripes,
            al_stripe_size_4k: stripe_size,
        }
    })
}

proptest! {
    #[test]
    fn meta_superblock_round_trip(super_block in any_super_block()) {
        let block = encoded(&super_block);
        prop_assert_eq!(detect(&block), Format::V09);
        prop_assert_eq!(SuperBlock::decode(&block), Ok(super_block));
    }

    #[test]
    fn meta_superblock_v08_round_trip(super_block in any_super_block_v08()) {
        let mut block = [0xaa; MD_BLOCK_SIZE];
        super_block.encode(&mut block);
        let format = if super_block.unclean { Format::V08Unclean } else { Format::V08 };
        prop_assert_eq!(detect(&block), format);
        prop_assert_eq!(SuperBlockV08::decode(&block), Ok(super_block));
    }

    #[test]
    fn meta_superblock_slots_stay_valid(super_block in any_super_block(), nodes in proptest::collection::vec(0u8..34, 0..40)) {
        let mut super_block = super_block;
        for node_id in nodes {
            let before = super_block.clone();
            match super_block.assign_slot(node_id) {
                Ok(slot) => prop_assert_eq!(super_block.slot_of(node_id), Some(slot)),
                Err(_) => prop_assert_eq!(&super_block, &before),
            }
            prop_assert_eq!(super_block.validate(), Ok(()));
        }
    }
}

#[test]
fn meta_superblock_fields_lie_where_the_format_says() {
    let block = encoded(&sample());
    assert_eq!(block[0..8], 130_992u64.to_be_bytes());
    assert_eq!(block[8..16], 0x7979_960b_60d0_f25a_u64.to_be_bytes());
    assert_eq!(block[16..24], 3u64.to_be_bytes());
    assert_eq!(block[24..48], [0; 24]);
    assert_eq!(block[48..56], 0x1234u64.to_be_bytes());
    assert_eq!(block[56..64], [0, 0, 0, 0x11, 0x83, 0x74, 0x02, 0x6d]);
    assert_eq!(block[64..72], [0, 0, 0, 80, 0xff, 0xff, 0xff, 0xc0]);
    assert_eq!(block[72..80], [0, 0, 4, 0xd5, 0xff, 0xff, 0xff, 0xb8]);
    assert_eq!(block[80..96], [0, 0, 0x10, 0, 0, 0x10, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    assert_eq!(block[96..112], [0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    let peer = &block[112 + 32..112 + 64];
    assert_eq!(peer[7], 0x11);
    assert_eq!(peer[15], 0x22);
    assert_eq!(peer[16..32], [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(block[1136 + 7], 7);
    assert!(block[1392..].iter().all(|&b| b == 0));
}

#[test]
fn meta_superblock_have_bitmap_stays_in_memory() {
    let mut super_block = sample();
    let mut block = encoded(&super_block);
    super_block.peers[1].flags.insert(PeerFlags::HAVE_BITMAP);
    assert_eq!(encoded(&super_block), block);
    block[112 + 32 + 16] |= 0x80;
    assert_eq!(SuperBlock::decode(&block), Ok(sample()));
}

#[test]
fn meta_superblock_stripes_of_zero_are_the_old_layout() {
    let mut block = encoded(&sample());
    block[96..104].fill(0);
    assert_eq!(SuperBlock::decode(&block), Ok(sample()));
    block[99] = 1;
    let error = MetaError::ActivityLogSize { stripes: 1, stripe_size_4k: 0 };
    assert_eq!(SuperBlock::decode(&block), Err(error));
}

#[test]
fn meta_superblock_errors_have_names() {
    type Change = fn(&mut SuperBlock);
    let cases: [(Change, MetaError); 10] = [
        (|sb| sb.bm_max_peers = 0, MetaError::MaxPeers(0)),
        (|sb| sb.bm_max_peers = 32, MetaError::MaxPeers(32)),
        (|sb| sb.bm_bytes_per_bit = 0, MetaError::BytesPerBit(0)),
        (|sb| sb.bm_bytes_per_bit = 4097, MetaError::BytesPerBit(4097)),
        (|sb| sb.bm_bytes_per_bit = 2 << 20, MetaError::BytesPerBit(2 << 20)),
        (
            |sb| (sb.al_stripes, sb.al_stripe_size_4k) = (u32::MAX, u32::MAX),
            MetaError::ActivityLogSize { stripes: u32::MAX, stripe_size_4k: u32::MAX },
        ),
        (|sb| sb.peers[31].bitmap_index = 2, MetaError::BitmapIndex { node_id: 31, bitmap_index: 2, max_peers: 2 }),
        (|sb| sb.peers[9].bitmap_index = -2, MetaError::BitmapIndex { node_id: 9, bitmap_index: -2, max_peers: 2 }),
        (|sb| sb.peers[5].bitmap_index = 1, MetaError::SharedBitmapSlot { slot: 1, first: 1, second: 5 }),
        (|sb| sb.peers[0].bitmap_index = 0, MetaError::OwnBitmapSlot(0)),
    ];
    for (change, error) in cases {
        let mut super_block = sample();
        change(&mut super_block);
        assert_eq!(SuperBlock::decode(&encoded(&super_block)), Err(error));
    }
    let block = encoded(&sample());
    assert_eq!(SuperBlock::decode(&block[1..]), Err(MetaError::Length(4095)));
    for (raw, id) in [(32i32, 32), (-2, -2)] {
        let mut block = block;
        block[92..96].copy_from_slice(&raw.to_be_bytes());
        assert_eq!(SuperBlock::decode(&block), Err(MetaError::NodeId(id)));
    }
    assert_eq!(SuperBlockV08::decode(&block), Err(MetaError::Format(Format::V09)));
}

#[test]
fn meta_superblock_detect_knows_the_formats() {
    assert_eq!(detect(&[]), Format::None);
    assert_eq!(detect(&[0; MD_BLOCK_SIZE]), Format::None);
    assert_eq!(detect(&[1; MD_BLOCK_SIZE]), Format::Unknown);
    let mut v07 = [0; MD_BLOCK_SIZE];
    v07[28..32].copy_from_slice(&MAGIC_V07.to_be_bytes());
    assert_eq!(detect(&v07), Format::V07);
    assert_eq!(SuperBlock::decode(&v07), Err(MetaError::Format(Format::V07)));
}

#[test]
fn meta_superblock_slot_is_the_lowest_unused() {
    let mut super_block = sample();
    super_block.bm_max_peers = 3;
    assert_eq!(super_block.assign_slot(1), Ok(1));
    assert_eq!(super_block.assign_slot(7), Ok(0));
    assert_eq!(super_block.assign_slot(3), Ok(2));
    assert_eq!(super_block.assign_slot(4), Err(SlotError::NoFreeSlot(3)));
    assert_eq!(super_block.assign_slot(0), Err(SlotError::OwnNode(0)));
    assert_eq!(super_block.assign_slot(32), Err(SlotError::NodeId(32)));
    super_block.forget_peer(1).unwrap();
    assert_eq!(super_block.assign_slot(4), Ok(1));
}

#[test]
fn meta_superblock_forgotten_peer_gets_the_day0_uuid() {
    let mut super_block = sample();
    super_block.peers[0].bitmap_uuid = 0x77;
    super_block.peers[2].bitmap_index = 0;
    for node_id in 3..32 {
        super_block.peers[node_id].bitmap_uuid = 0xa68e_54fc_90b7_6f45;
    }
    super_block.forget_peer(1).unwrap();
    let forgotten = PeerMd { bitmap_uuid: 0xa68e_54fc_90b7_6f45, ..PeerMd::UNUSED };
    assert_eq!(super_block.peers[1], forgotten);
    assert_eq!(super_block.forget_peer(32), Err(SlotError::NodeId(32)));
}

#[test]
fn meta_superblock_uuid_set_is_that_of_get_gi() {
    let text = "7979960B60D0F25A:0000000000000011:0000000000000007:0000000000000007:";
    assert_eq!(sample().uuid_set(1).to_string(), text);
    assert_eq!(sample().uuid_set(200).bitmap, 0);
}

/// The block of which each 512 bytes are those of `new` where the mask has a bit, else those of `old`.
fn torn(old: &SuperBlock, new: &SuperBlock, mask: u8) -> SuperBlock {
    let (mut block, new) = (encoded(old), encoded(new));
    for (nr, (to, from)) in block.chunks_mut(512).zip(new.chunks(512)).enumerate() {
        if mask >> nr & 1 == 1 {
            to.copy_from_slice(from);
        }
    }
    SuperBlock::decode(&block).expect("one of two valid ones, whatever the rest is")
}

proptest! {
    /// While only node ids 0 to 11 are in use, a super block that was torn at 512 bytes is the old or the new one, but for its
    /// history, which is all of one or all of the other. So a tear shows nothing that an earlier or a later loss of power would
    /// not have shown, except a history that lacks the newest entry or is ahead by it.
    #[test]
    fn meta_superblock_torn_at_512_bytes_is_old_or_new(
        old in any_super_block(), new in any_super_block(), mask in any::<u8>(),
    ) {
        let with_low_ids_only = |mut sb: SuperBlock| {
            sb.peers[12..].fill(PeerMd::UNUSED);
            sb
        };
        let (old, new) = (with_low_ids_only(old), with_low_ids_only(new));
        let found = torn(&old, &new, mask);
        let head = if mask & 1 == 1 { &new } else { &old };
        let history = if mask >> 2 & 1 == 1 { &new } else { &old };
        prop_assert_eq!(found, SuperBlock { history_uuids: history.history_uuids, ..head.clone() });
    }
}

/// Why higher node ids are refused where sectors are small: what is known of node 12 lies on both sides of the first boundary.
#[test]
fn meta_superblock_torn_at_512_bytes_mixes_what_is_known_of_node_12() {
    let old = sample();
    let mut new = sample();
    new.current_uuid = 0x99;
    new.peers[12] = PeerMd { bitmap_uuid: 0x33, bitmap_dagtag: 0, flags: PeerFlags::FULL_SYNC, bitmap_index: 0 };
    let found = torn(&old, &new, 1);
    assert_eq!((found.current_uuid, found.peers[12].bitmap_uuid), (0x99, 0x33));
    assert_eq!((found.peers[12].flags, found.slot_of(12)), (PeerFlags::empty(), None));
}
