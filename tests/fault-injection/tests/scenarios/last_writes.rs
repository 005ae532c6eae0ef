//! What was written last when somebody takes over, or is resynced to something else.

use zea_core::config::{NetOptions, Protocol};
use zea_core::io::Command;
use zea_sim::faults::Crash;
use zea_sim::net::NetParams;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::world::node_id;
use zea_wire::state::{ConnState, DiskState, Role};

/// What the last Primary wrote and acknowledged is still in a queue when another node takes over, which must not read past it.
#[test]
fn sim_a_new_primary_reads_what_the_former_one_acknowledged() {
    let net = NetOptions { protocol: Protocol::B, ..NetOptions::default() };
    let mut w = Cluster { net, ..Cluster::new(2) }.synced();
    w.slow_disk(1, V0, 300);
    for _ in 0..20 {
        // Each in an epoch of its own, which takes a flush.
        w.write_ok(0, 0, 8);
        w.flush_ok(0);
    }
    w.crash(0, Crash::Process);
    w.expect("node 1 notices", |w| w.conn(1, 0) != ConnState::Connected);
    w.must(1, Command::Promote { force: false });
    w.read_ok(1, 0, 8);
}

/// A write comes between the request to demote the node and its commit, and does not get to the peer before the node's process dies:
/// the extent is looked at.
#[test]
fn sim_the_last_write_of_a_demoted_node_is_marked_after_a_crash() {
    let links = NetParams { latency_ns: 10_000_000, ..NetParams::default() };
    let mut tried = 0;
    for ms in 5..25 {
        let mut w = Cluster { links, ..Cluster::new(2) }.synced();
        w.write_ok(0, 0, 8);
        w.run_ms(5_000);
        w.admin(0, Command::Demote);
        w.run_ms(ms);
        if w.role(0) == Role::Secondary {
            continue;
        }
        let write = w.write(0, 8, 8);
        w.stall(0, 1);
        if !w.run_until(|w| w.role(0) == Role::Secondary, 100) {
            continue;
        }
        w.run_ms(3);
        assert!(!w.outcomes.contains_key(&write), "the peer does not have it");
        w.crash(0, Crash::Process);
        w.unstall(0, 1);
        w.expect("node 1 notices", |w| w.conn(1, 0) != ConnState::Connected);
        w.start(0);
        w.settle();
        tried += 1;
    }
    assert!(tried > 0);
}

/// Node 3 is asked to throw its data away and to follow node 0. Node 4 was not asked: it goes on with its own Primary.
#[test]
fn sim_a_follower_of_a_primary_is_not_resynced_to_other_data() {
    let mut w = Cluster::new(5).synced();
    for (a, b) in [(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)] {
        w.part(a, b);
    }
    w.expect("two halves", |w| !w.is_connected(2, 0) && !w.is_connected(3, 0) && !w.is_connected(4, 1));
    w.must(2, Command::Promote { force: true });
    w.expect("node 2 has its followers", |w| w.mutually_in_sync(2, 3, V0) && w.mutually_in_sync(2, 4, V0));
    w.write_ok(0, 0, 8);
    w.write_ok(2, 0, 8);
    w.part(3, 2);
    w.part(3, 4);
    w.expect("node 3 is alone", |w| !w.is_connected(3, 2) && !w.is_connected(3, 4));
    w.write_ok(2, 640, 8);
    w.must(3, Command::Disconnect { peer: node_id(0), force: false });
    w.model.forgive(3);
    w.must(3, Command::Connect { peer: node_id(0), discard_my_data: true });
    w.heal(0, 3);
    w.expect("node 3 follows node 0", |w| w.mutually_in_sync(0, 3, V0));
    w.heal(3, 4);
    w.run_ms(5_000);
    assert_eq!(w.disk(4), DiskState::UpToDate);
    assert!(w.mutually_in_sync(2, 4, V0));
    assert_ne!(w.conn(4, 3), ConnState::Connected);
}
