//! Section 8: disks and links that fail, peers that do what they must not.

use zea_core::io::{Command, Input, LinkId, Payload};
use zea_sim::disk::DiskFaults;
use zea_sim::faults::Crash;
use zea_sim::scenario::{Cluster, V0};
use zea_sim::workload::Mix;
use zea_sim::world::node_id;
use zea_wire::flags::DpFlags;
use zea_wire::ids::BlockId;
use zea_wire::packet::{Data, Packet};
use zea_wire::state::{ConnState, DiskState};

use super::{EXTENT, write_blocks};

const WRITES: DiskFaults = DiskFaults { reads: false, writes: true, flushes: false, meta: false, no_space: false };
const META: DiskFaults = DiskFaults { reads: false, writes: false, flushes: false, meta: true, no_space: false };

/// F1: a read error on the Primary: it detaches, a peer answers, and after a new attach little is resynced.
#[test]
fn sim_f1_a_read_error_on_the_primary() {
    let mut w = Cluster { volume_sectors: vec![20 * EXTENT], ..Cluster::new(2) }.synced();
    write_blocks(&mut w, 0, 0..10);
    w.make_unreadable(0, V0, 0, 16);
    w.read_ok(0, 0, 64);
    w.expect("node 0 detaches", |w| w.disk(0) == DiskState::Diskless);
    w.read_ok(0, 0, 640);
    w.write_ok(0, 0, 64);
    w.attach(0);
    w.settle();
    let received = w.received(0, 1);
    assert!((8..=2 * EXTENT).contains(&received), "{received} sectors");
}

/// F2: a write error on the Primary or the secondary: its disk goes, the write does not fail, what is missing is resynced.
#[test]
fn sim_f2_a_write_error_on_either_side() {
    for victim in [0, 1] {
        let mut w = Cluster::new(2).synced();
        write_blocks(&mut w, 0, 0..10);
        w.set_disk_faults(victim, V0, WRITES);
        write_blocks(&mut w, 0, 0..10);
        w.flush_ok(0);
        w.expect("the disk is given up", |w| w.disk(victim) == DiskState::Diskless);
        w.run_ms(500);
        if victim == 1 {
            assert!(w.out_of_sync(0, 1) >= 80);
        }
        w.attach(victim);
        w.settle();
    }
}

/// F4: meta data cannot be written, or not be read when a disk is attached: the disk goes, nothing hangs.
#[test]
fn sim_f4_meta_data_errors() {
    for victim in [0, 1] {
        let mut w = Cluster::new(2).synced();
        w.set_disk_faults(victim, V0, META);
        // Far apart, so that the activity log has to be written.
        let writes: Vec<_> = (0..4).map(|n| w.write(0, n * EXTENT, 8)).collect();
        for write in writes {
            assert_eq!(w.wait(write), Ok(()));
        }
        w.expect("the disk is given up", |w| w.disk(victim) == DiskState::Diskless);
        w.expect("the disk is closed", |w| w.nodes[victim].attached.is_empty());
        let backing = w.nodes[victim].disks[&V0].backing();
        w.command(victim, Command::Attach { volume: V0, backing }).expect_err("its meta data cannot be read");
        w.write_ok(0, 0, 8);
        w.attach(victim);
        w.settle();
    }
}

/// F7: a disk hangs: a forced detach lets requests go on through the peer.
#[test]
fn sim_f7_a_hanging_disk_is_detached_by_force() {
    let mut w = Cluster::new(2).synced();
    write_blocks(&mut w, 0, 0..3);
    w.flush_ok(0);
    w.slow_disk(0, V0, 100_000);
    let requests = [w.read(0, 0, 8), w.write(0, 0, 8)];
    w.run_ms(200);
    assert!(requests.iter().all(|r| !w.outcomes.contains_key(r)), "the disk does not hang");
    w.admin(0, Command::Detach { volume: V0, force: true });
    for request in requests {
        assert_eq!(w.wait(request), Ok(()));
    }
    let later = w.read(0, 0, 8);
    w.run_ms(200);
    assert!(w.outcomes.contains_key(&later), "it waits for the disk");
}

/// F9: the link is lost with writes in every phase; each completes exactly once, and what is missing is marked.
#[test]
fn sim_f9_link_loss_with_writes_in_every_phase() {
    let mut w = Cluster::new(2).synced();
    for delay_us in (0..2_000).step_by(50) {
        let requests: Vec<_> = (0..8).map(|n| w.write(0, n * 808, 8)).collect();
        let limit = w.now + delay_us * 1_000;
        while w.step(limit) {}
        w.reset_link(0, 1);
        for req in requests {
            assert_eq!(w.wait(req), Ok(()));
        }
        w.expect("they are in sync again", |w| w.mutually_in_sync(0, 1, V0));
    }
    w.settle();
}

/// F11: processes are killed, secondary and Primary, and start again at once.
#[test]
fn sim_f11_processes_are_killed() {
    for seed in 0..8 {
        let mut w = Cluster { seed, ..Cluster::new(2) }.synced();
        for victim in [1, 0, 1, 0] {
            w.under_load(10, Mix::default());
            w.crash(victim, Crash::Process);
            w.start(victim);
            w.expect("they are in sync", |w| w.mutually_in_sync(0, 1, V0));
            if victim == 0 {
                super::promote(&mut w, 0);
            }
        }
        w.settle();
    }
}

/// F13: a peer acknowledges writes and never their barrier: it is given up after ko-count times timeout.
#[test]
fn sim_f13_a_barrier_without_an_ack() {
    let mut cluster = Cluster::new(2);
    (cluster.net.timeout_ms, cluster.net.ko_count) = (500, 4);
    let mut w = cluster.synced();
    write_blocks(&mut w, 0, 0..3);
    w.run_ms(1_000);
    // A flush takes four times as long as a write: the write is acknowledged in time, the barrier is not.
    w.slow_disk(1, V0, 10_000);
    let write = w.write(0, 0, 8);
    let begin = w.now;
    w.expect("node 0 gives the peer up", |w| w.conn(0, 1) != ConnState::Connected);
    assert_eq!(w.wait(write), Ok(()));
    let ms = (w.now - begin) / 1_000_000;
    assert!((1_900..=4_000).contains(&ms), "given up after {ms} ms");
    w.refresh(0);
    let why = w.nodes[0].connection(1).and_then(|c| c.last_error.clone()).unwrap_or_default();
    assert!(why.contains("ko-count"), "{why}");
    w.slow_disk(1, V0, 1);
    w.settle();
}

/// F7: a disk that answers late, but answers, is no reason to give it up.
#[test]
fn sim_f7_a_slow_disk_is_not_a_broken_one() {
    for victim in [0, 1] {
        let mut w = Cluster::new(2).synced();
        w.slow_disk(victim, V0, 3_000);
        write_blocks(&mut w, 0, 0..3);
        w.slow_disk(victim, V0, 1);
        assert_eq!(w.disk(victim), DiskState::UpToDate);
        w.settle();
    }
}

/// F15: a Secondary sends a write: it is refused, the connection is made anew, and the disk is as it was.
#[test]
fn sim_f15_a_write_from_a_secondary() {
    let mut w = Cluster::new(3).synced();
    write_blocks(&mut w, 0, 0..3);
    w.settle();
    w.checks.protocol_errors_expected = true;
    let link = w.net.live_link(1, 2).expect("nodes 1 and 2 are connected");
    let buf = w.nodes[1].pool.give_to_core(vec![77 << 36; 8]);
    let data = Data { sector: 64, block_id: BlockId(1), seq_num: 1, dp_flags: DpFlags::EMPTY };
    w.feed(
        1,
        Input::Packet {
            peer: node_id(2),
            link: LinkId(link),
            volume: Some(V0),
            packet: Packet::Data(data),
            payload: Some(Payload { buf, offset: 0, len: 4096 }),
        },
    );
    assert_ne!(w.conn(1, 2), ConnState::Connected, "{}", w.summary());
    w.settle();
}
