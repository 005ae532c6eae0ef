//! Writes, protocols, epochs, flushes, acks.

use zea_core::config::Protocol;
use zea_core::io::{Command, Op};
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::{Mix, Workload};
use zea_sim::world::World;

fn with_protocol(nodes: usize, protocol: Protocol) -> World {
    let mut cluster = Cluster::new(nodes);
    cluster.net.protocol = protocol;
    cluster.synced()
}

fn under_load(w: &mut World, ms: u64, mix: Mix) {
    let size = w.nodes[0].device(V0).expect("a volume").size_sectors;
    let mut load = Workload::new(w.seed, mix, 12, size);
    let end = w.now + ms * 1_000_000;
    load.step(w, &Default::default());
    while w.step(end) {
        load.step(w, &Default::default());
    }
}

#[test]
fn sim_load_with_each_protocol() {
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        for (depth, ms) in [(1, 60), (32, 5)] {
            let mut w = with_protocol(3, protocol);
            under_load(&mut w, ms, Mix { depth, ..Mix::default() });
            w.checkpoint();
            w.settle();
            assert!(w.model.writes() > 50, "{protocol:?} {depth}: {} writes", w.model.writes());
        }
    }
}

#[test]
fn sim_protocol_c_waits_for_the_peer() {
    let mut w = with_protocol(2, Protocol::C);
    w.stall(1, 0);
    let req = w.write(0, 0, 8);
    w.run_ms(2_000);
    assert!(!w.outcomes.contains_key(&req), "completed without the ack of the peer");
    w.unstall(1, 0);
    assert_eq!(w.wait(req), Ok(()));
}

#[test]
fn sim_protocol_a_does_not_wait() {
    let mut w = with_protocol(2, Protocol::A);
    w.stall(1, 0);
    let req = w.write(0, 0, 8);
    w.run_ms(100);
    assert!(w.outcomes.contains_key(&req));
    w.unstall(1, 0);
    w.settle();
}

#[test]
fn sim_overlapping_writes_end_equal_everywhere() {
    for seed in 0..10 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        let reqs: Vec<_> = (0..64).map(|n| w.write(0, n % 5, 8)).collect();
        for req in reqs {
            assert_eq!(w.wait(req), Ok(()));
        }
        w.settle();
    }
}

#[test]
fn sim_a_flush_covers_every_replica() {
    for seed in 0..10 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        for block in 0..20 {
            w.write_ok(0, block * 8, 8);
        }
        w.flush_ok(0);
        for ix in 0..3 {
            w.crash(ix, Crash::Power);
        }
        w.start(1);
        w.run_ms(1_000);
        w.must(1, Command::Promote { force: false });
        for block in 0..20 {
            w.read_ok(1, block * 8, 8);
        }
    }
}

#[test]
fn sim_fua_covers_every_replica() {
    let mut w = Cluster::new(2).synced();
    for block in 0..20 {
        let req = w.submit(0, V0, Op::Write, block * 8, 8, true);
        assert_eq!(w.wait(req), Ok(()));
    }
    w.crash(0, Crash::Power);
    w.crash(1, Crash::Power);
    w.start(1);
    w.run_ms(1_000);
    w.must(1, Command::Promote { force: false });
    w.read_ok(1, 0, 160);
}

#[test]
fn sim_peer_acks_release_the_secondaries() {
    // The activity log of seven extents would be full for good if nobody released it.
    let mut cluster = Cluster { volume_sectors: vec![40 * 8192], ..Cluster::new(3) };
    cluster.disk.al_extents = 7;
    let mut w = cluster.synced();
    for round in 0..120 {
        w.write_ok(0, (round * 8192 * 3) % (40 * 8192 - 8), 8);
    }
    w.run_ms(2_000);
    for (a, b) in [(1, 2), (2, 1), (0, 1), (0, 2)] {
        assert_eq!(w.out_of_sync(a, b), 0, "bits of node {a} towards node {b}");
    }
    w.settle();
}

#[test]
fn sim_the_activity_log_is_bounded_under_random_load() {
    let mut cluster = Cluster { volume_sectors: vec![64 * 8192], ..Cluster::new(2) };
    cluster.disk.al_extents = 7;
    let mut w = cluster.synced();
    under_load(&mut w, 200, Mix { hot: 0, depth: 16, ..Mix::default() });
    w.settle();
}
