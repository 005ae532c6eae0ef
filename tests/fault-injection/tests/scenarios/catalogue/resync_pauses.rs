//! Section 2: resyncs that are paused.

use zea_core::event::PausedBy;
use zea_core::io::{Command, Op};
use zea_sim::faults::Crash;
use zea_sim::net::NodeIx;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::world::{World, node_id};
use zea_wire::ids::VolumeNr;
use zea_wire::state::{DiskState, ReplState, Role};

use super::write_blocks;

const NOBODY: PausedBy = PausedBy { user: false, peer: false, dependency: false };
const USER: PausedBy = PausedBy { user: true, ..NOBODY };
const PEER: PausedBy = PausedBy { peer: true, ..NOBODY };
const BOTH: PausedBy = PausedBy { user: true, ..PEER };

fn pause(w: &mut World, ix: NodeIx, peer: NodeIx, paused: bool) {
    w.must(ix, Command::PauseSync { peer: node_id(peer), volume: V0, paused });
}

fn repl(w: &World, ix: NodeIx, peer: NodeIx) -> ReplState {
    w.nodes[ix].peer_device(peer, V0).expect("a peer").repl
}

fn paused_by(w: &World, ix: NodeIx, peer: NodeIx) -> PausedBy {
    w.nodes[ix].peer_device(peer, V0).expect("a peer").paused_by
}

/// Node 1 is being resynced from node 0, slowly.
fn in_a_resync(nodes: usize) -> World {
    let mut cluster = Cluster { disk_latency_ns: 2_000_000, ..Cluster::new(nodes) };
    cluster.disk.resync_window_sectors = 64;
    let mut w = cluster.synced();
    w.isolate(1);
    write_blocks(&mut w, 0, 0..200);
    w.rejoin(1);
    w.expect("the resync begins", |w| w.disk(1) == DiskState::Inconsistent);
    w
}

/// R21: a resync that is paused on either side, or on both, stays where it is, until nobody pauses it any more.
#[test]
fn sim_r21_a_paused_resync_stays_where_it_is() {
    for by in [0, 1] {
        let mut w = in_a_resync(2);
        pause(&mut w, by, 1 - by, true);
        w.run_ms(100);
        let left = w.out_of_sync(1, 0);
        assert!(left > 0, "it was over too soon");
        assert_eq!((repl(&w, 0, 1), repl(&w, 1, 0)), (ReplState::PausedSyncS, ReplState::PausedSyncT));
        assert_eq!((paused_by(&w, by, 1 - by), paused_by(&w, 1 - by, by)), (USER, PEER));
        pause(&mut w, 1 - by, by, true);
        w.run_ms(10_000);
        pause(&mut w, by, 1 - by, false);
        w.run_ms(1_000);
        assert_eq!((paused_by(&w, by, 1 - by), paused_by(&w, 1 - by, by)), (PEER, USER));
        assert_eq!((w.out_of_sync(1, 0), w.disk(1)), (left, DiskState::Inconsistent));
        pause(&mut w, 1 - by, by, false);
        w.run_ms(10);
        assert_eq!((repl(&w, 0, 1), repl(&w, 1, 0)), (ReplState::SyncSource, ReplState::SyncTarget));
        w.settle();
    }
}

/// R21: what is written while a resync is paused is there at its end, whatever happens meanwhile.
#[test]
fn sim_r21_writes_during_a_pause() {
    for (seed, by) in (0..6).zip([0, 1].into_iter().cycle()) {
        let mut w = in_a_resync(2);
        pause(&mut w, by, 1 - by, true);
        write_blocks(&mut w, 0, 100..140);
        w.flush_ok(0);
        match seed {
            0 | 1 => {}
            2 | 3 => w.reset_link(0, 1),
            _ => w.crash(1, Crash::Power),
        }
        w.run_ms(500);
        write_blocks(&mut w, 0, 300..340);
        w.start(1);
        w.run_ms(5_000);
        pause(&mut w, by, 1 - by, false);
        w.settle();
    }
}

/// R21: a pause outlasts the connection, and keeps a resync that begins later from going on. It ends with the process.
#[test]
fn sim_r21_a_pause_comes_before_the_resync() {
    let mut w = Cluster::new(2).synced();
    pause(&mut w, 0, 1, true);
    w.part(0, 1);
    assert_eq!((paused_by(&w, 0, 1), paused_by(&w, 1, 0)), (USER, NOBODY));
    write_blocks(&mut w, 0, 0..20);
    w.heal(0, 1);
    w.expect("the resync begins", |w| w.disk(1) == DiskState::Inconsistent);
    pause(&mut w, 1, 0, true);
    w.run_ms(5_000);
    assert_eq!((paused_by(&w, 0, 1), paused_by(&w, 1, 0)), (BOTH, BOTH));
    assert_eq!((w.out_of_sync(0, 1), w.received(1, 0)), (20 * 8, 0));
    pause(&mut w, 0, 1, false);
    w.crash(1, Crash::Process);
    w.run_ms(100);
    w.start(1);
    w.settle();
    assert_eq!((paused_by(&w, 0, 1), paused_by(&w, 1, 0)), (NOBODY, NOBODY));
}

/// R21: a target that compares with two sources at once takes the one that is not paused, or goes over to it.
#[test]
fn sim_r21_a_source_that_is_not_paused_is_preferred() {
    let mut elsewhere = 0;
    for seed in 0..40 {
        let mut w = Cluster { seed, ..Cluster::new(3) }.synced();
        w.isolate(1);
        write_blocks(&mut w, 0, 0..40);
        w.must(0, Command::Demote);
        let before = seed % 2 == 0;
        if before {
            pause(&mut w, 1, 0, true);
        }
        w.rejoin(1);
        w.expect("it is connected", |w| w.all_connected());
        if !before {
            pause(&mut w, 1, 0, true);
        }
        w.run_ms(3_000);
        elsewhere += u32::from(w.disk(1) == DiskState::UpToDate && w.received(1, 2) > 0);
        pause(&mut w, 1, 0, false);
        w.settle();
    }
    assert!(elsewhere > 0, "it never had two sources");
}

/// R21: a Primary that is being resynced works with its peer's data for as long as it is paused.
#[test]
fn sim_r21_a_paused_primary_is_served_by_its_peer() {
    let mut w = in_a_resync(2);
    pause(&mut w, 1, 0, true);
    w.must(0, Command::Demote);
    super::promote(&mut w, 1);
    write_blocks(&mut w, 1, 50..80);
    w.read_ok(1, 0, 640);
    assert_eq!((w.role(1), w.disk(1)), (Role::Primary, DiskState::Inconsistent));
    w.must(1, Command::Demote);
    pause(&mut w, 1, 0, false);
    w.settle();
}

/// Three volumes, each resynced after the one that is named; those without one at once.
fn ordered(orders: [Option<u16>; 3], on: NodeIx) -> World {
    let mut cluster = Cluster { volume_sectors: vec![8_192; 3], disk_latency_ns: 2_000_000, ..Cluster::new(2) };
    cluster.disk.resync_window_sectors = 64;
    let mut w = cluster.synced();
    for (volume, after) in (0..).map(VolumeNr).zip(orders) {
        w.must(on, Command::SetResyncAfter { volume, after: after.map(VolumeNr) });
    }
    w.part(0, 1);
    for volume in (0..3).map(VolumeNr) {
        for block in 0..40 {
            let request = w.submit(0, volume, Op::Write, block * 64, 8, false);
            assert_eq!(w.wait(request), Ok(()));
        }
    }
    w.heal(0, 1);
    w.expect("they connect", |w| w.is_connected(0, 1));
    w
}

/// R20: volumes that come after each other are resynced so, whichever number comes first and whichever node knows the order; what
/// is paused holds back what comes after.
#[test]
fn sim_r20_volumes_are_resynced_one_after_the_other() {
    for (orders, sequence) in [([None, Some(0), Some(1)], [0, 1, 2]), ([Some(1), Some(2), None], [2, 1, 0])] {
        for on in [0, 1] {
            let mut w = ordered(orders, on);
            let left =
                |w: &World, nr: u16| w.nodes[1].peer_device(0, VolumeNr(nr)).map_or(0, |p| p.out_of_sync_sectors);
            let mut ended = Vec::new();
            let limit = w.now + 60_000_000_000;
            while ended.len() < 3 && w.step(limit) {
                w.refresh(1);
                for nr in 0..3 {
                    let disk = w.nodes[1].disk_state(VolumeNr(nr));
                    if left(&w, nr) == 0 && disk == DiskState::UpToDate && !ended.contains(&nr) {
                        ended.push(nr);
                    }
                }
            }
            assert_eq!(ended, sequence, "{orders:?} on node {on}");
            w.settle();
        }
    }
    let mut w = ordered([None, Some(0), None], 0);
    pause(&mut w, 1, 0, true);
    w.run_ms(20_000);
    let second = w.nodes[0].peer_device(1, VolumeNr(1)).expect("a peer");
    assert_eq!((second.repl, second.paused_by.dependency), (ReplState::PausedSyncS, true));
    assert_eq!(w.nodes[1].disk_state(VolumeNr(2)), DiskState::UpToDate, "it comes after nothing");
    pause(&mut w, 1, 0, false);
    w.settle();
    assert_eq!(paused_by(&w, 0, 1), NOBODY);
}

/// R20: nothing comes after itself.
#[test]
fn sim_r20_an_order_has_no_circles() {
    let mut w = ordered([None, Some(0), Some(1)], 0);
    for (volume, after) in [(0, 2), (0, 0), (1, 2)] {
        let order = Command::SetResyncAfter { volume: VolumeNr(volume), after: Some(VolumeNr(after)) };
        w.command(0, order).expect_err("it would wait for itself");
    }
    w.settle();
}
