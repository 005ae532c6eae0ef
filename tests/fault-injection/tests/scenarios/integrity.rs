//! data-integrity-alg: data that change on their way are not written, whoever they are for.

use zea_core::config::NetOptions;
use zea_core::io::{Command, IoError};
use zea_sim::scenario::Cluster;
use zea_sim::workload::Mix;
use zea_sim::world::{World, node_id};
use zea_wire::digest::DigestAlg;
use zea_wire::state::{ConnState, DiskState};

fn options(integrity_alg: Option<DigestAlg>) -> NetOptions {
    NetOptions { integrity_alg, ..NetOptions::default() }
}

/// Zea's nodes, and those of 8.4: with Zea's private feature and without.
fn dialects() -> [NetOptions; 3] {
    let new = options(Some(DigestAlg::Crc32c));
    let old = NetOptions { protocol_max: 101, ..options(Some(DigestAlg::Sha1)) };
    [new, old.clone(), NetOptions { keep_bits: false, ..old }]
}

fn pair(net: NetOptions) -> World {
    let mut w = Cluster { net, ..Cluster::new(2) }.synced();
    w.checks.protocol_errors_expected = true;
    w
}

/// Node `ix` ended the connection for a wrong digest, once.
fn noticed(w: &World, ix: usize) -> bool {
    w.nodes[ix].notices.iter().filter(|notice| notice.contains("digest of")).count() == 1
}

#[test]
fn sim_v5_a_write_that_changed_on_its_way_is_not_written() {
    for net in dialects() {
        let mut w = pair(net);
        w.write_ok(0, 0, 64);
        w.damage_next_data(0, 1);
        w.write_ok(0, 128, 64);
        w.expect("the link was given up", |w| noticed(w, 1));
        w.settle();
        w.under_load(100, Mix::default());
        w.settle();
    }
}

#[test]
fn sim_v5_resync_data_that_changed_on_its_way_is_not_written() {
    for net in dialects() {
        let mut w = pair(net);
        w.isolate(1);
        w.write_ok(0, 0, 512);
        w.damage_next_data(0, 1);
        w.rejoin(1);
        w.expect("the link was given up", |w| noticed(w, 1));
        w.settle();
    }
}

#[test]
fn sim_v5_a_read_that_changed_on_its_way_is_not_served() {
    let mut w = pair(options(Some(DigestAlg::Md5)));
    w.write_ok(0, 0, 64);
    w.detach(0);
    w.damage_next_data(1, 0);
    let read = w.read(0, 0, 64);
    assert_eq!(w.wait(read), Err(IoError::Io));
    assert!(noticed(&w, 0), "{:?}", w.nodes[0].notices);
    w.attach(0);
    w.settle();
}

/// Without it the checks of the simulator see what happens.
#[test]
#[should_panic(expected = "durability")]
fn sim_v5_nobody_else_notices() {
    let mut w = pair(options(None));
    w.damage_next_data(0, 1);
    w.write_ok(0, 128, 64);
    w.settle();
}

#[test]
fn sim_v5_both_must_have_the_same() {
    for protocol_max in [101, 124] {
        let mut w = Cluster::new(2).build();
        for (ix, alg) in [(0, Some(DigestAlg::Crc32c)), (1, None)] {
            for peer in w.nodes[ix].saved.peers.iter_mut() {
                peer.net = NetOptions { protocol_max, ..options(alg) };
            }
        }
        for ix in [0, 1] {
            w.start(ix);
        }
        let refused = |w: &World, ix: usize, why: &str| {
            w.conn(ix, 1 - ix) == ConnState::StandAlone && w.nodes[ix].notices.iter().any(|n| n.contains(why))
        };
        w.expect("refused by both, with the reason", |w| {
            refused(w, 0, "data-integrity-alg is crc32c here and not set there")
                && refused(w, 1, "data-integrity-alg is not set here and crc32c there")
        });
        w.set_net_options(1, 0, NetOptions { protocol_max, ..options(Some(DigestAlg::Crc32c)) });
        for ix in [0, 1] {
            w.must(ix, Command::Connect { peer: node_id(1 - ix), discard_my_data: false });
        }
        w.expect("connections", World::all_connected);
    }
}

/// What is changed while nodes are connected counts from the next connection on.
#[test]
fn sim_v5_a_change_counts_when_they_connect_again() {
    let mut w = pair(options(None));
    let alg = options(Some(DigestAlg::Sha256));
    for ix in [0, 1] {
        w.set_net_options(ix, 1 - ix, alg.clone());
    }
    w.write_ok(0, 0, 64);
    w.reset_link(0, 1);
    w.settle();
    w.damage_next_data(0, 1);
    w.write_ok(0, 128, 64);
    w.expect("the link was given up", |w| noticed(w, 1));
    w.settle();
    assert_eq!(w.disk(1), DiskState::UpToDate);
    w.write_ok(0, 0, 8);
}
