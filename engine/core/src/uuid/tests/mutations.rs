//! The own UUIDs through a node's life.

use zea_wire::flags::UuidFlags;
use zea_wire::ids::{NodeId, NodeMask};
use zea_wire::state::DiskState;

use super::{A, B, C, D, view};
use crate::uuid::{
    BitmapAction, BookkeepingContext, JUST_CREATED, MissedEnd, NO_INFORMATION, NODES, NewDatagen, NodeSlot,
    RotateContext, Uuids,
};

const RANDOM: [u64; 2] = [0x1111_2222_3333_4444, 0x5555_6666_7777_8888];

fn uuids(current: u64, bitmap: &[(usize, u64)], history: &[u64]) -> Uuids {
    let mut uuids = Uuids { current, ..Uuids::default() };
    for (node, uuid) in bitmap {
        uuids.bitmap[*node] = *uuid;
    }
    uuids.history[..history.len()].copy_from_slice(history);
    uuids
}

fn mask(nodes: &[u8]) -> NodeMask {
    nodes.iter().copied().map(NodeId).collect()
}

/// Node 0, Primary and UpToDate, all meta-data slots in use by peers 1.. with these disks.
fn rotate_context(disks: &[DiskState]) -> RotateContext {
    let mut nodes = [NodeSlot::Unconfigured { has_slot: false }; NODES];
    for (slot, disk) in nodes[1..].iter_mut().zip(disks) {
        *slot = NodeSlot::Configured { disk: *disk, has_slot: true };
    }
    RotateContext { own: NodeId(0), primary: true, up_to_date: true, nodes, free_slots: 0, dagtag: 77 }
}

#[test]
fn uuid_history_push_rule() {
    let mut u = uuids(A, &[(1, B)], &[]);
    for skipped in [0, 1, JUST_CREATED, JUST_CREATED | 1, A | 1, NO_INFORMATION] {
        u.push_history(skipped);
    }
    assert_eq!(u.history, [0; NODES]);
    u.push_history(B);
    assert_eq!(u.history[..2], [B, 0], "an empty history takes even a bitmap UUID");
    u.push_history(C);
    u.push_history(B | 1);
    u.push_history(C);
    assert_eq!(u.history[..3], [C, B, 0]);
    for uuid in 1..=40 {
        u.push_history(uuid << 8);
    }
    assert_eq!((u.history[0], u.history[31]), (40 << 8, 9 << 8));
}

#[test]
fn uuid_new_generation_when_a_peer_is_absent() {
    let cx = rotate_context(&[DiskState::DUnknown, DiskState::UpToDate]);
    let mut u = uuids(A | 1, &[], &[B]);
    let changed = u.rotate_current_into_bitmap(&cx, NodeMask::EMPTY, RANDOM).expect("needed");
    assert!(changed.contains(NodeId(1)) && !changed.contains(NodeId(2)) && !changed.contains(NodeId(0)));
    assert_eq!(u.current, RANDOM[0] | 1);
    assert_eq!((u.bitmap[1], u.bitmap_dagtag[1], u.bitmap[2]), (A | 1, 77, 0));
    assert_eq!(u.bitmap[31], A | 1, "unknown nodes miss it, too");
    assert_eq!(u.history[..2], [B, 0]);

    // Node 1 has an older bitmap UUID: nobody needs another generation, nothing changes.
    let before = u.clone();
    assert_eq!(u.rotate_current_into_bitmap(&cx, NodeMask::EMPTY, RANDOM), None);
    assert_eq!(u, before);
    // Node 2 is weak by what somebody else says.
    let changed = u.rotate_current_into_bitmap(&cx, mask(&[2]), [D, C]);
    assert_eq!(changed, Some(mask(&[2])));
    assert_eq!((u.current, u.bitmap[2], u.bitmap[1]), (D | 1, RANDOM[0] | 1, A | 1));
}

#[test]
fn uuid_no_new_generation_while_all_have_the_data() {
    let cx = rotate_context(&[DiskState::UpToDate, DiskState::Consistent]);
    let mut u = uuids(A, &[], &[B]);
    assert_eq!(u.rotate_current_into_bitmap(&cx, NodeMask::EMPTY, RANDOM), None);
    assert_eq!(u, uuids(A, &[], &[B]));

    // Day 0: the old one goes to the history.
    let mut u = uuids(A, &[], &[]);
    assert!(u.rotate_current_into_bitmap(&cx, NodeMask::EMPTY, RANDOM).is_some());
    assert_eq!((u.current, u.history[0]), (RANDOM[0] | 1, A));

    // A diskless client without a slot needs nothing; a free slot in the meta data does.
    let mut cx = rotate_context(&[]);
    cx.nodes[1] = NodeSlot::Configured { disk: DiskState::Diskless, has_slot: false };
    let mut u = uuids(A, &[], &[B]);
    assert_eq!(u.rotate_current_into_bitmap(&cx, NodeMask::EMPTY, RANDOM), None);
    cx.free_slots = 1;
    assert!(u.rotate_current_into_bitmap(&cx, NodeMask::EMPTY, RANDOM).is_some());
    assert_eq!((u.bitmap[1], u.bitmap[2]), (0, A));
}

#[test]
fn uuid_first_generation_has_a_random_predecessor() {
    let cx = rotate_context(&[DiskState::DUnknown]);
    let mut u = uuids(JUST_CREATED, &[], &[]);
    assert!(u.rotate_current_into_bitmap(&cx, NodeMask::EMPTY, RANDOM).is_some());
    assert_eq!((u.current, u.bitmap[1]), (RANDOM[0] | 1, RANDOM[1]));
    // Random numbers that name no generation are not used.
    let mut u = uuids(A, &[], &[]);
    u.rotate_current_into_bitmap(&cx, NodeMask::EMPTY, [JUST_CREATED | 1, 0]);
    assert_eq!(u.current, 1 << 63 | 1);
}

#[test]
fn uuid_weak_nodes() {
    use DiskState::*;
    let mut cx =
        rotate_context(&[UpToDate, Outdated, DUnknown, Failed, Negotiating, Inconsistent, Consistent, Diskless]);
    assert_eq!(cx.weak_nodes(), !mask(&[0, 1, 5, 6, 7]));
    cx.up_to_date = false;
    assert!(cx.weak_nodes().contains(NodeId(0)));
}

#[test]
fn uuid_receiving_a_new_generation() {
    // Node 1 is the Primary, node 2 is gone for both, node 3 is there but has bits of mine.
    let mut cx = rotate_context(&[DiskState::UpToDate, DiskState::DUnknown, DiskState::UpToDate]);
    cx.primary = false;
    let weak = !mask(&[0, 1, 3]);
    let start = uuids(A, &[(3, C)], &[D]);
    let mut u = start.clone();
    assert_eq!(u.received_new_datagen(&cx, B | 1, weak, true), NewDatagen::OfSource);
    assert_eq!(u.received_new_datagen(&cx, A | 1, weak, false), NewDatagen::Known);
    assert_eq!(u, start);

    let NewDatagen::Adopted { bitmap_changed } = u.received_new_datagen(&cx, B | 1, weak, false) else {
        panic!("adopted");
    };
    assert!(bitmap_changed.contains(NodeId(2)) && bitmap_changed.contains(NodeId(3)));
    assert!(!bitmap_changed.contains(NodeId(1)));
    assert_eq!(u.current, B, "bit 0 is by the own role");
    assert_eq!((u.bitmap[1], u.bitmap[2], u.bitmap[3]), (0, A, B | 1));
    assert_eq!(u.history[..3], [C, D, 0]);

    // Only Consistent: the data is of the old generation all the same.
    cx.up_to_date = false;
    let mut u = start;
    u.received_new_datagen(&cx, B, weak, false);
    assert_eq!((u.bitmap[2], u.history[0], u.history[1]), (A, C, D));
}

#[test]
fn uuid_resync_as_target() {
    // Source 1 at C, with bits for absent node 2 since B and none for node 3; node 4 is unknown to it.
    let mut cx = rotate_context(&[DiskState::UpToDate, DiskState::DUnknown, DiskState::UpToDate, DiskState::UpToDate]);
    cx.primary = false;
    let mut source = view(1, C | 1);
    source.bitmap = [NO_INFORMATION; NODES];
    source.bitmap[..4].copy_from_slice(&[A, 0, B, 0]);
    source.history[..2].copy_from_slice(&[B, D]);

    let mut u = uuids(A, &[(1, D), (3, D), (4, D)], &[]);
    let start = u.resync_start_target(&cx, &source);
    assert_eq!((start, u.current, u.bitmap[2]), (A, A, A));
    let outdated = u.resync_finished_target(&cx, &source, start, mask(&[1, 3]));
    assert_eq!(outdated, mask(&[2]));
    assert_eq!(u.current, C);
    assert_eq!(u.bitmap[..5], [0, 0, B, 0, D], "node 2 went on to B with the source");
    assert_eq!(u.history[..3], [D, 0, 0], "D came from the source, A and B are bitmap UUIDs");

    // It is this node that knows the later generation of the absent one.
    let mut u = uuids(A, &[(2, D)], &[B]);
    u.resync_finished_target(&cx, &source, A, mask(&[1, 3]));
    assert_eq!(u.bitmap[2], D);

    // The node that was absent is at the source's generation by now.
    let mut u = uuids(A, &[], &[]);
    u.resync_finished_target(&cx, &source, A, mask(&[2]));
    assert_eq!(u.bitmap[2], 0);
    assert_eq!(u.history[..4], [A, B, D, 0]);
}

#[test]
fn uuid_resync_back_to_an_older_generation_forgets_the_newer_one() {
    // Invalidated at C, with bits for node 2 since B, and resynced from node 1, which is at B: C is nothing that B is newer than.
    let mut cx = rotate_context(&[DiskState::UpToDate, DiskState::DUnknown]);
    cx.primary = false;
    let mut source = view(1, B);
    source.history[0] = A;
    let mut u = uuids(C, &[(1, C), (2, B)], &[A]);
    u.resync_finished_target(&cx, &source, C, mask(&[1]));
    assert_eq!(u.current, B);
    assert_eq!(u.history[..2], [A, 0]);
}

#[test]
fn uuid_initial_sync_can_be_continued() {
    let cx = rotate_context(&[DiskState::UpToDate]);
    let mut source = view(1, C);
    source.bitmap[0] = B;
    let mut u = uuids(JUST_CREATED, &[], &[]);
    assert_eq!(u.resync_start_target(&cx, &source), JUST_CREATED);
    assert_eq!(u.current, B | 1);
    source.bitmap[0] = 0;
    let mut u = uuids(JUST_CREATED, &[], &[]);
    u.resync_start_target(&cx, &source);
    assert_eq!(u.current, JUST_CREATED);
}

#[test]
fn uuid_retired_bitmap_uuid_is_history() {
    let mut u = uuids(B, &[(1, A)], &[C]);
    u.retire_bitmap_uuid(NodeId(1));
    assert_eq!((u.bitmap[1], u.history[0], u.history[1]), (0, A, C));
    let after = u.clone();
    u.retire_bitmap_uuid(NodeId(1));
    assert_eq!(u, after);
}

/// Node 0 and the peer 1 in a handshake at generation `resolved_current`; 2 and 3 are absent.
fn bookkeeping(resolved_current: u64, sent_bitmap_uuid: u64) -> BookkeepingContext {
    BookkeepingContext {
        own: NodeId(0),
        agreed_version: 124,
        handshake: true,
        resolved_current,
        being_synced: false,
        sent_bitmap_uuid,
        dirty_bits: 0,
        connected: mask(&[1]),
        busy: NodeMask::EMPTY,
        slots: mask(&[1, 2, 3]),
    }
}

#[test]
fn uuid_bookkeeping_of_missed_ends() {
    let mut peer = view(1, B);
    peer.bitmap[0] = A;
    let mut u = uuids(B, &[], &[]);
    // The peer missed it: nothing to do here; without bits there is nothing to tell either.
    let mut cx = bookkeeping(B, 0);
    assert_eq!(u.detect_finished_resyncs(&cx, &peer).missed_end, MissedEnd::None);
    cx.agreed_version = 123;
    assert_eq!(u.detect_finished_resyncs(&cx, &peer).missed_end, MissedEnd::Peer);
    peer.dirty_bits = 1;
    cx.agreed_version = 124;
    assert_eq!(u.detect_finished_resyncs(&cx, &peer).missed_end, MissedEnd::Peer);
    assert_eq!(u, uuids(B, &[], &[]));

    // I missed it.
    let peer = view(1, B);
    let mut u = uuids(B, &[(1, A)], &[]);
    let mut cx = bookkeeping(B, A);
    cx.dirty_bits = 1;
    assert_eq!(u.detect_finished_resyncs(&cx, &peer).missed_end, MissedEnd::Own);
    assert_eq!(u.bitmap[1], A);
    cx.dirty_bits = 0;
    let result = u.detect_finished_resyncs(&cx, &peer);
    assert_eq!((result.changed, result.missed_end), (true, MissedEnd::None));
    assert_eq!((u.bitmap[1], u.history[0]), (0, A));
}

#[test]
fn uuid_bookkeeping_of_ended_resyncs() {
    // Established, equal, in sync with everybody: all bitmap UUIDs go, and the bits of other nodes.
    let mut cx = bookkeeping(C, 0);
    cx.handshake = false;
    let peer = view(1, C | 1);
    let start = uuids(C, &[(1, A), (2, B), (4, D)], &[]);
    let mut u = start.clone();
    let result = u.detect_finished_resyncs(&cx, &peer);
    assert!(result.changed);
    assert_eq!(result.actions, [BitmapAction::Clear(NodeId(2))], "node 4 has no slot");
    assert_eq!(u.bitmap, [0; NODES]);
    assert_eq!(u.history[..4], [D, B, A, 0]);

    // Not so for a node in a resync with me, one the peer says nothing about, or while somebody is being synced.
    let mut u = start.clone();
    let mut silent = peer.clone();
    silent.bitmap[4] = NO_INFORMATION;
    let busy = BookkeepingContext { busy: mask(&[1, 2]), ..cx };
    let result = u.detect_finished_resyncs(&busy, &silent);
    assert_eq!((u.bitmap[1], u.bitmap[2], u.bitmap[4]), (0, B, D));
    assert!(result.actions.is_empty());
    let mut u = start.clone();
    let mut syncing = peer.clone();
    syncing.flags = UuidFlags::SYNC_TARGET;
    let result = u.detect_finished_resyncs(&cx, &syncing);
    assert!(!result.changed && u == start);
    let being_synced = BookkeepingContext { being_synced: true, ..cx };
    assert!(!u.detect_finished_resyncs(&being_synced, &peer).changed);
}

#[test]
fn uuid_bookkeeping_copies_slots() {
    // The peer is at B, where node 3 was; it is in sync with node 2, which I have at A, from before.
    let cx = bookkeeping(C, 0);
    let mut peer = view(1, B);
    peer.bitmap[3] = NO_INFORMATION;
    let mut u = uuids(C, &[(2, A), (3, B)], &[]);
    (u.bitmap_dagtag[2], u.bitmap_dagtag[3]) = (5, 6);
    let mut older = u.clone();
    let copy = |from, to| BitmapAction::Copy { from: NodeId(from), to: NodeId(to) };
    let result = u.detect_finished_resyncs(&cx, &peer);
    assert_eq!(result.actions, [copy(3, 2)]);
    assert_eq!((u.bitmap[2], u.bitmap_dagtag[2], u.history[0]), (B, 6, A));
    older.bitmap_dagtag[3] = 5;
    assert!(!older.detect_finished_resyncs(&cx, &peer).changed);

    // The peer has 2 and 3 at the same generation, and so have I by that.
    let mut peer = view(1, D);
    (peer.bitmap[2], peer.bitmap[3]) = (B, B);
    let mut u = uuids(C, &[(2, A), (3, B)], &[]);
    let result = u.detect_finished_resyncs(&cx, &peer);
    assert_eq!(result.actions, [copy(3, 2)]);
    assert_eq!(u.bitmap[2], B);
    let connected = BookkeepingContext { connected: mask(&[1, 2]), ..cx };
    let mut u = uuids(C, &[(2, A), (3, B)], &[]);
    assert!(!u.detect_finished_resyncs(&connected, &peer).changed);
}
