//! Connecting, the initial full sync, roles, refusals.

use zea_core::config::NetOptions;
use zea_core::io::{Command, IoError};
use zea_meta::placement::Placement;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::world::{World, node_id};
use zea_wire::state::{ConnState, DiskState, Role};

#[test]
fn sim_fresh_nodes_connect_inconsistent() {
    for nodes in [2, 3, 4] {
        let w = Cluster::new(nodes).start();
        for ix in 0..nodes {
            assert_eq!(w.disk(ix), DiskState::Inconsistent, "{}", w.summary());
            assert_eq!(w.role(ix), Role::Secondary);
        }
    }
}

#[test]
fn sim_promote_needs_force_on_fresh_data() {
    let mut w = Cluster::new(2).start();
    let refused = w.command(0, Command::Promote { force: false });
    assert_eq!(refused.expect_err("no data is UpToDate").code, -2);
    assert_eq!(w.role(0), Role::Secondary);
}

#[test]
fn sim_initial_full_sync_of_three_nodes() {
    let cluster = Cluster::new(3);
    let mut w = cluster.build();
    w.preset(0, V0, 0, 32_000);
    for ix in 0..3 {
        w.start(ix);
    }
    w.expect("connections", World::all_connected);
    w.must(0, Command::Promote { force: true });
    w.settle();
    for ix in 1..3 {
        w.refresh(ix);
        let received = w.nodes[ix].peer_device(0, V0).expect("a peer device").received_sectors;
        assert!(received >= 32_768, "node {ix} received {received} sectors");
    }
}

#[test]
fn sim_writes_go_on_during_the_initial_sync() {
    let mut w = Cluster::new(3).start();
    w.must(0, Command::Promote { force: true });
    for round in 0..200 {
        w.write_ok(0, (round * 7919) % 32_000, 8);
    }
    w.settle();
}

#[test]
fn sim_several_volumes_and_odd_sizes() {
    for placement in [Placement::Internal, Placement::FlexExternal] {
        let cluster = Cluster { volume_sectors: vec![2_049, 64 * 8 * 33 + 5, 12_345], placement, ..Cluster::new(3) };
        let mut w = cluster.synced();
        for volume in [0, 1, 2].map(zea_wire::ids::VolumeNr) {
            let size = w.nodes[0].device(volume).expect("a volume").size_sectors;
            let last = w.submit(0, volume, zea_core::io::Op::Write, size - 3, 3, false);
            assert_eq!(w.wait(last), Ok(()));
            let beyond = w.submit(0, volume, zea_core::io::Op::Read, size - 1, 2, false);
            assert_eq!(w.wait(beyond), Err(IoError::Invalid));
        }
        w.settle();
    }
}

#[test]
fn sim_role_changes_back_and_forth() {
    let mut w = Cluster::new(3).synced();
    for round in 0..6 {
        let (old, new) = (round % 3, (round + 1) % 3);
        w.write_ok(old, 8 * round as u64, 8);
        w.must(old, Command::Demote);
        let late = w.write(old, 0, 8);
        assert_eq!(w.wait(late), Err(IoError::NotPrimary));
        w.must(new, Command::Promote { force: false });
        w.read_ok(new, 0, 64);
    }
    w.settle();
}

#[test]
fn sim_both_promote_at_once_and_one_wins() {
    for seed in 0..20 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        w.must(0, Command::Demote);
        let tags: Vec<_> = [1, 2].map(|ix| w.admin(ix, Command::Promote { force: false })).into();
        w.expect("both answers", |w| tags.iter().all(|t| w.replies.contains_key(t)));
        let won = tags.iter().filter(|t| w.replies[*t].is_ok()).count();
        assert_eq!(won, 1, "seed {seed}\n{}", w.summary());
        let primaries = (0..3).filter(|ix| w.role(*ix) == Role::Primary).count();
        assert_eq!(primaries, 1, "seed {seed}");
        w.settle();
    }
}

#[test]
fn sim_second_primary_is_refused() {
    let mut w = Cluster::new(2).synced();
    let refused = w.command(1, Command::Promote { force: false });
    assert_eq!(refused.expect_err("node 0 is Primary").code, -1);
}

#[test]
fn sim_graceful_disconnect_and_connect() {
    let mut w = Cluster::new(2).synced();
    w.write_ok(0, 0, 8);
    w.must(1, Command::Disconnect { peer: node_id(0), force: false });
    assert_eq!(w.conn(1, 0), ConnState::StandAlone);
    w.expect("node 0 tries again", |w| w.conn(0, 1) == ConnState::Connecting);
    w.write_ok(0, 8, 8);
    w.must(1, Command::Connect { peer: node_id(0), discard_my_data: false });
    w.settle();
}

#[test]
fn sim_down_and_up_again() {
    let mut w = Cluster::new(2).synced();
    w.write_ok(0, 0, 8);
    w.must(1, Command::Down);
    assert!(w.nodes[1].attached.is_empty(), "Down closes the disks");
    w.write_ok(0, 64, 8);
    w.crash(1, zea_sim::faults::Crash::Process);
    w.start(1);
    w.settle();
}

pub(crate) fn net(change: impl FnOnce(&mut NetOptions)) -> NetOptions {
    let mut net = NetOptions::default();
    change(&mut net);
    net
}

/// Node 1 has other options than node 0; the nodes do not connect and both say why.
pub(crate) fn refused_with(zero: NetOptions, one: NetOptions) -> World {
    let mut w = Cluster::new(2).build();
    w.checks.protocol_errors_expected = true;
    w.nodes[0].saved.peers[0].net = zero;
    w.nodes[1].saved.peers[0].net = one;
    w.start(0);
    w.start(1);
    assert!(!w.run_until(World::all_connected, 20_000), "they connect\n{}", w.summary());
    for ix in 0..2 {
        w.refresh(ix);
        let reason = w.nodes[ix].connection(1 - ix).and_then(|c| c.last_error.clone());
        assert!(reason.is_some(), "node {ix} gives no reason\n{}", w.summary());
    }
    w
}

#[test]
fn sim_protocols_have_to_match() {
    let b = net(|n| n.protocol = zea_core::config::Protocol::B);
    let w = refused_with(NetOptions::default(), b);
    assert_eq!((w.conn(0, 1), w.conn(1, 0)), (ConnState::StandAlone, ConnState::StandAlone));
}

#[test]
fn sim_a_wrong_node_id_is_refused() {
    let mut w = Cluster::new(3).build();
    w.checks.protocol_errors_expected = true;
    // Node 1 believes to be node 2.
    w.nodes[1].saved.resource.node_id = node_id(2);
    w.nodes[1].saved.peers.retain(|p| p.node_id == node_id(0));
    w.start(0);
    w.start(1);
    assert!(!w.run_until(|w| w.conn(0, 1) == ConnState::Connected, 10_000));
    w.refresh(0);
    assert!(w.nodes[0].connection(1).is_some_and(|c| c.last_error.is_some()), "{}", w.summary());
}

#[test]
fn sim_a_disk_that_is_too_small_is_refused() {
    let cluster = Cluster::new(2);
    let mut w = cluster.synced();
    w.write_ok(0, 0, 8);
    w.crash(1, zea_sim::faults::Crash::Process);
    let small = cluster.disk(16_000);
    w.nodes[1].disks.insert(V0, small);
    w.start(1);
    assert!(!w.run_until(World::all_connected, 20_000), "{}", w.summary());
    for ix in 0..2 {
        w.refresh(ix);
        assert!(w.nodes[ix].connection(1 - ix).is_some_and(|c| c.last_error.is_some()), "node {ix}\n{}", w.summary());
    }
    assert_eq!(w.disk(0), DiskState::UpToDate);
}

#[test]
fn sim_the_same_seed_gives_the_same_trace() {
    let hash = |seed| {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        w.settle();
        w.trace.hash()
    };
    assert_eq!(hash(3), hash(3));
    assert_ne!(hash(3), hash(4));
}

fn kernel_like(nodes: usize) -> Cluster {
    let mut cluster = Cluster::new(nodes);
    cluster.net.keep_bits = false;
    cluster
}

/// Kernels compare data on the connection that is up: they do not make it anew.
#[test]
fn sim_a_peer_like_a_kernel_is_resynced_on_the_same_connection() {
    let mut w = kernel_like(2).start();
    let link = w.net.live_link(0, 1);
    w.must(0, Command::Promote { force: true });
    for round in 0..100 {
        w.write_ok(0, (round * 7919) % 32_000, 8);
    }
    w.settle();
    assert_eq!(w.disk(1), DiskState::UpToDate, "{}", w.summary());
    assert_eq!(w.net.live_link(0, 1), link, "the peer was connected again");
}

/// Kernels ignore bits at equal generations: before a Primary compares with one that lacks something it has begun the next.
#[test]
fn sim_what_a_peer_like_a_kernel_lost_in_a_crash_is_resynced() {
    for seed in 0..10 {
        let mut w = Cluster { seed, ..kernel_like(2) }.synced();
        w.write_ok(0, 0, 64);
        w.crash(1, Crash::Power);
        w.start(1);
        w.settle();
    }
}

#[test]
fn sim_the_initial_sync_of_fresh_disks_can_be_skipped() {
    for cluster in [Cluster::new(3), kernel_like(3)] {
        let mut w = cluster.start();
        w.must(0, Command::NewCurrentUuid { volume: V0 });
        w.expect("UpToDate disks", |w| (0..3).all(|ix| w.disk(ix) == DiskState::UpToDate));
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            assert_eq!((w.out_of_sync(a, b), w.out_of_sync(b, a)), (0, 0), "nodes {a} and {b}");
        }
        w.must(1, Command::Promote { force: false });
        w.write_ok(1, 100, 8);
        w.settle();
        let again = w.command(1, Command::NewCurrentUuid { volume: V0 });
        again.expect_err("the disks are not fresh any more");
    }
}

/// What was written meanwhile is missing there, whoever of both wanted to be alone.
#[test]
fn sim_a_secondary_that_parts_from_a_primary_like_a_kernel_is_outdated() {
    for (who, peer) in [(0, 1), (1, 0)] {
        let mut w = kernel_like(2).synced();
        w.must(who, Command::Disconnect { peer: node_id(peer), force: false });
        w.expect("an Outdated disk", |w| w.disk(1) == DiskState::Outdated);
        w.write_ok(0, 100, 8);
        assert!(w.command(1, Command::Promote { force: false }).is_err(), "an Outdated disk was promoted");
        w.must(who, Command::Connect { peer: node_id(peer), discard_my_data: false });
        w.settle();
        assert_eq!(w.disk(1), DiskState::UpToDate);
    }
}

#[test]
fn sim_bitmaps_travel_as_they_are_without_run_lengths() {
    let mut cluster = Cluster::new(2);
    cluster.net.use_rle = false;
    let mut w = cluster.synced();
    w.must(0, Command::Disconnect { peer: node_id(1), force: false });
    for round in 0..50 {
        w.write_ok(0, (round * 7919) % 32_000, 8);
    }
    w.must(0, Command::Connect { peer: node_id(1), discard_my_data: false });
    w.settle();
}

#[test]
fn sim_a_peer_that_is_lost_while_it_is_asked_to_part_is_parted_from() {
    let mut w = Cluster::new(2).synced();
    w.half_open(0, 1);
    w.must(1, Command::Disconnect { peer: node_id(0), force: false });
    assert_eq!(w.conn(1, 0), ConnState::StandAlone);
    w.run_ms(5_000);
    assert_eq!(w.conn(1, 0), ConnState::StandAlone, "{}", w.summary());
    w.must(1, Command::Connect { peer: node_id(0), discard_my_data: false });
    w.settle();
}
