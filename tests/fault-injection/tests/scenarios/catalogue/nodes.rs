//! Section 9: many nodes, roles, nodes that are replaced.

use zea_core::config::{NetOptions, PeerConfig};
use zea_core::io::Command;
use zea_sim::faults::Crash;
use zea_sim::rng::Stream;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::{World, node_id};
use zea_wire::state::{DiskState, Role};

use super::{FULL, ORDERS, apart, connect, promote, write_blocks};

/// M1: the Primary moves around quickly.
#[test]
fn sim_m1_the_primary_moves_around_quickly() {
    let mut w = Cluster::new(4).synced();
    for round in 0..20 {
        let to = (round * 3 + 1) % 4;
        let from = (0..4).find(|ix| w.role(*ix) == Role::Primary).expect("somebody is Primary");
        w.must(from, Command::Demote);
        promote(&mut w, to);
        w.write_ok(to, 8 * round as u64, 8);
    }
    w.settle();
}

/// M3: a Primary at one end of a chain: the far node is behind while it writes, and UpToDate after it is demoted.
#[test]
fn sim_m3_a_primary_at_one_end_of_a_chain() {
    let mut w = Cluster::new(3).synced();
    w.part(0, 2);
    for round in 0..3 {
        write_blocks(&mut w, 0, round * 10..round * 10 + 5);
        w.run_ms(500);
        assert_ne!(w.disk(2), DiskState::UpToDate, "it does not get the writes\n{}", w.summary());
        w.must(0, Command::Demote);
        w.expect("the far node is UpToDate", |w| w.disk(2) == DiskState::UpToDate && w.mutually_in_sync(1, 2, V0));
        w.checkpoint();
        promote(&mut w, 0);
    }
    w.heal(0, 2);
    w.settle();
}

/// M4: a node without good data is made Primary by force, and sees a good node through a third one only: that stays UpToDate.
#[test]
fn sim_m4_an_incapable_primary_outdates_nobody() {
    let mut w = Cluster { diskless: [1].into(), ..Cluster::new(3) }.synced();
    w.must(0, Command::Demote);
    w.part(0, 2);
    w.part(0, 1);
    w.detach(0);
    w.heal(0, 1);
    w.expect("node 0 sees node 1", |w| w.is_connected(0, 1));
    let _ = w.command(0, Command::Promote { force: true });
    w.run_ms(2_000);
    assert_eq!(w.disk(2), DiskState::UpToDate, "{}", w.summary());
}

/// M5: a role change with a node that has just died silently ends in time.
#[test]
fn sim_m5_a_promotion_with_a_node_that_died_silently() {
    let mut w = Cluster::new(3).synced();
    w.must(0, Command::Demote);
    w.crash(2, Crash::Power);
    let begin = w.now;
    promote(&mut w, 1);
    assert!((w.now - begin) / 1_000_000 <= 60_000, "it takes too long");
    w.start(2);
    w.settle();
}

/// M6: after a demotion nobody writes meta data any more.
#[test]
fn sim_m6_no_meta_data_is_written_after_a_demotion() {
    let mut w = Cluster::new(3).synced();
    w.under_load(30, Mix::default());
    w.expect("the load ends", World::is_idle);
    w.must(0, Command::Demote);
    w.run_ms(5_000);
    let meta = |w: &World| -> Vec<Vec<u8>> {
        let disks = w.nodes.iter().map(|n| &n.disks[&V0]);
        disks
            .map(|d| d.meta_bytes(d.data_sectors() * 512, d.backing().meta_size_bytes - d.data_sectors() * 512))
            .collect()
    };
    let before = meta(&w);
    w.run_ms(60_000);
    assert!(meta(&w) == before);
    w.settle();
}

/// M7: a node gets a new disk, or leaves and another one takes its place: everything is synced to it, and it claims nothing
/// before.
#[test]
fn sim_m7_a_node_is_replaced() {
    for new_id in [false, true] {
        let cluster = Cluster::new(4);
        let mut w = apart(&cluster);
        w.must(0, Command::Promote { force: true });
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            connect(&mut w, a, b);
        }
        write_blocks(&mut w, 0, 0..10);
        w.expect("three are in sync", |w| w.mutually_in_sync(0, 1, V0) && w.mutually_in_sync(1, 2, V0));
        w.crash(2, Crash::Process);
        w.expect("node 2 is gone", |w| w.is_apart(0, 2) && w.is_apart(1, 2));
        write_blocks(&mut w, 0, 10..20);
        let joins = if new_id { 3 } else { 2 };
        if new_id {
            for ix in 0..2 {
                w.must(ix, Command::Disconnect { peer: node_id(2), force: true });
                w.must(ix, Command::RemovePeer { peer: node_id(2) });
            }
        } else {
            let fresh = cluster.disk(32_768);
            w.nodes[2].disks.insert(V0, fresh);
            w.model.gave_up(2, 0);
            w.nodes[2].saved.unconnected = [3].into();
            w.start(2);
        }
        for ix in 0..2 {
            connect(&mut w, ix, joins);
        }
        w.expect("it is synced", |w| w.mutually_in_sync(0, joins, V0) && w.mutually_in_sync(1, joins, V0));
        assert!(w.received(joins, 0) + w.received(joins, 1) >= FULL);
        w.checkpoint();
    }
}

/// M7: a node gives its disk away, works without it, and gets it back: what it missed is resynced, no more.
#[test]
fn sim_m7_a_disk_goes_and_comes_back() {
    for (victim, writes) in [(0, 0), (0, 10), (1, 0), (1, 10)] {
        let mut w = Cluster::new(3).synced();
        w.run_ms(1_000);
        w.detach(victim);
        write_blocks(&mut w, 0, 0..writes);
        w.attach(victim);
        w.settle();
        let received: u64 = w.others(victim).map(|peer| w.received(victim, peer)).sum();
        assert!(received >= writes * 8 && received < FULL / 2, "node {victim}, {writes} writes: {received} sectors");
    }
}

/// M10: a node id is given once: neither a second peer nor this node itself may have it.
#[test]
fn sim_m10_the_same_node_id_twice() {
    let mut w = Cluster::new(3).synced();
    for id in [0, 1, 2] {
        let peer = PeerConfig { node_id: node_id(id), name: "again".into(), net: NetOptions::default() };
        w.command(1, Command::AddPeer(peer)).expect_err("the id is taken");
    }
    w.settle();
}

/// M11: three nodes are lost and come back in all orders, and at random.
#[test]
fn sim_m11_nodes_are_lost_and_return_in_all_orders() {
    for (nr, lost) in ORDERS.into_iter().enumerate() {
        for back in ORDERS {
            let mut w = Cluster { seed: nr as u64, ..Cluster::new(3) }.synced();
            for ix in lost {
                w.under_load(5, Mix::default());
                w.crash(ix, if (nr + ix) % 2 == 0 { Crash::Power } else { Crash::Process });
                w.run_ms(300);
            }
            for ix in back {
                w.start(ix);
                w.run_ms(200);
            }
            w.settle();
            let primary = (0..3).find(|ix| w.role(*ix) == Role::Primary);
            if primary.is_none() {
                promote(&mut w, back[0]);
            }
            w.under_load(5, Mix::default());
            w.settle();
        }
    }
}

/// M11: a walk through losses and returns, with a load that goes on wherever there is a Primary.
#[test]
fn sim_m11_a_random_walk() {
    for seed in 0..6 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        let mut rng = Stream::new(seed, "m11");
        for _ in 0..25 {
            let ix = 1 + rng.below(2) as usize;
            match rng.below(4) {
                0 => w.crash(ix, Crash::Power),
                1 => w.others(ix).for_each(|other| w.cut(ix, other)),
                2 => w.rejoin(ix),
                _ => w.start(ix),
            }
            w.under_load(2 + rng.below(20), Mix { depth: 4, gap_ns: 1_000_000, ..Mix::default() });
            w.run_ms(rng.below(2_000));
        }
        for ix in 1..3 {
            w.rejoin(ix);
            w.start(ix);
        }
        w.settle();
    }
}
