//! Section 1: handshake and connection set-up.

use zea_core::config::NetOptions;
use zea_core::io::Command;
use zea_sim::faults::Crash;
use zea_sim::rng::Stream;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::{World, node_id};
use zea_wire::ids::VolumeNr;
use zea_wire::state::{ConnState, DiskState, Role};

use super::{connect, disconnect, promote, write_blocks};
use crate::connect::{net, refused_with};

/// H1: nodes without volumes connect, stay so, change roles and part in peace.
#[test]
fn sim_h1_nodes_connect_without_volumes() {
    for nodes in 2..=5 {
        let mut w = Cluster { volume_sectors: Vec::new(), ..Cluster::new(nodes) }.start();
        for round in 0..3 {
            let (a, b) = (round % nodes, (round + 1) % nodes);
            promote(&mut w, a);
            w.must(a, Command::Demote);
            w.must(a, Command::Disconnect { peer: node_id(b), force: false });
            w.expect("the peer waits for it", |w| w.conn(b, a) == ConnState::Connecting);
            w.must(a, Command::Connect { peer: node_id(b), discard_my_data: false });
            w.expect("they connect", World::all_connected);
        }
        for _ in 0..300 {
            w.run_ms(100);
            assert!(w.all_connected(), "{}", w.summary());
        }
        w.settle();
    }
}

/// H2: commands in any order, repeated and out of place, are answered, and harm nothing.
#[test]
fn sim_h2_commands_in_any_order_are_answered() {
    for seed in 0..20 {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        let mut rng = Stream::new(seed, "h2");
        let (peer, volume) = (node_id(0), V0);
        let mut refused = 0;
        for _ in 0..40 {
            let command = match rng.below(9) {
                0 => Command::AddPeer(w.nodes[1].saved.peers[0].clone()),
                1 => Command::RemovePeer { peer },
                2 => Command::Connect { peer, discard_my_data: false },
                3 => Command::Disconnect { peer, force: rng.chance(500) },
                4 => Command::AddVolume(w.nodes[1].saved.volumes[0].clone()),
                5 => Command::RemoveVolume { volume },
                6 => Command::Attach { volume, backing: w.nodes[1].disks[&V0].backing() },
                7 => Command::Detach { volume, force: rng.chance(500) },
                _ => Command::Down,
            };
            refused += u32::from(w.command(1, command).is_err());
            w.run_ms(rng.below(300));
        }
        assert!(refused > 5, "seed {seed}: only {refused} were out of place");
        w.crash(1, Crash::Process);
        w.start(1);
        w.write_ok(0, 0, 8);
        w.settle();
    }
}

/// H4: crossed connects with random delays, many times: always one link, no conflict for good.
#[test]
fn sim_h4_simultaneous_connect_from_both_sides() {
    for seed in 0..30 {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        for round in 0..5 {
            disconnect(&mut w, 0, 1);
            w.admin(round % 2, Command::Connect { peer: node_id(1 - round % 2), discard_my_data: false });
            w.run_ms(round as u64 * 7);
            w.admin(1 - round % 2, Command::Connect { peer: node_id(round % 2), discard_my_data: false });
            w.expect("they connect", World::all_connected);
        }
        w.settle();
    }
}

/// H5: only nodes with the same secret and algorithm connect; who is refused stands alone and says why.
#[test]
fn sim_h5_authentication_matrix() {
    let secret = |alg: &str, text: &str| net(|n| (n.cram_hmac_alg, n.shared_secret) = (Some(alg.into()), text.into()));
    let (good, none) = (secret("sha256", "one"), NetOptions::default());
    for other in [secret("sha256", "two"), secret("sha1", "one"), none] {
        for (zero, one) in [(good.clone(), other.clone()), (other.clone(), good.clone())] {
            refused_with(zero, one);
        }
    }
    for alg in ["sha1", "sha256"] {
        Cluster { net: secret(alg, "same"), ..Cluster::new(3) }.synced().settle();
    }
}

/// H8: the connection breaks during the handshake, at any instant, in a triangle: the other connections are unaffected and
/// the next attempt succeeds.
#[test]
fn sim_h8_connection_breaks_during_the_handshake() {
    let mut w = Cluster::new(3).synced();
    for delay_us in (0..60_000).step_by(1_500) {
        w.reset_link(1, 2);
        w.expect("both notice", |w| w.is_apart(1, 2));
        let limit = w.now + delay_us * 1_000;
        while w.step(limit) {}
        w.reset_link(1, 2);
        w.expect("they connect again", |w| w.is_connected(1, 2));
        assert!(w.is_connected(0, 1) && w.is_connected(0, 2), "{}", w.summary());
    }
    w.settle();
}

/// H9: two connects through a third node at once, with its answers held back: both come to an end.
#[test]
fn sim_h9_two_connects_at_once_through_a_third_node() {
    for seed in 0..12 {
        for middle in 0..3 {
            let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
            let (a, b) = ((middle + 1) % 3, (middle + 2) % 3);
            disconnect(&mut w, middle, a);
            disconnect(&mut w, middle, b);
            w.slow_stream(middle, a, 1, 20 + seed * 20);
            for (from, to) in [(middle, a), (a, middle), (middle, b), (b, middle)] {
                w.admin(from, Command::Connect { peer: node_id(to), discard_my_data: false });
            }
            w.expect("both connect", World::all_connected);
            w.slow_stream(middle, a, 1, 1);
            w.settle();
        }
    }
}

/// H10: a prepare of another transaction overtakes a commit that comes through a third node.
#[test]
fn sim_h10_a_prepare_arrives_before_the_commit() {
    for seed in 0..12 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        w.must(0, Command::Demote);
        w.part(0, 2);
        w.slow_stream(1, 2, 1, 100);
        w.heal(0, 2);
        let promoted = w.admin(0, Command::Promote { force: false });
        w.expect("node 0 is Primary", |w| w.replies.contains_key(&promoted));
        assert_eq!(w.replies[&promoted], Ok(()));
        w.slow_stream(1, 2, 1, 1);
        w.expect("they connect", World::all_connected);
        w.run_ms(1_000);
        w.checkpoint();
        w.write_ok(0, 0, 8);
        w.settle();
    }
}

/// H11: a node that is asked hears nothing more of it in time: nothing stays locked, later transactions work.
#[test]
fn sim_h11_a_transaction_times_out_on_the_passive_side() {
    let mut timed_out = 0;
    for events in (0..60).step_by(3) {
        let cluster = Cluster::new(3);
        let mut w = cluster.build();
        w.nodes.iter_mut().for_each(|n| n.saved.resource.twopc_timeout_ms = 1_000);
        cluster.bring_up(&mut w);
        w.must(0, Command::Demote);
        let tag = w.admin(0, Command::Promote { force: false });
        for _ in 0..events {
            w.step(u64::MAX);
        }
        w.stall(0, 1);
        w.run_ms(4_000);
        timed_out += u32::from(!w.replies.contains_key(&tag));
        w.unstall(0, 1);
        w.expect("node 0 answers", |w| w.replies.contains_key(&tag));
        w.expect("they are together", World::all_connected);
        w.run_ms(1_000);
        w.checkpoint();
        if w.role(0) == Role::Primary {
            w.must(0, Command::Demote);
        }
        promote(&mut w, 1);
        w.write_ok(1, 0, 8);
        w.settle();
    }
    assert!(timed_out > 0, "nothing was held back in time");
}

/// H12: connects, disconnects and role changes on all nodes at once end, and leave no circle of waiters.
#[test]
fn sim_h12_random_stress_of_two_phase_commits() {
    for seed in 0..15 {
        let nodes = 3 + seed as usize % 2;
        let mut w = Cluster { seed, ..Cluster::new(nodes) }.synced();
        let mut rng = Stream::new(seed, "h12");
        for _ in 0..120 {
            let ix = rng.below(nodes as u64) as usize;
            let peer = node_id((ix + 1 + rng.below(nodes as u64 - 1) as usize) % nodes);
            w.admin(
                ix,
                match rng.below(6) {
                    0 => Command::Promote { force: false },
                    1 => Command::Demote,
                    2 => Command::Disconnect { peer, force: rng.chance(300) },
                    _ => Command::Connect { peer, discard_my_data: false },
                },
            );
            w.run_ms(rng.below(40));
        }
        w.expect("everything is answered", |w| w.nodes.iter().all(|n| n.admin.is_empty()));
        for ix in 0..nodes {
            w.must(ix, Command::Demote);
        }
        for (a, b) in (0..nodes).flat_map(|a| (a + 1..nodes).map(move |b| (a, b))) {
            connect(&mut w, a, b);
        }
        w.expect("they connect", World::all_connected);
        w.run_ms(10_000);
        if (0..nodes).all(|ix| w.disk(ix) == DiskState::Outdated) {
            // Each was outdated for another one that was Primary out of its sight: somebody has to say that the data is good.
            w.must(0, Command::Promote { force: true });
        }
        w.settle();
    }
}

/// H13: a resync on another connection ends just while UUIDs are exchanged: both ends decide alike.
#[test]
fn sim_h13_uuids_change_between_send_and_receive() {
    for step in 0..40 {
        let mut w = Cluster { seed: step, ..Cluster::new(3) }.synced();
        w.isolate(2);
        write_blocks(&mut w, 0, 0..20);
        w.heal(0, 2);
        w.expect("the resync begins", |w| w.nodes[2].target_of.contains_key(&V0));
        let limit = w.now + step * 500_000;
        while w.step(limit) {}
        w.heal(1, 2);
        w.settle();
    }
}

/// H14: a promotion while UUIDs travel slowly: no deadlock, and the new generation reaches the peer.
#[test]
fn sim_h14_a_promotion_during_a_handshake() {
    for (seed, promoted) in (0..20).zip([0, 1].into_iter().cycle()) {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        w.must(0, Command::Demote);
        disconnect(&mut w, 0, 1);
        w.slow_stream(1 - promoted, promoted, 0, 200);
        for ix in 0..2 {
            w.admin(ix, Command::Connect { peer: node_id(1 - ix), discard_my_data: false });
        }
        w.run_ms(10 + seed * 3);
        promote(&mut w, promoted);
        w.write_ok(promoted, 0, 8);
        w.slow_stream(1 - promoted, promoted, 0, 1);
        w.settle();
        assert_eq!(w.generation(0), w.generation(1));
    }
}

/// H15: disks of different sizes, the smallest one's node Primary before it connects: everybody takes its size.
#[test]
fn sim_h15_disks_of_different_sizes() {
    for order in super::ORDERS {
        let cluster = Cluster::new(3);
        let mut w = cluster.build();
        for (ix, sectors) in [(0, 16_000), (1, 32_768), (2, 24_000)] {
            w.nodes[ix].disks.insert(V0, cluster.disk(sectors));
            w.nodes[ix].saved.unconnected = w.others(ix).collect();
            w.start(ix);
        }
        w.expect("node 0 is up", |w| w.disk(0) == DiskState::Inconsistent);
        w.must(0, Command::Promote { force: true });
        w.write_ok(0, 800, 8);
        for pair in order.map(|nr| [(0, 1), (0, 2), (1, 2)][nr]) {
            connect(&mut w, pair.0, pair.1);
            w.run_ms(200);
        }
        w.settle();
        let sizes: Vec<u64> = w.nodes.iter().map(|n| n.device(V0).expect("a volume").size_sectors).collect();
        assert!(sizes.iter().all(|s| *s == sizes[0] && (16_000..24_000).contains(s)), "{sizes:?}");
    }
}

/// H16: a volume is added node by node while the nodes are connected, then gets its disks: it is synced by itself.
#[test]
fn sim_h16_a_volume_is_added_node_by_node() {
    const V1: VolumeNr = VolumeNr(1);
    for order in super::ORDERS {
        let mut w = Cluster { volume_sectors: vec![32_768, 8_192], ..Cluster::new(3) }.build();
        let added = w.nodes[0].saved.volumes[1].clone();
        for ix in 0..3 {
            w.nodes[ix].saved.volumes.truncate(1);
            w.start(ix);
        }
        w.expect("they connect", World::all_connected);
        w.must(0, Command::Promote { force: true });
        w.write_ok(0, 0, 8);
        w.expect("volume 0 is in sync", |w| w.mutually_in_sync(0, 1, V0) && w.mutually_in_sync(0, 2, V0));
        for ix in order {
            // Volumes are added while no I/O is in flight.
            w.run_ms(1_000);
            w.must(ix, Command::AddVolume(added.clone()));
            w.write_ok(0, 8, 8);
        }
        for ix in order {
            let backing = w.nodes[ix].disks[&V1].backing();
            w.must(ix, Command::Attach { volume: V1, backing });
        }
        w.must(0, Command::Promote { force: true });
        w.settle();
    }
}

/// H20: a peer that froze, or one direction that is blocked, is noticed within ping-int and ping-timeout; load on a slow link
/// is no reason.
#[test]
fn sim_h20_a_frozen_peer_is_noticed_in_time() {
    let freezes: [fn(&mut World); 3] = [|w| w.pause(1), |w| w.stall(0, 1), |w| w.stall(1, 0)];
    for freeze in freezes {
        let mut w = Cluster::new(2).synced();
        freeze(&mut w);
        let begin = w.now;
        w.expect("node 0 notices", |w| w.conn(0, 1) != ConnState::Connected);
        let ms = (w.now - begin) / 1_000_000;
        assert!(ms <= 11_000, "noticed after {ms} ms");
        w.resume(1);
        w.heal(0, 1);
        w.settle();
    }
    let mut slow = Cluster { disk_latency_ns: 5_000_000, ..Cluster::new(2) };
    slow.links.latency_ns = 50_000_000;
    let mut w = slow.synced();
    let end = w.now + 30_000_000_000;
    w.under_load_until(Mix { depth: 32, ..Mix::default() }, |w| w.now >= end || !w.is_connected(0, 1));
    assert!(w.is_connected(0, 1), "a slow peer is taken for a dead one\n{}", w.summary());
    w.settle();
}

/// H21: nothing of an old session reaches a new one, with acks and marks under way at every loss.
#[test]
fn sim_h21_nothing_of_an_old_session_reaches_a_new_one() {
    for seed in 0..6 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        for round in 0..25 {
            w.under_load(3 + round % 7, Mix { flushes: 200, ..Mix::default() });
            let (a, b) = [(0, 1), (0, 2), (1, 2)][round as usize % 3];
            w.reset_link(a, b);
            w.under_load(40 + round * 3, Mix { depth: 4, gap_ns: 2_000_000, ..Mix::default() });
        }
        w.settle();
    }
}

/// H22: a link ends in the middle of a packet: that is a loss of the connection and nothing else.
#[test]
fn sim_h22_a_link_ends_in_the_middle_of_a_packet() {
    for seed in 0..6 {
        let mut cluster = Cluster { seed, ..Cluster::new(2) };
        cluster.links.split_per_mille = 1_000;
        let mut w = cluster.synced();
        for round in 0..20 {
            w.under_load(2 + round % 3, Mix::default());
            w.reset_link(0, 1);
            w.run_ms(20 + round * 11);
        }
        w.settle();
    }
}

/// H24: meta data with fewer slots than there are peers with disks: the attach is refused, and so is a peer too many.
#[test]
fn sim_h24_fewer_bitmap_slots_than_peers() {
    let one_slot = || Cluster::new(2).disk(32_768);
    let cluster = Cluster::new(3);
    let mut w = cluster.build();
    w.nodes[1].disks.insert(V0, one_slot());
    w.start(1);
    w.run_ms(1_000);
    assert_eq!(w.disk(1), DiskState::Diskless, "{}", w.summary());
    assert!(w.nodes[1].boot_errors.iter().any(|e| e.contains("bitmap slot")), "{:?}", w.nodes[1].boot_errors);
    // The other order: the disk first, then a peer that has no slot left.
    let mut w = cluster.build();
    w.nodes[1].disks.insert(V0, one_slot());
    let third = w.nodes[1].saved.peers.pop().expect("two peers");
    w.start(1);
    w.expect("the disk is up", |w| w.disk(1) == DiskState::Inconsistent);
    let refused = w.command(1, Command::AddPeer(third.clone())).expect_err("there is no slot for it");
    assert!(refused.message.contains("bitmap slot"), "{refused}");
    let without_disk = zea_core::config::PeerConfig { net: net(|n| n.bitmap = false), ..third };
    w.must(1, Command::AddPeer(without_disk));
}
