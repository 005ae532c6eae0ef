//! Peers that go away and come back: generations, bitmaps, resyncs that move only what is needed.

use zea_core::io::Command;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::{Mix, Workload};
use zea_sim::world::{World, node_id};
use zea_wire::state::{ConnState, DiskState};

fn current_uuid(w: &mut World, ix: usize) -> u64 {
    w.refresh(ix);
    w.nodes[ix].device(V0).expect("a volume").current_uuid
}

fn received(w: &mut World, ix: usize, peer: usize) -> u64 {
    w.refresh(ix);
    w.nodes[ix].peer_device(peer, V0).expect("a peer device").received_sectors
}

fn lose(w: &mut World, ix: usize, others: &[usize]) {
    for other in others {
        w.cut(ix, *other);
    }
    let others = others.to_vec();
    w.expect("the loss is noticed", move |w| others.iter().all(|o| w.conn(*o, ix) != ConnState::Connected));
    w.run_ms(500);
}

#[test]
fn sim_peer_loss_begins_a_new_generation_on_the_next_write() {
    let mut w = Cluster::new(2).synced();
    w.write_ok(0, 0, 8);
    w.run_ms(1_000);
    let before = current_uuid(&mut w, 0);
    lose(&mut w, 1, &[0]);
    assert_eq!(current_uuid(&mut w, 0) & !1, before & !1, "no write yet");
    w.write_ok(0, 8, 8);
    assert_ne!(current_uuid(&mut w, 0) & !1, before & !1);
    assert_eq!(current_uuid(&mut w, 1) & !1, before & !1);
}

#[test]
fn sim_a_bitmap_resync_moves_only_dirty_blocks() {
    let mut w = Cluster::new(2).synced();
    w.write_ok(0, 0, 8);
    w.run_ms(1_000);
    lose(&mut w, 1, &[0]);
    for block in [0, 100, 101, 2000] {
        w.write_ok(0, block * 8, 8);
    }
    w.write_ok(0, 3000 * 8 + 3, 2);
    w.run_ms(500);
    assert_eq!(w.out_of_sync(0, 1), 5 * 8);
    w.heal(0, 1);
    w.settle();
    assert_eq!(received(&mut w, 1, 0), 5 * 8, "resync of five blocks");
}

#[test]
fn sim_reconnect_without_writes_resyncs_nothing() {
    let mut w = Cluster::new(2).synced();
    w.write_ok(0, 0, 8);
    w.run_ms(2_000);
    lose(&mut w, 1, &[0]);
    w.heal(0, 1);
    w.settle();
    assert_eq!(received(&mut w, 1, 0), 0);
}

#[test]
fn sim_resync_while_writes_go_on() {
    for seed in 0..5 {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        lose(&mut w, 1, &[0]);
        for block in 0..300 {
            w.write_ok(0, block * 80, 8);
        }
        w.heal(0, 1);
        let mut load = Workload::new(seed, Mix { gap_ns: 1_000_000, ..Mix::default() }, 20, 32_000);
        let end = w.now + 200_000_000;
        while w.step(end) {
            load.step(&mut w, &Default::default());
        }
        w.settle();
    }
}

#[test]
fn sim_a_resync_survives_interruptions() {
    for seed in 0..5 {
        let mut cluster = Cluster { seed, ..Cluster::new(3) };
        cluster.disk.resync_window_sectors = 512;
        cluster.links.latency_ns = 2_000_000;
        let mut w = cluster.synced();
        lose(&mut w, 1, &[0, 2]);
        for block in 0..1500 {
            w.write(0, block * 16, 8);
            if block % 16 == 0 {
                w.run_ms(3);
            }
        }
        w.run_ms(3_000);
        for round in 0..4 {
            w.heal(0, 1);
            w.expect("the resync begins", |w| w.nodes[1].target_of.contains_key(&V0));
            w.run_ms(12 + round);
            if round % 2 == 0 {
                w.cut(0, 1)
            } else {
                w.crash(1, Crash::Power)
            }
            w.run_ms(500);
            w.start(1);
            w.run_ms(500);
        }
        w.heal(0, 1);
        w.heal(1, 2);
        w.settle();
    }
}

#[test]
fn sim_three_nodes_have_bitmaps_of_their_own() {
    let mut w = Cluster::new(3).synced();
    lose(&mut w, 1, &[0, 2]);
    for block in 0..10 {
        w.write_ok(0, block * 8, 8);
    }
    w.run_ms(1_000);
    assert_eq!((w.out_of_sync(0, 1), w.out_of_sync(0, 2)), (80, 0));
    assert_eq!(w.out_of_sync(2, 1), 80, "the other secondary marks it too");
    lose(&mut w, 2, &[0]);
    for block in 100..105 {
        w.write_ok(0, block * 8, 8);
    }
    w.run_ms(1_000);
    assert_eq!((w.out_of_sync(0, 1), w.out_of_sync(0, 2)), (120, 40));
    w.heal(0, 2);
    w.expect("node 2 is back", |w| w.mutually_in_sync(0, 2, V0));
    assert_eq!(received(&mut w, 2, 0), 40);
    w.heal(0, 1);
    w.heal(1, 2);
    w.settle();
}

#[test]
fn sim_one_away_then_the_other() {
    let mut w = Cluster::new(3).synced();
    for round in 0..4 {
        let away = 1 + round % 2;
        let other = 3 - away;
        lose(&mut w, away, &[0, other]);
        for block in 0..5 {
            w.write_ok(0, (round as u64 * 50 + block) * 8, 8);
        }
        w.heal(0, away);
        w.heal(other, away);
        w.settle();
    }
}

#[test]
fn sim_generations_in_turn_resync_in_the_right_direction() {
    // Each node in turn is the only one with the newest data.
    let mut w = Cluster::new(3).synced();
    w.must(0, Command::Demote);
    for round in 0..6 {
        let writer = round % 3;
        let (x, y) = ((writer + 1) % 3, (writer + 2) % 3);
        w.must(writer, Command::Promote { force: false });
        w.must(writer, Command::Disconnect { peer: node_id(x), force: false });
        w.must(writer, Command::Disconnect { peer: node_id(y), force: false });
        w.write_ok(writer, 800 + round as u64 * 8, 8);
        w.must(writer, Command::Demote);
        w.must(writer, Command::Connect { peer: node_id(x), discard_my_data: false });
        w.must(writer, Command::Connect { peer: node_id(y), discard_my_data: false });
        w.settle();
    }
}

#[test]
fn sim_detach_and_attach_resyncs_what_was_missed() {
    let mut w = Cluster::new(3).synced();
    w.must(1, Command::Detach { volume: V0, force: false });
    w.expect("the disk is closed", |w| w.disk(1) == DiskState::Diskless && w.nodes[1].attached.is_empty());
    for block in 0..10 {
        w.write_ok(0, block * 8, 8);
    }
    let backing = w.nodes[1].disks[&V0].backing();
    w.must(1, Command::Attach { volume: V0, backing });
    w.settle();
}

#[test]
fn sim_a_stall_is_found_by_the_keepalive() {
    for (from, to) in [(0, 1), (1, 0)] {
        let mut w = Cluster::new(2).synced();
        w.stall(from, to);
        let req = w.write(0, 0, 8);
        assert_eq!(w.wait(req), Ok(()), "the write goes on without the peer");
        assert!(w.now < 30_000_000_000, "after {} ms", w.now / 1_000_000);
        w.heal(0, 1);
        w.settle();
    }
}

#[test]
fn sim_a_paused_peer_comes_back() {
    for pause_ms in [100, 3_000, 30_000] {
        let mut w = Cluster::new(3).synced();
        w.pause(1);
        for block in 0..10 {
            w.write(0, block * 8, 8);
        }
        w.run_ms(pause_ms);
        w.resume(1);
        w.settle();
    }
}

fn keep_bits_cluster(offered_by_node_1: bool) -> World {
    let mut w = Cluster::new(3).build();
    for peer in &mut w.nodes[1].saved.peers {
        peer.net.keep_bits = offered_by_node_1;
    }
    for ix in 0..3 {
        w.start(ix);
    }
    w.expect("connections", World::all_connected);
    w.must(0, Command::Promote { force: true });
    w.settle();
    // The Primary dies with a write that node 2 has and node 1 lacks; the survivors have equal UUIDs and a bit.
    w.stall(0, 1);
    w.write(0, 80, 8);
    w.run_ms(50);
    w.crash(0, Crash::Process);
    w
}

#[test]
fn sim_bits_of_an_up_to_date_side_are_resynced_at_equal_uuids() {
    let mut w = keep_bits_cluster(true);
    w.cut(1, 2);
    w.run_ms(500);
    let bits = w.out_of_sync(2, 1) + w.out_of_sync(1, 2);
    assert!(bits > 0, "the scenario makes bits\n{}", w.summary());
    w.heal(1, 2);
    w.expect("the survivors are in sync", |w| w.mutually_in_sync(1, 2, V0));
    w.run_ms(1_000);
    w.checkpoint();
    assert_eq!(w.out_of_sync(2, 1) + w.out_of_sync(1, 2), 0);
    w.heal(0, 1);
    w.start(0);
    w.settle();
}

#[test]
fn sim_bits_that_a_kernel_peer_ignores_are_kept_and_reported() {
    let mut w = keep_bits_cluster(false);
    w.cut(1, 2);
    w.run_ms(500);
    assert!(w.out_of_sync(2, 1) > 0, "the scenario makes bits\n{}", w.summary());
    w.heal(1, 2);
    w.expect("the survivors connect", |w| w.is_connected(1, 2));
    w.run_ms(1_000);
    w.refresh(2);
    let pd = w.nodes[2].peer_device(1, V0).expect("a peer device");
    assert!(pd.out_of_sync_sectors > 0, "the bits are kept\n{}", w.summary());
    assert!(pd.unverified, "and reported");
    w.checkpoint();
}

/// A slow replica holds the peer ack of a write back until the node that missed the write has long been resynced by the Primary. The
/// others, who learn only then that it missed something, have nobody to resync it from: the Primary knows that it is complete.
#[test]
fn sim_a_peer_ack_that_comes_after_the_resync_leaves_no_bits() {
    let mut w = Cluster::new(4).synced();
    w.isolate(3);
    w.slow_disk(2, V0, 100_000);
    let write = w.write(0, 0, 8);
    w.run_ms(5);
    w.slow_disk(2, V0, 1);
    w.rejoin(3);
    w.expect("node 3 is back", |w| w.all_connected() && w.disk(3) == DiskState::UpToDate);
    w.run_ms(6_000);
    assert!(!w.outcomes.contains_key(&write), "node 2 is slow\n{}", w.summary());
    w.wait(write).expect("the write is carried out");
    w.run_ms(1_000);
    assert!(w.out_of_sync(1, 3) > 0, "the peer ack leaves a mark\n{}", w.summary());
    w.settle();
}

/// Node 0 hears from node 2, which it resyncs, that node 1 writes without it: what node 2 gets from it is no better than it is, and
/// does not make it good again.
#[test]
fn sim_what_comes_of_a_source_that_fell_behind_is_behind() {
    let mut cluster = Cluster::new(3);
    cluster.disk.resync_window_sectors = 256;
    let mut w = cluster.synced();
    w.must(0, Command::Demote);
    w.part(0, 1);
    w.slow_disk(2, V0, 300);
    w.model.gave_up(2, V0.0);
    w.must(2, Command::Invalidate { volume: V0 });
    w.expect("node 0 resyncs node 2", |w| w.nodes[2].target_of.get(&V0).is_some_and(|(source, _)| *source == 0));
    w.expect("node 2 has both", |w| w.is_connected(0, 2) && w.is_connected(1, 2));
    w.must(1, Command::Promote { force: false });
    w.expect("node 0 hears of it", |w| w.disk(0) == DiskState::Outdated);
    w.write_ok(1, 0, 8);
    w.must(1, Command::Demote);
    assert_eq!(w.disk(2), DiskState::Inconsistent, "the resync goes on");
    w.slow_disk(2, V0, 1);
    let end = w.now + 5_000_000_000;
    while w.step(end) {
        for ix in [0, 2] {
            let has_it = w.generation(ix) == w.generation(1);
            assert!(w.disk(ix) != DiskState::UpToDate || has_it, "node {ix} lacks a write\n{}", w.summary());
        }
    }
    assert_eq!(w.disk(0), DiskState::UpToDate);
    w.heal(0, 1);
    w.settle();
}

/// The only UpToDate peer has not heard of the generation that this disk has begun. It would come back as older than what is left.
#[test]
fn sim_a_disk_is_not_invalidated_before_a_peer_knows_its_generation() {
    let mut w = Cluster::new(3).synced();
    w.isolate(2);
    w.stall(0, 1);
    w.write(0, 0, 8);
    w.run_ms(20);
    assert_ne!(w.generation(0), w.generation(1));
    let refused = w.command(0, Command::Invalidate { volume: V0 });
    assert!(refused.is_err(), "no other disk has this generation\n{}", w.summary());
    w.unstall(0, 1);
    w.run_ms(100);
    w.model.gave_up(0, V0.0);
    w.must(0, Command::Invalidate { volume: V0 });
    w.rejoin(2);
    w.settle();
}

#[test]
fn sim_a_target_is_not_promoted_beside_peers_that_do_not_know_its_source() {
    let mut w = Cluster { volume_sectors: vec![65_536], ..Cluster::new(3) }.synced();
    w.must(0, Command::Demote);
    lose(&mut w, 2, &[0, 1]);
    w.must(2, Command::Promote { force: false });
    for mib in 0..16 {
        w.write_ok(2, mib * 2048, 2048);
    }
    w.must(2, Command::Demote);
    // Node 1 is UpToDate, and lacks what node 0 is getting.
    w.heal(0, 2);
    w.expect("node 0 is being resynced", |w| w.disk(0) == DiskState::Inconsistent);
    assert_eq!(w.disk(1), DiskState::UpToDate);
    let refused = w.command(0, Command::Promote { force: false }).expect_err("two generations are at hand");
    assert!(refused.message.contains("different generations"), "{}", refused.message);
    w.heal(1, 2);
    w.settle();
    w.must(0, Command::Promote { force: false });
    w.read_ok(0, 0, 2048);
}
