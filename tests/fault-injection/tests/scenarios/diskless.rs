//! A Primary without an UpToDate disk, which serves the data of its peers.

use zea_core::io::{Command, IoError};
use zea_sim::disk::DiskFaults;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::world::{Outcome, World, node_id};
use zea_wire::state::{ConnState, DiskState, ReplState};

/// Node 0 is Primary, and lets its disk go.
fn diskless_primary(nodes: usize) -> World {
    let mut w = Cluster::new(nodes).synced();
    w.write_ok(0, 0, 64);
    w.must(0, Command::Detach { volume: V0, force: false });
    w.write_ok(0, 0, 8);
    w
}

fn reattach(w: &mut World, ix: usize) {
    let backing = w.nodes[ix].disks[&V0].backing();
    w.must(ix, Command::Attach { volume: V0, backing });
}

/// Both links break at once, with a write on its way: the generation that is begun at the loss of the first peer reaches nobody,
/// and nothing is acknowledged in it. So it does not count that neither peer has it.
#[test]
fn diskless_primary_that_loses_both_peers_for_a_moment_goes_on_with_either() {
    for first in [1, 2] {
        let mut w = diskless_primary(3);
        let write = w.write(0, 8, 8);
        w.reset_link(0, first);
        w.reset_link(0, 3 - first);
        w.wait(write).ok();
        w.expect("both peers are back and good", |w| {
            [1, 2].iter().all(|ix| w.is_connected(0, *ix) && w.disk(*ix) == DiskState::UpToDate)
        });
        w.write_ok(0, 16, 8);
        w.read_ok(0, 0, 64);
        reattach(&mut w, 0);
        w.settle();
    }
}

/// What was acknowledged and not flushed went with the power of the only disk: a flush must not say that it is stable.
#[test]
fn diskless_primary_fails_the_flush_after_its_only_disk_lost_writes() {
    let mut w = diskless_primary(2);
    w.flush_ok(0);
    w.write_ok(0, 8, 8);
    w.crash(1, Crash::Power);
    w.expect("node 0 notices", |w| w.conn(0, 1) != ConnState::Connected);
    w.start(1);
    w.expect("node 1 is back", |w| w.is_connected(0, 1) && w.disk(1) == DiskState::UpToDate);
    let flush = w.flush(0);
    assert_eq!(w.wait(flush), Err(IoError::Io));
    w.write_ok(0, 16, 8);
    w.flush_ok(0);
}

/// The last UpToDate data of a Primary leaves only by force.
#[test]
fn diskless_primary_keeps_its_last_data() {
    let mut w = diskless_primary(2);
    let refused = |w: &mut World, ix, command: Command| {
        let error = w.command(ix, command).expect_err("the Primary needs it");
        assert_eq!(error.code, -2, "{error:?}");
    };
    refused(&mut w, 1, Command::Disconnect { peer: node_id(0), force: false });
    refused(&mut w, 0, Command::Disconnect { peer: node_id(1), force: false });
    refused(&mut w, 1, Command::Detach { volume: V0, force: false });
    refused(&mut w, 1, Command::Down);
    w.write_ok(0, 24, 8);
    w.must(1, Command::Disconnect { peer: node_id(0), force: true });
}

/// A node that was Primary returns with the disk that it let go. A Secondary that has no disk either has seen what came after.
#[test]
fn diskless_secondary_that_saw_later_data_keeps_an_old_disk_from_being_served() {
    let mut w = diskless_primary(2);
    w.write_ok(0, 32, 8);
    w.crash(0, Crash::Process);
    w.must(1, Command::Detach { volume: V0, force: true });
    w.start(0);
    w.expect("they are connected", |w| w.is_connected(0, 1));
    w.expect("the old disk is known for old", |w| w.disk(0) == DiskState::Outdated);
    let promoted = w.command(0, Command::Promote { force: false });
    assert_eq!(promoted.expect_err("there is no good data").code, -2);
}

/// A disk that was Outdated when its meta data could no longer be written is Outdated when it comes back.
#[test]
fn diskless_secondary_takes_no_outdated_disk_for_good() {
    let mut w = Cluster::new(3).synced();
    w.write_ok(0, 0, 8);
    w.cut(0, 2);
    w.cut(1, 2);
    w.expect("node 2 is cut off", |w| w.conn(0, 2) != ConnState::Connected && w.conn(2, 1) != ConnState::Connected);
    w.must(0, Command::Detach { volume: V0, force: false });
    w.write_ok(0, 8, 8);
    // Nothing reaches the disk of node 2 any more.
    w.set_disk_faults(2, V0, DiskFaults { meta: true, ..DiskFaults::default() });
    w.heal(0, 2);
    w.heal(1, 2);
    w.expect("node 2 lets its disk go", |w| w.disk(2) == DiskState::Diskless && w.nodes[2].attached.is_empty());
    w.set_disk_faults(2, V0, DiskFaults::default());
    reattach(&mut w, 2);
    w.read_ok(0, 0, 16);
    reattach(&mut w, 0);
    w.settle();
}

/// The Primary begins a generation while its disk is being resynced: the disk ends at that generation.
#[test]
fn diskless_primary_begins_a_generation_while_it_is_resynced() {
    for seed in 0..6 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        w.write_ok(0, 2048, 2048);
        w.must(0, Command::Detach { volume: V0, force: false });
        w.write_ok(0, 0, 2048);
        reattach(&mut w, 0);
        w.expect("node 0 is resynced", |w| w.disk(0) == DiskState::Inconsistent);
        // Resynced from one of the two: the other one goes.
        let from = |w: &World, ix| w.nodes[0].peer_device(ix, V0).is_some_and(|p| p.repl == ReplState::SyncTarget);
        w.expect("a resync runs", move |w| from(w, 1) || from(w, 2));
        let other = if from(&w, 1) { 2 } else { 1 };
        w.crash(other, Crash::Process);
        w.write_ok(0, 8, 8);
        w.write_ok(0, 4096, 8);
        w.expect("node 0 is whole", |w| w.disk(0) == DiskState::UpToDate);
        w.start(other);
        w.settle();
        // It would be a split brain, if the name of the generation had been lost.
        w.half_open(0, 3 - other);
        w.write_ok(0, 16, 8);
        w.settle();
    }
}

/// Two nodes are Primary without knowing of each other. The disk beside the one without its own is resynced from the other one: what
/// is on it then has nothing to do with what was written here, and is not read.
#[test]
fn diskless_primary_does_not_serve_what_another_one_wrote() {
    let mut w = Cluster::new(3).synced();
    w.isolate(2);
    w.part(0, 1);
    w.must(1, Command::Promote { force: true });
    w.write_ok(0, 0, 8);
    w.write_ok(1, 8, 2048);
    w.heal(1, 2);
    w.expect("node 2 is resynced", |w| w.disk(2) == DiskState::Inconsistent);
    w.must(1, Command::Detach { volume: V0, force: true });
    w.expect("there is no good data", |w| w.disk(1) == DiskState::Diskless && w.disk(2) == DiskState::Inconsistent);
    w.heal(0, 2);
    w.run_ms(2_000);
    let read = w.read(1, 8, 8);
    w.run_ms(5_000);
    assert!(!matches!(w.outcomes.get(&read), Some(Outcome::Done(Ok(())))), "a read without data");
}

/// A peer returns while the Primary begins a generation and writes in it to the other one alone. Nothing is acknowledged then, so the
/// peer's generation is as good, but what is written must not pass it by.
#[test]
fn diskless_primary_writes_while_a_peer_returns() {
    for delay in 25..45 {
        let mut w = Cluster { seed: delay, disk_latency_ns: 4_000_000, ..Cluster::new(3) }.synced();
        w.write_ok(0, 0, 64);
        w.must(0, Command::Detach { volume: V0, force: false });
        w.write_ok(0, 0, 8);
        w.flush_ok(0);
        w.crash(1, Crash::Process);
        w.expect("node 0 notices", |w| w.conn(0, 1) != ConnState::Connected);
        w.start(1);
        w.run_ms(2 * delay);
        w.write_ok(0, 8, 8);
        w.expect("node 1 is back and good", |w| w.is_connected(0, 1) && w.disk(1) == DiskState::UpToDate);
        w.crash(2, Crash::Process);
        w.read_ok(0, 0, 64);
        w.start(2);
        reattach(&mut w, 0);
        w.settle();
    }
}

/// A Primary without a disk writes past a disk that is behind, and is demoted. That disk gets what it lacks from the server, and the
/// former Primary takes it for as good as it is.
#[test]
fn diskless_primary_that_wrote_past_a_disk_believes_it_after_the_demotion() {
    let mut w = diskless_primary(3);
    w.part(1, 2);
    w.must(2, Command::Detach { volume: V0, force: true });
    w.expect("the disk is closed", |w| w.nodes[2].attached.is_empty());
    w.write_ok(0, 8, 8);
    reattach(&mut w, 2);
    w.expect("node 2 is behind", |w| w.is_connected(0, 2) && w.disk(2) == DiskState::Outdated);
    w.run_ms(100);
    w.write_ok(0, 16, 8);
    w.must(0, Command::Demote);
    w.heal(1, 2);
    w.expect("node 2 is good", |w| w.disk(2) == DiskState::UpToDate);
    w.run_ms(1_000);
    assert!(w.nodes[0].sees_up_to_date(2, V0), "{}", w.summary());
    reattach(&mut w, 0);
    w.settle();
}
