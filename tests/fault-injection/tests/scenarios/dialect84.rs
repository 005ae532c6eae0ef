//! The 8.4 dialect: two nodes whose agreed version is 101.

use zea_core::config::{NetOptions, Protocol};
use zea_core::io::{Command, Op};
use zea_meta::{Format, PEER_ARRAY_LEN, PeerMd, SuperBlock, detect};
use zea_sim::disk::{Disk, DiskFaults};
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::world::{World, node_id};
use zea_wire::state::{ConnState, DiskState, Role};

/// Two nodes that offer at most 101; `kernel`: without Zea's private feature.
fn pair(kernel: bool) -> Cluster {
    Cluster { net: NetOptions { protocol_max: 101, keep_bits: !kernel, ..NetOptions::default() }, ..Cluster::new(2) }
}

/// What node 0 and node 1 agreed on.
fn version(w: &mut World) -> u32 {
    w.refresh(0);
    w.nodes[0].status.connections[0].version
}

fn received(w: &mut World, ix: usize, peer: usize) -> u64 {
    w.refresh(ix);
    w.nodes[ix].peer_device(peer, V0).expect("a peer device").received_sectors
}

#[test]
fn sim_84_initial_full_sync_without_a_second_connection() {
    for kernel in [false, true] {
        let cluster = pair(kernel);
        let mut w = cluster.build();
        w.preset(0, V0, 0, 32_000);
        for ix in [0, 1] {
            w.start(ix);
        }
        w.expect("connections", World::all_connected);
        assert_eq!(version(&mut w), 101);
        w.must(0, Command::Promote { force: true });
        for round in 0..100 {
            w.write_ok(0, (round * 7919) % 32_000, 8);
        }
        w.settle();
        assert!(received(&mut w, 1, 0) >= 32_768);
        let dropped = w.nodes[1].notices.iter().filter(|n| n.contains("connection to node0")).count();
        assert_eq!(
            dropped, 0,
            "the forced promotion is compared on the connection that is up: {:?}",
            w.nodes[1].notices
        );
    }
}

#[test]
fn sim_84_a_node_of_9_and_one_of_84_agree_on_101() {
    let mut w = Cluster::new(2).build();
    for peer in w.nodes[1].saved.peers.iter_mut() {
        peer.net.protocol_max = 101;
    }
    for ix in [0, 1] {
        w.start(ix);
    }
    w.expect("connections", World::all_connected);
    assert_eq!(version(&mut w), 101);
    w.must(0, Command::Promote { force: true });
    w.write_ok(0, 0, 64);
    w.settle();
}

#[test]
fn sim_84_is_for_two_nodes() {
    let mut w = Cluster::new(3).build();
    w.checks.protocol_errors_expected = true;
    for peer in w.nodes[2].saved.peers.iter_mut() {
        peer.net.protocol_max = 101;
    }
    for ix in 0..3 {
        w.start(ix);
    }
    w.expect("the old node is refused", |w| {
        w.conn(0, 2) == ConnState::StandAlone && w.conn(1, 2) == ConnState::StandAlone
    });
    assert!(w.is_connected(0, 1) || w.run_until(|w| w.is_connected(0, 1), 10_000));
}

#[test]
fn sim_84_writes_of_every_kind_and_protocol() {
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        let mut cluster = pair(true);
        cluster.net.protocol = protocol;
        let mut w = cluster.synced();
        for round in 0..50 {
            w.write_ok(0, round * 128, 8 + round);
            let op = match round % 3 {
                0 => Op::Discard,
                1 => Op::WriteZeroes { unmap: false },
                _ => Op::WriteZeroes { unmap: true },
            };
            let zeroes = w.submit(0, V0, op, round * 64, 16, false);
            let fua = w.submit(0, V0, Op::Write, 20_000 + round * 8, 8, true);
            assert_eq!((w.wait(zeroes), w.wait(fua)), (Ok(()), Ok(())), "protocol {protocol:?}");
            w.flush_ok(0);
        }
        w.read_ok(0, 0, 2048);
        w.settle();
    }
}

#[test]
fn sim_84_a_flush_covers_the_peer() {
    let mut w = pair(false).synced();
    let writes: Vec<_> = (0..20).map(|n| w.write(0, n * 64, 8)).collect();
    for write in writes {
        assert_eq!(w.wait(write), Ok(()));
    }
    w.flush_ok(0);
    w.crash(1, Crash::Power);
    w.start(1);
    w.settle();
}

#[test]
fn sim_84_bitmap_resync_in_both_directions_moves_only_what_differs() {
    for leaver in [0, 1] {
        let mut w = pair(true).synced();
        w.must(leaver, Command::Disconnect { peer: node_id(1 - leaver), force: false });
        w.expect("apart", |w| w.conn(1 - leaver, leaver) != ConnState::Connected);
        for n in 0..10 {
            w.write_ok(0, n * 800, 8);
        }
        w.must(leaver, Command::Connect { peer: node_id(1 - leaver), discard_my_data: false });
        w.settle();
        assert_eq!(received(&mut w, 1, 0), 80);
        // And back, after the roles were swapped.
        w.must(0, Command::Demote);
        w.must(1, Command::Promote { force: false });
        w.must(leaver, Command::Disconnect { peer: node_id(1 - leaver), force: false });
        w.expect("apart", |w| w.conn(1 - leaver, leaver) != ConnState::Connected);
        w.write_ok(1, 16, 8);
        w.must(leaver, Command::Connect { peer: node_id(1 - leaver), discard_my_data: false });
        w.settle();
        assert_eq!(received(&mut w, 0, 1), 8);
    }
}

#[test]
fn sim_84_an_interrupted_resync_goes_on_from_the_bits() {
    for cuts in [1, 2, 5] {
        let mut w = pair(true).synced();
        w.must(1, Command::Disconnect { peer: node_id(0), force: false });
        for n in 0..16 {
            w.write_ok(0, n * 2048, 2048);
        }
        w.must(1, Command::Connect { peer: node_id(0), discard_my_data: false });
        for _ in 0..cuts {
            w.expect("the resync runs", |w| w.disk(1) == DiskState::Inconsistent || w.disk(1) == DiskState::UpToDate);
            w.reset_link(0, 1);
            w.expect("connected again", World::all_connected);
        }
        w.settle();
        assert!(w.nodes[0].notices.iter().all(|n| !n.contains("split brain")));
    }
}

#[test]
fn sim_84_role_changes_back_and_forth_under_load() {
    let mut w = pair(true).synced();
    for round in 0..20 {
        let (old, new) = (round % 2, (round + 1) % 2);
        let writes: Vec<_> = (0..8).map(|n| w.write(old, 64 * n, 8)).collect();
        for write in writes {
            assert_eq!(w.wait(write), Ok(()));
        }
        w.must(old, Command::Demote);
        // It is told and not asked.
        w.expect("the other one hears of it", |w| {
            w.nodes[new].connection(old).is_some_and(|c| c.role == Role::Secondary)
        });
        w.must(new, Command::Promote { force: false });
        w.read_ok(new, 0, 64);
    }
    assert_eq!(w.role(0), Role::Primary);
    w.settle();
}

#[test]
fn sim_84_both_promote_at_once_and_one_wins() {
    for seed in 0..20 {
        let mut w = Cluster { seed, ..pair(true) }.synced();
        w.must(0, Command::Demote);
        let tags: Vec<_> = [0, 1].map(|ix| w.admin(ix, Command::Promote { force: false })).into();
        w.expect("both answers", |w| tags.iter().all(|t| w.replies.contains_key(t)));
        let won = tags.iter().filter(|t| w.replies[*t].is_ok()).count();
        assert_eq!(won, 1, "seed {seed}\n{}", w.summary());
        let primaries = (0..2).filter(|ix| w.role(*ix) == Role::Primary).count();
        assert_eq!(primaries, 1, "seed {seed}");
        w.settle();
    }
}

#[test]
fn sim_84_second_primary_is_refused() {
    let mut w = pair(true).synced();
    let refused = w.command(1, Command::Promote { force: false });
    assert_eq!(refused.expect_err("node 0 is Primary").code, -1);
}

#[test]
fn sim_84_both_disconnect_at_once() {
    for seed in 0..10 {
        let mut w = Cluster { seed, ..pair(true) }.synced();
        let tags = [0, 1].map(|ix| w.admin(ix, Command::Disconnect { peer: node_id(1 - ix), force: false }));
        w.expect("both answers", |w| tags.iter().all(|t| w.replies.contains_key(t)));
        assert!(tags.iter().all(|t| w.replies[t].is_ok()));
        assert_eq!([w.conn(0, 1), w.conn(1, 0)], [ConnState::StandAlone; 2]);
    }
}

#[test]
fn sim_84_split_brain_is_refused_and_resolved_by_hand() {
    // Slow: node 0 has judged long before node 1 can.
    for (kernel, slowness) in [(false, 1), (true, 1), (true, 100)] {
        let mut w = pair(kernel).synced();
        w.checks.split_brains_expected = true;
        w.must(0, Command::Demote);
        w.must(1, Command::Disconnect { peer: node_id(0), force: false });
        w.must(0, Command::Disconnect { peer: node_id(1), force: false });
        for ix in [0, 1] {
            w.must(ix, Command::Promote { force: false });
            w.write_ok(ix, 64 * ix as u64, 8);
            w.must(ix, Command::Demote);
        }
        w.slow_stream(0, 1, 0, slowness);
        for ix in [0, 1] {
            w.must(ix, Command::Connect { peer: node_id(1 - ix), discard_my_data: false });
        }
        let judged = |w: &World, ix: usize| w.nodes[ix].notices.iter().any(|n| n.contains("split brain"));
        w.expect("both judge", |w| judged(w, 0) && judged(w, 1));
        // A close may overtake what the peer has not read: who judges first leaves the link to the other.
        assert!([w.conn(0, 1), w.conn(1, 0)].iter().all(|&conn| conn != ConnState::StandAlone));
        w.expect("refused by both", |w| [w.conn(0, 1), w.conn(1, 0)] == [ConnState::StandAlone; 2]);
        w.slow_stream(0, 1, 0, 1);
        w.must(0, Command::Connect { peer: node_id(1), discard_my_data: false });
        w.model.forgive(1);
        w.must(1, Command::Connect { peer: node_id(0), discard_my_data: true });
        w.settle();
        assert_eq!(received(&mut w, 1, 0), 16, "what either of them wrote");
    }
}

#[test]
fn sim_84_the_old_primary_resyncs_its_active_extents_only() {
    let mut w = pair(true).synced();
    w.write_ok(0, 0, 8);
    w.crash(0, Crash::Power);
    w.expect("node 1 notices", |w| w.conn(1, 0) != ConnState::Connected);
    w.must(1, Command::Promote { force: false });
    w.write_ok(1, 8, 8);
    w.start(0);
    w.settle();
    let resynced = received(&mut w, 0, 1);
    assert!((8..=8192 + 8).contains(&resynced), "{resynced} sectors");
}

#[test]
fn sim_84_the_secondary_names_the_generation_of_a_primary_without_a_disk() {
    for kernel in [false, true] {
        let mut w = pair(kernel).synced();
        let before = w.nodes[1].device(V0).expect("a volume").current_uuid & !1;
        w.write_ok(0, 0, 8);
        w.set_disk_faults(0, V0, DiskFaults::DEAD);
        w.write_ok(0, 8, 8);
        w.refresh(1);
        let named = w.nodes[1].device(V0).expect("a volume").current_uuid & !1;
        assert_ne!(named, before, "the disk that failed is of the older generation");
        w.set_disk_faults(0, V0, DiskFaults::default());
        w.expect("the disk is closed", |w| w.nodes[0].attached.is_empty());
        let backing = w.nodes[0].disks[&V0].backing();
        w.must(0, Command::Attach { volume: V0, backing });
        w.settle();
        assert_eq!(received(&mut w, 0, 1) % 8, 0);
    }
}

#[test]
fn sim_84_wrong_secret_is_refused() {
    let secret = |text: &str| NetOptions {
        protocol_max: 101,
        cram_hmac_alg: Some("sha256".into()),
        shared_secret: text.into(),
        ..NetOptions::default()
    };
    let mut w = Cluster { net: secret("right"), ..Cluster::new(2) }.synced();
    w.must(1, Command::Disconnect { peer: node_id(0), force: false });
    w.set_net_options(1, 0, secret("wrong"));
    w.must(1, Command::Connect { peer: node_id(0), discard_my_data: false });
    w.expect("refused by both", |w| [w.conn(0, 1), w.conn(1, 0)] == [ConnState::StandAlone; 2]);
}

#[test]
fn sim_84_a_target_that_finished_unheard_is_not_at_the_generation_of_later_writes() {
    for seed in 0..20 {
        let mut w = Cluster { seed, ..pair(true) }.synced();
        w.must(1, Command::Disconnect { peer: node_id(0), force: false });
        w.write_ok(0, 0, 8);
        w.must(1, Command::Connect { peer: node_id(0), discard_my_data: false });
        w.expect("the resync runs", |w| w.disk(1) == DiskState::Inconsistent);
        // The target hears everything, the source nothing more.
        w.run_ms(seed % 4);
        w.stall(1, 0);
        w.run_ms(50);
        w.reset_link(0, 1);
        w.cut(0, 1);
        w.run_ms(1_000);
        w.write_ok(0, 64, 8);
        w.refresh(0);
        w.refresh(1);
        let uuid = |w: &World, ix: usize| w.nodes[ix].device(V0).expect("a volume").current_uuid & !1;
        let good = w.disk(1) == DiskState::UpToDate;
        assert!(!good || uuid(&w, 0) != uuid(&w, 1), "seed {seed}: both say that they have everything");
        w.unstall(1, 0);
        w.heal(0, 1);
        w.settle();
    }
}

/// Of internal meta data.
fn super_block_offset(disk: &Disk) -> u64 {
    disk.params().size_sectors / 8 * 4096 - 4096
}

/// Rewrites the super block of a node that is down, as DRBD 8.4 has it.
fn make_v08(w: &mut World, ix: usize) {
    let disk = w.nodes[ix].disks.get_mut(&V0).expect("a volume");
    let offset = super_block_offset(disk);
    let sb = SuperBlock::decode(&disk.meta_bytes(offset, 4096)).expect("v09");
    let mut block = [0; 4096];
    sb.to_v08(1 - ix as u8).encode(&mut block);
    disk.format_meta(offset, &block);
}

/// Makes of it what `drbdmeta create-md` makes of a super block of 8.4: it knows no nodes, and what was said of the peer, but for its
/// UUID, is at node 0.
fn make_converted(w: &mut World, ix: usize) {
    let disk = w.nodes[ix].disks.get_mut(&V0).expect("a volume");
    let offset = super_block_offset(disk);
    let mut sb = SuperBlock::decode(&disk.meta_bytes(offset, 4096)).expect("v09");
    let flags = sb.peers[1 - ix].flags;
    (sb.node_id, sb.peers) = (None, [PeerMd::UNUSED; PEER_ARRAY_LEN]);
    sb.peers[0].flags = flags;
    let mut block = [0; 4096];
    sb.encode(&mut block);
    disk.format_meta(offset, &block);
}

/// Two nodes that were stopped in order come up with other super blocks.
fn with_super_blocks(make: impl Fn(&mut World, usize)) -> World {
    let mut w = pair(false).synced();
    w.write_ok(0, 0, 64);
    w.flush_ok(0);
    w.must(0, Command::Demote);
    for ix in [0, 1] {
        w.must(ix, Command::Down);
    }
    for ix in [0, 1] {
        w.crash(ix, Crash::Process);
        make(&mut w, ix);
        w.start(ix);
    }
    w
}

#[test]
fn sim_84_disks_that_drbdmeta_converted_are_attached_without_a_resync() {
    let mut w = with_super_blocks(make_converted);
    w.expect("connected again", World::all_connected);
    w.settle();
    for (ix, peer) in [(0, 1), (1, 0)] {
        assert_eq!(received(&mut w, ix, peer), 0);
    }
}

#[test]
fn sim_84_disks_of_84_are_attached_without_a_resync_and_stay_disks_of_84() {
    let mut w = with_super_blocks(make_v08);
    w.expect("connected again", World::all_connected);
    w.must(1, Command::Promote { force: false });
    w.write_ok(1, 64, 8);
    w.settle();
    for (ix, peer) in [(0, 1), (1, 0)] {
        assert_eq!(received(&mut w, ix, peer), if ix == 0 { 8 } else { 0 }, "only what was written");
    }
    // And a crash is told by its activity log.
    w.crash(1, Crash::Power);
    w.start(1);
    w.settle();
    for ix in [0, 1] {
        let disk = &w.nodes[ix].disks[&V0];
        assert_eq!(detect(&disk.meta_bytes(super_block_offset(disk), 4096)), Format::V08Unclean);
    }
}

/// No write follows that would begin a new generation.
#[test]
fn sim_84_what_a_secondary_lost_in_a_crash_is_resynced() {
    for seed in 0..10 {
        let mut w = Cluster { seed, ..pair(true) }.synced();
        w.write_ok(0, 0, 64);
        w.crash(1, Crash::Power);
        w.start(1);
        w.settle();
    }
}
