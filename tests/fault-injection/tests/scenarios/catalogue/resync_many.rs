//! Section 2, three and more nodes: whose data goes where.

use zea_core::io::Command;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::World;
use zea_wire::state::DiskState;

use super::{FULL, ORDERS, promote, write_blocks};

/// A cluster in which node 0 is Primary and the others left one after the other, the highest first, so that each lower one
/// has ten blocks more.
fn generations(cluster: Cluster) -> World {
    let mut w = cluster.synced();
    for ix in (1..w.nodes.len()).rev() {
        w.isolate(ix);
        write_blocks(&mut w, 0, 10 * ix as u64..10 * ix as u64 + 10);
        w.run_ms(1_000);
    }
    w.must(0, Command::Demote);
    w
}

/// R3: a chain is closed from the oldest generation on, then to a ring: each step moves what it must, the last one no
/// more than what is still marked (ADR 0002).
#[test]
fn sim_r3_generations_in_a_chain() {
    let mut w = generations(Cluster::new(4));
    for (newer, older) in [(2, 3), (1, 2), (0, 1)] {
        w.heal(newer, older);
        w.expect("the older one is synced", |w| w.mutually_in_sync(newer, older, V0));
        let received = w.received(older, newer);
        assert!((80..=3 * 80).contains(&received), "node {older} received {received} sectors from node {newer}");
    }
    w.expect("the wave reaches the end", |w| w.mutually_in_sync(2, 3, V0) && w.mutually_in_sync(1, 2, V0));
    w.run_ms(5_000);
    w.heal(0, 3);
    w.expect("the ring is closed", |w| w.mutually_in_sync(0, 3, V0));
    assert!(w.received(3, 0) + w.received(0, 3) <= 3 * 80);
    w.heal(0, 2);
    w.heal(1, 3);
    w.settle();
}

/// R4: the ends of a chain that is being synced are joined: no block is skipped.
#[test]
fn sim_r4_the_ends_of_a_syncing_chain_are_joined() {
    for seed in 0..12 {
        let mut cluster = Cluster { seed, ..Cluster::new(3) };
        cluster.disk.resync_window_sectors = 16;
        let mut w = generations(cluster);
        w.heal(0, 1);
        w.heal(1, 2);
        w.run_ms(30 + seed * 2);
        w.heal(0, 2);
        w.settle();
    }
}

/// The three links are healed in this order, so many ms apart, and everything comes to rest.
fn heal_one_by_one(w: &mut World, order: [usize; 3], pause_ms: u64) {
    for (a, b) in order.map(|nr| [(0, 1), (0, 2), (1, 2)][nr]) {
        w.heal(a, b);
        w.run_ms(pause_ms);
    }
    w.settle();
}

/// R5: three generations meet in every order, at once or after each other.
#[test]
fn sim_r5_generations_meet_in_every_order() {
    for order in ORDERS {
        for pause_ms in [0, 30, 5_000] {
            let mut w = generations(Cluster::new(3));
            heal_one_by_one(&mut w, order, pause_ms);
        }
    }
}

/// R6: a source becomes target itself: its own target gets the new blocks too.
#[test]
fn sim_r6_a_source_becomes_target() {
    for seed in 0..10 {
        let mut cluster = Cluster { seed, ..Cluster::new(3) };
        cluster.disk.resync_window_sectors = 16;
        let mut w = generations(cluster);
        w.heal(1, 2);
        w.expect("node 1 syncs node 2", |w| w.nodes[2].target_of.contains_key(&V0));
        w.run_ms(seed);
        w.heal(0, 1);
        w.expect("node 0 syncs node 1", |w| w.mutually_in_sync(0, 1, V0));
        w.expect("node 1 syncs node 2 again", |w| w.mutually_in_sync(1, 2, V0));
        w.heal(0, 2);
        w.settle();
    }
}

/// Both secondaries missed the same blocks, and node 2 is slow.
fn two_targets(seed: u64) -> World {
    let mut cluster = Cluster { seed, ..Cluster::new(3) };
    cluster.disk.resync_window_sectors = 64;
    let mut w = cluster.synced();
    w.isolate(1);
    w.isolate(2);
    write_blocks(&mut w, 0, 0..300);
    w.slow_disk(2, V0, 50);
    w.rejoin(1);
    w.rejoin(2);
    w.expect("node 1 is synced first", |w| w.mutually_in_sync(0, 1, V0));
    assert_eq!(w.disk(2), DiskState::Inconsistent, "{}", w.summary());
    w
}

/// R7: the source dies when one of its two targets is ready: the other one goes on from that.
#[test]
fn sim_r7_a_target_switches_its_source() {
    for seed in 0..6 {
        let mut w = two_targets(seed);
        w.crash(0, Crash::Process);
        w.slow_disk(2, V0, 1);
        w.expect("node 1 syncs node 2", |w| w.mutually_in_sync(1, 2, V0));
        w.start(0);
        w.settle();
    }
}

/// R8: two targets of one source clear their bits towards each other, and who is ready does not mark the other Outdated.
#[test]
fn sim_r8_two_targets_of_one_source() {
    for seed in 0..6 {
        let mut w = two_targets(seed);
        w.slow_disk(2, V0, 1);
        w.expect("node 2 is synced", |w| w.mutually_in_sync(0, 2, V0));
        assert_eq!(w.disk(1), DiskState::UpToDate);
        w.settle();
        assert_eq!(w.out_of_sync(1, 2) + w.out_of_sync(2, 1), 0);
        assert_eq!(w.received(2, 1) + w.received(1, 2), 0, "everything came from node 0");
    }
}

/// R9: two nodes that are both behind a third one meet in every order.
#[test]
fn sim_r9_a_resync_between_two_stale_nodes() {
    for order in ORDERS {
        for pause_ms in [0, 50, 5_000] {
            let mut w = Cluster::new(3).synced();
            w.isolate(1);
            w.isolate(2);
            write_blocks(&mut w, 0, 0..30);
            heal_one_by_one(&mut w, order, pause_ms);
        }
    }
}

/// R26: the Primary dies with two secondaries at different positions: they end equal, by what it had not heard acks of.
#[test]
fn sim_r26_survivors_of_a_primary_reconcile() {
    for seed in 0..20 {
        let ahead = 1 + seed as usize % 2;
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        w.under_load(20, Mix::default());
        w.stall(0, 3 - ahead);
        for block in 0..10 {
            w.write(0, 6_400 + block * 64, 8);
        }
        w.run_ms(20);
        w.crash(0, if seed % 3 == 0 { Crash::Power } else { Crash::Process });
        w.expect("the survivors notice", |w| w.is_apart(0, 1) && w.is_apart(0, 2));
        w.expect("the survivors reconcile", |w| w.mutually_in_sync(1, 2, V0));
        w.run_ms(5_000);
        w.checkpoint();
        let moved = w.received(1, 2) + w.received(2, 1);
        assert!(moved < FULL / 2, "seed {seed}: {moved} sectors were moved");
        assert_eq!(w.out_of_sync(1, 2) + w.out_of_sync(2, 1), 0);
        promote(&mut w, 3 - ahead);
        w.heal(0, 3 - ahead);
        w.start(0);
        w.settle();
    }
}

/// R27: peer acks keep the bitmaps of secondaries towards each other clean.
#[test]
fn sim_r27_peer_acks_keep_secondaries_clean() {
    let mut w = Cluster::new(3).synced();
    for _ in 0..10 {
        w.under_load(30, Mix { reads: 0, ..Mix::default() });
        w.run_ms(1_000);
        assert_eq!(w.out_of_sync(1, 2) + w.out_of_sync(2, 1), 0);
        w.part(1, 2);
        w.heal(1, 2);
        w.expect("they are in sync", |w| w.mutually_in_sync(1, 2, V0));
        assert_eq!(w.received(1, 2) + w.received(2, 1), 0);
    }
    w.settle();
}

/// R28: bits on both sides at equal UUIDs are resynced, not dropped.
#[test]
fn sim_r28_bits_on_both_sides_at_equal_uuids() {
    let mut on_both = 0;
    for seed in 0..20 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        w.under_load(20, Mix { reads: 0, depth: 16, ..Mix::default() });
        w.crash(0, Crash::Process);
        w.cut(1, 2);
        w.expect("the survivors are alone", |w| w.is_apart(0, 1) && w.is_apart(0, 2) && w.is_apart(1, 2));
        w.run_ms(500);
        assert_eq!(w.generation(1), w.generation(2));
        on_both += u32::from(w.out_of_sync(1, 2) > 0 && w.out_of_sync(2, 1) > 0);
        w.heal(1, 2);
        w.expect("they are in sync", |w| w.mutually_in_sync(1, 2, V0));
        w.run_ms(5_000);
        w.checkpoint();
        assert_eq!(w.out_of_sync(1, 2) + w.out_of_sync(2, 1), 0);
        w.start(0);
        w.settle();
    }
    assert!(on_both >= 5, "only {on_both} times both had bits");
}

/// R29: a disk is put back to an older snapshot, data and meta data: it is known as older and resynced, not as unrelated.
#[test]
fn sim_r29_a_disk_goes_back_to_an_older_snapshot() {
    for generations in 1..4 {
        let mut w = Cluster::new(3).synced();
        write_blocks(&mut w, 0, 0..10);
        w.flush_ok(0);
        w.settle();
        let snapshot = w.nodes[1].disks[&V0].clone();
        for round in 0..generations {
            w.isolate(2);
            write_blocks(&mut w, 0, 20 + round..21 + round);
            w.rejoin(2);
            w.settle();
        }
        w.must(1, Command::Down);
        w.crash(1, Crash::Process);
        w.nodes[1].disks.insert(V0, snapshot);
        w.model.gave_up(1, 0);
        w.start(1);
        w.settle();
        let received = w.received(1, 0) + w.received(1, 2);
        assert!(received >= generations * 8, "{generations} generations: {received} sectors");
    }
}
