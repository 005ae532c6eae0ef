//! Disks that fail or fill up.

use zea_core::io::{Command, IoError};
use zea_sim::disk::DiskFaults;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::{Mix, Workload};
use zea_wire::state::{ConnState, DiskState};

const WRITES: DiskFaults = DiskFaults { reads: false, writes: true, flushes: false, meta: false, no_space: false };
const READS: DiskFaults = DiskFaults { reads: true, writes: false, flushes: false, meta: false, no_space: false };
const META: DiskFaults = DiskFaults { reads: false, writes: false, flushes: false, meta: true, no_space: false };
const FLUSHES: DiskFaults = DiskFaults { reads: false, writes: false, flushes: true, meta: false, no_space: false };
const FULL: DiskFaults = DiskFaults { reads: false, writes: false, flushes: false, meta: false, no_space: true };

#[test]
fn sim_a_primary_whose_disk_fails_goes_on_through_its_peers() {
    for faults in [WRITES, READS, META, FLUSHES, DiskFaults::DEAD] {
        let mut w = Cluster::new(3).synced();
        w.write_ok(0, 0, 64);
        w.set_disk_faults(0, V0, faults);
        // Far apart, so that the activity log has to be written too.
        for block in [0, 1, 2, 2000, 3500] {
            w.write_ok(0, block * 8, 8);
        }
        w.read_ok(0, 0, 64);
        w.flush_ok(0);
        w.expect("node 0 detaches", |w| w.disk(0) == DiskState::Diskless);
        w.write_ok(0, 80, 8);
        w.read_ok(0, 80, 8);
        w.attach(0);
        w.settle();
    }
}

#[test]
fn sim_a_disk_that_a_primary_attached_again_counts_as_in_use() {
    for seed in 0..10 {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        w.must(0, Command::Detach { volume: V0, force: false });
        w.write_ok(0, 0, 8);
        w.attach(0);
        w.settle();
        for block in 0..30 {
            w.write_ok(0, block * 8, 8);
        }
        // What the cache had is lost: without a replay of the activity log nobody would know.
        w.crash(0, zea_sim::faults::Crash::Power);
        w.start(0);
        w.settle();
    }
}

#[test]
fn sim_a_failing_disk_under_load() {
    for seed in 0..8 {
        for victim in [0, 1] {
            let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
            let mut load = Workload::new(seed, Mix { gap_ns: 2_000_000, ..Mix::default() }, 12, 32_000);
            let begin = w.now;
            for (until_ms, faults) in [(100, DiskFaults::default()), (400, DiskFaults::DEAD)] {
                w.set_disk_faults(victim, V0, faults);
                load.step(&mut w, &Default::default());
                while w.step(begin + until_ms * 1_000_000) {
                    load.step(&mut w, &Default::default());
                }
            }
            w.checkpoint();
            w.expect("the victim detaches", move |w| w.disk(victim) == DiskState::Diskless);
            w.attach(victim);
            w.settle();
        }
    }
}

#[test]
fn sim_a_secondary_whose_disk_fails_is_resynced_later() {
    for faults in [WRITES, META, DiskFaults::DEAD] {
        let mut w = Cluster::new(2).synced();
        w.write_ok(0, 0, 64);
        w.set_disk_faults(1, V0, faults);
        for block in [0, 1, 2, 2000, 3500] {
            w.write_ok(0, block * 8, 8);
        }
        w.flush_ok(0);
        w.expect("node 1 detaches", |w| w.disk(1) == DiskState::Diskless);
        w.write_ok(0, 80, 8);
        w.attach(1);
        w.settle();
    }
}

#[test]
fn sim_a_full_last_disk_makes_writes_wait_and_then_fail() {
    let mut cluster = Cluster::new(2);
    cluster.disk.enospc_wait_ms = 5_000;
    let mut w = cluster.synced();
    w.write_ok(0, 0, 8);
    w.crash(1, zea_sim::faults::Crash::Process);
    w.expect("node 0 is alone", |w| w.conn(0, 1) != ConnState::Connected);
    w.set_disk_faults(0, V0, FULL);
    let begin = w.now;
    let failed = w.write(0, 8, 8);
    assert_eq!(w.wait(failed), Err(IoError::NoSpace));
    let waited_ms = (w.now - begin) / 1_000_000;
    assert!((4_000..=8_000).contains(&waited_ms), "waited {waited_ms} ms");
    assert_eq!(w.disk(0), DiskState::UpToDate, "the last disk is never given up for lack of space");
    w.read_ok(0, 0, 8);
    let recovered = w.write(0, 16, 8);
    w.run_ms(1_000);
    w.set_disk_faults(0, V0, DiskFaults::default());
    assert_eq!(w.wait(recovered), Ok(()));
    w.start(1);
    w.settle();
}

#[test]
fn sim_a_full_disk_with_a_good_peer_goes_on() {
    for victim in [0, 1] {
        let mut w = Cluster::new(2).synced();
        w.write_ok(0, 0, 8);
        w.set_disk_faults(victim, V0, FULL);
        w.write_ok(0, 8, 8);
        w.write_ok(0, 16, 8);
        w.read_ok(0, 0, 24);
        w.set_disk_faults(victim, V0, DiskFaults::default());
        if w.disk(victim) == DiskState::Diskless || w.disk(victim) == DiskState::Failed {
            w.attach(victim);
        }
        w.settle();
    }
}

#[test]
fn sim_the_last_disk_fails_and_requests_fail() {
    let mut w = Cluster::new(2).synced();
    w.write_ok(0, 0, 8);
    w.crash(1, zea_sim::faults::Crash::Process);
    w.expect("node 0 is alone", |w| w.conn(0, 1) != ConnState::Connected);
    w.set_disk_faults(0, V0, DiskFaults::DEAD);
    let write = w.write(0, 8, 8);
    assert_eq!(w.wait(write), Err(IoError::Io));
    let read = w.read(0, 0, 8);
    assert_eq!(w.wait(read), Err(IoError::Io));
}

/// Who has the last writes is told when they are stable everywhere: not to a disk that has left before.
#[test]
fn sim_a_detached_disk_knows_what_an_absent_node_misses() {
    for seed in 0..5 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        w.crash(2, zea_sim::faults::Crash::Power);
        w.expect("the loss is noticed", |w| w.is_apart(0, 2) && w.is_apart(1, 2));
        for block in 0..10 {
            w.write_ok(0, block * 64, 8);
        }
        w.detach(1);
        w.run_ms(500);
        w.attach(1);
        w.checkpoint();
        w.start(2);
        w.settle();
    }
}

/// The ack is on another stream than the states of the disk: it may come when the peer has let that disk go and opens the next one.
#[test]
fn sim_a_late_negative_ack_says_nothing_of_the_next_disk() {
    for times in 2..40 {
        let mut w = Cluster { seed: times, ..Cluster::new(2) }.synced();
        w.write_ok(0, 0, 8);
        w.slow_stream(1, 0, 1, times);
        w.set_disk_faults(1, V0, WRITES);
        let request = w.write(0, 0, 8);
        w.expect("the disk is let go", |w| w.disk(1) == DiskState::Diskless);
        w.attach(1);
        assert_eq!(w.wait(request), Ok(()));
        w.slow_stream(1, 0, 1, 1);
        w.settle();
    }
}

/// The disk of node 0 has what node 0 wrote alone, and comes back beside a new Primary without that. A generation that this one begins, before
/// the two compare, leaves the disk out: it is no part of it.
#[test]
fn sim_a_disk_that_a_primary_leaves_out_keeps_its_generation() {
    let mut w = Cluster::new(2).synced();
    w.part(0, 1);
    w.write_ok(0, 0, 8);
    let alone = w.generation(0);
    w.set_disk_faults(0, V0, META);
    w.crash(0, Crash::Process);
    w.start(0);
    w.expect("node 0 starts without its disk", |w| w.nodes[0].boot.is_empty() && w.nodes[0].boot_waits.is_none());
    w.heal(0, 1);
    w.expect("they connect", |w| w.is_connected(0, 1));
    w.must(1, Command::Promote { force: false });
    w.set_disk_faults(0, V0, DiskFaults::default());
    w.slow_disk(0, V0, 20);
    let backing = w.nodes[0].disks[&V0].backing();
    w.admin(0, Command::Attach { volume: V0, backing });
    w.expect("the disk comes up", |w| w.disk(0) == DiskState::Outdated && w.is_connected(0, 1));
    let before = w.generation(1);
    w.write_ok(1, 8, 8);
    assert_ne!(w.generation(1), before, "a generation begins");
    assert!(w.is_connected(0, 1), "they have yet to compare\n{}", w.summary());
    assert_eq!(w.generation(0), alone);
    w.expect("both refuse", |w| w.conn(0, 1) == ConnState::StandAlone && w.conn(1, 0) == ConnState::StandAlone);
}
